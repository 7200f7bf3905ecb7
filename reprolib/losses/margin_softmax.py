"""The one margin-softmax head: every classification loss of the suite is this class with one ``Margin``.

With r_i = ||x_i||, the logits are z_ij = R_i C_j cos(theta_ij) + b_j, where R_i is the scale s if features are
normalised and r_i if not, and C_j is 1 if weights are normalised and ||W_j|| if not; the target logit uses
phi(cos theta) in place of cos theta. The loss is the mean over the batch of -log softmax(z_i)[y_i].

The gradient is the closed form that the notebooks derive; :mod:`reprolib.losses.fused` makes it during the forward
pass, a chunk of rows at a time, so that the N x C matrix of logits never exists as a whole.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from reprolib._checks import check_batch, check_choice, check_count, check_number, require
from reprolib.losses.distance import computing_dtype, full_precision
from reprolib.losses.fused import Form, Inputs, fused_margin_softmax, norm
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

IMPLEMENTATIONS = ("fused", "reference")
BELOW_1 = math.nextafter(1.0, 0.0)


# the options that every loss of the family takes besides its own hyper-parameters
COMMON = ("bias", "eps", "annealing", "implementation", "chunk_bytes", "drop", "sampler", "sparse_grad", "generator")


def _check_options(loss: type, options: dict[str, Any], more: tuple[str, ...] = ()) -> dict[str, Any]:
    """``options`` if ``loss`` has them all: those of :data:`COMMON` and ``more``."""
    named = inspect.signature(loss).parameters.values()
    own = [p.name for p in named if p.kind is p.KEYWORD_ONLY]
    for name in options:
        if name not in (*COMMON, *more):
            have = ", ".join(dict.fromkeys((*own, *more, *COMMON)))
            raise TypeError(f"{loss.__name__} has no hyper-parameter {name!r}; it has {have}")
    return options


def letters(**words: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A constructor whose hyper-parameters may also be given by the letters of their paper: ``letters(m="margin")``."""

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)
        def wrapped(self: Any, *arguments: Any, **options: Any) -> None:
            for letter, word in words.items():
                if letter in options and word in options:
                    values = f"{options[word]!r} and {options[letter]!r}"
                    raise TypeError(f"{word} and {letter} are the same hyper-parameter; got both, {values}")
                if letter in options:
                    options[word] = options.pop(letter)
            init(self, *arguments, **options)

        return wrapped

    return decorate


def _check_scale(scale: float, dtype: torch.dtype) -> None:
    """Raise unless ``scale`` is positive and finite as a number of ``dtype``."""
    check_number(scale, "scale", high=torch.finfo(dtype).max)
    if scale < torch.finfo(dtype).tiny:
        raise ValueError(f"scale must be at least {torch.finfo(dtype).tiny:g}, got {scale!r}")


def _widest(features: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, weights and bias in the type that the head computes in."""
    dtype = computing_dtype(features, weight)
    return features.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def own_class_loss(z: Tensor, labels: Tensor) -> Tensor:
    """Mean of log(1 + e^{others - z_y}) over logits (N, C), others = log sum_{j != y} e^{z_j}: exact for easy samples.

    The same number as cross-entropy, whose log_sum - z_y cancels where p_y is near 1.
    """
    own = nn.functional.one_hot(labels, z.shape[1]).bool()
    others = z.masked_fill(own, -math.inf).logsumexp(dim=1)
    return -nn.functional.logsigmoid(z.gather(1, labels[:, None]).squeeze(1) - others).mean()


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
        chunk_bytes: memory for logits; if None, :data:`reprolib.losses.fused.CHUNK_BYTES` or a quarter of the weights.
        drop: 0 is exact; t in (0, 1) leaves gradient entries p_ij < t of other classes out where few remain, on a CPU
            (error bound: :func:`reprolib.losses.fused.value_and_gradients`; 2^-24 is the rounding of float32's 1).
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

    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    strength: Tensor

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
        drop: float = 0.0,
        sampler: ClassSampler | None = None,
        sparse_grad: bool = False,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check_count(in_features, "in_features")
        check_count(num_classes, "num_classes", low=2)
        _check_scale(scale, torch.get_default_dtype())
        check_number(eps, "eps", closed=True)
        check_number(drop, "drop", high=BELOW_1, closed=True)
        check_choice(implementation, "implementation", IMPLEMENTATIONS)
        if margin is not None and not isinstance(margin, Margin):
            raise TypeError(f"margin must be a Margin, got {margin!r}")
        if learn_scale and not normalize_features:
            raise ValueError("a learned scale needs normalised features; without them the feature norm is the scale")
        if chunk_bytes is not None:
            check_count(chunk_bytes, "chunk_bytes")
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
        self.chunk_bytes, self.drop, self.sampler, self.sparse_grad = chunk_bytes, float(drop), sampler, sparse_grad
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
            check_number(strength, "strength", high=1.0, closed=True)
        if scale is not None:
            _check_scale(scale, self.scale.dtype)
            if isinstance(self.scale, nn.Parameter):
                raise ValueError("the scale of this loss is learned; it cannot be scheduled")
            self.scale.fill_(scale)
        if strength is not None:
            self.strength.fill_(strength)

    def _current_scale(self) -> Tensor:
        if self.normalize_features:
            require(self.scale > 0, lambda: f"the scale must be positive, got {float(self.scale.detach())}")
        return self.scale

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        if self.sampler is None:
            # what a sampler adds says which classes are drawn next: of no use to a head that draws none
            for key in [key for key in state_dict if key.startswith(f"{prefix}sampler.")]:
                del state_dict[key]
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def _before_reading(self, classes: Tensor | None) -> None:
        for hook in self.row_hooks:
            hook(classes)

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over the batch, a scalar; in evaluation mode over all classes, sampler or not."""
        check_batch(features, labels, self.num_classes, columns=self.in_features)
        scale = self._current_scale()
        if self.annealing is not None and self.training:
            # (lambda cos + psi) / (1 + lambda): strength = 1 / (1 + lambda)
            self.strength.copy_(1.0 / (1.0 + self.annealing()))
        weight, bias, correction, classes = self.weight, self.bias, None, None
        if self.sampler is not None and self.training:
            classes, labels, correction = self.sampler(labels, self.num_classes)
        self._before_reading(classes)
        if classes is not None:
            weight = nn.functional.embedding(classes, weight, sparse=self.sparse_grad)
            bias = None if bias is None else bias[classes]
        with full_precision(features):
            return self._value(Inputs(features, weight, bias, scale, labels, correction))

    def _value(self, inputs: Inputs) -> Tensor:
        if self.implementation == "reference":
            return self._reference(inputs)
        normalised = self.normalize_features, self.normalize_weights
        form = Form(self.margin, self.strength, *normalised, self.eps, self.chunk_bytes, self.drop)
        return fused_margin_softmax(inputs, form)

    def plain_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Softmax cross-entropy over x W^T + b with the same weights, without normalisation or margin: the warm-up."""
        check_batch(features, labels, self.num_classes, columns=self.in_features)
        self._before_reading(None)
        with full_precision(features):
            x, w, bias = _widest(features, self.weight, self.bias)
            return own_class_loss(nn.functional.linear(x, w, bias), labels)

    def _reference(self, inputs: Inputs) -> Tensor:
        x, w, bias = _widest(inputs.features, inputs.weight, inputs.bias)
        r_x, r_w = norm(x, self.eps), norm(w, self.eps)
        cosine = (x @ w.t()) / (r_x[:, None] * r_w[None, :])
        target = nn.functional.one_hot(inputs.labels, w.shape[0]).bool()
        phi, _ = self.margin.value_and_slope(cosine, self.strength)
        size = inputs.scale if self.normalize_features else r_x[:, None]
        size = size if self.normalize_weights else size * r_w[None, :]
        z = size * torch.where(target, phi, cosine)
        if bias is not None:
            z = z + bias
        if inputs.correction is not None:
            z = torch.where(target, z, z + inputs.correction)
        return own_class_loss(z, inputs.labels)

    def logits(self, features: Tensor) -> Tensor:
        """Margin-free logits (N, C), the ones used to predict: R_i C_j cos(theta_ij) + b_j."""
        self._before_reading(None)
        with full_precision(features):
            x, w, bias = _widest(features, self.weight, self.bias)
            if self.normalize_features:
                x = x * (self._current_scale() / norm(x, self.eps))[:, None]
            if self.normalize_weights:
                w = w / norm(w, self.eps)[:, None]
            return nn.functional.linear(x, w, bias)

    def extra_repr(self) -> str:
        """What ``repr`` shows between the parentheses."""
        return (
            f"{self.in_features}, {self.num_classes}, margin={self.margin!r}, "
            f"normalize_features={self.normalize_features}, normalize_weights={self.normalize_weights}"
        )


class Softmax(MarginSoftmax):
    """Plain softmax loss z = W x + b (eq. 1 of all papers; notebook 00)."""

    def __init__(self, in_features: int, num_classes: int, *, bias: bool = True, **options: Any) -> None:
        super().__init__(in_features, num_classes, bias=bias, **_check_options(Softmax, options))


class L2Softmax(MarginSoftmax):
    """L2-constrained softmax (Ranjan et al. 2017; notebook 01): ||f(x)|| = alpha, fixed or learned; W and b free.

    ``scale`` is the paper's alpha; ``learn_scale`` learns it.
    """

    @letters(alpha="scale", learn_alpha="learn_scale")
    def __init__(
        self, in_features: int, num_classes: int, *, scale: float = 16.0, bias: bool = True, **options: Any
    ) -> None:
        options = _check_options(L2Softmax, options, ("learn_scale", "normalize_weights"))
        super().__init__(in_features, num_classes, normalize_features=True, scale=scale, bias=bias, **options)


def _cosine(loss: type, scale: float, options: dict[str, Any]) -> dict[str, Any]:
    """What the losses of s cos(theta) share: features and weights are normalised, the scale may be learned."""
    options = _check_options(loss, options, ("learn_scale",))
    return {"normalize_features": True, "normalize_weights": True, "scale": scale} | options


class NormFace(MarginSoftmax):
    """Softmax over s cos(theta) (NormFace eqs. 5, 6; notebook 02); the scale learned (the authors' choice) or fixed."""

    def __init__(
        self, in_features: int, num_classes: int, *, scale: float = 20.0, learn_scale: bool = True, **options: Any
    ) -> None:
        options = _cosine(NormFace, scale, options)
        super().__init__(in_features, num_classes, learn_scale=learn_scale, **options)


class LSoftmax(MarginSoftmax):
    """Large-margin softmax z_y = ||W_y|| ||x|| psi(theta_y) (Liu et al. 2016 eq. 4; notebook 03), no bias.

    ``margin`` is the paper's integer multiplier m.
    """

    @letters(m="margin")
    def __init__(self, in_features: int, num_classes: int, *, margin: int = 4, **options: Any) -> None:
        options = _check_options(LSoftmax, options)
        super().__init__(in_features, num_classes, margin=MultiplicativeAngular(margin), **options)


def _with_gradient(margin: Margin, gradient: str, allowed: tuple[str, ...]) -> Margin:
    check_choice(gradient, "gradient", allowed)
    return StraightThrough(margin) if gradient == "straight_through" else margin


class ASoftmax(MarginSoftmax):
    """A-Softmax z_y = ||x|| psi(theta_y), ||W_j|| = 1 (SphereFace, Liu et al. 2017; notebook 03), no bias.

    ``margin`` is the paper's integer multiplier m.
    gradient: ``paper``; ``straight_through`` (opensphere's detached margin); ``caffe`` (the official layer: see
    :mod:`reprolib.losses.official`; its weights are normalised in place at each training step).
    """

    @letters(m="margin")
    def __init__(
        self, in_features: int, num_classes: int, *, margin: int = 4, gradient: str = "paper", **options: Any
    ) -> None:
        phi = _with_gradient(MultiplicativeAngular(margin), gradient, ("paper", "straight_through", "caffe"))
        if gradient == "caffe" and options.get("sampler") is not None:
            raise ValueError("gradient 'caffe' changes all class weights in place and takes no sampler")
        if gradient == "caffe" and options.get("bias"):
            raise ValueError("gradient 'caffe' has no bias")
        options = _check_options(ASoftmax, options)
        super().__init__(in_features, num_classes, margin=phi, normalize_weights=True, **options)
        self.gradient = gradient

    def _value(self, inputs: Inputs) -> Tensor:
        if self.gradient != "caffe":
            return super()._value(inputs)
        weight = inputs.weight
        length = norm(weight.detach(), 0.0)[:, None]
        # a row of zeros has no direction and stays what it is
        length = torch.where(length > 0, length, 1)
        if self.training:
            with torch.no_grad():
                weight.div_(length)
        else:
            weight = weight / length
        x, w, _ = _widest(inputs.features, weight, None)
        return own_class_loss(sphereface_logits(x, w, inputs.labels, self.margin, self.strength), inputs.labels)


class CosFace(MarginSoftmax):
    """LMCL / AM-Softmax z_y = s (cos theta_y - m) (CosFace eq. 4; notebook 04).

    ``margin`` is the paper's m in units of cosine.
    """

    @letters(m="margin")
    def __init__(
        self, in_features: int, num_classes: int, *, margin: float = 0.35, scale: float = 64.0, **options: Any
    ) -> None:
        options = _cosine(CosFace, scale, options)
        super().__init__(in_features, num_classes, margin=AdditiveCosine(margin), **options)


class ArcFace(MarginSoftmax):
    """z_y = s cos(theta_y + m) (ArcFace eq. 3; notebook 05), with a named guard for theta_y > pi - m.

    ``margin`` is the paper's m in radians.
    gradient: ``paper``, or ``straight_through``, what insightface's PyTorch code computes.
    """

    @letters(m="margin")
    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        margin: float = 0.5,
        scale: float = 64.0,
        guard: str = "none",
        gradient: str = "paper",
        **options: Any,
    ) -> None:
        phi = _with_gradient(AdditiveAngular(margin, guard), gradient, ("paper", "straight_through"))
        super().__init__(in_features, num_classes, margin=phi, **_cosine(ArcFace, scale, options))


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
        options = _cosine(CombinedMargin, scale, options)
        super().__init__(in_features, num_classes, margin=CombinedAngular(m1, m2, m3), **options)
