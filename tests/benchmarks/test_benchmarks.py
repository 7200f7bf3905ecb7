"""The benches run at tiny sizes and give finite ratios under the right keys; no time is asserted."""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from reprolib.benchmarks import BENCHES, heads, measure, miners, popular, toy
from reprolib.data import ImageDataset, LfwDataset
from reprolib.evaluation import PairList
from reprolib.training import TrainConfig


def namespace(**given) -> argparse.Namespace:
    return argparse.Namespace(**given)


def finite(value) -> bool:
    return value is not None and math.isfinite(value) and value > 0


@pytest.fixture(scope="module")
def images() -> ImageDataset:
    generator = torch.Generator().manual_seed(0)

    def some(count):
        labels = torch.arange(count) % 10
        pixels = torch.randint(0, 60, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            image[0, 2 * label : 2 * label + 4] = 255
        return pixels, labels

    return ImageDataset("bars", *some(256), *some(100), 10, "bars")


@pytest.fixture
def in_process(monkeypatch):
    """What a child would measure, measured here: the limit on memory must not stay."""
    monkeypatch.setattr(measure, "limit_memory", lambda total: None)
    for module in (sys.modules[heads.__module__], sys.modules[miners.__module__]):
        monkeypatch.setattr(module, "limit_memory", lambda total: None)

        def call(name, function, settings, timeout=0.0):
            return getattr(sys.modules[name], function)(**settings)

        monkeypatch.setattr(module, "in_child", call)


def test_the_table_of_benches_is_complete():
    assert {"toy", "heads", "million", "cost", "miners", "popular", "partial_fc"} <= set(BENCHES)


def test_heads_compare_time_and_memory_and_agree_on_the_loss(in_process, capsys):
    result = heads(namespace(classes=[300, 500], batch=16, dim=8, repeats=2))
    assert [size["classes"] for size in result["sizes"]] == [300, 500]
    for size in result["sizes"]:
        assert finite(size["time_to_best_peer"]) and finite(size["time_to_products"])
        assert all(len(values) == 2 for values in size["seconds_all"].values())
        loss = size["loss"]
        for name in ("ours, reference", "insightface formulation", "pytorch-metric-learning"):
            assert name in size["missing"] or loss[name] == pytest.approx(loss["ours"], rel=1e-4)
    assert "three products" in capsys.readouterr().err
    json.dumps(result)


def test_a_peer_that_is_not_there_is_missing(in_process, monkeypatch):
    module = sys.modules[heads.__module__]
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    (size,) = heads(namespace(classes=[50], batch=4, dim=4, repeats=1))["sizes"]
    assert size["missing"] == ["pytorch-metric-learning"]
    assert size["peak"]["pytorch-metric-learning"] == {"failed": "missing"}
    result = miners(namespace(batch=20, dim=4, repeats=1))
    assert all(entry["pytorch-metric-learning"] == {"failed": "missing"} for entry in result["results"])


def test_peak_memory_is_of_the_order_of_the_logits(capsys):
    # 64 x 60,000 float32 logits are 14.6 MiB: a head that keeps them all needs several times that
    settings = dict(classes=60_000, batch=64, dim=8)
    above = {
        name: measure.in_child("reprolib.benchmarks.heads", "peak", {"name": name, **settings})
        for name in ("ours", "plain PyTorch")
    }
    if above["ours"].get("above_mib", 0) is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert above["ours"]["above_mib"] < above["plain PyTorch"]["above_mib"]
    assert above["plain PyTorch"]["above_mib"] > 14.6


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on memory is Linux's")
def test_a_head_over_the_limit_is_reported_and_not_raised():
    settings = dict(name="plain PyTorch", classes=200_000, batch=512, dim=64, limit=int(1.2 * measure.GIB))
    assert measure.in_child("reprolib.benchmarks.heads", "peak", settings) == {"failed": "needs more than 1.2 GiB"}


def test_million_runs_every_head(in_process):
    result = BENCHES["million"](namespace(classes=[400], batch=8, dim=8, limit=100))
    names = {name for name in sys.modules[heads.__module__].HEADS if "reference" not in name}
    (run,) = result["runs"]
    assert run["batch"] == 8 and set(run["heads"]) == names
    assert all("failed" not in entry or entry["failed"] == "missing" for entry in run["heads"].values())


def test_million_asks_twice_unless_told_otherwise(monkeypatch):
    asked = []
    monkeypatch.setattr(sys.modules[heads.__module__], "in_child", lambda *args: asked.append(args[2]) or {})
    result = BENCHES["million"](namespace(classes=[400], dim=8))
    assert [run["batch"] for run in result["runs"]] == [512, 2048]
    assert {entry["classes"] for entry in asked} == {400}
    assert all(entry["limit"] <= measure.available_bytes() for entry in asked)


def test_cost_draws_its_curves(tmp_path):
    result = BENCHES["cost"](namespace(classes=[200, 400], batch=8, dim=8, repeats=1, output=str(tmp_path)))
    assert [point["classes"] for point in result["points"]] == [200, 400]
    assert all(finite(point["seconds"]["ours"]) for point in result["points"])
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


def test_miners_compare_time_and_count(in_process):
    result = miners(namespace(batch=60, dim=6, repeats=1))
    assert {entry["kind"] for entry in result["results"]} == {"semi-hard", "batch-hard"}
    for entry in result["results"]:
        assert finite(entry["ours"]["seconds"]) and entry["ours"]["triplets"] > 0
        if "failed" not in entry["pytorch-metric-learning"]:
            assert finite(entry["seconds_to_peer"])
    hard = next(entry for entry in result["results"] if entry["kind"] == "batch-hard")
    assert hard["pytorch-metric-learning"].get("triplets", 60) == hard["ours"]["triplets"] == 60


def test_popular_bounds_the_ratio_when_the_peer_does_not_arrive(images, monkeypatch):
    module = sys.modules[popular.__module__]
    monkeypatch.setattr(module, "CHECK_EVERY", 1)
    monkeypatch.setattr(module, "RECIPE", TrainConfig(epochs=12, batch_size=32))
    monkeypatch.setattr(module.our_way, "__defaults__", (module.RECIPE,))
    result = popular(namespace(limit=0.05), images)
    assert result["popular"]["seconds_to_98"] is None and result["ratio"] is None
    assert result["popular"]["seconds_spent"] >= 0.05 and result["popular"]["curve"]
    assert result["ours"]["accuracy"][0] >= 0.98 and finite(result["ratio_at_least"])
    assert all(finite(value) for value in result["ratio_if_epochs"].values())


def test_toy_counts_the_seeds_that_reach_what_is_wanted(images, monkeypatch):
    module = sys.modules[toy.__module__]
    quick = {name: entry._replace(config=TrainConfig(epochs=1, batch_size=32)) for name, entry in module.TOYS.items()}
    monkeypatch.setattr(module, "TOYS", quick)
    result = toy(namespace(seeds=2), images)
    for name, entry in quick.items():
        got = result[name]
        assert len(got["accuracy"]) == len(got["seconds"]) == 2 and got["wanted"] == entry.wanted
        assert got["seeds_reached"] == sum(value >= entry.wanted for value in got["accuracy"])
    with pytest.raises(ValueError, match="unknown toy 'nosuch'"):
        toy(namespace(only=["nosuch"]), images)


def test_output_is_written_as_json(tmp_path, monkeypatch, capsys):
    from reprolib import __main__ as command_line

    monkeypatch.setitem(BENCHES, "quick", lambda arguments: {"batch": arguments.batch})
    assert command_line.main(["bench", "quick", "--batch", "3", "--output", str(tmp_path / "new")]) == 0
    written = json.loads((tmp_path / "new" / "quick.json").read_text())
    assert written == json.loads(capsys.readouterr().out) == {"bench": "quick", "batch": 3}
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["quick.json"]


def test_a_child_that_fails_is_reported_in_a_line():
    assert measure.in_child("reprolib.benchmarks.heads", "nosuch", {})["failed"].startswith("ImportError")
    ended = measure.in_child("time", "sleep", {"secs": 30}, timeout=0.01)
    assert ended == {"failed": "not finished after 0 s"}


def test_wrong_sizes_are_refused_by_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "reprolib", "bench", "heads", "--batch", "0"], capture_output=True, text=True
    )
    assert done.returncode == 2 and "must be an integer >= 1, got 0" in done.stderr and done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def people():
    """Twelve people of eight photographs each, in three folds of four genuine and four impostor pairs or more."""
    generator = torch.Generator().manual_seed(0)
    looks = torch.randint(0, 200, (12, 1, 16, 16), generator=generator)
    labels = torch.arange(12).repeat_interleave(8)
    images = (looks[labels] + torch.randint(0, 56, (96, 1, 16, 16), generator=generator)).to(torch.uint8)
    names = tuple(f"P_{chr(97 + k)}" for k in range(12))
    keys = tuple(f"{names[k // 8]}_{k % 8 + 1:04d}" for k in range(96))
    faces = LfwDataset("few", images, labels, 12, "few", names, keys, "none")
    rows = []
    for fold in range(3):
        group = names[4 * fold : 4 * fold + 4]
        rows += [(a, i, a, i + 1, True) for a in group for i in (1, 3)]
        rows += [(a, i, b, i, False) for a, b in zip(group, (*group[1:], group[0]), strict=True) for i in (5, 7)]
    first, second = ([f"{row[2 * k]}_{row[2 * k + 1]:04d}" for row in rows] for k in (0, 1))
    same, folds = np.array([row[4] for row in rows]), np.arange(len(rows)) // 16
    return faces, PairList(tuple(first), tuple(second), same, folds)


def test_partial_fc_compares_paired_runs_on_people_held_out(people, capsys):
    faces, pairs = people
    config = TrainConfig(epochs=2, batch_size=16)
    result = BENCHES["partial_fc"](namespace(seeds=3, dim=8, batch=16, repeats=2), faces, pairs, config)
    assert [run["fold"] for run in result["runs"]] == [0, 1, 2]
    # four of twelve people are held out, with their eight images each
    assert all(run["identities"] == 8 and run["images"] == 64 for run in result["runs"])
    gaps = [run["Partial FC"]["accuracy"] - run["full"]["accuracy"] for run in result["runs"]]
    gap = result["difference"]["accuracy"]
    assert gap["value"] == pytest.approx(sum(gaps) / 3) and gap["low"] <= gap["value"] <= gap["high"]
    # fresh noise on a fixed pattern: the pixels themselves tell these people apart
    assert result["mean"]["pixels"]["auc"] > 0.95
    assert finite(result["time_ratio"]) and all(finite(entry["seconds"]) for entry in result["head"].values())
    assert "Partial FC minus full" in capsys.readouterr().err
    json.dumps(result)
    again = BENCHES["partial_fc"](namespace(seeds=3, dim=8, batch=16, repeats=1), faces, pairs, config)
    assert again["mean"] == result["mean"]


def test_partial_fc_refuses_more_runs_than_folds(people):
    with pytest.raises(ValueError, match="from 2 to 3, one a fold, got 4"):
        BENCHES["partial_fc"](namespace(seeds=4), *people)


def test_partial_fc_without_lfw_is_one_line(monkeypatch, tmp_path, capsys):
    from reprolib import __main__ as command_line
    from reprolib.data import fetching

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("REPROLIB_DATA", str(tmp_path))
    monkeypatch.setattr(fetching, "download", offline)
    assert command_line.main(["bench", "partial_fc"]) == 1
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("reprolib bench: lfw cannot be had")
