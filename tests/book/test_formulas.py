"""The formulas that the explorers run in the browser give the library's values, on grids, to 1e-9."""

from __future__ import annotations

import itertools
import json
import math
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import scores as bench
from reprolib.evaluation import equal_error_rate
from reprolib.losses import CombinedAngular
from reprolib.theory import bounds, geometry

ROOT = Path(__file__).resolve().parents[2]
FORMULAS = ROOT / "book" / "formulas.js"
SCORES = json.loads((ROOT / "reference" / "scores.json").read_text(encoding="utf-8"))
NODE = shutil.which("node")
NEAR = {"rel": 1e-9, "abs": 1e-9}

pytestmark = pytest.mark.skipif(NODE is None, reason="needs node")

MARGINS = [(1.0, 0.0, 0.0), (1.0, 0.5, 0.0), (1.0, 0.0, 0.35), (1.35, 0.0, 0.0), (1.1, 0.3, 0.2), (4.0, 0.0, 0.0)]
ANGLES = [math.pi * k / 60 for k in range(61)]


def in_javascript(name: str, rows: list[tuple]) -> list:
    """What the function called `name` gives for each row of arguments."""
    script = f"""
const formulas = require({json.dumps(str(FORMULAS))});
const rows = JSON.parse(require('fs').readFileSync(0, 'utf8'));
console.log(JSON.stringify(rows.map((row) => formulas.{name}(...row))));
"""
    ran = subprocess.run([NODE, "-e", script], input=json.dumps(rows), capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


def test_target_and_slope_are_those_of_the_margin():
    rows = [(angle, *margin) for margin in MARGINS for angle in ANGLES]
    values, slopes = [], []
    for angle, *margin in rows:
        value, slope = CombinedAngular(*margin).value_and_slope(torch.tensor(angle, dtype=torch.float64).cos())
        values.append(float(value))
        slopes.append(float(slope))
    assert in_javascript("target", rows) == pytest.approx(values, **NEAR)
    # at the ends the slope is a quotient of two numbers of 1e-8: there it is compared where the library has it
    assert in_javascript("slope", rows) == pytest.approx(slopes, rel=1e-9, abs=1e-7)


def test_pull_is_the_gradient_of_the_loss_along_the_sphere():
    rows = [(t, *margin, s, C) for t in ANGLES[1:-1] for margin in MARGINS for s, C in ((1.0, 2), (20.0, 100))]
    pulls = []
    for angle, m1, m2, m3, s, C in rows:
        theta = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
        logit = s * CombinedAngular(m1, m2, m3).value_and_slope(theta.cos())[0]
        logits = torch.cat([logit[None], torch.zeros(C - 1, dtype=torch.float64)])
        loss = torch.nn.functional.cross_entropy(logits[None], torch.tensor([0]))
        pulls.append(float(torch.autograd.grad(loss, theta)[0].abs()))
    assert in_javascript("pull", rows) == pytest.approx(pulls, **NEAR)


def test_boundary_and_gap_are_those_of_the_geometry():
    margins = [margin for margin in MARGINS if margin[0] < 2]
    rows = [(math.radians(apart), *margin) for apart in (20, 40, 60, 90, 120, 150) for margin in margins]
    rows = [row for row in rows if row[1] * row[0] + row[2] <= math.pi]  # phi falls on the whole arc
    gaps = []
    for apart, m1, m2, m3 in rows:
        gaps.append(geometry.boundary_gap(lambda t, m=(m1, m2, m3): math.cos(m[0] * t + m[1]) - m[2], apart))
    found = in_javascript("gap", rows)
    assert [one is None for one in found] == [one is None for one in gaps]
    assert None in gaps
    for here, there in zip(found, gaps, strict=True):
        assert here == (None if there is None else pytest.approx(there, **NEAR))
    closed = [("cosface", (1.0, 0.0, 0.35)), ("arcface", (1.0, 0.5, 0.0)), ("softmax", (1.0, 0.0, 0.0))]
    for loss, margin in closed:
        (here,) = in_javascript("gap", [(1.5, *margin)])
        assert here == pytest.approx(geometry.angular_gap(loss, 1.5, max(margin[1:])), **NEAR)
    ends = [(t, *margin) for t in ANGLES for margin in margins]
    for (t, m1, m2, m3), end in zip(ends, in_javascript("boundary", ends), strict=True):
        value = math.cos(m1 * t + m2) - m3
        assert end == (pytest.approx(math.acos(value), **NEAR) if abs(value) <= 1 else None)


def test_bounds_are_those_of_the_library():
    classes, scales, wanted = (3, 4, 10, 100, 10_572, 10**6), (0.1, 1.0, 8.0, 30.0, 64.0), (0.5, 0.9, 0.999)
    by_scale = list(itertools.product(classes, scales))
    by_probability = list(itertools.product(classes, wanted))
    for name, function, rows in (
        ("lossFloor", bounds.normface_loss_bound, by_scale),
        ("crossPolytope", bounds.cross_polytope_probability, by_scale),
        ("polygon", bounds.polygon_probability, [row for row in by_scale if row[0] <= 10_572]),
        ("simplexScale", bounds.simplex_scale, by_probability),
        ("alphaLow", bounds.alpha_low, by_probability),
    ):
        assert in_javascript(name, rows) == pytest.approx([function(*row) for row in rows], **NEAR), name


def test_largest_margin_is_the_one_that_an_arrangement_attains():
    for n, d, vectors in (
        (5, 4, geometry.regular_simplex(5)),
        (2, 7, geometry.regular_simplex(2, 7)),
        (7, 5, geometry.cross_polytope(5, 7)),
        (10, 5, geometry.cross_polytope(5)),
        (9, 2, geometry.regular_polygon(9)),
    ):
        (margin,) = in_javascript("largestMargin", [(n, d)])
        assert margin == pytest.approx(1 - geometry.max_cosine(vectors), **NEAR)
        assert 1 - margin == pytest.approx(geometry.rankin_bound(n, d), **NEAR)
    assert in_javascript("largestMargin", [(11, 5)]) == [None]


@pytest.mark.parametrize("loss", list(SCORES["losses"]))
def test_rates_at_a_threshold_are_those_of_the_scores(loss):
    counts = SCORES["losses"][loss]
    middles = (bench.thresholds()[:-1] + bench.thresholds()[1:]) / 2
    genuine, impostor = (np.repeat(middles, counts[kind]) for kind in ("genuine", "impostor"))
    tar, far = (in_javascript("acceptedAt", [(counts[kind],)])[0] for kind in ("genuine", "impostor"))
    for k in range(0, 401, 7):
        threshold = bench.thresholds()[k]
        assert tar[k] == pytest.approx(float((genuine > threshold).mean()), **NEAR)
        assert far[k] == pytest.approx(float((impostor > threshold).mean()), **NEAR)
    (rate,) = in_javascript("equalErrorRate", [(counts["genuine"], counts["impostor"])])
    assert rate == pytest.approx(float(equal_error_rate(genuine, impostor, replicates=1)), **NEAR)
    # counted in steps of 0.005, the rate is near that of all scores
    assert rate == pytest.approx(counts["EER"], abs=1e-3)


def test_scores_are_counted_in_half_open_steps():
    scores = np.array([-1.0, -1.0, -0.995, 0.0, 0.0025, 0.005, 1.0])
    counts = bench.counted(scores)
    assert (sum(counts), counts[0], counts[199], counts[200], counts[399]) == (7, 3, 1, 2, 1)
