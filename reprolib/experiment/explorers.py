"""The explorers of the book in JupyterLab, with sliders: the margin family, the bounds, a threshold on real scores.

    from reprolib.experiment import explorers
    explorers.margins()

All values are the library's. Sliders need the extra `widgets`; without it the book's picture is shown.
"""

from __future__ import annotations

import html
import importlib.util
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from IPython.display import Image, display
from matplotlib.figure import Figure

from reprolib import plots
from reprolib.experiment.paths import reference_folder
from reprolib.losses import CombinedAngular
from reprolib.theory import bounds as known
from reprolib.theory import geometry

# what stands in a table: numbers, "no" or a reason where there is none
Values = dict[str, Any]
ANGLES = np.linspace(0.0, math.pi, 181)
SCALES = np.linspace(0.1, 64.0, 160)


@dataclass(frozen=True)
class Slider:
    """Ends, step and first value of a slider."""

    low: float
    high: float
    step: float
    value: float


class Explorer:
    """Controls, a drawing and a table; each change of a control makes both anew. `values` is the table."""

    def __init__(
        self,
        controls: Mapping[str, Slider | tuple[str, ...]],
        measure: Callable[..., Values],
        draw: Callable[..., Figure],
    ) -> None:
        widgets = importlib.import_module("ipywidgets")
        self.controls: dict[str, Any] = {}
        self.measure, self.draw = measure, draw
        self.values: Values = {}
        for name, control in controls.items():
            if isinstance(control, Slider):
                numbers = {"min": control.low, "max": control.high, "step": control.step, "value": control.value}
                self.controls[name] = widgets.FloatSlider(**numbers, description=name, continuous_update=False)
            else:
                self.controls[name] = widgets.Dropdown(options=control, value=control[-1], description=name)
            self.controls[name].observe(self.update, "value")
        self.drawing, self.table = widgets.Image(format="png"), widgets.HTML()
        self.box = widgets.VBox([*self.controls.values(), self.drawing, self.table])
        self.update()

    def update(self, change: Any = None) -> None:
        """Measure and draw at what the controls say."""
        chosen = {name.replace(" ", "_"): control.value for name, control in self.controls.items()}
        self.values = self.measure(**chosen)
        rows = [f"<tr><td>{html.escape(name)}</td><td>{shown(value)}</td></tr>" for name, value in self.values.items()]
        self.table.value = f"<table>{''.join(rows)}</table>"
        figure, file = self.draw(**chosen), io.BytesIO()
        figure.savefig(file, format="png")
        plt.close(figure)
        self.drawing.value = file.getvalue()

    def _ipython_display_(self) -> None:
        display(self.box)


def shown(value: Any) -> str:
    """A value of the table as text."""
    return (
        f"{value:.4g}" if isinstance(value, (int, float)) and not isinstance(value, bool) else html.escape(str(value))
    )


def with_sliders(picture: str, *parts: Any) -> Explorer | Image:
    """The explorer, or the picture that stands in where ipywidgets is missing."""
    if importlib.util.find_spec("ipywidgets") is None:
        print("Sliders need the package ipywidgets: pip install 'reprolib[widgets]'; here is the picture of the book.")
        return Image(filename=str(reference_folder() / "gallery" / picture))
    return Explorer(*parts)


def value_and_slope(angle: float | np.ndarray, m1: float, m2: float, m3: float) -> tuple[np.ndarray, np.ndarray]:
    """phi(theta) = cos(m1 theta + m2) - m3 and D = d phi / d cos(theta), as the library trains with them."""
    cosine = torch.as_tensor(np.cos(angle), dtype=torch.float64)
    value, slope = CombinedAngular(m1, m2, m3).value_and_slope(cosine)
    return value.numpy(), slope.numpy()


def pull(angle: float | np.ndarray, m1: float, m2: float, m3: float, scale: float, classes: float) -> np.ndarray:
    """s (1 - p) sin(theta) |D|: the gradient along the sphere, with C - 1 rivals whose logits are 0."""
    value, slope = value_and_slope(angle, m1, m2, m3)
    p = 1 / (1 + (classes - 1) * np.exp(-scale * value))
    return scale * (1 - p) * np.sin(angle) * np.abs(slope)


def measure_margins(m1: float, m2: float, m3: float, scale: float, log_classes: float, degrees: float) -> Values:
    """phi, D and pull at 45 degrees, and the gap between two classes whose weights are `degrees` apart."""
    value, slope = value_and_slope(math.pi / 4, m1, m2, m3)
    gap = geometry.boundary_gap(lambda t: math.cos(m1 * t + m2) - m3, math.radians(degrees))
    return {
        "phi at 45°": float(value),
        "D at 45°": float(slope),
        "pull at 45°": float(pull(math.pi / 4, m1, m2, m3, scale, round(10**log_classes))),
        "gap in degrees": "infeasible" if gap is None else math.degrees(gap),
        "phi turns at (degrees)": math.degrees((math.pi - m2) / m1) if m1 * math.pi + m2 > math.pi else "nowhere",
    }


def draw_margins(m1: float, m2: float, m3: float, scale: float, log_classes: float, degrees: float) -> Figure:
    """Target function, slope and pull against the angle, without a margin and with it."""
    figure, axes = plt.subplots(1, 3, figsize=(10, 3))
    margins = {"no margin": (1.0, 0.0, 0.0), "this margin": (m1, m2, m3)}
    classes = round(10**log_classes)
    inner = ANGLES[1:-1]  # at both ends D is a quotient of two small numbers
    parts: dict[str, Callable[[float, float, float], np.ndarray]] = {
        "target φ(θ)": lambda a, b, c: value_and_slope(inner, a, b, c)[0],
        "slope dφ/dcos θ": lambda a, b, c: value_and_slope(inner, a, b, c)[1],
        "pull s(1 − p) sin θ |D|": lambda a, b, c: pull(inner, a, b, c, scale, classes),
    }
    for ax, (title, formula) in zip(axes, parts.items(), strict=True):
        lines = {name: formula(*margin).tolist() for name, margin in margins.items()}
        plots.curves(np.degrees(inner), lines, ax=ax, title=title, xlabel="θ in degrees")
    for ax in axes[1:]:
        ax.get_legend().remove()
    axes[1].set_ylim(-4, 8)
    return figure


def margins() -> Explorer | Image:
    """Move m1, m2, m3, the scale, the number of classes and the angle between two class weights."""
    controls = {
        "m1": Slider(1, 4, 0.05, 1),
        "m2": Slider(0, 1.5, 0.01, 0.5),
        "m3": Slider(0, 1, 0.01, 0),
        "scale": Slider(1, 64, 0.5, 32),
        "log classes": Slider(0.3, 6, 0.1, 4),
        "degrees": Slider(5, 180, 1, 90),
    }
    return with_sliders("boundaries.png", controls, measure_margins, draw_margins)


def measure_bounds(log_classes: float, dimensions: float, scale: float, wanted: float) -> Values:
    """What no arrangement of C classes in d dimensions can pass, and where the simplex attains it."""
    classes, dim = max(3, round(10**log_classes)), round(dimensions)
    return {
        "classes C": classes,
        "attained (C <= d + 1)": "yes" if classes <= dim + 1 else "no",
        "probability that all classes cannot pass": math.exp(-known.normface_loss_bound(classes, scale)),
        "floor of the mean loss": known.normface_loss_bound(classes, scale),
        "least scale for the wanted p": known.simplex_scale(classes, wanted),
        'the paper\'s "lower bound" on alpha for it': known.alpha_low(classes, wanted),
        "no larger margin of CosFace": 1 - geometry.rankin_bound(classes, dim),
    }


def draw_bounds(log_classes: float, dimensions: float, scale: float, wanted: float) -> Figure:
    """The bound on the probability and the floor of the loss against the scale."""
    C = max(3, round(10**log_classes))
    floor = np.array([known.normface_loss_bound(C, s) for s in SCALES])
    figure, axes = plt.subplots(1, 2, figsize=(8, 3))
    for ax, title, line in zip(axes, ("bound on p", "floor of the loss"), (np.exp(-floor), floor), strict=True):
        plots.curves(SCALES, {title: line}, ax=ax, title=title, xlabel="scale s")
        ax.axvline(scale, color="0.5", linestyle=":")
    return figure


def bounds() -> Explorer | Image:
    """Move the number of classes, the dimensions, the scale and a wanted probability."""
    controls = {
        "log classes": Slider(0.5, 6, 0.05, 2),
        "dimensions": Slider(2, 1024, 1, 64),
        "scale": Slider(0.5, 64, 0.5, 10),
        "wanted": Slider(0.5, 0.999, 0.001, 0.9),
    }
    return with_sliders("normface_bound.png", controls, measure_bounds, draw_bounds)


def accepted_at(counts: list[int]) -> np.ndarray:
    """Share of the scores above -1 + 2 k / steps for k = 0 to steps, from their counts in each step."""
    above = np.append(np.cumsum(counts[::-1])[::-1], 0)
    return above / above[0]


def threshold() -> Explorer | Image:
    """Move a threshold on the cosines of all pairs of identities that the networks never met."""
    scores = json.loads((reference_folder() / "scores.json").read_text(encoding="utf-8"))["losses"]
    accepted = {loss: [accepted_at(of[kind]) for kind in ("genuine", "impostor")] for loss, of in scores.items()}

    def measure(loss: str, cosine: float) -> Values:
        genuine, impostor = accepted[loss]
        k = round((cosine + 1) / 2 * (len(genuine) - 1))
        found = {"FAR": float(impostor[k]), "FRR": float(1 - genuine[k]), "TAR": float(genuine[k])}
        rates = {f"TAR at FAR {far}, over all thresholds": rate for far, rate in scores[loss]["TAR"].items()}
        return {**found, "EER, over all thresholds": scores[loss]["EER"], **rates}

    def draw(loss: str, cosine: float) -> Figure:
        genuine, impostor = accepted[loss]
        figure, ax = plt.subplots(figsize=(6, 3))
        lines = {"false rejects": (1 - genuine).tolist(), "false accepts": impostor.tolist()}
        places = np.linspace(-1, 1, len(genuine))
        plots.curves(places, lines, ax=ax, xlabel="threshold on the cosine", ylabel="share of pairs")
        ax.set_yscale("symlog", linthresh=1e-5)
        ax.axvline(cosine, color="0.5", linestyle=":")
        return figure

    controls = {"loss": tuple(scores), "cosine": Slider(-1, 1, 0.005, 0.65)}
    return with_sliders("which_are_real.png", controls, measure, draw)
