"""The README's tables "Measured against peers", made from the JSON files of the benches."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import search as search_bench
from benchmarks import tar as tar_bench
from benchmarks.heads import FLOOR
from benchmarks.peers import PEERS

Document = dict[str, Any]
HEADING = "## Measured against peers"
BEGIN, END = "<!-- made by `python -m benchmarks table` -->", "<!-- end of what it made -->"
# a file without its key was written by an older version of its bench, and has to be measured again
CURRENT = {
    "heads": "error",
    "partial_fc": "time_ratio",
    "popular": "ratio_at_least",
    "miners": "rounds",
    "tar": "ours_to",
    "search": "ours_to",
    "loaders": "large",
}
# of the formats these are shown
LOADERS = ("rec, one by one", "rec, random", "tar, stream")
SHOWN_ANGLES = (20, 35, 50, 90, 150)


def documents(folder: Path) -> dict[str, Document]:
    """The benches' files of a folder, by name; those of an older form are left out."""
    paths = {name: folder / f"{name}.json" for name in CURRENT}
    read = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}
    return {name: document for name, document in read.items() if CURRENT[name] in document}


def number(value: Any) -> str:
    """A ratio: its median with the smallest and largest round, a plain number, or a dash."""
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['median']:.2g} ({value['min']:.2g} to {value['max']:.2g})"
    return f"{value:.2g}"


def _seconds(value: Any) -> str:
    return "-" if value is None else f"{value['median'] if isinstance(value, dict) else value:.3g} s"


def _with_memory(seconds: Any, mebibytes: float | None) -> str:
    return _seconds(seconds) + ("" if mebibytes is None else f", {mebibytes:.0f} MiB")


def _head_rows(document: Document) -> list[str]:
    rows = []
    for size in document["sizes"]:
        ours, what = (
            size["peak"].get("ours", {}),
            f"ArcFace, a step of {document['batch']:,}, {size['classes']:,} classes",
        )
        for timed in size["timed"]:
            for peer in dict.fromkeys((timed["best_raw_peer"], timed["best_peer"])):
                if peer is None or "ours" not in timed["seconds"]:
                    continue
                theirs = size["peak"].get(peer, {}).get("above_mib")
                memory = ours["above_mib"] / theirs if theirs and ours.get("above_mib") is not None else None
                sides = (
                    _with_memory(timed["seconds"]["ours"], ours.get("above_mib")),
                    _with_memory(timed["seconds"][peer], theirs),
                )
                ratios = f"{number(timed['ours_to'][peer])}; memory {number(memory)}"
                rows.append(f"| {what}, {timed['features']} features | {sides[0]} | {peer}: {sides[1]} | {ratios} |")
        if not size["timed"]:
            running = [name for name in PEERS if "failed" not in size["peak"].get(name, {"failed": ""})]
            peak = f"{ours['peak_gib']:.1f} GiB at its peak" if ours.get("peak_gib") else ours.get("failed", "-")
            peers = f"run: {', '.join(running)}" if running else "none runs"
            rows.append(f"| {what}, within {size['limit_gib']:.3g} GiB | {peak} | {peers} | |")
    return rows


def _partial_fc_rows(run: Document) -> list[str]:
    gap = run["difference"]["accuracy"]
    shown = f"{100 * gap['value']:+.1f} points [{100 * gap['low']:+.1f}, {100 * gap['high']:+.1f}]"
    ratios = f"{number(run['time_ratio'])}, {number(run['memory_ratio'])}"
    return [f"| Partial FC (rate 0.1) against the full head: LFW accuracy; time, memory | {shown} | | {ratios} |"]


def _popular_rows(run: Document) -> list[str]:
    arrived, spent, ours = (
        run["popular"]["seconds_to_98"],
        run["popular"]["seconds_spent"],
        run["ours"]["seconds_to_98"],
    )
    mine = "not reached" if ours is None else f"{ours:.0f} s"
    theirs = f"not reached in {spent:.0f} s" if arrived is None else f"{arrived:.0f} s"
    ratio = "-" if ours is None else f"at most {ours / spent:.2g}" if arrived is None else number(ours / arrived)
    return [f"| 2-D MNIST to 98 % against the popular center-loss loop | {mine} | {theirs} | {ratio} |"]


def _miner_rows(document: Document) -> list[str]:
    largest = max(entry["batch"] for entry in document["results"])
    rows = []
    for entry in document["results"]:
        if entry["batch"] == largest:
            ours, peer = (
                side.get("failed") or _with_memory(side["seconds"], side["above_mib"])
                for side in (entry["ours"], entry["pytorch-metric-learning"])
            )
            ratios = f"{number(entry['time_to_peer'])}; memory {number(entry['memory_to_peer'])}"
            what = f"{entry['kind']} triplets of a batch of {largest:,}"
            rows.append(f"| {what} | {ours} | pytorch-metric-learning: {peer} | {ratios} |")
    return rows


def _tar_rows(run: Document) -> list[str]:
    what = f"TAR at {len(run['far'])} FARs, {run['impostor_scores'] / 1e6:.3g} million impostor scores"
    mine, seconds = _seconds(run["seconds"][tar_bench.OURS]), run["seconds"]
    return [
        f"| {what} | {mine} | {peer}: {_seconds(seconds[peer])} | {number(value)} |"
        for peer, value in run["ours_to"].items()
    ]


def _search_rows(run: Document) -> list[str]:
    what = f"rank-1 of {run['probes']:,} probes against {run['distractors']:,} distractors"
    sides = {name: _with_memory(value, run["mib_above"][name]) for name, value in run["seconds"].items()}
    mine = sides.pop(search_bench.OURS)
    rows = [f"| {what} | {mine} | {peer}: {side} | {number(run['ours_to'][peer])} |" for peer, side in sides.items()]
    return rows or [f"| {what} | {mine} | {run['missing']} | |"]


def _loader_rows(run: Document) -> list[str]:
    what, seconds = f"{run['images']:,} JPEG faces of 112 x 112 read", run["seconds"]
    rows = [
        f"| {what}: {kind} | {_seconds(seconds[kind])} | {peer}: {_seconds(seconds[peer])} | {number(value)} |"
        for kind in LOADERS
        for peer, value in run["ours_to"].get(kind, {}).items()
    ]
    large = run["large"]
    if "failed" in large:
        return rows
    opened = f"{large['index']:.2g} s, labels {large['labels']:.2g} s, {large['mebibytes']:.0f} MiB"
    return [*rows, f"| records of {large['images']:,} images opened | {opened} | | |"]


ROWS: dict[str, Callable[[Document], list[str]]] = {
    "heads": _head_rows,
    "partial_fc": _partial_fc_rows,
    "popular": _popular_rows,
    "miners": _miner_rows,
    "tar": _tar_rows,
    "search": _search_rows,
    "loaders": _loader_rows,
}


def rows(folder: Path) -> list[str]:
    """One line of the comparison for each peer, from the files that are there."""
    return [row for name, document in documents(folder).items() for row in ROWS[name](document)]


def _all_heads(document: Document) -> list[str]:
    """Median seconds of every head at every size, with the floor of the three products."""
    timed = [(size["classes"], entry) for size in document["sizes"] for entry in size["timed"]]
    names = list(dict.fromkeys(name for _, entry in timed for name in (*entry["seconds"], *entry["left_out"])))
    names.sort(key=lambda name: name == FLOOR)
    lines = [f"| classes, features | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for classes, entry in timed:
        cells = [_seconds(entry["seconds"].get(name)) for name in names]
        lines.append(f"| {classes:,}, {entry['features']} | {' | '.join(cells)} |")
    return lines


def _errors(document: Document) -> list[str]:
    """The largest relative error of loss, feature gradient and weight gradient at a few angles."""
    error = document["error"]
    angles = [angle for angle in SHOWN_ANGLES if angle in error["angles"]]
    lines = [f"| relative error at | {' | '.join(f'{a}°' for a in angles)} |", "|---" * (len(angles) + 1) + "|"]
    for name, entry in error["errors"].items():
        columns = [[values[error["angles"].index(angle)] for values in entry.values()] for angle in angles]
        cells = ["not finite" if None in column else f"{max(column):.0e}" for column in columns]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return lines


def markdown(folder: Path) -> str:
    """All tables; ValueError where the folder has no file of a bench in the present form."""
    found = documents(folder)
    if not found:
        raise ValueError(f"{folder} must hold files of benches ({', '.join(CURRENT)}), got none of the present form")
    parts = [["| what | here | peer | ratio |", "|---|---|---|---|", *rows(folder)]]
    if "heads" in found:
        parts += [_all_heads(found["heads"]), _errors(found["heads"])]
    return "\n\n".join("\n".join(part) for part in parts)


def replaced(readme: str, made: str) -> str:
    """The README with these tables: in place of those made before, else of the first table under the heading."""
    if readme.count(HEADING) != 1:
        raise ValueError(f"the README must have one heading {HEADING!r}, got {readme.count(HEADING)}")
    before, after = readme.split(HEADING)
    block = f"{BEGIN}\n{made}\n{END}"
    if BEGIN in after and END in after:
        return before + HEADING + after[: after.index(BEGIN)] + block + after[after.index(END) + len(END) :]
    lines = after.split("\n")
    first = next((k for k, line in enumerate(lines) if line.startswith("|")), None)
    if first is None:
        raise ValueError(f"there must be a table under {HEADING!r} to replace, got none")
    last = next((k for k in range(first, len(lines)) if not lines[k].startswith("|")), len(lines))
    return before + HEADING + "\n".join([*lines[:first], block, *lines[last:]])
