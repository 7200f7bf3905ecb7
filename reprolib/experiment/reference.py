"""The committed record beside the reader's own: `reference/<profile>/` and `results/<profile>/`, claim by claim."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


class ClaimPair(NamedTuple):
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


class Comparison(NamedTuple):
    """One notebook's record against the reference; made by `compare`.

    claims: by id in the order of the notebook, claims before findings. others: what else differs, in words.
    """

    notebook: str
    claims: dict[str, ClaimPair]
    others: list[str]

    def __str__(self) -> str:
        words = {DIFFERS: "differ", NEW: NEW, MISSING: MISSING}
        ids = {result: [pair.id for pair in self.claims.values() if pair.result == result] for result in (SAME, *words)}
        parts = [f"{len(ids[key])} {word} ({', '.join(ids[key])})" for key, word in words.items() if ids[key]]
        return "; ".join([f"{len(ids[SAME])} of {len(self.claims)} claims {SAME}", *parts, *self.others])


def compare(document: Document, reference: Document) -> Comparison:
    """`document` against `reference` of the same notebook. Raises ValueError for records of two notebooks."""
    if document["notebook"] != reference["notebook"]:
        both = f"{document['notebook']!r} and {reference['notebook']!r}"
        raise ValueError(f"records of one notebook are compared, got {both}")
    here, there = (
        {claim["id"]: claim for part in ("claims", "findings") for claim in one[part]} for one in (document, reference)
    )
    pairs = {id: ClaimPair(id, here.get(id), there.get(id)) for id in {**here, **there}}
    ours, theirs = ({check["id"] for check in one["checks"]} for one in (document, reference))
    counts = ((len(ours - theirs), NEW), (len(theirs - ours), MISSING))
    others = [f"{count} checks {result}" for count, result in counts if count]
    set_here, set_there = document["parameters"], reference["parameters"]
    if changed := [name for name in {**set_here, **set_there} if set_here.get(name) != set_there.get(name)]:
        others.append(f"with another {', '.join(changed)}")
    return Comparison(document["notebook"], pairs, others)


def against_reference(document: Document) -> Comparison | None:
    """A record against the committed one of its notebook and profile; None where there is none."""
    reference = load_reference(document["notebook"], document["profile"])
    return None if reference is None else compare(document, reference)


def comparison_view(comparisons: Sequence[Comparison]) -> TableView:
    """Claim by claim: what was measured and the verdict, here and in the reference."""

    def cells(claim: Mapping[str, Any] | None) -> tuple[str, str]:
        return ("–", "–") if claim is None else (number(claim["measured"]), claim["verdict"])

    rows = []
    for pair in (pair for comparison in comparisons for pair in comparison.claims.values()):
        (here, verdict), (there, other) = cells(pair.here), cells(pair.reference)
        rows.append((pair.id, here, there, verdict, other, pair.result))
    columns = ("claim", "here", "reference", "verdict here", "in the reference", "result")
    return TableView("", columns, tuple(rows))
