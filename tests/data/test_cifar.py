"""CIFAR-10 on a stand-in of 6 x 20 images: every layout gives the same tensors, anything else is refused."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import re
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from reprolib.data import DataCorrupted, DataUnavailable, data_root, datasets, fetch, load_cifar10
from reprolib.data.cifar import JPEG, ORIGINAL, PICKLES_MD5, CifarRecipe
from reprolib.data.files import Tree

BATCHES = list(PICKLES_MD5)


def tar(files: dict[str, bytes], prefix: str = "") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as bundle:
        for name, raw in files.items():
            info = tarfile.TarInfo(prefix + name)
            info.size = len(raw)
            bundle.addfile(info, io.BytesIO(raw))
    return stream.getvalue()


class FakeCifar:
    """Six batches of 20 images, two of each class, as binary records, as pickles and as JPEG files."""

    def __init__(self) -> None:
        rng = np.random.default_rng(4)
        self.images = rng.integers(0, 256, (120, 3, 32, 32), dtype=np.uint8)
        self.labels = np.concatenate([rng.permutation(np.repeat(np.arange(10), 2)) for _ in BATCHES]).astype(np.uint8)
        parts = list(zip(BATCHES, self.images.reshape(6, 20, 3072), self.labels.reshape(6, 20), strict=True))
        self.binary = {
            f"{name}.bin": np.column_stack([labels, pixels]).astype(np.uint8).tobytes()
            for name, pixels, labels in parts
        }
        self.pickled = {
            name: pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, protocol=3)
            for name, pixels, labels in parts
        }
        self.recipe = CifarRecipe()
        self.recipe.batch = 20
        self.recipe.pickles_md5 = {name: hashlib.md5(raw).hexdigest() for name, raw in self.pickled.items()}
        self.archive = tar(self.binary, "cifar-10-batches-bin/")
        self.recipe.archives_md5 = {hashlib.md5(self.archive).hexdigest(): "binary"}

    def jpeg(self, **change) -> dict[str, bytes]:
        """The two .npz files; `change` replaces arrays of the one for training."""
        out = {}
        for name, rows in (("train", slice(0, 100)), ("test", slice(100, 120))):
            coded = []
            for image in self.images[rows]:
                stream = io.BytesIO()
                Image.fromarray(image.transpose(1, 2, 0)).save(stream, "JPEG", quality=95)
                coded.append(stream.getvalue()[20:])
                prefix = stream.getvalue()[:20]
            arrays = {
                "prefix": np.frombuffer(prefix, np.uint8),
                "data": np.frombuffer(b"".join(coded), np.uint8),
                "offsets": np.cumsum([0, *map(len, coded)]).astype(np.int64),
                "labels": self.labels[rows],
                "classes": np.array(["airplane"]),
            }
            stream = io.BytesIO()
            np.savez_compressed(stream, **{**arrays, **(change if name == "train" else {})})
            out[f"cifar10_{name}_jpeg.npz"] = stream.getvalue()
        return out


@pytest.fixture
def fake(monkeypatch, network) -> FakeCifar:
    fake = FakeCifar()
    monkeypatch.setattr(datasets, "CIFAR10", fake.recipe)
    monkeypatch.setitem(datasets.RECIPES, "cifar10", fake.recipe)
    return fake


def put(folder, files: dict[str, bytes]):
    folder.mkdir(parents=True, exist_ok=True)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder


def check(found, fake: FakeCifar) -> None:
    assert found.train_images.shape == (100, 3, 32, 32) and found.test_images.shape == (20, 3, 32, 32)
    assert found.train_images.dtype == torch.uint8 and found.train_labels.dtype == torch.int64
    assert torch.cat([found.train_labels, found.test_labels]).tolist() == fake.labels.tolist()
    assert found.num_classes == 10 and re.fullmatch("[0-9a-f]{16}", found.fingerprint)


@pytest.mark.parametrize("layout", ["mirror", "archive", "binary", "pickles", "stored"])
def test_every_layout_of_the_original_gives_the_same_pixels(fake, tmp_path, network, layout):
    if layout == "mirror":
        network.files[fake.recipe.mirrors[0]] = fake.archive
    elif layout == "archive":
        put(tmp_path / "cifar10", {"cifar-10-binary.tar.gz": fake.archive})
    elif layout == "binary":
        put(tmp_path / "cifar-10-batches-bin", fake.binary)
    elif layout == "pickles":
        put(tmp_path / "cifar-10-batches-py", {**fake.pickled, "batches.meta": b"never read"})
    else:
        fetch("cifar10", tmp_path, put(tmp_path / "source", fake.binary))
    found = load_cifar10(tmp_path)
    check(found, fake)
    assert found.name == ORIGINAL
    assert np.array_equal(torch.cat([found.train_images, found.test_images]).numpy(), fake.images)
    again = load_cifar10(tmp_path)
    assert again.fingerprint == found.fingerprint and (tmp_path / "cifar10" / "cifar10.npz").is_file()
    assert len(network.asked) == (layout == "mirror")


def test_the_jpeg_copy_says_so(fake, tmp_path):
    put(tmp_path / "cifar10_jpeg", fake.jpeg())
    found = load_cifar10(tmp_path)
    check(found, fake)
    assert found.name == JPEG == "CIFAR-10 (JPEG)"
    # noise at quality 95, with its colours at half resolution, is off but not another picture
    difference = torch.cat([found.train_images, found.test_images]).numpy().astype(float) - fake.images
    assert 0 < np.abs(difference).mean() < 60
    put(tmp_path / "other" / "cifar10", fake.binary)
    assert load_cifar10(tmp_path / "other").fingerprint != found.fingerprint


def test_altered_originals_are_refused(fake, tmp_path):
    first = fake.binary["data_batch_1.bin"]
    evil = fake.pickled | {"data_batch_1": pickle.dumps(print, protocol=2)}
    trusted = pickle.dumps(print, protocol=2)
    bad = {
        "has 61459 bytes instead of 61460": fake.binary | {"data_batch_1.bin": first[:-1]},
        "with labels from 0 to 9": fake.binary | {"data_batch_1.bin": b"\x0a" + first[1:]},
        "instead of equally many": fake.binary | {"data_batch_1.bin": bytes([(first[0] + 1) % 10]) + first[1:]},
        "MD5": evil,
        "must have the published MD5": {"cifar-10-binary.tar.gz": fake.archive[:-1]},
        "nothing of this data set": {key: fake.binary[key] for key in list(fake.binary)[:5]},
    }
    for number, (message, files) in enumerate(bad.items()):
        with pytest.raises(DataUnavailable, match=message):
            fetch("cifar10", tmp_path / "root", put(tmp_path / f"source{number}", files))
        assert not (tmp_path / "root").exists()
    # even a pickle of the right checksum may ask for nothing but arrays
    fake.recipe.pickles_md5 = fake.recipe.pickles_md5 | {"data_batch_1": hashlib.md5(trusted).hexdigest()}
    with pytest.raises(DataUnavailable, match=r"print, which is not allowed"):
        fetch("cifar10", tmp_path / "root", put(tmp_path / "trusted", evil))


def test_altered_jpeg_copies_are_refused(fake, tmp_path):
    files = fake.jpeg()
    with np.load(io.BytesIO(files["cifar10_train_jpeg.npz"])) as stored:
        offsets, data = stored["offsets"], stored["data"]
    backwards = offsets.copy()
    backwards[5] = backwards[7]
    bad = {
        "offsets do not cut": {"offsets": backwards},
        "does not hold 100 images": {"offsets": offsets[:-1]},
        "no readable array offsets .*its header does not promise <i8": {"offsets": offsets.astype(np.int32)},
        "no readable array data": {"data": np.array([print], dtype=object)},
        "no readable array prefix .*its header": {"prefix": np.zeros(3)},
        "image 0 of .* is no readable JPEG": {"data": np.zeros_like(data)},
        "labels from 0 to 9": {"labels": np.full(100, 10, np.uint8)},
        r"holds labels of shape \(100, 1\)": {"labels": np.zeros((100, 1), np.uint8)},
        "instead of equally many": {"labels": np.zeros(100, np.uint8)},
    }
    for number, (message, change) in enumerate(bad.items()):
        with pytest.raises(DataUnavailable, match=message):
            fetch("cifar10", tmp_path / "root", put(tmp_path / f"source{number}", fake.jpeg(**change)))
    short = files | {"cifar10_test_jpeg.npz": files["cifar10_test_jpeg.npz"][:-50]}
    with pytest.raises(DataUnavailable, match="cifar10_test_jpeg"):
        fetch("cifar10", tmp_path / "root", put(tmp_path / "short", short))


def test_tar_archives_are_read_with_bounds(monkeypatch):
    raw = tar({"a/b": b"one", "c": b"two"}, "./")
    tree = Tree.tarball(raw, "T")
    assert tree.names == ["a/b", "c"] and tree.read("a/b", 3) == b"one"
    for broken in (raw[: len(raw) // 2], b"", b"\x1f\x8b garbage", tarfile.BLOCKSIZE * b"x"):
        with pytest.raises(DataCorrupted, match="T is "):
            Tree.tarball(broken, "T")
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as bundle:
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        bundle.addfile(link)
    assert Tree.tarball(stream.getvalue(), "T").names == []
    monkeypatch.setattr("reprolib.data.files.NAME_LIMIT", 1)
    with pytest.raises(DataCorrupted, match=r"T is not a readable tar archive .it has more than 1 members"):
        Tree.tarball(raw, "T")
    with pytest.raises(DataCorrupted, match=r"T holds more than the .* bytes expected"):
        Tree.tarball(gzip.compress(bytes(2**24)), "T")


def test_the_real_set_if_this_machine_has_it():
    root = data_root()
    if not ((root / "cifar10" / "cifar10.npz").is_file() or (root / "cifar10_jpeg").is_dir()):
        pytest.skip("CIFAR-10 is not on this machine")
    found = load_cifar10()
    assert found.name in (ORIGINAL, JPEG)
    assert found.train_images.shape == (50_000, 3, 32, 32) and found.test_labels.bincount().tolist() == [1000] * 10
    # the published means of the training images, in [0, 1]
    means = found.train_images.float().mean(dim=(0, 2, 3)) / 255
    assert torch.allclose(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=5e-4)
