"""Notebook 08: the mathematics that its page states without a check cell; oracles from the equations, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, embedding, one_hot
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from reprolib import losses, optim
from reprolib.theory import normal
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity
from reprolib.theory.numerics import gaussian

F64 = torch.float64
NAMES = {"id": "08.test", "statement": "a statement of notebook 08", "source": "notebook 08"}
ATTACK = {"draws": 200, "steps": 40}
LABELS = torch.tensor([0, 3, 3, 10, 5, 0, 7])
DRAW = torch.Generator().manual_seed(8)
X, W, BIAS = 2 * normal(7, 6, seed=DRAW), normal(11, 6, seed=DRAW), torch.linspace(-1, 1, 11, dtype=F64)
Z6 = 1.5 * normal(6, seed=DRAW)
Q6 = torch.tensor([0.3, 0.25, 0.2, 0.1, 0.1, 0.05], dtype=F64)
MARGINS = {"none": lambda t: t.cos(), "angular": lambda t: (t + 0.5).cos(), "cosine": lambda t: t.cos() - 0.35}
SLOPES = {
    "none": lambda t: torch.ones_like(t),
    "angular": lambda t: (t + 0.5).sin() / t.sin(),
    "cosine": lambda t: torch.ones_like(t),
}
# how a loss is made, its phi(theta) from its paper, and whether features and weights are normalised
TARGETS: dict[str, tuple[Callable[..., losses.MarginSoftmax], Callable[[Tensor], Tensor], bool, bool]] = {
    "Softmax": (losses.Softmax, torch.cos, False, False),
    "L2Softmax": (partial(losses.L2Softmax, scale=9.0), torch.cos, True, False),
    "NormFace": (partial(losses.NormFace, scale=9.0, learn_scale=False), torch.cos, True, True),
    "LSoftmax": (partial(losses.LSoftmax, margin=3), lambda t: psi(t, 3), False, False),
    "ASoftmax": (partial(losses.ASoftmax, margin=3), lambda t: psi(t, 3), False, True),
    "CosFace": (partial(losses.CosFace, margin=0.35, scale=9.0), MARGINS["cosine"], True, True),
    "ArcFace": (partial(losses.ArcFace, margin=0.5, scale=9.0), MARGINS["angular"], True, True),
    "CombinedMargin": (
        partial(losses.CombinedMargin, m1=1.1, m2=0.3, m3=0.1, scale=9.0),
        lambda t: (1.1 * t + 0.3).cos() - 0.1,
        True,
        True,
    ),
}


def psi(theta: Tensor, m: int) -> Tensor:
    # L-Softmax eq. 6: (-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m]
    k = (m * theta.detach() / math.pi).floor()
    return (1 - 2 * (k % 2)) * (m * theta).cos() - 2 * k


def angles(x: Tensor, w: Tensor) -> Tensor:
    r, c = x.square().sum(1).sqrt(), w.square().sum(1).sqrt()
    return (x @ w.T / r[:, None] / c).acos()


def written_out(name: str, x: Tensor, w: Tensor) -> Tensor:
    """The loss of a member from its equation: z_ij = R_i C_j cos theta_ij + b_j, phi(theta) for the own class."""
    made, phi, unit_x, unit_w = TARGETS[name]
    theta, own = angles(x, w), one_hot(LABELS, len(w)).bool()
    length = torch.full((len(x),), 9.0, dtype=F64) if unit_x else x.square().sum(1).sqrt()
    width = torch.ones(len(w), dtype=F64) if unit_w else w.square().sum(1).sqrt()
    z = length[:, None] * width * torch.where(own, phi(theta), theta.cos())
    return cross_entropy(z + BIAS if made(6, 11).bias is not None else z, LABELS)


def gradients(loss: Callable[[Tensor, Tensor], Tensor]) -> list[Tensor]:
    x, w = X.clone().requires_grad_(), W.clone().requires_grad_()
    value = loss(x, w)
    return [value.detach(), *torch.autograd.grad(value, (x, w))]


@pytest.mark.parametrize("rows", [1, 3, 7])
@pytest.mark.parametrize("name", TARGETS)
def test_the_kernel_by_rows_is_the_whole_matrix_of_the_equation(name, rows):
    head = TARGETS[name][0](6, 11, eps=0.0, chunk_bytes=8 * 11 * rows).double()
    if head.bias is not None:
        head.bias.data.copy_(BIAS)
    kernel = gradients(lambda x, w: torch.func.functional_call(head, {"weight": w}, (x, LABELS)))
    for mine, theirs in zip(kernel, gradients(partial(written_out, name)), strict=True):
        check_identity(mine, theirs, **NAMES)


@pytest.mark.parametrize("name", MARGINS)
def test_folded_gradients_in_features_weights_and_scale(name):
    # (8.4) with phi' on the target, and dL/ds = sum_i a_i.x_i / s + sum_i g_iy (phi - phi' cos theta)
    index = torch.arange(len(X))

    def loss(x, w, s):
        theta, own = angles(x, w), one_hot(LABELS, len(w)).bool()
        return cross_entropy(s * torch.where(own, MARGINS[name](theta), theta.cos()), LABELS)

    def closed(x, w, s):
        r, c, theta = x.norm(dim=1), w.norm(dim=1), angles(x, w)
        own = theta[index, LABELS]
        phi, slope = MARGINS[name](own), SLOPES[name](own)
        z = s * theta.cos()
        z[index, LABELS] = s * phi
        g = (z.softmax(1) - one_hot(LABELS, len(w))) / len(x)
        q = s * g / (r[:, None] * c)
        q[index, LABELS] *= slope
        a, b = q @ w, q.T @ x
        by_scale = (a * x).sum() / s + (g[index, LABELS] * (phi - slope * own.cos())).sum()
        tangent = a - x * ((a * x).sum(1) / r**2)[:, None], b - w * ((b * w).sum(1) / c**2)[:, None]
        for gradient, vector in zip(tangent, (x, w), strict=True):
            check_identity((gradient * vector).sum(1), torch.zeros(len(vector), dtype=F64), **NAMES)
        return *tangent, by_scale

    check_gradient(loss, (X, W, torch.tensor(6.0, dtype=F64)), closed, **NAMES)


def by_columns(x: Tensor, w: Tensor, y: Tensor, size: int) -> list[Tensor]:
    """Plain softmax with classes in blocks on one machine: all sums first, then the logits again."""
    total = torch.full((len(x),), -math.inf, dtype=x.dtype)
    for block in w.split(size):
        total = torch.logaddexp(total, (x @ block.T).logsumexp(1))
    grad_x, grad_w = torch.zeros_like(x), []
    for start, block in zip(range(0, len(w), size), w.split(size), strict=True):
        g = (x @ block.T - total[:, None]).exp() / len(x)
        inside = ((y >= start) & (y < start + len(block))).nonzero().flatten()
        g[inside, y[inside] - start] -= 1 / len(x)
        grad_x, grad_w = grad_x + g @ block, [*grad_w, g.T @ x]
    return [(total - (x * w[y]).sum(1)).mean(), grad_x, torch.cat(grad_w)]


def test_blocks_of_classes_on_one_machine_need_a_fourth_product():
    for mine, theirs in zip(
        by_columns(X, W, LABELS, 4), gradients(lambda x, w: cross_entropy(x @ w.T, LABELS)), strict=True
    ):
        check_identity(mine, theirs, **NAMES)
    with FlopCounterMode(display=False) as counter:
        by_columns(X, W, LABELS, 4)
    assert counter.get_total_flops() == 4 * 2 * X.numel() * len(W)


class Widest(TorchDispatchMode):
    """Remembers the largest number of elements of any tensor that an operation made."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        several = made if isinstance(made, (tuple, list)) else (made,)
        self.elements = max([self.elements, *(t.numel() for t in several if isinstance(t, Tensor))])
        return made


@pytest.mark.parametrize(
    "options, largest",
    [({"chunk_bytes": 4 * 400 * 6}, 400 * 16), ({"implementation": "reference"}, 48 * 400)],
    ids=["rows", "whole"],
)
def test_the_logits_never_exist_as_a_whole(options, largest):
    x, y = torch.randn(48, 16, generator=torch.Generator().manual_seed(1), requires_grad=True), torch.arange(48)
    with Widest() as mode:
        losses.ArcFace(16, 400, **options)(x, y).backward()
    assert mode.elements == largest


def with_replacement() -> tuple[Tensor, Tensor]:
    draws = torch.cartesian_prod(*[torch.arange(6)] * 3)
    return Q6[draws].prod(1), one_hot(draws, 6).sum(1).double()


def corrected_subsets() -> Tensor:
    """Weights (6, 6) of all samples of Partial FC, corrected: classes 0 and 1 always in, 2 of the other 4."""
    subsets = torch.combinations(torch.arange(2, 6), 2)
    weights = torch.zeros(len(subsets), 6, dtype=F64).scatter(1, subsets, 2.0)
    weights[:, :2] = 1.0
    return weights


def partition(weights: Tensor, z: Tensor) -> Tensor:
    return weights[:, 1:] @ z[1:].exp() + z[0].exp()


def test_a_correction_that_is_not_log_q_is_biased():
    probability, counts = with_replacement()
    check_identity(probability @ partition(counts / (3 * Q6), Z6), Z6.exp().sum(), **NAMES)
    # w = c C / k would be right for uniform q
    other = probability @ partition(counts * 6 / 3, Z6)
    check_counterexample((other - Z6.exp().sum()).abs(), 0.0, at_least=1e-3, **NAMES)
    # and a class that is always in, with weight max(1, c / (k q)), counts more than once
    weight = (counts / (3 * Q6))[:, 1].clamp_min(1.0)
    check_counterexample(probability @ weight, 1.0, at_least=1e-3, **NAMES)


def test_the_best_proposal_is_the_softmax_itself():
    # sum e^2z / q >= R^2 / (1 - q_y), equal for q_j proportional to e^z_j
    e = Z6.exp()

    def slack(a: Tensor) -> Tensor:
        q = a.softmax(0)
        return (e[1:] ** 2 / q[1:]).sum() - (e.sum() - e[0]) ** 2 / (1 - q[0])

    check_bound(slack, 0.0, gaussian((6,)), extremal=(Z6,), **ATTACK, **NAMES)


def test_the_sampled_loss_is_too_small_and_the_own_probability_too_large():
    weights, flat = corrected_subsets(), torch.tensor([2.0, -1.0, 0.5, 0.5, 0.5, 0.5], dtype=F64)
    probability, counts = with_replacement()
    replaced = counts / (3 * Q6)

    def loss_bias(z: Tensor) -> Tensor:
        return partition(weights, z).log().mean() - z.logsumexp(0)

    def own_excess(z: Tensor) -> Tensor:
        return (z[0].exp() / partition(weights, z)).mean() - z.softmax(0)[0]

    # equal where all strangers are alike
    check_bound(loss_bias, 0.0, gaussian((6,)), side="upper", extremal=(flat,), **ATTACK, **NAMES)
    check_bound(own_excess, 0.0, gaussian((6,)), extremal=(flat,), **ATTACK, **NAMES)

    def softmax_bias(z: Tensor) -> Tensor:
        return probability @ partition(replaced, z).log() - z.logsumexp(0)

    check_bound(softmax_bias, 0.0, gaussian((6,)), side="upper", **ATTACK, **NAMES)


def test_a_stranger_takes_part_in_a_share_of_the_steps_whether_in_the_batch_or_drawn():
    # (8.15): K - 1 of the C - 1 other classes are in, each as likely as any other
    sampler, generator, C, steps = losses.PartialFC(0.3, seed=2), torch.Generator().manual_seed(0), 40, 4000
    times = torch.zeros(C, dtype=F64)
    for _ in range(steps):
        others = 1 + torch.randperm(C - 1, generator=generator)[:5]
        times[sampler(torch.cat([torch.tensor([0]), others]), C).classes] += 1
    share = (12 - 1) / (C - 1)
    error = math.sqrt(share * (1 - share) / steps)
    assert float((times[1:] / steps - share).abs().max()) < 4.5 * error


def test_sampled_losses_are_the_weighted_sums_on_the_drawn_classes():
    # (8.8) with the shift log w_j on all but the own class; the library's shifts are float32
    x, w, y = normal(12, 6, seed=3), normal(60, 6, seed=4), torch.arange(12) * 5
    for make in (lambda: losses.PartialFC(0.4, corrected=True), lambda: losses.SampledSoftmax(25)):
        head = losses.ArcFace(6, 60, scale=8.0, eps=0.0, sampler=make()).double()
        head.weight.data.copy_(w)
        drawn = make()(y, 60)
        assert drawn.correction is not None
        own, theta = y[:, None] == drawn.classes, angles(x, w[drawn.classes])
        terms = (8 * torch.where(own, (theta + 0.5).cos(), theta.cos())).exp()
        total = (terms * torch.where(own, 1.0, drawn.correction.double().exp())).sum(1)
        written = (total.log() - terms[own].log()).mean()
        check_identity(head(x, y).detach(), written, tolerance=1e-6, **NAMES)


def test_rows_that_stand_still_are_another_optimiser():
    # momentum kept for the drawn rows alone, against SGD, which SparseMomentumSGD is to the last digits
    def trained(kind: str) -> Tensor:
        table = normal(20, 4, seed=5).requires_grad_()
        sgd, velocity = torch.optim.SGD([table], lr=0.1, momentum=0.9), torch.zeros(20, 4, dtype=F64)
        for step in range(30):
            rows = torch.arange(step, step + 4) % 20
            sgd.zero_grad()
            embedding(rows, table).square().sum().backward()
            if kind == "dense":
                sgd.step()
            else:
                velocity[rows] = 0.9 * velocity[rows] + table.grad[rows]
                table.data[rows] -= 0.1 * velocity[rows]
        return table.detach()

    check_counterexample((trained("frozen") - trained("dense")).abs().max(), 0.0, at_least=1e-3, **NAMES)


def test_idle_nesterov_steps_are_a_geometric_sum():
    # exercise of section 9: p_n = p_0 - eta mu^2 (1 - mu^n) / (1 - mu) v_0
    eta, mu, n = 0.1, 0.9, 5
    product = torch.linalg.matrix_power(optim.idle_step(eta, mu, 0.0, True), n)
    closed = torch.tensor([[1.0, -eta * mu**2 * (1 - mu**n) / (1 - mu)], [0.0, mu**n]], dtype=F64)
    check_identity(product.double(), closed, tolerance=1e-7, **NAMES)
