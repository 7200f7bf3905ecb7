"""Face sets of any size on the reader's disk, as data sets of PyTorch: `open_faces` and the records of MXNet.

    faces = open_faces("ms1m-retinaface-t1")            # a .rec file, a folder with train.rec, tars, a zip, ...
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
import re
import warnings
from collections.abc import Callable, Collection
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from reprolib.data.archives import FaceArchives
from reprolib.data.facebin import FacePairs, load_facebin
from reprolib.data.faceimages import FaceImages
from reprolib.data.files import DataCorrupted, MappedFile, several
from reprolib.data.folders import FaceFolder, FaceList
from reprolib.data.lmdb_sets import FaceLmdb
from reprolib.data.parquet import FaceParquet, load_parquet_pairs
from reprolib.data.recordio import LABEL_LIMIT, Record, first_labels, read_index, read_record, scan_records

_BLOCK = 2**18
_PROPERTY = re.compile(r"\ufeff?\s*([1-9]\d{0,7})(?:[,\s]+\d{1,5}){0,3}\s*")


class FaceRecords(FaceImages):
    """The images of a .rec file, in the order of its .idx file, or of the file itself where there is none.

    `path` is the file, or a folder with train.rec. An .idx of the same name gives the keys; without one the records are
    scanned. A file `property` beside it, whose first line begins with the number of classes, is read. The file is
    mapped, not read. Everything raises `DataCorrupted` for a file that is cut off, damaged or contradicts itself, and
    `OSError` for one that cannot be opened; labels are there even if images are not.
    """

    def __init__(self, path: str | Path, skip: Collection[int] = (), index: str | Path | None = None) -> None:
        super().__init__(path, skip, index)
        if self.path.is_dir():
            self.path = self.path / "train.rec"

    @cached_property
    def _file(self) -> MappedFile:
        file = MappedFile(self.path)
        file.read_at_random()
        return file

    def _read_ahead(self) -> None:
        self._file.read_at_random(False)

    @property
    def _bytes(self) -> memoryview:
        return self._file.view

    def _files(self) -> list[Path]:
        beside = (self.path.with_suffix(".idx"), self.path.with_name("property"))
        return [self.path, *(path for path in beside if path.is_file())]

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

    @cached_property
    def _places(self) -> np.ndarray:
        return self._index[1][self._images]

    def _label(self, row: int, value: float) -> int:
        limit = self._property or LABEL_LIMIT
        if not float(value).is_integer() or not 0 <= value < limit:
            raise DataCorrupted(
                f"{self._name(row)} has the label {value}, allowed are whole numbers from 0 to {limit - 1}"
            )
        return int(value)

    def _read(self, row: int) -> tuple[int, bytes]:
        record = self._record(self._images[row])
        label = self._label(row, record.labels[0])
        if "labels" in self.__dict__ and label != self.labels[row]:
            raise DataCorrupted(f"{self._name(row)} has the label {label}, its identity {self.labels[row]}")
        return label, bytes(record.image)

    @cached_property
    def labels(self) -> torch.Tensor:  # type: ignore[override]
        """Class of each image, int64 (N,), as stored: from both ends of each identity, else from all records."""
        return torch.from_numpy(self._indexed(lambda: {"labels": self._all_labels()})["labels"])

    def _all_labels(self) -> np.ndarray:
        values = self._labels_of_identities()
        if values is None:
            self._file.read_at_random(False)
            values = self._first_labels(self._images)
            self._file.read_at_random()
        wrong = ~((values >= 0) & (values < (self._property or LABEL_LIMIT)) & (values == np.floor(values)))
        for row in np.flatnonzero(wrong).tolist():
            # a record that is damaged says so itself
            values[row] = self._label(row, self._record(self._images[row]).labels[0])
        return values.astype(np.int64)

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


def exact_stop(value: float, keys: np.ndarray, has_image: Callable[[int], bool]) -> int:
    """The end of the keys of images that a header states as `value`, a float32, which from 2^24 on is rounded.

    The first key within half a step of `value` whose record has no image; `has_image` is asked by place in `keys`.
    """
    near = np.flatnonzero(np.abs(keys - value) <= np.spacing(np.float32(value)) / 2)
    ends = (int(keys[place]) for place in near[np.argsort(keys[near])] if not has_image(int(place)))
    return next(ends, int(min(value, 2.0**62)))


def open_faces(
    path: str | Path, skip: Collection[int] | Collection[str] = (), index: str | Path | None = None
) -> FaceImages:
    """The face set at `path`, by its name and contents.

    A .rec file or a folder with train.rec; .tar files (also compressed) or a .zip, several as `set-*.tar`, as
    `set-{000..012}.tar` or as their folder; .parquet files likewise; an LMDB (a folder with data.mdb, or a .lmdb or
    .mdb file); a .lst or .tsv list; else a folder with one folder a class. `skip` and `index` as `FaceImages` has them.
    """
    path = Path(path)
    if path.suffix == ".rec" or (path / "train.rec").is_file():
        return FaceRecords(path, skip, index)  # type: ignore[arg-type]
    if (path / "data.mdb").is_file() or path.suffix in (".lmdb", ".mdb"):
        return FaceLmdb(path, skip, index)
    if path.suffix in (".lst", ".tsv"):
        return FaceList(path, skip, index)
    for kind in (FaceArchives, FaceParquet):
        if several(path, kind.suffixes):
            return kind(path, skip, index)
    return FaceFolder(path, skip, index)


def open_pairs(path: str | Path) -> FacePairs:
    """The verification pairs at `path`: a .bin file of insightface, or .parquet files with image1, image2 and label."""
    path = Path(path)
    return load_parquet_pairs(path) if several(path, FaceParquet.suffixes) else load_facebin(path)
