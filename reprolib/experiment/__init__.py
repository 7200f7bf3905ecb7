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

from .cache import RunCache, seed_everything
from .parameters import BASE, literal_names, profile_parameters, resolve
from .paths import UsageError, cache_folder, results_folder, write_atomically
from .record import Claim, Record, TableView, checks_view, claims_view, dumps, table_view
from .workers import call_each, start_processes, use_one_thread, worker_count

__all__ = ["Experiment", "UsageError", "start"]


class Experiment:
    """One run of one notebook; made by `start`.

    Attributes: `parameters` (namespace of the final values), `profile`, `device` (torch.device), `seeds`
    (tuple of int), `workers` (runs at the same time), `record`.
    """

    def __init__(self, notebook: str, parameters: Mapping[str, Any], device: torch.device) -> None:
        self.notebook = notebook
        self.parameters = SimpleNamespace(**parameters)
        self.profile: str = parameters["profile"]
        self.seeds: tuple[int, ...] = tuple(parameters.get("seeds", ()))
        self.device = device
        self.record = Record()
        self.workers = worker_count(self.profile, device)
        if self.workers > 1:
            # They come up while the notebook is still deriving and checking, which takes one core.
            start_processes(self.workers)
        self._final = dict(parameters)
        self._cache = RunCache(cache_folder(), device.type)
        self._began = time.perf_counter()

        from ..theory.checks import subscribe

        self._unsubscribe = subscribe(self.record.add_check)

    def __repr__(self) -> str:
        shown = [f"{name} {getattr(self.parameters, name)}" for name in ("profile", "dataset") if name in self._final]
        seeds = [f"seeds {', '.join(map(str, self.seeds))}"] if self.seeds else []
        return " | ".join([self.notebook, *shown, *seeds])

    def cached(self, name: str, config: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """`compute()`, or what it gave before with this name, `config` and code, in any notebook.

        config: everything that shapes the result; numbers, text, lists, dictionaries, dataclasses, data sets
        (by fingerprint). compute: returns a dictionary of tensors, numbers, text, lists and dictionaries;
        tensors come back on the CPU. The code of `compute` counts with the notebook functions and plain
        values that it names: two notebooks share a run if they give the same code or a function of this
        package.
        Raises TypeError or ValueError for anything else.
        """
        return self._cache.get(name, config, compute)

    def ahead(self, function: Callable[..., Any], rows: Iterable[Any]) -> None:
        """Make the cached runs that `function(*row)` will ask for, `workers` at a time, and drop what it returns.

        rows: one tuple of arguments a call (a single argument may stand for itself). The calls that come after find
        their runs in the cache, and without this line make them themselves, with the same result. Rows whose runs are
        stored already are left out; with one worker or one row left nothing happens here.
        """
        each = [row if isinstance(row, tuple) else (row,) for row in rows] if self.workers > 1 else []
        missing = [row for row in each if not self._cache.has_all(functools.partial(function, *row))]
        if len(missing) > 1:
            call_each(function, missing, self.workers)

    def __getstate__(self) -> dict[str, Any]:
        """What a worker needs, all but the record: checks and claims are decided in the notebook's own process."""
        return {**vars(self), "record": Record(), "_unsubscribe": None}

    def claim(
        self,
        id: str,
        *,
        paper: str,
        statement: str,
        source: str,
        criterion: str,
        decide: Callable[[dict[str, Any]], bool | None],
        paper_value: Any = None,
        min_seeds: int = 0,
    ) -> None:
        """Declare a claim of a paper and, before the run, the criterion that decides it.

        decide: takes what was measured and gives True, False or None (inconclusive). min_seeds: with fewer
        distinct seeds the claim is inconclusive whatever `decide` says. Raises ValueError for an id used
        before.
        """
        self.record.add_claim(Claim(id, paper, statement, source, criterion, decide, paper_value, min_seeds))

    def judge(self, id: str, measured: Mapping[str, Any], seeds: Sequence[int] = ()) -> str:
        """Verdict on a declared claim: "reproduced", "not reproduced" or "inconclusive".

        Raises ValueError for an undeclared id and for a measured number that is not finite.
        """
        if id not in self.record.claims:
            declared = ", ".join(self.record.claims) or "none"
            raise ValueError(f"claim {id!r} was not declared; declared are: {declared}")
        return self.record.claims[id].judge(measured, seeds)

    def table(self, id: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> TableView:
        """Put a table of numbers and texts into the record and return it to be shown.

        Raises ValueError for an id used before, a row of another length or a number that is not finite.
        """
        self.record.add_table(id, title, columns, rows)
        return self.show_table(id)

    def show_table(self, id: str) -> TableView:
        """The recorded table `id`, numbers to 4 significant digits. Raises ValueError for an unknown id."""
        if id not in self.record.tables:
            raise ValueError(f"there is no table {id!r}; tables are: {', '.join(self.record.tables) or 'none'}")
        return table_view(self.record.tables[id])

    def show_checks(self, prefix: str = "", *, measured: bool = True) -> TableView:
        """The checks so far whose id begins with `prefix`; `measured=False` is the same on every machine."""
        checks = [check for id, check in self.record.checks.items() if id.startswith(prefix)]
        return checks_view(checks, measured=measured)

    def show_claims(self, prefix: str = "") -> TableView:
        """The claims so far whose id begins with `prefix`, with their verdicts."""
        return claims_view([claim.document() for id, claim in self.record.claims.items() if id.startswith(prefix)])

    def finish(self) -> None:
        """Write `results/<profile>/<notebook>.json`.

        Raises RuntimeError when a declared claim was not judged or a check did not pass; nothing is written
        then.
        """
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
        record = self.record
        print(f"recorded {len(record.checks)} checks, {len(record.claims)} claims, {len(record.tables)} tables")

    def close(self) -> None:
        """Stop listening to the checks; `start` does it to the run before."""
        self._unsubscribe()


# The run of this process and the namespace that it was started from.
_current: tuple[Experiment, MutableMapping[str, Any]] | None = None


def start(notebook: str, namespace: MutableMapping[str, Any]) -> Experiment:
    """Begin the run of `notebook`, whose `parameters` cell has filled `namespace` (`globals()`).

    Resolves the parameters and puts their final values back into `namespace`, seeds Python, numpy and torch,
    picks the device (`REPROLIB_DEVICE`, else cuda if there is one) and one thread, sets the theme of the figures,
    listens to the checks and prints one line. Raises UsageError for an unknown notebook, parameter, profile or device.
    """
    global _current
    given = literal_names(namespace)
    if _current is not None and _current[1] is namespace:
        # The setup cell runs again: what the notebook has computed since is no parameter.
        declared = profile_parameters(notebook, BASE)
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
    name = os.environ.get("REPROLIB_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
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
