"""The head against a float64 oracle written by angles, gradcheck, boundary angles, wrong input."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch.func import functional_call

from reprolib.losses import fused as fused_module
from reprolib.losses.margin_softmax import (
    ArcFace,
    ASoftmax,
    CombinedMargin,
    CosFace,
    L2Softmax,
    LSoftmax,
    MarginSoftmax,
    NormFace,
    Softmax,
)
from reprolib.losses.margins import AdditiveAngular, AdditiveCosine, CombinedAngular, MultiplicativeAngular, NoMargin
from reprolib.losses.schedules import AnnealedLambda

D, C, N = 5, 7, 9


def batch(seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, C, (N,), generator=generator)


def psi(theta: float, m: int) -> float:
    k = min(int(theta * m / math.pi), m - 1)
    return (-1) ** k * math.cos(m * theta) - 2 * k


def oracle(x, y, w, target, size, bias=None) -> float:
    """Mean of -log softmax, angle by angle: size(i, j) is R_i C_j, target(theta) is phi."""
    total = 0.0
    for i in range(len(x)):
        logits = []
        for j in range(len(w)):
            cosine = float(x[i] @ w[j]) / math.sqrt(float(x[i] @ x[i]) * float(w[j] @ w[j]))
            theta = math.acos(max(-1.0, min(1.0, cosine)))
            value = target(theta) if j == int(y[i]) else math.cos(theta)
            logits.append(size(x[i], w[j]) * value + (0.0 if bias is None else float(bias[j])))
        top = max(logits)
        total += top + math.log(sum(math.exp(z - top) for z in logits)) - logits[int(y[i])]
    return total / len(x)


def norm(v) -> float:
    return math.sqrt(float(v @ v))


CASES = {
    "softmax": (Softmax(D, C), math.cos, lambda x, w: norm(x) * norm(w)),
    "l2": (L2Softmax(D, C, alpha=6.0), math.cos, lambda x, w: 6.0 * norm(w)),
    "normface": (NormFace(D, C, scale=9.0), math.cos, lambda x, w: 9.0),
    "lsoftmax2": (LSoftmax(D, C, m=2), lambda t: psi(t, 2), lambda x, w: norm(x) * norm(w)),
    "lsoftmax3": (LSoftmax(D, C, m=3), lambda t: psi(t, 3), lambda x, w: norm(x) * norm(w)),
    "asoftmax4": (ASoftmax(D, C, m=4), lambda t: psi(t, 4), lambda x, w: norm(x)),
    "cosface": (CosFace(D, C, m=0.35, scale=9.0), lambda t: math.cos(t) - 0.35, lambda x, w: 9.0),
    "arcface": (ArcFace(D, C, m=0.5, scale=9.0), lambda t: math.cos(t + 0.5), lambda x, w: 9.0),
    "combined": (
        CombinedMargin(D, C, m1=0.9, m2=0.4, m3=0.15, scale=9.0),
        lambda t: math.cos(0.9 * t + 0.4) - 0.15,
        lambda x, w: 9.0,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_value_is_the_papers(name):
    loss, target, size = CASES[name]
    loss = loss.double()
    x, y = batch()
    if loss.bias is not None:
        with torch.no_grad():
            loss.bias.copy_(torch.linspace(-1, 1, C))
    expected = oracle(x, y, loss.weight.detach(), target, size, None if loss.bias is None else loss.bias.detach())
    assert float(loss(x, y).detach()) == pytest.approx(expected, rel=1e-10)


def make(margin, features, weights, bias, implementation="fused", eps=1e-2):
    torch.manual_seed(3)
    return MarginSoftmax(
        D,
        C,
        margin=margin,
        normalize_features=features,
        normalize_weights=weights,
        bias=bias,
        scale=6.0,
        learn_scale=features,
        eps=eps,
        implementation=implementation,
    ).double()


MARGINS = [
    NoMargin(),
    MultiplicativeAngular(2),
    MultiplicativeAngular(3),
    MultiplicativeAngular(4),
    AdditiveCosine(0.35),
    *(AdditiveAngular(0.5, guard) for guard in ("none", "hard", "easy", "clamp", "mirror")),
    CombinedAngular(0.9, 0.4, 0.15),
]


@pytest.mark.parametrize("features, weights, bias", list(itertools.product([False, True], repeat=3)))
@pytest.mark.parametrize("margin", MARGINS, ids=repr)
def test_fused_gradient_equals_autograd_of_the_reference(margin, features, weights, bias, monkeypatch):
    # chunks of two rows, so that the loop over chunks is exercised
    monkeypatch.setattr(fused_module, "CHUNK_BYTES", 2 * 8 * C)
    fused = make(margin, features, weights, bias)
    reference = make(margin, features, weights, bias, "reference")
    for head in (fused, reference):
        head.set_warmup(strength=0.8)
    x, y = batch(1)
    x.requires_grad_()
    got = torch.autograd.grad(fused(x, y), [x, *fused.parameters()])
    expected = torch.autograd.grad(reference(x, y), [x, *reference.parameters()])
    assert float((fused(x, y) - reference(x, y)).detach().abs()) < 1e-12
    for mine, theirs in zip(got, expected, strict=True):
        assert (mine - theirs).abs().max() < 1e-12


@pytest.mark.parametrize("features, weights", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("margin", MARGINS, ids=repr)
def test_gradcheck(margin, features, weights):
    head = make(margin, features, weights, True, eps=1e-12)
    names = [name for name, _ in head.named_parameters()]
    x, y = batch(2)

    def call(x, *values):
        return functional_call(head, dict(zip(names, values, strict=True)), (x, y))

    assert torch.autograd.gradcheck(call, (x.requires_grad_(), *head.parameters()))


@pytest.mark.parametrize("margin", MARGINS, ids=repr)
def test_gradcheck_near_the_boundary_angles(margin):
    # target angles just off 0, pi, pi - m and the knots k pi/m, in the plane of two class weights
    head = MarginSoftmax(2, 2, margin=margin, normalize_features=True, normalize_weights=True, scale=4.0).double()
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0, 0.0], [0.6, 0.8]]))
    angles = [0.02, math.pi - 0.02, math.pi - 0.5 - 0.02, math.pi - 0.5 + 0.02]
    angles += [k * math.pi / m + shift for m in (2, 3, 4) for k in range(1, m) for shift in (-0.02, 0.02)]
    x = torch.tensor([[math.cos(t), math.sin(t)] for t in angles], dtype=torch.float64, requires_grad=True)
    y = torch.zeros(len(angles), dtype=torch.int64)
    assert torch.autograd.gradcheck(lambda x: head(x, y), (x,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_finite_with_features_on_and_against_their_weight(name, dtype):
    loss = type(CASES[name][0])(D, C)
    x = torch.cat([loss.weight.detach() * 2, -loss.weight.detach()]).to(dtype).requires_grad_()
    y = torch.arange(C).repeat(2)
    value = loss(x, y)
    value.backward()
    assert bool(torch.isfinite(value)) and bool(torch.isfinite(x.grad).all())
    assert all(bool(torch.isfinite(p.grad).all()) for p in loss.parameters())


def test_arcface_gradient_norm_is_the_sine_of_theta_plus_m():
    # ||grad_x s phi|| = s |sin(theta + m)| / ||x||; with one other class far away p_y -> 0, so dL/dphi = -s
    for theta in (0.3, 1.0, 2.0, 2.9):
        head = ArcFace(2, 2, m=0.5, scale=1.0).double()
        with torch.no_grad():
            head.weight.copy_(torch.tensor([[1.0, 0.0], [math.cos(theta), math.sin(theta)]], dtype=torch.float64))
        x = torch.tensor([[3 * math.cos(theta), 3 * math.sin(theta)]], dtype=torch.float64, requires_grad=True)
        (grad,) = torch.autograd.grad(head(x, torch.tensor([0])), x)
        p = 1 / (1 + math.exp(1.0 - math.cos(theta + 0.5)))
        # the other class sits on x: its tangential gradient is zero
        assert float(grad.norm()) == pytest.approx((1 - p) * abs(math.sin(theta + 0.5)) / 3, rel=1e-9)


def test_logits_are_margin_free_and_predict_with_the_scale():
    head = ArcFace(D, C, scale=12.0).double()
    x, _ = batch()
    cosine = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(head.weight.detach()).t()
    assert (head.logits(x) - 12.0 * cosine).abs().max() < 1e-9


def test_no_gradient_needed_means_value_only():
    head = NormFace(D, C).double().requires_grad_(False)
    x, y = batch()
    assert not head(x, y).requires_grad


def test_accumulates_over_two_backward_calls():
    head = CosFace(D, C, scale=5.0).double()
    x, y = batch()
    value = head(x, y)
    value.backward(retain_graph=True)
    once = head.weight.grad.clone()
    (2.0 * value).backward()
    assert (head.weight.grad - 3.0 * once).abs().max() < 1e-12


def test_evaluation_does_not_change_the_head():
    head = ASoftmax(D, C).eval()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    x, y = batch(dtype=torch.float32)
    head(x, y)
    head.logits(x)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_warmup_state_is_in_the_state_dict():
    first, second = CosFace(D, C, scale=30.0), CosFace(D, C, scale=64.0)
    first.set_warmup(scale=7.0, strength=0.25)
    second.load_state_dict(first.state_dict())
    assert float(second.scale) == 7.0 and float(second.strength) == 0.25


def test_plain_loss_is_softmax_on_the_same_weights():
    head = NormFace(D, C).double()
    x, y = batch()
    expected = oracle(x, y, head.weight.detach(), math.cos, lambda x, w: norm(x) * norm(w))
    assert float(head.plain_loss(x, y).detach()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (torch.zeros(2, D + 1), torch.zeros(2, dtype=torch.int64), "shape"),
        (torch.zeros(D), torch.zeros(1, dtype=torch.int64), "shape"),
        (torch.zeros(2, D, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), "floating-point"),
        (torch.ones(2, D), torch.tensor([0, C]), rf"lie in 0 .. {C - 1}, got {C}"),
        (torch.ones(2, D), torch.tensor([-1, 0]), "got -1"),
        (torch.ones(2, D), torch.zeros(2), "int64"),
        (torch.ones(2, D), torch.zeros(3, dtype=torch.int64), "labels must have shape"),
        (torch.full((1, D), float("nan")), torch.tensor([0]), "NaN"),
        (torch.full((1, D), float("inf")), torch.tensor([0]), "NaN or infinity"),
        (torch.zeros(0, D), torch.zeros(0, dtype=torch.int64), "N, d >= 1"),
    ],
)
def test_wrong_batches_are_refused(x, y, message):
    with pytest.raises((ValueError, TypeError), match=message):
        NormFace(D, C)(x, y)


@pytest.mark.parametrize(
    "build",
    [
        lambda: NormFace(D, C, scale=0.0),
        lambda: NormFace(D, C, scale=float("nan")),
        lambda: CosFace(D, C, scale=-1.0),
        lambda: L2Softmax(D, C, alpha=0),
        lambda: Softmax(D, 1),
        lambda: Softmax(0, C),
        lambda: MarginSoftmax(D, C, learn_scale=True),
        lambda: MarginSoftmax(D, C, implementation="fast"),
        lambda: MarginSoftmax(D, C, eps=-1.0),
    ],
)
def test_wrong_hyperparameters_are_refused(build):
    with pytest.raises(ValueError, match=r"must be|need|unknown"):
        build()


def test_unknown_hyperparameter_is_refused():
    with pytest.raises(TypeError, match="nosuch"):
        ArcFace(D, C, nosuch=1)


def test_a_learned_scale_that_turned_negative_is_refused():
    head = NormFace(D, C)
    with torch.no_grad():
        head.scale.fill_(-1.0)
    x, y = batch(dtype=torch.float32)
    with pytest.raises(ValueError, match="scale must be positive"):
        head(x, y)
    with pytest.raises(ValueError, match="learned"):
        head.set_warmup(scale=3.0)


def test_agrees_with_pytorch_metric_learning_where_it_is_the_paper():
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    x, y = batch(5)
    for mine, theirs in [
        (CosFace(D, C, m=0.35, scale=9.0).double(), losses.CosFaceLoss(C, D, margin=0.35, scale=9.0).double()),
        (
            ArcFace(D, C, m=0.5, scale=9.0).double(),
            losses.ArcFaceLoss(C, D, margin=math.degrees(0.5), scale=9.0).double(),
        ),
    ]:
        with torch.no_grad():
            theirs.W.copy_(mine.weight.t())
        # their fallback differs beyond pi - m; the batch must not go there
        cosine = torch.nn.functional.cosine_similarity(x, mine.weight.detach()[y])
        assert float(cosine.min()) > -math.cos(0.5)
        assert float(mine(x, y).detach()) == pytest.approx(float(theirs(x, y).detach()), rel=1e-6)


def caffe_layer(x, w, y, m, lam, top):
    """Input and weight gradient of the official layer, element by element, from its coefficient formulas."""
    sign = lambda value: (value > 0) - (value < 0)  # noqa: E731
    grad_x = torch.zeros_like(x)
    for i in range(len(x)):
        for j in range(len(w)):
            if j != int(y[i]):
                grad_x[i] += top[i, j] * w[j]
                continue
            size = float(x[i].norm())
            c = float(x[i] @ w[j]) / size
            s0 = sign(c)
            if m == 2:
                c_w, c_x = 4 * s0 * c, -(2 * s0 * c**2 + 1) / size
            elif m == 3:
                s1 = sign(abs(c) - 0.5)
                s2 = s0 * (1 + s1) - 2
                c_w, c_x = s1 * (12 * c**2 - 3), -(8 * s1 * c**3 - s2) / size
            else:
                s3 = s0 * sign(2 * c**2 - 1)
                s4 = 2 * s0 + s3 - 3
                c_w, c_x = s3 * (32 * c**3 - 16 * c), -(s3 * (24 * c**4 - 8 * c**2 - 1) - s4) / size
            length = math.hypot(c_w, c_x)
            own = (c_w * w[j] + c_x * x[i]) / length / (1 + lam) + lam / (1 + lam) * w[j]
            grad_x[i] += top[i, j] * own
    return grad_x, top.t() @ x


@pytest.mark.parametrize("lam", [0.0, 5.0])
@pytest.mark.parametrize("m", [2, 3, 4])
def test_caffe_gradient_is_the_official_layers(m, lam):
    x, y = batch(7)
    x.requires_grad_()
    loss = ASoftmax(D, C, m=m, gradient="caffe").double()
    loss.set_warmup(strength=1 / (1 + lam))
    value = loss(x, y)
    grad_x, grad_w = torch.autograd.grad(value, [x, loss.weight])
    w = loss.weight.detach()
    assert (w.norm(dim=1) - 1).abs().max() < 1e-12
    paper = ASoftmax(D, C, m=m).double()
    paper.load_state_dict(loss.state_dict())
    assert float(value.detach()) == pytest.approx(float(paper(x, y).detach()), rel=1e-12)
    z = torch.zeros(N, C, dtype=torch.float64)
    for i in range(N):
        for j in range(C):
            c = float(x[i].detach() @ w[j]) / norm(x[i].detach())
            theta = math.acos(c)
            target = (lam * c + psi(theta, m)) / (1 + lam) if j == int(y[i]) else c
            z[i, j] = norm(x[i].detach()) * target
    top = (z.softmax(dim=1) - torch.nn.functional.one_hot(y, C)) / N
    expected_x, expected_w = caffe_layer(x.detach(), w, y, m, lam, top)
    assert (grad_x - expected_x).abs().max() < 1e-10
    assert (grad_w - expected_w).abs().max() < 1e-10


def test_caffe_evaluation_leaves_the_weights_alone():
    loss = ASoftmax(D, C, gradient="caffe").eval()
    before = loss.weight.detach().clone()
    x, y = batch(dtype=torch.float32)
    loss(x, y)
    assert torch.equal(loss.weight.detach(), before)


@pytest.mark.parametrize("build", [lambda **o: ArcFace(D, C, scale=8.0, **o), lambda **o: ASoftmax(D, C, m=3, **o)])
def test_straight_through_has_the_value_but_another_gradient(build):
    x, y = batch(3)
    x.requires_grad_()
    paper, detached = build().double(), build(gradient="straight_through").double()
    detached.load_state_dict(paper.state_dict())
    one, two = paper(x, y), detached(x, y)
    assert float((one - two).detach().abs()) < 1e-12
    mine, theirs = (torch.autograd.grad(value, x)[0] for value in (one, two))
    assert (mine - theirs).abs().max() > 1e-3


def test_annealing_counts_training_steps_and_survives_a_restart():
    make = lambda: ASoftmax(D, C, m=4, annealing=AnnealedLambda.preset("sphereface"))  # noqa: E731
    x, y = batch(dtype=torch.float32)
    loss = make()
    for _ in range(7):
        loss(x, y)
    lam = max(5.0, 1000.0 / (1 + 0.12 * 7))
    assert float(loss.strength) == pytest.approx(1 / (1 + lam), rel=1e-6)
    loss.eval()
    loss(x, y)
    resumed = make()
    resumed.load_state_dict(loss.state_dict())
    for each in (loss.train(), resumed):
        each(x, y)
    assert float(loss.strength) == float(resumed.strength) == pytest.approx(1 / (1 + 1000 / 1.96), rel=1e-6)


def test_unknown_gradient_is_refused():
    with pytest.raises(ValueError, match=r"gradient must be one of .* got 'fast'"):
        ASoftmax(D, C, gradient="fast")
    with pytest.raises(ValueError, match=r"gradient must be one of .* got 'caffe'"):
        ArcFace(D, C, gradient="caffe")


@pytest.mark.parametrize(
    "kind, letter, values",
    [
        (CosFace, "m", (0.35, 0.2)),
        (ArcFace, "m", (0.5, 0.2)),
        (LSoftmax, "m", (4, 2)),
        (ASoftmax, "m", (4, 3)),
        (L2Softmax, "alpha", (16.0, 9.0)),
    ],
)
def test_the_fields_words_and_the_papers_letters_are_the_same(kind, letter, values):
    word = "scale" if kind is L2Softmax else "margin"
    x, y = batch()

    def value(**options):
        torch.manual_seed(4)
        return float(kind(D, C, **options).double()(x, y).detach())

    assert value() == value(**{word: values[0]}) == value(**{letter: values[0]})
    assert value(**{word: values[1]}) == value(**{letter: values[1]}) != value()
    with pytest.raises(TypeError, match=f"{word} and {letter} are the same hyper-parameter"):
        kind(D, C, **{word: values[0], letter: values[0]})


def test_learn_scale_and_learn_alpha_are_the_same():
    assert isinstance(L2Softmax(D, C, learn_scale=True).scale, torch.nn.Parameter)
    assert isinstance(L2Softmax(D, C, learn_alpha=True).scale, torch.nn.Parameter)
    with pytest.raises(TypeError, match="learn_scale and learn_alpha"):
        L2Softmax(D, C, learn_scale=True, learn_alpha=False)


@pytest.mark.parametrize(
    "kind, name",
    [
        (Softmax, "scale"),
        (Softmax, "margin"),
        (NormFace, "margin"),
        (NormFace, "m"),
        (L2Softmax, "margin"),
        (LSoftmax, "scale"),
        (ASoftmax, "scale"),
        (CosFace, "normalize_features"),
        (ArcFace, "normalize_weights"),
        (CosFace, "guard"),
        (CombinedMargin, "margin"),
        (ArcFace, "alpha"),
        (Softmax, "nosuch"),
    ],
)
def test_a_hyperparameter_that_a_loss_does_not_have_is_named(kind, name):
    with pytest.raises(TypeError, match=rf"{kind.__name__} has no hyper-parameter '{name}'; it has .*implementation"):
        kind(D, C, **{name: 1})


INFINITE = [float("inf"), float("nan"), -1.0, 1e39, 1e-50]


@pytest.mark.parametrize("value", INFINITE)
def test_scales_that_float32_cannot_hold_are_refused(value):
    head = CosFace(D, C)
    for call in (lambda: head.set_warmup(scale=value, strength=0.5), lambda: CosFace(D, C, scale=value)):
        with pytest.raises(ValueError, match="scale must be"):
            call()
    assert float(head.scale) == 64.0 and float(head.strength) == 1.0
    with pytest.raises(ValueError, match="scale must be"):
        head.half().set_warmup(scale=70_000.0)


@pytest.mark.parametrize(
    "build",
    [
        lambda v: CosFace(D, C, margin=v),
        lambda v: ArcFace(D, C, margin=v),
        lambda v: CombinedMargin(D, C, m1=v),
        lambda v: CombinedMargin(D, C, m2=v),
        lambda v: CombinedMargin(D, C, m3=v),
        lambda v: Softmax(D, C, eps=v),
        lambda v: LSoftmax(D, C, margin=v),
        lambda v: ArcFace(D, C, drop=v),
        lambda v: NormFace(D, C, scale=v),
        lambda v: NormFace(D, C).set_warmup(strength=v),
    ],
)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), -0.5])
def test_infinite_hyperparameters_are_refused(build, value):
    with pytest.raises(ValueError, match="must be"):
        build(value)


@pytest.mark.parametrize("kind", [Softmax, L2Softmax, NormFace, ASoftmax, ArcFace])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("features", [torch.float16, torch.bfloat16, torch.float32])
def test_half_heads_compute_everything_in_float32(kind, dtype, features):
    head = kind(D, C).to(dtype)
    x, y = batch(dtype=features)
    wide = kind(D, C)
    wide.load_state_dict({key: value.float() for key, value in head.state_dict().items()})
    for name in ("__call__", "plain_loss"):
        got, expected = getattr(head, name)(x, y), getattr(wide, name)(x.float(), y)
        assert got.dtype == torch.float32 and torch.equal(got, expected)
    assert torch.equal(head.logits(x), wide.logits(x.float()))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("gradient", ["paper", "straight_through", "caffe"])
@pytest.mark.parametrize("what", ["feature", "weight", "both"])
def test_rows_of_zeros_give_finite_numbers(gradient, what, mode):
    torch.manual_seed(0)
    head = getattr(ASoftmax(D, C, gradient=gradient), mode)()
    x, y = batch(dtype=torch.float32)
    with torch.no_grad():
        for rows in [x] if what == "feature" else [head.weight] if what == "weight" else [x, head.weight]:
            rows[:3] = 0
    x.requires_grad_()
    head(x, y).backward()
    assert all(torch.isfinite(t).all() for t in (x.grad, head.weight.grad, head.weight))
    if what != "feature":
        assert (head.weight[:3] == 0).all()


def test_the_caffe_gradient_has_no_derivative():
    head = ASoftmax(D, C, gradient="caffe").double()
    x, y = batch()
    with pytest.raises(RuntimeError, match="create_graph=True"):
        torch.autograd.grad(head(x.requires_grad_(), y), x, create_graph=True)


def test_numpy_labels_are_named_as_such():
    x, y = batch(dtype=torch.float32)
    with pytest.raises(TypeError, match=r"labels must be an int64 tensor of shape \(N,\), got numpy.ndarray"):
        NormFace(D, C)(x, y.numpy())


def test_easy_samples_do_not_cancel_in_the_warm_up():
    head = Softmax(2, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[20.0, 0.0], [0.0, 1.0], [0.0, -1.0]]))
    x = torch.tensor([[1.5, 0.0]], requires_grad=True)
    value = head.plain_loss(x, torch.tensor([0]))
    assert float(value.detach()) == pytest.approx(2 * math.exp(-30), rel=1e-5)
    assert float(torch.autograd.grad(value, x)[0][0, 0]) == pytest.approx(-40 * math.exp(-30), rel=1e-5)
