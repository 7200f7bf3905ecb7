"""Updates of official codes that depart from their papers, kept apart from the papers' own (notebook 03).

The SphereFace Caffe layer has A-Softmax's value, but neither of its gradients: the target's part of the input
gradient is divided by the norm of its coefficients, and the weight gradient ignores margin and annealing. The class
weights are projected on the unit sphere before each step instead of being differentiated through.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reprolib.losses.distance import root
from reprolib.losses.fused import norm
from reprolib.losses.margins import Margin, safe_cosine


class _SphereFaceLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor, weight: Tensor, labels: Tensor, margin: Margin, strength: Tensor) -> Tensor:
        index = torch.arange(features.shape[0], device=features.device)
        length = norm(features, 0.0)
        # a zero feature has z = 0 at any angle: any length but 0 gives it finite gradients
        size = torch.where(length > 0, length, 1)
        z = features @ weight.t()
        cosine = safe_cosine(z[index, labels] / size)
        psi, slope = margin.value_and_slope(cosine)
        # f_y = ||x|| (lambda cos + psi) / (1 + lambda), with strength = 1 / (1 + lambda)
        z[index, labels] = length * (cosine + strength * (psi - cosine))
        # d(||x|| psi)/dx = psi' w + (psi - cos psi') x / ||x||
        on_weight, on_feature = slope, (psi - cosine * slope) / size
        both = root(on_weight.square() + on_feature.square())
        ctx.save_for_backward(features, weight, labels, strength * on_weight / both, strength * on_feature / both)
        ctx.rest = 1.0 - strength
        return z

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("the official layer's gradient has no derivative (backward with create_graph=True)")
        features, weight, labels, on_weight, on_feature = ctx.saved_tensors
        index = torch.arange(features.shape[0], device=features.device)
        target = grad[index, labels]
        through = grad.clone()
        # [df_y/dx] = (c_w w + c_x x) / ((1 + lambda) sqrt(c_w^2 + c_x^2)) + lambda / (1 + lambda) w
        through[index, labels] = target * (on_weight + ctx.rest)
        grad_x = through @ weight + (target * on_feature)[:, None] * features
        # dW = (dL/dz)^T x, for every m
        return grad_x, grad.t() @ features, None, None, None


def sphereface_logits(features: Tensor, weight: Tensor, labels: Tensor, margin: Margin, strength: Tensor) -> Tensor:
    """Annealed A-Softmax logits (N, C) with the official layer's gradients; ``weight`` must have unit rows.

    The layer of wy1iu/sphereface, margin_inner_product_layer; ``strength`` = 1 / (1 + lambda).
    """
    return _SphereFaceLogits.apply(features, weight, labels, margin, strength)
