"""What is proved: machine checks, closed-form gradients, bounds and the geometry of class centres."""

from __future__ import annotations

from reprolib.theory import bounds, checks, geometry, gradients, numerics, regions
from reprolib.theory.checks import (
    CheckRecord,
    check_bound,
    check_counterexample,
    check_gradient,
    check_identity,
    subscribe,
    texts_for,
)
from reprolib.theory.numerics import gaussian, normal

__all__ = [
    "CheckRecord",
    "bounds",
    "check_bound",
    "check_counterexample",
    "check_gradient",
    "check_identity",
    "checks",
    "gaussian",
    "geometry",
    "gradients",
    "normal",
    "numerics",
    "regions",
    "subscribe",
    "texts_for",
]
