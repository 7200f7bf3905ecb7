"""What notebook 06 (center loss and triplets) says beside its check cells: cases, limits and counterexamples, float64.

Each check raises if its statement does not hold; the formulas are those of the notebook's equations.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch.nn import functional

from reprolib import losses
from reprolib.losses import CenterLoss, JointLoss, mining, triplet_loss
from reprolib.losses.distance import pairwise_squared_distance
from reprolib.theory import normal
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity, texts_for
from reprolib.theory.scatter import effective_rank, scatter_matrices

about = texts_for("06")
X, Y, C = normal(9, 3), torch.tensor([0, 0, 0, 0, 2, 2, 2, 3, 3]), normal(4, 3, seed=1)
COUNT = torch.bincount(Y, minlength=4).double()[:, None]
MEAN = torch.zeros(4, 3).double().index_add_(0, Y, X) / COUNT.clamp_min(1)


def real(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def moved(update: str, alpha: float, centers: Tensor, features: Tensor, labels: Tensor, steps: int = 1) -> Tensor:
    rule = CenterLoss(len(centers), centers.shape[1], alpha, update).double()
    rule.centers.copy_(centers)
    for _ in range(steps):
        rule.update_centers(features, labels)
    return rule.centers.clone()


def center_loss(x: Tensor, c: Tensor) -> Tensor:
    return (x - c[Y]).square().sum() / 2


# --- section 1: center loss -------------------------------------------------------------------------------------------


def test_the_best_centres_are_the_class_means():
    least, note = float(center_loss(X, MEAN)), about("t1", "L_C(c) >= L_C(means)", "(6.2)")
    check_bound(lambda c: center_loss(X, c), least, lambda g: normal(4, 3, seed=g), extremal=MEAN, draws=200, **note)


def test_the_rule_is_a_mean_with_the_old_centre_and_leaves_absent_classes():
    running = torch.stack([torch.cat([C[k : k + 1], X[k == Y]]).mean(0) for k in range(4)])
    check_identity(moved("paper", 1.0, C, X, Y), running, **about("t2", "alpha = 1", "(6.4)"))
    check_identity(moved("paper", 0.7, C, X, Y)[1], C[1], **about("t3", "n = 0: it stays", "Wen et al., eq. 4"))


@pytest.mark.parametrize(("rule", "rate"), [("paper", 1.0), ("autograd", 1.0), ("scatter", 0.05)])
@pytest.mark.parametrize("n", [1, 4, 16, 64])
def test_the_error_after_five_steps(rule, rate, n):
    labels = (torch.arange(64) >= n).long()
    once, five = (
        1 - moved(rule, rate, real([[0.0], [0.0]]), (1 - labels).double()[:, None], labels, steps)[0]
        for steps in (1, 5)
    )
    check_identity(five, once**5, **about("t4", "(1 - phi)^5", "section 1.3"))


def test_the_scatter_step_diverges_for_a_class_that_fills_the_batch():
    step = moved("scatter", 0.05, real([[0.0]]), torch.ones(64, 1).double(), torch.zeros(64).long())
    check_counterexample(step, 2.0, **about("t5", "'the scatter step stays below 2'", "section 1.3"))


def test_a_smaller_picture_divides_the_center_loss():
    for a in (1 / 7, 3, 50):
        check_identity(center_loss(X / a, C / a) * a**2, center_loss(X, C), **about("t6", "L_C/a^2", "(6.8)"))


def test_joint_supervision_has_the_gradients_of_algorithm_1():
    W, lam = normal(4, 3, seed=2), 0.1
    both = JointLoss(
        losses.Softmax(3, 4, bias=False, implementation="reference").double(), CenterLoss(4, 3).double().eval(), lam
    )
    both.auxiliary.centers.copy_(C)
    with torch.no_grad():
        both.head.weight.copy_(W)
    p = (X @ W.T).softmax(1) - functional.one_hot(Y, 4)
    note = about("t7", "dL/dx = softmax part + lambda (x - c)", "Wen et al., Algorithm 1")
    check_gradient(lambda x: both(x, Y), X, lambda _: p @ W / 9 + lam * (X - C[Y]), **note)
    both(X, Y).backward()
    check_identity(both.head.weight.grad, p.T @ X / 9, **about("t8", "L_C gives W no gradient", "Algorithm 1"))


def test_the_balance_is_an_equality_for_two_classes():
    def pull(z, W):
        return (W[0] - z.softmax(0) @ W).norm() / (1 - z.softmax(0)[0]) / (W[0] - W[1]).norm()

    check_identity(pull(normal(2, seed=7), normal(2, 3, seed=8)), 1.0, **about("t9", "two classes", "(6.12)"))


def test_sum_and_mean_reductions_differ_by_the_batch_size():
    x, y = normal(60, 16, seed=50), torch.arange(6).repeat_interleave(10)
    summed, mean = (CenterLoss(6, 16, reduction=way).double()(x, y) for way in ("sum", "mean"))
    check_identity(summed, 60 * mean, **about("t10", "sum = N mean", "section 7"))


def test_distances_by_expansion_lose_all_digits_and_by_difference_none():
    near = torch.tensor([[100.0, 100.0]]), torch.tensor([[100.001, 100.001]])
    truth = float(pairwise_squared_distance(near[0].double(), near[1].double()))
    error = {way: abs(float(pairwise_squared_distance(*near, way)) / truth - 1) for way in ("difference", "expansion")}
    assert error["expansion"] > 0.1
    assert error["difference"] <= 8 * 2.0**-23


def test_scatter_matrices_add_up_and_ranks_count_directions():
    within, between = scatter_matrices(X, Y)
    off = X - X.mean(0)
    check_identity(within + between, off.T @ off / 9, **about("t11", "S_w + S_b = S_total", "(6.10)"))
    check_identity(effective_rank(torch.diag(real([3.0, 3.0, 0.0]))), 2.0, **about("t12", "two equal", "(6b.11)"))
    check_identity(effective_rank(7 * within), effective_rank(within), **about("t13", "free of scale", "(6b.11)"))


# --- section 4: triplets ----------------------------------------------------------------------------------------------

RAW = tuple(normal(3, 8, 4, seed=20))
UNIT = tuple(functional.normalize(part) for part in RAW)


def closed(a: Tensor, p: Tensor, n: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    on = ((a - p).square() - (a - n).square()).sum(1, keepdim=True) + 2.5 > 0
    return 2 * on * (n - p), 2 * on * (p - a), 2 * on * (a - n)


def test_the_three_gradients_sum_to_zero_and_pass_the_normalisation():
    check_identity(sum(closed(*UNIT)), 0.0, **about("t14", "sum 0", "(6.14)"))
    tangential = tuple(
        (g - u * (u * g).sum(1, keepdim=True)) / x.norm(dim=1, keepdim=True)
        for u, g, x in zip(UNIT, closed(*UNIT), RAW, strict=True)
    )

    def through(*x):
        return triplet_loss(*(functional.normalize(part) for part in x), 2.5, reduction="sum")

    check_gradient(through, RAW, lambda *x: tangential, **about("t15", "(g - f (f.g))/|x|", "(6.14)"))


LABELS = torch.arange(5).repeat_interleave(4)
F = functional.normalize(normal(20, 3, seed=21) + 1.2 * normal(5, 3, seed=22)[LABELS])
D2 = (F[:, None] - F).square().sum(2)
TRIPLES = torch.tensor(
    [t for t in itertools.product(range(20), repeat=3) if t[0] != t[1] and t[0] // 4 == t[1] // 4 != t[2] // 4]
).T
AP, AN = D2[TRIPLES[0], TRIPLES[1]], D2[TRIPLES[0], TRIPLES[2]]


def test_the_semi_hard_miner_is_brute_force():
    found = {}
    semi = mining.triplet_category(AP, AN, 0.2) == mining.SEMI_HARD
    for a, p, n in sorted(TRIPLES.T[semi].tolist(), key=lambda t: -D2[t[0], t[2]]):
        found[a, p] = n
    oracle = torch.tensor([(*pair, n) for pair, n in sorted(found.items())])
    mined = torch.stack(list(mining.semi_hard_triplets(F, LABELS, 0.2, pick="hardest")), 1)
    check_identity(mined, oracle, **about("t16", "semi-hard = brute force", "Schroff et al., eq. 3"))


def test_mined_triplets_are_semi_hard():
    x, y = functional.normalize(normal(60, 128, seed=50)), torch.arange(6).repeat_interleave(10)
    a, p, n = mining.semi_hard_triplets(x, y, 0.2, pick="hardest")
    gap = (x[a] - x[n]).square().sum(1) - (x[a] - x[p]).square().sum(1)
    assert len(a) > 0
    assert bool(((gap > 0) & (gap < 0.2)).all())


def test_batch_all_is_a_mean_over_a_list():
    terms = (AP.sqrt() - AN.sqrt() + 0.3).clamp_min(0)
    library = [losses.batch_all_triplet_loss(F, LABELS, 0.3, average=way) for way in ("all", "active")]
    check_identity(library, [terms.mean(), terms[terms > 0].mean()], **about("t17", "batch-all", "Hermans, eq. 6"))


def test_the_soft_margin_lies_above_the_hinge_by_at_most_log_2():
    def above(u):
        return functional.softplus(u) - u.clamp_min(0)

    options = {"side": "upper", "extremal": real(0.0), "draws": 200}
    note = about("t18", "log(1 + e^u) - [u]+ <= log 2", "section 4.3")
    check_bound(above, math.log(2), lambda g: 4 * normal(1, seed=g)[0], **options, **note)


# --- section 5: collapse ----------------------------------------------------------------------------------------------


def test_the_ratio_of_mean_squares_is_the_F_statistic():
    labels = torch.arange(4).repeat_interleave(3)
    u = (normal(12, 3, seed=24) + 0.8 * normal(4, 3, seed=25)[labels])[:, :1]
    within, between = (part.trace() for part in scatter_matrices(u, labels))
    ours = (12 * between / 3) / (3 * within / 2)  # MS_b = PK S_b/(P-1) over MS_w = K S_w/(K-1)
    theirs = stats.f_oneway(*(u[labels == k, 0].numpy() for k in range(4))).statistic
    check_identity(ours, float(theirs), tolerance=1e-9, **about("t19", "F of scipy", "(6.20)"))


def test_plain_distances_keep_a_unit_force_at_collapse():
    origin = torch.zeros(1, 2).double()
    for t in (1e-2, 1e-5, 1e-8):
        n = real([[t, 0.0]]).requires_grad_(True)
        slopes = [
            torch.autograd.grad(triplet_loss(origin, origin, n, 0.2, squared=way), n)[0].norm() for way in (False, True)
        ]
        check_identity(slopes[0], 1.0, tolerance=1e-9, **about("t20", "|dL/dn| = 1", "section 5.1"))
        check_identity(slopes[1] / t, 2.0, tolerance=1e-9, **about("t21", "2 D for squares", "section 5.1"))


def test_without_structure_the_sign_of_q_is_a_coin():
    labels, signs = torch.arange(4).repeat_interleave(3), []
    for k in range(400):
        S_w, S_b = (part.trace() for part in scatter_matrices(normal(12, 3, seed=1000 + k), labels))
        signs.append(float(S_w / 2 - 4 * S_b / 3) < 0)
    assert 0.4 < sum(signs) / len(signs) < 0.6
