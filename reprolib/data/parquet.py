"""Face sets and verification pairs in parquet files, as the hubs distribute them: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW.

A row of a set has an image and a label, a row of a list of pairs `image1`, `image2` and `label`, 1 for one person. An
image is a JPEG or PNG file, as bytes or as a struct whose field `bytes` holds it.

Parquet is read by row groups: a random image costs its group, of which two stay in memory. `stream` reads each once.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reprolib.data.extras import needed
from reprolib.data.facebin import FacePairs
from reprolib.data.faceimages import FacesInFiles, numbered
from reprolib.data.files import DataCorrupted, open_atomic, several

IMAGES = ("image", "img", "jpg", "jpeg", "png", "image_bytes")
LABELS = ("label", "labels", "cls", "class", "identity", "id", "id_class", "person", "target")
KEPT_GROUPS = 2
# small enough that a random image is not dear, large enough for few seeks
GROUP_ROWS = 256


def _parquet() -> Any:
    return needed("pyarrow.parquet", "reading and writing parquet", "data")


def _open(path: Path) -> Any:
    from_file, arrow = _parquet().ParquetFile, needed("pyarrow", "reading and writing parquet", "data")
    try:
        return from_file(path, memory_map=True)
    except (arrow.ArrowException, OSError) as error:
        if isinstance(error, (FileNotFoundError, PermissionError, IsADirectoryError)):
            raise
        raise DataCorrupted(f"{path} is not a readable parquet file ({error})") from error


def _column(file: Any, path: Path, allowed: Sequence[str], what: str) -> str:
    names = file.schema_arrow.names
    for name in allowed:
        if name in names:
            return name
    raise DataCorrupted(f"{path} must have a column for the {what}, called {' or '.join(allowed)}, got {names}")


def _read(file: Any, path: Path, group: int, columns: list[str]) -> Any:
    arrow = needed("pyarrow", "reading and writing parquet", "data")
    try:
        return file.read_row_group(group, columns=columns, use_threads=False)
    except (arrow.ArrowException, OSError) as error:
        raise DataCorrupted(f"row group {group} of {path} cannot be read ({error})") from error


def _bytes(value: Any) -> bytes:
    """The image file in a cell; what holds none is left to the reader of images to report."""
    value = value.get("bytes") if isinstance(value, dict) else value
    return value if isinstance(value, bytes) else b""


class FaceParquet(FacesInFiles):
    """The images of .parquet files with a column of images and one of labels, in the order of files and rows.

    Labels may be whole numbers or names; `classes` then are these, in alphabetical order.
    """

    suffixes = (".parquet",)

    def __init__(
        self, path: str | Path, skip: Collection[int] | Collection[str] = (), index: str | Path | None = None
    ) -> None:
        super().__init__(path, skip, index)
        self._opened: dict[int, Any] = {}
        self._groups_read: OrderedDict[tuple[int, int], Any] = OrderedDict()
        self._process = os.getpid()

    def _file(self, number: int) -> Any:
        # a process that was forked opens files of its own
        if self._process != os.getpid():
            self._opened, self._groups_read, self._process = {}, OrderedDict(), os.getpid()
        if number not in self._opened:
            self._opened[number] = _open(self._paths[number])
        return self._opened[number]

    def _scan(self) -> dict[str, np.ndarray]:
        labels: list[str | None] = []
        places: list[np.ndarray] = []
        for number, path in enumerate(self._paths):
            file = _open(path)
            column = _column(file, path, LABELS, "labels")
            _column(file, path, IMAGES, "images")
            for group in range(file.num_row_groups):
                values = _read(file, path, group, [column]).column(0).to_pylist()
                labels += [None if value is None else str(value) for value in values]
                rows = np.arange(len(values))
                places.append(np.stack([np.full_like(rows, number), np.full_like(rows, group), rows], axis=1))
        if not labels:
            raise DataCorrupted(f"{self.path} must have at least one row, got none")
        values, classes = numbered(labels, str(self.path))
        return {"places": np.concatenate(places), "labels": values, "classes": classes}

    def _keys(self, found: dict[str, np.ndarray]) -> list[str]:
        return [f"{self._paths[number].name}/{group}/{row}" for number, group, row in found["places"].tolist()]

    def _name(self, row: int) -> str:
        number, group, place = self._found["places"][row].tolist()
        return f"row {place} of row group {group} of {self._paths[number]}"

    @cached_property
    def _groups(self) -> np.ndarray:
        number, group, _ = self._found["places"].T
        return number * (int(group.max()) + 1) + group

    def rereads(self, rows: np.ndarray) -> float:
        """Row groups that are read, in groups of the file; at least 1."""
        reads = 1 + int((np.diff(self._groups[rows]) != 0).sum())
        return max(1.0, reads / len(np.unique(self._groups)))

    def _read(self, row: int) -> tuple[int, bytes]:
        number, group, place = self._found["places"][row].tolist()
        file = self._file(number)
        if (number, group) not in self._groups_read:
            path = self._paths[number]
            table = _read(file, path, group, [_column(file, path, IMAGES, "images")])
            self._groups_read[number, group] = table.column(0)
        self._groups_read.move_to_end((number, group))
        if len(self._groups_read) > KEPT_GROUPS:
            self._groups_read.popitem(last=False)
        return self._label(row), _bytes(self._groups_read[number, group][place].as_py())


def holds_pairs(path: str | Path) -> bool:
    """Whether `path` names .parquet files with the columns of pairs."""
    found = several(Path(path), (".parquet",))
    return bool(found) and "image1" in _open(found[0]).schema_arrow.names


def load_parquet_pairs(path: str | Path) -> FacePairs:
    """The pairs in the .parquet files `path` names: columns `image1`, `image2`, `label` (true or 1: one person).

    Raises `DataCorrupted` naming it for other columns or contents, `ModuleNotFoundError` without pyarrow.
    """
    path = Path(path)
    encoded: list[bytes] = []
    same: list[bool] = []
    for one in several(path, (".parquet",)):
        file = _open(one)
        columns = [_column(file, one, (name,), name) for name in ("image1", "image2", "label")]
        for group in range(file.num_row_groups):
            table = _read(file, one, group, columns)
            first, second, truth = (table.column(name).to_pylist() for name in columns)
            if wrong := [value for value in truth if value not in (True, False, 0, 1)]:
                raise DataCorrupted(f"{one} must have the labels 0 and 1, got {wrong[0]!r}")
            same += map(bool, truth)
            encoded += [_bytes(value) for pair in zip(first, second, strict=True) for value in pair]
    try:
        return FacePairs(tuple(encoded), torch.tensor(same, dtype=torch.bool), str(path))
    except ValueError as error:
        raise DataCorrupted(f"{path} does not hold pairs of faces: {error}") from error


def _write(path: Path, schema: Any, batches: Iterable[dict[str, list[Any]]]) -> None:
    arrow = needed("pyarrow", "reading and writing parquet", "data")
    if path.suffix != ".parquet":
        raise ValueError(f"path must be called something.parquet, got {path.name}")
    with open_atomic(path) as stream, _parquet().ParquetWriter(stream, schema, compression="none") as writer:
        for batch in batches:
            writer.write_table(arrow.table(batch, schema=schema))


def write_parquet(path: str | Path, images: Iterable[bytes], labels: Iterable[int]) -> None:
    """Writes JPEG or PNG files and their classes to one .parquet file, columns `image` (a struct) and `label`.

    It appears whole or not at all.
    """
    arrow = needed("pyarrow", "reading and writing parquet", "data")
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])

    def batches() -> Iterator[dict[str, list[Any]]]:
        held: dict[str, list[Any]] = {"image": [], "label": []}
        for number, (raw, label) in enumerate(zip(images, labels, strict=True)):
            held["image"].append({"bytes": raw, "path": f"{number:09}"})
            held["label"].append(int(label))
            if len(held["label"]) == GROUP_ROWS:
                yield held
                held = {"image": [], "label": []}
        if held["label"]:
            yield held

    _write(Path(path), arrow.schema([("image", image), ("label", arrow.int64())]), batches())


def write_parquet_pairs(path: str | Path, pairs: FacePairs) -> None:
    """Writes pairs to one .parquet file as `load_parquet_pairs` reads them."""
    arrow = needed("pyarrow", "reading and writing parquet", "data")
    image = arrow.struct([("bytes", arrow.binary()), ("path", arrow.string())])
    schema = arrow.schema([("image1", image), ("image2", image), ("label", arrow.int64())])
    cells = [{"bytes": raw, "path": None} for raw in pairs.encoded]
    truth = pairs.same.int().tolist()

    def batches() -> Iterator[dict[str, list[Any]]]:
        for begin in range(0, len(pairs), GROUP_ROWS):
            end = begin + GROUP_ROWS
            first, second = cells[2 * begin : 2 * end : 2], cells[2 * begin + 1 : 2 * end : 2]
            yield {"image1": first, "image2": second, "label": truth[begin:end]}

    _write(Path(path), schema, batches())
