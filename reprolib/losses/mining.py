"""Which pairs and triplets of a batch are trained on: random, semi-hard (FaceNet), hardest, batch-hard.

For an anchor a, a positive p and a negative n, with squared distances D2 and margin alpha
(Schroff, Kalenichenko and Philbin 2015, sec. 3.1 and 3.2), every triplet is exactly one of
    easy       D2_an >= D2_ap + alpha             hinge loss 0
    semi-hard  D2_ap < D2_an < D2_ap + alpha      0 < hinge loss < alpha
    hard       D2_an <= D2_ap                     hinge loss >= alpha

A batch of B has O(B^3) triplets. Nothing here lists them: the negatives of an anchor are sorted once, and
each anchor-positive pair finds its semi-hard interval by bisection, in O(B^2 log B) time and O(B^2) memory.
Mining is not differentiable and runs without gradients; ties go to the smaller index.

The hardest negative and the farthest positive of an anchor need no table of accurate distances: one matrix product
screens all pairs with a proved bound on its error, and only the pairs that the bound leaves open are measured, in
float64. The choice is that of the stored numbers themselves, at any norm.

A list of pairs or triplets has a length that the labels or the distances decide, so that on an accelerator the host
waits for it; only `hardest_in_batch`, which the batch-hard loss uses, has one entry a sample and waits for nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reprolib._checks import check_batch, check_choice, check_count, check_labels, check_number, require
from reprolib.losses.distance import full_precision, pairwise_squared_distance

EASY, SEMI_HARD, HARD = 0, 1, 2


class Triplets(NamedTuple):
    """Indices into the batch, int64 tensors of one length: (anchor[t], positive[t], negative[t])."""

    anchor: Tensor
    positive: Tensor
    negative: Tensor


class TripletCounts(NamedTuple):
    """How many triplets of a batch fall into each class of the partition."""

    easy: int
    semi_hard: int
    hard: int

    @property
    def total(self) -> int:
        """All valid triplets of the batch."""
        return self.easy + self.semi_hard + self.hard

    @property
    def active_fraction(self) -> float:
        """Share of the triplets whose hinge loss is above 0."""
        return (self.semi_hard + self.hard) / self.total


def number_of_triplets(classes: int, per_class: int) -> int:
    """Valid (anchor, positive, negative) triplets of a P x K batch: PK (K - 1)(PK - K)."""
    check_count(classes, "classes", low=2)
    check_count(per_class, "per_class", low=2)
    batch = classes * per_class
    return batch * (per_class - 1) * (batch - per_class)


def all_pairs(labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All pairs i < j of a batch: (i, j, same), int64 and bool tensors of length B(B - 1)/2."""
    check_labels(labels)
    i, j = torch.triu_indices(len(labels), len(labels), offset=1, device=labels.device)
    return i, j, labels[i] == labels[j]


def same_class(labels: Tensor) -> Tensor:
    """(B, B) bool: same class. Raises if the batch cannot form one triplet."""
    same = labels.unsqueeze(1) == labels
    require(
        (same.sum(dim=1) > 1).any(),
        lambda: "the batch has no positive pair: every class occurs once, at least one must occur twice",
    )
    require(~same.all(), lambda: "the batch has no negative pair: all samples are of one class, two are needed")
    return same


def anchor_positive_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """All ordered pairs (anchor, positive) of different samples of one class, in order of the anchors.

    Raises ValueError if no class occurs twice or if there is only one class (no triplet can be formed).
    """
    check_labels(labels)
    anchor, positive = same_class(labels).fill_diagonal_(False).nonzero(as_tuple=True)
    return anchor, positive


def _uniform_index(count: Tensor, generator: torch.Generator | None) -> Tensor:
    """One integer uniform in 0 .. count - 1 for each entry of `count` (all >= 1)."""
    if generator is None:
        raise ValueError("generator must be a torch.Generator: a random choice has to be repeatable, got None")
    uniform = torch.rand(len(count), generator=generator, dtype=torch.float64, device=generator.device)
    return torch.minimum((uniform.to(count.device) * count).long(), count - 1)


def random_triplets(labels: Tensor, generator: torch.Generator) -> Triplets:
    """For every anchor-positive pair one negative, uniform over all samples of other classes."""
    anchor, positive = anchor_positive_pairs(labels)
    order = torch.argsort(labels, stable=True)
    ordered = labels[order].contiguous()
    wanted = labels[anchor].contiguous()
    first = torch.searchsorted(ordered, wanted)
    size = torch.searchsorted(ordered, wanted, right=True) - first
    # In the order of labels the own class is one block: draw from what is left and step over the block.
    draw = _uniform_index(len(labels) - size, generator)
    return Triplets(anchor, positive, order[torch.where(draw < first, draw, draw + size)])


def _too_large(dtype: torch.dtype) -> ValueError:
    return ValueError(f"features are too large: their squared distances overflow {dtype}")


class _SortedNegatives:
    """Squared distances of all anchor-positive pairs against the sorted negatives of their anchors."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        check_batch(features, labels)
        distance = pairwise_squared_distance(features.detach())
        if not torch.isfinite(distance).all():
            raise _too_large(distance.dtype)
        same = same_class(labels)
        self.negatives = (~same).sum(dim=1)
        self.values, self.order = distance.masked_fill(same, torch.inf).sort(dim=1, stable=True)
        self.anchor, self.positive = same.fill_diagonal_(False).nonzero(as_tuple=True)
        self.to_positive = distance[self.anchor, self.positive]
        # Column of a pair within its anchor's row, so that one batched bisection serves all pairs.
        per_anchor = same.sum(dim=1)
        self._slot = torch.arange(len(self.anchor), device=labels.device)
        self._slot -= (per_anchor.cumsum(dim=0) - per_anchor)[self.anchor]
        self._width = int(per_anchor.max())

    def below(self, bound: Tensor, inclusive: bool) -> Tensor:
        """For each pair the number of negatives of its anchor with D2_an < bound (<= bound if inclusive)."""
        table = bound.new_zeros(len(self.values), self._width)
        table[self.anchor, self._slot] = bound
        return torch.searchsorted(self.values, table, right=inclusive)[self.anchor, self._slot]


def _float32_products_are_exact() -> bool:
    """Whether float32 products round sums only, not their factors (TF32 and bfloat16 round those, too)."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set by the newer switches, which this one cannot read
        return False


class _Screen:
    """E_ij = ||x_j||^2 - 2 x_i.x_j, which orders the distances of a row i as ||x_i - x_j||^2 does, and its error.

    The product is of x = (features - mean) 2^-k, so that a common shift costs nothing and no square overflows or
    vanishes. With u the unit roundoff of the product, gamma_n = n u / (1 - n u), and M = max_j ||x_j||:
    rounding the factors once, a sum of d products in any order, rounding ||x_j||^2 and the last sum give
        |E_ij - exact| <= gamma_(d+4) (M^2 + 2 ||x_i|| M)                  (Higham 2002, sec. 3.1)
    so the exact minimum of a row lies among the entries E_ij <= min_j E_ij + 2 bound_i, its maximum likewise. The
    bound is computed with gamma_(d+8), which covers the rounding of the bound, the limit and underflow.
    """

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        check_batch(features, labels)
        self.dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        self.exact = features.detach().double()
        x = self.exact - self.exact.mean(dim=0)
        peak = x.abs().max()
        if not torch.isfinite(peak):
            raise _too_large(self.dtype)
        # the largest entry is brought to [1/2, 1); numbers below 2^-1000 are left small
        x *= torch.exp2(-torch.frexp(peak).exponent.double().clamp_min(-1000))
        norm = torch.linalg.vector_norm(x, dim=1)
        largest = norm.max()
        # E in float32 where its products are the sums that the bound is about
        product = torch.float32 if _float32_products_are_exact() else torch.float64
        u = torch.finfo(product).eps / 2
        terms = features.shape[1] + 8
        bound = terms * u / (1 - terms * u) * (largest.square() + 2 * norm * largest)
        self._width = 2 * bound.unsqueeze(1).to(product)
        x = x.to(product)
        with full_precision(x):
            self.table = torch.addmm(norm.square().to(product), x, x.T, alpha=-2)

    def nearest(self, among: Tensor) -> Tensor:
        """For each row the column with the least distance of those in `among` (B, B) bool; B where there is none."""
        limit = self.table.masked_fill(~among, torch.inf).amin(dim=1, keepdim=True) + self._width
        return self._select((self.table <= limit).logical_and_(among), "amin")

    def farthest(self, among: Tensor) -> Tensor:
        """The same with the largest distance."""
        limit = self.table.masked_fill(~among, -torch.inf).amax(dim=1, keepdim=True) - self._width
        return self._select((self.table >= limit).logical_and_(among), "amax")

    def _select(self, candidates: Tensor, extreme: str) -> Tensor:
        row, column = candidates.nonzero(as_tuple=True)
        squared = self._squared_distances(row, column)
        best = squared.new_zeros(len(candidates)).scatter_reduce(0, row, squared, extreme, include_self=False)
        if not torch.isfinite(best.to(self.dtype)).all():
            raise _too_large(self.dtype)
        tied = squared == best[row]
        first = row.new_full((len(candidates),), len(candidates))
        return first.scatter_reduce(0, row[tied], column[tied], "amin")

    def _squared_distances(self, row: Tensor, column: Tensor) -> Tensor:
        x = self.exact
        if 8 * len(row) > len(x) ** 2:  # near-duplicates at large: all pairs at once are cheaper
            return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")[row, column].square()
        at_once = max(1, 2**19 // x.shape[1])  # 4 MiB
        blocks = zip(row.split(at_once), column.split(at_once), strict=True)
        return torch.cat([(x[i] - x[j]).square_().sum(dim=1) for i, j in blocks])


class _AllPairs:
    """The choice of `_Screen` among all distances in float64: no list of candidates, so that no host waits for it."""

    def __init__(self, features: Tensor, labels: Tensor) -> None:
        check_batch(features, labels)
        self.dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
        exact = features.detach().double()
        self.squared = torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist").square()

    def nearest(self, among: Tensor) -> Tensor:
        """As `_Screen.nearest`."""
        return self._select(among, self.squared.masked_fill(~among, torch.inf).amin(dim=1, keepdim=True))

    def farthest(self, among: Tensor) -> Tensor:
        """As `_Screen.farthest`."""
        return self._select(among, self.squared.masked_fill(~among, -torch.inf).amax(dim=1, keepdim=True))

    def _select(self, among: Tensor, best: Tensor) -> Tensor:
        finite = torch.isfinite(best.to(self.dtype)) | ~among.any(dim=1, keepdim=True)
        require(finite.all(), lambda: str(_too_large(self.dtype)))
        columns = torch.arange(len(best), device=best.device)
        return torch.where(among & (self.squared == best), columns, len(best)).amin(dim=1)


def _search(features: Tensor, labels: Tensor) -> _Screen | _AllPairs:
    return (_Screen if features.device.type == "cpu" else _AllPairs)(features, labels)


@torch.no_grad()
def semi_hard_triplets(
    features: Tensor,
    labels: Tensor,
    margin: float,
    pick: str = "random",
    generator: torch.Generator | None = None,
) -> Triplets:
    """FaceNet's semi-hard negatives (sec. 3.2, eq. 3): D2_ap < D2_an < D2_ap + margin, squared distances.

    `features` (B, d) are taken as they are (FaceNet's are unit vectors), `labels` (B,), `margin` > 0 in units
    of squared distance. For every anchor-positive pair that has semi-hard negatives one is chosen:
    `pick="random"` uniformly with `generator`, `pick="hardest"` the nearest. Pairs that have none give no
    triplet, so the result may be empty.
    """
    check_choice(pick, "pick", ("random", "hardest"))
    check_number(margin, "margin")
    pairs = _SortedNegatives(features, labels)
    low = pairs.below(pairs.to_positive, inclusive=True)
    high = pairs.below(pairs.to_positive + margin, inclusive=False)
    keep = (low < high).nonzero().squeeze(1)
    low, count, anchor = low[keep], (high - low)[keep], pairs.anchor[keep]
    chosen = low if pick == "hardest" else low + _uniform_index(count, generator)
    return Triplets(anchor, pairs.positive[keep], pairs.order[anchor, chosen])


@torch.no_grad()
def hardest_triplets(features: Tensor, labels: Tensor) -> Triplets:
    """Every anchor-positive pair with its anchor's hardest negative, argmin_n D2_an (FaceNet sec. 3.2)."""
    search, same = _search(features, labels), same_class(labels)
    anchor, positive = anchor_positive_pairs(labels)
    return Triplets(anchor, positive, search.nearest(~same)[anchor])


@torch.no_grad()
def hardest_in_batch(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """For each sample its farthest positive, its nearest negative, and whether it has a positive: (B,) each.

    As `batch_hard_triplets`, but with an entry for every sample: one without a positive has itself in its place.
    """
    search, same = _search(features, labels), same_class(labels)
    negative = search.nearest(~same)
    others = same.fill_diagonal_(False)
    anchors = others.any(dim=1)
    own = torch.arange(len(labels), device=labels.device)
    return torch.where(anchors, search.farthest(others), own), negative, anchors


def batch_hard_triplets(features: Tensor, labels: Tensor) -> Triplets:
    """One triplet per anchor: farthest positive and nearest negative (Hermans, Beyer and Leibe 2017, eq. 5).

    `features` (B, d), `labels` (B,). Exact: the distances that decide are those of the numbers given, in float64. In
    a P x K batch every sample is an anchor. In any other batch the samples without a positive are left out.
    """
    positive, negative, anchors = hardest_in_batch(features, labels)
    anchor = anchors.nonzero().squeeze(1)
    return Triplets(anchor, positive[anchor], negative[anchor])


def triplet_category(squared_ap: Tensor, squared_an: Tensor, margin: float) -> Tensor:
    """Class of triplets by squared distances (broadcast): uint8 EASY = 0, SEMI_HARD = 1, HARD = 2."""
    check_number(margin, "margin")
    hard = squared_an <= squared_ap
    easy = squared_an >= squared_ap + margin
    # A margin lost in rounding (ap + margin == ap) makes both true at equality; that triplet is hard.
    category = torch.where(hard, HARD, torch.where(easy, EASY, SEMI_HARD))
    return category.to(torch.uint8)


@torch.no_grad()
def count_triplets(features: Tensor, labels: Tensor, margin: float) -> TripletCounts:
    """Exact sizes of the partition easy / semi-hard / hard over all valid triplets, without listing them."""
    check_number(margin, "margin")
    pairs = _SortedNegatives(features, labels)
    hard = pairs.below(pairs.to_positive, inclusive=True)
    active = torch.maximum(pairs.below(pairs.to_positive + margin, inclusive=False), hard)
    total = int(pairs.negatives[pairs.anchor].sum())
    hard_total, active_total = int(hard.sum()), int(active.sum())
    return TripletCounts(total - active_total, active_total - hard_total, hard_total)
