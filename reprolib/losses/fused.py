"""The kernel of the margin-softmax head: the mean loss and its closed-form gradients in one pass.

With r_i = ||x_i||, the logits are z_ij = R_i C_j cos(theta_ij) + b_j, where R_i is the scale s if features are
normalised and r_i if not, and C_j is 1 if weights are normalised and ||W_j|| if not; the target logit uses
phi(cos theta) in place of cos theta. The own class is kept out of the sum, so that nothing cancels for easy samples:

    others_i = log sum_{j != y} e^{z_ij}       L_i = log(1 + e^{others_i - z_iy})
    1 - p_iy = sigmoid(others_i - z_iy)        p_ij = (1 - p_iy) e^{z_ij - others_i}   (j != y)

The gradient is the closed form that the notebooks derive: notebook 08 (8.2), (8.3), (8.4), (8.5). It is made during the
forward pass, a chunk of rows at a time, so that neither the N x C logits nor a second (C, d) tensor beside the weights
and their gradient ever exists. A chunk of n rows is held class by class, (C, n): W x^T is a faster product than x W^T,
and what is done element by element is done to a block of classes while it is in the processor's cache. The gradient
stays in the computing precision until the backward pass has multiplied it with the incoming gradient. It is handed over
at the first backward pass; a second pass through a retained graph computes it anew. There is no second derivative: a
backward pass with ``create_graph=True`` is refused.

Everything is computed in the widest type of features and weights, float32 at least, under autocast too. Nothing is
read on the host unless the tensors are on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reprolib.losses.distance import computing_dtype, full_precision, root
from reprolib.losses.margins import Margin
from reprolib.losses.products import put_product
from reprolib.losses.sparse import Kept

# A chunk of logits takes at most this, or a quarter of the weights if that is more: with fewer rows than that the
# matrix products would wait for the weights to come from memory.
CHUNK_BYTES = 32 * 2**20
WEIGHT_SHARE = 4
# What is done element by element goes through the processor's cache in pieces of this size; on other devices whole.
CACHE_BYTES = 2**20
# Above this share of kept elements the dense products are faster than the sparse ones.
SPARSE_SHARE = 0.03


class Inputs(NamedTuple):
    """features (N, d), weight (C, d), bias (C,) or None, scale (), labels (N,) int64.

    ``correction`` (C,) is added to the logits of all classes but the sample's own (a sampler's log weights); it may
    hold -inf.
    """

    features: Tensor
    weight: Tensor
    bias: Tensor | None
    scale: Tensor
    labels: Tensor
    correction: Tensor | None = None


class Form(NamedTuple):
    """What the logits are made of, besides tensors that carry a gradient; see the module's first paragraph.

    ``drop``: gradient entries p_ij < drop of other classes are left out; see :func:`value_and_gradients`.
    """

    margin: Margin
    strength: Tensor
    normalize_features: bool
    normalize_weights: bool
    eps: float
    chunk_bytes: int | None = None
    drop: float = 0.0


def norm(tensor: Tensor, eps: float) -> Tensor:
    """Row norms of (N, d) as in NormFace sec. 3.2: ||x|| = sqrt(sum_k x_k^2 + eps)."""
    return root(tensor.square().sum(dim=1) + eps)


def chunk_rows(count: int, weight: Tensor, chunk_bytes: int | None = None) -> int:
    """Rows of logits made at a time for ``count`` samples: as many as the budget holds, in chunks of equal size."""
    size = max(4, weight.element_size())
    if chunk_bytes is None:
        chunk_bytes = max(CHUNK_BYTES, weight.numel() * size // WEIGHT_SHARE)
    fitting = max(1, min(count, chunk_bytes // (size * weight.shape[0])))
    chunks = -(-count // fitting)
    return -(-count // chunks)


def _parts(classes: int, numbers: int, like: Tensor) -> list[slice]:
    """Blocks of classes, of which ``numbers`` for each class fit into the cache; one block on other devices."""
    fitting = max(1, CACHE_BYTES // (numbers * like.element_size()))
    step = fitting if like.device.type == "cpu" else classes
    return [slice(begin, min(begin + step, classes)) for begin in range(0, classes, step)]


def _places(y: Tensor, parts: list[slice]) -> list[tuple[Tensor, Tensor]]:
    """Where the own classes are in each part of (C, n) logits: classes counted from the part's first, and samples."""
    if len(parts) == 1:
        return [(y, torch.arange(len(y), device=y.device))]
    labels, order = y.sort()
    first = torch.tensor([part.start for part in parts[1:]])
    ends = [0, *torch.searchsorted(labels, first).tolist(), len(y)]
    return [
        (labels[begin:end] - part.start, order[begin:end])
        for part, begin, end in zip(parts, ends[:-1], ends[1:], strict=True)
    ]


def _wide(weight: Tensor, part: slice, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """The weights of a part in ``dtype``: as they are, or converted a block of classes at a time."""
    if weight.dtype == dtype:
        yield part, weight[part]
        return
    step = max(1, CHUNK_BYTES // (4 * weight.shape[1]))
    for begin in range(part.start, part.stop, step):
        block = slice(begin, min(begin + step, part.stop))
        yield block, weight[block].to(dtype)


def _needs_no_shift(scale: Tensor, count: int, num_classes: int, form: Form, shifted: bool) -> bool:
    """Whether e^z, its sum over the classes and e^-z / N all stay within the type's range, as |z| <= s."""
    if shifted or scale.device.type != "cpu" or not (form.normalize_features and form.normalize_weights):
        return False
    return abs(float(scale)) + math.log(num_classes * count) < math.log(torch.finfo(scale.dtype).max) - 2.0


def value_and_gradients(
    inputs: Inputs, form: Form, needs: tuple[bool, bool, bool, bool]
) -> tuple[Tensor, list[Tensor | None]]:
    """Mean loss, and its gradients in features, weight, bias and scale (None where ``needs`` is False).

    Value and gradients are in the computing precision.

    With ``form.drop`` = t > 0, entries p_ij < t (j != y) are left out of the gradients where that leaves at most 3 %
    of a chunk. What is left out of row i sums to delta_i <= min(C t, 1 - p_iy), and as dL/dz_ij = p_ij / N, the
    gradient in x_i is off by at most delta_i R_i max_j C_j / (N r_i), that in W_j by sum_i R_i C_j t / (N ||W_j||).
    """
    features, weight, bias, scale, labels, correction = inputs
    need_x, need_w, need_b, need_s = needs
    dtype = computing_dtype(features, weight)
    x_all, scale = features.to(dtype), scale.to(dtype)
    bias = None if bias is None else bias.to(dtype)
    count, (num_classes, dim) = x_all.shape[0], weight.shape
    rows = chunk_rows(count, weight, form.chunk_bytes)
    # blocks of logits, whose weights take no more than four times as much, and blocks of weights
    parts, parts_w = _parts(num_classes, max(rows, dim // 4), x_all), _parts(num_classes, dim, x_all)
    r_w = x_all.new_empty(num_classes)
    for part in parts_w:
        r_w[part] = norm(weight[part].to(dtype), form.eps)
    inverse = r_w.reciprocal() if form.normalize_weights else None
    grad_x = torch.zeros_like(x_all) if any(needs) else None
    grad_w = x_all.new_empty(num_classes, dim) if need_w else None
    grad_b = x_all.new_zeros(num_classes) if need_b else None
    grad_s = x_all.new_zeros(())
    # sum over the samples of a class of dL/dC_j = g R (phi - slope cos) / ||W_j||, for free weight norms
    free_w = None if form.normalize_weights or form.margin.is_identity else x_all.new_zeros(num_classes)
    each = x_all.new_empty(count)
    buffer = x_all.new_empty(num_classes * rows)
    no_shift = _needs_no_shift(scale, count, num_classes, form, bias is not None or correction is not None)
    smallest, lowest = torch.finfo(dtype).tiny, torch.finfo(dtype).min
    # the sparse products take the weights as they are, and a bias needs the column sums of all elements
    sparse = form.drop > 0.0 and x_all.device.type == "cpu" and weight.dtype == dtype and bias is None
    begun = False
    for begin in range(0, count, rows):
        x, y = x_all[begin : begin + rows], labels[begin : begin + rows]
        w_y = weight[y].to(dtype)
        r_x, length = norm(x, form.eps), norm(w_y, form.eps)
        big_r = scale.expand_as(r_x) if form.normalize_features else r_x
        big_c = torch.ones_like(r_x) if form.normalize_weights else length
        # R_i / r_i folds into the features before the product
        row = (scale / r_x)[:, None] if form.normalize_features else None
        xs = x if row is None else x * row
        cosine = ((xs * w_y).sum(dim=1) / (big_r * length)).clamp(-1.0, 1.0)
        phi, slope = form.margin.value_and_slope(cosine, form.strength)
        # z_iy = R_i C_y phi(theta_y) + b_y
        own = big_r * big_c * phi
        if bias is not None:
            own = own + bias[y]
        z = buffer[: num_classes * len(y)].view(num_classes, len(y))
        places = _places(y, parts)
        top = torch.zeros_like(own) if no_shift else torch.full_like(own, lowest)
        if not no_shift:
            for part, place in zip(parts, places, strict=True):
                e = _logits(z, part, place, xs, weight, inverse, bias, correction)
                top = torch.maximum(top, e.amax(dim=0))
        own_e = (own - top).exp_()
        total, gx = torch.zeros_like(own), None if grad_x is None else grad_x[begin : begin + rows]
        kept, found, waiting = Kept(), 0, list[slice]()
        for part, place in zip(parts, places, strict=True):
            # e_ij = e^{z_ij - top_i}, and 0 for the own class
            e = _logits(z, part, place, xs, weight, inverse, bias, correction) if no_shift else z[part].sub_(top)
            total += e.exp_().sum(dim=0)
            if gx is None:
                continue
            waiting.append(part)
            if sparse:
                # p_ij >= t  <=>  e_ij >= t (sum of all e), of which this much is known so far
                found += kept.add(e, part.start, (form.drop * (total + own_e)).clamp_min_(smallest))
                sparse = found <= SPARSE_SHARE * z.numel()
            while waiting and not sparse:
                _onto_features(gx, z, waiting.pop(0), weight, inverse)
        # L_i = log(1 + e^{others - z_y}); torch's softplus turns linear at 20
        above = top + total.log() - own
        each[begin : begin + rows] = -torch.nn.functional.logsigmoid(-above)
        if gx is None:
            continue
        miss = torch.sigmoid(above)
        # dL/dz_iy = -(1 - p_iy) / N; dL/dz_ij = a_i e_ij
        g_y, a = -miss / count, miss / (total.clamp_min(smallest) * count)
        # dz_iy / dP_iy with P = (R / r) x W^T at fixed norms, in units of a_i
        q_y = -total * slope * big_c / length
        if grad_b is not None:
            columns = z @ a
            grad_b.add_(columns if inverse is None else columns.mul_(r_w)).index_add_(0, y, g_y)
        xs_a = xs * a[:, None]
        if sparse:
            if grad_w is not None and not begun:
                grad_w.zero_()
            least = (form.drop * (total + own_e)).clamp_min_(smallest)
            gx.copy_(kept.products(least, weight, inverse, xs_a, grad_w))
            if grad_w is not None:
                grad_w.index_add_(0, y, xs_a * q_y[:, None])
        elif grad_w is not None:
            z[y, torch.arange(len(y), device=y.device)] = q_y
            for part in parts_w:
                put_product(grad_w[part], z[part], xs_a.t(), add=begun)
        begun = True
        gx.addcmul_(q_y[:, None], w_y).mul_(a[:, None] if row is None else a[:, None] * row)
        along = (gx * x).sum(dim=1)
        # what a change of R or C does to the target: phi, where the change of P counts slope cos
        free = g_y * (phi - slope * cosine)
        if need_s:
            # dL/ds = sum_ij g_ij z_ij / s
            grad_s += (along + free * big_r * big_c).sum() / scale
        if free_w is not None:
            free_w.index_add_(0, y, free * big_r / length)
        if form.normalize_features:
            # projection on the tangent space: x carries no radial gradient (NormFace eq. 4)
            gx.addcmul_(x, (along / r_x.square())[:, None], value=-1.0)
        elif not form.margin.is_identity:
            gx.addcmul_(x, (free * big_c / r_x)[:, None])
    if grad_w is not None:
        for part in parts_w:
            g, w = grad_w[part], weight[part].to(dtype)
            if form.normalize_weights:
                g.addcmul_(w, ((g * w).sum(dim=1) / r_w[part].square())[:, None], value=-1.0)
            elif free_w is not None:
                g.addcmul_(w, free_w[part, None])
    return each.sum() / count, [grad_x if need_x else None, grad_w, grad_b, grad_s if need_s else None]


def _logits(
    z: Tensor,
    part: slice,
    place: tuple[Tensor, Tensor],
    xs: Tensor,
    weight: Tensor,
    inverse: Tensor | None,
    bias: Tensor | None,
    correction: Tensor | None,
) -> Tensor:
    """A part of z_ij = R_i C_j cos(theta_ij) + b_j, written into ``z`` (C, n) and returned; -inf for own classes."""
    for block, w in _wide(weight, part, xs.dtype):
        put_product(z[block], w, xs, add=False)
    e = z[part]
    if inverse is not None:
        e.mul_(inverse[part, None])
    for term in (bias, correction):
        if term is not None:
            e.add_(term[part, None])
    e[place] = -math.inf
    return e


def _onto_features(gx: Tensor, z: Tensor, part: slice, weight: Tensor, inverse: Tensor | None) -> None:
    """Turn a part of e (C, n) into q_ij = e_ij C_j / ||W_j||, in place, and add q^T W to ``gx`` (n, d)."""
    if inverse is not None:
        z[part].mul_(inverse[part, None])
    for block, w in _wide(weight, part, gx.dtype):
        put_product(gx, z[block].t(), w.t(), add=True)


class _FusedMarginSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, form: Form, *tensors: Any) -> Tensor:
        # the warm-up changes its buffers in place; a second backward pass needs what this forward pass saw
        inputs = Inputs(*tensors)
        inputs, form = inputs._replace(scale=inputs.scale.clone()), form._replace(strength=form.strength.clone())
        needs = tuple(ctx.needs_input_grad[1:5])
        with full_precision(inputs.features):
            value, gradients = value_and_gradients(inputs, form, needs)
        if any(needs):
            ctx.save_for_backward(*inputs)
            ctx.form, ctx.gradients = form, gradients
        return value

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused head has no second derivative (backward with create_graph=True); "
                "use implementation='reference'"
            )
        # Nothing else holds the gradients once they are returned, so autograd takes the weights' as it is.
        gradients, ctx.gradients = ctx.gradients, None
        inputs = Inputs(*ctx.saved_tensors)
        if gradients is None:
            with full_precision(inputs.features):
                _, gradients = value_and_gradients(inputs, ctx.form, tuple(ctx.needs_input_grad[1:5]))
        # on the CPU it costs nothing to see that the factor is 1; on a GPU it costs less to multiply
        one = grad_output.device.type == "cpu" and grad_output.item() == 1.0
        # multiplied in the computing precision, then rounded: a loss scale may exceed the range of half precision
        handed = [
            None if gradient is None else (gradient if one else gradient.mul_(grad_output)).to(tensor.dtype)
            for gradient, tensor in zip(gradients, ctx.saved_tensors, strict=False)
        ]
        return (None, *handed, None, None)


def fused_margin_softmax(inputs: Inputs, form: Form) -> Tensor:
    """Mean margin-softmax loss, a scalar, whose backward pass is the closed form; see :func:`value_and_gradients`."""
    if not torch.is_grad_enabled():
        with full_precision(inputs.features):
            return value_and_gradients(inputs, form, (False,) * 4)[0]
    return _FusedMarginSoftmax.apply(form, *inputs)
