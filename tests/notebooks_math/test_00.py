"""What notebook 00 states without a check on its page: bounds, eigenvalues, properties of the protocols, gaps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from reprolib import evaluation as ev
from reprolib import losses
from reprolib.theory import geometry, gradients, normal
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity

ATTACK = {"draws": 200, "steps": 50}


def told(id: str, statement: str) -> dict[str, str]:
    return {"id": f"00.{id}", "statement": statement, "source": "notebook 00"}


def draw(generator: torch.Generator) -> Tensor:
    return 2 * torch.randn(2, 5, generator=generator).double()


# Section 1


def test_the_gradient_of_the_logits_has_no_common_part():
    z, y = 3 * normal(6, 4, seed=4), torch.tensor([0, 1, 2, 3, 1, 0])
    onehot = torch.nn.functional.one_hot(y, 4).double()
    g = z.softmax(1) - onehot
    check_gradient(
        lambda z: (z.logsumexp(1) - (z * onehot).sum(1)).sum(), z, lambda z: g, **told("dz", "g = p - [j = y]")
    )
    check_identity(g.sum(1), torch.zeros(6).double(), **told("sum", "sum_j g_j = 0"))
    x, w = normal(6, 5, seed=1).requires_grad_(), normal(4, 5, seed=2).requires_grad_()
    torch.nn.functional.cross_entropy(x @ w.T, y).backward()
    check_identity(w.grad.sum(0), torch.zeros(5).double(), **told("sum-weights", "sum_j dL/dW_j = 0"))


def test_the_loss_lies_between_its_bounds_by_the_strongest_rival():
    def parts(z: Tensor) -> tuple[Tensor, Tensor]:
        return z[0].logsumexp(0) - z[0, 0], (z[0, 1:] - z[0, 0]).max()  # L and r, class 0 is the true one

    one_rival = torch.tensor([[0.0, 1, -80, -80, -80], [0, 0, 0, 0, 0]]).double()
    equal_rivals = torch.tensor([[0.0, 1, 1, 1, 1], [0, 0, 0, 0, 0]]).double()
    low = lambda z: parts(z)[0] - torch.log1p(parts(z)[1].exp())  # noqa: E731
    high = lambda z: parts(z)[0] - torch.log1p(4 * parts(z)[1].exp())  # noqa: E731
    check_bound(low, 0.0, draw, extremal=one_rival, **ATTACK, **told("rival-low", "L >= log(1 + e^r)"))
    note = told("rival-high", "L <= log(1 + (C - 1) e^r)")
    check_bound(high, 0.0, draw, side="upper", extremal=equal_rivals, **ATTACK, **note)


def test_the_loss_is_convex_in_the_logits_and_most_curved_where_two_classes_are_undecided():
    def curvature(zv: Tensor) -> Tensor:
        p, v = zv[0].softmax(0), zv[1] / zv[1].norm()
        return (p * v.square()).sum() - (p * v).sum().square()  # v'Hv = Var_p(v)

    z = 3 * normal(4, seed=4)
    p = z.softmax(0)
    hessian = torch.autograd.functional.hessian(lambda z: z.logsumexp(0), z)
    check_identity(hessian, p.diag() - p.outer(p), **told("hessian", "d2L/dz2 = diag(p) - p p'"))
    shift = torch.stack((normal(5), torch.ones(5).double()))
    check_bound(curvature, 0.0, draw, extremal=shift, **ATTACK, **told("convex", "v'Hv >= 0"))
    undecided = torch.tensor([[0, 0, -60, -60, -60], [1, -1, 0, 0, 0]]).double()
    note = told("curvature", "v'Hv <= |v|^2 / 2")
    check_bound(curvature, 0.5, draw, side="upper", extremal=undecided, **ATTACK, **note)


def test_a_bias_breaks_the_statement_on_the_norm():
    # class 0 is right, but by its bias alone: a longer feature makes the loss larger
    loss = lambda t: math.log1p(math.exp((t * 1.0 + 0.0) - (t * 0.0 + 3.0)))  # noqa: E731
    note = told("bias", "with a bias, too, a longer feature of the right class has a smaller loss")
    check_counterexample(loss(2.0), loss(1.0), **note)


# Section 2


def test_small_angles_need_the_rhombus():
    tiny = torch.tensor(1e-9, dtype=torch.float64)
    u, v = torch.tensor([1.0, 0.0]).double(), torch.stack((tiny.cos(), tiny.sin()))
    check_identity(geometry.angle_between(u, v) / tiny, 1.0, **told("kahan", "(0.7) gives 1e-9 rad to 12 digits"))
    note = told("arccos", "arccos of the cosine gives 1e-9 rad to 1 %")
    check_counterexample(abs(float((u @ v).arccos() / tiny) - 1), 0.01, **note)


def test_the_jacobian_has_the_eigenvalue_0_once_and_the_inverse_norm_else():
    x = 3 * normal(5, seed=7)
    J = torch.autograd.functional.jacobian(lambda x: x / x.norm(), x)
    expected = torch.tensor([0.0, 1, 1, 1, 1]).double() / x.norm()
    check_identity(torch.linalg.eigvalsh(J), expected, **told("spectrum", "0 once, 1/|x| d - 1 times"))


def test_an_epsilon_in_the_norm_leaves_a_radial_part():
    x, h = 3 * normal(5, seed=7), normal(5, seed=8).requires_grad_(False)
    leaf = x.clone().requires_grad_()
    (leaf / (leaf.square().sum() + 0.1).sqrt() @ h).backward()
    y = x / (x.square().sum() + 0.1).sqrt()
    check_identity(x @ leaf.grad, (y @ h) * (1 - y @ y), **told("eps", "x.g_x = (y.h)(1 - y.y)"))


@pytest.mark.parametrize("momentum", [0.5, 0.9])
def test_the_norm_grows_under_momentum_too(momentum):
    w, x, v = gradients.normalise(normal(5, seed=9)), normal(5, seed=7), torch.zeros(5).double()
    norms = [float(x.norm())]
    for _ in range(200):
        v = momentum * v + gradients.normalise_backward(x, -w)
        x = x - 0.1 * v
        norms.append(float(x.norm()))
    assert np.diff(norms).min() >= 0
    assert norms[-1] > norms[0]


def test_the_pull_of_cosine_and_chord():
    x, w = 3 * normal(5, seed=7), gradients.normalise(normal(5, seed=9))
    leaf = x.clone().requires_grad_()
    theta = geometry.angle_between(leaf, w)
    cosine, chord = torch.autograd.grad(theta.cos(), leaf, retain_graph=True)[0], 2 * (theta / 2).sin()
    pulls = [cosine.norm() * x.norm(), torch.autograd.grad(chord, leaf)[0].norm() * x.norm()]
    expected = [theta.sin().detach(), (theta / 2).cos().detach()]
    check_identity(pulls, expected, **told("pull", "|x| |grad cos| = sin(theta), |x| |grad d_E| = cos(theta/2)"))


# Section 3


def arc(v: Tensor, i: int = 0, j: int = 1) -> Tensor:
    return geometry.angle_between(v[i], v[j])


def test_chord_and_arc():
    e, cloud = torch.eye(3, dtype=torch.float64), lambda g: torch.randn(3, 3, generator=g).double()
    opposite, equal, halfway = (
        torch.stack(v) for v in ((e[0], -e[0], e[1]), (e[0], e[0], e[1]), (e[0], e[1], e[0] + e[1]))
    )
    chord = lambda v: 2 * (arc(v) / 2).sin()  # noqa: E731
    note = told("chord-low", "d_E >= (2/pi) d_G")
    check_bound(lambda v: chord(v) / arc(v), 2 / math.pi, cloud, extremal=opposite, **ATTACK, **note)
    note = told("chord-high", "d_E <= d_G")
    check_bound(lambda v: chord(v) - arc(v), 0.0, cloud, side="upper", extremal=equal, **ATTACK, **note)
    note = told("arc", "d_G obeys the triangle inequality")
    check_bound(lambda v: arc(v, 0, 2) + arc(v, 2, 1) - arc(v), 0.0, cloud, extremal=halfway, **ATTACK, **note)


def d_prime(genuine, impostor):
    """Decidability, by its definition: d' = (mean genuine - mean impostor) / sqrt((var genuine + var impostor) / 2)."""
    return (np.mean(genuine) - np.mean(impostor)) / ((np.var(genuine) + np.var(impostor)) / 2) ** 0.5


def test_distances_rank_alike_but_have_another_decidability():
    genuine, impostor = (np.cos(np.radians(angle)) for angle in ([20, 35, 50, 80], [45, 70, 75, 90, 100]))
    scores: Callable[[np.ndarray], tuple[np.ndarray, ...]] = lambda c: (c, -np.sqrt(2 - 2 * c), -np.arccos(c))  # noqa: E731
    both = list(zip(scores(genuine), scores(impostor), strict=True))
    check_identity([float(ev.roc_auc(*s)) for s in both], [16 / 20] * 3, **told("auc", "one AUC, 16/20"))
    decidability = [float(d_prime(*s)) for s in both]
    note = told("d-prime", "d' is the same for cosine, d_E and d_G")
    check_counterexample(max(decidability), min(decidability), at_least=0.01, **note)


# Section 4


def test_in_three_dimensions_the_cosine_is_uniform():
    caps = [geometry.cap_fraction(angle, 3) for angle in (0.3, 1.0, 2.5)]
    check_identity(caps, [(1 - math.cos(angle)) / 2 for angle in (0.3, 1.0, 2.5)], **told("archimedes", "uniform"))


def test_the_cosine_of_random_directions_is_a_beta_variable():
    # cos = 2 B - 1, B ~ Beta((d - 1)/2, (d - 1)/2)
    for d in (3, 64):
        shares = [geometry.cap_fraction(math.acos(t), d) for t in (0.1, 0.4)]
        law = [stats.beta((d - 1) / 2, (d - 1) / 2).sf((t + 1) / 2) for t in (0.1, 0.4)]
        check_identity(shares, law, tolerance=1e-10, **told("beta", "P(cos >= t) by the Beta law"))


def test_many_directions_cannot_all_be_more_than_a_right_angle_apart():
    for count, d in ((6, 4), (5, 3), (9, 7)):
        start = geometry.random_unit(count, d, torch.Generator().manual_seed(count))
        found = geometry.minimise_softmax_floor(count, d, 60.0, torch.Generator().manual_seed(1), restarts=2, steps=60)[
            0
        ]
        assert geometry.max_cosine(start) >= 0 and geometry.max_cosine(found) >= -1e-9
        assert geometry.max_cosine(geometry.cross_polytope(d, count)) == 0


# Section 6


def summary(g: np.ndarray, imp: np.ndarray) -> list[float]:
    """AUC, EER, TAR at FAR = 1 %, 10 %, 100 %."""
    tars = ev.tar_at_far(g, imp, [1e-2, 1e-1, 1.0])
    return [float(v) for v in (ev.roc_auc(g, imp), ev.equal_error_rate(g, imp, replicates=10), *tars)]


def tenfold(pair: np.ndarray, same: np.ndarray, order: slice | np.ndarray = slice(None)) -> list[float]:
    ten = np.arange(len(pair)) % 10
    return list(ev.verification_accuracy(pair[order], same[order], ten[order]).fold_accuracies)


def test_what_any_evaluation_code_must_satisfy():
    rng = np.random.default_rng(0)
    g, imp, order = rng.normal(0.5, 0.2, 400), rng.normal(0, 0.2, 600), rng.permutation(1000)
    pair, same, flat, even = np.concatenate((g, imp)), np.arange(1000) < 400, np.ones(1000), np.arange(1000) % 20 < 10
    whole = summary(g, imp) + tenfold(pair, same)
    u = stats.mannwhitneyu(g, imp).statistic / (400 * 600)
    properties = {
        "perfect scores": (summary(g + 9, imp) + tenfold(1.0 * same, same), [1, 0, 1, 1, 1] + [1] * 10),
        "constant scores": (summary(flat, flat) + tenfold(flat, even), [0.5, 0.5, 0, 0, 1] + [0.5] * 10),
        "increasing transform": (summary(np.exp(g), np.exp(imp)), whole[:5]),
        "Mann-Whitney": ([whole[0]], [u]),
        "cosine and squared distance": (summary(2 * g - 2, 2 * imp - 2) + tenfold(2 * pair - 2, same), whole),
        "order of the pairs": (tenfold(pair, same, order), tenfold(pair, same)),
        "reversed and swapped": (summary(-imp, -g)[:2], whole[:2]),
    }
    for name, (here, there) in properties.items():
        check_identity(here, there, **told(name, name))


def test_identification_at_its_ends():
    rng = np.random.default_rng(0)
    matrix, who, gallery = rng.normal(0, 1, (60, 40)), np.arange(60) % 40, np.arange(40)
    matrix[np.arange(60), who] += 2
    all_probes, all_names = np.concatenate((matrix, matrix[:9])), np.concatenate((who, np.full(9, 77)))
    found, rank_1 = ev.dir_at_far(all_probes, all_names, gallery, 1.0), ev.rank_k_identification(matrix, who, gallery)
    check_identity(float(found), float(rank_1), **told("dir", "DIR at FAR = 100 % is the rank-1 rate"))
    curve = [float(rate) for rate in ev.cmc(matrix, who, gallery)]
    check_identity([min(0, *np.diff(curve)), curve[-1]], [0, 1], **told("cmc", "never falls and ends at 1"))


def test_normal_scores_in_closed_form():
    quantile, far = stats.norm.ppf((np.arange(200_000) + 0.5) / 200_000), np.array([1e-2, 1e-1])
    theory = [stats.norm.cdf(2 / 2**0.5), stats.norm.cdf(-1), *stats.norm.cdf(2 + stats.norm.ppf(far))]
    here = summary(quantile + 2, quantile)[:4]
    check_identity(here, theory, tolerance=1e-4, **told("normal", "AUC, EER, TAR of normal scores, (0.21)"))


def test_single_scores_by_pencil():
    genuine, impostor = [0.95, 0.80, 0.70, 0.60, 0.35], [0.75, 0.55, 0.45, 0.40, 0.30, 0.25, 0.20, 0.15, 0.10, 0.05]
    check_identity(float(d_prime(genuine, impostor)), 0.36 / math.sqrt(0.04185), **told("d", "d' by hand"))
    scores = np.array([0.95, 0.65, 0.20, 0.40, 0.70, 0.50, 0.05, 0.25, 0.85, 0.90, 0.15, 0.35])
    same = np.tile([True, True, False, False], 3)
    found = ev.verification_accuracy(scores, same, 3)
    check_identity(found.fold_thresholds, [0.425, 0.525, 0.45], **told("thresholds", "of the three folds"))
    check_identity(found.standard_error, 1 / 12, **told("error", "standard error 1/12"))
    seen = (scores > ev.exact_threshold(scores, same)) == same
    check_identity(seen.mean(), 1.0, **told("seen", "one threshold chosen on all pairs makes no error"))


def test_the_order_of_two_conventions_for_videos():
    def at(*degrees: float) -> np.ndarray:
        return np.stack((np.cos(np.radians(degrees)), np.sin(np.radians(degrees))), axis=1)

    sweeping, still, other = at(0, 60), at(0, 0), at(40, 40)
    a, b = at(0, 60).mean(0), at(10, 50, 130).mean(0)
    angle = math.atan2(b[1], b[0]) - math.atan2(a[1], a[0])
    by_norms = np.linalg.norm(a) * np.linalg.norm(b) * math.cos(angle)
    check_identity((at(0, 60) @ at(10, 50, 130).T).mean(), by_norms, **told("means", "(0.19)"))
    means_of_pairs = (sweeping @ sweeping.T).mean(), (still @ other.T).mean()
    cosines_of_means = 1.0, still[0] @ other[0]
    assert means_of_pairs[0] < means_of_pairs[1] and cosines_of_means[0] > cosines_of_means[1]


def test_blufr_reports_the_mean_minus_the_deviation():
    strange, trials = np.arange(10) / 10 - 0.4, ([0.9, 0.8, 0.7, 0.2], [0.9, 0.8, 0.7, 0.6], [0.9, 0.7, 0.3, 0.2])
    rates = [float(ev.tar_at_far(scores, strange, 0.1)) for scores in trials]
    check_identity(rates, [3 / 4, 4 / 4, 2 / 4], **told("trials", "TAR of the three trials"))
    check_identity(np.mean(rates) - np.std(rates, ddof=1), 1 / 2, **told("reported", "mean minus s.d."))


def test_distractors_in_blocks_and_a_million_false_accepts():
    many, crowd = (gradients.normalise(v) for v in (normal(40, 8, seed=11), normal(500, 8, seed=12)))
    own, cosines = (many @ crowd.T).amax(1) - 0.02, (many @ crowd.T).flatten()
    blocks = ev.distractor_verification(own, many, crowd, [1e-3, 1e-2])
    here, there = ([float(v) for v in rates] for rates in (blocks, ev.tar_at_far(own, cosines, [1e-3, 1e-2])))
    check_identity(here, there, **told("blocks", "TAR from blocks = TAR from the full matrix"))


@pytest.mark.parametrize(("k", "count"), [(3, 3000), (10, 10_000), (0, 500)])
def test_the_false_accept_rate_of_a_threshold_is_a_beta_variable(k, count):
    rng = np.random.default_rng(0)
    smallest = np.array([np.partition(rng.random(count), k)[k] for _ in range(4000)])
    law = stats.beta(k + 1, count - k)
    # 4,000 draws: the mean to 1.6 % of a relative deviation of at most 1
    check_identity(smallest.mean() / law.mean(), 1.0, tolerance=0.05, **told("mean", "(k + 1)/(I + 1)"))
    check_identity(smallest.std() / law.std(), 1.0, tolerance=0.08, **told("spread", "of the Beta law"))
    assert law.mean() == pytest.approx((k + 1) / (count + 1))
    assert law.std() / law.mean() == pytest.approx(math.sqrt((count - k) / ((k + 1) * (count + 2))))


def test_ten_impostors_above_the_threshold_are_asked_for():
    flags = [ev.tar_at_far(np.arange(5.0), np.arange(float(n)), 1e-3).supported for n in (9_999, 10_000)]
    assert flags == [False, True]


def test_the_library_scores_any_monotone_but_not_affine_transform_differently():
    scores = np.array([0.95, 0.65, 0.20, 0.40, 0.70, 0.50, 0.05, 0.25, 0.85, 0.90, 0.15, 0.35])
    same = np.tile([True, True, False, False], 3)
    bent = np.interp(scores, [0, 0.35, 0.4, 0.5, 0.65, 1], [-1, 0, 0.9, 1, 10, 11])
    accuracies = [float(ev.verification_accuracy(s, same, 3).accuracy) for s in (scores, 3 * scores - 1, bent)]
    check_identity(accuracies, [11 / 12, 11 / 12, 10 / 12], **told("bent", "11/12, affine 11/12, bent 10/12"))


# Section 9


@pytest.mark.parametrize(
    ("margin", "m1", "m2", "m3"),
    [
        (losses.NoMargin(), 1.0, 0.0, 0.0),
        (losses.AdditiveCosine(0.35), 1.0, 0.0, 0.35),
        (losses.CombinedAngular(1.35), 1.35, 0.0, 0.0),
        (losses.AdditiveAngular(0.5), 1.0, 0.5, 0.0),
        (losses.CombinedAngular(1.0, 0.3, 0.2), 1.0, 0.3, 0.2),
        (losses.CombinedAngular(0.9, 0.4, 0.15), 0.9, 0.4, 0.15),
    ],
)
def test_the_margins_of_the_library_are_those_of_the_table(margin, m1, m2, m3):
    t = torch.linspace(0.03, 3.11, 40, dtype=torch.float64)
    by_table = torch.stack(((m1 * t + m2).cos() - m3, m1 * (m1 * t + m2).sin() / t.sin()))
    check_identity(torch.stack(margin.value_and_slope(t.cos())), by_table, **told("margin", "phi and D of (0.23)"))


def test_the_multiplied_angle_of_the_library_is_the_continued_cosine():
    t = torch.linspace(0.03, 3.11, 40, dtype=torch.float64)
    k = (4 * t / math.pi).floor()
    by_table = torch.stack(((-1) ** k * (4 * t).cos() - 2 * k, 4 * (4 * t).sin().abs() / t.sin()))
    check_identity(
        torch.stack(losses.MultiplicativeAngular(4).value_and_slope(t.cos())),
        by_table,
        **told("psi", "psi and D, m = 4"),
    )
    assert float(gradients.psi(torch.tensor(math.pi / 2).double(), 4)) == pytest.approx(-3)


@pytest.mark.parametrize("m", [0.1, 0.35, 0.5])
def test_arcface_lies_below_the_cosine_up_to_pi_less_half_the_margin(m):
    t = torch.linspace(0.0, math.pi, 2001, dtype=torch.float64)
    below = (t + m).cos() < t.cos()
    assert torch.equal(below, t < math.pi - m / 2)


def test_no_other_target_lies_above_the_cosine_but_that_of_1_35_beyond_153_degrees():
    t = torch.linspace(0.0, math.pi, 2001, dtype=torch.float64)
    end = 2 * math.pi / 2.35
    assert math.degrees(end) == pytest.approx(153.2, abs=0.05)
    assert torch.equal((1.35 * t).cos() <= t.cos(), t <= end)
    for target in (gradients.psi(t, 4), t.cos() - 0.35, (t + 0.3).cos() - 0.2):
        assert bool((target <= t.cos() + 1e-12).all())


def test_cosface_is_feasible_from_one_angle_on_and_its_gap_is_least_for_opposite_classes():
    least = math.acos(1 - 0.35)
    feasible = [geometry.angular_gap("cosface", least + d, 0.35) is not None for d in (-1e-6, 1e-6)]
    assert feasible == [False, True] and math.degrees(least) == pytest.approx(49.46, abs=5e-3)
    half = lambda v: (least + (math.pi - least) * v.sin().square()) / 2  # noqa: E731
    gap = lambda v: 2 * (0.175 / half(v).sin()).arcsin()  # noqa: E731
    sample, opposite = lambda g: torch.randn((), generator=g).double(), torch.tensor(math.pi / 2, dtype=torch.float64)
    note = told("gap", "the gap is at least 2 arcsin(m/2)")
    check_bound(gap, 2 * math.asin(0.175), sample, extremal=opposite, **ATTACK, **note)


def test_the_two_defaults_are_one_margin_at_a_right_angle():
    by_hand = math.degrees(2 * math.asin(0.35 / math.sqrt(2)))
    assert by_hand == pytest.approx(28.66, abs=5e-3) and math.degrees(0.5) == pytest.approx(28.65, abs=5e-3)
    assert math.degrees(geometry.angular_gap("cosface", math.pi / 2, 0.35)) == pytest.approx(by_hand)
    equal = geometry.angular_gap("cosface", math.pi / 2, math.sqrt(2) * math.sin(0.25))
    check_identity(equal, 0.5, **told("meet", "CosFace with m = sqrt(2) sin(1/4) has ArcFace's gap 1/2"))


# Section 11


def test_without_an_effect_one_claim_in_forty_is_reproduced():
    size = [row["reproduced"] for row in ev.power_table(1.0, range(3, 21)) if row["effect"] == "none"]
    check_identity(size, [0.025] * len(size), tolerance=1e-6, **told("size", "2.5 % at any number of seeds"))
    seen = [row["reproduced"] for row in ev.power_table(1.0, (3, 5, 10)) if row["effect"] == "the paper's"]
    check_identity(
        seen, [0.18, 0.40, 0.80], tolerance=6e-3, **told("seen", "an effect of one s.d. with 3, 5, 10 seeds")
    )


def test_what_a_slope_of_overlapping_training_sets_can_be_seen_from():
    seen = [ev.detectable_effect(n, train_test_ratio=0.5) for n in (3, 10)]
    assert seen == pytest.approx([5.2, 2.4], abs=0.06)
