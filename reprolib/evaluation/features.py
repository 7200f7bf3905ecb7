"""What is compared: features merged with those of the flipped image, centred features, cosines of pairs.

Where the published evaluations differ before any threshold is chosen. All rows that come back are unit
vectors, so that their dot product is the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from .._checks import Array, feature_rows, label_array, row_tensor, unit_rows
from .verification import fold_ids

_CELLS = 1 << 22  # products held at once


def unit_tensor(features: Array, name: str) -> torch.Tensor:
    """Unit rows of `features` (N, d) in float32, or float64 for float64."""
    rows = row_tensor(feature_rows(features, name))
    return unit_rows(rows if rows.dtype == torch.float64 else rows.float(), name)


def unit_array(features: Array) -> np.ndarray:
    """`unit_tensor` on the CPU, as an array."""
    return unit_tensor(features.cpu() if isinstance(features, torch.Tensor) else features, "features").numpy()


def _both(first: Any, second: Any, names: tuple[str, str]) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Two feature matrices of one shape as tensors of one dtype (float32 or more), and the kind given."""
    kinds = [feature_rows(values, name) for values, name in zip((first, second), names, strict=True)]
    shapes = [tuple(values.shape) for values in kinds]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{names[0]} and {names[1]} must have the same shape, got {shapes[0]} and {shapes[1]}")
    a, b = map(row_tensor, kinds)
    dtype = torch.float64 if torch.float64 in (a.dtype, b.dtype) else torch.float32
    return a.to(dtype), b.to(a.device, dtype), kinds[0]


@torch.no_grad()
def _merged(
    features: Array, flipped: Array, unit_first: bool, merge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
) -> Array:
    first, second, kind = _both(features, flipped, ("features", "flipped"))
    if unit_first:
        first, second = unit_rows(first, "features"), unit_rows(second, "flipped features")
    rows = unit_rows(merge(first, second), "merged features")
    return rows if isinstance(kind, torch.Tensor) else rows.numpy()


def flip_sum(features: Array, flipped: Array, *, unit_first: bool = False) -> Array:
    """Features (N, d) of images plus those of the mirrored images, L2-normalised: (f + f') / |f + f'|.

    The order is sum, then normalise (insightface's evaluation). With `unit_first` both are normalised before
    the sum as well, so that neither image weighs more than the other. Returns (N, d) in the kind of
    `features` (half precision gives float32). Symmetric: swapping image and mirror changes nothing.

    Raises ValueError for wrong shapes, NaN, or a sum of zero; TypeError for a dtype that is not floating.
    """
    return _merged(features, flipped, unit_first, torch.add)


def flip_concat(features: Array, flipped: Array, *, unit_first: bool = False) -> Array:
    """Features (N, d) of images beside those of the mirrored images, L2-normalised: [f, f'] / |[f, f']|.

    The order is concatenate, then normalise (SphereFace's evaluation, which centres in between: give the
    result to `centred_cosines`). With `unit_first` each half is normalised first; the cosine of two results
    is then the mean of the cosine of the images and that of the mirrored images. Returns (N, 2d) in the kind
    of `features` (half precision gives float32). Raises as `flip_sum`.
    """
    return _merged(features, flipped, unit_first, lambda first, second: torch.cat((first, second), dim=1))


@torch.no_grad()
def pair_cosines(first: Array, second: Array) -> np.ndarray:
    """Cosines (n,) float64 of row i of `first` (n, d) with row i of `second` (n, d); rows need not be unit."""
    a, b, _ = _both(first, second, ("first", "second"))
    a, b = unit_rows(a.double(), "first"), unit_rows(b.double(), "second")
    return (a * b).sum(dim=1).clamp(-1, 1).cpu().numpy()


@torch.no_grad()
def centred_cosines(first: Array, second: Array, folds: Array) -> np.ndarray:
    """Cosines (k, n) of the pairs after centring on the training folds of each of the k folds.

    Pair i is row i of `first` and of `second`, both (n, d); `folds` as in `verification_accuracy`, which takes the
    result as it is. In row f the mean of all 2 (n - n_f) features of the other folds' pairs is subtracted from both
    features before their cosine is taken: SphereFace's released evaluation. The mean sees no pair of the fold that is
    judged.

    Raises ValueError for shapes, NaN, fewer than two folds, or a feature that equals the mean.
    """
    a, b, _ = _both(first, second, ("first", "second"))
    a, b = a.double().cpu(), b.double().cpu()
    ids = fold_ids(folds, len(a))
    rows = []
    for fold in range(ids.max() + 1):
        train = torch.from_numpy(ids != fold)
        # mean over both sides of the training pairs, one side has as many rows as the other
        mean = (a[train].mean(dim=0) + b[train].mean(dim=0)) / 2
        rows.append(pair_cosines(a - mean, b - mean))
    return np.stack(rows)


def pair_blocks(unit: np.ndarray, people: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cosines of the pairs of unit rows i < j and the people of both, block by block: (0, 1), (0, 2) .. (1, 2) .."""
    step = max(1, _CELLS // len(unit))
    for start in range(0, len(unit), step):
        cosines = unit[start : start + step] @ unit[start:].T
        later = np.arange(cosines.shape[1]) > np.arange(len(cosines))[:, None]
        first, second = np.broadcast_arrays(people[start : start + step, None], people[start:])
        yield cosines[later], first[later], second[later]


def all_pairs_cosines(features: Array, labels: Array) -> tuple[np.ndarray, np.ndarray]:
    """Cosines of all N(N-1)/2 pairs of rows: (genuine, impostor), float32 (float64 for float64 features).

    `features` (N, d), integer identities `labels` (N,). Made block by block; the results take 4 bytes a pair (188 MB
    for the 47 million pairs of a BLUFR trial), twice that while they are put together. Either may be empty.
    """
    unit = unit_array(features)
    labels = label_array(labels, "labels", len(unit))
    genuine, impostor = [], []
    for cosines, first, second in pair_blocks(unit, labels):
        same = first == second
        genuine.append(cosines[same])
        impostor.append(cosines[~same])
    return np.concatenate(genuine), np.concatenate(impostor)
