"""The cost of evaluation at the size of IJB-C and of MegaFace, each against its usual peer in the same run."""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import metrics

from reprolib.evaluation import distractor_identification, tar_at_far

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
WANTED_RATIO = 50
WANTED_MEMORY = 2 << 30
_GENERATED_AT_ONCE = 1 << 14


def tar(arguments: argparse.Namespace, genuine: int = 19_557, impostor: int = 15_639_000) -> dict[str, Any]:
    """TAR at six FARs over IJB-C's number of scores, against scikit-learn's ROC curve; the numbers must agree.

    Both read float32 scores. Ours is the median of five calls, scikit-learn's is one call of `roc_curve`, which
    sorts all scores (without `drop_intermediate`, which only adds to its time). Raises RuntimeError if any of
    the six rates differs.
    """
    generator = np.random.default_rng(0)
    mated = 0.5 + 0.15 * generator.standard_normal(genuine, dtype=np.float32)
    others = 0.06 * generator.standard_normal(impostor, dtype=np.float32)
    rates, seconds = [], []
    for _ in range(5):
        spent, rates = _timed(lambda: tar_at_far(mated, others, FARS))
        seconds.append(spent)
    truth = np.repeat([True, False], [genuine, impostor])
    scores = np.concatenate((mated, others))
    peer_seconds, (fpr, tpr, _) = _timed(lambda: metrics.roc_curve(truth, scores, drop_intermediate=False))
    # the last step of the curve at which at most floor(far * impostor) impostors are accepted
    accepted = np.rint(fpr * impostor)
    allowed = [int(round(far * 10**6) * impostor // 10**6) for far in FARS]
    peer_rates = tpr[np.searchsorted(accepted, allowed, side="right") - 1]
    if [float(rate) for rate in rates] != peer_rates.tolist():
        raise RuntimeError(f"TAR differs from scikit-learn's: {rates} against {peer_rates.tolist()}")
    median = float(np.median(seconds))
    return {
        "impostor_scores": impostor,
        "far": list(FARS),
        "tar": [round(float(rate), 6) for rate in rates],
        "same_as_scikit_learn": True,
        "seconds": round(median, 4),
        "scikit_learn_seconds": round(peer_seconds, 2),
        "ratio": round(peer_seconds / median, 1),
        "wanted_ratio": WANTED_RATIO,
        "reached": peer_seconds / median >= WANTED_RATIO,
    }


def rank1(
    arguments: argparse.Namespace, probes: int = 1000, distractors: int = 1_000_000, dimension: int = 512
) -> dict[str, Any]:
    """Rank-1 against 1,000,000 distractors: seconds and memory above the data, against faiss's flat index.

    Unit float32 features on the CPU; mates are as far from their probes as the nearest of a million random
    distractors, so that about half of the trials succeed. faiss's time is that of filling `IndexFlatIP` (which
    copies the data) and of searching it. Without the package `faiss` its numbers are missing and the result
    says so. Raises RuntimeError if the two disagree on more trials than are close calls in float32.
    """
    generator = np.random.default_rng(0)
    features = np.empty((distractors, dimension), dtype=np.float32)
    for start in range(0, distractors, _GENERATED_AT_ONCE):
        block = features[start : start + _GENERATED_AT_ONCE]
        generator.standard_normal(out=block, dtype=np.float32)
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    images = generator.standard_normal((probes, dimension), dtype=np.float32)
    mates = images + 4.5 * generator.standard_normal((probes, dimension), dtype=np.float32)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    mates /= np.linalg.norm(mates, axis=1, keepdims=True)

    resident = _memory("VmRSS")
    seconds, rate = _timed(lambda: distractor_identification(images, mates, features))
    peak = _memory("VmHWM")
    above = None if resident is None or peak is None else peak - resident
    result = {
        "distractors": distractors,
        "dimension": dimension,
        "probes": probes,
        "threads": torch.get_num_threads(),
        "rank1": float(rate),
        "seconds": round(seconds, 2),
        "mib_above_data": None if above is None else round(above / 2**20),
        "wanted_mib": WANTED_MEMORY >> 20,
        "reached": None if above is None else above <= WANTED_MEMORY,
    }
    try:
        import faiss
    except ImportError:
        return {**result, "peer": "the package faiss is not installed"}
    index = faiss.IndexFlatIP(dimension)
    filling, _ = _timed(lambda: index.add(features))
    searching, (best, _) = _timed(lambda: index.search(images, 1))
    mate = np.einsum("ij,ij->i", images, mates)
    close = int((np.abs(best[:, 0] - mate) < 1e-5).sum())
    peer_hits, hits = int((best[:, 0] < mate).sum()), round(float(rate) * probes)
    if abs(peer_hits - hits) > close:
        raise RuntimeError(f"{hits} trials succeed here, {peer_hits} with faiss, and only {close} are close calls")
    return {
        **result,
        "peer": f"faiss {faiss.__version__} IndexFlatIP, {faiss.omp_get_max_threads()} threads",
        "peer_rank1": peer_hits / probes,
        "peer_seconds": {"add": round(filling, 2), "search": round(searching, 2)},
        "ratio": round((filling + searching) / seconds, 2),
    }


def _timed(action: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = action()
    return time.perf_counter() - began, result


def _memory(key: str) -> int | None:
    """Bytes resident now (VmRSS) or at most so far (VmHWM); None where the system does not tell."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(rf"^{key}:\s+(\d+) kB", status, re.MULTILINE)
    return None if found is None else int(found[1]) << 10
