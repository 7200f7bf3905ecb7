"""Runs that are computed once: a value on disk under the hash of everything that shaped it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import os
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ..checkpoints import Checkpoint
from .cluster import ELSEWHERE
from .fingerprint import Fingerprint, UnreadableError
from .paths import one_line, write_atomically
from .record import plain, refuse
from .runs import RunLines
from .sources import Sources

_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")


class NotStoredError(LookupError):
    """A run is asked for that is not stored, while nothing may be computed."""


class RunKey(NamedTuple):
    """What a run is known by, as SHA-256.

    settings: name and configuration, by value; the random numbers of the run follow from it. run: these and all code
    and contents that the run reads, the same on every machine. stored: `run` with the kind of device and the versions
    of the libraries.
    """

    settings: str
    run: str
    stored: str


class RunCache:
    """Values under `folder`, one file each, shared by all notebooks and safe against an interrupted write.

    folder: where the files lie. device: "cpu" or "cuda"; results of one are not used for the other. lines: where each
    run leaves a line, and where a value without tensors is found if no file holds it.
    """

    def __init__(self, folder: Path, device: str, lines: RunLines | None = None) -> None:
        self.folder = folder
        self.lines = lines
        self.only_stored = False
        # Read once: the code that runs is the one that was there when the run began.
        self.sources = Sources()
        self.machine = [device, *(metadata.version(name) for name in _LIBRARIES)]

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        # made for a notebook on another machine: its folders are not here
        if folder := os.environ.get(ELSEWHERE):
            self.folder = Path(folder, "cache")
            if self.lines is not None:
                self.lines.path = Path(folder, "runs.jsonl")

    def take(self, files: Mapping[str, bytes], lines: bytes) -> None:
        """Keep what the runs of another machine left there, as if they had been made here."""
        for name, content in files.items():
            try:
                write_atomically(self.folder / name, content)
            except OSError as error:
                print(f"reprolib: this run is not kept: {self.folder / name}: {one_line(error)}", file=sys.stderr)
        if self.lines is not None:
            self.lines.take(lines)

    def key(self, name: str, config: Mapping[str, Any], compute: Callable[[], Any]) -> RunKey:
        """The key of a run; never of the notebook. Raises TypeError where something has no content to fingerprint."""
        if not name or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"the name of a cached run must be of letters, digits, '-' and '_', got {name!r}")
        try:
            settings = _sha256(name, Fingerprint(None).arguments(config))
            run = _sha256(settings, Fingerprint(self.sources).of(compute, ""))
        except UnreadableError as error:
            raise TypeError(f"the cached run {name!r} cannot be told from others: {error}") from error
        return RunKey(settings, run, _sha256(run, *self.machine))

    def get(
        self, name: str, config: Mapping[str, Any], compute: Callable[[], dict[str, Any]], lined: bool = True
    ) -> dict[str, Any]:
        """The stored value of this run, or `compute()` of it, stored first.

        The value is a dictionary of tensors, arrays, numbers, text, lists and dictionaries; it comes back
        with tensors on the CPU whether it was computed or loaded. The random numbers of `compute` depend on
        the name and the configuration only, and the state of the global generators is the same after either.
        lined: whether the run leaves a line, if runs here do. Raises TypeError.
        """
        lines = self.lines if lined else None
        key = self.key(name, config, compute)
        file = Checkpoint(self.folder / f"{name}-{key.stored[:32]}.pt", {"key": key.stored}, ())
        value = _load(file)
        if value is None and lines is not None:
            value = lines.value(key.run)
        if self.only_stored:
            if value is None:
                raise NotStoredError(f"the run {name!r} with these settings is not stored")
            return value
        if value is None:
            with seeded(int(key.settings[:8], 16)):
                made = compute()
            if not isinstance(made, Mapping):
                raise TypeError(f"the cached run {name!r} must give a dictionary, got {type(made).__name__}")
            value = plain(made, f"value of the cached run {name!r}", _stored)
            try:
                file.write({"value": value})
            except OSError as error:
                print(f"reprolib: this run is not kept: {file.path}: {one_line(error)}", file=sys.stderr)
        if lines is not None:
            lines.add(key.run, name, config, value)
        return value

    def has_all(self, call: Callable[[], Any]) -> bool:
        """Whether every run that `call()` asks for is stored; with the first that is not, `call` is left."""
        self.only_stored = True
        try:
            with seeded(0):
                call()
        except NotStoredError:
            return False
        finally:
            self.only_stored = False
        return True


class CachedFunction:
    """A function whose calls are cached runs, known by name, arguments, code and what the code reads.

    Made by `Experiment.cached`. Called as the function is; `function` is the one without a cache.
    """

    def __init__(self, function: Callable[..., dict[str, Any]], name: str, get: Callable[..., dict[str, Any]]) -> None:
        functools.update_wrapper(self, function)
        self.function, self.name, self._get = function, name, get

    @property
    def fingerprint_as(self) -> Callable[..., dict[str, Any]]:
        return self.function

    def __call__(self, *arguments: Any, **named: Any) -> dict[str, Any]:
        bound = inspect.signature(self.function).bind(*arguments, **named)
        bound.apply_defaults()
        compute = functools.partial(self.function, *bound.args, **bound.kwargs)
        return self._get(self.name, bound.arguments, compute)


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _load(file: Checkpoint) -> dict[str, Any] | None:
    if not file.path.exists():
        return None
    try:
        return file.read(torch.device("cpu"))["value"]
    except Exception as error:  # whatever a damaged file makes the reader raise
        reason = one_line(error)[:120]
        print(f"reprolib: cached run {file.path.name} is damaged ({reason}); computing it again", file=sys.stderr)
        file.path.unlink(missing_ok=True)
        return None


def _stored(value: Any, where: str) -> Any:
    """Tensors, arrays and infinite numbers, as a file of `torch.save` holds them."""
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        # A clone, so that a view does not drag its whole storage into the file.
        return value.detach().cpu().clone()
    return value if isinstance(value, float) else refuse(value, where)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed Python, numpy and torch inside the block and put their former states back after it."""
    python, legacy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=list(devices)):
        seed_everything(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (all devices)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
