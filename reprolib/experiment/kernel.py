"""Executes one notebook with papermill in a fresh kernel of this interpreter."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nbformat

from .paths import PACKAGE, cache_folder, results_folder

# Seconds that one cell may take before the kernel is interrupted; None waits for ever.
CELL_SECONDS = {"smoke": 600, "standard": 3600, "full": 7200, "paper": None}
KERNEL_START_SECONDS = 180


class NotebookFailed(RuntimeError):
    """A notebook stopped; the message is one line with the cell and its error."""


def execute(
    name: str,
    notebook: nbformat.NotebookNode,
    injected: Mapping[str, Any],
    profile: str,
    staging: Path,
    data: Path,
    cores: int,
) -> nbformat.NotebookNode:
    """The executed notebook; `staging` receives `executed.ipynb` and the record. Raises NotebookFailed.

    cores: so many may its runs use at the same time.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    # Its errors are raised, too, and told in one line.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    log = staging / "kernel.log"
    kernel = kernel_manager_class(
        {
            "REPROLIB_FINAL": "1",
            "REPROLIB_RESULTS": str(staging),
            "REPROLIB_CACHE": str(cache_folder()),
            # Not the staging folder: the lines of a run that is interrupted are kept.
            "REPROLIB_RUNS": os.environ.get("REPROLIB_RUNS") or str(results_folder()),
            "REPROLIB_DATA": str(data),
            # what joblib.cpu_count() says there
            "LOKY_MAX_CPU_COUNT": str(cores),
        },
        log,
    )
    progress = {"desc": name, "file": sys.stderr, "leave": False} if sys.stderr.isatty() else False
    # A copy in a folder of its own: papermill reads braces in a path as fields to fill in.
    original, target = staging / "original.ipynb", staging / "executed.ipynb"
    original.write_text(nbformat.writes(notebook), encoding="utf-8")
    try:
        output = papermill.execute_notebook(
            str(original),
            str(target),
            parameters=dict(injected),
            kernel_name="python3",
            language="python",
            kernel_manager_class=kernel,
            progress_bar=progress,
            start_timeout=KERNEL_START_SECONDS,
            execution_timeout=CELL_SECONDS[profile],
            iopub_timeout=60,
        )
    except PapermillExecutionError as error:
        reason = " ".join(f"{error.ename}: {error.evalue}".split())
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
        said = _last_line(log) or " ".join(str(error).split())[:400]
        raise NotebookFailed(f"the kernel did not start: {said}") from error
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


def kernel_manager_class(extra: Mapping[str, str], log: Path | None = None) -> type:
    """Kernel manager whose kernel is this very interpreter and package, whatever kernelspecs are installed.

    extra: environment variables of the kernel. log: file for what the process itself says, which is not what
    its cells print; without it that is dropped. `REPROLIB_PROFILE` is not handed down; the repository comes
    first in its search path, so that an installation is not needed.
    """
    from ipykernel.kernelspec import RESOURCES, get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec

    class CurrentInterpreter(AsyncKernelManager):
        @property
        def kernel_spec(self) -> KernelSpec:
            return KernelSpec(resource_dir=RESOURCES, **get_kernel_dict())

        async def start_kernel(self, **options: Any) -> None:
            environment = {name: value for name, value in os.environ.items() if name != "REPROLIB_PROFILE"}
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = os.pathsep.join([str(PACKAGE.parent), *([before] if before else [])])
            with open(log or os.devnull, "ab") as stream:
                streams = {"stdout": stream, "stderr": stream}
                await super().start_kernel(env={**environment, **extra}, **streams, **options)

    return CurrentInterpreter
