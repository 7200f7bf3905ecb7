"""Figures by their artists: points, limits, labels, colours; not pixels."""

from __future__ import annotations

import matplotlib

matplotlib.use("agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb

from reprolib import plots


@pytest.fixture(autouse=True)
def close_figures():
    plots.use_theme()
    yield
    plt.close("all")


def cloud(dim: int, count: int = 60):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, dim, generator=generator), torch.arange(count) % 3


def test_class_colours_are_distinct_and_fixed():
    assert len(set(plots.CLASS_COLORS)) == 10
    assert plots.class_color(3) == plots.class_color(13)
    # any two differ clearly in RGB
    rgb = np.array([to_rgb(color) for color in plots.CLASS_COLORS])
    distance = np.linalg.norm(rgb[:, None] - rgb[None], axis=2) + np.eye(10)
    assert distance.min() > 0.2


def test_features_2d_draws_every_point_and_a_ray_for_each_class():
    features, labels = cloud(2)
    ax = plots.features_2d(features, labels, weight=torch.eye(3, 2) + 0.1, title="toy")
    assert sum(len(collection.get_offsets()) for collection in ax.collections) == 60
    assert len(ax.lines) == 3 + 1
    assert ax.get_title() == "toy" and [t.get_text() for t in ax.get_legend().texts] == ["0", "1", "2"]


def test_normalised_features_lie_on_the_unit_circle():
    features, labels = cloud(2)
    ax = plots.features_2d(features, labels, normalize=True)
    points = np.concatenate([collection.get_offsets() for collection in ax.collections])
    assert np.allclose(np.linalg.norm(points, axis=1), 1.0)


def test_class_arcs_are_bars_outside_the_circle_in_the_colours_of_the_classes():
    ax = plots.class_arcs(torch.tensor([5, 2]), torch.tensor([0.0, 2.0]), torch.tensor([0.5, 2.25]), radius=1.2)
    assert [to_rgb(line.get_color()) for line in ax.lines] == [to_rgb(plots.class_color(k)) for k in (5, 2)]
    for line, ends in zip(ax.lines, ((0.0, 0.5), (2.0, 2.25)), strict=True):
        x, y = line.get_data()
        assert np.allclose(np.hypot(x, y), 1.2)
        assert np.allclose(np.arctan2(y, x)[[0, -1]], ends)
    assert ax.get_xlim()[1] > 1.2


def test_many_points_are_thinned():
    features, labels = cloud(2, 500)
    ax = plots.features_2d(features, labels, max_points=100)
    assert sum(len(collection.get_offsets()) for collection in ax.collections) == 100


def test_wrong_dimension_is_refused():
    features, labels = cloud(3)
    with pytest.raises(ValueError, match=r"\(N, 2\)"):
        plots.features_2d(features, labels)
    with pytest.raises(ValueError, match=r"\(N, 3\)"):
        plots.features_on_sphere(features[:, :2], labels)


def test_sphere():
    features, labels = cloud(3)
    ax = plots.features_on_sphere(features, labels, title="sphere")
    assert ax.name == "3d" and ax.get_title() == "sphere"


def test_front_of_a_sphere_hides_the_far_side_and_shows_the_regions():
    def halves(points):
        assert np.allclose(np.linalg.norm(points, axis=1), 1)
        return np.where(points[:, 2] > 0, 0, -1)

    features, labels = np.array([[3.0, 0, 0], [-1.0, 0, 0], [1.0, 0, 2.0]]), np.array([1, 2, 3])
    ax = plots.sphere_front(halves, features, labels, sight=[2.0, 0, 0], title="front", size=101)
    # what looks at the viewer, in the frame of the page: (1, 0, 0) in the middle, (1, 0, 2) above it
    assert np.allclose(ax.collections[0].get_offsets(), [[0, 0], [0, 2 / 5**0.5]])
    pixels = ax.images[0].get_array()
    assert pixels[0, 0, 3] == 0 and pixels[50, 50, 3] == 1
    assert np.ptp(pixels[20, 50, :3]) < 1e-12 < np.ptp(pixels[80, 50, :3])
    assert ax.get_title() == "front"


@pytest.mark.parametrize("pole", [1.0, -1.0])
def test_front_of_a_sphere_is_seen_from_its_poles(pole):
    ax = plots.sphere_front(lambda points: np.where(points[:, 2] * pole > 0.9, 0, -1), sight=[0, 0, pole], size=101)
    pixels = ax.images[0].get_array()
    assert np.ptp(pixels[50, 50, :3]) > 1e-6 > np.ptp(pixels[50, 10, :3])


def test_ranked_values_rise_and_spans_are_named():
    ax = plots.ranked({"b": 2.0, "a": 1.0}, spans={"low": (0, 0.5)})
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    assert [float(line.get_xdata()[0]) for line in ax.lines] == [1.0, 2.0]
    assert [text.get_text() for text in ax.texts] == ["low"]


def test_curves_and_scales():
    x = np.linspace(1, 10, 20)
    ax = plots.curves(x, {"a": x, "b": x**2}, logy=True, xlabel="x", ylabel="y")
    assert len(ax.lines) == 2 and ax.get_yscale() == "log" and ax.get_xlabel() == "x"
    assert ax.lines[0].get_linestyle() != ax.lines[1].get_linestyle()


def test_sweep_shows_mean_and_every_seed():
    values = np.array([[1.0, 3.0], [2.0, 2.0]])
    ax = plots.sweep([1, "learned"], values)
    assert list(ax.lines[0].get_ydata()) == [2.0, 2.0]
    assert sum(len(c.get_offsets()) for c in ax.collections if hasattr(c, "get_offsets") and len(c.get_offsets())) >= 4
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "learned"]
    with pytest.raises(ValueError, match=r"\(2, seeds\)"):
        plots.sweep([1, 2], values[:1])


def test_histograms_roc_and_images():
    generator = np.random.default_rng(0)
    ax = plots.score_histograms(generator.normal(1, 1, 50), generator.normal(0, 1, 70))
    assert [t.get_text() for t in ax.get_legend().texts] == ["genuine (50)", "impostor (70)"]
    ax = plots.roc({"net": (np.array([0.0, 0.1, 1.0]), np.array([0.0, 0.8, 1.0]))})
    assert ax.get_xscale() == "log" and ax.get_xlim() == (1e-4, 1.0)
    axes = plots.image_row(torch.zeros(3, 1, 8, 8), ["x", "y", "z"])
    assert [ax.get_title() for ax in axes] == ["x", "y", "z"]


def test_bands_are_means_with_students_interval():
    rows = np.array([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]])
    ax = plots.bands([0.1, 1.0], {"a": rows, "one seed": rows[:1]}, logx=True)
    mean, alone = ax.lines
    assert mean.get_ydata().tolist() == [3, 2] and alone.get_ydata().tolist() == [1, 2]
    (band,) = ax.collections
    heights = band.get_paths()[0].vertices[:, 1]
    # t_{2, .975} = 4.3027, s = 2
    assert heights.max() == pytest.approx(3 + 4.3027 * 2 / 3**0.5, abs=1e-3)
    assert ax.get_xscale() == "log"
    with pytest.raises(ValueError, match=r"values of a must have shape \(seeds, 3\)"):
        plots.bands([1, 2, 3], {"a": rows})


def test_bands_of_logarithms_stay_above_zero():
    rows = np.array([[1.0, 1.0], [10.0, 1.0], [100.0, 1.0]])
    ax = plots.bands([0, 1], {"a": rows}, logy=True)
    assert ax.lines[0].get_ydata() == pytest.approx([10, 1]) and ax.get_yscale() == "log"
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    # t_{2, .975} = 4.3027, s = 1 decade
    assert [heights.min(), heights.max()] == pytest.approx([10 ** (1 - 2.4842), 10 ** (1 + 2.4842)], rel=1e-3)
    with pytest.raises(ValueError, match="values of a on a logarithmic axis must be above 0, got 0"):
        plots.bands([0, 1], {"a": 0 * rows}, logy=True)


def test_intervals_are_coloured_by_their_side_of_zero():
    ax = plots.intervals({"up": (2, 1, 3), "down": (-2, -3, -1), "tie": (0.5, -1, 2)}, {"up": 1.5}, mark_label="paper")
    drawn = [line for line in ax.lines if len(line.get_xdata()) == 2 and line.get_linewidth() > 2]
    assert [list(line.get_xdata()) for line in drawn] == [[1, 3], [-3, -1], [-1, 2]]
    assert len({line.get_color() for line in drawn}) == 3
    marks = [line for line in ax.lines if line.get_marker() == "d" and len(line.get_xdata())]
    assert [float(line.get_xdata()[0]) for line in marks] == [1.5]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["up", "down", "tie"]


def test_a_tie_is_blank_in_the_matrix_of_differences():
    values, told = [[0, 1.5], [-1.5, 0]], [[False, True], [False, False]]
    ax = plots.difference_matrix(["a", "b"], values, told)
    assert [text.get_text() for text in ax.texts] == ["+1.5"]
    shown = np.ma.filled(ax.images[0].get_array(), np.nan)
    assert np.isnan(shown).tolist() == [[True, False], [True, True]]
    assert not plots.difference_matrix(["a", "b"], values, np.zeros((2, 2))).texts
    with pytest.raises(ValueError, match=r"must have shape \(3, 3\)"):
        plots.difference_matrix(["a", "b", "c"], values, told)
