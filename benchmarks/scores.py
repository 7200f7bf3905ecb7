"""Scores of pairs of unseen numbers, for the threshold that a reader moves in the book.

    python -m benchmarks.scores --output reference/scores.json

Each loss is trained once on numbers, with its tuned hyper-parameters. Of the cosines of all pairs of the unseen
identities so many are kept as lie in each of 400 steps of 0.005: accepted at the threshold t is what is above t, so the
counts give every rate at a multiple of 0.005 exactly. EER and TAR are those of all scores, by `reprolib.evaluation`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from reprolib import arenas
from reprolib.data.files import write_atomic
from reprolib.evaluation import all_pairs_cosines, equal_error_rate, tar_at_far

SEED = 10
LOSSES = ("softmax", "normface", "cosface", "arcface")
STEPS = 400
FARS = (1e-1, 1e-2, 1e-3, 1e-4)


def thresholds() -> np.ndarray:
    """-1, -0.995 to 1: the lower ends of the steps and the last upper end; shape (401,)."""
    return np.linspace(-1.0, 1.0, STEPS + 1)


def counted(scores: np.ndarray) -> list[int]:
    """How many scores lie in each step (low, high]; the first takes those at -1 too."""
    above = len(scores) - np.searchsorted(np.sort(scores.clip(-1.0, 1.0)), thresholds(), side="right")
    above[0] = len(scores)
    return (above[:-1] - above[1:]).tolist()


def measure(embeddings: Tensor, labels: Tensor) -> dict[str, Any]:
    """Counts of the genuine and impostor cosines of all pairs, and their EER and TARs."""
    genuine, impostor = all_pairs_cosines(embeddings, labels)
    rates = tar_at_far(genuine, impostor, FARS)
    return {
        "genuine": counted(np.asarray(genuine)),
        "impostor": counted(np.asarray(impostor)),
        "EER": float(equal_error_rate(genuine, impostor)),
        "TAR": {f"{far:g}": float(rate) for far, rate in zip(FARS, rates, strict=True)},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.scores", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    chosen = parser.parse_args(arguments)
    found: dict[str, Any] = {}
    for name in LOSSES:
        print(f"{name}: training", file=sys.stderr, flush=True)
        found[name] = arenas.numbers_run(name, seed=SEED, measure=measure)
    document = {"arena": "numbers", "part": "unseen", "seed": SEED, "losses": found}
    write_atomic(chosen.output, (json.dumps(document) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
