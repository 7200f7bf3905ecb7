"""A suite of one tiny notebook, to test the machinery without the real notebooks."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat import v4

NAME = "90_fixture"

PARAMETERS = """\
profile = "standard"
dataset = "digits"
seeds = [0, 1, 2]
rate = 0.5
steps = 3"""

CELLS = [
    f"""\
import torch
from reprolib import experiment
from reprolib.theory import checks
run = experiment.start("{NAME}", globals())""",
    """\
@run.cached
def total(seed):
    return {"sum": float(torch.rand(run.parameters.steps).sum() + run.parameters.rate), "seed": seed}
sums = [total(seed) for seed in run.seeds]""",
    """\
checks.check_identity(1.0 + 1e-15, 1.0, id="90.one", statement="one is one", source="eq. (1)")
noise = torch.rand(2).tolist()
run.table("sums", "Sums", ["seed", "sum", "noise"], [[s["seed"], s["sum"], noise[0]] for s in sums])""",
    """\
mean = sum(s["sum"] for s in sums) / len(sums)
print(run.judge("F-1", {"mean": mean}, seeds=run.seeds, holds=mean > 1))""",
    "run.finish()",
]

CLAIMS = """\
claims:
  F-1:
    paper: Fixture 2020
    statement: the sum is large
    source: Table 1
    criterion: mean sum above 1
    rule: statement
    paper_value: 3.0
    min_seeds: 3
"""

PROFILES = {
    "smoke": "defaults: {seeds: [0, 1]}\n90_fixture: {rate: 0.25, steps: 1}\n",
    "full": "defaults: {dataset: mnist}\n90_fixture: {rate: 1, steps: 30}\n",
    "paper": "90_fixture: {rate: 1.5, steps: 300}\n",
}


class Suite:
    """Folder with `notebooks/90_fixture.ipynb`, its claims, profiles, results, cache and an empty data folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.results = root / "results"
        self.cache = root / ".cache"
        self.path = root / "notebooks" / f"{NAME}.ipynb"
        self.claims = root / "notebooks" / "claims" / "90.yaml"
        for folder in ("notebooks/claims", "profiles", "data"):
            (root / folder).mkdir(parents=True)
        self.claims.write_text(CLAIMS, encoding="utf-8")
        for profile, text in PROFILES.items():
            (root / "profiles" / f"{profile}.yaml").write_text(text, encoding="utf-8")
        self.write(PARAMETERS, CELLS)

    def write(self, parameters: str, cells: list[str]) -> None:
        first = v4.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        notebook = v4.new_notebook(cells=[v4.new_markdown_cell("# Fixture"), first, *map(v4.new_code_cell, cells)])
        nbformat.write(notebook, self.path)

    def files(self) -> list[str]:
        """Names of all files under the results and the notebooks, hidden ones too, without the claims."""
        found = {*self.results.rglob("*"), *self.path.parent.rglob("*")} - {self.claims}
        return sorted(path.relative_to(self.root).as_posix() for path in found if path.is_file())
