"""A-Softmax regions: Properties 2 and 3 on the circle, and their counterexamples off it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from reprolib.theory.geometry import (
    angle_between,
    cross_polytope,
    random_unit,
    regular_polygon,
    regular_simplex,
)
from reprolib.theory.regions import a_softmax_boundary, a_softmax_extents

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def two(degrees: float) -> Tensor:
    t = math.radians(degrees)
    return torch.tensor([[1.0, 0.0], [math.cos(t), math.sin(t)]], dtype=F64)


def great_circle(n: int) -> Tensor:
    return torch.nn.functional.pad(regular_polygon(n), (0, 1))


def inside(x: Tensor, weights: Tensor, own: int, m: float, slack: float) -> Tensor:
    """The definition: the target psi_m(theta_own) is not below any other cosine."""
    angles = angle_between(x[:, None], weights)
    others = angles.clone()
    others[:, own] = math.inf
    return m * angles[:, own] <= others.amin(1) + slack


@pytest.mark.parametrize("dim", [2, 3, 6])
def test_boundary_points_satisfy_the_definition(dim):
    weights = random_unit(5, dim, generator())
    directions = random_unit(300, dim, generator(1))
    m = 2.7
    points = a_softmax_boundary(weights, m, 2, directions)
    torch.testing.assert_close(points.norm(dim=1), torch.ones(300, dtype=F64))
    assert inside(points, weights, 2, m, 1e-9).all()
    # One per cent further along the same geodesic is outside, half way is inside.
    r = angle_between(points, weights[2])[:, None]
    tangent = (points - weights[2] * r.cos()) / r.sin()
    assert not inside(weights[2] * (1.01 * r).cos() + tangent * (1.01 * r).sin(), weights, 2, m, 0.0).any()
    assert inside(weights[2] * (0.5 * r).cos() + tangent * (0.5 * r).sin(), weights, 2, m, 0.0).all()


@pytest.mark.parametrize("degrees", [20, 60, 90, 120, 150, 175, 180])
@pytest.mark.parametrize("m", [1.2, 2.0, 3.0, 2 + math.sqrt(3), 4.0])
def test_binary_extents_in_the_plane_against_a_dense_grid(degrees, m):
    # Positions on the circle from -180 to 180 degrees about W1; W2 lies on the positive side.
    grid = torch.arange(-9000, 9000, dtype=F64) / 50
    circle = torch.stack((grid.deg2rad().cos(), grid.deg2rad().sin()), 1)
    region = grid[inside(circle, two(degrees), 0, m, 1e-12)]
    intra, inter = (
        math.radians(float(region.max() - region.min())),
        math.radians(degrees - 2 * float(region.max())),
    )
    assert a_softmax_extents(two(degrees), m) == pytest.approx((intra, inter), abs=1e-3)


@pytest.mark.parametrize(("degrees", "extent"), [(60, 34.64), (90, 51.96), (120, 69.28)])
def test_property_2_two_plus_root_three_is_exact(degrees, extent):
    m = 2 + math.sqrt(3)
    intra, inter = a_softmax_extents(two(degrees), m)
    assert math.degrees(intra) == pytest.approx(extent, abs=0.005)
    assert intra == pytest.approx(inter, abs=1e-12)
    below = a_softmax_extents(two(degrees), m - 1e-3)
    assert below.intra > below.inter


@pytest.mark.parametrize("k", [3, 4, 10])
def test_property_3_three_is_exact_on_the_circle(k):
    intra, inter = a_softmax_extents(regular_polygon(k), 3.0)
    assert intra == pytest.approx(math.pi / k, abs=1e-12)
    assert inter == pytest.approx(math.pi / k, abs=1e-12)
    # 2D/(m + 1) and (m - 1)D/(m + 1) with the spacing D = 2 pi/k
    assert a_softmax_extents(regular_polygon(k), 4.0) == pytest.approx((0.8 * math.pi / k, 1.2 * math.pi / k))


@pytest.mark.parametrize(
    ("weights", "required"),
    [
        (great_circle(3), 3.46),
        (great_circle(10), 3.64),
        (regular_simplex(4), 3.12),
        (cross_polytope(3), 3.16),
    ],
    ids=["3 on a great circle", "10 on a great circle", "tetrahedron", "octahedron"],
)
def test_property_3_fails_in_three_dimensions(weights, required):
    at_three, below, above = (
        a_softmax_extents(weights, m, generator(), class_index=0, starts=4, steps=20)
        for m in (3.0, required - 0.006, required + 0.006)
    )
    assert at_three.intra > at_three.inter + math.radians(3.0)
    assert below.intra > below.inter
    assert above.intra < above.inter


def test_great_circle_extents_by_symmetry():
    # Off the circle by h at the class's own longitude: cos(m h) = cos h cos D, so the lens is 2 h high.
    k, m = 10, 3.0
    spacing = 2.0 * math.pi / k
    low, high = 0.0, math.pi / m
    for _ in range(80):
        h = 0.5 * (low + high)
        low, high = (h, high) if math.cos(m * h) >= math.cos(h) * math.cos(spacing) else (low, h)
    intra, inter = a_softmax_extents(great_circle(k), m, generator(), class_index=0)
    assert intra == pytest.approx(2.0 * h, abs=1e-6)
    assert inter == pytest.approx(spacing * (m - 1.0) / (m + 1.0), abs=1e-6)


def test_great_circle_limit():
    # For many classes the sphere is flat around a weight and the margin solves m^3 - 3 m^2 - m - 5 = 0.
    m = max(root.real for root in np.roots([1, -3, -1, -5]) if abs(root.imag) < 1e-12)
    spacing = 2.0 * math.pi / 400
    lens = a_softmax_boundary(great_circle(400), m, 0, torch.tensor([[0.0, 0.0, 1.0]], dtype=F64))
    height = 2.0 * float(angle_between(lens[0], great_circle(400)[0]))
    assert height == pytest.approx(spacing * (m - 1.0) / (m + 1.0), rel=1e-3)


@pytest.mark.parametrize(("m", "intra", "inter"), [(3.0, 57.259, 48.190), (4.0, 44.147, 57.828)])
def test_simplex_of_ten_classes(m, intra, inter):
    found = a_softmax_extents(regular_simplex(10), m, generator(), class_index=0)
    # Nearest points lie on the arc between two weights, theta_12 = arccos(-1/9).
    assert found.inter == pytest.approx(math.acos(-1 / 9) * (m - 1) / (m + 1), abs=1e-6)
    assert math.degrees(found.inter) == pytest.approx(inter, abs=1e-3)
    assert math.degrees(found.intra) == pytest.approx(intra, abs=1e-3)


def test_simplex_intra_extent_is_witnessed_by_points():
    # Two opposite tangents that split the nine other classes four against five.
    weights = regular_simplex(10)
    u = weights[1:5].sum(0) - weights[5:].sum(0) * 0.8
    points = a_softmax_boundary(weights, 3.0, 0, torch.stack((u, -u)))
    assert inside(points, weights, 0, 3.0, 1e-9).all()
    assert math.degrees(float(angle_between(points[0], points[1]))) > 57.0


def test_property_2_survives_the_third_dimension():
    weights = torch.nn.functional.pad(two(90), (0, 1))
    intra, inter = a_softmax_extents(weights, 2 + math.sqrt(3), generator())
    assert intra == pytest.approx(inter, abs=1e-6)


def test_all_classes_are_searched_unless_one_is_named():
    # The third weight is far from the others, so its region is the widest.
    weights = torch.nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0.9, 0.3, 0], [-1.0, 0, 0.2]], dtype=F64))
    everything = a_softmax_extents(weights, 3.0, generator(), starts=4, steps=20)
    alone = [a_softmax_extents(weights, 3.0, generator(), class_index=k, starts=4, steps=20) for k in range(3)]
    assert everything.intra == pytest.approx(max(e.intra for e in alone), abs=1e-4)
    assert everything.inter == pytest.approx(min(e.inter for e in alone), abs=1e-4)
    assert alone[2].intra > alone[0].intra + 0.1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: a_softmax_extents(regular_polygon(3), 1.0), "m must"),
        (lambda: a_softmax_extents(regular_simplex(4), 3.0), "generator"),
        (lambda: a_softmax_extents(regular_polygon(3), 3.0, class_index=3), "class_index"),
        (lambda: a_softmax_extents(torch.tensor([[1.0], [-1.0]], dtype=F64), 3.0), "columns"),
        (lambda: a_softmax_boundary(regular_polygon(3), 0.5, 0, regular_polygon(3)), "m must"),
        (lambda: a_softmax_boundary(regular_polygon(3), 3.0, -1, regular_polygon(3)), "class_index"),
        (lambda: a_softmax_boundary(regular_polygon(3), 3.0, 0, regular_polygon(3)), "parallel"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
