"""The kernel: precisions, chunks, one weight gradient in memory, retained graphs, autocast, torch.compile."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from reprolib.losses import (
    ArcFace,
    ASoftmax,
    CombinedMargin,
    CosFace,
    L2Softmax,
    LSoftmax,
    NormFace,
    PartialFC,
    Softmax,
    fused,
)

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


def at_angle(degrees: float, weight: torch.Tensor, rows: int) -> torch.Tensor:
    """Features of length 3 at the same angle to their class weights (those of class 0 .. rows - 1)."""
    generator = torch.Generator().manual_seed(int(degrees * 10))
    own = nn.functional.normalize(weight[:rows].double())
    away = torch.randn(rows, weight.shape[1], generator=generator, dtype=torch.float64)
    away = nn.functional.normalize(away - (away * own).sum(1, keepdim=True) * own)
    theta = math.radians(degrees)
    return (3 * (math.cos(theta) * own + math.sin(theta) * away)).to(weight.dtype)


TARGETS = {
    "normface": (lambda *a, **o: NormFace(*a, scale=64.0, learn_scale=False, **o), lambda c, s: c),
    "cosface": (CosFace, lambda c, s: c - 0.35),
    "arcface": (ArcFace, lambda c, s: c * math.cos(0.5) - s * math.sin(0.5)),
    "combined": (CombinedMargin, lambda c, s: (torch.atan2(s, c) + 0.3).cos() - 0.2),
    "asoftmax": (ASoftmax, None),
    "lsoftmax": (LSoftmax, None),
    "softmax": (lambda *a, **o: Softmax(*a, bias=False, **o), None),
}


def exact(name, x, w, y):
    """Loss and gradients in float64: log(1 + sum_{j != y} e^{z_j - z_y}), written from the papers' logits."""
    x, w = (t.double().requires_grad_() for t in (x, w))
    r, r_w = x.norm(dim=1, keepdim=True), w.norm(dim=1)
    cosine = (x @ w.t()) / (r * r_w)
    c = cosine.gather(1, y[:, None])
    # sin(theta) from the tangent part, which is accurate at both ends
    unit, own = x / r, (w / r_w[:, None])[y]
    sine = (own - c * unit).norm(dim=1, keepdim=True)
    if TARGETS[name][1] is not None:
        size, phi = 64.0, TARGETS[name][1](c, sine)
    else:
        size = r if name == "asoftmax" else r * r_w
        m, theta = 1 if name == "softmax" else 4, torch.atan2(sine, c)
        k = (theta.detach() * m / math.pi).floor().clamp(max=m - 1)
        phi = (1 - 2 * (k % 2)) * (m * theta).cos() - 2 * k
    z = size * cosine
    others = z.scatter(1, y[:, None], -math.inf).logsumexp(dim=1)
    target = phi[:, 0] * (size * torch.ones_like(cosine)).gather(1, y[:, None])[:, 0]
    loss = -nn.functional.logsigmoid(target - others).mean()
    return loss.detach(), *torch.autograd.grad(loss, [x, w])


@pytest.mark.parametrize(
    "name, implementation",
    [*itertools.product(TARGETS, ["fused"]), *itertools.product(["arcface", "softmax"], ["reference", "partial"])],
)
def test_float32_is_exact_at_every_angle(name, implementation):
    torch.manual_seed(0)
    classes, rows = 4000, 4
    options = {"sampler": PartialFC(1.0)} if implementation == "partial" else {"implementation": implementation}
    head = TARGETS[name][0](512, classes, **options)
    y = torch.arange(rows)
    for degrees in (20, 35, 75, 120, 178):
        x = at_angle(degrees, head.weight.detach(), rows).requires_grad_()
        value = head(x, y)
        mine = [value.detach(), *torch.autograd.grad(value, [x, head.weight])]
        for one, two in zip(mine, exact(name, x.detach(), head.weight.detach(), y), strict=True):
            assert float((one.double() - two).norm() / two.norm()) < 1e-3, (degrees, one.shape)


def test_on_the_weight_itself_the_value_is_still_right():
    torch.manual_seed(0)
    head = ArcFace(512, 4000)
    y = torch.arange(4)
    for degrees, tolerance in ((0, 0.05), (1, 1e-3), (5, 1e-4), (179, 1e-3)):
        x = at_angle(degrees, head.weight.detach(), 4).requires_grad_()
        value = head(x, y)
        assert float(value.detach()) == pytest.approx(
            float(exact("arcface", x.detach(), head.weight.detach(), y)[0]), rel=tolerance
        )
        assert all(torch.isfinite(g).all() for g in torch.autograd.grad(value, [x, head.weight]))


def test_a_sampled_row_without_other_classes_has_loss_and_gradient_zero():
    head = ArcFace(D, C)
    x, y = batch()
    x.requires_grad_()
    correction = torch.full((C,), -math.inf)
    form = fused.Form(head.margin, head.strength, True, True, head.eps)
    value = fused.fused_margin_softmax(fused.Inputs(x, head.weight, None, head.scale, y, correction), form)
    grads = torch.autograd.grad(value, [x, head.weight])
    assert float(value.detach()) == 0.0 and all(float(g.abs().max()) == 0.0 for g in grads)


@pytest.mark.parametrize("scale", [2.0**15, 2.0**16, 2.0**18])
@pytest.mark.parametrize("name", MEMBERS)
def test_half_gradients_under_a_loss_scale_are_those_of_float32(name, scale):
    torch.manual_seed(1)
    half, wide = MEMBERS[name](D, C), MEMBERS[name](D, C)
    half = half.half()
    wide.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    x, y = batch(torch.float16)
    leaf, plain = (t.clone().requires_grad_() for t in (x, x.float()))
    # small enough that the scaled gradients fit into half precision, as a scaler finds it
    factor = scale / 2.0**14
    got = torch.autograd.grad(half(leaf, y) * scale * 2.0**-14, [leaf, *half.parameters()])
    expected = torch.autograd.grad(wide(plain, y), [plain, *wide.parameters()])
    for mine, theirs in zip(got, expected, strict=True):
        assert mine.dtype == torch.float16 and torch.equal(mine, (theirs * factor).half())


def test_a_loss_scale_beyond_half_precision_is_no_infinity():
    torch.manual_seed(0)
    head = NormFace(64, 100)
    labels = torch.arange(200) % 100
    x = (head.weight.detach()[labels] + 0.02 * torch.randn(200, 64)).half().requires_grad_()
    (scaled,) = torch.autograd.grad(head(x, labels) * 262_144.0, x)
    (plain,) = torch.autograd.grad(head(x, labels), x)
    exact_x = x.detach().float().requires_grad_()
    (wide,) = torch.autograd.grad(head(exact_x, labels), exact_x)
    assert torch.isfinite(scaled).all()
    # what underflows without the scale is there with it
    lost = (plain == 0) & (wide.abs() > 1e-12)
    assert lost.any() and (scaled[lost] != 0).double().mean() > 0.9
    assert relative(scaled.double() / 262_144, wide.double()) < 2**-10


@pytest.mark.parametrize("name", MEMBERS)
def test_a_second_derivative_is_refused_or_right(name):
    x, y = batch(torch.float64)
    x.requires_grad_()
    torch.manual_seed(1)
    head = MEMBERS[name](D, C, implementation="reference").double()
    plain = MEMBERS[name](D, C).double()
    with pytest.raises(RuntimeError, match=r"no second derivative.*implementation='reference'"):
        torch.autograd.grad(plain(x, y), x, create_graph=True)
    if name == "cosface":
        assert torch.autograd.gradgradcheck(lambda x: head(x, y[:4]), (x[:4].detach().requires_grad_(),))


@pytest.mark.parametrize("types", [(torch.float64, torch.float32), (torch.float32, torch.float64)])
def test_mixed_precisions_are_computed_in_the_wider(types):
    x, y = batch(types[0])
    head, wide = ArcFace(D, C).to(types[1]), ArcFace(D, C).double()
    wide.load_state_dict({key: value.double() for key, value in head.state_dict().items()})
    mine, theirs = gradients(head, x, y), gradients(wide, x.double(), y)
    assert mine[0].dtype == torch.float64 and torch.equal(mine[0], theirs[0])
    assert [g.dtype for g in mine[1:]] == list(types)
    assert all(torch.equal(one, two.to(one.dtype)) for one, two in zip(mine[1:], theirs[1:], strict=True))
    assert head.logits(x).dtype == head.plain_loss(x, y).dtype == torch.float64


def test_dropped_entries_stay_within_the_bound():
    torch.manual_seed(0)
    classes, rows, drop = 3000, 96, 2.0**-24
    head = ArcFace(256, classes)
    sparse = ArcFace(256, classes, drop=drop, chunk_bytes=40 * 4 * classes)
    sparse.load_state_dict(head.state_dict())
    labels = torch.arange(rows) % 60
    x = torch.cat([at_angle(35 + 0.05 * k, head.weight.detach(), 60)[k % 60][None] for k in range(rows)])
    leaf, other = x.clone().requires_grad_(), x.clone().requires_grad_()
    dense = torch.autograd.grad(head(leaf, labels), [leaf, head.weight])
    kept = torch.autograd.grad(sparse(other, labels), [other, sparse.weight])
    assert torch.allclose(sparse(other, labels), head(leaf, labels), rtol=1e-5, atol=0)
    # delta_i <= C t, R_i = s, C_j = 1: |dL/dx_i| is off by at most C t s / (N r_i), |dL/dW_j| by s t / ||W_j||
    slack = 1e-5
    bound = classes * drop * 64 / (rows * x.norm(dim=1)) + slack * dense[0].norm(dim=1)
    assert ((kept[0] - dense[0]).norm(dim=1) <= bound).all()
    bound = 64 * drop / head.weight.detach().norm(dim=1) + slack * dense[1].norm(dim=1)
    assert ((kept[1] - dense[1]).norm(dim=1) <= bound).all()
    # something was dropped: weights of classes that no sample is near to have a gradient of exactly 0
    untouched = (kept[1] == 0).all(dim=1)
    assert untouched.any() and not (dense[1][untouched] == 0).all()


def test_many_large_entries_fall_back_to_the_dense_products():
    head, sparse = CosFace(D, C, scale=8.0), CosFace(D, C, scale=8.0, drop=2.0**-24)
    sparse.load_state_dict(head.state_dict())
    for one, two in zip(gradients(sparse, *batch()), gradients(head, *batch()), strict=True):
        assert relative(one, two) < 1e-6
