"""Classes of features in the plane as arcs of the circle: where each stands, how wide it is, how far it is to the next.

Only the directions of the features count, as they do for a loss of angles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from reprolib._checks import check_number


class Arcs(NamedTuple):
    """Arcs in the order of the circle, one a class; angles are float64 radians from the first axis, (C,) each.

    `centre` is in (-pi, pi]; `low` and `high`, the ends, are not reduced to it: `high - low` is the width.
    """

    labels: Tensor
    centre: Tensor
    low: Tensor
    high: Tensor

    def gaps(self) -> Tensor:
        """From each arc to the next on the circle, in degrees, (C,); negative where they overlap.

        Their sum is 360 degrees less the widths of the arcs.
        """
        # gap_k = (centre_{k+1} - centre_k mod 2 pi) - (high_k - centre_k) - (centre_{k+1} - low_{k+1})
        between = torch.remainder(self.centre.roll(-1) - self.centre, 2 * math.pi)
        return torch.rad2deg(between - (self.high - self.centre) - (self.centre - self.low).roll(-1))


def central_arcs(features: Tensor, labels: Tensor, share: float = 0.9) -> Arcs:
    """The arcs that hold the central `share` of each class's directions; features (N, 2), labels (N,).

    A class stands at the direction of the mean of its unit features; the quantiles are of the angle from there.

    Raises:
        ValueError: for other shapes, for a single class, for a share outside ]0, 1].
    """
    check_number(share, "share")
    if share > 1:
        raise ValueError(f"share must be at most 1, got {share}")
    if features.ndim != 2 or features.shape[1] != 2 or labels.shape != features.shape[:1]:
        raise ValueError(
            f"features and labels must have shapes (N, 2) and (N,), got {tuple(features.shape)}, {tuple(labels.shape)}"
        )
    classes = labels.unique()
    if len(classes) < 2:
        raise ValueError(f"labels must have at least 2 classes, got {len(classes)}")
    unit = torch.nn.functional.normalize(features.detach().double())
    tails = unit.new_tensor([(1 - share) / 2, (1 + share) / 2])
    centre, ends = [], []
    for label in classes:
        own = unit[labels == label]
        mean = own.mean(0)
        # the angle from the mean to a feature, with its sign
        off = torch.atan2(mean[0] * own[:, 1] - mean[1] * own[:, 0], own @ mean)
        centre.append(torch.atan2(mean[1], mean[0]))
        ends.append(centre[-1] + off.quantile(tails))
    order = torch.stack(centre).argsort()
    low, high = torch.stack(ends)[order].T
    return Arcs(classes[order], torch.stack(centre)[order], low, high)
