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

import mmap
import os
import re
import warnings
from abc import abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import cached_property
from pathlib import Path

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
    """Images and the class of each: `len`, `labels`, `num_classes`, `image`, `load`, `damaged`; item i is both of i.

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

    def _left(self, keys: Sequence[int] | Sequence[str] | np.ndarray) -> np.ndarray:
        """Rows of `keys` without those to skip."""
        kept = np.array([key not in self.skip for key in keys], bool) if self.skip else np.ones(len(keys), bool)
        if (~kept).sum() != len(self.skip):
            missing = self.skip - {key for key in keys if key in self.skip}
            raise ValueError(f"skip must hold keys of images in {self.path}, got {sorted(missing, key=str)[0]!r}")
        return np.flatnonzero(kept)

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
        """Image `i` of 0 .. N - 1 as uint8 (3, H, W), RGB; raises `ValueError` for another index."""
        return self.load([i])[0][0]

    def load(self, indices: Sequence[int] | np.ndarray | torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Images uint8 (n, 3, H, W), RGB, and labels int64 (n,) at `indices` (n,) of 0 .. N - 1.

        Raises `ValueError` for no or other indices and for images that differ in size.
        """
        rows = torch.as_tensor(indices)
        if rows.ndim != 1 or rows.numel() == 0 or rows.is_floating_point() or rows.dtype == torch.bool:
            raise ValueError(f"indices must be a non-empty row of integers, got {rows.dtype} {tuple(rows.shape)}")
        if rows.min() < 0 or rows.max() >= len(self):
            raise ValueError(f"indices must be from 0 to {len(self) - 1}, got {rows.min()} to {rows.max()}")
        items = self.__getitems__(rows.tolist())
        first = items[0][0].shape
        for row, (image, _) in zip(rows.tolist(), items, strict=True):
            if image.shape != first:
                found, wanted = tuple(image.shape[1:]), tuple(first[1:])
                raise ValueError(f"{self._name(row)} has (height, width) {found}, the first one asked for {wanted}")
        return torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])

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
    mapped, not read, and `close`, also at the end of a `with`, lets go of it. Everything raises `DataCorrupted` for a
    file that is cut off, damaged or contradicts itself, and `OSError` for one that cannot be opened; labels are there
    even if images are not.
    """

    def __init__(self, path: str | Path, skip: Collection[int] = ()) -> None:
        super().__init__(path, skip)
        if self.path.is_dir():
            self.path = self.path / "train.rec"

    def __enter__(self) -> FaceRecords:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; whatever is asked for next opens it again."""
        self.__dict__.pop("_mapped", None)

    @cached_property
    def _mapped(self) -> mmap.mmap:
        return self._map("MADV_RANDOM")

    def _map(self, advice: str) -> mmap.mmap:
        with open(self.path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise DataCorrupted(f"{self.path} is empty")
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        # without it each access reads many pages around its own
        if hasattr(mmap, advice):
            mapped.madvise(getattr(mmap, advice))
        return mapped

    def _checked(self, mapped: mmap.mmap) -> memoryview:
        """The mapped bytes; to touch those of a file that was cut off since would end the process by SIGBUS."""
        if mapped.size() < len(mapped):
            raise DataCorrupted(f"{self.path} was cut off to {mapped.size()} bytes while it was open")
        return memoryview(mapped)

    def _record(self, offset: int, name: str) -> Record:
        return read_record(self._checked(self._mapped), int(offset), name)

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, Path]:
        """Keys of all records, their offsets, and the file that says so."""
        path, buffer = self.path.with_suffix(".idx"), self._checked(self._mapped)
        source = path if path.is_file() else self.path
        keys, offsets = scan_records(buffer, source) if source == self.path else read_index(source, len(buffer))
        if keys.size == 0:
            raise DataCorrupted(f"{source} names no record")
        for values, what in ((keys, "key"), (offsets, "offset")):
            values = np.sort(values)
            if (twice := values[1:][values[1:] == values[:-1]]).size:
                raise DataCorrupted(f"{source} has the {what} {twice[0]} more than once")
        last = int(offsets.argmax())
        end = self._record(offsets[last], f"record {keys[last]} of {self.path}").end
        if end != len(buffer):
            warnings.warn(f"{source} names {len(keys)} records, behind which {self.path} goes on", stacklevel=2)
        return keys, offsets, source

    @cached_property
    def _header(self) -> tuple[int, int] | None:
        """Where the keys of the images and those of the identities end, if record 0 is a header that says so."""
        keys, offsets, _ = self._index
        if not (place := np.flatnonzero(keys == 0)).size:
            return None
        record = self._record(offsets[place[0]], f"record 0 of {self.path}")
        if record.image or len(record.labels) < 2:
            return None
        stops = record.labels[:2].astype(float)
        if not (np.isfinite(stops).all() and stops[0].is_integer() and 2 <= stops[0] <= stops[1]):
            raise DataCorrupted(
                f"record 0 of {self.path} is a header with the labels {stops[0]:g} and {stops[1]:g} instead of the "
                "ends of images and identities"
            )
        return exact_stop(stops[0], keys, self._has_image), int(stops[1])

    def _has_image(self, place: int) -> bool:
        keys, offsets, _ = self._index
        return len(self._record(offsets[place], f"record {keys[place]} of {self.path}").image) > 0

    @cached_property
    def _images(self) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the images and their offsets."""
        keys, offsets, source = self._index
        if self._header is None:
            last = int(keys.argmax())
            record = self._record(offsets[last], f"record {keys[last]} of {self.path}")
            # the identities have the highest keys, where a header is missing that counts the images
            if not record.image and len(record.labels) > 1 and int(keys[last]) not in self.skip:
                raise DataCorrupted(f"record {keys[last]} of {self.path} has no image, and record 0 is not a header")
        else:
            stop = self._header[0]
            rows = np.flatnonzero((keys > 0) & (keys < stop))
            if len(rows) < stop - 1:
                found = np.sort(keys[rows])
                gaps = np.flatnonzero(found != np.arange(1, len(found) + 1))
                missing = int(gaps[0] if gaps.size else len(found)) + 1
                raise DataCorrupted(f"{source} lacks the key {missing}, the images have the keys 1 to {stop - 1}")
            keys, offsets = keys[rows], offsets[rows]
        kept = self._left(keys.tolist() if self.skip else keys)
        return keys[kept], offsets[kept]

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
        return len(self._images[0])

    def key(self, row: int) -> int:
        """The key of image `row` in the .idx file."""
        return int(self._images[0][row])

    def _name(self, row: int) -> str:
        return f"record {self._images[0][row]} of {self.path}"

    def _place(self, row: int) -> int:
        return int(self._images[1][row])

    def _label(self, value: float, row: int) -> int:
        limit = self._property or LABEL_LIMIT
        if not float(value).is_integer() or not 0 <= value < limit:
            raise DataCorrupted(
                f"{self._name(row)} has the label {value}, allowed are whole numbers from 0 to {limit - 1}"
            )
        return int(value)

    def _read(self, row: int) -> tuple[int, bytes]:
        name = self._name(row)
        record = self._record(self._images[1][row], name)
        raw = bytes(record.image)
        if not is_encoded(raw):
            raise DataCorrupted(f"{name} holds neither a JPEG nor a PNG file")
        label = self._label(record.labels[0], row)
        if "labels" in self.__dict__ and label != self.labels[row]:
            raise DataCorrupted(f"{name} has the label {label}, its identity {self.labels[row]}")
        return label, raw

    @cached_property
    def labels(self) -> torch.Tensor:  # type: ignore[override]
        """Class of each image, int64 (N,), as stored: from both ends of each identity, else from all records."""
        offsets = self._images[1]
        values = self._labels_of_identities()
        if values is None:
            values = self._first_labels(offsets)
        wrong = ~((values >= 0) & (values < (self._property or LABEL_LIMIT)) & (values == np.floor(values)))
        for row in np.flatnonzero(wrong).tolist():
            # a record that is damaged says so itself
            values[row] = self._label(self._record(offsets[row], self._name(row)).labels[0], row)
        return torch.from_numpy(values.astype(np.int64))

    def _first_labels(self, offsets: np.ndarray) -> np.ndarray:
        """First label of the records at `offsets`, NaN for those that are damaged."""
        values, order = np.empty(len(offsets), np.float32), np.argsort(offsets)
        mapped = self._map("MADV_SEQUENTIAL")
        words = np.frombuffer(mapped, "<u4", len(mapped) // 4)
        for begin in range(0, len(order), _BLOCK):
            self._checked(mapped)
            rows = order[begin : begin + _BLOCK]
            values[rows] = first_labels(words, offsets[rows])
        return values

    def _labels_of_identities(self) -> np.ndarray | None:
        """Label of each image from the first and the last image of its identity; None unless ranges and labels fit."""
        if self._header is None or self._header[1] - self._header[0] > len(self._index[0]):
            return None
        (stop, end), (keys, offsets, _) = self._header, self._index
        where = np.full(end, -1, np.int64) if end <= len(keys) + 1 else np.empty(0, np.int64)
        inside = (keys >= 0) & (keys < len(where))
        where[keys[inside]] = offsets[inside]
        if not len(where) or end == stop or (where[1:] < 0).any():
            return None
        ranges = np.array(
            [self._record(where[k], f"record {k} of {self.path}").labels[:2].tolist() for k in range(stop, end)]
        )
        if ranges.ndim != 2 or ranges.shape[1] != 2 or not np.isfinite(ranges).all() or stop >= LABEL_LIMIT:
            return None
        begins, ends = ranges.astype(np.int64).T
        # the ranges have to follow one another, whatever the order of the identities
        order = np.argsort(begins)
        begins, ends = begins[order], ends[order]
        if begins[0] != 1 or ends[-1] != stop or (begins[1:] != ends[:-1]).any() or (begins >= ends).any():
            return None
        first, last = (self._first_labels(where[k]) for k in (begins, ends - 1))
        if not np.array_equal(first, last):
            return None
        return first[np.searchsorted(ends, self._images[0], side="right")]

    @property
    def num_classes(self) -> int:
        """Classes according to the file `property`, else the highest label + 1."""
        return self._property or int(self.labels.max()) + 1


def exact_stop(value: float, keys: np.ndarray, has_image: Callable[[int], bool]) -> int:
    """The end of the keys of images that a header states as `value`, a float32, which from 2^24 on is rounded.

    The first key within half a step of `value` whose record has no image; `has_image` is asked by place in `keys`.
    """
    if value < LABEL_LIMIT:
        return int(value)
    step = float(np.spacing(np.float32(value)))
    near = np.flatnonzero((keys >= value - step) & (keys <= value + step))
    for place in near[np.argsort(keys[near])]:
        if not has_image(int(place)):
            return int(keys[place])
    return int(min(value, 2.0**62))


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
        kept = self._left([os.fsdecode(name) for name in names] if self.skip else range(len(names)))
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
