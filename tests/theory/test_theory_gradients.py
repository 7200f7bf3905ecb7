"""Closed-form gradients against autograd of independently written losses, and the papers' quoted numbers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from reprolib.theory import gradients as G
from reprolib.theory.checks import check_gradient, check_identity

F64 = torch.float64
NAMES = {"id": "99.test", "statement": "a gradient", "source": "a test"}
LABELS = torch.tensor([0, 3, 2, 2, 4, 1])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def features_and_weight() -> tuple[Tensor, Tensor]:
    return draw(6, 4), draw(5, 4, seed=1)


def unit(x: Tensor, eps: float = 0.0) -> Tensor:
    return x / torch.sqrt((x * x).sum(-1, keepdim=True) + eps)


def test_softmax():
    z = 5.0 * draw(6, 5)
    check_gradient(lambda z: cross_entropy(z, LABELS), z, lambda z: G.softmax_loss_gradient(z, LABELS), **NAMES)
    check_identity(G.softmax_loss(z, LABELS), cross_entropy(z, LABELS), **NAMES)
    # Only differences of logits count, also where exp overflows.
    check_identity(G.softmax_loss(z + 1000.0, LABELS), G.softmax_loss(z, LABELS), **NAMES)
    check_identity(G.softmax_loss_gradient(z + 1000.0, LABELS), G.softmax_loss_gradient(z, LABELS), **NAMES)
    check_identity(G.softmax_loss_gradient(z, LABELS), (z.softmax(1) - one_hot(LABELS, 5)) / 6, **NAMES)


def test_softmax_example_of_the_seed():
    small, large = (torch.tensor([z], dtype=F64) for z in ([4.0, 1, 1, 1], [8.0, 2, 2, 2]))
    first = torch.zeros(1, dtype=torch.int64)
    assert float(G.softmax_loss(small, first)) == pytest.approx(0.1392, abs=5e-5)
    assert float(G.softmax_loss(large, first)) == pytest.approx(0.0074, abs=5e-5)


def test_linear_softmax():
    x, w = features_and_weight()
    check_gradient(
        lambda x, w, b: cross_entropy(x @ w.T + b, LABELS),
        (x, w, draw(5, seed=2)),
        lambda x, w, b: G.linear_softmax_gradients(x, w, b, LABELS),
        **NAMES,
    )


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-1])
def test_normalise_backward(eps):
    x, grad = draw(3, 4), draw(3, 4, seed=1)
    check_gradient(lambda x: (unit(x, eps) * grad).sum(), x, lambda x: G.normalise_backward(x, grad, eps), **NAMES)
    dx, y = G.normalise_backward(x, grad, eps), G.normalise(x, eps)
    # x . dx = (g . y)(1 - y . y): orthogonal exactly when eps = 0.
    check_identity((x * dx).sum(-1), (grad * y).sum(-1) * (1.0 - (y * y).sum(-1)), **NAMES)
    if eps == 0.0:
        check_identity((x * dx).sum(-1), torch.zeros(3, dtype=F64), **NAMES)
        step = x - 0.3 * dx
        check_identity((step**2).sum(-1), (x**2).sum(-1) + 0.09 * (dx**2).sum(-1), **NAMES)
    if eps == 1e-1:
        assert (x * dx).sum(-1).abs().min() > 1e-4


def test_normalise_jacobian():
    x = draw(5)
    y = unit(x)
    check_identity(G.normalise_jacobian(x), (torch.eye(5, dtype=F64) - torch.outer(y, y)) / x.norm(), **NAMES)
    check_identity(G.normalise_jacobian(x), torch.autograd.functional.jacobian(unit, x), **NAMES)


def test_scale_backward():
    y, grad = draw(3, 4), draw(3, 4, seed=1)
    check_gradient(
        lambda y, a: (a * y * grad).sum(),
        (y, torch.tensor(7.0, dtype=F64)),
        lambda y, a: G.scale_backward(y, a, grad),
        **NAMES,
    )


def test_l2_softmax():
    x, w = features_and_weight()
    check_gradient(
        lambda x, w, b, a: cross_entropy(a * unit(x) @ w.T + b, LABELS),
        (x, w, draw(5, seed=2), torch.tensor(9.0, dtype=F64)),
        lambda x, w, b, a: G.l2_softmax_gradients(x, w, b, a, LABELS),
        **NAMES,
    )


@pytest.mark.parametrize("eps", [0.0, 1e-1])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_normface(eps, scale):
    x, w = features_and_weight()
    check_gradient(
        lambda x, w, s: cross_entropy(s * unit(x, eps) @ unit(w, eps).T, LABELS),
        (x, w, torch.tensor(scale, dtype=F64)),
        lambda x, w, s: G.normface_gradients(x, w, s, LABELS, eps),
        **NAMES,
    )


def margin_loss(x: Tensor, w: Tensor, scale: float, m1: float, m2: float, m3: float) -> Tensor:
    cosine = unit(x) @ unit(w).T
    target = torch.cos(m1 * torch.acos(cosine) + m2) - m3
    return cross_entropy(scale * torch.where(one_hot(LABELS, 5).bool(), target, cosine), LABELS)


@pytest.mark.parametrize(
    "margins", [(1, 0, 0), (1, 0.5, 0), (1, 0, 0.35), (1.35, 0, 0), (1, 0.3, 0.2), (0.9, 0.4, 0.15)]
)
@pytest.mark.parametrize("scale", [10.0, 64.0])
def test_margin_softmax(margins, scale):
    x, w = features_and_weight()
    check_gradient(
        lambda x, w: margin_loss(x, w, scale, *margins),
        (x, w),
        lambda x, w: G.margin_softmax_gradients(
            x, w, LABELS, scale, lambda t: G.margin_target(t, *margins), lambda t: G.margin_slope(t, *margins)
        )[1:],
        **NAMES,
    )
    check_identity(
        G.margin_softmax_loss(x, w, LABELS, scale, lambda t: G.margin_target(t, *margins)),
        margin_loss(x, w, scale, *margins),
        **NAMES,
    )


def test_margin_gradient_with_respect_to_the_cosines():
    x, w = features_and_weight()
    m, scale = 0.5, 20.0
    dcos = G.margin_softmax_gradients(
        x, w, LABELS, scale, lambda t: G.margin_target(t, 1, m), lambda t: G.margin_slope(t, 1, m)
    )[0]
    cosine = (unit(x) @ unit(w).T).requires_grad_(True)
    target = torch.cos(torch.acos(cosine) + m)
    loss = cross_entropy(scale * torch.where(one_hot(LABELS, 5).bool(), target, cosine), LABELS)
    check_identity(dcos, torch.autograd.grad(loss, cosine)[0], **NAMES)


@pytest.mark.parametrize(("degrees", "slope"), [(10, 3.60), (30, 1.71), (90, 0.878)])
def test_slope_of_arcface(degrees, slope):
    theta = torch.tensor(math.radians(degrees), dtype=F64)
    assert float(G.margin_slope(theta, 1, 0.5)) == pytest.approx(slope, abs=5e-3)


def test_slope_special_values():
    theta = torch.tensor([0.3, 1.0, 2.9], dtype=F64)
    check_identity(G.margin_slope(theta, 1, 0, 0.35), torch.ones(3, dtype=F64), **NAMES)
    at_fold = torch.tensor(math.pi - 0.5, dtype=F64)
    assert float(G.margin_slope(at_fold, 1, 0.5)) == pytest.approx(0.0, abs=1e-14)
    assert float(G.margin_slope(at_fold + 0.1, 1, 0.5)) < 0.0


GRID = torch.linspace(0.0, math.pi, 20001, dtype=F64)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_psi(m):
    value = G.psi(GRID, m)
    # Knots: (-1)^k cos(k pi) - 2k = 1 - 2k from either side.
    k = torch.arange(m + 1, dtype=F64)
    check_identity(G.psi((k * math.pi / m).clamp(max=math.pi), m), 1.0 - 2.0 * k, **NAMES)
    assert (value.diff() <= 1e-15).all()
    assert value.diff().abs().max() <= m * math.pi / 20000 * 1.0001
    assert (value <= GRID.cos() + 1e-15).all()
    if m > 1:
        assert (value[1:] < GRID[1:].cos()).all()
    check_identity(G.chebyshev(GRID.cos(), m), (m * GRID).cos(), **NAMES)


@pytest.mark.parametrize("m", [1, 2, 3, 4, 5])
def test_psi_slope(m):
    theta = GRID[37:-37:97]
    check_gradient(lambda t: G.psi(t, m).sum(), theta, lambda t: -t.sin() * G.psi_slope(t, m), **NAMES)
    right_angle = torch.tensor(math.pi / 2, dtype=F64)
    assert float(G.psi_slope(right_angle, m)) == pytest.approx(m if m % 2 else 0.0, abs=1e-14)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_l_softmax_target(m):
    x, w = draw(40, 3), draw(40, 3, seed=1)
    check_gradient(
        lambda x, w: G.l_softmax_target(x, w, m).sum(),
        (x, w),
        lambda x, w: G.l_softmax_target_gradients(x, w, m),
        **NAMES,
    )
    # Every branch of psi is visited, or the test would not reach all signs.
    cosine = (unit(x) * unit(w)).sum(-1)
    assert len(set((cosine.acos() * m / math.pi).floor().tolist())) == m


@pytest.mark.parametrize("m", [2, 3, 4])
def test_l_softmax_gradient_at_the_knots(m):
    # The limit from both sides is the gradient at the knot, also at c = 0 where the authors' sgn is 0.
    w = torch.tensor([[2.0, 0.0]], dtype=F64)

    def at(theta: float) -> Tensor:
        x = 3.0 * torch.tensor([[math.cos(theta), math.sin(theta)]], dtype=F64)
        return torch.cat(G.l_softmax_target_gradients(x, w, m))

    for k in range(1, m):
        knot = k * math.pi / m
        torch.testing.assert_close(at(knot), at(knot - 1e-9), atol=1e-7, rtol=0)
        torch.testing.assert_close(at(knot), at(knot + 1e-9), atol=1e-7, rtol=0)
    if m != 3:
        x = torch.tensor([[0.0, 3.0]], dtype=F64)
        dx, _ = G.l_softmax_target_gradients(x, w, m)
        # psi is flat at 90 degrees: the gradient has no component along the weight.
        assert abs(float(dx[0, 0])) < 1e-14


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: G.softmax_loss_gradient(torch.ones(2, 3), torch.tensor([0, 1])), TypeError),
        (lambda: G.softmax_loss_gradient(draw(2, 3), torch.tensor([0, 3])), ValueError),
        (lambda: G.softmax_loss_gradient(draw(2, 3), torch.tensor([0, -1])), ValueError),
        (lambda: G.softmax_loss_gradient(draw(2, 3), torch.tensor([0])), ValueError),
        (lambda: G.softmax_loss_gradient(draw(2, 3), torch.tensor([0.0, 1.0])), TypeError),
        (lambda: G.softmax_loss(draw(0, 3), torch.zeros(0, dtype=torch.int64)), ValueError),
        (lambda: G.linear_softmax_gradients(draw(2, 3), draw(4, 2), draw(4), LABELS[:2]), ValueError),
        (lambda: G.normalise_backward(draw(2).float(), draw(2)), TypeError),
        (lambda: G.normalise_jacobian(draw(2, 2)), ValueError),
        (lambda: G.margin_slope(torch.zeros(1, dtype=F64)), ValueError),
        (lambda: G.margin_slope(torch.full((1,), math.nan, dtype=F64)), ValueError),
        (lambda: G.psi(GRID, 0), ValueError),
        (lambda: G.psi(GRID, 1.35), ValueError),
        (lambda: G.psi_slope(GRID[1:2], True), ValueError),
        (lambda: G.chebyshev(GRID.cos(), -1), ValueError),
        (lambda: G.l_softmax_target_gradients(draw(1, 2), draw(1, 2), 5), ValueError),
    ],
)
def test_bad_arguments(call, error):
    with pytest.raises(error):
        call()
