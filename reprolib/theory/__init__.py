"""What is proved: machine checks, closed-form gradients, bounds and the geometry of class centres."""

# a name imported as itself is public, for type checkers, too
from reprolib.theory import (
    arcs as arcs,
    bounds as bounds,
    checks as checks,
    geometry as geometry,
    gradients as gradients,
    numerics as numerics,
    regions as regions,
)
from reprolib.theory.checks import (
    CheckRecord as CheckRecord,
    check_bound as check_bound,
    check_counterexample as check_counterexample,
    check_counterexamples as check_counterexamples,
    check_gradient as check_gradient,
    check_identities as check_identities,
    check_identity as check_identity,
    subscribe as subscribe,
    texts_for as texts_for,
)
from reprolib.theory.numerics import gaussian as gaussian, normal as normal
