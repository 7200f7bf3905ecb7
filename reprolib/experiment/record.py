"""The record of one run of a notebook: its checks, claims and tables, as JSON and as tables to look at."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from .claims import Claim

VERDICTS = ("reproduced", "contradicted", "inconclusive")


def plain(value: Any, where: str) -> Any:
    """`value` as JSON data: numbers, text, lists, dictionaries; an estimate is `{value, low, high, level}`.

    Raises ValueError for a number that is not finite and TypeError for anything that JSON cannot hold.
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (torch.Tensor, np.ndarray, np.generic)):
        return plain(value.tolist(), where)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"{where} must be finite, not {float(value)!r}")
        # One seed has a mean and no interval: the value alone is recorded.
        if hasattr(value, "low") and hasattr(value, "high") and getattr(value, "bounded", True):
            parts = {"value": float(value), "low": value.low, "high": value.high, "level": value.level}
            return {name: plain(part, f"{where} ({name})") for name, part in parts.items() if part is not None}
        return float(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where) for item in value]
    raise TypeError(f"{where} must be made of numbers, text, lists and dictionaries, not {type(value).__name__}")


def _without_infinities(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_infinities(item) for key, item in value.items()}
    return [_without_infinities(item) for item in value] if isinstance(value, (list, tuple)) else value


def number(value: Any) -> str:
    """`value` as the tables show it: 4 significant digits, an estimate with its interval, a dash for None."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        if value != 0 and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.1e}"
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, Mapping):
        if {"value", "low", "high"} <= set(value):
            return f"{number(value['value'])} [{number(value['low'])}, {number(value['high'])}]"
        return ", ".join(f"{key} {number(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(number(item) for item in value)
    return str(value)


@dataclass(frozen=True)
class TableView:
    """A table of text that a notebook shows (`_repr_html_`) and a terminal prints (`repr`)."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def _repr_html_(self) -> str:
        def line(tag: str, cells: Sequence[str]) -> str:
            inner = "".join(f'<{tag} style="text-align: left">{html.escape(cell)}</{tag}>' for cell in cells)
            return f"<tr>{inner}</tr>"

        body = "".join(line("td", row) for row in self.rows)
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        return f"<table>{caption}<thead>{line('th', self.columns)}</thead><tbody>{body}</tbody></table>"

    def markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [self.columns, tuple("---" for _ in self.columns), *self.rows]
        return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)

    def __repr__(self) -> str:
        lines = [self.columns, *self.rows]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.columns))]
        text = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
        text.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join(([self.title] if self.title else []) + [line.rstrip() for line in text])


class Record:
    """Checks, claims (and findings among them) and tables of one run, in the order in which they came.

    An id may come again only from a new run of the same notebook cell, as when a reader runs a cell twice in
    a front end that names its cells; anything else is a duplicate and raises ValueError.
    """

    def __init__(self) -> None:
        self.checks: dict[str, dict[str, Any]] = {}
        self.claims: dict[str, Claim] = {}
        self.tables: dict[str, dict[str, Any]] = {}
        self._origins: dict[tuple[str, str], tuple[str, int] | None] = {}

    def _admit(self, kind: str, id: str) -> None:
        if not isinstance(id, str) or not id:
            raise ValueError(f"the id of a {kind} must be a non-empty text, got {id!r}")
        origin = running_cell()
        if (kind, id) in self._origins:
            before = self._origins[kind, id]
            again = origin is not None and before is not None and origin[0] == before[0] and origin[1] != before[1]
            if not again:
                raise ValueError(f"{kind} {id!r} is already in the record; an id is used once")
        self._origins[kind, id] = origin

    def add_check(self, check: Any) -> None:
        """Take over one `CheckRecord` of `reprolib.theory.checks`."""
        self._admit("check", check.id)
        names = ("id", "statement", "source", "kind", "measured", "tolerance", "passed", "detail")
        values = {name: getattr(check, name) for name in names}
        # A part of an attack that could not be measured is infinite, as is the error of a statement that has
        # no value.
        values["detail"] = _without_infinities(values["detail"])
        if not check.passed:
            values["measured"] = _without_infinities(values["measured"])
        self.checks[check.id] = {name: plain(value, f"{name} of check {check.id!r}") for name, value in values.items()}

    def add_claim(self, claim: Claim) -> None:
        """Take over a claim or a finding, to be judged later."""
        self._admit("claim", claim.id)
        self.claims[claim.id] = claim

    def add_table(self, id: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        names = [str(column) for column in columns]
        lines = [plain(list(row), f"table {id!r}") for row in rows]
        for line in lines:
            if len(line) != len(names):
                raise ValueError(f"a row of table {id!r} has {len(line)} cells for {len(names)} columns")
        self._admit("table", id)
        self.tables[id] = {"id": id, "title": title, "columns": names, "rows": lines}

    def unfinished(self) -> str | None:
        """One sentence on what keeps the record from being written, None when it is complete."""
        failed = [id for id, check in self.checks.items() if not check["passed"]]
        open_claims = [id for id, claim in self.claims.items() if claim.verdict is None]
        if failed:
            return f"check {failed[0]!r} did not pass"
        return f"claim {open_claims[0]!r} was declared but not judged" if open_claims else None

    def document(self) -> dict[str, Any]:
        """`checks`, `claims`, `findings` and `tables` as JSON data."""
        return {
            "checks": list(self.checks.values()),
            "claims": [claim.document() for claim in self.claims.values() if not claim.finding],
            "findings": [claim.document() for claim in self.claims.values() if claim.finding],
            "tables": list(self.tables.values()),
        }


def running_cell() -> tuple[str, int] | None:
    """Id and execution count of the notebook cell that is running; None where the front end names no cell."""
    try:
        from IPython import get_ipython
    except ImportError:
        return None
    shell = get_ipython()
    parent = shell.get_parent() if hasattr(shell, "get_parent") else {}
    cell = (parent or {}).get("metadata", {}).get("cellId")
    return None if cell is None else (cell, shell.execution_count)


def checks_view(checks: Sequence[Mapping[str, Any]], *, measured: bool = True) -> TableView:
    """The checks as a table; `measured=False` leaves out the numbers that differ between machines."""
    columns = ["check", "statement", "kind", "measured", "allowed", "result"]
    rows = [
        [
            check["id"],
            check["statement"],
            check["kind"],
            "not finite" if check["measured"] is None else f"{check['measured']:.0e}",
            f"{check['tolerance']:.0e}",
            "passed" if check["passed"] else "failed",
        ]
        for check in checks
    ]
    if not measured:
        columns, rows = [*columns[:3], columns[5]], [[*row[:3], row[5]] for row in rows]
    return TableView("", tuple(columns), tuple(map(tuple, rows)))


def claims_view(claims: Sequence[Mapping[str, Any]], *, title: str = "") -> TableView:
    """Claims or findings with their criterion, the paper's value, what was measured here and the verdict.

    A column says what the comparisons can see (`power`) if a claim says so.
    """
    columns = ["claim", "paper", "statement", "criterion", "paper value", "here", "seeds", "verdict"]
    rows = [
        [
            claim["id"],
            ", ".join(filter(None, (claim["paper"], claim["source"]))),
            claim["statement"],
            claim["criterion"],
            number(claim["paper_value"]),
            number(claim["measured"]),
            str(len(claim["seeds"]) or "–"),
            claim["verdict"] or "not judged yet",
        ]
        for claim in claims
    ]
    if any(claim.get("power") for claim in claims):
        columns.insert(4, "power")
        for row, claim in zip(rows, claims, strict=True):
            row.insert(4, claim.get("power") or "–")
    return TableView(title, tuple(columns), tuple(map(tuple, rows)))


def table_view(table: Mapping[str, Any]) -> TableView:
    rows = tuple(tuple(number(cell) for cell in row) for row in table["rows"])
    return TableView(table["title"], tuple(table["columns"]), rows)


def dumps(document: Mapping[str, Any]) -> str:
    """JSON with sorted keys and finite numbers only, so that equal records are equal files."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
