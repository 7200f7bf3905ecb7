"""Class regions of A-Softmax on the sphere: how wide a class may be and how far the next one is.

Liu et al. 2017 (SphereFace), Properties 1 to 3. All angles are radians, all tensors float64.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from reprolib._checks import check_count, check_number
from reprolib.theory.geometry import FLOAT, angle_between, unit_directions
from reprolib.theory.numerics import minimise_on_sphere, single_thread


class Extents(NamedTuple):
    """Largest angle inside a class region and smallest angle between two of them (radians)."""

    intra: float
    inter: float


def _radii(weights: Tensor, m: float, own: Tensor, towards: Tensor, halvings: int) -> Tensor:
    """Angle at which ``m theta_own = theta_j`` along tangents, per class j; (..., n), infinite for j = own.

    ``own`` (...) are class indices, ``towards`` (..., d) unit tangents at their weights. Along a geodesic
    ``m theta_own - theta_j`` increases (theta_j falls at most at rate 1 < m), so the root is unique.
    """
    alpha = (weights @ weights.T)[own]
    beta = towards @ weights.T
    with torch.no_grad():
        low, high = torch.zeros_like(beta), torch.full_like(beta, math.pi / m)
        for _ in range(halvings):
            r = 0.5 * (low + high)
            inside = (m * r).cos() >= alpha * r.cos() + beta * r.sin()
            low, high = torch.where(inside, r, low), torch.where(inside, high, r)
        # Ten halvings bracket the root to 1e-3; three Newton steps inside the bracket finish it, except where
        # the slope vanishes (the region touches the antipode of another weight): there halving has to do it.
        for _ in range(3):
            slope = -m * (m * r).sin() + alpha * r.sin() - beta * r.cos()
            slope = torch.where(slope.abs() < 1e-9, -1e-9, slope)
            value = (m * r).cos() - alpha * r.cos() - beta * r.sin()
            r = (r - value / slope).clamp(low, high)
    # The added term is zero and carries the implicit derivative dr/dbeta = sin r / slope.
    root = r + (beta - beta.detach()) * r.sin() / slope
    return root.masked_fill(torch.nn.functional.one_hot(own, len(weights)).bool(), math.inf)


def a_softmax_boundary(weights: Tensor, m: float, class_index: int, directions: Tensor) -> Tensor:
    """Boundary points of the A-Softmax region ``{x : m theta_i(x) <= theta_j(x) for all j}``; (k, d).

    ``directions`` (k, d) are projected on the tangent space at ``weights[class_index]``; each point is the
    end of the region along the geodesic that leaves the weight that way (regions are star-shaped). Real m >
    1.
    """
    unit, towards = unit_directions(weights, "weights"), unit_directions(directions, "directions", 1)
    check_number(m, "m", 1.0)
    check_count(class_index, "class_index", 0, len(unit) - 1)
    if ((towards @ unit[class_index]).abs() > 1.0 - 1e-14).any():
        raise ValueError("directions must not be parallel to the class weight")
    return _points(unit, m, torch.full((len(towards),), class_index), towards, math.inf)


def _points(weights: Tensor, m: float, own: Tensor, free: Tensor, power: float) -> Tensor:
    centre = weights[own]
    tangent = free - (free * centre).sum(-1, keepdim=True) * centre
    tangent = tangent / tangent.norm(dim=-1, keepdim=True)
    radii = _radii(weights, m, own, tangent, 50 if math.isinf(power) else 10)
    # A finite power gives a smooth minimum from below: the point stays inside the region.
    radius = radii.amin(-1) if math.isinf(power) else -(-power * radii).logsumexp(-1) / power
    return centre * radius.cos().unsqueeze(-1) + tangent * radius.sin().unsqueeze(-1)


@single_thread()
def a_softmax_extents(
    weights: Tensor,
    m: float,
    generator: torch.Generator | None = None,
    *,
    class_index: int | None = None,
    starts: int = 12,
    steps: int = 60,
) -> Extents:
    """Largest intra-class and smallest inter-class angle of the A-Softmax regions (Property 1).

    ``weights`` (n, d) are normalised. In two dimensions the regions are arcs and the result is exact. From
    three dimensions on, pairs of boundary points are optimised from ``starts`` random pairs (``generator``
    needed): the result is made of actual points, so intra is a lower and inter an upper estimate, and
    intra > inter is proof. ``class_index`` restricts the work to one class of an arrangement in which all
    classes are alike.
    """
    unit = unit_directions(weights, "weights")
    n, dim = unit.shape
    check_number(m, "m", 1.0)
    check_count(dim, "the columns of weights", 2)
    classes, pairs = torch.arange(n), torch.combinations(torch.arange(n))
    if class_index is not None:
        check_count(class_index, "class_index", 0, n - 1)
        classes, pairs = classes[class_index : class_index + 1], pairs[(pairs == class_index).any(1)]

    if dim == 2:
        turn = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=FLOAT)
        both = torch.arange(n).repeat(2)
        ends = _points(unit, m, both, torch.cat((unit @ turn, -unit @ turn)), math.inf).reshape(2, n, 2)
        # The ends lie on opposite sides of the weight; an arc longer than pi holds two antipodal points.
        intra = angle_between(ends, unit).sum(0)[classes].max().clamp(max=math.pi)
        inter = angle_between(ends[:, None, pairs[:, 0]], ends[None, :, pairs[:, 1]]).min()
        return Extents(float(intra), float(inter))

    if generator is None:
        raise ValueError(f"generator must be given for weights in {dim} dimensions")

    def extreme(own: Tensor, free: Tensor, sign: float) -> Tensor:
        """Angles between pairs of boundary points after driving ``sign * cosine`` down for all together."""

        def energy(unit_free: Tensor, power: float) -> Tensor:
            points = _points(unit, m, own, unit_free, power)
            return sign * (points[0] * points[1]).sum()

        for power in (30.0, 300.0, 3e3, 3e4):
            free = minimise_on_sphere(partial(energy, power=power), free, steps)
        points = _points(unit, m, own, free, math.inf)
        return angle_between(points[0], points[1])

    # Intra: the widest of many random pairs of one class are the starts.
    own = classes.repeat_interleave(40 * starts)
    free = torch.randn(2, len(own), dim, generator=generator, dtype=FLOAT)
    with torch.no_grad():
        points = _points(unit, m, own, free, math.inf)
        width = angle_between(points[0], points[1]).reshape(len(classes), -1)
    chosen = width.topk(starts, dim=1).indices + torch.arange(len(classes))[:, None] * width.shape[1]
    own, free = own[chosen.reshape(-1)], free[:, chosen.reshape(-1)]
    intra = extreme(torch.stack((own, own)), free, 1.0).max()

    # Inter: from the geodesic between the two weights, the first start exactly on it.
    many = pairs.repeat_interleave(4, dim=0).T
    free = unit[many.flip(0)] + 0.3 * torch.randn(2, many.shape[1], dim, generator=generator, dtype=FLOAT)
    free[:, ::4] = unit[many.flip(0)[:, ::4]] + 1e-9
    inter = extreme(many, free, -1.0).min()
    return Extents(float(intra), float(inter))
