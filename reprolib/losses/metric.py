"""Losses on distances between embeddings: contrastive, triplet, N-pair, and NormFace's agent versions.

All are differentiable in the embeddings, return a scalar (a mean whose terms each docstring names), compute
half precision in float32, and raise ValueError or TypeError with one sentence for a wrong shape, dtype, label
or value. At a kink of a hinge the slope is 0; at equal points a plain distance has slope 0 (see
`distance.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from reprolib._checks import check_batch, check_choice, check_features, check_labels, check_number, require
from reprolib.losses.distance import (
    at_least_float32,
    full_precision,
    pairwise_distance,
    pairwise_squared_distance,
    unit_rows,
)
from reprolib.losses.mining import hardest_in_batch, same_class

CONTRASTIVE_FORMS = ("hadsell", "deepid2", "normface", "cosine", "misplaced_hinge")


def _softplus(x: Tensor) -> Tensor:
    """log(1 + e^x) at full precision: torch's softplus turns linear at 20, which costs 2e-9."""
    return -torch.nn.functional.logsigmoid(-x)


def _reduce(values: Tensor, reduction: str) -> Tensor:
    check_choice(reduction, "reduction", ("mean", "sum", "none"))
    return values if reduction == "none" else getattr(values, reduction)()


def _check_matching(first: Tensor, second: Tensor, first_name: str, second_name: str) -> None:
    check_features(first, first_name)
    check_features(second, second_name)
    if first.shape != second.shape:
        shapes = f"{tuple(first.shape)} and {tuple(second.shape)}"
        raise ValueError(f"{first_name} and {second_name} must have one shape, got {shapes}")


def contrastive_loss(
    a: Tensor,
    b: Tensor,
    same: Tensor,
    margin: float | None = None,
    form: str = "hadsell",
    *,
    slope: float | Tensor = 1.0,
    shift: float | Tensor = 0.0,
    reduction: str = "mean",
) -> Tensor:
    """Contrastive loss of the pairs (a_i, b_i), mean over the pairs; D = ||a_i - b_i||, m = `margin` > 0.

    `a`, `b` (N, d); `same` (N,) bool, True for one identity (a bool because the papers code it in opposite
    ways: Hadsell's Y = 0 and DeepID2's y = 1 both mean "same").

    form               same                      different
    "hadsell"          1/2 D^2                   1/2 max(0, m - D)^2      Hadsell et al. 2006, eq. 4
    "deepid2"          the same function under DeepID2's name (Sun et al. 2014), used as Ident + lambda Verif
    "normface"         D^2                       max(0, m - D^2)          NormFace eq. 7, on a/||a||, b/||b||
    "cosine"           1/2 (1 - sigma(c))^2      1/2 sigma(c)^2           DeepID2's cosine variant,
                       c = slope cos(a, b) + shift, with `slope` and `shift` numbers or (learnable) scalars
    "misplaced_hinge"  D^2                       max(0, (m - D)^2)        a common misprint: the max does
                       nothing, so a pair farther apart than m is pulled back to m

    "cosine" has no margin and refuses one; the others need one. `reduction` "mean", "sum" or "none" (N,).
    """
    check_choice(form, "form", CONTRASTIVE_FORMS)
    _check_matching(a, b, "a", "b")
    if not isinstance(same, Tensor) or same.dtype != torch.bool:
        raise TypeError("same must be a bool tensor of shape (N,): True where a pair shows one identity")
    if same.shape != (len(a),):
        raise ValueError(f"same must have shape ({len(a)},), one per pair, got {tuple(same.shape)}")
    if form == "cosine":
        if margin is not None:
            raise ValueError(f"form 'cosine' has no margin (pass None; set slope and shift), got margin={margin!r}")
        for name, value in (("slope", slope), ("shift", shift)):
            if not isinstance(value, Tensor):
                check_number(value, name, low=-torch.inf)
        cosine = (unit_rows(a) * unit_rows(b)).sum(dim=1)
        # Verif = 1/2 (y - sigma(w d + b))^2
        return _reduce((same.to(cosine.dtype) - torch.sigmoid(slope * cosine + shift)).square() / 2, reduction)
    if margin is None:
        raise ValueError(f"form {form!r} needs a margin > 0, got None")
    check_number(margin, "margin")
    a, b = at_least_float32(a), at_least_float32(b)
    difference = unit_rows(a) - unit_rows(b) if form == "normface" else a - b
    squared = difference.square().sum(dim=1)
    if form == "normface":
        # D^2 if c_i = c_j, max(0, m - D^2) otherwise
        return _reduce(torch.where(same, squared, (margin - squared).clamp_min(0)), reduction)
    gap = margin - torch.linalg.vector_norm(difference, dim=1)
    if form == "misplaced_hinge":
        return _reduce(torch.where(same, squared, gap.square()), reduction)
    # (1 - Y) 1/2 D^2 + Y 1/2 max(0, m - D)^2
    return _reduce(torch.where(same, squared, gap.clamp_min(0).square()) / 2, reduction)


def deepid2_margin(distance: Tensor, same: Tensor) -> float:
    """DeepID2's margin: the threshold on recent pair distances (N,) with the fewest verification errors.

    A pair is called "same" when its distance is at most the threshold. The result lies halfway between the
    two distances around the best cut (the smallest such cut; with all pairs called "same": the largest
    distance). Needs pairs of both kinds.
    """
    if distance.dim() != 1 or same.shape != distance.shape or same.dtype != torch.bool:
        raise ValueError("distance (N,) and same (N,) bool must have one length, one entry per pair")
    if not torch.isfinite(distance).all() or (distance < 0).any():
        raise ValueError("distance must be finite and >= 0, got NaN, infinity or a negative value")
    if same.all() or not same.any():
        raise ValueError("deepid2_margin needs pairs of both kinds, got only one")
    ordered, order = distance.detach().double().sort()
    same = same[order].long()
    # errors(k) = different pairs among the k nearest + same pairs among the others
    errors = torch.cat([same.new_zeros(1), (1 - 2 * same).cumsum(dim=0)]) + same.sum()
    edges = torch.cat([ordered.new_zeros(1), ordered, ordered[-1:]])
    # No threshold cuts between two equal distances.
    errors[:-1][edges[:-2] == edges[1:-1]] = len(same) + 1
    best = int(errors.argmin())
    return float((edges[best] + edges[best + 1]) / 2)


def _check_margin(margin: float | None, soft: bool) -> float:
    if soft:
        if margin is not None:
            raise ValueError(f"the soft margin log(1 + e^x) has no margin (pass None), got margin={margin!r}")
        return 0.0
    if margin is None:
        raise ValueError("margin must be a number > 0 unless soft=True, got None")
    check_number(margin, "margin")
    return float(margin)


def triplet_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float | None = None,
    squared: bool = True,
    *,
    soft: bool = False,
    reduction: str = "mean",
) -> Tensor:
    """[D_ap - D_an + margin]_+, mean over the triplets; anchor, positive, negative (T, d).

    `squared=True` is FaceNet (eq. 2 up to 1/T; D is the squared distance, and so is the unit of `margin`; its
    embeddings are unit vectors, which is left to the caller); False is the plain distance of Hermans et al.
    2017. `soft=True`: log(1 + exp(D_ap - D_an)), without a margin. `reduction` "mean", "sum" or "none" (T,).
    At anchor = positive = negative the squared form has gradient 0: collapse is a stationary point.
    """
    _check_matching(anchor, positive, "anchor", "positive")
    _check_matching(anchor, negative, "anchor", "negative")
    margin = _check_margin(margin, soft)
    anchor, positive, negative = map(at_least_float32, (anchor, positive, negative))

    def distance(other: Tensor) -> Tensor:
        difference = anchor - other
        return difference.square().sum(dim=1) if squared else torch.linalg.vector_norm(difference, dim=1)

    excess = distance(positive) - distance(negative) + margin
    return _reduce(_softplus(excess) if soft else excess.clamp_min(0), reduction)


def batch_hard_triplet_loss(
    features: Tensor, labels: Tensor, margin: float | None = None, soft: bool = False, squared: bool = False
) -> Tensor:
    """[margin + max_p D(a, p) - min_n D(a, n)]_+, mean over the anchors (Hermans et al. 2017, eq. 5).

    `features` (B, d), `labels` (B,), D the plain Euclidean distance unless `squared`. `soft=True` replaces
    the hinge by log(1 + e^x) and takes no margin. Samples without a positive in the batch are no anchors; a
    batch without any positive, or with one class only, raises ValueError.
    """
    positive, negative, anchors = hardest_in_batch(features, labels)
    # index_select, not features[index]: the backward of plain indexing adds in an order that depends on the threads.
    pairs = features.index_select(0, positive), features.index_select(0, negative)
    each = triplet_loss(features, *pairs, margin, squared, soft=soft, reduction="none")
    return torch.where(anchors, each, 0).sum() / anchors.sum()


class _TripletSum(torch.autograd.Function):
    """Sum over all triplets of f(margin + D_ap - D_an), f the hinge or log(1 + e^x), in O(B^2) memory."""

    @staticmethod
    def forward(ctx, distance: Tensor, labels: Tensor, margin: float, soft: bool) -> tuple[Tensor, Tensor]:
        batch = len(labels)
        total, slope = distance.new_zeros(()), torch.zeros_like(distance)
        active = torch.zeros((), dtype=torch.int64, device=distance.device)
        for label in labels.unique():
            inside, outside = (labels == label).nonzero().squeeze(1), (labels != label).nonzero().squeeze(1)
            # As many anchors at a time as keep the block (anchors, positives, negatives) within B^2 entries.
            chunk = max(1, batch * batch // (len(inside) * len(outside)))
            for anchor in inside.split(chunk if len(inside) > 1 else 1):
                row = distance[anchor]
                excess = margin + row[:, inside].unsqueeze(2) - row[:, outside].unsqueeze(1)
                excess.masked_fill_((anchor.unsqueeze(1) == inside).unsqueeze(2), -torch.inf)
                weight = torch.sigmoid(excess) if soft else (excess > 0).to(excess.dtype)
                total += (_softplus(excess) if soft else excess.clamp_min(0)).sum()
                active += (excess > 0).sum()
                # d total/dD_ap = sum_n f'(x_apn),  d total/dD_an = -sum_p f'(x_apn)
                slope[anchor.unsqueeze(1), inside] = weight.sum(dim=2)
                slope[anchor.unsqueeze(1), outside] = -weight.sum(dim=1)
        ctx.save_for_backward(slope)
        ctx.soft = soft
        ctx.mark_non_differentiable(active)
        return total, active

    @staticmethod
    def backward(ctx, grad: Tensor, _: Tensor) -> tuple[Tensor, None, None, None]:
        # the hinge's slope is constant almost everywhere, so the saved one carries its second derivative, 0
        if ctx.soft and torch.is_grad_enabled():
            raise RuntimeError(
                "the batch-all loss with soft=True has no second derivative (backward with create_graph=True)"
            )
        return grad * ctx.saved_tensors[0], None, None, None


def batch_all_triplet_loss(
    features: Tensor,
    labels: Tensor,
    margin: float | None = None,
    soft: bool = False,
    squared: bool = False,
    average: str = "active",
) -> Tensor:
    """[margin + D_ap - D_an]_+ over all triplets of the batch (Hermans, Beyer and Leibe 2017, eq. 6).

    `average="active"` divides by the number of triplets with a loss above 0 (their BA with "!= 0"; 0 if there
    are none), "all" by the number of all valid triplets. `soft=True` is log(1 + e^x), never 0: always over
    all. Memory O(B^2), time O(B^3/P) for P equal classes. ValueError if the batch has no positive or no
    negative pair.
    """
    check_batch(features, labels)
    margin = _check_margin(margin, soft)
    distance = pairwise_squared_distance(features) if squared else pairwise_distance(features)
    return mean_over_triplets(distance, labels, margin, average, soft)


def mean_over_triplets(distance: Tensor, labels: Tensor, margin: float, average: str, soft: bool = False) -> Tensor:
    """[margin + D_ap - D_an]_+ of a table of distances (B, B), averaged as `batch_all_triplet_loss` says."""
    check_choice(average, "average", ("active", "all"))
    same = same_class(labels)
    total, active = _TripletSum.apply(distance, labels, margin, soft)
    if average == "active" and not soft:
        return total / active.clamp_min(1)
    return total / ((same.sum(dim=1) - 1) * (~same).sum(dim=1)).sum()


def n_pair_loss(
    anchors: Tensor, positives: Tensor, labels: Tensor | None = None, form: str = "mc", l2_weight: float = 0.0
) -> Tensor:
    """N-pair loss of N anchors f_i and their positives g_i, both (N, d), one pair a class (Sohn 2016).

    "mc"   (1/N) sum_i log(1 + sum_{j != i} exp(f_i.g_j - f_i.g_i))      (= cross-entropy of F G^T)
    "ovo"  (1/N) sum_i sum_{j != i} log(1 + exp(f_i.g_j - f_i.g_i))      (one against one, >= mc)

    To this is added `l2_weight` times the mean of ||.||^2 over all 2N embeddings: the paper bounds the norms
    this way and does not normalise. With `labels` (N,) pairs of the same class are no negatives of each
    other; the paper's batches have N distinct classes. ValueError if no pair has a negative.
    """
    check_choice(form, "form", ("mc", "ovo"))
    check_number(l2_weight, "l2_weight", closed=True)
    _check_matching(anchors, positives, "anchors", "positives")
    count = len(anchors)
    if labels is None:
        excluded = torch.eye(count, dtype=torch.bool, device=anchors.device)
    else:
        check_labels(labels, count)
        excluded = labels.unsqueeze(1) == labels
    require(~excluded.all(), lambda: f"n_pair_loss needs pairs of at least two classes, got {count} of one class")
    anchors, positives = at_least_float32(anchors), at_least_float32(positives)
    with full_precision(anchors):
        scores = anchors @ positives.T
    # f_i.g_j - f_i.g_i, with exp(-inf) = 0 where j is no negative of i
    excess = (scores - scores.diagonal().unsqueeze(1)).masked_fill(excluded, -torch.inf)
    loss = (_softplus(excess.logsumexp(dim=1)) if form == "mc" else _softplus(excess).sum(dim=1)).mean()
    if l2_weight:
        loss = loss + l2_weight * torch.cat([anchors, positives]).square().sum(dim=1).mean()
    return loss
