"""The measuring kit: alternating rounds, fresh processes, peak memory, and tables.

Times of two things are compared round by round: within a round everything runs once, so that a machine that slows
down slows all of them. A comparison is the median of the rounds' ratios, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
GIB = 2**30
# Threads of one library go on spinning for a while after its work; the next one's work begins after this.
PAUSE_SECONDS = 0.06
SHORT_SECONDS = 0.05
Spread = dict[str, float]


def count(text: str) -> int:
    """An integer >= 1 of the command line; underscores may group its digits."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text}")
    return value


def installed(package: str) -> bool:
    """Whether an optional peer can be imported."""
    return importlib.util.find_spec(package) is not None


def alternate(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each function: `rounds` rounds, each of all functions, after `warm_up` rounds not counted.

    What is short is called twice in a row and the second call counts: the first one also wakes the threads up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(-warm_up, rounds):
        for name, function in functions.items():
            time.sleep(PAUSE_SECONDS)
            took = _timed(function)
            if took < SHORT_SECONDS:
                took = _timed(function)
            if round_ >= 0:
                seconds[name].append(took)
    return seconds


def _timed(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def three_digits(value: float) -> float:
    """What is worth writing down of a time or a ratio."""
    return float(f"{value:.3g}")


def spread(values: Iterable[float]) -> Spread:
    """Median, smallest and largest."""
    known = list(values)
    found = {"median": statistics.median(known), "min": min(known), "max": max(known)}
    return {key: three_digits(value) for key, value in found.items()}


def ratios(ours: Sequence[float] | None, theirs: Sequence[float] | None) -> Spread | None:
    """Spread of ours / theirs over the rounds; None where a side was not measured."""
    if not ours or not theirs:
        return None
    return spread(one / other for one, other in zip(ours, theirs, strict=True))


def ratio(one: float | None, other: float | None) -> float | None:
    """one / other to three digits; None where either is unknown or the other is 0."""
    return None if one is None or not other else three_digits(one / other)


def fastest(seconds: Mapping[str, Sequence[float]], names: Iterable[str]) -> str | None:
    """The name with the least median of those that were measured."""
    return min((name for name in names if seconds.get(name)), key=lambda n: statistics.median(seconds[n]), default=None)


def status_bytes(field: str) -> int | None:
    """A field of /proc/self/status in bytes (VmRSS, VmHWM); None where there is no such file or field."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(found[0]) * 1024 if found else None


def _begin_new_peak() -> bool:
    """Return freed memory to the system and let the peak begin anew; False where the system cannot."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    except (AttributeError, OSError, TypeError):
        return False
    return True


def peak_above(function: Callable[[], Any]) -> int | None:
    """Call `function`: bytes by which resident memory rose, at its peak, above what it was; None if unknown."""
    known = _begin_new_peak()
    before = status_bytes("VmRSS")
    function()
    peak = status_bytes("VmHWM")
    return max(0, peak - before) if known and peak is not None and before is not None else None


def mebibytes(size: int | None) -> float | None:
    """Bytes in MiB to a tenth; None stays None."""
    return None if size is None else round(size / MIB, 1)


def limit_memory(total: int) -> None:
    """Let this process hold at most `total` bytes of private data; RuntimeError where the system has no such limit."""
    if not sys.platform.startswith("linux"):
        raise RuntimeError("a limit on memory needs Linux")
    import resource

    resource.setrlimit(resource.RLIMIT_DATA, (total, total))


def available_bytes() -> int:
    """Memory that can be had without swapping; 8 GiB where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 8 * GIB
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 8 * GIB)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, or that of torch's CPU or CUDA allocator."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def in_child(module: str, function: str, settings: dict[str, Any], timeout: float = 600.0) -> dict[str, Any]:
    """`module.function(**settings)` in a fresh process: its dictionary, or {"failed": one line}."""
    code = (
        f"import json, sys, torch; from {module} import {function} as f; "
        "s = json.loads(sys.argv[1]); torch.set_num_threads(s.pop('threads')); print(json.dumps(f(**s)))"
    )
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}
    call = [sys.executable, "-c", code, json.dumps({"threads": torch.get_num_threads(), **settings})]
    try:
        ended = subprocess.run(call, env=environment, capture_output=True, text=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"failed": f"not finished after {timeout:.0f} s"}
    if ended.returncode:
        lines = ended.stderr.strip().splitlines() or [f"ended with status {ended.returncode}"]
        return {"failed": lines[-1]}
    return json.loads(ended.stdout.splitlines()[-1])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['median']:.3g} ({value['min']:.3g} .. {value['max']:.3g})"
    return f"{value:.3g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on standard error: standard output is for JSON. A spread is shown as median (min .. max)."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    print(f"\n{title}", file=sys.stderr)
    for row in cells:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip(), file=sys.stderr)
