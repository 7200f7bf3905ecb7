"""Clock, memory and tables of the benchmarks."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
GIB = 2**30


def option(arguments: argparse.Namespace, name: str, default: Any) -> Any:
    """The command line's value of ``name``, or ``default`` if it was not given."""
    value = getattr(arguments, name, None)
    return default if value is None else value


def status_bytes(field: str) -> int | None:
    """A field of /proc/self/status in bytes (VmRSS, VmHWM, VmData); None where there is no such file."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(found[0]) * 1024 if found else None


def reset_peak() -> bool:
    """Let the peak of resident memory begin anew; False where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def give_back_free_memory() -> bool:
    """Return freed memory to the system, so that its use again counts; False where the C library cannot."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError, TypeError):
        return False
    return True


def peak_above(function: Callable[[], Any]) -> int | None:
    """Bytes by which resident memory rose, at its peak, above what it was before ``function``; None if unknown."""
    trimmed = give_back_free_memory()
    before = status_bytes("VmRSS")
    if before is None or not trimmed or not reset_peak():
        return None
    function()
    return max(0, status_bytes("VmHWM") - before)


def limit_memory(total: int) -> None:
    """Let this process hold at most ``total`` bytes of data (Linux: private writable memory)."""
    resource.setrlimit(resource.RLIMIT_DATA, (total, total))


def available_bytes() -> int:
    """Memory that can be had without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 8 * GIB
    return 8 * GIB


def in_child(module: str, function: str, settings: dict[str, Any], timeout: float = 600.0) -> dict[str, Any]:
    """``module.function(**settings)`` in a fresh process: its dictionary, or {"failed": one line}."""
    code = (
        f"import json, sys, torch; from {module} import {function} as f; "
        "s = json.loads(sys.argv[1]); torch.set_num_threads(s.pop('threads')); print(json.dumps(f(**s)))"
    )
    root = str(Path(__file__).resolve().parents[2])
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


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed: Python's, or that of torch's CPU or CUDA allocator."""
    return isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error)


def alternate(functions: dict[str, Callable[[], Any]], repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of each function: ``repeats`` rounds, each of all functions, after ``warm_up`` rounds not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(-warm_up, repeats):
        for name, function in functions.items():
            began = time.perf_counter()
            function()
            if round_ >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def median(values: Iterable[float]) -> float:
    """Median, rounded to a hundredth of a per cent or so: what is worth writing down of a time."""
    return float(f"{statistics.median(values):.4g}")


def ratio(one: float | None, other: float | None) -> float | None:
    """one / other to three digits; None where either is unknown."""
    return None if one is None or not other else float(f"{one / other:.3g}")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on standard error: standard output is for JSON."""
    cells = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(columns))]
    print(f"\n{title}", file=sys.stderr)
    for row in cells:
        print("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip(), file=sys.stderr)
