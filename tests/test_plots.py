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
