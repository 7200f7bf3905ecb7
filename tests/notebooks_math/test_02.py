"""What notebook 02 (NormFace) says beside its derivations: cases, limits and counterexamples, all in float64.

Each check raises if its statement does not hold; the formulas are those of the notebook's equations.
"""

from __future__ import annotations

import math

import pytest
import torch
from scipy.special import hyp0f1
from torch import Tensor

from reprolib import losses
from reprolib.theory import bounds, gaussian, geometry
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity, texts_for
from reprolib.theory.gradients import normalise, normalise_backward, softmax_loss

about = texts_for("02")


def real(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def drawn(*shape: int, seed: int = 3) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch_loss(w: Tensor, f: Tensor, s: float, labels: Tensor) -> Tensor:
    return softmax_loss(s * normalise(f) @ normalise(w).T, labels)


X, G, E = drawn(6, 5), drawn(6, 5, seed=4), torch.eye(5, dtype=torch.float64)


# --- section 1 --------------------------------------------------------------------------------------------------------


def test_a_losing_sample_pays_for_its_norm():
    def loss(z, a):
        return (a.exp() * z).logsumexp(0) - a.exp() * z[0]

    def rise(z, a):
        return a.exp() * (z.max() - z[0])

    extremal = (real([0.0, 60.0]), real(0.8))
    check_bound(loss, rise, gaussian((5,), ()), extremal=extremal, **about("t1", "L(t) >= t (max z - z_y)", "(2.4)"))


def test_equal_weights_are_told_apart_by_the_bias_at_any_norm():
    b = real([2.0, 0.0])
    decided = torch.stack([(s * real([1.0, 1.0]) + b).softmax(0) for s in (0.0, 1.0, 9.0)])
    check_identity(decided, b.softmax(0).expand(3, 2), **about("t2", "P is softmax(b)", "NormFace sec. 3.1"))


def test_no_winner_falls_without_a_bias_and_many_do_with_one():
    generator = torch.Generator().manual_seed(2)
    W, f, b = (torch.randn(20_000, *s, generator=generator, dtype=torch.float64) for s in ((6, 3), (3, 1), (6,)))
    s = 1 + 4 * torch.rand(20_000, 1, generator=generator, dtype=torch.float64)
    fallen = []
    for bias in (0 * b, b):
        z = (W @ f)[..., 0]
        winner = (z + bias).argmax(1, keepdim=True)
        before, after = ((scale * z + bias).log_softmax(1).gather(1, winner) for scale in (1, s))
        fallen.append(int((after < before - 1e-12).sum()))
    assert fallen[0] == 0
    assert fallen[1] > 1000


# --- section 2 --------------------------------------------------------------------------------------------------------


def test_the_jacobian_of_the_layer_is_a_projection_over_the_norm():
    x = X[0]
    projection = torch.eye(5, dtype=torch.float64) - torch.outer(normalise(x), normalise(x))
    check_identity(projection @ projection, projection, **about("t3", "P P = P", "(2.7)"))
    by_hand = (x @ x * torch.eye(5, dtype=torch.float64) - torch.outer(x, x)) / x.norm() ** 3
    jacobian = torch.autograd.functional.jacobian(normalise, x)
    note = about("t4", "(|x|^2 delta - x x)/|x|^3 = P/|x|", "(2.7)")
    check_identity([by_hand, jacobian], [projection / x.norm()] * 2, **note)


def test_the_gradient_is_homogeneous_and_never_longer_than_what_comes_in():
    check_identity(normalise_backward(7 * X, G), normalise_backward(X, G) / 7, **about("t5", "degree -1", "(2.7)"))
    note = about("t6", "|dL/dx| <= |g|/|x|", "(2.7)")

    def limit(x, g):
        return g.norm() / x.norm()

    extremal = (2 * E[0], E[1])

    def value(x, g):
        return normalise_backward(x, g).norm()

    check_bound(value, limit, gaussian((5,), (5,)), side="upper", extremal=extremal, **note)


def test_the_radial_part_grows_with_eps_and_is_nothing_without():
    leaks = []
    for eps in (0.0, 1e-12, 1e-6, 1e-3, 1e-1):
        back = normalise_backward(X, G, eps)
        leaks.append(float(((X * back).sum(1).abs() / (X.norm(dim=1) * back.norm(dim=1))).max()))
    assert leaks[0] < 1e-14
    assert leaks == sorted(set(leaks))


def test_at_the_origin_the_radial_share_of_the_gradient_is_the_cosine():
    # the layer is linear there, so that the share is |cos(g, x)|, seldom the larger part in many dimensions
    x, g = 1e-9 * drawn(4000, 64, seed=5), drawn(4000, 64, seed=6)
    back = normalise_backward(x, g, 1e-2)
    check_identity(back, 10 * g, tolerance=1e-7, **about("t7", "g/sqrt(eps)", "(2.8)"))
    share = (x * back).sum(1).abs() / (x.norm(dim=1) * back.norm(dim=1))
    assert float((share > 0.5**0.5).double().mean()) == 0


def test_the_gradient_of_a_cosine():
    f, w = X[1], X[2]

    def closed(f):
        return (normalise(w) - (normalise(f) @ normalise(w)) * normalise(f)) / f.norm()

    check_gradient(lambda f: f @ w / (f.norm() * w.norm()), f, closed, **about("t8", "dcos/df", "NormFace eq. 5"))
    check_identity(closed(f).norm(), geometry.angle_between(f, w).sin() / f.norm(), **about("t9", "sin/|f|", "(2.7)"))


def test_weight_decay_balances_the_growth():
    rate, decay, G2 = 0.1, 0.05, 4.0
    square = (rate**2 * G2 / (1 - (1 - rate * decay) ** 2)) ** 0.5
    after = (1 - rate * decay) ** 2 * square + rate**2 * G2 / square
    check_identity(after, square, **about("t10", "fixed point", "(2.10)"))


def test_what_can_shrink_a_norm():
    check_counterexample(1.0, ((1 - 0.25) * E[0] - 0.5 * E[1]).norm(), **about("t11", "weight decay"))
    check_counterexample(1.0, (E[0] - normalise_backward(E[0], E[0], 0.1)).norm(), **about("t12", "eps"))
    x, g = real([[1.6, 1.2], [0.6, -0.8]])
    check_counterexample(x.norm(), (x - 0.2 * g.sign()).norm(), **about("t13", "Adam's first step"))


def test_momentum_grows_by_more_than_pythagoras_says():
    x = E[0] - 0.2 * E[1]
    v = 0.9 * E[1] + normalise_backward(x, E[2])
    grown = x.square().sum() + 0.04 * v.square().sum()
    check_counterexample((x - 0.2 * v).square().sum(), grown, **about("t14", "(2.11)"))


@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.999])
def test_nesterovs_momentum_never_shrinks_a_norm_either(momentum):
    # b_k = x_k.v_{k-1} <= -(eta / 2) |v_{k-1}|^2, whatever the gradients orthogonal to x_k are
    raw, rate = drawn(200, 4, seed=11), 0.3
    x, v, b = E[0][:4] + 0.5, torch.zeros(4, dtype=torch.float64), real(0.0)
    for k, h in enumerate(raw):
        g = h if k % 3 else -2 * v  # also against the last step, the worst case
        g = g - x * (x @ g) / (x @ x)
        last, v = v, momentum * v + g
        step = rate * (g + momentum * v)
        by_recursion = momentum * b - rate * ((1 + momentum) * v.square().sum() - momentum * last @ v)
        before, x = x, x - step
        b = x @ v
        scale = 1 + v.square().sum()
        check_identity((b - by_recursion) / scale, 0.0, **about("t33", "b_{k+1} of Nesterov's form", "(2.11)"))
        assert float(b + rate / 2 * v.square().sum()) <= 1e-12 * float(scale)
        assert float(x.square().sum() - before.square().sum() - step.square().sum()) >= -1e-12 * float(scale)


def test_the_next_term_of_the_log_moment_is_negative():
    for d in (8.0, 512.0):
        s = 0.02 * d**0.75
        terms = [(s / 2) ** (2 * k) / math.prod((j + 1) * (d / 2 + j) for j in range(k)) for k in range(12)]
        excess = math.log(sum(terms)) - s**2 / (2 * d)
        assert excess == pytest.approx(-(s**4) / (4 * d**2 * (d + 2)), rel=0.02)


EVEN = torch.full((8,), -0.7, dtype=torch.float64)


def test_both_steps_of_jensen():
    def at_mean(u):
        return (8 * u.mean().exp()).log1p()

    inside, outside = lambda u: u.exp().sum().log1p(), lambda u: (8 * u.exp()).log1p().mean()
    check_bound(inside, at_mean, gaussian((8,)), extremal=EVEN, **about("t15", "inside", "(2.15)"))
    check_bound(outside, at_mean, gaussian((5,)), extremal=EVEN[:5], **about("t16", "outside", "(2.15)"))


def test_the_mean_exponent_and_the_gram_sum():
    w, f, labels = normalise(X[:5, :4]), normalise(drawn(10, 4, seed=8)), torch.arange(5).repeat_interleave(2)
    exponents = [(w[j] - w[c]) @ f[i] for i, c in enumerate(labels.tolist()) for j in range(5) if j != c]
    by_means = ((w.mean(0) - w) * f.view(5, 2, 4).mean(1)).sum() / 4
    check_identity(torch.stack(exponents).mean(), by_means, **about("t17", "A", "(2.15)"))
    spread = (w - w.mean(0)).square().sum()
    check_identity(spread, 5 - 5 * w.mean(0).square().sum(), **about("t18", "n - n |mean|^2", "(2.15)"))


@pytest.mark.parametrize(("n", "d", "s"), [(10, 9, 1.0), (5, 4, 4.0), (3, 8, 10.0)])
def test_the_simplex_reaches_the_floor(n, d, s):
    def loss(w: Tensor) -> Tensor:
        return geometry.softmax_floor(w, s)

    note = about("t19", "loss >= floor", "NormFace Prop. 2")
    floor, extremal = bounds.normface_loss_bound(n, s), geometry.regular_simplex(n, d)
    check_bound(loss, floor, gaussian((n, d)), extremal=extremal, draws=300, steps=80, **note)
    found = geometry.minimise_softmax_floor(n, d, s, torch.Generator().manual_seed(5), restarts=1, steps=60)[1]
    check_identity(found, floor, tolerance=1e-6, **about("t20", "attained", "NormFace Prop. 2"))


def test_the_floor_for_unequal_shares_and_for_one_class():
    labels = torch.tensor([0] * 5 + [1] * 2 + [2, 3])
    kappa = min(2.0, 4 / 3 * math.sqrt(4 * float((labels.bincount().double() / 9).square().sum())))
    floor = math.log1p(3 * math.exp(-2 * kappa))

    def loss(w, f):
        return batch_loss(w, f, 2.0, labels)

    check_bound(loss, floor, gaussian((4, 4), (9, 4)), draws=300, **about("t21", "5, 2, 1, 1", "(2.16)"))
    alone, axis = torch.zeros(3, dtype=torch.int64), torch.eye(4, dtype=torch.float64)[:1]
    extremal = (torch.cat([axis, -axis, -axis]), axis.repeat(3, 1))

    def loss(w, f):
        return batch_loss(w, f, 1.0, alone)

    floor = math.log1p(2 * math.exp(-2))
    check_bound(loss, floor, gaussian((3, 4), (3, 4)), extremal=extremal, **about("t22", "one class", "(2.16)"))


@pytest.mark.parametrize("d", [2, 3, 8, 64, 512])
def test_random_directions_are_sub_gaussian(d):
    for s in (0.5, 2.0, 10.0, 30.0):
        assert float(hyp0f1(d / 2, s * s / 4)) <= math.exp(s * s / (2 * d)) * (1 + 1e-12)
    # in three dimensions the moment is sinh(s)/s
    if d == 3:
        check_identity(float(hyp0f1(1.5, 4.0)), math.sinh(4.0) / 4.0, **about("t23", "sinh(s)/s", "(2.17)"))


@pytest.mark.parametrize(("n", "d", "s"), [(16, 3, 2.0), (40, 5, 4.0), (128, 8, 4.0)])
def test_the_best_weights_found_lie_between_the_floor_and_random_ones(n, d, s):
    found = geometry.minimise_softmax_floor(n, d, s, torch.Generator().manual_seed(6), restarts=1, steps=80)[1]
    ceiling = math.log1p((n - 1) * math.exp(-s + s * s / (2 * d)))
    assert bounds.normface_loss_bound(n, s) - 1e-12 <= found <= ceiling


def test_the_polygon_leaves_the_floor_behind():
    ratio = float(geometry.softmax_floor(geometry.regular_polygon(10), 10.0)) / bounds.normface_loss_bound(10, 10.0)
    assert 1900 < ratio < 2100


# --- section 4 --------------------------------------------------------------------------------------------------------


def test_a_softmax_on_distances_is_one_on_inner_products_with_a_bias():
    w = drawn(4, 5, seed=9)
    by_distance = (-(X[:, None] - w).square().sum(2) / 2).softmax(1)
    by_product = (X @ w.T - w.square().sum(1) / 2).softmax(1)
    check_identity(by_distance, by_product, **about("t24", "b_j = -|W_j|^2/2", "(2.22)"))


def test_pairs_of_unit_features():
    near, same = X + 0.3 * G, torch.tensor([True, False, True, False, False, False])
    pairs = losses.contrastive_loss(X, near, same, margin=1.0, form="normface", reduction="none")
    gap = (normalise(X) - normalise(near)).square().sum(1)
    expected = torch.where(same, gap, (1 - gap).clamp_min(0))
    check_identity(pairs, expected, tolerance=1e-10, **about("t25", "eq. 7", "NormFace eq. 7"))


def test_kissing_numbers_decide_which_classes_can_have_loss_zero():
    base = real([[0, p, q * (1 + 5**0.5) / 2] for p in (1, -1) for q in (1, -1)])
    icosahedron = torch.cat([base.roll(k, dims=1) for k in range(3)])
    loss = losses.c_contrastive_loss(icosahedron, torch.arange(12), icosahedron, 1.0)
    check_identity(loss, 0.0, tolerance=1e-9, **about("t26", "12 in space", "section 4"))

    def on_agents(w):
        return losses.c_contrastive_loss(w, torch.arange(10), w, 1.0)

    closest = 2 / 10 * (2 * math.cos(2 * math.pi / 10) - 1)
    check_bound(on_agents, closest, gaussian((10, 2)), draws=300, steps=80, **about("t27", "10 in the plane"))


def test_agents_without_a_margin_are_means_and_may_collapse():
    def spread(w):
        return (normalise(X) - normalise(w)).square().sum(1).mean()

    mean = normalise(X).mean(0)
    least = 2 - 2 * float(mean.norm())
    check_bound(spread, least, gaussian((5,)), extremal=mean, **about("t28", "mean |f - W|^2", "(2.25)"))
    everyone, y = torch.ones(6, 5, dtype=torch.float64), torch.tensor([0, 3, 1, 1, 2, 0])
    loss = losses.c_contrastive_loss(everyone, y, everyone[:4], 0.0)
    check_identity(loss, 0.0, tolerance=1e-9, **about("t29", "all in one point"))


def test_proposition_3_holds_for_angles_and_breaks_for_squares_in_many_draws():
    arc = real([[math.cos(a), math.sin(a), 0.0] for a in (0.0, 0.5, 0.9, 1.1, 1.3, 1.5)])
    d = geometry.angle_between

    def left(f0, members, agent):
        return (d(members, f0) - d(agent, f0)).square().mean()

    def right(f0, members, agent):
        return d(members, agent).square().mean()

    shapes, extremal = gaussian((3,), (4, 3), (3,)), (arc[0], arc[2:], arc[1])
    note = about("t30", "geodesic distances", "NormFace Prop. 3")
    check_bound(left, right, shapes, side="upper", extremal=extremal, draws=300, steps=80, **note)
    f0, agent, members = (normalise(drawn(5000, k, 3, seed=10 + k)) for k in (1, 2, 4))
    agent = agent[:, :1]
    broken = []
    for power in (1, 2):
        pairs = (f0, members), (f0, agent), (members, agent)
        to_members, to_agent, spread = ((a - b).norm(dim=2) ** power for a, b in pairs)
        excess = (to_members - to_agent).square().mean(1) - spread.square().mean(1)
        broken.append(int((excess > 1e-12).sum()))
    assert broken[0] == 0
    assert broken[1] > 100


def test_the_factor_of_four_is_reached_and_needs_unit_vectors():
    f0, agent, member = real([1.0, 0.0]), real([0.0, 1.0]), real([[-1e-6, 1.0]])
    left = ((f0 - member).square().sum(1) - (f0 - agent).square().sum()).square().mean()
    right = 4 * (normalise(member) - agent).square().sum(1).mean()
    check_identity(left / right, 1.0, tolerance=1e-5, **about("t31", "factor 4", "(2.27)"))
    # on a line: f_j = 0, W = 1, f_0 = -t
    check_counterexample((2 * 3.0 + 1) ** 2, 4.0, **about("t32", "(2.27) without normalisation"))
