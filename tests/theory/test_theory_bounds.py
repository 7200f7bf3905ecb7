"""Quoted values of the bounds, their defining equations, and attacks on the statements they make."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from reprolib.theory.bounds import (
    agent_distortion,
    agent_distortion_bound,
    alpha_low,
    bounded_logit_probability,
    cosface_margin_bound,
    cosface_scale_bound,
    cross_polytope_alpha,
    cross_polytope_probability,
    margin_aware_scale_bound,
    normface_loss_bound,
    polygon_probability,
    polygon_scale,
    simplex_scale,
)
from reprolib.theory.checks import check_bound, check_counterexample
from reprolib.theory.geometry import (
    cross_polytope,
    max_cosine,
    regular_polygon,
    regular_simplex,
    softmax_floor,
    tammes,
)

F64 = torch.float64
NAMES = {"id": "99.test", "statement": "a bound", "source": "a test"}


def own_probability(weights: Tensor, scale: float, margin: float = 0.0) -> float:
    """Softmax probability of class 0 for a feature on its own unit weight."""
    logits = scale * (weights @ weights[0])
    logits[0] -= scale * margin
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


@pytest.mark.parametrize("C", [2, 3, 10, 1000, 100_000])
@pytest.mark.parametrize("p", [0.51, 0.9, 0.99, 1 - 1e-9])
def test_cross_polytope_alpha_is_the_exact_inverse(C, p):
    alpha = cross_polytope_alpha(C, p)
    assert cross_polytope_probability(C, alpha) == pytest.approx(p, rel=1e-13)
    if C > 2 and p < 1 - 1e-6:
        assert alpha > alpha_low(C, p)


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
    assert cosface_scale_bound(C, 0.9) == s


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


def test_bounded_logit_probability():
    assert bounded_logit_probability(10) == pytest.approx(0.4509, abs=5e-5)
    assert bounded_logit_probability(1000) == pytest.approx(0.00734, abs=5e-6)
    logits = torch.tensor([2.0] + [-2.0] * 4, dtype=F64)
    assert bounded_logit_probability(5, 2.0) == pytest.approx(float(logits.softmax(0)[0]), abs=1e-15)


@pytest.mark.parametrize(("P", "plain", "aware"), [(0.9, 11.46, 17.63), (0.99, 13.86, 21.32)])
def test_scale_bound_with_and_without_margin(P, plain, aware):
    assert cosface_scale_bound(10_575, P) == pytest.approx(plain, abs=5e-3)
    assert margin_aware_scale_bound(10_575, P, 0.35) == pytest.approx(aware, abs=5e-3)
    assert margin_aware_scale_bound(10_575, P, 0.0) == pytest.approx(cosface_scale_bound(10_575, P))


@pytest.mark.parametrize(("C", "m"), [(2, 1.5), (10, 0.35), (50, 0.9)])
def test_margin_aware_scale_on_the_simplex(C, m):
    s = margin_aware_scale_bound(C, 0.9, m)
    assert own_probability(regular_simplex(C), s, m) == pytest.approx(0.9, abs=1e-12)
    # The margin-free bound gives less than it promises as soon as there is a margin.
    assert own_probability(regular_simplex(C), cosface_scale_bound(C, 0.9), m) < 0.9 - 1e-3


def test_margin_aware_scale_bound_survives_the_attack():
    n, m, scale = 6, 0.35, 7.0
    eye = torch.eye(n, dtype=F64)

    def posterior(w: Tensor) -> Tensor:
        unit = normalize(w)
        return (scale * (unit @ unit.T - m * eye)).log_softmax(1).diagonal().mean()

    # The mean log posterior at the centres is at most log P with the scale just at its bound.
    bound = -math.log1p((n - 1) * math.exp(-scale * (n / (n - 1) - m)))
    assert margin_aware_scale_bound(n, math.exp(bound), m) == pytest.approx(scale, rel=1e-12)
    check_bound(
        posterior,
        bound,
        lambda g: torch.randn(n, 5, generator=g, dtype=F64),
        side="upper",
        extremal=regular_simplex(n),
        draws=200,
        **NAMES,
    )


def test_margin_bound_cases():
    assert cosface_margin_bound(8, 2) == pytest.approx(0.2929, abs=5e-5)
    assert cosface_margin_bound(10, 2) == pytest.approx(0.1910, abs=5e-5)
    assert cosface_margin_bound(3, 2) == pytest.approx(1.5, abs=1e-12)
    assert cosface_margin_bound(2, 2) == pytest.approx(2.0)
    assert cosface_margin_bound(10, 9) == pytest.approx(10 / 9)
    assert cosface_margin_bound(10, 512) == pytest.approx(10 / 9)
    assert cosface_margin_bound(11, 9) == cosface_margin_bound(18, 9) == 1.0
    assert 0.0 < cosface_margin_bound(19, 9) < 1.0
    assert cosface_margin_bound(1024, 512) == 1.0
    assert cosface_margin_bound(10_575, 512) == pytest.approx(0.9754, abs=5e-5)


@pytest.mark.parametrize(
    ("weights", "attained"),
    [
        (regular_polygon(10), True),
        (regular_simplex(7, 9), True),
        (cross_polytope(4), True),
        (cross_polytope(4, 6), True),
        (tammes(10, 3, torch.Generator().manual_seed(0), restarts=2)[0], False),
    ],
    ids=["polygon", "simplex", "cross-polytope", "part of it", "ten in three dimensions"],
)
def test_margin_bound_against_arrangements(weights, attained):
    C, K = weights.shape
    possible = 1.0 - max_cosine(weights)
    assert possible <= cosface_margin_bound(C, K) + 1e-12
    assert (possible > cosface_margin_bound(C, K) - 1e-6) == attained


def sample_class(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    shape = [(3,), (4, 3), (3,)]
    return tuple(torch.randn(*size, generator=generator, dtype=F64) for size in shape)


@pytest.mark.parametrize("distance", ["euclidean", "geodesic"])
def test_agent_distortion_is_bounded_for_a_metric(distance):
    def unit(*tensors: Tensor) -> list[Tensor]:
        return [tensor / tensor.norm(dim=-1, keepdim=True) for tensor in tensors]

    def distortion(anchor: Tensor, members: Tensor, agent: Tensor) -> Tensor:
        return agent_distortion(*unit(anchor, members, agent), distance)

    def bound(anchor: Tensor, members: Tensor, agent: Tensor) -> Tensor:
        return agent_distortion_bound(*unit(members, agent), distance)

    a = torch.tensor([1.0, 0.0, 0.0], dtype=F64)
    b = torch.tensor([0.0, 1.0, 0.0], dtype=F64)
    # Tight where the anchor sits on the agent: both sides are the same distances.
    check_bound(
        distortion,
        bound,
        sample_class,
        side="upper",
        extremal=(b, a.expand(4, 3), b),
        draws=200,
        steps=60,
        **NAMES,
    )


def test_agent_distortion_is_not_bounded_for_squared_distance():
    def at(degrees: float) -> Tensor:
        return torch.tensor([math.cos(math.radians(degrees)), math.sin(math.radians(degrees))], dtype=F64)

    anchor, agent, member = at(0), at(60), at(90)[None]
    distortion = agent_distortion(anchor, member, agent, "squared")
    bound = agent_distortion_bound(member, agent, "squared")
    assert float(distortion) == pytest.approx(1.0, abs=1e-12)
    assert float(bound) == pytest.approx(0.072, abs=5e-4)
    check_counterexample(distortion, bound, **NAMES)
    assert float(agent_distortion(anchor, member, agent)) ** 0.5 == pytest.approx(math.sqrt(2) - 1, abs=1e-12)
    assert float(agent_distortion_bound(member, agent)) ** 0.5 == pytest.approx(0.518, abs=5e-4)


@pytest.mark.parametrize("p", [0.0, 1.0, -0.1, 1.5, math.nan])
@pytest.mark.parametrize(
    "bound",
    [
        alpha_low,
        cross_polytope_alpha,
        simplex_scale,
        cosface_scale_bound,
        polygon_scale,
        lambda C, p: margin_aware_scale_bound(C, p, 0.1),
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
        lambda C: bounded_logit_probability(C),
        lambda C: cosface_margin_bound(C, 3),
        lambda C: margin_aware_scale_bound(C, 0.9, 0.1),
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
        lambda: cross_polytope_alpha(10, 0.1),
        lambda: polygon_scale(10, 0.05),
        lambda: cross_polytope_probability(10, 0.0),
        lambda: polygon_probability(10, math.inf),
        lambda: normface_loss_bound(10, -1.0),
        lambda: bounded_logit_probability(10, 0.0),
        lambda: margin_aware_scale_bound(10, 0.9, 10 / 9),
        lambda: margin_aware_scale_bound(10, 0.9, -0.1),
        lambda: margin_aware_scale_bound(10, 0.9, math.nan),
        lambda: cosface_margin_bound(10, 0),
        lambda: agent_distortion(torch.ones(2), torch.ones(3, 2), torch.ones(2), "cosine"),
        lambda: agent_distortion(torch.ones(3), torch.ones(3, 2), torch.ones(2)),
        lambda: agent_distortion_bound(torch.ones(0, 2), torch.ones(2)),
    ],
)
def test_other_arguments_are_validated(call):
    with pytest.raises(ValueError):
        call()
