"""Closed-form gradients written from the papers' equations: the oracles that autograd is compared with.

Plain functions on float64 tensors, independent of ``reprolib.losses``. Batches: ``features`` (N, d), class
``weight`` (C, d), ``bias`` (C,), ``labels`` (N,) int64; a loss is the mean over the batch. Gradients come
back in the order of the arguments. Angles are radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = [
    "chebyshev",
    "l2_softmax_gradients",
    "l2_softmax_loss",
    "l_softmax_target",
    "l_softmax_target_gradients",
    "linear_softmax_gradients",
    "linear_softmax_loss",
    "margin_slope",
    "margin_softmax_gradients",
    "margin_softmax_loss",
    "margin_target",
    "normalise",
    "normalise_backward",
    "normalise_jacobian",
    "normface_gradients",
    "normface_loss",
    "psi",
    "psi_slope",
    "scale_backward",
    "softmax_loss",
    "softmax_loss_gradient",
]


def _double(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.float64:
            raise TypeError(f"{name} must be a float64 tensor, got {getattr(tensor, 'dtype', type(tensor))}")


def _labels(labels: Tensor, batch: int, classes: int) -> Tensor:
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        raise TypeError(f"labels must be an int64 tensor, got {getattr(labels, 'dtype', type(labels))}")
    if labels.shape != (batch,) or batch == 0:
        raise ValueError(f"labels must have shape ({batch},) with at least one entry, got {tuple(labels.shape)}")
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels must lie in [0, {classes - 1}], got {int(labels.min())}..{int(labels.max())}")
    return labels


def _matrices(features: Tensor, weight: Tensor) -> None:
    _double(features=features, weight=weight)
    if features.ndim != 2 or weight.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ValueError(
            f"features (N, d) and weight (C, d) must agree in d, got {tuple(features.shape)} and {tuple(weight.shape)}"
        )


def softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``mean_i log sum_j exp(z_ij - z_iy)``: softmax cross-entropy of ``logits`` (N, C)."""
    _double(logits=logits)
    y = _labels(labels, *logits.shape)[:, None]
    return (logits - logits.gather(1, y)).logsumexp(1).mean()


def softmax_loss_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """``dL/dz_ij = (p_ij - [j = y_i]) / N``; shape (N, C)."""
    _double(logits=logits)
    y = _labels(labels, *logits.shape)[:, None]
    # p_ij = exp(z_ij) / sum_k exp(z_ik)
    p = (logits - logits.amax(1, keepdim=True)).exp()
    p = p / p.sum(1, keepdim=True)
    return p.scatter_add(1, y, torch.full_like(p[:, :1], -1.0)) / len(logits)


def linear_softmax_loss(features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor) -> Tensor:
    """Softmax loss of ``z = W x + b``."""
    _matrices(features, weight)
    return softmax_loss(features @ weight.T + bias, labels)


def linear_softmax_gradients(
    features: Tensor, weight: Tensor, bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dW, db) of :func:`linear_softmax_loss`.

    ``dL/dx_i = sum_j g_ij W_j``, ``dL/dW_j = sum_i g_ij x_i``, ``dL/db_j = sum_i g_ij`` with ``g = dL/dz``.
    """
    _matrices(features, weight)
    _double(bias=bias)
    g = softmax_loss_gradient(features @ weight.T + bias, labels)
    return g @ weight, g.T @ features, g.sum(0)


def normalise(x: Tensor, eps: float = 0.0) -> Tensor:
    """``x / sqrt(sum x^2 + eps)`` along the last dimension (NormFace eq. 3)."""
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def normalise_backward(x: Tensor, grad: Tensor, eps: float = 0.0) -> Tensor:
    """``(g - x~ (g.x~)) / |x|`` with ``|x| = sqrt(sum x^2 + eps)`` (NormFace eq. 4).

    ``grad`` is dL/dx~. The result is orthogonal to x only for eps = 0: ``x.dx = (g.x~)(1 - x~.x~)``.
    """
    _double(x=x, grad=grad)
    norm = (x.square().sum(-1, keepdim=True) + eps).sqrt()
    unit = x / norm
    return (grad - unit * (grad * unit).sum(-1, keepdim=True)) / norm


def normalise_jacobian(x: Tensor) -> Tensor:
    """``dy_j/dx_i`` of ``y = x/|x|`` for one vector, element by element (L2-softmax); (d, d), row j.

    ``(|x|^2 - x_i^2)/|x|^3`` for j = i and ``-x_i x_j/|x|^3`` otherwise.
    """
    _double(x=x)
    if x.ndim != 1:
        raise ValueError(f"x must be one vector of shape (d,), got {tuple(x.shape)}")
    square = x.square().sum()
    jacobian = -torch.outer(x, x)
    jacobian.diagonal().copy_(square - x.square())
    return jacobian / square**1.5


def scale_backward(y: Tensor, alpha: Tensor | float, grad: Tensor) -> tuple[Tensor, Tensor]:
    """Backward of ``z = alpha y``: (dl/dy = alpha dl/dz, dl/dalpha = sum (dl/dz) y over all entries)."""
    _double(y=y, grad=grad)
    return alpha * grad, (grad * y).sum()


def l2_softmax_loss(features: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, labels: Tensor) -> Tensor:
    """L2-constrained softmax: ``z = W (alpha x/|x|) + b``, weights and bias free (Ranjan et al. 2017)."""
    return linear_softmax_loss(alpha * normalise(features), weight, bias, labels)


def l2_softmax_gradients(
    features: Tensor, weight: Tensor, bias: Tensor, alpha: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx, dW, db, dalpha) of :func:`l2_softmax_loss`: softmax, scale layer, normalise layer in turn."""
    _matrices(features, weight)
    _double(alpha=alpha)
    y = normalise(features)
    dz, dweight, dbias = linear_softmax_gradients(alpha * y, weight, bias, labels)
    dy, dalpha = scale_backward(y, alpha, dz)
    return normalise_backward(features, dy), dweight, dbias, dalpha.reshape(alpha.shape)


def normface_loss(features: Tensor, weight: Tensor, scale: Tensor, labels: Tensor, eps: float = 0.0) -> Tensor:
    """``z = s W~ x~``: softmax over scaled cosines, both sides normalised (NormFace eq. 6)."""
    _matrices(features, weight)
    return softmax_loss(scale * normalise(features, eps) @ normalise(weight, eps).T, labels)


def normface_gradients(
    features: Tensor, weight: Tensor, scale: Tensor, labels: Tensor, eps: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """(dx, dW, ds) of :func:`normface_loss`, with ``eps`` inside the norms as in the paper.

    ``dL/dx~_i = s sum_j g_ij W~_j``, ``dL/dW~_j = s sum_i g_ij x~_i``, ``dL/ds = sum_ij g_ij cos_ij``, then
    eq. 4.
    """
    _matrices(features, weight)
    _double(scale=scale)
    x, w = normalise(features, eps), normalise(weight, eps)
    cosine = x @ w.T
    g = softmax_loss_gradient(scale * cosine, labels)
    dscale = (g * cosine).sum().reshape(scale.shape)
    return (
        normalise_backward(features, scale * g @ w, eps),
        normalise_backward(weight, scale * g.T @ x, eps),
        dscale,
    )


def margin_target(theta: Tensor, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0) -> Tensor:
    """``phi = cos(m1 theta + m2) - m3``: the margin family of ArcFace eq. 4 as written, without any guard."""
    return (m1 * theta + m2).cos() - m3


def margin_slope(theta: Tensor, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0) -> Tensor:
    """``D = dphi/dcos(theta) = m1 sin(m1 theta + m2) / sin(theta)``, for 0 < theta < pi.

    CosFace: 1. ArcFace: ``sin(theta + m)/sin(theta)``. m3 shifts phi and has no part in its slope.
    """
    _double(theta=theta)
    if not bool(((theta > 0) & (theta < math.pi)).all()):
        raise ValueError("theta must lie strictly between 0 and pi, where sin(theta) is not zero")
    return m1 * (m1 * theta + m2).sin() / theta.sin()


def chebyshev(cosine: Tensor, m: int) -> Tensor:
    """``cos(m theta) = sum_n (-1)^n C(m, 2n) cos^(m-2n) (1 - cos^2)^n`` (L-Softmax eq. 7)."""
    _multiplier(m)
    return sum(
        (-1.0) ** n * math.comb(m, 2 * n) * cosine ** (m - 2 * n) * (1.0 - cosine.square()) ** n
        for n in range(m // 2 + 1)
    )


def _multiplier(m: int) -> None:
    if isinstance(m, bool) or not isinstance(m, int) or m < 1:
        raise ValueError(f"m must be a positive integer, got {m!r}")


def psi(theta: Tensor, m: int) -> Tensor:
    """``(-1)^k cos(m theta) - 2k`` for theta in [k pi/m, (k + 1) pi/m] (L-Softmax eq. 6; A-Softmax)."""
    _multiplier(m)
    k = (theta.detach() * m / math.pi).floor().clamp(0, m - 1)
    return (1.0 - 2.0 * (k % 2)) * (m * theta).cos() - 2.0 * k


def psi_slope(theta: Tensor, m: int) -> Tensor:
    """``dpsi/dcos(theta) = m |sin(m theta)| / sin(theta)``, for 0 < theta < pi."""
    _multiplier(m)
    return margin_slope(theta, float(m)).abs()


def _margin_logits(
    features: Tensor, weight: Tensor, labels: Tensor, target: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    _matrices(features, weight)
    y = _labels(labels, len(features), len(weight))[:, None]
    cosine = normalise(features) @ normalise(weight).T
    theta = cosine.gather(1, y).clamp(-1.0, 1.0).arccos()
    return cosine, theta, cosine.scatter(1, y, target(theta))


def margin_softmax_loss(
    features: Tensor, weight: Tensor, labels: Tensor, scale: float, target: Callable[[Tensor], Tensor]
) -> Tensor:
    """Softmax loss with ``z_y = s phi(theta_y)`` and ``z_j = s cos(theta_j)``; ``target(theta)`` is phi."""
    return softmax_loss(scale * _margin_logits(features, weight, labels, target)[2], labels)


def margin_softmax_gradients(
    features: Tensor,
    weight: Tensor,
    labels: Tensor,
    scale: float,
    target: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor, Tensor]:
    """(dcos, dx, dW) of :func:`margin_softmax_loss`; ``slope(theta)`` is dphi/dcos(theta).

    ``dL/dcos_y = -s (1 - p_y) D(theta_y) / N``, ``dL/dcos_j = s p_j / N``; then, with
    ``dL/dx~ = sum_j dcos_j W~_j`` and ``dL/dW~_j = sum_i dcos_ij x~_i``, the normalisation layer's backward.
    """
    y = _labels(labels, len(features), len(weight))[:, None]
    _, theta, phi = _margin_logits(features, weight, labels, target)
    g = scale * softmax_loss_gradient(scale * phi, labels)
    g = g.scatter(1, y, g.gather(1, y) * slope(theta))
    dx = normalise_backward(features, g @ normalise(weight))
    dweight = normalise_backward(weight, g.T @ normalise(features))
    return g, dx, dweight


def l_softmax_target(x: Tensor, w: Tensor, m: int) -> Tensor:
    """``f_y = |W_y| |x| psi(theta_y)``: target logit of L-Softmax for rows of ``x`` and ``w`` (..., d)."""
    norms = x.norm(dim=-1) * w.norm(dim=-1)
    return norms * psi(((x * w).sum(-1) / norms).clamp(-1.0, 1.0).arccos(), m)


def l_softmax_target_gradients(x: Tensor, w: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """(df_y/dx, df_y/dW) of :func:`l_softmax_target` for m = 2, 3, 4, from ``c = cos(theta_y)`` only.

    The forms of the paper's authors: ``df/dx = A W - (|W|/|x|) B x`` and ``df/dW = A x - (|x|/|W|) B W`` with

    - m = 2: ``A = 4 s0 c``, ``B = 2 s0 c^2 + 1``, ``s0 = sgn c``;
    - m = 3: ``A = s1 (12 c^2 - 3)``, ``B = 8 s1 c^3 - s2``, ``s1 = sgn(|c| - 0.5)``,
      ``s2 = s0 (1 + s1) - 2``;
    - m = 4: ``A = s3 (32 c^3 - 16 c)``, ``B = s3 (24 c^4 - 8 c^2 - 1) - s4``, ``s3 = s0 sgn(2c^2 - 1)``,
      ``s4 = 2 s0 + s3 - 3``.

    Where such a sgn is 0 (the knots of psi) +1 and -1 give the same result, and +1 is used.
    """
    _double(x=x, w=w)
    x_norm, w_norm = x.norm(dim=-1, keepdim=True), w.norm(dim=-1, keepdim=True)
    c = (x * w).sum(-1, keepdim=True) / (x_norm * w_norm)

    def sign(value: Tensor) -> Tensor:
        return torch.where(value >= 0, 1.0, -1.0).to(c)

    s0 = sign(c)
    if m == 2:
        a, b = 4.0 * s0 * c, 2.0 * s0 * c**2 + 1.0
    elif m == 3:
        s1 = sign(c.abs() - 0.5)
        s2 = s0 * (1.0 + s1) - 2.0
        a, b = s1 * (12.0 * c**2 - 3.0), 8.0 * s1 * c**3 - s2
    elif m == 4:
        s3 = s0 * sign(2.0 * c**2 - 1.0)
        s4 = 2.0 * s0 + s3 - 3.0
        a, b = s3 * (32.0 * c**3 - 16.0 * c), s3 * (24.0 * c**4 - 8.0 * c**2 - 1.0) - s4
    else:
        raise ValueError(f"m must be 2, 3 or 4, got {m!r}")
    return a * w - w_norm / x_norm * b * x, a * x - x_norm / w_norm * b * w
