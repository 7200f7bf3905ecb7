"""Executes one notebook with nbclient in a fresh kernel of this interpreter."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

from .._arithmetic import asked_kernels
from .paths import PACKAGE, one_line
from .progress import VARIABLE as PROGRESS
from .progress import Display

# Seconds that one cell may take before the kernel is interrupted; None waits for ever.
CELL_SECONDS = {"smoke": 600, "standard": 3600, "full": 6 * 3600, "paper": None}
KERNEL_START_SECONDS = 180
# A Unix socket's path may have 104 bytes on macOS and 108 on Linux; "-ipc-5" is added to this one.
SOCKET_PATH_BYTES = 95


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message is one line with the cell and its error. executed: the notebook up to there."""

    def __init__(self, message: str, executed: nbformat.NotebookNode | None = None) -> None:
        super().__init__(message)
        self.executed = executed


class Kernels:
    """The kernels of one command: what each of them is given, and the way to stop all of them.

    data: the data folder. cache: folder of the cached runs; None gives each notebook one that ends with it. lines:
    folder of the lines that single runs leave, which stay when a notebook is interrupted. cores: so many may the runs
    of a notebook use at the same time.
    """

    def __init__(self, data: Path, cache: Path | None, lines: Path, cores: int) -> None:
        self.data = data
        self.cache = cache
        self.lines = lines
        self.cores = cores
        self.stopped = False
        self.display = Display(sys.stderr)
        self._running: dict[Path, int] = {}

    def started(self, staging: Path, process: int) -> None:
        """A kernel runs as the leader of process group `process`, which its workers belong to."""
        # In this order, and in `stop` in the other, so that of two threads one sees what the other did.
        self._running[staging] = process
        if self.stopped:
            _kill(process)

    def ended(self, staging: Path) -> int | None:
        """The kernel with the folder `staging` has ended; its process group, if it ever ran."""
        return self._running.pop(staging, None)

    def stop(self) -> None:
        """End all kernels and their workers at once, and each that is still about to start."""
        self.stopped = True
        for process in list(self._running.values()):
            _kill(process)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process, signal.SIGKILL)
        else:
            os.kill(process, signal.SIGTERM)


def execute(
    name: str, notebook: nbformat.NotebookNode, parameters: Mapping[str, Any], staging: Path, kernels: Kernels
) -> nbformat.NotebookNode:
    """The executed notebook; `staging` receives the record. Raises NotebookFailed.

    parameters: all of them, with their final values. They go around the notebook, whose cells stay what they are.
    """
    log, progress = staging / "kernel.log", staging / "progress.txt"
    variables = {
        "REPROLIB_PARAMETERS": json.dumps(dict(parameters)),
        "REPROLIB_RESULTS": str(staging),
        "REPROLIB_CACHE": str(kernels.cache or staging / "cache"),
        "REPROLIB_DATA": str(kernels.data),
        "REPROLIB_RUNS": os.environ.get("REPROLIB_RUNS") or str(kernels.lines),
        PROGRESS: str(progress),
        # what joblib.cpu_count() says there
        "LOKY_MAX_CPU_COUNT": str(kernels.cores),
    }
    executed = copy.deepcopy(notebook)
    limit = CELL_SECONDS[parameters["profile"]]
    # Its errors are raised, too, and told in one line.
    silent = logging.getLogger(__name__)
    silent.setLevel(logging.CRITICAL + 1)
    client = NotebookClient(
        executed,
        kernel_name="python3",
        kernel_manager_class=kernel_manager_class(variables, staging, kernels),
        timeout=limit,
        startup_timeout=KERNEL_START_SECONDS,
        iopub_timeout=60,
        raise_on_iopub_timeout=True,
        record_timing=False,
        # What a cell prints may come in parts, as the processor has time.
        coalesce_streams=True,
        log=silent,
    )
    at, count = "the start of the kernel", 0
    kernels.display.files[name] = progress
    try:
        with client.setup_kernel():
            for index, cell in enumerate(executed.cells):
                if cell.cell_type == "code":
                    count += 1
                    first = next((line.strip() for line in cell.source.splitlines() if line.strip()), "")
                    at = f"cell [{count}] ({first[:60]})"
                    cell.outputs, cell.execution_count = [], None
                client.execute_cell(cell, index)
    except (CellExecutionError, CellTimeoutError, RuntimeError) as error:
        raise NotebookFailed(f"{at} failed: {_reason(error, log, limit)}", executed) from error
    finally:
        # What a kernel started does not outlive it, even if it was killed.
        if (group := kernels.ended(staging)) is not None:
            _kill(group)
        kernels.display.files.pop(name, None)
    return executed


def _reason(error: Exception, log: Path, limit: int | None) -> str:
    if isinstance(error, CellExecutionError):
        return one_line(f"{error.ename}: {error.evalue}")[:400]
    if isinstance(error, CellTimeoutError):
        return f"it ran longer than {limit} s"
    if isinstance(error, DeadKernelError):
        return f"the kernel died, {last_line(log) or 'perhaps for lack of memory'}"
    return last_line(log) or one_line(error)[:400]


def last_line(log: Path) -> str:
    """The last thing that the process of the kernel said, without the remarks of the kernel's own machinery."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip() and "IPKernelApp" not in line), "")[:200]


def kernel_manager_class(extra: Mapping[str, str], staging: Path | None = None, kernels: Kernels | None = None) -> type:
    """Kernel manager whose kernel is this very interpreter and package, whatever kernelspecs are installed.

    extra: environment variables of the kernel. staging: private folder for `kernel.log`, what the process itself says
    (which is not what its cells print; without the folder that is dropped), and for the sockets of the kernel, which
    need no ports that another kernel could take at the same moment. `REPROLIB_PROFILE` is not handed down; the
    repository comes first in the kernel's search path, so that an installation is not needed.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class CurrentInterpreter(AsyncKernelManager):
        def __init__(self, **options: Any) -> None:
            super().__init__(**options)
            if staging is not None:
                self.connection_file = str(staging / "kernel.json")
                if os.name == "posix" and len(os.fsencode(self.connection_file)) <= SOCKET_PATH_BYTES:
                    self.transport, self.ip = "ipc", str(staging / "kernel-ipc")

        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

        async def start_kernel(self, **options: Any) -> None:  # type: ignore[override]
            environment = {name: value for name, value in os.environ.items() if name != "REPROLIB_PROFILE"}
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), *([before] if before else [])])
            with open(staging / "kernel.log" if staging else os.devnull, "ab") as stream:
                streams = {"stdout": stream, "stderr": stream}
                await super().start_kernel(env={**asked_kernels(), **environment, **extra}, **streams, **options)
            process = getattr(self.provisioner, "pid", None)
            if kernels is not None and staging is not None and process is not None:
                kernels.started(staging, process)

    return CurrentInterpreter
