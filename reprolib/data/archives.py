"""Face sets in tar and zip archives, read where they lie: nothing is unpacked to the disk.

Two layouts are known. In WebDataset's the files of a sample have one name up to the first dot, `000017.jpg` and
`000017.cls`, the class as a whole number in the latter (of the other files of a sample nothing is read). Where no .cls
is, the folder of a file is its class: one a person, as in `lfw.tgz` or a zipped ImageFolder. A tar that lost whole
files at its end lacks the zeros there, which is warned of.

A plain tar and a zip are jumped into. A compressed tar can only be read from its beginning: `image` is slow there, and
`stream` or `batches` are the way to read it. Its index, too, takes one full pass: keep that in a file `index`.
"""

from __future__ import annotations

import io
import os
import struct
import tarfile
import warnings
import zipfile
import zlib
from array import array
from collections.abc import Collection, Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from reprolib.data.faceimages import BLOCK, NUMBERS, FacesInFiles
from reprolib.data.files import RATIO, SLACK, DataCorrupted, MappedFile, open_atomic
from reprolib.data.folders import SUFFIXES
from reprolib.data.pixels import JPEG, is_encoded
from reprolib.data.recordio import LENGTH_LIMIT

# the form and the time of every member that is written: the same images make the same file
WRITTEN, EPOCH = tarfile.USTAR_FORMAT, 0
# a class is a whole number: a file that holds more text is none
CLASS_LIMIT = 64


class Member(NamedTuple):
    """A file in an archive: its `name`, the `offset` of its bytes (in a zip of its header), their number `size`, ..."""

    name: str
    offset: int
    size: int
    # bytes as stored, 0 if they are not compressed
    packed: int
    # what a .cls file holds
    text: str = ""


class FaceArchives(FacesInFiles):
    """The JPEG and PNG files of tar and zip archives in one of the two layouts, in the order in which they are stored.

    In the layout of folders the order is that of the paths, as in `FaceFolder`. An archive that cannot be read raises
    `DataCorrupted`.
    """

    kind = "archives"
    suffixes = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")

    def __init__(
        self, path: str | Path, skip: Collection[int] | Collection[str] = (), index: str | Path | None = None
    ) -> None:
        super().__init__(path, skip, index)
        self._open: list[MappedFile | None] = [None] * len(self._paths)
        self._cursor: tuple[int, int, tarfile.TarFile] | None = None
        self._cursor_of = 0
        self._ahead = False

    def _scan(self) -> dict[str, np.ndarray]:
        names: list[bytes] = []
        # five numbers an image, and one: lists of objects would take ten times the memory
        places, labels = array("q"), array("q")
        classed = False
        for number, path in enumerate(self._paths):
            begin, texts = len(names), {}
            for ordinal, member in enumerate(scan_archive(path)):
                # macOS puts what it knows of a file beside it under such a name
                if member.name.rpartition("/")[2].startswith("._"):
                    continue
                if member.name.lower().endswith(SUFFIXES):
                    names.append(os.fsencode(member.name))
                    places.extend((number, ordinal, member.offset, member.size, member.packed))
                elif member.name.endswith(".cls"):
                    texts[sample(member.name)] = member.text
            classed = classed or bool(texts)
            found = (texts.get(sample(os.fsdecode(name)), "") for name in names[begin:])
            # -1: a sample without a class is reported when it is asked for
            labels.extend(int(text) if is_class(text) else -1 for text in found)
        if not names:
            raise DataCorrupted(f"{self.path} holds no JPEG or PNG file")
        columns, coded = np.array(places).reshape(-1, 5), np.array(names)
        if classed:
            return {"names": coded, "places": columns, "labels": np.array(labels), "classes": NUMBERS}
        order = np.argsort(coded, kind="stable")
        values, classes = self._folders([names[k] for k in order])
        return {"names": coded[order], "places": columns[order], "labels": values, "classes": classes}

    def _folders(self, names: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Label of each file and the names of the classes: folders, without what all of them begin with."""
        folders = [os.fsdecode(name).rpartition("/")[0] for name in names]
        if "" in folders:
            name = os.fsdecode(names[folders.index("")])
            raise DataCorrupted(f"{name} in {self.path} has neither a .cls file nor a folder that would be its class")
        classes, labels = np.unique(np.array(list(map(os.fsencode, folders))), return_inverse=True)
        first, last = (os.fsdecode(bytes(one)) for one in (classes[0], classes[-1]))
        begins = os.path.commonpath([first, last])
        begins = begins.rpartition("/")[0] if begins == first else begins
        cut = len(os.fsencode(begins)) + 1 if begins else 0
        return labels.astype(np.int64), np.array([one[cut:] for one in classes.tolist()])

    def _keys(self, found: dict[str, np.ndarray]) -> list[str]:
        names = [os.fsdecode(name) for name in found["names"].tolist()]
        if len(self._paths) == 1:
            return names
        return [f"{self._paths[k].name}/{name}" for k, name in zip(found["places"][:, 0], names, strict=True)]

    def _name(self, row: int) -> str:
        archive = self._paths[self._found["places"][row, 0]]
        return f"{os.fsdecode(bytes(self._found['names'][row]))} in {archive}"

    @cached_property
    def _places(self) -> np.ndarray:
        archive, ordinal = self._found["places"][:, :2].T
        return archive * (ordinal.max() + 1) + ordinal

    @cached_property
    def _groups(self) -> np.ndarray:
        # a compressed archive is one piece, another one is cut into pieces
        archive = self._found["places"][np.argsort(self._places), 0]
        whole = np.array([is_compressed_tar(path) for path in self._paths])[archive]
        piece = np.where(whole, 0, np.arange(len(archive)) // BLOCK)
        return archive * (int(piece.max()) + 1) + piece

    def _read(self, row: int) -> tuple[int, bytes]:
        label = self._label(row)
        archive, ordinal, offset, size, packed = self._found["places"][row].tolist()
        path = self._paths[archive]
        if size > LENGTH_LIMIT or (packed and size > RATIO * packed + SLACK):
            raise DataCorrupted(f"{self._name(row)} claims to have {size} bytes, which no photograph has")
        if is_compressed_tar(path):
            return label, self._from_stream(archive, ordinal, self._name(row))
        file = self._open[archive]
        if file is None:
            file = self._open[archive] = MappedFile(path)
            file.read_at_random(not self._ahead)
        view = file.view
        if path.suffix.lower() == ".zip":
            return label, unzip_member(view, offset, size, packed, self._name(row))
        if offset + size > len(view):
            raise DataCorrupted(f"{self._name(row)} is cut off: it ends at byte {offset + size} of {len(view)}")
        return label, bytes(view[offset : offset + size])

    def rereads(self, rows: np.ndarray) -> float:
        """1, and one more for each step back in a compressed tar."""
        archive, ordinal = self._found["places"][rows, :2].T
        back = (np.diff(ordinal) < 0) | (np.diff(archive) != 0)
        packed = np.array([is_compressed_tar(path) for path in self._paths])[archive[1:]]
        first = len(np.unique(archive)) - 1
        return 1.0 + max(0, int((back & packed).sum()) - first)

    def _read_ahead(self) -> None:
        self._ahead = True
        for file in filter(None, self._open):
            file.read_at_random(False)

    def _from_stream(self, archive: int, ordinal: int, name: str) -> bytes:
        """Member `ordinal` of a compressed tar, from where the last one ended if that came before it."""
        # a process that was forked reads with a stream of its own
        if self._cursor and self._cursor_of == os.getpid() and self._cursor[0] == archive and self._cursor[1] < ordinal:
            _, at, bundle = self._cursor
        else:
            at, bundle = -1, open_tar(self._paths[archive])
        self._cursor = None
        try:
            for member in regular(bundle):
                at += 1
                if at == ordinal:
                    stream = bundle.extractfile(member)
                    raw = stream.read() if stream else b""
                    if len(raw) != member.size:
                        raise EOFError(f"it has {len(raw)} of {member.size} bytes")
                    self._cursor, self._cursor_of = (archive, at, bundle), os.getpid()
                    return raw
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise DataCorrupted(f"{name} cannot be read ({error})") from error
        raise DataCorrupted(f"{name} is no longer there")


def sample(name: str) -> str:
    """What the files of one sample have in common: the path up to the first dot of its last part (WebDataset)."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.split('.', 1)[0]}"


def is_class(text: str) -> bool:
    """Whether `text` is a whole number from 0 on that an int64 holds."""
    return text.isascii() and text.isdecimal() and len(text) < 19


def is_compressed_tar(path: Path) -> bool:
    """Whether `path` is called as a tar that has to be read from its beginning."""
    return not path.name.lower().endswith((".tar", ".zip"))


class _Header(tarfile.TarInfo):
    """A header that is none is an error: where the first one was good, tarfile takes it for the end."""

    @classmethod
    def fromtarfile(cls, bundle: tarfile.TarFile) -> _Header:
        try:
            return super().fromtarfile(bundle)  # type: ignore[return-value]
        except (tarfile.InvalidHeaderError, tarfile.TruncatedHeaderError) as error:  # type: ignore[attr-defined]
            raise tarfile.ReadError(f"{error} at byte {bundle.offset}") from error
        except tarfile.EmptyHeaderError:  # type: ignore[attr-defined]
            if bundle.offset:
                warnings.warn(f"{bundle.name!s} has no mark at its end: it may have been cut off there", stacklevel=2)
            raise


def open_tar(path: Path) -> tarfile.TarFile:
    """The tar `path`, a compressed one to be read once from its beginning; `DataCorrupted` if it is none."""
    try:
        return tarfile.open(path, "r|*" if is_compressed_tar(path) else "r:", tarinfo=_Header)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataCorrupted(f"{path} is not a readable tar archive ({error})") from error


def regular(bundle: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """The files of a tar, one after the other, without a list of all."""
    while (member := bundle.next()) is not None:
        # tarfile keeps what it has seen, which is a kilobyte a file
        bundle.members = []  # type: ignore[attr-defined]
        if member.isreg() and member.sparse is None:
            yield member


def scan_archive(path: Path) -> Iterator[Member]:
    """The files in the archive `path`, in the order of their bytes, with what its .cls files hold."""
    return _scan_zip(path) if path.suffix.lower() == ".zip" else _scan_tar(path)


def _scan_tar(path: Path) -> Iterator[Member]:
    try:
        with open_tar(path) as bundle:
            for member in regular(bundle):
                text = ""
                if member.name.endswith(".cls") and member.size <= CLASS_LIMIT:
                    content: IO[bytes] | None = bundle.extractfile(member)
                    text = content.read().decode("ascii", "replace").strip() if content else ""
                yield Member(member.name.removeprefix("./").lstrip("/"), member.offset_data, member.size, 0, text)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataCorrupted(f"{path} is not a readable tar archive ({error})") from error


def _scan_zip(path: Path) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as bundle:
            for info in sorted(bundle.infolist(), key=lambda one: one.header_offset):
                if info.is_dir():
                    continue
                known = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
                if info.flag_bits & 1 or not known:
                    raise ValueError(f"{info.filename} is encrypted or packed by method {info.compress_type}")
                text = ""
                if info.filename.endswith(".cls") and info.file_size <= CLASS_LIMIT:
                    text = bundle.read(info).decode("ascii", "replace").strip()
                packed = 0 if info.compress_type == zipfile.ZIP_STORED else info.compress_size
                yield Member(info.filename.lstrip("/"), info.header_offset, info.file_size, packed, text)
    # what zipfile raises for altered archives has no common kind
    except OSError:
        raise
    except Exception as error:
        raise DataCorrupted(f"{path} is not a readable zip archive ({error})") from error


def unzip_member(view: memoryview, offset: int, size: int, packed: int, name: str) -> bytes:
    """The `size` bytes of the zip member whose header is at `offset`: 30 bytes, its name, extra bytes, the content."""
    end = offset + 30
    if end > len(view) or view[offset : offset + 4] != b"PK\3\4":
        raise DataCorrupted(f"{name} has no header at byte {offset}")
    begin = end + sum(struct.unpack_from("<HH", view, offset + 26))
    stored = view[begin : begin + (packed or size)]
    try:
        raw = zlib.decompressobj(-15).decompress(stored, size) if packed else bytes(stored)
    except zlib.error as error:
        raise DataCorrupted(f"{name} cannot be unpacked ({error})") from error
    if len(raw) != size:
        raise DataCorrupted(f"{name} has {len(raw)} bytes instead of {size}")
    return raw


def image_suffix(raw: bytes) -> str:
    """jpg or png, by what the file holds."""
    return "jpg" if raw.startswith(JPEG) else "png"


def write_tars(path: str | Path, images: Iterable[bytes], labels: Iterable[int], per_tar: int = 10_000) -> list[Path]:
    """Writes JPEG or PNG files and their classes in WebDataset's layout, and returns the files that were written.

    `path` is called something.tar; with `{}` in its name, `per_tar` images go into each of `set-{}.tar`:
    `set-000000.tar`, `set-000001.tar`, ... Each file appears whole or not at all. Raises `ValueError` for another name,
    another kind of image and no image.
    """
    path = Path(path)
    written: list[Path] = []
    if path.suffix != ".tar":
        raise ValueError(f"path must be called something.tar, got {path.name}")
    pairs = enumerate(zip(images, labels, strict=True))
    row = next(pairs, None)
    if row is None:
        raise ValueError("images must hold at least one image, got none")
    while row is not None:
        target = path.with_name(path.name.replace("{}", f"{len(written):06}"))
        with (
            open_atomic(target) as stream,
            tarfile.open(fileobj=stream, mode="w", format=WRITTEN) as bundle,
        ):
            count = 0
            while row is not None and (count < per_tar or target == path):
                number, (image, label) = row
                if not is_encoded(image):
                    raise ValueError(f"image {number} must be the bytes of a JPEG or PNG file, got {image[:8]!r} ...")
                for suffix, content in ((image_suffix(image), image), ("cls", str(int(label)).encode())):
                    add_file(bundle, f"{number:09}.{suffix}", content)
                count += 1
                row = next(pairs, None)
        written.append(target)
    return written


def add_file(bundle: tarfile.TarFile, name: str, content: bytes) -> None:
    """Appends a file to a tar, with no more about it than its name."""
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), EPOCH
    bundle.addfile(info, io.BytesIO(content))
