"""Executes one notebook with papermill in a fresh kernel of this interpreter."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from .._arithmetic import same_kernels
from .paths import PACKAGE, one_line
from .progress import VARIABLE as PROGRESS
from .progress import Display

# Seconds that one cell may take before the kernel is interrupted; None waits for ever.
CELL_SECONDS = {"smoke": 600, "standard": 3600, "full": 6 * 3600, "paper": None}
KERNEL_START_SECONDS = 180
# A Unix socket's path may have 104 bytes on macOS and 108 on Linux; "-ipc-5" is added to this one.
SOCKET_PATH_BYTES = 95


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message is one line with the cell and its error."""


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
        self._lock = threading.Lock()

    def started(self, staging: Path, process: int) -> None:
        """A kernel runs as the leader of process group `process`, which its workers belong to."""
        with self._lock:
            self._running[staging] = process
            if self.stopped:
                _kill(process)

    def ended(self, staging: Path) -> None:
        """The kernel with the folder `staging` has ended."""
        with self._lock:
            self._running.pop(staging, None)

    def stop(self) -> None:
        """End all kernels and their workers at once, and each that is still about to start."""
        with self._lock:
            self.stopped = True
            for process in self._running.values():
                _kill(process)


def _kill(process: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process, signal.SIGKILL)
        else:
            os.kill(process, signal.SIGTERM)


def execute(
    name: str,
    notebook: nbformat.NotebookNode,
    injected: Mapping[str, Any],
    profile: str,
    staging: Path,
    kernels: Kernels,
) -> nbformat.NotebookNode:
    """The executed notebook; `staging` receives `executed.ipynb` and the record. Raises NotebookFailed."""
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # Its errors are raised, too, and told in one line.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    log, progress = staging / "kernel.log", staging / "progress.json"
    variables = {
        "REPROLIB_FINAL": "1",
        "REPROLIB_RESULTS": str(staging),
        "REPROLIB_CACHE": str(kernels.cache or staging / "cache"),
        "REPROLIB_DATA": str(kernels.data),
        "REPROLIB_RUNS": os.environ.get("REPROLIB_RUNS") or str(kernels.lines),
        PROGRESS: str(progress),
        # what joblib.cpu_count() says there
        "LOKY_MAX_CPU_COUNT": str(kernels.cores),
    }
    # A copy in a folder of its own: papermill reads braces in a path as fields to fill in.
    original, target = staging / "original.ipynb", staging / "executed.ipynb"
    original.write_text(nbformat.writes(notebook), encoding="utf-8")
    kernels.display.files[name] = (progress, time.monotonic())
    try:
        output = papermill.execute_notebook(
            str(original),
            str(target),
            parameters=dict(injected),
            kernel_name="python3",
            language="python",
            kernel_manager_class=kernel_manager_class(variables, staging, kernels),
            progress_bar=False,
            start_timeout=KERNEL_START_SECONDS,
            execution_timeout=CELL_SECONDS[profile],
            iopub_timeout=60,
        )
    except PapermillExecutionError as error:
        reason = one_line(f"{error.ename}: {error.evalue}")
        raise NotebookFailed(
            f"cell [{error.exec_count}] ({_first_line(error.source)}) failed: {reason[:400]}"
        ) from error
    except CellTimeoutError as error:
        at = _last_started(target)
        raise NotebookFailed(f"cell {at} failed: it ran longer than {CELL_SECONDS[profile]} s") from error
    except DeadKernelError as error:
        said = _last_line(log) or "perhaps for lack of memory"
        raise NotebookFailed(f"cell {_last_started(target)} failed: the kernel died, {said}") from error
    except RuntimeError as error:
        said = _last_line(log) or one_line(error)[:400]
        raise NotebookFailed(f"the kernel did not start: {said}") from error
    finally:
        kernels.ended(staging)
        kernels.display.files.pop(name, None)
    for key in ("input_path", "output_path"):
        output.metadata.papermill.pop(key, None)
    return output


def _first_line(source: str) -> str:
    return next((line.strip() for line in source.splitlines() if line.strip()), "")[:60]


def _last_line(log: Path) -> str:
    """The last thing that the process of the kernel said, without the remarks of the kernel's own machinery."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip() and "IPKernelApp" not in line), "")[:200]


def _last_started(path: Path) -> str:
    """The last cell that was begun in the copy which is saved before and after every cell."""
    started = "[?]"
    with contextlib.suppress(OSError, ValueError):
        for cell in nbformat.read(path, as_version=4).cells:
            if cell.cell_type == "code" and cell.metadata.get("papermill", {}).get("start_time"):
                started = f"({_first_line(cell.source)})"
    return started


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
                await super().start_kernel(env={**same_kernels(), **environment, **extra}, **streams, **options)
            process = getattr(self.provisioner, "pid", None)
            if kernels is not None and staging is not None and process is not None:
                kernels.started(staging, process)

    return CurrentInterpreter
