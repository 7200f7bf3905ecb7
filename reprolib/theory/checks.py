"""Machine checks of the statements a notebook derives: identities, gradients, bounds, counterexamples.

Every check works in float64, raises ``AssertionError`` when the statement does not hold, returns the
measured error or slack, and sends a :class:`CheckRecord` to the subscribers whether the statement held or
not. Arguments that make a check meaningless (an empty id, a tolerance that is not positive, float32 inputs)
raise ``ValueError`` or ``TypeError`` and leave no record.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reprolib._checks import check_choice, check_count, check_double, check_number
from reprolib.theory.numerics import descend, finite_differences, single_thread

AUTOGRAD_TOLERANCE = 1e-10


@dataclass(frozen=True)
class CheckRecord:
    """One checked statement: what was claimed, what was measured, and whether it held.

    ``measured`` is an error (identity, gradient; small is good), the smallest slack (bound) or the violation
    shown (counterexample); ``detail`` holds the numbers it was made from.
    """

    id: str
    statement: str
    source: str
    kind: str
    measured: float
    tolerance: float
    passed: bool
    detail: dict[str, Any] = field(default_factory=dict)


_subscribers: list[tuple[object, Callable[[CheckRecord], None]]] = []


def subscribe(callback: Callable[[CheckRecord], None]) -> Callable[[], None]:
    """Send every later :class:`CheckRecord` to ``callback``; the function returned ends that."""
    if not callable(callback):
        raise TypeError(f"callback must be callable, got {type(callback).__name__}")
    ticket = object()
    _subscribers.append((ticket, callback))

    def unsubscribe() -> None:
        _subscribers[:] = [entry for entry in _subscribers if entry[0] is not ticket]

    return unsubscribe


def _conclude(record: CheckRecord, reason: str) -> float:
    for _, callback in _subscribers.copy():
        callback(record)
    if not record.passed:
        raise AssertionError(f"{record.id}: {reason} for the statement '{record.statement}'")
    return record.measured


def _validate_texts(**texts: str) -> None:
    for name, text in texts.items():
        if not isinstance(text, str):
            raise TypeError(f"{name} must be a string, got {type(text).__name__}")
        if not text.strip():
            raise ValueError(f"{name} must not be empty")


def texts_for(notebook: str) -> Callable[..., dict[str, str]]:
    """``about(topic, statement, source)``: the texts of one check of a notebook, with the id ``notebook.topic``.

    A source that is not given is "derived here".
    """

    def about(topic: str, statement: str, source: str = "derived here") -> dict[str, str]:
        return {"id": f"{notebook}.{topic}", "statement": statement, "source": source}

    return about


def _exact(value: Any, name: str) -> Tensor:
    """``value`` as a float64 tensor; anything that has already lost precision is refused."""
    if isinstance(value, Tensor):
        tensor = value.detach()
    elif isinstance(value, (list, tuple)):
        if not value:
            raise ValueError(f"{name} must not be empty: an identity over nothing shows nothing")
        tensor = torch.stack([_exact(entry, name) for entry in value])
    elif isinstance(value, (bool, int, float, np.ndarray, np.generic)):
        # Python floats must not pass through torch's default float32.
        tensor = torch.as_tensor(np.asarray(value))
    else:
        raise TypeError(f"{name} must be a number, an array or a tensor, got {type(value).__name__}")
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float64):
        raise TypeError(f"{name} must be float64, got {tensor.dtype}")
    return tensor.to(device="cpu", dtype=torch.float64)


def _scalar(value: Any, name: str) -> Tensor:
    """The scalar a function under test returned, as a 0-d float64 tensor that keeps its graph."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return torch.tensor(float(value), dtype=torch.float64)
    check_double(**{name: value})
    if value.numel() != 1:
        raise ValueError(f"{name} must return a scalar, got shape {tuple(value.shape)}")
    return value.reshape(())


def _as_inputs(inputs: Any, name: str) -> tuple[Tensor, ...]:
    tensors = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    if not tensors:
        raise ValueError(f"{name} must hold at least one tensor")
    for tensor in tensors:
        check_double(**{name: tensor})
        if tensor.numel() == 0:
            raise ValueError(f"{name} must not hold an empty tensor, got shape {tuple(tensor.shape)}")
        if not torch.isfinite(tensor).all():
            raise ValueError(f"{name} must be finite, got a tensor with NaN or infinity")
    return tuple(tensor.detach().clone(memory_format=torch.contiguous_format) for tensor in tensors)


def check_identity(left: Any, right: Any, *, id: str, statement: str, source: str, tolerance: float = 1e-12) -> float:
    """Assert ``left == right``: the largest ``|left - right| / max(1, |right|)`` is at most ``tolerance``.

    ``left`` and ``right`` are numbers, float64 arrays or tensors of one shape (a single number may stand
    against any shape). NaN or infinity on either side fails the check. Returns the error.
    """
    _validate_texts(id=id, statement=statement, source=source)
    check_number(tolerance, "tolerance")
    a, b = _exact(left, "left"), _exact(right, "right")
    if a.numel() == 0 or b.numel() == 0:
        raise ValueError("left and right must not be empty: an identity over nothing shows nothing")
    if a.shape != b.shape and a.numel() != 1 and b.numel() != 1:
        raise ValueError(
            f"left and right must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}",
        )
    # e = max |l - r| / max(1, |r|)
    ratio = (a - b).abs() / b.abs().clamp(min=1.0)
    error = float(ratio.max()) if torch.isfinite(ratio).all() else math.inf
    record = CheckRecord(
        id, statement, source, "identity", error, tolerance, error <= tolerance, {"elements": ratio.numel()}
    )
    return _conclude(record, f"measured error {error:.3e} is above the allowed {tolerance:.1e}")


@single_thread()
def check_gradient(
    function: Callable[..., Any],
    inputs: Tensor | Sequence[Tensor],
    closed_form: Callable[..., Any],
    *,
    id: str,
    statement: str,
    source: str,
    tolerance: float = 1e-7,
) -> float:
    """Assert that ``closed_form`` is the gradient of ``function`` at ``inputs``, by two independent means.

    ``function(*inputs)`` is a scalar; ``closed_form(*inputs)`` one tensor per input (a bare tensor for one
    input), each of its input's shape. It is compared with automatic differentiation (error at most 1e-10)
    and with extrapolated central differences (at most ``tolerance``). ``closed_form`` runs with gradients
    disabled, so it cannot be automatic differentiation in disguise.

    Errors are the largest absolute difference per input over the largest gradient entry of that input, or
    over 0.001 max(1, |function|) where that is more (rounding would dominate). Returns the larger of the two.
    """
    _validate_texts(id=id, statement=statement, source=source)
    check_number(tolerance, "tolerance")
    points = _as_inputs(inputs, "inputs")

    leaves = tuple(point.clone().requires_grad_(True) for point in points)
    with torch.enable_grad():
        value = _scalar(function(*leaves), "function")
        if not value.requires_grad:
            raise ValueError("function must depend on its inputs through differentiable operations")
        automatic = torch.autograd.grad(value, leaves, allow_unused=True)
    automatic = tuple(
        torch.zeros_like(point) if grad is None else grad for grad, point in zip(automatic, points, strict=True)
    )
    with torch.no_grad():
        formula = closed_form(*(point.clone() for point in points))
    formula = (formula,) if isinstance(formula, Tensor) else tuple(formula)
    if len(formula) != len(points):
        raise ValueError(f"closed_form must return {len(points)} tensors, got {len(formula)}")
    for grad, point in zip(formula, points, strict=True):
        check_double(closed_form=grad)
        if grad.shape != point.shape:
            raise ValueError(
                f"closed_form must return shape {tuple(point.shape)} for that input, got {tuple(grad.shape)}",
            )

    def number(*tensors: Tensor) -> float:
        return float(_scalar(function(*tensors), "function"))

    magnitude = float(value.detach())
    floor = 1e-3 * max(1.0, abs(magnitude))
    with torch.no_grad():
        # A function that draws random numbers has no gradient to check.
        if abs(number(*points) - magnitude) > 1e-9 * floor:
            raise ValueError("function must be deterministic, got two values at the same inputs")
        # At a point where the function is NaN nothing can be right: every distance below becomes infinite.
        finite = math.isfinite(magnitude)
        numeric = finite_differences(number, points, 0.02 * tolerance * floor) if finite else automatic

    def distance(reference: tuple[Tensor, ...]) -> float:
        errors = []
        for grad, ref in zip(formula, reference, strict=True):
            error = float((grad - ref).abs().max()) / max(floor, float(ref.abs().max()))
            errors.append(error if finite and math.isfinite(error) else math.inf)
        return max(errors)

    by_autograd, by_differences = distance(automatic), distance(numeric)
    error = max(by_autograd, by_differences)
    passed = by_autograd <= AUTOGRAD_TOLERANCE and by_differences <= tolerance
    detail = {
        "autograd": by_autograd,
        "autograd_tolerance": AUTOGRAD_TOLERANCE,
        "central_differences": by_differences,
        "coordinates": sum(point.numel() for point in points),
    }
    record = CheckRecord(id, statement, source, "gradient", error, tolerance, passed, detail)
    return _conclude(
        record,
        f"measured error {by_autograd:.3e} against autograd (allowed {AUTOGRAD_TOLERANCE:.1e}) and "
        f"{by_differences:.3e} against central differences (allowed {tolerance:.1e})",
    )


@single_thread()
def check_bound(
    value: Callable[..., Any],
    bound: float | Callable[..., Any],
    sample: Callable[[torch.Generator], Sequence[Tensor] | Tensor],
    *,
    id: str,
    statement: str,
    source: str,
    side: str = "lower",
    draws: int = 1000,
    steps: int = 200,
    extremal: Sequence[Tensor] | Tensor | None = None,
    tolerance: float = 1e-9,
    tight: float = 1e-6,
    seed: int = 0,
) -> float:
    """Assert ``value >= bound`` (``side="lower"``) or ``value <= bound`` (``side="upper"``) by attacking it.

    ``sample(generator)`` draws the free variables as unconstrained float64 tensors; ``value(*tensors)``
    brings them into the domain (normalises, sorts) and returns a differentiable scalar; ``bound`` is a number
    or a function of the same tensors.

    Attack 1 draws ``draws`` samples. Attack 2 starts L-BFGS from the three worst and Adam from the worst, and
    drives the slack down for ``steps`` steps each. Attack 3 evaluates ``extremal``, where ``|slack|`` must
    not exceed ``tight``. Nowhere may the slack fall under ``-tolerance``. Returns the smallest slack met;
    the record's ``detail`` holds those of the three attacks.
    """
    _validate_texts(id=id, statement=statement, source=source)
    check_number(tolerance, "tolerance")
    check_number(tight, "tight")
    check_count(draws, "draws")
    check_count(steps, "steps")
    check_choice(side, "side", ("lower", "upper"))
    if not callable(bound) and not math.isfinite(float(bound)):
        raise ValueError(f"bound must be finite, got {bound!r}")
    sign = 1.0 if side == "lower" else -1.0

    def slack(*tensors: Tensor) -> Tensor:
        limit = _scalar(bound(*tensors), "bound") if callable(bound) else float(bound)
        return sign * (_scalar(value(*tensors), "value") - limit)

    generator = torch.Generator().manual_seed(seed)
    worst: list[tuple[float, int, tuple[Tensor, ...]]] = []
    undefined = 0
    with torch.no_grad():
        for draw in range(draws):
            tensors = _as_inputs(sample(generator), "sample")
            current = float(slack(*tensors))
            if math.isnan(current):
                undefined += 1
                continue
            worst = sorted([*worst, (current, draw, tensors)], key=lambda entry: entry[:2])[:3]
    sampled = worst[0][0] if worst else math.inf

    optimised, left_domain = math.inf, 0
    starts = [entry for entry in worst if math.isfinite(entry[0])]
    if starts:
        probe = tuple(tensor.clone().requires_grad_(True) for tensor in starts[0][2])
        if not slack(*probe).requires_grad:
            raise ValueError("value must depend on the samples through differentiable operations")
    attacks = [("lbfgs", entry) for entry in starts] + [("adam", entry) for entry in starts[:1]]
    for method, (_, _, tensors) in attacks:
        with torch.enable_grad():
            lowest, finite = descend(slack, tensors, steps, method)
        optimised = min(optimised, lowest)
        left_domain += not finite

    at_extremal = None
    if extremal is not None:
        with torch.no_grad():
            at_extremal = float(slack(*_as_inputs(extremal, "extremal")))

    smallest = min(sampled, optimised, math.inf if at_extremal is None else at_extremal)
    holds = undefined == 0 and math.isfinite(smallest) and smallest >= -tolerance
    is_tight = at_extremal is None or abs(at_extremal) <= tight
    detail = {
        "side": side,
        "sampled": sampled,
        "optimised": optimised,
        "extremal": at_extremal,
        "tight": tight,
        "draws": draws,
        "undefined_draws": undefined,
        "searches_left_domain": left_domain,
    }
    measured = smallest if math.isfinite(smallest) else -math.inf
    record = CheckRecord(id, statement, source, "bound", measured, tolerance, holds and is_tight, detail)
    if undefined:
        reason = f"measured {undefined} NaN values in {draws} draws, allowed none,"
    elif holds and not is_tight:
        reason = f"measured slack {at_extremal:.3e} at the extremal point exceeds the allowed {tight:.1e}"
    else:
        reason = f"measured slack {measured:.3e} is under the allowed {-tolerance:.1e}"
    return _conclude(record, reason)


def check_counterexample(
    left: Any, right: Any, *, id: str, statement: str, source: str, at_least: float = 1e-6
) -> float:
    """Assert that a published ``left <= right`` is false: here ``left - right`` is at least ``at_least``.

    ``statement`` names the claim that is refuted. Returns the violation ``left - right``.
    """
    _validate_texts(id=id, statement=statement, source=source)
    check_number(at_least, "at_least")
    a, b = _exact(left, "left"), _exact(right, "right")
    if a.numel() != 1 or b.numel() != 1:
        raise ValueError(f"left and right must be single numbers, got {tuple(a.shape)} and {tuple(b.shape)}")
    violation = float(a.reshape(()) - b.reshape(()))
    passed = math.isfinite(violation) and violation >= at_least
    measured = violation if math.isfinite(violation) else -math.inf
    detail = {"left": float(a), "right": float(b)}
    record = CheckRecord(id, statement, source, "counterexample", measured, at_least, passed, detail)
    return _conclude(record, f"measured violation {measured:.3e} is under the {at_least:.1e} allowed as proof")


def check_identities(about: Callable[..., dict[str, Any]], source: str, *rows: tuple[Any, ...]) -> None:
    """`check_identity` of rows (topic, statement, left, right), or with a tolerance at the end, of one ``source``.

    ``about`` is what `texts_for` gives.
    """
    for topic, statement, left, right, *tolerance in rows:
        options = {"tolerance": tolerance[0]} if tolerance else {}
        check_identity(left, right, **about(topic, statement, source), **options)


def check_counterexamples(about: Callable[..., dict[str, Any]], source: str, *rows: tuple[Any, ...]) -> None:
    """`check_counterexample` of rows (topic, the statement that is false, left, right), as `check_identities`."""
    for topic, statement, left, right in rows:
        check_counterexample(left, right, **about(topic, statement, source))
