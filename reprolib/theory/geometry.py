"""Directions on the unit sphere: regular and optimised arrangements, the bounds on them, decision regions.

All vectors are rows of float64 tensors and all angles are radians unless a name ends in ``_degrees``. An
optimised arrangement is a witness (it shows what is possible); a bound says what is impossible; where the two
meet the problem is solved.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy.special import betainc
from torch import Tensor

from reprolib._checks import check_choice, check_count, check_double, check_number, unit_rows
from reprolib.theory.numerics import bisect, minimise_on_sphere, single_thread

FLOAT = torch.float64


def unit_directions(vectors: Tensor, name: str = "vectors", least: int = 2) -> Tensor:
    """Unit rows of a finite float64 matrix (n >= ``least``, dim) without zero rows."""
    check_double(**{name: vectors})
    if vectors.ndim != 2 or vectors.shape[0] < least:
        raise ValueError(f"{name} must have shape (n >= {least}, dim), got {tuple(vectors.shape)}")
    return unit_rows(vectors, name)


def regular_simplex(n: int, dim: int | None = None) -> Tensor:
    """``n`` unit vectors with pairwise cosine ``-1/(n-1)``, the least possible; shape ``(n, dim)``.

    They need ``dim >= n - 1`` (the default). Equality case of NormFace Prop. 2 and CosFace eq. 6.
    """
    check_count(n, "n", 2)
    dim = n - 1 if dim is None else dim
    check_count(dim, "dim", n - 1)
    vectors = torch.zeros(n, dim, dtype=FLOAT)
    for k in range(1, n):
        # Column k of the Helmert basis of {sum = 0}: (1, ..., 1, -k, 0, ..., 0) / sqrt(k (k + 1)).
        vectors[:k, k - 1] = 1.0 / math.sqrt(k * (k + 1))
        vectors[k, k - 1] = -k / math.sqrt(k * (k + 1))
    return vectors * math.sqrt(n / (n - 1))


def cross_polytope(dim: int, count: int | None = None) -> Tensor:
    """The first ``count`` (default ``2 dim``) of e1, -e1, e2, -e2, ...; shape ``(count, dim)``.

    Any two are at least 90 degrees apart (L2-constrained softmax, the arrangement behind its bound on alpha).
    """
    check_count(dim, "dim", 1)
    count = 2 * dim if count is None else count
    check_count(count, "count", 2)
    if count > 2 * dim:
        raise ValueError(f"count must be at most 2 dim = {2 * dim}, got {count}")
    identity = torch.eye(dim, dtype=FLOAT)
    return torch.stack((identity, 0.0 - identity), dim=1).reshape(2 * dim, dim)[:count]


def regular_polygon(n: int) -> Tensor:
    """``n`` unit vectors in the plane, ``2 pi / n`` apart; shape ``(n, 2)``."""
    check_count(n, "n", 2)
    angles = torch.arange(n, dtype=FLOAT) * (2.0 * math.pi / n)
    return torch.stack((angles.cos(), angles.sin()), dim=1)


def random_unit(n: int, dim: int, generator: torch.Generator) -> Tensor:
    """``n`` independent uniform unit vectors; shape ``(n, dim)``."""
    check_count(n, "n", 1)
    check_count(dim, "dim", 1)
    vectors = torch.randn(n, dim, generator=generator, dtype=FLOAT)
    return vectors / vectors.norm(dim=1, keepdim=True)


def angle_between(a: Tensor, b: Tensor) -> Tensor:
    """Angle in radians between the last dimensions of ``a`` and ``b``, accurate also near 0 and pi.

    ``2 atan2(|u - v|, |u + v|)`` for unit u, v (Kahan; notebook 00 (0.7)); ``acos`` loses half the digits where
    the cosine is 1.
    """
    u, v = a / a.norm(dim=-1, keepdim=True), b / b.norm(dim=-1, keepdim=True)
    return 2.0 * torch.atan2((u - v).norm(dim=-1), (u + v).norm(dim=-1))


def _pair_cosines(unit: Tensor) -> Tensor:
    i, j = torch.triu_indices(unit.shape[0], unit.shape[0], offset=1)
    return (unit @ unit.T)[i, j]


def max_cosine(vectors: Tensor) -> float:
    """Largest cosine between two different rows of ``vectors`` (n, dim)."""
    return float(_pair_cosines(unit_directions(vectors)).max())


def rankin_bound(n: int, dim: int) -> float:
    """Lower bound on the largest (signed) cosine between two of ``n`` unit vectors in ``dim`` dimensions.

    ``-1/(n-1)`` for n <= d + 1 (simplex) and 0 for d + 2 <= n <= 2d (cross-polytope), both attained (Rankin
    1955; notebook 00 (0.16)); ``cos(2 pi / n)`` for d = 2, attained; for n > 2d > 4 the solution s of Levenshtein's
    linear-programming bound ``n <= d (1 - s)(2 + (d + 1) s) / (1 - d s^2)`` on
    ``0 <= s <= (sqrt(d + 3) - 1)/(d + 2)``, and in three dimensions Fejes Toth's if larger; strictly positive
    but in general not attained.
    """
    check_count(n, "n", 2)
    check_count(dim, "dim", 1)
    if n <= dim + 1:
        return -1.0 / (n - 1)
    if dim == 1:
        return 1.0
    if dim == 2:
        return math.cos(2.0 * math.pi / n)
    if n <= 2 * dim:
        return 0.0

    def most(s: float) -> float:  # Levenshtein's bound on the number of vectors with cosines up to s
        return dim * (1.0 - s) * (2.0 + (dim + 1.0) * s) / (1.0 - dim * s * s)

    end = (math.sqrt(dim + 3.0) - 1.0) / (dim + 2.0)
    best = end if most(end) < n else bisect(lambda s: most(s) < n, 0.0, end)
    if dim == 3:
        # Fejes Toth 1943: at best 2 (n - 2) equilateral triangles; cos(delta) >= (cot(omega)^2 - 1) / 2.
        omega = n * math.pi / (6.0 * (n - 2.0))
        best = max(best, 0.5 * (1.0 / math.tan(omega) ** 2 - 1.0))
    return best


def cap_fraction(angle: float, dim: int) -> float:
    """Probability that a uniform direction in ``dim`` dimensions is within ``angle`` radians of a given one.

    ``int_0^angle sin^(d-2) / int_0^pi sin^(d-2)``. At initialisation the target angle has this law; by
    symmetry ``cap_fraction(m, d)`` is the probability that ArcFace starts beyond ``theta + m = pi``.
    """
    check_count(dim, "dim", 2)
    check_number(angle, "angle", 0.0, math.pi, closed=True)
    # A cap up to 90 degrees has the fraction I_{sin^2}((d-1)/2, 1/2) / 2, I the regularised incomplete beta.
    half = 0.5 * float(betainc(0.5 * (dim - 1), 0.5, math.sin(angle) ** 2))
    return half if angle <= 0.5 * math.pi else 1.0 - half


def _crowding(unit: Tensor, scale: float) -> Tensor:
    """``u_i = log sum_{j != i} exp(s (w_i.w_j - 1))`` per class: the loss of class i is softplus(u_i)."""
    logits = scale * (unit @ unit.T - 1.0)
    return logits.masked_fill(torch.eye(len(unit), dtype=torch.bool), -math.inf).logsumexp(1)


def softmax_floor(weights: Tensor, scale: float) -> Tensor:
    """Mean normalised-softmax loss when every feature sits on its own class weight (differentiable scalar).

    ``(1/n) sum_i log(1 + sum_{j != i} exp(s (w_i.w_j - 1)))``: the left side of NormFace Prop. 2.
    """
    check_number(scale, "scale")
    return torch.nn.functional.softplus(_crowding(unit_directions(weights, "weights"), scale)).mean()


@single_thread()
def minimise_softmax_floor(
    n: int, dim: int, scale: float, generator: torch.Generator, *, restarts: int = 6, steps: int = 200
) -> tuple[Tensor, float]:
    """Unit class weights with the smallest :func:`softmax_floor`; returns them (n, dim) and the loss.

    The logarithm of the loss is minimised: at s = 64 the loss itself can be 1e-30, without usable gradient.
    """
    check_count(n, "n", 2)
    check_count(dim, "dim", 2)
    check_count(restarts, "restarts")
    check_number(scale, "scale")

    def log_loss(unit: Tensor, s: float) -> Tensor:
        u = _crowding(unit, s)
        # log softplus(u) = u for u << 0, where softplus itself underflows.
        return torch.where(u < -30.0, u, torch.nn.functional.softplus(u.clamp(min=-30.0)).log()).logsumexp(0)

    def per_scale(s: float) -> Callable[[Tensor], Tensor]:
        return lambda unit: log_loss(unit, s) / s

    found = []
    for restart in range(restarts):
        unit = random_unit(n, dim, generator)
        level = min(scale, (10.0, 30.0)[restart % 2])
        while level < scale:
            unit = minimise_on_sphere(per_scale(level), unit, steps)
            level *= 4.0
        unit = minimise_on_sphere(per_scale(scale), unit, steps)
        found.append((float(log_loss(unit, scale)), unit))
    best = min(found, key=lambda pair: pair[0])[1]
    return best, float(softmax_floor(best, scale))


def _check_apart(theta12: float) -> None:
    if not 0.0 < theta12 <= math.pi:
        raise ValueError(f"theta12 must lie in (0, pi], got {theta12!r}")


def boundary_angle(target: Callable[[float], float], theta12: float) -> float | None:
    """End t1 in [0, theta12] of class 1 on the arc from W1 to W2: ``target(t1) = cos(theta12 - t1)``.

    ``target`` is the target-logit function phi of a margin, decreasing in the angle (radians). ``None`` when
    not even the feature on W1 itself is on its own side.
    """
    _check_apart(theta12)
    if target(0.0) < math.cos(theta12):
        return None
    return bisect(lambda angle: target(angle) >= math.cos(theta12 - angle), 0.0, theta12)


def boundary_gap(target: Callable[[float], float], theta12: float) -> float | None:
    """``theta12 - 2 t1`` with t1 of :func:`boundary_angle`: the gap on the arc between two classes, radians."""
    end = boundary_angle(target, theta12)
    return None if end is None else theta12 - 2.0 * end


def angular_gap(loss: str, theta12: float, m: float) -> float | None:
    """Angle in radians between the two decision boundaries on the arc from W1 to W2, ``None`` if infeasible.

    ``theta12`` is the angle between the class weights, ``m`` the margin in the loss's own unit: ignored for
    "softmax", a factor for "a-softmax", a cosine for "cosface", radians for "arcface". With ``t1`` the end of
    class 1, the gap is ``theta12 - 2 t1``:

    - softmax ``cos t1 = cos t2``: 0;
    - A-Softmax ``m t1 = theta12 - t1``: ``theta12 (m - 1) / (m + 1)``, vanishing for similar classes;
    - CosFace ``cos t1 - cos(theta12 - t1) = 2 sin(theta12 / 2) sin(gap / 2) = m`` (notebook 00 (0.25)),
      possible if ``m <= 1 - cos theta12``;
    - ArcFace ``t1 + m = theta12 - t1``: ``m``, possible if ``m <= theta12``.
    """
    _check_apart(theta12)
    check_choice(loss, "loss", ("softmax", "a-softmax", "cosface", "arcface"))
    if loss == "softmax":
        return 0.0
    check_number(m, f"m of {loss}", 1.0 if loss == "a-softmax" else 0.0, closed=True)
    if loss == "a-softmax":
        return theta12 * (m - 1.0) / (m + 1.0)
    if loss == "arcface":
        return float(m) if m <= theta12 else None
    return 2.0 * math.asin(0.5 * m / math.sin(0.5 * theta12)) if m <= 1.0 - math.cos(theta12) else None
