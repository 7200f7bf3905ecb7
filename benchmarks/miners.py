"""Triplet mining at FaceNet's batch of 1,800: time and memory, ours against pytorch-metric-learning.

Every measurement is a fresh process; the miners take turns, round by round. Of the semi-hard negatives ours gives one
to each anchor-positive pair, as FaceNet does; the peer lists all semi-hard triplets, which is how it is used.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kit import (
    GIB,
    alternate,
    available_bytes,
    count,
    in_child,
    installed,
    is_out_of_memory,
    limit_memory,
    mebibytes,
    peak_above,
    ratio,
    ratios,
    show,
    spread,
)
from reprolib.losses import batch_hard_triplets, semi_hard_triplets

MARGIN = 0.2
PER_CLASS = 40
OURS, PEER = "ours", "pytorch-metric-learning"
KINDS = ("semi-hard", "batch-hard")
TIME_LIMIT = 60.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Sizes and rounds."""
    parser.add_argument("--batch", type=count, nargs="+", default=[450, 1800], metavar="B")
    parser.add_argument("--dim", type=count, default=128, metavar="D")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="fresh processes a miner (default: 3)")


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


def measure(who: str, kind: str, batch: int, dim: int, limit: int | None = None) -> dict[str, Any]:
    """Seconds and peak bytes of one miner in this process, which may hold `limit` bytes."""
    generator = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(batch, dim, generator=generator))
    labels = torch.arange(batch) // min(PER_CLASS, batch // 2)
    miner = {OURS: _ours, PEER: _peer}[who](kind)
    miner(features[:8], torch.arange(8) // 4)
    if limit is not None:
        limit_memory(limit)
    found: list[int] = []
    try:
        rise = peak_above(lambda: found.append(len(miner(features, labels)[0])))
        seconds = alternate({who: lambda: miner(features, labels)}, 1 if found[0] > 10**6 else 3, warm_up=0)[who]
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"failed": "needs more memory" if limit is None else f"needs more than {limit / GIB:.3g} GiB"}
    return {"seconds": spread(seconds)["median"], "above_mib": mebibytes(rise), "triplets": found[0]}


def _joined(measured: list[dict[str, Any]]) -> dict[str, Any]:
    """The rounds of one miner as one entry; a round that failed speaks for all."""
    failed = next((entry for entry in measured if "failed" in entry), None)
    if failed is not None:
        return failed
    seconds = [entry["seconds"] for entry in measured]
    return {**measured[0], "seconds": spread(seconds), "rounds": seconds}


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Semi-hard and batch-hard mining at each batch size."""
    limit = int(min(12 * GIB, 0.6 * available_bytes()))
    results, rows = [], []
    there = {OURS: True, PEER: installed("pytorch_metric_learning")}
    for batch in arguments.batch:
        for kind in KINDS:
            settings = {"kind": kind, "batch": batch, "dim": arguments.dim, "limit": limit}
            rounds: dict[str, list[dict[str, Any]]] = {who: [] for who in there}
            for _ in range(arguments.rounds):
                for who, present in there.items():
                    absent = {"failed": "not installed"}
                    call = {"who": who, **settings}
                    rounds[who].append(
                        in_child("benchmarks.miners", "measure", call, TIME_LIMIT) if present else absent
                    )
            ours, peer = (_joined(rounds[who]) for who in (OURS, PEER))
            results.append(
                {
                    "batch": batch,
                    "kind": kind,
                    OURS: ours,
                    PEER: peer,
                    "time_to_peer": ratios(ours.get("rounds"), peer.get("rounds")),
                    "memory_to_peer": ratio(ours.get("above_mib"), peer.get("above_mib")),
                }
            )
            for who, entry in ((OURS, ours), (PEER, peer)):
                rows.append([batch, kind, who, *map(entry.get, ("seconds", "above_mib", "triplets", "failed"))])
    columns = ["batch", "kind", "miner", "seconds", "MiB above", "triplets", ""]
    show(f"mining, d = {arguments.dim}, {torch.get_num_threads()} threads", columns, rows)
    return {"dim": arguments.dim, "rounds": arguments.rounds, "limit_gib": round(limit / GIB, 2), "results": results}
