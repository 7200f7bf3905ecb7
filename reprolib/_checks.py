"""Every check of what a caller passes, once, in one dialect: "NAME must be ..., got ...".

`check_*` raise and return nothing; the others return the value in the form that the suite computes with. Imported by
every room; imports none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = np.ndarray | torch.Tensor


def _plain(values: Any) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach()
        if values.is_floating_point() and values.dtype not in (torch.float32, torch.float64):
            values = values.float()
        return values.cpu().numpy()
    return np.asarray(values)


def float_array(values: Any, name: str, ndim: int) -> np.ndarray:
    """`values` as a finite, non-empty floating array of `ndim` axes; half precision becomes float32.

    Raises TypeError for a dtype that is not real floating point, ValueError for a wrong shape, NaN or
    infinity.
    """
    array = _plain(values)
    if array.dtype.kind != "f":
        raise TypeError(f"{name} must be floating point, got dtype {array.dtype}")
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {tuple(array.shape)}")
    if array.size == 0:
        raise ValueError(f"{name} is empty, got shape {tuple(array.shape)}")
    if array.dtype.itemsize < 4:
        array = array.astype(np.float32)
    # min and max carry a NaN along: two reductions find NaN and infinity without a mask of the array's size
    if not (np.isfinite(array.min()) and np.isfinite(array.max())):
        raise ValueError(f"{name} holds NaN or infinite values; every value must be finite")
    return array


def feature_rows(values: Any, name: str) -> Array:
    """`values` as (rows, d) float features, a detached tensor or a native array, a view where possible.

    Only shape and dtype are checked here: NaN is found block by block where the rows are used.
    """
    values = values.detach() if isinstance(values, torch.Tensor) else np.asarray(values)
    if not (values.is_floating_point() if isinstance(values, torch.Tensor) else values.dtype.kind == "f"):
        raise TypeError(f"{name} must be floating point, got dtype {values.dtype}")
    if values.ndim != 2 or 0 in values.shape:
        raise ValueError(f"{name} must have shape (rows, d) with rows, d >= 1, got {tuple(values.shape)}")
    if isinstance(values, np.ndarray):
        # torch knows neither foreign byte order nor more than 8 bytes
        values = np.asarray(values, dtype=f"=f{min(values.dtype.itemsize, 8)}")
    return values


def row_tensor(rows: Array) -> torch.Tensor:
    """What `feature_rows` returned as a tensor; an array is copied, for it may be read-only or reversed."""
    return rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.array(rows, order="C"))


def unit_rows(rows: torch.Tensor, name: str, out: torch.Tensor | None = None) -> torch.Tensor:
    """Rows divided by their Euclidean norms, in `out` if given; ValueError for NaN, infinity or a zero row."""
    norm = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    # norms this moderate prove that no entry is NaN and that no square that matters overflowed or vanished
    if norm.min() > 1e-12 and norm.max() < 1e12:
        return torch.div(rows, norm, out=out)
    peak = rows.abs().amax(dim=1, keepdim=True)
    if not torch.isfinite(peak).all():
        raise ValueError(f"{name} hold NaN or infinite values; every value must be finite")
    if (peak == 0).any():
        raise ValueError(f"{name} hold a zero vector, which has no direction")
    # divided by the largest entry first, the squares can neither overflow nor vanish
    rows = rows / peak
    return torch.div(rows, torch.linalg.vector_norm(rows, dim=1, keepdim=True), out=out)


def label_array(values: Any, name: str, length: int | None = None) -> np.ndarray:
    """`values` as a 1-D int64 array, of `length` entries if given; bools and floats are refused."""
    array = _plain(values)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got dtype {array.dtype}")
    if array.ndim != 1 or array.size == 0:
        raise ValueError(f"{name} must be a non-empty vector, got shape {tuple(array.shape)}")
    if length is not None and len(array) != length:
        raise ValueError(f"{name} must have {length} entries, got {len(array)}")
    return array.astype(np.int64, copy=False)


def same_array(values: Any, length: int) -> np.ndarray:
    """`values` (bool, or integers 0 and 1) as a boolean vector of `length` entries, both kinds present."""
    array = _plain(values)
    if array.dtype.kind not in "biu":
        raise TypeError(f"same must be bool or the integers 0 and 1, got dtype {array.dtype}")
    if array.ndim != 1 or len(array) != length:
        raise ValueError(f"same must have shape ({length},), got {tuple(array.shape)}")
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise ValueError("same must hold only 0 (impostor pair) and 1 (genuine pair)")
    array = array.astype(bool)
    if array.all() or not array.any():
        raise ValueError(f"same must hold genuine and impostor pairs, got {int(array.sum())} genuine of {length}")
    return array


def far_values(far: Any) -> tuple[np.ndarray, bool]:
    """False accept rates as a float vector, and whether one number was given; each must lie in (0, 1]."""
    scalar = not isinstance(far, Sequence) and _plain(far).ndim == 0
    values = np.atleast_1d(_plain(far))
    if values.dtype.kind not in "fiu":
        raise TypeError(f"far must be a number or a sequence of numbers, got {far!r}")
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"far must be a number or a non-empty sequence of numbers, got {far!r}")
    if values.dtype.kind != "f":
        values = values.astype(np.float64)
    wrong = ~((values > 0) & (values <= 1))
    if wrong.any():
        raise ValueError(f"far must lie in (0, 1], got {float(values[wrong][0])}")
    return values, scalar


def check_features(features: Tensor, name: str = "features", columns: int | None = None) -> None:
    """Raise unless `features` is a finite float tensor (N, d) with N, d >= 1 (d = `columns` if given)."""
    if not isinstance(features, Tensor) or not features.is_floating_point():
        kind = features.dtype if isinstance(features, Tensor) else type(features).__name__
        raise TypeError(f"{name} must be a floating-point tensor of shape (N, d), got {kind}")
    if features.dim() != 2 or 0 in features.shape:
        raise ValueError(f"{name} must have shape (N, d) with N, d >= 1, got {tuple(features.shape)}")
    if columns is not None and features.shape[1] != columns:
        raise ValueError(f"{name} must have {columns} columns, got shape {tuple(features.shape)}")
    require(torch.isfinite(features).all(), lambda: f"{name} must be finite, got NaN or infinity")


def check_batch(features: Tensor, labels: Tensor, num_classes: int | None = None, columns: int | None = None) -> None:
    """`check_features` and `check_labels` of the samples of one batch."""
    check_features(features, columns=columns)
    check_labels(labels, len(features), num_classes)


def check_labels(labels: Tensor, rows: int | None = None, num_classes: int | None = None) -> None:
    """Raise unless `labels` is an int64 tensor (rows,), of any length if None; in 0 .. num_classes - 1 if given."""
    if not isinstance(labels, Tensor) or labels.dtype != torch.int64:
        kind = labels.dtype if isinstance(labels, Tensor) else f"{type(labels).__module__}.{type(labels).__name__}"
        raise TypeError(f"labels must be an int64 tensor of shape (N,), got {kind}")
    rows = labels.numel() if rows is None else rows
    if labels.shape != (rows,):
        raise ValueError(f"labels must have shape ({rows},), one per feature, got {tuple(labels.shape)}")
    if num_classes is None:
        return
    outside = (labels < 0) | (labels >= num_classes)
    require(~outside.any(), lambda: f"labels must lie in 0 .. {num_classes - 1}, got {int(labels[outside][0])}")


def check_number(value: float, name: str, low: float = 0.0, high: float = math.inf, closed: bool = False) -> None:
    """Raise unless `value` is a finite real number in (low, high), or in [low, high] when `closed`."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a real number, got {type(value).__name__}")
    inside = low <= value <= high if closed else low < value < high
    if not (inside and math.isfinite(value)):
        left, right = ("[", "]") if closed and math.isfinite(high) else ("[" if closed else "(", ")")
        raise ValueError(f"{name} must be a finite number in {left}{low:g}, {high:g}{right}, got {value!r}")


def check_count(value: int, name: str, low: int = 1, high: int | None = None) -> None:
    """Raise unless `value` is an integer >= `low`, and <= `high` if given; a bool is none."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < low or (high is not None and value > high):
        limit = f">= {low}" if high is None else f"between {low} and {high}"
        raise ValueError(f"{name} must be an integer {limit}, got {value}")


def check_choice(value: str, name: str, allowed: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of the `allowed` names."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


def require(holds: Tensor, sentence: Callable[[], str]) -> None:
    """Raise ValueError with ``sentence()`` unless the bool tensor ``holds`` () is True.

    On the CPU now. On another device the host does not wait: the device asserts it, and an error comes at a later call.
    """
    if holds.device.type != "cpu":
        torch._assert_async(holds, "features must be finite and without zero rows, labels in range")
    elif not holds:
        raise ValueError(sentence())


def check_double(**tensors: Any) -> None:
    """Raise TypeError unless every tensor, given by its name, is float64: the precision of everything proved."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.dtype != torch.float64:
            raise TypeError(f"{name} must be a float64 tensor, got {getattr(tensor, 'dtype', type(tensor).__name__)}")
