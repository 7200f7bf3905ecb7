"""What notebook 05 (ArcFace) says beside its derivations: cases, limits and counterexamples, all in float64.

Each check raises if its statement does not hold; the formulas are those of the notebook's equations.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

from reprolib import losses
from reprolib.losses import AdditiveAngular, AdditiveCosine, CombinedAngular, MultiplicativeAngular, StraightThrough
from reprolib.losses.margins import GUARDS
from reprolib.theory import gaussian, geometry, normal
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity, texts_for
from reprolib.theory.gradients import normalise, psi

about = texts_for("05")
M, PI = 0.5, math.pi
ATTACK = {"draws": 200, "steps": 60}
COMBINED = {"SphereFace 1.35": (1.35, 0.0, 0.0), "CM1": (1.0, 0.3, 0.2), "CM2": (0.9, 0.4, 0.15)}


def real(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def arc(degrees: float) -> Tensor:
    """Point on one great circle of the sphere in three dimensions."""
    return real([math.cos(math.radians(degrees)), math.sin(math.radians(degrees)), 0.0])


def slope(t: Tensor) -> Tensor:
    return (t + M).sin() / t.sin()


def guarded(guard: str, cosine: Tensor) -> tuple[Tensor, Tensor]:
    return AdditiveAngular(M, guard).value_and_slope(cosine)


GRID = torch.linspace(-1, 1, 4001, dtype=torch.float64)


# --- section 1 --------------------------------------------------------------------------------------------------------


def test_an_angle_is_a_length():
    x, w = (normalise(normal(300, 16, seed=k)) for k in (5, 6))
    theta = geometry.angle_between(x, w)
    check_identity((x - w).norm(dim=1), 2 * (theta / 2).sin(), **about("t1", "|x - W| = 2 sin(t/2)"))
    walk = torch.linspace(0, 1, 4001, dtype=torch.float64)[:, None] * theta[0]
    path = walk.cos() * w[0] + walk.sin() * (x[0] - theta[0].cos() * w[0]) / theta[0].sin()
    length = (path[1:] - path[:-1]).norm(dim=1).sum()
    check_identity(length, theta[0], tolerance=1e-6, **about("t2", "4000 chords sum to theta", "sec. 1.1"))


def test_the_addition_formula_is_the_arccos_form():
    value = guarded("none", GRID)[0]
    check_identity(value, (GRID.arccos() + M).cos(), **about("t3", "cos(arccos(c) + m)", "(5.2)"))


def test_landmarks_of_the_slope():
    marks = real([(PI - M) / 2, PI / 2, PI - M])
    check_identity(slope(marks), real([1, math.cos(M), 0]), **about("t4", "D = 1, cos m, 0", "sec. 1.2"))
    t = torch.linspace(0.02, 3.1, 23, dtype=torch.float64)
    cot = math.cos(M) + math.sin(M) / t.tan()
    check_identity(cot, slope(t), **about("t5", "D = cos m + sin m cot t", "(5.3)"))
    ends = 1e-7 * slope(real([1e-7, PI - 1e-7]))
    note = about("t6", "t D -> sin m, (pi - t) D -> -sin m", "(5.3)")
    check_identity(ends, real([1, -1]) * math.sin(M), tolerance=1e-6, **note)
    assert math.degrees((PI - M) / 2) == pytest.approx(75.7, abs=0.05)
    assert math.degrees(PI - M) == pytest.approx(151.4, abs=0.05)


def test_the_cusp_and_what_is_left_of_it_at_the_papers_size():
    tiny = real([1e-6, 1e-5])
    cone = ((tiny + M).cos() - math.cos(M)) / tiny
    check_identity(cone, -math.sin(M), tolerance=1e-5, **about("t7", "slope along any way out of 0: -sin m"))
    left = 10574 * math.exp(-64 * math.cos(M)) / (1 + 10574 * math.exp(-64 * math.cos(M)))
    assert left == pytest.approx(4e-21, rel=0.1)


def test_no_margin_gives_nan_at_the_ends_in_any_precision():
    margins = [AdditiveAngular(M, g) for g in GUARDS] + [CombinedAngular(*m) for m in COMBINED.values()]
    margins += [StraightThrough(AdditiveAngular(M)), AdditiveCosine(0.35)]
    turned = torch.tensor([[2.0, 0, 0, 0], [-2.0, 0, 0, 0], [1.0, 1e-4, 0, 0]])
    for dtype, margin in itertools.product((torch.float32, torch.bfloat16), margins):
        head = losses.MarginSoftmax(4, 3, margin=margin, normalize_features=True, normalize_weights=True, scale=64.0)
        head.weight.data, x = torch.eye(3, 4), turned.to(dtype).requires_grad_()
        value = head(x, torch.tensor([0, 0, 0]))
        for part in (value, *torch.autograd.grad(value, [x, head.weight])):
            assert torch.isfinite(part).all(), (margin, dtype)


def gradient_near_the_class(theta: float, sine: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype) -> float:
    """Largest |dL/dx| at angle theta, s = 4, three classes, |x| = 2, with D from this sine, by (5.5), (5.6)."""
    w = torch.eye(3, 4, dtype=dtype)
    x = real([math.cos(theta), math.sin(theta), 0, 0]).to(dtype)
    c = w @ x
    sin = sine(c[0], w[0] - c[0] * x)
    z = 4 * torch.stack([c[0] * math.cos(M) - sin * math.sin(M), c[1], c[2]])
    g = 4 * (z.softmax(0) - torch.tensor([1.0, 0, 0], dtype=dtype))
    g = torch.stack([g[0] * (math.cos(M) + math.sin(M) * c[0] / sin), g[1], g[2]])
    return float(((g @ w - (g @ c) * x) / 2).abs().max())


def test_the_gradient_at_a_ten_thousandth_of_a_radian():
    by_cosine = gradient_near_the_class(1e-4, lambda c, rest: (1 - c * c).sqrt(), torch.float64)
    assert by_cosine == pytest.approx(0.1105, abs=5e-5)
    by_chord = gradient_near_the_class(1e-4, lambda c, rest: rest.norm(), torch.float32)
    assert by_chord == pytest.approx(by_cosine, abs=1e-4)
    assert float(torch.tensor(math.cos(1e-4), dtype=torch.float32)) == 1.0
    at_a_hundredth = gradient_near_the_class(1e-2, lambda c, rest: rest.norm(), torch.float64)
    assert at_a_hundredth == pytest.approx(0.1169, abs=5e-5)


# --- section 2 --------------------------------------------------------------------------------------------------------


def test_members_of_the_family():
    inner = GRID[1:-1]
    family = [CombinedAngular(1.0, 0.0, 0.0), CombinedAngular(1.0, M, 0.0), CombinedAngular(1.0, 0.0, 0.35)]
    members = [losses.NoMargin(), AdditiveAngular(M), AdditiveCosine(0.35)]
    for one, member in zip(family, members, strict=True):
        (value, steep), (wanted, wanted_slope) = (phi.value_and_slope(inner) for phi in (one, member))
        check_identity(value, wanted, **about("t8", "values", "(5.7)"))
        sine = inner.arccos().sin()
        check_identity(steep * sine, wanted_slope * sine, tolerance=1e-10, **about("t9", "slopes", "(5.7)"))
    for m1, m2, m3 in COMBINED.values():
        flat = CombinedAngular(m1, m2, m3).value_and_slope(real([math.cos((PI - m2) / m1)]))[1]
        check_identity(flat, 0.0, tolerance=1e-10, **about("t10", "they turn at (pi - m2)/m1", "(5.7)"))


def test_what_the_margin_takes():
    def taken(t):
        return t.cos() - (t + M).cos()

    limit = {"side": "upper", "extremal": real((PI - M) / 2)} | ATTACK
    note = about("t11", "cos t - cos(t + m) <= 2 sin(m/2)", "(5.8)")
    check_bound(taken, 2 * math.sin(M / 2), lambda g: PI * torch.rand((), generator=g).double(), **limit, **note)
    check_identity(taken(real(PI - M / 2)), 0.0, **about("t12", "nothing at pi - m/2", "(5.8)"))
    check_counterexample(0.0, taken(real(PI - 0.1)), **about("t13", "'the target is never made easier'", "(5.8)"))
    mixed = MultiplicativeAngular(4).value_and_slope(GRID, strength=1 / 6)[0]
    wanted = (5 * GRID + psi(GRID.arccos(), 4)) / 6
    check_identity(mixed, wanted, tolerance=1e-9, **about("t14", "SphereFace at lambda = 5", "SphereFace"))


def test_the_cap_of_random_directions():
    low = [geometry.cap_fraction(M, d) for d in (2, 3)]
    check_identity(low, [M / PI, (1 - math.cos(M)) / 2], **about("t15", "F_2, F_3", "(5.9)"))
    for d in (64, 512):
        inside, whole = (
            integrate.quad(lambda t, d: math.sin(t) ** (d - 2), 0, end, (d,), epsabs=0)[0] for end in (M, PI)
        )
        found = math.log10(geometry.cap_fraction(M, d))
        check_identity(found, math.log10(inside / whole), tolerance=1e-8, **about("t16", "log10 F_d", "(5.9)"))
    assert geometry.cap_fraction(M, 64) < 1e-21
    for d, share in zip((2, 3), low, strict=True):
        drawn = geometry.random_unit(100_000, d, torch.Generator().manual_seed(d))[:, 0].clamp(-1, 1).arccos()
        assert float((drawn > PI - M).double().mean()) == pytest.approx(share, abs=5e-3)


def test_the_cap_is_below_half_a_power_of_the_sine():
    nodes, factors = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(80))

    def slack(u):
        ends = PI / 2 * torch.sigmoid(u), real(PI)
        inside, whole = (end / 2 * factors @ (end / 2 * (nodes + 1)).sin() ** 6 for end in ends)
        return 0.5 * ends[0].sin() ** 7 - inside / whole

    note = about("t17", "F_8(m) <= sin^7(m)/2; equal at pi/2", "(5.9)")
    check_bound(slack, 0.0, gaussian(()), extremal=real(40.0), draws=200, steps=60, **note)


def test_hard_never_jumps_up_below_its_limit():
    def g(u):
        m = PI / 2 * torch.sigmoid(u)
        return m.cos() + m * m.sin()

    m = torch.linspace(0, 3, 7, dtype=torch.float64)
    note = about("t18", "d(cos m + m sin m)/dm = m cos m", "sec. 2.1")
    check_gradient(lambda m: (m.cos() + m * m.sin()).sum(), m, lambda m: m * m.cos(), **note)
    note = about("t19", "cos m + m sin m >= 1 on [0, pi/2]", "sec. 2.1")
    check_bound(g, 1.0, gaussian(()), extremal=real(-45.0), **note, **ATTACK)
    note = about("t20", "'for every m' (here 2.5)", "sec. 2.1")
    check_counterexample(1.0, math.cos(2.5) + 2.5 * math.sin(2.5), **note)


def test_clamp_and_mirror_join_smoothly_and_easy_rises():
    for guard in ("clamp", "mirror"):
        value, steep = guarded(guard, real([math.cos(PI - M - 1e-9), math.cos(PI - M + 1e-9)]))
        check_identity(value, -1.0, tolerance=1e-7, **about("t21", "value -1", "sec. 2.1"))
        check_identity(steep, 0.0, tolerance=1e-7, **about("t22", "slope 0", "sec. 2.1"))
    before, after = guarded("easy", real([1e-9, -1e-9]))[0]
    check_counterexample(after, before, **about("t23", "'easy never rises with theta'", "sec. 2.1"))
    u = GRID.arccos() + M
    k = (u / PI).floor()
    mirror = guarded("mirror", GRID)[0]
    check_identity(mirror, (1 - 2 * k) * u.cos() - 2 * k, **about("t24", "psi of theta + m", "sec. 2.1"))


def test_which_guards_fall_everywhere():
    theta = torch.linspace(0, PI, 4001, dtype=torch.float64)
    falls = {g: bool((guarded(g, theta.cos())[0].diff() <= 1e-12).all()) for g in GUARDS}
    assert falls == {"none": False, "hard": True, "easy": False, "clamp": True, "mirror": True}


def test_guards_are_one_function_up_to_a_right_angle_and_four_of_them_up_to_pi_minus_m():
    inner = torch.linspace(0.01, 1.57, 50, dtype=torch.float64).cos()
    further = torch.linspace(0.01, PI - M - 1e-6, 50, dtype=torch.float64).cos()
    for guard in GUARDS:
        assert torch.equal(guarded(guard, inner)[0], guarded("none", inner)[0])
        if guard != "easy":
            assert torch.equal(guarded(guard, further)[0], guarded("none", further)[0])
            assert torch.equal(guarded(guard, further)[1], guarded("none", further)[1])


def test_slopes_of_the_guards():
    points = real([0.3, 1.2, 1.7, 2.2, 2.7, 2.9, 3.0]).cos()
    for guard in GUARDS:
        note = about("t25", f"slope of {guard}", "sec. 2.1")

        def value(c, guard=guard):
            return guarded(guard, c)[0].sum()

        check_gradient(value, points, lambda c, guard=guard: guarded(guard, c)[1], **note)
    assert float((real(PI - 0.2) + M).sin()) < 0  # beyond pi - m the pull of none has changed its sign


# --- section 3 --------------------------------------------------------------------------------------------------------


def test_gaps_on_the_arc():
    apart = [math.radians(degrees) for degrees in (60, 90, 120, 150, 180)]
    found = [geometry.boundary_gap(lambda t: math.cos(t + M), t12) for t12 in [0.55, *apart]]
    check_identity(found, [M] * 6, **about("t26", "ArcFace: m", "(5.10)"))
    found = [geometry.boundary_gap(lambda t: float(psi(real(t), 4)), t12) for t12 in apart]
    check_identity(found, [0.6 * t12 for t12 in apart], **about("t27", "A-Softmax: 3/5 theta12", "(5.10)"))
    twin = math.sqrt(2) * math.sin(M / 2)
    assert twin == pytest.approx(0.34988, abs=5e-6)
    found = geometry.boundary_gap(lambda t: math.cos(t) - twin, PI / 2)
    check_identity(found, M, **about("t28", "at 90 degrees CosFace 0.34988 has the gap 0.5", "sec. 3"))


def test_cosfaces_regions_are_kept_apart_by_a_slab():
    def excess(x, y, w1, w2):
        return (x - y).norm() * (w1 - w2).norm() - (w1 - w2) @ (x - y)

    tight = (arc(0) - arc(90), arc(90) - arc(0), arc(0), arc(90))
    note = about("t29", "|x - y| |Wi - Wj| >= (Wi - Wj)(x - y)", "sec. 3")
    check_bound(excess, 0.0, gaussian(*[(3,)] * 4), extremal=tight, tolerance=1e-7, **note, **ATTACK)


def region(wins: Callable[[Tensor, Tensor], Tensor], t12: float) -> Tensor:
    """Angles (degrees, a grid of hundredths) on the circle at which class 1 at 0 wins against class 2 at t12."""
    turn = torch.deg2rad(torch.arange(-18000, 18000, dtype=torch.float64) / 100)
    centres = arc(0)[:2], arc(t12)[:2]
    points = torch.stack([turn.cos(), turn.sin()], 1)
    first, second = (geometry.angle_between(points, centre) for centre in centres)
    return torch.rad2deg(turn[wins(first, second)])


def cosface_wins(first: Tensor, second: Tensor) -> Tensor:
    return first.cos() - 0.35 >= second.cos()


def arcface_wins(first: Tensor, second: Tensor) -> Tensor:
    return first + M <= second


def test_cosface_has_a_region_beyond_its_weight_and_arcface_has_not():
    inside = region(cosface_wins, 40.0)
    assert float(inside.min()) == pytest.approx(-129.2, abs=0.1)
    assert float(inside.max()) == pytest.approx(-10.8, abs=0.1)
    assert 40 - 2 * float(inside.max()) == pytest.approx(61.5, abs=0.1)
    least = math.degrees(2 * math.asin(0.35 / 2))
    assert least == pytest.approx(20.2, abs=0.05)
    assert len(region(cosface_wins, least + 0.1))
    assert not len(region(cosface_wins, least - 0.1))
    assert math.degrees(math.acos(1 - 0.35)) == pytest.approx(49.5, abs=0.05)

    assert not len(region(arcface_wins, 28.0))
    assert float(region(arcface_wins, 30.0).abs().min()) == 0


def smallest_angle(weights: Tensor) -> Tensor:
    i, j = torch.triu_indices(len(weights), len(weights), 1)
    return geometry.angle_between(weights[i], weights[j]).min()


def test_room_for_classes():
    def on_circle(angle):
        return smallest_angle(torch.stack([angle.cos(), angle.sin()], 1))

    upper = {"side": "upper"} | ATTACK
    even = (torch.arange(8, dtype=torch.float64) * (PI / 4),)
    note = about("t30", "8 classes in 2-D, m <= 45 degrees", "sec. 3")

    def turns(generator):
        return (2 * PI * torch.rand(8, generator=generator, dtype=torch.float64),)

    check_bound(on_circle, PI / 4, turns, extremal=even, **upper, **note)
    note = about("t31", "4 classes in 3-D, m <= arccos(-1/3)", "sec. 3")
    best = (geometry.regular_simplex(4),)
    check_bound(smallest_angle, math.acos(-1 / 3), gaussian((4, 3)), extremal=best, **upper, **note)
    rankin = [math.acos(geometry.rankin_bound(n, d)) for n, d in ((10, 5), (30, 64))]
    found = [float(smallest_angle(s)) for s in (geometry.cross_polytope(5), geometry.regular_simplex(30))]
    check_identity(found, rankin, tolerance=1e-7, **about("t32", "10 in 5-D, 30 in 64-D", "Rankin 1955"))


def test_the_lead_on_the_circle():
    alpha = PI / 4
    t, m = torch.rand(2, 200, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    product = 2 * ((alpha + m) / 2).sin() * ((alpha - 2 * t - m) / 2).sin()
    lead = (t + m).cos() - (alpha - t).cos()
    check_identity(lead, product, **about("t33", "cos(t + m) - cos(45 - t) as a product", "(5.12)"))


def test_one_threshold_separates_all_training_pairs_from_half_the_spacing_on():
    for C, m in ((8, 0.36), (8, 0.43), (3, 1.0), (3, 1.1)):
        # the regions on the circle, sampled up to their ends
        half = (2 * PI / C - m) / 2
        points = [2 * PI * k / C + torch.linspace(-half, half, 101, dtype=torch.float64) for k in range(C)]
        within = float(points[0].max() - points[0].min())
        between = min(float((points[k][:, None] - points[0]).cos().arccos().min()) for k in range(1, C))
        assert (within <= between + 1e-12) == (m >= PI / C)


# --- section 4 --------------------------------------------------------------------------------------------------------


def angle_gradient(x: Tensor, w: Tensor) -> Tensor:
    xu, wu = normalise(x), normalise(w)
    c = (xu * wu).sum(-1, keepdim=True)
    return -(wu - c * xu) / ((1 - c * c).sqrt() * x.norm(dim=-1, keepdim=True))


X, W, Y = normal(5, 4), normal(5, 4, seed=1), torch.tensor([0, 0, 1, 1, 1])
TRIPLETS = [(a, p, n) for a, p, n in itertools.product(range(5), repeat=3) if a != p and Y[a] == Y[p] != Y[n]]


def test_the_three_terms_are_the_papers():
    xw, ww, xx = (normalise(a) @ normalise(b).T for a, b in ((X, W), (W, W), (X, X)))
    own = math.fsum(math.acos(xw[i, y]) for i, y in enumerate(Y)) / (5 * PI)
    rest = -math.fsum(math.acos(ww[y, j]) for y in Y for j in range(5) if j != y) / (PI * 5 * 4)
    hinges = [max(0.0, math.acos(xx[a, p]) + 0.35 - math.acos(xx[a, n])) for a, p, n in TRIPLETS]
    found = [losses.intra_loss(X, W, Y), losses.inter_loss(W, Y), losses.angular_triplet_loss(X, Y, 0.35, "all")]
    check_identity(torch.stack(found), [own, rest, float(np.mean(hinges))], **about("t34", "terms", "ArcFace eq. 5, 6"))
    pull = angle_gradient(X, W).norm(dim=1) * X.norm(dim=1)
    check_identity(pull, 1.0, **about("t35", "|x| |grad theta| = 1 at every angle", "(5.15)"))


def test_the_triplet_gradient():
    def closed(x):
        total = torch.zeros_like(x)
        for a, p, n in TRIPLETS:
            total[a] += angle_gradient(x[a], x[p]) - angle_gradient(x[a], x[n])
            total[p] += angle_gradient(x[p], x[a])
            total[n] -= angle_gradient(x[n], x[a])
        return total / len(TRIPLETS)

    note = about("t36", "[t_ap + m - t_an]_+ over a batch", "(5.15)")
    check_gradient(lambda x: losses.angular_triplet_loss(x, Y, 3.1), X, closed, **note)


def test_the_terms_are_finite_at_the_ends():
    ends = torch.stack([arc(0), arc(0), -arc(0)]).requires_grad_()
    value = losses.intra_loss(ends, ends.flip(0), torch.arange(3)) + losses.inter_loss(ends)
    for y in ([0, 0, 1], [0, 1, 0]):
        value = value + losses.angular_triplet_loss(ends, torch.tensor(y))
    assert torch.isfinite(torch.autograd.grad(value, ends)[0]).all()


def mean_angle(w: Tensor) -> float:
    i, j = torch.triu_indices(len(w), len(w), 1)
    return float(geometry.angle_between(w[i], w[j]).mean())


def test_what_the_inter_term_wants():
    normals = geometry.random_unit(200_000, 3, torch.Generator().manual_seed(2))
    split = float(((normals @ arc(20) > 0) != (normals @ arc(95) > 0)).double().mean())
    note = about("t37", "a random hyperplane separates with probability theta/pi", "sec. 4")
    check_identity(split, 75 / 180, tolerance=5e-3, **note)
    poles, polytope, simplex = torch.stack([arc(0), arc(0), -arc(0), -arc(0)]), geometry.cross_polytope(2), None
    simplex = geometry.regular_simplex(4)
    most = PI * 4 / 6  # pi floor(n^2/4) over the six pairs
    for optimal in (poles, polytope):
        check_identity(mean_angle(optimal), most, tolerance=1e-9, **about("t38", "optimal", "sec. 4"))
    check_identity(mean_angle(simplex), math.acos(-1 / 3), tolerance=1e-9, **about("t39", "simplex", "sec. 4"))
    check_counterexample(most, mean_angle(simplex), **about("t40", "'the simplex has the largest mean angle'"))
    assert [round(math.degrees(float(smallest_angle(w)))) for w in (poles, polytope)] == [0, 90]


def test_the_inter_term_of_an_odd_number_of_classes():
    n = 10_575
    mean = PI * (n**2 // 4) / (n * (n - 1) / 2)
    check_identity(mean, PI / 2 * (n + 1) / n, **about("t41", "odd n", "sec. 4"))
    assert math.degrees(mean) == pytest.approx(90.0085, abs=5e-5)
    five = torch.stack([arc(0), arc(0), arc(0), -arc(0), -arc(0)])
    check_identity(mean_angle(five), PI / 2 * 6 / 5, tolerance=1e-9, **about("t42", "three and two", "sec. 4"))


# --- section 5 --------------------------------------------------------------------------------------------------------


def test_working_angles_of_the_text():
    def angle(C, p, s, m):
        return math.acos(math.log((C - 1) * p / (1 - p)) / s) - m

    found = [math.degrees(angle(10_575, 0.99, s, m)) for s, m in ((64, 0.0), (20, 0.0), (64, M))]
    assert found == pytest.approx([77.5, 46.1, 48.8], abs=0.05)
    for p in (0.9, 0.99, 0.999):
        back = 1 / (1 + 10_574 * math.exp(-64 * math.cos(angle(10_575, p, 64, M) + M)))
        check_identity(back, p, **about("t43", "p_y at the working angle is p", "(5.16)"))
        L = math.log(10_574 * p / (1 - p))
        assert 18 < L / math.cos(angle(10_575, p, 64, M)) < 24


def test_what_the_papers_thirty_degrees_ask_of_the_rivals():
    rivals = 64 * math.cos(math.radians(30) + M) - math.log(99)
    assert rivals == pytest.approx(28.7, abs=0.05)
    assert rivals / 64 == pytest.approx(0.45, abs=0.005)
    assert math.degrees(math.acos(rivals / 64)) == pytest.approx(63, abs=0.5)


def test_the_working_angle_with_any_rivals():
    cosines, s, p = real([0.5, 0.3, -0.2]), 64.0, 0.97
    rivals = (s * cosines).logsumexp(0)
    theta = ((rivals + math.log(p / (1 - p))) / s).arccos() - M
    found = torch.cat([s * (theta + M).cos()[None], s * cosines]).softmax(0)[0]
    check_identity(found, p, **about("t44", "p_y with unequal rivals", "(5.16)"))


# --- section 6 --------------------------------------------------------------------------------------------------------


def popular_loss(cosine: Tensor, y: Tensor, s: float, m: float = M) -> Tensor:
    cosine, rows = cosine.clone(), torch.arange(len(y))
    with torch.no_grad():
        cosine[rows, y] = (cosine[rows, y].arccos() + m).cos()
    return functional.cross_entropy(s * cosine, y)


def paper_loss(cosine: Tensor, y: Tensor, s: float, m: float = M) -> Tensor:
    own = functional.one_hot(y, cosine.shape[1]).bool()
    return functional.cross_entropy(s * torch.where(own, (cosine.arccos() + m).cos(), cosine), y)


def some_cosines() -> tuple[Tensor, Tensor, Tensor]:
    cosine = 0.9 * (2 * torch.rand(8, 5, generator=torch.Generator().manual_seed(9), dtype=torch.float64) - 1)
    y = torch.arange(8) % 5
    return cosine, y, functional.one_hot(y, 5).bool()


def test_value_and_slopes_of_the_popular_code():
    cosine, y, own = some_cosines()
    fields = []
    for loss in (popular_loss, paper_loss):
        leaf = cosine.clone().requires_grad_()
        value = loss(leaf, y, 8.0)
        fields.append((value.detach(), torch.autograd.grad(value, leaf)[0]))
    (value, popular), (wanted, true) = fields
    check_identity(value, wanted, **about("t45", "the popular code computes ArcFace's loss", "(5.19)"))
    check_identity(popular[~own], true[~own], **about("t46", "exact on the other classes", "(5.19)"))
    d = slope(cosine[own].arccos())
    check_identity((true / popular)[own], d, tolerance=1e-11, **about("t47", "ratio D on the target", "(5.19)"))
    step = torch.zeros(8, 5, dtype=torch.float64)
    step[0, 0] = 1e-5
    difference = (popular_loss(cosine + step, y, 8.0) - popular_loss(cosine - step, y, 8.0)) / 2e-5
    note = about("t48", "'central differences of its loss = its gradient'", "(5.19)")
    check_counterexample((difference - popular[0, 0]).abs(), 0.0, at_least=1e-3, **note)


def test_the_library_reproduces_the_popular_gradient():
    _, y, _ = some_cosines()
    f, w = normal(8, 6), normal(5, 6, seed=1)
    leaves = f.clone().requires_grad_(), w.clone().requires_grad_()
    value = popular_loss(functional.normalize(leaves[0]) @ functional.normalize(leaves[1]).T, y, 8.0)
    popular = torch.autograd.grad(value, leaves)
    head = losses.ArcFace(6, 5, margin=M, scale=8.0, gradient="straight_through").double()
    found = torch.autograd.grad(functional_call(head, {"weight": leaves[1]}, (leaves[0], y)), leaves)
    for ours, theirs in zip(found, popular, strict=True):
        check_identity(ours, theirs, tolerance=1e-10, **about("t49", "StraightThrough", "(5.19)"))


def test_the_loop_integral_of_the_popular_gradient_is_that_of_its_curl():
    nodes, factors = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(80))

    def field(cy, cj):
        cy, cj = torch.broadcast_tensors(cy, cj)
        p = (4 * torch.stack([(cy.arccos() + M).cos(), cj], -1)).softmax(-1)
        g = torch.stack([-4 * (1 - p[..., 0]), 4 * p[..., 1]], -1)
        return g, 16 * p[..., 0] * p[..., 1] * (1 - slope(cy.arccos()))

    cy, cj = 0.65 + 0.25 * nodes, 0.15 + 0.35 * nodes  # the rectangle [0.4, 0.9] x [-0.2, 0.5]
    loop = 0.25 * factors @ (field(cy, real(-0.2))[0][:, 0] - field(cy, real(0.5))[0][:, 0])
    loop = loop + 0.35 * factors @ (field(real(0.9), cj)[0][:, 1] - field(real(0.4), cj)[0][:, 1])
    area = 0.25 * 0.35 * (factors @ field(*torch.meshgrid(cy, cj, indexing="ij"))[1] @ factors)
    check_identity(loop, area, **about("t50", "Green's theorem", "(5.21)"))
    note = about("t51", "'the popular gradient is that of some loss': |loop integral| <= 0", "(5.21)")
    check_counterexample(loop.abs(), 0.0, at_least=1e-2, **note)


def test_one_sample_steps_of_the_popular_gradient():
    """Through the features: they always lower the lead of the rivals, and now and then raise ArcFace's loss."""
    generator = torch.Generator().manual_seed(3)
    count, s = 20_000, 8.0
    x, w = (torch.randn(count, *shape, 3, generator=generator, dtype=torch.float64) for shape in ((), (4,)))
    xu, wu = normalise(x), normalise(w)
    c = (wu @ xu[..., None])[..., 0]
    theta = c[:, 0].arccos()
    p = (s * torch.cat([(theta + M).cos()[:, None], c[:, 1:]], 1)).softmax(1)
    popular = s * torch.cat([p[:, :1] - 1, p[:, 1:]], 1)
    true = torch.cat([popular[:, :1] * slope(theta)[:, None], popular[:, 1:]], 1)
    lead = s * torch.cat([-torch.ones(count, 1, dtype=torch.float64), (s * c[:, 1:]).softmax(1)], 1)
    tangents = wu - c[..., None] * xu[:, None]  # of the cosines, times |x|
    through = [(g[..., None] * tangents).sum(1) for g in (popular, true, lead)]
    inside = theta < PI - M
    assert ((popular * true).sum(1)[inside] > 0).all()  # in the cosines: descent of ArcFace's loss
    assert ((through[0] * through[2]).sum(1) >= -1e-12).all()  # through the features: descent of the lead
    failing = (through[0] * through[1]).sum(1)[inside] < 0
    assert 0.002 < float(failing.double().mean()) < 0.05


def test_the_popular_pull_is_weaker_near_the_class_and_stronger_far_away():
    t = torch.linspace(0.01, PI - 0.01, 400, dtype=torch.float64)
    weaker = t.sin() < (t + M).sin()
    assert torch.equal(weaker, t < (PI - M) / 2)
