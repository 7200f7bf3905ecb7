"""TAR at six FARs over IJB-C's number of scores, against an exact sort in NumPy and scikit-learn's ROC curve."""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
from sklearn import metrics

from benchmarks.kit import alternate, count, ratios, show, spread
from reprolib.evaluation import tar_at_far

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
OURS, SORT, SKLEARN = "ours", "np.sort", "scikit-learn"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Numbers of scores and rounds; the defaults are those of IJB-C's 1:1 protocol."""
    parser.add_argument("--genuine", type=count, default=19_557, metavar="N")
    parser.add_argument("--impostor", type=count, default=15_639_000, metavar="N")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="timed rounds (default: 3)")


def _allowed(impostors: int) -> list[int]:
    """floor(far * impostors) in integers, for FARs that are powers of ten of at least 1e-6."""
    return [round(far * 10**6) * impostors // 10**6 for far in FARS]


def by_sorting(genuine: np.ndarray, impostor: np.ndarray) -> list[float]:
    """The exact rates from sorted impostors: accept what is above the first impostor that must be refused."""
    ordered = np.sort(impostor)
    # the largest threshold set {score > t} that accepts at most `allowed` impostors
    thresholds = (ordered[len(ordered) - 1 - allowed] for allowed in _allowed(len(ordered)))
    return [float((genuine > threshold).mean()) for threshold in thresholds]


def by_scikit_learn(truth: np.ndarray, scores: np.ndarray, impostors: int) -> list[float]:
    """The last step of the ROC curve at which at most floor(far * impostors) impostors are accepted."""
    # without drop_intermediate, which only adds to the time
    fpr, tpr, _ = metrics.roc_curve(truth, scores, drop_intermediate=False)
    return tpr[np.searchsorted(np.rint(fpr * impostors), _allowed(impostors), side="right") - 1].tolist()


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All three on float32 scores, in alternating rounds. Raises RuntimeError if any of the rates differ."""
    generator = np.random.default_rng(0)
    genuine = 0.5 + 0.15 * generator.standard_normal(arguments.genuine, dtype=np.float32)
    impostor = 0.06 * generator.standard_normal(arguments.impostor, dtype=np.float32)
    truth, scores = np.repeat([True, False], [len(genuine), len(impostor)]), np.concatenate((genuine, impostor))
    rates: dict[str, list[float]] = {}
    functions = {
        OURS: lambda: rates.update({OURS: np.asarray(tar_at_far(genuine, impostor, FARS), dtype=float).tolist()}),
        SORT: lambda: rates.update({SORT: by_sorting(genuine, impostor)}),
        SKLEARN: lambda: rates.update({SKLEARN: by_scikit_learn(truth, scores, len(impostor))}),
    }
    functions[OURS]()  # what it imports and compiles at its first call is not counted; the peers have none of it
    seconds = alternate(functions, arguments.rounds, warm_up=0)
    for peer in (SORT, SKLEARN):
        if rates[OURS] != rates[peer]:
            raise RuntimeError(f"TAR differs from {peer}'s: {rates[OURS]} against {rates[peer]}")
    compared = {peer: ratios(seconds[OURS], seconds[peer]) for peer in (SORT, SKLEARN)}
    rows = [[name, spread(values), compared.get(name)] for name, values in seconds.items()]
    show(f"TAR at {len(FARS)} FARs, {len(impostor):,} impostor scores", ["", "seconds", "ours to it"], rows)
    return {
        "genuine_scores": len(genuine),
        "impostor_scores": len(impostor),
        "rounds": arguments.rounds,
        "far": list(FARS),
        "tar": [round(rate, 6) for rate in rates[OURS]],
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ours_to": compared,
    }
