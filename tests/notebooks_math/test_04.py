"""What notebook 04 (CosFace, AM-Softmax) says beside its derivations: cases, limits, counterexamples, all in float64.

Each check raises if its statement does not hold; the formulas are those of the notebook's equations.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from reprolib import losses
from reprolib.losses import AdditiveAngular, AdditiveCosine, CosFace, MarginSoftmax, MultiplicativeAngular
from reprolib.theory import bounds, gaussian, geometry, normal, numerics
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity, texts_for
from reprolib.theory.gradients import normalise

about = texts_for("04")
ATTACK = {"draws": 200, "steps": 60}
LABELS = torch.tensor([0, 1, 2, 3, 4, 0, 2])
X, W = normal(7, 4), normal(5, 4, seed=1)
LMC = AdditiveCosine(0.35)


def real(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gram(w: Tensor) -> Tensor:
    return normalise(w) @ normalise(w).T


def off_diagonal(matrix: Tensor) -> Tensor:
    """The entries i != j, row by row, (C, C - 1)."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)].view(len(matrix), -1)


def largest(w: Tensor) -> Tensor:
    return off_diagonal(gram(w)).max()


def centre_posteriors(w: Tensor, s: float, m: float = 0.0) -> Tensor:
    """p_i = 1 / (1 + sum_{j != i} exp(s (t_ij - 1 + m))): every feature on its weight."""
    return 1 / (1 + (s * (off_diagonal(gram(w)) - 1 + m)).exp().sum(1))


def satisfied(x: Tensor, w: Tensor) -> Tensor:
    """The largest m of (4.19) for these features and weights."""
    cosines = normalise(x) @ normalise(w).T
    return off_diagonal(cosines.diagonal()[:, None] - cosines).min()


# --- section 1 --------------------------------------------------------------------------------------------------------


def test_the_share_of_a_sample_in_the_gradient_grows_by_at_most_exp_sm():
    s, m = 12.0, 0.35

    def growth(u):  # log (1 - p_m)/(1 - p_0), Q = e^u
        return (s * m + torch.log1p(u.exp()) - torch.log1p(math.exp(s * m) * u.exp())).sum()

    for side, limit, extremal in (("lower", 0.0, 40.0), ("upper", s * m, -40.0)):
        note = about(f"t-share-{side}", "0 <= log (1 - p_m)/(1 - p_0) <= s m", "(4.3)")
        check_bound(growth, limit, gaussian((1,)), side=side, extremal=real([extremal]), **note, **ATTACK)


def test_an_infinite_margin_leaves_a_finite_loss():
    c, m, s = real([0.3, 0.1, -0.2, 0.25]), 40.0, 12.0
    lowered = c - m * (torch.arange(4) == 0)
    rest = (s * (c[1:] - c[0])).logsumexp(0)
    loss = (s * lowered).logsumexp(0) - s * lowered[0]
    check_identity(loss - s * m, rest, tolerance=1e-11, **about("t-infinite", "L_m - s m -> log Q", "section 1"))


@pytest.mark.parametrize(("classes", "s"), [(2, 30.0), (10, 64.0), (10_575, 30.0)])
def test_the_pull_ends_where_the_notebook_says(classes, s):
    row = torch.full((1, classes), 0.1, dtype=torch.float64)
    row[0, 0] += 0.35 + math.log(classes - 1) / s
    row[0, 0] -= 0.35
    value = (s * row).logsumexp(1) - s * row[:, 0]
    check_identity(value, math.log(2), tolerance=1e-11, **about("t-pull", "L = log 2", "(4.4)"))


def library(margin, s: float = 12.0, dtype: torch.dtype = torch.float64) -> CosFace:
    head = CosFace(4, 5, scale=s, eps=0.0).to(dtype)
    head.margin, head.weight.data = margin, W.to(dtype)
    return head


def value_and_gradients(head: CosFace, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_(True)
    value = head(x, LABELS)
    return torch.cat([t.detach().flatten() for t in (value, *torch.autograd.grad(value, (x, head.weight)))])


def test_the_margin_outside_of_differentiation_changes_nothing():
    exact, through = (value_and_gradients(library(k), X) for k in (LMC, losses.StraightThrough(LMC)))
    check_identity(through, exact, **about("t-straight", "margin outside of autograd: same gradient", "(4.5)"))


def test_the_gradient_is_a_tangent_and_finite_on_the_weights():
    x = X.clone().requires_grad_(True)
    (dx,) = torch.autograd.grad(library(LMC)(x, LABELS), x)
    check_identity((X * dx).sum(1), torch.zeros(7, dtype=torch.float64), **about("t-tangent", "x . dL/dx = 0", "(4.6)"))
    on_weights = torch.cat((3 * W, -2 * W[:2]))
    for dtype in (torch.float32, torch.bfloat16):
        assert value_and_gradients(library(LMC, 64.0, dtype), on_weights.to(dtype)).isfinite().all()


@pytest.mark.parametrize("x", [X, torch.cat((3 * W, -2 * W[:2]))], ids=["anywhere", "on and opposite to the weights"])
def test_gradcheck_in_features_weights_and_a_learned_scale(x):
    options = {"normalize_features": True, "normalize_weights": True, "learn_scale": True, "eps": 0.0}
    head = MarginSoftmax(4, 5, margin=LMC, **options)

    def of_all(x, w, s):
        return torch.func.functional_call(head, {"weight": w, "scale": s}, (x, LABELS))

    assert torch.autograd.gradcheck(of_all, tuple(v.clone().requires_grad_() for v in (x, W, real(12.0))))


# --- section 2 --------------------------------------------------------------------------------------------------------


def test_what_each_loss_asks_of_a_sample():
    theta, arc, psi4 = torch.linspace(0.01, 3.13, 50).double(), AdditiveAngular(0.5), MultiplicativeAngular(4)
    drop = theta.cos() - arc.value_and_slope(theta.cos())[0]
    note = about("t-arcface", "cos t - cos(t + m) = 2 sin(m/2) sin(t + m/2)", "section 2")
    check_identity(drop, 2 * math.sin(0.25) * (theta + 0.25).sin(), **note)

    def angle_of(u):
        return math.pi * torch.sigmoid(u)

    top = torch.logit(real([0.5 - 0.25 / math.pi]))
    note = about("t-arcface-most", "ArcFace lowers a cosine by at most 2 sin(m/2)", "section 2")
    check_bound(
        lambda u: (angle_of(u).cos() - (angle_of(u) + 0.5).cos()).sum(),
        2 * math.sin(0.25), gaussian((1,)), side="upper", extremal=top, **note, **ATTACK,
    )  # fmt: skip
    note = about("t-a-softmax", "A-Softmax (m = 4, lambda = 5) lowers a cosine by <= 1.25 theta^2", "section 2")
    check_bound(
        lambda u: ((angle_of(u).cos() - psi4.value_and_slope(angle_of(u).cos())[0]) / 6).sum(),
        lambda u: 1.25 * angle_of(u).square().sum(),
        gaussian((1,)), side="upper", extremal=real([-12.0]), **note, **ATTACK,
    )  # fmt: skip


def test_the_cosines_of_two_weights_fill_an_ellipse():
    def slack(x, w):
        (c1, c2), g = normalise(w) @ normalise(x), gram(w)[0, 1]
        return 1 - g**2 - c1**2 - c2**2 + 2 * g * c1 * c2

    rim = (normal(2, seed=8) @ normal(2, 4, seed=9), normal(2, 4, seed=9))
    check_bound(
        slack, 0.0, gaussian((4,), (2, 4)), extremal=rim, **about("t-ellipse", "determinant", "(4.9)"), **ATTACK
    )
    c1, c2, g = torch.rand(3, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 1.8 - 0.9
    by_axes = 1 - (c1 + c2) ** 2 / (2 * (1 + g)) - (c1 - c2) ** 2 / (2 * (1 - g))
    note = about("t-axes", "axes along c1 + c2 and c1 - c2", "(4.9)")
    check_identity(by_axes, (1 - g**2 - c1**2 - c2**2 + 2 * g * c1 * c2) / (1 - g**2), tolerance=1e-11, **note)


def implemented_gap(head: MarginSoftmax, theta12: float) -> float:
    """Angle between the two points of the arc W1-W2 at which the loss of their own class is log 2."""
    head.double().weight.data.copy_(real([[1.0, 0.0], [math.cos(theta12), math.sin(theta12)]]))

    def held(t):
        return bool(head(real([[math.cos(t), math.sin(t)]]), torch.tensor([0])) <= math.log(2))

    return theta12 - 2 * numerics.bisect(held, 0.0, theta12)


def test_the_gaps_of_the_implemented_losses():
    arcs = torch.linspace(1.05, 3.05, 9, dtype=torch.float64)
    expected = {
        "LMCL": (CosFace(2, 2), 2 * torch.asin(0.35 / (2 * torch.sin(arcs / 2)))),
        "A-Softmax": (losses.ASoftmax(2, 2), 0.6 * arcs),
        "ArcFace": (losses.ArcFace(2, 2), torch.full_like(arcs, 0.5)),
    }
    for name, (head, gap) in expected.items():
        found = [implemented_gap(head, float(t)) for t in arcs]
        check_identity(found, gap, tolerance=1e-9, **about(f"t-gap-{name}", "gap of the implemented loss", "(4.10)"))


def test_below_arccos_1_minus_m_the_regions_begin_beyond_the_weights():
    theta12 = math.radians(40)
    gap = 2 * math.asin(0.35 / (2 * math.sin(theta12 / 2)))
    assert gap > theta12
    end = (theta12 - gap) / 2  # of class 1, measured from its weight towards the other: behind it
    check_identity(
        math.cos(end) - math.cos(theta12 - end), 0.35, **about("t-beyond-weight", "on the boundary", "(4.10)")
    )


# --- section 4 --------------------------------------------------------------------------------------------------------


def test_averages_of_the_posteriors_at_the_centres():
    simplex, ceiling = geometry.regular_simplex(6), math.exp(-bounds.normface_loss_bound(6, 4.0))
    note = about("t-mean", "mean of W_i.W_j >= -1/(C-1)", "CosFace supplement")
    check_bound(lambda w: off_diagonal(gram(w)).mean(), -1 / 5, gaussian((6, 5)), extremal=simplex, **note, **ATTACK)
    averages = {
        "min": lambda p: p.min(),
        "harmonic": lambda p: 1 / (1 / p).mean(),
        "geometric": lambda p: p.log().mean().exp(),
    }
    for name, average in averages.items():
        note = about(f"t-{name}", f"{name} posterior <= 1/(1 + (C-1) exp(-s C/(C-1)))", "(4.15)")
        options = {"side": "upper", "extremal": simplex, **ATTACK, **note}
        check_bound(lambda w, f=average: f(centre_posteriors(w, 4.0)), ceiling, gaussian((6, 5)), **options)
    grid = list(itertools.product((2, 10, 1000, 10_575, 85_742), (0.6, 0.9, 0.99)))
    at_eq6 = [bounds.normface_loss_bound(C, bounds.simplex_scale(C, P)) for C, P in grid]
    note = about("t-prop-2", "NormFace Prop. 2 at the scale of eq. 6 gives -log P", "CosFace eq. 6")
    check_identity(at_eq6, [-math.log(P) for _, P in grid], **note)


@pytest.mark.parametrize(("classes", "P"), [(4, 0.9), (8, 0.9), (10, 0.99)])
def test_optimised_weights_meet_eq_6_on_the_simplex(classes, P):
    s = bounds.simplex_scale(classes, P)
    generator = torch.Generator().manual_seed(classes)
    best, _ = geometry.minimise_softmax_floor(classes, classes - 1, s, generator, restarts=2)
    note = about(f"t-eq-6-{classes}", "equality for the regular simplex", "CosFace eq. 6")
    check_identity(centre_posteriors(best, s).min(), P, tolerance=1e-6, **note)


def test_more_classes_need_a_larger_scale_at_the_same_posterior():
    scales = [bounds.simplex_scale(C, 0.9) for C in (2, 3, 10, 100, 1000, 10_575, 10**6)]
    assert scales == sorted(scales)


def test_the_sharp_bounds_of_the_polygon_and_the_cross_polytope():
    def with_margin(p, s, m):
        return 1 / (1 + math.exp(s * m) * (1 / p - 1))  # (4.2)

    polygon, cross = geometry.regular_polygon(8), geometry.cross_polytope(4)
    sharp = {
        "polygon": (polygon, with_margin(bounds.polygon_probability(8, 12.0), 12.0, 0.1)),
        "cross-polytope": (cross, with_margin(bounds.cross_polytope_probability(8, 12.0), 12.0, 0.1)),
    }
    for name, (best, top) in sharp.items():
        note = about(f"t-sharp-{name}", f"no arrangement beats the {name}", "Cohn, Kumar 2007; (4.18)")
        options = {"side": "upper", "extremal": best, **ATTACK, **note}
        check_bound(lambda w: 1 / (1 / centre_posteriors(w, 12.0, 0.1)).mean(), top, gaussian(best.shape), **options)
    s10 = bounds.simplex_scale(10, 0.9)
    assert (round(s10, 2), round(bounds.polygon_scale(10, 0.9), 2)) == (3.96, 15.14)
    note = about(
        "t-eq-6-plane", "'10 classes in the plane reach P = 0.9 at the scale of eq. 6'", "CosFace eq. 6, K = 2"
    )
    check_counterexample(0.9, bounds.polygon_probability(10, s10), at_least=0.3, **note)


def test_the_sums_of_4_18():
    k, (s, m) = torch.arange(8, dtype=torch.float64), (12.0, 0.1)
    polygon = (s * ((2 * math.pi * k / 8).cos() - 1 + m * (k > 0).double())).exp().sum()
    note = about("t-4.18", "inverse posterior of the polygon, of the cross-polytope", "(4.18)")
    found = [1 / centre_posteriors(w, s, m).mean() for w in (geometry.regular_polygon(8), geometry.cross_polytope(4))]
    check_identity(found, [polygon, real(1 + 6 * math.exp(-s * (1 - m)) + math.exp(-s * (2 - m)))], **note)


# --- section 5 --------------------------------------------------------------------------------------------------------


def test_two_weights_leave_room_off_the_weights():
    a = math.radians(20)
    w = real([[math.cos(a), math.sin(a)], [math.cos(a), -math.sin(a)]])
    note = about("t-room", "x.(W_1 - W_2) <= 2 sin(theta_12/2)", "(4.20)")
    value, along = (lambda x: (normalise(x) @ (w[0] - w[1])).sum()), real([[0.0, 1.0]])
    check_bound(value, 2 * math.sin(a), gaussian((1, 2)), side="upper", extremal=along, **note, **ATTACK)


@pytest.mark.parametrize(
    ("best", "limit"),
    [
        *((geometry.regular_simplex(C, K), C / (C - 1)) for C, K in ((2, 3), (4, 3), (6, 5))),
        *((geometry.cross_polytope(K, C), 1.0) for C, K in ((5, 3), (6, 3), (8, 4))),
        *((geometry.regular_polygon(C), 1 - math.cos(2 * math.pi / C)) for C in (8, 10)),
    ],
    ids=lambda v: f"{v.shape[0]} in {v.shape[1]}-D" if isinstance(v, Tensor) else "",
)
def test_the_largest_margin_features_anywhere(best, limit):
    C, K = best.shape
    note = about(
        f"t-margin-{C}-{K}", f"{C} classes in {K}-D satisfy at most {limit:.4g}", "CosFace eq. 7; (4.21), (4.23)"
    )
    options = {"side": "upper", "extremal": (best, best), **ATTACK, **note}
    check_bound(satisfied, limit, gaussian((C, K), (C, K)), **options)


def test_radon_points():
    w = normalise(normal(7, 5, seed=4))
    null = torch.linalg.svd(torch.cat((w, torch.ones(7, 1).double()), dim=1).T).Vh[-1]
    a, b = (side.clamp(min=0) / side.clamp(min=0).sum() for side in (null, -null))
    check_identity(a @ w, b @ w, **about("t-radon", "7 points in 5-D: two hulls share a point", "(4.21)"))
    left = (a * (w - a @ w).square().sum(1)).sum()
    check_identity(
        left, 1 - (a @ w).square().sum(), **about("t-radon-norm", "sum a_i |W_i - z|^2 = 1 - |z|^2", "(4.21)")
    )


def mirror(x: Tensor, w: Tensor) -> Tensor:
    """Step 1: features beyond 90 degrees from their weight go to the near side."""
    a = (x * w).sum(-1, keepdim=True)
    return torch.where(a < 0, x - 2 * a * w, x)


def test_the_mirror_keeps_the_margin():
    def gain(x, w):
        x, w = normalise(x), normalise(w)
        w = -w * torch.sign(w @ x)[:, None]
        y = int((w @ x).argmax())
        to_others = w[y] - w[[j for j in range(len(w)) if j != y]]
        return (to_others @ mirror(x, w[y])).min() - (to_others @ x).min()

    check_bound(gain, 0.0, gaussian((3,), (5, 3)), **about("t-mirror", "step 1", "(4.22)"), **ATTACK)


def test_step_4():
    p, q = torch.rand(2, 50, generator=torch.Generator().manual_seed(5), dtype=torch.float64) * math.pi / 4
    left = p.sin() ** 2 + q.sin() ** 2 - p.sin() * q.sin()
    right = 1 - p.cos() * q.cos() + (p + q).cos() * (1 - (p - q).cos())
    check_identity(left, right, **about("t-step-4", "the trigonometric identity of step 4", "(4.22)"))


def tammes(C: int, K: int, seed: int, restarts: int = 2, steps: int = 60) -> Tensor:
    """C points spread in K dimensions, the best of some searches: a witness, no proof."""
    generator, found = torch.Generator().manual_seed(seed), []
    for restart in range(restarts):
        # a soft start always slides into one basin, a hard one into many: alternate
        points, power = geometry.random_unit(C, K, generator), (30.0, 100.0, 10.0)[restart % 3]
        while power < 4e6:

            def crowding(w, p=power):
                return (p * off_diagonal(w @ w.T)).flatten().logsumexp(0) / p

            points, power = numerics.minimise_on_sphere(crowding, points, steps), 10 * power
        found.append(points)
    return min(found, key=geometry.max_cosine)


@pytest.mark.parametrize(
    "best",
    [geometry.regular_polygon(8), geometry.regular_polygon(10), tammes(7, 3, seed=1, restarts=3)],
    ids=[8, 10, 7],
)
def test_sums_of_feature_and_weight_are_as_good(best):
    def sum_cosine(x, w):
        return off_diagonal(gram(mirror(normalise(x), normalise(w)) + normalise(w))).max()

    C, K = best.shape
    note = about(f"t-sums-{C}", "cos(x_i + W_i, x_j + W_j) <= 1 - m", "(4.22)")
    options = {"side": "upper", "extremal": (best, best), **ATTACK, **note}
    check_bound(sum_cosine, lambda x, w: 1 - satisfied(x, w).clamp(max=1.0), gaussian((C, K), (C, K)), **options)


def test_searches_find_the_largest_margins_and_none_above():
    cases = [*((C, 2) for C in (3, 5, 8, 12)), (4, 3), (6, 3), (6, 5), (8, 5), (10, 5)]
    reached = {(C, K): 1 - geometry.max_cosine(tammes(C, K, seed=C, steps=40)) for C, K in cases}
    expected = [1 - geometry.rankin_bound(C, K) for C, K in cases]
    note = about("t-tammes", "1 - cos(2 pi/C), C/(C-1), and 1 for K + 2 <= C <= 2K", "CosFace eq. 7")
    check_identity(list(reached.values()), expected, tolerance=1e-4, **note)


def test_known_arrangements_of_7_to_12_points():
    known = {7: 1 / math.tan(math.radians(40)) / math.tan(math.radians(80)), 8: (8**0.5 - 1) / 7, 9: 1 / 3, 12: 5**-0.5}
    found = [geometry.max_cosine(tammes(C, 3, seed=C, steps=40)) for C in known]
    note = about("t-known", "largest cosine of the best 7, 8, 9, 12 points", "Schuette, van der Waerden 1951")
    check_identity(found, list(known.values()), tolerance=1e-4, **note)


def test_ties_at_the_largest_margin():
    def mean_loss(w, s, m):
        return -centre_posteriors(w, s, m).log().mean()

    ties = (
        (geometry.regular_polygon(8), 1 - math.cos(math.pi / 4)),
        (geometry.cross_polytope(4), 1.0),
        (geometry.regular_simplex(8), 8 / 7),
    )
    found = [mean_loss(w, 400.0, m) for w, m in ties]
    note = about("t-tie", "at m*, s -> inf: log 3 (polygon), log(C-1) (cross-polytope), log C (simplex)", "section 5")
    check_identity(found, [math.log(3), math.log(7), math.log(8)], **note)


# --- appendix ---------------------------------------------------------------------------------------------------------


def power_sum(w: Tensor, k: int) -> Tensor:
    return (gram(w) ** k).sum()


def test_the_power_sums():
    octahedron = {"extremal": geometry.cross_polytope(3), **ATTACK}
    note = about("t-moment-2", "sum t^2 >= C^2/K", "(4.25)")
    check_bound(partial(power_sum, k=2), 36 / 3, gaussian((6, 3)), **octahedron, **note)
    note = about("t-moment-3", "sum t^3 >= 3/(K+2) sum t", "(4.25)")
    check_bound(lambda w: power_sum(w, 3) - 3 / 5 * power_sum(w, 1), 0.0, gaussian((6, 3)), **octahedron, **note)
    w, eye = normalise(normal(9, 4, seed=6)), torch.eye(4).double()
    T, v = torch.einsum("ia,ib,ic->abc", w, w, w), w.sum(0)
    S = sum(torch.einsum(rule, v, eye) for rule in ("a,bc->abc", "b,ac->abc", "c,ab->abc"))
    note = about("t-moment-3-norm", "|T - S/(K+2)|^2 = sum t^3 - 3/(K+2) sum t", "(4.25)")
    check_identity((T - S / 6).square().sum(), power_sum(w, 3) - 3 / 6 * power_sum(w, 1), **note)


def test_welch_is_about_absolute_cosines():
    def welch(C, K):
        return math.sqrt((C - K) / (K * (C - 1)))

    note = about("t-welch", "max |cos| >= sqrt((C-K)/(K(C-1)))", "Welch 1974")
    options = {"extremal": geometry.regular_simplex(4), **ATTACK, **note}
    check_bound(lambda w: off_diagonal(gram(w)).abs().max(), welch(4, 3), gaussian((4, 3)), **options)
    note = about("t-welch-signed", "'max cos >= Welch's bound': 1024 classes in 512-D", "appendix")
    check_counterexample(welch(1024, 512), geometry.max_cosine(geometry.cross_polytope(512)), at_least=0.03, **note)


def levenshtein(sigma: float, K: int) -> float:
    """Right side of (4.26): at most so many unit vectors with pairwise cosines <= sigma."""
    return K * (1 - sigma) * (2 + (K + 1) * sigma) / (1 - K * sigma**2)


def test_levenshtein():
    def certificate(sigma, K):
        b = (1 + sigma) / (1 + K * sigma)
        return (1 - sigma) * (1 + b) ** 2 / ((2 * b - sigma) / K - sigma * b**2)

    grid = [(part / math.sqrt(K), K) for K in (2, 3, 5, 64, 512) for part in (0.0, 0.2, 0.5, 0.8)]
    note = about("t-levenshtein", "f(1)/f_0 at the best b", "(4.26)")
    check_identity([certificate(*g) for g in grid], [levenshtein(*g) for g in grid], tolerance=1e-11, **note)
    half_cube = real([v for v in itertools.product((1.0, -1.0), repeat=5) if math.prod(v) > 0])
    note = about("t-levenshtein-16", "16 classes in 5-D: max cos >= 1/5, met by the half cube", "(4.26)")
    check_bound(largest, 0.2, gaussian((16, 5)), extremal=half_cube, **note, **ATTACK)
    face = geometry.rankin_bound(10_575, 512)
    note = about("t-levenshtein-face", "10,575 classes in 512-D: max cos >= 0.0246", "(4.26)")
    check_identity([levenshtein(face, 512), levenshtein(0.2, 5)], [10_575.0, 16.0], tolerance=1e-9, **note)
    assert round(face, 4) == 0.0246


# --- section 9 --------------------------------------------------------------------------------------------------------


def test_the_loss_grows_with_the_margin():
    values = [
        float(CosFace(4, 5, margin=m, scale=12.0, generator=torch.Generator().manual_seed(0)).double()(X, LABELS))
        for m in (0.0, 0.1, 0.35)
    ]
    assert values == sorted(values)


def test_a_gradient_of_the_margin_would_take_it_to_zero():
    def of_margin(m):
        cosine = normalise(X) @ normalise(W).T
        own = torch.nn.functional.one_hot(LABELS, 5).double()
        return torch.nn.functional.cross_entropy(12 * (cosine - m * own), LABELS)

    def slope(m):
        own = torch.nn.functional.one_hot(LABELS, 5).bool()
        p = (12 * (normalise(X) @ normalise(W).T - m * own)).softmax(1)[own]
        return (12 * (1 - p)).mean()

    check_gradient(of_margin, real(0.35), slope, **about("t-margin-slope", "dL/dm = s (1 - p_y) > 0", "(4.5)"))
    assert float(slope(real(0.35))) > 0
