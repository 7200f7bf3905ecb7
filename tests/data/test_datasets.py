from __future__ import annotations

import dataclasses
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib.data import DataCorrupted, DataUnavailable, data_root, fetch, load
from reprolib.data.arrays import checksum
from reprolib.data.datasets import RECIPES, fetch_command
from reprolib.data.files import gunzip
from reprolib.data.idx import FASHION_MNIST, FILES, MNIST, encode_idx, parse_idx

small_arrays = st.lists(st.integers(1, 5), min_size=1, max_size=4).flatmap(
    lambda shape: st.binary(min_size=int(np.prod(shape)), max_size=int(np.prod(shape))).map(
        lambda raw: np.frombuffer(raw, np.uint8).reshape(shape)
    )
)


@given(small_arrays)
def test_idx_round_trip_against_the_format_written_by_hand(array):
    by_hand = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    assert encode_idx(array) == by_hand
    assert np.array_equal(parse_idx(by_hand, "file", array.shape), array)


@given(small_arrays, st.data())
def test_truncated_idx_is_refused(array, data):
    content = encode_idx(array)
    keep = data.draw(st.integers(0, len(content) - 1))
    with pytest.raises(DataCorrupted, match=r"^the-file "):
        parse_idx(content[:keep], "the-file")


@given(small_arrays, st.binary(min_size=1, max_size=9))
def test_idx_with_trailing_bytes_is_refused(array, tail):
    with pytest.raises(DataCorrupted, match=r"^the-file has"):
        parse_idx(encode_idx(array) + tail, "the-file")


@given(small_arrays, st.integers(0, 3), st.integers(1, 255))
def test_idx_with_any_wrong_magic_byte_is_refused(array, position, change):
    content = bytearray(encode_idx(array))
    content[position] ^= change
    with pytest.raises(DataCorrupted, match=r"^the-file "):
        parse_idx(bytes(content), "the-file", array.shape)


@given(small_arrays, st.data())
def test_idx_with_oversized_dimensions_is_refused_without_allocating(array, data):
    content = bytearray(encode_idx(array))
    axis = data.draw(st.integers(0, array.ndim - 1))
    wrong = data.draw(st.integers(0, 2**32 - 1).filter(lambda n: n != array.shape[axis]))
    struct.pack_into(">I", content, 4 + 4 * axis, wrong)
    with pytest.raises(DataCorrupted, match=r"^the-file "):
        parse_idx(bytes(content), "the-file")


@given(st.lists(st.integers(0, 2**32 - 1), max_size=3), st.integers(0, 3))
def test_idx_without_values_is_refused(dims, axis):
    dims.insert(min(axis, len(dims)), 0)
    with pytest.raises(DataCorrupted, match=r"^the-file is empty"):
        parse_idx(struct.pack(f">HBB{len(dims)}I", 0, 8, len(dims), *dims), "the-file")


def test_dimensions_whose_product_wraps_round_in_64_bits_are_refused():
    content = struct.pack(">HBB4I", 0, 8, 4, 2**16, 2**16, 2**16, 2**16)
    with pytest.raises(DataCorrupted, match="ask for 18446744073709551616"):
        parse_idx(content, "the-file")


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_parsed_or_refused(raw):
    try:
        array = parse_idx(raw, "the-file")
    except DataCorrupted:
        return
    assert raw.endswith(array.tobytes()) and len(raw) == 4 + 4 * array.ndim + array.size


def test_idx_of_another_shape_is_refused():
    with pytest.raises(DataCorrupted, match=r"the-file has dimensions \(2, 3\) instead of \(3, 2\)"):
        parse_idx(encode_idx(np.zeros((2, 3), np.uint8)), "the-file", (3, 2))


@pytest.mark.parametrize("array", [np.zeros((2, 3), np.float32), np.zeros((0, 3), np.uint8), np.uint8(3)])
def test_encode_idx_refuses_what_idx_bytes_cannot_hold(array):
    with pytest.raises(ValueError, match="IDX takes a non-empty uint8 array"):
        encode_idx(np.asarray(array))


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


def test_load_without_the_data_says_what_to_do_and_falls_back_only_if_allowed(tiny, tmp_path, capsys):
    with pytest.raises(DataUnavailable, match=r"mnist cannot be had.*Do something about it\."):
        load("mnist", tmp_path)
    capsys.readouterr()
    fallback = load("mnist", tmp_path, allow_digits_fallback=True)
    assert fallback.name == "digits"
    assert "digits INSTEAD" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_fallback_is_not_used_while_the_data_is_there(tiny, tmp_path):
    tiny.write(tmp_path / "mnist")
    assert load("mnist", tmp_path, allow_digits_fallback=True).name == "mnist"


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
    assert data_root() == Path.cwd().parents[1] / "data"


def test_fetch_command_gives_one_line_and_an_exit_status(tiny, tmp_path, capsys):
    tiny.write(tmp_path / "source")
    arguments = ["--from", str(tmp_path / "source"), "--to", str(tmp_path / "root")]
    assert fetch_command("mnist", "about", arguments) == 0
    assert capsys.readouterr().err.count("\n") == 1
    assert load("mnist", tmp_path / "root").train_images.shape == (30, 1, 28, 28)
    assert fetch_command("mnist", "about", ["--to", str(tmp_path / "other"), "--quiet"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "mnist cannot be had" in error
    assert fetch_command("mnist", "about", ["--from", str(tmp_path / "absent")]) == 2
    assert "there is no folder or archive" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        fetch_command("mnist", "about", ["--nonsense"])
    assert stopped.value.code == 2


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
