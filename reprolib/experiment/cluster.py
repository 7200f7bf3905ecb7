"""Cached runs of a notebook made on a Dask cluster: sent with all that they read, their results come back.

No disk is shared. A run is a task of the cluster; the worker makes it in a process of its own, with one thread and the
kernels of arithmetic that the notebooks use, in an empty cache, and returns the files and lines that it left there. The
notebook's process puts them where a run made here would have put them. A worker that is killed costs its run again, on
another one (Dask tries three times). A worker needs this package, the same sources and versions: it is asked for them,
since the key of a run names both.
"""

from __future__ import annotations

import os
import pickle
import platform
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import cloudpickle

from .._arithmetic import SAME_KERNELS, same_kernels
from ..data.extras import needed
from .paths import PACKAGE, UsageError, one_line
from .progress import told
from .sources import source_hash

VARIABLE = "REPROLIB_DASK"
# where a run that is made for another machine leaves what it makes
ELSEWHERE = "REPROLIB_ELSEWHERE"
CONNECT_SECONDS = 20
_LIBRARIES = ("torch", "numpy", "scipy", "scikit-learn")
Made = tuple[dict[str, bytes], bytes]


def address() -> str | None:
    """The address of the scheduler that `run --dask` was given, if any."""
    return os.environ.get(VARIABLE) or None


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """A client of the scheduler at `address`; `UsageError` if there is none."""
    distributed = needed("distributed", "run --dask", "cluster")
    try:
        client = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"--dask must be the address of a Dask scheduler, got {address} ({one_line(error)})"
        ) from error
    with client:
        yield client


def made_with() -> dict[str, str]:
    """What has to be the same there as here."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"python": python, **{name: metadata.version(name) for name in _LIBRARIES}, "reprolib": source_hash()}


def call_each(function: Callable[..., Any], rows: Sequence[tuple[Any, ...]], address: str) -> Iterator[Made]:
    """Calls `function(*row)` for each row on the cluster, and yields what the runs of each left, as they are done.

    An exception in a call is raised here. A call that ends the workers that make it is left out, with a line on stderr.
    """
    distributed = needed("distributed", "run --dask", "cluster")
    with connected(address) as client:
        here = made_with()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Sending large graph")
            # the scheduler keeps what a task is given: a worker that is killed takes nothing with it
            whole = client.submit(bytes, cloudpickle.dumps(function), pure=False)
        kernels = {name: os.environ[name] for name in SAME_KERNELS if name in os.environ}
        futures = [client.submit(_make, whole, row, here, kernels, pure=False) for row in rows]
        done = distributed.as_completed(futures, loop=client.loop)
        for future in told(done, getattr(function, "__name__", "runs"), len(rows)):
            try:
                yield future.result()
            except distributed.KilledWorker:
                print("reprolib: a run ended several workers of the cluster; it is made here", file=sys.stderr)


def _make(function: bytes, row: tuple[Any, ...], here: dict[str, str], kernels: dict[str, str]) -> Made:
    """On a worker: the call in a process of its own, with the kernels of arithmetic that the notebook runs with."""
    with tempfile.TemporaryDirectory(prefix="reprolib-") as name:
        folder = Path(name)
        (folder / "call.pickle").write_bytes(cloudpickle.dumps((function, row, here, os.getpid())))
        before = os.environ.get("PYTHONPATH")
        paths = os.pathsep.join([str(PACKAGE.parent), *([before] if before else [])])
        asked = kernels if same_kernels() else {}
        environment = {**os.environ, **asked, "PYTHONPATH": paths, ELSEWHERE: name}
        environment.pop(VARIABLE, None)
        command = [sys.executable, "-m", __spec__.name, name]
        ended = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True)
        if (folder / "error.pickle").exists():
            raise pickle.loads((folder / "error.pickle").read_bytes())
        if ended.returncode:
            said = ended.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise RuntimeError(f"a run on {platform.node()} ended with status {ended.returncode} {' '.join(said)}")
        files = {file.name: file.read_bytes() for file in (folder / "cache").glob("*.pt")}
        lines = folder / "runs.jsonl"
        return files, lines.read_bytes() if lines.exists() else b""


def _run(folder: Path) -> None:
    """In that process."""
    from .workers import _prepare as prepare

    function, row, here, parent = pickle.loads((folder / "call.pickle").read_bytes())
    prepare(parent)
    there = made_with()
    if wrong := [name for name in here if here[name] != there[name]]:
        what = ", ".join(f"{name} {here[name][:12]}, got {there[name][:12]}" for name in wrong)
        raise RuntimeError(f"a worker must have the versions and sources of the notebook: {what}")
    cloudpickle.loads(function)(*row)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    try:
        _run(target)
    except Exception as error:  # whatever the run raised is raised in the notebook
        (target / "error.pickle").write_bytes(cloudpickle.dumps(error))
