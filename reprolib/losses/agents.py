"""NormFace's classification versions of the contrastive and triplet losses: one agent W_j stands for class j.

Wang, Xiang, Cheng and Yuille 2017 (arXiv:1704.06369), eqs. 10 and 11. D2_ij = ||f~_i - W~_j||^2 with f~ =
f/||f|| and W~ = W/||W||, each normalisation can be switched off. Prediction is by the nearest agent.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reprolib._checks import check_choice, check_count, check_features, check_labels, check_number
from reprolib.losses.distance import at_least_float32, pairwise_squared_distance, unit_rows


def _agent_distance(
    features: Tensor, weight: Tensor, normalize_features: bool, normalize_weights: bool, eps: float
) -> Tensor:
    """D2 (N, C)."""
    check_features(weight, "weight")
    check_features(features, "features", columns=weight.shape[1])
    if len(weight) < 2:
        raise ValueError(f"weight must have at least 2 rows, one per class, got {len(weight)}")
    check_number(eps, "eps")
    features = unit_rows(features, eps) if normalize_features else at_least_float32(features)
    weight = unit_rows(weight, eps) if normalize_weights else at_least_float32(weight)
    # Between unit vectors the expansion loses nothing and is a single matrix product.
    method = "expansion" if normalize_features and normalize_weights else "difference"
    return pairwise_squared_distance(features, weight, method)


def c_contrastive_loss(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    margin: float = 1.0,
    *,
    normalize_features: bool = True,
    normalize_weights: bool = True,
    eps: float = 1e-12,
) -> Tensor:
    """C-contrastive loss (NormFace eq. 10): (1/N) sum_i [ D2_iy + sum_{j != y} max(0, margin - D2_ij) ].

    `features` (N, d), `labels` (N,) in 0 .. C - 1, `weight` (C, d) the agents, `margin` >= 0 in squared
    distance (the paper's is 1; at 0 the agents become class means). Summed over the agents, averaged over the
    N samples, as the authors' layer does it. Differentiable in features and weight.
    """
    check_number(margin, "margin", closed=True)
    distance = _agent_distance(features, weight, normalize_features, normalize_weights, eps)
    check_labels(labels, len(features), len(weight))
    target = labels.unsqueeze(1)
    # max(0, m - D2_ij) for j != y, 0 at the own class
    push = (margin - distance).clamp_min(0).scatter(1, target, 0)
    return (distance.gather(1, target).squeeze(1) + push.sum(dim=1)).mean()


def c_triplet_loss(
    features: Tensor,
    labels: Tensor,
    weight: Tensor,
    margin: float = 0.8,
    hardest_only: bool = False,
    *,
    gradient: str = "exact",
    normalize_features: bool = True,
    normalize_weights: bool = True,
    eps: float = 1e-12,
) -> Tensor:
    """C-triplet loss (NormFace eq. 11): (1/N) sum_i sum_{k != y} max(0, margin + D2_iy - D2_ik).

    Arguments as `c_contrastive_loss`, `margin` > 0 (the paper's is 0.8). Summed over the C - 1 wrong agents,
    averaged over the N samples. `hardest_only` keeps, of the sum over k, only the nearest wrong agent.

    `gradient="caffe"` is the authors' layer as their face model configures it (`add_center_loss`): the same
    value, but its backward pass gives dL/dD2_iy = 1/N for *every* sample, however many hinges are active,
    none included. The exact slope is (number of active hinges)/N.
    """
    check_number(margin, "margin")
    check_choice(gradient, "gradient", ("exact", "caffe"))
    distance = _agent_distance(features, weight, normalize_features, normalize_weights, eps)
    check_labels(labels, len(features), len(weight))
    target = labels.unsqueeze(1)
    own = distance.gather(1, target)
    reference = own if gradient == "exact" else own.detach()
    # max(0, m + D2_iy - D2_ik) for k != y, 0 at the own class
    hinge = (margin + reference - distance).clamp_min(0).scatter(1, target, 0)
    per_sample = hinge.amax(dim=1) if hardest_only else hinge.sum(dim=1)
    if gradient == "caffe":
        per_sample = per_sample + (own - own.detach()).squeeze(1)
    return per_sample.mean()


class _AgentHead(nn.Module):
    """One agent a class: `.weight` (num_classes, in_features), drawn uniformly on the unit sphere."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        margin: float,
        *,
        normalize_features: bool = True,
        normalize_weights: bool = True,
        eps: float = 1e-12,
    ) -> None:
        super().__init__()
        check_count(in_features, "in_features")
        check_count(num_classes, "num_classes", low=2)
        check_number(eps, "eps")
        self.in_features, self.num_classes = in_features, num_classes
        self.margin = float(margin)
        self.normalize_features, self.normalize_weights, self.eps = normalize_features, normalize_weights, eps
        self.weight = nn.Parameter(torch.empty(num_classes, in_features))
        self.reset_parameters()

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the agents anew: Gaussian rows divided by their norm (the authors' "gaussian_unitball")."""
        with torch.no_grad():
            self.weight.copy_(unit_rows(torch.randn(self.weight.shape, generator=generator)))

    def _options(self) -> dict[str, Any]:
        return {
            "normalize_features": self.normalize_features,
            "normalize_weights": self.normalize_weights,
            "eps": self.eps,
        }

    def logits(self, features: Tensor) -> Tensor:
        """Scores to predict with, (N, d) -> (N, C): 1 - D2/2, largest for the nearest agent.

        With both normalisations on it is cos(features, agent).
        """
        return 1 - _agent_distance(features, self.weight, **self._options()) / 2

    def extra_repr(self) -> str:
        options = ", ".join(f"{key}={value}" for key, value in self._options().items())
        return f"{self.in_features}, {self.num_classes}, margin={self.margin}, {options}"


class CContrastive(_AgentHead):
    """`c_contrastive_loss` as a head: `forward(features (N, d), labels (N,))` -> mean over the batch."""

    def __init__(self, in_features: int, num_classes: int, margin: float = 1.0, **options: Any) -> None:
        check_number(margin, "margin", closed=True)
        super().__init__(in_features, num_classes, margin, **options)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """NormFace eq. 10, mean over the batch."""
        return c_contrastive_loss(features, labels, self.weight, self.margin, **self._options())


class CTriplet(_AgentHead):
    """`c_triplet_loss` as a head: `forward(features (N, d), labels (N,))` -> mean over the batch."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        margin: float = 0.8,
        *,
        hardest_only: bool = False,
        gradient: str = "exact",
        **options: Any,
    ) -> None:
        check_number(margin, "margin")
        check_choice(gradient, "gradient", ("exact", "caffe"))
        super().__init__(in_features, num_classes, margin, **options)
        self.hardest_only, self.gradient = hardest_only, gradient

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """NormFace eq. 11, mean over the batch."""
        arguments = features, labels, self.weight, self.margin, self.hardest_only
        return c_triplet_loss(*arguments, gradient=self.gradient, **self._options())
