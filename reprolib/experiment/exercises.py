"""Exercises of a notebook: a reader's answer is held against the check that the text makes.

    grade.expect("5.3", lambda theta: -torch.sin(theta + m), (theta,))   # hidden, or in the text's own check cell
    grade("5.3", yours)     # 5.3: right (largest difference 2e-16)

`grade` never raises for an answer, whatever it is: a wrong one is told where it is wrong.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# what a check gives: the measured error, the allowed one and, if it can say so, where the error lies
Measured = tuple[float, float] | tuple[float, float, str]


@dataclass(frozen=True)
class Expected:
    """The check of an exercise with a right answer: a function and the arguments of each case, or a value."""

    right: Any
    cases: tuple[Sequence[Any], ...]
    tolerance: float

    def __call__(self, yours: Any) -> Measured:
        """The error max |yours - right| / max(1, |right|), what is allowed, and where it lies."""
        return _compare(yours, self.right, self.cases, self.tolerance)


class Grade:
    """The exercises of one run by their id, `run.grade`; a call grades an answer and prints one line."""

    def __init__(self) -> None:
        self.checks: dict[str, Callable[[Any], Measured]] = {}

    def register(self, id: str, check: Callable[[Any], Measured]) -> None:
        """Exercise `id`: `check(yours)` gives (measured error, allowed error), or these and where the error lies."""
        if not callable(check):
            raise TypeError(f"check of exercise {id!r} must be a function, got {check!r}")
        self.checks[id] = check

    def expect(self, id: str, right: Any, *cases: Sequence[Any], tolerance: float = 1e-9) -> None:
        """Exercise `id`: a function that equals `right` at the arguments of each case, or, without cases, a value.

        Results are numbers, arrays, tensors or lists of them; the error is max |yours - right| / max(1, |right|).
        """
        if callable(right) != bool(cases):
            raise ValueError(f"exercise {id!r} must have a function and its cases or a value, got {right!r}, {cases!r}")
        self.register(id, Expected(right, cases, tolerance))

    def __call__(self, id: str, yours: Any) -> None:
        """Print whether `yours` is right. Raises ValueError for an exercise that the page has not."""
        if id not in self.checks:
            raise ValueError(f"exercise must be one of {', '.join(self.checks) or 'none'}, got {id!r}")
        print(f"{id}: {self._verdict(self.checks[id], yours)}")

    def _verdict(self, check: Callable[[Any], Measured], yours: Any) -> str:
        if yours is None:
            return "not answered yet"
        try:
            error, allowed, *where = check(yours)
        except NotImplementedError:
            return "not answered yet"
        except Exception as stopped:
            return f"not right yet, it stops with {type(stopped).__name__}: {stopped}"
        # NaN is not right
        if error <= allowed:
            return f"right (largest difference {error:.0e})"
        return f"not right yet{''.join(where)}: largest difference {error:.3g}, allowed {allowed:.0e}"


def _compare(yours: Any, right: Any, cases: Sequence[Sequence[Any]], tolerance: float) -> Measured:
    if not cases:
        return _distance(yours, right)[0], tolerance
    worst, where = -1.0, ""
    for number, case in enumerate(cases, 1):
        # an answer that writes into its arguments changes nothing here
        error, at = _distance(yours(*copy.deepcopy(case)), right(*case))
        if not error <= worst:
            worst, where = error, f" for {shown_case(case, number)}{at}"
        if math.isnan(error):
            break
    return worst, tolerance, where


def _distance(ours: Any, right: Any) -> tuple[float, str]:
    """Largest |ours - right| / max(1, |right|), and the entry where it lies."""
    if isinstance(right, (list, tuple)) and not all(isinstance(part, (int, float)) for part in right):
        if not isinstance(ours, (list, tuple)) or len(ours) != len(right):
            raise ValueError(f"the answer must have {len(right)} parts, got {ours!r}")
        parts = [_distance(*pair) for pair in zip(ours, right, strict=True)]
        place = int(np.argmax([error for error, _ in parts]))  # NaN counts as the largest
        return parts[place][0], f", part {place}{parts[place][1]}"
    a, b = (np.asarray(v.detach().cpu() if isinstance(v, torch.Tensor) else v, dtype=float) for v in (ours, right))
    if a.shape != b.shape:
        raise ValueError(f"the answer must have shape {b.shape}, got {a.shape}")
    ratio = np.abs(a - b) / np.maximum(1.0, np.abs(b))
    if not ratio.ndim:
        return float(ratio), ""
    entry = np.unravel_index(int(np.argmax(ratio)), ratio.shape)
    return float(ratio[entry]), f", entry {', '.join(map(str, entry))}"


def shown_case(case: Sequence[Any], number: int) -> str:
    """The arguments of a case, or its number where they are no plain numbers."""
    if all(isinstance(value, (int, float, str)) for value in case):
        return f"the arguments ({', '.join(f'{v:.6g}' if isinstance(v, float) else repr(v) for v in case)})"
    return f"case {number}"
