"""Cached runs of a notebook made several at a time, each in a process of its own with one thread.

On the CPU two small networks that train side by side on two cores are done sooner than one after the other with two
threads each, and because a run has one thread wherever it is made, its result does not depend on the number of cores.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import torch
from joblib.externals.loky.process_executor import TerminatedWorkerError
from threadpoolctl import threadpool_limits

from .paths import UsageError
from .progress import told

# Each takes almost a gigabyte with torch and a data set.
MOST_WORKERS = 4


def worker_count(profile: str, device: torch.device) -> int:
    """`REPROLIB_WORKERS`, else one a core up to 4, but 1 on a GPU and at profile `smoke`, where starting takes longer.

    Raises UsageError for a value that is not a whole number of at least 1.
    """
    given = os.environ.get("REPROLIB_WORKERS")
    if given is None:
        return 1 if device.type != "cpu" or profile == "smoke" else min(joblib.cpu_count(), MOST_WORKERS)
    if not given.isdecimal() or int(given) < 1:
        raise UsageError(f"REPROLIB_WORKERS must be a whole number of at least 1, got {given!r}")
    return int(given)


def use_one_thread(device: torch.device) -> None:
    """One thread for torch and for the numerical libraries of this process; on the CPU operations that repeat."""
    torch.set_num_threads(1)
    threadpool_limits(1)
    if device.type == "cpu":
        # Some operations (the backward of x[index]) need to be told to give the same result twice.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def start_processes(workers: int) -> None:
    """Start the processes of `call_each` in the background, so that they are ready when the first runs are due."""
    threading.Thread(target=_bring_up, args=(workers,), daemon=True).start()


def call_each(function: Callable[..., Any], rows: Sequence[tuple[Any, ...]], workers: int) -> None:
    """Call `function(*row)` for each row, up to `workers` at a time, in processes that outlast this call.

    What the calls return is dropped. function: may be defined in a notebook; it is sent with all that it names. An
    exception in a call is raised here. A worker that is killed, perhaps for lack of memory, ends this early with a
    line on stderr: the runs that are missing are made where they are asked for, one at a time.
    """
    with tempfile.TemporaryDirectory(prefix="reprolib-") as folder:
        # Sent once and not with every row: a notebook's function brings its data set along.
        path = Path(folder, "function.pickle")
        path.write_bytes(cloudpickle.dumps(function))
        calls = _in_processes([joblib.delayed(_call)(str(path), row, os.getpid()) for row in rows], workers)
        try:
            with warnings.catch_warnings():
                # a worker that was idle for five minutes leaves and is replaced: nothing is lost, no page need say so
                warnings.filterwarnings("ignore", "A worker stopped while some jobs were given", UserWarning)
                for _ in told(calls, getattr(function, "__name__", "runs"), len(rows)):
                    pass
        except TerminatedWorkerError:
            print("reprolib: a worker process was killed; its runs are made one at a time", file=sys.stderr)


def _in_processes(tasks: list[Any], workers: int) -> Iterator[Any]:
    with joblib.parallel_config(backend="loky", inner_max_num_threads=1, max_nbytes=None):
        yield from joblib.Parallel(n_jobs=workers, batch_size=1, return_as="generator_unordered")(tasks)


def _bring_up(workers: int) -> None:
    # where one is killed meanwhile, the first call of `call_each` says so
    with contextlib.suppress(TerminatedWorkerError):
        list(_in_processes([joblib.delayed(_prepare)(os.getpid()) for _ in range(workers)], workers))


@functools.lru_cache(maxsize=1)
def _function(path: str) -> Callable[..., Any]:
    return cloudpickle.loads(Path(path).read_bytes())


@functools.lru_cache(maxsize=1)
def _prepare(parent: int) -> None:
    """Once in each process: one thread, and an end when the notebook's process `parent` ends, even if it is killed."""
    use_one_thread(torch.device("cpu"))
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()


def _leave_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _call(path: str, row: tuple[Any, ...], parent: int) -> None:
    # The parent may have died while this process was still loading torch.
    _prepare(parent)
    _function(path)(*row)
