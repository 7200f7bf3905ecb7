"""Sampled classes for the margin-softmax head: a batch trains its own classes and a few others, not all C.

A sampler draws the classes of one training step from (seed, number of the draw). Both are buffers, so a resumed run
draws what the uninterrupted one would have drawn, bit for bit, on any device. Partial FC reads nothing on the host as
long as its rate holds the batch's classes; sampled softmax reads the number of different classes drawn.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reprolib._checks import check_count, check_number


class ClassSample(NamedTuple):
    """The classes of one step.

    classes (K,) int64, ascending, all labels of the batch among them; ``labels`` (N,) their positions in ``classes``;
    ``correction`` (K,) float32 or None, added to the logits of all classes but a sample's own (it may be -inf).
    """

    classes: Tensor
    labels: Tensor
    correction: Tensor | None


def _low(bits: int) -> int:
    """The mask of so many low bits."""
    return (1 << bits) - 1


def _mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser of int64 ``x`` + its increment: a bijection whose outputs pass for random."""
    x = x + -7046029254386353131  # 0x9e3779b97f4a7c15
    x = (x ^ (x >> 30 & _low(34))) * -4658895280553007687  # 0xbf58476d1ce4e5b9
    x = (x ^ (x >> 27 & _low(37))) * -7723592293110705685  # 0x94d049bb133111eb
    return x ^ (x >> 31 & _low(33))


class ClassSampler(nn.Module):
    """Draws from (seed, number of the draw); the base of the two samplers.

    Args:
        seed: integer >= 0; runs of the same seed draw the same classes for the same labels.
    """

    seed: Tensor
    draws: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        check_count(seed, "seed", low=0)
        self.register_buffer("seed", torch.tensor(seed, dtype=torch.int64))
        self.register_buffer("draws", torch.zeros((), dtype=torch.int64))

    def _uniform(self, count: int) -> Tensor:
        """``count`` float64 numbers in [0, 1) of the next draw, on the buffers' device and the same on every device.

        splitmix64 (Steele, Lea and Flood 2014) of (seed, draw, position), in int64, whose overflow wraps around.
        """
        self.draws += 1
        stream = _mix(_mix(self.seed) + self.draws)
        return (_mix(stream + torch.arange(count, device=self.draws.device)) >> 11 & _low(53)).double() * 2.0**-53

    def check(self, num_classes: int) -> None:
        """Raise ValueError if this sampler does not fit ``num_classes`` classes."""


class PartialFC(ClassSampler):
    """Partial FC (An et al. 2022): all classes of the batch and a share of the others, uniformly without replacement.

    With B the batch's classes, K = max(|B|, rate C) in all and rho = (K - |B|) / (C - |B|), the partition function of
    the sampled classes has E[Z'] = sum_B e^z + rho sum_rest e^z <= Z: too small, in value and in gradient. With
    ``corrected`` the others carry -log(rho) in their logits (Horvitz-Thompson), and E[Z'] = Z. The loss is then still
    too small on average, E[log Z'] <= log Z (Jensen), by about Var(Z') / (2 Z^2).

    Args:
        rate: share of the classes in a step, 0 < rate <= 1; with 1 the loss is the full one.
        corrected: weight the drawn classes by 1/rho; the paper does not.
        seed: see :class:`ClassSampler`.
    """

    def __init__(self, rate: float, *, corrected: bool = False, seed: int = 0) -> None:
        super().__init__(seed)
        check_number(rate, "rate", high=1.0 + 1e-12)
        self.rate, self.corrected = float(rate), bool(corrected)

    def forward(self, labels: Tensor, num_classes: int) -> ClassSample:
        """Draw for ``labels`` (N,) int64 in [0, num_classes)."""
        # the smallest of uniform keys are a uniform sample without replacement; own classes come first
        keys = self._uniform(num_classes).index_fill(0, labels, -1.0)
        present = (keys < 0).sum()
        wanted = min(num_classes, round(self.rate * num_classes))
        # only a rate that may not hold the batch's classes makes the host wait for their number
        size = wanted if wanted >= min(len(labels), num_classes) else max(wanted, int(present))
        classes = keys.topk(size, largest=False, sorted=False).indices.sort().values
        correction = None
        if self.corrected:
            drawn = keys[classes] >= 0
            # log(1 / rho), rho = (K - |B|) / (C - |B|)
            inverse = ((num_classes - present).double() / (size - present)).log().float()
            correction = torch.where(drawn, inverse, 0.0)
        return ClassSample(classes, torch.searchsorted(classes, labels), correction)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        return f"rate={self.rate}, corrected={self.corrected}, seed={int(self.seed)}"


class SampledSoftmax(ClassSampler):
    """Sampled softmax with its log-q correction (Bengio and Senecal 2003, 2008; Jean et al. 2015).

    k classes are drawn from q with replacement, c_j times class j, and Z'_i = e^{z_iy} + sum_{j != y_i} c_j e^{z_ij} /
    (k q_j): E[c_j] = k q_j, hence E[Z'_i] = Z_i for every sample of the batch. As logits: z_ij + log(c_j / (k q_j)) for
    all classes but the sample's own; a class that was not drawn counts -inf. E[log Z'] <= log Z by Jensen.

    Args:
        count: draws k per step.
        probabilities: q (C,), positive; None is uniform. It is normalised to sum 1.
        seed: see :class:`ClassSampler`.
    """

    q: Tensor | None
    cumulative: Tensor

    def __init__(self, count: int, *, probabilities: Tensor | None = None, seed: int = 0) -> None:
        super().__init__(seed)
        check_count(count, "count")
        self.count = int(count)
        if probabilities is None:
            self.register_buffer("q", None)
            self.register_buffer("cumulative", None)
            return
        if probabilities.ndim != 1 or not bool((torch.isfinite(probabilities) & (probabilities > 0)).all()):
            raise ValueError("probabilities must be a vector of positive finite numbers: a class never drawn is lost")
        q = probabilities.double() / probabilities.double().sum()
        self.register_buffer("q", q)
        self.register_buffer("cumulative", q.cumsum(0))

    def check(self, num_classes: int) -> None:
        """Raise ValueError if the probabilities are not those of ``num_classes`` classes."""
        if self.q is not None and len(self.q) != num_classes:
            raise ValueError(f"probabilities must have one entry for each of {num_classes} classes, got {len(self.q)}")

    def forward(self, labels: Tensor, num_classes: int) -> ClassSample:
        """Draw for ``labels`` (N,) int64 in [0, num_classes)."""
        self.check(num_classes)
        uniform = self._uniform(self.count)
        if self.q is None:
            drawn = (uniform * num_classes).long()
        else:
            drawn = torch.searchsorted(self.cumulative, uniform * self.cumulative[-1], right=True)
        drawn = drawn.clamp_max_(num_classes - 1)
        classes, place = torch.cat([drawn, labels]).unique(return_inverse=True)
        times = torch.bincount(place[: self.count], minlength=len(classes)).double()
        # c_j / (k q_j), 0 for a class that is here only as somebody's label
        q = 1.0 / num_classes if self.q is None else self.q[classes]
        correction = (times / (self.count * q)).log().float()
        return ClassSample(classes, place[self.count :], correction)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        kind = "uniform" if self.q is None else "given"
        return f"count={self.count}, q={kind}, seed={int(self.seed)}"
