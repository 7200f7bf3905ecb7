"""What notebook 06b (contrastive and N-pair) says beside its check cells: cases, limits, counterexamples, float64.

Each check raises if its statement does not hold; the formulas are those of the notebook's equations.
"""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from reprolib.losses import contrastive_loss, n_pair_loss, triplet_loss
from reprolib.losses.metric import deepid2_margin
from reprolib.theory import bounds, geometry, normal
from reprolib.theory.checks import check_bound, check_counterexample, check_gradient, check_identity, texts_for

about = texts_for("06b")
ATTACK = {"draws": 150, "steps": 40}
A, B, N = normal(5, 4, seed=30), normal(5, 4, seed=31), 4
TWO = normal(2, 3, seed=32), normal(2, 3, seed=33)
OVO = partial(n_pair_loss, form="ovo")


def real(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def draw(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    return normal(N, 3, seed=generator), normal(N, 3, seed=generator)


def reversed_sign(a: Tensor, b: Tensor) -> Tensor:
    """A study note's misprint: log(1 + sum_j exp(f_i.f_i+ - f_i.f_j+))."""
    s = a @ b.T
    gap = (s.diagonal()[:, None] - s).masked_fill(torch.eye(len(a), dtype=torch.bool), -math.inf)
    return functional.softplus(gap.logsumexp(1)).mean()


# --- section 1: the springs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", [1.5, 2.0])
def test_the_misplaced_hinge_charges_strangers_that_are_far_enough(distance):
    pair = real([[distance, 0.0]]), real([[0.0, 0.0]]), torch.tensor([False])
    check_counterexample(
        contrastive_loss(*pair, 1.0, "misplaced_hinge"), 0.0, **about("t1", "'far strangers cost nothing'", "(6b.4)")
    )
    assert float(contrastive_loss(*pair, 1.0)) == 0


def test_normface_pushes_by_the_distance_up_to_the_edge():
    far = real([0.05, 0.3, 0.7, 0.999, 1.3])

    def cost(d):
        x = torch.stack([d, torch.zeros(5).double()], 1)
        # not normalised by the library: the law itself
        return (1 - x.square().sum(1)).clamp_min(0).sum()

    check_gradient(cost, far, lambda d: -2 * d * (d < 1), **about("t2", "[m - D^2]+: -2D or 0", "NormFace eq. 7"))


def test_at_most_d_plus_1_points_are_at_one_distance():
    # the Gram matrix of the others, seen from one of them, is m^2/2 (I + 1 1^T): of full rank
    gram = (torch.eye(6) + 1).double() / 2
    assert int(torch.linalg.matrix_rank(gram)) == 6


# --- section 3: DeepID2 -----------------------------------------------------------------------------------------------


def test_the_margin_is_the_threshold_with_the_fewest_errors():
    distance, kind = normal(40, seed=14).abs(), normal(40, seed=16) < 0
    errors = [int(((distance <= t) != kind).sum()) for t in [-1.0, *distance.tolist(), deepid2_margin(distance, kind)]]
    check_identity(errors[-1], min(errors), **about("t3", "fewest errors", "Sun et al. 2014"))


def test_the_margin_follows_the_scale():
    distance, kind = normal(40, seed=14).abs(), normal(40, seed=16) < 0
    shrunk = deepid2_margin(distance / 8, kind)
    check_identity(8 * shrunk, deepid2_margin(distance, kind), **about("t4", "m(x/8) = m(x)/8", "section 3"))


# --- section 4: N-pair ------------------------------------------------------------------------------------------------


def test_one_against_one_has_two_way_probabilities():
    eye, S = torch.eye(5).double(), A @ B.T
    two_way = torch.sigmoid(S - S.diagonal()[:, None]) * (1 - eye)
    two_way = two_way - torch.diag(two_way.sum(1))
    note = about("t5", "gradient of ovo", "(6b.15)")
    check_gradient(OVO, (A, B), lambda a, b: (two_way @ b / 5, two_way.T @ a / 5), **note)


def test_one_against_one_is_at_most_n_minus_1_times_the_other():
    note = about("t6", "ovo <= (N - 1) mc, equality for N = 2", "(6b.15)")
    check_bound(lambda a, b: (len(a) - 1) * n_pair_loss(a, b), OVO, draw, extremal=TWO, **note, **ATTACK)


def test_two_pairs_of_unit_vectors_are_soft_triplets_of_half_the_squares():
    f, g = (functional.normalize(v) for v in TWO)
    half = torch.stack([((f[k] - g[k]) ** 2 - (f[k] - g[1 - k]) ** 2).sum() / 2 for k in (0, 1)])
    check_identity(n_pair_loss(f, g), functional.softplus(half).mean(), **about("t7", "N = 2", "(6b.15)"))
    apart = abs(n_pair_loss(f, g) - triplet_loss(f, g, g.flip(0), 0.2))
    check_counterexample(apart, 0.0, **about("t8", "'N = 2 is the triplet loss'", "reading notes"))


def test_the_reversed_sign():
    perfect = 5**0.5 * torch.eye(4).double()
    right, wrong = n_pair_loss(perfect, perfect), reversed_sign(perfect, perfect)
    expected = [math.log1p(3 * math.exp(k)) for k in (-5, 5)]
    check_identity([right, wrong], expected, **about("t9", "0.02 and 6.10", "(6b.13)"))
    f = TWO[0][:1].clone().requires_grad_(True)
    slopes = [torch.autograd.grad(functional.softplus(way * (f @ (TWO[1][1] - TWO[1][0]))), f)[0] for way in (1, -1)]
    note = about("t10", "one anchor, N = 2: antiparallel", "(6b.14)")
    check_identity(functional.cosine_similarity(*slopes), -1.0, **note)


def test_the_best_answer_of_the_reversed_loss_is_collapse():
    still = torch.ones(N, 3, dtype=torch.float64)
    note = about("t11", "f = f+: reversed >= log N, equality at collapse", "(6b.16)")
    check_bound(lambda f: reversed_sign(f, f), math.log(N), lambda g: draw(g)[0], extremal=still, **note, **ATTACK)


def test_the_floors_of_unit_vectors():
    simplex = geometry.regular_simplex(N, N - 1)

    def on_sphere(loss):
        return lambda a, b: loss(functional.normalize(a), functional.normalize(b))

    note = about("t12", "mc >= log(1 + (N-1) e^(-N/(N-1)))", "NormFace Prop. 2")
    floor = bounds.normface_loss_bound(N, 1.0)
    check_bound(on_sphere(n_pair_loss), floor, draw, extremal=(simplex, simplex), **note, **ATTACK)
    floor = (N - 1) * math.log1p(math.exp(-N / (N - 1)))
    note = about("t13", "ovo >= (N-1) log(1 + e^(-N/(N-1)))", "(6b.17)")
    check_bound(on_sphere(OVO), floor, draw, extremal=(simplex, simplex), **note, **ATTACK)


def test_longer_vectors_lower_the_loss_of_pairs_in_order():
    S = A @ B.T
    slope = ((1.4 * S).softmax(1) * (S - S.diagonal()[:, None])).sum().reshape(1) / 5
    note = about("t14", "dL/dsigma = sum p (s_ij - s_ii)/(N sigma)", "(6b.14)")
    check_gradient(lambda s: n_pair_loss(s.sqrt() * A, s.sqrt() * B), real([1.4]), lambda s: slope, **note)


def test_the_mean_exponent():
    S = A @ B.T
    direct = (S - S.diagonal()[:, None]).sum() / 20
    by_means = -5 / 4 * ((A - A.mean(0)) * (B - B.mean(0))).sum() / 5
    check_identity(direct, by_means, **about("t15", "E by the means", "(6b.16)"))
