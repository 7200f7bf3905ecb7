from __future__ import annotations

import dataclasses
import gzip
from pathlib import Path

import numpy as np
import pytest
import torch

from reprolib.data import DataCorrupted, DataUnavailable, data_root, fetch, load
from reprolib.data.arrays import checksum
from reprolib.data.datasets import RECIPES
from reprolib.data.files import gunzip
from reprolib.data.idx import FASHION_MNIST, FILES, MNIST, encode_idx


def test_an_idx_file_is_what_the_format_says():
    array = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    by_hand = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (2, 3, 4)) + bytes(range(24))
    assert encode_idx(array) == by_hand


def test_gunzip_refuses_a_bomb_and_every_truncation():
    content = bytes(range(256)) * 16
    raw = gzip.compress(content)
    assert gunzip(raw, "bomb.gz", len(content)) == content
    with pytest.raises(DataCorrupted, match=r"bomb\.gz holds more than the 4095 bytes"):
        gunzip(raw, "bomb.gz", len(content) - 1)
    for keep in range(len(raw)):
        with pytest.raises(DataCorrupted, match=r"^bomb\.gz is"):
            gunzip(raw[:keep], "bomb.gz", len(content))


def test_load_returns_the_files_as_tensors(tiny, tmp_path):
    tiny.write(tmp_path / "mnist")
    loaded = load("mnist", tmp_path)
    assert loaded.name == "mnist" and loaded.num_classes == 10
    for images, labels, split, count in (
        (loaded.train_images, loaded.train_labels, "train", 30),
        (loaded.test_images, loaded.test_labels, "test", 10),
    ):
        assert images.dtype == torch.uint8 and images.shape == (count, 1, 28, 28)
        assert labels.dtype == torch.int64 and labels.shape == (count,)
        assert np.array_equal(images[:, 0].numpy(), tiny.arrays[f"{split}_images"])
        assert np.array_equal(labels.numpy(), tiny.arrays[f"{split}_labels"])
    assert loaded.fingerprint == checksum(tiny.arrays)[:16]
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.name = "other"


def test_load_is_silent_when_the_files_are_there(tiny, tmp_path, capsys):
    tiny.store(tmp_path / "mnist")
    load("mnist", tmp_path)
    assert capsys.readouterr() == ("", "")


def test_load_places_the_tensors_on_the_asked_device(tiny, tmp_path):
    tiny.write(tmp_path / "mnist")
    loaded = load("mnist", tmp_path, device="meta")
    assert {loaded.train_images.device.type, loaded.test_labels.device.type} == {"meta"}


@pytest.mark.parametrize("name", ["orl", "MNIST", "", "cifar10"])
def test_load_of_an_unknown_name_lists_the_allowed(name):
    with pytest.raises(ValueError, match="allowed are mnist, fashion_mnist, digits"):
        load(name)


def test_fetch_of_an_unknown_name_lists_the_allowed(tmp_path):
    with pytest.raises(ValueError, match="'lwf'; allowed are mnist, fashion_mnist, orl, lfw, cifar10, digits"):
        fetch("lwf", tmp_path)


def test_load_without_the_data_says_what_to_do(tiny, tmp_path):
    with pytest.raises(DataUnavailable, match=r"mnist cannot be had.*Do something about it\."):
        load("mnist", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_digits_are_the_bilinear_enlargement_of_the_original():
    from sklearn.datasets import load_digits

    original = load_digits()
    grey = torch.from_numpy(original.images).unsqueeze(1)
    expected = torch.nn.functional.interpolate(grey, size=(28, 28), mode="bilinear") * 255 / 16
    loaded = load("digits")
    images = torch.cat([loaded.train_images, loaded.test_images])
    labels = torch.cat([loaded.train_labels, loaded.test_labels])
    assert images.dtype == torch.uint8 and images.shape == (1797, 1, 28, 28) and images.max() == 255
    # the split permutes the images: find each one's original by its nearest enlargement
    distance = torch.cdist(images.flatten(1).double(), expected.flatten(1))
    nearest = distance.argmin(dim=1)
    assert len(nearest.unique()) == 1797
    assert (images - expected[nearest]).abs().max() <= 0.5 + 1e-9
    assert torch.equal(labels, torch.from_numpy(original.target)[nearest])


def test_digits_split_is_stratified_and_fixed():
    one, two = load("digits"), load("digits")
    assert one.fingerprint == two.fingerprint and torch.equal(one.test_images, two.test_images)
    train, test = one.train_labels.bincount(minlength=10), one.test_labels.bincount(minlength=10)
    assert ((test / (train + test) - 0.2).abs() < 0.005).all()


def test_fetch_of_digits_is_a_note(tmp_path, capsys):
    assert fetch("digits", tmp_path) == tmp_path
    assert capsys.readouterr().err == "digits: nothing to fetch, scikit-learn brings it\n"
    assert list(tmp_path.iterdir()) == []


def test_data_root_is_the_environment_variable_else_the_project(monkeypatch, tmp_path):
    monkeypatch.setenv("REPROLIB_DATA", str(tmp_path / "elsewhere"))
    assert data_root() == tmp_path / "elsewhere"
    monkeypatch.delenv("REPROLIB_DATA")
    (tmp_path / "pyproject.toml").touch()
    (tmp_path / "data_scripts").mkdir()
    (tmp_path / "notebooks" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "notebooks" / "deep")
    assert data_root() == Path.cwd().parents[1] / "data" and data_root("here") == Path("here")


@pytest.mark.parametrize("recipe", [MNIST, FASHION_MNIST], ids=lambda recipe: recipe.name)
def test_the_real_data_set_if_this_machine_has_it(recipe):
    stored = data_root() / recipe.name / recipe.file
    sources = [folder / FILES["train_images"] for folder in (data_root() / recipe.name, *recipe.system_folders)]
    if not any(path.is_file() for path in (stored, *sources)):
        pytest.skip(f"{recipe.name} is not on this machine")
    loaded = load(recipe.name)
    assert loaded.train_images.shape == (60_000, 1, 28, 28) and loaded.test_images.shape == (
        10_000,
        1,
        28,
        28,
    )
    assert loaded.train_labels.shape == (60_000,) and loaded.test_labels.shape == (10_000,)
    expected = {
        # class sizes of the test sets as published; MNIST's are not equal
        "mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
        "fashion_mnist": [1000] * 10,
    }
    assert loaded.test_labels.bincount().tolist() == expected[recipe.name]
    # the mean grey levels that go with these sets everywhere: 0.1307 and 0.2860
    mean = {"mnist": 0.1307, "fashion_mnist": 0.2860}
    assert loaded.train_images.double().mean().item() / 255 == pytest.approx(mean[recipe.name], abs=5e-5)
    assert loaded.train_labels[:5].tolist() == {"mnist": [5, 0, 4, 1, 9], "fashion_mnist": [9, 0, 0, 3, 0]}[recipe.name]


def test_recipes_agree_with_the_published_sizes():
    assert set(RECIPES) == {"mnist", "fashion_mnist", "orl", "lfw", "cifar10"}
    for recipe in (MNIST, FASHION_MNIST):
        # a header of 4 bytes and 4 an axis, then the values
        sizes = [4 + 4 * len(shape) + int(np.prod(shape)) for shape in recipe.shapes.values()]
        assert sorted(sizes) == [10_008, 60_008, 7_840_016, 47_040_016]
        assert set(recipe.md5) == set(recipe.shapes) == set(FILES)
