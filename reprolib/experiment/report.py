"""The record of all notebooks of a profile, as one table, as Markdown and as a list of claims."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .parameters import BASE, check_profile, profile_parameters, resolve_profile
from .paths import UsageError, reference_folder, results_folder, write_atomically
from .record import VERDICTS, TableView, checks_view, claims_view, number, table_view
from .reference import SAME, Comparison, Document, against_reference, comparison_view, read_record


def load_records(profile: str | None = None) -> list[Document]:
    """The records of a profile in the order of the notebooks' names: the reader's own, else the committed one.

    A record has a further key `committed` that says which it is. Without a profile: that of `run` on this machine, or
    `standard` if that one has no record. Raises UsageError for an unknown profile, for one without a record and for a
    record that cannot be read.
    """
    if profile is not None:
        check_profile(profile)
    for name in [profile] if profile else dict.fromkeys([resolve_profile("auto"), BASE]):
        paths: dict[str, tuple[Path, bool]] = {}
        for folder, committed in ((reference_folder(), True), (results_folder(), False)):
            paths |= {path.stem: (path, committed) for path in (folder / name).glob("*.json")}
        if paths:
            return [{**read_record(path), "committed": committed} for _, (path, committed) in sorted(paths.items())]
    where = f"in {results_folder()} or {reference_folder()}"
    raise UsageError(
        f"there is no record of profile {profile or BASE!r} {where}; run the notebooks of the repository first"
    )


def compared(document: Document) -> Comparison | None:
    """A reader's record against the committed one; None where there is none, and for the committed one itself."""
    return None if document.get("committed") else against_reference(document)


def changed_parameters(document: Document) -> dict[str, Any]:
    """The parameters that a run had different from those of its profile."""
    try:
        usual = profile_parameters(document["notebook"], document["profile"])
    except UsageError:
        return {}
    return {name: value for name, value in document["parameters"].items() if value != usual.get(name)}


def counts(document: Document) -> Counter[str]:
    """Passed `checks`, the verdicts on the papers' claims, and `findings` of a record."""
    found = Counter(claim["verdict"] for claim in document["claims"])
    found["checks"] = sum(check["passed"] for check in document["checks"])
    found["findings"] = len(document["findings"])
    return found


def overview(documents: Sequence[Document]) -> TableView:
    """One line a notebook: checks, verdicts on the papers' claims, findings, the reference, seconds and the device.

    A star marks changed parameters.
    """

    def row(name: str, counted: Counter[str], against: str, seconds: float, device: str) -> tuple[str, ...]:
        numbers = [str(counted[kind]) for kind in ("checks", *VERDICTS, "findings")]
        return (name, *numbers, against, f"{seconds:.0f}", device)

    rows = []
    for document in documents:
        star = " *" if changed_parameters(document) else ""
        against = "committed" if document.get("committed") else "–"
        if comparison := compared(document):
            same = sum(pair.result == SAME for pair in comparison.claims.values())
            against = f"{same} of {len(comparison.claims)}"
        device = document.get("environment", {}).get("device", "")
        rows.append(row(document["notebook"] + star, counts(document), against, document["seconds"], device))
    total = sum(map(counts, documents), Counter())
    rows.append(row("all", total, "", sum(document["seconds"] for document in documents), ""))
    columns = ("notebook", "checks passed", *VERDICTS, "findings", SAME, "seconds", "device")
    return TableView(f"Profile {documents[0]['profile']}", columns, tuple(rows))


def markdown_report(documents: Sequence[Document]) -> str:
    """Overview, then claims, findings, tables and checks of each notebook, as Markdown."""
    parts = [f"# Report, profile {documents[0]['profile']}", overview(documents).markdown()]
    for document in documents:
        parts.append(f"## {document['notebook']}")
        if changed := changed_parameters(document):
            listed = ", ".join(f"{name} = {number(value)}" for name, value in changed.items())
            parts.append(f"\\* Parameters that differ from the profile: {listed}.")
        for part in ("claims", "findings"):
            if document[part]:
                parts += [f"### {part.capitalize()}", claims_view(document[part]).markdown()]
        if comparison := compared(document):
            parts += ["### Beside the reference", f"{comparison}.", comparison_view([comparison]).markdown()]
        for recorded in document["tables"]:
            parts += [f"### {recorded['title']}", table_view(recorded).markdown()]
        if document["checks"]:
            parts += ["### Checks", checks_view(document["checks"]).markdown()]
    return "\n\n".join(parts) + "\n"


def write_report(documents: Sequence[Document]) -> Path:
    """Write `results/<profile>/report.md` and return its path."""
    path = results_folder() / documents[0]["profile"] / "report.md"
    write_atomically(path, markdown_report(documents))
    return path


def list_claims(documents: Sequence[Document], paper: str | None = None) -> str:
    """The claims as text, each with criterion, the paper's value, what was measured, the verdict and the reference's.

    paper: only the claims whose paper contains this text, in any case; without it the findings follow. Raises
    UsageError if there is none.
    """
    found = [(claim, document) for part in ("claims", "findings") for document in documents for claim in document[part]]
    papers = dict.fromkeys(claim["paper"] for claim, _ in found if claim["paper"])
    if paper is not None:
        found = [(claim, document) for claim, document in found if paper.lower() in claim["paper"].lower()]
    if not found:
        wanted = "" if paper is None else f" of paper {paper!r}"
        raise UsageError(f"there is no claim{wanted}; papers are: {'; '.join(papers) or 'none'}")
    comparisons = {document["notebook"]: compared(document) for document in documents}
    blocks = []
    for claim, document in found:
        lines = [
            f"{claim['id']}: {claim['verdict']}",
            f"  {', '.join(filter(None, (claim['paper'] or 'finding', claim['source'])))}: {claim['statement']}",
            f"  criterion: {claim['criterion']}",
            f"  paper: {number(claim['paper_value'])}; here: {number(claim['measured'])} ({len(claim['seeds'])} seeds)",
        ]
        comparison = comparisons[document["notebook"]]
        if comparison and (there := comparison.claims[claim["id"]].reference):
            result = comparison.claims[claim["id"]].result
            lines.append(f"  {result}: {there['verdict']}, {number(there['measured'])}")
        blocks.append("\n".join(lines))
    verdicts = Counter(claim["verdict"] for claim, _ in found)
    return "\n".join([*blocks, ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS)])
