"""Center loss with the paper's centre update, the updates popular code uses instead, and joint supervision.

Wen, Zhang, Li and Qiao 2016, "A Discriminative Feature Learning Approach for Deep Face Recognition". L_C =
1/2 sum_i ||x_i - c_{y_i}||^2 is differentiated in the features only. The centres follow a rule of their own,
Delta c_j = sum_{i: y_i = j} (c_j - x_i) / (1 + n_j), which is not a gradient of L_C: for a class with n_j
samples of mean xbar_j it moves the centre the fraction alpha n_j/(1 + n_j) of the way to xbar_j, at most
alpha, whatever the batch. The departures below have other denominators; where the fraction exceeds 2 the
centres diverge.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from reprolib._checks import check_batch, check_choice, check_count, check_number
from reprolib.losses.distance import at_least_float32

CENTER_UPDATES = ("paper", "caffe", "autograd", "scatter")
CAFFE_MOMENTUM = 0.9


def _denominator(count: Any, batch_size: Any, update: str) -> Any:
    """q_j in the step Delta c_j = sum_{i: y_i = j} (c_j - x_i) / q_j, for n_j = `count`."""
    if update == "autograd":
        return count * 0 + batch_size / 2
    return count * 0 + 1 if update == "scatter" else count + 1


def center_step(count: int, batch_size: int, alpha: float, update: str = "paper") -> float:
    """Fraction of the way to its class mean that one step moves the centre of a class with `count` samples.

    paper and caffe (from rest): alpha n/(1 + n); autograd: 2 alpha n/B; scatter: alpha n. The distance to a
    mean that stays is multiplied by |1 - fraction|: beyond 1 the step overshoots, beyond 2 it diverges.
    """
    check_choice(update, "update", CENTER_UPDATES)
    check_count(count, "count", low=0)
    check_count(batch_size, "batch_size", low=max(1, count))
    check_number(alpha, "alpha", high=1.0, closed=True)
    return float(alpha * count / _denominator(float(count), batch_size, update))


class CenterLoss(nn.Module):
    """L_C = 1/2 sum_i ||x_i - c_{y_i}||^2 (eq. 2); its centres follow eqs. 3 and 4 instead of a gradient.

    `forward(features (N, d), labels (N,))` -> scalar; dL_C/dx_i = x_i - c_{y_i}. In training mode it then
    moves the centres, after the loss has used the old ones (Algorithm 1). Evaluation mode never changes them.
    The step contains no lambda. `centers` (num_classes, in_features) is a buffer, 0 at the start, saved
    in the state dict.

    `reduction="sum"` is the paper's; beside a classification loss that is a *mean* over the batch take "mean"
    (1/N of the sum), so that lambda keeps the meaning it has in the paper, where both are sums.

    `alpha` in [0, 1] is the centres' rate. `update` names the step; n_j samples of class j in a batch of B:
    "paper"     c_j <- c_j - alpha sum (c_j - x_i)/(1 + n_j)
    "caffe"     the authors' code hands Delta c_j, as if it were a gradient, to its solver:
                v_j <- 0.9 v_j + alpha sum (c_j - x_i)/(1 + n_j); c_j <- c_j - v_j,
                so absent classes move too. alpha is learning rate x multiplier and decays with the
                schedule: assign `loss.alpha`. v is the buffer `velocity`.
    "autograd"  c_j <- c_j - alpha (2/B) sum (c_j - x_i): plain SGD on (1/B) sum ||x_i - c_{y_i}||^2, the
                popular PyTorch version
    "scatter"   c_j <- c_j - alpha sum (c_j - x_i): the popular TensorFlow version (its `alfa` is 1 - alpha);
                repeated labels add up, and for n_j alpha > 2 it diverges

    Where `torch.distributed` is initialised the sums, counts and batch sizes of all processes are added before the
    step, which is then that of the whole batch on every process; all of them must make it. The loss itself, like any
    other, is that of the process's own samples. DistributedDataParallel's broadcast of buffers then changes nothing.
    """

    centers: Tensor
    velocity: Tensor

    def __init__(
        self, num_classes: int, in_features: int, alpha: float = 0.5, update: str = "paper", *, reduction: str = "sum"
    ) -> None:
        super().__init__()
        check_count(num_classes, "num_classes")
        check_count(in_features, "in_features")
        check_choice(update, "update", CENTER_UPDATES)
        check_choice(reduction, "reduction", ("sum", "mean"))
        self.num_classes, self.in_features = num_classes, in_features
        self.alpha, self.update, self.reduction = alpha, update, reduction
        self.register_buffer("centers", torch.zeros(num_classes, in_features))
        if update == "caffe":
            self.register_buffer("velocity", torch.zeros(num_classes, in_features))

    @property
    def alpha(self) -> float:
        """The centres' rate, in [0, 1]."""
        return self._alpha

    @alpha.setter
    def alpha(self, value: float) -> None:
        check_number(value, "alpha", high=1.0, closed=True)
        self._alpha = float(value)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """1/2 sum_i ||x_i - c_{y_i}||^2 (or its mean), with the centres as they were before this batch."""
        check_batch(features, labels, self.num_classes, columns=self.in_features)
        loss = (at_least_float32(features) - self.centers[labels]).square().sum() / 2
        if self.training:
            self._move(features, labels)
        return loss if self.reduction == "sum" else loss / len(features)

    def update_centers(self, features: Tensor, labels: Tensor) -> None:
        """Move the centres by one step of the chosen rule, whatever the mode; no gradient flows."""
        check_batch(features, labels, self.num_classes, columns=self.in_features)
        self._move(features, labels)

    @torch.no_grad()
    def _move(self, features: Tensor, labels: Tensor) -> None:
        # sum_{i: y_i = j} (c_j - x_i) | n_j, and in the last row the batch size
        sums = self.centers.new_zeros(self.num_classes + 1, self.in_features + 1)
        pull = self.centers[labels] - features.to(self.centers.dtype)
        sums[:, :-1].index_add_(0, labels, pull)
        sums[:, -1].index_add_(0, labels, torch.ones_like(pull[:, 0]))
        sums[-1, -1] += len(features)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
        count, batch_size = sums[:-1, -1:], sums[-1, -1]
        step = self.alpha * (sums[:-1, :-1] / _denominator(count, batch_size, self.update))
        if self.update == "caffe":
            step = self.velocity.mul_(CAFFE_MOMENTUM).add_(step)
        self.centers.sub_(step)

    def extra_repr(self) -> str:
        return (
            f"{self.num_classes}, {self.in_features}, alpha={self.alpha}, update={self.update!r}, "
            f"reduction={self.reduction!r}"
        )


class JointLoss(nn.Module):
    """L = L_S + lambda L_A: a head with an auxiliary loss on its features (Wen et al. 2016, eq. 5).

    `head` is a classification loss with `.logits` and `.weight`; `auxiliary(features, labels)` -> scalar is a
    module (as `CenterLoss`) or a function; `weight_auxiliary` is lambda >= 0. Both are evaluated on the same
    batch and must be reduced alike (both means or both sums). The warm-up of scale and margin is the head's own.
    """

    head: Any

    def __init__(self, head: nn.Module, auxiliary: Callable[[Tensor, Tensor], Tensor], weight_auxiliary: float) -> None:
        super().__init__()
        check_number(weight_auxiliary, "weight_auxiliary", closed=True)
        self.head, self.auxiliary, self.weight_auxiliary = head, auxiliary, float(weight_auxiliary)

    @property
    def weight(self) -> Tensor:
        """The head's class weights (num_classes, in_features)."""
        return self.head.weight

    def plain_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """L_S without normalisation and margin, + lambda L_A: the warm-up."""
        return self.head.plain_loss(features, labels) + self.weight_auxiliary * self.auxiliary(features, labels)

    def logits(self, features: Tensor) -> Tensor:
        """The head's scores (N, C)."""
        return self.head.logits(features)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """L_S + lambda L_A."""
        return self.head(features, labels) + self.weight_auxiliary * self.auxiliary(features, labels)
