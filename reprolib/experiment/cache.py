"""Runs that are computed once: a value on disk under the hash of everything that shaped it."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import io
import random
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from .fingerprint import Fingerprint, UnreadableError
from .paths import one_line, write_atomically
from .record import interval
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

    folder: where the files lie. device: "cpu" or "cuda"; results of one are not used for the other.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self.only_stored = False
        # Read once: the code that runs is the one that was there when the run began.
        self.sources = Sources()
        self.machine = [device, *(metadata.version(name) for name in _LIBRARIES)]

    def key(self, name: str, config: Mapping[str, Any], compute: Callable[[], Any]) -> RunKey:
        """The key of a run; never of the notebook. Raises TypeError where something has no content to fingerprint."""
        if not name or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"the name of a cached run must be of letters, digits, '-' and '_', got {name!r}")
        if not isinstance(config, Mapping) or not all(isinstance(key, str) for key in config):
            raise TypeError(f"the configuration of the cached run {name!r} must be a mapping with text keys")
        whole = Fingerprint(self.sources)
        try:
            settings = _sha256(name, Fingerprint(None, whole.bulk).arguments(config))
            run = _sha256(settings, whole.arguments(config), whole.of(compute, ""))
        except UnreadableError as error:
            raise TypeError(f"the cached run {name!r} cannot be told from others: {error}") from error
        return RunKey(settings, run, _sha256(run, *self.machine))

    def get(
        self,
        name: str,
        config: Mapping[str, Any],
        compute: Callable[[], dict[str, Any]],
        lines: RunLines | None = None,
    ) -> dict[str, Any]:
        """The stored value of this run, or `compute()` of it, stored first.

        The value is a dictionary of tensors, arrays, numbers, text, lists and dictionaries; it comes back
        with tensors on the CPU whether it was computed or loaded. The random numbers of `compute` depend on
        the name and the configuration only, and the state of the global generators is the same after either.
        lines: where each run leaves a line, and where a value without tensors is found if no file holds it.
        Raises TypeError.
        """
        key = self.key(name, config, compute)
        path = self.folder / f"{name}-{key.stored[:32]}.pt"
        value = self._load(path, key.stored)
        if value is None and lines is not None:
            value = lines.value(key.run)
        if value is not None:
            if lines is not None and not self.only_stored:
                lines.add(key.run, name, config, value)
            return value
        if self.only_stored:
            raise NotStoredError(f"the run {name!r} with these settings is not stored")
        with seeded(int(key.settings[:8], 16)):
            made = compute()
        if not isinstance(made, Mapping):
            raise TypeError(f"the cached run {name!r} must give a dictionary, got {type(made).__name__}")
        value = _storable(made, f"value of the cached run {name!r}")
        buffer = io.BytesIO()
        torch.save({"key": key.stored, "value": value}, buffer)
        try:
            write_atomically(path, buffer.getvalue())
        except OSError as error:
            print(f"reprolib: this run is not kept: {error}", file=sys.stderr)
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

    def _load(self, path: Path, key: str) -> dict[str, Any] | None:
        if not path.exists():
            return None
        try:
            # torch.load does not compare the checksums of the archive.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"wrong checksum of {damaged}")
            content = torch.load(path, weights_only=True, map_location="cpu")
            if content["key"] != key:
                raise ValueError("the key inside is another one")
            return content["value"]
        except Exception as error:  # whatever a damaged file makes the reader raise
            reason = one_line(error)[:120]
            print(f"reprolib: cached run {path.name} is damaged ({reason}); computing it again", file=sys.stderr)
            path.unlink(missing_ok=True)
            return None


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
        return self._get(self.name, bound.arguments, functools.partial(self.function, *bound.args, **bound.kwargs))


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _storable(value: Any, where: str) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        # A clone, so that a view does not drag its whole storage into the file.
        return value.detach().cpu().clone()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and (parts := interval(value)):
        return parts
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): _storable(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_storable(item, where) for item in value]
    if value is None:
        return None
    raise TypeError(
        f"{where} must be made of tensors, numbers, text, lists and dictionaries, got {type(value).__name__}"
    )


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
