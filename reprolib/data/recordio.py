"""MXNet's RecordIO, in which face sets such as CASIA-WebFace and MS1M are distributed: `train.rec` and `train.idx`.

A record is one part or several. A part is the magic number 0xced7230a, a uint32 of 3 bits kind (whole, first, middle,
last) and 29 bits length, so many bytes, and zeros up to a multiple of 4, all little-endian; between the parts of one
record the magic number is left out, at which the writer cut it (dmlc-core, src/recordio.cc). The content of a record
is `<IfQQ`, that is a count, a label, an id and 0, then `count` float32 labels that replace the one before, then a
JPEG or PNG file (mxnet.recordio.pack). The .idx has a line "key<tab>offset" for each record.

In the sets of insightface record 0 is no image but a header: its first label is one past the key of the last image.
Behind the images lie records without an image, one an identity, which are not needed here. The first label of an
image is its class. The format has no checksum: a label or a pixel that was changed to another possible one cannot be
noticed, nor can the end of a file that lost whole records together with its .idx and header; other damage is.
"""

from __future__ import annotations

import itertools
import mmap
import os
import re
import struct
from array import array
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from reprolib.data.files import DataCorrupted, open_atomic, write_atomic
from reprolib.data.pixels import decode_tensor, is_encoded

MAGIC = b"\x0a\x23\xd7\xce"
WHOLE, FIRST, MIDDLE, LAST = range(4)
LENGTH_LIMIT = 2**29
# labels are float32, which holds every whole number below
LABEL_LIMIT = 2**24
_PART, _HEADER = struct.Struct("<4sI"), struct.Struct("<IfQQ")
_INDEX_LINE = re.compile(rb"(\d{1,18})\t(\d{1,18})\r?\n?")
_PROPERTY = re.compile(r"\s*([1-9]\d{0,7}),\s*\d{1,5},\s*\d{1,5}\s*")


class Record(NamedTuple):
    """What a record holds: `labels` (at least one), `id`, the encoded `image`, and the offset `end` behind it."""

    labels: tuple[float, ...]
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

    Raises `DataCorrupted` naming the record `name` where no record begins or ends, and for one that is cut off.
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
    labels = struct.unpack_from(f"<{count}f", content, _HEADER.size) if count else (label,)
    return Record(labels, number, content[begin:], end)


def encode_record(content: bytes) -> bytes:
    """The record of `content`, cut wherever the magic number lies at a multiple of 4; raises `ValueError` from 2^29."""
    if len(content) >= LENGTH_LIMIT:
        raise ValueError(f"a record has to be shorter than {LENGTH_LIMIT} bytes, not {len(content)}")
    cuts = [match.start() for match in re.finditer(re.escape(MAGIC), content) if match.start() % 4 == 0]
    kinds = [FIRST, *[MIDDLE] * (len(cuts) - 1), LAST] if cuts else [WHOLE]
    begins, ends = [0, *(cut + 4 for cut in cuts)], [*cuts, len(content)]
    parts = [
        _PART.pack(MAGIC, kind * LENGTH_LIMIT + end - begin) + content[begin:end]
        for kind, begin, end in zip(kinds, begins, ends, strict=True)
    ]
    return b"".join(parts) + bytes(-len(content) % 4)


def read_index(path: Path, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Keys uint64 and offsets int64 (N,), in the order of the .idx file `path` of a .rec file of `limit` bytes.

    Raises `DataCorrupted` naming the line that is not "key<tab>offset", and for a file too long for these records.
    """
    # a line has at most 38 bytes, a record at least 32
    if path.stat().st_size > 2 * limit:
        raise DataCorrupted(f"{path} has {path.stat().st_size} bytes, too many for the index of a file of {limit}")
    keys, offsets = array("Q"), array("q")
    with open(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            match = _INDEX_LINE.fullmatch(line)
            if match is None:
                raise DataCorrupted(f"line {number} of {path} is {line[:40]!r} instead of a key, a tab and an offset")
            keys.append(int(match[1]))
            offsets.append(int(match[2]))
    return np.array(keys, np.uint64), np.array(offsets, np.int64)


def scan_records(buffer: memoryview, path: Path) -> tuple[np.ndarray, np.ndarray]:
    """What `read_index` returns, from the records themselves: the key of each is its id."""
    keys, offsets, offset = [], [], 0
    while offset < len(buffer):
        record = read_record(buffer, offset, f"the record at byte {offset} of {path}")
        keys.append(record.id)
        offsets.append(offset)
        offset = record.end
    return np.array(keys, np.uint64), np.array(offsets, np.int64)


class FaceRecords:
    """The images of a .rec file in ascending order of their keys: `len`, `labels`, `num_classes`, `image`, `load`.

    `path` is the file, or a folder with train.rec. An .idx of the same name gives the keys; without one the records
    are scanned, whose ids are the keys. A file `property` beside it ("num_classes,height,width") gives the number of
    classes. Files are opened when first needed and mapped, not read: the object can be pickled and shared by forked
    workers, and `close`, also at the end of a `with`, only lets go of the file. Everything raises `DataCorrupted` for
    a file that is cut off, damaged or contradicts itself, and `OSError` for one that cannot be opened.
    """

    def __init__(self, path: str | Path) -> None:
        path = Path(path)
        self.path = path / "train.rec" if path.is_dir() else path

    def __enter__(self) -> FaceRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_buffer"}

    def close(self) -> None:
        """Lets go of the file; whatever is asked for next opens it again."""
        self.__dict__.pop("_buffer", None)

    @cached_property
    def _buffer(self) -> memoryview:
        with open(self.path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise DataCorrupted(f"{self.path} is empty")
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, Path]:
        """Keys of all records, ascending, their offsets, and the file that says so."""
        path, buffer = self.path.with_suffix(".idx"), self._buffer
        source = path if path.is_file() else self.path
        keys, offsets = scan_records(buffer, source) if source == self.path else read_index(source, len(buffer))
        if keys.size == 0:
            raise DataCorrupted(f"{source} names no record")
        for values, what in ((keys, "key"), (offsets, "offset")):
            values = np.sort(values)
            if (twice := values[1:][values[1:] == values[:-1]]).size:
                raise DataCorrupted(f"{source} has the {what} {twice[0]} more than once")
        last = int(offsets.argmax())
        end = read_record(buffer, int(offsets[last]), f"record {keys[last]} of {self.path}").end
        if end != len(buffer):
            raise DataCorrupted(f"{source} is cut off: its last record ends at byte {end}, the file at {len(buffer)}")
        order = np.argsort(keys)
        return keys[order], offsets[order], source

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the images, ascending, and their offsets."""
        keys, offsets, source = self._index
        first, last = (read_record(self._buffer, int(offsets[k]), f"record {keys[k]} of {self.path}") for k in (0, -1))
        if keys[0] != 0 or first.image:
            # the identities have the highest keys, where a header is missing that counts the images
            if not last.image:
                raise DataCorrupted(f"record {keys[-1]} of {self.path} has no image, and record 0 is not a header")
            return keys, offsets
        stop = first.labels[0]
        if len(first.labels) < 2 or not stop.is_integer() or stop < 2:
            raise DataCorrupted(f"record 0 of {self.path} is neither an image nor a header with two labels from 2 on")
        found = keys[: int(min(stop, len(keys)))]
        gaps = np.flatnonzero(found != np.arange(len(found)))
        if gaps.size or len(found) < stop:
            missing = gaps[0] if gaps.size else len(found)
            raise DataCorrupted(f"{source} lacks the key {missing}, the images have the keys 1 to {stop - 1:.0f}")
        return found[1:], offsets[1 : len(found)]

    @cached_property
    def _property(self) -> int | None:
        """Number of classes that the file `property` states."""
        path = self.path.with_name("property")
        if not path.is_file():
            return None
        with open(path, encoding="ascii", errors="replace") as stream:
            text = stream.read(100)
        if (match := _PROPERTY.fullmatch(text)) is None:
            raise DataCorrupted(f"{path} holds {text!r} instead of num_classes,height,width")
        return int(match[1])

    def __len__(self) -> int:
        return len(self._images[0])

    def _name(self, row: int) -> str:
        return f"record {self._images[0][row]} of {self.path}"

    def _read(self, row: int) -> tuple[int, memoryview]:
        """Label and encoded image of image `row`."""
        name, key = self._name(row), self._images[0][row]
        record = read_record(self._buffer, int(self._images[1][row]), name)
        # some writers leave all ids at 0
        if record.id not in (0, key):
            raise DataCorrupted(f"{name} says that it is record {record.id}; without its .idx the file is scanned")
        if not is_encoded(bytes(record.image[:8])):
            raise DataCorrupted(f"{name} holds neither a JPEG nor a PNG file")
        label, limit = record.labels[0], self._property or LABEL_LIMIT
        if not label.is_integer() or not 0 <= label < limit:
            raise DataCorrupted(f"{name} has the label {label}, allowed are whole numbers from 0 to {limit - 1}")
        return int(label), record.image

    @cached_property
    def labels(self) -> torch.Tensor:
        """Class of each image, int64 (N,), as stored: read from the headers, no image is decoded."""
        return torch.tensor([self._read(row)[0] for row in range(len(self))], dtype=torch.int64)

    @property
    def num_classes(self) -> int:
        """Classes according to the file `property`, else the highest label + 1."""
        return self._property or int(self.labels.max()) + 1

    def image(self, i: int) -> torch.Tensor:
        """Image `i` of 0 .. N - 1 as uint8 (3, H, W), RGB; raises `ValueError` for another index."""
        return self.load([i])[0][0]

    def load(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 (n, 3, H, W), RGB, and labels int64 (n,) at `indices` (n,) of 0 .. N - 1.

        Raises `ValueError` for no or other indices and for images that differ in size.
        """
        rows = torch.as_tensor(indices)
        if rows.ndim != 1 or rows.numel() == 0 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(f"indices have to be a non-empty row of integers, not {rows.dtype} {tuple(rows.shape)}")
        if rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(f"indices have to be from 0 to {len(self) - 1}, not {rows.min()} to {rows.max()}")
        images, labels = torch.empty(0, dtype=torch.uint8), torch.empty(len(rows), dtype=torch.int64)
        for place, row in enumerate(rows.tolist()):
            label, raw = self._read(row)
            image = decode_tensor(bytes(raw), self._name(row))
            if place == 0:
                images = torch.empty((len(rows), *image.shape), dtype=torch.uint8)
            if image.shape != images.shape[1:]:
                found, first = tuple(image.shape[1:]), tuple(images.shape[2:])
                raise ValueError(f"{self._name(row)} has (height, width) {found}, the first one asked for {first}")
            images[place], labels[place] = image, label
        return images, labels


def write_records(path: str | Path, images: Iterable[bytes], labels: Iterable[int]) -> None:
    """Writes JPEG or PNG files and their classes to the .rec file `path` and the .idx beside it; keys count from 0.

    Both are written to a temporary name, then renamed, one record at a time: `images` may be a generator. Raises
    `ValueError` for a name without .rec, no images, another kind of file, more images than labels or the reverse, and
    a label that is not a whole number from 0 to 2^24 - 1; then nothing has changed on the disk.
    """
    path = Path(path)
    if path.suffix != ".rec":
        raise ValueError(f"the file of records has to be called something.rec, not {path.name}")
    lines, offset = [], 0
    with open_atomic(path) as stream:
        for key, (image, label) in enumerate(itertools.zip_longest(images, labels)):
            if image is None or label is None:
                raise ValueError(f"there have to be as many labels as images, one of them ends after {key}")
            if not is_encoded(image):
                raise ValueError(f"image {key} has to be the bytes of a JPEG or PNG file, not {image[:8]!r} ...")
            if not 0 <= label < LABEL_LIMIT or label != int(label):
                raise ValueError(f"label {key} has to be a whole number from 0 to {LABEL_LIMIT - 1}, not {label}")
            lines.append(f"{key}\t{offset}\n")
            offset += stream.write(encode_record(_HEADER.pack(0, label, key, 0) + image))
        if not lines:
            raise ValueError("there has to be at least one image to write")
        # records without an index are scanned: at no moment does an index lie beside records that are not its own
        path.with_suffix(".idx").unlink(missing_ok=True)
    write_atomic(path.with_suffix(".idx"), "".join(lines).encode())
