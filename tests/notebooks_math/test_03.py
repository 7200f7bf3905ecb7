"""What notebook 03 (L-Softmax, A-Softmax) says beside its derivations: every branch, bound and limit, in float64.

Each check raises if its statement does not hold; the formulas are those of the notebook's equations.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reprolib import models, training
from reprolib.evaluation import angle_statistics
from reprolib.losses import AnnealedLambda, ASoftmax, LSoftmax, MultiplicativeAngular
from reprolib.theory import gaussian, geometry, regions
from reprolib.theory import gradients as closed
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity, texts_for
from reprolib.training import TrainConfig

about = texts_for("03")
F64 = torch.float64
PI = torch.tensor(math.pi, dtype=F64)
MARGINS = (2, 3, 4, 5)
ROOT = 2 + math.sqrt(3)
ATTACK = {"draws": 60, "steps": 25}


def real(values: object) -> Tensor:
    return torch.tensor(values, dtype=F64)


def drawn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def value_and_slope(cosine: Tensor, m: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    return MultiplicativeAngular(m).value_and_slope(cosine, strength)


THETA = torch.linspace(0, math.pi, 4001, dtype=F64)


def angle_of(raw: Tensor) -> Tensor:
    """Any number as an angle in [0, pi], the ends included."""
    return math.pi * raw.sin().square()


def raw_of(angle: float) -> Tensor:
    return real(math.asin(math.sqrt(angle / math.pi)))


# --- section 2: psi ---------------------------------------------------------------------------------------------------


def test_the_chebyshev_recurrence_and_the_polynomials_spelt_out_in_codes():
    c = THETA.cos()
    T = {m: (m * THETA).cos() for m in range(1, 11)}
    three = [2 * c * T[m] - T[m - 1] for m in range(2, 10)]
    check_identity(three, [T[m + 1] for m in range(2, 10)], **about("recurrence", "m = 2..9", "(3.3)"))
    spelt = [2 * c**2 - 1, 4 * c**3 - 3 * c, 8 * c**4 - 8 * c**2 + 1, 16 * c**5 - 20 * c**3 + 5 * c]
    check_identity(spelt, [T[m] for m in MARGINS], **about("polynomials", "m = 2..5", "official and popular code"))


def test_both_branches_meet_at_every_knot_without_a_corner_but_with_a_jump_of_the_curvature():
    knots = [(m, k) for m in MARGINS for k in range(1, m)]
    left = [(-1.0) ** (k - 1) * math.cos(k * math.pi) - 2 * (k - 1) for m, k in knots]
    right = [(-1.0) ** k * math.cos(k * math.pi) - 2 * k for m, k in knots]
    check_identity(left, right, **about("continuous", "psi at k pi / m", "L-Softmax eq. 6"))
    h, both = 1e-3, [(m, k, side) for m, k in knots for side in (-1, 1)]
    bend = [float(closed.psi(k * PI / m + side * h / m, m) - 1 + 2 * k) * 2 / h**2 for m, k, side in both]
    note = about("c1", "psi'' jumps from m^2 to -m^2 at a knot")
    check_identity(bend, [-side for *_, side in both], tolerance=1e-6, **note)


@pytest.mark.parametrize("m", MARGINS)
def test_the_slope_of_psi_and_its_values_at_0_90_and_180_degrees(m):
    angles = math.pi * drawn(10, seed=1).sigmoid()
    slope = about("slope", "psi' = -m |sin(m theta)|", "(3.5)")
    check_gradient(lambda t: closed.psi(t, m).sum(), angles, lambda t: -m * (m * t).sin().abs(), **slope)
    at = [float(closed.psi(real(t), m)) for t in (0.0, math.pi / 2, math.pi)]
    check_identity(at, [1, 1 - m, 1 - 2 * m], **about("values", "1, 1 - m, 1 - 2 m"))
    flat = value_and_slope(torch.zeros(1, dtype=F64), m)[1]
    check_identity(flat, float(m % 2 * m), **about("flat", "|psi'| at 90 degrees is 0 for even m, m for odd m"))


@pytest.mark.parametrize("m", MARGINS)
def test_psi_falls_by_no_less_than_a_step_across_a_knot(m):
    def fall(raw_start: Tensor, raw_step: Tensor) -> Tensor:
        delta = math.pi / m * raw_step.sigmoid()
        start = (math.pi - delta) * raw_start.sigmoid()
        return closed.psi(start, m) - closed.psi(start + delta, m) - 2 * (1 - (m * delta / 2).cos())

    delta = PI / (2 * m)
    straddle = (((PI / m - delta / 2) / (PI - delta)).logit(), (m * delta / PI).logit())
    note = about("decreasing", "psi(t) - psi(t + d) >= 2 (1 - cos(m d / 2))", "item 2")
    check_bound(fall, 0.0, gaussian((), ()), extremal=straddle, **note, **ATTACK)


def test_psi_falls_with_m_and_stays_near_a_line():
    def between(raw: Tensor) -> Tensor:
        return min(closed.psi(angle_of(raw), m) - closed.psi(angle_of(raw), m + 1) for m in range(1, 6))

    check_bound(between, 0.0, gaussian(()), extremal=raw_of(0.0), **about("order", "psi_m >= psi_(m+1)", "item 4"))
    rho = math.sqrt(1 - 4 / math.pi**2) + 2 / math.pi * math.asin(2 / math.pi) - 1

    def ripple(raw: Tensor) -> Tensor:
        return rho - (closed.psi(angle_of(raw), 6) - 1 + 12 * angle_of(raw) / math.pi).abs()

    tight = raw_of(math.asin(2 / math.pi) / 6)
    check_bound(ripple, 0.0, gaussian(()), extremal=tight, **about("line", "within 0.2105 of a line", "item 6"))


# --- section 3: gradients ---------------------------------------------------------------------------------------------

X, W = drawn(6, 5, seed=3), drawn(6, 5, seed=4)
BATCH = 2 * drawn(7, 4, seed=5), drawn(5, 4, seed=6)
Y = torch.tensor([0, 1, 2, 3, 4, 0, 2])


def target_gradients(x: Tensor, w: Tensor, m: int, strength: float = 1.0) -> tuple[Tensor, Tensor]:
    """(3.7) for any m."""
    r, q = x.norm(dim=-1, keepdim=True), w.norm(dim=-1, keepdim=True)
    c = (x * w).sum(-1, keepdim=True) / (r * q)
    psi, slope = value_and_slope(c, m, strength)
    return slope * w + (psi - slope * c) * q / r * x, slope * x + (psi - slope * c) * r / q * w


def layer_gradients(x: Tensor, w: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """(df/dx, df/dW) of f = |W| |x| psi, m = 2, 3, 4, as the official layer has them: cosines and signs."""
    r, q = x.norm(dim=-1, keepdim=True), w.norm(dim=-1, keepdim=True)
    c = (x * w).sum(-1, keepdim=True) / (r * q)
    s0, s1, s3 = c.sign(), (c.abs() - 0.5).sign(), c.sign() * (2 * c**2 - 1).sign()
    a, b = {
        2: (4 * s0 * c, 2 * s0 * c**2 + 1),
        3: (s1 * (12 * c**2 - 3), 8 * s1 * c**3 - s0 * (1 + s1) + 2),
        4: (s3 * (32 * c**3 - 16 * c), s3 * (24 * c**4 - 8 * c**2 - 1) - 2 * s0 - s3 + 3),
    }[m]
    return a * w - q / r * b * x, a * x - r / q * b * w


@pytest.mark.parametrize("m", MARGINS)
def test_the_gradient_of_the_target_by_the_official_lines_and_by_the_general_form(m):
    forms = [target_gradients] if m == 5 else [target_gradients, layer_gradients]
    for form in forms:
        note = about("target", f"gradients of |W| |x| psi, m = {m}", "L-Softmax, official layer")
        check_gradient(lambda x, w: closed.l_softmax_target(x, w, m).sum(), (X, W), partial(form, m=m), **note)
    angle = geometry.angle_between(X, W)
    polar = W.norm(dim=1) * torch.hypot(closed.psi(angle, m), m * (m * angle).sin())
    check_identity(target_gradients(X, W, m)[0].norm(dim=1), polar, **about("norm", "|grad f|", "(3.8)"))


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", (2, 3, 4))
def test_the_slope_is_m_squared_at_both_ends_in_any_precision(m, kind):
    ends = value_and_slope(torch.tensor([1.0, -1.0], dtype=kind), m)[1].double()
    check_identity(ends, float(m * m), **about("ends", "d psi / d cos at 0 and 180 degrees"))


def margin_logits(x: Tensor, w: Tensor, y: Tensor, m: int, strength: float) -> Tensor:
    """Logits of L-Softmax from the definition: an angle by arccos, psi by its branches."""
    size = x.norm(dim=1, keepdim=True) * w.norm(dim=1)
    cosine = (x @ w.T / size).clamp(-1, 1)
    t = cosine.gather(1, y[:, None]).arccos()
    return size * cosine.scatter(1, y[:, None], strength * closed.psi(t, m) + (1 - strength) * t.cos())


def loss_gradients(x: Tensor, w: Tensor, y: Tensor, m: int, strength: float) -> tuple[Tensor, Tensor]:
    """(3.9), written out."""
    g, own = closed.softmax_loss_gradient(margin_logits(x, w, y, m, strength), y), functional.one_hot(y, len(w))
    dx, dw = target_gradients(x, w[y], m, strength)
    g_y = g.gather(1, y[:, None])
    return (g * (1 - own)) @ w + g_y * dx, (g * (1 - own)).T @ x + own.T.double() @ (g_y * dw)


def a_softmax_gradients(x: Tensor, w: Tensor, y: Tensor, m: int, strength: float) -> tuple[Tensor, Tensor]:
    """(3.9) with unit weights, then (3.15)."""
    dx, dunit = loss_gradients(x, closed.normalise(w), y, m, strength)
    return dx, closed.normalise_backward(w, dunit)


@pytest.mark.parametrize("lam", [0.0, 5.0])
@pytest.mark.parametrize("m", MARGINS)
def test_the_gradient_of_the_whole_loss_and_of_the_library_class(m, lam):
    strength = 1 / (1 + lam)
    for unit, form, kind in ((False, loss_gradients, LSoftmax), (True, a_softmax_gradients, ASoftmax)):

        def loss(x: Tensor, w: Tensor, unit: bool = unit) -> Tensor:
            return closed.softmax_loss(margin_logits(x, closed.normalise(w) if unit else w, Y, m, strength), Y)

        note = about(kind.__name__, f"gradients, m = {m}, lambda = {lam:g}", "(3.9), (3.15)")
        check_gradient(loss, BATCH, partial(form, y=Y, m=m, strength=strength), **note)
        head, x = kind(4, 5, margin=m).double(), BATCH[0].clone().requires_grad_(True)
        head.weight.data.copy_(BATCH[1])
        head.set_warmup(strength=strength)
        head(x, Y).backward()
        found = torch.cat((x.grad, head.weight.grad))
        check_identity(found, torch.cat(form(*BATCH, Y, m, strength)), tolerance=1e-10, **note)


@pytest.mark.parametrize("kind", [LSoftmax, ASoftmax])
@pytest.mark.parametrize("m", MARGINS)
def test_gradcheck_at_the_awkward_angles(kind, m):
    turn = torch.deg2rad(real([0.0, 180.0, 90.0, 45.0, 30.0]))
    x = 1.7 * torch.stack((turn.cos(), turn.sin(), 0 * turn), 1)
    weight, y = real([[2.0, 0.0, 0.0], [0.3, -1.0, 0.4], [-0.5, 0.2, 1.0]]), torch.zeros(5, dtype=torch.int64)
    head = kind(3, 3, margin=m, eps=0.0).double()
    assert torch.autograd.gradcheck(
        lambda x, w: torch.func.functional_call(head, {"weight": w}, (x, y)),
        (x.requires_grad_(True), weight.requires_grad_(True)),
    )


def psi_by_signs(c: Tensor, m: int) -> tuple[Tensor, Tensor]:
    """psi_m and d psi_m / d cos for m = 2, 3, 4 from cosines and signs, with sgn 0 = 0 (official layers)."""
    s0 = c.sign()
    if m == 2:
        return 2 * s0 * c**2 - 1, 4 * s0 * c
    if m == 3:
        s1 = (c.abs() - 0.5).sign()
        return s1 * (4 * c**3 - 3 * c) + s0 * (1 + s1) - 2, s1 * (12 * c**2 - 3)
    s3 = s0 * (2 * c**2 - 1).sign()
    return s3 * (8 * c**4 - 8 * c**2 + 1) + 2 * s0 + s3 - 3, s3 * (32 * c**3 - 16 * c)


@pytest.mark.parametrize("m", (2, 3, 4))
def test_the_formula_by_signs_is_psi_where_a_sign_is_zero_too(m):
    grid = torch.linspace(-1, 1, 100_001, dtype=F64)  # holds 0 and +-1/2 exactly
    check_identity(psi_by_signs(grid, m)[0], value_and_slope(grid, m)[0], **about("signs", f"m = {m}"))
    zero, half = real([0.0]), real([-0.5, 0.5])
    at, value, slope = {2: (zero, [-1], [0]), 3: (half, [-3, -1], [0, 0]), 4: (zero, [-3], [0])}[m]
    check_identity(psi_by_signs(at, m)[0], real(value), **about("sign-0", "a sign of 0 gives the mean of two branches"))
    check_identity(psi_by_signs(at, m)[1], real(slope), **about("sign-0-slope", "and the right slope, 0 at a knot"))


# --- section 4: lambda ------------------------------------------------------------------------------------------------


def test_the_mean_slope_of_a_random_direction_and_its_limit():
    for m in (2, 4):
        slopes = []
        for d in (512, 4096):
            t = (torch.arange(200_000, dtype=F64) + 0.5) * (math.pi / 200_000)
            weight = (t.sin().log() * (d - 2)).exp()
            slopes.append(float((weight * m * (m * t).sin().abs()).sum() / weight.sum()))
            assert slopes[-1] == pytest.approx(m * m * math.sqrt(2 / math.pi / d), rel=0.02)


@pytest.mark.parametrize(("side", "limit", "at"), [("lower", 5 / 6, math.pi / 2), ("upper", 21 / 6, 0.0)])
def test_the_slope_of_the_annealed_target_is_bounded(side, limit, at):
    def slope(raw: Tensor) -> Tensor:
        return value_and_slope(angle_of(raw).cos(), 4, 1 / 6)[1]

    note = about("annealed", f"m = 4, lambda = 5: {side} bound {limit:.3f}", "(3.13)")
    check_bound(slope, limit, gaussian(()), side=side, extremal=raw_of(at), **note)


def test_the_published_schedules():
    face, digits = AnnealedLambda.preset("sphereface"), AnnealedLambda.preset("l-softmax-mnist")
    formula = [1000 / 1.12, 1000 / 121, 1000 / (1 + 0.12 * 1658), 5, 5]
    found = [face.at(t) for t in (1, 1000, 1658, 1659, 28_000)]
    check_identity(found, formula, **about("faces", "1000/(1 + 0.12 t), floor 5 at 1659", "official model files"))
    found, formula = [digits.at(t) for t in (1000, 10_000)], [1000 * 1.025**-35, 1000 * 1.25**-35]
    check_identity(found, formula, **about("mnist", "1000 (1 + t/40000)^-35", "official model files"))


def test_a_resumed_annealed_run_equals_the_whole_run(tmp_path: Path):
    def small_run(**options):
        pixels = (50 * drawn(64, 1, 28, 28, seed=0).square()).clamp(max=255).byte()
        annealing = {"annealing": AnnealedLambda.preset("sphereface"), "generator": torch.Generator().manual_seed(1)}
        done = training.fit(
            partial(models.build, "compact", 3), lambda: ASoftmax(3, 4, margin=4, **annealing),
            pixels, torch.arange(64) % 4, TrainConfig(epochs=4, batch_size=32), seed=0, **options,
        )  # fmt: skip
        return torch.cat([v.flatten().double() for part in (done.model, done.loss) for v in part.state_dict().values()])

    first, resumed = (small_run(checkpoint=tmp_path / "run.pt", **stop) for stop in ({"stop_after": 4}, {}))
    assert len(first) == len(resumed)
    assert torch.equal(resumed, small_run())


# --- section 5: regions -----------------------------------------------------------------------------------------------

AXES = torch.eye(3, dtype=F64)


def boundary(m: float, weights: Tensor, own: int, free: Tensor) -> Tensor:
    return regions.a_softmax_boundary(weights, m, own, free)


def test_no_feature_satisfies_two_classes_whatever_their_norms():
    def both(x: Tensor, w1: Tensor, w2: Tensor, log_ratio: Tensor) -> Tensor:
        t1, t2, ratio = geometry.angle_between(x, w1), geometry.angle_between(x, w2), log_ratio.exp()
        return torch.minimum(ratio * closed.psi(t1, 3) - t2.cos(), closed.psi(t2, 3) - ratio * t1.cos())

    alike, note = (AXES[0], AXES[0], AXES[0], real(0.0)), about("no-overlap", "L-Softmax, m = 3", "section 1")
    check_bound(both, 0.0, gaussian((3,), (3,), (3,), ()), side="upper", extremal=alike, **note)


def test_the_boundary_on_the_arc_real_m_included():
    cases = [(math.radians(t), m) for t in (20, 60, 90, 150) for m in (1.5, 2, 3, 4, 6)]

    def unrolled(t: float, m: float) -> float:
        k = math.floor(m * t / math.pi)
        return (-1) ** k * math.cos(m * t) - 2 * k

    edges = [geometry.boundary_angle(partial(unrolled, m=m), t) for t, m in cases]
    found = about("boundary", "psi_m(t) = cos(theta12 - t) at theta12/(m + 1)", "(3.17)")
    check_identity(edges, [t / (m + 1) for t, m in cases], tolerance=1e-10, **found)


def test_the_gap_is_a_lower_bound_and_a_third_class_can_widen_it():
    tetrahedron = geometry.regular_simplex(4)

    def gap(u: Tensor, v: Tensor) -> Tensor:
        ends = boundary(3.0, tetrahedron, 0, u), boundary(3.0, tetrahedron, 1, v)
        return geometry.angle_between(*ends).squeeze()

    arc = (tetrahedron[1:2], tetrahedron[0:1])
    least = 0.5 * math.acos(-1 / 3)
    note = about("gap", "tetrahedron, m = 3", "(3.17)")
    check_bound(gap, least, gaussian((1, 3), (1, 3)), extremal=arc, **note, **ATTACK)
    # weights at 0, 30 and 90 degrees, m = 3: regions end at 7.5 and begin at 75 degrees
    w = torch.stack([torch.stack((t.cos(), t.sin())) for t in torch.deg2rad(real([0.0, 30.0, 90.0]))])
    ends = torch.stack((boundary(3.0, w, 0, w[1:2])[0], boundary(3.0, w, 2, w[1:2])[0]))
    degrees = torch.rad2deg(torch.atan2(ends[:, 1], ends[:, 0]))
    check_identity(degrees, real([7.5, 75.0]), tolerance=1e-9, **about("third", "67.5, not 45", "(3.17)"))


def test_a_larger_m_gives_a_smaller_region_along_every_geodesic():
    some = geometry.random_unit(6, 4, torch.Generator().manual_seed(7))
    near, far = (lambda u, m=m: (boundary(m, some, 0, u) * some[0]).sum() for m in (4.0, 3.0))
    note = about("property-1", "six random classes in 4-D", "SphereFace Property 1")
    check_bound(near, far, gaussian((1, 4)), **note, **ATTACK)


# --- section 6: Properties 2 and 3 ------------------------------------------------------------------------------------


def circle(k: int) -> Tensor:
    """k unit vectors equally spaced on a great circle in three dimensions."""
    return functional.pad(geometry.regular_polygon(k), (0, 1))


def two_weights(degrees: float) -> Tensor:
    t = math.radians(degrees)
    return real([[1.0, 0.0], [math.cos(t), math.sin(t)]])


UP = real([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0]])


def height(m: float, k: int) -> float:
    """Angle between the ends of a region of k classes on a great circle, at right angles to the circle."""
    return float(geometry.angle_between(*boundary(m, circle(k), 0, UP)))


@pytest.mark.parametrize("degrees", (20, 60, 90, 120, 131))
def test_two_classes_are_as_wide_as_their_gap_at_two_plus_root_three(degrees):
    found = regions.a_softmax_extents(two_weights(degrees), ROOT)
    check_identity(found.intra, found.inter, tolerance=1e-10, **about("p2", "m = 2 + sqrt 3", "SphereFace Property 2"))


@pytest.mark.parametrize(("degrees", "least"), [(150, 1 + 360 / 150), (180, 3.0)])
def test_far_apart_two_classes_need_less(degrees, least):
    found = regions.a_softmax_extents(two_weights(degrees), least)
    check_identity(found.intra, found.inter, tolerance=1e-9, **about("p2-far", "m = 1 + 2 pi / theta12", "(3.18)"))
    assert least < ROOT


@pytest.mark.parametrize("k", range(3, 13))
def test_off_the_plane_three_is_not_enough_for_classes_on_a_great_circle(k):
    sine = math.sin(math.pi / k) / math.sqrt(2)
    check_identity(math.sin(height(3.0, k) / 2), sine, **about("p3", f"K = {k}: sin h = sin(D/2)/sqrt 2", "(3.19)"))
    check_counterexample(height(3.0, k), math.pi / k, **about("p3-not", "'m = 3 is enough'"), at_least=0.01)


def test_three_is_never_enough_off_the_plane_and_many_classes_need_3_65():
    def excess(raw: Tensor) -> Tensor:
        D = angle_of(raw)
        return 2 * ((D / 2).sin() / math.sqrt(2)).asin() - D / 2

    check_bound(excess, 0.0, gaussian(()), extremal=real(math.pi / 2), **about("p3-excess", "2h >= D/2", "(3.19)"))
    limit = 1 + sum((4 + side * math.sqrt(16 - 64 / 27)) ** (1 / 3) for side in (1, -1))  # Cardano
    check_identity((limit - 1) ** 3, 4 * (limit + 1), **about("root", "m = 3.6494", "(3.20)"))
    lens = [height(limit, k) * k / 2 / math.pi for k in (400, 4000)]
    note = about("limit", "2h/D tends to (m - 1)/(m + 1) at that m", "(3.20)")
    check_identity(lens, (limit - 1) / (limit + 1), tolerance=1e-4, **note)


@pytest.mark.parametrize(
    ("weights", "least"),
    [
        (circle(3), 3.4647), (circle(10), 3.6375), (geometry.regular_simplex(4), 3.1232),
        (geometry.cross_polytope(3), 3.1572), (geometry.regular_simplex(10), 3.3416),
    ],
    ids=["3 on a circle", "10 on a circle", "tetrahedron", "octahedron", "simplex of 10"],
)  # fmt: skip
def test_what_evenly_spread_classes_need_lies_between_3_and_two_plus_root_three(weights, least):
    search = partial(regions.a_softmax_extents, class_index=0, starts=2, steps=12)
    found = {m: search(weights, m, torch.Generator().manual_seed(0)) for m in (3.0, least, ROOT)}
    assert found[3.0].intra > found[3.0].inter + math.radians(3)
    check_identity(found[least].intra, found[least].inter, tolerance=1e-3, **about("least", f"m = {least}"))
    assert found[ROOT].intra < found[ROOT].inter


def exp_map(v: Tensor) -> Tensor:
    """Tangent vector v (k,) at the north pole to the point (k + 1,) of the sphere."""
    r = (v.square().sum() + 1e-30).sqrt()
    return torch.cat((r.cos().reshape(1), r.sin() / r * v))


def test_the_exponential_map_lengthens_no_distance():
    line = (0.5 * AXES[0], 1.2 * AXES[0])

    def slack(v: Tensor, w: Tensor) -> Tensor:
        return (v - w).norm() - geometry.angle_between(exp_map(v), exp_map(w))

    note = about("exp", "angle(exp v, exp w) <= |v - w|", "(3.22)")
    check_bound(slack, 0.0, gaussian((3,), (3,)), extremal=line, **note)


def test_no_region_is_wider_than_the_theorem_says():
    def width(m: float, weights: Tensor):
        return lambda u: geometry.angle_between(*boundary(m, weights, 0, u))

    two = functional.pad(two_weights(90), (0, 2))
    tight = torch.stack((two[1], -two[1]))
    note, upper = about("diameter", "at most 2 m D/(m^2 - 1)", "(3.21)"), {"side": "upper", **ATTACK}
    check_bound(width(2.5, two), 5 / 5.25 * math.pi / 2, gaussian((2, 4)), extremal=tight, **note, **upper)
    some = geometry.random_unit(6, 4, torch.Generator().manual_seed(7))
    nearest = float(geometry.angle_between(some[0], some[1:]).min())
    check_bound(width(3.0, some), 0.75 * nearest, gaussian((2, 4)), **note, **upper)


# --- section 7: two measures ------------------------------------------------------------------------------------------


def test_the_angular_fisher_score():
    n = torch.tensor([40, 25, 10, 5, 1])
    own = torch.repeat_interleave(torch.arange(5), n)
    x = drawn(81, 4, seed=8) + 2 * geometry.regular_simplex(5)[own]
    unit = closed.normalise(x)
    sums = torch.stack([unit[own == k].sum(0) for k in range(5)])
    between = (n * (1 - closed.normalise(sums) @ closed.normalise(unit.sum(0)))).sum()
    score = angle_statistics(x, own).angular_fisher_score
    note = about("fisher", "sum n_i (1 - R_i) / sum n_i (1 - cos(m_i, m))", "(3.23)")
    check_identity(score, float((n - sums.norm(dim=1)).sum() / between), **note)
    turned = x * torch.linspace(0.1, 9, 81, dtype=F64)[:, None] @ torch.linalg.qr(drawn(4, 4, seed=9))[0]
    twice = angle_statistics(x.repeat(2, 1), own.repeat(2)).angular_fisher_score
    again = [angle_statistics(turned, own).angular_fisher_score, twice]
    check_identity(again, score, **about("fisher-same", "norms, rotations and copies change nothing"))
    # classes of equal compactness R: S_w = N (1 - R), S_b = N - |sum n_i m_i|
    spots = real([0.0, 1.0, 2.5])
    ring = torch.stack([torch.stack((t.cos(), t.sin())) for spot in spots for t in (spot - 0.2, spot + 0.2)])
    alike = angle_statistics(ring, torch.arange(6) // 2).angular_fisher_score
    far = 6 - 2 * torch.stack((spots.cos(), spots.sin())).sum(1).norm()
    check_identity(alike, 6 * (1 - math.cos(0.2)) / far, **about("fisher-alike", "equal R"))


# --- section 9: official and popular codes ----------------------------------------------------------------------------


def test_the_official_layer_returns_another_gradient_than_that_of_its_loss():
    def layer(x: Tensor, w: Tensor) -> Tensor:
        """Target term of the official face layer for unit rows w, (3.25)."""
        r = x.norm(dim=1, keepdim=True)
        c = (x * w).sum(1, keepdim=True) / r
        psi, a = value_and_slope(c, 4)
        b = (psi - a * c) / r
        return (a * w + b * x) / torch.hypot(a, b)

    unit = closed.normalise(W)
    true, found = target_gradients(X, unit, 4)[0], layer(X, unit)
    check_identity(functional.cosine_similarity(true, found, dim=1), 1.0, **about("direction", "is the true one"))
    scaled = [target_gradients(t * X, unit, 4)[0] for t in (0.1, 10.0)]
    check_identity(scaled, [true, true], **about("scale", "the true term does not depend on the feature norm"))
    short, long = (layer(t * X, unit).norm(dim=1) for t in (0.1, 10.0))
    check_counterexample(
        float((long / short).max()), 1.0, **about("layer-scale", "'nor does the layer's'"), at_least=0.1
    )

    x, w = BATCH[0], closed.normalise(BATCH[1])
    g = closed.softmax_loss_gradient(margin_logits(x, w, Y, 4, 1.0), Y)
    rest, g_y = (g * (1 - functional.one_hot(Y, 5))) @ w, g.gather(1, Y[:, None])
    c = (x * w[Y]).sum(1, keepdim=True) / x.norm(dim=1, keepdim=True)
    detached = w[Y] + (value_and_slope(c, 4)[0] - c) / x.norm(dim=1, keepdim=True) * x
    for option, dx in {"straight_through": rest + g_y * detached, "caffe": rest + g_y * layer(x, w[Y])}.items():
        head, leaf = ASoftmax(4, 5, margin=4, gradient=option).double(), x.clone().requires_grad_(True)
        head.weight.data.copy_(w)
        head(leaf, Y).backward()
        check_identity(leaf.grad, dx, tolerance=1e-10, **about(option, "departs as written", "official code"))
    check_identity(head.weight.grad, g.T @ x, tolerance=1e-10, **about("caffe-w", "no slope, no psi", "official layer"))


def test_cos_1_35_theta_rewards_beyond_153_degrees():
    turn = 360 / 2.35
    at = torch.deg2rad(real([turn - 1, turn, turn + 1]))
    excess = (1.35 * at).cos() - at.cos()
    assert excess[0] < 0 < excess[2]
    check_identity(excess[1], 0.0, **about("cos-1.35", "meets cos at 360/2.35 degrees", "ArcFace's SphereFace row"))
