"""What every face set on the reader's disk can do, whatever its format, and how it is read in the order of the disk."""

from __future__ import annotations

import json
import os
import warnings
import zipfile
from abc import abstractmethod
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import Dataset, IterableDataset, get_worker_info

from reprolib._checks import check_count
from reprolib.data.files import DataCorrupted, open_atomic, several
from reprolib.data.pixels import decode_tensor, is_encoded
from reprolib.data.recordio import LENGTH_LIMIT

BLOCK = 1024
# the names of classes that have none
NUMBERS = np.array([], "S1")


class FaceImages(Dataset[tuple[torch.Tensor, int]]):
    """Images and the class of each: `len`, `labels`, `num_classes`, `image`, `batches`, `stream`; item i is both of i.

    `skip` are the keys of images to leave out, as `damaged` finds them: whole numbers for records, texts for the
    others. `index` is a file for what takes long to find out of a large set, labels above all: it is read if it was
    made of these files, as their sizes and times say, else written. Raises `ValueError` for a key that is not there.
    """

    # what a copy in another process begins with: the rest is found there
    given: ClassVar[tuple[str, ...]] = ("path", "skip", "index")

    def __init__(
        self,
        path: str | Path,
        skip: Collection[int] | Collection[str] = (),
        index: str | Path | None = None,
    ) -> None:
        self.path = Path(path)
        self.skip = frozenset(skip)
        self.index = index

    def __getstate__(self) -> dict[str, object]:
        return {name: getattr(self, name) for name in self.given}

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

    def class_name(self, label: int) -> str:
        """What the class is called on the disk: its number, unless the format has names."""
        return str(label)

    @abstractmethod
    def _name(self, row: int) -> str: ...

    @abstractmethod
    def _read(self, row: int) -> tuple[int, bytes]:
        """Label and encoded image of image `row`."""

    @cached_property
    def _places(self) -> np.ndarray:
        """Where each image lies on the disk: files are read in this order."""
        return np.arange(len(self))

    @cached_property
    def _groups(self) -> np.ndarray:
        """What is read as one piece, in the order of `_places`: its images have the same number."""
        return np.arange(len(self)) // BLOCK

    def _read_ahead(self) -> None:
        """Called before the set is read in the order of the disk: advice for random reading no longer holds."""

    def rereads(self, rows: np.ndarray) -> float:
        """How often the files are read, all in all, if images are read in the order of `rows`; 1 where jumping is free.

        Row groups of parquet are read whole, compressed tars from their beginning.
        """
        return 1.0

    def _files(self) -> list[Path]:
        """The files that `index` depends on."""
        return [self.path]

    def _indexed(self, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """What `make` returns, from the file `index` if that is of the same files."""
        if self.index is None:
            return make()
        states = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in self._files()]
        made_of = json.dumps([type(self).__name__, states, sorted(map(str, self.skip))])
        if os.path.exists(self.index):
            try:
                with np.load(self.index) as stored:
                    if str(stored["made_of"]) == made_of:
                        return {name: stored[name] for name in stored.files if name != "made_of"}
            except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
                raise DataCorrupted(f"index must be a file that was made as one, got {self.index} ({error})") from error
        arrays = make()
        with open_atomic(Path(self.index)) as stream:
            np.savez(stream, **{"made_of": np.array(made_of), **arrays})  # type: ignore[arg-type]
        return arrays

    def _left(self, keys: Sequence[Any] | np.ndarray) -> np.ndarray:
        """Rows of `keys` without those to skip."""
        if not self.skip:
            return np.arange(len(keys))
        if missing := self.skip.difference(keys):
            raise ValueError(f"skip must hold keys of images in {self.path}, got {sorted(missing, key=str)[0]!r}")
        return np.flatnonzero([key not in self.skip for key in keys])

    def encoded(self, i: int) -> tuple[bytes, int]:
        """The JPEG or PNG file of image `i` as it is stored, and its label; raises as `image` does."""
        if not 0 <= i < len(self):
            raise IndexError(f"i must be from 0 to {len(self) - 1}, got {i}")
        label, raw = self._read(i)
        if len(raw) > LENGTH_LIMIT or not is_encoded(raw):
            raise DataCorrupted(f"{self._name(i)} holds neither a JPEG nor a PNG file of at most {LENGTH_LIMIT} bytes")
        return raw, label

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        raw, label = self.encoded(i)
        return decode_tensor(raw, self._name(i)), label

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[torch.Tensor, int]]:
        """The items at `indices`, in that order, read in the order in which they lie on the disk."""
        inside = [i for i in indices if 0 <= i < len(self)]
        if len(inside) < len(indices):
            self[next(i for i in indices if i not in inside)]
        items = {i: self[i] for i in sorted(set(inside), key=self._places.__getitem__)}
        return [items[i] for i in indices]

    def image(self, i: int) -> torch.Tensor:
        """Image `i` of 0 .. N - 1 as uint8 (3, H, W), RGB; raises `IndexError` for another index."""
        return self[i][0]

    def batches(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """All images in order, `size` at a time: uint8 (b, 3, H, W), RGB, and int64 (b,); the last b may be smaller.

        Raises `ValueError` for a size below 1 and images that differ in size, `DataCorrupted` for one that is damaged.
        """
        check_count(size, "size")
        return (self._batch(range(i, min(i + size, len(self)))) for i in range(0, len(self), size))

    def _batch(self, rows: range) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = zip(*self.__getitems__(rows), strict=True)
        for row, image in zip(rows, images, strict=True):
            if image.shape != images[0].shape:
                found, first = (tuple(one.shape[1:]) for one in (image, images[0]))
                raise ValueError(f"{self._name(row)} has (height, width) {found}, one before it {first}")
        return torch.stack(images), torch.tensor(labels)

    def stream(
        self, seed: int | None = 0, *, buffer: int = 10_000, rank: int = 0, world: int = 1, skip_damaged: bool = False
    ) -> FaceStream:
        """The set as `FaceStream` reads it: in the order of the disk, shuffled on the way."""
        return FaceStream(self, seed, buffer=buffer, rank=rank, world=world, skip_damaged=skip_damaged)

    def damaged(self, pixels: bool = False) -> dict[int | str, str]:
        """Key of each image that cannot be read, and why; with `pixels` every image is decoded for it.

        `type(self)(path, skip=...)` is the set without them.
        """
        found: dict[int | str, str] = {}
        for row in np.argsort(self._places, kind="stable").tolist():
            try:
                raw, _ = self.encoded(row)
                if pixels:
                    decode_tensor(raw, self._name(row))
            except DataCorrupted as error:
                found[self.key(row)] = str(error)
        return found


class ScannedFaces(FaceImages):
    """A set that is looked through once: `_scan` finds where the images are, and everything else follows from it."""

    @abstractmethod
    def _scan(self) -> dict[str, np.ndarray]:
        """`labels` int64 (N,), -1 where there is none; `classes`, their names as bytes, none if they are numbers.

        And whatever else belongs to each image, in arrays of N rows. Names are arrays of bytes of one width: these
        take a tenth of a list of texts.
        """

    @abstractmethod
    def _keys(self, found: dict[str, np.ndarray]) -> list[str]:
        """The keys of all images in `found`, which has the form of what `_scan` returns."""

    @cached_property
    def _found(self) -> dict[str, np.ndarray]:
        """What `_scan` found, without the images to skip."""
        found = self._indexed(self._scan)
        return _rows(found, self._left(self._keys(found))) if self.skip else found

    def __len__(self) -> int:
        return len(self._found["labels"])

    @cached_property
    def labels(self) -> torch.Tensor:  # type: ignore[override]
        """Class of each image, int64 (N,), as stored; names are numbered in alphabetical order."""
        values = self._found["labels"]
        if (values < 0).any():
            self._label(int((values < 0).argmax()))
        return torch.from_numpy(values)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes in the order of their labels; empty if they are numbers."""
        return tuple(map(os.fsdecode, self._found["classes"].tolist()))

    @property
    def num_classes(self) -> int:
        """Number of names, else the highest label + 1."""
        return len(self._found["classes"]) or int(self.labels.max()) + 1

    def class_name(self, label: int) -> str:
        """The name of the class on the disk, else its number."""
        names = self._found["classes"]
        return os.fsdecode(bytes(names[label])) if len(names) else str(label)

    def key(self, row: int) -> str:
        """What names image `row` on the disk."""
        return self._keys(_rows(self._found, np.array([row])))[0]

    def _label(self, row: int) -> int:
        label = int(self._found["labels"][row])
        if label < 0:
            raise DataCorrupted(f"{self._name(row)} has no class, which must be a whole number from 0 on")
        return label


class FacesInFiles(ScannedFaces):
    """A set in one file or several: `path` is one, a folder of them, or a pattern, `set-*.tar`, `set-{00..12}.tar`."""

    suffixes: ClassVar[tuple[str, ...]]
    kind: ClassVar[str] = "files"

    def __init__(
        self, path: str | Path, skip: Collection[int] | Collection[str] = (), index: str | Path | None = None
    ) -> None:
        super().__init__(path, skip, index)
        self._paths = several(self.path, self.suffixes)
        if not self._paths:
            raise ValueError(f"path must name {self.kind} that end with {', '.join(self.suffixes)}, got {self.path}")

    def __setstate__(self, state: dict[str, Any]) -> None:
        # a copy in another process opens files of its own
        type(self).__init__(self, **state)

    def _files(self) -> list[Path]:
        return self._paths


def _rows(found: dict[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    return {name: values if name == "classes" else values[rows] for name, values in found.items()}


def numbered(labels: Sequence[str | None], where: str) -> tuple[np.ndarray, np.ndarray]:
    """Labels as int64 (N,), -1 for None, and the names of the classes if they are names: none if all are numbers.

    Raises `DataCorrupted` for a number that is not whole or below 0.
    """
    missing = np.array([label is None for label in labels])
    known = ["0" if label is None else label for label in labels]
    try:
        values = np.array(known, np.float64)
    except ValueError:
        coded = np.array([os.fsencode(label) for label in known])
        names, places = np.unique(coded[~missing], return_inverse=True)
        classes = np.full(len(known), -1, np.int64)
        classes[~missing] = places
        return classes, names
    if (wrong := ~((values >= 0) & (values < 2**53) & (values == np.floor(values)))).any():
        raise DataCorrupted(f"{where} must have whole numbers from 0 on as labels, got {known[int(wrong.argmax())]}")
    return np.where(missing, -1, values).astype(np.int64), NUMBERS


class FaceStream(IterableDataset[tuple[torch.Tensor, int]]):
    """The items of `faces` for one pass, read as they lie on the disk: for formats and disks where jumping is slow.

    Pieces of the set (row groups, compressed archives, else 1,024 images in a row) come in an order drawn from `seed`
    and the epoch; out of `buffer` encoded images one is drawn at a time. With `seed` None all come in the order of the
    disk. Of `world` processes number `rank` gets N // world images, no two the same, and shares them among the workers
    of its loader. With `skip_damaged` an image that cannot be read is left out with a warning. `set_epoch` before each
    pass; a loader with persistent workers does not hear of it.
    """

    def __init__(
        self,
        faces: FaceImages,
        seed: int | None = 0,
        *,
        buffer: int = 10_000,
        rank: int = 0,
        world: int = 1,
        skip_damaged: bool = False,
    ) -> None:
        check_count(buffer, "buffer")
        check_count(world, "world")
        check_count(rank, "rank", low=0, high=world - 1)
        self.faces, self.seed, self.buffer = faces, seed, buffer
        self.rank, self.world, self.skip_damaged = rank, world, skip_damaged
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The number of the pass that begins next, from which its order follows."""
        check_count(epoch, "epoch", low=0)
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.faces) // self.world

    def _rows(self) -> np.ndarray:
        """All rows in the order of this pass."""
        rows = np.argsort(self.faces._places, kind="stable")
        if self.seed is None:
            return rows
        edges = np.flatnonzero(np.diff(self.faces._groups)) + 1
        pieces = np.split(rows, edges)
        order = np.random.default_rng([self.seed, self.epoch]).permutation(len(pieces))
        return np.concatenate([pieces[k] for k in order])

    def __iter__(self) -> Iterator[tuple[torch.Tensor, int]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        count = len(self)
        begin, end = (self.rank * count + count * k // workers for k in (worker, worker + 1))
        self.faces._read_ahead()
        encoded = self._encoded(self._rows()[begin:end].tolist())
        if self.seed is not None:
            encoded = self._drawn(encoded, np.random.default_rng([self.seed, self.epoch, self.rank, worker]))
        for row, raw, label in encoded:
            try:
                yield decode_tensor(raw, self.faces._name(row)), label
            except DataCorrupted as error:
                self._left_out(error)

    def _encoded(self, rows: list[int]) -> Iterator[tuple[int, bytes, int]]:
        for row in rows:
            try:
                raw, label = self.faces.encoded(row)
            except DataCorrupted as error:
                self._left_out(error)
            else:
                yield row, raw, label

    def _left_out(self, error: DataCorrupted) -> None:
        if not self.skip_damaged:
            raise error
        warnings.warn(f"left out: {error}", stacklevel=3)

    def _drawn(
        self, items: Iterator[tuple[int, bytes, int]], generator: np.random.Generator
    ) -> Iterator[tuple[int, bytes, int]]:
        held: list[tuple[int, bytes, int]] = []
        for item in items:
            held.append(item)
            if len(held) > self.buffer:
                k = int(generator.integers(len(held)))
                held[k], held[-1] = held[-1], held[k]
                yield held.pop()
        for k in generator.permutation(len(held)):
            yield held[k]
