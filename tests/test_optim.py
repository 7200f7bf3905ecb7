"""Sparse momentum against torch's dense SGD on the same samples, resumption, cost by rows."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from reprolib.losses import ArcFace
from reprolib.losses.sampled import PartialFC
from reprolib.optim import SparseMomentumSGD, idle_step

D, C, N = 4, 40, 6


def make(sparse: bool, seed: int = 0) -> ArcFace:
    head = ArcFace(
        D,
        C,
        scale=8.0,
        sampler=PartialFC(0.3, seed=7),
        sparse_grad=sparse,
        generator=torch.Generator().manual_seed(seed),
    )
    return head.double()


def batch(step: int):
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randn(N, D, generator=generator, dtype=torch.float64), torch.randint(0, C, (N,), generator=generator)


def advance(head, optimizer, steps, start=0):
    for step in range(start, start + steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.3 * (1.1 + math.sin(step))
        optimizer.zero_grad()
        head(*batch(step)).backward()
        optimizer.step()


@pytest.mark.parametrize("horizon", [1, 7, 1024])
@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.02])
def test_equals_dense_sgd_with_a_changing_learning_rate(weight_decay, nesterov, horizon):
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": weight_decay, "nesterov": nesterov}
    dense, lazy = make(False), make(True)
    assert torch.equal(dense.weight, lazy.weight)
    ordinary = torch.optim.SGD(dense.parameters(), **options)
    sparse = SparseMomentumSGD(lazy.parameters(), **options, horizon=horizon)
    sparse.attach(lazy)
    advance(dense, ordinary, 40)
    advance(lazy, sparse, 40)
    if horizon == 1024:
        # rows that were not drawn lately are indeed left alone until they are read
        assert (dense.weight - lazy.weight).detach().abs().max() > 1e-3
    assert (dense.logits(batch(0)[0]) - lazy.logits(batch(0)[0])).detach().abs().max() < 1e-12
    assert (dense.weight - lazy.weight).detach().abs().max() < 1e-12
    velocity = ordinary.state[dense.weight]["momentum_buffer"]
    assert (velocity - sparse.state[lazy.weight]["velocity"]).abs().max() < 1e-12


def test_dense_gradients_get_the_ordinary_step():
    p = torch.nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
    q = copy.deepcopy(p)
    options = {"lr": 0.1, "momentum": 0.8, "weight_decay": 0.01, "nesterov": True}
    mine, theirs = SparseMomentumSGD([p], **options), torch.optim.SGD([q], **options)
    for _ in range(5):
        for parameter, optimizer in ((p, mine), (q, theirs)):
            optimizer.zero_grad()
            parameter.pow(4).sum().backward()
            optimizer.step()
    assert (p - q).detach().abs().max() < 1e-14


def test_a_resumed_run_continues_bit_for_bit():
    head = make(True)
    optimizer = SparseMomentumSGD(head.parameters(), lr=0.1, weight_decay=0.01)
    optimizer.attach(head)
    advance(head, optimizer, 9)
    saved = copy.deepcopy((head.state_dict(), optimizer.state_dict()))
    advance(head, optimizer, 9, start=9)
    other = make(True, seed=5)
    resumed = SparseMomentumSGD(other.parameters(), lr=0.1, weight_decay=0.01)
    resumed.attach(other)
    other.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    advance(other, resumed, 9, start=9)
    for one, two in zip(head.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(one, two)


def test_saved_weights_are_up_to_date():
    dense, lazy = make(False), make(True)
    ordinary = torch.optim.SGD(dense.parameters(), lr=0.1, momentum=0.9)
    sparse = SparseMomentumSGD(lazy.parameters(), lr=0.1)
    sparse.attach(lazy)
    advance(dense, ordinary, 12)
    advance(lazy, sparse, 12)
    assert (dense.state_dict()["weight"] - lazy.state_dict()["weight"]).abs().max() < 1e-12


def test_a_step_touches_the_drawn_rows_only():
    head = make(True)
    optimizer = SparseMomentumSGD(head.parameters(), lr=0.1)
    before = head.weight.detach().clone()
    head(*batch(0)).backward()
    rows = head.weight.grad.coalesce().indices()[0]
    assert len(rows) == round(0.3 * C)
    optimizer.step()
    changed = (head.weight.detach() != before).any(dim=1).nonzero().squeeze(1)
    assert torch.equal(changed, rows)


def test_idle_steps_decay_to_the_geometric_sum():
    # p after n idle steps without decay: p - h v mu (1 - mu^n) / (1 - mu)
    product = torch.linalg.matrix_power(idle_step(0.2, 0.9, 0.0, False), 12)
    assert float(product[0, 1]) == pytest.approx(-0.2 * 0.9 * (1 - 0.9**12) / 0.1, rel=1e-12)


@pytest.mark.parametrize(
    "options", [{"lr": 0.0}, {"lr": 0.1, "momentum": 1.0}, {"lr": 0.1, "weight_decay": -1.0}, {"lr": 0.1, "horizon": 0}]
)
def test_wrong_settings_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        SparseMomentumSGD([torch.nn.Parameter(torch.zeros(2, 2))], **options)


def test_a_foreign_head_and_a_change_of_kind_are_refused():
    head = make(True)
    optimizer = SparseMomentumSGD(head.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="not among"):
        optimizer.attach(make(True))
    advance(head, optimizer, 1)
    head.sparse_grad = False
    optimizer.zero_grad()
    head(*batch(1)).backward()
    with pytest.raises(ValueError, match="dense"):
        optimizer.step()
