"""Pickles of lists, bytes, numbers and arrays, read so that nothing that a file names is called.

A pickle is a programme. Python's unpickler runs it whole: it calls, hashes and prints whatever the file builds, and
takes memory for lengths that the file only claims. Here the unpickler that the standard library keeps in Python knows
the operations that lists of files, truth values and numpy arrays need, counts them, and gives each name a meaning of
our own: bytes, arrays and plain containers come out, and nothing else.
"""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np

from reprolib.data.files import DataCorrupted

# operations, in all and by bytes: 22 make an array, and no file of a face is shorter than a thousand bytes; a list of
# None has one a byte
OPERATION_LIMIT, OPERATIONS_AT_LEAST, BYTES_AN_OPERATION = 2**20, 2**15, 32
# the letters and codes of `pickletools`, without those that call by class, copy, or reach outside
_ALLOWED = b"BCTUXJKMqrhjpgN()]}ltaeuILSVcRb.\x80\x85\x86\x87\x88\x89\x8a\x8c\x8d\x8e\x93\x94\x95"
_DTYPES = ("b1", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8", "O8")
# what a name stands for: numpy 2 moved its modules, Python 3 renamed the built-in ones
_NAMES = {
    "numpy ndarray": "ndarray",
    "numpy dtype": "dtype",
    "_codecs encode": "encode",
    "builtins bytearray": "bytearray",
    "__builtin__ bytearray": "bytearray",
    **{
        f"numpy.{core}.{place}": place.split()[1]
        for core in ("core", "_core")
        for place in ("multiarray _reconstruct", "multiarray scalar", "numeric _frombuffer")
    },
}


def read_pickle(raw: bytes, label: str) -> Any:
    """What the pickle `raw` holds: None, bool, int, bytes, str, list, tuple, dict, and arrays, also of objects.

    Raises `DataCorrupted` naming `label` for a pickle that is cut off or goes on behind its end, and for one that asks
    for anything else.
    """
    reader = _Reader(raw)
    try:
        value = reader.load()
        if reader.read(1):
            raise ValueError("it goes on behind its end")
    # the standard library raises whatever its operations run into
    except Exception as error:
        raise DataCorrupted(f"{label} holds no readable pickle ({str(error)[:200] or type(error).__name__})") from error
    return value


class _Operations(dict[int, Any]):
    """The operations that are allowed, and how many more of them a file of `size` bytes may have."""

    def __init__(self, size: int) -> None:
        known = pickle._Unpickler.dispatch
        super().__init__({code: known[code] for code in _ALLOWED})
        # the standard library takes memory for the length of a bytearray before it looks for its bytes
        self.update({pickle.BYTEARRAY8[0]: known[pickle.BINBYTES8[0]], pickle.SETITEMS[0]: _set_items})
        self.left = min(OPERATION_LIMIT, OPERATIONS_AT_LEAST + size // BYTES_AN_OPERATION)

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            raise ValueError("it has more operations than a file of its length needs")
        if code not in self:
            raise ValueError(f"it has the operation 0x{code:02x}, which is not allowed")
        return super().__getitem__(code)


def _set_items(reader: Any) -> None:
    items = reader.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
        # to hash a tuple of tuples of tuples can take for ever
        if not isinstance(key, (bytes, str)):
            raise ValueError(f"a key is a {type(key).__name__}, which is not allowed")
        reader.stack[-1][key] = value


class _Reader(pickle._Unpickler):
    read: Callable[[int], bytes]

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw), encoding="bytes")
        self.dispatch = _Operations(len(raw))  # type: ignore[misc,assignment]
        # latin-1 texts become bytes, and those bytearrays: no honest pickle makes more of itself
        self.room = 4 * len(raw) + 2**10

    def find_class(self, module: str, name: str) -> Any:
        if (kind := _NAMES.get(f"{module} {name}")) is None:
            raise ValueError(f"it asks for {module[:40]}.{name[:40]}, which is not allowed")
        return _Function(kind, self)

    def spend(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise ValueError("it copies more bytes than it has")


class _Function:
    """What a name stands for: it can be called, and makes what is listed here."""

    def __init__(self, kind: str, reader: _Reader) -> None:
        self.kind, self.reader = kind, reader

    def __setstate__(self, state: object) -> None:
        raise ValueError(f"it changes {self.kind}, which is not allowed")

    def __call__(self, *values: object) -> object:
        match self.kind, values:
            case "_reconstruct", _:
                array = np.ndarray.__new__(_Array, 0)
                array.reader = self.reader
                return array
            case "dtype", (bytes() | str() as code, *_):
                return _Dtype(_text(code))
            case "scalar", (_Dtype() as dtype, bytes() as raw):
                return _view(raw, dtype, (1,))[0].item()
            case "_frombuffer", (bytes() as raw, _Dtype() as dtype, tuple() as shape, *_):
                return _view(raw, dtype, shape)
            case "encode" | "bytearray", (str() as text, "latin1" | "latin-1"):
                self.reader.spend(len(text))
                return text.encode("latin-1")
            case "bytearray", (bytes() as raw,):
                return raw
        # the names of types, never values: to print those can take for ever
        raise ValueError(f"it calls {self.kind} with {', '.join(type(value).__name__ for value in values[:5])}")


class _Dtype:
    """A type of array entries; the byte order comes later."""

    def __init__(self, code: str) -> None:
        if code not in _DTYPES:
            raise ValueError(f"it holds numpy values of type {code[:20]!r}, allowed are {', '.join(_DTYPES)}")
        self.numpy = np.dtype(code[:1] if code == "O8" else f"<{code}")

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), bytes() | str() as order, *_) if _text(order) in ("<", ">", "|", "="):
                self.numpy = self.numpy.newbyteorder(_text(order))  # type: ignore[arg-type]
            case _:
                raise ValueError("it holds a type of unknown byte order")


class _Array(np.ndarray):
    """An array whose content comes later."""

    reader: _Reader

    def __setstate__(self, state: object) -> None:  # type: ignore[override]
        match state:
            case (int(), tuple() as shape, _Dtype() as dtype, int() as fortran, bytes() | list() as content):
                _check(content, dtype.numpy, shape)
                self.reader.spend(len(content) * (8 if isinstance(content, list) else 1))
                super().__setstate__((1, shape, dtype.numpy, bool(fortran), content))  # type: ignore[arg-type]
            case _:
                raise ValueError("it makes an array of something else than a shape, a type and its content")


def _text(value: bytes | str) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _check(content: bytes | list, dtype: np.dtype, shape: tuple) -> None:
    """What numpy takes on trust: a list for a type of objects, else bytes, and as much of it as `shape` says."""
    if isinstance(content, list) != dtype.hasobject:
        raise ValueError(f"the content of an array of type {dtype} is a {type(content).__name__}")
    if not 1 <= len(shape) <= 4 or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError("the shape of an array is not one to four whole numbers")
    if math.prod(shape) * (1 if dtype.hasobject else dtype.itemsize) != len(content):
        raise ValueError(f"it holds an array of type {dtype} whose shape does not fit {len(content)} entries or bytes")


def _view(raw: bytes, dtype: _Dtype, shape: tuple) -> np.ndarray:
    _check(raw, dtype.numpy, shape)
    return np.frombuffer(raw, dtype.numpy).reshape(shape)
