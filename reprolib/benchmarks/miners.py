"""Triplet mining at FaceNet's batch of 1,800: time and memory, ours against pytorch-metric-learning."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reprolib.benchmarks.measure import (
    GIB,
    MIB,
    alternate,
    available_bytes,
    in_child,
    is_out_of_memory,
    limit_memory,
    median,
    option,
    peak_above,
    ratio,
    table,
)
from reprolib.losses import batch_hard_triplets, semi_hard_triplets

MARGIN = 0.2
PER_CLASS = 40
OURS, PEER = "ours", "pytorch-metric-learning"
TIME_LIMIT = 60.0


def _ours(kind: str) -> Callable[[Tensor, Tensor], Any]:
    if kind == "batch-hard":
        return batch_hard_triplets
    generator = torch.Generator().manual_seed(0)
    return lambda x, y: semi_hard_triplets(x, y, MARGIN, generator=generator)


def _peer(kind: str) -> Callable[[Tensor, Tensor], Any]:
    from pytorch_metric_learning import distances, miners

    distance = distances.LpDistance(power=2)
    if kind == "batch-hard":
        return miners.BatchHardMiner(distance=distance)
    return miners.TripletMarginMiner(margin=MARGIN, type_of_triplets="semihard", distance=distance)


def measure(
    who: str, kind: str, batch: int, dim: int, repeats: int, limit: int, per_class: int = PER_CLASS
) -> dict[str, Any]:
    """Median seconds and peak bytes of one miner in this process, which may hold ``limit`` bytes."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(batch, dim, generator=generator))
    labels = torch.arange(batch) // min(per_class, batch // 2)
    mine = {OURS: _ours, PEER: _peer}[who](kind)
    few = torch.arange(8) // 4
    mine(features[:8], few)
    limit_memory(limit)
    found: list[int] = []
    try:
        rise = peak_above(lambda: found.append(len(mine(features, labels)[0])))
        # a second call is not worth a minute where the first one took long
        seconds = alternate({"": lambda: mine(features, labels)}, repeats, warm_up=0)[""]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"failed": f"needs more than {limit / GIB:.3g} GiB"}
    return {
        "seconds": median(seconds),
        "above_mib": None if rise is None else round(rise / MIB, 1),
        "triplets": found[0],
    }


def miners(arguments: argparse.Namespace) -> dict[str, Any]:
    """Semi-hard and batch-hard mining, each miner alone in a fresh process, taking turns.

    Ours gives one random semi-hard negative to each anchor-positive pair, as FaceNet does; the peer lists all
    semi-hard triplets, which is how it is used.
    """
    dim, repeats = option(arguments, "dim", 128), option(arguments, "repeats", 3)
    batches = [arguments.batch] if getattr(arguments, "batch", None) else [450, 1800]
    limit = int(min(12 * GIB, 0.6 * available_bytes()))
    there = importlib.util.find_spec("pytorch_metric_learning") is not None
    results, rows = [], []
    for batch in batches:
        for kind in ("semi-hard", "batch-hard"):
            entry: dict[str, Any] = {"batch": batch, "kind": kind}
            for who in (OURS, PEER):
                settings = dict(who=who, kind=kind, batch=batch, dim=dim, repeats=repeats, limit=limit)
                entry[who] = {"failed": "missing"}
                if who == OURS or there:
                    entry[who] = in_child("reprolib.benchmarks.miners", "measure", settings, TIME_LIMIT)
            for key in ("seconds", "above_mib"):
                entry[f"{key}_to_peer"] = ratio(entry[OURS].get(key), entry[PEER].get(key))
            results.append(entry)
            for who in (OURS, PEER):
                found = entry[who]
                rows.append([batch, kind, who, *map(found.get, ("seconds", "above_mib", "triplets", "failed"))])
    columns = ["batch", "kind", "miner", "seconds", "MiB above", "triplets", ""]
    table(f"mining, d = {dim}, {torch.get_num_threads()} threads", columns, rows)
    return {"dim": dim, "threads": torch.get_num_threads(), "limit_gib": round(limit / GIB, 2), "results": results}
