"""One file of arrays that knows its own checksum: an uncompressed .npz with the SHA-256 of what it holds.

Such a file is for data that cannot be verified by a published hash because they were decoded here: pixels of
JPEG files differ by a grey level between versions of the decoder. `numpy.load(path, allow_pickle=False)` reads it too.
"""

from __future__ import annotations

import hashlib
import io
import math
import struct
import tokenize
import zipfile
from collections.abc import Mapping

import numpy as np

from reprolib.data.files import DataCorrupted

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
        digest.update(array.reshape(-1).view(np.uint8))
    return digest.hexdigest()


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
                member.write(array.reshape(-1).view(np.uint8))
    return stream.getvalue()


def unpack_arrays(raw: bytes, label: str, shapes: Mapping[str, Shape]) -> tuple[dict[str, np.ndarray], str]:
    """The uint8 arrays of a file made by `pack_arrays`, read-only views of `raw`, and their checksum.

    `shapes` names the arrays expected and their shapes, `None` for a size that is free. Raises `DataCorrupted`
    naming `label` for anything else, and for content that does not have the checksum stored with it.
    """
    try:
        bundle = zipfile.ZipFile(io.BytesIO(raw))
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataCorrupted(f"{label} is not a readable .npz file ({error})") from error
    expected = {**shapes, CHECKSUM: (32,)}
    if sorted(bundle.namelist()) != sorted(f"{key}.npy" for key in expected):
        raise DataCorrupted(f"{label} does not hold just the arrays {', '.join(expected)}")
    arrays = {}
    for key, shape in expected.items():
        try:
            arrays[key] = _view(raw, bundle.getinfo(f"{key}.npy"))
        except (ValueError, struct.error, EOFError, SyntaxError, tokenize.TokenError) as error:
            raise DataCorrupted(f"{label} has no readable array {key} ({error})") from error
        found = arrays[key].shape
        if len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            raise DataCorrupted(f"{label} holds {key} of shape {found} instead of {shape}")
    stored, digest = arrays.pop(CHECKSUM).tobytes().hex(), checksum(arrays)
    if stored != digest:
        raise DataCorrupted(f"{label} is truncated or altered: SHA-256 of its arrays is {digest}, not {stored}")
    return arrays, digest


def _view(raw: bytes, info: zipfile.ZipInfo) -> np.ndarray:
    """The uint8 array in an uncompressed member, without a copy and without trust in any length it states."""
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("it is compressed")
    begin = info.header_offset + _LOCAL_HEADER + sum(_LENGTHS.unpack_from(raw, info.header_offset + 26))
    member = memoryview(raw)[begin : begin + info.file_size]
    if len(member) != info.file_size:
        raise ValueError("it is cut off")
    stream = io.BytesIO(member[:HEADER_LIMIT])
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("another format version")
    shape, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    values = member[stream.tell() :]
    if fortran or dtype != np.uint8 or min(shape, default=1) < 0 or math.prod(shape) != len(values):
        raise ValueError(f"{dtype} {shape} in {len(values)} bytes")
    return np.frombuffer(values, np.uint8).reshape(shape)
