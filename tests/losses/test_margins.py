"""Target functions against the papers' definitions by angle, in float64, over [0, pi] with the knots."""

from __future__ import annotations

import math

import pytest
import torch

from reprolib.losses.margins import (
    GUARDS,
    AdditiveAngular,
    AdditiveCosine,
    CombinedAngular,
    MultiplicativeAngular,
    NoMargin,
    StraightThrough,
)

ANGLES = torch.linspace(0.0, math.pi, 2001, dtype=torch.float64)
ALL = [
    NoMargin(),
    *(MultiplicativeAngular(m) for m in (1, 2, 3, 4, 5)),
    AdditiveCosine(0.35),
    *(AdditiveAngular(0.5, guard) for guard in GUARDS),
    CombinedAngular(1.0, 0.3, 0.2),
    CombinedAngular(0.9, 0.4, 0.15),
    CombinedAngular(1.35, 0.0, 0.0),
    StraightThrough(AdditiveAngular(0.5)),
]


def psi(theta: float, m: int) -> float:
    # L-Softmax eq. 6: (-1)^k cos(m theta) - 2k on [k pi/m, (k+1) pi/m]
    k = min(math.floor(theta * m / math.pi), m - 1)
    return (-1) ** k * math.cos(m * theta) - 2 * k


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_psi_is_equation_6(m):
    knots = torch.tensor([k * math.pi / m for k in range(m + 1)], dtype=torch.float64)
    angles = torch.cat([ANGLES, knots, torch.tensor([math.pi / 2], dtype=torch.float64)])
    value, _ = MultiplicativeAngular(m).value_and_slope(angles.cos())
    expected = torch.tensor([psi(float(t), m) for t in angles], dtype=torch.float64)
    assert (value - expected).abs().max() < 1e-11


@pytest.mark.parametrize("m", [2, 3, 4, 5])
def test_psi_slope_is_m_sine_ratio_and_flat_at_the_knots(m):
    angles = ANGLES[1:-1]
    _, slope = MultiplicativeAngular(m).value_and_slope(angles.cos())
    expected = m * (m * angles).sin().abs() / angles.sin()
    assert ((slope - expected).abs() / expected.clamp_min(1.0)).max() < 1e-9
    knots = torch.tensor([k * math.pi / m for k in range(1, m)], dtype=torch.float64)
    assert MultiplicativeAngular(m).value_and_slope(knots.cos())[1].abs().max() < 1e-12 * m * m
    ends = MultiplicativeAngular(m).value_and_slope(torch.tensor([1.0, -1.0], dtype=torch.float64))[1]
    assert torch.equal(ends, torch.full((2,), float(m * m), dtype=torch.float64))


def guarded(theta: float, m: float, guard: str) -> float:
    if guard == "easy":
        return math.cos(theta + m) if math.cos(theta) > 0 else math.cos(theta)
    if guard == "none" or theta <= math.pi - m:
        return math.cos(theta + m)
    return {"hard": math.cos(theta) - m * math.sin(m), "clamp": -1.0, "mirror": -2.0 - math.cos(theta + m)}[guard]


@pytest.mark.parametrize("guard", GUARDS)
@pytest.mark.parametrize("m", [0.1, 0.5, 1.0])
def test_additive_angular_by_angle(guard, m):
    # stay off the jump itself, where the last bit of the cosine decides
    jump = math.pi / 2 if guard == "easy" else math.pi - m
    angles = ANGLES[(ANGLES - jump).abs() > 1e-6]
    value, _ = AdditiveAngular(m, guard).value_and_slope(angles.cos())
    expected = torch.tensor([guarded(float(t), m, guard) for t in angles], dtype=torch.float64)
    assert (value - expected).abs().max() < 1e-12


@pytest.mark.parametrize("margin", ALL[:-1], ids=repr)
def test_slope_is_the_derivative(margin):
    # central differences in the cosine, away from kinks and jumps
    cosine = torch.linspace(-0.98, 0.98, 400, dtype=torch.float64)
    knots = [math.cos(k * math.pi / m) for m in (2, 3, 4, 5) for k in range(1, m)] + [-math.cos(0.5), 0.0]
    for knot in knots:
        cosine = cosine[(cosine - knot).abs() > 1e-3]
    step = 1e-6
    up, down = margin.value_and_slope(cosine + step)[0], margin.value_and_slope(cosine - step)[0]
    _, slope = margin.value_and_slope(cosine)
    assert ((up - down) / (2 * step) - slope).abs().max() < 1e-6


@pytest.mark.parametrize("m1, m2, m3", [(1.0, 0.3, 0.2), (0.9, 0.4, 0.15), (1.35, 0.0, 0.0), (4.0, 0.0, 0.0)])
def test_combined_by_angle(m1, m2, m3):
    value, slope = CombinedAngular(m1, m2, m3).value_and_slope(ANGLES.cos())
    # arccos near 0 and pi turns an ulp of the cosine into 1e-8 rad
    assert (value - ((m1 * ANGLES + m2).cos() - m3)).abs().max() < 1e-7
    inner = ANGLES[20:-20]
    assert (slope[20:-20] - m1 * (m1 * inner + m2).sin() / inner.sin()).abs().max() < 1e-9


def test_combined_contains_the_other_families():
    cosine = torch.linspace(-1, 1, 501, dtype=torch.float64)
    pairs = [
        (CombinedAngular(1, 0.5, 0), AdditiveAngular(0.5)),
        (CombinedAngular(1, 0, 0.35), AdditiveCosine(0.35)),
        (CombinedAngular(1, 0, 0), NoMargin()),
    ]
    for combined, single in pairs:
        assert (combined.value_and_slope(cosine)[0] - single.value_and_slope(cosine)[0]).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("margin", ALL, ids=repr)
def test_finite_at_the_ends_in_every_dtype(margin, dtype):
    cosine = torch.tensor([1.0, -1.0, 1.0 + 1e-3, -1.0 - 1e-3, 0.0, 1.0 - 1e-7], dtype=dtype)
    value, slope = margin.value_and_slope(cosine)
    assert value.dtype == slope.dtype == dtype
    assert bool(torch.isfinite(value).all()) and bool(torch.isfinite(slope).all())


def test_float32_matches_float64_along_the_sweep():
    for margin in ALL:
        exact, _ = margin.value_and_slope(ANGLES.float().cos().double())
        single, _ = margin.value_and_slope(ANGLES.float().cos())
        assert (exact - single.double()).abs().max() < 3e-4, margin


@pytest.mark.parametrize("lam", [0.0, 5.0, 1000.0])
def test_strength_is_the_annealed_logit(lam):
    # L-Softmax: f = (lambda cos + psi) / (1 + lambda)
    cosine = torch.linspace(-1, 1, 201, dtype=torch.float64)
    value, slope = MultiplicativeAngular(4).value_and_slope(cosine, 1.0 / (1.0 + lam))
    target, target_slope = MultiplicativeAngular(4).value_and_slope(cosine)
    assert ((lam * cosine + target) / (1 + lam) - value).abs().max() < 1e-12
    assert ((lam + target_slope) / (1 + lam) - slope).abs().max() < 1e-12


def test_strength_scales_additive_margins():
    cosine = torch.linspace(-0.9, 0.9, 50, dtype=torch.float64)
    assert torch.allclose(
        AdditiveAngular(0.5).value_and_slope(cosine, 0.4)[0], AdditiveAngular(0.2).value_and_slope(cosine)[0]
    )
    assert torch.allclose(AdditiveCosine(0.35).value_and_slope(cosine, 0.0)[0], NoMargin().value_and_slope(cosine)[0])


def test_straight_through_has_the_value_and_slope_one():
    cosine = torch.linspace(-0.9, 0.9, 9, dtype=torch.float64, requires_grad=True)
    value, slope = StraightThrough(AdditiveAngular(0.5)).value_and_slope(cosine)
    assert torch.allclose(value, AdditiveAngular(0.5).value_and_slope(cosine)[0])
    (grad,) = torch.autograd.grad(value.sum(), cosine)
    assert torch.equal(grad, torch.ones_like(cosine)) and torch.equal(slope, torch.ones_like(cosine))


@pytest.mark.parametrize(
    "build",
    [
        lambda: MultiplicativeAngular(0),
        lambda: MultiplicativeAngular(2.5),
        lambda: MultiplicativeAngular(True),
        lambda: AdditiveCosine(-0.1),
        lambda: AdditiveCosine(float("nan")),
        lambda: AdditiveAngular(math.pi),
        lambda: AdditiveAngular(0.5, "soft"),
        lambda: CombinedAngular(0.0),
        lambda: CombinedAngular(1.0, -0.1),
        lambda: CombinedAngular(1.0, 0.0, 2.0),
    ],
)
def test_wrong_margins_are_refused(build):
    with pytest.raises(ValueError, match=r"must be"):
        build()


def test_straight_through_wraps_margins_only():
    with pytest.raises(TypeError, match="wraps a Margin"):
        StraightThrough(0.5)
