"""The bootstrap over people: values by the other measures, spread and coverage by simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from reprolib.evaluation import (
    ScoredPairs,
    all_pairs_cosines,
    bootstrap,
    bootstrap_people,
    equal_error_rate,
    roc_auc,
    scored_pairs,
    tar_at_far,
)

FARS = [0.01, 0.1, 0.5, 1.0]


def embedding(people=30, images=4, noise=1.2, seed=0, dimension=8):
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(people), images)
    return generator.normal(size=(people, dimension))[labels] + noise * generator.normal(
        size=(len(labels), dimension)
    ), labels


def deviation(estimate, people):
    """The standard deviation behind the interval of a rate, back from its logit."""
    width = special.logit(estimate.high) - special.logit(estimate.low)
    return width / 2 / stats.t.isf(0.025, people - 1) * estimate * (1 - estimate)


def test_scored_pairs_are_all_pairs():
    rows, labels = embedding(6, 3)
    pairs = scored_pairs(rows, 10 * labels)
    genuine, impostor = all_pairs_cosines(rows, labels)
    same = pairs.first == pairs.second
    assert np.sort(pairs.scores[same]) == pytest.approx(np.sort(genuine), abs=1e-14)
    assert np.sort(pairs.scores[~same]) == pytest.approx(np.sort(impostor), abs=1e-14)
    assert pairs.first.tolist() == labels[np.triu_indices(18, 1)[0]].tolist()
    assert pairs.second.tolist() == labels[np.triu_indices(18, 1)[1]].tolist()


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_values_are_those_of_the_exact_measures(seed, ties):
    rows, _ = embedding(5, 4, seed=seed, dimension=3)
    labels = np.append(np.random.default_rng(seed).integers(0, 6, 17), [0, 0, 1])
    pairs = scored_pairs(rows, labels)
    scores = pairs.scores.round(1) if ties else pairs.scores
    found = bootstrap_people(ScoredPairs(scores, pairs.first, pairs.second), fars=FARS, thresholds=[0.25], draws=2)
    same = pairs.first == pairs.second
    genuine, impostor = scores[same], scores[~same]
    assert found["EER"] == float(equal_error_rate(genuine, impostor))
    assert found["AUC"] == pytest.approx(float(roc_auc(genuine, impostor)), abs=1e-14)
    assert [found[f"TAR@{name}"] for name in ("1e-2", "1e-1", "5e-1", "1e+0")] == tar_at_far(genuine, impostor, FARS)
    assert found["FAR@0.25"] == np.mean(impostor > 0.25)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_weights_are_repetitions(seed):
    """A person drawn w times: w copies of the genuine pairs, and every copy against every copy of the others."""
    generator = np.random.default_rng(seed)
    rows, labels = embedding(6, 3, seed=seed)
    pairs = scored_pairs(rows, labels)
    times = np.bincount(generator.integers(0, 6, 6), minlength=6)
    if (times > 0).sum() < 2:
        return
    same = pairs.first == pairs.second
    repeat = np.where(same, times[pairs.first], times[pairs.first] * times[pairs.second])
    ordered = bootstrap._Sorted(pairs.scores, pairs.first, pairs.second, np.arange(len(same)))
    found = ordered.statistics(repeat[ordered.cell], np.array(FARS), np.array([0.2]))
    scores, kinds = np.repeat(pairs.scores, repeat), np.repeat(same, repeat)
    genuine, impostor = scores[kinds], scores[~kinds]
    assert found[0] == pytest.approx(float(equal_error_rate(genuine, impostor)), abs=1e-12)
    assert found[1] == pytest.approx(float(roc_auc(genuine, impostor)), abs=1e-12)
    assert found[2:6] == pytest.approx([float(rate) for rate in tar_at_far(genuine, impostor, FARS)], abs=1e-12)
    assert found[6] == pytest.approx(np.mean(impostor > 0.2), abs=1e-12)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.22), (0.15, 0.26), (1 / 3, 0.37)])
def test_19900_pairs_of_200_images(share, expected):
    """Relative s.d. of a FAR of 20 in 19,900 where a share of a score's variance belongs to the images.

    Independent pairs would give 1/sqrt(20) = 0.224 whatever the share.
    """
    generator = np.random.default_rng(1)
    left, right = np.triu_indices(200, 1)
    limit = stats.norm.isf(20 / 19900)

    def sample():
        image = generator.normal(size=200) * (share / 2) ** 0.5
        return image[left] + image[right] + generator.normal(size=len(left)) * (1 - share) ** 0.5

    true = np.std([(sample() > limit).mean() for _ in range(250)]) * 19900 / 20
    assert true == pytest.approx(expected, rel=0.15)
    people = np.arange(200)
    estimated = []
    for seed in range(12):
        scores = np.concatenate((sample(), generator.normal(3, 1, 200)))
        pairs = ScoredPairs(scores, np.concatenate((left, people)), np.concatenate((right, people)))
        found = bootstrap_people(pairs, thresholds=[limit], draws=100, seed=seed)[f"FAR@{limit:g}"]
        estimated.append(deviation(found, 200) * 19900 / 20)
    # the product weights alone, without the correction, would give 0.39, 0.42 and 0.49
    assert np.mean(np.square(estimated)) ** 0.5 == pytest.approx(expected, rel=0.2)


def test_spread_and_coverage_over_new_people():
    """EER, AUC and TAR of 40 people with 4 images: the intervals against 80 new sets of people."""
    measured, intervals = [], []
    for seed in range(80):
        rows, labels = embedding(40, 4, seed=seed)
        found = bootstrap_people(scored_pairs(rows, labels), fars=[0.01, 0.1], draws=60, seed=seed)
        measured.append([float(value) for value in found.values()])
        intervals.append([(value.low, value.high, deviation(value, 40)) for value in found.values()])
    truth, true = np.mean(measured, axis=0), np.std(measured, axis=0, ddof=1)
    low, high, spread = np.moveaxis(np.array(intervals), 2, 0)
    assert np.sqrt(np.mean(spread**2, axis=0)) == pytest.approx(true, rel=0.3)
    # 95 % of 80 with four standard errors: 0.95 - 4 * 0.0244
    assert (((low <= truth) & (truth <= high)).mean(axis=0) >= 0.85).all()
    # what counts pairs as independent is much too narrow here
    rows, labels = embedding(40, 4)
    pairwise = roc_auc(*all_pairs_cosines(rows, labels))
    assert pairwise.high - pairwise.low < 0.8 * (high - low)[0, 1]


def test_a_paired_difference_is_narrower_than_two_intervals():
    rows, labels = embedding(40, 4, dimension=16)
    worse = rows + 0.5 * np.random.default_rng(9).normal(size=rows.shape)
    first, second = scored_pairs(rows, labels), scored_pairs(worse, labels)
    options = {"fars": [0.1], "draws": 100}
    one, two = bootstrap_people(first, **options), bootstrap_people(second, **options)
    for name, gap in bootstrap_people(first, second, **options).items():
        assert gap == pytest.approx(one[name] - two[name], abs=1e-15)
        apart = np.hypot(one[name].high - one[name].low, two[name].high - two[name].low)
        assert 0 < gap.high - gap.low < 0.9 * apart
    # the same embedding twice does not differ, whoever is drawn
    assert all(gap == gap.low == gap.high == 0 for gap in bootstrap_people(first, first, **options).values())
    again = bootstrap_people(first, second, **options)
    assert [value.as_dict() for value in again.values()] == [
        value.as_dict() for value in bootstrap_people(first, second, **options).values()
    ]


def test_perfect_scores_have_an_interval_of_people():
    labels = np.repeat(np.arange(20), 3)
    found = bootstrap_people(scored_pairs(np.eye(20)[labels], labels), fars=[0.1], draws=5)
    assert found["EER"] == 0 and found["AUC"] == 1 and found["TAR@1e-1"] == 1
    assert found["EER"].high == pytest.approx(1 - 0.025 ** (1 / 20)) and "20 people" in found["EER"].method


def test_wrong_input_is_named():
    rows, labels = embedding(4, 2)
    pairs = scored_pairs(rows, labels)
    with pytest.raises(ValueError, match="genuine and impostor, got 0 genuine"):
        bootstrap_people(scored_pairs(rows, np.arange(8)))
    with pytest.raises(ValueError, match="scores hold"):
        bootstrap_people(ScoredPairs(np.where(pairs.scores > 0.5, np.nan, pairs.scores), pairs.first, pairs.second))
    with pytest.raises(ValueError, match="first must have 28 entries"):
        bootstrap_people(ScoredPairs(pairs.scores, pairs.first[:3], pairs.second))
    with pytest.raises(ValueError, match="the same pairs"):
        bootstrap_people(pairs, scored_pairs(rows, labels[::-1].copy()))
    with pytest.raises(ValueError, match="far must lie"):
        bootstrap_people(pairs, fars=[0.0])
    with pytest.raises(ValueError, match="draws must be an integer >= 2"):
        bootstrap_people(pairs, draws=0)
