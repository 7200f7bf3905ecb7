"""Claims and findings of a notebook: declared in `notebooks/claims/NN.yaml` before the runs, judged by one rule.

The file has two keys, `claims` (sentences of papers) and `findings` (what the suite adds; `paper` stays empty). Each is
a mapping from the id to an entry with `statement`, `source`, `criterion` (one sentence in words), `rule` and
`paper_value`; with `paper` for claims; and where wanted with `min_seeds` and `power` (free text). Rules:

- `superiority`: `better: lower | higher`; optional `relative` (default true), `train_test_ratio`, `paper_effect`.
  Paired values.
- `equivalence`: `margin` in the unit of the values; optional `train_test_ratio`. Paired values.
- `trend`: `direction: rising | falling`; optional `statistic: slope | spearman` (default slope), `paper_effect`,
  `train_test_ratio`. Superiority over 0 of that statistic of each seed's values against the swept quantity
  (`evaluation.trends`).
- `statement`: what the notebook computes itself, True, False or None; optional `paper_effect`, shown only.

The settings are handed to the rule (`evaluation.decide`) once before the runs, so that what it refuses is refused then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from .._checks import check_choice
from .parameters import typed
from .paths import UsageError, notebooks_folder, one_line
from .record import number, plain
from .strict_yaml import read_yaml

if TYPE_CHECKING:
    from ..evaluation import Decision

# An example of each kind of value: a text, a number and so on.
_EXAMPLES: dict[str, Any] = {
    **dict.fromkeys(("statement", "source", "criterion", "rule", "paper", "power", "better", "direction"), "text"),
    **{"statistic": "text", "paper_effect": 0.5, "margin": 0.5, "train_test_ratio": 0.5, "relative": True},
    "min_seeds": 0,
}
_REQUIRED = ("statement", "source", "criterion", "rule", "paper_value")
_OPTIONAL = ("paper", "min_seeds", "power")


class Rule(NamedTuple):
    """The keys that go with a rule, the values that it is judged by, and two seeds of such values."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    takes: tuple[str, ...]
    example: tuple[Any, ...] = ((1.0, 2.0), (2.0, 4.0))


RULES = {
    "superiority": Rule(("better",), ("relative", "train_test_ratio", "paper_effect"), ("ours", "base")),
    "equivalence": Rule(("margin",), ("train_test_ratio",), ("ours", "base")),
    "trend": Rule(
        ("direction",),
        ("statistic", "train_test_ratio", "paper_effect"),
        ("ours", "swept"),
        (((0, 1), (0, 2)), (0, 1)),
    ),
    "statement": Rule((), ("paper_effect",), ("holds",)),
}


@dataclass
class Claim:
    """A statement with the criterion by which this run decides it, written down before the run.

    settings: what the entry says beyond this, for its rule.
    """

    id: str
    paper: str
    statement: str
    source: str
    criterion: str
    paper_value: Any = None
    rule: str = "statement"
    settings: dict[str, Any] = field(default_factory=dict)
    paper_effect: float | None = None
    min_seeds: int = 0
    power: str = ""
    finding: bool = False
    measured: dict[str, Any] | None = None
    seeds: list[int] = field(default_factory=list)
    verdict: str | None = None

    def judge(self, measured: Mapping[str, Any] | None = None, seeds: Sequence[int] = (), **values: Any) -> str:
        """The verdict; see `Experiment.judge`."""
        distinct = [int(seed) for seed in dict.fromkeys(seeds)]
        found = dict(measured or {})
        takes = RULES[self.rule].takes
        told = self.rule != "statement" and not values and any(isinstance(value, str) for value in found.values())
        if set(values) != set(takes) and not told:
            got = ", ".join(values) or "none of them"
            wanted = " and ".join(takes)
            raise ValueError(f"claim {self.id!r} of rule {self.rule!r} must be judged with {wanted}, got {got}")
        if told:
            verdict = "inconclusive"  # its runs are not made here, as the caller's text says
        elif self.rule == "statement":
            verdict = self._stated(values["holds"])
        else:
            verdict = self._ruled(found, [values[name] for name in takes], len(seeds))
        if len(distinct) < self.min_seeds and verdict != "inconclusive":
            verdict = "inconclusive"
            found["reason"] = f"{len(distinct)} seeds, {self.min_seeds} are needed"
        if not found:
            raise ValueError(f"claim {self.id!r} must be judged with a dictionary of what was measured, got {measured}")
        data = plain(found, f"measured value of claim {self.id!r}")
        self.measured, self.seeds, self.verdict = data, distinct, verdict
        return verdict

    def _stated(self, holds: Any) -> str:
        if isinstance(holds, (np.bool_, torch.Tensor)):
            holds = bool(holds)
        if holds is None:
            return "inconclusive"
        if not isinstance(holds, bool):
            raise TypeError(f"the answer on claim {self.id!r} must be True, False or None, got {holds!r}")
        return "reproduced" if holds else "contradicted"

    def _ruled(self, measured: dict[str, Any], values: Sequence[Any], seeds: int) -> str:
        try:
            arrays = [np.asarray(one.detach().cpu() if isinstance(one, torch.Tensor) else one) for one in values]
            decision = self.decision(*arrays)
        except (TypeError, ValueError) as error:
            raise ValueError(f"claim {self.id!r}: {one_line(error)}") from error
        if seeds not in (0, decision.n):
            raise ValueError(f"claim {self.id!r} needs one value a seed, got {decision.n} for {seeds} seeds")
        if self.rule == "trend":
            measured[self.settings["statistic"]] = decision.difference
        else:
            measured |= {"ours": float(arrays[0].mean()), "base": float(arrays[1].mean())}
            measured["difference"] = decision.difference
        measured |= {"n": decision.n, "reason": decision.reason}
        shown = {"relative": decision.relative, "detectable": decision.detectable}
        measured |= {name: value for name, value in shown.items() if value is not None}
        return decision.verdict

    def decision(self, ours: Any, other: Any) -> Decision:
        """What the rule says of `ours` against the base or the swept values `other`. Raises as `evaluation.decide`."""
        from ..evaluation import decide, trends

        options = dict(self.settings)
        if self.rule == "equivalence":
            return decide(ours, other, kind=self.rule, relative=False, **options)
        if self.rule == "trend":
            direction = options.pop("direction")
            check_choice(direction, "direction", ("rising", "falling"))
            options |= {"better": "higher" if direction == "rising" else "lower", "relative": False}
            ours, other = trends(ours, other, statistic=options.pop("statistic")), None
        return decide(ours, other, paper_effect=self.paper_effect, **options)

    def shown_power(self) -> str:
        effect = "" if self.paper_effect is None else f"the paper's effect is {number(float(self.paper_effect))}"
        return "; ".join(filter(None, (self.power, effect)))

    def document(self) -> dict[str, Any]:
        names = ("id", "paper", "statement", "source", "criterion", "paper_value", "measured", "seeds", "verdict")
        return {name: getattr(self, name) for name in names}


def load_claims(notebook: str) -> list[Claim]:
    """The claims and findings of `notebooks/claims/NN.yaml`, in its order; [] without such a file.

    Raises UsageError with one sentence that names the file and the id for anything that is not as described above.
    """
    path = notebooks_folder() / "claims" / f"{notebook.partition('_')[0]}.yaml"
    content = read_yaml(path, path.name) if path.exists() else {"claims": {}}
    if not isinstance(content, dict) or not content or set(content) - {"claims", "findings"}:
        raise UsageError(f"{path.name} must be a mapping with the keys 'claims' and 'findings' and no other")
    found: dict[str, Claim] = {}
    for part, entries in content.items():
        if not isinstance(entries, dict):
            raise UsageError(f"{part} of {path.name} must be a mapping from ids to entries, got {entries!r}")
        for id, entry in entries.items():
            where = f"{part.removesuffix('s')} {id!r} of {path.name}"
            if not isinstance(id, str) or not id:
                raise UsageError(f"the id of {where} must be a text")
            if id in found:
                raise UsageError(f"{where} has an id that is used twice")
            found[id] = _claim(id, entry, part == "findings", where)
    return [*found.values()]


def _claim(id: str, entry: Any, finding: bool, where: str) -> Claim:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} must be a mapping, got {entry!r}")
    if entry.get("rule") not in tuple(RULES):
        raise UsageError(f"rule of {where} must be one of {', '.join(RULES)}, got {entry.get('rule')!r}")
    rule = RULES[entry["rule"]]
    required = (*_REQUIRED, *(() if finding else ("paper",)), *rule.required)
    allowed = dict.fromkeys((*required, *_OPTIONAL, *rule.optional))
    if unknown := [key for key in entry if key not in allowed]:
        raise UsageError(f"{where} has the unknown key {unknown[0]!r}; allowed are {', '.join(allowed)}")
    if missing := [key for key in required if key not in entry]:
        raise UsageError(f"{where} has no {missing[0]!r}")
    for key in [key for key in entry if key != "paper_value"]:
        entry[key] = typed(f"{key} of {where}", entry[key], _EXAMPLES[key])
        if key in _REQUIRED and not entry[key].strip():
            raise UsageError(f"{key} of {where} must not be empty")
    if bool(entry.get("paper", "").strip()) == finding:
        wanted = "be empty: the claims of papers stand under 'claims'" if finding else "name a paper"
        raise UsageError(f"paper of {where} must {wanted}, got {entry.get('paper')!r}")
    own = {key: entry[key] for key in (*rule.required, *rule.optional) if key in entry and key != "paper_effect"}
    if entry["rule"] == "trend":
        own = {"statistic": "slope", **own}
    shared = {key: value for key, value in entry.items() if key not in own}
    claim = Claim(id, finding=finding, settings=own, **{"paper": "", **shared})
    if claim.rule != "statement":
        try:
            claim.decision(*map(np.array, rule.example))
        except (TypeError, ValueError) as error:
            raise UsageError(f"{where}: {one_line(error)}") from error
    return claim
