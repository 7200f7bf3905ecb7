"""The explorers of JupyterLab, without a front end: a slider that moves changes the values, which are the library's."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from reprolib.experiment import explorers
from reprolib.experiment.paths import reference_folder
from reprolib.losses import CombinedMargin
from reprolib.theory import bounds, geometry

NEAR = {"rel": 1e-12, "abs": 1e-12}


@pytest.fixture
def sliders():
    pytest.importorskip("ipywidgets", reason="needs the extra widgets")


def test_pull_is_the_gradient_of_the_librarys_loss_along_the_sphere():
    scale, classes = 16.0, 5
    for margin in ((1.0, 0.5, 0.0), (1.0, 0.0, 0.35), (1.2, 0.3, 0.1)):
        for angle in (0.3, 1.0, 1.9):
            # the own weight along the first axis, all others at right angles to the feature's plane
            loss = CombinedMargin(6, classes, scale=scale, m1=margin[0], m2=margin[1], m3=margin[2]).double()
            with torch.no_grad():
                loss.weight.copy_(torch.eye(6, dtype=torch.float64)[[0, 2, 3, 4, 5]])
            theta = torch.tensor(angle, dtype=torch.float64, requires_grad=True)
            feature = torch.stack([theta.cos(), theta.sin(), *torch.zeros(4, dtype=torch.float64)])[None]
            (slope,) = torch.autograd.grad(loss(feature, torch.tensor([0])), theta)
            assert explorers.pull(angle, *margin, scale, classes) == pytest.approx(float(slope.abs()), rel=1e-9)


def test_a_slider_of_the_margins_changes_values_and_drawing(sliders):
    explorer = explorers.margins()
    before, picture = dict(explorer.values), bytes(explorer.drawing.value)
    assert before["gap in degrees"] == pytest.approx(math.degrees(geometry.angular_gap("arcface", math.pi / 2, 0.5)))
    seen = []
    explorer.controls["m3"].observe(lambda change: seen.append(change["new"]), "value")
    explorer.controls["m2"].value = 0.0
    explorer.controls["m3"].value = 0.35
    assert seen == [0.35]
    gap = geometry.angular_gap("cosface", math.pi / 2, 0.35)
    assert explorer.values["gap in degrees"] == pytest.approx(math.degrees(gap), **NEAR)
    assert explorer.values["phi at 45°"] == pytest.approx(math.cos(math.pi / 4) - 0.35, **NEAR)
    assert explorer.values["D at 45°"] == pytest.approx(1.0, **NEAR)
    drawn = bytes(explorer.drawing.value)
    assert drawn.startswith(b"\x89PNG") and drawn != picture
    assert f"{math.degrees(gap):.4g}" in explorer.table.value
    explorer.controls["degrees"].value = 20
    assert explorer.values["gap in degrees"] == "infeasible"


def test_the_bounds_are_the_librarys(sliders):
    explorer = explorers.bounds()
    explorer.controls["log classes"].value = 3
    explorer.controls["scale"].value = 16
    explorer.controls["wanted"].value = 0.99
    explorer.controls["dimensions"].value = 512
    values = explorer.values
    assert values["classes C"] == 1000 and values["attained (C <= d + 1)"] == "no"
    assert values["floor of the mean loss"] == pytest.approx(bounds.normface_loss_bound(1000, 16), **NEAR)
    assert values["least scale for the wanted p"] == pytest.approx(bounds.simplex_scale(1000, 0.99), **NEAR)
    assert values['the paper\'s "lower bound" on alpha for it'] == pytest.approx(bounds.alpha_low(1000, 0.99), **NEAR)
    assert values["no larger margin of CosFace"] == pytest.approx(1 - geometry.rankin_bound(1000, 512), **NEAR)


def test_the_rates_at_a_threshold_are_those_of_the_scores(sliders):
    scores = json.loads((reference_folder() / "scores.json").read_text(encoding="utf-8"))["losses"]
    explorer = explorers.threshold()
    for loss in scores:
        explorer.controls["loss"].value = loss
        explorer.controls["cosine"].value = 0.5
        middles = -1 + (2 * np.arange(400) + 1) / 400
        accepted = {kind: np.array(scores[loss][kind])[middles > 0.5].sum() for kind in ("genuine", "impostor")}
        assert explorer.values["FAR"] == pytest.approx(accepted["impostor"] / sum(scores[loss]["impostor"]), **NEAR)
        assert explorer.values["TAR"] == pytest.approx(accepted["genuine"] / sum(scores[loss]["genuine"]), **NEAR)
        assert explorer.values["EER, over all thresholds"] == scores[loss]["EER"]


@pytest.mark.parametrize("name", ["margins", "bounds", "threshold"])
def test_without_ipywidgets_a_picture_stands_in(name, monkeypatch, capsys):
    monkeypatch.setattr(explorers.importlib.util, "find_spec", lambda package: None)
    picture = getattr(explorers, name)()
    assert picture.data.startswith(b"\x89PNG")
    assert capsys.readouterr().out.count("\n") == 1
