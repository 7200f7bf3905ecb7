"""Baselines: whitening by its definition, discriminants against scipy's generalised eigenvectors, odd sets."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import linalg

from reprolib.evaluation import baselines, judge


def images(people=25, each=8, seed=0, size=10, offset=0):
    """Faces of low rank under light and noise that say nothing of the person."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), each)
    shapes = np.random.default_rng(99).normal(size=(9, size * size))
    person = generator.normal(size=(people, 6))[labels] @ shapes[:6]
    light = 4 * generator.normal(size=(len(labels), 3)) @ shapes[6:]
    noise = generator.normal(size=(len(labels), size * size))
    return (128 + 8 * (person + light + noise)).clip(0, 255).astype(np.uint8).reshape(
        -1, 1, size, size
    ), labels + offset


def test_within_class_whitening_by_its_definition():
    train, labels = images()
    found = baselines(train, labels, train, components=30)
    rows = found["pca"].astype(np.float64)
    centred = rows - np.stack([rows[labels == k].mean(axis=0) for k in range(25)])[labels]
    assert np.abs(centred.T @ centred / (200 - 25) - np.eye(30)).max() < 1e-3
    # cosines between differences are those of Mahalanobis: any k components whitened span the same metric
    flat = train.reshape(200, -1) / 255 - (train.reshape(200, -1) / 255).mean(axis=0)
    assert found["pixels"] == pytest.approx(flat, abs=1e-6)
    axes = np.linalg.svd(flat, full_matrices=False)[2][:30]
    plain = flat @ axes.T
    within = plain - np.stack([plain[labels == k].mean(axis=0) for k in range(25)])[labels]
    metric = np.linalg.inv(within.T @ within / (200 - 25))
    assert rows @ rows.T == pytest.approx(plain @ metric @ plain.T, rel=1e-3, abs=1e-2)


def test_discriminants_against_generalised_eigenvectors():
    train, labels = images()
    found = baselines(train, labels, train, components=30, discriminants=5)
    rows = found["pca"].astype(np.float64)
    means = np.stack([rows[labels == k].mean(axis=0) for k in range(25)])
    between = np.cov(means.T)
    within = sum(np.cov(rows[labels == k].T) for k in range(25)) / 25
    axes = linalg.eigh(between, within)[1][:, ::-1][:, :5]
    expected = (rows - rows.mean(axis=0)) @ axes
    assert found["lda"].shape == (200, 5)
    # the same directions: canonical correlations of 1 between the two, column by column
    for ours, theirs in zip(found["lda"].T, expected.T, strict=True):
        assert abs(np.corrcoef(ours, theirs)[0, 1]) == pytest.approx(1, abs=1e-4)


def test_people_never_seen_are_told_apart_better_by_what_was_learned():
    train, labels = images(60)
    test, people = images(30, seed=1, offset=100)
    found = baselines(train, labels, test)
    rates = {name: judge(rows, people)["EER"] for name, rows in found.items()}
    assert rates["pca"] < rates["pixels"] - 0.1 and rates["lda"] < rates["pixels"] - 0.1
    again = baselines(train, labels, test)
    assert all(np.array_equal(again[name], found[name]) and found[name].dtype == np.float32 for name in found)


def test_a_set_that_is_smaller_than_what_is_asked():
    train, labels = images(4, 3)
    # 12 images of 4 classes: 8 directions within classes, 3 between
    found = baselines(train, labels, train)
    assert found["pca"].shape == (12, 8) and found["lda"].shape == (12, 3)
    # constant pixels and people of one image
    train[:, :, 0] = 7
    found = baselines(train, np.array([0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6]), train)
    assert all(np.isfinite(rows).all() for rows in found.values())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda x, y: (x / 255, y, x), TypeError, "train_images must be uint8"),
        (lambda x, y: (x, y, x[..., :5]), ValueError, "test_images must have 100 pixels"),
        (lambda x, y: (x, y[:-1], x), ValueError, "train_labels must have"),
        (lambda x, y: (x, 0 * y, x), ValueError, "at least 2 classes"),
        (lambda x, y: (x, np.arange(len(y)), x), ValueError, "one of them of several images"),
        (lambda x, y: (x[:1].repeat(len(y), 0), y, x), ValueError, "differ within some class"),
    ],
)
def test_wrong_input_is_named(change, error, words):
    with pytest.raises(error, match=words):
        baselines(*change(*images(5, 3)))
