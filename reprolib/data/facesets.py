"""Face sets of any size on the reader's disk, as data sets of PyTorch: MXNet records and folders of images.

    faces = open_faces("ms1m-retinaface-t1")            # a .rec file, a folder with train.rec, or one folder a person
    loader = DataLoader(faces, batch_size=128, shuffle=True, num_workers=4)

Nothing but an index of numbers stays in memory, files are opened when first needed, in each worker anew, and a pickle
holds the path only. Pixels are uint8, (3, H, W), RGB.

In the record sets of insightface record 0 is no image but a header: its first label is one past the key of the last
image, its second one past the last record. Behind the images lie records without an image, one an identity, with the
range of its keys. The format has no checksum: a label or a pixel that was changed to another possible one cannot be
noticed, nor can the end of a file that lost whole records together with its .idx and header; other damage is.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from reprolib.data.files import DataCorrupted
from reprolib.data.pixels import decode_tensor, is_encoded
from reprolib.data.recordio import (
    LABEL_LIMIT,
    LENGTH_LIMIT,
    Record,
    first_labels,
    read_index,
    read_record,
    scan_records,
)

_BLOCK = 2**18
_PROPERTY = re.compile(r"\ufeff?\s*([1-9]\d{0,7})(?:[,\s]+\d{1,5}){0,3}\s*")
_SUFFIXES = (".jpg", ".jpeg", ".png")


class FaceImages(Dataset[tuple[torch.Tensor, int]]):
    """Images and the class of each: `len`, `labels`, `num_classes`, `image`, `damaged`; item i is both of i.

    `skip` are the keys of images to leave out, as `damaged` finds them: whole numbers for records, relative paths for
    folders. Raises `ValueError` for a key that is not there.
    """

    def __init__(self, path: str | Path, skip: Collection[int] | Collection[str] = ()) -> None:
        self.path = Path(path)
        self.skip = frozenset(skip)

    def __getstate__(self) -> dict[str, object]:
        return {"path": self.path, "skip": self.skip}

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def labels(self) -> torch.Tensor:
        """Class of each image, int64 (N,); no image is decoded."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes, at least the highest label + 1."""

    @abstractmethod
    def key(self, row: int) -> int | str:
        """What names image `row` on the disk."""

    @abstractmethod
    def _name(self, row: int) -> str: ...

    @abstractmethod
    def _place(self, row: int) -> int:
        """Where image `row` lies on the disk: files are read in this order."""

    @abstractmethod
    def _read(self, row: int) -> tuple[int, bytes]:
        """Label and encoded image of image `row`."""

    def _left(self, keys: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Rows of `keys` without those to skip."""
        if not self.skip:
            return np.arange(len(keys))
        if missing := self.skip.difference(keys):
            raise ValueError(f"skip must hold keys of images in {self.path}, got {sorted(missing, key=str)[0]!r}")
        return np.flatnonzero([key not in self.skip for key in keys])

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if not 0 <= i < len(self):
            raise IndexError(f"i must be from 0 to {len(self) - 1}, got {i}")
        label, raw = self._read(i)
        return decode_tensor(raw, self._name(i)), label

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        """The items at `indices`, in that order, read in the order in which they lie on the disk."""
        items = {i: self[i] for i in sorted(indices, key=self._place)}
        return [items[i] for i in indices]

    def image(self, i: int) -> torch.Tensor:
        """Image `i` of 0 .. N - 1 as uint8 (3, H, W), RGB; raises `IndexError` for another index."""
        return self[i][0]

    def damaged(self, pixels: bool = False) -> dict[int | str, str]:
        """Key of each image that cannot be read, and why; with `pixels` every image is decoded for it.

        `type(self)(path, skip=...)` is the set without them.
        """
        found: dict[int | str, str] = {}
        for row in sorted(range(len(self)), key=self._place):
            try:
                _, raw = self._read(row)
                if pixels:
                    decode_tensor(raw, self._name(row))
            except DataCorrupted as error:
                found[self.key(row)] = str(error)
        return found


class FaceRecords(FaceImages):
    """The images of a .rec file, in the order of its .idx file, or of the file itself where there is none.

    `path` is the file, or a folder with train.rec. An .idx of the same name gives the keys; without one the records are
    scanned. A file `property` beside it, whose first line begins with the number of classes, is read. The file is
    mapped, not read. Everything raises `DataCorrupted` for a file that is cut off, damaged or contradicts itself, and
    `OSError` for one that cannot be opened; labels are there even if images are not.
    """

    def __init__(self, path: str | Path, skip: Collection[int] = ()) -> None:
        super().__init__(path, skip)
        if self.path.is_dir():
            self.path = self.path / "train.rec"

    @cached_property
    def _mapped(self) -> mmap.mmap:
        with open(self.path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise DataCorrupted(f"{self.path} is empty")
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        _advise(mapped, "MADV_RANDOM")
        return mapped

    @property
    def _bytes(self) -> memoryview:
        """The mapped bytes; to touch those of a file that was cut off since would end the process by SIGBUS."""
        if self._mapped.size() < len(self._mapped):
            raise DataCorrupted(f"{self.path} was cut off to {self._mapped.size()} bytes while it was open")
        return memoryview(self._mapped)

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, Path]:
        """Keys of all records, their offsets, and the file that says so."""
        source = self.path.with_suffix(".idx")
        if source.is_file():
            keys, offsets = read_index(source, len(self._bytes))
        else:
            keys, offsets = scan_records(self._bytes, source := self.path)
        for values, what in ((keys, "key"), (offsets, "offset")):
            values = np.sort(values)
            if (twice := values[1:][values[1:] == values[:-1]]).size:
                raise DataCorrupted(f"{source} has the {what} {twice[0]} more than once")
        return keys, offsets, source

    def _record(self, place: int) -> Record:
        """The record at `place` of the index."""
        keys, offsets, _ = self._index
        return read_record(self._bytes, int(offsets[place]), f"record {keys[place]} of {self.path}")

    @cached_property
    def _header(self) -> tuple[int, int] | None:
        """Where the keys of the images and those of the identities end, if record 0 is a header that says so."""
        keys = self._index[0]
        if not (place := np.flatnonzero(keys == 0)).size:
            return None
        record = self._record(place[0])
        if record.image or len(record.labels) < 2:
            return None
        stop, end = record.labels[:2].astype(float).tolist()
        if not (math.isfinite(end) and stop.is_integer() and 2 <= stop <= end):
            raise DataCorrupted(
                f"record 0 of {self.path} is a header with the labels {stop:g} and {end:g} instead of the ends of "
                "images and identities"
            )
        return exact_stop(stop, keys, lambda place: len(self._record(place).image) > 0), int(end)

    @cached_property
    def _images(self) -> np.ndarray:
        """Places of the images in the index."""
        keys, offsets, source = self._index
        if self._record(int(offsets.argmax())).end != len(self._bytes):
            warnings.warn(f"{source} names {len(keys)} records, behind which {self.path} goes on", stacklevel=2)
        places = np.arange(len(keys))
        if self._header is None:
            last = int(keys.argmax())
            record = self._record(last)
            # the identities have the highest keys, where a header is missing that counts the images
            if not record.image and len(record.labels) > 1 and int(keys[last]) not in self.skip:
                raise DataCorrupted(f"record {keys[last]} of {self.path} has no image, and record 0 is not a header")
        else:
            stop = self._header[0]
            places = np.flatnonzero((keys > 0) & (keys < stop))
            if len(places) < stop - 1:
                missing = np.setdiff1d(np.arange(1, len(places) + 2), keys[places])[0]
                raise DataCorrupted(f"{source} lacks the key {missing}, the images have the keys 1 to {stop - 1}")
        return places[self._left(keys[places])]

    @cached_property
    def _property(self) -> int | None:
        """Number of classes that the file `property` states in its first line."""
        path = self.path.with_name("property")
        if not path.is_file():
            return None
        with open(path, encoding="utf-8", errors="replace") as stream:
            text = stream.readline(100)
        if (match := _PROPERTY.fullmatch(text)) is None:
            raise DataCorrupted(f"{path} holds {text!r} instead of num_classes,height,width")
        return int(match[1])

    def __len__(self) -> int:
        return len(self._images)

    def key(self, row: int) -> int:
        """The key of image `row` in the .idx file."""
        return int(self._index[0][self._images[row]])

    def _name(self, row: int) -> str:
        return f"record {self.key(row)} of {self.path}"

    def _place(self, row: int) -> int:
        return int(self._index[1][self._images[row]])

    def _label(self, row: int, value: float) -> int:
        limit = self._property or LABEL_LIMIT
        if not float(value).is_integer() or not 0 <= value < limit:
            raise DataCorrupted(
                f"{self._name(row)} has the label {value}, allowed are whole numbers from 0 to {limit - 1}"
            )
        return int(value)

    def _read(self, row: int) -> tuple[int, bytes]:
        record = self._record(self._images[row])
        raw = bytes(record.image)
        if not is_encoded(raw):
            raise DataCorrupted(f"{self._name(row)} holds neither a JPEG nor a PNG file")
        label = self._label(row, record.labels[0])
        if "labels" in self.__dict__ and label != self.labels[row]:
            raise DataCorrupted(f"{self._name(row)} has the label {label}, its identity {self.labels[row]}")
        return label, raw

    @cached_property
    def labels(self) -> torch.Tensor:  # type: ignore[override]
        """Class of each image, int64 (N,), as stored: from both ends of each identity, else from all records."""
        values = self._labels_of_identities()
        if values is None:
            _advise(self._mapped, "MADV_SEQUENTIAL")
            values = self._first_labels(self._images)
            _advise(self._mapped, "MADV_RANDOM")
        wrong = ~((values >= 0) & (values < (self._property or LABEL_LIMIT)) & (values == np.floor(values)))
        for row in np.flatnonzero(wrong).tolist():
            # a record that is damaged says so itself
            values[row] = self._label(row, self._record(self._images[row]).labels[0])
        return torch.from_numpy(values.astype(np.int64))

    def _first_labels(self, places: np.ndarray) -> np.ndarray:
        """First label of the records at `places` of the index, NaN for those that are damaged."""
        offsets = self._index[1][places]
        values, order = np.empty(len(offsets), np.float32), np.argsort(offsets)
        for begin in range(0, len(order), _BLOCK):
            rows, buffer = order[begin : begin + _BLOCK], self._bytes
            values[rows] = first_labels(np.frombuffer(buffer, "<u4", len(buffer) // 4), offsets[rows])
        return values

    def _labels_of_identities(self) -> np.ndarray | None:
        """Label of each image from the first and the last image of its identity; None unless ranges and labels fit."""
        keys = self._index[0]
        if self._header is None or self._header[1] != len(keys) or self._header[0] >= LABEL_LIMIT:
            return None
        stop, end = self._header
        # the place of each key, if none is missing
        place = np.argsort(keys)
        if stop == end or keys[place[-1]] != end - 1:
            return None
        labels = [self._record(k).labels for k in place[stop:]]
        ranges = np.array([pair[:2] for pair in labels if len(pair) > 1]).reshape(-1, 2)
        # they have to follow one another from 1 to `stop`, whatever the order of the identities
        begins, ends = ranges[np.argsort(ranges[:, 0])].T
        if not np.array_equal(np.append(begins, stop), np.append(1, ends)) or (begins >= ends).any():
            return None
        edges = begins.astype(np.int64), ends.astype(np.int64) - 1
        first, last = (self._first_labels(place[edge]) for edge in edges)
        if not np.array_equal(first, last):
            return None
        return first[np.searchsorted(edges[1], keys[self._images])]

    @property
    def num_classes(self) -> int:
        """Classes according to the file `property`, else the highest label + 1."""
        return self._property or int(self.labels.max()) + 1


def _advise(mapped: mmap.mmap, advice: str) -> None:
    """How the file will be read, where the system takes advice: without it each access reads pages around its own."""
    if hasattr(mmap, advice):
        mapped.madvise(getattr(mmap, advice))


def exact_stop(value: float, keys: np.ndarray, has_image: Callable[[int], bool]) -> int:
    """The end of the keys of images that a header states as `value`, a float32, which from 2^24 on is rounded.

    The first key within half a step of `value` whose record has no image; `has_image` is asked by place in `keys`.
    """
    near = np.flatnonzero(np.abs(keys - value) <= np.spacing(np.float32(value)) / 2)
    ends = (int(keys[place]) for place in near[np.argsort(keys[near])] if not has_image(int(place)))
    return next(ends, int(min(value, 2.0**62)))


class FaceFolder(FaceImages):
    """The JPEG and PNG files in the folder `path`, one sub-folder a class, in alphabetical order, as in ImageFolder.

    `classes` are the names of the sub-folders. Raises `ValueError` for a folder without images.
    """

    @cached_property
    def _found(self) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
        """Classes; relative paths as fixed-width UTF-8, which takes a tenth of a list of texts; label of each."""
        classes: list[str] = []
        names: list[bytes] = []
        labels: list[int] = []
        for folder in sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir()):
            files = [
                os.path.relpath(os.path.join(base, file), self.path)
                for base, _, found in os.walk(self.path / folder)
                for file in found
                if file.lower().endswith(_SUFFIXES)
            ]
            if files:
                labels += [len(classes)] * len(files)
                names += [os.fsencode(file) for file in sorted(files)]
                classes.append(folder)
        if not names:
            raise ValueError(f"path must hold one folder a class with JPEG or PNG files, got {self.path}")
        kept = self._left([os.fsdecode(name) for name in names] if self.skip else names)
        return tuple(classes), np.array(names)[kept], np.array(labels)[kept]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their labels."""
        return self._found[0]

    def __len__(self) -> int:
        return len(self._found[1])

    @property
    def labels(self) -> torch.Tensor:
        """Class of each image, int64 (N,): the place of its folder in `classes`."""
        return torch.from_numpy(self._found[2])

    @property
    def num_classes(self) -> int:
        """Number of sub-folders with images."""
        return len(self.classes)

    def key(self, row: int) -> str:
        """The path of image `row`, relative to the folder."""
        return os.fsdecode(bytes(self._found[1][row]))

    def _name(self, row: int) -> str:
        return str(self.path / self.key(row))

    def _place(self, row: int) -> int:
        return row

    def _read(self, row: int) -> tuple[int, bytes]:
        name = self._name(row)
        with open(name, "rb") as stream:
            raw = stream.read(LENGTH_LIMIT + 1)
        if len(raw) > LENGTH_LIMIT or not is_encoded(raw):
            raise DataCorrupted(f"{name} is neither a JPEG nor a PNG file of at most {LENGTH_LIMIT} bytes")
        return int(self._found[2][row]), raw


def open_faces(path: str | Path, skip: Collection[int] | Collection[str] = ()) -> FaceRecords | FaceFolder:
    """The face set at `path`: records for a .rec file or a folder with train.rec, else a folder with one a class."""
    path = Path(path)
    if path.suffix == ".rec" or (path / "train.rec").is_file():
        return FaceRecords(path, skip)  # type: ignore[arg-type]
    return FaceFolder(path, skip)
