"""Claims and findings of a notebook: declared in `notebooks/claims/NN.yaml` before the runs, judged by one rule.

The file has two keys, `claims` (sentences of papers) and `findings` (what the suite adds; `paper` stays empty). Each is
a mapping from the id to an entry with `statement`, `source`, `criterion` (one sentence in words), `rule` and
`paper_value`; with `paper` for claims; and where wanted with `paper_effect`, `min_seeds`, `power` (free text). Rules:

- `superiority`: `better: lower | higher`; optional `relative` (default true), `train_test_ratio`. Paired values.
- `equivalence`: `margin` in the unit of the values; optional `train_test_ratio`. Paired values.
- `trend`: `direction: rising | falling`; optional `statistic: slope | rank`. Per seed the least-squares slope, or
  Spearman's rank correlation, of the values against the swept quantity; superiority of that statistic over 0.
- `statement`: what the notebook computes itself, True, False or None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import yaml

from .parameters import _Loader, _one_line
from .paths import UsageError, notebooks_folder
from .record import number, plain

_UNGIVEN: Any = object()

_TEXT, _NUMBER = (str,), (int, float)
_ANY = (str, int, float, bool, list, dict, type(None))
_REQUIRED = {"statement": _TEXT, "source": _TEXT, "criterion": _TEXT, "rule": _TEXT, "paper_value": _ANY}
_OPTIONAL = {"paper": _TEXT, "paper_effect": _NUMBER, "min_seeds": (int,), "power": _TEXT}
# Parameters of each rule: their types, and the texts that are allowed; a default makes one optional.
_RATIO = {"train_test_ratio": (_NUMBER, None)}
_RULES: dict[str, dict[str, tuple[tuple[type, ...], Any]]] = {
    "superiority": {"better": (_TEXT, _UNGIVEN), "relative": ((bool,), True), **_RATIO},
    "equivalence": {"margin": (_NUMBER, _UNGIVEN), **_RATIO},
    "trend": {"direction": (_TEXT, _UNGIVEN), "statistic": (_TEXT, "slope")},
    "statement": {},
}
_CHOICES = {
    "rule": tuple(_RULES),
    "better": ("lower", "higher"),
    "direction": ("rising", "falling"),
    "statistic": ("slope", "rank"),
}


@dataclass
class Claim:
    """A statement with the criterion by which this run decides it, written down before the run.

    decide: for a claim that the notebook declares itself, a function of what was measured that gives True, False or
    None. Otherwise `rule` with its `settings` decides.
    """

    id: str
    paper: str
    statement: str
    source: str
    criterion: str
    paper_value: Any = None
    rule: str = "statement"
    settings: dict[str, Any] = field(default_factory=dict)
    decide: Callable[[dict[str, Any]], bool | None] | None = None
    paper_effect: float | None = None
    min_seeds: int = 0
    power: str = ""
    finding: bool = False
    measured: dict[str, Any] | None = None
    seeds: list[int] = field(default_factory=list)
    verdict: str | None = None

    def judge(
        self,
        measured: Mapping[str, Any] | None = None,
        seeds: Sequence[int] = (),
        *,
        ours: Any = None,
        base: Any = None,
        swept: Any = None,
        holds: Any = _UNGIVEN,
    ) -> str:
        """The verdict; see `Experiment.judge`. With a "reason" in `measured` and no values it stays inconclusive."""
        distinct = [int(seed) for seed in dict.fromkeys(seeds)]
        found = dict(measured or {})
        if self.rule == "statement":
            if ours is not None or base is not None or swept is not None:
                raise ValueError(f"claim {self.id!r} is a statement: it takes holds=..., got values to compare")
            verdict = self._stated(found, holds)
        else:
            if holds is not _UNGIVEN:
                raise ValueError(
                    f"claim {self.id!r} is decided by its rule {self.rule!r}: it takes ours=..., got holds"
                )
            verdict = self._ruled(found, [*seeds], ours, base, swept)
        if len(distinct) < self.min_seeds and verdict != "inconclusive":
            verdict = "inconclusive"
            found["reason"] = f"{len(distinct)} seeds, {self.min_seeds} are needed"
        if not found:
            raise ValueError(
                f"claim {self.id!r} must be judged with a dictionary of what was measured, got {measured!r}"
            )
        data = plain(found, f"measured value of claim {self.id!r}")
        self.measured, self.seeds, self.verdict = data, distinct, verdict
        return verdict

    def _stated(self, measured: dict[str, Any], holds: Any) -> str:
        if (holds is _UNGIVEN) == (self.decide is None):
            wanted = "what was measured alone" if self.decide else "holds=True, False or None"
            raise ValueError(f"claim {self.id!r} must be judged with {wanted}")
        # The criterion sees the caller's values, so that an estimate still has its interval.
        answer = self.decide(dict(measured)) if self.decide and measured else holds
        if isinstance(answer, (np.bool_, torch.Tensor)):
            answer = bool(answer)
        if answer is _UNGIVEN or answer is None:
            return "inconclusive"
        if not isinstance(answer, bool):
            raise TypeError(f"the answer on claim {self.id!r} must be True, False or None, got {answer!r}")
        return "reproduced" if answer else "contradicted"

    def _ruled(self, measured: dict[str, Any], seeds: list[int], ours: Any, base: Any, swept: Any) -> str:
        if ours is None and base is None and "reason" in measured:
            return "inconclusive"  # nothing was run that could decide it, for the reason given
        values = self._values(ours, "ours", 2 if self.rule == "trend" else 1)
        if len(seeds) not in (0, len(values)):
            raise ValueError(f"claim {self.id!r} needs one value a seed, got {len(values)} for {len(seeds)} seeds")
        options: dict[str, Any] = {"paper_effect": self.paper_effect, "relative": False}
        other = None
        if self.rule == "trend":
            if base is not None:
                raise ValueError(f"claim {self.id!r} is a trend: it takes ours and swept, got base")
            values = self._slopes(values, self._values(swept, "swept", 1))
            options["better"] = "higher" if self.settings["direction"] == "rising" else "lower"
            measured |= {self.settings["statistic"]: float(values.mean())}
        else:
            other = self._values(base, "base", 1)
            if len(other) != len(values):
                raise ValueError(f"claim {self.id!r} compares pairs, got {len(values)} and {len(other)} values")
            measured |= {"ours": float(values.mean()), "base": float(other.mean())}
            options |= {"kind": self.rule, **self.settings}
        if len(values) < max(2, self.min_seeds):
            measured["reason"] = f"{len(values)} pairs, {max(2, self.min_seeds)} are needed"
            return "inconclusive"
        from ..evaluation import decide

        decision = decide(values, other, **options)
        measured |= {"difference": decision.difference, "n": decision.n}
        if decision.relative is not None:
            measured["relative"] = decision.relative
        return decision.verdict

    def _values(self, values: Any, name: str, axes: int) -> np.ndarray:
        array = np.asarray(values.detach().cpu() if isinstance(values, torch.Tensor) else values)
        shape = "one row a seed and one column a swept value" if axes == 2 else "one number each"
        if array.dtype.kind not in "iuf" or array.ndim != axes or array.size == 0:
            raise ValueError(f"{name} of claim {self.id!r} must have {shape}, got {values!r}")
        if not np.isfinite(array).all():
            raise ValueError(f"{name} of claim {self.id!r} must be finite, got {values!r}")
        return array.astype(np.float64)

    def _slopes(self, values: np.ndarray, swept: np.ndarray) -> np.ndarray:
        """Per row, slope = sum (t - mean t)(v - mean v) / sum (t - mean t)^2, or the same of ranks in units of s.d."""
        from scipy.stats import rankdata

        if values.shape[1] != len(swept) or len(np.unique(swept)) < 2:
            raise ValueError(f"swept of claim {self.id!r} must be {values.shape[1]} values, not all equal, got {swept}")
        if self.settings["statistic"] == "rank":
            values, swept = rankdata(values, axis=1), rankdata(swept)
            spread = values.std(axis=1, keepdims=True)
            # A row of equal values has no order: its correlation is 0.
            values, swept = values / np.where(spread > 0, spread, 1), swept / swept.std()
        centred = swept - swept.mean()
        return (values - values.mean(axis=1, keepdims=True)) @ centred / centred.dot(centred)

    def shown_power(self) -> str:
        effect = "" if self.paper_effect is None else f"the paper's effect is {number(float(self.paper_effect))}"
        return "; ".join(filter(None, (self.power, effect)))

    def declared(self) -> dict[str, Any]:
        """All that was written down before the run, as plain data."""
        return {name: value for name, value in vars(self).items() if name not in ("decide", "measured", "verdict")}

    def document(self) -> dict[str, Any]:
        names = ("id", "paper", "statement", "source", "criterion", "paper_value", "measured", "seeds", "verdict")
        return {name: getattr(self, name) for name in names}


def load_claims(notebook: str) -> list[Claim]:
    """The claims and findings of `notebooks/claims/NN.yaml`, in its order; [] without such a file.

    Raises UsageError with one sentence that names the file and the id for anything that is not as described above.
    """
    path = notebooks_folder() / "claims" / f"{notebook.partition('_')[0]}.yaml"
    if not path.exists():
        return []
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"{path.name} is not valid YAML: {_one_line(error)}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name} cannot be read: {error}") from error
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
    _check_value("rule", entry.get("rule", ""), _TEXT, where)
    rules = _RULES[entry["rule"]]
    allowed = {**_REQUIRED, **_OPTIONAL, **{key: kinds for key, (kinds, _) in rules.items()}}
    if unknown := [key for key in entry if key not in allowed]:
        raise UsageError(f"{where} has the unknown key {unknown[0]!r}; allowed are {', '.join(allowed)}")
    required = [*_REQUIRED, *(key for key, (_, default) in rules.items() if default is _UNGIVEN)]
    required += [] if finding else ["paper"]
    if missing := [key for key in required if key not in entry]:
        raise UsageError(f"{where} has no {missing[0]!r}")
    for key, value in entry.items():
        _check_value(key, value, allowed[key], where)
    if bool(entry.get("paper", "").strip()) == finding:
        wanted = "be empty: the claims of papers stand under 'claims'" if finding else "name a paper"
        raise UsageError(f"paper of {where} must {wanted}, got {entry.get('paper')!r}")
    settings = {key: entry.get(key, default) for key, (_, default) in rules.items()}
    shared = {key: value for key, value in entry.items() if key not in settings}
    return Claim(id, finding=finding, settings=settings, **{"paper": "", **shared})


def _check_value(key: str, value: Any, kinds: tuple[type, ...], where: str) -> None:
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        names = {str: "text", int: "whole number", float: "number", bool: "truth value"}
        wanted = " or ".join(names.get(kind, kind.__name__) for kind in kinds)
        raise UsageError(f"{key} of {where} must be a {wanted}, got {value!r}")
    if key in _CHOICES and value not in _CHOICES[key]:
        raise UsageError(f"{key} of {where} must be one of {', '.join(_CHOICES[key])}, got {value!r}")
    if kinds == _TEXT and key not in ("paper", "power") and not value.strip():
        raise UsageError(f"{key} of {where} must not be empty")
    if key in ("margin", "paper_effect", "train_test_ratio") and not 0 < value < float("inf"):
        raise UsageError(f"{key} of {where} must be a finite number above 0, got {value!r}")
    if key == "min_seeds" and value < 0:
        raise UsageError(f"{key} of {where} must be at least 0, got {value!r}")
