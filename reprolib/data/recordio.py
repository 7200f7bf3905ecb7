"""MXNet's RecordIO, the container of face sets such as CASIA-WebFace and MS1M: records, their index, reading, writing.

A record is one part or several. A part is the magic number 0xced7230a, a uint32 of 3 bits kind (whole, first, middle,
last) and 29 bits length, so many bytes, and zeros up to a multiple of 4, all little-endian; between the parts of one
record the magic number is left out, at which the writer cut it (dmlc-core, src/recordio.cc). The content of a record
is `<IfQQ`, that is a count, a label, an id and 0, then `count` float32 labels that replace the one before, then a
JPEG or PNG file (mxnet.recordio.pack). The .idx has a line "key<tab>offset" for each record; the id in a record is
that of the set it was first written for, and need not be its key.
"""

from __future__ import annotations

import itertools
import re
import struct
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reprolib.data.files import DataCorrupted, open_atomic, write_atomic
from reprolib.data.pixels import decode_image, is_encoded

MAGIC = b"\x0a\x23\xd7\xce"
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH_LIMIT = 2**29
# labels are float32, which holds every whole number below
LABEL_LIMIT = 2**24
# by chance one image in a million is cut once
PART_LIMIT = 1000
_PART, _HEADER = struct.Struct("<4sI"), struct.Struct("<IfQQ")


class Record(NamedTuple):
    """What a record holds: `labels` float32 (at least one), `id`, the encoded `image`, the offset `end` behind it."""

    labels: np.ndarray
    id: int
    image: memoryview
    end: int


def _read_part(buffer: memoryview, offset: int, name: str) -> tuple[int, memoryview, int]:
    """Kind, bytes and end of the part at `offset`."""
    if offset % 4 or not 0 <= offset <= len(buffer) - _PART.size:
        raise DataCorrupted(
            f"{name} cannot begin at byte {offset} of {len(buffer)}, but at a multiple of 4 before the end"
        )
    magic, packed = _PART.unpack_from(buffer, offset)
    if magic != MAGIC:
        raise DataCorrupted(f"{name} has 0x{magic[::-1].hex()} at byte {offset}, not the magic number 0xced7230a")
    length, begin = packed % LENGTH_LIMIT, offset + _PART.size
    end = begin + -(-length // 4) * 4
    if end > len(buffer):
        raise DataCorrupted(f"{name} is cut off: it ends at byte {end}, the file at byte {len(buffer)}")
    return packed // LENGTH_LIMIT, buffer[begin : begin + length], end


def read_record(buffer: memoryview, offset: int, name: str) -> Record:
    """The record at byte `offset` of the file `buffer`, without a copy unless it has several parts.

    Raises `DataCorrupted` naming the record `name` where no record begins or ends, for one that is cut off, and for
    one of more than 1000 parts.
    """
    kind, content, end = _read_part(buffer, offset, name)
    if kind not in (WHOLE, FIRST):
        raise DataCorrupted(f"{name} begins at byte {offset} with a part of kind {kind}, allowed are {WHOLE}, {FIRST}")
    if kind == FIRST:
        parts = [content]
        while kind != LAST:
            begin = end
            kind, content, end = _read_part(buffer, begin, name)
            if kind not in (MIDDLE, LAST):
                raise DataCorrupted(f"{name} goes on at byte {begin} with a part of kind {kind} instead of 2 or 3")
            if len(parts) == PART_LIMIT:
                raise DataCorrupted(f"{name} has more than {PART_LIMIT} parts, which no honest record has")
            parts.append(content)
        content = memoryview(MAGIC.join(parts))
    # a wrong length leads to a place where no record begins
    following = bytes(buffer[end : end + _PART.size])
    if following and (following[:4] != MAGIC or following[-1] >> 5 not in (WHOLE, FIRST)):
        raise DataCorrupted(f"{name} ends at byte {end}, but no other record begins there")
    if len(content) < _HEADER.size:
        raise DataCorrupted(f"{name} has {len(content)} bytes, its header alone has {_HEADER.size}")
    count, label, number, _ = _HEADER.unpack_from(content)
    begin = _HEADER.size + 4 * count
    if begin > len(content):
        raise DataCorrupted(f"{name} has {len(content)} bytes, too few for the {count} labels it promises")
    # as a view: a record may promise millions of labels
    labels = np.frombuffer(content, "<f4", count, _HEADER.size) if count else np.array([label], "<f4")
    return Record(labels, number, content[begin:], end)


def first_labels(words: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """First label, float32 (N,), of the records at byte `offsets` of the file whose uint32 words are `words`.

    NaN where no record begins, or a header does not fit into its first part: `read_record` reads it or says why.
    """
    place = offsets // 4
    inside = (offsets % 4 == 0) & (place >= 0) & (place + 8 <= len(words))
    place = np.where(inside, place, 0)
    magic, packed, count = (words[place + k] for k in range(3))
    length, begins = packed % LENGTH_LIMIT, packed // LENGTH_LIMIT <= FIRST
    fits = (length >= _HEADER.size + 4) | ((count == 0) & (length >= _HEADER.size))
    fits &= offsets + _PART.size + length <= 4 * len(words)
    good = inside & (magic == struct.unpack("<I", MAGIC)[0]) & begins & fits
    label = (
        np.where(count == 0, words[place + 3], words[np.minimum(place + 8, len(words) - 1)])
        .astype(np.uint32)
        .view(np.float32)
    )
    return np.where(good, label, np.float32("nan"))


def encode_record(content: bytes) -> bytes:
    """The record of `content`, cut wherever the magic number lies at a multiple of 4; raises `ValueError` from 2^29."""
    if len(content) >= LENGTH_LIMIT:
        raise ValueError(f"a record must be shorter than {LENGTH_LIMIT} bytes, got {len(content)}")
    cuts = [match.start() for match in re.finditer(re.escape(MAGIC), content) if match.start() % 4 == 0]
    kinds = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if cuts else [WHOLE]
    begins, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(content)]
    parts = [
        _PART.pack(MAGIC, kind * LENGTH_LIMIT + end - begin) + content[begin:end]
        for kind, begin, end in zip(kinds, begins, ends, strict=True)
    ]
    return b"".join(parts) + bytes(-len(content) % 4)


def read_index(path: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys and offsets int64 (N,), in the order of the .idx file `path` of a .rec file of `limit` bytes.

    Empty lines, blanks for tabs, further columns and any kind of line end are read. Raises `DataCorrupted` for a file
    with no line or one that does not begin with a key and an offset, and for one too long for these records.
    """
    # a line has at most 38 bytes and mostly below 24, a record at least 32
    if path.stat().st_size > 2 * limit:
        raise DataCorrupted(f"{path} has {path.stat().st_size} bytes, too many for the index of a file of {limit}")
    try:
        with warnings.catch_warnings():
            # numpy only warns of an empty file, and of a number with a point
            warnings.simplefilter("error")
            values = np.loadtxt(path, np.int64, comments=None, usecols=(0, 1), ndmin=2, encoding="latin-1")
        if (values < 0).any():
            raise ValueError("a negative number")
    except (ValueError, Warning) as error:
        raise DataCorrupted(f"{path} must hold a key, a tab and an offset in each line, got {error}") from error
    return np.ascontiguousarray(values[:, 0]), np.ascontiguousarray(values[:, 1])


def scan_records(buffer: memoryview, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What `read_index` returns, from the records themselves: the keys are their ids, else they count from 0."""
    ids, offsets, offset = [], [], 0
    while offset < len(buffer):
        record = read_record(buffer, offset, f"the record at byte {offset} of {path}")
        ids.append(record.id)
        offsets.append(offset)
        offset = record.end
    # some writers leave all ids at 0
    unique = len(set(ids)) == len(ids) and max(ids, default=0) < 2**63
    return np.array(ids if unique else range(len(ids)), np.int64), np.array(offsets, np.int64)


def write_records(
    path: str | Path, images: Iterable[bytes], labels: Iterable[int], *, identities: bool = False
) -> None:
    """Writes JPEG or PNG files and their classes to the .rec file `path` and the .idx beside it; keys count from 0.

    With `identities` as insightface packs its sets: keys count from 1, the images are followed by the header, record
    0, and by one record an identity with the range of its keys, and `property` says "num_classes,height,width" of the
    first image. The labels must then ascend from 0 without a gap. All files are written to a temporary name, then
    renamed, one record at a time: `images` may be a generator. Raises `ValueError` for a name without .rec, no images,
    another kind of file, more images than labels or the reverse, and a label that is not a whole number from 0 to
    2^24 - 1; then nothing has changed on the disk.
    """
    path = Path(path)
    if path.suffix != ".rec":
        raise ValueError(f"path must be called something.rec, got {path.name}")
    lines: list[str] = []
    begins: list[int] = []
    offset, first = 0, int(identities)
    with open_atomic(path) as stream:

        def write(key: int, values: Sequence[float], image: bytes = b"") -> None:
            nonlocal offset
            single = len(values) == 1
            content = _HEADER.pack(0 if single else len(values), values[0] if single else 0, key, 0)
            content += (b"" if single else struct.pack(f"<{len(values)}f", *values)) + image
            lines.append(f"{key}\t{offset}\n")
            offset += stream.write(encode_record(content))

        size = (0, 0)
        for row, (image, label) in enumerate(itertools.zip_longest(images, labels)):
            if image is None or label is None:
                raise ValueError(f"there must be as many labels as images, one of them ends after {row}")
            if not is_encoded(image):
                raise ValueError(f"image {row} must be the bytes of a JPEG or PNG file, got {image[:8]!r} ...")
            if not 0 <= label < LABEL_LIMIT or label != int(label):
                raise ValueError(f"label {row} must be a whole number from 0 to {LABEL_LIMIT - 1}, got {label}")
            if identities:
                if label not in (len(begins) - 1, len(begins)):
                    raise ValueError(f"label {row} must be {len(begins) - 1} or {len(begins)} to ascend, got {label}")
                begins += [first + row] if label == len(begins) else []
                size = size if row else decode_image(image, f"image {row}").size[::-1]
            write(first + row, [float(label)], image)
        if not lines:
            raise ValueError("images must hold at least one image, got none")
        if identities:
            stop = first + len(lines)
            if stop + len(begins) > LABEL_LIMIT:
                raise ValueError(f"images and identities must be fewer than {LABEL_LIMIT} together, got {stop}")
            write(0, [stop, stop + len(begins)])
            for key, (begin, end) in enumerate(zip(begins, [*begins[1:], stop], strict=True), start=stop):
                write(key, [begin, end])
        # records without an index are scanned: at no moment does an index lie beside records that are not its own
        path.with_suffix(".idx").unlink(missing_ok=True)
        if identities:
            write_atomic(path.with_name("property"), f"{len(begins)},{size[0]},{size[1]}\n".encode())
    write_atomic(path.with_suffix(".idx"), "".join(lines).encode())
