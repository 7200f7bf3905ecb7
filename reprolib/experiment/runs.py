"""The lines that runs leave: one JSON object a run, so that a record can be made on several machines and days.

A line holds the run's key (name, settings, code and contents that it read; nothing of the machine), its name, settings
and seed to be read by people, its metrics, and with what it was made. Where every part of the run's value is plain and
finite, `whole` is true and the line can stand for the run: it is resumed without its file in the cache. A line of
changed code has another key. It is never used, stays as history, and the run is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from .paths import repository_root, results_folder
from .record import plain

try:
    import fcntl
except ImportError:  # on Windows, where only one process adds lines
    fcntl = None  # type: ignore[assignment]

# Profiles whose runs leave lines.
LINED_PROFILES = ("full", "paper")


def runs_file(notebook: str, profile: str) -> Path:
    """`<folder>/<profile>/runs/NN.jsonl`; the folder is `REPROLIB_RUNS`, else that of the results.

    With `REPROLIB_RUNS=reference` (from the repository root) the lines become part of the committed record. Lines are
    looked up in this file only: a reader's own run is not answered from the reference.
    """
    named = os.environ.get("REPROLIB_RUNS")
    folder = (repository_root() / named).resolve() if named else results_folder()
    return folder / profile / "runs" / f"{notebook.partition('_')[0]}.jsonl"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file in the order in which they came; [] without a file, a torn line is left out."""
    return [*_parsed(path.read_bytes())] if path.exists() else []


def _parsed(content: bytes) -> Iterator[dict[str, Any]]:
    for text in content.splitlines():
        with contextlib.suppress(ValueError):  # written by a process that was killed meanwhile
            line = json.loads(text)
            if isinstance(line, dict) and {"key", "name", "arguments", "seed", "metrics", "whole"} <= set(line):
                yield line


class RunLines:
    """The lines of one notebook at one profile; several processes may add to the file at the same time."""

    def __init__(self, path: Path, device: str) -> None:
        self.path = path
        versions = {name: metadata.version(name) for name in ("torch", "numpy")}
        self.made_with = {"device": device, "python": platform.python_version(), **versions}

    def value(self, key: str) -> dict[str, Any] | None:
        """The value of the run with this key, if a line holds all of it."""
        return next((line["metrics"] for line in read_lines(self.path) if line["key"] == key and line["whole"]), None)

    def add(self, key: str, name: str, arguments: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Append the line of a run, unless the file has it."""
        left_out: list[str] = []
        # Keys keep the run's order: a table made from the line has its rows and columns where the run's own has them.
        metrics = plain(value, "", lambda _, where: left_out.append(where))
        seed = arguments.get("seed")
        line = {
            "key": key,
            "name": name,
            "arguments": plain(arguments, "", readable),
            "seed": seed if isinstance(seed, int) else None,
            "metrics": metrics,
            "whole": not left_out,
            "made_with": self.made_with,
        }
        self._append(key, json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n")

    def take(self, content: bytes) -> None:
        """Append the lines that runs left on another machine, unless the file has them."""
        for text in content.splitlines(keepends=True):
            for line in _parsed(text):
                self._append(line["key"], text)

    def _append(self, key: str, text: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as stream:
            if fcntl is not None:
                fcntl.flock(stream, fcntl.LOCK_EX)  # until the file is closed
            stream.seek(0)
            content = stream.read()
            if all(before["key"] != key for before in _parsed(content)):
                # What a killed process left without an end must not swallow this line.
                stream.write((b"" if content.endswith(b"\n") or not content else b"\n") + text)
                stream.flush()
                os.fsync(stream.fileno())


def readable(value: Any, where: str) -> Any:
    """What a human reader sees of a setting that JSON does not have: fields, a fingerprint, else the type's name."""
    if isinstance(value, float):
        return str(value)
    if isinstance(getattr(value, "fingerprint", None), str):
        return {"fingerprint": value.fingerprint}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        return plain(named, where, readable)
    return getattr(value, "__qualname__", type(value).__qualname__)
