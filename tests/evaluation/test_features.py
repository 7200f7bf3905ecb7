"""Flip merging, centring and pair cosines: pencil, plain loops, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.evaluation import (
    all_pairs_cosines,
    centred_cosines,
    features,
    flip_concat,
    flip_sum,
    pair_cosines,
    verification_accuracy,
)

IMAGE, MIRROR = np.array([[3.0, 0.0], [1.0, 1.0]]), np.array([[0.0, 4.0], [1.0, -1.0]])


def draw(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def plain_cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def test_merging_by_pencil():
    half = 0.5**0.5
    assert np.allclose(flip_sum(IMAGE, MIRROR), [[0.6, 0.8], [1, 0]], atol=1e-15)
    # both of length one before the sum: (1, 0) + (0, 1)
    assert np.allclose(flip_sum(IMAGE, MIRROR, unit_first=True), [[half, half], [1, 0]], atol=1e-15)
    assert np.allclose(flip_concat(IMAGE, MIRROR), [[0.6, 0, 0, 0.8], [0.5, 0.5, 0.5, -0.5]], atol=1e-15)
    assert np.allclose(flip_concat(IMAGE, MIRROR, unit_first=True)[0], [half, 0, 0, half], atol=1e-15)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_merging_invariances(seed, scale):
    f, g, h, k = draw(seed, 4, 6, 5)
    for merge in (flip_sum, flip_concat):
        for unit_first in (False, True):
            merged = merge(f, g, unit_first=unit_first)
            assert np.allclose(np.linalg.norm(merged, axis=1), 1, atol=1e-14)
            assert np.allclose(merge(scale * f, scale * g, unit_first=unit_first), merged, atol=1e-12)
            swapped = pair_cosines(merge(g, f, unit_first=unit_first), merge(k, h, unit_first=unit_first))
            straight = pair_cosines(merged, merge(h, k, unit_first=unit_first))
            assert np.allclose(swapped, straight, atol=1e-12)
    # the cosine of unit halves laid side by side is the mean of the two cosines
    mean = (pair_cosines(f, h) + pair_cosines(g, k)) / 2
    sides = pair_cosines(flip_concat(f, g, unit_first=True), flip_concat(h, k, unit_first=True))
    assert np.allclose(sides, mean, atol=1e-12)
    # only with unit halves does the length of the mirrored feature not matter
    assert np.allclose(flip_sum(f, scale * g, unit_first=True), flip_sum(f, g, unit_first=True), atol=1e-12)


def test_an_image_that_is_its_own_mirror_stays():
    f, h = draw(0, 2, 7, 4)
    for merge in (flip_sum, flip_concat):
        assert np.allclose(pair_cosines(merge(f, f), merge(h, h)), pair_cosines(f, h), atol=1e-14)


def test_kinds_are_kept():
    f, g = draw(1, 2, 5, 3)
    for merge in (flip_sum, flip_concat):
        exact = merge(f, g)
        assert exact.dtype == np.float64 and merge(f.astype(np.float16), g.astype(np.float16)).dtype == np.float32
        tensor = merge(torch.tensor(f, dtype=torch.bfloat16, requires_grad=True), torch.tensor(g, dtype=torch.bfloat16))
        assert tensor.dtype == torch.float32 and not tensor.requires_grad and np.allclose(tensor, exact, atol=0.02)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 6))
def test_pair_cosines_against_a_loop(seed, rows, dimension):
    a, b = draw(seed, 2, rows, dimension)
    plain = [plain_cosine(x, y) for x, y in zip(a, b, strict=True)]
    assert np.allclose(pair_cosines(a, b), plain, atol=1e-14)
    assert np.allclose(pair_cosines(1e200 * a, 1e-200 * b), plain, atol=1e-14)
    assert (pair_cosines(a, a) <= 1).all() and np.allclose(pair_cosines(torch.tensor(a), b), plain, atol=1e-14)


def test_centring_by_pencil():
    # fold 1's four features have mean (1, 0): fold 0 is compared after (2, 1) -> (1, 1) and (1, 1) -> (0, 1)
    first = np.array([[2.0, 1.0], [3.0, 0.0], [0.0, 0.0]])
    second = np.array([[1.0, 1.0], [0.0, 2.0], [1.0, -2.0]])
    found = centred_cosines(first, second, np.array([0, 1, 1]))
    assert found.shape == (2, 3) and found[0, 0] == pytest.approx(0.5**0.5)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_centring_against_a_loop(seed):
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=(2, 12, 4)) + 2
    ids = generator.permutation(np.repeat([7, -1, 3], 4))
    found = centred_cosines(a, b, ids)
    for row, fold in zip(found, (-1, 3, 7), strict=True):
        pool = [x for side in (a, b) for x, i in zip(side, ids, strict=True) if i != fold]
        mean = sum(pool) / len(pool)
        assert np.allclose(row, [plain_cosine(x - mean, y - mean) for x, y in zip(a, b, strict=True)], atol=1e-12)
    # a constant added to every feature is removed again
    assert np.allclose(centred_cosines(a + 5, b + 5, ids), found, atol=1e-11)


def test_accuracy_takes_the_scores_of_each_fold():
    generator = np.random.default_rng(3)
    same = np.tile([1, 0], 20)
    a = generator.normal(size=(40, 6))
    b = np.where(same[:, None], a + 0.7 * generator.normal(size=a.shape), generator.normal(size=a.shape)) + 1.5
    a, ids = a + 1.5, np.repeat(np.arange(4), 10)
    scores = centred_cosines(a, b, ids)
    result = verification_accuracy(scores, same, ids, convention="sphereface")
    for fold in range(4):
        alone = verification_accuracy(scores[fold], same, ids, convention="sphereface")
        assert result.fold_accuracies[fold] == alone.fold_accuracies[fold]
        assert result.fold_thresholds[fold] == alone.fold_thresholds[fold]
    # the same scores for every fold are the scores themselves
    assert verification_accuracy(np.tile(scores[1], (4, 1)), same, 4) == verification_accuracy(scores[1], same, 4)
    with pytest.raises(ValueError, match=r"one row for each of the 4 folds, got shape \(3, 40\)"):
        verification_accuracy(scores[:3], same, ids)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 15))
def test_all_pairs_against_a_loop(seed, rows):
    generator = np.random.default_rng(seed)
    x, labels = generator.normal(size=(rows, 3)), generator.integers(0, 4, rows)
    expected = {True: [], False: []}
    for i in range(rows):
        for j in range(i + 1, rows):
            expected[labels[i] == labels[j]].append(plain_cosine(x[i], x[j]))
    genuine, impostor = all_pairs_cosines(x, labels)
    assert np.allclose(np.sort(genuine), np.sort(expected[True]), atol=1e-13)
    assert np.allclose(np.sort(impostor), np.sort(expected[False]), atol=1e-13)


def test_all_pairs_in_blocks(monkeypatch):
    x, labels = draw(0, 50, 4).astype(np.float32), np.arange(50) // 3
    base = all_pairs_cosines(x, labels)
    monkeypatch.setattr(features, "_CELLS", 120)
    for kind, again in zip(base, all_pairs_cosines(torch.from_numpy(x), labels), strict=True):
        assert again.dtype == np.float32 and np.allclose(np.sort(kind), np.sort(again), atol=1e-6)


@pytest.mark.parametrize("merge", [flip_sum, flip_concat, pair_cosines])
def test_wrong_features_are_named(merge):
    f = draw(0, 4, 3)
    with pytest.raises(ValueError, match="same shape"):
        merge(f, f[:2])
    with pytest.raises(ValueError, match="NaN"):
        merge(f, np.where(f == f[1, 1], np.nan, f))
    with pytest.raises(TypeError, match="floating"):
        merge(f.astype(int), f)
    with pytest.raises(ValueError, match="zero vector"):
        merge(0 * f, 0 * f)


def test_other_wrong_input_is_named():
    f = draw(0, 4, 3)
    with pytest.raises(ValueError, match="merged features hold a zero vector"):
        flip_sum(f, -f)
    with pytest.raises(ValueError, match="at least 2 different folds"):
        centred_cosines(f, f, np.zeros(4, dtype=int))
    with pytest.raises(ValueError, match="folds must have 4"):
        centred_cosines(f, f, np.arange(3))
    with pytest.raises(ValueError, match="labels must have 4"):
        all_pairs_cosines(f, np.arange(3))
