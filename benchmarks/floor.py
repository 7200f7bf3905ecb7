"""What three matrix products cost: logits, gradient of the features, gradient of the weights.

A dense exact head cannot avoid them. The floor of a round is, for each of the three, the fastest of the ways at hand:
torch with new outputs, torch and NumPy (another matrix library) into outputs that are there already, torch by rows of
the batch, so that a chunk of logits stays in the cache, and oneDNN by rows of the batch and blocks of classes, the
logits transposed. A backward pass that leaves out entries of the logits'
gradient, with a bound on what it drops, can be below it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from benchmarks.kit import Spread, spread
from reprolib.losses.products import ONEDNN, put_product

PRODUCTS = ("logits", "features", "weight")
PLAIN = "torch"
CLASS_BLOCK = 2_048


def products(
    features: Tensor, weight: Tensor, chunk_rows: Sequence[int] = (128, 256)
) -> dict[str, Callable[[], object]]:
    """Each product in each way, named "PRODUCT, WAY"; `features` (N, d) and `weight` (C, d), float32 on the CPU."""
    x, w = features.detach(), weight.detach()
    z, dx, dw = x @ w.t(), torch.zeros_like(x), torch.zeros_like(w)
    x_, w_, z_, dx_, dw_ = (value.numpy() for value in (x, w, z, dx, dw))
    made: dict[str, Callable[[], object]] = {
        "logits, torch": lambda: x @ w.t(),
        "features, torch": lambda: z @ w,
        "weight, torch": lambda: z.t() @ x,
        "logits, into outputs": lambda: torch.mm(x, w.t(), out=z),
        "features, into outputs": lambda: torch.mm(z, w, out=dx),
        "weight, into outputs": lambda: torch.mm(z.t(), x, out=dw),
        "logits, NumPy": lambda: np.matmul(x_, w_.T, out=z_),
        "features, NumPy": lambda: np.matmul(z_, w_, out=dx_),
        "weight, NumPy": lambda: np.matmul(z_.T, x_, out=dw_),
    }
    for size in chunk_rows:
        parts = [slice(begin, min(begin + size, len(x))) for begin in range(0, len(x), size)]

        def logits(parts: list[slice] = parts) -> None:
            for rows in parts:
                torch.mm(x[rows], w.t(), out=z[: rows.stop - rows.start])

        def by_features(parts: list[slice] = parts) -> None:
            for rows in parts:
                torch.mm(z[: rows.stop - rows.start], w, out=dx[rows])

        def by_weight(parts: list[slice] = parts) -> None:
            for rows in parts:
                dw.addmm_(z[: rows.stop - rows.start].t(), x[rows], beta=float(rows.start > 0))

        for product, function in zip(PRODUCTS, (logits, by_features, by_weight), strict=True):
            made[f"{product}, {size} rows"] = function
        if ONEDNN:
            blocks = [slice(begin, begin + CLASS_BLOCK) for begin in range(0, len(w), CLASS_BLOCK)]
            ways = _by_onednn(x, w, z.view(-1)[: len(w) * min(size, len(x))].view(len(w), -1), dx, dw, parts, blocks)
            made |= {f"{product}, oneDNN, {size} rows": way for product, way in zip(PRODUCTS, ways, strict=True)}
    return made


def _by_onednn(
    x: Tensor, w: Tensor, z: Tensor, dx: Tensor, dw: Tensor, parts: list[slice], blocks: list[slice]
) -> tuple[Callable[[], object], ...]:
    """The three products by the function that the head uses; `z` (C, n) holds the logits of one chunk."""

    def each(product: Callable[[slice, slice, Tensor], object]) -> Callable[[], object]:
        return lambda: [
            product(rows, block, z[block, : min(rows.stop, len(x)) - rows.start]) for rows in parts for block in blocks
        ]

    return (
        each(lambda rows, block, e: put_product(e, w[block], x[rows], add=False)),
        each(lambda rows, block, e: put_product(dx[rows], e.t(), w[block].t(), add=block.start > 0)),
        each(lambda rows, block, e: put_product(dw[block], e, x[rows].t(), add=rows.start > 0)),
    )


def floors(seconds: Mapping[str, Sequence[float]]) -> tuple[list[float], list[float], dict[str, Spread]]:
    """From the rounds of `products`: the floor of each round, plain torch's three in each round, spread of each way."""
    names = {product: [name for name in seconds if name.startswith(product + ", ")] for product in PRODUCTS}
    rounds = range(len(seconds[f"{PRODUCTS[0]}, {PLAIN}"]))
    floor = [sum(min(seconds[name][k] for name in group) for group in names.values()) for k in rounds]
    plain = [sum(seconds[f"{product}, {PLAIN}"][k] for product in PRODUCTS) for k in rounds]
    return floor, plain, {name: spread(seconds[name]) for group in names.values() for name in group}
