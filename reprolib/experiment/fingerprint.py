"""What a run reads, by content, as one hash: values, code, and the sources of the package that they stand on.

A value counts as what a worker process would be sent: tensors and arrays by their bytes, objects by class and state,
functions by byte code and everything that this code reads by name. Equal contents have equal hashes in every process
with the same minor version of Python. What has no such content (an open file, a lock, a generator in progress) is
refused. SHA-256 throughout: three times as fast as BLAKE2 where the processor has instructions for it.
"""

from __future__ import annotations

import builtins
import dis
import enum
import functools
import hashlib
import importlib
import io
import sys
import types
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from torch.utils.weak import WeakTensorKeyDictionary

from .paths import PACKAGE
from .sources import Sources, content_hash

_PLAIN = (bool, int, float, complex, str, bytes, types.EllipsisType, types.NotImplementedType, range, slice)
_BY_NAME = (
    types.BuiltinFunctionType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    np.ufunc,
)
# What holds functions: its name in the hash and the parts that are followed.
_WRAPPERS: dict[type, tuple[str, ...]] = {
    types.MethodType: ("method", "__func__", "__self__"),
    staticmethod: ("staticmethod", "__func__"),
    classmethod: ("classmethod", "__func__"),
    property: ("property", "fget", "fset", "fdel"),
}
_EMPTY = types.CellType()
# What Python itself writes into a class, from which nothing is computed, or which comes back in another form.
_HOUSEKEEPING = {
    *("__module__", "__dict__", "__weakref__", "__doc__", "__firstlineno__", "__static_attributes__", "__slotnames__"),
    *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__", "__qualname__", "_abc_impl"),
    *("__dataclass_fields__", "__dataclass_params__", "__parameters__", "__orig_bases__"),
}
# A name that is only known when the code runs cannot be followed before it runs.
_UNSEEN = {"globals", "eval", "exec", "__import__"}


class UnreadableError(TypeError):
    """What has no content to fingerprint; the message names the captured variable."""


def _bytes_hash(kind: str, data: Any) -> str:
    return content_hash(kind, hashlib.sha256(data).hexdigest())


def tensor_hash(value: torch.Tensor) -> str:
    """Hash of type, dtype, shape and elements, whatever device and strides; TypeError without elements in memory."""
    if value.layout != torch.strided or value.is_meta or value.is_quantized:
        raise TypeError(f"a tensor of layout {value.layout} on {value.device}")
    plain = value.detach().resolve_conj().resolve_neg().cpu().contiguous().reshape(-1)
    kind = f"{type(value).__qualname__} {value.dtype} {tuple(value.shape)} {value.requires_grad}"
    return _bytes_hash(kind, plain.view(torch.uint8).numpy())


# Data sets do not change between the runs of a notebook: their tensors are hashed again only after a change in place.
_known = WeakTensorKeyDictionary()


def _remembered(value: torch.Tensor) -> str:
    state = (value._version, value.data_ptr(), value.shape, value.stride())
    if value not in _known or _known[value][0] != state:
        _known[value] = (state, tensor_hash(value))
    return _known[value][1]


# --- values and code --------------------------------------------------------------------------------------------------


class Fingerprint:
    """Hashes of values; `where` is the name of the variable that holds one, for the message of a refusal.

    sources: those of the package; without them code does not count, and classes and functions stand for themselves by
    name. Remembers what it has hashed: one is good for one moment, not for later ones.
    """

    def __init__(self, sources: Sources | None) -> None:
        self.sources = sources
        self._done: dict[int, tuple[Any, str]] = {}
        self._active: dict[int, int] = {}
        self._lowest = 0

    def of(self, value: Any, where: str) -> str:
        """The hash of `value`. Raises UnreadableError."""
        if value is None or type(value) in _PLAIN:
            return f"{type(value).__name__} {value!r}"
        if id(value) in self._done:
            return self._done[id(value)][1]
        if id(value) in self._active:
            # A ring of references: how many steps back it closes is the same wherever it is entered from.
            self._lowest = min(self._lowest, self._active[id(value)])
            return f"back {len(self._active) - self._active[id(value)]}"
        depth, outer = len(self._active), self._lowest
        self._active[id(value)] = self._lowest = depth
        try:
            result = self._content(value, where)
        finally:
            del self._active[id(value)]
        if self._lowest >= depth:
            # Nothing in it refers to what it is part of. The value is kept, too, so that its id stays its own.
            self._done[id(value)] = (value, result)
        self._lowest = min(self._lowest, outer)
        return result

    def arguments(self, values: Mapping[str, Any], where: str = "") -> str:
        """Hash of values by name, in any order."""
        return content_hash("names", *(f"{key}={self.of(values[key], f'{where}{key}')}" for key in sorted(values)))

    def _each(self, values: Iterable[Any], where: str) -> list[str]:
        return [self.of(value, f"{where}[{index}]") for index, value in enumerate(values)]

    def _content(self, value: Any, where: str) -> str:
        if hasattr(type(value), "fingerprint_as"):
            return self.of(value.fingerprint_as, where)
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return self._elements(value, where)
        if isinstance(value, (np.generic, torch.dtype, torch.device)):
            return content_hash(type(value).__name__, repr(value))
        if isinstance(value, torch.Generator):
            return content_hash("generator", tensor_hash(value.get_state()))
        if isinstance(getattr(value, "fingerprint", None), str) and not isinstance(value, type):
            held = [item for item in getattr(value, "__dict__", {}).values() if isinstance(item, torch.Tensor)]
            return content_hash("data", type(value).__qualname__, value.fingerprint, *map(_remembered, held))
        if type(value) in (list, tuple):
            return content_hash(type(value).__name__, *self._each(value, where))
        if type(value) in (dict, types.MappingProxyType):
            pairs = [(self.of(key, where), self.of(item, f"{where}[{key!r}]")) for key, item in value.items()]
            return content_hash("dict", *(part for pair in pairs for part in pair))
        if type(value) in (set, frozenset):
            return content_hash(type(value).__name__, *sorted(self.of(item, where) for item in value))
        if isinstance(value, types.ModuleType):
            return self._module(value, where)
        if isinstance(value, (PurePath, enum.Enum)):
            return self._name_and_content(value, where)
        return self._callable(value, where) or self._object(value, where)

    def _elements(self, value: torch.Tensor | np.ndarray, where: str) -> str:
        if isinstance(value, torch.Tensor):
            try:
                return tensor_hash(value)
            except (TypeError, RuntimeError) as error:
                raise self._refusal(value, where) from error
        kind = f"array {type(value).__qualname__} {value.dtype.descr} {value.shape}"
        if value.dtype.hasobject:
            return content_hash(kind, *self._each(value.ravel().tolist(), where))
        if isinstance(value, np.ma.MaskedArray):
            kind += self.of(np.ma.getmaskarray(value), where)
        return _bytes_hash(kind, np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)

    def _name_and_content(self, value: PurePath | enum.Enum, where: str) -> str:
        if isinstance(value, enum.Enum):
            return content_hash("enum", self.of(type(value), where), value.name, self.of(value.value, where))
        # A file counts by its content and not by the folder that it happens to lie in.
        if isinstance(value, Path) and value.is_file():
            return content_hash("file", value.name, hashlib.sha256(value.read_bytes()).hexdigest())
        return content_hash("path", value.as_posix())

    def _module(self, module: types.ModuleType, where: str) -> str:
        name = module.__name__
        if self._home(name) == "own":
            public = {key: item for key, item in vars(module).items() if not key.startswith("__")}
            return content_hash("module", name, self.arguments(public, f"{where}."))
        return self._named(name, "")

    def _home(self, module: str) -> str:
        """Whose code a module is: "package", "foreign" (of Python or installed), or "own": of the notebook."""
        root = module.partition(".")[0]
        if root == PACKAGE.name:
            return "package"
        if root == "__main__" or root not in sys.modules:
            return "own"
        if root in sys.stdlib_module_names:
            return "foreign"
        file = getattr(sys.modules[root], "__file__", None)
        return "foreign" if file is None or {"site-packages", "dist-packages"} & {*Path(file).parts} else "own"

    def _named(self, module: str, name: str) -> str:
        source = self.sources.hash(module) if self.sources and self._home(module) == "package" else ""
        return content_hash("name", module, name, source)

    def _callable(self, value: Any, where: str) -> str | None:
        """Hash of a function, class, method or descriptor; None for anything else."""
        if isinstance(value, functools.partial):
            inner = [self.of(value.func, where), self.of(value.args, where), self.arguments(value.keywords, where)]
            return content_hash("partial", *inner)
        for kind, (name, *parts) in _WRAPPERS.items():
            if isinstance(value, kind):
                return content_hash(name, *(self.of(getattr(value, part), where) for part in parts))
        if isinstance(value, _BY_NAME):
            owner = getattr(value, "__self__", None)
            name = getattr(value, "__qualname__", value.__name__)
            bound = "" if owner is None or isinstance(owner, types.ModuleType) else self.of(owner, f"{where}.self")
            return content_hash("builtin", str(getattr(value, "__module__", "")), name, bound)
        if isinstance(value, type):
            own = self.sources and self._home(value.__module__) == "own"
            return self._class(value, where) if own else self._named(value.__module__, value.__qualname__)
        if isinstance(value, types.FunctionType):
            return self._function(value, where)
        if hasattr(value, "__wrapped__") and type(value).__module__ == "functools":
            return content_hash("wrapped", self.of(value.__wrapped__, where))
        return None

    def _class(self, value: type, where: str) -> str:
        skipped = (types.MemberDescriptorType, types.GetSetDescriptorType)
        members = {
            key: item for key, item in vars(value).items() if key not in _HOUSEKEEPING and not isinstance(item, skipped)
        }
        bases = [self.of(base, where) for base in (type(value), *value.__bases__)]
        return content_hash("class", value.__qualname__, *bases, self.arguments(members, f"{where}."))

    def _function(self, function: types.FunctionType, where: str) -> str:
        module = function.__module__ or "__main__"
        own = self._home(module) == "own" and self.sources is not None
        parts = [] if own else [self._named(module, function.__qualname__)]
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        # A function of a module is known by its name; one that was made inside another also by what it captured.
        if own or "<locals>" in function.__qualname__:
            captured = {name: cell.cell_contents for name, cell in cells if cell != _EMPTY}
            prefix = f"{where} -> " if where else ""
            if own:
                parts += [_code(function.__code__), *self._reads(function, captured, prefix)]
            else:
                parts.append(self.arguments(captured, prefix))
            parts += [self.of(function.__defaults__, f"{prefix}defaults"), self.of(function.__kwdefaults__, prefix)]
            extra = {key: item for key, item in vars(function).items() if key != "__wrapped__"}
            parts.append(self.arguments(extra, f"{prefix}{function.__name__}."))
        return content_hash("function", *parts)

    def _reads(self, function: types.FunctionType, captured: Mapping[str, Any], prefix: str) -> Iterator[str]:
        """The hashes of all that the code of `function` reads by a name from outside."""
        names = function.__globals__
        for chain in sorted(_chains(function.__code__, function.__code__.co_freevars)):
            root, *attributes = chain
            if root.startswith("import "):
                value = _import(root.removeprefix("import "))
            elif root in captured:
                value = captured[root]
            elif root in names and root not in function.__code__.co_freevars:
                value = names[root]
            elif root in _UNSEEN and hasattr(builtins, root):
                raise UnreadableError(f"{prefix}{root}() reads names that cannot be followed before the code runs")
            else:
                continue
            for index, attribute in enumerate(attributes):
                value = value.fingerprint_as if hasattr(type(value), "fingerprint_as") else value
                if not self._partly_read(value) or not hasattr(value, attribute):
                    break
                value, chain = getattr(value, attribute), (root, *attributes[: index + 1])
            yield content_hash("read", *chain, self.of(value, f"{prefix}{'.'.join(chain)}"))

    def _partly_read(self, value: Any) -> bool:
        """Whether only those attributes of `value` count that the code names."""
        if isinstance(value, types.ModuleType):
            return self._home(value.__name__) != "foreign"
        return isinstance(value, types.SimpleNamespace)

    def _object(self, value: Any, where: str) -> str:
        if isinstance(value, io.IOBase) and not isinstance(value, (io.BytesIO, io.StringIO)):
            raise self._refusal(value, where)
        try:
            # The form in which it would be sent to a worker; a generator, a lock or a socket has none.
            reduced = value.__reduce_ex__(2)
        except Exception as error:  # classes refuse with errors of their own
            raise self._refusal(value, where) from error
        if isinstance(reduced, str):
            return self._named(getattr(value, "__module__", None) or type(value).__module__, reduced)
        make, arguments, state, items, pairs = (*reduced, None, None, None)[:5]
        if isinstance(state, tuple) and len(state) == 2 and all(part is None or type(part) is dict for part in state):
            state = {**(state[0] or {}), **(state[1] or {})}  # __dict__ and __slots__
        by_name = type(state) is dict and all(isinstance(key, str) for key in state)
        return content_hash(
            "object",
            self.of(type(value), where),
            self.of(make, where),
            *self._each(arguments, where),
            self.arguments(state, f"{where}.") if by_name else self.of(state, where),
            *self._each(items or (), where),
            *self._each(pairs or (), where),
        )

    def _refusal(self, value: Any, where: str) -> UnreadableError:
        kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
        return UnreadableError(f"{where} is of type {kind}, which has no content that could be compared later")


def _import(name: str) -> Any:
    """The module that an import statement in a function means; None if there is none."""
    module, _, attribute = name.partition(":")
    try:
        found = importlib.import_module(module)
        if attribute and not hasattr(found, attribute):
            return importlib.import_module(f"{module}.{attribute}")
        return getattr(found, attribute) if attribute else found
    except (ImportError, ValueError):
        return None


def _code(code: types.CodeType) -> str:
    """Hash of byte code with its names and the constants that it reads; docstrings and line numbers do not count."""
    read = {item.arg for item in dis.get_instructions(code) if item.opcode in dis.hasconst}
    constants = [_constant(item) if index in read else "" for index, item in enumerate(code.co_consts)]
    shape = (code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags)
    names = (code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars)
    table = getattr(code, "co_exceptiontable", b"")
    return content_hash("code", code.co_code.hex(), table.hex(), repr(shape), repr(names), *constants)


def _constant(value: Any) -> str:
    if isinstance(value, types.CodeType):
        return _code(value)
    # The order of a set differs between processes.
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else f"{type(value).__name__} {value!r}"


def _chains(code: types.CodeType, outside: Collection[str]) -> set[tuple[str, ...]]:
    """`("run", "parameters", "steps")` for each name from outside that the code reads, with the attributes it takes.

    outside: the variables of enclosing functions that come from outside. Those of an inner function that its outer one
    makes are no names from outside, although a notebook may have a global of that name.
    """
    found: set[tuple[str, ...]] = set()
    chain: tuple[str, ...] = ()
    module = ""
    for item in dis.get_instructions(code):
        if item.opname in ("CACHE", "EXTENDED_ARG", "PUSH_NULL"):
            continue
        if chain and item.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            chain = (*chain, str(item.argval))
            continue
        found |= {chain} - {()}
        chain = ()
        if item.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS") or (
            item.opname in ("LOAD_DEREF", "LOAD_CLASSDEREF", "LOAD_FROM_DICT_OR_DEREF") and item.argval in outside
        ):
            chain = (str(item.argval),)
        elif item.opname == "IMPORT_NAME":
            module = str(item.argval)
            found.add((f"import {module}",))
        elif item.opname == "IMPORT_FROM":
            found.add((f"import {module}:{item.argval}",))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= _chains(constant, {*outside} & {*constant.co_freevars})
    return found | ({chain} - {()})
