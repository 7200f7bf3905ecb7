"""Runs that are computed once: a value on disk under the hash of everything that shaped it."""

from __future__ import annotations

import contextlib
import dataclasses
import dis
import functools
import hashlib
import io
import json
import math
import random
import sys
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .paths import PACKAGE, write_atomically

# What a trained run depends on; a change of the theory, the figures or this folder leaves it valid.
TRAINING_SOURCES = ("losses", "models.py", "training.py", "data", "evaluation")
# What Python itself writes into a class.
CLASS_HOUSEKEEPING = {"__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__"}


def source_hash(*names: str, package: Path = PACKAGE) -> str:
    """SHA-256 over paths and bytes of the Python files in these parts of the package (by default in all)."""
    digest = hashlib.sha256()
    for name in names or (".",):
        part = package / name
        for file in sorted(part.rglob("*.py")) if part.is_dir() else [part]:
            content = file.read_bytes() if file.exists() else b""
            digest.update(f"{file.relative_to(package).as_posix()}\0{len(content)}\0".encode())
            digest.update(content)
    return digest.hexdigest()


def canonical(value: Any, where: str = "config") -> Any:
    """`value` as JSON data, the same for the same settings: dataclasses by field, data sets by fingerprint.

    Raises TypeError for an object that has no such form and ValueError for a number that is not finite.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, not {value!r}")
        return float(value)
    if isinstance(getattr(value, "fingerprint", None), str):
        return {"fingerprint": value.fingerprint}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return {"type": type(value).__qualname__, **canonical(fields, where)}
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(f"{where} must have text keys, not {list(value)!r}")
        return {key: canonical(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [canonical(item, where) for item in value]
    if isinstance(value, (np.bool_, np.integer, np.floating)):
        return canonical(value.item(), where)
    raise TypeError(f"{where} must be made of numbers, text, lists and dictionaries, not {type(value).__name__}")


def describe_code(function: Any, seen: set[int] | None = None) -> Any:
    """JSON data that changes when the code of `function` does.

    Code of the package stands for itself by name (its source is hashed elsewhere). A function of a notebook
    is described by its byte code, the notebook functions and classes that it names, and the plain values it
    captures.
    """
    seen = set() if seen is None else seen
    if isinstance(function, functools.partial):
        given = [*function.args, *(item for pair in sorted(function.keywords.items()) for item in pair)]
        return ["partial", describe_code(function.func, seen), [_captured(item, seen) for item in given]]
    function = getattr(function, "__func__", function)
    module = getattr(function, "__module__", None) or ""
    name = f"{module}.{getattr(function, '__qualname__', type(function).__qualname__)}"
    if module.split(".")[0] == PACKAGE.name:
        return [name, _package_part(module)]
    if id(function) in seen:
        return name
    seen.add(id(function))
    if isinstance(function, type):
        members = sorted(vars(function).items())
        return [
            function.__qualname__,
            [[key, _captured(item, seen)] for key, item in members if key not in CLASS_HOUSEKEEPING],
        ]
    if not isinstance(function, types.FunctionType):
        return name
    code = _code(function.__code__)
    captured = {key: function.__globals__[key] for key in code["names"] if key in function.__globals__}
    for key, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a cell that is still empty
            captured[key] = cell.cell_contents
    captured["defaults"] = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
    return [code, [[key, _captured(item, seen)] for key, item in sorted(captured.items())]]


def _package_part(module: str) -> str:
    """Hash of the package's part with `module`; empty for another package and for TRAINING_SOURCES."""
    package, _, inner = module.partition(".")
    part = inner.split(".")[0]
    if package != PACKAGE.name or not part or {part, f"{part}.py"} & {*TRAINING_SOURCES}:
        return ""
    return source_hash(part if (PACKAGE / part).is_dir() else f"{part}.py")


def _code(code: types.CodeType) -> dict[str, Any]:
    nested = [_code(item) if isinstance(item, types.CodeType) else _constant(item) for item in code.co_consts]
    # Not all of co_names: an attribute may have the name of a global variable that has nothing to do with it.
    own = {item.argval for item in dis.get_instructions(code) if item.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    names = own.union(*(item["names"] for item in nested if isinstance(item, dict)))
    return {
        "code": code.co_code.hex(),
        "constants": nested,
        "names": sorted(names),
        "locals": [*code.co_varnames],
    }


def _constant(value: Any) -> str:
    # The order of a set differs between processes.
    return repr(sorted(map(repr, value))) if isinstance(value, (set, frozenset)) else repr(value)


def _captured(value: Any, seen: set[int]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, (list, tuple)):
        return [_captured(item, seen) for item in value]
    if isinstance(value, dict):
        return [[repr(key), _captured(item, seen)] for key, item in value.items()]
    if isinstance(value, (set, frozenset)):
        return sorted(repr(item) for item in value)
    if isinstance(value, types.ModuleType):
        return [value.__name__, _package_part(value.__name__)]
    if isinstance(value, (types.FunctionType, types.MethodType, functools.partial, type)):
        return describe_code(value, seen)
    return type(value).__qualname__


class NotStoredError(LookupError):
    """A run is asked for that is not stored, while nothing may be computed."""


class RunCache:
    """Values under `folder`, one file each, shared by all notebooks and safe against an interrupted write.

    folder: where the files lie. device: "cpu" or "cuda"; results of one are not used for the other.
    """

    def __init__(self, folder: Path, device: str) -> None:
        self.folder = folder
        self.device = device
        self.only_stored = False
        # Read once: the code that runs is the one that was there when the run began.
        self.sources = source_hash(*TRAINING_SOURCES)

    def key(self, name: str, config: Mapping[str, Any], compute: Callable[[], Any]) -> str:
        """SHA-256 of name, configuration, code, torch version and kind of device; never of the notebook."""
        parts = {
            "name": name,
            "config": canonical(config),
            "code": describe_code(compute),
            "torch": torch.__version__,
            "sources": self.sources,
            "device": self.device,
        }
        return hashlib.sha256(json.dumps(parts, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def get(self, name: str, config: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The stored value of this run, or `compute()` of it, stored first.

        The value is a dictionary of tensors, arrays, numbers, text, lists and dictionaries; it comes back
        with tensors on the CPU whether it was computed or loaded. The random numbers of `compute` depend on
        the name and the configuration only, and the state of the global generators is the same after either.
        Raises TypeError.
        """
        if not name or not name.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"the name of a cached run must be of letters, digits, '-' and '_', not {name!r}")
        key = self.key(name, config, compute)
        path = self.folder / f"{name}-{key[:32]}.pt"
        stored = self._load(path, key)
        if stored is not None:
            return stored
        if self.only_stored:
            raise NotStoredError(f"the run {name!r} with these settings is not stored")
        shape = json.dumps([name, canonical(config)], sort_keys=True).encode()
        with seeded(int.from_bytes(hashlib.sha256(shape).digest()[:4], "big")):
            value = compute()
        if not isinstance(value, Mapping):
            raise TypeError(f"the cached run {name!r} must give a dictionary, not {type(value).__name__}")
        value = _storable(value, f"value of the cached run {name!r}")
        buffer = io.BytesIO()
        torch.save({"key": key, "value": value}, buffer)
        try:
            write_atomically(path, buffer.getvalue())
        except OSError as error:
            print(f"reprolib: this run is not kept: {error}", file=sys.stderr)
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
            reason = " ".join(str(error).split())[:120]
            print(f"reprolib: cached run {path.name} is damaged ({reason}); computing it again", file=sys.stderr)
            path.unlink(missing_ok=True)
            return None


def _storable(value: Any, where: str) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, torch.Tensor):
        # A clone, so that a view does not drag its whole storage into the file.
        return value.detach().cpu().clone()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and hasattr(value, "low") and hasattr(value, "high"):
        return {"value": float(value), "low": value.low, "high": value.high, "level": value.level}
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
        f"{where} must be made of tensors, numbers, text, lists and dictionaries, not {type(value).__name__}"
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
