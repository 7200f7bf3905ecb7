"""Contrastive, triplet, N-pair and agent losses against loops written from the equations."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning import distances, losses, reducers

from reprolib.losses import (
    CContrastive,
    CTriplet,
    batch_all_triplet_loss,
    batch_hard_triplet_loss,
    c_contrastive_loss,
    c_triplet_loss,
    contrastive_loss,
    deepid2_margin,
    n_pair_loss,
    triplet_loss,
)
from reprolib.losses.distance import pairwise_distance, pairwise_squared_distance
from reprolib.losses.mining import batch_hard_triplets

LABELS = torch.tensor([0, 1, 0, 2, 1, 2, 0, 1])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def squared(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b||^2 by a loop in Python floats."""
    return math.fsum((x - y) ** 2 for x, y in zip(a.tolist(), b.tolist(), strict=True))


def unit(a: torch.Tensor) -> torch.Tensor:
    return a / math.sqrt(math.fsum(x * x for x in a.tolist()))


def gradcheck(function, *inputs: torch.Tensor) -> bool:
    return torch.autograd.gradcheck(function, tuple(x.clone().requires_grad_() for x in inputs), atol=1e-7)


class TestDistance:
    @pytest.mark.parametrize("method", ["difference", "expansion"])
    def test_equals_the_loop(self, method):
        a, b = draw(5, 3), draw(4, 3, seed=1)
        expected = torch.tensor([[squared(x, y) for y in b] for x in a], dtype=torch.float64)
        assert torch.allclose(pairwise_squared_distance(a, b, method), expected, rtol=1e-13, atol=1e-13)
        assert torch.allclose(pairwise_distance(a, b), expected.sqrt(), rtol=1e-13)

    @pytest.mark.parametrize("norm", [1.0, 141.0, 1e4, 1e6])
    def test_difference_form_keeps_the_stated_relative_error_at_large_norms(self, norm):
        direction = torch.ones(1, 128, dtype=torch.float64) / math.sqrt(128)
        a = (norm * direction + 1e-2 * draw(6, 128)).float()
        b = (norm * direction + 1e-2 * draw(7, 128, seed=1)).float()
        exact = (a.double().unsqueeze(1) - b.double()).square().sum(dim=2)
        error = (pairwise_squared_distance(a, b).double() - exact).abs() / exact.clamp_min(1e-300)
        assert error[exact > 0].max() <= (128 + 6) * torch.finfo(torch.float32).eps

    def test_expansion_loses_the_published_example_and_the_difference_form_does_not(self):
        # ||x|| about 141, ||x - c|| about 1.4e-3: a popular implementation returns the floor of its clamp.
        a = torch.full((1, 2), 100.0)
        b = a + 1e-3
        exact = (a.double() - b.double()).square().sum()
        assert abs(pairwise_squared_distance(a, b).double() - exact) <= 1e-6 * exact
        bound = (2 + 4) * torch.finfo(torch.float32).eps * float((a.square() + b.square()).sum())
        failed = pairwise_squared_distance(a, b, "expansion").double()
        assert abs(failed - exact) > 0.5 * exact
        assert abs(failed - exact) <= bound

    def test_gradient_error_is_that_of_rounding_the_inputs(self):
        a = (1e4 + draw(6, 16)).float().requires_grad_()
        b = (1e4 + draw(5, 16, seed=1)).float()
        weight = draw(6, 5, seed=2, dtype=torch.float32)
        (pairwise_squared_distance(a, b) * weight).sum().backward()
        difference = a.detach().double().unsqueeze(1) - b.double()
        exact = 2 * (weight.double().unsqueeze(2) * difference).sum(dim=1)
        assert (a.grad.double() - exact).abs().max() <= 64 * torch.finfo(torch.float32).eps

    def test_first_and_second_derivatives(self):
        a, b = draw(4, 3), draw(5, 3, seed=1)
        assert gradcheck(pairwise_squared_distance, a, b)
        assert gradcheck(pairwise_distance, a, b)
        inputs = (a.requires_grad_(), b.requires_grad_())
        assert torch.autograd.gradgradcheck(pairwise_squared_distance, inputs)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_equal_points_have_gradient_zero_and_no_nan(self, dtype):
        a = draw(1, 4, dtype=dtype).repeat(5, 1).requires_grad_()
        for function in (pairwise_distance, pairwise_squared_distance):
            (gradient,) = torch.autograd.grad(function(a).sum(), a)
            assert torch.equal(gradient, torch.zeros_like(a))

    def test_half_precision_is_computed_in_float32_and_survives_autocast(self):
        a = draw(4, 8, dtype=torch.bfloat16)
        assert pairwise_squared_distance(a).dtype == torch.float32
        wide = draw(6, 64, dtype=torch.float32)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = pairwise_squared_distance(wide, method="expansion")
        assert torch.equal(inside, pairwise_squared_distance(wide, method="expansion"))

    def test_wrong_input(self):
        good = draw(3, 2)
        with pytest.raises(ValueError, match="a must have shape"):
            pairwise_squared_distance(good[0])
        with pytest.raises(ValueError, match="2 columns"):
            pairwise_squared_distance(good, draw(3, 3))
        with pytest.raises(ValueError, match="finite"):
            pairwise_squared_distance(good.log())
        with pytest.raises(TypeError, match="floating-point"):
            pairwise_squared_distance(good.long())
        with pytest.raises(TypeError, match="one dtype"):
            pairwise_squared_distance(good, good.float())
        with pytest.raises(ValueError, match="method must be one of"):
            pairwise_squared_distance(good, method="exact")


class TestContrastive:
    same = torch.tensor([True, False, True, False, False, True])

    def oracle(self, a, b, margin, form, slope=1.0, shift=0.0) -> float:
        terms = []
        for x, y, s in zip(a, b, self.same.tolist(), strict=True):
            if form == "normface":
                d2 = squared(unit(x), unit(y))
                terms.append(d2 if s else max(0.0, margin - d2))
                continue
            if form == "cosine":
                c = math.fsum(u * v for u, v in zip(unit(x).tolist(), unit(y).tolist(), strict=True))
                terms.append(0.5 * (float(s) - 1 / (1 + math.exp(-(slope * c + shift)))) ** 2)
                continue
            d = math.sqrt(squared(x, y))
            if form == "misplaced_hinge":
                terms.append(d**2 if s else max(0.0, (margin - d) ** 2))
            else:
                terms.append(0.5 * d**2 if s else 0.5 * max(0.0, margin - d) ** 2)
        return math.fsum(terms) / len(terms)

    @pytest.mark.parametrize("form", ["hadsell", "deepid2", "normface", "misplaced_hinge"])
    @pytest.mark.parametrize("margin", [0.5, 1.0, 2.5])
    def test_equals_the_loop(self, form, margin):
        a, b = draw(6, 4), draw(6, 4, seed=1)
        result = contrastive_loss(a, b, self.same, margin, form)
        assert float(result) == pytest.approx(self.oracle(a, b, margin, form), rel=1e-13)

    def test_cosine_form_equals_the_loop(self):
        a, b = draw(6, 4), draw(6, 4, seed=1)
        result = contrastive_loss(a, b, self.same, form="cosine", slope=3.0, shift=-0.5)
        assert float(result) == pytest.approx(self.oracle(a, b, None, "cosine", 3.0, -0.5), rel=1e-12)

    def test_springs(self):
        # Similar: gradient x1 - x2. Dissimilar inside the margin: -(m - D)(x1 - x2)/D. Outside: 0.
        a = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]], dtype=torch.float64, requires_grad=True)
        b = torch.tensor([[3.0, 4.0], [0.3, 0.4], [3.0, 4.0]], dtype=torch.float64)
        contrastive_loss(a, b, torch.tensor([True, False, False]), 1.0, reduction="sum").backward()
        expected = torch.tensor([[-3.0, -4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
        assert torch.allclose(a.grad, expected, rtol=1e-14)

    def test_misplaced_hinge_pulls_far_negatives_in(self):
        # The printed max(0, (m - D)^2) at m = 1: 0.25 at D = 1.5 and 1 at D = 2, where the hinge gives 0.
        a, b = torch.zeros(2, 1).double(), torch.tensor([[1.5], [2.0]]).double()
        different = torch.tensor([False, False])
        wrong = contrastive_loss(a, b, different, 1.0, "misplaced_hinge", reduction="none")
        assert wrong.tolist() == [0.25, 1.0]
        assert contrastive_loss(a, b, different, 1.0, "hadsell", reduction="none").tolist() == [0.0, 0.0]

    def test_gradients(self):
        a, b = draw(6, 4), draw(6, 4, seed=1)
        for form in ("hadsell", "deepid2", "normface", "misplaced_hinge"):
            assert gradcheck(lambda x, y, form=form: contrastive_loss(x, y, self.same, 2.0, form), a, b)
        slope, shift = torch.tensor(2.0).double(), torch.tensor(-0.3).double()
        assert gradcheck(
            lambda x, y, w, c: contrastive_loss(x, y, self.same, form="cosine", slope=w, shift=c),
            a, b, slope, shift,
        )  # fmt: skip

    @pytest.mark.parametrize("form", ["hadsell", "normface", "misplaced_hinge"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_finite_for_equal_points_zero_vectors_and_large_norms(self, form, dtype):
        a = torch.stack([torch.zeros(8), torch.ones(8), 1e4 * torch.ones(8)]).to(dtype).requires_grad_()
        b = a.detach().clone()
        for same in (True, False):
            loss = contrastive_loss(a, b, torch.tensor([same] * 3), 1.0, form)
            (gradient,) = torch.autograd.grad(loss, a)
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()
            assert gradient.dtype == dtype

    def test_pytorch_metric_learning_has_normface_form_on_squared_distances(self):
        # Theirs is D | max(0, m - D): with D the squared distance of unit vectors that is NormFace's eq. 7.
        features = draw(8, 4)
        i, j = torch.triu_indices(8, 8, 1)
        same = LABELS[i] == LABELS[j]
        pairs = contrastive_loss(features[i], features[j], same, 1.0, "normface", reduction="none")
        theirs = losses.ContrastiveLoss(
            pos_margin=0,
            neg_margin=1.0,
            distance=distances.LpDistance(power=2),
            reducer=reducers.MeanReducer(),
        )
        assert float(theirs(features, LABELS)) == pytest.approx(
            float(pairs[same].mean() + pairs[~same].mean()), rel=1e-12
        )

    def test_pytorch_metric_learning_needs_squaring_to_be_hadsell(self):
        features = draw(8, 4)
        theirs = losses.ContrastiveLoss(
            pos_margin=0,
            neg_margin=2.0,
            distance=distances.LpDistance(normalize_embeddings=False),
            reducer=reducers.DoNothingReducer(),
        )(features, LABELS)
        for kind, same in (("pos_loss", True), ("neg_loss", False)):
            i, j = theirs[kind]["indices"]
            ours = contrastive_loss(features[i], features[j], torch.full(i.shape, same), 2.0, reduction="none")
            assert torch.allclose(ours, theirs[kind]["losses"].square() / 2, atol=1e-13)
            assert not torch.allclose(ours, theirs[kind]["losses"], atol=1e-3)

    def test_wrong_input(self):
        a, b = draw(6, 4), draw(6, 4, seed=1)
        with pytest.raises(TypeError, match="same must be a bool tensor"):
            contrastive_loss(a, b, self.same.long(), 1.0)
        with pytest.raises(ValueError, match="same must have shape"):
            contrastive_loss(a, b, self.same[:3], 1.0)
        with pytest.raises(ValueError, match="margin must be a finite number"):
            contrastive_loss(a, b, self.same, 0.0)
        with pytest.raises(ValueError, match="needs a margin"):
            contrastive_loss(a, b, self.same)
        with pytest.raises(ValueError, match="has no margin"):
            contrastive_loss(a, b, self.same, 1.0, "cosine")
        with pytest.raises(ValueError, match="slope must be a finite number"):
            contrastive_loss(a, b, self.same, form="cosine", slope=math.nan)
        with pytest.raises(ValueError, match="form must be one of"):
            contrastive_loss(a, b, self.same, 1.0, "square")
        with pytest.raises(ValueError, match="one shape"):
            contrastive_loss(a, b[:, :3], self.same, 1.0)
        with pytest.raises(ValueError, match="b must be finite"):
            contrastive_loss(a, b * math.nan, self.same, 1.0)
        with pytest.raises(ValueError, match="reduction must be one of"):
            contrastive_loss(a, b, self.same, 1.0, reduction="max")

    @pytest.mark.parametrize("seed", range(20))
    def test_deepid2_margin_has_the_fewest_errors(self, seed):
        generator = torch.Generator().manual_seed(seed)
        distance = torch.randint(0, 8, (12,), generator=generator).double() / 4
        same = torch.rand(12, generator=generator) < 0.5
        same[:2] = torch.tensor([True, False])

        def errors(threshold: float) -> int:
            return int(((distance <= threshold) != same).sum())

        grid = [k / 16 for k in range(-1, 40)]
        margin = deepid2_margin(distance, same)
        assert margin >= 0
        assert errors(margin) == min(errors(t) for t in grid if t >= 0)

    def test_deepid2_margin_wrong_input(self):
        distance = torch.tensor([0.1, 0.5])
        with pytest.raises(ValueError, match="both kinds"):
            deepid2_margin(distance, torch.tensor([True, True]))
        with pytest.raises(ValueError, match="one length"):
            deepid2_margin(distance, torch.tensor([True]))
        with pytest.raises(ValueError, match="finite and >= 0"):
            deepid2_margin(-distance, torch.tensor([True, False]))


class TestTriplet:
    @pytest.mark.parametrize("is_squared", [True, False])
    @pytest.mark.parametrize("soft", [True, False])
    def test_equals_the_loop(self, is_squared, soft):
        a, p, n = draw(9, 3), draw(9, 3, seed=1), draw(9, 3, seed=2)
        margin = None if soft else 0.7
        terms = []
        for x, y, z in zip(a, p, n, strict=True):
            ap, an = squared(x, y), squared(x, z)
            excess = ap - an if is_squared else math.sqrt(ap) - math.sqrt(an)
            terms.append(math.log1p(math.exp(excess)) if soft else max(0.0, excess + margin))
        result = triplet_loss(a, p, n, margin, is_squared, soft=soft)
        assert float(result) == pytest.approx(math.fsum(terms) / 9, rel=1e-13)

    def test_facenet_gradients(self):
        # Active: 2(n - p), 2(p - a), 2(a - n) for anchor, positive, negative.
        a, p, n = (draw(1, 3, seed=s).requires_grad_() for s in range(3))
        triplet_loss(a, p, n, 100.0).backward()
        assert torch.allclose(a.grad, 2 * (n - p), rtol=1e-14)
        assert torch.allclose(p.grad, 2 * (p - a), rtol=1e-14)
        assert torch.allclose(n.grad, 2 * (a - n), rtol=1e-14)

    def test_collapse_is_stationary_for_squared_distances_only(self):
        point = draw(1, 3).repeat(3, 1).requires_grad_()
        loss = triplet_loss(point[:1], point[1:2], point[2:], 0.2)
        (gradient,) = torch.autograd.grad(loss, point)
        assert loss.item() == 0.2
        assert torch.equal(gradient, torch.zeros_like(gradient))
        # Plain distances: a unit gradient however near the collapse, the convention 0 only exactly at it.
        near = (point.detach() + torch.tensor([[0.0] * 3, [1e-9, 0, 0], [0.0] * 3])).requires_grad_()
        loss = triplet_loss(near[:1], near[1:2], near[2:], 0.2, squared=False)
        (gradient,) = torch.autograd.grad(loss, near)
        assert float(gradient[1].norm()) == pytest.approx(1.0, rel=1e-12)
        loss = triplet_loss(point[:1], point[1:2], point[2:], 0.2, squared=False)
        assert torch.equal(torch.autograd.grad(loss, point)[0], torch.zeros_like(point))

    def test_margin_on_the_unit_sphere_is_twice_the_cosine_margin(self):
        a, p, n = (torch.nn.functional.normalize(draw(5, 3, seed=s)) for s in range(3))
        cosine = 2 * ((a * n).sum(dim=1) - (a * p).sum(dim=1)) + 0.2
        values = triplet_loss(a, p, n, 0.2, reduction="none")
        assert torch.allclose(values, cosine.clamp_min(0), atol=1e-14)

    def test_gradcheck(self):
        a, p, n = draw(4, 2), draw(4, 2, seed=1), draw(4, 2, seed=2)
        for is_squared in (True, False):
            assert gradcheck(lambda *x, q=is_squared: triplet_loss(*x, 0.7, q), a, p, n)
            assert gradcheck(lambda *x, q=is_squared: triplet_loss(*x, None, q, soft=True), a, p, n)

    def test_wrong_input(self):
        a = draw(3, 2)
        with pytest.raises(ValueError, match="margin must be a finite number"):
            triplet_loss(a, a, a, -0.2)
        with pytest.raises(ValueError, match="margin must be a number > 0 unless soft"):
            triplet_loss(a, a, a)
        with pytest.raises(ValueError, match="the soft margin"):
            triplet_loss(a, a, a, 0.2, soft=True)
        with pytest.raises(TypeError, match="margin must be a real number"):
            triplet_loss(a, a, a, "0.2")
        with pytest.raises(ValueError, match="one shape"):
            triplet_loss(a, a, a[:2], 0.2)


def triplets_of(labels: torch.Tensor) -> list[tuple[int, int, int]]:
    y = labels.tolist()
    n = range(len(y))
    return [(a, p, k) for a in n for p in n for k in n if a != p and y[a] == y[p] and y[a] != y[k]]


class TestBatchTriplet:
    @pytest.mark.parametrize("is_squared", [False, True])
    @pytest.mark.parametrize("soft", [False, True])
    def test_batch_hard_equals_the_loop(self, is_squared, soft):
        x = draw(8, 3)
        d = [[squared(u, v) ** (1.0 if is_squared else 0.5) for v in x] for u in x]
        terms = []
        for a in range(8):
            hardest = max(d[a][p] for b, p, _ in triplets_of(LABELS) if b == a)
            nearest = min(d[a][n] for b, _, n in triplets_of(LABELS) if b == a)
            excess = hardest - nearest
            terms.append(math.log1p(math.exp(excess)) if soft else max(0.0, 0.3 + excess))
        result = batch_hard_triplet_loss(x, LABELS, None if soft else 0.3, soft, is_squared)
        assert float(result) == pytest.approx(math.fsum(terms) / 8, rel=1e-12)

    def test_batch_hard_leaves_out_samples_without_a_positive(self):
        x, labels = draw(5, 3), torch.tensor([0, 0, 1, 2, 0])
        whole = batch_hard_triplet_loss(x, labels, 0.3)
        index = batch_hard_triplets(x, labels)
        assert index.anchor.tolist() == [0, 1, 4]
        assert torch.equal(whole, triplet_loss(*(x[i] for i in index), 0.3, squared=False))

    def test_batch_hard_gradient_is_the_same_every_time_with_two_threads(self):
        # One negative is the nearest of many anchors, so that its gradient is a sum in which the order matters.
        generator, threads = torch.Generator().manual_seed(0), torch.get_num_threads()
        features = torch.randn(1200, 64, generator=generator).requires_grad_()
        labels = torch.arange(1200) // 4
        torch.set_num_threads(2)
        try:
            slopes = [torch.autograd.grad(batch_hard_triplet_loss(features, labels, 0.3), features) for _ in range(5)]
        finally:
            torch.set_num_threads(threads)
        assert all(torch.equal(slope, slopes[0][0]) for (slope,) in slopes[1:])

    @pytest.mark.parametrize("is_squared", [False, True])
    @pytest.mark.parametrize("soft", [False, True])
    @pytest.mark.parametrize("labels", [LABELS, torch.tensor([3, 3, 3, 3, 3, 7, 9, 9]), LABELS * 0 + LABELS % 2])
    def test_batch_all_equals_the_loop(self, is_squared, soft, labels):
        x = draw(8, 3)
        terms = []
        for a, p, n in triplets_of(labels):
            ap, an = squared(x[a], x[p]), squared(x[a], x[n])
            excess = ap - an if is_squared else math.sqrt(ap) - math.sqrt(an)
            terms.append(math.log1p(math.exp(excess)) if soft else max(0.0, excess + 0.3))
        margin = None if soft else 0.3
        mean = batch_all_triplet_loss(x, labels, margin, soft, is_squared, average="all")
        assert float(mean) == pytest.approx(math.fsum(terms) / len(terms), rel=1e-12)
        active = batch_all_triplet_loss(x, labels, margin, soft, is_squared)
        assert float(active) == pytest.approx(math.fsum(terms) / sum(t > 0 for t in terms), rel=1e-12)

    def test_gradcheck(self):
        x, labels = draw(6, 2), torch.tensor([0, 1, 0, 2, 1, 0])
        for is_squared in (False, True):
            for soft, margin in ((False, 0.3), (True, None)):
                assert gradcheck(lambda f, a=(margin, soft, is_squared): batch_hard_triplet_loss(f, labels, *a), x)
                for average in ("active", "all"):
                    options = (margin, soft, is_squared, average)
                    assert gradcheck(lambda f, a=options: batch_all_triplet_loss(f, labels, *a), x)

    def test_equals_pytorch_metric_learning(self):
        # Same definition: all triplets, squared or plain Euclidean distance, mean over the non-zero terms.
        x = draw(8, 3, seed=5)
        for power in (1, 2):
            distance = distances.LpDistance(normalize_embeddings=False, power=power)
            theirs = losses.TripletMarginLoss(margin=0.4, distance=distance)(x, LABELS)
            ours = batch_all_triplet_loss(x, LABELS, 0.4, squared=power == 2)
            assert float(ours) == pytest.approx(float(theirs), rel=1e-12)
            index = batch_hard_triplets(x, LABELS)
            theirs = losses.TripletMarginLoss(margin=0.4, distance=distance, reducer=reducers.MeanReducer())(
                x, LABELS, tuple(index)
            )
            ours = batch_hard_triplet_loss(x, LABELS, 0.4, squared=power == 2)
            assert float(ours) == pytest.approx(float(theirs), rel=1e-12)

    def test_collapsed_batch_gives_the_margin_and_no_nan(self):
        x = torch.ones(8, 3, requires_grad=True)
        for loss in (batch_hard_triplet_loss(x, LABELS, 0.3), batch_all_triplet_loss(x, LABELS, 0.3)):
            (gradient,) = torch.autograd.grad(loss, x)
            assert loss.item() == pytest.approx(0.3, rel=1e-6)
            assert torch.equal(gradient, torch.zeros_like(x))

    def test_batch_all_needs_memory_of_order_b_squared(self):
        # All triplets of 2 x 150 at once would be 2 * 150^3 floats, 75 times B^2.
        x, labels = draw(300, 4, dtype=torch.float32), torch.arange(300) % 2
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as log:
            batch_all_triplet_loss(x, labels, 0.3)
        assert 0 < max(event.cpu_memory_usage for event in log.events()) <= 3 * 300 * 300 * 8

    def test_no_active_triplet_is_zero_with_a_gradient(self):
        x = torch.tensor([[0.0], [0.1], [9.0], [9.1]], requires_grad=True)
        loss = batch_all_triplet_loss(x, torch.tensor([0, 0, 1, 1]), 0.2)
        loss.backward()
        assert loss.item() == 0
        assert torch.equal(x.grad, torch.zeros_like(x))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_finite_in_low_precision(self, dtype):
        x = (100 * draw(8, 16)).to(dtype).requires_grad_()
        for loss in (
            batch_hard_triplet_loss(x, LABELS, 0.3),
            batch_hard_triplet_loss(x, LABELS, soft=True),
            batch_all_triplet_loss(x, LABELS, 0.3),
            batch_all_triplet_loss(x, LABELS, soft=True, squared=True),
        ):
            (gradient,) = torch.autograd.grad(loss, x)
            assert loss.dtype == torch.float32
            assert torch.isfinite(loss)
            assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("function", [batch_hard_triplet_loss, batch_all_triplet_loss])
    def test_wrong_input(self, function):
        x = draw(4, 3)
        with pytest.raises(ValueError, match="no positive pair"):
            function(x, torch.arange(4), 0.3)
        with pytest.raises(ValueError, match="no negative pair"):
            function(x, torch.zeros(4, dtype=torch.int64), 0.3)
        with pytest.raises(ValueError, match=r"labels must have shape \(4,\)"):
            function(x, LABELS, 0.3)
        with pytest.raises(TypeError, match="int64"):
            function(x, torch.zeros(4), 0.3)
        with pytest.raises(ValueError, match="finite"):
            function(x * math.inf, LABELS[:4], 0.3)
        with pytest.raises(ValueError, match="margin"):
            function(x, LABELS[:4], 0.0)


class TestNPair:
    def oracle(self, f, g, form) -> float:
        n = len(f)
        z = [[math.fsum(u * v for u, v in zip(a, b, strict=True)) for b in g.tolist()] for a in f.tolist()]
        rows = [[math.exp(z[i][j] - z[i][i]) for j in range(n) if j != i] for i in range(n)]
        if form == "mc":
            return math.fsum(math.log1p(math.fsum(row)) for row in rows) / n
        return math.fsum(math.log1p(e) for row in rows for e in row) / n

    @pytest.mark.parametrize("form", ["mc", "ovo"])
    def test_equals_the_loop(self, form):
        f, g = draw(7, 5), draw(7, 5, seed=1)
        assert float(n_pair_loss(f, g, form=form)) == pytest.approx(self.oracle(f, g, form), rel=1e-13)
        # Terms far beyond 20, where a thresholded softplus would turn linear.
        assert float(n_pair_loss(3 * f, 3 * g, form=form)) == pytest.approx(self.oracle(3 * f, 3 * g, form), rel=1e-13)

    def test_mc_is_cross_entropy_and_ovo_is_never_smaller(self):
        for seed in range(20):
            f, g = draw(6, 4, seed=seed), draw(6, 4, seed=100 + seed)
            mc = n_pair_loss(f, g)
            entropy = torch.nn.functional.cross_entropy(f @ g.T, torch.arange(6))
            assert float(mc) == pytest.approx(float(entropy), abs=1e-13)
            assert n_pair_loss(f, g, form="ovo") >= mc

    def test_small_loss_keeps_its_relative_accuracy(self):
        # Perfect embeddings of scale 5: log(1 + 3 e^-25) = 4.17e-11, below float32's eps.
        f = 5 * torch.eye(4)
        assert float(n_pair_loss(f, f)) == pytest.approx(math.log1p(3 * math.exp(-25)), rel=1e-5)

    def test_closed_form_gradient(self):
        f, g = draw(6, 4).requires_grad_(), draw(6, 4, seed=1).requires_grad_()
        n_pair_loss(f, g).backward()
        p = torch.softmax(f @ g.T, dim=1).detach()
        assert torch.allclose(f.grad, (p @ g - g).detach() / 6, atol=1e-14)
        assert torch.allclose(g.grad, (p.T @ f - f).detach() / 6, atol=1e-14)

    def test_regulariser_is_the_mean_squared_norm_of_all_embeddings(self):
        f, g = draw(3, 4), draw(3, 4, seed=1)
        norms = [math.fsum(u * u for u in row) for row in torch.cat([f, g]).tolist()]
        extra = n_pair_loss(f, g, l2_weight=0.02) - n_pair_loss(f, g)
        assert float(extra) == pytest.approx(0.02 * math.fsum(norms) / 6, rel=1e-12)

    def test_labels_take_same_class_pairs_out_of_the_negatives(self):
        f, g = draw(4, 3), draw(4, 3, seed=1)
        labels = torch.tensor([5, 2, 5, 9])
        assert torch.equal(n_pair_loss(f, g, torch.tensor([7, 1, 3, 0])), n_pair_loss(f, g))
        z = (f @ g.T).tolist()
        terms = []
        for i, y in enumerate(labels.tolist()):
            others = [j for j in range(4) if int(labels[j]) != y]
            terms.append(math.log1p(math.fsum(math.exp(z[i][j] - z[i][i]) for j in others)))
        assert float(n_pair_loss(f, g, labels)) == pytest.approx(math.fsum(terms) / 4, rel=1e-13)

    def test_gradcheck(self):
        f, g = draw(5, 3), draw(5, 3, seed=1)
        labels = torch.tensor([0, 1, 0, 2, 3])
        for form in ("mc", "ovo"):
            assert gradcheck(lambda a, b, form=form: n_pair_loss(a, b, form=form, l2_weight=0.1), f, g)
            assert gradcheck(lambda a, b, form=form: n_pair_loss(a, b, labels, form), f, g)

    def test_equals_pytorch_metric_learning(self):
        # Theirs pairs the first two samples of each class; definition and gradient are the paper's mc form.
        f, g = draw(5, 4), draw(5, 4, seed=1)
        features = torch.stack([f, g], dim=1).flatten(0, 1)
        labels = torch.arange(5).repeat_interleave(2)
        theirs = losses.NPairsLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))
        assert float(n_pair_loss(f, g)) == pytest.approx(float(theirs(features, labels)), rel=1e-12)

    @pytest.mark.parametrize("form", ["mc", "ovo"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_finite_for_large_norms(self, form, dtype):
        f, g = (100 * draw(5, 8, seed=s).to(dtype) for s in range(2))
        f.requires_grad_()
        loss = n_pair_loss(f, g, form=form)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(f.grad).all()

    def test_wrong_input(self):
        f = draw(3, 2)
        with pytest.raises(ValueError, match="at least two classes"):
            n_pair_loss(f, f, torch.zeros(3, dtype=torch.int64))
        with pytest.raises(ValueError, match="at least two classes"):
            n_pair_loss(f[:1], f[:1])
        with pytest.raises(ValueError, match="form must be one of"):
            n_pair_loss(f, f, form="ova")
        with pytest.raises(ValueError, match="l2_weight"):
            n_pair_loss(f, f, l2_weight=-1.0)
        with pytest.raises(ValueError, match="one shape"):
            n_pair_loss(f, f[:2])


class TestAgents:
    features, weight = draw(6, 3), draw(4, 3, seed=1)
    labels = torch.tensor([0, 3, 1, 1, 2, 0])

    def oracle(self, kind, margin, fn, wn, hardest=False) -> float:
        total = []
        for x, y in zip(self.features, self.labels.tolist(), strict=True):
            x = unit(x) if fn else x
            d = [squared(x, unit(w) if wn else w) for w in self.weight]
            wrong = [j for j in range(4) if j != y]
            if kind == "contrastive":
                total.append(d[y] + math.fsum(max(0.0, margin - d[j]) for j in wrong))
            else:
                hinge = [max(0.0, margin + d[y] - d[j]) for j in wrong]
                total.append(max(hinge) if hardest else math.fsum(hinge))
        return math.fsum(total) / len(total)

    @pytest.mark.parametrize("fn", [True, False])
    @pytest.mark.parametrize("wn", [True, False])
    def test_equal_the_loops(self, fn, wn):
        arguments, options = (
            (self.features, self.labels, self.weight),
            {"normalize_features": fn, "normalize_weights": wn},
        )
        result = c_contrastive_loss(*arguments, 1.3, **options)
        assert float(result) == pytest.approx(self.oracle("contrastive", 1.3, fn, wn), rel=1e-11)
        for hardest in (False, True):
            result = c_triplet_loss(*arguments, 0.8, hardest, **options)
            assert float(result) == pytest.approx(self.oracle("triplet", 0.8, fn, wn, hardest), rel=1e-11)

    @pytest.mark.parametrize("fn", [True, False])
    @pytest.mark.parametrize("wn", [True, False])
    def test_gradcheck_in_features_and_agents(self, fn, wn):
        options = {"normalize_features": fn, "normalize_weights": wn}
        for function in (
            lambda x, w: c_contrastive_loss(x, self.labels, w, 1.3, **options),
            lambda x, w: c_triplet_loss(x, self.labels, w, 0.8, **options),
            lambda x, w: c_triplet_loss(x, self.labels, w, 0.8, True, **options),
        ):
            assert gradcheck(function, self.features, self.weight)

    def test_gradient_is_orthogonal_to_a_normalised_feature(self):
        x = self.features.clone().requires_grad_()
        c_triplet_loss(x, self.labels, self.weight).backward()
        assert (x.grad * x.detach()).sum(dim=1).abs().max() < 1e-11

    def test_caffe_gradient_keeps_the_value_and_pulls_every_sample_once(self):
        # dL/dD2_iy = 1/N always, dL/dD2_ik = -1/N where active; the exact slope at y counts active hinges.
        options = {"normalize_features": False, "normalize_weights": False}
        x = self.features.clone().requires_grad_()
        exact = c_triplet_loss(x, self.labels, self.weight, 0.8, **options)
        caffe = c_triplet_loss(x, self.labels, self.weight, 0.8, gradient="caffe", **options)
        assert torch.equal(exact, caffe)
        (gradient,) = torch.autograd.grad(caffe, x)
        expected = torch.zeros_like(x)
        for i, y in enumerate(self.labels.tolist()):
            d = [squared(self.features[i], w) for w in self.weight]
            expected[i] += 2 * (self.features[i] - self.weight[y])
            for k in range(4):
                if k != y and 0.8 + d[y] - d[k] > 0:
                    expected[i] -= 2 * (self.features[i] - self.weight[k])
        assert torch.allclose(gradient, expected / 6, atol=1e-13)

    def test_agents_go_to_the_class_means_at_margin_zero(self):
        weight = self.weight.clone().requires_grad_()
        options = {"normalize_features": False, "normalize_weights": False}
        mean = torch.stack([self.features[self.labels == j].mean(dim=0) for j in range(4)])
        c_contrastive_loss(self.features, self.labels, mean.requires_grad_(), 0.0, **options).backward()
        assert mean.grad.abs().max() < 1e-15
        c_contrastive_loss(self.features, self.labels, weight, 0.0, **options).backward()
        assert weight.grad.abs().max() > 1e-3

    @pytest.mark.parametrize("head", [CContrastive, CTriplet])
    def test_module_is_the_function_and_predicts_the_nearest_agent(self, head):
        loss = head(3, 4).double()
        function = c_contrastive_loss if head is CContrastive else c_triplet_loss
        assert loss.weight.shape == (4, 3)
        assert loss.margin == (1.0 if head is CContrastive else 0.8)
        assert torch.allclose(loss.weight.norm(dim=1), torch.ones(4, dtype=torch.float64), atol=1e-6)
        assert torch.equal(loss(self.features, self.labels), function(self.features, self.labels, loss.weight))
        cosine = torch.nn.functional.cosine_similarity(self.features.unsqueeze(1), loss.weight.unsqueeze(0), dim=2)
        assert torch.allclose(loss.logits(self.features), cosine, atol=1e-12)
        free = head(3, 4, normalize_features=False, normalize_weights=False).double()
        free.weight.data = self.weight
        nearest = [min(range(4), key=lambda j, x=x: squared(x, self.weight[j])) for x in self.features]
        assert free.logits(self.features).argmax(dim=1).tolist() == nearest

    def test_module_options_state_and_seed(self):
        loss = CTriplet(3, 4, 0.5, hardest_only=True, gradient="caffe", normalize_weights=False, eps=1e-6)
        assert "normalize_weights=False" in repr(loss)
        loss.reset_parameters(torch.Generator().manual_seed(3))
        other = CTriplet(3, 4, 0.5)
        other.reset_parameters(torch.Generator().manual_seed(3))
        assert torch.equal(loss.weight, other.weight)
        assert list(loss.state_dict()) == ["weight"]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_finite_for_zero_and_coincident_features(self, dtype):
        weight = self.weight.float().requires_grad_()
        for fn in (True, False):
            rows = torch.stack([torch.zeros(3), weight.detach()[1], 1e4 * torch.ones(3)])
            x = rows.to(dtype).requires_grad_()
            for function in (c_contrastive_loss, c_triplet_loss):
                loss = function(x, torch.tensor([0, 1, 2]), weight, normalize_features=fn)
                for gradient in torch.autograd.grad(loss, (x, weight)):
                    assert torch.isfinite(gradient).all()
                assert torch.isfinite(loss)

    def test_learns_separable_classes(self):
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(90) % 3
        features = torch.nn.functional.one_hot(labels, 3) + 0.1 * torch.randn(90, 3, generator=generator)
        for head in (CContrastive(3, 3), CTriplet(3, 3)):
            head.reset_parameters(generator)
            optimizer = torch.optim.SGD(head.parameters(), lr=0.5)
            for _ in range(20):
                optimizer.zero_grad()
                head(features, labels).backward()
                optimizer.step()
            assert torch.equal(head.logits(features).argmax(dim=1), labels)

    @pytest.mark.parametrize("function", [c_contrastive_loss, c_triplet_loss])
    def test_wrong_input(self, function):
        x, y, w = self.features, self.labels, self.weight
        with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 3, got 4"):
            function(x, y + 1, w)
        with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 3, got -1"):
            function(x, y - 1, w)
        with pytest.raises(ValueError, match="columns"):
            function(x, y, w[:, :2])
        with pytest.raises(ValueError, match="finite"):
            function(x * math.nan, y, w)
        with pytest.raises(ValueError, match="margin"):
            function(x, y, w, -0.1)
        with pytest.raises(ValueError, match="at least 2 rows"):
            function(x, y * 0, w[:1])
        with pytest.raises(ValueError, match="eps"):
            function(x, y, w, eps=0.0)

    def test_wrong_module_arguments(self):
        with pytest.raises(ValueError, match="num_classes must be an integer >= 2"):
            CContrastive(3, 1)
        with pytest.raises(TypeError, match="in_features must be an integer"):
            CTriplet(3.0, 4)
        with pytest.raises(ValueError, match="margin"):
            CTriplet(3, 4, 0.0)
        with pytest.raises(ValueError, match="gradient must be one of"):
            CTriplet(3, 4, gradient="official")
        with pytest.raises(TypeError):
            CContrastive(3, 4, scale=30.0)


@pytest.mark.parametrize("squared", [False, True])
def test_the_soft_batch_all_loss_refuses_a_second_derivative(squared):
    x = torch.randn(8, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = batch_all_triplet_loss(x, torch.arange(8) % 3, soft=True, squared=squared)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(value, x, create_graph=True)
