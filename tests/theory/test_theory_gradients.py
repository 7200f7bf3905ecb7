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


@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_l_softmax_target(m):
    # By the double-angle formulas, for angles in each of the m pieces of psi; the norms multiply.
    t = (torch.arange(m, dtype=F64) + 0.3) * math.pi / m
    x, w = 3.0 * torch.stack([t.cos(), t.sin()], 1), torch.tensor([[0.5, 0.0]], dtype=F64)
    signs, k = (-1.0) ** torch.arange(m), torch.arange(m, dtype=F64)
    check_identity(G.l_softmax_target(x, w, m), 1.5 * (signs * (m * t).cos() - 2.0 * k), **NAMES)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: G.softmax_loss_gradient(torch.ones(2, 3), torch.tensor([0, 1])), TypeError),
        (lambda: G.softmax_loss_gradient(draw(2, 3), torch.tensor([0, 3])), ValueError),
        (lambda: G.softmax_loss_gradient(draw(2, 3), torch.tensor([0, -1])), ValueError),
        (lambda: G.softmax_loss_gradient(draw(2, 3), torch.tensor([0])), ValueError),
        (lambda: G.softmax_loss_gradient(draw(2, 3), torch.tensor([0.0, 1.0])), TypeError),
        (lambda: G.softmax_loss(draw(0, 3), torch.zeros(0, dtype=torch.int64)), ValueError),
        (lambda: G.normalise_backward(draw(2).float(), draw(2)), TypeError),
        (lambda: G.psi(GRID, 0), ValueError),
        (lambda: G.psi(GRID, 1.35), TypeError),
    ],
)
def test_bad_arguments(call, error):
    with pytest.raises(error):
        call()
