"""The benches that train: popular loop and Partial FC, on a handful of made images."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from benchmarks import partial_fc, popular
from benchmarks.__main__ import build_parser, main
from reprolib.data import LfwDataset
from reprolib.evaluation import PairList
from reprolib.training import TrainConfig


def options(*words):
    return build_parser().parse_args(words)


@pytest.mark.slow
def test_popular_bounds_the_ratio_when_the_peer_does_not_arrive(images, monkeypatch):
    monkeypatch.setattr(popular, "CHECK_EVERY", 1)
    monkeypatch.setattr(popular.our_way, "__defaults__", (TrainConfig(epochs=12, batch_size=32),))
    result = popular.run(options("popular", "--limit", "0.05"), images)
    assert result["popular"]["seconds_to_98"] is None and result["ratio"] is None
    assert result["popular"]["seconds_spent"] >= 0.05 and result["popular"]["curve"]
    assert result["ours"]["accuracy"][0] >= 0.98 and math.isfinite(result["ratio_at_least"])


@pytest.fixture(scope="module")
def people():
    """Twelve people of eight photographs each, in three folds of eight genuine and eight impostor pairs."""
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


@pytest.mark.slow
def test_partial_fc_compares_paired_runs_on_people_held_out(people, in_process, capsys):
    config = TrainConfig(epochs=2, batch_size=16)
    words = ("partial_fc", "--seeds", "3", "--dim", "8", "--batch", "16", "--rounds", "2")
    result = partial_fc.run(options(*words), *people, config)
    assert [run["fold"] for run in result["runs"]] == [0, 1, 2]
    # four of twelve people are held out, with their eight images each
    assert all(run["identities"] == 8 and run["images"] == 64 for run in result["runs"])
    gaps = [run["Partial FC"]["accuracy"] - run["full"]["accuracy"] for run in result["runs"]]
    gap = result["difference"]["accuracy"]
    assert gap["value"] == pytest.approx(sum(gaps) / 3) and gap["low"] <= gap["value"] <= gap["high"]
    # fresh noise on a fixed pattern: the pixels themselves tell these people apart
    assert result["mean"]["pixels"]["auc"] > 0.95
    assert result["time_ratio"]["median"] > 0
    assert "Partial FC minus full" in capsys.readouterr().err
    json.dumps(result)
    assert partial_fc.run(options(*words), *people, config)["mean"] == result["mean"]


def test_partial_fc_refuses_more_runs_than_folds(people):
    with pytest.raises(ValueError, match="from 2 to 3, one a fold, got 4"):
        partial_fc.run(options("partial_fc", "--seeds", "4"), *people)


def test_partial_fc_without_lfw_is_one_line(monkeypatch, tmp_path, capsys):
    from reprolib.data import fetching

    def offline(*_, **__):
        raise OSError("no network")

    monkeypatch.setenv("REPROLIB_DATA", str(tmp_path))
    monkeypatch.setattr(fetching, "download", offline)
    assert main(["partial_fc"]) == 1
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("benchmarks partial_fc: lfw cannot be had")
