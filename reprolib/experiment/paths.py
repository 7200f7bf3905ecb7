"""Where things lie on disk, found from this package and never from the working directory.

Environment: `REPROLIB_ROOT` (the folder with `notebooks/`), `REPROLIB_RESULTS`, `REPROLIB_CACHE`,
`REPROLIB_PROFILES`. A relative path in one of them is taken from the repository root.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from pathlib import Path

from ..data.fetching import repository_root
from ..data.files import write_atomic

PACKAGE = Path(__file__).resolve().parents[1]


class UsageError(ValueError):
    """A name or a value that the user gave is not allowed; the message is one sentence that says what is."""


def one_line(error: object) -> str:
    """The text of an error in one line."""
    return " ".join(str(error).split())


def _folder(variable: str, default: Path) -> Path:
    return (repository_root() / (os.environ.get(variable) or default)).resolve()


def notebooks_folder() -> Path:
    return repository_root() / "notebooks"


def results_folder() -> Path:
    return _folder("REPROLIB_RESULTS", Path("results"))


def reference_folder() -> Path:
    """Folder of the committed records, `reference/`."""
    return repository_root() / "reference"


def cache_folder() -> Path:
    return _folder("REPROLIB_CACHE", Path(".cache", "runs"))


def profiles_folder() -> Path:
    return _folder("REPROLIB_PROFILES", PACKAGE / "experiment" / "profiles")


def unwritable(folder: Path) -> str:
    """Why no file can be made in `folder`, which is created if it can be; empty if one can."""
    if folder.exists() and not folder.is_dir():
        return "Not a directory"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as stream:
            # A full disk lets an empty file be made.
            stream.write(bytes(4096))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write `content` to `path` so that a reader sees the old file or the whole new one, never a part.

    Raises OSError that names `path` and the reason.
    """
    try:
        write_atomic(path, content.encode("utf-8") if isinstance(content, str) else content)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


def remove_leftovers(folder: Path, seconds: float = 24 * 3600) -> None:
    """Remove temporary files of `write_atomically` that a killed process left in `folder` more than `seconds` ago."""
    for path in folder.glob(".*.part"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > seconds:
                path.unlink()
