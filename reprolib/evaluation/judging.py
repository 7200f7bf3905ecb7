"""One judge of embeddings: verification over all pairs of a set, closed-set and open-set identification."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._checks import Array, far_values, feature_rows, label_array, row_tensor, unit_rows
from .bootstrap import ScoredPairs, bootstrap_people, scored_pairs
from .identification import search
from .intervals import Estimate, clopper_pearson, clustered_mean
from .roc import equal_error_rate, is_supported, roc_auc, tar_at_far, threshold_at_far


@dataclass(frozen=True)
class Judgement:
    """What `judge` measured; `tar` and `dir` by FAR, `left_out` and `dir_left_out` are the FARs that were not."""

    equal_error_rate: Estimate
    auc: Estimate
    tar: dict[float, Estimate]
    rank1: Estimate
    dir: dict[float, Estimate]
    left_out: tuple[float, ...]
    dir_left_out: tuple[float, ...]
    people: int
    genuine: int
    impostor: int

    def as_dict(self) -> dict[str, Any]:
        """Plain JSON values; rates by FAR have keys such as "0.001"."""
        by_far = {name: {f"{far:g}": rate.as_dict() for far, rate in getattr(self, name).items()} for name in _BY_FAR}
        single = {name: getattr(self, name).as_dict() for name in ("equal_error_rate", "auc", "rank1")}
        rest = {name: getattr(self, name) for name in ("people", "genuine", "impostor")}
        return {**single, **by_far, "left_out": list(self.left_out), "dir_left_out": list(self.dir_left_out), **rest}


_BY_FAR = ("tar", "dir")


@torch.no_grad()
def judge(
    embeddings: Array,
    labels: Array,
    *,
    fars: Sequence[float] = (1e-1, 1e-2, 1e-3, 1e-4),
    draws: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Judgement:
    """EER, AUC, TAR at `fars`, rank-1 and DIR at `fars` of `embeddings` (N, d) with people `labels` (N,), by cosine.

    Verification takes all N (N - 1) / 2 pairs. Rank-1: the first image of each person is the gallery, the other images
    are searched in it. DIR at FAR (open set): of the people with several images every second one, in the order of
    their labels, is enrolled with its first image; the images of all people who are not enrolled are the impostor
    probes. A FAR x is measured only where at least 10 / x impostor scores (probes, for DIR) stand behind it; those
    left out are named.

    EER, AUC and TAR have the interval of `bootstrap_people` with `draws` and `seed`; with `draws` = 0, the quick way
    where seeds or folds make the interval, that of the pairs taken as independent, which is too narrow. Rank-1 and DIR
    have Student's t with the people of the probes as clusters, gallery and threshold held fixed.

    3,000 images (4.5 million pairs) take about 200 MB. Raises ValueError for shapes, NaN, a zero row, fewer than two
    people with several images, or a FAR outside (0, 1]; TypeError for wrong dtypes.
    """
    rows = row_tensor(feature_rows(embeddings, "embeddings"))
    unit = unit_rows(
        rows.to("cpu", torch.float64 if rows.dtype == torch.float64 else torch.float32), "embeddings"
    ).numpy()
    people = np.unique(label_array(labels, "labels", len(unit)), return_inverse=True)[1]
    counts = np.bincount(people)
    if (counts > 1).sum() < 2:
        raise ValueError(f"labels must name at least 2 people with several images, got {int((counts > 1).sum())}")
    rates = sorted(set(far_values(list(fars))[0].tolist()), reverse=True)

    pairs = scored_pairs(unit, people)
    same = pairs.first == pairs.second
    impostors = len(same) - int(same.sum())
    measured = [far for far in rates if is_supported(far, impostors)]
    eer, auc, *tars = _verification(pairs, same, measured, draws, seed, level)

    first = np.unique(people, return_index=True)[1]
    probes = np.setdiff1d(np.arange(len(people)), first)
    ranks = search(unit[probes] @ unit[first].T, people[probes], people[first])[1]
    dirs, unsupported = _open_set(unit, people, counts, rates, level)
    return Judgement(
        equal_error_rate=eer,
        auc=auc,
        tar=dict(zip(measured, tars, strict=True)),
        rank1=_clustered(ranks == 1, people[probes], level),
        dir=dirs,
        left_out=tuple(far for far in rates if far not in measured),
        dir_left_out=unsupported,
        people=len(counts),
        genuine=len(same) - impostors,
        impostor=impostors,
    )


def _verification(
    pairs: ScoredPairs, same: np.ndarray, fars: list[float], draws: int, seed: int, level: float
) -> list[Estimate]:
    if draws:
        return list(bootstrap_people(pairs, fars=fars, draws=draws, seed=seed, level=level).values())
    genuine, impostor = pairs.scores[same], np.sort(pairs.scores[~same])
    eer = equal_error_rate(genuine, impostor, level=level, seed=seed)
    tars = [tar_at_far(genuine, impostor, far, level=level) for far in fars]
    return [eer, roc_auc(genuine, impostor, level=level), *tars]


def _open_set(
    unit: np.ndarray, people: np.ndarray, counts: np.ndarray, fars: list[float], level: float
) -> tuple[dict[float, Estimate], tuple[float, ...]]:
    """DIR at each supported FAR, and the FARs that the impostor probes do not support."""
    enrolled = np.flatnonzero(counts > 1)[::2]
    first = np.unique(people, return_index=True)[1]
    gallery = first[enrolled]
    probes = np.setdiff1d(np.arange(len(people)), gallery)
    has_mate, rank, mate, best = search(unit[probes] @ unit[gallery].T, people[probes], people[gallery])
    measured = [far for far in fars if is_supported(far, int((~has_mate).sum()))]
    dirs = {}
    for far in measured:
        # DIR(t) = share of mated probes with rank 1 and a mate above t; acceptance is strict
        threshold = np.float64(threshold_at_far(best[~has_mate], far))
        hits = (rank[has_mate] == 1) & (mate[has_mate] > threshold)
        dirs[far] = _clustered(hits, people[probes][has_mate], level)
    return dirs, tuple(far for far in fars if far not in measured)


def _clustered(hits: np.ndarray, people: np.ndarray, level: float) -> Estimate:
    """Share of `hits` with the people as clusters; Clopper-Pearson on their number where all people agree."""
    index = np.unique(people, return_inverse=True)[1]
    counts = np.bincount(index)
    shares = np.bincount(index, weights=hits) / counts
    if shares.min() < shares.max():
        return clustered_mean(shares, counts, level=level, over="people", low=0.0, high=1.0)
    low, high = clopper_pearson(shares[0] * len(counts), len(counts), level)
    method = f"Clopper-Pearson on {len(counts)} people (all agree)"
    return Estimate(shares[0], low, high, level=level, count=len(hits), method=method)
