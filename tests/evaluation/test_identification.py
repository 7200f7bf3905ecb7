"""Closed-set and open-set identification: pencil, brute force, invariances."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.evaluation import cmc, dir_at_far, identification, rank_k_identification, tar_at_far

# gallery: persons 1, 2, 3; probes of persons 1, 2, 3, 3
CLOSED = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.1], [0.6, 0.5, 0.4], [0.3, 0.5, 0.5]])
PROBES, GALLERY = np.array([1, 2, 3, 3]), np.array([1, 2, 3])

# gallery: persons 1 and 2; probes 1, 2, 1 with a mate, 3, 4, 5, 6 without
OPEN = np.array([[0.9, 0.1], [0.8, 0.6], [0.5, 0.2], [0.7, 0.0], [0.1, 0.4], [0.3, 0.2], [-0.1, 0.1]])
OPEN_PROBES, OPEN_GALLERY = np.array([1, 2, 1, 3, 4, 5, 6]), np.array([1, 2])


@st.composite
def searches(draw, mates=True):
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    probes, entries = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    gallery = generator.integers(0, 4, entries)
    labels = generator.choice(gallery, probes) if mates else generator.integers(0, 6, probes)
    return generator.integers(-3, 4, (probes, entries)) / 4, labels, gallery


def plain_rank(scores, label, gallery):
    """Position of the best mate in a list sorted by score where rivals go first among equals."""
    order = sorted(range(len(gallery)), key=lambda g: (-scores[g], gallery[g] == label))
    return 1 + next(position for position, g in enumerate(order) if gallery[g] == label)


def test_ranks_by_pencil():
    # ranks 1, 2, 3, and 2 where the mate ties with a rival at the top
    assert rank_k_identification(CLOSED, PROBES, GALLERY) == 0.25
    assert rank_k_identification(CLOSED, PROBES, GALLERY, k=2) == 0.75
    assert cmc(CLOSED, PROBES, GALLERY) == [0.25, 0.75, 1.0]
    assert cmc(CLOSED, PROBES, GALLERY, max_rank=2) == [0.25, 0.75]
    estimate = rank_k_identification(CLOSED, PROBES, GALLERY)
    assert estimate.count == 4 and estimate.method == "Wilson" and estimate.low < 0.25 < estimate.high
    assert [e.as_dict() for e in cmc(CLOSED, PROBES, GALLERY)] == [
        rank_k_identification(CLOSED, PROBES, GALLERY, k=k).as_dict() for k in (1, 2, 3)
    ]


def test_constant_scores_earn_nothing():
    flat = np.zeros((5, 10))
    assert rank_k_identification(flat, np.arange(5), np.arange(10)) == 0
    assert rank_k_identification(flat, np.arange(5), np.arange(10), k=9) == 0
    assert rank_k_identification(flat, np.arange(5), np.arange(10), k=10) == 1
    assert dir_at_far(np.zeros((6, 3)), np.arange(6), np.arange(3), 0.5) == 0


@given(searches())
def test_ranks_against_a_sorted_list(search):
    similarity, labels, gallery = search
    ranks = [plain_rank(row, label, gallery) for row, label in zip(similarity, labels, strict=True)]
    for k, estimate in enumerate(cmc(similarity, labels, gallery), start=1):
        assert estimate == np.mean(np.array(ranks) <= k)
    assert cmc(similarity, labels, gallery)[-1] == 1


@given(searches(), st.sampled_from([np.exp, np.arctan, lambda x: 4 * x + 1]))
def test_ranks_are_invariant(search, transform):
    similarity, labels, gallery = search
    base = cmc(similarity, labels, gallery)
    assert cmc(transform(similarity), labels, gallery) == base
    generator = np.random.default_rng(0)
    rows, columns = generator.permutation(len(labels)), generator.permutation(len(gallery))
    assert cmc(similarity[rows][:, columns], labels[rows], gallery[columns]) == base
    # only equality of labels matters
    assert cmc(similarity, 1000 - 7 * labels, 1000 - 7 * gallery) == base


def test_blocks_do_not_matter(monkeypatch):
    generator = np.random.default_rng(1)
    gallery = generator.integers(0, 30, 50)
    labels = generator.choice(gallery, 40)
    similarity = generator.normal(size=(40, 50)).round(1)
    base = cmc(similarity, labels, gallery)
    monkeypatch.setattr(identification, "_BLOCK", 120)
    assert cmc(similarity, labels, gallery) == base


def test_open_set_by_pencil():
    # impostor maxima 0.7, 0.4, 0.3, 0.1. Probe 2 has rank 2; probes 1 and 3 have rank 1 with 0.9 and 0.5.
    fars = [0.1, 0.25, 0.5, 1.0]
    assert dir_at_far(OPEN, OPEN_PROBES, OPEN_GALLERY, fars) == [1 / 3, 2 / 3, 2 / 3, 2 / 3]
    # at rank 2 probe 2 counts too, with its mate's score 0.6
    assert dir_at_far(OPEN, OPEN_PROBES, OPEN_GALLERY, fars, rank=2) == [1 / 3, 1.0, 1.0, 1.0]
    estimate = dir_at_far(OPEN, OPEN_PROBES, OPEN_GALLERY, 0.25)
    assert estimate == 2 / 3 and estimate.count == 3 and not estimate.supported and "Wilson" in estimate.method


@given(searches(mates=False), st.sampled_from([0.1, 0.25, 0.3, 0.5, 1.0]), st.integers(1, 3))
def test_open_set_against_every_threshold(search, far, rank):
    similarity, labels, gallery = search
    mated = np.isin(labels, gallery)
    rank = min(rank, len(gallery))
    if mated.all() or not mated.any():
        with pytest.raises(ValueError, match="with and without a mate"):
            dir_at_far(similarity, labels, gallery, far, rank)
        return
    best = 0.0
    for threshold in [-np.inf, *np.unique(similarity)]:
        accepted = np.mean(similarity[~mated].max(axis=1) > threshold)
        found = [
            plain_rank(row, label, gallery) <= rank and row[gallery == label].max() > threshold
            for row, label in zip(similarity[mated], labels[mated], strict=True)
        ]
        if accepted <= far:
            best = max(best, float(np.mean(found)))
    assert dir_at_far(similarity, labels, gallery, far, rank) == best


@given(searches(mates=False))
def test_dir_at_full_far_is_the_rank_rate(search):
    similarity, labels, gallery = search
    mated = np.isin(labels, gallery)
    if mated.any() and not mated.all():
        for k in range(1, len(gallery) + 1):
            expected = rank_k_identification(similarity[mated], labels[mated], gallery, k=k)
            assert dir_at_far(similarity, labels, gallery, 1.0, rank=k) == expected


def test_one_entry_gallery_is_verification():
    # with a single enrolled person, open-set identification asks the verification question
    generator = np.random.default_rng(2)
    similarity = generator.normal(size=(500, 1))
    labels = np.repeat([1, 0], [100, 400])
    similarity[:100] += 1
    for ours, theirs in zip(
        dir_at_far(similarity, labels, np.array([1]), [0.01, 0.1]),
        tar_at_far(similarity[:100, 0], similarity[100:, 0], [0.01, 0.1]),
        strict=True,
    ):
        assert ours.as_dict() == theirs.as_dict()


def test_input_kinds_agree():
    expected = cmc(CLOSED.astype(np.float32), PROBES, GALLERY)
    for similarity in (
        torch.tensor(CLOSED, dtype=torch.float32),
        torch.tensor(CLOSED),
        CLOSED.astype(np.float16),
    ):
        assert cmc(similarity, torch.tensor(PROBES), torch.tensor(GALLERY, dtype=torch.int32)) == expected


@pytest.mark.parametrize("measure", [rank_k_identification, cmc, lambda s, p, g: dir_at_far(s, p, g, 0.5)])
@pytest.mark.parametrize(
    ("similarity", "probes", "gallery", "error", "words"),
    [
        (OPEN[:, :1], OPEN_PROBES, OPEN_GALLERY, ValueError, "gallery_labels must have 1"),
        (OPEN, OPEN_PROBES[:3], OPEN_GALLERY, ValueError, "probe_labels must have 7"),
        (OPEN[0], OPEN_PROBES, OPEN_GALLERY, ValueError, "axes"),
        (OPEN, OPEN_PROBES.astype(float), OPEN_GALLERY, TypeError, "integers"),
        (OPEN, OPEN_PROBES > 1, OPEN_GALLERY, TypeError, "integers"),
        (np.where(OPEN == 0.9, np.nan, OPEN), OPEN_PROBES, OPEN_GALLERY, ValueError, "NaN"),
        (np.where(OPEN == 0.9, -np.inf, OPEN), OPEN_PROBES, OPEN_GALLERY, ValueError, "infinite"),
        (np.zeros((2, 2), dtype=int), [1, 2], OPEN_GALLERY, TypeError, "floating"),
        (np.zeros((0, 2)), [], OPEN_GALLERY, ValueError, "empty"),
    ],
)
def test_wrong_input_is_named(measure, similarity, probes, gallery, error, words):
    with pytest.raises(error, match=words):
        measure(similarity, np.array(probes), gallery)


def test_wrong_protocol_is_named():
    with pytest.raises(ValueError, match=r"identity 3 has none \(4 such"):
        rank_k_identification(OPEN, OPEN_PROBES, OPEN_GALLERY)
    with pytest.raises(ValueError, match="identity 3 has none"):
        cmc(torch.tensor(OPEN), torch.tensor(OPEN_PROBES), OPEN_GALLERY)
    with pytest.raises(ValueError, match="with and without a mate, got 4"):
        dir_at_far(CLOSED, PROBES, GALLERY, 0.1)
    for k in (0, 4):
        with pytest.raises(ValueError, match="between 1 and 3"):
            rank_k_identification(CLOSED, PROBES, GALLERY, k=k)
        with pytest.raises(ValueError, match="between 1 and 3"):
            cmc(CLOSED, PROBES, GALLERY, max_rank=k)
    with pytest.raises(TypeError, match="k must be an integer"):
        rank_k_identification(CLOSED, PROBES, GALLERY, k=1.0)
    with pytest.raises(ValueError, match="far"):
        dir_at_far(OPEN, OPEN_PROBES, OPEN_GALLERY, 0.0)


@settings(max_examples=20)
@given(searches())
def test_rank_rates_never_fall(search):
    rates = cmc(*search)
    assert rates == sorted(rates)


def test_plain_lists_are_read_as_arrays():
    similarity, probes, gallery = [[0.9, 0.1], [0.2, 0.8], [0.3, 0.4]], [0, 1, 2], [0, 1]
    assert rank_k_identification(similarity[:2], probes[:2], gallery) == 1.0
    assert dir_at_far(similarity, probes, gallery, 0.5) == 1.0
