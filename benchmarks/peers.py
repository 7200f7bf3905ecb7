"""The heads that the benches compare, and the features they are given.

Every head is a module whose call is the mean loss of a batch. Two of the peers
have no margin and do not normalise: they are the fastest softmax there is, not a substitute for a margin.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.kit import installed
from reprolib.losses import ArcFace, PartialFC

M, S = 0.5, 64.0
CHUNK_ROWS = 128
TRAINED_DEGREES = (27.0, 40.0)
TRAINED_DIMENSIONS = 192
PML = "pytorch-metric-learning"
CHUNKED = "torch, chunked"


class RawSoftmax(nn.Module):
    """`cross_entropy(linear(x, w), y)`: no norm, no scale, no margin."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim) / math.sqrt(dim))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(features, self.weight), labels)


class ChunkedSoftmax(RawSoftmax):
    """The raw softmax by torch's `linear_cross_entropy`, 128 rows at a time (torch 2.13 or newer)."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        options = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=CHUNK_ROWS)
        return F.linear_cross_entropy(features, self.weight, labels, options=options)


class NormalisedSoftmax(RawSoftmax):
    """Normalise, multiply, scale, cross-entropy in plain PyTorch: NormFace's form, without a margin."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(S * F.linear(F.normalize(features), F.normalize(self.weight)), labels)


class InsightFaceHead(RawSoftmax):
    """ArcFace as insightface's PyTorch code computes it: angles of the whole matrix, in place, outside autograd."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = F.linear(F.normalize(features), F.normalize(self.weight)).clamp(-1, 1)
        index = torch.arange(len(labels))
        with torch.no_grad():
            angle = logits[index, labels].arccos()
            logits.arccos_()
            logits[index, labels] = angle + M
            logits.cos_()
        return F.cross_entropy(logits * S, labels)


class MetricLearningHead(nn.Module):
    """`ArcFaceLoss` of pytorch-metric-learning; its weight `loss.W` is (dim, classes)."""

    def __init__(self, dim: int, classes: int) -> None:
        from pytorch_metric_learning import losses

        super().__init__()
        self.loss = losses.ArcFaceLoss(classes, dim, margin=math.degrees(M), scale=S)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return self.loss(features, labels)


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "ours": lambda dim, classes: ArcFace(dim, classes, m=M, scale=S),
    "ours, reference": lambda dim, classes: ArcFace(dim, classes, m=M, scale=S, implementation="reference"),
    # what is left out of the gradients, and how far off they are at most: reprolib.losses.fused.value_and_gradients
    "ours, drop 2^-24": lambda dim, classes: ArcFace(dim, classes, m=M, scale=S, drop=2.0**-24),
    "ours, drop 2^-12": lambda dim, classes: ArcFace(dim, classes, m=M, scale=S, drop=2.0**-12),
    "ours, Partial FC 0.1": lambda dim, classes: ArcFace(
        dim, classes, m=M, scale=S, sampler=PartialFC(0.1), sparse_grad=True
    ),
    "raw softmax": RawSoftmax,
    CHUNKED: ChunkedSoftmax,
    "normalised softmax": NormalisedSoftmax,
    "insightface formulation": InsightFaceHead,
    PML: MetricLearningHead,
}
PEERS = tuple(name for name in HEADS if not name.startswith("ours"))
RAW_PEERS = ("raw softmax", CHUNKED)
DROPPING = ("ours, drop 2^-24", "ours, drop 2^-12")
MARGINS = ("ours", "ours, reference", *DROPPING, "insightface formulation", PML)


def missing(name: str) -> str | None:
    """Why a head cannot be measured here; None if it can."""
    if name == PML and not installed("pytorch_metric_learning"):
        return "pytorch-metric-learning is not installed"
    if name == CHUNKED and not hasattr(torch.nn, "LinearCrossEntropyOptions"):
        return f"torch {torch.__version__} has no chunked linear_cross_entropy"
    return None


def built(name: str, weight: Tensor) -> nn.Module:
    """The head with a copy of this weight (classes, dim)."""
    head = HEADS[name](weight.shape[1], 2)
    if isinstance(head, MetricLearningHead):
        head.loss.W, head.loss.num_classes = nn.Parameter(weight.t().contiguous()), len(weight)
    else:
        head.weight = nn.Parameter(weight.clone())
        if isinstance(head, ArcFace):
            head.num_classes = len(weight)
    return head


def step(head: nn.Module, features: Tensor, labels: Tensor) -> Tensor:
    """Forward and backward pass of one training step, gradients set to None before; the loss."""
    head.zero_grad(set_to_none=True)
    features.grad = None
    loss = head(features, labels)
    loss.backward()
    return loss.detach()


def at_angle(weight: Tensor, angle: Tensor, norm: float, generator: torch.Generator) -> Tensor:
    """Vectors (N, dim) of this norm at `angle` (N,) radians to `weight` (N, dim), otherwise in random directions."""
    own = F.normalize(weight.double())
    other = torch.randn(own.shape, generator=generator, dtype=torch.float64)
    other = F.normalize(other - (other * own).sum(dim=1, keepdim=True) * own)
    return (norm * (angle.cos().unsqueeze(1) * own + angle.sin().unsqueeze(1) * other)).to(weight.dtype)


def make_batch(kind: str, batch: int, dim: int, classes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Features (batch, dim) that want a gradient, labels (batch,), weight (classes, dim).

    "random": features and weights are independent Gaussians, as before the first step.
    "trained": the norm is 64, so that the raw softmax has the logits of a head with s = 64; the angle to the own class
    is uniform in 27 to 40 degrees; the class directions are random in the first 192 dimensions, which spreads the
    cosines to other classes by 0.07 around 0 (90 degrees), as far as those of trained networks.
    """
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(classes, (batch,), generator=generator)
    weight = torch.randn(classes, dim, generator=generator) / math.sqrt(dim)
    if kind == "random":
        return torch.randn(batch, dim, generator=generator).requires_grad_(), labels, weight
    weight[:, TRAINED_DIMENSIONS:] = 0
    weight = F.normalize(weight)
    low, high = map(math.radians, TRAINED_DEGREES)
    angle = low + (high - low) * torch.rand(batch, generator=generator, dtype=torch.float64)
    features = torch.zeros(batch, dim)
    own = weight[labels][:, :TRAINED_DIMENSIONS]
    features[:, :TRAINED_DIMENSIONS] = at_angle(own, angle, S, generator)
    return features.requires_grad_(), labels, weight


def shares_above(features: Tensor, labels: Tensor, weight: Tensor, powers: tuple[int, ...] = (12, 24)) -> list[float]:
    """Share of ArcFace's probabilities p_ij, j != y_i, above 2^-k for each k: what a sparse backward pass must keep."""
    with torch.no_grad():
        cosine = F.linear(F.normalize(features), F.normalize(weight))
        own = cosine.gather(1, labels.unsqueeze(1)).clamp(-1, 1)
        logits = (S * cosine).scatter(1, labels.unsqueeze(1), S * (own.acos() + M).cos())
        p = logits.softmax(dim=1).scatter(1, labels.unsqueeze(1), 0.0)
        return [float((p > 2.0**-k).double().mean()) for k in powers]
