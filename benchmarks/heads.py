"""Classification heads: time, memory and error of a training step, ours against what people use.

Forward and backward pass of every head, alternating in one process, on random and on trained-like features; the
memory of each in a fresh process; the float32 error against float64 by the angle to the own class. Sizes too large
for rounds (batch times classes above 1e8) get one step each, in a process that may hold --limit GiB.

"drop 2^-k" leaves probabilities of other classes below t = 2^-k out of the gradients. The gradient in a feature x is
then off by at most min(C t, 1 - p_y) s / (B ||x||), that in a class's weight W by s t / ||W||. At C = 85,742, 2^-24
bounds the first by half a percent of s / (B ||x||); 2^-12 has no useful bound on it: see its measured error. Where more
than 3 % of the probabilities are larger, as those of random features at 2^-24, the step is the dense one.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks import floor, precision
from benchmarks.kit import (
    GIB,
    alternate,
    available_bytes,
    count,
    fastest,
    in_child,
    is_out_of_memory,
    limit_memory,
    mebibytes,
    peak_above,
    ratio,
    ratios,
    show,
    spread,
    status_bytes,
    three_digits,
)
from benchmarks.peers import HEADS, PEERS, RAW_PEERS, built, make_batch, missing, shares_above, step

CLASSES = (1_000, 10_572, 85_742, 1_000_000)
FLOOR, PLAIN_PRODUCTS = "floor of three products", "three products"
LARGEST_TIMED = 10**8
# enough for several blocks of classes
WARM_UP_CLASSES = 4_096
KINDS = ("random", "trained")
DEFAULT = tuple(name for name in HEADS if name != "ours, reference")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes, rounds and heads."""
    parser.add_argument("--classes", type=count, nargs="+", default=list(CLASSES), metavar="C")
    parser.add_argument("--batch", type=count, default=512, metavar="B")
    parser.add_argument("--dim", type=count, default=512, metavar="D")
    parser.add_argument("--rounds", type=count, default=5, metavar="N", help="timed rounds (default: 5)")
    parser.add_argument("--features", nargs="+", choices=KINDS, default=list(KINDS), help="default: both")
    parser.add_argument("--only", nargs="+", choices=list(HEADS), default=list(DEFAULT), metavar="HEAD")
    parser.add_argument("--limit", type=float, default=8.0, metavar="GIB", help="for sizes too large for rounds")
    parser.add_argument("--error-classes", type=count, default=4_000, metavar="C", help="classes of the error's part")


def peak(name: str, classes: int, batch: int, dim: int, limit: int | None = None) -> dict[str, Any]:
    """Peak memory of one step above weights, their gradient and the inputs; run in a fresh process.

    Every head comes without a gradient and makes its own, whose bytes are taken off. With `limit` the process may hold
    that many bytes in all.
    """
    # libraries load, and threads start, at the first step; a smaller one keeps that out of the account
    features, labels, weight = make_batch("random", batch, dim, min(classes, WARM_UP_CLASSES))
    step(built(name, weight), features, labels)
    del weight
    if limit is not None:
        limit_memory(limit)
    try:
        head = HEADS[name](dim, classes)
        labels = torch.randint(classes, (batch,), generator=torch.Generator().manual_seed(0))
        features.grad = None
        began = time.perf_counter()
        rise = peak_above(lambda: step(head, features, labels))
        seconds = time.perf_counter() - began
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"failed": "more memory" if limit is None else f"needs more than {limit / GIB:.3g} GiB"}
    gradients = [p.grad for p in (*head.parameters(), features) if p.grad is not None]
    held = sum((g._values() if g.is_sparse else g).nbytes for g in gradients)
    total = status_bytes("VmHWM")
    return {
        "above_mib": None if rise is None else mebibytes(max(0, rise - held)),
        "peak_gib": None if total is None else round(total / GIB, 2),
        "seconds": three_digits(seconds),
    }


def _fits(name: str, classes: int, batch: int, dim: int) -> bool:
    """Whether the machine can hold the head's weight, gradient and, for one that keeps them, its logits."""
    logits = 0 if name.startswith("ours") and "reference" not in name else 5 * batch * classes
    return 4 * (4 * classes * dim + logits) < 0.8 * available_bytes()


def timed(kind: str, classes: int, batch: int, dim: int, rounds: int, names: Sequence[str]) -> dict[str, Any]:
    """Rounds of one step of each head, on one kind of features; with the floor of the three products."""
    features, labels, weight = make_batch(kind, batch, dim, classes)
    left_out = {name: reason for name in names if (reason := missing(name)) is not None}
    for name in names:
        if name not in left_out and not _fits(name, classes, batch, dim):
            left_out[name] = "not enough memory"
    heads = {name: built(name, weight) for name in names if name not in left_out}
    # the first step, which also warms up
    loss = {name: float(step(head, features, labels)) for name, head in heads.items()}
    functions: dict[str, Any] = {name: lambda head=head: step(head, features, labels) for name, head in heads.items()}
    products = floor.products(features, weight)
    seconds = alternate({**functions, **products}, rounds, warm_up=0)
    lowest, plain, each = floor.floors({name: seconds.pop(name) for name in products})
    seconds |= {FLOOR: lowest, PLAIN_PRODUCTS: plain}
    mine, best_raw = seconds.get("ours"), fastest(seconds, RAW_PEERS)
    return {
        "features": kind,
        "share_above_2^-12_2^-24": shares_above(features, labels, weight),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ours_to": {name: ratios(mine, values) for name, values in seconds.items() if name != "ours"},
        "best_peer": fastest(seconds, PEERS),
        "best_raw_peer": best_raw,
        "to_best_raw_peer": {name: ratios(seconds[name], seconds[best_raw]) for name in heads if best_raw is not None},
        "products": each,
        "loss": loss,
        "left_out": left_out,
    }


def _memory(names: Sequence[str], settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {
        name: {"failed": reason} if (reason := missing(name)) is not None else in_child(
            "benchmarks.heads", "peak", {"name": name, **settings}
        )
        for name in names
    }  # fmt: skip


def one_size(classes: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time (where rounds are affordable) and memory of all heads at one number of classes."""
    batch, dim, names = arguments.batch, arguments.dim, arguments.only
    settings: dict[str, Any] = {"classes": classes, "batch": batch, "dim": dim}
    rounds_fit = classes * batch <= LARGEST_TIMED
    result: dict[str, Any] = {"classes": classes, "timed": []}
    if rounds_fit:
        result["timed"] = [timed(kind, **settings, rounds=arguments.rounds, names=names) for kind in arguments.features]
    else:
        limit = int(min(arguments.limit * GIB, 0.92 * available_bytes()))
        settings["limit"] = limit
        result["limit_gib"] = round(limit / GIB, 2)
    peaks = result["peak"] = _memory(names, settings)
    above: dict[str, float] = {name: e["above_mib"] for name, e in peaks.items() if e.get("above_mib") is not None}
    leanest = min((name for name in PEERS if name in above), key=lambda name: above[name], default=None)
    result["leanest_peer"] = leanest
    result["memory_to_leanest_peer"] = None if leanest is None else ratio(above.get("ours"), above[leanest])
    title = f"C = {classes:,}, B = {batch}, d = {dim}, float32, {torch.get_num_threads()} threads"
    for entry in result["timed"]:
        rows = [[name, value, entry["ours_to"].get(name)] for name, value in entry["seconds"].items()]
        show(f"{title}, {entry['features']} features", ["head", "seconds a step", "ours to it"], rows)
    rows = [[name, *map(entry.get, ("above_mib", "peak_gib", "seconds", "failed"))] for name, entry in peaks.items()]
    show(f"{title}: one step in a fresh process", ["head", "MiB above", "GiB in all", "seconds", ""], rows)
    return result


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """All sizes and the errors."""
    error = precision.measured(arguments.error_classes, arguments.dim)
    sizes = [one_size(classes, arguments) for classes in arguments.classes]
    keys = ("batch", "dim", "rounds")
    return {
        **{key: getattr(arguments, key) for key in keys},
        "torch": torch.__version__,
        "error": error,
        "sizes": sizes,
    }
