"""ArcFace's Intra, Inter and triplet terms against loops written from the paper's equations."""

from __future__ import annotations

import math

import pytest
import torch

from reprolib.losses import angular_triplet_loss, inter_loss, intra_loss

LABELS = torch.tensor([0, 2, 1, 0, 2, 0, 1])


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def arccos(a: torch.Tensor, b: torch.Tensor) -> float:
    """Angle by the paper's arccos of the cosine, in Python floats."""
    a, b = a.tolist(), b.tolist()
    dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
    return math.acos(dot / math.sqrt(math.fsum(x * x for x in a)) / math.sqrt(math.fsum(y * y for y in b)))


def at(*angles: float, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Unit vectors of the plane at the angles (radians), padded to three dimensions."""
    return torch.tensor([[math.cos(t), math.sin(t), 0.0] for t in angles], dtype=torch.float64).to(dtype)


def gradients(function, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    leaves = tuple(x.clone().requires_grad_() for x in inputs)
    return torch.autograd.grad(function(*leaves), leaves)


def gradcheck(function, *inputs: torch.Tensor) -> bool:
    return torch.autograd.gradcheck(function, tuple(x.clone().requires_grad_() for x in inputs), atol=1e-7)


class TestIntra:
    def test_equals_equation_5(self):
        x, w = 3 * draw(7, 5), draw(4, 5, seed=1)
        expected = math.fsum(arccos(x[i], w[y]) for i, y in enumerate(LABELS.tolist())) / (math.pi * 7)
        assert float(intra_loss(x, w, LABELS)) == pytest.approx(expected, rel=1e-13)

    def test_gradcheck(self):
        assert gradcheck(lambda x, w: intra_loss(x, w, LABELS), 2 * draw(7, 5), draw(4, 5, seed=1))

    def test_pull_has_the_same_strength_at_every_angle(self):
        angles = (1e-6, 1e-3, 0.5, math.pi / 2, 3.0, math.pi - 1e-6)
        for angle in angles:
            (gradient,) = gradients(lambda x: intra_loss(x, at(0.0), torch.tensor([0])), 4 * at(angle))
            assert float(gradient.norm()) == pytest.approx(1 / (4 * math.pi), rel=1e-8)

    def test_small_angles_keep_their_digits(self):
        x = torch.tensor([[1.0, 1e-9, 0.0]], dtype=torch.float64)
        assert float(intra_loss(x, at(0.0), torch.tensor([0]))) == pytest.approx(1e-9 / math.pi, rel=1e-12)

    def test_extreme_norms(self):
        x, w = draw(7, 5, dtype=torch.float32), draw(4, 5, seed=1, dtype=torch.float32)
        expected = float(intra_loss(x, w, LABELS))
        for factor in (1e30, 1e-30):
            assert float(intra_loss(factor * x, w, LABELS)) == pytest.approx(expected, rel=1e-5)
            assert all(g.isfinite().all() for g in gradients(lambda w, f=factor: intra_loss(x, f * w, LABELS), w))


class TestInter:
    @staticmethod
    def oracle(w: torch.Tensor, labels: list[int]) -> float:
        n = len(w)
        total = math.fsum(arccos(w[y], w[j]) for y in labels for j in range(n) if j != y)
        return -total / (math.pi * len(labels) * (n - 1))

    def test_equals_equation_6(self):
        w = 2 * draw(4, 5)
        assert float(inter_loss(w, LABELS)) == pytest.approx(self.oracle(w, LABELS.tolist()), rel=1e-13)

    def test_without_labels_every_class_counts_once(self):
        w = draw(4, 5)
        assert float(inter_loss(w)) == pytest.approx(self.oracle(w, [0, 1, 2, 3]), rel=1e-13)
        assert float(inter_loss(w)) == pytest.approx(float(inter_loss(w, torch.tensor([3, 1, 0, 2]))), rel=1e-13)

    @pytest.mark.parametrize("labels", [None, LABELS])
    def test_gradcheck(self, labels):
        assert gradcheck(lambda w: inter_loss(w, labels), draw(4, 5))

    def test_extremes(self):
        poles = torch.cat([at(0.0, 0.0), -at(0.0, 0.0)])
        # Each weight has one companion at angle 0 and two antipodes at pi: mean 2 pi/3.
        assert float(inter_loss(poles)) == pytest.approx(-2 / 3, rel=1e-14)
        assert float(inter_loss(at(1.0, 1.0))) == 0.0
        assert float(inter_loss(torch.eye(6))) == pytest.approx(-0.5, rel=1e-6)

    def test_a_step_against_the_gradient_separates_two_weights(self):
        w = at(0.0, 1.0)
        (gradient,) = gradients(inter_loss, w)
        assert float(inter_loss(w - 0.1 * gradient)) < float(inter_loss(w))


class TestTriplet:
    @staticmethod
    def oracle(x: torch.Tensor, margin: float, average: str) -> float:
        y, terms = LABELS.tolist(), []
        for a in range(7):
            for p in range(7):
                for n in range(7):
                    if a != p and y[a] == y[p] and y[a] != y[n]:
                        terms.append(max(0.0, arccos(x[a], x[p]) + margin - arccos(x[a], x[n])))
        return math.fsum(terms) / (len(terms) if average == "all" else max(1, sum(t > 0 for t in terms)))

    @pytest.mark.parametrize("average", ["active", "all"])
    @pytest.mark.parametrize("margin", [0.05, 0.35, 1.5])
    def test_equals_the_loop(self, average, margin):
        x = 3 * draw(7, 4)
        expected = self.oracle(x, margin, average)
        assert float(angular_triplet_loss(x, LABELS, margin, average)) == pytest.approx(expected, rel=1e-12)

    @pytest.mark.parametrize("average", ["active", "all"])
    def test_gradcheck(self, average):
        assert gradcheck(lambda x: angular_triplet_loss(x, LABELS, 0.35, average), draw(7, 4))

    def test_zero_exactly_where_the_papers_inequality_holds(self):
        labels = torch.tensor([0, 0, 1])
        # theta_ap = 0.2; theta_an = 0.2 + 0.35 + 0.01 for the nearer anchor
        assert float(angular_triplet_loss(at(0.0, 0.2, 0.76), labels)) == 0.0
        # 0.2 + 0.35 - 0.5 for the anchor at 0.2; satisfied (0.7 >= 0.55) for the one at 0
        x = at(0.0, 0.2, 0.7)
        assert float(angular_triplet_loss(x, labels)) == pytest.approx(0.05, rel=1e-12)
        assert float(angular_triplet_loss(x, labels, average="all")) == pytest.approx(0.025, rel=1e-12)
        assert torch.equal(
            gradients(lambda x: angular_triplet_loss(x, labels), at(0.0, 0.2, 0.76))[0], torch.zeros(3, 3)
        )

    def test_collapsed_batch(self):
        x = at(0.4).repeat(7, 1)
        assert float(angular_triplet_loss(x, LABELS)) == pytest.approx(0.35, rel=1e-12)
        assert torch.equal(gradients(lambda x: angular_triplet_loss(x, LABELS), x)[0], torch.zeros(7, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_value_and_gradient_at_the_ends_of_the_cosine(dtype):
    x, w = at(0.0, 0.0, 0.0, dtype=dtype), torch.cat([at(0.0), -at(0.0), at(0.0)]).to(dtype)
    y = torch.tensor([0, 1, 2])
    assert float(intra_loss(x, w, y)) == pytest.approx(1 / 3, rel=1e-6)
    assert float(inter_loss(w)) == pytest.approx(-2 / 3, rel=1e-6)
    pairs = torch.cat([x, w])
    for gradient in (
        *gradients(lambda x, w: intra_loss(x, w, y), x, w),
        *gradients(inter_loss, w),
        *gradients(lambda x: angular_triplet_loss(x, torch.tensor([0, 0, 1, 1, 0, 1])), pairs),
    ):
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()
    # Kinks take the subgradient 0.
    assert torch.equal(gradients(lambda x: intra_loss(x, w, y), x)[0], torch.zeros_like(x))
    assert torch.equal(gradients(inter_loss, w)[0], torch.zeros_like(w))


def test_half_precision_is_computed_in_float32():
    x, w = draw(7, 5, dtype=torch.bfloat16), draw(3, 5, seed=1, dtype=torch.bfloat16)
    for function in (
        lambda x, w: intra_loss(x, w, LABELS),
        lambda x, w: inter_loss(w, LABELS),
        lambda x, w: angular_triplet_loss(x, LABELS),
    ):
        assert function(x, w).dtype == torch.float32
        assert torch.equal(function(x, w), function(x.float(), w.float()))


class TestWrongInput:
    x, w = draw(7, 5), draw(3, 5, seed=1)

    def test_shapes_and_types(self):
        with pytest.raises(ValueError, match="features must have 5 columns"):
            intra_loss(draw(7, 4), self.w, LABELS)
        with pytest.raises(ValueError, match="weight must have shape"):
            inter_loss(self.w[0])
        with pytest.raises(TypeError, match="floating-point"):
            angular_triplet_loss(self.x.long(), LABELS)
        with pytest.raises(ValueError, match="at least 2 rows"):
            inter_loss(self.w[:1])

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf])
    def test_not_finite(self, bad):
        for function in (
            lambda v: intra_loss(v, self.w, LABELS),
            inter_loss,
            lambda v: angular_triplet_loss(v, LABELS),
        ):
            broken = self.x.clone()
            broken[3, 1] = bad
            with pytest.raises(ValueError, match="finite"):
                function(broken)

    def test_zero_row_has_no_angle(self):
        zero = self.x.clone()
        zero[2] = 0
        with pytest.raises(ValueError, match=r"features must have no zero row.*row 2"):
            intra_loss(zero, self.w, LABELS)
        with pytest.raises(ValueError, match=r"weight must have no zero row.*row 2"):
            inter_loss(zero)
        with pytest.raises(ValueError, match="features must have no zero row"):
            angular_triplet_loss(zero, LABELS)

    def test_labels(self):
        with pytest.raises(ValueError, match=r"0 \.\. 1"):
            intra_loss(self.x, self.w[:2], LABELS)
        with pytest.raises(ValueError, match=r"0 \.\. 1"):
            inter_loss(self.w[:2], LABELS)
        with pytest.raises(TypeError, match="int64"):
            inter_loss(self.w, LABELS.double())
        with pytest.raises(ValueError, match="not be empty"):
            inter_loss(self.w, LABELS[:0])
        with pytest.raises(ValueError, match="one per feature"):
            angular_triplet_loss(self.x, LABELS[:6])
        with pytest.raises(ValueError, match="no positive pair"):
            angular_triplet_loss(self.x, torch.arange(7))
        with pytest.raises(ValueError, match="no negative pair"):
            angular_triplet_loss(self.x, torch.zeros(7, dtype=torch.int64))

    @pytest.mark.parametrize("margin", [0.0, -0.1, math.pi, math.nan])
    def test_margin(self, margin):
        with pytest.raises(ValueError, match="margin"):
            angular_triplet_loss(self.x, LABELS, margin)

    def test_average(self):
        with pytest.raises(ValueError, match="average must be one of"):
            angular_triplet_loss(self.x, LABELS, average="mean")
