"""How far the runs of a notebook are: its process writes a small file, the runner shows it; the page shows nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

VARIABLE = "REPROLIB_PROGRESS"
LOG_SECONDS = 60.0


def told(runs: Iterable[Any], table: str, total: int) -> Iterator[Any]:
    """The `total` runs of `table` as they are done, told to the file that REPROLIB_PROGRESS names, if any."""
    # a clock that nobody sets: the time of day may go back
    began = time.monotonic()
    with open(os.environ.get(VARIABLE, os.devnull), "w", encoding="utf-8") as stream:

        def tell(text: str) -> None:
            with contextlib.suppress(OSError):  # a full disk stops no training
                stream.write(f"\r{text}")
                stream.flush()

        tell(f"{table} 0 of {total} runs")
        for done, run in enumerate(runs, 1):
            yield run
            left = (time.monotonic() - began) / done * (total - done)
            tell(f"{table} {done} of {total} runs, {duration(left)} left")
        tell("")


def duration(seconds: float) -> str:
    """04:30, or 1:04:30 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes:02}:{rest:02}"


def state(path: Path) -> str:
    """What `told` wrote last into `path`, as "face_run 3 of 12 runs, 04:30 left"; empty before and after."""
    try:
        return path.read_bytes().decode(errors="replace").rpartition("\r")[2].strip()
    except OSError:
        return ""


class Display:
    """Shows where the notebooks are: in a terminal one line that is renewed, else what is new.

    `files` names for each running notebook the file of `told`; `show` is to be called every `seconds`.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.files: dict[str, Path] = {}
        self._terminal = stream.isatty()
        self.seconds = 1.0 if self._terminal else LOG_SECONDS
        self._shown: set[str] = set()

    def clear(self) -> None:
        """Take the line of a terminal away, before another one is printed."""
        if self._terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def show(self) -> None:
        """Write what is new."""
        lines = [f"{name}: {state(path)}".removesuffix(": ") for name, path in list(self.files.items())]
        with contextlib.suppress(OSError, ValueError):  # the stream is closed; the run goes on
            self.clear()
            if self._terminal:
                self.stream.write(" | ".join(lines)[: shutil.get_terminal_size().columns - 1])
            else:
                self.stream.writelines(f"{line}\n" for line in lines if ": " in line and line not in self._shown)
            self.stream.flush()
        self._shown = set(lines)
