"""Identification and verification against very many distractors (MegaFace), in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from .._checks import Array, check_count, far_values, feature_rows, float_array, row_tensor, unit_rows
from .features import unit_tensor
from .intervals import Estimate, proportion
from .roc import allowed_false_accepts, rates_above

_BLOCK = 1 << 22  # cosines, or feature values, held at once
_HALF_UNIT = 2.0**-9  # largest relative error of rounding to bfloat16


def _screening_dtype(probes: torch.Tensor) -> torch.dtype:
    """bfloat16 where the processor multiplies it and torch is let to use that: four times as fast as float32."""
    able = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    fast = torch.backends.cpu.get_cpu_capability() == "AVX512" and able()
    if fast and probes.dtype == torch.float32 and probes.device.type == "cpu":
        return torch.bfloat16
    return probes.dtype


def _tie(dtype: torch.dtype) -> float:
    """What the rounding of unit vectors in `dtype` may do to a cosine: so much apart counts as a tie."""
    return 4 * torch.finfo(dtype).eps


def _slack(dtype: torch.dtype, dim: int) -> float:
    """Bound on the error of a cosine of unit vectors from a product in `dtype`.

    In bfloat16 with u = 2^-9: factors rounded, (2u + u^2) sum_k |p_k d_k| <= 2u + u^2; the result rounded, u; sums in
    float32, dim 2^-24. Twice the last, and a hundredth of u, cover the unit vectors' own rounding.
    """
    if dtype == torch.bfloat16:
        return 3.01 * _HALF_UNIT + dim * 2.0**-23
    return _tie(dtype) * (1 + dim**0.5)


def _products(
    probes: torch.Tensor,
    distractors: Array,
    start: int,
    stop: int,
    wanted: Callable[[], torch.Tensor],
    dtype: torch.dtype | None = None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """(rows, cosines, chunk): cosines of the `wanted` rows of `probes` with chunks of distractors `start` to `stop`.

    `wanted` is asked anew for each chunk, which holds unit vectors. Chunk and cosines lie in memory that the next ones
    are written over: fresh memory of that size would come from the system page by page. The products are made in
    `dtype` (default: that of `probes`), the chunk is in the dtype of `probes`.
    """
    dim, dtype = probes.shape[1], dtype or probes.dtype
    factors = probes.to(dtype)
    columns = max(1, min(_BLOCK // dim, 1 << 14, stop - start))
    at_once = max(1, _BLOCK // columns)
    units, products = probes.new_empty(columns, dim), factors.new_empty(min(at_once, len(probes)) * columns)
    halves = factors.new_empty(columns if dtype != probes.dtype else 0, dim)
    for left in range(start, stop, columns):
        part = distractors[left : min(left + columns, stop)]
        chunk = units[: len(part)]
        if isinstance(part, np.ndarray) and chunk.device.type == "cpu":
            with np.errstate(over="ignore"):  # what the type of the probes does not hold is refused as infinite
                np.copyto(chunk.numpy(), part, casting="same_kind")
        else:
            chunk.copy_(row_tensor(part))
        unit_rows(chunk, "distractors", out=chunk)
        factor = chunk if dtype == probes.dtype else halves[: len(part)].copy_(chunk)
        for rows in wanted().split(at_once):
            cosines = products[: len(rows) * len(chunk)].view(len(rows), len(chunk))
            yield rows, torch.mm(factors[rows], factor.T, out=cosines), chunk


def _rivals(
    cosines: torch.Tensor, mate: torch.Tensor, probes: torch.Tensor, mates: torch.Tensor, chunk: torch.Tensor, k: int
) -> torch.Tensor:
    """How many cosines in each row are >= that of the mate, at least up to `k`, with close calls decided in float64.

    The matrix product rounds differently from a single dot product, so that a distractor equal to the mate
    would win or lose by chance. What is left is the rounding of the unit vectors, `_tie`.
    """
    tie, slack = _tie(probes.dtype), _slack(cosines.dtype, probes.shape[1])
    ahead = torch.zeros(len(cosines), dtype=torch.int64, device=cosines.device)
    # a row's maximum is one cheap pass; few rows reach their mate and are counted
    rows = torch.nonzero(cosines.amax(dim=1) >= mate - slack)[:, 0]
    cosines, mate = cosines[rows].to(mate.dtype), mate[rows]
    ahead[rows] = (cosines > mate[:, None] + slack).sum(dim=1)
    reached = (cosines >= mate[:, None] - slack).sum(dim=1)
    for i in torch.nonzero((reached > ahead[rows]) & (ahead[rows] < k))[:, 0].tolist():
        row = int(rows[i])
        close = torch.nonzero((cosines[i] - mate[i]).abs() <= slack)[:, 0]
        # <p, d> >= <p, b>  <=>  <p, d - b> >= 0
        ahead[row] += ((chunk[close].double() - mates[row].double()) @ probes[row].double() >= -tie).sum()
    return ahead


@torch.no_grad()
def distractor_identification(
    probes: Array,
    mates: Array,
    distractors: Array,
    *,
    k: int = 1,
    sizes: Sequence[int] | None = None,
    level: float = 0.95,
) -> Estimate | list[Estimate]:
    """Rank-k identification among N distractors (MegaFace challenge 1), by cosine, in bounded memory.

    Row i of `probes` (P, d) and of `mates` (P, d) are two images of one person; `distractors` (N, d) show
    other people. For each row the gallery is {mate} + all distractors; the trial succeeds if fewer than k
    distractors score as high as the mate (a tie counts against the probe). MegaFace gives one row to each ordered
    pair of different probe images of one person, and three random galleries of each size (`summarise_splits`
    puts their rates together). `sizes` = (10, 100, ..) gives a
    list, for galleries of the first 10, 100, .. distractors. Features need not be normalised. Beside the data
    and unit copies of `probes` and `mates`, some 100 MiB are used whatever N is: `distractors` may be a
    memory-mapped array, and is moved to the device of `probes` block by block. Products are in the dtype of
    `probes` (TF32 must be off, torch's default), or in bfloat16 where the processor is fast at that; what is closer
    than the bound on their error is decided in float64, so the result is the same.

    Wilson interval on the P trials; trials that share an image are not independent, it is then too narrow.
    """
    probes, mates = feature_rows(probes, "probes"), feature_rows(mates, "mates")
    distractors = feature_rows(distractors, "distractors")
    if probes.shape != mates.shape or probes.shape[1] != distractors.shape[1]:
        raise ValueError(
            f"probes and mates must be (P, d) and distractors (N, d), got {tuple(probes.shape)}, "
            f"{tuple(mates.shape)} and {tuple(distractors.shape)}"
        )
    check_count(k, "k")
    wanted = [len(distractors)] if sizes is None else list(sizes)
    for size in wanted:
        check_count(size, "every entry of sizes", high=len(distractors))
    if not wanted:
        raise ValueError("sizes must not be empty")
    probes = unit_tensor(probes, "probes")
    mates = unit_rows(row_tensor(mates).to(probes), "mates")
    mate = (probes * mates).sum(dim=1)
    ahead = torch.zeros(len(probes), dtype=torch.int64, device=probes.device)
    hits: dict[int, int] = {}
    start = 0

    def undecided() -> torch.Tensor:  # a probe with k rivals has failed for good
        return torch.nonzero(ahead < k)[:, 0]

    for size in sorted(set(wanted)):
        for rows, cosines, chunk in _products(probes, distractors, start, size, undecided, _screening_dtype(probes)):
            ahead[rows] += _rivals(cosines, mate[rows], probes[rows], mates[rows], chunk, k)
        hits[size] = int((ahead < k).sum())
        start = size
    results = [proportion(hits[size], len(probes), level=level, note=f"{size} distractors") for size in wanted]
    return results[0] if sizes is None else results


@torch.no_grad()
def distractor_verification(
    genuine: Array, probes: Array, distractors: Array, far: float | Sequence[float], *, level: float = 0.95
) -> Any:
    """`tar_at_far(genuine, c, far)`, c the cosines of all `probes` (P, d) with all `distractors` (N, d).

    MegaFace's verification: TAR at FAR = 1e-6 over billions of impostor pairs, which are made block by block
    and of which only the floor(far * P * N) + 1 largest are kept. `genuine` (G,) are the cosines of the
    genuine pairs. Rule, interval and `supported` as in `tar_at_far`. Cosines are in the dtype of `probes`
    (half precision in float32).
    """
    genuine = float_array(genuine, "genuine", 1)
    probes, distractors = feature_rows(probes, "probes"), feature_rows(distractors, "distractors")
    if probes.shape[1] != distractors.shape[1]:
        raise ValueError(
            "probes (P, d) and distractors (N, d) must share d, got "
            f"{tuple(probes.shape)} and {tuple(distractors.shape)}"
        )
    rates, scalar = far_values(far)
    pairs = len(probes) * len(distractors)
    allowed = allowed_false_accepts(rates, pairs)
    probes = unit_tensor(probes, "probes")
    keep = min(int(allowed.max()) + 1, pairs)
    parts: list[np.ndarray] = []
    held, floor = 0, -np.inf
    everyone = torch.arange(len(probes), device=probes.device)
    for _, cosines, _ in _products(probes, distractors, 0, len(distractors), lambda: everyone):
        reaching = cosines[cosines.amax(dim=1) > floor]
        part = reaching[reaching > floor].cpu().numpy()
        parts.append(part)
        held += len(part)
        if held > keep + _BLOCK:
            largest = np.concatenate(parts)
            largest = np.partition(largest, held - keep)[held - keep :]
            parts, held, floor = [largest], keep, float(largest[0])
    largest = np.sort(np.concatenate(parts))[::-1]
    thresholds = [float(largest[rank]) if rank < pairs else -np.inf for rank in allowed]
    results = rates_above(genuine, thresholds, rates, len(genuine), pairs, level)
    return results[0] if scalar else results
