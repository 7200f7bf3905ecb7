"""What finished runs of `reprolib train` found, as rows of a notebook's table *paper / here*."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .paths import UsageError, one_line, repository_root

TRAINED_COLUMNS = ("run", "set", "paper %", "here %", "95 % interval", "steps", "seed")


def trained_rows(notebook: str, folder: Path | None = None) -> list[list[Any]]:
    """A row for each set of each finished run in `folder` (`runs/`) whose recipe names the notebook by its number.

    Raises UsageError for a result.json that is not what `train` writes.
    """
    rows: list[list[Any]] = []
    for path in sorted((folder or repository_root() / "runs").glob("*/result.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            if found["paper"].get("notebook") != notebook[:2]:
                continue
            for name, values in sorted(found["sets"].items()):
                interval = f"{100 * values['low']:.2f} to {100 * values['high']:.2f}"
                here, paper = round(100 * values["exact"], 2), found["paper"].get(name, "-")
                rows.append([path.parent.name, name, paper, here, interval, found["steps"], found["seed"]])
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{path} must be what reprolib train wrote, got {one_line(error)}") from error
    return rows
