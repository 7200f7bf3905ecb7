"""Folds of LFW: nobody is in both parts, the pairs point at the images they name, the small file is what was made."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reprolib.data import lfw_folds
from reprolib.data.lfw import LfwDataset

COUNTS = {"Ann": 3, "Bob": 1, "Cid": 2, "Dee": 4, "Eve": 1, "Fay": 2, "Gus": 5, "Hal": 1}


def people(size: int = 112) -> LfwDataset:
    keys = [f"{name}_{number:04d}" for name, count in COUNTS.items() for number in range(1, count + 1)]
    names = tuple(COUNTS)
    labels = torch.tensor([names.index(key[:-5]) for key in keys])
    pixels = torch.randint(0, 256, (len(keys), 1, size, size), generator=torch.Generator().manual_seed(0))
    return LfwDataset("LFW", pixels.to(torch.uint8), labels, len(names), "0123", names, tuple(keys), "five landmarks")


# fold 0: Ann, Cid; fold 1: Bob, Dee; Eve, Fay, Gus, Hal are outside of the pairs
PAIRS = SimpleNamespace(
    first=["Ann_0001", "Dee_0002", "Ann_0003", "Dee_0001"],
    second=["Ann_0002", "Dee_0004", "Cid_0002", "Bob_0001"],
    folds=np.array([0, 1, 0, 1]),
    same=np.array([True, True, False, False]),
)


def test_a_fold_holds_all_images_of_its_people_and_trains_on_all_others():
    whole = people(8)
    for least, trained in (
        (2, {"Dee": 4, "Fay": 2, "Gus": 5}),
        (1, {"Bob": 1, "Dee": 4, "Eve": 1, "Fay": 2, "Gus": 5, "Hal": 1}),
    ):
        fold = lfw_folds.lfw_fold(whole, PAIRS, 0, least=least)
        assert fold.train_labels.bincount().tolist() == list(trained.values())
        assert fold.test_labels.tolist() == [0, 0, 0, 1, 1]
        wanted = [row for row, key in enumerate(whole.image_names) if key[:-5] in trained]
        assert torch.equal(fold.train_images, whole.images[wanted])
    for (i, j), one, two in zip(
        fold.pairs.tolist(),
        *[[k for k, f in zip(keys, PAIRS.folds, strict=True) if f == 0] for keys in (PAIRS.first, PAIRS.second)],
        strict=True,
    ):
        assert torch.equal(fold.test_images[i], whole.images[whole.image_names.index(one)])
        assert torch.equal(fold.test_images[j], whole.images[whole.image_names.index(two)])
    assert fold.same.tolist() == [True, False]
    assert fold.judged.tolist() == [0, 1, 2, 3, 4]
    # Ann has three images, Cid two; fold 1 has one of Bob and four of Dee
    assert lfw_folds.lfw_fold(whole, PAIRS, 0, most=2).judged.tolist() == [0, 1, 3, 4]
    assert lfw_folds.lfw_fold(whole, PAIRS, 1, most=3).judged.tolist() == [0, 1, 2, 3]
    assert lfw_folds.lfw_fold(whole, PAIRS, 1, most=3).test_labels.tolist() == [0, 1, 1, 1, 1]
    assert len({lfw_folds.lfw_fold(whole, PAIRS, f, least=k).fingerprint for f in (0, 1) for k in (1, 2)}) == 4
    with pytest.raises(ValueError, match="fold"):
        lfw_folds.lfw_fold(whole, PAIRS, 2)


def test_the_small_grey_file_is_the_area_mean_of_the_middle_and_is_made_once(tmp_path, monkeypatch):
    whole, calls = people(), []
    monkeypatch.setattr(lfw_folds, "load_lfw", lambda root, grey: calls.append(grey) or whole)
    made = lfw_folds.load_lfw_grey(48, 96, tmp_path)
    # 96 -> 48: the mean of four pixels, halves up
    middle = whole.images[:, :, 8:104, 8:104].double()
    expected = torch.floor(torch.nn.functional.avg_pool2d(middle, 2) + 0.5).to(torch.uint8)
    assert torch.equal(made.images, expected) and made.image_names == whole.image_names
    assert torch.equal(made.labels, whole.labels) and made.alignment == "five landmarks"
    again = lfw_folds.load_lfw_grey(48, 96, tmp_path)
    assert calls == [True] and torch.equal(again.images, expected) and again.fingerprint == made.fingerprint
    assert again.names == made.names and torch.equal(again.labels, made.labels)
    other = lfw_folds.load_lfw_grey(48, 112, tmp_path)
    assert other.fingerprint != made.fingerprint
    # a damaged file is made again
    (path,) = tmp_path.glob("lfw/grey_96_48.npz")
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    assert torch.equal(lfw_folds.load_lfw_grey(48, 96, tmp_path).images, expected) and len(calls) == 3


@pytest.mark.parametrize(
    ("size", "crop", "message"),
    [
        (4, 112, "size must be"),
        (48, 40, "crop must be"),
        (48, 113, "crop must be an even"),
        (48, 95, "crop must be an even"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(tmp_path, size, crop, message):
    with pytest.raises(ValueError, match=message):
        lfw_folds.load_lfw_grey(size, crop, tmp_path)
