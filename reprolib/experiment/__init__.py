"""How a notebook is repeated: parameters, profiles, the cache of runs, the record, the runner, the report.

A notebook's setup cell calls `run = experiment.start("01_l2_softmax", globals())`; its last cell
`run.finish()`.
"""

from __future__ import annotations

import functools
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import torch

from . import cluster
from .cache import CachedFunction, RunCache, seed_everything
from .claims import load_claims
from .exercises import Grade
from .fingerprint import UnreadableError
from .parameters import device_name, literal_names, notebook_literals, resolve
from .paths import UsageError, cache_folder, results_folder, write_atomically
from .record import Record, TableView, beside_view, checks_view, claims_view, dumps, table_view
from .reference import load_reference
from .runs import LINED_PROFILES, RunLines, runs_file
from .trained import TRAINED_COLUMNS, trained_rows
from .workers import call_each, start_processes, use_one_thread, worker_count

__all__ = ["Experiment", "UsageError", "start"]


class _Settings(SimpleNamespace):
    """The settings of an `Experiment` as a cached run may read them."""

    def __getattr__(self, name: str) -> Any:
        if name == "record":
            raise UnreadableError("run.record, which changes while the notebook runs")
        raise AttributeError(name)


class Experiment:
    """One run of one notebook; made by `start`.

    Attributes: `parameters` (namespace of the final values), `profile`, `device` (torch.device), `seeds`
    (tuple of int), `workers` (runs at the same time), `record`, `grade` (of the answers to exercises).
    """

    def __init__(self, notebook: str, parameters: Mapping[str, Any], device: torch.device) -> None:
        self.notebook = notebook
        self.parameters = SimpleNamespace(**parameters)
        self.profile: str = parameters["profile"]
        self.seeds: tuple[int, ...] = tuple(parameters.get("seeds", ()))
        self.device = device
        self.record = Record()
        self.grade = Grade()
        self.workers = worker_count(self.profile, device)
        if self.workers > 1 and not cluster.address():
            # They come up while the notebook is still deriving and checking, which takes one core.
            start_processes(self.workers)
        self._final = dict(parameters)
        lined = self.profile in LINED_PROFILES
        lines = RunLines(runs_file(notebook, self.profile), device.type) if lined else None
        self._cache = RunCache(cache_folder(), device.type, lines)
        for claim in load_claims(notebook):
            self.record.add_claim(claim)
        self._began = time.perf_counter()

        from ..theory.checks import subscribe

        self._unsubscribe = subscribe(self.record.add_check)

    def __repr__(self) -> str:
        shown = [f"{name} {getattr(self.parameters, name)}" for name in ("profile", "dataset") if name in self._final]
        seeds = [f"seeds {', '.join(map(str, self.seeds))}"] if self.seeds else []
        return " | ".join([self.notebook, *shown, *seeds])

    def cached(self, function: Callable[..., Any] | None = None, *, name: str | None = None, lines: bool = True) -> Any:
        """A decorator for functions whose result is kept, in any notebook: `@run.cached` or `@run.cached(name="...")`.

        A call of the decorated function gives what the function gave before with the same arguments, code and contents
        of all that the code reads: tensors, arrays, objects, functions, values of the notebook's modules. It returns a
        dictionary of tensors, numbers, text, lists and dictionaries; tensors come back on the CPU. Inside it the global
        generators are seeded by name and arguments. The name, by default the function's, is that of the file. At
        profiles `full` and `paper` each run leaves a line in `<profile>/runs/NN.jsonl`, from which it is also resumed
        (see `runs`), unless `lines` is False.
        Raises TypeError for what has no content (an open file, a lock, a generator in progress), by its name.
        """
        if function is None:
            return functools.partial(self.cached, name=name, lines=lines)
        return CachedFunction(function, name or function.__name__, functools.partial(self._cache.get, lined=lines))

    def ahead(self, function: Callable[..., Any], rows: Iterable[Any]) -> None:
        """Make the cached runs that `function(*row)` will ask for, `workers` at a time, and drop what it returns.

        rows: one tuple of arguments a call (a single argument may stand for itself). The calls that come after find
        their runs in the cache, and without this line make them themselves, with the same result. Rows whose runs are
        stored already are left out; with one worker or one row left nothing happens here. With `run --dask` they are
        made on the cluster (see `cluster`).
        """
        address = cluster.address()
        each = [row if isinstance(row, tuple) else (row,) for row in rows] if self.workers > 1 or address else []
        missing = [row for row in each if not self._cache.has_all(functools.partial(function, *row))]
        if address and missing:
            for files, lines in cluster.call_each(function, missing, address):
                self._cache.take(files, lines)
        elif len(missing) > 1:
            call_each(function, missing, self.workers)

    @property
    def fingerprint_as(self) -> SimpleNamespace:
        """What a cached run can read of this one: what was set, not where and how it runs."""
        unread = [name for name in dir(type(self)) if not name.startswith("_") and name != "fingerprint_as"]
        named = {name: getattr(self, name) for name in ("notebook", "parameters", "profile", "seeds")}
        return _Settings(**dict.fromkeys([*unread, "device", "workers"]), **named)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs: checks, claims and answers to exercises are decided in the notebook's own process."""
        return {**vars(self), "record": Record(), "grade": Grade(), "_unsubscribe": None}

    def judge(
        self, id: str, measured: Mapping[str, Any] | None = None, seeds: Sequence[int] = (), **values: Any
    ) -> str:
        """Verdict on a declared claim or finding: "reproduced", "contradicted" or "inconclusive".

        By its rule: `judge(id, ours=[...], base=[...], seeds=...)`, one pair a seed, for superiority and equivalence;
        `judge(id, ours=rows, swept=[...], seeds=...)`, one row a seed, for a trend; `judge(id, measured, seeds,
        holds=True | False | None)` for a statement. The rule adds means, the difference with its interval and the
        number of pairs to `measured`. With fewer than two pairs or than the claim's `min_seeds` it is inconclusive, and
        `measured` says so. So it is for a claim of a rule whose runs are not made here: `judge(id, {"not run":
        "why"})`, with any name for the text.
        Raises ValueError for an undeclared id, for values that do not fit the rule and for numbers that are not finite.
        """
        if id not in self.record.claims:
            declared = ", ".join(self.record.claims) or "none"
            raise ValueError(f"claim {id!r} was not declared; declared are: {declared}")
        return self.record.claims[id].judge(measured, seeds, **values)

    def table(self, id: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> TableView:
        """Put a table of numbers and texts into the record and return it to be shown.

        Raises ValueError for an id used before, a row of another length or a number that is not finite.
        """
        return table_view(self.record.add_table(id, title, columns, rows))

    def show_checks(self, prefix: str = "", *, measured: bool = True) -> TableView:
        """The checks so far whose id begins with `prefix`; `measured=False` is the same on every machine."""
        checks = [check for id, check in self.record.checks.items() if id.startswith(prefix)]
        return checks_view(checks, measured=measured)

    def show_claims(self, prefix: str = "") -> TableView:
        """The claims so far whose id begins with `prefix`, with their verdicts."""
        return self._show(prefix, finding=False)

    def show_findings(self, prefix: str = "") -> TableView:
        """What the suite adds to the papers: the findings so far whose id begins with `prefix`."""
        return self._show(prefix, finding=True)

    def _show(self, prefix: str, finding: bool) -> TableView:
        chosen = [c for id, c in self.record.claims.items() if id.startswith(prefix) and c.finding == finding]
        return claims_view([{**claim.document(), "power": claim.shown_power()} for claim in chosen])

    def reference_table(self, id: str, profile: str = "full") -> TableView | None:
        """The table `id` of this notebook in the committed record of `profile`; None without that record.

        Raises ValueError if the record has no such table.
        """
        reference = load_reference(self.notebook, profile)
        if reference is None:
            return None
        tables = {table["id"]: table for table in reference["tables"]}
        if id not in tables:
            raise ValueError(f"the reference of profile {profile!r} has no table {id!r}, got {', '.join(tables)}")
        return table_view({**tables[id], "title": f"{tables[id]['title']} (reference, profile {profile})"})

    def reference_claims(self, profile: str = "full") -> TableView:
        """The claims and findings judged so far beside the committed record of `profile`: verdicts, difference, seeds.

        A table without rows, with a title that says so, where there is no such record.
        """
        reference = load_reference(self.notebook, profile)
        if reference is None or self.profile == profile:
            why = "this is it" if self.profile == profile else "there is none yet"
            return TableView(f"The reference of profile {profile}: {why}", (), ())
        here = [claim.document() for claim in self.record.claims.values() if claim.verdict]
        parts = ("claims", "findings")
        return beside_view(here, [one for part in parts for one in reference[part]], profile)

    def finish(self) -> None:
        """Write `results/<profile>/<notebook>.json`.

        Raises RuntimeError when a declared claim was not judged or a check did not pass; nothing is written
        then.
        """
        if self.profile == "paper" and (rows := trained_rows(self.notebook)):
            # what `reprolib train` found at the papers' own scale
            print(self.table("paper-scale", "The papers' scale, by reprolib train", TRAINED_COLUMNS, rows))
        if missing := self.record.unfinished():
            raise RuntimeError(f"{self.notebook} cannot be recorded: {missing}")
        document = {
            "notebook": self.notebook,
            "profile": self.profile,
            "parameters": self._final,
            "environment": environment(self.device),
            "seconds": round(time.perf_counter() - self._began, 3),
            **self.record.document(),
        }
        write_atomically(results_folder() / self.profile / f"{self.notebook}.json", dumps(document))
        counts = {part: len(document[part]) for part in ("checks", "claims", "findings", "tables")}
        print("recorded", ", ".join(f"{count} {part}" for part, count in counts.items() if count or part != "findings"))

    def close(self) -> None:
        """Stop listening to the checks; `start` does it to the run before."""
        self._unsubscribe()


# The run of this process and the namespace that it was started from.
_current: tuple[Experiment, MutableMapping[str, Any]] | None = None


def start(notebook: str, namespace: MutableMapping[str, Any]) -> Experiment:
    """Begin the run of `notebook`, whose `parameters` cell has filled `namespace` (`globals()`).

    Resolves the parameters and puts their final values back into `namespace`, seeds Python, numpy and torch,
    picks the device (`REPROLIB_DEVICE`, else cuda if there is one) and one thread, sets the theme of the figures,
    declares the claims of `notebooks/claims/NN.yaml`, listens to the checks and prints one line. Raises UsageError for
    an unknown notebook, parameter, profile or device and for claims that are not as `claims` describes them.
    """
    global _current
    given = literal_names(namespace)
    if _current is not None and _current[1] is namespace:
        # The setup cell runs again: what the notebook has computed since is no parameter.
        declared = notebook_literals(notebook)
        given = {name: value for name, value in given.items() if name in declared}
    parameters = resolve(notebook, given, os.environ)
    device = pick_device()
    if _current is not None:
        _current[0].close()
        _current = None
    namespace.update(parameters)
    seeds = parameters.get("seeds") or [0]
    seed_everything(seeds[0])
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
    use_one_thread(device)

    from ..plots import use_theme

    use_theme()
    experiment = Experiment(notebook, parameters, device)
    _current = (experiment, namespace)
    print(experiment)
    return experiment


def pick_device() -> torch.device:
    """`REPROLIB_DEVICE`, else cuda if there is one, else the CPU. Raises UsageError if it cannot be used."""
    name = device_name()
    try:
        device = torch.device(name)
        # "meta" makes tensors, but they hold no values.
        torch.ones(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"REPROLIB_DEVICE={name!r} cannot be used on this machine") from error
    return device


def environment(device: torch.device) -> dict[str, Any]:
    """What the run was made with: versions, kind of machine, device and number of threads."""
    packages = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "matplotlib")
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform} {platform.machine()}",
        "packages": {name: metadata.version(name) for name in packages},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
    }
