"""Video scores: pencil, plain loops over frame pairs, scikit-learn, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics.pairwise import cosine_similarity

from reprolib.evaluation import (
    histogram_svm_accuracy,
    intersection_kernel,
    video,
    video_histograms,
    video_scores,
)


def draw(seed, videos=5, dimension=4):
    generator = np.random.default_rng(seed)
    ids = np.concatenate((np.arange(videos), generator.integers(0, videos, 3 * videos)))
    return generator.normal(size=(len(ids), dimension)) + 0.3, generator.permutation(ids)


FIRST, SECOND = np.array([0, 1, 4, 2]), np.array([3, 2, 4, 1])


def test_by_pencil():
    # video 1: (1, 0) and (0, 2); video 2: (3, 0). Frame cosines 1 and 0; the mean frame is at 45 degrees.
    features, ids = np.array([[1.0, 0], [0, 2], [3, 0]]), np.array([1, 1, 2])
    assert video_scores(features, ids, [1], [2]) == pytest.approx([0.5])
    assert video_scores(features, ids, [1], [2], method="score_of_mean") == pytest.approx([0.5**0.5])
    assert video_scores(features, ids, [1], [2], max_frames=1) == pytest.approx([1])
    histogram = video_histograms(features, ids, [1], [2], bins=4)
    assert histogram.tolist() == [[0, 0, 0.5, 0.5]]
    assert intersection_kernel(histogram, np.array([[0.25] * 4, [0.0, 0, 1, 0]])).tolist() == [[0.5, 0.5]]


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.sampled_from([None, 1, 2]))
def test_scores_and_histograms_against_all_frame_pairs(seed, most):
    features, ids = draw(seed)
    mean, centre = (
        video_scores(features, ids, FIRST, SECOND, method=method, max_frames=most) for method in video.METHODS
    )
    histograms = video_histograms(features, ids, FIRST, SECOND, bins=7, max_frames=most)
    for row, (a, b) in enumerate(zip(FIRST, SECOND, strict=True)):
        cosines = cosine_similarity(features[ids == a][:most], features[ids == b][:most])
        assert mean[row] == pytest.approx(cosines.mean(), abs=1e-12)
        counts = np.bincount(np.minimum((np.clip(cosines.ravel(), -1, 1) + 1) / 2 * 7, 6).astype(int), minlength=7)
        assert np.allclose(histograms[row], counts / cosines.size, atol=1e-12)
        centres = [
            (features[ids == v][:most] / np.linalg.norm(features[ids == v][:most], axis=1, keepdims=True)).mean(0)
            for v in (a, b)
        ]
        assert centre[row] == pytest.approx(cosine_similarity(*[c[None] for c in centres])[0, 0], abs=1e-12)
    # frames as long as one likes, and either video first
    lengths = np.exp(np.random.default_rng(seed).normal(size=(len(ids), 1)))
    assert np.allclose(video_scores(lengths * features, ids, SECOND, FIRST, max_frames=most), mean, atol=1e-12)
    assert np.allclose(histograms.sum(axis=1), 1)


def test_repeated_frames_and_single_frames():
    features, ids = draw(0)
    for method in video.METHODS:
        once = video_scores(features, ids, FIRST, SECOND, method=method)
        twice = video_scores(np.repeat(features, 2, 0), np.repeat(ids, 2), FIRST, SECOND, method=method)
        assert np.allclose(once, twice, atol=1e-12)
        # videos of one frame are images
        images = video_scores(torch.tensor(features), np.arange(len(ids)), [0, 1], [2, 3], method=method)
        assert np.allclose(images, cosine_similarity(features[:2], features[2:4]).diagonal(), atol=1e-12)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1))
def test_kernel_is_symmetric_and_positive(seed):
    histograms = np.random.default_rng(seed).dirichlet(np.full(6, 0.3), size=8)
    kernel = intersection_kernel(histograms, histograms)
    assert np.allclose(kernel, kernel.T) and np.allclose(kernel.diagonal(), 1)
    assert np.linalg.eigvalsh(kernel).min() > -1e-12
    # min(g, h) = (g + h - |g - h|) / 2
    distance = np.abs(histograms[:, None] - histograms).sum(2)
    assert np.allclose(kernel, 1 - distance / 2, atol=1e-12)


def svm_problem(noise, n=60):
    generator = np.random.default_rng(0)
    same = np.tile([True, False], n // 2)
    shares = np.where(same[:, None], [0.1, 0.2, 0.7], [0.7, 0.2, 0.1])
    mixed = (1 - noise) * shares + noise * generator.dirichlet(np.ones(3), size=n)
    return mixed, same


def test_svm_separates_what_is_separable_and_guesses_what_is_not():
    result = histogram_svm_accuracy(*svm_problem(0.2), 6)
    assert result.accuracy == 1 and result.convention == "hik-svm" and result.fold_thresholds == (0.0,) * 6
    assert result.accuracy.low < 1 and result.accuracy.count == 60
    histograms, same = svm_problem(1.0, 400)
    assert abs(histogram_svm_accuracy(histograms, same, 10).accuracy - 0.5) < 0.12


def test_svm_against_scikit_learn_with_a_kernel_function():
    from sklearn.svm import SVC

    histograms, same = svm_problem(0.85)
    result = histogram_svm_accuracy(histograms, same, 3, cost=2.0)
    for fold in range(3):
        test = np.arange(60) // 20 == fold
        machine = SVC(C=2.0, kernel=lambda a, b: np.array([[np.minimum(g, h).sum() for h in b] for g in a]))
        machine.fit(histograms[~test], same[~test])
        assert result.fold_accuracies[fold] == machine.score(histograms[test], same[test])
    assert 0.5 < result.accuracy < 1


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda f, i: video_scores(f, i, [0], [1], method="max"), "'mean_of_scores', 'score_of_mean'"),
        (lambda f, i: video_scores(f, i, [0], [99]), "video 99 is compared but has no frame"),
        (lambda f, i: video_scores(f, i[:-1], [0], [1]), "video_ids must have"),
        (lambda f, i: video_scores(f, i, [0, 1], [1]), "second must have 2"),
        (lambda f, i: video_scores(f * np.nan, i, [0], [1]), "NaN"),
        (lambda f, i: video_scores(f, i, [0], [1], max_frames=0), "max_frames must be an integer >= 1"),
        (lambda f, i: video_histograms(f, i, [0], [1], bins=0), "bins must be an integer >= 1"),
        (lambda f, i: intersection_kernel(f, f[:, :2]), "same bins"),
        (lambda f, i: histogram_svm_accuracy(f - 9, [0, 1] * 10, 2), "negative"),
        (lambda f, i: histogram_svm_accuracy(abs(f), [0, 1] * 10, 2, cost=0), "cost"),
        (lambda f, i: histogram_svm_accuracy(abs(f), [0, 0] * 5 + [1, 1] * 5, 2), "without fold 0"),
    ],
)
def test_wrong_input_is_named(call, words):
    with pytest.raises(ValueError, match=words):
        call(*draw(0))


def test_a_mean_of_zero_is_named():
    features, ids = np.array([[1.0, 0], [-1, 0], [0, 1]]), np.array([0, 0, 1])
    assert video_scores(features, ids, [0], [1]) == pytest.approx([0])
    with pytest.raises(ValueError, match="mean of zero"):
        video_scores(features, ids, [0], [1], method="score_of_mean")
