"""The record of all notebooks of a profile: as one table, as a report in Markdown or HTML, as a list of claims."""

from __future__ import annotations

import html
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from .parameters import BASE, check_profile, profile_parameters, resolve_profile
from .paths import UsageError, reference_folder, repository_root, results_folder, write_atomically
from .record import VERDICTS, TableView, number, table_view
from .reference import SAME, Comparison, Document, against_reference, comparison_view, read_record


def load_records(profile: str | None = None, *, committed: bool = False) -> list[Document]:
    """The records of a profile in the order of the notebooks' names: the reader's own, else the committed one.

    committed: the committed ones only.

    A record has a further key `committed` that says which it is. Without a profile: that of `run` on this machine, or
    `standard` if that one has no record. Raises UsageError for an unknown profile, for one without a record and for a
    record that cannot be read.
    """
    if profile is not None:
        check_profile(profile)
    for name in [profile] if profile else dict.fromkeys([resolve_profile("auto"), BASE]):
        paths: dict[str, tuple[Path, bool]] = {}
        for folder, shared in ((reference_folder(), True), *([] if committed else [(results_folder(), False)])):
            paths |= {path.stem: (path, shared) for path in (folder / name).glob("*.json")}
        if paths:
            return [{**read_record(path), "committed": shared} for _, (path, shared) in sorted(paths.items())]
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
    return TableView(f"Profile {profiles(documents)}", columns, tuple(rows))


def profiles(documents: Sequence[Document]) -> str:
    """The profiles of the records, in their order."""
    return ", ".join(dict.fromkeys(document["profile"] for document in documents))


class Section(NamedTuple):
    """A heading of the report (level 1 is the page's), and below it a paragraph, a table, or both."""

    level: int
    title: str
    text: str = ""
    table: TableView | None = None


SCOPE = (
    "What the notebooks derive, check and train, beside what the papers say. Claims are clauses of the papers, with "
    "their table or figure; findings are what the notebooks add; checks are exact statements. The papers' headline "
    "numbers need training sets of half a million to six million faces. They stand in the column of the paper's value "
    "and are never claimed: what is compared are directions, shares and exact statements."
)
METHOD = (
    "The criterion of a claim is written down before its runs. A comparison is the paired difference over seeds or "
    "splits with its 95 % interval (Nadeau and Bengio's where training sets overlap). Reproduced: the interval lies on "
    "the paper's side of 0. Contradicted: it lies on the other side, or leaves out a third of the paper's relative "
    "effect. Inconclusive: neither. A claim of no difference is a test of equivalence with its margin written down. "
    "Checks run in float64; what a check used up is a share of what is allowed."
)


def outcome(claim: Mapping[str, Any]) -> str:
    """What was measured of a claim: both means and the difference with its interval first, without the reason."""
    measured = claim["measured"]
    if not isinstance(measured, Mapping):
        return number(measured)
    first = [name for name in ("ours", "base", "difference", "relative", "slope", "spearman") if name in measured]
    rest = [name for name in measured if name not in {*first, "n", "reason", "detectable"}]
    return number({name: measured[name] for name in [*first, *rest]} or measured)


def claims_table(claims: Sequence[Mapping[str, Any]]) -> TableView:
    """Claims or findings: verdict, statement, criterion, the paper's number, the one found here with its interval."""
    rows = [
        (
            claim["id"],
            claim["verdict"],
            ", ".join(filter(None, (claim["paper"], claim["source"]))),
            claim["statement"],
            claim["criterion"],
            number(claim["paper_value"]),
            outcome(claim),
            str(len(claim["seeds"]) or "–"),
        )
        for claim in claims
    ]
    columns = ("claim", "verdict", "paper", "statement", "criterion", "paper's value", "here", "seeds")
    return TableView("", columns, tuple(rows))


def used_up(check: Mapping[str, Any]) -> float:
    """The share of what a check allows that was used up: 0 is exact, more than 1 has failed."""
    measured, allowed = check["measured"], check["tolerance"]
    if measured is None:
        return math.inf
    if check["kind"] == "counterexample":  # a violation has to be at least what is asked for
        return allowed / measured if measured > 0 else math.inf
    return max(0.0, -measured if check["kind"] == "bound" else measured) / allowed


def checks_table(checks: Sequence[Mapping[str, Any]]) -> TableView:
    """The checks with what was measured, what is allowed and how much of it was used up."""
    rows = []
    for check in checks:
        measured = "not finite" if check["measured"] is None else f"{check['measured']:.0e}"
        passed = "passed" if check["passed"] else "failed"
        shares = (measured, f"{check['tolerance']:.0e}", f"{100 * used_up(check):.2g} %")
        rows.append((check["id"], check["statement"], check["source"], check["kind"], *shares, passed))
    columns = ("check", "statement", "source", "kind", "measured", "allowed", "used up", "result")
    return TableView("", columns, tuple(rows))


def by_paper(documents: Sequence[Document]) -> TableView:
    """One line a paper: its verdicts."""
    counted: dict[str, Counter[str]] = {}
    spelled: dict[str, str] = {}
    for claim in (claim for document in documents for claim in document["claims"]):
        name = spelled.setdefault(claim["paper"].casefold(), claim["paper"])
        counted.setdefault(name, Counter())[claim["verdict"]] += 1
    rows = [(paper, *(str(found[verdict]) for verdict in VERDICTS)) for paper, found in counted.items()]
    return TableView("", ("paper", *VERDICTS), tuple(rows))


def brief(claims: Sequence[Mapping[str, Any]]) -> TableView:
    """Claims without their criteria: what is said, what the paper has, what came out, and why it is judged so."""

    def reason(claim: Mapping[str, Any]) -> str:
        measured = claim["measured"]
        given = measured.get("reason") if isinstance(measured, Mapping) else None
        return str(given or claim.get("power") or "–")

    rows = [
        (claim["id"], claim["paper"], claim["statement"], number(claim["paper_value"]), outcome(claim), reason(claim))
        for claim in claims
    ]
    return TableView("", ("claim", "paper", "statement", "paper's value", "here", "why"), tuple(rows))


def sections(documents: Sequence[Document]) -> Iterator[Section]:
    """The report from top to bottom: scope, method, results, what was easy and what was not, then each notebook."""
    claims = [claim for document in documents for claim in document["claims"]]
    total = Counter(claim["verdict"] for claim in claims)
    yield Section(1, f"Report, profile {profiles(documents)}", "", overview(documents))
    yield Section(2, "Scope", SCOPE)
    yield Section(2, "Method", METHOD)
    yield Section(2, "Results, paper by paper", "", by_paper(documents))
    judged = ", ".join(f"{total[verdict]} {verdict}" for verdict in VERDICTS)
    yield Section(2, "What was easy, and what was not", f"Of {len(claims)} claims: {judged}.")
    parts = (("What came out as the papers say", "reproduced"), ("What came out otherwise", "contradicted"))
    for title, verdict in (*parts, ("What these runs cannot decide", "inconclusive")):
        if found := [claim for claim in claims if claim["verdict"] == verdict]:
            yield Section(3, title, "", brief(found))
    yield Section(2, "Environment", "", environments(documents))
    for document in documents:
        changed = ", ".join(f"{name} = {number(value)}" for name, value in changed_parameters(document).items())
        differs = f" Parameters that differ from the profile: {changed}." if changed else ""
        yield Section(2, document["notebook"], f"{document['seconds']:.0f} seconds.{differs}")
        for part in ("claims", "findings"):
            if document[part]:
                yield Section(3, part.capitalize(), "", claims_table(document[part]))
        if comparison := compared(document):
            yield Section(3, "Beside the reference", f"{comparison}.", comparison_view([comparison]))
        for recorded in document["tables"]:
            yield Section(3, recorded["title"], "", table_view(recorded))
        if document["checks"]:
            yield Section(3, "Checks", "", checks_table(document["checks"]))


def environments(documents: Sequence[Document]) -> TableView:
    """Where the records were made: Python, platform, device, threads and packages; notebooks alike share a line."""
    made: dict[str, list[str]] = {}
    for document in documents:
        where = dict(document.get("environment", {}))
        packages = ", ".join(f"{name} {version}" for name, version in where.pop("packages", {}).items())
        text = "; ".join(filter(None, [*(f"{name} {value}" for name, value in where.items()), packages]))
        made.setdefault(text, []).append(document["notebook"])
    rows = tuple((", ".join(names), text) for text, names in made.items())
    return TableView("", ("notebooks", "made with"), rows)


def markdown_report(documents: Sequence[Document]) -> str:
    """The report as Markdown."""
    parts = []
    for section in sections(documents):
        parts.append(f"{'#' * section.level} {section.title}")
        parts += [part for part in (section.text, section.table and section.table.markdown()) if part]
    return "\n\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 75rem; margin: auto; padding: 1rem; }
div { overflow-x: auto; } table { border-collapse: collapse; font-size: 0.85rem; margin: 0.5rem 0; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #8886; vertical-align: top; }
"""


def html_report(documents: Sequence[Document]) -> str:
    """The report as one HTML page that needs nothing else."""
    found = list(sections(documents))
    body, contents = [], []
    for at, section in enumerate(found):
        level, title = section.level, html.escape(section.title)
        body.append(f'<h{level} id="s{at}">{title}</h{level}>')
        if level == 2:
            contents.append(f'<a href="#s{at}">{title}</a>')
        if section.text:
            body.append(f"<p>{html.escape(section.text)}</p>")
        if section.table:
            # the heading says what the table is
            body.append(f"<div>{replace(section.table, title='')._repr_html_()}</div>")
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head += f"<title>{html.escape(found[0].title)}</title><style>{STYLE}</style>"
    body.insert(1, f"<nav>{' · '.join(contents)}</nav>")
    return f'<!DOCTYPE html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"


def _with_cells(cells: str, line: re.Match[str]) -> str:
    return line.group(1) + cells


def _verdicts(document: Document | None) -> str:
    return " / ".join(str(counts(document)[verdict]) for verdict in VERDICTS) if document else "–"


def with_counts(readme: str, documents: Sequence[Document], large: Sequence[Document] = ()) -> str:
    """README with each notebook's number of checks and its verdicts in the last three columns of its line.

    large: records of the large runs, for the last column; a notebook without one has a dash there. Raises UsageError
    for a notebook whose name begins no line of the table, or more than one.
    """
    beside = {document["notebook"]: document for document in large}
    for document in documents:
        name = document["notebook"]
        cells = f"| {counts(document)['checks']} | {_verdicts(document)} | {_verdicts(beside.get(name))} |"
        line = re.compile(rf"^(\| \[`{re.escape(name)}`\].*?)\|[^|]*\|[^|]*\|[^|]*\|$", re.MULTILINE)
        readme, lines = line.subn(partial(_with_cells, cells), readme)
        if lines != 1:
            raise UsageError(f"README must have one line for {name}, got {lines}")
    return readme


def write_report(documents: Sequence[Document]) -> Path:
    """Write `results/<profile>/report.md` and return its path."""
    path = results_folder() / documents[0]["profile"] / "report.md"
    write_atomically(path, markdown_report(documents))
    return path


def commit_report(profile: str | None = None) -> list[Path]:
    """Bring the report beside the committed records and the counts in README up to date; the files written.

    README shows the records of `standard` and of `full` whatever the profile of the report.
    """
    records = load_records(profile, committed=True)
    page, readme = reference_folder() / records[0]["profile"] / "report.md", repository_root() / "README.md"
    large = load_records("full", committed=True) if any((reference_folder() / "full").glob("*.json")) else []
    text = with_counts(readme.read_text(encoding="utf-8"), load_records(BASE, committed=True), large)
    write_atomically(page, markdown_report(records))
    write_atomically(readme, text)
    return [page, readme]


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
