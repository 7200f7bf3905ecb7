"""Partial FC against the full head where a reader can check it: thousands of LFW identities, people held out.

Run k trains on everybody who is not in fold k of LFW's View 2, once with the full head and once with Partial FC, both
from seed k, and verifies the 600 pairs of fold k. The runs are paired, so that images, order and initial weights
cancel in the difference.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.kit import alternate, count, in_child, mebibytes, peak_above, ratio, ratios, show, spread
from benchmarks.peers import make_batch, step
from reprolib import losses, models, training
from reprolib.data import LfwDataset, fold_split, lfw_pairs, load_lfw_grey, people_by_fold
from reprolib.evaluation import PairList, mean_estimate, pair_cosines, read_pairs, roc_auc, verification_accuracy
from reprolib.optim import SparseMomentumSGD
from reprolib.training import TrainConfig

RATE = 0.1
SIDE = 32
SCALE, MARGIN = 24.0, 0.2
# parts of a fold of 600 pairs, each judged with the best threshold of the others
PARTS = 10
RECIPE = TrainConfig(epochs=6, batch_size=64, lr=0.4, ramp_end=0.5, scale_start=8.0, flip=True, shift=2)
FULL, PARTIAL = "full", "Partial FC"


def make_head(kind: str, dim: int, classes: int, seed: int = 0, sparse: bool = False) -> losses.ArcFace:
    """ArcFace over all classes, or over the batch's and a share `RATE` in all."""
    sampler = losses.PartialFC(RATE, seed=seed) if kind == PARTIAL else None
    return losses.ArcFace(
        dim, classes, m=MARGIN, scale=SCALE, sampler=sampler, sparse_grad=sparse and sampler is not None
    )


def head_steps(classes: int, batch: int, dim: int) -> dict[str, Callable[[], None]]:
    """One training step of each head alone: loss, gradients, and SGD with momentum on the class weights."""
    features, labels, _ = make_batch("random", batch, dim, classes)
    functions: dict[str, Callable[[], None]] = {}
    for kind in (FULL, PARTIAL):
        head = make_head(kind, dim, classes, sparse=True)
        optimizer: torch.optim.Optimizer
        if kind == PARTIAL:
            optimizer = sparse = SparseMomentumSGD(head.parameters(), lr=0.01)
            sparse.attach(head)
        else:
            optimizer = torch.optim.SGD(head.parameters(), lr=0.01, momentum=0.9)

        def one(head: nn.Module = head, optimizer: torch.optim.Optimizer = optimizer) -> None:
            step(head, features, labels)
            optimizer.step()

        functions[kind] = one
    return functions


def memory(kind: str, classes: int, batch: int, dim: int) -> dict[str, Any]:
    """Peak MiB of forward and backward above the weights and inputs, gradient included; run in a fresh process."""
    features, labels, _ = make_batch("random", batch, dim, classes)
    # libraries load, and threads start, at the first step; a small one keeps that out of the account
    step(make_head(kind, dim, 300, sparse=True), features, labels % 300)
    head = make_head(kind, dim, classes, sparse=True)
    features.grad = None
    rise = peak_above(lambda: step(head, features, labels))
    return {"mib": mebibytes(rise)}


def verify(features: Tensor, faces: LfwDataset, pairs: PairList, fold: int) -> dict[str, float]:
    """Accuracy (threshold from the other parts of the fold) and ROC area of the fold's pairs by the cosine."""
    chosen = np.flatnonzero(pairs.folds == fold)
    first, second = (faces.rows([keys[i] for i in chosen]) for keys in (pairs.first, pairs.second))
    scores, same = pair_cosines(features[first], features[second]), pairs.same[chosen]
    parts = np.arange(len(chosen)) % min(PARTS, len(chosen) // 4)
    result = verification_accuracy(scores, same, parts)
    return {"accuracy": float(result.accuracy), "auc": float(roc_auc(scores[same], scores[~same]))}


def _runs(faces: LfwDataset, pairs: PairList, count: int, dim: int, config: TrainConfig) -> list[dict[str, Any]]:
    people = people_by_fold(pairs.first, pairs.second, pairs.folds)
    channels, height, width = faces.images.shape[1:]
    runs = []
    for seed in range(count):
        inside, _ = fold_split(faces.names, faces.labels, people, seed)
        images, (present, labels) = faces.images[inside], faces.labels[inside].unique(return_inverse=True)
        pixels = faces.images.flatten(1).float() - images.flatten(1).float().mean(dim=0)
        entry: dict[str, Any] = {
            "seed": seed,
            "fold": seed,
            "identities": len(present),
            "images": len(images),
            "pixels": verify(pixels, faces, pairs, seed),
        }
        classes = len(present)
        for kind in (FULL, PARTIAL):
            began = time.perf_counter()
            trained = training.fit(
                lambda: models.build("compact", dim, (channels, height, width)),
                functools.partial(make_head, kind, dim, classes, seed),
                images,
                labels,
                config,
                seed=seed,
                label=f"{kind} {seed}",
            )
            steps = len(images) // config.batch_size * config.epochs
            spent = time.perf_counter() - began
            features = training.embed(trained.model, faces.images)
            entry[kind] = {
                **verify(features, faces, pairs, seed),
                "training_loss": round(trained.history.losses[-1], 4),
                "step_seconds": float(f"{spent / steps:.4g}"),
            }
        runs.append(entry)
        print(
            f"run {seed}: {entry['identities']} identities, accuracy {entry[FULL]['accuracy']:.2%} full, "
            f"{entry[PARTIAL]['accuracy']:.2%} Partial FC, {entry['pixels']['accuracy']:.2%} pixels",
            file=sys.stderr,
        )
    return runs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Runs, sizes and rounds."""
    parser.add_argument("--seeds", type=count, default=5, metavar="N", help="runs, at most one a fold (default: 5)")
    parser.add_argument("--dim", type=count, default=64, metavar="D", help="the embedding's dimension")
    parser.add_argument("--batch", type=count, default=512, metavar="B", help="batch of the head's measured step")
    parser.add_argument("--rounds", type=count, default=7, metavar="N", help="timed rounds of the head (default: 7)")


def run(
    arguments: argparse.Namespace,
    faces: LfwDataset | None = None,
    pairs: PairList | None = None,
    config: TrainConfig = RECIPE,
) -> dict[str, Any]:
    """Verification by both heads on the same seeds and folds, with the interval of the difference; time and memory.

    Raises `DataUnavailable` without LFW.
    """
    seeds, dim, batch = arguments.seeds, arguments.dim, arguments.batch
    faces = load_lfw_grey(SIDE) if faces is None else faces
    pairs = read_pairs(lfw_pairs()) if pairs is None else pairs
    if not 2 <= seeds <= pairs.fold_count:
        raise ValueError(f"the number of runs must be from 2 to {pairs.fold_count}, one a fold, got {seeds}")
    runs = _runs(faces, pairs, seeds, dim, config)
    classes = min(run["identities"] for run in runs)
    seconds = alternate(head_steps(classes, batch, dim), arguments.rounds)
    peaks = {
        kind: in_child("benchmarks.partial_fc", "memory", dict(kind=kind, classes=classes, batch=batch, dim=dim))
        for kind in (FULL, PARTIAL)
    }
    difference = {
        key: mean_estimate([run[PARTIAL][key] - run[FULL][key] for run in runs], over="runs").as_dict()
        for key in ("accuracy", "auc")
    }
    head = {
        kind: {
            "seconds": spread(seconds[kind]),
            **{("memory_" + key): value for key, value in peaks[kind].items()},
            "training_step_seconds": spread(run[kind]["step_seconds"] for run in runs),
        }
        for kind in (FULL, PARTIAL)
    }
    mean = {
        kind: {key: float(np.mean([run[kind][key] for run in runs])) for key in ("accuracy", "auc")}
        for kind in ("pixels", FULL, PARTIAL)
    }
    rows = [
        [
            kind,
            round(100 * mean[kind]["accuracy"], 2),
            round(mean[kind]["auc"], 4),
            *(head.get(kind, {}).get(key) for key in ("seconds", "memory_mib", "training_step_seconds")),
        ]
        for kind in mean
    ]
    show(
        f"LFW, {classes:,} identities or more, {seeds} runs, r = {RATE}, head measured at B = {batch}, d = {dim}",
        ["", "accuracy %", "ROC area", "head s a step", "head MiB", "training s a step"],
        rows,
    )
    gap = difference["accuracy"]
    print(
        f"Partial FC minus full: {100 * gap['value']:+.2f} points [{100 * gap['low']:+.2f}, {100 * gap['high']:+.2f}]",
        file=sys.stderr,
    )
    return {
        "data": faces.name,
        "image": list(faces.images.shape[1:]),
        "network": "compact",
        "dim": dim,
        "rate": RATE,
        "margin": MARGIN,
        "scale": SCALE,
        "config": config.describe(),
        "classes_least": classes,
        "mean": mean,
        "difference": difference,
        "within_noise": difference["accuracy"]["low"] <= 0.0 <= difference["accuracy"]["high"],
        "head_batch": batch,
        "head": head,
        "time_ratio": ratios(seconds[PARTIAL], seconds[FULL]),
        "memory_ratio": ratio(head[PARTIAL].get("memory_mib"), head[FULL].get("memory_mib")),
        "runs": runs,
    }
