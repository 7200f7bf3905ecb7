"""The evaluation benchmarks at a small size: they agree with their peers, and tell when they do not."""

from __future__ import annotations

import argparse
import builtins
import sys
import types

import numpy as np
import pytest

from reprolib.benchmarks import BENCHES, evaluation

NOTHING = argparse.Namespace()


def test_the_benches_are_listed():
    assert {"toy", "tar", "rank1"} <= set(BENCHES)


def test_tar_agrees_with_scikit_learn_at_a_small_size():
    result = evaluation.tar(NOTHING, genuine=500, impostor=30_000)
    assert result["same_as_scikit_learn"] and result["tar"] == sorted(result["tar"])
    assert 0.9 < result["tar"][-1] <= 1 and result["ratio"] > 0


def test_tar_that_differs_is_an_error(monkeypatch):
    monkeypatch.setattr(evaluation, "tar_at_far", lambda *_: [0.5] * 6)
    with pytest.raises(RuntimeError, match="differs from scikit-learn"):
        evaluation.tar(NOTHING, genuine=500, impostor=30_000)


class FlatIndex:
    """What the benchmark asks of faiss, by a plain matrix product."""

    shift = 0.0

    def __init__(self, dimension):
        self.features = np.zeros((0, dimension), dtype=np.float32)

    def add(self, features):
        self.features = features

    def search(self, probes, k):
        cosines = probes @ self.features.T
        return cosines.max(axis=1, keepdims=True) + self.shift, cosines.argmax(axis=1, keepdims=True)


@pytest.fixture
def faiss(monkeypatch):
    module = types.ModuleType("faiss")
    module.IndexFlatIP, module.__version__, module.omp_get_max_threads = FlatIndex, "0", lambda: 1
    monkeypatch.setitem(sys.modules, "faiss", module)
    monkeypatch.setattr(FlatIndex, "shift", 0.0)


def test_rank1_agrees_with_the_peer(faiss):
    result = evaluation.rank1(NOTHING, probes=60, distractors=20_000, dimension=64)
    assert result["rank1"] == result["peer_rank1"] and "faiss 0" in result["peer"]


def test_rank1_that_differs_is_an_error(faiss, monkeypatch):
    monkeypatch.setattr(FlatIndex, "shift", 0.5)
    with pytest.raises(RuntimeError, match="close calls"):
        evaluation.rank1(NOTHING, probes=60, distractors=200, dimension=64)


def test_without_faiss_the_peer_is_said_to_be_missing(monkeypatch):
    known = builtins.__import__

    def without(name, *arguments, **options):
        if name == "faiss":
            raise ImportError(name)
        return known(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    result = evaluation.rank1(NOTHING, probes=20, distractors=300, dimension=16)
    assert result["peer"] == "the package faiss is not installed" and "ratio" not in result
    assert 0 <= result["rank1"] <= 1


def test_memory_above_the_data_is_none_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(evaluation, "_memory", lambda key: None)
    result = evaluation.rank1(NOTHING, probes=20, distractors=300, dimension=16)
    assert result["mib_above_data"] is None and result["reached"] is None
