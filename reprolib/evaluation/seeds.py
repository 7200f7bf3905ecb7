"""Numbers that come one a seed (or split): their mean ± s.d. as text; `decisions` compares two lists of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def mean_sd(values: Sequence[float] | np.ndarray, digits: int = 1) -> str:
    """``"12.3 ± 0.4"``: mean and standard deviation (n - 1) over seeds; of one seed the value alone."""
    numbers = np.asarray(values, dtype=float)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"values must be one number a seed, got shape {numbers.shape}")
    spread = f" ± {numbers.std(ddof=1):.{digits}f}" if len(numbers) > 1 else ""
    return f"{numbers.mean():.{digits}f}{spread}"
