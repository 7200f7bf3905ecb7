"""Relative error of each head's float32 loss and gradients by the angle to the own class, against float64.

The oracle is the papers' equation in float64 with the own class kept out of the sum, where nothing cancels:
loss = softplus(logsumexp over j != y of z_j - z_y), z_y = s cos(theta + m), with automatic differentiation.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kit import show
from benchmarks.peers import HEADS, MARGINS, RAW_PEERS, M, S, at_angle, built, missing, step

ANGLES = (20, 27, 35, 50, 70, 90, 110, 130, 150, 170, 180)


def oracle(name: str, features: Tensor, labels: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, and its gradients by features and weight, in float64 of what the head `name` means to compute."""
    x, w = (value.detach().double().requires_grad_() for value in (features, weight))
    index = labels.unsqueeze(1)
    if name in RAW_PEERS:
        logits = x @ w.t()
        own = logits.gather(1, index)
    else:
        cosine = F.normalize(x) @ F.normalize(w).t()
        logits, c = S * cosine, cosine.gather(1, index)
        own = S * c
        if name in MARGINS:
            # cos(theta + m) = cos theta cos m - sin theta sin m
            value = c * math.cos(M) - (1 - c.square()).clamp_min(0).sqrt() * math.sin(M)
            # insightface's gradient passes the margin by: d z_y / d cos theta = s
            own = S * (c + (value - c).detach() if name == "insightface formulation" else value)
    others = logits.scatter(1, index, -math.inf).logsumexp(dim=1)
    gap = others - own.squeeze(1)
    loss = (-F.logsigmoid(-gap)).mean()
    by_features, by_weight = torch.autograd.grad(loss, (x, w))
    return loss.detach(), by_features, by_weight


def relative(value: Tensor, exact: Tensor) -> float | None:
    """||value - exact|| / ||exact||, None where one of them is not finite (a value that is not is no error of 0)."""
    error = float((value.double() - exact).norm() / exact.norm())
    return float(f"{error:.2g}") if math.isfinite(error) else None


def errors(classes: int, dim: int, batch: int = 32) -> dict[str, dict[str, list[float | None]]]:
    """Errors of loss, feature gradient and weight gradient for each head, a value for each of `ANGLES`.

    At 180 degrees the direction of the gradient is not defined: only the loss is judged there.
    """
    generator = torch.Generator().manual_seed(0)
    weight = F.normalize(torch.randn(classes, dim, generator=generator))
    labels = torch.randint(classes, (batch,), generator=generator)
    found: dict[str, dict[str, list[float | None]]] = {}
    for name in HEADS:
        if missing(name) is not None or "Partial" in name:
            continue
        head = built(name, weight)
        found[name] = {"loss": [], "features": [], "weight": []}
        for degrees in ANGLES:
            angle = torch.full((batch,), math.radians(degrees), dtype=torch.float64)
            directions = torch.Generator().manual_seed(degrees)
            features = at_angle(weight[labels], angle, S, directions).requires_grad_()
            loss, by_features, by_weight = oracle(name, features, labels, weight)
            found[name]["loss"].append(relative(step(head, features, labels), loss))
            defined = degrees < 180
            got = next(p.grad for p in head.parameters() if p.grad is not None and p.grad.dim() == 2)
            got = got if got.shape == by_weight.shape else got.t()
            assert features.grad is not None
            found[name]["features"].append(relative(features.grad, by_features) if defined else None)
            found[name]["weight"].append(relative(got, by_weight) if defined else None)
    return found


def measured(classes: int, dim: int) -> dict[str, Any]:
    """The errors as they are written down, with a table on standard error."""
    found = errors(classes, dim)
    rows = [[name, key, *values] for name, entry in found.items() for key, values in entry.items()]
    title = f"relative error in float32, C = {classes:,}, d = {dim}, by degrees to the own class"
    show(title, ["head", "of", *(f"{angle}" for angle in ANGLES)], rows)
    return {"classes": classes, "dim": dim, "angles": list(ANGLES), "errors": found}
