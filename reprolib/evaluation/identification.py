"""Closed-set and open-set identification from a matrix of probe-gallery scores.

A gallery holds enrolled people, a probe is searched in it. Ranks are pessimistic: a gallery entry of another
person whose score ties with the probe's true mate counts as ahead of it, so that constant scores earn
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .._checks import Array, check_count, far_values, float_array, label_array
from .intervals import Estimate, proportion
from .roc import rates_above, threshold_at_far

_BLOCK = 1 << 22  # scores handled at once


def _search(
    similarity: Array, probe_labels: Array, gallery_labels: Array
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each probe: has it a mate, the rank of its best mate, that mate's score, the best score of all."""
    similarity = float_array(similarity, "similarity", 2)
    probes, entries = similarity.shape
    probe_labels = label_array(probe_labels, "probe_labels", probes)
    gallery_labels = label_array(gallery_labels, "gallery_labels", entries)
    rank = np.empty(probes, dtype=np.int64)
    mate = np.empty(probes, dtype=similarity.dtype)
    step = max(1, _BLOCK // entries)
    for start in range(0, probes, step):
        rows = slice(start, start + step)
        scores, same = similarity[rows], probe_labels[rows, None] == gallery_labels
        mate[rows] = np.where(same, scores, -np.inf).max(axis=1)
        # rank = 1 + |{g not a mate : s(p, g) >= s(p, best mate)}|
        rank[rows] = 1 + ((scores >= mate[rows, None]) & ~same).sum(axis=1)
    return np.isin(probe_labels, gallery_labels), rank, mate, similarity.max(axis=1)


def _closed_set_ranks(similarity: Array, probe_labels: Array, gallery_labels: Array) -> tuple[np.ndarray, int]:
    has_mate, rank, _, _ = _search(similarity, probe_labels, gallery_labels)
    if not has_mate.all():
        missing = int(label_array(probe_labels, "probe_labels")[~has_mate][0])
        raise ValueError(
            f"every probe needs a mate in the gallery, but identity {missing} has none "
            f"({int((~has_mate).sum())} such probes); use dir_at_far for open-set identification"
        )
    return rank, np.shape(similarity)[1]


def rank_k_identification(
    similarity: Array, probe_labels: Array, gallery_labels: Array, k: int = 1, *, level: float = 0.95
) -> Estimate:
    """Closed-set rank-k rate: the share of probes whose true identity is among the k highest gallery scores.

    `similarity` (P, G), higher = more similar; integer `probe_labels` (P,), `gallery_labels` (G,); `k` in
    1..G. With several gallery entries for a person, the best mate counts and every entry of other people is a
    rival. A tie with a rival counts against the probe. Wilson interval on the P probes.

    Raises ValueError if a probe has no mate (that is open-set: `dir_at_far`), for shapes, NaN or infinity.
    """
    rank, entries = _closed_set_ranks(similarity, probe_labels, gallery_labels)
    check_count(k, "k", high=entries)
    return proportion(int((rank <= k).sum()), len(rank), level=level)


def cmc(
    similarity: Array,
    probe_labels: Array,
    gallery_labels: Array,
    max_rank: int | None = None,
    *,
    level: float = 0.95,
) -> list[Estimate]:
    """Cumulative match characteristic: `rank_k_identification` for k = 1..`max_rank` (default: G).

    Entry k - 1 is the rank-k rate; the curve never falls and, over the whole gallery, ends at 1.
    """
    rank, entries = _closed_set_ranks(similarity, probe_labels, gallery_labels)
    max_rank = entries if max_rank is None else max_rank
    check_count(max_rank, "max_rank", high=entries)
    hits = np.cumsum(np.bincount(rank, minlength=entries + 1))[1 : max_rank + 1]
    return [proportion(int(hit), len(rank), level=level) for hit in hits]


def dir_at_far(
    similarity: Array,
    probe_labels: Array,
    gallery_labels: Array,
    far: float | Sequence[float],
    rank: int = 1,
    *,
    level: float = 0.95,
) -> Any:
    """Open-set detection and identification rate at FAR = `far` (TPIR at FPIR; Phillips, Grother, Micheals).

    `similarity` (P, G). Probes without a mate in the gallery are the impostors P_N, the others are P_G:

        FAR(t) = |{p in P_N : max_g s(p, g) > t}| / |P_N|
        DIR(t, r) = |{p in P_G : rank(p) <= r and s(p, best mate) > t}| / |P_G|

    t is the lowest threshold with FAR(t) <= far; acceptance is strict and ties count against the probe, as in
    `tar_at_far`. At far = 1 every score is accepted: DIR equals the rank-r rate of P_G.

    An `Estimate` with the Wilson interval on P_G, the threshold held fixed; `supported` is False where
    far * |P_N| < 10. A sequence of `far` gives a list. Raises ValueError unless there are probes with and without a
    mate.
    """
    has_mate, ranks, mate, best = _search(similarity, probe_labels, gallery_labels)
    check_count(rank, "rank", high=np.shape(similarity)[1])
    if has_mate.all() or not has_mate.any():
        raise ValueError(
            "open-set identification needs probes with and without a mate, got "
            f"{int(has_mate.sum())} with one of {len(has_mate)}"
        )
    rates, scalar = far_values(far)
    impostors = best[~has_mate]
    found = mate[has_mate & (ranks <= rank)]
    results = rates_above(found, threshold_at_far(impostors, rates), rates, int(has_mate.sum()), len(impostors), level)
    return results[0] if scalar else results
