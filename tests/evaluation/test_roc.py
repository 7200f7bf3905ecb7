"""TAR@FAR, EER, AUC and d' against pencil, scikit-learn, scipy and brute force over all thresholds."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu
from sklearn import metrics

from reprolib.evaluation import (
    equal_error_rate,
    roc,
    roc_auc,
    roc_curve,
    tar_at_far,
    threshold_at_far,
)

GENUINE = np.array([0.9, 0.8, 0.7, 0.3])
IMPOSTOR = np.array([0.75, 0.5, 0.4, 0.2, 0.1])
FARS = [0.001, 0.01, 0.1, 0.2, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]

# few distinct values, so that ties within and between the kinds are common
scores = st.lists(st.integers(-5, 5).map(lambda k: k / 4), min_size=1, max_size=15).map(np.array)


def gaussian(genuine=300, impostor=2000, shift=1.5, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(shift, 1, genuine), generator.normal(0, 1, impostor)


def errors_at_all_thresholds(genuine, impostor):
    """(accepted impostors, accepted genuine) for score > t with t below, at and above every score."""
    distinct = np.unique(np.concatenate((genuine, impostor)))
    for threshold in np.concatenate(([-np.inf], distinct)):
        yield int((impostor > threshold).sum()), int((genuine > threshold).sum())


def test_tar_by_pencil():
    # far 0.2 allows one of five: t is the second largest impostor, 0.5; far 0.1 allows none: t = 0.75
    assert threshold_at_far(IMPOSTOR, [0.1, 0.2, 1.0]) == [0.75, 0.5, -np.inf]
    assert tar_at_far(GENUINE, IMPOSTOR, [0.1, 0.2, 1.0]) == [0.5, 0.75, 1.0]
    assert tar_at_far(GENUINE, IMPOSTOR, 0.2) == 0.75
    # a genuine score on the threshold is rejected
    assert tar_at_far(np.array([0.75, 0.9]), IMPOSTOR, 0.1) == 0.5


def test_perfect_and_equal_scores():
    for estimate in tar_at_far(np.array([0.8, 0.9]), np.array([0.1, 0.2]), FARS):
        assert estimate == 1 and estimate.high == 1 and estimate.low < 1
    assert roc_auc(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == 1
    assert equal_error_rate(np.array([0.8, 0.9]), np.array([0.1, 0.2])) == 0
    flat = np.full(50, 0.3)
    assert tar_at_far(flat, flat, 0.001) == 0
    assert roc_auc(flat, flat) == 0.5 and equal_error_rate(flat, flat) == 0.5
    assert tar_at_far(flat, flat, 1.0) == 1
    reversed_scores = np.array([0.1, 0.2]), np.array([0.8, 0.9])
    assert roc_auc(*reversed_scores) == 0 and equal_error_rate(*reversed_scores) == 1
    assert tar_at_far(*reversed_scores, 0.5) == 0


@given(scores, scores, st.sampled_from(FARS))
def test_tar_is_the_best_over_all_thresholds(genuine, impostor, far):
    allowed = Fraction(str(far)) * len(impostor)
    best = max(tar for accepted, tar in errors_at_all_thresholds(genuine, impostor) if accepted <= allowed)
    assert tar_at_far(genuine, impostor, far) == best / len(genuine)


@pytest.mark.parametrize(("far", "impostors", "allowed"), [(0.29, 100, 29), (0.1, 30, 3), (0.57, 100, 57)])
def test_floor_survives_floating_point(far, impostors, allowed):
    values = np.arange(impostors, dtype=np.float64)
    for rate in (far, np.float32(far), np.array(far), torch.tensor(far)):
        assert threshold_at_far(values, rate) == impostors - 1 - allowed
    # just below the round number one impostor less is allowed
    assert threshold_at_far(values, far - 1e-6) == impostors - allowed


def test_every_fraction_of_the_impostors_counts_exactly():
    for impostors in (3, 7, 30, 49, 1000):
        allowed = np.arange(1, impostors + 1)
        assert (roc.allowed_false_accepts(allowed / impostors, impostors) == allowed).all()
    huge = 15_639_000
    assert roc.allowed_false_accepts(np.array([1e-6, 1e-4, 0.1]), huge).tolist() == [15, 1563, 1563900]


def test_many_fars_in_any_order_at_once():
    genuine, impostor = gaussian(500, 20_000)
    fars = [1e-3, 0.5, 1e-4, 1.0, 0.1, 0.1]
    together = tar_at_far(genuine, impostor, fars)
    descending = np.sort(impostor)[::-1]
    for far, estimate in zip(fars, together, strict=True):
        rank = round(far * 20_000)
        threshold = descending[rank] if rank < 20_000 else -np.inf
        assert estimate == np.mean(genuine > threshold) == tar_at_far(genuine, impostor, far)
    assert (impostor == gaussian(500, 20_000)[1]).all(), "the caller's scores must not be reordered"


def test_support_follows_the_ten_impostor_rule():
    genuine, impostor = gaussian(50, 3000)
    fars = [1e-3, 3.3e-3, 10 / 3000, 1e-2]
    assert [e.supported for e in tar_at_far(genuine, impostor, fars)] == [False, False, True, True]
    estimate = tar_at_far(genuine, impostor, 1e-3)
    assert estimate.count == 50 and "Wilson" in estimate.method and estimate.low < estimate < estimate.high


def test_scores_of_different_precision_are_compared_exactly():
    # 0.1 in float32 is above 0.1 in float64
    single, double = np.array([0.1], np.float32), np.array([0.1])
    assert tar_at_far(single, double, 0.5) == 1 and tar_at_far(double, single, 0.5) == 0
    assert roc_auc(single, double) == 1 and roc_auc(double, single) == 0
    assert tar_at_far(single, single, 0.5) == 0


@given(scores, scores)
def test_auc_is_mann_whitney(genuine, impostor):
    estimate = roc_auc(genuine, impostor)
    statistic = mannwhitneyu(genuine, impostor).statistic
    assert estimate == statistic / (len(genuine) * len(impostor))
    truth = np.r_[np.ones(len(genuine)), np.zeros(len(impostor))]
    assert estimate == pytest.approx(metrics.roc_auc_score(truth, np.concatenate((genuine, impostor))), abs=1e-12)
    assert 0 <= estimate.low <= estimate <= estimate.high <= 1 and estimate.high > estimate.low
    # swapping the kinds mirrors the value and the interval
    mirrored = roc_auc(impostor, genuine)
    assert (1 - mirrored, 1 - mirrored.high) == pytest.approx((estimate, estimate.low), abs=1e-9)


def test_auc_interval_is_delong():
    genuine, impostor = gaussian(12, 25, 1.0)
    genuine, impostor = genuine.round(1), impostor.round(1)
    wins = (genuine[:, None] > impostor) + 0.5 * (genuine[:, None] == impostor)
    area = wins.mean()
    variance = wins.mean(1).var(ddof=1) / 12 + wins.mean(0).var(ddof=1) / 25
    logit = np.log(area / (1 - area))
    half = 1.959963984540054 * np.sqrt(variance) / (area * (1 - area))
    estimate = roc_auc(genuine, impostor)
    assert "DeLong" in estimate.method
    assert estimate.low == pytest.approx(1 / (1 + np.exp(half - logit)), abs=1e-12)
    assert estimate.high == pytest.approx(1 / (1 + np.exp(-half - logit)), abs=1e-12)


def test_auc_interval_covers_the_truth():
    # normal scores one s.d. apart: AUC = Phi(1 / sqrt 2)
    truth = 0.7602499389
    hits = 0
    for seed in range(400):
        estimate = roc_auc(*gaussian(25, 40, 1.0, seed))
        hits += estimate.low <= truth <= estimate.high
    # binomial(400, 0.95) leaves 364..393 with probability below 1e-4
    assert 364 <= hits <= 393


@given(scores, scores)
def test_roc_curve_holds_every_threshold(genuine, impostor):
    curve = roc_curve(genuine, impostor)
    expected = sorted(
        (accepted / len(impostor), tar / len(genuine)) for accepted, tar in errors_at_all_thresholds(genuine, impostor)
    )
    assert list(zip(curve.far, curve.tar, strict=True)) == expected
    for threshold, far, tar in zip(curve.thresholds, curve.far, curve.tar, strict=True):
        assert far == np.mean(impostor >= threshold) and tar == np.mean(genuine >= threshold)
    # its area under straight lines is the AUC
    area = float(np.sum(np.diff(curve.far) * (curve.tar[1:] + curve.tar[:-1]) / 2))
    assert area == pytest.approx(roc_auc(genuine, impostor), abs=1e-12)


def test_roc_curve_matches_scikit_learn():
    genuine, impostor = gaussian()
    truth = np.r_[np.ones(300), np.zeros(2000)]
    fpr, tpr, thresholds = metrics.roc_curve(truth, np.concatenate((genuine, impostor)), drop_intermediate=False)
    curve = roc_curve(genuine, impostor)
    assert (curve.far == fpr).all() and (curve.tar == tpr).all() and (curve.thresholds == thresholds).all()


def test_equal_error_rate_by_pencil():
    # FAR, FRR: (0.2, 0.25) at 0.7 and (0.4, 0.25) at 0.5; the lines cross at 0.25
    assert equal_error_rate(GENUINE, IMPOSTOR) == pytest.approx(0.25, abs=1e-15)
    # FAR = FRR = 1/3 at threshold 2
    assert equal_error_rate(np.array([1.0, 2.0, 3.0]), np.array([0.0, 0.5, 2.5])) == pytest.approx(1 / 3)


@settings(max_examples=60)
@given(scores, scores)
def test_equal_error_rate_lies_where_the_errors_cross(genuine, impostor):
    estimate = equal_error_rate(genuine, impostor, replicates=50)
    far, frr = np.array(
        [
            (accepted / len(impostor), 1 - tar / len(genuine))
            for accepted, tar in errors_at_all_thresholds(genuine, impostor)
        ]
    ).T
    crossed = far >= frr - 1e-12
    # both errors are monotone: the crossing lies between the nearest values on either side of it
    lower = max(far[~crossed].max(initial=0), frr[crossed].max(initial=0))
    upper = min(far[crossed].min(initial=1), frr[~crossed].min(initial=1))
    assert lower - 1e-12 <= estimate <= upper + 1e-12
    assert 0 <= estimate.low <= estimate <= estimate.high <= 1 and estimate.high > estimate.low
    assert equal_error_rate(-impostor, -genuine, replicates=50) == pytest.approx(float(estimate), abs=1e-12)


def test_equal_error_rate_of_normal_scores():
    # normal scores two s.d. apart: EER = Phi(-1)
    genuine, impostor = gaussian(4000, 60_000, 2.0)
    estimate = equal_error_rate(genuine, impostor)
    assert estimate.low < 0.15865525 < estimate.high and estimate.high - estimate.low < 0.03
    assert estimate.supported and "1000 replicates, seed 0" in estimate.method


def test_bootstrap_is_seeded_and_its_cells_do_not_matter(monkeypatch):
    genuine, impostor = gaussian(1500, 1500)
    few = equal_error_rate(genuine, impostor)
    assert few.as_dict() == equal_error_rate(genuine, impostor).as_dict()
    assert few.as_dict() != equal_error_rate(genuine, impostor, seed=1).as_dict()
    monkeypatch.setattr(roc, "_BOOTSTRAP_CELLS", 10_000)
    every = equal_error_rate(genuine, impostor)
    assert every == few
    width = every.high - every.low
    assert abs(every.low - few.low) < 0.1 * width and abs(every.high - few.high) < 0.1 * width


def test_bootstrap_matches_drawing_the_scores_themselves():
    genuine, impostor = gaussian(60, 150)
    generator = np.random.default_rng(9)
    rates = [
        equal_error_rate(generator.choice(genuine, 60), generator.choice(impostor, 150), replicates=1)
        for _ in range(1000)
    ]
    low, high = np.quantile(rates, (0.025, 0.975))
    estimate = equal_error_rate(genuine, impostor)
    assert abs(estimate.low - low) < 0.02 and abs(estimate.high - high) < 0.02


@settings(max_examples=50)
@given(scores, scores, st.sampled_from([np.exp, np.arctan, lambda x: 8 * x - 3, lambda x: x**3 + x]))
def test_monotone_transforms_change_nothing(genuine, impostor, transform):
    moved = transform(genuine), transform(impostor)
    assert roc_auc(*moved).as_dict() == roc_auc(genuine, impostor).as_dict()
    for before, after in zip(tar_at_far(genuine, impostor, FARS), tar_at_far(*moved, FARS), strict=True):
        assert before.as_dict() == after.as_dict()
    before, after = (equal_error_rate(*pair, replicates=20) for pair in ((genuine, impostor), moved))
    assert before.as_dict() == after.as_dict()


@settings(max_examples=30)
@given(scores, scores, st.randoms(use_true_random=False))
def test_order_changes_nothing(genuine, impostor, random):
    generator = np.random.default_rng(random.randrange(2**32))
    shuffled = generator.permutation(genuine), generator.permutation(impostor)
    assert roc_auc(*shuffled) == roc_auc(genuine, impostor)
    assert tar_at_far(*shuffled, FARS) == tar_at_far(genuine, impostor, FARS)
    assert equal_error_rate(*shuffled, replicates=2) == equal_error_rate(genuine, impostor, replicates=2)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, torch.float16, torch.bfloat16, torch.float32])
def test_every_float_kind(kind):
    def convert(values):
        return torch.tensor(values).to(kind) if isinstance(kind, torch.dtype) else values.astype(kind)

    # exact in bfloat16
    genuine, impostor = np.array([0.5, 0.75, 0.25]), np.array([0.5, -0.5, 0.125, 0.25])
    assert roc_auc(convert(genuine), convert(impostor)) == roc_auc(genuine, impostor)
    assert tar_at_far(convert(genuine), convert(impostor), 0.25) == tar_at_far(genuine, impostor, 0.25)
    expected = equal_error_rate(genuine, impostor)
    assert equal_error_rate(convert(genuine), convert(impostor)).as_dict() == expected.as_dict()


@pytest.mark.parametrize("measure", [roc_auc, equal_error_rate, roc_curve, lambda g, i: tar_at_far(g, i, 0.1)])
@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        (np.array([]), ValueError, "empty"),
        (np.array([0.1, np.nan]), ValueError, "NaN"),
        (torch.tensor([0.1, float("inf")]), ValueError, "infinite"),
        (np.array([[0.1], [0.2]]), ValueError, "axes"),
        (np.array([1, 2]), TypeError, "floating"),
        (np.array([True, False]), TypeError, "floating"),
    ],
)
def test_wrong_scores_are_named(measure, values, error, words):
    with pytest.raises(error, match=words):
        measure(values, IMPOSTOR)
    with pytest.raises(error, match=words):
        measure(GENUINE, values)


@pytest.mark.parametrize("far", [0, 0.0, -0.1, 1.1, float("nan"), [], [0.1, 0.0], [[0.1]]])
def test_far_outside_its_range(far):
    with pytest.raises(ValueError, match="far"):
        tar_at_far(GENUINE, IMPOSTOR, far)


@pytest.mark.parametrize("far", ["0.1", True, None])
def test_far_of_wrong_type(far):
    with pytest.raises(TypeError, match="far"):
        tar_at_far(GENUINE, IMPOSTOR, far)


def test_wrong_options():
    with pytest.raises(ValueError, match="replicates"):
        equal_error_rate(GENUINE, IMPOSTOR, replicates=0)
    with pytest.raises(ValueError, match="level"):
        roc_auc(GENUINE, IMPOSTOR, level=95)
