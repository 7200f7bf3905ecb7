"""Closed-form gradients and targets written from the papers' equations, the oracles that autograd is compared with.

Plain functions on float64 tensors, independent of ``reprolib.losses``. Batches: ``logits`` (N, C), ``labels`` (N,)
int64; a loss is the mean over the batch. Angles are radians.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reprolib._checks import check_count, check_double, check_labels


def _own_column(logits: Tensor, labels: Tensor) -> Tensor:
    check_double(logits=logits)
    if logits.ndim != 2 or 0 in logits.shape:
        raise ValueError(f"logits must have shape (N, C) with N, C >= 1, got {tuple(logits.shape)}")
    check_labels(labels, *logits.shape)
    return labels[:, None]


def softmax_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """``mean_i log sum_j exp(z_ij - z_iy)``: softmax cross-entropy of ``logits`` (N, C); notebook 00 (0.2)."""
    return (logits - logits.gather(1, _own_column(logits, labels))).logsumexp(1).mean()


def softmax_loss_gradient(logits: Tensor, labels: Tensor) -> Tensor:
    """``dL/dz_ij = (p_ij - [j = y_i]) / N``; shape (N, C); notebook 00 (0.3)."""
    y = _own_column(logits, labels)
    # p_ij = exp(z_ij) / sum_k exp(z_ik)
    p = (logits - logits.amax(1, keepdim=True)).exp()
    p = p / p.sum(1, keepdim=True)
    return p.scatter_add(1, y, torch.full_like(p[:, :1], -1.0)) / len(logits)


def normalise(x: Tensor, eps: float = 0.0) -> Tensor:
    """``x / sqrt(sum x^2 + eps)`` along the last dimension (NormFace eq. 3; notebook 02 (2.6))."""
    return x / (x.square().sum(-1, keepdim=True) + eps).sqrt()


def normalise_backward(x: Tensor, grad: Tensor, eps: float = 0.0) -> Tensor:
    """``(g - x~ (g.x~)) / |x|`` with ``|x| = sqrt(sum x^2 + eps)`` (NormFace eq. 4; notebook 02 (2.7)).

    ``grad`` is dL/dx~. The result is orthogonal to x only for eps = 0: ``x.dx = (g.x~)(1 - x~.x~)``.
    """
    check_double(x=x, grad=grad)
    norm = (x.square().sum(-1, keepdim=True) + eps).sqrt()
    unit = x / norm
    return (grad - unit * (grad * unit).sum(-1, keepdim=True)) / norm


def psi(theta: Tensor, m: int) -> Tensor:
    """``(-1)^k cos(m theta) - 2k`` for theta in [k pi/m, (k + 1) pi/m] (L-Softmax eq. 6; A-Softmax)."""
    check_count(m, "m")
    k = (theta.detach() * m / math.pi).floor().clamp(0, m - 1)
    return (1.0 - 2.0 * (k % 2)) * (m * theta).cos() - 2.0 * k


def l_softmax_target(x: Tensor, w: Tensor, m: int) -> Tensor:
    """``f_y = |W_y| |x| psi(theta_y)``: target logit of L-Softmax for rows of ``x`` and ``w`` (..., d)."""
    norms = x.norm(dim=-1) * w.norm(dim=-1)
    return norms * psi(((x * w).sum(-1) / norms).clamp(-1.0, 1.0).arccos(), m)
