"""Media averaging of templates: pencil, plain loops, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.evaluation import template_features, templates


def plain(features, template_ids, media_ids):
    rows = []
    for template in sorted(set(template_ids.tolist())):
        inside = template_ids == template
        means = [features[inside & (media_ids == medium)].mean(0) for medium in sorted(set(media_ids[inside].tolist()))]
        mean = np.mean(means, axis=0)
        rows.append(mean / np.linalg.norm(mean))
    return np.array(rows)


def test_by_pencil():
    # template 7: a still (2, 0) and a video of three frames (0, 1), (0, 2), (0, 3), whose mean is (0, 2)
    features = np.array([[2.0, 0], [0, 1], [0, 2], [0, 3], [3, 4]])
    ids, media = np.array([7, 7, 7, 7, 2]), np.array([0, 1, 1, 1, 1])
    half = 2**-0.5
    assert np.allclose(template_features(features, ids, media), [[0.6, 0.8], [half, half]], atol=1e-15)
    # each image its own medium: (2, 6) / 4
    assert np.allclose(template_features(features, ids)[1], np.array([1, 3]) / 10**0.5, atol=1e-15)


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_against_plain_loops(seed, rows):
    generator = np.random.default_rng(seed)
    features = generator.normal(size=(rows, 5))
    ids, media = generator.integers(-3, 4, rows), generator.integers(-2, 3, rows)
    found = template_features(features, ids, media)
    assert np.allclose(found, plain(features, ids, media), atol=1e-12)
    assert np.allclose(template_features(features, ids), plain(features, ids, np.arange(rows)), atol=1e-12)
    order = generator.permutation(rows)
    assert np.allclose(template_features(features[order], ids[order], media[order]), found, atol=1e-12)
    assert np.allclose(template_features(1e-3 * features, ids, media), found, atol=1e-12)
    # repeating every frame of every medium changes nothing
    twice = [np.concatenate((x, x)) for x in (features, ids, media)]
    assert np.allclose(template_features(*twice), found, atol=1e-12)


def test_blocks_do_not_matter(monkeypatch):
    generator = np.random.default_rng(0)
    features, ids = generator.normal(size=(50, 4)), generator.integers(0, 9, 50)
    base = template_features(features, ids, ids % 2)
    monkeypatch.setattr(templates, "_ROWS", 7)
    assert np.allclose(template_features(features, ids, ids % 2), base, atol=1e-15)


def test_kinds_are_kept():
    features, ids = np.random.default_rng(0).normal(size=(12, 3)), np.arange(12) // 3
    exact = template_features(features, ids)
    assert isinstance(exact, np.ndarray) and exact.dtype == np.float64
    assert template_features(features.astype(np.float32), ids).dtype == np.float32
    assert template_features(features.astype(np.float16), ids).dtype == np.float32
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        found = template_features(torch.tensor(features, dtype=dtype, requires_grad=True), torch.tensor(ids))
        assert isinstance(found, torch.Tensor) and not found.requires_grad
        assert found.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert np.allclose(found, exact, atol=0.03)


@pytest.mark.parametrize(
    ("features", "ids", "media", "error", "words"),
    [
        ([[1.0, 2.0], [-1.0, -2.0]], [4, 4], None, ValueError, "template 4 has a zero mean"),
        ([[0.1, 0.7], [0.2, 1.4], [-0.3, -2.1]], [4, 4, 4], None, ValueError, "template 4 has a zero mean"),
        ([[0.0, 0.0], [1.0, 0.0]], [3, 4], None, ValueError, "template 3 has a zero mean"),
        ([[1.0, float("nan")]], [0], None, ValueError, "NaN"),
        ([[1.0, float("inf")]], [0], None, ValueError, "infinite"),
        (np.zeros((0, 2)), [], None, ValueError, "rows"),
        ([1.0, 2.0], [0, 1], None, ValueError, "rows"),
        ([[1, 2]], [0], None, TypeError, "floating"),
        ([[1.0, 2.0]], [0, 1], None, ValueError, "template_ids must have 1"),
        ([[1.0, 2.0]], [0.0], None, TypeError, "template_ids must be integers"),
        ([[1.0, 2.0]], [0], [0, 1], ValueError, "media_ids must have 1"),
        ([[1.0, 2.0]], [0], [True], TypeError, "media_ids must be integers"),
    ],
)
def test_wrong_input_is_named(features, ids, media, error, words):
    with pytest.raises(error, match=words):
        template_features(np.array(features), np.array(ids), None if media is None else np.array(media))
