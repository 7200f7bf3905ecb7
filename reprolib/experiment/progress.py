"""How far the runs of a notebook are: its process writes a small file, the runner shows it; the page shows nothing."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from pathlib import Path
from typing import TextIO

VARIABLE = "REPROLIB_PROGRESS"
LOG_SECONDS = 60.0


def tell(table: str, done: int, total: int, seconds: float) -> None:
    """Note that `done` of `total` runs of `table` took `seconds`, in the file that REPROLIB_PROGRESS names, if any."""
    if target := os.environ.get(VARIABLE):
        part = Path(f"{target}.part")
        part.write_text(json.dumps([table, done, total, seconds]), encoding="utf-8")
        os.replace(part, target)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


class Display:
    """Shows where the notebooks are: in a terminal one line that is renewed, else at most one line a minute for each.

    A context manager; `files` names for each running notebook the file of `tell` and when it began.
    """

    def __init__(self, stream: TextIO, log_seconds: float = LOG_SECONDS) -> None:
        self.stream = stream
        self.files: dict[str, tuple[Path, float]] = {}
        self._terminal = stream.isatty()
        self._log_seconds = log_seconds
        self._logged: dict[str, tuple[float, str]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._show_each_second, daemon=True)

    def __enter__(self) -> Display:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.clear()

    def clear(self) -> None:
        """Take the line of a terminal away, before another one is printed."""
        if self._terminal:
            self.stream.write("\r\x1b[K")
            self.stream.flush()

    def _show_each_second(self) -> None:
        try:
            while not self._ended.wait(min(1.0, self._log_seconds)):
                self.show()
        except (OSError, ValueError):
            pass  # the stream is closed; the run goes on

    def show(self) -> None:
        """Write what is new."""
        now = time.monotonic()
        states = {name: state(path) for name, (path, _) in list(self.files.items())}
        if self._terminal:
            elapsed = {name: _duration(now - began) for name, (_, began) in list(self.files.items())}
            text = " | ".join(f"{name}: {said or elapsed.get(name, '')}" for name, said in states.items())
            self.stream.write("\r\x1b[K" + text[: shutil.get_terminal_size().columns - 1])
        for name, said in ({} if self._terminal else states).items():
            last, before = self._logged.get(name, (self.files.get(name, (None, now))[1], ""))
            if said and said != before and now - last >= self._log_seconds:
                self._logged[name] = (now, said)
                self.stream.write(f"{name}: {said}\n")
        self.stream.flush()


def state(path: Path) -> str:
    """What `tell` noted in `path`, as "face_run 3 of 12 runs, 4 min left"; empty before and after."""
    try:
        table, done, total, seconds = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""
    if done == total:
        return ""
    left = f", {_duration(seconds / done * (total - done))} left" if done else ""
    return f"{table} {done} of {total} runs{left}"
