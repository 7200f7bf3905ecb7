"""Runs notebooks, each in a fresh kernel of this interpreter, and keeps the results of unchanged ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import joblib
import nbformat

from .claims import load_claims
from .committed import commit
from .kernel import Kernels, NotebookFailed, execute
from .parameters import BASE, device_name, profile_parameters, read_notebook, resolve_profile, with_overrides
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
from .record import VERDICTS
from .reference import Document, against_reference, comparison_view
from .report import counts, overview
from .sources import source_hash

# The profiles whose outputs a committed notebook may show.
SHOWN_PROFILES = (BASE, "full")


@dataclass(frozen=True)
class Job:
    """One notebook to run: its content, its final parameters and the claims that its file declares."""

    name: str
    notebook: nbformat.NotebookNode
    parameters: dict[str, Any]
    claims: list[dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """What became of one notebook: "run", "cached" or "failed", with its record or a message."""

    name: str
    status: str
    document: Document | None = None
    message: str = ""

    def __str__(self) -> str:
        if self.document is None:
            return f"{self.name}: {self.message}"
        counted = counts(self.document)
        if self.status == "cached":
            again = "use --force to run again"
            return f"{self.name}: unchanged, cached result of {counted['checks']} checks ({again})"
        claims = ", ".join(f"{counted[verdict]} {verdict}" for verdict in VERDICTS)
        seconds = self.document["seconds"]
        return f"{self.name}: {counted['checks']} checks passed; claims: {claims}; {seconds:.0f} s"


def find_notebooks(names: Sequence[str]) -> dict[str, Path]:
    """The notebooks meant by `01`, `01_l2_softmax` or `notebooks/01_l2_softmax.ipynb`; all for no name.

    A path must lead to the notebook itself, from the working directory or from the root of the repository: a copy
    elsewhere is another notebook. Raises UsageError for a name that means none or more than one.
    """
    known = {path.stem: path for path in sorted(notebooks_folder().glob("*.ipynb"))}
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


def prepare(names: Sequence[str], profile: str, overrides: Mapping[str, Any]) -> list[Job]:
    """All that can be refused is refused here, before anything is run or written. Raises UsageError."""
    return [
        Job(
            name,
            read_notebook(name),
            with_overrides(name, profile_parameters(name, profile), overrides),
            [vars(claim) for claim in load_claims(name)],
        )
        for name in find_notebooks(names)
    ]


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
    for top in root.glob("*"):
        word = re.match("[a-z]+", top.name.lower())
        if word is not None and word.group() in named:
            walked = [Path(base, name) for base, _, names in os.walk(top) for name in names]
            for path in walked if top.is_dir() else [top]:
                with contextlib.suppress(FileNotFoundError):
                    if path.suffix != ".part":
                        status = path.stat()
                        found.append([path.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns])
    return sorted(found)


def stamp(job: Job, package: str, data_root: Path, record: bytes, executed: bytes) -> str:
    """SHA-256 of all that shapes the result of a notebook and of the result itself: as long as it fits, it is kept.

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
        "device": device_name(),
        "result": [hashlib.sha256(content).hexdigest() for content in (record, executed)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def unchanged(job: Job, folder: Path, data_root: Path) -> bool:
    """Whether the stored record and executed copy of this notebook belong together and to this very run."""
    try:
        record, executed, stored = (
            (folder / f"{job.name}{suffix}").read_bytes() for suffix in (".json", ".ipynb", ".key")
        )
    except OSError:
        return False
    return stored == f"{stamp(job, source_hash(), data_root, record, executed)}\n".encode()


def run_job(job: Job, folder: Path, kernels: Kernels, *, force: bool = False, save_outputs: bool = False) -> Outcome:
    """Run one notebook, or take over its unchanged result. Does not raise for a failing cell or an unwritable file."""
    try:
        if not force and unchanged(job, folder, kernels.data):
            record = (folder / f"{job.name}.json").read_bytes()
            if save_outputs:
                commit(nbformat.read(folder / f"{job.name}.ipynb", as_version=4), record)
            return Outcome(job.name, "cached", json.loads(record))
        with tempfile.TemporaryDirectory(prefix="reprolib-") as staging:
            return Outcome(job.name, "run", _run(job, folder, Path(staging), kernels, save_outputs))
    except (NotebookFailed, UsageError) as error:
        return Outcome(job.name, "failed", message=str(error))
    except OSError as error:
        return Outcome(job.name, "failed", message=f"its result is not stored: {one_line(error)}")


def _run(job: Job, folder: Path, staging: Path, kernels: Kernels, save_outputs: bool) -> Document:
    # The run may fetch its data itself, but the code that runs is the one from before.
    package = source_hash()
    failed = folder / f"{job.name}.failed.ipynb"
    try:
        output = execute(job.name, job.notebook, job.parameters, staging, kernels)
        record = finished_record(job, staging)
    except NotebookFailed as error:
        if error.executed is not None and not kernels.stopped:
            write_atomically(failed, nbformat.writes(error.executed) + "\n")
        raise
    executed = (nbformat.writes(output) + "\n").encode()
    # The stamp goes first and comes back last, with the digests of what was written here: another runner that writes
    # into the same folder at the same time leaves no pair of files that counts as one result.
    (folder / f"{job.name}.key").unlink(missing_ok=True)
    write_atomically(folder / f"{job.name}.json", record)
    write_atomically(folder / f"{job.name}.ipynb", executed)
    failed.unlink(missing_ok=True)
    if save_outputs:
        commit(output, record)
    write_atomically(folder / f"{job.name}.key", f"{stamp(job, package, kernels.data, record, executed)}\n")
    return json.loads(record)


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

    profile = resolve_profile(profile)
    if save_outputs and (profile not in SHOWN_PROFILES or overrides):
        raise UsageError(
            f"--save-outputs must be given with profile {' or '.join(SHOWN_PROFILES)} and without -p: the notebooks "
            "show such a run"
        )
    if at_once < 1:
        raise UsageError(f"the number of notebooks at once must be at least 1, got {at_once}")
    pick_device()
    jobs = prepare(names, profile, overrides or {})
    results = results or results_folder()
    folder, data = results / profile, data_root().resolve()
    reason = unwritable(folder)
    if reason and (force or not all(unchanged(job, folder, data) for job in jobs)):
        raise OSError(f"the results folder {folder} cannot be written to: {reason}")
    cache: Path | None = cache_folder()
    if reason := unwritable(cache_folder()):
        print(f"the cache {cache} cannot be written to ({reason}); the trained runs are not kept", file=sys.stderr)
        cache = None
    for leftovers in (folder, cache_folder()):
        remove_leftovers(leftovers)
    lines = reference_folder() if save_outputs else results
    kernels = Kernels(data, cache, lines, max(1, joblib.cpu_count() // at_once))
    done: dict[str, Outcome] = {}
    # The work is in the kernels, which are processes; a thread only waits for one, and this one for signals.
    pool = ThreadPoolExecutor(at_once)
    try:
        options = {"force": force, "save_outputs": save_outputs}
        waiting = {pool.submit(run_job, job, folder, kernels, **options) for job in jobs}
        while waiting:
            ended, waiting = wait(waiting, kernels.display.seconds, FIRST_COMPLETED)
            for outcome in (future.result() for future in ended):
                kernels.display.clear()
                print(outcome, file=sys.stderr if outcome.status == "failed" else sys.stdout, flush=True)
                done[outcome.name] = outcome
            kernels.display.show()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        kernels.stop()
        raise
    finally:
        pool.shutdown()
        kernels.display.clear()
    outcomes = [done[job.name] for job in jobs]
    summarise(outcomes, beside_reference=not overrides and not save_outputs)
    return outcomes


def summarise(outcomes: Sequence[Outcome], *, beside_reference: bool) -> None:
    """Print a table of several notebooks, what is as in the committed record of the profile, and what failed."""
    documents = [outcome.document for outcome in outcomes if outcome.document is not None]
    if len(outcomes) > 1 and documents:
        print(f"\n{overview(documents)}", flush=True)
    found = map(against_reference, documents if beside_reference else [])
    if comparisons := [comparison for comparison in found if comparison]:
        print(f"\n{comparison_view(comparisons)}\n", flush=True)
        for comparison in comparisons:
            print(f"{comparison.notebook}: {comparison}", flush=True)
    failed = [outcome.name for outcome in outcomes if outcome.status == "failed"]
    if failed and len(outcomes) > 1:
        print(f"failed: {', '.join(failed)}", file=sys.stderr, flush=True)
