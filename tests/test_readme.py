"""The numbers in the README are those of the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reprolib.benchmarks.heads import PEERS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RECORDS = sorted((ROOT / "reference" / "standard").glob("*.json"))


def bench(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "reference" / "bench" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_checks_and_verdicts_of_each_notebook(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    verdicts = [claim["verdict"] for claim in record["claims"]]
    counts = " / ".join(str(verdicts.count(kind)) for kind in ("reproduced", "contradicted", "inconclusive"))
    (line,) = [line for line in README.splitlines() if line.startswith(f"| [`{path.stem}`]")]
    assert line.endswith(f"| {len(record['checks'])} | {counts} |")


def head_row(size: dict[str, Any]) -> str:
    seconds = min(size["seconds"][name] for name in PEERS)
    memory = min(size["peak"][name]["above_mib"] for name in PEERS)
    ours = f"{size['seconds']['ours']:.3g} s, {size['peak']['ours']['above_mib']:.0f} MiB"
    ratios = f"{size['time_to_best_peer']:.2f}, {size['memory_to_best_peer']:.2f}"
    return f"{size['classes']:,} classes | {ours} | {seconds:.3g} s, {memory:.0f} MiB | {ratios} |"


def million_row(run: dict[str, Any]) -> str:
    assert all("failed" in run["heads"][name] for name in PEERS)
    peak = run["heads"]["ours"]["peak_gib"]
    return f"batch {run['batch']:,}, within {run['limit_gib']:.3g} GiB | {peak:.1f} GiB at its peak | none runs | |"


def miner_row(entry: dict[str, Any]) -> str:
    sides = (entry["ours"], entry["pytorch-metric-learning"])
    shown = [f"{e['seconds']:.2g} s, {e['above_mib']:.0f} MiB" for e in sides]
    ratios = f"{entry['seconds_to_peer']:.2f}, {entry['above_mib_to_peer']:.2f}"
    return f"{entry['kind']} triplets of a batch of {entry['batch']:,} | {' | '.join(shown)} | {ratios} |"


def popular_row(run: dict[str, Any]) -> str:
    assert run["popular"]["seconds_to_98"] is None
    spent, ours = run["popular"]["seconds_spent"], run["ours"]["seconds_to_98"]
    return f"| {ours:.0f} s | not reached in {spent:.0f} s | at most {ours / spent:.3f} |"


def tar_row(run: dict[str, Any]) -> str:
    ours, peer = run["seconds"], run["scikit_learn_seconds"]
    return f"| {ours:.3f} s | {peer:.1f} s | {ours / peer:.4f} |"


def rank1_row(run: dict[str, Any]) -> str:
    ours, peer = run["seconds"], sum(run["peer_seconds"].values())
    return f"| {ours:.1f} s, {run['mib_above_data']} MiB | {peer:.1f} s | {ours / peer:.2f} |"


def partial_fc_row(run: dict[str, Any]) -> str:
    gap = run["difference"]["accuracy"]
    shown = f"{100 * gap['value']:+.1f} points [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
    return f"{shown} | | {run['time_ratio']:.2f}, {run['memory_ratio']:.2f} |"


def rows() -> list[str]:
    largest = max(entry["batch"] for entry in bench("miners")["results"])
    return [
        *map(head_row, bench("heads")["sizes"]),
        *map(million_row, bench("million")["runs"]),
        partial_fc_row(bench("partial_fc")),
        popular_row(bench("popular")),
        *[miner_row(entry) for entry in bench("miners")["results"] if entry["batch"] == largest],
        tar_row(bench("tar")),
        rank1_row(bench("rank1")),
    ]


@pytest.mark.parametrize("row", rows())
def test_measured_numbers(row):
    assert row in README


def test_products():
    ratios = [size["time_to_products"] for size in bench("heads")["sizes"]]
    assert f"{ratios[0]:.2f} and {ratios[1]:.2f} times the three matrix products" in " ".join(README.split())
