"""Closed-form bounds of the papers: scale, margin, probability, loss. Plain floats in, plain floats out.

``C`` is the number of classes, ``p`` (or ``P``) the wanted softmax probability of the correct class, scales
multiply cosines, margins are cosines for CosFace and factors for A-Softmax. Where a paper's statement holds
only under an assumption that it does not make, the docstring says so.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from reprolib.theory.geometry import angle_between, rankin_bound

__all__ = [
    "a_softmax_binary_extents",
    "a_softmax_circle_extents",
    "a_softmax_minimal_margin",
    "agent_distortion",
    "agent_distortion_bound",
    "alpha_low",
    "bounded_logit_probability",
    "cosface_margin_bound",
    "cosface_scale_bound",
    "cross_polytope_alpha",
    "cross_polytope_probability",
    "margin_aware_scale_bound",
    "normface_loss_bound",
    "polygon_probability",
    "polygon_scale",
    "simplex_scale",
]


def _classes(C: int, least: int = 2) -> int:
    if isinstance(C, bool) or not isinstance(C, int):
        raise TypeError(f"the number of classes must be an integer, got {type(C).__name__}")
    if least > C:
        raise ValueError(f"the number of classes must be at least {least}, got {C}")
    return C


def _probability(p: float) -> float:
    if not 0.0 < p < 1.0:
        raise ValueError(f"the probability must lie strictly between 0 and 1, got {p!r}")
    return float(p)


def _positive(value: float, name: str) -> float:
    if not (value > 0.0 and math.isfinite(value)):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)


def alpha_low(C: int, p: float) -> float:
    """``log(p (C - 2) / (1 - p))``: the "lower bound" on alpha of L2-constrained softmax (Ranjan 2017).

    From ``p = e^a / (e^a + e^-a + C - 2)`` with ``e^-a`` dropped: unit class weights at e_k, -e_k and the
    feature on its own weight. It bounds nothing in general: :func:`simplex_scale` is smaller, and weights
    that are not normalised make any alpha possible. Needs C >= 3.
    """
    return math.log(_probability(p) * (_classes(C, 3) - 2) / (1.0 - p))


def cross_polytope_probability(C: int, alpha: float) -> float:
    """``e^a / (e^a + e^-a + C - 2)``: softmax probability on the own weight of a cross-polytope arrangement.

    One weight is antipodal, the C - 2 others are orthogonal (even C <= 2d, unit weights).
    """
    _classes(C)
    _positive(alpha, "alpha")
    return 1.0 / (1.0 + math.exp(-2.0 * alpha) + (C - 2) * math.exp(-alpha))


def cross_polytope_alpha(C: int, p: float) -> float:
    """The alpha at which :func:`cross_polytope_probability` is exactly ``p`` (with the e^-alpha term kept).

    With ``t = e^-a`` and ``q = (1 - p)/p`` it solves ``t^2 + (C - 2) t - q = 0``. Needs p > 1/C.
    """
    _classes(C)
    if _probability(p) * C <= 1.0:
        raise ValueError(f"the probability must exceed 1/C = {1.0 / C:.6g} for a positive alpha, got {p!r}")
    b, q = C - 2.0, (1.0 - p) / p
    # The root without cancellation: t = 2 q / (b + sqrt(b^2 + 4 q)).
    return -math.log(2.0 * q / (b + math.sqrt(b * b + 4.0 * q)))


def simplex_scale(C: int, p: float) -> float:
    """``(C - 1)/C log((C - 1) p / (1 - p))``: least scale at which every class centre can reach p.

    From ``p = 1 / (1 + (C - 1) e^(-s C / (C - 1)))`` on the regular simplex, which needs d >= C - 1. For unit
    weights it is necessary in any dimension: it is NormFace Prop. 2 solved for s (p = e^-L) and CosFace eq.
    6.
    """
    return (_classes(C) - 1) / C * math.log((C - 1) * _probability(p) / (1.0 - p))


def cosface_scale_bound(C: int, P: float) -> float:
    """CosFace eq. 6, ``s >= (C - 1)/C log((C - 1) P / (1 - P))``: the same bound as :func:`simplex_scale`.

    It contains no margin, so it is the bound of the margin-free loss; see :func:`margin_aware_scale_bound`.
    """
    return simplex_scale(C, P)


def margin_aware_scale_bound(C: int, P: float, m: float) -> float:
    """``log((C - 1) P / (1 - P)) / (C/(C - 1) - m)``: CosFace's scale bound with the margin in the posterior.

    With the target logit ``s (cos - m)`` the exponent of the same proof is ``s (C/(C - 1) - m)``. Needs
    ``0 <= m < C/(C - 1)``; equals :func:`cosface_scale_bound` at m = 0.
    """
    room = _classes(C) / (C - 1) - m
    if not (m >= 0.0 and room > 0.0):
        raise ValueError(f"m must lie in [0, C/(C - 1)) = [0, {C / (C - 1):.6g}), got {m!r}")
    return math.log((C - 1) * _probability(P) / (1.0 - P)) / room


def polygon_probability(C: int, scale: float) -> float:
    """``1 / sum_k exp(s (cos(2 pi k / C) - 1))``: probability on the own weight of a regular C-gon."""
    _classes(C)
    _positive(scale, "scale")
    return 1.0 / sum(math.exp(scale * (math.cos(2.0 * math.pi * k / C) - 1.0)) for k in range(C))


def polygon_scale(C: int, p: float) -> float:
    """The scale at which a regular C-gon in the plane reaches probability ``p``; needs p > 1/C.

    The root of :func:`polygon_probability`, which increases with the scale from 1/C to 1, by bisection.
    """
    if _probability(p) * _classes(C) <= 1.0:
        raise ValueError(f"the probability must exceed 1/C = {1.0 / C:.6g} for a positive scale, got {p!r}")
    low, high = 0.0, 1.0
    while polygon_probability(C, high) < p:
        low, high = high, 2.0 * high
    for _ in range(200):
        middle = 0.5 * (low + high)
        if not low < middle < high:
            break
        if polygon_probability(C, middle) < p:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)


def normface_loss_bound(n: int, scale: float) -> float:
    """``log(1 + (n - 1) exp(-s n / (n - 1)))``: NormFace Prop. 2, with ``s = l^2``.

    Floor of the softmax loss over unit features and unit weights of n classes, averaged over equally many
    samples per class; the features need not sit on their weights. A batch that is not balanced can fall below
    it. Attained by the regular simplex, which needs n <= d + 1.
    """
    return math.log1p((_classes(n) - 1) * math.exp(-_positive(scale, "scale") * n / (n - 1)))


def bounded_logit_probability(C: int, limit: float = 1.0) -> float:
    """``e^b / (e^b + (C - 1) e^-b)``: largest softmax probability with all logits in [-b, b] (NormFace 3.3).

    0.4509 for C = 10 and 0.0073 for C = 1000 at b = 1: why cosines need a scale. One vector can have all
    other weights antipodal; balanced classes cannot, which is Prop. 2.
    """
    return 1.0 / (1.0 + (_classes(C) - 1) * math.exp(-2.0 * _positive(limit, "limit")))


def cosface_margin_bound(C: int, K: int) -> float:
    """Largest cosine margin m that all C classes in K dimensions can satisfy: ``1 - max_{i != j} W_i.W_j``.

    CosFace eq. 7, corrected: ``1 - cos(2 pi / C)`` for K = 2; ``C/(C - 1)`` for C <= K + 1 (simplex); exactly
    1 for K + 2 <= C <= 2K (cross-polytope), where the paper has only "much less than C/(C - 1)"; beyond that
    a bound below 1 which need not be attained, ``1 - rankin_bound(C, K)``. The features sit on their weights.
    """
    _classes(C)
    if isinstance(K, bool) or not isinstance(K, int):
        raise TypeError(f"the dimension K must be an integer, got {type(K).__name__}")
    if K < 1:
        raise ValueError(f"the dimension K must be at least 1, got {K}")
    return 1.0 - rankin_bound(C, K)


def a_softmax_minimal_margin(classes: str) -> float:
    """Least m of A-Softmax with intra-class extent <= inter-class gap: Properties 2 and 3 (Liu et al. 2017).

    ``"binary"``: ``2 + sqrt 3``, from ``t/(m - 1) + t/(m + 1) <= (m - 1)/(m + 1) t``, i.e.
    ``m^2 - 4m + 1 >= 0``. ``"circle"``: 3, for K >= 3 weights equally spaced on a circle **in the plane**,
    from ``2D/(m + 1) <= (m - 1)/(m + 1) D``. ``"great circle"``: the same weights in three or more
    dimensions, K large: the regions are lenses of half-height ``D/sqrt(m^2 - 1)``, so
    ``2 (m + 1) = (m - 1) sqrt(m^2 - 1)``, ``m^3 - 3m^2 - m - 5 = 0``, m = 3.649; the paper's 3 is not enough
    there.
    """
    if classes == "binary":
        return 2.0 + math.sqrt(3.0)
    if classes == "circle":
        return 3.0
    if classes == "great circle":
        # Cardano for m = u + 1: u^3 - 4u - 8 = 0.
        root = math.sqrt(16.0 - 64.0 / 27.0)
        return 1.0 + (4.0 + root) ** (1.0 / 3.0) + (4.0 - root) ** (1.0 / 3.0)
    raise ValueError(f"classes must be 'binary', 'circle' or 'great circle', got {classes!r}")


def a_softmax_binary_extents(theta12: float, m: float) -> tuple[float, float]:
    """(largest intra-class, smallest inter-class) angle of two classes ``theta12`` apart in the plane, m > 1.

    Towards the other class a region ends at ``theta12/(m + 1)``; away from it at ``theta12/(m - 1)``, or,
    when that lies beyond the antipode of the other weight, at ``(2 pi - theta12)/(m + 1)``.
    """
    if not 0.0 < theta12 <= math.pi:
        raise ValueError(f"theta12 must lie in (0, pi], got {theta12!r}")
    if not m > 1.0:
        raise ValueError(f"m must be greater than 1, got {m!r}")
    outer = min(theta12 / (m - 1.0), (2.0 * math.pi - theta12) / (m + 1.0))
    return min(theta12 / (m + 1.0) + outer, math.pi), theta12 * (m - 1.0) / (m + 1.0)


def a_softmax_circle_extents(K: int, m: float) -> tuple[float, float]:
    """(intra, inter) angle of K >= 3 classes on a circle, spacing D: 2D/(m + 1) and (m - 1)D/(m + 1)."""
    if not m > 1.0:
        raise ValueError(f"m must be greater than 1, got {m!r}")
    spacing = 2.0 * math.pi / _classes(K, 3)
    return min(2.0 * spacing / (m + 1.0), math.pi), (m - 1.0) * spacing / (m + 1.0)


_DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "euclidean": lambda a, b: (a - b).norm(dim=-1),
    "squared": lambda a, b: (a - b).square().sum(-1),
    "geodesic": angle_between,
}


def _distances(members: Tensor, point: Tensor, distance: str) -> Tensor:
    if distance not in _DISTANCES:
        raise ValueError(f"distance must be 'euclidean', 'squared' or 'geodesic', got {distance!r}")
    if members.ndim != 2 or members.shape[0] == 0 or point.shape != members.shape[1:]:
        raise ValueError(
            f"members must have shape (n >= 1, d) and the point (d,), "
            f"got {tuple(members.shape)} and {tuple(point.shape)}"
        )
    return _DISTANCES[distance](members, point)


def agent_distortion(anchor: Tensor, members: Tensor, agent: Tensor, distance: str = "euclidean") -> Tensor:
    """``mean_j (d(f_0, f_j) - d(f_0, W))^2``: what the agent W does to distances from f_0 (NormFace Prop. 3).

    ``anchor`` (d,), ``members`` (n, d) of one class, ``agent`` (d,); differentiable scalar.
    """
    to_agent = _distances(agent.unsqueeze(0), anchor, distance)
    return (_distances(members, anchor, distance) - to_agent).square().mean()


def agent_distortion_bound(members: Tensor, agent: Tensor, distance: str = "euclidean") -> Tensor:
    """``mean_j d(f_j, W)^2``, which bounds :func:`agent_distortion` by the reverse triangle inequality.

    True for a metric ("euclidean", "geodesic"), false for the squared distance that the losses use.
    """
    return _distances(members, agent, distance).square().mean()
