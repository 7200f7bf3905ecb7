"""Rank-1 of probes against a million distractors: ours, `faiss.knn` without an index, and faiss's flat index.

Unit float32 features on the CPU; mates are as far from their probes as the nearest of a million random distractors, so
that about half of the trials succeed. The flat index copies the data: its time is that of filling and of searching.
Without the package faiss the peers are missing and the result says so.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks.kit import alternate, count, installed, mebibytes, peak_above, ratios, show, spread
from reprolib.evaluation import distractor_identification

OURS, KNN, FLAT = "ours", "faiss.knn", "faiss.IndexFlatIP, filling and searching"
_GENERATED_AT_ONCE = 1 << 14


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes and rounds; the defaults are MegaFace's million distractors."""
    parser.add_argument("--probes", type=count, default=1000, metavar="N")
    parser.add_argument("--distractors", type=count, default=1_000_000, metavar="N")
    parser.add_argument("--dim", type=count, default=512, metavar="D")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="timed rounds (default: 3)")


def _units(shape: tuple[int, int], generator: np.random.Generator) -> np.ndarray:
    features = np.empty(shape, dtype=np.float32)
    for start in range(0, len(features), _GENERATED_AT_ONCE):
        block = features[start : start + _GENERATED_AT_ONCE]
        generator.standard_normal(out=block, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return features


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds in alternating rounds, memory above the data, and the rate.

    Raises RuntimeError if a peer disagrees on more trials than are close calls in float32.
    """
    probes, dim = arguments.probes, arguments.dim
    generator = np.random.default_rng(0)
    features = _units((arguments.distractors, dim), generator)
    images = _units((probes, dim), generator)
    # a probe has norm 1, the mate's noise 4.5: as Gaussians of norms sqrt(dim) and 4.5 sqrt(dim)
    mates = images + 4.5 * generator.standard_normal((probes, dim), dtype=np.float32) / np.float32(dim**0.5)
    mates /= np.linalg.norm(mates, axis=1, keepdims=True)

    rate: list[float] = []
    best: dict[str, np.ndarray] = {}
    functions: dict[str, Callable[[], object]] = {
        OURS: lambda: rate.append(np.asarray(distractor_identification(images, mates, features), dtype=float).item())
    }
    memory = {OURS: mebibytes(peak_above(functions[OURS]))}
    missing = None if installed("faiss") else "the package faiss is not installed"
    version = None
    if missing is None:
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        version = faiss.__version__

        def knn() -> None:
            best[KNN] = faiss.knn(images, features, 1, metric=faiss.METRIC_INNER_PRODUCT)[0][:, 0]

        def flat() -> None:
            index = faiss.IndexFlatIP(dim)
            index.add(features)
            best[FLAT] = index.search(images, 1)[0][:, 0]

        functions |= {KNN: knn, FLAT: flat}
        memory |= {name: mebibytes(peak_above(functions[name])) for name in (KNN, FLAT)}
    # the measurement of memory was the round to warm up
    seconds = alternate(functions, arguments.rounds, warm_up=0)
    mate = np.einsum("ij,ij->i", images, mates)
    hits = round(rate[-1] * probes)
    for name, found in best.items():
        close, theirs = int((np.abs(found - mate) < 1e-5).sum()), int((found < mate).sum())
        if abs(theirs - hits) > close:
            raise RuntimeError(f"{hits} trials succeed here, {theirs} with {name}, and only {close} are close calls")
    compared = {name: ratios(seconds[OURS], seconds[name]) for name in best}
    rows = [[name, spread(values), compared.get(name), memory[name]] for name, values in seconds.items()]
    title = f"rank-1 of {probes:,} probes against {len(features):,} distractors, d = {dim}"
    show(title, ["", "seconds", "ours to it", "MiB above"], rows)
    return {
        "distractors": len(features),
        "dim": dim,
        "probes": probes,
        "rounds": arguments.rounds,
        "rank1": rate[-1],
        "faiss": version,
        "missing": missing,
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "mib_above": memory,
        "ours_to": compared,
    }
