"""Miners, TAR and search at a small size: they agree with their peers, and tell when they do not."""

from __future__ import annotations

import json
import math
import sys
import types

import numpy as np
import pytest

from benchmarks import loaders, miners, search, table, tar
from benchmarks.__main__ import build_parser


def options(*words):
    return build_parser().parse_args(words)


@pytest.mark.slow
def test_miners_compare_time_and_count(in_process):
    results = miners.run(options("miners", "--batch", "60", "--dim", "6", "--rounds", "2"))["results"]
    assert [entry["kind"] for entry in results] == ["semi-hard", "batch-hard"]
    for entry in results:
        assert entry["ours"]["triplets"] > 0 and len(entry["ours"]["rounds"]) == 2
        if "failed" not in entry["pytorch-metric-learning"]:
            assert math.isfinite(entry["time_to_peer"]["median"])
    assert results[1]["ours"]["triplets"] == results[1]["pytorch-metric-learning"].get("triplets", 60) == 60


def test_a_miner_that_is_not_there_or_has_no_memory(in_process, without_packages, monkeypatch):
    def refuse(_):
        raise MemoryError

    monkeypatch.setattr(miners, "peak_above", refuse)
    (entry, _) = miners.run(options("miners", "--batch", "20", "--dim", "4", "--rounds", "1"))["results"]
    assert entry["ours"]["failed"].startswith("needs more than")
    assert entry["pytorch-metric-learning"] == {"failed": "not installed"}
    assert entry["time_to_peer"] is entry["memory_to_peer"] is None


TAR = ("tar", "--genuine", "500", "--impostor", "30000", "--rounds", "2")


def test_tar_agrees_with_both_peers():
    result = tar.run(options(*TAR))
    assert set(result["seconds"]) == {"ours", "np.sort", "scikit-learn"} == {"ours", *result["ours_to"]}
    assert result["tar"] == sorted(result["tar"]) and 0.9 < result["tar"][-1] <= 1
    json.dumps(result)


@pytest.mark.parametrize(("function", "peer"), [("by_sorting", "np.sort"), ("by_scikit_learn", "scikit-learn")])
def test_a_rate_that_differs_is_an_error(monkeypatch, function, peer):
    monkeypatch.setattr(tar, function, lambda *_: [0.5] * 6)
    with pytest.raises(RuntimeError, match=f"differs from {peer}'s"):
        tar.run(options(*TAR))


def test_sorting_by_hand(monkeypatch):
    # floor(0.4 * 5) = 2 impostors may pass: with a tie at the threshold none of the tied may
    monkeypatch.setattr(tar, "FARS", (0.4,))
    impostor = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    assert tar.by_sorting(np.array([0.5, 0.6, 0.95]), impostor) == [pytest.approx(2 / 3)]


class FlatIndex:
    """What the bench asks of faiss, by a plain matrix product."""

    shift = 0.0

    def __init__(self, dim):
        self.features = np.zeros((0, dim), dtype=np.float32)

    def add(self, features):
        self.features = features

    def search(self, probes, k):
        cosines = probes @ self.features.T
        return cosines.max(axis=1, keepdims=True) + self.shift, cosines.argmax(axis=1, keepdims=True)


def knn(probes, features, k, metric):
    index = FlatIndex(features.shape[1])
    index.add(features)
    return index.search(probes, k)


@pytest.fixture
def faiss(monkeypatch):
    module = types.ModuleType("faiss")
    module.IndexFlatIP, module.knn, module.__version__ = FlatIndex, knn, "0"
    module.METRIC_INNER_PRODUCT, module.omp_set_num_threads = 0, lambda count: None
    monkeypatch.setitem(sys.modules, "faiss", module)
    monkeypatch.setattr(search, "installed", lambda name: True)


SEARCH = ("search", "--probes", "40", "--distractors", "5000", "--dim", "32", "--rounds", "2")


def test_search_agrees_with_both_peers(faiss):
    result = search.run(options(*SEARCH))
    assert set(result["seconds"]) == {search.OURS, search.KNN, search.FLAT} and result["faiss"] == "0"
    assert set(result["ours_to"]) == {search.KNN, search.FLAT}
    json.dumps(result)


def test_a_search_that_differs_is_an_error(faiss, monkeypatch):
    monkeypatch.setattr(FlatIndex, "shift", 0.5)
    with pytest.raises(RuntimeError, match="close calls"):
        search.run(options(*SEARCH))


def test_without_faiss_the_peers_are_said_to_be_missing(without_packages):
    result = search.run(options(*SEARCH))
    assert result["missing"] == "the package faiss is not installed" and result["ours_to"] == {}
    assert 0 <= result["rank1"] <= 1


def test_loaders_read_every_format_and_a_large_index():
    result = loaders.run(options("loaders", "--images", "8", "--records", "3000", "--rounds", "1", "--batch", "4"))
    assert {"rec, random", "folder, random", "zip, random", "tar, random", "tar, stream"} <= set(result["ours_to"])
    assert all(set(peers) == {loaders.IMAGE_FOLDER} for peers in result["ours_to"].values())
    assert result["large"]["images"] == result["large"]["people"] == 3000
    assert any("records of 3,000 images opened" in row for row in table.ROWS["loaders"](result))
    json.dumps(result)
    with pytest.raises(RuntimeError, match="--mxnet must name an interpreter that has mxnet"):
        loaders.run(options("loaders", "--images", "4", "--records", "9", "--rounds", "1", "--mxnet", sys.executable))
