"""Reading and writing data files safely: bounded reads, archives, whole writes, an unpickler for arrays."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import secrets
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, ClassVar

import numpy as np

NAME_LIMIT = 200_000
# the most bytes that the members of a tar archive may have together
TAR_LIMIT = 512 * 2**20


class DataUnavailable(RuntimeError):
    """A data set is not on the disk and none of its origins could deliver it."""


class DataCorrupted(ValueError):
    """A file is truncated, altered or not of the format its name promises."""


class Tree:
    """Named files of a folder, of an archive or in memory: `names` and a bounded `read`.

    `beside` is the tree of the folder that an archive lies in, if that folder was named as the source.
    """

    beside: Tree | None = None

    def __init__(self, label: str, names: list[str], opener: Callable[[str], BinaryIO]) -> None:
        self.label = label
        self.names = names
        self._opener = opener

    @classmethod
    def folder(cls, path: Path) -> Tree:
        """All files under `path`; raises `ValueError` for a folder with more than 200,000 of them."""
        names: list[str] = []
        for base, folders, files in os.walk(path):
            folders.sort()
            names += [(Path(base) / file).relative_to(path).as_posix() for file in sorted(files)]
            if len(names) > NAME_LIMIT:
                raise ValueError(f"{path} holds more than {NAME_LIMIT} files; name the folder with the data itself")
        return cls.files(path, names)

    @classmethod
    def files(cls, path: Path, names: list[str]) -> Tree:
        """The files called `names` in the folder `path`, whatever else is in it."""
        return cls(str(path), names, lambda name: (path / name).open("rb"))

    @classmethod
    def archive(cls, raw: bytes, label: str) -> Tree:
        """All members of the zip (or wheel) whose bytes are `raw`; members are read, never extracted."""
        try:
            bundle = zipfile.ZipFile(io.BytesIO(raw))
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise DataCorrupted(f"{label} is not a readable zip archive ({error})") from error
        names = [info.filename for info in bundle.infolist() if not info.is_dir()]
        return cls(label, names, lambda name: bundle.open(name))

    @classmethod
    def tarball(cls, raw: bytes, label: str) -> Tree:
        """All regular files of the gzip'd tar archive `raw`, read once and kept in memory, at most 512 MiB."""
        files: dict[str, bytes] = {}
        room = TAR_LIMIT
        try:
            with tarfile.open(fileobj=io.BytesIO(raw), mode="r|gz") as bundle:
                for count, member in enumerate(bundle):
                    if count >= NAME_LIMIT or (member.isreg() and member.size > room):
                        raise DataCorrupted(f"{label} holds more than {NAME_LIMIT} members or {TAR_LIMIT} bytes")
                    if member.isreg():
                        room -= member.size
                        content = bundle.extractfile(member).read()
                        if len(content) != member.size:
                            raise EOFError(f"{member.name} is cut off")
                        files[member.name.removeprefix("./")] = content
        except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
            if isinstance(error, DataCorrupted):
                raise
            raise DataCorrupted(f"{label} is not a readable tar archive ({error})") from error
        return cls.memory(files, label)

    @classmethod
    def memory(cls, files: Mapping[str, bytes], label: str) -> Tree:
        """The given bytes under the given names."""
        return cls(label, list(files), lambda name: io.BytesIO(files[name]))

    def read(self, name: str, limit: int) -> bytes:
        """Content of `name`; raises `DataCorrupted` if it is unreadable or longer than `limit` bytes."""
        try:
            with self._opener(name) as stream:
                raw = stream.read(limit + 1)
        # RuntimeError is what zipfile raises for an encrypted member or an unknown compression
        except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise DataCorrupted(f"{name} in {self.label} cannot be read ({error})") from error
        if len(raw) > limit:
            raise DataCorrupted(f"{name} in {self.label} is longer than the {limit} bytes expected at most")
        return raw


@contextlib.contextmanager
def open_atomic(path: Path) -> Iterator[BinaryIO]:
    """A stream to a temporary name in the same folder, renamed to `path` at the end of the `with`: never half a file.

    After an exception in the `with` there is no temporary file, and what `path` was before.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_atomic(path: Path, raw: bytes) -> None:
    """Writes `raw` to `path` by `open_atomic`."""
    with open_atomic(path) as stream:
        stream.write(raw)


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and plain containers, and refuses every other global before it is looked up."""

    # taken from an array itself, since numpy 2 moved the module that older pickles name
    _ALLOWED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> object:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}, which is not allowed") from None
