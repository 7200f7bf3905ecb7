"""Distances between embeddings that stay accurate.

Two ways lead to ||a - b||^2. The difference form subtracts first; its relative error is a few units of
rounding whatever the norms are. The expansion ||a||^2 + ||b||^2 - 2 a.b is one matrix product, but its
*absolute* error is of the order of eps (||a||^2 + ||b||^2): at ||a|| = 141 and ||a - b|| = 1.4e-3 in float32
nothing of the distance is left. The losses here use the difference form unless both arguments are unit
vectors.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from reprolib._checks import check_choice, check_features


def at_least_float32(x: Tensor) -> Tensor:
    """`x` in the precision the losses are computed in: float32 for half precision, otherwise unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def computing_dtype(*tensors: Tensor) -> torch.dtype:
    """The widest type of `tensors`, float32 at least."""
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def widened(x: Tensor) -> Tensor:
    """`x` in float64, where a root or an arc is correctly rounded on return; unchanged where there is no float64."""
    return x if x.device.type == "mps" else x.double()


def root(x: Tensor) -> Tensor:
    """The correctly rounded square root: float32's own differs between processors in the last bit."""
    return widened(x).sqrt().to(x.dtype)


def full_precision(x: Tensor) -> AbstractContextManager[None]:
    """Context in which matrix products keep the precision of `x` even when the caller has autocast on."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()


def unit_rows(x: Tensor, eps: float = 1e-12) -> Tensor:
    """Rows divided by their norm, (N, d) -> (N, d), with NormFace's norm (arXiv:1704.06369, sec. 3.2).

    ||x|| = sqrt(sum x_i^2 + eps): a zero row stays zero and its gradient stays finite.
    """
    x = at_least_float32(x)
    return x / root(x.square().sum(dim=-1, keepdim=True) + eps)


class _DifferenceForm(torch.autograd.Function):
    """D2_ij = ||a_i - b_j||^2 with neither (N, M, d) nor cancellation in memory or value."""

    @staticmethod
    def forward(ctx, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, b = ctx.saved_tensors
        # Differences ignore a common shift; from b_0 the products are small, and exactly 0 at collapse.
        origin = b[:1].detach()
        a, b = a - origin, b - origin
        # dL/da_i = 2 sum_j G_ij (a_i - b_j),  dL/db_j = 2 sum_i G_ij (b_j - a_i)
        with full_precision(a):
            grad_a = 2 * (grad.sum(dim=1, keepdim=True) * a - grad @ b) if ctx.needs_input_grad[0] else None
            grad_b = 2 * (grad.sum(dim=0).unsqueeze(1) * b - grad.T @ a) if ctx.needs_input_grad[1] else None
        return grad_a, grad_b


def pairwise_squared_distance(a: Tensor, b: Tensor | None = None, method: str = "difference") -> Tensor:
    """Squared Euclidean distances (N, M) between the rows of `a` (N, d) and of `b` (M, d; default `a`).

    `method="difference"`: relative error of a value at most (d + 6) eps at any norm, memory O(NM + Nd + Md).
    Its gradient is two matrix products from the common origin b_0: absolute error of the order of
    eps max||a_i - b_0|| times the incoming gradient, which is what rounding the inputs themselves costs.
    `method="expansion"`: max(0, ||a||^2 + ||b||^2 - 2 a.b), one matrix product; absolute error up to about
    (d + 4) eps (||a||^2 + ||b||^2). Meant for unit vectors, where that is a few eps.

    Half precision is computed, and returned, in float32. Raises ValueError or TypeError for wrong shapes,
    dtypes, NaN or infinity.
    """
    b = a if b is None else b
    check_choice(method, "method", ("difference", "expansion"))
    check_features(a, "a")
    check_features(b, "b", columns=a.shape[1])
    if a.dtype != b.dtype:
        raise TypeError(f"a and b must have one dtype, got {a.dtype} and {b.dtype}")
    a, b = at_least_float32(a), at_least_float32(b)
    if method == "difference":
        return _DifferenceForm.apply(a, b)
    with full_precision(a):
        product = a @ b.T
    return (a.square().sum(dim=1, keepdim=True) + b.square().sum(dim=1) - 2 * product).clamp_min(0)


def pairwise_distance(a: Tensor, b: Tensor | None = None) -> Tensor:
    """Euclidean distances (N, M), the root of the difference form of `pairwise_squared_distance`.

    d||a - b||/da = (a - b)/||a - b|| has no value at a = b; the convention here is the subgradient 0.
    """
    return safe_sqrt(pairwise_squared_distance(a, b))


def safe_sqrt(squared: Tensor) -> Tensor:
    """Square root of a tensor >= 0 whose gradient at 0 is 0 instead of infinity."""
    positive = squared > 0
    # The inner `where` keeps 0 away from sqrt, whose infinite slope times 0 would be NaN.
    return torch.where(positive, root(torch.where(positive, squared, 1)), 0)
