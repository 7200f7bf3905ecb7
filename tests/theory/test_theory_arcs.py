"""Arcs of classes in the plane: known directions, classes across the cut of the angle, overlaps, wrong input."""

from __future__ import annotations

import math

import pytest
import torch

from reprolib.theory.arcs import central_arcs


def fan(centre: float, width: float, count: int = 101) -> torch.Tensor:
    """Features of different lengths, their directions evenly from `centre - width / 2` to `centre + width / 2`."""
    turn = torch.deg2rad(torch.linspace(centre - width / 2, centre + width / 2, count, dtype=torch.float64))
    return torch.linspace(1, 9, count, dtype=torch.float64)[:, None] * torch.stack((turn.cos(), turn.sin()), 1)


def classes(*fans: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of one fan (centre, width) a class."""
    return torch.cat([fan(*one) for one in fans]), torch.arange(len(fans)).repeat_interleave(101)


@pytest.mark.parametrize("turned", [0.0, 77.0, 175.0, 300.0])
def test_ends_and_gaps_of_known_classes_wherever_the_circle_is_cut(turned):
    features, labels = classes((turned, 20), (turned + 90, 40), (turned + 210, 60))
    arcs = central_arcs(features, labels)
    widths = dict(zip(arcs.labels.tolist(), torch.rad2deg(arcs.high - arcs.low).tolist(), strict=True))
    assert widths == pytest.approx({0: 18, 1: 36, 2: 54})
    gaps = dict(zip(arcs.labels.tolist(), arcs.gaps().tolist(), strict=True))
    assert gaps == pytest.approx({0: 90 - 9 - 18, 1: 120 - 18 - 27, 2: 150 - 27 - 9})
    assert (arcs.centre.diff() > 0).all() and float(arcs.centre.abs().max()) <= math.pi


def test_the_gaps_are_what_the_arcs_leave_of_the_circle():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(500, 2, generator=generator), torch.arange(500) % 7
    arcs = central_arcs(features, labels, share=0.5)
    left = 360 - float(torch.rad2deg(arcs.high - arcs.low).sum())
    assert float(arcs.gaps().sum()) == pytest.approx(left)


def test_overlapping_neighbours_have_a_negative_gap():
    gaps = central_arcs(*classes((0, 60), (20, 60)), share=1.0).gaps()
    assert gaps.tolist() == pytest.approx([20 - 60, 340 - 60])


def test_all_of_a_class_with_a_share_of_one_and_labels_with_holes():
    features, labels = classes((10, 30), (-60, 8))
    arcs = central_arcs(features, 3 * labels + 1, share=1.0)
    assert arcs.labels.tolist() == [4, 1]
    assert torch.rad2deg(arcs.low).tolist() == pytest.approx([-64, -5])
    assert torch.rad2deg(arcs.high).tolist() == pytest.approx([-56, 25])


@pytest.mark.parametrize(
    ("features", "labels", "share", "message"),
    [
        (torch.ones(4, 3), torch.arange(4), 0.9, "features and labels must have shapes"),
        (torch.ones(4, 2), torch.arange(3), 0.9, "features and labels must have shapes"),
        (torch.ones(4, 2), torch.zeros(4), 0.9, "labels must have at least 2 classes, got 1"),
        (torch.ones(4, 2), torch.arange(4), 0.0, "share must be"),
        (torch.ones(4, 2), torch.arange(4), 1.1, "share must be at most 1, got 1.1"),
    ],
)
def test_wrong_input_is_named(features, labels, share, message):
    with pytest.raises(ValueError, match=message):
        central_arcs(features, labels, share)
