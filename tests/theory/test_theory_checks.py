"""The checks must hold for true statements and, above all, fail for statements that are a little wrong."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from reprolib.theory.checks import (
    CheckRecord,
    check_bound,
    check_counterexample,
    check_counterexamples,
    check_gradient,
    check_identities,
    check_identity,
    subscribe,
    texts_for,
)
from reprolib.theory.numerics import gaussian, normal

F64 = torch.float64
NAMES = {"id": "99.test", "statement": "two equals two", "source": "arithmetic"}


@pytest.fixture
def records():
    collected: list[CheckRecord] = []
    unsubscribe = subscribe(collected.append)
    yield collected
    unsubscribe()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def test_identity_returns_the_relative_error(records):
    error = check_identity([1.0, 1000.0], [1.0, 1000.0 + 1e-7], tolerance=1e-9, **NAMES)
    assert error == pytest.approx(1e-10, rel=1e-3)
    assert records[-1] == CheckRecord(
        "99.test", "two equals two", "arithmetic", "identity", error, 1e-9, True, {"elements": 2}
    )


@pytest.mark.parametrize("wrong", [2.0 + 1e-11, math.nan, math.inf, -math.inf])
def test_identity_fails_and_still_records(records, wrong):
    with pytest.raises(AssertionError, match=r"99\.test.*allowed 1\.0e-12.*two equals two"):
        check_identity(torch.tensor([2.0, wrong], dtype=F64), 2.0, **NAMES)
    assert [record.passed for record in records] == [False]
    assert records[0].measured > 1e-12


def test_identity_accepts_numbers_arrays_tensors_and_mixed_lists():
    leaf = torch.ones((), dtype=F64, requires_grad=True)
    assert check_identity(2, 2.0, **NAMES) == 0.0
    assert check_identity(np.arange(3.0), torch.arange(3), **NAMES) == 0.0
    assert check_identity([leaf, 2.0], (1.0, 2), **NAMES) == 0.0
    # 0.1 is not a float32 number: a conversion through float32 would show.
    assert check_identity(0.1, torch.tensor(0.1, dtype=F64), **NAMES) == 0.0


@pytest.mark.parametrize(
    ("left", "right", "error"),
    [
        (torch.ones(2), torch.ones(2), TypeError),
        (np.ones(2, dtype=np.float32), 1.0, TypeError),
        (torch.ones(2, dtype=torch.complex128), 1.0, TypeError),
        ("1", 1.0, TypeError),
        (torch.ones(0, dtype=F64), torch.ones(0, dtype=F64), ValueError),
        ([], [], ValueError),
        (torch.ones(3, 1, dtype=F64), torch.ones(3, dtype=F64), ValueError),
    ],
)
def test_identity_refuses_what_it_cannot_compare(records, left, right, error):
    with pytest.raises(error):
        check_identity(left, right, **NAMES)
    assert records == []


@pytest.mark.parametrize("field", ["id", "statement", "source"])
@pytest.mark.parametrize(("text", "error"), [("", ValueError), ("  ", ValueError), (3, TypeError)])
def test_every_check_wants_its_texts(records, field, text, error):
    names = {**NAMES, field: text}
    x = draw(2)
    with pytest.raises(error, match=field):
        check_identity(1.0, 1.0, **names)
    with pytest.raises(error, match=field):
        check_gradient(torch.sum, x, torch.ones_like, **names)
    with pytest.raises(error, match=field):
        check_bound(lambda v: v.square().sum(), 0.0, lambda g: draw(2), **names)
    with pytest.raises(error, match=field):
        check_counterexample(2.0, 1.0, **names)
    assert records == []


@pytest.mark.parametrize("tolerance", [0.0, -1e-9, math.nan, math.inf])
def test_every_check_wants_a_positive_tolerance(tolerance):
    x = draw(2)
    with pytest.raises(ValueError, match=r"in \(0, inf\)"):
        check_identity(1.0, 1.0, tolerance=tolerance, **NAMES)
    with pytest.raises(ValueError, match=r"in \(0, inf\)"):
        check_gradient(torch.sum, x, torch.ones_like, tolerance=tolerance, **NAMES)
    with pytest.raises(ValueError, match=r"in \(0, inf\)"):
        check_bound(lambda v: v.square().sum(), 0.0, lambda g: draw(2), tolerance=tolerance, **NAMES)
    with pytest.raises(ValueError, match=r"in \(0, inf\)"):
        check_bound(lambda v: v.square().sum(), 0.0, lambda g: draw(2), tight=tolerance, **NAMES)
    with pytest.raises(ValueError, match=r"in \(0, inf\)"):
        check_counterexample(2.0, 1.0, at_least=tolerance, **NAMES)


def cosine_loss(scale: float):
    labels = torch.arange(6) % 5

    def loss(features: Tensor, weight: Tensor) -> Tensor:
        return cross_entropy(scale * normalize(features) @ normalize(weight).T, labels)

    return loss, labels


def cosine_gradients(scale: float, labels: Tensor, factor: float = 1.0):
    def closed_form(features: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        x, w = normalize(features), normalize(weight)
        g = (scale * x @ w.T).softmax(1)
        g[torch.arange(6), labels] -= 1.0
        gx, gw = scale * g @ w / 6, scale * g.T @ x / 6
        dx = (gx - x * (gx * x).sum(1, keepdim=True)) / features.norm(dim=1, keepdim=True)
        dw = (gw - w * (gw * w).sum(1, keepdim=True)) / weight.norm(dim=1, keepdim=True)
        return dx, factor * dw

    return closed_form


@pytest.mark.parametrize("scale", [1.0, 30.0, 64.0])
def test_gradient_passes_for_the_right_formula(records, scale):
    loss, labels = cosine_loss(scale)
    error = check_gradient(loss, (draw(6, 4), draw(5, 4, seed=1)), cosine_gradients(scale, labels), **NAMES)
    assert error < 1e-9
    assert records[-1].kind == "gradient"
    assert records[-1].detail["autograd"] < 1e-13
    assert records[-1].detail["coordinates"] == 44


@pytest.mark.parametrize("factor", [1.01, 0.99, 1.0 + 1e-6, -1.0, 0.0, math.nan])
def test_gradient_fails_for_a_formula_that_is_off(records, factor):
    loss, labels = cosine_loss(10.0)
    with pytest.raises(AssertionError, match=r"autograd.*central differences"):
        check_gradient(loss, (draw(6, 4), draw(5, 4, seed=1)), cosine_gradients(10.0, labels, factor), **NAMES)
    assert not records[-1].passed


def test_gradient_sees_one_percent_of_a_tiny_gradient():
    # All entries are near 1e-6, far below the 1 that a naive relative error divides by.
    x = draw(5)
    with pytest.raises(AssertionError):
        check_gradient(lambda v: 1e-6 * v.square().sum(), x, lambda v: 2.02e-6 * v, **NAMES)
    assert check_gradient(lambda v: 1e-6 * v.square().sum(), x, lambda v: 2e-6 * v, **NAMES) < 1e-9


class HalvedBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.square().sum()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0]


def test_gradient_needs_both_routes_to_agree(records):
    x = draw(3)
    # The closed form copies a wrong backward: only the differences see it.
    with pytest.raises(AssertionError):
        check_gradient(HalvedBackward.apply, x, lambda v: v, **NAMES)
    assert records[-1].detail["autograd"] == 0.0
    assert records[-1].detail["central_differences"] == pytest.approx(0.5, rel=1e-6)
    # The closed form is right and the backward is wrong: only autograd sees it.
    with pytest.raises(AssertionError):
        check_gradient(HalvedBackward.apply, x, lambda v: 2.0 * v, **NAMES)
    assert records[-1].detail["central_differences"] < 1e-9
    assert records[-1].detail["autograd"] > 0.9


@pytest.mark.parametrize("distance", [1e-2, 1e-3, 1e-4, 1e-5])
def test_gradient_is_accurate_next_to_a_kink(distance):
    x = torch.tensor([1.0 + distance, 1.0 - distance, -distance, distance], dtype=F64)
    error = check_gradient(
        lambda v: (v - 1.0).abs().sum() + v.clamp(min=0).square().sum(),
        x,
        lambda v: torch.sign(v - 1.0) + 2.0 * v.clamp(min=0),
        **NAMES,
    )
    assert error < 1e-8


def test_gradient_of_an_unused_input_is_zero():
    assert (
        check_gradient(
            lambda a, b: a.sum(), (draw(2), draw(3)), lambda a, b: (torch.ones(2, dtype=F64), 0 * b), **NAMES
        )
        < 1e-9
    )


def test_gradient_of_a_non_contiguous_input():
    x = draw(3, 4).T
    assert check_gradient(lambda v: v.pow(3).sum(), x, lambda v: 3.0 * v.square(), **NAMES) < 1e-9


def test_gradient_formula_cannot_be_autograd_in_disguise():
    def disguised(x: Tensor) -> Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(leaf.square().sum(), leaf)[0]

    with pytest.raises(RuntimeError):
        check_gradient(lambda v: v.square().sum(), draw(3), disguised, **NAMES)


def test_gradient_refuses_bad_arguments(records):
    square, double = (lambda v: v.square().sum()), (lambda v: 2.0 * v)
    with pytest.raises(TypeError, match="float64"):
        check_gradient(square, torch.ones(2), double, **NAMES)
    with pytest.raises(ValueError, match="finite"):
        check_gradient(square, torch.tensor([1.0, math.nan], dtype=F64), double, **NAMES)
    with pytest.raises(ValueError, match="at least one"):
        check_gradient(square, (), double, **NAMES)
    with pytest.raises(ValueError, match="empty"):
        check_gradient(square, torch.ones(0, dtype=F64), double, **NAMES)
    with pytest.raises(ValueError, match="scalar"):
        check_gradient(lambda v: v, draw(2), double, **NAMES)
    with pytest.raises(TypeError, match="float64"):
        check_gradient(lambda v: v.float().sum(), draw(2), double, **NAMES)
    with pytest.raises(ValueError, match="shape"):
        check_gradient(square, draw(2), lambda v: v[:1], **NAMES)
    with pytest.raises(ValueError, match="1 tensors"):
        check_gradient(square, draw(2), lambda v: (v, v), **NAMES)
    with pytest.raises(TypeError, match="float64"):
        check_gradient(square, draw(2), lambda v: v.float(), **NAMES)
    with pytest.raises(ValueError, match="differentiable"):
        check_gradient(lambda v: torch.ones((), dtype=F64), draw(2), double, **NAMES)
    with pytest.raises(ValueError, match="deterministic"):
        check_gradient(lambda v: (v * torch.rand(2, dtype=F64)).sum(), draw(2), double, **NAMES)
    assert records == []


def test_gradient_where_the_function_is_nan_fails(records):
    with pytest.raises(AssertionError):
        check_gradient(lambda v: v.log().sum(), -torch.ones(2, dtype=F64), lambda v: 1.0 / v, **NAMES)
    assert not records[-1].passed


def floor_of(n: int, scale: float) -> float:
    return math.log1p((n - 1) * math.exp(-n / (n - 1) * scale))


def balanced_loss(n: int, scale: float):
    labels = torch.arange(n)
    return lambda w, f: cross_entropy(scale * normalize(f) @ normalize(w).T, labels)


def test_bound_holds_is_attacked_and_is_tight(records):
    n, scale = 5, 4.0
    simplex = torch.eye(n, dtype=F64) - 1.0 / n
    started = time.perf_counter()
    slack = check_bound(
        balanced_loss(n, scale),
        floor_of(n, scale),
        lambda g: (torch.randn(n, n, generator=g, dtype=F64), torch.randn(n, n, generator=g, dtype=F64)),
        extremal=(simplex, simplex),
        **NAMES,
    )
    assert time.perf_counter() - started < 20.0
    record = records[-1]
    assert record.passed and record.kind == "bound" and record.measured == slack
    assert -1e-9 <= slack < 1e-12
    # The search must come much closer than sampling does, or it attacks nothing.
    assert record.detail["sampled"] > 0.1
    assert record.detail["optimised"] < 1e-9
    assert abs(record.detail["extremal"]) < 1e-12


def test_bound_search_finds_a_violation_that_sampling_misses(records):
    n, scale = 5, 4.0
    with pytest.raises(AssertionError, match="slack"):
        check_bound(
            balanced_loss(n, scale),
            1.001 * floor_of(n, scale),
            lambda g: (torch.randn(n, n, generator=g, dtype=F64), torch.randn(n, n, generator=g, dtype=F64)),
            **NAMES,
        )
    assert records[-1].detail["sampled"] > 0.0 > records[-1].detail["optimised"]
    assert not records[-1].passed


def test_bound_from_above_and_as_a_function():
    def pair(generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return torch.randn(3, generator=generator, dtype=F64), torch.randn(3, generator=generator, dtype=F64)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum()

    def norms(a: Tensor, b: Tensor) -> Tensor:
        return a.norm() * b.norm()

    a = draw(3)
    sizes = {**NAMES, "draws": 100, "steps": 60}
    assert check_bound(inner, norms, pair, side="upper", extremal=(a, 2.0 * a), **sizes) >= -1e-9
    with pytest.raises(AssertionError):
        check_bound(inner, lambda a, b: 0.999 * norms(a, b), pair, side="upper", **sizes)
    with pytest.raises(AssertionError):
        check_bound(inner, norms, pair, side="lower", **sizes)


def test_bound_that_is_not_tight_where_it_should_be_fails(records):
    with pytest.raises(AssertionError, match="extremal"):
        check_bound(
            lambda v: v.square().sum(),
            0.0,
            lambda g: torch.randn(2, generator=g, dtype=F64),
            extremal=torch.tensor([0.01, 0.0], dtype=F64),
            **NAMES,
        )
    assert records[-1].detail["extremal"] == pytest.approx(1e-4)


def test_bound_on_a_value_with_corners():
    # max_{i != j} cos >= -1/(n - 1): the search must not stall at the first tie.
    n = 4
    eye = torch.eye(n, dtype=F64)

    def largest(w: Tensor) -> Tensor:
        unit = normalize(w)
        return (unit @ unit.T - 2.0 * eye).max()

    def sample(generator: torch.Generator) -> Tensor:
        return torch.randn(n, 6, generator=generator, dtype=F64)

    simplex = torch.nn.functional.pad(eye - 1.0 / n, (0, 2))
    check_bound(largest, -1.0 / (n - 1), sample, extremal=simplex, **NAMES)
    with pytest.raises(AssertionError):
        check_bound(largest, -0.98 / (n - 1), sample, **NAMES)


def test_bound_fails_on_nan(records):
    with pytest.raises(AssertionError, match="NaN"):
        check_bound(lambda v: v.log().sum(), -1e9, lambda g: torch.randn(2, generator=g, dtype=F64), **NAMES)
    assert records[-1].detail["undefined_draws"] > 0


def test_bound_is_reproducible(records):
    for seed in (0, 0, 1):
        check_bound(
            lambda v: v.square().sum().sqrt() + v.abs().sum(),
            0.0,
            lambda g: torch.randn(4, generator=g, dtype=F64),
            seed=seed,
            draws=50,
            steps=20,
            **NAMES,
        )
    assert records[0] == records[1]
    assert records[0].detail["sampled"] != records[2].detail["sampled"]


def test_bound_refuses_bad_arguments(records):
    square, sample = (lambda v: v.square().sum()), (lambda g: torch.randn(2, generator=g, dtype=F64))
    with pytest.raises(ValueError, match="side"):
        check_bound(square, 0.0, sample, side="left", **NAMES)
    with pytest.raises(ValueError, match="bound"):
        check_bound(square, math.nan, sample, **NAMES)
    with pytest.raises(ValueError, match="draws"):
        check_bound(square, 0.0, sample, draws=0, **NAMES)
    with pytest.raises(TypeError, match="steps"):
        check_bound(square, 0.0, sample, steps=1.5, **NAMES)
    with pytest.raises(TypeError, match="sample"):
        check_bound(square, 0.0, lambda g: torch.randn(2, generator=g), **NAMES)
    with pytest.raises(ValueError, match="scalar"):
        check_bound(lambda v: v, 0.0, sample, **NAMES)
    with pytest.raises(ValueError, match="differentiable"):
        check_bound(lambda v: v.detach().square().sum(), 0.0, sample, **NAMES)
    assert records == []


def test_checks_restore_the_number_of_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        check_gradient(lambda v: v.square().sum(), draw(2), lambda v: 2.0 * v, **NAMES)
        with pytest.raises(AssertionError):
            check_bound(lambda v: v.square().sum(), 1.0, lambda g: draw(2), draws=2, steps=2, **NAMES)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_counterexample(records):
    assert check_counterexample(1.0, 0.072, **NAMES) == pytest.approx(0.928)
    assert records[-1].passed and records[-1].kind == "counterexample"
    assert records[-1].detail == {"left": 1.0, "right": 0.072}


@pytest.mark.parametrize(("left", "right"), [(1.0, 1.0), (1.0, 2.0), (1.0 + 1e-7, 1.0), (math.nan, 0.0)])
def test_a_false_counterexample_fails(records, left, right):
    with pytest.raises(AssertionError, match="violation"):
        check_counterexample(left, right, **NAMES)
    assert [record.passed for record in records] == [False]


def test_counterexample_wants_single_numbers():
    with pytest.raises(ValueError, match="single"):
        check_counterexample(torch.ones(2, dtype=F64), 0.0, **NAMES)
    with pytest.raises(TypeError, match="float64"):
        check_counterexample(torch.ones(()), 0.0, **NAMES)


def test_subscribers_come_and_go():
    first: list[CheckRecord] = []
    second: list[CheckRecord] = []
    leave_first, leave_second = subscribe(first.append), subscribe(second.append)
    check_identity(1.0, 1.0, **NAMES)
    leave_first()
    leave_first()
    check_identity(1.0, 1.0, **NAMES)
    leave_second()
    check_identity(1.0, 1.0, **NAMES)
    assert (len(first), len(second)) == (1, 2)
    with pytest.raises(TypeError, match="callable"):
        subscribe("print")


def test_records_are_frozen(records):
    check_identity(1.0, 1.0, **NAMES)
    with pytest.raises(AttributeError):
        records[0].passed = False


def test_texts_of_a_notebook(records):
    about = texts_for("99")
    check_identity(1.0, 1.0, **about("one", "one is one", "(9.1)"))
    check_identity(1.0, 1.0, **about("two", "one is one"))
    assert [(r.id, r.statement, r.source) for r in records] == [
        ("99.one", "one is one", "(9.1)"),
        ("99.two", "one is one", "derived here"),
    ]


def test_normal_numbers_and_their_sampler():
    assert torch.equal(normal(2, 3), draw(2, 3)) and torch.equal(normal(4, seed=5), draw(4, seed=5))
    generator = torch.Generator().manual_seed(0)
    first, second = normal(3, seed=generator), normal(3, seed=generator)
    assert torch.equal(first, draw(3)) and not torch.equal(first, second)
    a, b = gaussian((2, 3), ())(torch.Generator().manual_seed(1))
    assert a.shape == (2, 3) and b.shape == () and a.dtype == b.dtype == F64
    assert torch.equal(a, draw(2, 3, seed=1))


def test_nothing_is_printed(capsys):
    check_identity(1.0, 1.0, **NAMES)
    check_counterexample(1.0, 0.0, **NAMES)
    check_gradient(lambda v: v.square().sum(), draw(2), lambda v: 2.0 * v, **NAMES)
    check_bound(lambda v: v.square().sum(), 0.0, lambda g: draw(2), draws=2, steps=2, **NAMES)
    assert capsys.readouterr() == ("", "")


def test_rows_of_one_source_are_checked_each(records):
    rows = (("one", "1 = 1", 1.0, 1.0), ("near", "1 = 1.05", 1.0, 1.05, 0.1))
    check_identities(texts_for("99"), "eq. 1", *rows)
    check_counterexamples(texts_for("99"), "eq. 2", ("more", "3 <= 2", 3.0, 2.0))
    assert [(one.id, one.source, one.kind) for one in records] == [
        ("99.one", "eq. 1", "identity"),
        ("99.near", "eq. 1", "identity"),
        ("99.more", "eq. 2", "counterexample"),
    ]
    assert [one.tolerance for one in records] == [1e-12, 0.1, 1e-6]
    with pytest.raises(AssertionError, match=r"99\.far"):
        check_identities(texts_for("99"), "eq. 1", ("far", "1 = 1.05", 1.0, 1.05))
    with pytest.raises(AssertionError, match=r"99\.less"):
        check_counterexamples(texts_for("99"), "eq. 2", ("less", "1 <= 2", 1.0, 2.0))
