"""Image files on the disk: one folder a class, or a list that says which file is of which class."""

from __future__ import annotations

import base64
import binascii
import os
from pathlib import Path

import numpy as np

from reprolib.data.faceimages import ScannedFaces, numbered
from reprolib.data.files import DataCorrupted
from reprolib.data.pixels import is_encoded
from reprolib.data.recordio import LENGTH_LIMIT

SUFFIXES = (".jpg", ".jpeg", ".png")


class FaceFolder(ScannedFaces):
    """The JPEG and PNG files in the folder `path`, one sub-folder a class, in alphabetical order, as in ImageFolder.

    `index` is made anew when the time of one of these changes. Raises
    `ValueError` for a folder without images.
    """

    def _folders(self) -> list[str]:
        return sorted(entry.name for entry in os.scandir(self.path) if entry.is_dir())

    def _files(self) -> list[Path]:
        return [self.path, *(self.path / folder for folder in self._folders())]

    def _scan(self) -> dict[str, np.ndarray]:
        classes: list[str] = []
        names: list[bytes] = []
        labels: list[int] = []
        for folder in self._folders():
            files = [
                os.path.relpath(os.path.join(base, file), self.path)
                for base, _, found in os.walk(self.path / folder)
                for file in found
                if file.lower().endswith(SUFFIXES)
            ]
            if files:
                labels += [len(classes)] * len(files)
                names += [os.fsencode(file) for file in sorted(files)]
                classes.append(folder)
        if not names:
            raise ValueError(f"path must hold one folder a class with JPEG or PNG files, got {self.path}")
        # texts of fixed width in UTF-8 take a tenth of a list of texts
        coded = np.array([os.fsencode(name) for name in classes])
        return {"classes": coded, "names": np.array(names), "labels": np.array(labels)}

    def _keys(self, found: dict[str, np.ndarray]) -> list[str]:
        return [os.fsdecode(name) for name in found["names"].tolist()]

    def _name(self, row: int) -> str:
        return str(self.path / self.key(row))

    def _read(self, row: int) -> tuple[int, bytes]:
        return self._label(row), read_image_file(Path(self._name(row)))


def read_image_file(path: Path) -> bytes:
    """The bytes of the JPEG or PNG file `path`; raises `DataCorrupted` for another one and a longer than 2^29 bytes."""
    with open(path, "rb") as stream:
        raw = stream.read(LENGTH_LIMIT + 1)
    if len(raw) > LENGTH_LIMIT or not is_encoded(raw):
        raise DataCorrupted(f"{path} is neither a JPEG nor a PNG file of at most {LENGTH_LIMIT} bytes")
    return raw


class FaceList(ScannedFaces):
    """The images that a list names, a .lst or .tsv file of columns between tabs, all lines in the way of the first.

    `index, label, ..., path` (mxnet's im2rec), `aligned, path, label, ...` (insightface), `path, label` or `label,
    path`; paths count from the folder of the list. Seven columns that begin with a name and end with the image in
    base64 are those of MS-Celeb-1M. Labels are whole numbers, else names, which are numbered in alphabetical order.
    Raises `DataCorrupted` for other columns.
    """

    @staticmethod
    def _columns(line: list[str], where: str) -> tuple[int, int, bool]:
        """Place of the label and of the image, and whether this is in base64."""
        if len(line) == 7 and not is_number(line[0]):
            return 0, 6, True
        images = [k for k, text in enumerate(line) if text.lower().endswith(SUFFIXES)]
        if len(images) == 1:
            (image,) = images
            label = {2: 1 - image, **dict.fromkeys(range(3, 30), 2 if image == 1 else 1)}.get(len(line))
            if label is not None and label != image and (image == len(line) - 1 or image < 2):
                return label, image, False
        raise DataCorrupted(
            f"{where} must have the columns index, label, path or aligned, path, label or path, label, got {line}"
        )

    def _scan(self) -> dict[str, np.ndarray]:
        columns: tuple[int, int, bool] | None = None
        names: list[bytes] = []
        labels: list[str] = []
        offsets: list[int] = []
        end = 0
        with open(self.path, "rb") as stream:
            for number, raw in enumerate(stream, 1):
                begin, end = end, end + len(raw)
                if not raw.strip():
                    continue
                where = f"line {number} of {self.path}"
                line = raw.decode("utf-8", "surrogateescape").rstrip("\r\n").split("\t")
                columns = columns or self._columns(line, where)
                label, image, inside = columns
                if len(line) <= max(label, image):
                    raise DataCorrupted(f"{where} must have at least {max(label, image) + 1} columns, got {len(line)}")
                labels.append(line[label].strip())
                offsets.append(begin)
                names.append(f"{number}".encode() if inside else os.fsencode(line[image]))
        if columns is None:
            raise DataCorrupted(f"{self.path} must name at least one image, got none")
        values, classes = numbered(labels, str(self.path))
        # -1: the image is a file of its own
        places = np.array(offsets if columns[2] else [-1] * len(names), np.int64)
        return {"names": np.array(names), "labels": values, "classes": classes, "offsets": places}

    def _keys(self, found: dict[str, np.ndarray]) -> list[str]:
        return [os.fsdecode(name) for name in found["names"].tolist()]

    def _name(self, row: int) -> str:
        """The line, or the path, which is the key of an image that is a file of its own."""
        inside = self._found["offsets"][row] >= 0
        return f"line {self.key(row)} of {self.path}" if inside else str(self.path.parent / self.key(row))

    def _read(self, row: int) -> tuple[int, bytes]:
        label, offset = self._label(row), int(self._found["offsets"][row])
        if offset < 0:
            path = Path(self._name(row))
            if not path.is_file():
                raise DataCorrupted(f"{path}, which {self.path} names, is no file")
            return label, read_image_file(path)
        with open(self.path, "rb") as stream:
            stream.seek(offset)
            text = stream.readline(2 * LENGTH_LIMIT).rstrip(b"\r\n").rsplit(b"\t", 1)[-1]
        try:
            return label, base64.b64decode(text, validate=True)
        except binascii.Error as error:
            raise DataCorrupted(f"{self._name(row)} holds no image in base64 ({error})") from error


def is_number(text: str) -> bool:
    """Whether `text` is a number as labels are written, such as 12 or 12.000000."""
    try:
        float(text)
    except ValueError:
        return False
    return True
