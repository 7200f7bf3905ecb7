"""From one format of face sets to another: images in a chosen order, without some identities, aligned if asked for.

An image that is not aligned keeps its bytes. Classes are numbered anew from 0 without a gap, in the order of their old
numbers, so that a set that goes through several formats comes back the same.
"""

from __future__ import annotations

import io
import os
import shutil
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import tee
from pathlib import Path

import numpy as np

from reprolib._checks import check_choice
from reprolib.data.alignment import SIZE, align
from reprolib.data.archives import image_suffix, write_tars
from reprolib.data.facebin import FacePairs, write_facebin
from reprolib.data.faceimages import FaceImages
from reprolib.data.files import DataCorrupted, open_atomic
from reprolib.data.lmdb_sets import write_lmdb
from reprolib.data.parquet import write_parquet, write_parquet_pairs
from reprolib.data.pixels import decode_image
from reprolib.data.recordio import write_records

ORDERS = ("label", "stored", "shuffled")
TARGETS = ".rec, .tar, .zip, .parquet, .lmdb, or without a suffix for a folder"
# more than that is no way to read a set: a small one may be
REREADS = 100
Points = Mapping[int | str, np.ndarray]


@dataclass(frozen=True, eq=False)
class Selection:
    """Which images of `faces` are taken: `rows` in the order in which they are written, `labels` their new classes.

    `removed` are the identities that were left out by name, `absent` the names that no identity of the set has.
    """

    faces: FaceImages
    rows: np.ndarray
    labels: np.ndarray
    removed: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def counts(self) -> str:
        """Images, identities and images of an identity, in one line."""
        sizes = np.bincount(self.labels)
        sides = "x".join(map(str, self.faces.image(int(self.rows[0])).shape[1:]))
        return (
            f"{len(self.rows)} images of {len(sizes)} identities, {sizes.min()} to {sizes.max()} each, "
            f"median {np.median(sizes):g}; the first has {sides} pixels (height x width)"
        )


def select(faces: FaceImages, remove: Collection[str] = (), order: str = "label", seed: int = 0) -> Selection:
    """The images of `faces` without the identities called `remove`, in an `order`.

    By label, and within it as stored; as stored; or shuffled, as a set needs it that is streamed without a buffer.
    Raises `ValueError` for another order and if nothing is left.
    """
    check_choice(order, "order", ORDERS)
    labels = faces.labels.numpy()
    known = {faces.class_name(label): label for label in np.unique(labels).tolist()}
    gone = [known[name] for name in remove if name in known]
    rows = np.flatnonzero(~np.isin(labels, gone))
    if not len(rows):
        raise ValueError(f"at least one identity must be left, got all {len(known)} of {faces.path} to remove")
    _, dense = np.unique(labels[rows], return_inverse=True)
    if order == "label":
        by_label = np.argsort(dense, kind="stable")
        rows, dense = rows[by_label], dense[by_label]
    elif order == "shuffled":
        mixed = np.random.default_rng(seed).permutation(len(rows))
        rows, dense = rows[mixed], dense[mixed]
    removed = tuple(name for name in remove if name in known)
    return Selection(faces, rows, dense, removed, tuple(name for name in remove if name not in known))


def read_names(path: str | Path) -> list[str]:
    """The names in a text file, one a line; empty lines and what follows a # are no names."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [name for line in lines if (name := line.partition("#")[0].strip())]


def read_landmarks(path: str | Path) -> dict[str, np.ndarray]:
    """Key of each image and its five points (5, 2), from lines `key x1 y1 ... x5 y5` between blanks, tabs or commas.

    Eyes, nose, corners of the mouth, left before right as seen in the image. Raises `DataCorrupted` for another line.
    """
    found: dict[str, np.ndarray] = {}
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        # a key may hold blanks
        key, *numbers = line.replace(",", " ").rsplit(maxsplit=10)
        try:
            found[key.strip()] = np.array(numbers, np.float64).reshape(5, 2)
        except ValueError as error:
            raise DataCorrupted(f"line {number} of {path} must be a key and ten numbers, got {line[:80]!r}") from error
    return found


def aligned(raw: bytes, points: np.ndarray, name: str, width: int = SIZE, png: bool = False) -> bytes:
    """The face in the file `raw` with its five `points` on the template, 112 x `width`, as JPEG of quality 95 or PNG.

    A `width` of 96 cuts 8 columns off either side, which is the crop of the SphereFace and CosFace papers.
    """
    cut = (SIZE - width) // 2
    try:
        image = align(decode_image(raw, name), points).crop((cut, 0, cut + width, SIZE))
    except DataCorrupted:
        raise
    except ValueError as error:
        raise DataCorrupted(f"{name} cannot be aligned: {error}") from error
    stream = io.BytesIO()
    # colours at full resolution: a face of 112 pixels has none to spare
    image.save(stream, "PNG" if png else "JPEG", **({} if png else {"quality": 95, "subsampling": 0}))
    return stream.getvalue()


def _items(selection: Selection, points: Points | None, width: int, png: bool) -> Iterator[tuple[bytes, int]]:
    faces = selection.faces
    for row, label in zip(selection.rows.tolist(), selection.labels.tolist(), strict=True):
        raw, _ = faces.encoded(row)
        if points is not None:
            key = faces.key(row)
            if key not in points:
                raise DataCorrupted(f"the landmarks lack {key}, an image of {faces.path}")
            raw = aligned(raw, points[key], f"{key} of {faces.path}", width, png)
        yield raw, label


def write_folder(path: str | Path, images: Iterable[bytes], labels: Iterable[int]) -> None:
    """Writes files to the folder `path`, which must not exist yet, one folder a class with its number for a name."""
    path = Path(path)
    if path.exists():
        raise ValueError(f"path must be a folder that does not exist yet, got {path}")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        for name, image in _named(images, labels):
            file = part / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)
        os.replace(part, path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def write_zip(path: str | Path, images: Iterable[bytes], labels: Iterable[int]) -> None:
    """Writes the folder of `write_folder` as one zip, its files as they are: they are compressed already."""
    with open_atomic(Path(path)) as stream, zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as bundle:
        for name, image in _named(images, labels):
            # the same images make the same file
            bundle.writestr(zipfile.ZipInfo(name), image)


def _named(images: Iterable[bytes], labels: Iterable[int]) -> Iterator[tuple[str, bytes]]:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        yield f"{label:07}/{number:09}.{image_suffix(image)}", image


def write_faces(
    target: str | Path,
    selection: Selection,
    points: Points | None = None,
    *,
    width: int = SIZE,
    png: bool = False,
    per_tar: int = 10_000,
    shown: Callable[..., Iterator[tuple[bytes, int]]] | None = None,
) -> None:
    """Writes the images of `selection` in the format that the name of `target` says, aligned if `points` are given.

    `.rec` with header and identities as insightface packs its sets, if the labels ascend; `.tar`, with `{}` in the name
    many; `.zip`; `.parquet`; `.lmdb`; else a folder. `shown` is what an iterator is wrapped in to show progress. Raises
    `ValueError` for another name and `DataCorrupted` for an image that is damaged or has no points.
    """
    target = Path(target)
    if (times := selection.faces.rereads(selection.rows)) > REREADS:
        raise ValueError(
            f"order must be 'stored' for {selection.faces.path}: in another one it would be read {times:.0f} times over"
        )
    items = _items(selection, points, width, png)
    first, second = tee(shown(items, total=len(selection.rows)) if shown else items)
    images, labels = (image for image, _ in first), (label for _, label in second)
    kind = target.suffix.lower()
    if kind == ".rec":
        write_records(target, images, labels, identities=bool((np.diff(selection.labels) >= 0).all()))
    elif kind == ".tar":
        write_tars(target, images, labels, per_tar)
    elif kind == ".zip":
        write_zip(target, images, labels)
    elif kind == ".parquet":
        write_parquet(target, images, labels)
    elif kind == ".lmdb":
        write_lmdb(target, images, labels)
    elif not kind:
        write_folder(target, images, labels)
    else:
        raise ValueError(f"target must end with {TARGETS}, got {target.name}")


def write_pairs(target: str | Path, pairs: FacePairs) -> None:
    """Writes verification pairs as `.bin` (insightface) or `.parquet`; raises `ValueError` for another name."""
    target = Path(target)
    if target.suffix == ".parquet":
        write_parquet_pairs(target, pairs)
    elif target.suffix == ".bin":
        write_facebin(target, list(zip(pairs.encoded[0::2], pairs.encoded[1::2], strict=True)), pairs.same)
    else:
        raise ValueError(f"target of pairs must end with .bin or .parquet, got {target.name}")
