"""Face sets in LMDB, in the two layouts that scripts for training write.

`image-000000001` and `label-000000001` hold a JPEG or PNG file and its class in digits (numbers from 1 on, as in the
sets for text recognition); this is what is written here. Or each key is a number and its value a pickle of (file,
class) (the usual folder2lmdb scripts); `reprolib.data.pickles` reads these and calls nothing.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from reprolib.data.extras import needed
from reprolib.data.faceimages import ScannedFaces, numbered
from reprolib.data.files import DataCorrupted
from reprolib.data.pickles import read_pickle
from reprolib.data.pixels import is_encoded

_KEY = re.compile(rb"(?:image-)?\d{1,18}")
# the map is an address range and no memory; lmdb doubles nothing by itself
MAP_BYTES = 2**40
COMMIT = 1000


# of each file the process that opened it, its inode, and what lmdb lets a process open once
_opened: dict[str, tuple[int, int, Any]] = {}


def _open(path: str, inode: int) -> Any:
    """The LMDB at `path`, opened anew in a process that was forked and for a file that was replaced."""
    lmdb = needed("lmdb", "reading LMDB", "data")
    process, known, environment = _opened.get(path, (0, 0, None))
    if (process, known) == (os.getpid(), inode):
        return environment
    if environment is not None:
        environment.close()
    try:
        environment = lmdb.open(path, readonly=True, lock=False, readahead=False, subdir=os.path.isdir(path))
    except lmdb.Error as error:
        raise DataCorrupted(f"{path} is not a readable LMDB ({error})") from error
    _opened[path] = os.getpid(), inode, environment
    return environment


class FaceLmdb(ScannedFaces):
    """The images of an LMDB in one of the two layouts, in the order of their numbers.

    `path` is a folder with data.mdb, or the file. Raises `DataCorrupted` for one that is none or holds neither layout,
    `ModuleNotFoundError` without the package lmdb.
    """

    def _files(self) -> list[Path]:
        return [self.path / "data.mdb" if self.path.is_dir() else self.path]

    @property
    def _environment(self) -> Any:
        file = self._files()[0]
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist")
        return _open(str(self.path.resolve()), file.stat().st_ino)

    def _get(self, key: bytes) -> bytes | None:
        lmdb = needed("lmdb", "reading LMDB", "data")
        try:
            with self._environment.begin() as reading:
                return reading.get(key)
        except lmdb.Error as error:
            raise DataCorrupted(f"{key.decode()} of {self.path} cannot be read ({error})") from error

    def _pickled(self, key: bytes, raw: bytes) -> tuple[str, bytes]:
        """Class and file in the value of a number."""
        name = f"{key.decode()} of {self.path}"
        value = read_pickle(raw, name)
        if not isinstance(value, (tuple, list)) or len(value) != 2:
            raise DataCorrupted(f"{name} must hold a file and its class, got a {type(value).__name__}")
        image, label = value
        image = image.tobytes() if isinstance(image, np.ndarray) and image.dtype == np.uint8 else image
        return str(label), bytes(image) if isinstance(image, (bytes, bytearray)) else b""

    def _scan(self) -> dict[str, np.ndarray]:
        with self._environment.begin() as reading:
            keys = [key for key in reading.cursor().iternext(values=False) if _KEY.fullmatch(key)]
            if not keys:
                raise DataCorrupted(
                    f"{self.path} holds neither keys image-000000001 nor numbers, with what belongs to them"
                )
            keys.sort(key=lambda key: int(key.removeprefix(b"image-")))
            labels: list[str | None] = []
            for key in keys:
                if key.startswith(b"image-"):
                    label = reading.get(key.replace(b"image-", b"label-"))
                    labels.append(None if label is None else label.decode("utf-8", "surrogateescape"))
                    continue
                try:
                    labels.append(self._pickled(key, reading.get(key))[0])
                except DataCorrupted:
                    # reported when it is asked for
                    labels.append(None)
        values, classes = numbered(labels, str(self.path))
        return {"keys": np.array(keys), "labels": values, "classes": classes}

    def _keys(self, found: dict[str, np.ndarray]) -> list[str]:
        return [key.decode() for key in found["keys"].tolist()]

    def _name(self, row: int) -> str:
        return f"{self.key(row)} of {self.path}"

    def _read(self, row: int) -> tuple[int, bytes]:
        key, label = bytes(self._found["keys"][row]), self._label(row)
        if (raw := self._get(key)) is None:
            raise DataCorrupted(f"{self._name(row)} is no longer there")
        return label, raw if key.startswith(b"image-") else self._pickled(key, raw)[1]


def write_lmdb(path: str | Path, images: Iterable[bytes], labels: Iterable[int]) -> None:
    """Writes JPEG or PNG files and their classes to an LMDB in the folder `path`, which must not exist yet."""
    lmdb, path = needed("lmdb", "writing LMDB", "data"), Path(path)
    if path.exists():
        raise ValueError(f"path must be a folder that does not exist yet, got {path}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    pairs = enumerate(zip(images, labels, strict=True), 1)
    try:
        with lmdb.open(str(part), map_size=MAP_BYTES) as environment:
            count, done = 0, False
            while not done:
                with environment.begin(write=True) as writing:
                    for _ in range(COMMIT):
                        if done := (one := next(pairs, None)) is None:
                            break
                        count, (image, label) = one
                        if not is_encoded(image):
                            raise ValueError(f"image {count - 1} must be the bytes of a JPEG or PNG file")
                        writing.put(f"image-{count:09}".encode(), image)
                        writing.put(f"label-{count:09}".encode(), str(int(label)).encode())
            if not count:
                raise ValueError("images must hold at least one image, got none")
            with environment.begin(write=True) as writing:
                writing.put(b"num-samples", str(count).encode())
        (part / "lock.mdb").unlink(missing_ok=True)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)
