"""Numerical tools of the theory room: draws, one-thread runs, finite differences, searches for extreme points."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def normal(*shape: int, seed: int | torch.Generator = 0) -> Tensor:
    """Standard normal float64 numbers: the same in every run for a number, the next ones for a generator."""
    generator = torch.Generator().manual_seed(seed) if isinstance(seed, int) else seed
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def gaussian(*shapes: tuple[int, ...]) -> Callable[[torch.Generator], tuple[Tensor, ...]]:
    """A sampler for ``check_bound``: independent standard normal tensors of these shapes, () for a number."""
    return lambda generator: tuple(normal(*shape, seed=generator) for shape in shapes)


@contextmanager
def single_thread() -> Iterator[None]:
    """Run torch on one thread: in thousands of tiny calls the barrier costs up to fifty times the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def bisect(holds: Callable[[float], bool], low: float, high: float) -> float:
    """End of the part of [low, high] from ``low`` on where ``holds`` is True, by a hundred halvings."""
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def derivative(evaluate: Callable[[float], float], start: float, target: float) -> float:
    """Ridders' derivative at 0: central differences at halved steps, extrapolated to step zero.

    ``start`` is the first step, ``target`` the absolute error at which to stop.

    The entry of the Neville tableau with the smallest estimated error wins, so smooth functions get about
    1e-12 and functions with a kink nearby still get the accuracy of the smallest step, about 1e-10.
    """
    previous: list[float] = []
    best, best_error = math.nan, math.inf
    step = start
    for level in range(14):
        # D(h) = (f(x + h) - f(x - h)) / 2h
        row = [(evaluate(step) - evaluate(-step)) / (2.0 * step)]
        factor = 4.0
        for column in range(min(level, 6)):
            # Richardson: the error is a series in h^2, so each column removes one even power.
            row.append((factor * row[column] - previous[column]) / (factor - 1.0))
            factor *= 4.0
            spread = max(abs(row[-1] - row[-2]), abs(row[-1] - previous[column]))
            if spread < best_error:
                best, best_error = row[-1], spread
        if best_error <= target:
            break
        previous, step = row, 0.5 * step
    return best


def finite_differences(function: Callable[..., float], inputs: tuple[Tensor, ...], target: float) -> tuple[Tensor, ...]:
    """Partial derivatives of ``function(*inputs)``, each wanted to the absolute accuracy ``target``.

    The contiguous float64 ``inputs`` are moved in place, one coordinate at a time, and restored.
    """
    grads = []
    for tensor in inputs:
        flat, grad = tensor.view(-1), torch.empty(tensor.numel(), dtype=torch.float64)
        for index in range(flat.numel()):
            origin = float(flat[index])

            def evaluate(step: float, flat: Tensor = flat, index: int = index, origin: float = origin) -> float:
                flat[index] = origin + step
                return function(*inputs)

            grad[index] = derivative(evaluate, 2.0**-8 * max(1.0, abs(origin)), target)
            flat[index] = origin
        grads.append(grad.view(tensor.shape))
    return tuple(grads)


class _NotFinite(Exception):
    """An optimisation left the region where the statement has a value."""


def _lbfgs(leaves: Sequence[Tensor], steps: int, gradient: float, change: float) -> torch.optim.Optimizer:
    """L-BFGS for ``steps`` iterations in one call, or until gradient or change is below its tolerance."""
    return torch.optim.LBFGS(
        leaves,
        max_iter=steps,
        max_eval=2 * steps,
        tolerance_grad=gradient,
        tolerance_change=change,
        history_size=20,
        line_search_fn="strong_wolfe",
    )


def descend(slack: Callable[..., Tensor], start: tuple[Tensor, ...], steps: int, method: str) -> tuple[float, bool]:
    """Minimise ``slack`` from ``start`` by "lbfgs" or "adam".

    Returns the smallest value met and whether the search stayed where value and gradient are finite.
    """
    leaves = [tensor.clone().requires_grad_(True) for tensor in start]
    smallest = math.inf
    quasi_newton = method == "lbfgs"
    optimiser = _lbfgs(leaves, steps, 1e-12, 1e-15) if quasi_newton else torch.optim.Adam(leaves)

    def closure() -> Any:
        nonlocal smallest
        optimiser.zero_grad()
        value = slack(*leaves)
        value.backward()
        finite = all(leaf.grad is None or bool(torch.isfinite(leaf.grad).all()) for leaf in leaves)
        current = float(value.detach())
        if not math.isnan(current):
            smallest = min(smallest, current)
        if not (finite and math.isfinite(current)):
            raise _NotFinite
        return value

    rounds = 1 if quasi_newton else steps
    try:
        for round_ in range(rounds):
            if not quasi_newton:
                # From 0.1 down to 1e-4: far enough to leave the basin, fine enough to settle in a corner.
                optimiser.param_groups[0]["lr"] = 0.1 * 10.0 ** (-3.0 * round_ / rounds)
            optimiser.step(closure)
    except _NotFinite:
        return smallest, False
    return smallest, True


def minimise_on_sphere(energy: Callable[[Tensor], Tensor], start: Tensor, steps: int) -> Tensor:
    """Unit vectors (last dimension) with a locally smallest ``energy``, by L-BFGS on free vectors."""
    free = start.clone(memory_format=torch.contiguous_format).requires_grad_(True)
    optimiser = _lbfgs([free], steps, 1e-14, 1e-16)

    def closure() -> Any:
        optimiser.zero_grad()
        value = energy(free / free.norm(dim=-1, keepdim=True))
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(closure)
    end = free.detach()
    end = end / end.norm(dim=-1, keepdim=True)
    return end if torch.isfinite(end).all() else start
