"""Closed-form bounds of the papers: scale, probability, loss. Plain floats in, plain floats out.

``C`` (or ``n``) is the number of classes, ``p`` the wanted softmax probability of the correct class, scales multiply
cosines. Where a paper's statement holds only under an assumption that it does not make, the docstring says so. Wrong
arguments raise ``TypeError`` (not a number) or ``ValueError`` (out of range).
"""

from __future__ import annotations

import math

from reprolib._checks import check_count, check_number

CLASSES = "the number of classes"
PROBABILITY = "the probability"


def alpha_low(C: int, p: float) -> float:
    """``log(p (C - 2) / (1 - p))``: the "lower bound" on alpha of L2-constrained softmax.

    Ranjan 2017; notebook 01 (1.10). From ``p = e^a / (e^a + e^-a + C - 2)`` with ``e^-a`` dropped: unit class weights
    at e_k, -e_k and the feature on its own weight. It bounds nothing in general: :func:`simplex_scale` is smaller
    (except at small C and p), and weights that are not normalised make any alpha possible. Needs C >= 3.
    """
    check_count(C, CLASSES, 3)
    check_number(p, PROBABILITY, 0.0, 1.0)
    return math.log(p * (C - 2) / (1.0 - p))


def cross_polytope_probability(C: int, alpha: float) -> float:
    """``e^a / (e^a + e^-a + C - 2)``: softmax probability on the own weight of a cross-polytope arrangement.

    One weight is antipodal, the C - 2 others are orthogonal (even C <= 2d, unit weights); notebook 01 (1.9).
    """
    check_count(C, CLASSES, 2)
    check_number(alpha, "alpha")
    return 1.0 / (1.0 + math.exp(-2.0 * alpha) + (C - 2) * math.exp(-alpha))


def simplex_scale(C: int, p: float) -> float:
    """``(C - 1)/C log((C - 1) p / (1 - p))``: least scale at which every class centre can reach p.

    From ``p = 1 / (1 + (C - 1) e^(-s C / (C - 1)))`` on the regular simplex, which needs d >= C - 1. For unit
    weights it is necessary in any dimension: it is NormFace Prop. 2 solved for s (p = e^-L) and CosFace eq. 6, which
    holds without a margin only. Notebook 01 (1.13), notebook 02 (2.21).
    """
    check_count(C, CLASSES, 2)
    check_number(p, PROBABILITY, 0.0, 1.0)
    return (C - 1) / C * math.log((C - 1) * p / (1.0 - p))


def polygon_probability(C: int, scale: float) -> float:
    """``1 / sum_k exp(s (cos(2 pi k / C) - 1))``: probability on the own weight of a regular C-gon.

    Notebook 01 (1.14).
    """
    check_count(C, CLASSES, 2)
    check_number(scale, "scale")
    return 1.0 / sum(math.exp(scale * (math.cos(2.0 * math.pi * k / C) - 1.0)) for k in range(C))


def polygon_scale(C: int, p: float) -> float:
    """The scale at which a regular C-gon in the plane reaches probability ``p``; needs 1/C < p < 1.

    The root of :func:`polygon_probability`, which increases with the scale from 1/C to 1, by bisection.
    """
    check_count(C, CLASSES, 2)
    check_number(p, PROBABILITY, 1.0 / C, 1.0)
    low, high = 0.0, 1.0
    while polygon_probability(C, high) < p:
        low, high = high, 2.0 * high
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if polygon_probability(C, middle) < p else (low, middle)
    return middle


def normface_loss_bound(n: int, scale: float) -> float:
    """``log(1 + (n - 1) exp(-s n / (n - 1)))``: NormFace Prop. 2, with ``s = l^2``.

    Floor of the softmax loss over unit features and unit weights of n classes, averaged over equally many
    samples per class; the features need not sit on their weights. A batch that is not balanced can fall below
    it. Attained by the regular simplex, which needs n <= d + 1. Derived in notebook 02 (2.14).
    """
    check_count(n, CLASSES, 2)
    check_number(scale, "scale")
    return math.log1p((n - 1) * math.exp(-scale * n / (n - 1)))
