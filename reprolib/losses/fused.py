"""The kernel of the margin-softmax head: the mean loss and its closed-form gradients in one pass.

With r_i = ||x_i||, the logits are z_ij = R_i C_j cos(theta_ij) + b_j, where R_i is the scale s if features are
normalised and r_i if not, and C_j is 1 if weights are normalised and ||W_j|| if not; the target logit uses
phi(cos theta) in place of cos theta. The gradient is the closed form that the notebooks derive. It is made during
the forward pass, a chunk of rows at a time, so that neither the N x C logits nor a second (C, d) tensor beside the
weights and their gradient ever exists. The gradient is handed over at the first backward pass; a second pass
through a retained graph computes it anew.

Half-precision features and weights are computed in float32, under autocast too.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from reprolib.losses.distance import at_least_float32, full_precision
from reprolib.losses.margins import Margin

# A chunk of logits takes at most this, or an eighth of the weights if that is more: with fewer rows than that the
# matrix products would wait for the weights to come from memory.
CHUNK_BYTES = 32 * 2**20
WEIGHT_SHARE = 8
# What is done element by element goes through the processor's cache in pieces of this size.
CACHE_BYTES = 2**20


class Form(NamedTuple):
    """What the logits are made of, besides tensors that carry a gradient; see the module's first paragraph."""

    margin: Margin
    strength: Tensor
    normalize_features: bool
    normalize_weights: bool
    eps: float
    chunk_bytes: int | None = None


def norm(tensor: Tensor, eps: float) -> Tensor:
    """Row norms of (N, d) as in NormFace sec. 3.2: ||x|| = sqrt(sum_k x_k^2 + eps)."""
    return (tensor.square().sum(dim=1) + eps).sqrt()


def chunk_rows(count: int, weight: Tensor, chunk_bytes: int | None = None) -> int:
    """Rows of logits made at a time for ``count`` samples: as many as the budget holds, in chunks of equal size."""
    size = 4 if weight.dtype in (torch.float16, torch.bfloat16) else weight.element_size()
    if chunk_bytes is None:
        chunk_bytes = max(CHUNK_BYTES, weight.numel() * size // WEIGHT_SHARE)
    fitting = max(1, min(count, chunk_bytes // (size * weight.shape[0])))
    chunks = -(-count // fitting)
    return -(-count // chunks)


def _pieces(rows: int, columns: int, size: int) -> Iterator[slice]:
    step = max(1, CACHE_BYTES // (columns * size))
    for begin in range(0, rows, step):
        yield slice(begin, min(begin + step, rows))


def _wide_blocks(weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """The weights in at least float32: as they are, or converted a block of classes at a time."""
    if weight.dtype not in (torch.float16, torch.bfloat16):
        yield slice(0, weight.shape[0]), weight
        return
    step = max(1, CHUNK_BYTES // (4 * weight.shape[1]))
    for begin in range(0, weight.shape[0], step):
        block = slice(begin, min(begin + step, weight.shape[0]))
        yield block, weight[block].float()


def value_and_gradients(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    labels: Tensor,
    correction: Tensor | None,
    form: Form,
    needs: tuple[bool, bool, bool, bool],
) -> tuple[Tensor, list[Tensor | None]]:
    """Mean loss, and its gradients in features, weight, bias and scale (None where ``needs`` is False).

    features (N, d), weight (C, d), bias (C,) or None, scale (), labels (N,) int64. ``correction`` (C,) is added to
    the logits of all classes but the sample's own (a sampler's log weights); it may hold -inf.
    """
    need_x, need_w, need_b, need_s = needs
    x_all = at_least_float32(features)
    count, (num_classes, dim), size = x_all.shape[0], weight.shape, x_all.element_size()
    pieces_w = list(_pieces(num_classes, dim, size))
    r_w = x_all.new_empty(num_classes)
    for part in pieces_w:
        r_w[part] = norm(at_least_float32(weight[part]), form.eps)
    grad_x = torch.empty_like(x_all) if any(needs) else None
    grad_w = x_all.new_empty(num_classes, dim) if need_w else None
    grad_b = x_all.new_zeros(num_classes) if need_b else None
    grad_s = x_all.new_zeros(())
    # sum over the samples of a class of dL/dC_j = g R (phi - slope cos) / ||W_j||, for free weight norms
    free_w = x_all.new_zeros(num_classes)
    each = x_all.new_empty(count)
    rows = chunk_rows(count, weight, form.chunk_bytes)
    buffer = x_all.new_empty(rows, num_classes)
    for begin in range(0, count, rows):
        x, y = x_all[begin : begin + rows], labels[begin : begin + rows]
        r_x = norm(x, form.eps)
        index = torch.arange(x.shape[0], device=x.device)
        z = buffer[: x.shape[0]]
        for block, w in _wide_blocks(weight):
            torch.mm(x, w.t(), out=z[:, block])
        cosine = (z[index, y] / (r_x * r_w[y])).clamp(-1.0, 1.0)
        phi, slope = form.margin.value_and_slope(cosine, form.strength)
        row = scale / r_x if form.normalize_features else torch.ones_like(r_x)
        big_r = scale.expand_as(r_x) if form.normalize_features else r_x
        big_c = torch.ones_like(r_x) if form.normalize_weights else r_w[y]
        g_y = torch.empty_like(r_x)
        for part in _pieces(x.shape[0], num_classes, size):
            z_part, y_part, index_part = z[part], y[part], index[: part.stop - part.start]
            # z_ij = R_i C_j cos(theta_ij): norms and scale fold into the product of the two matrices
            if form.normalize_features:
                z_part.mul_(row[part, None])
            if form.normalize_weights:
                z_part.div_(r_w)
            if not form.margin.is_identity:
                # z_iy = R_i C_y phi(theta_y)
                z_part[index_part, y_part] = (big_r * big_c * phi)[part]
            if bias is not None:
                z_part.add_(at_least_float32(bias))
            own = z_part[index_part, y_part]
            if correction is not None:
                z_part.add_(correction)
                z_part[index_part, y_part] = own
            log_sum = z_part.logsumexp(dim=1)
            each[begin + part.start : begin + part.stop] = log_sum - own
            if grad_x is None:
                continue
            # g_ij = dL/dz_ij = (p_ij - [j = y_i]) / N
            g = z_part.sub_(log_sum[:, None]).exp_().div_(count)
            g[index_part, y_part] -= 1.0 / count
            g_y[part] = g[index_part, y_part]
            if grad_b is not None:
                grad_b += g.sum(dim=0)
            # q_ij = dL/dP_ij with P = x W^T at fixed norms; the target carries the slope d phi / d cos
            if form.normalize_features:
                g.mul_(row[part, None])
            if form.normalize_weights:
                g.div_(r_w)
        if grad_x is None:
            continue
        q = z
        if not form.margin.is_identity:
            q[index, y] = g_y * big_r * big_c * slope / (r_x * r_w[y])
        gx = grad_x[begin : begin + rows]
        for block, w in _wide_blocks(weight):
            torch.addmm(gx, q[:, block], w, beta=float(block.start > 0), out=gx)
        along = (gx * x).sum(dim=1)
        if need_s:
            # dL/ds = sum_ij g_ij z_ij / s; the target's q carries slope cos in place of phi
            grad_s += (along + g_y * big_r * big_c * (phi - slope * cosine)).sum() / scale
        if grad_w is not None:
            torch.addmm(grad_w, q.t(), x, beta=float(begin > 0), out=grad_w)
            if not form.normalize_weights and not form.margin.is_identity:
                free_w.index_add_(0, y, g_y * big_r * (phi - slope * cosine) / r_w[y])
        if form.normalize_features:
            # projection on the tangent space: x carries no radial gradient (NormFace eq. 4)
            gx.sub_(x * (along / r_x.square())[:, None])
        elif not form.margin.is_identity:
            # free ||x||: the radial part changes from slope cos to phi
            gx.add_(x * (g_y * big_c * (phi - slope * cosine) / r_x)[:, None])
    if grad_w is not None:
        for part in pieces_w:
            g, w = grad_w[part], at_least_float32(weight[part])
            if form.normalize_weights:
                g.sub_(w * ((g * w).sum(dim=1) / r_w[part].square())[:, None])
            elif not form.margin.is_identity:
                g.add_(w * free_w[part, None])
    gradients = [
        grad_x.to(features.dtype) if need_x else None,
        grad_w.to(weight.dtype) if need_w else None,
        grad_b.to(bias.dtype) if need_b else None,
        grad_s.to(scale.dtype) if need_s else None,
    ]
    return each.sum() / count, gradients


class _FusedMarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, features, weight, bias, scale, labels, correction, form):
        # the warm-up changes its buffers in place; a second backward pass needs what this forward pass saw
        scale, form = scale.clone(), form._replace(strength=form.strength.clone())
        needs = tuple(ctx.needs_input_grad[:4])
        with full_precision(features):
            value, gradients = value_and_gradients(features, weight, bias, scale, labels, correction, form, needs)
        if any(needs):
            ctx.save_for_backward(features, weight, bias, scale, labels, correction)
            ctx.form, ctx.gradients = form, gradients
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output):
        # Nothing else holds the gradients once they are returned, so autograd takes the weights' as it is.
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            inputs = ctx.saved_tensors
            with full_precision(inputs[0]):
                _, gradients = value_and_gradients(*inputs, ctx.form, tuple(ctx.needs_input_grad[:4]))
        # on the CPU it costs nothing to see that the factor is 1; on a GPU it costs less to multiply
        if grad_output.device.type != "cpu" or grad_output.item() != 1.0:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(grad_output.to(gradient.dtype))
        return (*gradients, None, None, None)


def fused_margin_softmax(
    features: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    scale: Tensor,
    labels: Tensor,
    form: Form,
    correction: Tensor | None = None,
) -> Tensor:
    """Mean margin-softmax loss, a scalar, whose backward pass is the closed form; see :func:`value_and_gradients`."""
    if not torch.is_grad_enabled():
        with full_precision(features):
            return value_and_gradients(features, weight, bias, scale, labels, correction, form, (False,) * 4)[0]
    return _FusedMarginSoftmax.apply(features, weight, bias, scale, labels, correction, form)
