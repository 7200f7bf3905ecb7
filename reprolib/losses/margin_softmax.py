"""The one margin-softmax head: every classification loss of the suite is this class with one ``Margin``.

With r_i = ||x_i||, the logits are z_ij = R_i C_j cos(theta_ij) + b_j, where R_i is the scale s if features are
normalised and r_i if not, and C_j is 1 if weights are normalised and ||W_j|| if not; the target logit uses
phi(cos theta) in place of cos theta. The loss is the mean over the batch of -log softmax(z_i)[y_i].

The gradient is the closed form that the notebooks derive; :mod:`reprolib.losses.fused` makes it during the forward
pass, a chunk of rows at a time, so that the N x C matrix of logits never exists as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reprolib.losses.distance import at_least_float32, full_precision
from reprolib.losses.fused import CHUNK_BYTES, Form, fused_margin_softmax, norm
from reprolib.losses.margins import (
    AdditiveAngular,
    AdditiveCosine,
    CombinedAngular,
    Margin,
    MultiplicativeAngular,
    NoMargin,
    StraightThrough,
)
from reprolib.losses.official import sphereface_logits
from reprolib.losses.sampled import ClassSampler
from reprolib.losses.schedules import AnnealedLambda

__all__ = [
    "CHUNK_BYTES",
    "ASoftmax",
    "ArcFace",
    "CombinedMargin",
    "CosFace",
    "L2Softmax",
    "LSoftmax",
    "MarginSoftmax",
    "NormFace",
    "Softmax",
    "check_batch",
]

IMPLEMENTATIONS = ("fused", "reference")


def check_batch(features: Tensor, labels: Tensor, in_features: int, num_classes: int) -> None:
    """Raise one clear error unless features are finite (N, in_features) and labels int64 (N,) in range, N >= 1."""
    if features.ndim != 2 or features.shape[1] != in_features:
        raise ValueError(f"features must have shape (N, {in_features}), got {tuple(features.shape)}")
    if not features.is_floating_point():
        raise TypeError(f"features must be floating point, got {features.dtype}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if labels.shape != features.shape[:1]:
        raise ValueError(f"labels must have shape ({features.shape[0]},), got {tuple(labels.shape)}")
    if features.shape[0] == 0:
        raise ValueError("the batch is empty; at least one sample is needed")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be in [0, {num_classes - 1}], got {low if low < 0 else high}")
    if not bool(torch.isfinite(features).all()):
        raise ValueError("features hold NaN or infinity; finite values are needed")


class MarginSoftmax(nn.Module):
    """Softmax cross-entropy over z_ij = R_i C_j cos(theta_ij) + b_j with a margin on the target logit.

    Args:
        in_features: dimension d of the features.
        num_classes: number of classes C >= 2.
        margin: the target function phi(cos theta).
        normalize_features: R_i = scale if True, ||x_i|| if False.
        normalize_weights: C_j = 1 if True, ||W_j|| if False.
        scale: s > 0; only used with normalised features.
        learn_scale: make the scale a parameter.
        bias: add a bias b_j, initialised to 0.
        eps: added to the sum of squares under the square root of every norm (NormFace sec. 3.2).
        annealing: lambda of the L- and A-Softmax papers; each training step sets strength = 1 / (1 + lambda).
        implementation: ``fused`` (closed-form gradient) or ``reference`` (plain operations under autograd).
        chunk_bytes: memory for logits; if None, :data:`reprolib.losses.fused.CHUNK_BYTES` or an eighth of the weights.
        sampler: in training mode only the classes that it draws enter the loss (:mod:`reprolib.losses.sampled`).
        sparse_grad: with a sampler, the gradient of ``weight`` is a sparse tensor that holds the drawn rows alone.
        generator: source of the initial weights; the global one if None.

    ``row_hooks`` are called as ``hook(classes)`` before rows of ``weight`` are read: ``classes`` (K,) or None for all
    (:class:`reprolib.optim.SparseMomentumSGD` brings them up to date there).

    Shapes: features (N, d), labels (N,) int64; the loss is a scalar, the mean over the batch.

    Raises:
        ValueError, TypeError: for wrong hyper-parameters at construction; for wrong shapes, dtypes, labels out of
            range, NaN or infinity in the features at each call.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: Margin | None = None,
        normalize_features: bool = False,
        normalize_weights: bool = False,
        scale: float = 1.0,
        learn_scale: bool = False,
        bias: bool = False,
        eps: float = 1e-12,
        annealing: AnnealedLambda | None = None,
        implementation: str = "fused",
        chunk_bytes: int | None = None,
        sampler: ClassSampler | None = None,
        sparse_grad: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if in_features < 1 or num_classes < 2:
            raise ValueError(f"need in_features >= 1 and num_classes >= 2, got {in_features} and {num_classes}")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"the scale must be a positive finite number, got {scale!r}")
        if not (math.isfinite(eps) and eps >= 0):
            raise ValueError(f"eps must be a finite number >= 0, got {eps!r}")
        if learn_scale and not normalize_features:
            raise ValueError("a learned scale needs normalised features; without them the feature norm is the scale")
        if implementation not in IMPLEMENTATIONS:
            raise ValueError(f"unknown implementation {implementation!r}; allowed are {', '.join(IMPLEMENTATIONS)}")
        if chunk_bytes is not None and chunk_bytes < 1:
            raise ValueError(f"chunk_bytes must be at least 1, got {chunk_bytes!r}")
        if sampler is not None:
            if not isinstance(sampler, ClassSampler):
                raise TypeError(f"sampler must be a ClassSampler, got {type(sampler).__name__}")
            sampler.check(num_classes)
        if sparse_grad and sampler is None:
            raise ValueError("sparse_grad needs a sampler; without one every row of the gradient is used")
        self.in_features, self.num_classes = in_features, num_classes
        self.margin = NoMargin() if margin is None else margin
        self.normalize_features, self.normalize_weights = normalize_features, normalize_weights
        self.eps, self.implementation, self.annealing = float(eps), implementation, annealing
        self.chunk_bytes, self.sampler, self.sparse_grad = chunk_bytes, sampler, sparse_grad
        self.row_hooks: list[Callable[[Tensor | None], None]] = []
        initial = torch.randn(num_classes, in_features, generator=generator) / math.sqrt(in_features)
        self.weight = nn.Parameter(initial)
        self.bias = nn.Parameter(torch.zeros(num_classes)) if bias else None
        if learn_scale:
            self.scale = nn.Parameter(torch.tensor(float(scale)))
        else:
            self.register_buffer("scale", torch.tensor(float(scale)))
        self.register_buffer("strength", torch.tensor(1.0))

    def set_warmup(self, *, scale: float | None = None, strength: float | None = None) -> None:
        """Set the current fixed scale and the margin's strength in [0, 1]; both are buffers (in checkpoints)."""
        if strength is not None:
            if not 0.0 <= strength <= 1.0:
                raise ValueError(f"the margin's strength must be in [0, 1], got {strength!r}")
            self.strength.fill_(strength)
        if scale is not None:
            if not scale > 0:
                raise ValueError(f"the scale must be a positive number, got {scale!r}")
            if isinstance(self.scale, nn.Parameter):
                raise ValueError("the scale of this loss is learned; it cannot be scheduled")
            self.scale.fill_(scale)

    def _current_scale(self) -> Tensor:
        if self.normalize_features and not bool(self.scale > 0):
            raise ValueError(f"the scale must be positive, got {float(self.scale.detach())}")
        return self.scale

    def _before_reading(self, classes: Tensor | None) -> None:
        for hook in self.row_hooks:
            hook(classes)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar; in evaluation mode over all classes, sampler or not."""
        check_batch(features, labels, self.in_features, self.num_classes)
        scale = self._current_scale()
        if self.annealing is not None and self.training:
            self.set_warmup(strength=1.0 / (1.0 + self.annealing()))
        weight, bias, correction, classes = self.weight, self.bias, None, None
        if self.sampler is not None and self.training:
            classes, labels, correction = self.sampler(labels, self.num_classes)
        self._before_reading(classes)
        if classes is not None:
            weight = nn.functional.embedding(classes, weight, sparse=self.sparse_grad)
            bias = None if bias is None else bias[classes]
        with full_precision(features):
            return self._value(features, labels, scale, weight, bias, correction)

    def _value(
        self,
        features: Tensor,
        labels: Tensor,
        scale: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        correction: Tensor | None,
    ) -> Tensor:
        if self.implementation == "reference":
            return self._reference(features, labels, scale, weight, bias, correction)
        form = Form(
            self.margin, self.strength, self.normalize_features, self.normalize_weights, self.eps, self.chunk_bytes
        )
        return fused_margin_softmax(features, weight, bias, scale, labels, form, correction)

    def plain_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Softmax cross-entropy over x W^T + b with the same weights, without normalisation or margin: the warm-up."""
        check_batch(features, labels, self.in_features, self.num_classes)
        self._before_reading(None)
        with full_precision(features):
            z = nn.functional.linear(at_least_float32(features), at_least_float32(self.weight), self.bias)
            return nn.functional.cross_entropy(z, labels)

    def _reference(
        self,
        features: Tensor,
        labels: Tensor,
        scale: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        correction: Tensor | None,
    ) -> Tensor:
        x, w = at_least_float32(features), at_least_float32(weight)
        r_x, r_w = norm(x, self.eps), norm(w, self.eps)
        cosine = (x @ w.t()) / (r_x[:, None] * r_w[None, :])
        target = nn.functional.one_hot(labels, w.shape[0]).bool()
        phi, _ = self.margin.value_and_slope(cosine, self.strength)
        size = scale if self.normalize_features else r_x[:, None]
        size = size if self.normalize_weights else size * r_w[None, :]
        z = size * torch.where(target, phi, cosine)
        if bias is not None:
            z = z + bias
        if correction is not None:
            z = torch.where(target, z, z + correction)
        return nn.functional.cross_entropy(z, labels)

    def logits(self, features: Tensor) -> Tensor:
        """Margin-free logits (N, C), the ones used to predict: R_i C_j cos(theta_ij) + b_j."""
        self._before_reading(None)
        with full_precision(features):
            x, w = at_least_float32(features), at_least_float32(self.weight)
            if self.normalize_features:
                x = x * (self._current_scale() / norm(x, self.eps))[:, None]
            if self.normalize_weights:
                w = w / norm(w, self.eps)[:, None]
            z = x @ w.t()
            return z if self.bias is None else z + self.bias

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        return (
            f"{self.in_features}, {self.num_classes}, margin={self.margin!r}, "
            f"normalize_features={self.normalize_features}, normalize_weights={self.normalize_weights}"
        )


class Softmax(MarginSoftmax):
    """Plain softmax loss z = W x + b (eq. 1 of all papers; notebook 00)."""

    def __init__(self, in_features: int, num_classes: int, *, bias: bool = True, **options: Any) -> None:
        super().__init__(in_features, num_classes, bias=bias, **options)


class L2Softmax(MarginSoftmax):
    """L2-constrained softmax (Ranjan et al. 2017; notebook 01): ||f(x)|| = alpha, fixed or learned; W and b free."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        alpha: float = 16.0,
        learn_alpha: bool = False,
        bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            normalize_features=True,
            scale=alpha,
            learn_scale=learn_alpha,
            bias=bias,
            **options,
        )


class NormFace(MarginSoftmax):
    """Softmax over s cos(theta) (NormFace eqs. 5, 6; notebook 02); the scale learned (the authors' choice) or fixed."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        scale: float = 20.0,
        learn_scale: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            normalize_features=True,
            normalize_weights=True,
            scale=scale,
            learn_scale=learn_scale,
            **options,
        )


class LSoftmax(MarginSoftmax):
    """Large-margin softmax z_y = ||W_y|| ||x|| psi(theta_y) (Liu et al. 2016 eq. 4; notebook 03), no bias."""

    def __init__(self, in_features: int, num_classes: int, *, m: int = 4, **options: Any) -> None:
        super().__init__(in_features, num_classes, margin=MultiplicativeAngular(m), **options)


def _with_gradient(margin: Margin, gradient: str, allowed: tuple[str, ...]) -> Margin:
    if gradient not in allowed:
        raise ValueError(f"unknown gradient {gradient!r}; allowed are {', '.join(allowed)}")
    return StraightThrough(margin) if gradient == "straight_through" else margin


class ASoftmax(MarginSoftmax):
    """A-Softmax z_y = ||x|| psi(theta_y), ||W_j|| = 1 (SphereFace, Liu et al. 2017; notebook 03), no bias.

    gradient: ``paper``; ``straight_through`` (opensphere's detached margin); ``caffe`` (the official layer: see
    :mod:`reprolib.losses.official`; its weights are normalised in place at each training step).
    """

    def __init__(
        self, in_features: int, num_classes: int, *, m: int = 4, gradient: str = "paper", **options: Any
    ) -> None:
        margin = _with_gradient(MultiplicativeAngular(m), gradient, ("paper", "straight_through", "caffe"))
        if gradient == "caffe" and options.get("sampler") is not None:
            raise ValueError("gradient 'caffe' changes all class weights in place and takes no sampler")
        super().__init__(in_features, num_classes, margin=margin, normalize_weights=True, **options)
        self.gradient = gradient

    def _value(
        self,
        features: Tensor,
        labels: Tensor,
        scale: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        correction: Tensor | None,
    ) -> Tensor:
        if self.gradient != "caffe":
            return super()._value(features, labels, scale, weight, bias, correction)
        if self.training:
            with torch.no_grad():
                weight.div_(weight.norm(dim=1, keepdim=True))
        else:
            weight = weight / weight.norm(dim=1, keepdim=True)
        z = sphereface_logits(at_least_float32(features), at_least_float32(weight), labels, self.margin, self.strength)
        return nn.functional.cross_entropy(z, labels)


class CosFace(MarginSoftmax):
    """LMCL / AM-Softmax z_y = s (cos theta_y - m) (CosFace eq. 4; notebook 04)."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        m: float = 0.35,
        scale: float = 64.0,
        **options: Any,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            margin=AdditiveCosine(m),
            normalize_features=True,
            normalize_weights=True,
            scale=scale,
            **options,
        )


class ArcFace(MarginSoftmax):
    """z_y = s cos(theta_y + m) (ArcFace eq. 3; notebook 05), with a named guard for theta_y > pi - m.

    gradient: ``paper``, or ``straight_through``, what insightface's PyTorch code computes.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        m: float = 0.5,
        scale: float = 64.0,
        guard: str = "none",
        gradient: str = "paper",
        **options: Any,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            margin=_with_gradient(AdditiveAngular(m, guard), gradient, ("paper", "straight_through")),
            normalize_features=True,
            normalize_weights=True,
            scale=scale,
            **options,
        )


class CombinedMargin(MarginSoftmax):
    """z_y = s (cos(m1 theta_y + m2) - m3) with real m1 (ArcFace eq. 4; notebook 05)."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        m1: float = 1.0,
        m2: float = 0.3,
        m3: float = 0.2,
        scale: float = 64.0,
        **options: Any,
    ) -> None:
        super().__init__(
            in_features,
            num_classes,
            margin=CombinedAngular(m1, m2, m3),
            normalize_features=True,
            normalize_weights=True,
            scale=scale,
            **options,
        )
