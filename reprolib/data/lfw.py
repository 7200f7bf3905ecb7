"""LFW, "Labeled Faces in the Wild": 13,233 photographs of 5,749 people, aligned to 112 x 112 pixels.

G. Huang, M. Ramesh, T. Berg, E. Learned-Miller, "Labeled Faces in the Wild", UMass Amherst TR 07-49, 2007; for
research and teaching only. Used where losses are compared on people unseen in training (notebooks 04 and 07).

The photographs are stored as JPEG, which decoders do not agree on to the last grey level. So the people and the
numbers of their images are verified by a published count and a hash of all names, the pixels by the checksum that is
stored with them.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from reprolib.data import fetching
from reprolib.data.alignment import SIZE, align
from reprolib.data.arrays import Shape, array_text, check_digest, checksum, text_array
from reprolib.data.faces import FaceDataset
from reprolib.data.fetching import Arrays, Recipe, Stored, announcer, data_root, load_recipe
from reprolib.data.files import DataCorrupted, Tree, gunzip
from reprolib.data.pixels import decode_image, to_grey
from reprolib.data.splits import person_of

COUNT = 13_233
# SHA-256 of the 13,233 keys such as Aaron_Eckhart_0001, sorted, each followed by a newline
KEYS_SHA256 = "9a02ced4d57eec810d0b560297bff5ac6db3e8537c8e29c1932cedfcee899d73"
ARCHIVE_SHA256 = "055f7d9c632d7370e6fb4afc7468d40f970c34a80d4c6f50ffec63f5a8d536c0"
PAIRS_SHA256 = "ea42330c62c92989f9d7c03237ed5d591365e89b3e649747777b70e692dc1592"
LANDMARKS_SHA256 = "e517ec9b03232baaf10c7d5f82f0df6f500bb6cca1ead1126642cd42ff3ad039"
LANDMARKS_URL = (
    "https://raw.githubusercontent.com/clcarwin/sphereface_pytorch/"
    "e2f11f0b0f394cf75b9f65ce8d353e4390b0948c/data/lfw_landmark.txt"
)
ORIGINAL = 250
# (left, upper, right, lower) of what the alignment keeps of an original on average: the mean of its five points,
# fitted to the template, asks for a square of 127 pixels with its centre at (125, 117)
CENTRE = (61, 53, 189, 181)
# how the pixels were made from the originals
ALIGNED, LANDMARKS, CROPPED = "aligned by the source", "five landmarks", "centre crop"
IMAGE_LIMIT, LANDMARKS_LIMIT = 2**20, 2**22
_PATH = re.compile(r"^(?:(?P<base>.*)/)?(?P<person>[^/]{1,100})/(?P=person)_(?P<number>\d{4})\.(?:jpe?g|png)$", re.I)
_LANDMARKS_FILE = re.compile(r"^(?:.*/)?lfw_landmarks?\.txt(?:\.gz)?$", re.I)


@dataclass(frozen=True, eq=False)
class LfwDataset(FaceDataset):
    """LFW: `images` uint8 (N, 3, size, size), RGB, or (N, 1, size, size), grey; `labels` int64 (N,), the person.

    `names` (num_classes,) are the people, `names[labels[i]]` the one on image i; `image_names` (N,) the keys such as
    "Aaron_Eckhart_0001", sorted by person, then number; `alignment` says how the pixels came from the originals.
    """

    names: tuple[str, ...]
    image_names: tuple[str, ...]
    alignment: str

    def to(self, device: str | torch.device) -> LfwDataset:
        """The same set on `device`."""
        return replace(self, images=self.images.to(device), labels=self.labels.to(device))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.image_names)}

    def rows(self, keys: Iterable[str]) -> torch.Tensor:
        """Indices int64 of the images called `keys` ("Name_0001"), on the CPU; raises `ValueError` for unknown ones."""
        keys = list(keys)
        if unknown := [key for key in keys if key not in self._rows]:
            raise ValueError(f"{self.name} has no image {unknown[0]!r} ({len(unknown)} of {len(keys)} unknown)")
        return torch.tensor([self._rows[key] for key in keys], dtype=torch.int64)


class LfwRecipe(Recipe):
    """One .npz of uint8 arrays: `images` (N, 3, 112, 112), `names`, `alignment`, with their checksum.

    It is made from aligned images of 112 x 112 pixels, taken as they are, or from the originals of 250 x 250. Those
    are aligned by their landmarks if a file lfw_landmark.txt (or .gz: path, then x y of five points) lies with them
    or beside their archive, else cut out by `CENTRE`.
    """

    name = "lfw"
    file = "lfw_112.npz"
    mirrors = ("https://ndownloader.figshare.com/files/5976018", "http://vis-www.cs.umass.edu/lfw/lfw.tgz")
    advice = (
        "Connect to the network, or name with --from a folder or zip with the images Name/Name_0001.jpg, aligned to "
        "112 x 112 or original with lfw_landmark.txt, or the archive lfw.tgz, or a folder that holds one of them."
    )
    count = COUNT
    keys_sha256 = KEYS_SHA256
    archive_sha256 = ARCHIVE_SHA256
    landmarks_sha256 = LANDMARKS_SHA256

    @property
    def shapes(self) -> dict[str, Shape]:  # type: ignore[override]
        return {"images": (self.count, 3, SIZE, SIZE), "names": (None,), "alignment": (None,)}

    def verify(self, arrays: Arrays, digest: str, label: str) -> None:
        keys = array_text(arrays["names"], label).splitlines()
        self.verify_keys(keys, label)
        array_text(arrays["alignment"], label)

    def verify_keys(self, keys: list[str], label: str) -> None:
        """Raises `DataCorrupted` naming `label` unless `keys` are those of all images of LFW, in order."""
        if len(keys) != self.count:
            raise DataCorrupted(f"{label} has {len(keys)} images of the {self.count} of LFW")
        names = "".join(f"{key}\n" for key in keys)
        check_digest(names.encode(), (self.keys_sha256,), f"image names of {label}")

    def open(self, raw: bytes, name: str, label: str) -> Tree:
        """As for every set, but a .tgz has to be that of the originals, and one from a mirror gets its landmarks."""
        if not raw.startswith(b"\x1f\x8b"):
            return super().open(raw, name, label)
        check_digest(raw, (self.archive_sha256,), label)
        tree = Tree.tarball(raw, label)
        if label in self.mirrors:
            try:
                tree.beside = self._downloaded_landmarks()
            except (OSError, DataCorrupted) as error:
                announcer(self.name)(f"no landmarks ({error}), so that the images are cut out of the centre")
        return tree

    def _downloaded_landmarks(self) -> Tree:
        raw = fetching.download(LANDMARKS_URL, LANDMARKS_LIMIT)
        check_digest(raw, (self.landmarks_sha256,), LANDMARKS_URL)
        return Tree.memory({"lfw_landmark.txt": raw}, LANDMARKS_URL)

    def candidates(self, tree: Tree) -> Iterator[Callable[[], Arrays]]:
        """Takes all images Name/Name_0001.jpg under one folder."""
        groups: dict[str, dict[str, str]] = {}
        for name in tree.names:
            if match := _PATH.match(name):
                groups.setdefault(match["base"] or "", {})[f"{match['person']}_{match['number']}"] = name
        for base, paths in groups.items():
            yield partial(self.build, tree, paths, f"the folder {base or '.'} in {tree.label}")

    def build(self, tree: Tree, paths: dict[str, str], label: str) -> Arrays:
        """The arrays of the images at `paths` (key -> name in `tree`)."""
        keys = sorted(paths)
        self.verify_keys(keys, label)
        images = np.empty((len(keys), 3, SIZE, SIZE), np.uint8)
        side, points = 0, None
        for row, key in enumerate(tqdm(keys, desc="lfw", leave=False, disable=not sys.stderr.isatty())):
            raw = tree.read(paths[key], IMAGE_LIMIT)
            image = decode_image(raw, f"{paths[key]} in {tree.label}", (side,) if side else (SIZE, ORIGINAL))
            if row == 0:
                side = image.width
                points = _find_landmarks(tree, label) if side == ORIGINAL else None
            if points is not None:
                if key not in points:
                    raise DataCorrupted(f"the landmarks of {label} lack the image {key}")
                try:
                    image = align(image, points[key])
                except ValueError as error:
                    raise DataCorrupted(f"the landmarks of {key} in {label} are no face ({error})") from error
            elif side == ORIGINAL:
                image = image.resize((SIZE, SIZE), Image.Resampling.BILINEAR, CENTRE)
            images[row] = np.asarray(image).transpose(2, 0, 1)
        alignment = ALIGNED if side == SIZE else CROPPED if points is None else LANDMARKS
        names = "".join(f"{key}\n" for key in keys)
        return {"images": images, "names": text_array(names), "alignment": text_array(alignment)}


class PairsRecipe(Recipe):
    """pairs.txt, the 10 x (300 + 300) pairs of LFW's View 2, verified by its SHA-256 and stored as it is."""

    name = "lfw"
    file = "pairs.txt"
    shapes: Mapping[str, Shape] = MappingProxyType({"text": (None,)})
    mirrors = ("https://ndownloader.figshare.com/files/5976006", "http://vis-www.cs.umass.edu/lfw/pairs.txt")
    advice = "Connect to the network, or name a folder that holds pairs.txt with --from."
    sha256 = PAIRS_SHA256

    def verify(self, arrays: Arrays, digest: str, label: str) -> None:
        check_digest(arrays["text"].tobytes(), (self.sha256,), label)

    def unpack(self, raw: bytes, label: str) -> Stored:
        arrays = {"text": np.frombuffer(raw, np.uint8)}
        self.verify(arrays, "", label)
        return arrays, checksum(arrays)

    def pack(self, arrays: Arrays) -> bytes:
        return arrays["text"].tobytes()

    def stored(self, tree: Tree) -> list[str]:
        # a mirror may give the file a number for a name
        return [name for name in tree.names if name.endswith(self.file)] or (tree.names if len(tree.names) == 1 else [])


LFW, LFW_PAIRS = LfwRecipe(), PairsRecipe()


def parse_landmarks(raw: bytes, label: str) -> dict[str, np.ndarray]:
    """Five points (5, 2) in pixels for each key, from lines `Name/Name_0001.jpg x1 y1 .. x5 y5`.

    Raises `DataCorrupted` naming `label` and the line for another form, a point outside of the image and a key twice.
    """
    points: dict[str, np.ndarray] = {}
    # bytes that are no text are no path either
    for number, line in enumerate(raw.decode("latin-1").splitlines(), start=1):
        fields = line.split()
        match = _PATH.match(fields[0]) if len(fields) == 11 else None
        values = np.full(10, np.nan)
        with contextlib.suppress(ValueError):
            values = np.array(fields[1:], float)
        # a comparison with NaN is false
        if match is None or not ((values >= 0) & (values <= ORIGINAL)).all():
            raise DataCorrupted(f"line {number} of {label} is not a path and ten numbers from 0 to {ORIGINAL}")
        key = f"{match['person']}_{match['number']}"
        if key in points:
            raise DataCorrupted(f"line {number} of {label} names {key} again")
        points[key] = values.reshape(5, 2)
    return points


def _find_landmarks(tree: Tree, label: str) -> dict[str, np.ndarray] | None:
    for place in (tree, *([tree.beside] if tree.beside else [])):
        for name in place.names:
            if _LANDMARKS_FILE.match(name):
                if "funneled" in label:
                    raise DataCorrupted(f"{label} is a funneled version, {name} has the landmarks of the original one")
                raw = place.read(name, LANDMARKS_LIMIT)
                if name.lower().endswith(".gz"):
                    raw = gunzip(raw, f"{name} in {place.label}", LANDMARKS_LIMIT)
                return parse_landmarks(raw, f"{name} in {place.label}")
    return None


def load_lfw(root: str | Path | None = None, device: str | torch.device = "cpu", *, grey: bool = False) -> LfwDataset:
    """All 13,233 images of LFW on `device`, RGB or `grey`, 112 x 112 pixels.

    Made from the images in `root`/lfw (a zip, an archive or folders), stored there as one file if it can be written
    to, and fetched first if `root` has neither. `fingerprint` is that of the stored pixels, and whether they were made
    grey. Raises `DataUnavailable`.
    """
    arrays, digest = load_recipe(LFW, data_root(root))
    parts = [torch.from_numpy(images.copy()) for images in np.array_split(arrays["images"], 32)]
    images = torch.cat([to_grey(part) if grey else part for part in parts])
    keys = array_text(arrays["names"], LFW.name).splitlines()
    if grey:
        digest = checksum({"source": text_array(f"{digest} {SIZE} True")})
    return lfw_dataset(LFW.name, images, keys, digest, array_text(arrays["alignment"], LFW.name)).to(device)


def lfw_dataset(name: str, images: torch.Tensor, keys: Sequence[str], digest: str, alignment: str) -> LfwDataset:
    """The data set of `images` (N, C, S, S) called `keys` ("Name_0001"), people numbered in alphabetical order."""
    people = [person_of(key) for key in keys]
    names = tuple(sorted(set(people)))
    number = {person: label for label, person in enumerate(names)}
    labels = torch.tensor([number[person] for person in people], dtype=torch.int64)
    return LfwDataset(name, images, labels, len(names), digest[:16], names, tuple(keys), alignment)


def lfw_pairs(root: str | Path | None = None) -> Path:
    """Path of the verified pairs.txt of LFW's View 2 in `root`/lfw, fetched first if missing or damaged.

    Raises `DataUnavailable`.
    """
    folder = data_root(root)
    load_recipe(LFW_PAIRS, folder)
    return folder / LFW_PAIRS.name / LFW_PAIRS.file
