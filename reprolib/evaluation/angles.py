"""Angle statistics of an embedding, in degrees: ArcFace's Table 3, the angular Fisher score, pair angles."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .._checks import Array, check_count, feature_rows, label_array, row_tensor, unit_rows
from .intervals import Estimate, clustered_mean, mean_estimate

_BLOCK = 1 << 22  # float64 values held at once


@dataclass(frozen=True)
class AngleStatistics:
    """Degrees, as defined in `angle_statistics`.

    `w_ec` and `w_inter` are None where no class weights were given; `angular_fisher_score` is None where it is
    undefined (the mean of all features vanishes, or all class centres agree).
    """

    w_ec: Estimate | None
    w_inter: Estimate | None
    intra: Estimate
    inter: Estimate
    angular_fisher_score: float | None


def _rows(features: Array, name: str) -> torch.Tensor:
    return row_tensor(feature_rows(features, name))


def _unit_chunks(rows: torch.Tensor, name: str) -> Iterator[tuple[slice, torch.Tensor]]:
    step = max(1, _BLOCK // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        yield part, unit_rows(rows[part].double(), name)


def _unit_angle(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Angles in degrees between rows of unit vectors; exact near 0 and 180 too, unlike arccos."""
    apart, together = torch.linalg.vector_norm(a - b, dim=1), torch.linalg.vector_norm(a + b, dim=1)
    # theta = 2 atan2(|a - b|, |a + b|)   (Kahan)
    return torch.rad2deg(2 * torch.atan2(apart, together))


def _nearest_angle(units: torch.Tensor) -> torch.Tensor:
    """For each row, the smallest angle in degrees to another row.

    The neighbour is found by cosine and its angle by `_unit_angle`. Rows closer than 1e-8 rad have equal
    cosines, so a wrong pick among them costs at most that.
    """
    nearest = torch.empty(len(units), dtype=torch.int64, device=units.device)
    step = max(1, _BLOCK // len(units))
    for start in range(0, len(units), step):
        cosines = units[start : start + step] @ units.T
        own = torch.arange(len(cosines), device=units.device)
        cosines[own, start + own] = -torch.inf
        nearest[start : start + step] = cosines.argmax(dim=1)
    return _unit_angle(units, units[nearest])


@torch.no_grad()
def angle_statistics(
    features: Array, labels: Array, weight: Array | None = None, *, level: float = 0.95
) -> AngleStatistics:
    """W-EC, W-Inter, Intra and Inter in degrees (ArcFace, Table 3), and SphereFace's angular Fisher score.

    `features` (N, d), integer `labels` (N,), `weight` (C, d) the class weights with row j for label j. The
    embedding feature centre of a class is the normalised mean of its normalised features, so that norms do
    not weigh.
    - W-EC: mean over classes of the angle between W_j and the centre of class j.
    - W-Inter: mean over classes of the smallest angle between W_j and another W_k.
    - Intra: mean over all samples of the angle between x_i and the centre of its class.
    - Inter: mean over classes of the smallest angle between its centre and another centre.
    - angular Fisher score (SphereFace, appendix): S_w / S_b with S_w = sum over samples of 1 - cos(x, m_i)
      and S_b = sum over classes of n_i (1 - cos(m_i, m)), m_i the centres and m the mean of all normalised
      features; lower is better.

    All are free of scale. Intervals are Student's t over the classes, cut to [0, 180]; for Intra with the
    classes as clusters. Without `weight`, labels may be any integers. With it, they must lie in 0..C-1 and
    every class must have a sample. Raises ValueError for that, for fewer than two classes, NaN, a zero
    feature or weight, or a class whose normalised features cancel.
    """
    features = _rows(features, "features")
    classes, index = np.unique(label_array(labels, "labels", len(features)), return_inverse=True)
    if weight is not None:
        weight = _rows(weight, "weight").to(features.device)
        if weight.shape[1] != features.shape[1]:
            raise ValueError(f"weight must have {features.shape[1]} columns as features do, got {weight.shape[1]}")
        if classes[0] < 0 or classes[-1] >= len(weight):
            raise ValueError(f"labels must lie in 0..{len(weight) - 1}, got {classes[0]} to {classes[-1]}")
        if len(classes) < len(weight):
            absent = int(np.setdiff1d(np.arange(len(weight)), classes)[0])
            raise ValueError(f"class {absent} has a weight but no sample, so it has no feature centre")
    if len(classes) < 2:
        raise ValueError("angles between classes need at least 2 classes, got 1")

    counts = np.bincount(index)
    where = torch.from_numpy(index).to(features.device)
    sums = torch.zeros(len(classes), features.shape[1], dtype=torch.float64, device=features.device)
    for part, units in _unit_chunks(features, "features"):
        sums.index_add_(0, where[part], units)
    size = torch.from_numpy(counts).to(sums)
    norm = torch.linalg.vector_norm(sums, dim=1)
    cancelled = torch.nonzero(norm <= 1e-13 * size)[:, 0]
    if len(cancelled):
        raise ValueError(f"the normalised features of class {classes[int(cancelled[0])]} cancel: it has no centre")
    centres = sums / norm[:, None]

    sample_angle = torch.empty(len(features), dtype=torch.float64, device=features.device)
    within = 0.0
    for part, units in _unit_chunks(features, "features"):
        own = centres[where[part]]
        sample_angle[part] = _unit_angle(units, own)
        # 1 - cos = |a - b|^2 / 2 on unit vectors, without cancellation
        within += float((units - own).square().sum()) / 2
    degrees: dict[str, Any] = {"level": level, "low": 0.0, "high": 180.0, "over": "classes"}
    w_ec = w_inter = None
    if weight is not None:
        unit_weight = unit_rows(weight.double(), "weight")
        w_ec = mean_estimate(_unit_angle(unit_weight, centres).cpu().numpy(), **degrees)
        w_inter = mean_estimate(_nearest_angle(unit_weight).cpu().numpy(), **degrees)
    class_intra = np.bincount(index, weights=sample_angle.cpu().numpy()) / counts
    return AngleStatistics(
        w_ec=w_ec,
        w_inter=w_inter,
        intra=clustered_mean(class_intra, counts, **degrees),
        inter=mean_estimate(_nearest_angle(centres).cpu().numpy(), **degrees),
        angular_fisher_score=_fisher(within, centres, sums.sum(dim=0), size),
    )


def _fisher(within: float, centres: torch.Tensor, total: torch.Tensor, size: torch.Tensor) -> float | None:
    norm = torch.linalg.vector_norm(total)
    if norm <= 1e-13 * size.sum():
        return None
    between = float((size * (centres - total / norm).square().sum(dim=1)).sum()) / 2
    return within / between if between > 1e-28 * float(size.sum()) else None


@torch.no_grad()
def pair_angles(
    features: Array, labels: Array, max_pairs: int | None = None, generator: np.random.Generator | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Angles in degrees of genuine pairs (same label) and of impostor pairs, as two float64 arrays.

    `features` (N, d), integer `labels` (N,). Every unordered pair of different rows is used at most once. If
    a kind has more than `max_pairs` pairs, that many are drawn uniformly without replacement by `generator`,
    which is then required. Memory and time grow with the pairs returned, not with N^2.

    Raises ValueError if there is no genuine or no impostor pair, for NaN or zero features, TypeError for a missing
    generator.
    """
    features = _rows(features, "features")
    labels = label_array(labels, "labels", len(features))
    if max_pairs is not None:
        check_count(max_pairs, "max_pairs")
    order = np.argsort(labels, kind="stable")
    _, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    # row r (in label order) is paired with later rows only: up to the end of its class, or from there on
    end = np.repeat(first + counts, counts)
    row = np.arange(len(labels))
    kinds = {"genuine": (row + 1, end - row - 1), "impostor": (end, len(labels) - end)}
    results = []
    for kind, (partner, many) in kinds.items():
        before = np.concatenate(([0], np.cumsum(many)))
        pairs = int(before[-1])
        if pairs == 0:
            raise ValueError(f"the labels leave no {kind} pair among {len(labels)} samples")
        if max_pairs is None or pairs <= max_pairs:
            chosen = np.arange(pairs)
        elif isinstance(generator, np.random.Generator):
            chosen = generator.choice(pairs, size=max_pairs, replace=False)
        else:
            raise TypeError(
                f"generator must be a numpy.random.Generator to draw {max_pairs} of {pairs} {kind} pairs, "
                f"got {type(generator).__name__}"
            )
        left = np.searchsorted(before, chosen, side="right") - 1
        right = partner[left] + chosen - before[left]
        results.append(_paired(features, order[left], order[right]))
    return results[0], results[1]


def _paired(features: torch.Tensor, left: np.ndarray, right: np.ndarray) -> np.ndarray:
    angles = np.empty(len(left))
    step = max(1, _BLOCK // features.shape[1])
    for start in range(0, len(left), step):
        part = slice(start, start + step)
        a, b = (features[torch.from_numpy(index[part]).to(features.device)] for index in (left, right))
        angles[part] = _unit_angle(*(unit_rows(rows.double(), "features") for rows in (a, b))).cpu().numpy()
    return angles
