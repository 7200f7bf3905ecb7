"""Sampled classes: exact at rate 1, unbiased partition function, gradient on the drawn rows, resumption."""

from __future__ import annotations

import math

import pytest
import torch

from reprolib.losses import ArcFace, ASoftmax, CosFace, L2Softmax, LSoftmax, NormFace, Softmax
from reprolib.losses.sampled import PartialFC, SampledSoftmax

D, C, N = 6, 60, 8
MEMBERS = [Softmax, L2Softmax, NormFace, LSoftmax, ASoftmax, CosFace, ArcFace]


def batch(seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(0, C, (N,), generator=generator)


def twins(member, first: dict, second: dict):
    pair = [member(D, C, **options).double() for options in (first, second)]
    pair[1].load_state_dict(pair[0].state_dict(), strict=False)
    return pair


def gradients(head, x, y):
    x = x.clone().requires_grad_()
    value = head(x, y)
    return [value.detach(), *torch.autograd.grad(value, [x, *head.parameters()])]


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("member", MEMBERS)
def test_rate_one_is_the_full_head_exactly(member, sparse):
    full, sampled = twins(member, {}, {"sampler": PartialFC(1.0), "sparse_grad": sparse})
    for one, two in zip(gradients(full, *batch()), gradients(sampled, *batch()), strict=True):
        assert torch.equal(one, two.to_dense() if two.is_sparse else two)


@pytest.mark.parametrize("sampler", [lambda: PartialFC(0.4, corrected=True), lambda: SampledSoftmax(20)])
@pytest.mark.parametrize("member", MEMBERS)
def test_fused_equals_reference_on_the_same_sample(member, sampler):
    fused, reference = twins(member, {"sampler": sampler()}, {"sampler": sampler(), "implementation": "reference"})
    for one, two in zip(gradients(fused, *batch(1)), gradients(reference, *batch(1)), strict=True):
        assert (one - two).abs().max() < 1e-12


@pytest.mark.parametrize("sampler", [lambda: PartialFC(0.3, seed=3), lambda: SampledSoftmax(15, seed=3)])
def test_only_drawn_rows_have_a_gradient(sampler):
    x, y = batch()
    sparse, dense = twins(ArcFace, {"sampler": sampler(), "sparse_grad": True}, {"sampler": sampler()})
    for head in (sparse, dense):
        head(x, y).backward()
    rows = sparse.weight.grad.coalesce().indices()[0]
    assert set(y.tolist()) <= set(rows.tolist()) and len(rows) < C
    left_out = torch.ones(C, dtype=torch.bool).index_fill_(0, rows, False)
    assert bool((dense.weight.grad[left_out] == 0).all())
    assert torch.equal(sparse.weight.grad.to_dense(), dense.weight.grad)


def partition(z: torch.Tensor, labels: torch.Tensor, sample) -> torch.Tensor:
    """Z'_i of the sampled classes from the exact logits z (N, C), written out."""
    weights = torch.ones(len(sample.classes), dtype=torch.float64)
    if sample.correction is not None:
        weights = sample.correction.double().exp()
    result = torch.zeros(len(labels), dtype=torch.float64)
    for i, label in enumerate(labels.tolist()):
        for j, weight in zip(sample.classes.tolist(), weights.tolist(), strict=True):
            result[i] += math.exp(float(z[i, j])) * (1.0 if j == label else weight)
    return result


def draw_many(sampler, z, labels, draws=1500):
    return torch.stack([partition(z, labels, sampler(labels, z.shape[1])) for _ in range(draws)])


def frequencies() -> torch.Tensor:
    return 1.0 / torch.arange(1, 21, dtype=torch.float64)


@pytest.mark.parametrize(
    "sampler",
    [
        lambda: PartialFC(0.4, corrected=True, seed=11),
        lambda: SampledSoftmax(12, seed=11),
        lambda: SampledSoftmax(12, probabilities=frequencies(), seed=11),
    ],
    ids=["partial-fc", "uniform", "zipf"],
)
def test_corrected_partition_function_is_unbiased_and_its_logarithm_is_not(sampler):
    z = torch.randn(3, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([4, 0, 17])
    exact = z.exp().sum(dim=1)
    estimates = draw_many(sampler(), z, labels)
    error = estimates.std(dim=0) / math.sqrt(len(estimates))
    assert bool(((estimates.mean(dim=0) - exact).abs() < 4 * error).all())
    # Jensen: E log Z' < log Z, by about Var(Z') / (2 Z^2)
    logs = estimates.log()
    bias, bias_error = logs.mean(dim=0) - exact.log(), logs.std(dim=0) / math.sqrt(len(logs))
    assert bool((bias < -2 * bias_error).all())
    second_order = -estimates.var(dim=0) / (2 * exact.square())
    assert bool(((bias - second_order).abs() < 4 * bias_error + 0.5 * second_order.abs()).all())


def test_variances_are_those_of_the_two_designs():
    z = torch.randn(1, 20, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    labels = torch.tensor([4])
    rest = z.exp()[0, torch.arange(20) != 4]
    # with replacement: (1/k) (sum_{j != y} e^2z / q_j - (Z - e^z_y)^2)
    k = 10
    q = frequencies() / frequencies().sum()
    expected = (float((rest.square() / q[torch.arange(20) != 4]).sum()) - float(rest.sum()) ** 2) / k
    got = draw_many(SampledSoftmax(k, probabilities=frequencies(), seed=1), z, labels, 3000).var()
    assert float(got) == pytest.approx(expected, rel=0.15)
    # without replacement, n of M: M^2 (1 - n/M) S^2 / n
    M, n = 19, 9
    expected = M**2 * (1 - n / M) * float(rest.var()) / n
    got = draw_many(PartialFC(0.5, corrected=True, seed=1), z, labels, 3000).var()
    assert float(got) == pytest.approx(expected, rel=0.15)


def test_partial_fc_as_published_has_a_small_partition_function():
    z = torch.randn(3, 20, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    labels = torch.tensor([4, 0, 17])
    estimates = draw_many(PartialFC(0.4, seed=11), z, labels)
    own = torch.zeros(20, dtype=torch.bool).index_fill_(0, labels, True)
    expected = z[:, own].exp().sum(dim=1) + 5 / 17 * z[:, ~own].exp().sum(dim=1)
    error = estimates.std(dim=0) / math.sqrt(len(estimates))
    assert bool(((estimates.mean(dim=0) - expected).abs() < 4 * error).all())
    assert bool((expected < z.exp().sum(dim=1)).all())


def test_partial_fc_draws_uniformly_and_keeps_all_labels():
    labels, counts = torch.tensor([5, 5, 9]), torch.zeros(20)
    sampler = PartialFC(0.4, seed=1)
    for _ in range(3000):
        sample = sampler(labels, 20)
        assert len(sample.classes) == 8 and torch.equal(sample.classes[sample.labels], labels)
        counts[sample.classes] += 1
    assert counts[5] == counts[9] == 3000
    others = counts[[j for j in range(20) if j not in (5, 9)]] / 3000
    assert float((others - 6 / 18).abs().max()) < 4 * math.sqrt(1 / 3 * 2 / 3 / 3000)


@pytest.mark.parametrize("make", [lambda: PartialFC(0.3, seed=4), lambda: SampledSoftmax(9, seed=4)])
def test_a_resumed_run_draws_the_same_classes(make):
    _, y = batch()
    head = ArcFace(D, C, sampler=make())
    for _ in range(5):
        head.sampler(y, C)
    resumed = ArcFace(D, C, sampler=type(head.sampler)(0.3 if isinstance(head.sampler, PartialFC) else 9, seed=0))
    resumed.load_state_dict(head.state_dict())
    first, again = head.sampler(y, C).classes, resumed.sampler(y, C).classes
    assert torch.equal(first, again) and not torch.equal(first, head.sampler(y, C).classes)


def test_evaluation_uses_all_classes_and_draws_nothing():
    full, sampled = twins(CosFace, {}, {"sampler": PartialFC(0.2)})
    sampled.eval()
    assert torch.equal(full(*batch()), sampled(*batch())) and int(sampled.sampler.draws) == 0


@pytest.mark.parametrize(
    "build, kind",
    [
        (lambda: PartialFC(0.0), ValueError),
        (lambda: PartialFC(1.5), ValueError),
        (lambda: PartialFC(0.5, seed=-1), ValueError),
        (lambda: SampledSoftmax(0), ValueError),
        (lambda: SampledSoftmax(5, probabilities=torch.tensor([0.5, 0.0])), ValueError),
        (lambda: ArcFace(D, C, sampler=SampledSoftmax(5, probabilities=torch.ones(C + 1))), ValueError),
        (lambda: ArcFace(D, C, sampler=0.1), TypeError),
        (lambda: ArcFace(D, C, sparse_grad=True), ValueError),
        (lambda: ASoftmax(D, C, gradient="caffe", sampler=PartialFC(0.5)), ValueError),
        (lambda: ArcFace(D, C, chunk_bytes=0), ValueError),
    ],
)
def test_wrong_settings_are_refused(build, kind):
    with pytest.raises(kind, match=r"must|needs|takes no"):
        build()


@pytest.mark.parametrize("sampler", [lambda: PartialFC(0.3), lambda: SampledSoftmax(5)])
def test_a_head_trained_with_a_sampler_loads_without_one(sampler):
    trained, plain = ArcFace(4, 20, sampler=sampler()), ArcFace(4, 20)
    trained(torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6))
    plain.load_state_dict(trained.state_dict())
    assert torch.equal(plain.weight, trained.weight)
    holder, other = torch.nn.Sequential(plain), torch.nn.Sequential(trained)
    holder.load_state_dict(other.state_dict())
    with pytest.raises(RuntimeError, match="sampler"):
        trained.load_state_dict(plain.state_dict())
