"""Angle statistics: pencil in the plane, plain loops, invariances, and angles next to 0 and 180 degrees."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from reprolib.evaluation import angle_statistics, angles, pair_angles

PLANE_LABELS = np.array([0, 0, 1, 1, 2, 2])


def plane(*degrees):
    radians = np.deg2rad(np.array(degrees, dtype=np.float64))
    return np.stack((np.cos(radians), np.sin(radians)), axis=1)


PLANE = plane(-10, 10, 70, 110, 195, 205)
PLANE_WEIGHT = plane(5, 100, 210)


def blobs(seed=0, classes=6, samples=120, dimension=5, noise=0.6):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.concatenate((np.arange(classes), generator.integers(0, classes, samples))))
    centres = generator.normal(size=(classes, dimension))
    features = centres[labels] + noise * generator.normal(size=(len(labels), dimension))
    return features, labels, centres + 0.3 * generator.normal(size=centres.shape)


def angle(a, b):
    return float(np.rad2deg(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1))))


def test_table_three_by_pencil():
    found = angle_statistics(PLANE, PLANE_LABELS, PLANE_WEIGHT)
    # centres at 0, 90 and 200 degrees
    assert found.intra == pytest.approx((10 + 20 + 5) / 3, abs=1e-12)
    assert found.inter == pytest.approx((90 + 90 + 110) / 3, abs=1e-12)
    assert found.w_ec == pytest.approx((5 + 10 + 10) / 3, abs=1e-12)
    assert found.w_inter == pytest.approx((95 + 95 + 110) / 3, abs=1e-12)


def test_intra_is_a_mean_over_samples_not_over_classes():
    features, labels = plane(0, 0, 0, 0, 90, 150), np.array([0, 0, 0, 0, 1, 1])
    found = angle_statistics(features, labels)
    assert found.intra == pytest.approx((0 * 4 + 30 * 2) / 6, abs=1e-12)
    assert found.w_ec is None and found.w_inter is None


@pytest.mark.parametrize("block", [3, 50, 1 << 22])
def test_against_plain_loops(monkeypatch, block):
    monkeypatch.setattr(angles, "_BLOCK", block)
    features, labels, weight = blobs()
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    centres = [unit[labels == c].mean(0) for c in range(6)]
    found = angle_statistics(features, labels, weight)
    intra = [angle(x, centres[c]) for x, c in zip(unit, labels, strict=True)]
    assert found.intra == pytest.approx(np.mean(intra), abs=1e-10)

    def nearest(rows):
        return [min(angle(rows[i], rows[j]) for j in range(6) if j != i) for i in range(6)]

    own = [angle(w, c) for w, c in zip(weight, centres, strict=True)]
    by_class = ((found.inter, nearest(centres)), (found.w_inter, nearest(weight)), (found.w_ec, own))
    for estimate, values in by_class:
        assert estimate == pytest.approx(np.mean(values), abs=1e-10)
        expected = stats.t.interval(0.95, 5, np.mean(values), stats.sem(values))
        assert (estimate.low, estimate.high) == pytest.approx(expected) and "6 classes" in estimate.method
    # S_w = sum (1 - cos(x, m_i)),  S_b = sum n_i (1 - cos(m_i, m))
    within = sum(1 - np.cos(np.deg2rad(a)) for a in intra)
    whole = unit.mean(0)
    between = sum((labels == c).sum() * (1 - np.cos(np.deg2rad(angle(centres[c], whole)))) for c in range(6))
    assert found.angular_fisher_score == pytest.approx(within / between, abs=1e-12)


def test_intra_has_an_interval_over_classes():
    # classes of equal size: the clustered interval is Student's t on the class means
    found = angle_statistics(PLANE, PLANE_LABELS)
    half = stats.t.ppf(0.975, 2) * stats.sem([10, 20, 5])
    assert found.intra.high == pytest.approx(35 / 3 + half) and "clusters" in found.intra.method
    assert found.intra.low == 0 and found.intra.count == 6


def test_invariances():
    features, labels, weight = blobs(1)
    generator = np.random.default_rng(0)
    base = angle_statistics(features, labels, weight)

    def compare(other):
        for name in ("w_ec", "w_inter", "intra", "inter", "angular_fisher_score"):
            assert getattr(other, name) == pytest.approx(float(getattr(base, name)), abs=1e-10)

    norms = np.exp2(generator.integers(-200, 200, (len(features), 1)))
    compare(angle_statistics(features * norms, labels, weight * 1e-9))
    order = generator.permutation(len(features))
    compare(angle_statistics(features[order], labels[order], weight))
    rotation = np.linalg.qr(generator.normal(size=(5, 5)))[0]
    compare(angle_statistics(features @ rotation, labels, weight @ rotation))
    classes = generator.permutation(6)
    compare(angle_statistics(features, classes[labels], weight[np.argsort(classes)]))
    compare(angle_statistics(torch.tensor(features), torch.tensor(labels), torch.tensor(weight)))
    single = angle_statistics(features.astype(np.float32), labels, torch.tensor(weight).float())
    assert single.intra == pytest.approx(float(base.intra), abs=1e-4)
    assert angle_statistics(torch.tensor(features).bfloat16(), labels).intra == pytest.approx(base.intra, abs=0.2)


def test_collapsed_classes_have_no_spread():
    # every feature on its weight, weights at the corners of a regular simplex: arccos(-1/3) apart
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5
    labels = np.repeat(np.arange(4), 5)
    found = angle_statistics(corners[labels] * np.linspace(1, 9, 20)[:, None], labels, corners)
    assert found.intra == pytest.approx(0, abs=1e-13) and found.w_ec == pytest.approx(0, abs=1e-13)
    assert found.inter == pytest.approx(np.rad2deg(np.arccos(-1 / 3)), abs=1e-12)
    # the mean of all features is zero, so there is no direction to measure S_b against
    assert found.angular_fisher_score is None
    same = angle_statistics(np.ones((4, 3)), np.array([0, 0, 1, 1]))
    assert same.inter == 0 and same.angular_fisher_score is None


def angles_between(a, b):
    # the genuine pair of each class, beside a class of one that makes an impostor pair
    rows = np.concatenate((np.stack((a, b), axis=1).reshape(-1, a.shape[1]), a[:1]))
    return pair_angles(rows, np.append(np.repeat(np.arange(len(a)), 2), len(a)))[0]


def test_angles_next_to_zero_and_to_a_half_turn():
    for degrees in (1e-12, 1e-9, 1e-5, 1.0, 90.0, 179.0):
        a, b = np.array([[1.0, 0.0]]), plane(degrees)
        assert angles_between(5 * a, 7 * b)[0] == pytest.approx(degrees, rel=1e-12)
    # 180 - x: the sine is exact there, the arccos of the cosine is not
    tiny = 1e-9
    almost = np.array([[-np.cos(tiny), np.sin(tiny)]])
    found = angles_between(np.array([[1.0, 0.0]]), almost)[0]
    assert 180 - found == pytest.approx(np.rad2deg(tiny), rel=1e-5)
    assert np.rad2deg(np.arccos(almost[0, 0] * 1.0)) == 180.0
    x = np.array([[0.1, 0.7, -0.3]])
    assert angles_between(x, x)[0] == 0 and angles_between(x, -x)[0] == 180


def test_pair_angles_against_all_pairs():
    features, labels, _ = blobs(2, samples=30)
    genuine, impostor = pair_angles(features, labels)
    expected = {True: [], False: []}
    for i, j in itertools.combinations(range(len(labels)), 2):
        expected[bool(labels[i] == labels[j])].append(angle(features[i], features[j]))
    assert np.allclose(np.sort(genuine), np.sort(expected[True]), atol=1e-10)
    assert np.allclose(np.sort(impostor), np.sort(expected[False]), atol=1e-10)


def test_pair_angles_are_drawn_without_repetition(monkeypatch):
    seeded = np.random.default_rng
    monkeypatch.setattr(angles, "_BLOCK", 64)
    features, labels, _ = blobs(3, samples=60)
    everything = pair_angles(features, labels)
    drawn = pair_angles(torch.tensor(features), torch.tensor(labels), 50, seeded(1))
    for some, whole in zip(drawn, everything, strict=True):
        assert len(some) == len(np.unique(some)) == 50
        assert np.isclose(some[:, None], whole, atol=1e-12).any(1).all()
    again = pair_angles(features, labels, 50, seeded(1))
    other = pair_angles(features, labels, 50, seeded(2))
    assert all((a == b).all() for a, b in zip(drawn, again, strict=True))
    assert not (drawn[0] == other[0]).all()
    # enough room: all pairs, and no generator needed
    assert len(pair_angles(features, labels, 10**6)[0]) == len(everything[0])


def test_pairs_are_drawn_uniformly():
    # six genuine and nine impostor pairs with known, different angles
    features, labels = plane(0, 1, 3, 20, 41, 83), np.array([0, 0, 0, 1, 1, 1])
    whole = pair_angles(features, labels)
    generator = np.random.default_rng(0)
    counts = [np.zeros(len(part)) for part in whole]
    for _ in range(600):
        for part, known, count in zip(pair_angles(features, labels, 2, generator), whole, counts, strict=True):
            count += np.isclose(part[:, None], known, atol=1e-9).sum(0)
    for count in counts:
        assert count.sum() == 1200 and stats.chisquare(count).pvalue > 1e-4


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda f, y, w: (f, y[:-1], w), ValueError, "labels must have 6"),
        (lambda f, y, w: (f, y.astype(float), w), TypeError, "integers"),
        (lambda f, y, w: (f[:, 0], y, w), ValueError, "features must have shape"),
        (lambda f, y, w: ((f * 10).astype(int), y, w), TypeError, "features must be floating"),
        (lambda f, y, w: (np.where(f == f[3], np.nan, f), y, w), ValueError, "features hold NaN"),
        (lambda f, y, w: (np.where(f == f[3], 0, f), y, w), ValueError, "features hold a zero"),
        (lambda f, y, w: (f, y, w * [[0], [1], [1]]), ValueError, "weight hold a zero"),
        (lambda f, y, w: (f, y, w[:, :1]), ValueError, "2 columns"),
        (lambda f, y, w: (f, y, w[:2]), ValueError, r"labels must lie in 0\.\.1"),
        (lambda f, y, w: (f, y - 1, w), ValueError, r"labels must lie in 0\.\.2, got -1"),
        (
            lambda f, y, w: (f, y * 2 % 3 * 0 + (y > 0) * 2, w),
            ValueError,
            "class 1 has a weight but no sample",
        ),
        (lambda f, y, w: (f, y * 0, None), ValueError, "at least 2 classes"),
        (lambda f, y, w: (plane(0, 180, 70, 80, 90, 95), y, w), ValueError, "class 0 cancel"),
    ],
)
def test_wrong_input_is_named(change, error, words):
    with pytest.raises(error, match=words):
        angle_statistics(*change(PLANE, PLANE_LABELS, PLANE_WEIGHT))


def test_wrong_pairs_are_named():
    with pytest.raises(ValueError, match="no genuine pair"):
        pair_angles(PLANE, np.arange(6))
    with pytest.raises(ValueError, match="no impostor pair"):
        pair_angles(PLANE, np.zeros(6, dtype=int))
    for wrong in (None, 0):
        with pytest.raises(TypeError, match=r"generator must be .* to draw 1 of 3 genuine"):
            pair_angles(PLANE, PLANE_LABELS, 1, wrong)
    with pytest.raises(ValueError, match="max_pairs"):
        pair_angles(PLANE, PLANE_LABELS, 0)
    with pytest.raises(ValueError, match="zero"):
        pair_angles(0 * PLANE, PLANE_LABELS)
