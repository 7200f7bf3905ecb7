"""Runs notebooks, each in a fresh kernel of this interpreter, and keeps the results of unchanged ones."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib
import nbformat
from PIL import Image

from .claims import load_claims
from .kernel import NotebookFailed, execute
from .parameters import BASE, PROFILES, declared_parameters, profile_parameters, with_overrides
from .paths import UsageError, notebooks_folder, reference_folder, results_folder, write_atomically
from .record import VERDICTS, TableView
from .sources import source_hash


@dataclass(frozen=True)
class Job:
    """One notebook to run: its file, its content and its final parameters."""

    name: str
    path: Path
    notebook: nbformat.NotebookNode
    parameters: dict[str, Any]
    injected: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook; `checks` counts the passed checks and `verdicts` the claims."""

    name: str
    status: str
    checks: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    message: str = ""

    def __str__(self) -> str:
        if self.status == "failed":
            return f"{self.name}: {self.message}"
        if self.status == "cached":
            again = "use --force to run again"
            return f"{self.name}: unchanged, cached result of {self.checks} checks ({again})"
        claims = ", ".join(f"{self.verdicts[verdict]} {verdict}" for verdict in VERDICTS)
        return f"{self.name}: {self.checks} checks passed; claims: {claims}; {self.seconds:.0f} s"


def available_notebooks() -> dict[str, Path]:
    """Name and file of each notebook, in the order of the names."""
    return {path.stem: path for path in sorted(notebooks_folder().glob("*.ipynb"))}


def find_notebooks(names: Sequence[str]) -> dict[str, Path]:
    """The notebooks meant by `01`, `01_l2_softmax` or `notebooks/01_l2_softmax.ipynb`; all for no name.

    Raises UsageError for a name that means none or more than one.
    """
    known = available_notebooks()
    if not known:
        raise UsageError(f"there is no notebook in {notebooks_folder()}")
    chosen = {}
    for name in names or known:
        stem = Path(name).name.removesuffix(".ipynb")
        found = [stem] if stem in known else [other for other in known if stem and other.startswith(f"{stem}_")]
        if len(found) != 1:
            raise UsageError(f"unknown notebook {name!r}; notebooks are {', '.join(known)}")
        chosen[found[0]] = known[found[0]]
    return dict(sorted(chosen.items()))


def resolve_profile(profile: str) -> str:
    """`auto` is `full` where there is a GPU, else `standard`. Raises UsageError for an unknown profile."""
    if profile == "auto":
        return "full" if device_type().startswith("cuda") else BASE
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}; profiles are auto, {', '.join(PROFILES)}")
    return profile


def device_type() -> str:
    """The device that the kernels will use: `REPROLIB_DEVICE`, else `cuda` if there is one, else `cpu`."""
    if named := os.environ.get("REPROLIB_DEVICE"):
        return named
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def prepare(names: Sequence[str], profile: str, overrides: Mapping[str, Any]) -> list[Job]:
    """All that can be refused is refused here, before anything is run or written. Raises UsageError."""
    jobs = []
    for name, path in find_notebooks(names).items():
        try:
            notebook = nbformat.read(path, as_version=4)
            declared = declared_parameters(notebook)
        except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError, SyntaxError) as error:
            raise UsageError(f"notebook {name} cannot be read: {' '.join(str(error).split())[:200]}") from error
        except UsageError as error:
            raise UsageError(f"notebook {name}: {error}") from error
        literals = profile_parameters(name, BASE)
        for key in sorted(set(declared) | set(literals)):
            if (
                declared.get(key) != literals.get(key)
                or key not in declared
                or type(declared[key]) is not type(literals[key])
            ):
                raise UsageError(
                    f"parameter {key!r} in the parameters cell of {name} differs from profile {BASE!r}; "
                    f"change a parameter for one run with -p {key}=..."
                )
        final = with_overrides(name, profile_parameters(name, profile), overrides)
        injected = {key: value for key, value in final.items() if value != declared[key]}
        jobs.append(Job(name, path, notebook, final, injected))
    return jobs


def data_state(root: Path) -> list[list[Any]]:
    """Path, size and time of change of every file under the data folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return [[path.relative_to(root).as_posix(), path.stat().st_size, path.stat().st_mtime_ns] for path in files]


def run_key(job: Job, package: str, data_root: Path) -> str:
    """SHA-256 of all that shapes the result of a notebook; equal keys need no second run.

    package: the hash of the package's source.
    """
    parts = {
        "cells": [[cell.cell_type, cell.source] for cell in job.notebook.cells],
        "parameters": job.parameters,
        "claims": [claim.declared() for claim in load_claims(job.name)],
        "package": package,
        "data": data_state(data_root),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn", "matplotlib")},
        "python": sys.version_info[:2],
        "device": device_type(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def run_job(job: Job, results: Path, cores: int, *, force: bool = False, save_outputs: bool = False) -> Outcome:
    """Run one notebook on `cores` cores, or take over its unchanged result. Does not raise for a failing cell."""
    from ..data import data_root

    data = data_root().resolve()
    folder = results / job.parameters["profile"]
    record, executed = folder / f"{job.name}.json", folder / f"{job.name}.ipynb"
    stamp = folder / f"{job.name}.key"
    package = source_hash()
    if not force and _stamped(stamp) == [run_key(job, package, data), _digest(record), _digest(executed)]:
        if save_outputs:
            copy_outputs(nbformat.read(executed, as_version=4), job.path)
        return _outcome(job.name, "cached", json.loads(record.read_text(encoding="utf-8")))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="reprolib-") as temporary:
        staging = Path(temporary)
        try:
            output = execute(job.name, job.notebook, job.injected, job.parameters["profile"], staging, data, cores)
            content = finished_record(job, staging)
        except NotebookFailed as error:
            if (staging / "executed.ipynb").exists():
                write_atomically(folder / f"{job.name}.failed.ipynb", (staging / "executed.ipynb").read_bytes())
            return Outcome(job.name, "failed", seconds=time.perf_counter() - began, message=str(error))
        # The stamp goes first and comes back last: with it, record and executed copy belong together.
        stamp.unlink(missing_ok=True)
        write_atomically(record, content)
        write_atomically(executed, nbformat.writes(output) + "\n")
    (folder / f"{job.name}.failed.ipynb").unlink(missing_ok=True)
    if save_outputs:
        copy_outputs(output, job.path)
    # The run may have fetched its data itself, but the code that ran is the one from before.
    key = run_key(job, package, data)
    write_atomically(stamp, json.dumps([key, _digest(record), _digest(executed)]) + "\n")
    return _outcome(job.name, "run", json.loads(content))


def _stamped(stamp: Path) -> list[str] | None:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else ""


def _outcome(name: str, status: str, document: Mapping[str, Any]) -> Outcome:
    verdicts = Counter(claim["verdict"] for claim in document["claims"])
    return Outcome(name, status, sum(check["passed"] for check in document["checks"]), verdicts, document["seconds"])


def finished_record(job: Job, staging: Path) -> bytes:
    """The JSON that `finish()` wrote. Raises NotebookFailed if it is missing or of another run."""
    path = staging / job.parameters["profile"] / f"{job.name}.json"
    if not path.exists():
        raise NotebookFailed(f"the notebook ended without run.finish(), so that there is no {path.name}")
    content = path.read_bytes()
    if json.loads(content)["parameters"] != job.parameters:
        raise NotebookFailed("the notebook ran with other parameters than it was given")
    return content


def copy_outputs(executed: nbformat.NotebookNode, path: Path) -> None:
    """Put the outputs and execution counts of a `standard` run into the notebook at `path`, nothing else.

    Sources, tags and cell ids stay; the traces of papermill do not come along. Raises UsageError if the
    sources differ.
    """
    notebook = nbformat.read(path, as_version=4)
    if [cell.source for cell in notebook.cells] != [cell.source for cell in executed.cells]:
        raise UsageError(f"{path.name} changed while it ran, its outputs are not those of its cells")
    for cell, ran in zip(notebook.cells, executed.cells, strict=True):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = ran.outputs, ran.execution_count
            for output in cell.outputs:
                if "image/png" in output.get("data", {}):
                    output.data["image/png"] = smaller_png(output.data["image/png"])
    notebook.metadata.pop("papermill", None)
    notebook.metadata["kernelspec"] = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    # The patch version of Python would change the file on every machine.
    notebook.metadata["language_info"] = {"name": "python"}
    nbformat.validate(notebook)
    write_atomically(path, nbformat.writes(notebook) + "\n")
    save_gallery(notebook)


def smaller_png(encoded: str) -> str:
    """A figure (base64 PNG) with a palette of 256 colours; unchanged if no smaller.

    An octree keeps rare but strong colours, such as a class of few points; a median cut merged them with others.
    """
    buffer = io.BytesIO()
    picture = Image.open(io.BytesIO(base64.b64decode(encoded))).convert("RGB")
    picture = picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(buffer, format="PNG", optimize=True)
    smaller = base64.b64encode(buffer.getvalue()).decode()
    return min(encoded, smaller, key=len)


def save_gallery(notebook: nbformat.NotebookNode) -> None:
    """Write the first figure of each cell tagged `gallery-NAME` to `reference/gallery/NAME.png`, for the README."""
    for cell in notebook.cells:
        names = [tag.removeprefix("gallery-") for tag in cell.metadata.get("tags", []) if tag.startswith("gallery-")]
        for name in names:
            pictures = [output.data["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
            if not pictures:
                raise UsageError(f"the cell tagged gallery-{name} has no figure")
            write_atomically(reference_folder() / "gallery" / f"{name}.png", base64.b64decode(pictures[0]))


def run_notebooks(
    names: Sequence[str] = (),
    profile: str = "auto",
    overrides: Mapping[str, Any] | None = None,
    *,
    force: bool = False,
    save_outputs: bool = False,
    results: Path | None = None,
    at_once: int = 1,
) -> list[Outcome]:
    """Run the notebooks, print a line for each as soon as it is done, and then a summary in the order of the names.

    at_once: so many kernels run at the same time; one after the other by default. Several fit on one GPU; on a CPU
    they share the cores. The results are the same.
    Raises UsageError, before anything is written, for an unknown notebook, profile, parameter or type.
    """
    chosen = resolve_profile(profile)
    if save_outputs and (chosen != BASE or overrides):
        raise UsageError(f"--save-outputs is for profile {BASE!r} without -p, the notebooks show that run")
    jobs = prepare(names, chosen, overrides or {})
    if at_once < 1:
        raise UsageError(f"at least one notebook has to run at once, not {at_once}")
    cores = max(1, joblib.cpu_count() // at_once)
    done: dict[str, Outcome] = {}

    def run(job: Job) -> Outcome:
        return run_job(job, results or results_folder(), cores, force=force, save_outputs=save_outputs)

    def finished(outcome: Outcome) -> None:
        print(outcome, file=sys.stderr if outcome.status == "failed" else sys.stdout, flush=True)
        done[outcome.name] = outcome

    if at_once == 1:
        for job in jobs:
            finished(run(job))
    else:
        # The work is in the kernels, which are processes; a thread only waits for one.
        pool = ThreadPoolExecutor(at_once)
        try:
            for future in as_completed([pool.submit(run, job) for job in jobs]):
                finished(future.result())
        finally:
            pool.shutdown(cancel_futures=True)
    outcomes = [done[job.name] for job in jobs]
    if len(outcomes) > 1:
        print(f"\n{summary(outcomes, chosen)}", flush=True)
    return outcomes


def summary(outcomes: Sequence[Outcome], profile: str) -> TableView:
    """One line for each notebook and their sum."""

    def rows() -> Iterator[tuple[str, ...]]:
        for outcome in outcomes:
            verdicts = [str(outcome.verdicts[verdict]) for verdict in VERDICTS]
            seconds = "" if outcome.status == "failed" else f"{outcome.seconds:.0f}"
            yield (outcome.name, outcome.status, str(outcome.checks), *verdicts, seconds)
        total = [sum(outcome.verdicts[verdict] for outcome in outcomes) for verdict in VERDICTS]
        seconds = sum(outcome.seconds for outcome in outcomes if outcome.status != "failed")
        yield (
            "all",
            "",
            str(sum(outcome.checks for outcome in outcomes)),
            *map(str, total),
            f"{seconds:.0f}",
        )

    columns = ("notebook", "status", "checks passed", *VERDICTS, "seconds")
    return TableView(f"Profile {profile}", columns, tuple(rows()))
