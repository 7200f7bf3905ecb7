"""ArcFace's comparison losses: Intra-Loss, Inter-Loss and the triplet loss, all of angles instead of cosines.

Deng, Guo, Xue and Zafeiriou 2019 (arXiv:1801.07698), eqs. 5 and 6 and sec. 2.3; notebook 05. Intra and Inter
are terms that the paper *adds* to norm-softmax (L5 = L2 + intra_loss, L6 = L2 + inter_loss); the triplet loss
may stand alone. An angle is 2 atan2(|u - v|, |u + v|) of unit vectors (Kahan), accurate to a few eps from 0 to
pi, where arccos loses half of the digits and has an infinite slope. |x| |d theta/dx| = 1 at every angle but 0
and pi; there theta has a kink, and the subgradient 0 is taken.

All are differentiable in features and weight, return a scalar, compute half precision in float32, and raise
ValueError or TypeError with one sentence for a wrong shape, dtype, label or value, and for a row of zeros,
which has no angle.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reprolib._checks import check_features, check_labels, check_number, require
from reprolib.losses.distance import at_least_float32, pairwise_distance, safe_sqrt
from reprolib.losses.metric import mean_over_triplets


def _directions(x: Tensor, name: str, columns: int | None = None) -> Tensor:
    """The rows of `x` (N, d) divided by their norms, at any finite scale."""
    check_features(x, name, columns)
    x = at_least_float32(x)
    largest = x.detach().abs().amax(dim=1, keepdim=True)
    require(
        (largest > 0).all(),
        lambda: f"{name} must have no zero row, which has no direction: row {int(largest.argmin())} is zero",
    )
    # With the largest entry at 1 the squares neither overflow nor vanish; a direction ignores the factor.
    x = x / largest
    return x / torch.linalg.vector_norm(x, dim=1, keepdim=True)


def _pairwise_angle(u: Tensor, v: Tensor) -> Tensor:
    """Angles (N, M) in radians between unit rows; exactly 0 with gradient 0 for equal rows."""
    # theta = 2 atan2(|u - v|, |u + v|)
    return 2 * torch.atan2(pairwise_distance(u, v), pairwise_distance(u, -v))


def intra_loss(features: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    """ArcFace's Intra term (eq. 5): (1/(pi N)) sum_i theta_(y_i), the mean angle to the own class weight over pi.

    `features` (N, d), `weight` (n, d) the class weights, `labels` (N,) int64 in 0 .. n - 1. Norms do not
    matter. Returns a scalar in [0, 1] (angles in radians before the division by pi).
    """
    weight = _directions(weight, "weight")
    features = _directions(features, "features", columns=weight.shape[1])
    check_labels(labels, len(features), len(weight))
    own = weight[labels]
    chord, opposite = ((features + sign * own).square().sum(dim=1) for sign in (-1, 1))
    # (1/(pi N)) sum_i theta_(y_i)
    return 2 * torch.atan2(safe_sqrt(chord), safe_sqrt(opposite)).mean() / math.pi


def inter_loss(weight: Tensor, labels: Tensor | None = None) -> Tensor:
    """ArcFace's Inter term (eq. 6): -(1/(pi N (n - 1))) sum_i sum_(j != y_i) arccos(W_(y_i)^T W_j).

    `weight` (n, d), n >= 2, of any norm; `labels` (N,) int64 in 0 .. n - 1 are those of the batch, which in
    the paper's sum weigh the classes by how often they occur. Without them every class counts once: the
    same, in the mean over batches, for balanced classes. Returns a scalar in [-1, 0], minus the mean angle
    over pi. The sign is a minus: the angles are to grow.

    The sum over all pairs is at most pi floor(n^2/4), reached when half of the weights are at one point and
    half at its antipode, so this term is no measure of how well the *nearest* classes are separated.
    """
    weight = _directions(weight, "weight")
    if len(weight) < 2:
        raise ValueError(f"weight must have at least 2 rows, one per class, got {len(weight)}")
    if labels is not None:
        check_labels(labels, num_classes=len(weight))
        if len(labels) == 0:
            raise ValueError("labels must not be empty: the mean over no samples is undefined")
    # The angle of j = y to itself is exactly 0 and adds nothing.
    per_class = _pairwise_angle(weight, weight).sum(dim=1)
    # -(1/(pi N (n - 1))) sum_i sum_(j != y_i) theta_(y_i, j)
    return -(per_class if labels is None else per_class[labels]).mean() / (math.pi * (len(weight) - 1))


def angular_triplet_loss(features: Tensor, labels: Tensor, margin: float = 0.35, average: str = "active") -> Tensor:
    """The triplet loss of angles: [theta_ap + margin - theta_an]_+ over the triplets (a, p, n) of the batch.

    It is 0 where arccos(x_p . x_a) + m <= arccos(x_n . x_a) (ArcFace sec. 2.3). `features` (B, d) of any norm,
    `labels` (B,) int64, `margin` > 0 in radians (the paper's is 0.35). `average="active"` divides by the number
    of triplets above 0 (0 if there are none), "all" by the number of all valid triplets. Memory O(B^2).
    ValueError if the batch has no positive or no negative pair.
    """
    check_number(margin, "margin", high=math.pi)
    features = _directions(features, "features")
    check_labels(labels, len(features))
    # sum over a, p, n of [theta_ap + m - theta_an]_+
    return mean_over_triplets(_pairwise_angle(features, features), labels, float(margin), average)
