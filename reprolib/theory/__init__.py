"""What is proved: machine checks, closed-form gradients, bounds and the geometry of class centres."""

from __future__ import annotations

from reprolib.theory import bounds, checks, geometry, gradients, regions
from reprolib.theory.checks import (
    CheckRecord,
    check_bound,
    check_counterexample,
    check_gradient,
    check_identity,
    subscribe,
)

__all__ = [
    "CheckRecord",
    "bounds",
    "check_bound",
    "check_counterexample",
    "check_gradient",
    "check_identity",
    "checks",
    "geometry",
    "gradients",
    "regions",
    "subscribe",
]
