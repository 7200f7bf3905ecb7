"""Notebook 01: the mathematics that its page states without a check cell; oracles from the equations, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from reprolib.losses import L2Softmax
from reprolib.theory import bounds, gaussian, geometry, normal
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity
from reprolib.theory.geometry import cross_polytope, regular_polygon, regular_simplex

F64 = torch.float64
NAMES = {"id": "01.test", "statement": "a statement of notebook 01", "source": "notebook 01"}
ATTACK = {"draws": 100, "steps": 40}
P = 0.9
LABELS = torch.tensor([0, 3, 5, 1, 3])
PAIRS = (4, 10, 100, 1000)


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Features (5, 4), weights (6, 4), biases (6,) and alpha = 3."""
    draw = partial(normal, seed=torch.Generator().manual_seed(1))
    return draw(5, 4), draw(6, 4), draw(6), torch.tensor(3.0, dtype=F64)


def unit(x: Tensor) -> Tensor:
    return x / x.square().sum(-1, keepdim=True).sqrt()


def l2_softmax(x: Tensor, W: Tensor, b: Tensor, alpha: Tensor | float) -> Tensor:
    # (1.1) with (1.2)
    return cross_entropy(alpha * unit(x) @ W.T + b, LABELS)


def classifier_gradients(z: Tensor, W: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    # (1.4)
    g = ((z @ W.T + b).softmax(dim=1) - one_hot(LABELS, len(W))) / len(z)
    return g @ W, g.T @ z, g.sum(dim=0)


def own_probability(weights: Tensor, scale: float) -> Tensor:
    return (scale * weights @ weights.T).softmax(dim=1).diagonal()


def alpha_exact(C: int, p: float) -> float:
    # (1.11)
    q = (1 - p) / p
    return -math.log(2 * q / (C - 2 + math.sqrt((C - 2) ** 2 + 4 * q)))


def mean_inverse_probability(free: Tensor, scale: float) -> Tensor:
    w = unit(free)
    return (scale * (w @ w.T - 1.0)).exp().sum(dim=1).mean()


# (1.4) to (1.7): the layers and their gradients


def test_gradient_of_the_classifier(batch):
    X, W, b, _ = batch
    check_gradient(lambda z, W, b: cross_entropy(z @ W.T + b, LABELS), (X, W, b), classifier_gradients, **NAMES)


def test_elements_matrix_and_eigenvalues_of_the_normalise_layer():
    x = normal(7)
    r, y = x.norm(), x / x.norm()
    # the paper's elements: (r^2 - x_i^2) / r^3 and - x_i x_j / r^3
    element = -torch.outer(x, x) / r**3
    element.diagonal().copy_((r**2 - x**2) / r**3)
    check_identity(element, torch.autograd.functional.jacobian(unit, x), **NAMES)
    check_identity(element, (torch.eye(7, dtype=F64) - torch.outer(y, y)) / r, **NAMES)
    spectrum = torch.cat([torch.zeros(1, dtype=F64), torch.ones(6, dtype=F64) / r])
    check_identity(torch.linalg.eigvalsh(element), spectrum, **NAMES)


def test_gradient_of_the_scale_layer(batch):
    X, _, _, alpha = batch
    push = normal(5, 4, seed=7)

    def gradients(y: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        dz = push / (a * y).cosh() ** 2
        return a * dz, (dz * y).sum()

    check_gradient(lambda y, a: (push * (a * y).tanh()).sum(), (X, alpha), gradients, **NAMES)


def test_kernel_that_trains_returns_the_gradient(batch):
    X, W, b, alpha = batch
    leaf, y = X.clone().requires_grad_(), unit(X)
    head = L2Softmax(4, 6, scale=3.0, learn_scale=True, eps=0.0).double()
    head.load_state_dict({"weight": W, "bias": b, "scale": alpha, "strength": torch.ones(())})
    head(leaf, LABELS).backward()
    g = ((alpha * y @ W.T + b).softmax(dim=1) - one_hot(LABELS, 6)) / 5
    push = g @ W
    # (1.7)
    to_x = alpha * (push - y * (y * push).sum(dim=1, keepdim=True)) / X.norm(dim=1, keepdim=True)
    exact = [to_x, alpha * g.T @ y, g.sum(dim=0), (g * (y @ W.T)).sum()]
    for ours, wanted in zip((leaf.grad, head.weight.grad, head.bias.grad, head.scale.grad), exact, strict=True):
        check_identity(ours, wanted, **NAMES)


@pytest.mark.parametrize("c", [0.1, 50.0])
def test_length_is_not_seen_and_a_short_feature_is_turned_more(batch, c):
    X, W, b, alpha = batch
    check_identity(l2_softmax(c * X, W, b, alpha), l2_softmax(X, W, b, alpha), **NAMES)
    leaves = [(size * X).requires_grad_() for size in (1.0, c)]
    here, there = (torch.autograd.grad(l2_softmax(leaf, W, b, alpha), leaf)[0] for leaf in leaves)
    check_identity((X * here).sum(dim=1), 0.0, **NAMES)
    check_identity(c * there, here, **NAMES)


def test_norm_of_a_gradient_of_two_classes():
    W, x = normal(2, 4), normal(4, seed=3)
    delta, first = W[0] - W[1], torch.zeros(1, dtype=torch.int64)
    cosine = x @ delta / (x.norm() * delta.norm())
    # (1.8)
    soft = delta.norm() / (1 + (x.norm() * delta.norm() * cosine).exp())
    ball = 3 / x.norm() * delta.norm() * (1 - cosine**2).sqrt() / (1 + (3 * delta.norm() * cosine).exp())
    leaf = x.clone().requires_grad_()
    values = cross_entropy(leaf[None] @ W.T, first), cross_entropy(3 * unit(leaf)[None] @ W.T, first)
    check_identity([torch.autograd.grad(value, leaf)[0].norm() for value in values], [soft, ball], **NAMES)


# (1.9) to (1.11): the cross-polytope


@pytest.mark.parametrize("C", PAIRS)
def test_a_cross_polytope_has_right_angles_and_its_probability(C):
    weights = cross_polytope(C // 2)
    check_identity(geometry.max_cosine(weights), 0.0, **NAMES)
    formula = math.exp(3) / (math.exp(3) + math.exp(-3) + C - 2)
    check_identity(own_probability(weights, 3.0), formula, **NAMES)
    check_identity(own_probability(weights, alpha_exact(C, P)), P, **NAMES)
    # without e^-a the equation has the root alpha_low
    check_identity(1 / (1 + (C - 2) * math.exp(-bounds.alpha_low(C, P))), P, **NAMES)


@pytest.mark.parametrize("C", PAIRS)
def test_at_alpha_low_the_dropped_term_is_missing(C):
    # 1/p' = 1/p + e^(-2 alpha_low)
    p = 1 / (1 / P + math.exp(-2 * bounds.alpha_low(C, P)))
    check_identity(own_probability(cross_polytope(C // 2), bounds.alpha_low(C, P)), p, **NAMES)
    assert p < P


@pytest.mark.parametrize("C", [3, 11, 101])
def test_an_odd_class_has_no_antipode_and_less(C):
    scale = bounds.alpha_low(C, P)
    probabilities = own_probability(cross_polytope((C + 1) // 2, C), scale)
    check_identity(probabilities[-1], math.exp(scale) / (math.exp(scale) + C - 1), **NAMES)
    check_counterexample(probabilities[0], probabilities[-1], **NAMES)


# (1.12), (1.13): what is bounded


def spread(W: Tensor) -> Tensor:
    return (W - W.mean(dim=0)).square().sum(dim=1).mean().sqrt()


def test_floor_of_a_balanced_loss_for_shorter_features_too():
    labels = torch.arange(5).repeat(2)

    def loss(x: Tensor, W: Tensor, b: Tensor, shrink: Tensor) -> Tensor:
        return cross_entropy(4.0 * shrink.sigmoid()[:, None] * unit(x) @ W.T + b, labels)

    def floor(x: Tensor, W: Tensor, b: Tensor, shrink: Tensor) -> Tensor:
        return (1 + 4 * (-5 / 4 * 4.0 * spread(W)).exp()).log()

    check_bound(loss, floor, gaussian((10, 6), (5, 6), (5,), (10,)), **ATTACK, **NAMES)


def test_a_batch_of_one_class_falls_below_the_floor():
    W = torch.full((10, 1), -1.0, dtype=F64)
    W[0] = 1.0
    loss = cross_entropy(W[:1] @ W.T, torch.zeros(1, dtype=torch.int64))
    check_identity(loss, math.log(1 + 9 * math.exp(-2)), **NAMES)
    check_identity(spread(W), 0.6, **NAMES)
    floor = math.log(1 + 9 * math.exp(-10 / 9 * 0.6))
    assert float(loss) == pytest.approx(0.797, abs=5e-4)
    assert floor == pytest.approx(1.726, abs=5e-4)


def test_unit_weights_on_their_own_features_need_the_simplex_scale():
    scale = 9 / 10 * math.log(9 * P / (1 - P))
    check_identity(own_probability(regular_simplex(10), scale), P, **NAMES)
    check_bound(
        lambda w: mean_inverse_probability(w, scale),
        1 / P,
        gaussian((10, 12)),
        extremal=regular_simplex(10, 12),
        **ATTACK,
        **NAMES,
    )
    check_counterexample(bounds.alpha_low(10, P), scale, **NAMES)


def test_with_twice_as_many_classes_as_dimensions_the_cross_polytope_is_best():
    check_bound(
        lambda w: mean_inverse_probability(w, alpha_exact(10, P)),
        1 / P,
        gaussian((10, 5)),
        extremal=cross_polytope(5),
        **ATTACK,
        **NAMES,
    )


def test_alpha_low_and_the_simplex_scale():
    # of three classes at p = 0.75 the simplex needs more, at 0.9 less
    assert 2 / 3 * math.log(2 * 0.75 / 0.25) == pytest.approx(1.194, abs=1e-3)
    assert math.log(0.75 / 0.25) == pytest.approx(1.099, abs=1e-3)
    for C in (3, 10, 100):
        assert bounds.simplex_scale(C, P) < bounds.alpha_low(C, P)

    def excess(t: Tensor) -> Tensor:
        C = 1000 + t.exp()
        return ((C - 2) * 9).log() - (C - 1) / C * ((C - 1) * 9).log()

    check_bound(excess, 0.01, gaussian((1,)), side="upper", **ATTACK, **NAMES)


# (1.14), (1.15): room and temperature


def test_ten_classes_in_the_plane():
    ten = regular_polygon(10)
    cosines = [math.cos(2 * math.pi * k / 10) for k in range(10)]
    check_identity(own_probability(ten, 12.0), 1 / sum(math.exp(12 * (c - 1)) for c in cosines), **NAMES)
    assert bounds.polygon_scale(10, P) == pytest.approx(15.14, abs=5e-3)
    assert bounds.polygon_scale(10, 0.99) == pytest.approx(27.69, abs=5e-3)
    assert bounds.polygon_probability(10, bounds.alpha_low(10, P)) == pytest.approx(0.50, abs=5e-3)
    scale = bounds.polygon_scale(10, P)
    check_bound(lambda w: mean_inverse_probability(w, scale), 1 / P, gaussian((10, 2)), extremal=ten, **ATTACK, **NAMES)
    # of the mean logarithm, the loss, only a search says so
    found = geometry.minimise_softmax_floor(10, 2, scale, torch.Generator().manual_seed(0), restarts=4, steps=80)[1]
    check_identity(found, -math.log(P), tolerance=1e-7, **NAMES)


def test_a_radius_changes_no_angle_and_no_share_of_the_sphere(batch):
    X, W, b, alpha = batch
    near, far = (a * unit(X) for a in (1.0, 64.0))
    cosines = [f @ f.T / (f.norm(dim=1)[:, None] * f.norm(dim=1)) for f in (near, far)]
    check_identity(*cosines, **NAMES)
    cap = 1 - math.cos(math.radians(20))
    shares = [2 * math.pi * a**2 * cap / (4 * math.pi * a**2) for a in (1.0, 4.0, 64.0)]
    check_identity(shares, geometry.cap_fraction(math.radians(20), 3), **NAMES)
    log_p = (alpha * unit(X) @ W.T + b).log_softmax(dim=1)
    check_identity(log_p[:, :1] - log_p, alpha * unit(X) @ (W[:1] - W).T + b[0] - b, **NAMES)


def test_with_a_bias_more_scale_can_make_the_right_class_less_probable():
    slope, bias = torch.tensor([0.0, 0.5], dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    of_first = [(a * slope + bias).softmax(dim=0)[0] for a in (1.0, 4.0)]
    check_counterexample(of_first[0], of_first[1], **NAMES)


def test_without_a_bias_the_largest_logit_gains_with_the_scale():
    def gain(v: Tensor, W: Tensor, log_a: Tensor, growth: Tensor) -> Tensor:
        logits = log_a.exp() * (unit(v) @ W.T)
        top = int(logits.argmax())
        return ((1 + growth.square()) * logits).softmax(dim=0)[top] - logits.softmax(dim=0)[top]

    equal = normal(4), normal(1, 4).expand(6, 4), normal(), normal()
    check_bound(gain, 0.0, gaussian((4,), (6, 4), (), ()), extremal=equal, **ATTACK, **NAMES)


# (1.16) to (1.19): what a fixed alpha is, and a trained one


def test_alpha_and_weights_enter_as_a_product(batch):
    X, W, b, alpha = batch
    check_identity(l2_softmax(X, W / 7, b, 7 * alpha), l2_softmax(X, W, b, alpha), **NAMES)
    reached = own_probability(regular_simplex(10), 0.1 * 60.0).min()
    check_counterexample(reached, P, **NAMES)


def test_a_step_of_the_logits_weights_grows_with_the_square_of_alpha(batch):
    X, W, _, _ = batch
    steps = []
    for alpha in (16.0, 1.0):
        V = (16.0 * W).requires_grad_()
        weight = V / alpha
        gradient = torch.autograd.grad(l2_softmax(X, weight, torch.zeros(6, dtype=F64), alpha), weight)[0]
        steps.append(alpha * gradient)
    check_identity(steps[0], 256.0 * steps[1], **NAMES)


def classifier_path(alpha: float, start: Tensor, x: Tensor, make: Callable[..., torch.optim.Optimizer]) -> Tensor:
    """alpha W and the gradient at the features before each of 25 steps on W."""
    W, path = start.clone().requires_grad_(), []
    optimiser = make([W])
    for _ in range(25):
        leaf = x.clone().requires_grad_()
        optimiser.zero_grad()
        l2_softmax(leaf, W, torch.zeros(6, dtype=F64), alpha).backward()
        path.append(torch.cat([alpha * W.detach(), leaf.grad]))
        optimiser.step()
    return torch.stack(path)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
@pytest.mark.parametrize("t", [16.0, 3.0])
def test_rescaled_sgd_gives_the_same_logits(batch, t, options):
    X, W, _, _ = batch
    sgd = partial(torch.optim.SGD, **options)
    one = classifier_path(1.0, W, X, partial(sgd, lr=0.1, weight_decay=5e-3))
    other = classifier_path(t, W / t, X, partial(sgd, lr=0.1 / t**2, weight_decay=5e-3 * t**2))
    check_identity(other, one, tolerance=1e-10, **NAMES)


@pytest.mark.parametrize("t", [16.0, 3.0])
def test_the_rule_of_adam_is_another(batch, t):
    X, W, _, _ = batch
    one, other, as_sgd = (
        classifier_path(scale, W / scale, X, partial(torch.optim.AdamW, lr=rate, weight_decay=decay, eps=0.0))
        for scale, rate, decay in ((1.0, 0.01, 0.1), (t, 0.01 / t, 0.1 * t), (t, 0.01 / t**2, 0.1 * t**2))
    )
    check_identity(other, one, tolerance=1e-9, **NAMES)
    assert float((as_sgd - one).abs().max()) > 1e-3


def test_slope_in_alpha_has_its_limit(batch):
    X, W, _, _ = batch
    v = unit(X) @ W.T
    own = v[range(5), LABELS]
    p = (2e3 * v).softmax(dim=1)
    # (1.19)
    check_identity((p * v).sum(dim=1) - own, v.amax(dim=1) - own, **NAMES)


def test_loss_is_convex_in_alpha(batch):
    X, W, b, alpha = batch

    def convexity(x: Tensor, W: Tensor, b: Tensor, log_a: Tensor, shift: Tensor) -> Tensor:
        low, high = log_a.exp(), log_a.exp() + shift.square()
        ends = l2_softmax(x, W, b, low), l2_softmax(x, W, b, high)
        return (ends[0] + ends[1]) / 2 - l2_softmax(x, W, b, (low + high) / 2)

    same = (X, W, b, alpha.log(), torch.zeros((), dtype=F64))
    check_bound(convexity, 0.0, gaussian((5, 4), (6, 4), (6,), (), ()), extremal=same, **ATTACK, **NAMES)


def test_in_the_ball_a_sample_on_the_wrong_side_is_best_at_zero(batch):
    _, W, _, alpha = batch
    against = -W[LABELS]
    zero = torch.zeros(6, dtype=F64)
    check_counterexample(l2_softmax(against, W, zero, alpha), l2_softmax(against, W, zero, 0.0), **NAMES)
    check_identity(l2_softmax(against, W, zero, 0.0), math.log(6), **NAMES)


def test_eps_inside_the_root_leaves_a_radial_part():
    x, push, eps = 0.1 * normal(4), normal(4, seed=5), 1e-2
    leaf = x.clone().requires_grad_()
    y = leaf / (leaf.square().sum() + eps).sqrt()
    (gradient,) = torch.autograd.grad((push * y).sum(), leaf)
    y = y.detach()
    check_identity((x * gradient).sum(), (push * y).sum() * (1 - y.square().sum()), **NAMES)
