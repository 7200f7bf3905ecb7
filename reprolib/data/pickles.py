"""Pickles of lists, bytes, numbers and arrays, read by a machine of their own: nothing that a file names is called.

A pickle is a programme. Python's unpickler runs it whole: it hashes, compares and prints whatever the file builds, and
takes memory for lengths that the file only claims. This one knows the operations that lists of files, truth values and
numpy arrays need (`pickletools` of the standard library documents each), counts them, and makes bytes, arrays and
plain containers only.
"""

from __future__ import annotations

import codecs
import math
import struct
from typing import Any, NoReturn

import numpy as np

from reprolib.data.files import DataCorrupted

# operations, in all and by bytes: 22 make an array, and no file of a face is shorter than a thousand bytes; a list of
# None has one a byte
OPERATION_LIMIT, OPERATIONS_AT_LEAST, BYTES_AN_OPERATION = 2**20, 2**15, 32
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
# operation -> format of its length or value
_BYTES = {ord("B"): "<I", ord("C"): "<B", 0x8E: "<Q", 0x96: "<Q", ord("T"): "<i", ord("U"): "<B"}
_TEXTS = {ord("X"): "<I", 0x8C: "<B", 0x8D: "<Q"}
_INTEGERS = {ord("J"): "<i", ord("K"): "<B", ord("M"): "<H"}
_PUTS = {ord("q"): "<B", ord("r"): "<I"}
_GETS = {ord("h"): "<B", ord("j"): "<I"}
_CONSTANTS: dict[int, bool | None] = {ord("N"): None, 0x88: True, 0x89: False}
_TUPLES = {ord(")"): 0, 0x85: 1, 0x86: 2, 0x87: 3}


def read_pickle(raw: bytes, label: str) -> Any:
    """What the pickle `raw` holds: None, bool, int, bytes, str, list, tuple, dict, and read-only arrays.

    An array of objects comes as the list of them. Raises `DataCorrupted` naming `label` for a pickle that is cut off or
    goes on behind its end, and for one that asks for anything else.
    """
    try:
        return _Machine(raw).run()
    except (ValueError, IndexError, OverflowError, TypeError) as error:
        raise DataCorrupted(f"{label} holds no readable pickle ({error})") from error


class _Name:
    """A name that the pickle asks for; `kind` is what it stands for."""

    def __init__(self, kind: str) -> None:
        self.kind = kind


class _Dtype:
    """A type of array entries; the byte order comes later."""

    def __init__(self, code: str) -> None:
        self.code, self.order = code, "<"

    def numpy(self) -> np.dtype:
        if self.code == "O8":
            raise ValueError("it holds bytes as objects")
        return np.dtype(self.order + self.code)


class _Array:
    """An array whose content comes later, as `value`."""

    value: np.ndarray | list | None = None


def _refuse(what: str, value: object) -> NoReturn:
    # a name of a type, never the value: to print it can take for ever
    raise ValueError(f"{what} is a {type(value).__name__}, which is not allowed")


class _Machine:
    def __init__(self, raw: bytes) -> None:
        self.raw, self.at = raw, 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        # latin-1 texts become bytes, and those bytearrays: no honest pickle makes more of itself
        self.room = 4 * len(raw) + 2**10

    def run(self) -> Any:
        limit = min(OPERATION_LIMIT, OPERATIONS_AT_LEAST + len(self.raw) // BYTES_AN_OPERATION)
        for _ in range(limit):
            operation = self.take(1)[0]
            if operation == ord("."):
                if self.at != len(self.raw) or self.below or len(self.stack) != 1:
                    raise ValueError(f"it ends at byte {self.at} of {len(self.raw)} with {len(self.stack)} values")
                return self.stack[0]
            self.step(operation)
        raise ValueError(f"it has more than {limit} operations in {len(self.raw)} bytes")

    def step(self, operation: int) -> None:
        stack = self.stack
        if operation in _BYTES:
            stack.append(self.take(self.number(_BYTES[operation])))
        elif operation in _TEXTS:
            stack.append(self.take(self.number(_TEXTS[operation])).decode())
        elif operation in _INTEGERS:
            stack.append(self.number(_INTEGERS[operation]))
        elif operation in _PUTS:
            self.memo[self.number(_PUTS[operation])] = stack[-1]
        elif operation in _GETS:
            self.get(self.number(_GETS[operation]))
        elif operation in _CONSTANTS:
            stack.append(_CONSTANTS[operation])
        elif operation in _TUPLES:
            size = _TUPLES[operation]
            if size > len(stack):
                raise IndexError("a tuple lacks values")
            stack[len(stack) - size :] = [tuple(stack[len(stack) - size :])]
        elif operation in _OPERATIONS:
            _OPERATIONS[operation](self)
        else:
            raise ValueError(f"byte {self.at - 1} is the operation 0x{operation:02x}, which is not allowed")

    def take(self, size: int) -> bytes:
        if not 0 <= size <= len(self.raw) - self.at:
            raise ValueError(f"byte {self.at} asks for {size} bytes, {len(self.raw) - self.at} are left")
        self.at += size
        return self.raw[self.at - size : self.at]

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def line(self, limit: int = 20) -> bytes:
        end = self.raw.find(b"\n", self.at, self.at + limit + 1)
        if end < 0:
            raise ValueError(f"the line at byte {self.at} does not end within {limit} bytes")
        return self.take(end + 1 - self.at)[:-1]

    def spend(self, size: int) -> None:
        self.room -= size
        if self.room < 0:
            raise ValueError("it copies more bytes than it has")

    def get(self, key: int) -> None:
        if key not in self.memo:
            raise ValueError(f"it reads the memo {key}, which is empty")
        value = self.memo[key]
        self.stack.append(value.value if isinstance(value, _Array) and value.value is not None else value)

    def pop(self) -> Any:
        if not self.stack:
            raise IndexError("a value is missing")
        return self.stack.pop()

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise IndexError("a mark is missing")
        items, self.stack = self.stack, self.below.pop()
        return items

    def list_of_marked(self) -> None:
        items = self.pop_mark()
        self.stack.append(items)

    def tuple_of_marked(self) -> None:
        items = self.pop_mark()
        self.stack.append(tuple(items))

    def skip_protocol(self) -> None:
        if (protocol := self.take(1)[0]) > 5:
            raise ValueError(f"its protocol {protocol} is unknown")

    def integer_line(self) -> None:
        text = self.line().removesuffix(b"L")
        self.stack.append({b"00": False, b"01": True}[text] if text in (b"00", b"01") else int(text))

    def integer_bytes(self) -> None:
        size = self.take(1)[0]
        if size > 8:
            raise ValueError(f"it holds an integer of {size} bytes")
        self.stack.append(int.from_bytes(self.take(size), "little", signed=True))

    def quoted(self) -> None:
        """Bytes as Python 2 prints them."""
        text = self.line(len(self.raw))
        if len(text) < 2 or text[:1] not in b"'\"" or text[-1:] != text[:1]:
            raise ValueError("a string has no quotes")
        self.stack.append(codecs.escape_decode(text[1:-1])[0])

    def escaped(self) -> None:
        """A text as Python 2 and 3 write it in protocol 0."""
        self.stack.append(self.line(len(self.raw)).decode("raw-unicode-escape"))

    def append(self, items: list[Any]) -> None:
        if not self.stack or not isinstance(self.stack[-1], list):
            _refuse("what it appends to", self.stack[-1] if self.stack else None)
        self.stack[-1].extend(items)

    def set_items(self, items: list[Any]) -> None:
        if not self.stack or not isinstance(self.stack[-1], dict) or len(items) % 2:
            _refuse("what it sets items of", self.stack[-1] if self.stack else None)
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (bytes, str)):
                _refuse("a key", key)
            self.stack[-1][key] = value

    def find(self, module: object, name: object) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            _refuse("a name", module)
        if (kind := _NAMES.get(f"{module} {name}")) is None:
            raise ValueError(f"it asks for {module[:40]}.{name[:40]}, which is not allowed")
        self.stack.append(_Name(kind))

    def reduce(self) -> None:
        values, function = self.pop(), self.pop()
        if not isinstance(function, _Name):
            _refuse("what it calls", function)
        if not isinstance(values, tuple):
            _refuse("what it calls a function with", values)
        match function.kind, values:
            case "_reconstruct", _:
                self.stack.append(_Array())
            case "dtype", (bytes() | str() as code, *_):
                code = code.decode("latin-1") if isinstance(code, bytes) else code
                if code not in _DTYPES:
                    raise ValueError(f"it holds numpy values of type {code[:20]!r}, allowed are {', '.join(_DTYPES)}")
                self.stack.append(_Dtype(code))
            case "scalar", (_Dtype() as dtype, bytes() as raw):
                self.stack.append(_array(raw, dtype, (1,), False)[0].item())
            case "_frombuffer", (bytes() as raw, _Dtype() as dtype, tuple() as shape, *_):
                self.stack.append(_array(raw, dtype, shape, False))
            case "encode", (str() as text, str() as encoding) if encoding in ("latin1", "latin-1"):
                self.spend(len(text))
                self.stack.append(text.encode("latin-1"))
            case "bytearray", (bytes() as raw,):
                self.stack.append(raw)
            case "bytearray", (str() as text, "latin-1" | "latin1"):
                self.spend(len(text))
                self.stack.append(text.encode("latin-1"))
            case kind, _:
                raise ValueError(f"it calls {kind} with {', '.join(type(v).__name__ for v in values[:5])}")

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        match target, state:
            case _Dtype(), (int(), bytes() | str() as order, *_):
                order = order.decode("latin-1") if isinstance(order, bytes) else order
                if order not in ("<", ">", "|", "="):
                    raise ValueError(f"it holds the byte order {order[:5]!r}")
                target.order = order
                self.stack.append(target)
            case _Array(value=None), (int(), tuple() as shape, _Dtype() as dtype, int() as fortran, content):
                if dtype.code == "O8" and isinstance(content, list):
                    if _size(shape) != len(content):
                        raise ValueError(f"it holds {len(content)} objects in an array of another shape")
                    target.value = content
                elif isinstance(content, bytes):
                    target.value = _array(content, dtype, shape, bool(fortran))
                else:
                    _refuse("the content of an array", content)
                self.stack.append(target.value)
            case _:
                _refuse("what it builds", target)


def _size(shape: tuple) -> int:
    if not 1 <= len(shape) <= 4 or not all(type(n) is int and 0 <= n < 2**40 for n in shape):
        raise ValueError("the shape of an array is not one to four whole numbers")
    return math.prod(shape)


def _array(raw: bytes, dtype: _Dtype, shape: tuple, fortran: bool) -> np.ndarray:
    kind = dtype.numpy()
    if _size(shape) * kind.itemsize != len(raw):
        raise ValueError(f"it holds an array of shape {shape} and type {dtype.code} in {len(raw)} bytes")
    return np.frombuffer(raw, kind).reshape(shape, order="F" if fortran else "C")


_OPERATIONS = {
    0x80: _Machine.skip_protocol,
    # a frame says only how far to read ahead
    0x95: lambda machine: machine.take(8),
    0x94: lambda machine: machine.memo.__setitem__(len(machine.memo), machine.stack[-1]),
    ord("p"): lambda machine: machine.memo.__setitem__(int(machine.line()), machine.stack[-1]),
    ord("g"): lambda machine: machine.get(int(machine.line())),
    ord("("): _Machine.mark,
    ord("]"): lambda machine: machine.stack.append([]),
    ord("}"): lambda machine: machine.stack.append({}),
    ord("l"): _Machine.list_of_marked,
    ord("t"): _Machine.tuple_of_marked,
    ord("a"): lambda machine: machine.append([machine.pop()]),
    ord("e"): lambda machine: machine.append(machine.pop_mark()),
    ord("s"): lambda machine: machine.set_items([machine.pop(), machine.pop()][::-1]),
    ord("u"): lambda machine: machine.set_items(machine.pop_mark()),
    ord("I"): _Machine.integer_line,
    ord("L"): _Machine.integer_line,
    0x8A: _Machine.integer_bytes,
    ord("S"): _Machine.quoted,
    ord("V"): _Machine.escaped,
    ord("c"): lambda machine: machine.find(machine.line(80).decode(), machine.line(80).decode()),
    0x93: lambda machine: machine.find(*[machine.pop(), machine.pop()][::-1]),
    ord("R"): _Machine.reduce,
    ord("b"): _Machine.build,
}
