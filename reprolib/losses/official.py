"""Updates of official codes that depart from their papers, kept apart from the papers' own (notebook 03).

The SphereFace Caffe layer has A-Softmax's value, but neither of its gradients: the target's part of the input
gradient is divided by the norm of its coefficients, and the weight gradient ignores margin and annealing. The class
weights are projected on the unit sphere before each step instead of being differentiated through.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reprolib.losses.margins import Margin, safe_cosine


class _SphereFaceLogits(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, labels, margin, strength):
        index = torch.arange(features.shape[0], device=features.device)
        size = features.norm(dim=1)
        z = features @ weight.t()
        cosine = safe_cosine(z[index, labels] / size)
        psi, slope = margin.value_and_slope(cosine)
        # f_y = ||x|| (lambda cos + psi) / (1 + lambda), with strength = 1 / (1 + lambda)
        z[index, labels] = size * (cosine + strength * (psi - cosine))
        # d(||x|| psi)/dx = psi' w + (psi - cos psi') x / ||x||
        on_weight, on_feature = slope, (psi - cosine * slope) / size
        length = (on_weight.square() + on_feature.square()).sqrt()
        ctx.save_for_backward(features, weight, labels, strength * on_weight / length, strength * on_feature / length)
        ctx.rest = 1.0 - strength
        return z

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
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

    The layer of wy1iu/sphereface, margin_inner_product_layer; ``strength`` = 1 / (1 + lambda). Features must not be 0.
    """
    return _SphereFaceLogits.apply(features, weight, labels, margin, strength)
