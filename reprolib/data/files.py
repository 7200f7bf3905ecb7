"""Reading and writing data files safely: bounded reads, archives, whole writes."""

from __future__ import annotations

import contextlib
import io
import mmap
import os
import re
import secrets
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

NAME_LIMIT = 200_000
# images and their indices unfold to at most twice, grey digits to five times their size; beyond is a bomb
RATIO, SLACK = 8, 2**20


class DataUnavailable(RuntimeError):
    """A data set is not on the disk and none of its origins could deliver it."""


class DataCorrupted(ValueError):
    """A file is truncated, altered or not of the format its name promises."""


def several(path: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with one of `suffixes` that `path` names: itself, a pattern, a range in braces, or all of a folder.

    `set-*.tar` and `set-{000..012}.tar` are patterns. Of a folder only if it has no folders in it, else none.
    """
    if path.is_dir():
        entries = sorted(path.iterdir())
        found = [] if any(entry.is_dir() for entry in entries) else entries
    elif match := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*)", path.name):
        before, first, last, behind = match.groups()
        numbers = range(int(first), int(last) + 1)
        found = [path.with_name(f"{before}{number:0{len(first)}}{behind}") for number in numbers]
    elif "*" in path.name:
        found = sorted(path.parent.glob(path.name))
    else:
        found = [path]
    return [one for one in found if one.name.lower().endswith(suffixes)]


class MappedFile:
    """The bytes of the file `path`, mapped when first asked for: `view`. Processes may share it.

    Raises `DataCorrupted` for a file that is empty or was cut off since, and `OSError` for one that cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[type[MappedFile], tuple[Path]]:
        return MappedFile, (self.path,)

    @cached_property
    def _mapped(self) -> mmap.mmap:
        with open(self.path, "rb") as stream:
            if os.fstat(stream.fileno()).st_size == 0:
                raise DataCorrupted(f"{self.path} is empty")
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)

    @property
    def view(self) -> memoryview:
        """The mapped bytes; to touch those of a file that was cut off since would end the process by SIGBUS."""
        if self._mapped.size() < len(self._mapped):
            raise DataCorrupted(f"{self.path} was cut off to {self._mapped.size()} bytes while it was open")
        return memoryview(self._mapped)

    def read_at_random(self, yes: bool = True) -> None:
        """How the file will be read, where the system takes advice: else each access reads pages around its own."""
        advice = "MADV_RANDOM" if yes else "MADV_SEQUENTIAL"
        if hasattr(mmap, advice):
            self._mapped.madvise(getattr(mmap, advice))


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
        bundle = open_zip(raw, label)
        infos = {info.filename: info for info in bundle.infolist() if not info.filename.endswith("/")}

        def opener(name: str) -> BinaryIO:
            if infos[name].file_size > RATIO * infos[name].compress_size + SLACK:
                raise OSError(f"it claims to unfold to {infos[name].file_size} bytes")
            return bundle.open(name)  # type: ignore[return-value]

        return cls(label, list(infos), opener)

    @classmethod
    def tarball(cls, raw: bytes, label: str) -> Tree:
        """All regular files of the gzip'd tar archive `raw`, unfolded in memory."""
        content = gunzip(raw, label, RATIO * len(raw) + SLACK)
        places: dict[str, tuple[int, int]] = {}
        try:
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as bundle:
                for member in bundle:
                    if len(places) >= NAME_LIMIT:
                        raise ValueError(f"it has more than {NAME_LIMIT} members")
                    if member.isreg() and member.sparse is None:
                        end = member.offset_data + member.size
                        if not 0 <= member.offset_data <= end <= len(content):
                            raise ValueError(f"{member.name} is cut off")
                        places[member.name.removeprefix("./")] = member.offset_data, end
        # tarfile raises what its helpers raise; nothing of it may end a search that has other origins
        except Exception as error:
            raise DataCorrupted(f"{label} is not a readable tar archive ({_reason(error)})") from error
        return cls(label, list(places), lambda name: io.BytesIO(content[slice(*places[name])]))

    @classmethod
    def memory(cls, files: Mapping[str, bytes], label: str) -> Tree:
        """The given bytes under the given names."""
        return cls(label, list(files), lambda name: io.BytesIO(files[name]))

    def read(self, name: str, limit: int) -> bytes:
        """Content of `name`; raises `DataCorrupted` if it is unreadable or longer than `limit` bytes."""
        try:
            with self._opener(name) as stream:
                raw = stream.read(limit + 1)
        # zipfile raises NotImplementedError, LZMAError, UnicodeDecodeError and more for altered members
        except Exception as error:
            raise DataCorrupted(f"{name} in {self.label} cannot be read ({_reason(error)})") from error
        if len(raw) > limit:
            raise DataCorrupted(f"{name} in {self.label} is longer than the {limit} bytes expected at most")
        return raw

    def named(self, file: str) -> list[str]:
        """Names of the files called `file`, in whatever folder."""
        return [name for name in self.names if PurePosixPath(name).name == file]


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__


def open_zip(raw: bytes, label: str) -> zipfile.ZipFile:
    """The zip archive `raw`; raises `DataCorrupted` naming `label` for anything else."""
    try:
        return zipfile.ZipFile(io.BytesIO(raw))
    # an empty name raises IndexError, a later version NotImplementedError, and there are more
    except Exception as error:
        raise DataCorrupted(f"{label} is not a readable zip archive ({_reason(error)})") from error


def gunzip(raw: bytes, label: str, limit: int) -> bytes:
    """Content of the gzip file `raw` of one member; `DataCorrupted` if damaged or longer than `limit` bytes."""
    if not raw:
        raise DataCorrupted(f"{label} is empty")
    stream = zlib.decompressobj(wbits=31)
    try:
        content = stream.decompress(raw, limit + 1)
    except zlib.error as error:
        raise DataCorrupted(f"{label} is no complete gzip file ({error})") from error
    if len(content) > limit:
        raise DataCorrupted(f"{label} holds more than the {limit} bytes expected")
    if not stream.eof or stream.unused_data.strip(b"\0"):
        raise DataCorrupted(f"{label} is no complete gzip file of one member")
    return content


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
