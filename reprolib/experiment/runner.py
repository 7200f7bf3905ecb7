"""Runs notebooks, each in a fresh kernel of this interpreter, and keeps the results of unchanged ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib
import nbformat

from .claims import load_claims
from .committed import commit
from .kernel import Kernels, NotebookFailed, execute
from .parameters import BASE, check_profile, notebook_literals, profile_parameters, with_overrides
from .paths import (
    UsageError,
    cache_folder,
    notebooks_folder,
    one_line,
    reference_folder,
    remove_leftovers,
    repository_root,
    results_folder,
    unwritable,
    write_atomically,
)
from .record import VERDICTS, TableView
from .reference import against_reference, comparison_view
from .sources import source_hash

# The profiles whose outputs a committed notebook may show.
SHOWN_PROFILES = (BASE, "full")


@dataclass(frozen=True)
class Job:
    """One notebook to run: its file, its content, its final parameters and the claims that its file declares."""

    name: str
    path: Path
    notebook: nbformat.NotebookNode
    parameters: dict[str, Any]
    injected: dict[str, Any]
    claims: list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook; `checks` counts the passed checks and `verdicts` the claims."""

    name: str
    status: str
    checks: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    message: str = ""
    document: dict[str, Any] = field(default_factory=dict, repr=False)

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

    A path must lead to the notebook itself, from the working directory or from the root of the repository: a copy
    elsewhere is another notebook. Raises UsageError for a name that means none or more than one.
    """
    known = available_notebooks()
    if not known:
        raise UsageError(
            f"there is no notebook in {notebooks_folder()}; to run them, clone the repository and run there, or let "
            "REPROLIB_ROOT name it"
        )
    chosen = {}
    for name in names or known:
        stem = Path(name).name.removesuffix(".ipynb")
        found = [stem] if stem in known else [other for other in known if stem and other.startswith(f"{stem}_")]
        if len(found) != 1:
            raise UsageError(f"unknown notebook {name!r}; notebooks are {', '.join(known)}")
        here = Path(name).expanduser()
        if here.parent != Path() or (here.suffix == ".ipynb" and here.exists()):
            meant = here if here.exists() else repository_root() / here
            if meant.resolve() != known[found[0]].resolve():
                raise UsageError(f"{name} is not one of the notebooks in {notebooks_folder()}, which alone can be run")
        chosen[found[0]] = known[found[0]]
    return dict(sorted(chosen.items()))


def resolve_profile(profile: str) -> str:
    """`auto` is `full` where there is a GPU, else `standard`. Raises UsageError for an unknown profile."""
    check_profile(profile, "auto")
    if profile == "auto":
        return "full" if device_type().startswith("cuda") else BASE
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
            nbformat.validate(notebook)
        except (nbformat.reader.NotJSONError, nbformat.ValidationError, KeyError, AttributeError, OSError) as error:
            raise UsageError(f"notebook {name} cannot be read: {one_line(error)[:200]}") from error
        declared = notebook_literals(name)
        final = with_overrides(name, profile_parameters(name, profile), overrides)
        injected = {key: value for key, value in final.items() if value != declared[key]}
        claims = [claim.declared() for claim in load_claims(name)]
        jobs.append(Job(name, path, notebook, final, injected, claims))
    return jobs


def data_state(root: Path, job: Job) -> list[list[Any]]:
    """Path, size and time of change of the files of each data set that the notebook reads.

    The sets lie in folders or files of `root` such as `orl` or `cifar-10-batches-bin`; one counts if the first word of
    its name (orl, cifar) stands in the code or in a parameter of the notebook. Temporary files, and files that vanish
    meanwhile, do not count.
    """
    cells = (cell for cell in job.notebook.cells if cell.cell_type == "code")
    code = [cell.source for cell in cells if "parameters" not in cell.metadata.get("tags", [])]
    named = "\n".join([*code, json.dumps(job.parameters)]).lower()
    found = []
    for top in sorted(root.iterdir()) if root.is_dir() else []:
        word = re.match("[a-z]+", top.name.lower())
        if word is None or word.group() not in named:
            continue
        paths = [Path(base, name) for base, _, names in os.walk(top) for name in names] if top.is_dir() else [top]
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                if path.suffix != ".part":
                    status = path.stat()
                    found.append([path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns])
    return sorted(found)


def run_key(job: Job, package: str, data_root: Path) -> str:
    """SHA-256 of all that shapes the result of a notebook; equal keys need no second run.

    package: the hash of the package's source.
    """
    parts = {
        "cells": [[cell.cell_type, cell.source] for cell in job.notebook.cells],
        "parameters": job.parameters,
        "claims": job.claims,
        "package": package,
        "data": data_state(data_root, job),
        "versions": {name: metadata.version(name) for name in ("torch", "numpy", "scikit-learn", "matplotlib")},
        "python": sys.version_info[:2],
        "device": device_type(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def run_job(job: Job, results: Path, kernels: Kernels, *, force: bool = False, save_outputs: bool = False) -> Outcome:
    """Run one notebook, or take over its unchanged result. Does not raise for a failing cell or an unwritable file."""
    folder = results / job.parameters["profile"]
    began = time.perf_counter()
    try:
        if not force and unchanged(job, results, kernels.data):
            record = (folder / f"{job.name}.json").read_bytes()
            if save_outputs:
                commit(nbformat.read(folder / f"{job.name}.ipynb", as_version=4), record, job.path)
            return _outcome(job, "cached", json.loads(record))
        with tempfile.TemporaryDirectory(prefix="reprolib-") as staging:
            return _run(job, folder, Path(staging), kernels, save_outputs)
    except (NotebookFailed, UsageError) as error:
        message = str(error)
    except OSError as error:
        message = f"its result is not stored: {one_line(error)}"
    return Outcome(job.name, "failed", seconds=time.perf_counter() - began, message=message)


def unchanged(job: Job, results: Path, data: Path) -> bool:
    """Whether the stored record and executed copy of this notebook belong together and to this very run."""
    stored = [results / job.parameters["profile"] / f"{job.name}{suffix}" for suffix in (".json", ".ipynb", ".key")]
    record, executed, stamp = stored
    return _stamped(stamp) == [run_key(job, source_hash(), data), *map(_digest, map(_content, (record, executed)))]


def _run(job: Job, folder: Path, staging: Path, kernels: Kernels, save_outputs: bool) -> Outcome:
    # The run may fetch its data itself, but the code that runs is the one from before.
    package = source_hash()
    try:
        output = execute(job.name, job.notebook, job.injected, job.parameters["profile"], staging, kernels)
        record = finished_record(job, staging)
    except NotebookFailed:
        if (staging / "executed.ipynb").exists() and not kernels.stopped:
            write_atomically(folder / f"{job.name}.failed.ipynb", (staging / "executed.ipynb").read_bytes())
        raise
    executed = (nbformat.writes(output) + "\n").encode()
    # The stamp goes first and comes back last, with the digests of what was written here: another runner that writes
    # into the same folder at the same time leaves no pair of files that counts as one result.
    (folder / f"{job.name}.key").unlink(missing_ok=True)
    write_atomically(folder / f"{job.name}.json", record)
    write_atomically(folder / f"{job.name}.ipynb", executed)
    (folder / f"{job.name}.failed.ipynb").unlink(missing_ok=True)
    if save_outputs:
        commit(output, record, job.path)
    stamp = [run_key(job, package, kernels.data), _digest(record), _digest(executed)]
    write_atomically(folder / f"{job.name}.key", json.dumps(stamp) + "\n")
    return _outcome(job, "run", json.loads(record))


def _stamped(stamp: Path) -> list[str] | None:
    try:
        return json.loads(stamp.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if content else ""


def _outcome(job: Job, status: str, document: dict[str, Any]) -> Outcome:
    verdicts = Counter(claim["verdict"] for claim in document["claims"])
    checks = sum(check["passed"] for check in document["checks"])
    return Outcome(job.name, status, checks, verdicts, document["seconds"], document=document)


def finished_record(job: Job, staging: Path) -> bytes:
    """The JSON that `finish()` wrote. Raises NotebookFailed if it is missing or of another run."""
    path = staging / job.parameters["profile"] / f"{job.name}.json"
    if not path.exists():
        raise NotebookFailed(f"the notebook ended without run.finish(), so that there is no {path.name}")
    content = path.read_bytes()
    if json.loads(content)["parameters"] != job.parameters:
        raise NotebookFailed("the notebook ran with other parameters than it was given")
    return content


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
    they share the cores. The results are the same. One that fails stops no other.
    Raises UsageError, before anything is written, for an unknown notebook, profile, parameter, type or device, and
    OSError, before a kernel starts, for a results folder that cannot be written to. KeyboardInterrupt, or any other
    exception in this thread, ends the kernels at once.
    """
    from ..data import data_root
    from . import pick_device

    chosen = resolve_profile(profile)
    if save_outputs and (chosen not in SHOWN_PROFILES or overrides):
        raise UsageError(
            f"--save-outputs must be given with profile {' or '.join(SHOWN_PROFILES)} and without -p: the notebooks "
            "show such a run"
        )
    if at_once < 1:
        raise UsageError(f"the number of notebooks at once must be at least 1, got {at_once}")
    pick_device()
    jobs = prepare(names, chosen, overrides or {})
    folder, data = results or results_folder(), data_root().resolve()
    reason = unwritable(folder / chosen)
    if reason and (force or not all(unchanged(job, folder, data) for job in jobs)):
        raise OSError(f"the results folder {folder / chosen} cannot be written to: {reason}")
    cache: Path | None = cache_folder()
    if reason := unwritable(cache_folder()):
        print(f"the cache {cache} cannot be written to ({reason}); the trained runs are not kept", file=sys.stderr)
        cache = None
    for leftovers in (folder / chosen, cache_folder()):
        remove_leftovers(leftovers)
    lines = reference_folder() if save_outputs else folder
    kernels = Kernels(data, cache, lines, max(1, joblib.cpu_count() // at_once))
    done: dict[str, Outcome] = {}
    # The work is in the kernels, which are processes; a thread only waits for one, and this one for signals.
    pool = ThreadPoolExecutor(at_once)
    with kernels.display as display:
        try:
            options = {"force": force, "save_outputs": save_outputs}
            for future in as_completed([pool.submit(run_job, job, folder, kernels, **options) for job in jobs]):
                outcome = future.result()
                display.clear()
                print(outcome, file=sys.stderr if outcome.status == "failed" else sys.stdout, flush=True)
                done[outcome.name] = outcome
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            kernels.stop()
            raise
        finally:
            pool.shutdown()
    outcomes = [done[job.name] for job in jobs]
    if len(outcomes) > 1:
        print(f"\n{summary(outcomes, chosen)}", flush=True)
    if not overrides and not save_outputs:
        compare_with_reference(outcomes)
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    if failed and len(outcomes) > 1:
        print(f"failed: {', '.join(failed)}", file=sys.stderr, flush=True)
    return outcomes


def compare_with_reference(outcomes: Sequence[Outcome]) -> None:
    """Print, claim by claim, what is as in the committed record of the profile and what differs, where there is one."""
    found = [against_reference(one.document) for one in outcomes if one.document]
    if comparisons := [comparison for comparison in found if comparison]:
        print(f"\n{comparison_view(comparisons)}\n", flush=True)
        for comparison in comparisons:
            print(f"{comparison.notebook}: {comparison}", flush=True)


def summary(outcomes: Sequence[Outcome], profile: str) -> TableView:
    """One line for each notebook and their sum."""

    def row(name: str, status: str, checks: int, verdicts: Counter[str], seconds: str) -> tuple[str, ...]:
        return (name, status, str(checks), *(str(verdicts[verdict]) for verdict in VERDICTS), seconds)

    done = [outcome for outcome in outcomes if outcome.status != "failed"]
    rows = [
        row(one.name, one.status, one.checks, one.verdicts, f"{one.seconds:.0f}" if one in done else "")
        for one in outcomes
    ]
    total = sum((one.verdicts for one in done), Counter())
    rows.append(row("all", "", sum(one.checks for one in done), total, f"{sum(one.seconds for one in done):.0f}"))
    columns = ("notebook", "status", "checks passed", *VERDICTS, "seconds")
    return TableView(f"Profile {profile}", columns, tuple(rows))
