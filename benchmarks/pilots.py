"""Pilots: what a recipe costs and what it can tell, before any record is made with it.

    python -m benchmarks.pilots numbers --runs reference/pilots.jsonl --table reference/pilots.md

Each variant of an arena's recipe is trained with plain softmax, which alone decides, and with one untuned margin loss,
which shows whether the arena can tell losses apart. They are judged on validation identities; the pilot seeds are used
by nothing else. Every run is a line of `--runs`; the table names every recipe that was tried. CPU time is that of the
whole run on one thread, data and judging included.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.tuning import CRITERION, Run, Runs
from reprolib import arenas
from reprolib.arenas import Recipe
from reprolib.data import load
from reprolib.data.files import write_atomic
from reprolib.data.lfw import lfw_pairs
from reprolib.data.lfw_folds import VALIDATION_FOLD, lfw_fold, load_lfw_grey
from reprolib.evaluation import read_pairs
from reprolib.training import TrainConfig

SEED = 100
ARMS: dict[str, dict[str, dict[str, float]]] = {
    "numbers": {"softmax": {}, "arcface": {"scale": 24.0, "margin": 0.5}},
    "lfw": {"softmax": {}, "arcface": {"scale": 32.0, "margin": 0.4}},
}
WIDE = {"widths": (32, 64, 128)}
VARIANTS: dict[str, tuple[dict[str, Any], ...]] = {
    "numbers": (
        {},
        {"lr": 0.1},
        {"lr": 0.4},
        {"epochs": 4},
        {"epochs": 10},
        {"batch_size": 64, "epochs": 4},
        WIDE,
        {**WIDE, "kernels": (3, 3, 3)},
        {**WIDE, "kernels": (3, 3, 3), "epochs": 4},
    ),
    "lfw": (
        {},
        {"size": 40},
        {"crop": 96},
        {"epochs": 8},
        {"epochs": 16},
        {"lr": 0.1},
        {"lr": 0.3},
        {"batch_size": 64},
    ),
}


def vary(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    """The recipe with other fields of its configuration, or other keywords of its network."""
    names = {field.name for field in fields(TrainConfig)}
    config = {name: value for name, value in changes.items() if name in names}
    network = {name: value for name, value in changes.items() if name not in names}
    return replace(recipe, config=replace(recipe.config, **config), network=partial(recipe.network, **network))


def timed(loss: str, hyper: dict[str, Any], seed: int, recipe: Recipe, data: dict[str, Any]) -> dict[str, float]:
    """One run on the validation identities, with its CPU seconds."""
    begin = time.process_time()
    if "faces" in data:
        found = arenas.lfw_run(loss, fold=VALIDATION_FOLD, seed=seed, hyper=hyper, recipe=recipe, **data)
    else:
        found = arenas.numbers_run(loss, seed=seed, hyper=hyper, part="validation", recipe=recipe, training_data=data)
    return found | {"CPU s": round(time.process_time() - begin, 1)}


def data_of(arena: str, changes: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a variant trains on, and its changes without those of the data."""
    changes = dict(changes)
    if arena == "numbers":
        return {"dataset": load("mnist")}, changes
    people = load_lfw_grey(changes.pop("size", 48), changes.pop("crop", 112))
    return {"faces": lfw_fold(people, read_pairs(lfw_pairs()), VALIDATION_FOLD, most=arenas.MOST_IMAGES)}, changes


def table(arena: str, rows: Sequence[tuple[str, str, dict[str, float]]]) -> str:
    """The runs as a Markdown table, a row each; shares in percent."""

    def shown(name: str, value: float) -> str:
        return f"{value:.0f}" if name == "CPU s" else f"{100 * value:.2f}"

    names = list(dict.fromkeys(name for *_, metrics in rows for name in metrics))
    lines = [f"## {arena}", "", f"| recipe | loss | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for recipe, loss, metrics in rows:
        cells = [shown(name, metrics[name]) if name in metrics else "" for name in names]
        lines.append(f"| {recipe} | {loss} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pilots", description=__doc__.splitlines()[0])
    parser.add_argument("arena", choices=tuple(VARIANTS))
    parser.add_argument("--runs", type=Path, required=True, help="file of the runs, JSON lines; read first, added to")
    parser.add_argument("--table", type=Path, help="Markdown file to write the table of this arena to")
    parser.add_argument("--only", nargs="+", type=int, metavar="K", help="numbers of the variants, from 0")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    base, rows = (arenas.NUMBERS if chosen.arena == "numbers" else arenas.LFW), []
    for number, changes in enumerate(VARIANTS[chosen.arena]):
        if chosen.only is not None and number not in chosen.only:
            continue
        data, others = data_of(chosen.arena, changes)
        recipe = vary(base, others)
        run: Run = partial(timed, recipe=recipe, data=data)
        runs = Runs(
            chosen.runs,
            run,
            recipe.describe() | {name: list(v) if isinstance(v, tuple) else v for name, v in changes.items()},
        )
        text = ", ".join(f"{name} = {value}" for name, value in changes.items()) or "as it is"
        rows += [(text, loss, runs(loss, hyper, SEED)) for loss, hyper in ARMS[chosen.arena].items()]
        best = rows[-len(ARMS[chosen.arena])][2]
        print(f"{text}: softmax {CRITERION} {100 * best[CRITERION]:.2f} % in {best['CPU s']:.0f} s", flush=True)
        if chosen.table is not None:
            write_atomic(chosen.table, table(chosen.arena, rows).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
