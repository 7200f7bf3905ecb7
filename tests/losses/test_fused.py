"""The kernel: precisions, chunks, one weight gradient in memory, retained graphs, autocast, torch.compile."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from reprolib.losses import ArcFace, ASoftmax, CombinedMargin, CosFace, L2Softmax, LSoftmax, NormFace, Softmax, fused

MEMBERS = {
    "softmax": Softmax,
    "l2": lambda *a, **o: L2Softmax(*a, learn_alpha=True, **o),
    "normface": NormFace,
    "lsoftmax": LSoftmax,
    "asoftmax": ASoftmax,
    "cosface": lambda *a, **o: CosFace(*a, learn_scale=True, **o),
    **{f"arcface-{guard}": lambda *a, g=guard, **o: ArcFace(*a, guard=g, **o) for guard in ("none", "hard", "easy")},
    "combined": CombinedMargin,
}
D, C, N = 16, 90, 33


def batch(dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, C, (N,), generator=generator)


def gradients(head, x, y):
    x = x.clone().requires_grad_()
    value = head(x, y)
    return [value.detach(), *torch.autograd.grad(value, [x, *head.parameters()])]


def relative(one, two):
    return float((one - two).abs().max() / two.abs().max())


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", MEMBERS)
def test_equals_the_reference(name, dtype, tolerance):
    torch.manual_seed(1)
    head = MEMBERS[name](D, C, chunk_bytes=7 * C * 8).to(dtype)
    plain = MEMBERS[name](D, C, implementation="reference").to(dtype)
    plain.load_state_dict(head.state_dict())
    for mine, theirs in zip(gradients(head, *batch(dtype)), gradients(plain, *batch(dtype)), strict=True):
        assert relative(mine, theirs) < tolerance


@pytest.mark.parametrize("name", MEMBERS)
def test_pieces_and_chunks_change_nothing_but_rounding(name, monkeypatch):
    torch.manual_seed(1)
    head = MEMBERS[name](D, C).double()
    whole = gradients(head, *batch(torch.float64))
    monkeypatch.setattr(fused, "CACHE_BYTES", 3 * C * 8)
    head.chunk_bytes = 10 * C * 8
    for one, two in zip(gradients(head, *batch(torch.float64)), whole, strict=True):
        assert relative(one, two) < 1e-13


def test_chunks_are_of_equal_size_and_within_the_budget():
    weight = torch.empty(85_742, 512, device="meta")
    rows = fused.chunk_rows(512, weight)
    assert rows == 128 and fused.chunk_rows(500, weight) == 125
    assert fused.chunk_rows(512, weight, 4 * 85_742) == 1
    # many classes: a quarter of the weights, however many; fewer classes: 32 MiB
    assert fused.chunk_rows(512, torch.empty(1_000_000, 512, device="meta")) == 128
    assert fused.chunk_rows(4096, torch.empty(10_000, 512, device="meta")) * 40_000 <= fused.CHUNK_BYTES
    assert fused.chunk_rows(64, torch.empty(10, 2)) == 64


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MEMBERS)
def test_bfloat16_is_computed_in_float32(name, weight_dtype, monkeypatch):
    monkeypatch.setattr(fused, "CHUNK_BYTES", 4 * D * 20)
    torch.manual_seed(1)
    half = MEMBERS[name](D, C)
    half.weight.data = half.weight.data.to(weight_dtype)
    wide = MEMBERS[name](D, C)
    wide.load_state_dict(half.state_dict())
    x, y = batch(torch.bfloat16)
    mine, theirs = gradients(half, x, y), gradients(wide, x.float(), y)
    assert relative(mine[0], theirs[0]) < 1e-6
    for one, two in zip(mine[1:], theirs[1:], strict=True):
        # the gradient is rounded to the type of its tensor once, at the end
        assert relative(one.float(), two) < (1e-5 if one.dtype == torch.float32 else 2**-8)


@pytest.mark.parametrize("implementation", ["fused", "reference"])
def test_autocast_leaves_the_head_in_float32(implementation):
    head = ArcFace(D, C, implementation=implementation)
    x, y = batch()
    x.requires_grad_()
    plain = head(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = head(x, y)
        assert head.logits(x).dtype == head.plain_loss(x, y).dtype == torch.float32
    assert torch.equal(plain, cast)
    inputs = [x, head.weight]
    for one, two in zip(torch.autograd.grad(plain, inputs), torch.autograd.grad(cast, inputs), strict=True):
        assert torch.equal(one, two)


def test_autograd_takes_the_weight_gradient_without_a_copy(monkeypatch):
    made = []
    original = fused.value_and_gradients

    def watch(*arguments):
        value, tensors = original(*arguments)
        made.append(tensors[1].data_ptr())
        return value, tensors

    monkeypatch.setattr(fused, "value_and_gradients", watch)
    head = ArcFace(D, C)
    for factor in (1.0, 0.5):
        head.zero_grad(set_to_none=True)
        (head(*batch()) * factor).backward()
        assert head.weight.grad.data_ptr() == made[-1]


def test_a_retained_graph_gives_the_same_gradient_again():
    head = NormFace(D, C)
    x, y = batch()
    x.requires_grad_()
    inputs = [x, *head.parameters()]
    value = head(x, y)
    first = torch.autograd.grad(value, inputs, retain_graph=True)
    kept = [g.clone() for g in first]
    for g in first:
        g.zero_()
    second = torch.autograd.grad(value, inputs, torch.tensor(3.0), retain_graph=True)
    third = torch.autograd.grad(value, inputs)
    for one, two, three in zip(kept, second, third, strict=True):
        assert torch.equal(3.0 * one, two) and torch.equal(one, three)
    with pytest.raises(RuntimeError, match="second time"):
        value.backward()


def test_the_second_pass_uses_the_warmup_of_the_forward_pass():
    head = ArcFace(D, C)
    x, y = batch()
    head.set_warmup(scale=8.0, strength=0.4)
    value = head(x, y)
    (first,) = torch.autograd.grad(value, head.weight, retain_graph=True)
    head.set_warmup(scale=64.0, strength=1.0)
    (second,) = torch.autograd.grad(value, head.weight)
    assert torch.equal(first, second)


def test_a_changed_weight_is_noticed_before_a_second_pass():
    head = ArcFace(D, C)
    value = head(*batch())
    value.backward(retain_graph=True)
    with torch.no_grad():
        head.weight.mul_(2.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()


def test_no_grad_makes_no_gradient(monkeypatch):
    asked = []
    original = fused.value_and_gradients
    monkeypatch.setattr(fused, "value_and_gradients", lambda *a: asked.append(a[-1]) or original(*a))
    head = ArcFace(D, C)
    with torch.no_grad():
        value = head(*batch())
    assert asked == [(False,) * 4] and not value.requires_grad
    assert torch.equal(value, head(*batch()).detach())


@pytest.mark.parametrize("frozen", list(itertools.product([False, True], repeat=2)))
def test_only_the_gradients_asked_for_are_made(frozen):
    head = L2Softmax(D, C)
    everything = gradients(head, *batch())
    head.weight.requires_grad_(not frozen[0])
    x, y = batch()
    x.requires_grad_(not frozen[1])
    head(x, y).backward()
    for tensor, skipped, expected in ((head.weight, frozen[0], everything[2]), (x, frozen[1], everything[1])):
        assert (tensor.grad is None) if skipped else torch.equal(tensor.grad, expected)


def test_a_compiled_model_trains_as_the_plain_one():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.head = nn.Sequential(nn.Linear(D, D), nn.Tanh()), ArcFace(D, C, scale=16.0)

        def forward(self, x, y):
            return self.head(self.body(x), y)

    torch.manual_seed(0)
    model = Model()
    x, y = batch()
    expected = [model(x, y), *torch.autograd.grad(model(x, y), list(model.parameters()))]
    # traces as the default backend does, but needs no compiler and no minute
    compiled = torch.compile(model, backend="aot_eager")
    value = compiled(x, y)
    got = [value, *torch.autograd.grad(value, list(model.parameters()))]
    for one, two in zip(got, expected, strict=True):
        assert relative(one.detach(), two.detach()) < 1e-5
