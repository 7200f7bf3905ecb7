"""The record of one run of a notebook: its checks, claims and tables, as JSON and as tables to look at."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from .claims import Claim

VERDICTS = ("reproduced", "contradicted", "inconclusive")


def refuse(value: Any, where: str) -> Any:
    """What `plain` makes of a tensor or an array: lists. Raises for anything else that JSON cannot hold."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return plain(value.tolist(), where)
    if isinstance(value, float):
        raise ValueError(f"{where} must be finite, not {value!r}")
    raise TypeError(f"{where} must be made of numbers, text, lists and dictionaries, not {type(value).__name__}")


def plain(value: Any, where: str, other: Callable[[Any, str], Any] = refuse) -> Any:
    """`value` as JSON data: numbers, text, lists, dictionaries; an estimate is `{value, low, high, level}`.

    other: called with all that JSON does not have (tensors, arrays, numbers that are not finite, objects) and its
    place; gives what stands for it. By default it raises ValueError or TypeError, which name the place `where`.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        return None
    for kind in (bool, int, str):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, float):
        if parts := interval(value):
            return {name: plain(part, f"{where} ({name})", other) for name, part in parts.items()}
        return float(value) if math.isfinite(value) else other(float(value), where)
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}[{key!r}]", other) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, where, other) for item in value]
    return other(value, where)


def interval(value: Any) -> dict[str, float]:
    """The parts `value, low, high, level` of an estimate; none of a plain number or without a bounded interval."""
    bounds = getattr(value, "low", -math.inf), getattr(value, "high", math.inf)
    if bounds == (-math.inf, math.inf):
        return {}
    return {"value": float(value), "low": bounds[0], "high": bounds[1], "level": value.level}


def _infinite_as_none(value: Any, where: str) -> Any:
    return None if isinstance(value, float) else refuse(value, where)


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
        # A part of an attack that could not be measured is infinite, as is the error of a statement without a value.
        loose = dict.fromkeys(("detail",) if check.passed else ("detail", "measured"), _infinite_as_none)
        self.checks[check.id] = {
            name: plain(getattr(check, name), f"{name} of check {check.id!r}", loose.get(name, refuse))
            for name in ("id", "statement", "source", "kind", "measured", "tolerance", "passed", "detail")
        }

    def add_claim(self, claim: Claim) -> None:
        """Take over a claim or a finding, to be judged later."""
        self._admit("claim", claim.id)
        self.claims[claim.id] = claim

    def add_table(self, id: str, title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
        """Take over a table and give it as JSON data."""
        names = [str(column) for column in columns]
        lines = [plain(list(row), f"table {id!r}") for row in rows]
        for line in lines:
            if len(line) != len(names):
                raise ValueError(f"a row of table {id!r} has {len(line)} cells for {len(names)} columns")
        self._admit("table", id)
        self.tables[id] = {"id": id, "title": title, "columns": names, "rows": lines}
        return self.tables[id]

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
    rows = []
    for check in checks:
        error = "not finite" if check["measured"] is None else f"{check['measured']:.0e}"
        numbers = (error, f"{check['tolerance']:.0e}") if measured else ()
        result = "passed" if check["passed"] else "failed"
        rows.append((check["id"], check["statement"], check["kind"], *numbers, result))
    columns = ("check", "statement", "kind", *(("measured", "allowed") if measured else ()), "result")
    return TableView("", columns, tuple(rows))


def claims_view(claims: Sequence[Mapping[str, Any]]) -> TableView:
    """Claims or findings with their criterion, the paper's value, what was measured here and the verdict.

    A column says what the comparisons can see (`power`) if a claim says so.
    """
    powers = any(claim.get("power") for claim in claims)
    rows = [
        (
            claim["id"],
            ", ".join(filter(None, (claim["paper"], claim["source"]))),
            claim["statement"],
            claim["criterion"],
            *([claim.get("power") or "–"] if powers else []),
            number(claim["paper_value"]),
            number(claim["measured"]),
            str(len(claim["seeds"]) or "–"),
            claim["verdict"] or "not judged yet",
        )
        for claim in claims
    ]
    power = ("power",) if powers else ()
    columns = ("claim", "paper", "statement", "criterion", *power, "paper value", "here", "seeds", "verdict")
    return TableView("", columns, tuple(rows))


def beside_view(here: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]], profile: str) -> TableView:
    """Claims judged here beside those of a committed record: difference or slope with its interval, seeds, verdict."""
    known = {claim["id"]: claim for claim in reference}
    rows = []
    for claim in here:
        cells = []
        for one in (claim, known.get(claim["id"])):
            found = {} if one is None else one["measured"]
            difference = found.get("difference", found.get("slope", found.get("spearman")))
            cells += [number(difference), "–" if one is None else str(len(one["seeds"]) or "–")]
            cells.append("not in it" if one is None else one["verdict"])
        rows.append((claim["id"], claim["statement"], *cells))
    columns = ("claim", "statement", "here: difference or slope", "seeds", "verdict")
    title = f"Here and in the reference of profile {profile}"
    return TableView(title, (*columns, f"{profile}: difference or slope", "seeds", "verdict"), tuple(rows))


def table_view(table: Mapping[str, Any]) -> TableView:
    rows = tuple(tuple(number(cell) for cell in row) for row in table["rows"])
    return TableView(table["title"], tuple(table["columns"]), rows)


def dumps(document: Mapping[str, Any]) -> str:
    """JSON with sorted keys and finite numbers only, so that equal records are equal files."""
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
