"""Mean ± s.d. against its formula written out."""

from __future__ import annotations

import numpy as np
import pytest

from reprolib.evaluation import mean_sd


def test_mean_sd_is_of_the_sample():
    assert mean_sd([1.0, 2.0, 6.0]) == "3.0 ± 2.6"
    assert mean_sd(np.array([0.5, 0.7]), 3) == "0.600 ± 0.141"
    assert mean_sd([4.26]) == "4.3"


@pytest.mark.parametrize("values", [[], [[1.0], [2.0]]])
def test_wrong_arguments(values):
    with pytest.raises(ValueError):
        mean_sd(values)
