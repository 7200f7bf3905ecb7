"""The record of all notebooks of a profile, as one table, as Markdown and as a list of claims."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .parameters import BASE, PROFILES, profile_parameters
from .paths import UsageError, results_folder, write_atomically
from .record import VERDICTS, TableView, checks_view, claims_view, number, table_view
from .runner import resolve_profile

Document = Mapping[str, Any]


def load_records(profile: str | None = None, results: Path | None = None) -> list[Document]:
    """The records of a profile in the order of the notebooks' names.

    Without a profile: that of `run` on this machine, or `standard` if that one has no record. Raises
    UsageError for an unknown profile, for one without a record and for a record that cannot be read.
    """
    if profile is not None and profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}; profiles are {', '.join(PROFILES)}")
    folder = results or results_folder()
    for name in [profile] if profile else dict.fromkeys([resolve_profile("auto"), BASE]):
        documents = [_read(path) for path in sorted((folder / name).glob("*.json"))]
        if documents:
            return documents
    raise UsageError(f"there is no record of profile {profile or BASE!r} yet; run the notebooks first")


def _read(path: Path) -> Document:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        missing = {"notebook", "profile", "parameters", "seconds", "checks", "claims", "tables"} - set(document)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"record {path.name} cannot be read: {error}") from error
    if missing:
        raise UsageError(f"record {path.name} has no {sorted(missing)[0]!r}")
    return document


def changed_parameters(document: Document) -> dict[str, Any]:
    """The parameters that a run had different from those of its profile."""
    try:
        usual = profile_parameters(document["notebook"], document["profile"])
    except UsageError:
        return {}
    return {name: value for name, value in document["parameters"].items() if value != usual.get(name)}


def overview(documents: Sequence[Document]) -> TableView:
    """One line a notebook: checks, verdicts, seconds and the device; a star marks changed parameters."""
    rows = []
    total: Counter[str] = Counter()
    for document in documents:
        counts = Counter(claim["verdict"] for claim in document["claims"])
        counts["checks"] = sum(check["passed"] for check in document["checks"])
        total += counts
        star = " *" if changed_parameters(document) else ""
        device = document.get("environment", {}).get("device", "")
        verdicts = (str(counts[verdict]) for verdict in VERDICTS)
        rows.append(
            (
                document["notebook"] + star,
                str(counts["checks"]),
                *verdicts,
                f"{document['seconds']:.0f}",
                device,
            )
        )
    seconds = sum(document["seconds"] for document in documents)
    rows.append(("all", str(total["checks"]), *(str(total[verdict]) for verdict in VERDICTS), f"{seconds:.0f}", ""))
    columns = ("notebook", "checks passed", *VERDICTS, "seconds", "device")
    return TableView(f"Profile {documents[0]['profile']}", columns, tuple(rows))


def markdown_report(documents: Sequence[Document]) -> str:
    """Overview, then claims, tables and checks of each notebook, as Markdown."""
    table = overview(documents)
    parts = [f"# Report, profile {documents[0]['profile']}", table.markdown()]
    for document in documents:
        parts.append(f"## {document['notebook']}")
        if changed := changed_parameters(document):
            listed = ", ".join(f"{name} = {number(value)}" for name, value in changed.items())
            parts.append(f"\\* Parameters that differ from the profile: {listed}.")
        if document["claims"]:
            parts += ["### Claims", claims_view(document["claims"]).markdown()]
        for recorded in document["tables"]:
            parts += [f"### {recorded['title']}", table_view(recorded).markdown()]
        if document["checks"]:
            parts += ["### Checks", checks_view(document["checks"]).markdown()]
    return "\n\n".join(parts) + "\n"


def write_report(documents: Sequence[Document], results: Path | None = None) -> Path:
    """Write `results/<profile>/report.md` and return its path."""
    path = (results or results_folder()) / documents[0]["profile"] / "report.md"
    write_atomically(path, markdown_report(documents))
    return path


def list_claims(documents: Sequence[Document], paper: str | None = None) -> str:
    """The claims as text, each with criterion, the paper's value, what was measured and the verdict.

    paper: only the claims whose paper contains this text, in any case. Raises UsageError if there is none.
    """
    claims = [claim for document in documents for claim in document["claims"]]
    papers = dict.fromkeys(claim["paper"] for claim in claims)
    if paper is not None:
        claims = [claim for claim in claims if paper.lower() in claim["paper"].lower()]
    if not claims:
        wanted = "" if paper is None else f" of paper {paper!r}"
        raise UsageError(f"there is no claim{wanted}; papers are: {'; '.join(papers) or 'none'}")
    blocks = [
        f"{claim['id']}: {claim['verdict']}\n"
        f"  {claim['paper']}, {claim['source']}: {claim['statement']}\n"
        f"  criterion: {claim['criterion']}\n"
        f"  paper: {number(claim['paper_value'])}; here: {number(claim['measured'])} "
        f"({len(claim['seeds'])} seeds)"
        for claim in claims
    ]
    counts = Counter(claim["verdict"] for claim in claims)
    return "\n".join([*blocks, ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS)])
