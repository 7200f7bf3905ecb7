"""Quoted values of the bounds, their defining equations, and attacks on the statements they make."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from reprolib.theory.bounds import (
    alpha_low,
    cross_polytope_probability,
    normface_loss_bound,
    polygon_probability,
    polygon_scale,
    simplex_scale,
)
from reprolib.theory.checks import check_bound, check_counterexample
from reprolib.theory.geometry import (
    cross_polytope,
    regular_polygon,
    regular_simplex,
    softmax_floor,
)

F64 = torch.float64
NAMES = {"id": "99.test", "statement": "a bound", "source": "a test"}


def own_probability(weights: Tensor, scale: float) -> float:
    """Softmax probability of class 0 for a feature on its own unit weight."""
    logits = scale * (weights @ weights[0])
    return float(logits.softmax(0)[0])


@pytest.mark.parametrize(
    ("C", "value"),
    [(10, 4.277), (100, 6.782), (1000, 9.103), (10_000, 11.407), (13_403, 11.700), (58_207, 13.169)],
)
def test_alpha_low_values(C, value):
    assert alpha_low(C, 0.9) == pytest.approx(value, abs=6e-4)


def test_alpha_low_largest_quoted_value():
    assert alpha_low(100_000, 0.9) == pytest.approx(13.710, abs=5e-4)
    assert alpha_low(10, 0.99) == pytest.approx(6.67, abs=5e-3)


def test_alpha_low_gives_slightly_less_than_p():
    assert cross_polytope_probability(10, alpha_low(10, 0.9)) == pytest.approx(0.89984, abs=5e-6)
    assert cross_polytope_probability(3, alpha_low(3, 0.9)) == pytest.approx(0.8901, abs=5e-5)


@pytest.mark.parametrize("dim", [2, 5, 50])
def test_cross_polytope_probability_on_the_arrangement(dim):
    assert cross_polytope_probability(2 * dim, 4.2) == pytest.approx(
        own_probability(cross_polytope(dim), 4.2), abs=1e-14
    )


def test_simplex_beats_alpha_low():
    assert simplex_scale(10, 0.9) == pytest.approx(3.955, abs=5e-4)
    assert simplex_scale(10, 0.99) == pytest.approx(6.11, abs=5e-3)
    assert simplex_scale(3, 0.9) == pytest.approx(1.927, abs=5e-4)
    assert alpha_low(3, 0.9) == pytest.approx(2.197, abs=5e-4)
    for C in (3, 10, 100, 1000, 100_000):
        assert simplex_scale(C, 0.9) < alpha_low(C, 0.9)
    assert alpha_low(1000, 0.9) - simplex_scale(1000, 0.9) < 0.01


@pytest.mark.parametrize("C", [2, 3, 10, 30])
def test_simplex_scale_on_the_simplex(C):
    s = simplex_scale(C, 0.9)
    assert own_probability(regular_simplex(C), s) == pytest.approx(0.9, abs=1e-13)
    # NormFace Prop. 2 solved for the scale: the loss is -log p.
    assert normface_loss_bound(C, s) == pytest.approx(-math.log(0.9), abs=1e-13)


@pytest.mark.parametrize(("p", "value"), [(0.9, 15.14), (0.99, 27.69)])
def test_polygon_scale(p, value):
    s = polygon_scale(10, p)
    assert s == pytest.approx(value, abs=5e-3)
    assert polygon_probability(10, s) == pytest.approx(p, abs=1e-14)
    assert own_probability(regular_polygon(10), s) == pytest.approx(p, abs=1e-13)
    assert polygon_scale(3, p) == pytest.approx(simplex_scale(3, p), rel=1e-12)


def test_polygon_loss_against_the_bound():
    assert float(softmax_floor(regular_polygon(10), 10.0)) == pytest.approx(0.2610, abs=5e-5)
    assert normface_loss_bound(10, 10.0) == pytest.approx(1.3e-4, abs=5e-6)
    assert float(softmax_floor(regular_polygon(10), 30.0)) == pytest.approx(6.5e-3, abs=5e-5)
    assert normface_loss_bound(10, 30.0) == pytest.approx(3.0e-14, rel=5e-3)


def test_normface_bound_values():
    assert normface_loss_bound(10_575, 1.0) == pytest.approx(8.26632, abs=5e-6)
    # Orthogonal weights are almost as good, so the quoted tightness says little.
    assert math.log1p(10_574 * math.exp(-1.0)) == pytest.approx(8.26641, abs=5e-6)
    assert normface_loss_bound(10, 1.0) == pytest.approx(1.377, abs=5e-4)
    # One class only, all other weights opposite: below the bound.
    assert math.log1p(9 * math.exp(-2.0)) == pytest.approx(0.797, abs=5e-4)


@pytest.mark.parametrize(("n", "dim", "scale"), [(3, 2, 1.0), (6, 8, 4.0), (10, 9, 10.0)])
def test_normface_bound_survives_the_attack_with_free_features(n, dim, scale):
    labels = torch.arange(n)
    simplex = regular_simplex(n, dim)

    def sample(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return (
            torch.randn(n, dim, generator=generator, dtype=F64),
            torch.randn(n, dim, generator=generator, dtype=F64),
        )

    check_bound(
        lambda w, f: cross_entropy(scale * normalize(f) @ normalize(w).T, labels),
        normface_loss_bound(n, scale),
        sample,
        extremal=(simplex, simplex),
        draws=200,
        **NAMES,
    )


def test_normface_bound_needs_balance():
    w = torch.cat((torch.ones(1, 3, dtype=F64), -torch.ones(9, 3, dtype=F64)))
    loss = cross_entropy(normalize(w[:1]) @ normalize(w).T, torch.zeros(1, dtype=torch.int64))
    check_counterexample(normface_loss_bound(10, 1.0), float(loss), **NAMES)
    with pytest.raises(AssertionError):
        check_bound(
            lambda w: cross_entropy(normalize(w[:1]) @ normalize(w).T, torch.zeros(1, dtype=torch.int64)),
            normface_loss_bound(10, 1.0),
            lambda g: torch.randn(10, 3, generator=g, dtype=F64),
            draws=50,
            **NAMES,
        )


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.5, math.nan])
@pytest.mark.parametrize(
    "bound",
    [
        alpha_low,
        simplex_scale,
        polygon_scale,
    ],
)
def test_probabilities_are_validated(bound, p):
    with pytest.raises(ValueError, match="probability"):
        bound(10, p)


@pytest.mark.parametrize(
    "call",
    [
        lambda C: cross_polytope_probability(C, 1.0),
        lambda C: simplex_scale(C, 0.9),
        lambda C: polygon_scale(C, 0.9),
        lambda C: polygon_probability(C, 1.0),
        lambda C: normface_loss_bound(C, 1.0),
    ],
)
def test_the_number_of_classes_is_validated(call):
    with pytest.raises(ValueError, match="classes"):
        call(1)
    with pytest.raises(TypeError, match="classes"):
        call(10.0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: alpha_low(2, 0.9),
        lambda: polygon_scale(10, 0.05),
        lambda: cross_polytope_probability(10, 0.0),
        lambda: polygon_probability(10, math.inf),
        lambda: normface_loss_bound(10, -1.0),
    ],
)
def test_other_arguments_are_validated(call):
    with pytest.raises(ValueError):
        call()
