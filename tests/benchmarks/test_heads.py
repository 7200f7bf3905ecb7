"""Heads at tiny sizes: they agree, the construction is what it says, the floor is a floor; no time is asserted."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn import functional as F

from benchmarks import floor, heads, peers, precision
from benchmarks.__main__ import build_parser
from reprolib.losses.products import ONEDNN


def options(*words):
    return build_parser().parse_args(words)


SMALL = ("heads", "--batch", "8", "--dim", "8", "--rounds", "2", "--error-classes", "40")


@pytest.mark.slow
def test_all_heads_in_one_run(in_process, capsys):
    result = heads.run(options(*SMALL, "--classes", "30"))
    assert [size["classes"] for size in result["sizes"]] == [30]
    for size in result["sizes"]:
        assert [entry["features"] for entry in size["timed"]] == ["random", "trained"]
        for entry in size["timed"]:
            assert set(entry["seconds"]) == {*heads.DEFAULT, heads.FLOOR, heads.PLAIN_PRODUCTS} - set(entry["left_out"])
            assert entry["best_raw_peer"] in peers.RAW_PEERS and entry["best_peer"] in peers.PEERS
            assert all(value["min"] <= value["median"] <= value["max"] for value in entry["seconds"].values())
            loss = entry["loss"]
            for group in (("ours", "insightface formulation", peers.PML), peers.RAW_PEERS):
                values = [loss[name] for name in group if name in loss]
                assert values == pytest.approx([values[0]] * len(values), rel=1e-3)
        assert all("failed" not in entry for entry in size["peak"].values())
    assert "floor of three products" in capsys.readouterr().err
    json.dumps(result, allow_nan=False)


def test_what_is_not_installed_is_left_out_with_the_reason(in_process, without_packages, monkeypatch):
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    result = heads.run(options(*SMALL, "--classes", "30", "--features", "random", "--only", "ours", *peers.PEERS))
    (size,) = result["sizes"]
    assert set(size["timed"][0]["left_out"]) == {peers.PML, peers.CHUNKED}
    assert "no chunked linear_cross_entropy" in size["peak"][peers.CHUNKED]["failed"]
    assert peers.PML not in result["error"]["errors"]


def test_a_size_too_large_for_rounds_is_measured_alone_under_the_limit(in_process, monkeypatch):
    monkeypatch.setattr(heads, "LARGEST_TIMED", 100)
    (size,) = heads.run(options(*SMALL, "--classes", "30", "--only", "ours", "raw softmax", "--limit", "0.5"))["sizes"]
    assert size["timed"] == [] and size["limit_gib"] == 0.5 and set(size["peak"]) == {"ours", "raw softmax"}


def test_a_lack_of_memory_is_a_result_and_divides_nothing(in_process, monkeypatch):
    def refuse(_):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(heads, "peak_above", refuse)
    (size,) = heads.run(options(*SMALL, "--classes", "30", "--features", "random", "--only", "ours", "raw softmax"))[
        "sizes"
    ]
    assert all(entry == {"failed": "more memory"} for entry in size["peak"].values())
    assert size["leanest_peer"] is size["memory_to_leanest_peer"] is None


def test_trained_features_are_what_is_said():
    features, labels, weight = peers.make_batch("trained", 64, 256, 500)
    cosine = F.normalize(features.detach().double()) @ F.normalize(weight.double()).t()
    own = cosine[torch.arange(64), labels].acos().rad2deg()
    assert own.min() > 26.99 and own.max() < 40.01 and own.max() - own.min() > 10
    others = cosine[F.one_hot(labels, 500) == 0]
    assert others.abs().mean() < 0.1 and others.std() == pytest.approx(1 / math.sqrt(192), rel=0.1)
    assert torch.allclose(features.detach().norm(dim=1), torch.full((64,), peers.S))


def test_shares_above_by_the_definition():
    features, labels, weight = peers.make_batch("trained", 5, 8, 7)
    x, w = F.normalize(features.detach().double()), F.normalize(weight.double())
    found = peers.shares_above(features, labels, weight, powers=(3, 9))
    counts = [0, 0]
    for i in range(5):
        z = [peers.S * float(x[i] @ w[j]) for j in range(7)]
        y = int(labels[i])
        z[y] = peers.S * math.cos(math.acos(z[y] / peers.S) + peers.M)
        total = sum(map(math.exp, z))
        for k, power in enumerate((3, 9)):
            counts[k] += sum(math.exp(z[j]) / total > 2.0**-power for j in range(7) if j != y)
    assert found == pytest.approx([count / 35 for count in counts])


def test_products_are_the_products_in_every_way():
    features, _, weight = peers.make_batch("random", 10, 4, 6)
    made = floor.products(features, weight, chunk_rows=(4, 16))
    x, z = features.detach(), features.detach() @ weight.t()
    assert torch.allclose(made["logits, torch"](), z)
    assert torch.allclose(made["features, torch"](), z @ weight)
    assert torch.allclose(made["weight, torch"](), z.t() @ x)
    assert set(made) == {
        f"{product}, {way}"
        for product in floor.PRODUCTS
        for way in ("torch", "into outputs", "NumPy", *(f"{b}{n} rows" for n in (4, 16) for b in ("", "oneDNN, ")))
        if ONEDNN or "oneDNN" not in way
    }
    for function in made.values():
        function()


@pytest.mark.skipif(not ONEDNN, reason="this torch has no oneDNN")
def test_the_products_by_onednn_are_the_products(monkeypatch):
    monkeypatch.setattr(floor, "CLASS_BLOCK", 4)
    x, w = torch.randn(10, 4), torch.randn(6, 4)
    # the logits of the last chunk of 3 rows stay behind
    z, dx, dw = torch.full((6, 3), math.nan), torch.full((10, 4), math.nan), torch.full((6, 4), math.nan)
    parts, blocks = [slice(k, min(k + 3, 10)) for k in range(0, 10, 3)], [slice(0, 4), slice(4, 8)]
    logits, by_features, by_weight = floor._by_onednn(x, w, z, dx, dw, parts, blocks)
    logits()
    assert torch.allclose(z[:, :1], (x[9:] @ w.t()).t(), atol=1e-6)
    z.copy_(torch.randn(6, 3))
    by_features()
    assert torch.allclose(dx[:3], z.t() @ w, atol=1e-6) and torch.allclose(dx[9:], z[:, :1].t() @ w, atol=1e-6)
    by_weight()
    assert torch.allclose(dw, sum(z[:, : len(x[rows])] @ x[rows] for rows in parts), atol=1e-5)


def test_the_floor_takes_the_fastest_way_of_each_product_in_each_round():
    seconds = {
        "logits, torch": [3.0, 3.0],
        "logits, NumPy": [2.0, 4.0],
        "features, torch": [1.0, 1.0],
        "weight, torch": [5.0, 5.0],
        "weight, 4 rows": [7.0, 2.0],
    }
    lowest, plain, each = floor.floors(seconds)
    assert (lowest, plain) == ([8.0, 6.0], [9.0, 9.0])
    assert each["weight, 4 rows"] == {"median": 4.5, "min": 2.0, "max": 7.0}


@pytest.mark.parametrize("name", ["ours", "raw softmax", "normalised softmax", "insightface formulation"])
def test_the_oracle_is_what_the_head_computes_in_float64(name):
    # at 80 degrees nothing cancels: the head itself, in float64, must agree with the oracle to rounding
    weight = F.normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    labels = torch.tensor([0, 3, 8])
    angle = torch.full((3,), math.radians(80.0), dtype=torch.float64)
    features = peers.at_angle(weight[labels], angle, 2.0, torch.Generator().manual_seed(2)).requires_grad_()
    head = peers.built(name, weight).double()
    loss, by_features, by_weight = precision.oracle(name, features, labels, weight)
    assert float(peers.step(head, features, labels)) == pytest.approx(float(loss), rel=1e-9)
    assert torch.allclose(features.grad, by_features, rtol=1e-9, atol=1e-12)
    assert torch.allclose(head.weight.grad, by_weight, rtol=1e-9, atol=1e-12)


def test_an_error_that_is_not_finite_is_no_number():
    assert precision.relative(torch.tensor([math.nan]), torch.ones(1)) is None
    assert precision.relative(torch.tensor([1.5]), torch.ones(1)) == 0.5
