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
import math
import os
import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

from .paths import results_folder

# Profiles whose runs leave lines unless a run says otherwise.
LINED_PROFILES = ("full", "paper")


def runs_file(notebook: str, profile: str) -> Path:
    """`<folder>/<profile>/runs/NN.jsonl`; the folder is `REPROLIB_RUNS`, else that of the results.

    With `REPROLIB_RUNS=reference` (from the repository root) the lines become part of the committed record. Lines are
    looked up in this file only: a reader's own run is not answered from the reference.
    """
    folder = results_folder()
    if named := os.environ.get("REPROLIB_RUNS"):
        from .paths import repository_root

        folder = (repository_root() / named).resolve()
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
        self._read: tuple[int, dict[str, dict[str, Any]]] = (-1, {})

    def _lines(self) -> dict[str, dict[str, Any]]:
        size = self.path.stat().st_size if self.path.exists() else 0
        if size != self._read[0]:
            self._read = (size, {line["key"]: line for line in read_lines(self.path)})
        return self._read[1]

    def value(self, key: str) -> dict[str, Any] | None:
        """The value of the run with this key, if a line holds all of it."""
        line = self._lines().get(key)
        # Parsed again, so that a caller who changes what it got does not change the line.
        return json.loads(json.dumps(line["metrics"])) if line is not None and line["whole"] else None

    def add(self, key: str, name: str, arguments: Mapping[str, Any], value: Mapping[str, Any]) -> None:
        """Append the line of a run, unless the file has it."""
        if key in self._lines():
            return
        metrics, whole = plain_part(value)
        seed = arguments.get("seed")
        line = {
            "key": key,
            "name": name,
            "arguments": readable(arguments),
            "seed": seed if isinstance(seed, int) else None,
            "metrics": metrics,
            "whole": whole,
            "made_with": self.made_with,
        }
        text = json.dumps(line, sort_keys=True, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as stream, _locked(stream):
            stream.seek(0)
            content = stream.read()
            if all(before["key"] != key for before in _parsed(content)):
                # What a killed process left without an end must not swallow this line.
                stream.write((b"" if content.endswith(b"\n") or not content else b"\n") + text)
                stream.flush()
                os.fsync(stream.fileno())


@contextlib.contextmanager
def _locked(stream: BinaryIO) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on Windows, where only one process adds lines
        yield
        return
    fcntl.flock(stream, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(stream, fcntl.LOCK_UN)


def plain_part(value: Any) -> tuple[Any, bool]:
    """`value` without tensors and with None for numbers that JSON does not have, and whether that is all of it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None, False
    if value is None or isinstance(value, (bool, int, float, str)):
        return value, True
    if isinstance(value, Mapping):
        parts = {key: plain_part(item) for key, item in value.items()}
        kept = {key: part for key, (part, whole) in parts.items() if part is not None or whole}
        return kept, all(whole for _, whole in parts.values())
    if isinstance(value, (list, tuple)):
        items = [plain_part(item) for item in value]
        return [part for part, _ in items], all(whole for _, whole in items)
    return None, False


def readable(value: Any) -> Any:
    """Settings as JSON for a human reader: dataclasses by field, data sets by fingerprint, other objects by type."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(float(value))
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(key): readable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [readable(item) for item in value]
    if isinstance(getattr(value, "fingerprint", None), str):
        return {"fingerprint": value.fingerprint}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: readable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return getattr(value, "__qualname__", type(value).__qualname__)
