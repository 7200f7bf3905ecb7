"""The element-sparse backward pass of the margin-softmax head: only the probabilities that reach a bound."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 1024


class Kept:
    """The elements of a chunk of (C, n) values that are not dropped: their classes, samples and values, by class."""

    def __init__(self) -> None:
        self.classes: list[Tensor] = []
        self.samples: list[Tensor] = []
        self.values: list[Tensor] = []

    def add(self, e: Tensor, first: int, least: Tensor) -> int:
        """Keep the elements of ``e`` (m, n), classes from ``first`` on, that reach ``least`` (n,); return how many."""
        flat = (e >= least).view(-1).nonzero().squeeze(1)
        self.values.append(e.view(-1)[flat])
        flat = flat.int()
        row = flat.div(e.shape[1], rounding_mode="floor")
        self.classes.append(row + first)
        self.samples.append(flat - row * e.shape[1])
        return len(flat)

    def _reaching(self, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Classes, samples and values of the elements that reach ``least`` (n,); the others are given up."""
        for k, (samples, values) in enumerate(zip(self.samples, self.values, strict=True)):
            reached = (values >= least[samples]).nonzero().squeeze(1)
            self.classes[k], self.samples[k], self.values[k] = (
                self.classes[k][reached],
                samples[reached],
                values[reached],
            )
        return torch.cat(self.classes), torch.cat(self.samples), torch.cat(self.values)

    def products(self, least: Tensor, w: Tensor, inverse: Tensor | None, xs: Tensor, grad_w: Tensor | None) -> Tensor:
        """q^T w (n, d) of the elements that reach ``least`` (n,), and q xs added to ``grad_w`` (C, d).

        q is the element times its class's ``inverse`` (C,); w (C, d), xs (n, d). Sums run in the order of the classes
        and of the samples, so that they repeat bit for bit.
        """
        classes, samples, values = self._reaching(least)
        if inverse is not None:
            values = values * inverse[classes]
        if grad_w is not None:
            touched, counts = classes.unique_consecutive(return_counts=True)
            ends, begin = counts.cumsum(0), 0
            # some classes at a time, so that their sums stay in the cache
            for first in range(0, len(touched), BLOCK):
                block = slice(first, first + BLOCK)
                end = int(ends[block][-1])
                sums = _weighted_sums(xs, samples[begin:end], values[begin:end], counts[block])
                grad_w.index_add_(0, touched[block], sums)
                begin = end
        order = samples.argsort(stable=True)
        return _weighted_sums(w, classes[order], values[order], samples.bincount(minlength=len(least)))


def _weighted_sums(table: Tensor, index: Tensor, weights: Tensor, counts: Tensor) -> Tensor:
    """sum_k weights_k table[index_k] over runs of ``counts`` elements, (len(counts), d)."""
    starts = (counts.cumsum(0) - counts).to(index.dtype)
    # a table that wants a gradient would take a slower way
    return torch.nn.functional.embedding_bag(index, table.detach(), starts, mode="sum", per_sample_weights=weights)
