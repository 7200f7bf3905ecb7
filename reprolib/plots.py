"""How it is shown: one theme, one class palette, one function per kind of figure.

Every function draws on an ``Axes`` it is given (or makes one) and returns it, so that figures are composed in the
notebooks and tested by their artists. ``labels`` are properties of the axes: title, xlabel, ylabel. Class i has the
same colour in every notebook.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.lines import Line2D
from scipy.stats import t as student_t

# Okabe-Ito's eight and two more of clearly different lightness: distinguishable with the common colour deficiencies.
CLASS_COLORS = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
    "#8C6D00",
    "#332288",
    "#7F7F7F",
    "#AA0033",
)
GENUINE_COLOR, IMPOSTOR_COLOR = "#009E73", "#D55E00"
LINE_STYLES = ("-", "--", "-.", ":")


def use_theme() -> None:
    """Set the suite's seaborn/matplotlib theme; called once by ``experiment.start``."""
    sns.set_theme(
        context="notebook",
        style="ticks",
        rc={
            "figure.dpi": 110,
            "figure.figsize": (7.0, 4.2),
            "figure.constrained_layout.use": True,
            "axes.grid": True,
            "grid.alpha": 0.25,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.labelsize": 10,
            "legend.fontsize": 9,
            "legend.frameon": False,
            "lines.linewidth": 1.8,
            "font.size": 10,
            "svg.hashsalt": "reprolib",
        },
    )


def class_color(index: int) -> str:
    """Colour of class ``index``; beyond ten classes the palette repeats."""
    return CLASS_COLORS[index % len(CLASS_COLORS)]


def _array(values) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _axes(ax: Axes | None) -> Axes:
    return plt.subplots()[1] if ax is None else ax


def _points(features, labels, dim: int, normalize: bool, max_points: int) -> tuple[np.ndarray, np.ndarray]:
    """At most ``max_points`` of the features (N, dim), on the unit sphere if ``normalize``, with their labels."""
    points, classes = _array(features), _array(labels)
    if points.ndim != 2 or points.shape[1] != dim:
        raise ValueError(f"features must have shape (N, {dim}), got {points.shape}")
    if normalize:
        points = points / np.linalg.norm(points, axis=1, keepdims=True)
    if len(points) > max_points:
        keep = np.random.default_rng(0).choice(len(points), max_points, replace=False)
        points, classes = points[keep], classes[keep]
    return points, classes


def features_2d(
    features,
    labels,
    weight=None,
    *,
    ax: Axes | None = None,
    title: str = "",
    normalize: bool = False,
    max_points: int = 3000,
    legend: bool = True,
    names: Sequence[str] | None = None,
) -> Axes:
    """Scatter of 2-D features (N, 2) by class, the origin marked, and a ray along each class weight (C, 2).

    With ``normalize`` the features are drawn on the unit circle, where only their angles remain.
    """
    ax = _axes(ax)
    points, classes = _points(features, labels, 2, normalize, max_points)
    present = np.unique(classes)
    for value in present:
        chosen = points[classes == value]
        ax.scatter(chosen[:, 0], chosen[:, 1], s=5, alpha=0.5, linewidths=0, color=class_color(int(value)))
    reach = float(np.quantile(np.linalg.norm(points, axis=1), 0.995)) * 1.08
    if weight is not None:
        rays = _array(weight)
        rays = rays / np.linalg.norm(rays, axis=1, keepdims=True) * reach
        for index, ray in enumerate(rays):
            ax.plot([0, ray[0]], [0, ray[1]], color=class_color(index), linewidth=1.2, alpha=0.9)
    ax.plot(0, 0, marker="+", color="black", markersize=9)
    ax.set_aspect("equal")
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach), title=title, xlabel="feature 1", ylabel="feature 2")
    if legend:
        class_legend(ax, present, names)
    return ax


def class_legend(ax: Axes, classes: Iterable[int], names: Sequence[str] | None = None) -> None:
    """A compact legend of class colours to the right of ``ax``."""
    handles = [
        Line2D([], [], marker="o", linestyle="", markersize=5, color=class_color(int(value)), label=text)
        for value, text in ((v, str(v) if names is None else names[int(v)]) for v in classes)
    ]
    ax.legend(handles=handles, loc="center left", bbox_to_anchor=(1.0, 0.5), handletextpad=0.1)


def class_arcs(labels, low, high, *, ax: Axes | None = None, radius: float = 1.12) -> Axes:
    """A bar outside the unit circle from each angle of `low` to that of `high` (radians), in the class's colour."""
    ax = _axes(ax)
    for label, start, end in zip(*map(_array, (labels, low, high)), strict=True):
        turn = np.linspace(float(start), float(end), 40)
        color = class_color(int(label))
        ax.plot(radius * np.cos(turn), radius * np.sin(turn), color=color, linewidth=5, solid_capstyle="butt")
    reach = 1.12 * radius
    ax.set(xlim=(-reach, reach), ylim=(-reach, reach))
    return ax


def features_on_sphere(features, labels, *, ax: Any = None, title: str = "", max_points: int = 2500) -> Axes:
    """3-D features (N, 3), normalised, on the unit sphere (``ax`` must be a 3-D axes if given)."""
    points, classes = _points(features, labels, 3, True, max_points)
    if ax is None:
        ax = plt.figure(figsize=(5, 5)).add_subplot(projection="3d")
    azimuth, height = np.mgrid[0 : 2 * np.pi : 25j, 0 : np.pi : 13j]
    mesh = (np.cos(azimuth) * np.sin(height), np.sin(azimuth) * np.sin(height), np.cos(height))
    ax.plot_wireframe(*mesh, color="#BBBBBB", linewidth=0.3, alpha=0.6)
    for value in np.unique(classes):
        chosen = points[classes == value]
        ax.scatter(*chosen.T, s=6, alpha=0.7, linewidths=0, color=class_color(int(value)), depthshade=True)
    ax.set_box_aspect((1, 1, 1), zoom=1.35)
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def sphere_front(
    region: Callable[[np.ndarray], np.ndarray],
    features=None,
    labels=None,
    *,
    sight: Sequence[float],
    ax: Axes | None = None,
    title: str = "",
    size: int = 500,
) -> Axes:
    """The unit sphere seen from the direction `sight` (3), its far side hidden: regions of classes, features on them.

    `region(points)` gives the class of each of the unit vectors (n, 3), -1 for none. Features (N, 3) are normalised.
    """
    ax = _axes(ax)
    towards = np.asarray(sight, dtype=float) / np.linalg.norm(sight)
    # seen from a pole, the second axis is up
    right = np.cross([0.0, 0.0, 1.0] if abs(towards[2]) < 0.99 else [0.0, 1.0, 0.0], towards)
    right = right / np.linalg.norm(right)
    frame = np.stack([right, np.cross(towards, right), towards])
    edge = np.linspace(-1.02, 1.02, size)
    across, up = np.meshgrid(edge, edge)
    height = 1 - across**2 - up**2
    classes = np.full((size, size), -1)
    classes[height > 0] = region(np.stack([across, up, np.sqrt(height.clip(0))], -1)[height > 0] @ frame)
    palette = np.array([to_rgb(class_color(index)) for index in range(len(CLASS_COLORS))])
    painted = np.where(classes[..., None] < 0, 0.94, 0.45 * palette[classes % len(palette)] + 0.55)
    pixels = np.concatenate([painted, (height > 0)[..., None]], -1)
    ax.imshow(pixels, origin="lower", extent=(-1.02, 1.02, -1.02, 1.02))
    if features is not None:
        points, own = _points(features, labels, 3, True, 4000)
        x, y, z = frame @ points.T
        ax.scatter(x[z > 0], y[z > 0], s=3, alpha=0.6, linewidths=0, c=[class_color(int(c)) for c in own[z > 0]])
    ax.set_axis_off()
    ax.set_title(title)
    return ax


def ranked(values: Mapping[str, float], *, ax: Axes | None = None, spans: Mapping[str, Any] | None = None) -> Axes:
    """Named values in rising order, one a line; `spans`, by name, are (low, high) stretches of the axis, shaded."""
    ax = _axes(ax)
    ordered = sorted(values, key=lambda name: values[name])
    for index, (name, (low, high)) in enumerate((spans or {}).items()):
        ax.axvspan(low, high, color=class_color(3 - index), alpha=0.15, linewidth=0)
        ax.text((low + high) / 2, len(ordered) - 0.3, name, ha="center", va="bottom", fontsize=8)
    for row, name in enumerate(ordered):
        ax.plot(values[name], row, "o", color=class_color(0), markersize=6)
    ax.set_yticks(range(len(ordered)), ordered, fontsize=8)
    ax.set_ylim(-0.6, len(ordered) + 0.6)
    return ax


def curves(
    x,
    ys: Mapping[str, Sequence[float]],
    *,
    ax: Axes | None = None,
    logx: bool = False,
    logy: bool = False,
    **labels: str,
) -> Axes:
    """Lines y(x), one per name; colour and line style both differ, so that they survive grey printing."""
    ax = _axes(ax)
    for index, (name, y) in enumerate(ys.items()):
        style = LINE_STYLES[index % len(LINE_STYLES)]
        ax.plot(_array(x), _array(y), color=class_color(index), linestyle=style, label=name)
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    ax.set(**labels)
    if len(ys) > 1:
        ax.legend()
    return ax


def sweep(
    settings: Sequence,
    values,
    *,
    ax: Axes | None = None,
    label: str | None = None,
    color: str | None = None,
    **labels: str,
) -> Axes:
    """Mean +- s.d. over seeds for each setting, every seed a dot; ``values`` has shape (settings, seeds).

    Settings are equally spaced categories, so that a value such as 'learned' may stand among numbers.
    """
    ax = _axes(ax)
    table = _array(values).astype(float)
    if table.ndim != 2 or len(table) != len(settings):
        raise ValueError(f"values must have shape ({len(settings)}, seeds), got {table.shape}")
    color = class_color(0) if color is None else color
    place = np.arange(len(settings))
    spread = table.std(axis=1, ddof=1) if table.shape[1] > 1 else np.zeros(len(table))
    look: dict[str, Any] = {"marker": "D", "markersize": 6, "markerfacecolor": "white", "capsize": 4, "linewidth": 1.4}
    ax.errorbar(place, table.mean(axis=1), yerr=spread, label=label, color=color, **look)
    for column in table.T:
        ax.scatter(place, column, s=22, color=color, edgecolor="white", linewidths=0.6, zorder=3)
    ax.set_xticks(place, [str(setting) for setting in settings])
    ax.set(**labels)
    if label is not None:
        ax.legend()
    return ax


def score_histograms(genuine, impostor, *, ax: Axes | None = None, bins: int = 60, **labels: str) -> Axes:
    """Densities of genuine and impostor scores (or angles) on common bins."""
    ax = _axes(ax)
    kinds = {"genuine": (_array(genuine), GENUINE_COLOR), "impostor": (_array(impostor), IMPOSTOR_COLOR)}
    edges = np.histogram_bin_edges(np.concatenate([scores for scores, _ in kinds.values()]), bins=bins).tolist()
    for name, (scores, color) in kinds.items():
        ax.hist(scores, bins=edges, density=True, alpha=0.55, color=color, label=f"{name} ({len(scores):,})")
    ax.set(**{"xlabel": "cosine similarity", "ylabel": "density"} | labels)
    ax.legend()
    return ax


def roc(curves_by_name: Mapping[str, tuple], *, ax: Axes | None = None, far_floor: float = 1e-4, **labels: str) -> Axes:
    """ROC curves (FAR, TAR arrays by name) with FAR on a log axis from ``far_floor`` to 1."""
    ax = _axes(ax)
    for index, (name, (far, tar)) in enumerate(curves_by_name.items()):
        color, style = class_color(index), LINE_STYLES[index % len(LINE_STYLES)]
        reached = np.maximum(_array(far), far_floor)
        ax.step(reached, _array(tar), where="post", color=color, linestyle=style, label=name)
    ax.set_xscale("log")
    ax.set(**{"xlim": (far_floor, 1.0), "ylim": (0.0, 1.01), "xlabel": "FAR", "ylabel": "TAR"} | labels)
    ax.legend(loc="lower right")
    return ax


def image_row(images, titles: Sequence[str] | None = None, *, axes: Sequence[Axes] | None = None) -> Sequence[Axes]:
    """Grey images (n, height, width) or (n, 1, height, width) side by side."""
    pictures = _array(images)
    pictures = pictures[:, 0] if pictures.ndim == 4 else pictures
    if axes is None:
        axes = plt.subplots(1, len(pictures), figsize=(1.4 * len(pictures), 1.8), squeeze=False)[1][0]
    for index, (ax, picture) in enumerate(zip(axes, pictures, strict=True)):
        ax.imshow(picture, cmap="gray", vmin=0, vmax=255)
        ax.set_axis_off()
        if titles is not None:
            ax.set_title(titles[index], fontsize=9)
    return axes


def bands(
    x,
    ys: Mapping[str, Sequence[Sequence[float]]],
    *,
    ax: Axes | None = None,
    logx: bool = False,
    logy: bool = False,
    **labels: Any,
) -> Axes:
    """Mean line of y(x) over seeds with its Student 95 % interval as a band; each of `ys` has shape (seeds, len(x)).

    `logy`: geometric mean, with the interval of the logarithms, on a logarithmic axis; all values must be above 0.
    """
    ax = _axes(ax)
    for index, (name, rows) in enumerate(ys.items()):
        table = _array(rows).astype(float)
        if table.ndim != 2 or table.shape[1] != len(x):
            raise ValueError(f"values of {name} must have shape (seeds, {len(x)}), got {table.shape}")
        if logy and not (table > 0).all():
            raise ValueError(f"values of {name} on a logarithmic axis must be above 0, got {table.min():g}")
        color, style = class_color(index), LINE_STYLES[index % len(LINE_STYLES)]
        table, shown = (np.log(table), np.exp) if logy else (table, np.asarray)
        mean, count = table.mean(axis=0), len(table)
        ax.plot(x, shown(mean), label=name, color=color, linestyle=style)
        if count > 1:
            half = student_t.isf(0.025, count - 1) * table.std(axis=0, ddof=1) / count**0.5
            ax.fill_between(x, shown(mean - half), shown(mean + half), color=color, alpha=0.15, linewidth=0)
    if logx:
        ax.set_xscale("log")
    if logy:
        ax.set_yscale("log")
    ax.set(**labels)
    return ax


def intervals(
    rows: Mapping[str, Sequence[float]],
    marks: Mapping[str, float] | None = None,
    *,
    ax: Axes | None = None,
    mark_label: str = "",
    **labels: str,
) -> Axes:
    """One line a name: (value, low, high) as a point with its interval, `marks` as a second symbol, 0 as a line."""
    ax = _axes(ax)
    for place, (name, (value, low, high)) in enumerate(rows.items()):
        color = class_color(0) if low > 0 else class_color(3) if high < 0 else class_color(8)
        ax.plot([low, high], [place, place], color=color, linewidth=2.2, solid_capstyle="butt")
        ax.plot(value, place, marker="o", color=color, markersize=6)
        if marks and name in marks:
            ax.plot(marks[name], place, marker="d", color="black", markerfacecolor="white", markersize=7, linestyle="")
    if marks:
        ax.plot([], [], marker="d", color="black", markerfacecolor="white", linestyle="", label=mark_label)
        ax.legend(loc="best")
    ax.axvline(0, color="black", linewidth=0.8)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.set(**labels)
    return ax


def difference_matrix(
    names: Sequence[str], values, told, *, ax: Axes | None = None, title: str = "", label: str = ""
) -> Axes:
    """Differences `values` (n, n), row minus column, coloured and printed where `told` (n, n) is True; ties blank."""
    ax = _axes(ax)
    table, decided = _array(values).astype(float), _array(told).astype(bool)
    if table.shape != (len(names), len(names)) or decided.shape != table.shape:
        raise ValueError(f"values and told must have shape ({len(names)}, {len(names)}), got {table.shape}")
    shown = np.where(decided, table, np.nan)
    reach = float(np.nanmax(np.abs(shown))) if decided.any() else 1.0
    image = ax.imshow(shown, cmap="RdBu_r", vmin=-reach, vmax=reach)
    for row, column in zip(*np.nonzero(decided), strict=True):
        dark = abs(table[row, column]) > 0.6 * reach
        text = f"{table[row, column]:+.1f}"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color="white" if dark else "black")
    ax.set_xticks(range(len(names)), list(names), rotation=60, ha="right")
    ax.set_yticks(range(len(names)), list(names))
    ax.grid(False)
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    ax.set(title=title)
    return ax
