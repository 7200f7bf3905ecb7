"""Tuning: scale, margin, weight or rate of every loss on validation identities, the same effort for each.

    python -m benchmarks.tuning numbers --runs reference/tuning.jsonl

Each loss has two to four knobs, the learning rate among them: it matters more than any margin. The first is tried at
three values, each further one at two more beside the best so far. Where the best value is at the end of what was tried,
the knob goes on, up to six values. Then the knobs are gone through again from there, until none moves; a loss that has
NormFace as a special case begins a second time at NormFace's best. The criterion is TAR at FAR 1e-3 on the validation
identities, which no record judges, averaged over the tuning seeds, which no record uses. Every run is a line of
`--runs`: a stopped command goes on where it was. The table holds the best values and the numbers of all candidates; it
is what `reprolib.arenas.tuned` reads.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from reprolib import arenas
from reprolib.data import load
from reprolib.data.fetching import repository_root
from reprolib.data.files import write_atomic
from reprolib.data.lfw_folds import VALIDATION_FOLD

CRITERION = "TAR@1e-3"
SEEDS = (1000, 1001)
# values of a knob on either side, beyond the three that every loss gets, while the best is at the end
FURTHER = 6
# times that the knobs are gone through: a margin found at one learning rate need not be the best at another
PASSES = 3
Run = Callable[[str, dict[str, Any], int], dict[str, float]]


@dataclass(frozen=True)
class Knob:
    """Values of one hyper-parameter above `low`: middle + step k or, without a step, middle ratio^k, k = -1, 0, 1 .."""

    name: str
    middle: float
    ratio: float = 1.0
    step: float = 0.0
    low: float = 0.0

    def at(self, k: int) -> float:
        """The value at k, with three significant digits; an integer where middle and step are."""
        value = self.middle + self.step * k if self.step else self.middle * self.ratio**k
        return value if isinstance(value, int) else float(f"{value:.3g}")

    def allowed(self, k: int) -> bool:
        """Whether the value at k is one that the hyper-parameter can have."""
        return self.at(k) > self.low


LR = Knob("lr", 0.2, 2.0)
SCALE, ADDITIVE = Knob("scale", 24.0, 1.5), Knob("margin", 0.5, step=0.1)
MULTIPLE, LEAST = Knob("margin", 3, step=1, low=1), Knob("least", 4.0, 4.0)
KNOBS: dict[str, tuple[Knob, ...]] = {
    "softmax": (LR, Knob("loss_lr_factor", 1.0, 4.0)),
    "l2_softmax": (Knob("scale", 8.0, 1.5), LR),
    "normface": (Knob("scale", 12.0, 1.5), LR),
    "l_softmax": (MULTIPLE, LEAST, LR),
    "a_softmax": (MULTIPLE, LEAST, LR),
    "cosface": (Knob("margin", 0.3, step=0.1), SCALE, LR),
    "arcface": (ADDITIVE, SCALE, LR),
    "arcface_straight_through": (ADDITIVE, SCALE, LR),
    "combined": (Knob("m2", 0.3, step=0.1), Knob("m3", 0.1, step=0.05), SCALE, LR),
    "softmax_center": (Knob("weight", 0.01, 4.0), LR),
    "contrastive": (Knob("margin", 0.8, 1.4), LR),
    "softmax_contrastive": (Knob("weight", 1.0, 3.0), Knob("margin", 1.0, 1.4), LR),
    "triplet_batch_hard": (Knob("margin", 0.3, 2.0), LR),
    "triplet_semi_hard": (Knob("margin", 0.3, 2.0), LR),
    "n_pair": (Knob("l2_weight", 0.01, 4.0), Knob("lr", 0.05, 2.0)),
}
# NormFace does best at a small scale and a high rate, and every loss here has it, or all but its margin, as a special
# case: a walk along one knob at a time does not come there from the middle, so the search begins there once more. Not
# on LFW: a run costs ten times as much, NormFace's own best is nearer to the middle, and CosFace was worse there.
SMALL_SCALE = {"scale": -3, "lr": 4}
SECOND_START: dict[str, tuple[dict[str, int], ...]] = {
    "cosface": (SMALL_SCALE | {"margin": -2},),
    "arcface": (SMALL_SCALE | {"margin": -2},),
    "arcface_straight_through": (SMALL_SCALE | {"margin": -2},),
    "combined": (SMALL_SCALE | {"m2": -2, "m3": -1},),
    "l2_softmax": ({"lr": 4},),
}
FIXED: dict[str, dict[str, Any]] = {"combined": {"m1": 1.0}}


def within(knob: Knob, k: int) -> bool:
    """Whether the value at k is one that the search may try."""
    return knob.allowed(k) and abs(k) <= 1 + FURTHER


def search(
    knobs: Sequence[Knob], score: Callable[[dict[str, float]], float], start: Mapping[str, int] = {}
) -> tuple[dict[str, float], set[str]]:
    """The best values of the knobs by `score` (higher is better), and the knobs whose best is at the end of the tried.

    Three values of the first knob with the others at their start (k of the knob; its middle where `start` has none),
    then the neighbours of each next one at the best of those before it; again from what was found, until a whole pass
    moves no knob, `PASSES` times at most.
    """
    at: dict[str, int] = {knob.name: start.get(knob.name, 0) for knob in knobs}
    ends: set[str] = set()
    for _ in range(PASSES):
        before, ends = dict(at), set()
        for knob in knobs:
            values: dict[int, float] = {}

            def tried(k: int, knob: Knob = knob, values: dict[int, float] = values) -> None:
                place = at | {knob.name: k}
                values[k] = score({one.name: one.at(place[one.name]) for one in knobs})

            for k in (at[knob.name], at[knob.name] - 1, at[knob.name] + 1):
                if within(knob, k):
                    tried(k)
            best = max(values, key=lambda k: values[k])
            while True:
                beyond = best - 1 if best == min(values) else best + 1
                if beyond in values or not within(knob, beyond):
                    break
                tried(beyond)
                best = max(values, key=lambda k: values[k])
            if any(k not in values and knob.allowed(k) for k in (best - 1, best + 1)):
                ends.add(knob.name)
            at[knob.name] = best
        if at == before:
            break
    return {one.name: one.at(at[one.name]) for one in knobs}, ends


class Runs:
    """The runs made so far, a line of JSON each; a run is made once."""

    def __init__(self, path: Path, run: Run, recipe: dict[str, Any]) -> None:
        self.path, self.run, self.recipe = path, run, recipe
        self.found: dict[str, dict[str, float]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            entry = json.loads(line)
            self.found[self._key(entry["recipe"], entry["loss"], entry["hyper"], entry["seed"])] = entry["metrics"]

    @staticmethod
    def _key(*parts: Any) -> str:
        return json.dumps(parts, sort_keys=True)

    def __call__(self, loss: str, hyper: dict[str, Any], seed: int) -> dict[str, float]:
        """Metrics of a run, from its line if there is one; a run that diverges has a criterion of 0."""
        key = self._key(self.recipe, loss, hyper, seed)
        if key not in self.found:
            try:
                metrics = self.run(loss, hyper, seed)
            except ValueError as error:
                # the loss, or the features before it, became infinite
                if not any(words in str(error) for words in ("lower the learning rate", "must be finite")):
                    raise
                metrics = {CRITERION: 0.0}
            entry = {"loss": loss, "hyper": hyper, "seed": seed, "metrics": metrics, "recipe": self.recipe}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(entry) + "\n")
            self.found[key] = metrics
            print(f"{loss} {hyper} seed {seed}: {metrics}", file=sys.stderr, flush=True)
        return self.found[key]


def tune(
    loss: str,
    runs: Callable[[str, dict[str, Any], int], dict[str, float]],
    seeds: Sequence[int],
    starts: Sequence[Mapping[str, int]] = ({},),
) -> dict[str, Any]:
    """One loss's entry of the table: `best`, `at_an_end` and the `candidates` with their mean metrics."""
    fixed, candidates = FIXED.get(loss, {}), []

    def score(hyper: dict[str, float]) -> float:
        found = [runs(loss, hyper | fixed, seed) for seed in seeds]
        means = {
            name: round(sum(one[name] for one in found) / len(found), 5)
            for name in found[0]
            if all(name in one for one in found)
        }
        candidates.append({"hyper": hyper | fixed, "metrics": means})
        return sum(one[CRITERION] for one in found) / len(found)

    found = [search(KNOBS[loss], score, start) for start in starts]
    best, ends = max(found, key=lambda one: score(one[0]))
    unique = {json.dumps(one["hyper"], sort_keys=True): one for one in candidates}
    return {"best": best | fixed, "at_an_end": sorted(ends), "seeds": list(seeds), "candidates": list(unique.values())}


def arena_run(arena: str) -> tuple[Run, dict[str, Any]]:
    """How a run of `arena` is made on its validation identities, and what tells its recipe from another."""
    if arena == "numbers":
        recipe, glyphs = arenas.NUMBERS, {"dataset": load("mnist")}

        def numbers(loss: str, hyper: dict[str, Any], seed: int) -> dict[str, float]:
            return arenas.numbers_run(loss, seed=seed, hyper=hyper, part="validation", training_data=glyphs)

        return numbers, recipe.describe()
    recipe = arenas.LFW
    faces = arenas.lfw_faces(VALIDATION_FOLD)

    def lfw(loss: str, hyper: dict[str, Any], seed: int) -> dict[str, float]:
        return arenas.lfw_run(loss, fold=VALIDATION_FOLD, seed=seed, hyper=hyper, faces=faces)

    return lfw, recipe.describe()


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__.splitlines()[0])
    parser.add_argument("arena", choices=("numbers", "lfw"))
    parser.add_argument("--losses", nargs="+", choices=tuple(KNOBS), default=list(KNOBS), metavar="LOSS")
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS), metavar="SEED")
    parser.add_argument("--runs", type=Path, required=True, help="file of the runs, JSON lines; read first, added to")
    parser.add_argument(
        "--table",
        type=Path,
        default=repository_root() / arenas.TUNED,
        help="file of the tuned values (default: %(default)s)",
    )
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    runs = Runs(chosen.runs, *arena_run(chosen.arena))
    for loss in chosen.losses:
        second = SECOND_START.get(loss, ()) if chosen.arena == "numbers" else ()
        entry = tune(loss, runs, chosen.seeds, ({}, *second))
        # read again: another process may have added its losses
        table = yaml.safe_load(chosen.table.read_text(encoding="utf-8")) if chosen.table.exists() else {}
        table.setdefault(chosen.arena, {})[loss] = entry
        write_atomic(chosen.table, yaml.safe_dump(table, sort_keys=True, width=120).encode())
        ends = f", at the end of what was tried: {', '.join(entry['at_an_end'])}" if entry["at_an_end"] else ""
        print(f"{loss}: {entry['best']}{ends}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
