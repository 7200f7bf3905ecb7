"""One file of arrays that knows its own checksum: an uncompressed .npz with the SHA-256 of what it holds.

All data sets are stored so, whatever they came as. `numpy.load(path, allow_pickle=False)` reads it too.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import zipfile
from collections.abc import Collection, Mapping

import numpy as np

from reprolib.data.files import RATIO, SLACK, DataCorrupted, open_zip

CHECKSUM = "sha256"
HEADER_LIMIT = 2**12
# local header of a zip member: 26 bytes, then the lengths of its name and of its extra field
_LENGTHS, _LOCAL_HEADER = struct.Struct("<HH"), 30

Shape = tuple["int | None", ...]


def checksum(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256, 64 hex digits, of the names, types, shapes and bytes of `arrays`, whatever their order."""
    digest = hashlib.sha256()
    for key in sorted(arrays):
        array = np.ascontiguousarray(arrays[key])
        digest.update(f"{key} {array.dtype.str} {array.shape};".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_digest(raw: bytes, allowed: Collection[str], label: str, kind: str = "sha256") -> None:
    """Raises `DataCorrupted` naming `label` unless the hash of `raw`, of this `kind`, is one of `allowed`."""
    found = hashlib.new(kind, raw, usedforsecurity=False).hexdigest()
    if found not in allowed:
        raise DataCorrupted(f"{label} must have the published {kind.upper()}, got {found}")


def text_array(text: str) -> np.ndarray:
    """`text` as an array of its UTF-8 bytes, since an array of strings takes four bytes a letter."""
    return np.frombuffer(text.encode(), np.uint8)


def array_text(array: np.ndarray, label: str) -> str:
    """Inverse of `text_array`; raises `DataCorrupted` naming `label` for bytes that are not UTF-8."""
    try:
        return array.tobytes().decode()
    except UnicodeDecodeError as error:
        raise DataCorrupted(f"{label} holds a text that is not UTF-8 ({error})") from error


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The .npz file of `arrays` and their checksum; the same arrays give the same bytes."""
    stream = io.BytesIO()
    digest = np.frombuffer(bytes.fromhex(checksum(arrays)), np.uint8)
    with zipfile.ZipFile(stream, "w") as bundle:
        for key, array in {**arrays, CHECKSUM: digest}.items():
            array = np.ascontiguousarray(array)
            # a ZipInfo carries the fixed date 1980-01-01
            with bundle.open(zipfile.ZipInfo(f"{key}.npy"), "w") as member:
                np.lib.format.write_array_header_1_0(member, np.lib.format.header_data_from_array_1_0(array))
                member.write(array.reshape(-1).view(np.uint8).data)
    return stream.getvalue()


def unpack_arrays(raw: bytes, label: str, shapes: Mapping[str, Shape]) -> tuple[dict[str, np.ndarray], str]:
    """The uint8 arrays of a file made by `pack_arrays`, read-only views of `raw`, and their checksum.

    `shapes` names the arrays expected and their shapes, `None` for a size that is free. Raises `DataCorrupted`
    naming `label` for anything else, and for content that does not have the checksum stored with it.
    """
    arrays = read_arrays(raw, label, {key: ("|u1", shape) for key, shape in {**shapes, CHECKSUM: (32,)}.items()})
    stored, digest = arrays.pop(CHECKSUM).tobytes().hex(), checksum(arrays)
    if stored != digest:
        raise DataCorrupted(f"{label} is truncated or altered: SHA-256 of its arrays is {digest}, not {stored}")
    return arrays, digest


def read_arrays(raw: bytes, label: str, wanted: Mapping[str, tuple[str, Shape]]) -> dict[str, np.ndarray]:
    """The arrays `wanted` (type, "|u1" or "<i8", and shape, `None` for a size that is free) of the .npz file `raw`.

    Nothing is unpickled, and no length that the file states is believed: members that are not compressed are views of
    `raw`, others may unfold to eight times their size. Raises `DataCorrupted` naming `label`.
    """
    bundle = open_zip(raw, label)
    arrays = {}
    for key, (dtype, shape) in wanted.items():
        try:
            arrays[key] = _array(_member(raw, bundle, f"{key}.npy"), dtype)
        # zipfile raises NotImplementedError, LZMAError, UnicodeDecodeError and more for altered members
        except Exception as error:
            raise DataCorrupted(f"{label} has no readable array {key} ({error or type(error).__name__})") from error
        found = arrays[key].shape
        if len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            raise DataCorrupted(f"{label} holds {key} of shape {found} instead of {shape}")
    return arrays


def _member(raw: bytes, bundle: zipfile.ZipFile, name: str) -> memoryview:
    info = bundle.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        if info.file_size > RATIO * info.compress_size + SLACK:
            raise ValueError(f"it claims to unfold to {info.file_size} bytes")
        return memoryview(bundle.read(info))
    begin = info.header_offset + _LOCAL_HEADER + sum(_LENGTHS.unpack_from(raw, info.header_offset + 26))
    member = memoryview(raw)[begin : begin + info.file_size]
    if len(member) != info.file_size:
        raise ValueError("it is cut off")
    return member


def _array(member: memoryview, dtype: str) -> np.ndarray:
    """The array of type `dtype` in the .npy file `member`."""
    stream = io.BytesIO(member[:HEADER_LIMIT])
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("it is no .npy file of version 1.0")
    shape, by_columns, found = np.lib.format.read_array_header_1_0(stream, max_header_size=HEADER_LIMIT)
    if by_columns or found.str != dtype:
        raise ValueError(f"its header does not promise {dtype} in C order")
    values = member[stream.tell() :]
    if math.prod(shape) * np.dtype(dtype).itemsize != len(values):
        raise ValueError(f"it promises {shape} in {len(values)} bytes")
    return np.frombuffer(values, dtype).reshape(shape)
