"""Sampled classes for the margin-softmax head: a batch trains its own classes and a few others, not all C.

A sampler draws the classes of one training step from (seed, number of the draw). Both are buffers, so a resumed run
draws what the uninterrupted one would have drawn, bit for bit.
"""

from __future__ import annotations

import math
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

    def _generator(self) -> torch.Generator:
        self.draws += 1
        return torch.Generator().manual_seed(int(self.seed) * 1_000_003 + int(self.draws))

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
        generator = self._generator()
        own = torch.zeros(num_classes, dtype=torch.bool)
        own[labels.cpu()] = True
        present = int(own.sum())
        drawn = max(0, min(num_classes, round(self.rate * num_classes)) - present)
        # the smallest of uniform keys are a uniform sample without replacement; own classes come first
        keys = torch.rand(num_classes, generator=generator, dtype=torch.float64).masked_fill_(own, -1.0)
        classes = keys.topk(present + drawn, largest=False, sorted=False).indices.sort().values
        correction = None
        if self.corrected and drawn:
            inverse = math.log((num_classes - present) / drawn)
            correction = torch.full((len(classes),), inverse).masked_fill_(own[classes], 0.0).to(labels.device)
        classes = classes.to(labels.device)
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
        generator = self._generator()
        if self.q is None:
            drawn = torch.randint(num_classes, (self.count,), generator=generator)
        else:
            uniform = torch.rand(self.count, generator=generator, dtype=torch.float64)
            cumulative = self.cumulative.cpu()
            drawn = torch.searchsorted(cumulative, uniform * cumulative[-1], right=True).clamp_max_(num_classes - 1)
        drawn = drawn.to(labels.device)
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
