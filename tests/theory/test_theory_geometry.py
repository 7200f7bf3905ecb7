"""Arrangements against their definitions and against published optima; bounds against arrangements."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from reprolib.theory.geometry import (
    angle_between,
    angular_gap,
    boundary_angle,
    boundary_gap,
    cap_fraction,
    cross_polytope,
    max_cosine,
    minimise_softmax_floor,
    random_unit,
    rankin_bound,
    regular_polygon,
    regular_simplex,
    softmax_floor,
)

F64 = torch.float64


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def icosahedron() -> Tensor:
    golden = 0.5 * (1.0 + math.sqrt(5.0))
    corners = torch.tensor([[0.0, a, b * golden] for a in (1, -1) for b in (1, -1)], dtype=F64)
    corners = torch.cat([corners.roll(k, dims=1) for k in range(3)])
    return corners / corners.norm(dim=1, keepdim=True)


def half_cube() -> Tensor:
    """Sixteen points of the cube in five dimensions with an even number of minus signs: the Clebsch graph."""
    corners = [v for v in itertools.product((1.0, -1.0), repeat=5) if math.prod(v) > 0]
    return torch.tensor(corners, dtype=F64) / math.sqrt(5.0)


@pytest.mark.parametrize(("n", "dim"), [(2, None), (2, 1), (3, 2), (5, 4), (5, 9), (40, None)])
def test_simplex(n, dim):
    w = regular_simplex(n, dim)
    assert w.shape == (n, dim or n - 1) and w.dtype == F64
    expected = torch.full((n, n), -1.0 / (n - 1), dtype=F64).fill_diagonal_(1.0)
    torch.testing.assert_close(w @ w.T, expected, atol=1e-14, rtol=0)
    torch.testing.assert_close(w.sum(0), torch.zeros(w.shape[1], dtype=F64), atol=1e-13, rtol=0)


def test_cross_polytope():
    w = cross_polytope(3)
    assert w.shape == (6, 3)
    gram = w @ w.T
    assert (gram.diagonal() == 1).all()
    assert sorted(gram[0].tolist()) == [-1.0, 0.0, 0.0, 0.0, 0.0, 1.0]
    assert cross_polytope(3, 3).tolist() == [[1, 0, 0], [-1, 0, 0], [0, 1, 0]]


def test_polygon():
    w = regular_polygon(7)
    torch.testing.assert_close(
        angle_between(w, w.roll(1, 0)), torch.full((7,), 2 * math.pi / 7, dtype=F64), atol=1e-14, rtol=0
    )


def test_random_unit_is_seeded_and_unit():
    w = random_unit(50, 3, generator())
    torch.testing.assert_close(w.norm(dim=1), torch.ones(50, dtype=F64))
    assert torch.equal(w, random_unit(50, 3, generator()))
    assert not torch.equal(w, random_unit(50, 3, generator(1)))


@pytest.mark.parametrize("angle", [0.0, 1e-12, 1e-8, 1e-3, 1.0, math.pi / 2, math.pi - 1e-9, math.pi])
def test_angle_between_is_accurate_where_acos_is_not(angle):
    a = torch.tensor([3.0, 0.0], dtype=F64)
    b = 0.5 * torch.tensor([math.cos(angle), math.sin(angle)], dtype=F64)
    assert float(angle_between(a, b)) == pytest.approx(angle, abs=2e-16, rel=1e-14)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: regular_simplex(5, 3), ValueError),
        (lambda: regular_simplex(1), ValueError),
        (lambda: regular_simplex(3.0), TypeError),
        (lambda: cross_polytope(2, 5), ValueError),
        (lambda: cross_polytope(0), ValueError),
        (lambda: regular_polygon(True), TypeError),
        (lambda: random_unit(0, 3, generator()), ValueError),
        (lambda: max_cosine(torch.zeros(2, 2, dtype=F64)), ValueError),
        (lambda: max_cosine(torch.full((2, 2), math.nan, dtype=F64)), ValueError),
        (lambda: max_cosine(torch.ones(2, 2)), TypeError),
        (lambda: max_cosine(torch.ones(1, 2, dtype=F64)), ValueError),
        (lambda: rankin_bound(1, 2), ValueError),
        (lambda: cap_fraction(4.0, 3), ValueError),
        (lambda: cap_fraction(1.0, 1), ValueError),
        (lambda: softmax_floor(regular_polygon(3), 0.0), ValueError),
        (lambda: minimise_softmax_floor(5, 2, -1.0, generator()), ValueError),
        (lambda: angular_gap("centre", 1.0, 0.1), ValueError),
        (lambda: angular_gap("cosface", 0.0, 0.1), ValueError),
        (lambda: angular_gap("cosface", 1.0, -0.1), ValueError),
        (lambda: angular_gap("a-softmax", 1.0, 0.5), ValueError),
        (lambda: angular_gap("arcface", 1.0, math.nan), ValueError),
        (lambda: boundary_angle(math.cos, 4.0), ValueError),
    ],
)
def test_bad_arguments(call, error):
    with pytest.raises(error):
        call()


def test_max_cosine_ignores_length():
    w = torch.tensor([[5.0, 0.0], [3.0, 4.0], [-1.0, 0.0]], dtype=F64)
    assert max_cosine(w) == pytest.approx(0.6, abs=1e-15)


@pytest.mark.parametrize(
    ("vectors", "exact"),
    [
        (regular_simplex(6, 8), True),
        (cross_polytope(5), True),
        (cross_polytope(5, 8), True),
        (regular_polygon(11), True),
        (icosahedron(), True),
        (half_cube(), True),
        (random_unit(9, 4, generator()), False),
    ],
    ids=["simplex", "cross-polytope", "part of it", "polygon", "icosahedron", "Clebsch", "nine"],
)
def test_rankin_bound_is_below_every_arrangement_and_exact_where_it_says_so(vectors, exact):
    n, dim = vectors.shape
    slack = max_cosine(vectors) - rankin_bound(n, dim)
    assert slack > -1e-12
    assert (slack < 1e-6) == exact


def test_rankin_bound_cases():
    assert rankin_bound(5, 4) == -0.25
    assert rankin_bound(6, 4) == rankin_bound(8, 4) == 0.0
    assert 0.0 < rankin_bound(9, 4) < rankin_bound(20, 4) < 1.0
    assert rankin_bound(3, 1) == 1.0
    assert rankin_bound(10575, 512) == pytest.approx(0.0245946, abs=1e-6)


def test_softmax_floor_by_hand():
    # Two antipodal weights: log(1 + e^(-2 s)).
    w = torch.tensor([[2.0, 0.0], [-1.0, 0.0]], dtype=F64)
    assert float(softmax_floor(w, 3.0)) == pytest.approx(math.log1p(math.exp(-6.0)), abs=1e-15)


@pytest.mark.parametrize("scale", [1.0, 10.0, 30.0])
def test_softmax_floor_of_ten_classes_in_the_plane_is_the_polygon(scale):
    _, loss = minimise_softmax_floor(10, 2, scale, generator(), restarts=2)
    assert loss == pytest.approx(float(softmax_floor(regular_polygon(10), scale)), rel=1e-9)


def test_softmax_floor_with_room_is_the_simplex_even_at_scale_64():
    w, loss = minimise_softmax_floor(6, 8, 64.0, generator(), restarts=1)
    assert loss == pytest.approx(math.log1p(5 * math.exp(-64 * 1.2)), rel=1e-9)
    assert max_cosine(w) == pytest.approx(-0.2, abs=1e-6)


@pytest.mark.parametrize(("dim", "angle"), [(2, 0.5), (3, 0.5), (3, 2.0), (7, 1.0), (64, 1.4)])
def test_cap_fraction_against_integration(dim, angle):
    x = (torch.arange(200000, dtype=F64) + 0.5) / 200000 * math.pi
    density = x.sin() ** (dim - 2)
    expected = float(density[x < angle].sum() / density.sum())
    assert cap_fraction(angle, dim) == pytest.approx(expected, abs=2e-5)


def test_cap_fraction_keeps_tiny_probabilities():
    assert cap_fraction(0.5, 2) == pytest.approx(0.5 / math.pi, rel=1e-12)
    # In three dimensions the cap has the fraction (1 - cos m) / 2.
    assert cap_fraction(0.5, 3) == pytest.approx(0.5 * (1.0 - math.cos(0.5)), rel=1e-12)
    assert cap_fraction(0.5, 512) == pytest.approx(1.4173e-165, rel=1e-3)
    assert cap_fraction(math.pi / 2, 512) == pytest.approx(0.5, abs=1e-12)
    assert cap_fraction(math.pi, 64) == 1.0


@pytest.mark.parametrize(
    ("degrees", "cosface", "arcface", "sphereface"),
    [
        (20, None, None, 12.0),
        (40, None, 28.65, 24.0),
        (60, 40.97, 28.65, 36.0),
        (90, 28.66, 28.65, 54.0),
        (120, 23.32, 28.65, 72.0),
        (180, 20.16, 28.65, 108.0),
    ],
)
def test_gaps_of_the_binary_case(degrees, cosface, arcface, sphereface):
    theta12 = math.radians(degrees)
    for loss, m, expected in (
        ("cosface", 0.35, cosface),
        ("arcface", 0.5, arcface),
        ("a-softmax", 4, sphereface),
    ):
        gap = angular_gap(loss, theta12, m)
        if expected is None:
            assert gap is None
        else:
            assert math.degrees(gap) == pytest.approx(expected, abs=0.005)
    assert angular_gap("softmax", theta12, 0.7) == 0.0


@pytest.mark.parametrize("degrees", [35, 50, 90, 130, 179])
def test_gap_formulas_against_the_boundary_equation(degrees):
    theta12 = math.radians(degrees)
    targets = {
        ("cosface", 0.2): lambda t: math.cos(t) - 0.2,
        ("arcface", 0.5): lambda t: math.cos(t + 0.5),
        ("a-softmax", 3): lambda t: math.cos(3 * t) if t <= math.pi / 3 else -1.0,
        ("softmax", 0.0): math.cos,
    }
    for (loss, m), target in targets.items():
        t1 = boundary_angle(target, theta12)
        gap = angular_gap(loss, theta12, m)
        if gap is None:
            assert t1 is None and boundary_gap(target, theta12) is None
        else:
            assert boundary_gap(target, theta12) == theta12 - 2.0 * t1
            assert theta12 - 2.0 * t1 == pytest.approx(gap, abs=1e-9)


def test_gap_is_infeasible_below_the_smallest_angle():
    assert math.degrees(math.acos(1 - 0.35)) == pytest.approx(49.46, abs=0.005)
    just = math.acos(1 - 0.35)
    assert angular_gap("cosface", just + 1e-6, 0.35) == pytest.approx(just, abs=1e-3)
    assert angular_gap("cosface", just - 1e-6, 0.35) is None
    assert angular_gap("arcface", 0.5, 0.5) == 0.5
    assert angular_gap("arcface", 0.4999, 0.5) is None
