"""The committed record beside the reader's own: `reference/<profile>/` and `results/<profile>/`, claim by claim."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .paths import UsageError, reference_folder
from .record import TableView, number

Document = Mapping[str, Any]

SAME, DIFFERS = "as in the reference", "differs"
NEW, MISSING = "not in the reference", "only in the reference"
_KEYS = {"notebook", "profile", "parameters", "seconds", "checks", "claims", "findings", "tables"}


def read_record(path: Path) -> dict[str, Any]:
    """A record as JSON data. Raises UsageError, naming the file, for one that cannot be read or is not complete."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        missing = _KEYS - set(document)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"record {path.name} cannot be read: {error}") from error
    if missing or not isinstance(document, dict):
        raise UsageError(f"record {path.name} has no {min(missing or _KEYS)!r}")
    return document


def load_reference(notebook: str, profile: str) -> dict[str, Any] | None:
    """The committed record of a notebook at a profile, None if there is none. Raises UsageError for a damaged one."""
    path = reference_folder() / profile / f"{notebook}.json"
    return read_record(path) if path.exists() else None


@dataclass(frozen=True)
class ClaimPair:
    """One claim or finding in both records; None where a record does not have it."""

    id: str
    here: Mapping[str, Any] | None
    reference: Mapping[str, Any] | None

    @property
    def result(self) -> str:
        """The verdicts decide whether a claim is as in the reference; the numbers stand beside them."""
        if self.here is None or self.reference is None:
            return NEW if self.reference is None else MISSING
        return SAME if self.here["verdict"] == self.reference["verdict"] else DIFFERS


@dataclass(frozen=True)
class Comparison:
    """One notebook's record against the reference; made by `compare`.

    claims: in the order of the notebook, claims before findings. new_checks, missing_checks: ids that only one record
    has. parameters: those that differ, with both values.
    """

    notebook: str
    claims: tuple[ClaimPair, ...]
    new_checks: tuple[str, ...]
    missing_checks: tuple[str, ...]
    parameters: Mapping[str, tuple[Any, Any]]

    def count(self, result: str) -> int:
        return sum(pair.result == result for pair in self.claims)

    def __str__(self) -> str:
        counts = Counter(pair.result for pair in self.claims)
        parts = [f"{counts[SAME]} of {len(self.claims)} claims {SAME}"]
        for result, words in ((DIFFERS, "differ"), (NEW, NEW), (MISSING, MISSING)):
            if counts[result]:
                listed = ", ".join(pair.id for pair in self.claims if pair.result == result)
                parts.append(f"{counts[result]} {words} ({listed})")
        for words, ids in ((NEW, self.new_checks), (MISSING, self.missing_checks)):
            if ids:
                parts.append(f"{len(ids)} checks {words}")
        if self.parameters:
            parts.append(f"with another {', '.join(self.parameters)}")
        return "; ".join(parts)


def compare(document: Document, reference: Document) -> Comparison:
    """`document` against `reference` of the same notebook. Raises ValueError for records of two notebooks."""
    if document["notebook"] != reference["notebook"]:
        both = f"{document['notebook']!r} and {reference['notebook']!r}"
        raise ValueError(f"records of one notebook are compared, got {both}")
    checks = [{check["id"] for check in one["checks"]} for one in (document, reference)]
    values = [dict(one["parameters"]) for one in (document, reference)]
    names = dict.fromkeys([*values[0], *values[1]])
    return Comparison(
        document["notebook"],
        tuple(_pairs(document, reference)),
        tuple(sorted(checks[0] - checks[1])),
        tuple(sorted(checks[1] - checks[0])),
        {n: (values[0].get(n), values[1].get(n)) for n in names if values[0].get(n) != values[1].get(n)},
    )


def against_reference(document: Document) -> Comparison | None:
    """A record against the committed one of its notebook and profile; None where there is none."""
    reference = load_reference(document["notebook"], document["profile"])
    return None if reference is None else compare(document, reference)


def _pairs(document: Document, reference: Document) -> Iterator[ClaimPair]:
    for part in ("claims", "findings"):
        here, there = ({claim["id"]: claim for claim in one[part]} for one in (document, reference))
        yield from (ClaimPair(id, here.get(id), there.get(id)) for id in dict.fromkeys([*here, *there]))


def comparison_view(comparisons: Sequence[Comparison], *, changed: bool = False, title: str = "") -> TableView:
    """Claim by claim: what was measured and the verdict, here and in the reference. changed: only where they differ."""

    def cells(claim: Mapping[str, Any] | None) -> tuple[str, str]:
        return ("–", "–") if claim is None else (number(claim["measured"]), claim["verdict"])

    rows = []
    for comparison in comparisons:
        for pair in comparison.claims:
            if not changed or pair.result != SAME:
                (here, verdict), (there, other) = cells(pair.here), cells(pair.reference)
                rows.append((pair.id, here, there, verdict, other, pair.result))
    columns = ("claim", "here", "reference", "verdict here", "in the reference", "result")
    return TableView(title, columns, tuple(rows))
