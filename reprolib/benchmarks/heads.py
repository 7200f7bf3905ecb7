"""Classification heads: time and memory of a training step, ours against what people use."""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reprolib.benchmarks.measure import (
    GIB,
    MIB,
    alternate,
    available_bytes,
    in_child,
    is_out_of_memory,
    limit_memory,
    median,
    option,
    peak_above,
    ratio,
    status_bytes,
    table,
)
from reprolib.losses import ArcFace, PartialFC

M, S = 0.5, 64.0
CLASSES = (10_572, 85_742)
COST_CLASSES = (1_000, 10_000, 100_000, 1_000_000)


class PlainHead(nn.Module):
    """Normalise, multiply, scale, cross-entropy: the shortest way to write it, without a margin."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(classes, dim) / math.sqrt(dim))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy(S * F.linear(F.normalize(features), F.normalize(self.weight)), labels)


class InsightFaceHead(PlainHead):
    """ArcFace as insightface's PyTorch code computes it: angles of the whole matrix, in place, outside autograd."""

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        logits = F.linear(F.normalize(features), F.normalize(self.weight)).clamp(-1, 1)
        index = torch.arange(len(labels))
        with torch.no_grad():
            angle = logits[index, labels].arccos()
            logits.arccos_()
            logits[index, labels] = angle + M
            logits.cos_()
        return F.cross_entropy(logits * S, labels)


def _metric_learning(dim: int, classes: int) -> nn.Module:
    from pytorch_metric_learning import losses

    return losses.ArcFaceLoss(classes, dim, margin=math.degrees(M), scale=S)


HEADS: dict[str, Callable[[int, int], nn.Module]] = {
    "ours": lambda dim, classes: ArcFace(dim, classes, m=M, scale=S),
    "ours, reference": lambda dim, classes: ArcFace(dim, classes, m=M, scale=S, implementation="reference"),
    "ours, Partial FC 0.1": lambda dim, classes: ArcFace(
        dim, classes, m=M, scale=S, sampler=PartialFC(0.1), sparse_grad=True
    ),
    "pytorch-metric-learning": _metric_learning,
    "insightface formulation": InsightFaceHead,
    "plain PyTorch": PlainHead,
}
PEERS = ("pytorch-metric-learning", "insightface formulation", "plain PyTorch")
PRODUCTS = "three products"


def installed(name: str) -> bool:
    """Whether the package behind a head is there."""
    return name != "pytorch-metric-learning" or importlib.util.find_spec("pytorch_metric_learning") is not None


def make_batch(batch: int, dim: int, classes: int) -> tuple[Tensor, Tensor]:
    """Features (batch, dim) that want a gradient, and labels."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, dim, generator=generator).requires_grad_()
    return features, torch.randint(classes, (batch,), generator=generator)


def step(head: nn.Module, features: Tensor, labels: Tensor) -> None:
    """Forward and backward pass of one training step, gradients set to None before."""
    head.zero_grad(set_to_none=True)
    features.grad = None
    head(features, labels).backward()


def products(features: Tensor, weight: Tensor) -> None:
    """The products no exact method can avoid: logits, gradient of the features, gradient of the weights."""
    with torch.no_grad():
        z = features @ weight.t()
        z @ weight
        z.t() @ features


def peak(name: str, classes: int, batch: int, dim: int, limit: int | None = None) -> dict[str, Any]:
    """Peak bytes of one step above weights, their gradient and the inputs; run in a fresh process.

    Every head comes without a gradient and makes its own, whose bytes are taken off. With ``limit`` the process may
    hold that many bytes in all.
    """
    features, labels = make_batch(batch, dim, classes)
    # libraries load, and threads start, at the first step; a small one keeps that out of the account
    small = HEADS[name](dim, 8)
    step(small, features, labels % 8)
    if limit is not None:
        limit_memory(limit)
    try:
        head = HEADS[name](dim, classes)
        features.grad = None
        rise = peak_above(lambda: step(head, features, labels))
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return {"failed": f"needs more than {limit / GIB:.3g} GiB"}
    gradients = [p.grad for p in (*head.parameters(), features) if p.grad is not None]
    held = sum((g._values().numel() if g.is_sparse else g.numel()) * g.element_size() for g in gradients)
    total = status_bytes("VmHWM")
    return {"above_mib": None if rise is None else round((rise - held) / MIB, 1), "peak_gib": round(total / GIB, 2)}


def _one_size(classes: int, batch: int, dim: int, repeats: int) -> dict[str, Any]:
    features, labels = make_batch(batch, dim, classes)
    made = {name: build(dim, classes) for name, build in HEADS.items() if installed(name)}
    weight = made["ours"].weight.detach()
    with torch.no_grad():
        for name, head in made.items():
            if name == "pytorch-metric-learning":
                head.W.copy_(weight.t())
            else:
                head.weight = made["ours"].weight
        values = {name: float(head(features, labels)) for name, head in made.items() if "Partial" not in name}
    functions = {name: lambda head=head: step(head, features, labels) for name, head in made.items()}
    functions[PRODUCTS] = lambda: products(features.detach(), weight)
    seconds = alternate(functions, repeats)
    medians = {name: median(values) for name, values in seconds.items()}
    del functions, made
    peaks = {
        name: in_child("reprolib.benchmarks.heads", "peak", dict(name=name, classes=classes, batch=batch, dim=dim))
        if installed(name)
        else {"failed": "missing"}
        for name in HEADS
    }
    above = {name: entry.get("above_mib") for name, entry in peaks.items()}
    best_time = min(medians[name] for name in PEERS if name in medians)
    known = [above[name] for name in PEERS if above[name] is not None]
    best_memory = min(known) if known else None
    result = {
        "classes": classes,
        "seconds": medians,
        "seconds_all": {name: [round(value, 5) for value in values] for name, values in seconds.items()},
        "loss": values,
        "peak": peaks,
        "missing": [name for name in HEADS if name not in medians],
        "time_to_best_peer": ratio(medians["ours"], best_time),
        "time_to_products": ratio(medians["ours"], medians[PRODUCTS]),
        "memory_to_best_peer": ratio(above["ours"], best_memory),
    }
    rows = [
        [
            name,
            medians.get(name),
            ratio(medians.get(name), medians["ours"]),
            above.get(name),
            ratio(above.get(name), above["ours"]),
        ]
        for name in (*HEADS, PRODUCTS)
    ]
    table(
        f"C = {classes:,}, B = {batch}, d = {dim}, float32, {torch.get_num_threads()} threads: a step",
        ["head", "seconds", "to ours", "MiB above", "to ours"],
        rows,
    )
    return result


def heads(arguments: argparse.Namespace) -> dict[str, Any]:
    """Forward and backward of all heads, alternating in one process, and each one's peak memory in a fresh one."""
    batch, dim = option(arguments, "batch", 512), option(arguments, "dim", 512)
    repeats = option(arguments, "repeats", 5)
    sizes = [_one_size(classes, batch, dim, repeats) for classes in option(arguments, "classes", CLASSES)]
    return {"batch": batch, "dim": dim, "threads": torch.get_num_threads(), "repeats": repeats, "sizes": sizes}


def _under_limit(classes: int, batch: int, dim: int, limit: int) -> dict[str, Any]:
    """One step of each head, alone in a process that may hold ``limit`` bytes."""
    entries, rows = {}, []
    for name in HEADS:
        if "reference" in name:
            continue
        settings = dict(name=name, classes=classes, batch=batch, dim=dim, limit=limit)
        missing = {"failed": "missing"}
        entries[name] = in_child("reprolib.benchmarks.heads", "peak", settings) if installed(name) else missing
        rows.append([name, entries[name].get("failed", "runs"), entries[name].get("peak_gib")])
    title = f"C = {classes:,}, B = {batch}, d = {dim}: one step within {limit / GIB:.3g} GiB"
    table(title, ["head", "", "peak GiB"], rows)
    return {"batch": batch, "limit_gib": round(limit / GIB, 2), "heads": entries}


def million(arguments: argparse.Namespace) -> dict[str, Any]:
    """A million classes under a limit of memory: each head alone in a process that may hold no more than that.

    A batch of 512 within 8 GiB and one of 2,048 within 24 GiB, or the one that ``--batch`` and ``--limit`` name; never
    more than 92 % of what the machine has free.
    """
    dim, classes = option(arguments, "dim", 512), option(arguments, "classes", (1_000_000,))[0]
    cases = [(512, 8), (2048, 24)]
    if option(arguments, "batch", None) or option(arguments, "limit", None):
        cases = [(option(arguments, "batch", 512), option(arguments, "limit", 8))]
    most = 0.92 * available_bytes()
    runs = [_under_limit(classes, batch, dim, int(min(limit * GIB, most))) for batch, limit in cases]
    return {"classes": classes, "dim": dim, "threads": torch.get_num_threads(), "runs": runs}


def _cost_point(classes: int, batch: int, dim: int, repeats: int) -> dict[str, Any]:
    features, labels = make_batch(batch, dim, classes)
    weight = nn.Parameter(torch.randn(classes, dim, generator=torch.Generator().manual_seed(1)) / math.sqrt(dim))
    point: dict[str, Any] = {"classes": classes, "batch": batch, "seconds": {}, "above_mib": {}}
    functions: dict[str, Callable[[], None]] = {}
    # a peer that would not fit is left out rather than let the machine swap
    need = (2 * classes * dim + 5 * batch * classes) * 4
    for name, build in HEADS.items():
        fits = name.startswith("ours") and "reference" not in name
        if not installed(name) or not (fits or need < 0.7 * available_bytes()):
            continue
        head = build(dim, 2)
        if name == "pytorch-metric-learning":
            if 2 * need > available_bytes():
                continue
            head.W, head.num_classes = nn.Parameter(weight.detach().t().contiguous()), classes
        else:
            head.weight, head.num_classes = weight, classes
        functions[name] = lambda head=head: step(head, features, labels)
    functions[PRODUCTS] = lambda: products(features.detach(), weight.detach())
    for name, function in functions.items():
        rise = peak_above(function)
        own = classes * dim * 4 if name not in (PRODUCTS, "ours, Partial FC 0.1") else 0
        weight.grad = None
        point["above_mib"][name] = None if rise is None else round((rise - own) / MIB, 1)
    # the measurement of memory was the round to warm up
    enough = repeats if classes * batch < 5e7 else 1
    seconds = alternate(functions, enough, warm_up=0)
    point["seconds"] = {name: median(values) for name, values in seconds.items()}
    return point


def cost(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and memory of a step against the number of classes and the batch; a plot beside the JSON."""
    dim, repeats = option(arguments, "dim", 512), option(arguments, "repeats", 3)
    batches = (option(arguments, "batch", None),) if getattr(arguments, "batch", None) else (64, 256)
    sizes = option(arguments, "classes", COST_CLASSES)
    # libraries load, and threads start, at the first step; a small one keeps that out of the account
    features, labels = make_batch(64, dim, 8)
    for name, build in HEADS.items():
        if installed(name):
            step(build(dim, 8), features, labels)
    points = [_cost_point(classes, batch, dim, repeats) for batch in batches for classes in sizes]
    names = [*HEADS, PRODUCTS]
    for key, unit in (("seconds", "seconds"), ("above_mib", "MiB above weights and gradient")):
        rows = [[p["batch"], p["classes"], *(p[key].get(name) for name in names)] for p in points]
        table(f"a step, d = {dim}: {unit}", ["batch", "classes", *names], rows)
    folder = getattr(arguments, "output", None)
    if folder is not None:
        plot_cost(points, Path(folder) / "cost.png")
    return {"dim": dim, "threads": torch.get_num_threads(), "repeats": repeats, "points": points}


def plot_cost(points: list[dict[str, Any]], path: Path) -> None:
    """Seconds (above) and memory (below) against C, a column for each batch size, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from reprolib import plots

    plots.use_theme()
    batches = sorted({p["batch"] for p in points})
    figure, axes = plt.subplots(2, len(batches), figsize=(5.2 * len(batches), 7.2), squeeze=False)
    for column, batch in enumerate(batches):
        chosen = [p for p in points if p["batch"] == batch]
        for row, (key, label) in enumerate(
            (("seconds", "seconds a step"), ("above_mib", "MiB above W and its gradient"))
        ):
            lines = {
                name: [max(p[key].get(name) or 0.0, 0.0) or math.nan for p in chosen]
                for name in (*HEADS, PRODUCTS)
                if not (key == "above_mib" and name == PRODUCTS) and any(p[key].get(name) for p in chosen)
            }
            if lines:
                plots.curves(
                    [p["classes"] for p in chosen],
                    lines,
                    ax=axes[row, column],
                    title=f"batch {batch}",
                    xlabel="classes C",
                    ylabel=label,
                    logx=True,
                    logy=True,
                )
                # colours and styles are the same in all panels; one legend serves them
                legend = axes[row, column].get_legend()
                if legend is not None and (row, column) != (0, 0):
                    legend.remove()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
