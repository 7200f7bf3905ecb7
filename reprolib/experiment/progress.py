"""How far the runs of a notebook are: its process writes a small file, the runner shows it; the page shows nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

VARIABLE = "REPROLIB_PROGRESS"
LOG_SECONDS = 60.0


def told(runs: Iterable[Any], table: str, total: int) -> Iterator[Any]:
    """The `total` runs of `table` as they are done, told to the file that REPROLIB_PROGRESS names, if any."""
    form = "{desc} {n} of {total} runs, {remaining} left"
    with open(os.environ.get(VARIABLE, os.devnull), "w", encoding="utf-8") as stream:
        yield from tqdm(runs, table, total, leave=False, file=stream, bar_format=form)


def state(path: Path) -> str:
    """What `told` wrote last into `path`, as "face_run 3 of 12 runs, 04:30 left"; empty before and after."""
    try:
        return path.read_bytes().decode(errors="replace").rpartition("\r")[2].strip().removesuffix(", ? left")
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
