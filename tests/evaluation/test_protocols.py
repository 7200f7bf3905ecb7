"""BLUFR and the template protocols: pencil, plain loops over pairs and thresholds, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import stats

from reprolib.evaluation import (
    BlufrTrial,
    blufr,
    blufr_trials,
    proportion,
    summarise_protocol,
    summarise_splits,
    template_protocol,
)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def faces(seed, people=12, most=5, noise=0.8):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(people), generator.integers(1, most + 1, people)))
    centres = generator.normal(size=(people, 6))
    return centres[labels] + noise * generator.normal(size=(len(labels), 6)), labels


def test_summary_by_pencil():
    summary = summarise_splits([0.5, 0.7])
    assert summary.mean == pytest.approx(0.6) and summary.values == (0.5, 0.7)
    # (0.1^2 + 0.1^2) / 1 = 0.02
    assert summary.standard_deviation == pytest.approx(0.02**0.5)
    assert summary.mean_minus_deviation == pytest.approx(0.6 - 0.02**0.5)
    assert summary.mean.supported and "2 splits" in summary.mean.method


@settings(max_examples=40)
@given(st.lists(st.floats(0, 1), min_size=2, max_size=10))
def test_summary_against_scipy(values):
    summary = summarise_splits(values)
    assert summary.mean == pytest.approx(np.mean(values)) and 0 <= summary.mean.low <= summary.mean <= summary.mean.high
    if len(set(values)) > 1 and np.std(values) > 1e-9:
        low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
        assert summary.mean.low == pytest.approx(max(low, 0)) and summary.mean.high == pytest.approx(min(high, 1))
        assert summary.standard_deviation == pytest.approx(np.std(values, ddof=1))
    assert summarise_splits(values[::-1]).mean == pytest.approx(float(summary.mean), abs=1e-15)


def test_summary_marks_what_the_data_do_not_support():
    assert not summarise_splits([0.3, 0.3, 0.3]).mean.supported and summarise_splits([0.1] * 3).mean == 0.1
    weak = proportion(1, 2, supported=False)
    assert not summarise_splits([weak, 0.3]).mean.supported
    for values, words in (([0.5], "at least 2 splits"), ([0.5, 1.5], "rates"), ([0.5, float("nan")], "rates")):
        with pytest.raises(ValueError, match=words):
            summarise_splits(values)


def test_blufr_by_pencil():
    # directions in degrees; people 0, 0, 1, 1, 2
    angles = np.deg2rad([0, 20, 90, 100, 35])
    features, labels = np.stack((np.cos(angles), np.sin(angles)), axis=1), np.array([0, 0, 1, 1, 2])
    everyone = np.arange(5)
    trials = [
        # probe 1 is 20 from its mate, probe 3 10; the impostor 35 is 35 from the gallery's 0
        BlufrTrial(everyone, np.array([0, 2]), np.array([1, 3, 4])),
        # gallery 20 and 100: probe 0 is 20 away, probe 2 10, the impostor 15: only probe 2 is above it
        BlufrTrial(everyone, np.array([1, 3]), np.array([0, 2, 4])),
    ]
    result = blufr(features, labels, trials, far=0.1, identification_far=0.5)
    # all pairs: genuine 20 and 10, nearest impostor 15 (8 impostor pairs: far 0.1 allows none)
    assert result.verification.values == (0.5, 0.5) and not result.verification.mean.supported
    assert result.identification.values == (1.0, 0.5)
    assert result.identification.mean_minus_deviation == pytest.approx(0.75 - 0.125**0.5)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.05, 0.2]), st.sampled_from([0.1, 0.5]))
def test_blufr_against_loops(seed, far, identification_far):
    features, labels = faces(seed)
    generator = np.random.default_rng(seed)
    assume((np.bincount(labels) > 1).sum() >= 6)
    trials = blufr_trials(labels, generator, trials=3, training_people=3, gallery_people=3)
    result = blufr(features, labels, trials, far=far, identification_far=identification_far)
    cosines = unit(features) @ unit(features).T
    for number, trial in enumerate(trials):
        pairs = [(i, j) for i in trial.test for j in trial.test if i < j]
        genuine = np.array([cosines[p] for p in pairs if labels[p[0]] == labels[p[1]]])
        impostor = np.array([cosines[p] for p in pairs if labels[p[0]] != labels[p[1]]])
        best = max(np.mean(genuine > t) for t in [-2, *impostor] if np.mean(impostor > t) <= far)
        assert result.verification.values[number] == best
        enrolled = labels[trial.gallery]
        strangers = [max(cosines[p, trial.gallery]) for p in trial.probes if labels[p] not in enrolled]
        known = [(cosines[p, trial.gallery], enrolled == labels[p]) for p in trial.probes if labels[p] in enrolled]
        rates = [
            np.mean([s[mate][0] == s.max() and s[mate][0] > t for s, mate in known])
            for t in [-2, *strangers]
            if np.mean(np.array(strangers) > t) <= identification_far
        ]
        assert result.identification.values[number] == max(rates)
    tensors = blufr(
        torch.tensor(features), torch.tensor(labels), trials, far=far, identification_far=identification_far
    )
    assert tensors == result


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_trials_follow_the_recipe(seed):
    labels = np.repeat(np.arange(20), np.r_[np.ones(8, int), np.full(12, 3)])
    trials = blufr_trials(labels, np.random.default_rng(seed), trials=2, training_people=5, gallery_people=6)
    again = blufr_trials(labels, np.random.default_rng(seed), trials=2, training_people=5, gallery_people=6)
    for trial, same in zip(trials, again, strict=True):
        assert (trial.gallery == same.gallery).all() and (trial.test == same.test).all()
        assert len(set(labels[trial.test])) == 15 and len(trial.gallery) == len(set(labels[trial.gallery])) == 6
        # whole people are in the test set, and gallery and probes share it out
        assert len(trial.test) == np.isin(labels, labels[trial.test]).sum()
        assert sorted([*trial.gallery, *trial.probes]) == trial.test.tolist()
        assert set(labels[trial.gallery]) <= set(labels[trial.probes])


def test_trials_that_cannot_be():
    labels, generator = np.repeat(np.arange(10), 2), np.random.default_rng(0)
    with pytest.raises(ValueError, match="leave no impostors of 10 people"):
        blufr_trials(labels, generator, training_people=5, gallery_people=5)
    with pytest.raises(ValueError, match="two test images, a trial has 0"):
        blufr_trials(np.arange(10), generator, training_people=2, gallery_people=2)
    features = generator.normal(size=(20, 3))
    good = blufr_trials(labels, generator, trials=2, training_people=3, gallery_people=3)
    test, gallery, probes = good[0].test, good[0].gallery, good[0].probes
    for trial, words in (
        (BlufrTrial(test, gallery, np.append(probes, gallery[0])), "also in its gallery"),
        (BlufrTrial(test[1:], gallery, probes), "must lie in its test set"),
        (BlufrTrial(test + 20, gallery, probes), "must index 20 rows"),
        (BlufrTrial(np.append(test, test[0]), gallery, probes), "more than once"),
    ):
        with pytest.raises(ValueError, match=words):
            blufr(features, labels, [good[1], trial])
    with pytest.raises(ValueError, match="at least 2, got 1"):
        blufr(features, labels, good[:1])


TEMPLATES = np.array([[2.0, 0], [0, 1], [0, 3], [1, 1], [-1, 0.1], [0, -1]])
TEMPLATE_IDS, MEDIA = np.array([10, 10, 10, 20, 30, 40]), np.array([0, 1, 1, 0, 0, 0])
TEMPLATE_PEOPLE = np.array([1, 1, 1, 1, 2, 3])


def test_templates_by_pencil():
    # template 10: the still (2, 0) and the video's mean (0, 2): its direction is that of template 20
    found = template_protocol(
        TEMPLATES,
        TEMPLATE_PEOPLE,
        TEMPLATE_IDS,
        MEDIA,
        comparisons=np.array([[10, 20], [10, 30], [20, 40]]),
        gallery=[10, 30],
        probes=[20, 40],
        far=(0.5,),
        fpir=(0.5, 1.0),
        ranks=(1, 2, 5),
    )
    assert list(found) == ["TAR@FAR=0.5", "rank-1", "rank-2", "TPIR@FPIR=0.5", "TPIR@FPIR=1"]
    assert all(value == 1 for value in found.values()) and found["rank-1"].count == 1


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_templates_against_loops(seed):
    generator = np.random.default_rng(seed)
    person_of = np.arange(12) % 6
    ids = np.concatenate((np.arange(12), generator.integers(0, 12, 30)))
    media, people = generator.integers(0, 3, len(ids)), person_of[ids]
    features = generator.normal(size=(6, 4))[people] + generator.normal(size=(len(ids), 4))
    means = []
    for t in range(12):
        per_medium = [features[(ids == t) & (media == m)].mean(0) for m in set(media[ids == t])]
        means.append(unit(np.mean(per_medium, axis=0)))
    cosines = np.array(means) @ np.array(means).T
    comparisons = np.array([(a, b) for a in range(12) for b in range(12) if a < b])
    found = template_protocol(
        features,
        people + 100,
        ids,
        media,
        comparisons=comparisons,
        gallery=[0, 1, 2, 3],
        probes=np.arange(6, 12),
        far=(0.1,),
        fpir=(0.5,),
        ranks=(1, 3),
    )
    same = np.array([person_of[a] == person_of[b] for a, b in comparisons])
    scores = np.array([cosines[a, b] for a, b in comparisons])
    tar = max(np.mean(scores[same] > t) for t in [-2, *scores[~same]] if np.mean(scores[~same] > t) <= 0.1)
    assert found["TAR@FAR=0.1"] == tar
    search = cosines[6:, :4]
    ranks = [1 + (search[p] > search[p, p]).sum() for p in range(4)]
    assert found["rank-1"] == np.mean(np.array(ranks) == 1) and found["rank-3"] == np.mean(np.array(ranks) <= 3)
    strangers = search[4:].max(1)
    tpir = max(
        np.mean([ranks[p] == 1 and search[p, p] > t for p in range(4)])
        for t in [-2, *strangers]
        if np.mean(strangers > t) <= 0.5
    )
    assert found["TPIR@FPIR=0.5"] == tpir


def test_protocol_over_splits():
    summary = summarise_protocol([{"rank-1": 0.5, "rank-5": 1.0}, {"rank-1": 0.7, "rank-5": 1.0}])
    assert summary["rank-1"].mean == pytest.approx(0.6) and summary["rank-5"].standard_deviation == 0
    with pytest.raises(ValueError, match="same measures"):
        summarise_protocol([{"rank-1": 0.5}, {"rank-5": 0.5}])
    for splits in ([], [{"rank-1": 0.5}]):
        with pytest.raises(ValueError, match="at least 2 splits"):
            summarise_protocol(splits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "nothing to do"),
        ({"gallery": [10]}, "together"),
        ({"gallery": [10], "probes": [11]}, "probes names template 11"),
        ({"gallery": [99], "probes": [10]}, "gallery names template 99"),
        ({"gallery": [10], "probes": [30, 40]}, "no probe has a mate"),
        ({"comparisons": np.array([10, 20])}, r"shape \(n, 2\)"),
        ({"comparisons": np.array([[10, 30]])}, "empty"),
        ({"labels": np.array([1, 2, 1, 1, 2, 3]), "gallery": [10], "probes": [20]}, "template 10 holds images of more"),
    ],
)
def test_wrong_templates_are_named(change, words):
    arguments = {"features": TEMPLATES, "labels": TEMPLATE_PEOPLE, "template_ids": TEMPLATE_IDS, **change}
    with pytest.raises(ValueError, match=words):
        template_protocol(**arguments)
