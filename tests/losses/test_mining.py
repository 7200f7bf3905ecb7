"""Miners against brute force over all triplets, the partition, memory and determinism."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning import distances, miners

from reprolib.losses import mining
from reprolib.losses.metric import triplet_loss
from reprolib.losses.mining import (
    EASY,
    HARD,
    SEMI_HARD,
    all_pairs,
    anchor_positive_pairs,
    batch_hard_triplets,
    count_triplets,
    hardest_triplets,
    number_of_triplets,
    random_triplets,
    semi_hard_triplets,
    triplet_category,
)


def batch(seed: int, size: int = 14, classes: int = 4, dim: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random unit features in float64 and labels that admit a triplet."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(size, dim, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (size,), generator=generator)
    labels[:3] = torch.tensor([0, 0, 1])
    return torch.nn.functional.normalize(features), labels


def brute_force(features: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, int, float, float]]:
    """All (a, p, n, D2_ap, D2_an), by loops."""
    x, y = features.tolist(), labels.tolist()

    def distance(i: int, j: int) -> float:
        return sum((u - v) ** 2 for u, v in zip(x[i], x[j], strict=True))

    n = range(len(y))
    return [
        (a, p, k, distance(a, p), distance(a, k))
        for a in n for p in n for k in n
        if a != p and y[a] == y[p] and y[a] != y[k]
    ]  # fmt: skip


def rows(triplets) -> list[tuple[int, int, int]]:
    return list(zip(*(index.tolist() for index in triplets), strict=True))


@pytest.mark.parametrize("seed", range(15))
class TestAgainstBruteForce:
    margin = 0.2

    def test_semi_hard_random(self, seed):
        features, labels = batch(seed)
        allowed = {(a, p, n) for a, p, n, ap, an in brute_force(features, labels) if ap < an < ap + self.margin}
        mined = rows(semi_hard_triplets(features, labels, self.margin, generator=torch.Generator().manual_seed(seed)))
        assert set(mined) <= allowed
        assert sorted((a, p) for a, p, _ in mined) == sorted({(a, p) for a, p, _ in allowed})

    def test_semi_hard_hardest(self, seed):
        features, labels = batch(seed)
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for a, p, n, ap, an in brute_force(features, labels):
            if ap < an < ap + self.margin:
                best[a, p] = min(best.get((a, p), (9.0, -1)), (an, n))
        mined = rows(semi_hard_triplets(features, labels, self.margin, pick="hardest"))
        assert sorted(mined) == sorted((a, p, n) for (a, p), (_, n) in best.items())

    def test_hardest(self, seed):
        features, labels = batch(seed)
        best: dict[tuple[int, int], tuple[float, int]] = {}
        for a, p, n, _, an in brute_force(features, labels):
            best[a, p] = min(best.get((a, p), (9.0, -1)), (an, n))
        assert sorted(rows(hardest_triplets(features, labels))) == sorted((a, p, n) for (a, p), (_, n) in best.items())

    def test_batch_hard(self, seed):
        features, labels = batch(seed)
        far: dict[int, tuple[float, int]] = {}
        near: dict[int, tuple[float, int]] = {}
        for a, p, n, ap, an in brute_force(features, labels):
            far[a] = max(far.get(a, (-1.0, -1)), (ap, p))
            near[a] = min(near.get(a, (9.0, -1)), (an, n))
        assert sorted(rows(batch_hard_triplets(features, labels))) == sorted((a, far[a][1], near[a][1]) for a in far)

    def test_counts(self, seed):
        features, labels = batch(seed)
        triplets = brute_force(features, labels)
        counts = count_triplets(features, labels, self.margin)
        assert counts.easy == sum(an >= ap + self.margin for *_, ap, an in triplets)
        assert counts.semi_hard == sum(ap < an < ap + self.margin for *_, ap, an in triplets)
        assert counts.hard == sum(an <= ap for *_, ap, an in triplets)
        assert counts.total == len(triplets)
        assert counts.active_fraction == pytest.approx(1 - counts.easy / len(triplets), rel=1e-14)

    def test_random(self, seed):
        _, labels = batch(seed)
        allowed = {(a, p, n) for a, p, n, _, _ in brute_force(torch.zeros(len(labels), 1), labels)}
        mined = rows(random_triplets(labels, torch.Generator().manual_seed(seed)))
        assert set(mined) <= allowed
        assert sorted((a, p) for a, p, _ in mined) == sorted({(a, p) for a, p, _ in allowed})

    def test_equal_to_pytorch_metric_learning(self, seed):
        # Theirs lists every semi-hard triplet, with the same definition on squared distances.
        features, labels = batch(seed)
        distance = distances.LpDistance(normalize_embeddings=False, power=2)
        listed = set(rows(miners.TripletMarginMiner(self.margin, "semihard", distance=distance)(features, labels)))
        counts = count_triplets(features, labels, self.margin)
        assert counts.semi_hard == len(listed)
        mined = rows(semi_hard_triplets(features, labels, self.margin, pick="hardest"))
        assert set(mined) <= listed
        assert {(a, p) for a, p, _ in mined} == {(a, p) for a, p, _ in listed}
        hard = miners.TripletMarginMiner(self.margin, "hard", distance=distance)(features, labels)
        assert counts.hard == len(hard[0])
        theirs = miners.BatchHardMiner(distance=distance)(features, labels)
        assert sorted(rows(batch_hard_triplets(features, labels))) == sorted(rows(theirs))


def exact_squares(features: torch.Tensor) -> list[list[Fraction]]:
    """Squared distances of the stored numbers without any rounding."""
    x = [[Fraction(v) for v in row] for row in features.double().tolist()]
    return [[sum(((u - v) ** 2 for u, v in zip(a, b, strict=True)), Fraction(0)) for b in x] for a in x]


def hard_by_fractions(features: torch.Tensor, labels: torch.Tensor) -> list[tuple[int, int, int]]:
    squares, y = exact_squares(features), labels.tolist()
    found = []
    for a, row in enumerate(squares):
        positives = [j for j in range(len(y)) if j != a and y[j] == y[a]]
        negatives = [j for j in range(len(y)) if y[j] != y[a]]
        if positives:
            # max and min keep the first of equals
            found.append((a, max(positives, key=row.__getitem__), min(negatives, key=row.__getitem__)))
    return found


def near_duplicates(kind: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Batches whose distances the expansion alone cannot order."""
    generator = torch.Generator().manual_seed(11)
    rows, dim = 24, 6
    noise = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    base = torch.randn(6, dim, generator=generator, dtype=torch.float64)[torch.arange(rows) % 6]
    features = {
        "duplicates": base + 1e-4 * noise,
        "common shift": 1e4 + 1e-2 * noise,
        "large norms": 1e5 * (base + 1e-5 * noise),
        "mixed norms": noise * torch.logspace(-4, 4, rows, dtype=torch.float64).unsqueeze(1),
        "last digits": 1 + torch.randint(0, 3, (rows, dim), generator=generator) * 2.0**-23,
        "tiny": 1e-18 * noise,
        "huge": 1e15 * noise,
        "equal": torch.ones(rows, dim, dtype=torch.float64),
    }[kind]
    return features.to(dtype), torch.arange(rows) % 5


KINDS = ("duplicates", "common shift", "large norms", "mixed norms", "last digits", "tiny", "huge", "equal")


class TestScreen:
    """Batch-hard and hardest by one product, a bound, and the pairs that it leaves open."""

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("kind", KINDS)
    def test_all_distances_lead_to_the_same_choice(self, kind, dtype, monkeypatch):
        features, labels = near_duplicates(kind, dtype)
        monkeypatch.setattr(mining, "_search", mining._AllPairs)
        expected = hard_by_fractions(features, labels)
        assert rows(batch_hard_triplets(features, labels)) == expected
        nearest = {a: n for a, _, n in expected}
        assert all(nearest[a] == n for a, _, n in rows(hardest_triplets(features, labels)))

    @pytest.mark.parametrize("precision", ["highest", "medium"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("kind", KINDS)
    def test_exact_where_the_expansion_is_blind(self, kind, dtype, precision):
        features, labels = near_duplicates(kind, dtype)
        expected = hard_by_fractions(features, labels)
        before = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            assert rows(batch_hard_triplets(features, labels)) == expected
            nearest = {a: n for a, _, n in expected}
            assert all(nearest[a] == n for a, _, n in rows(hardest_triplets(features, labels)))
        finally:
            torch.set_float32_matmul_precision(before)

    def test_the_expansion_alone_would_err(self):
        wrong = 0
        for kind in ("duplicates", "common shift", "large norms", "last digits"):
            features, labels = near_duplicates(kind, torch.float32)
            table = mining.pairwise_squared_distance(features, method="expansion")
            nearest = table.masked_fill(labels.unsqueeze(1) == labels, torch.inf).argmin(dim=1)
            wrong += sum(n != int(nearest[a]) for a, _, n in hard_by_fractions(features, labels))
        assert wrong > 20

    @pytest.mark.parametrize("dim", [3, 40])
    @pytest.mark.parametrize("kind", ["unit", *KINDS])
    def test_the_bound_holds(self, kind, dim):
        features, labels = near_duplicates(kind if kind != "unit" else "duplicates", torch.float32)
        if kind == "unit":
            features = torch.nn.functional.normalize(features)
        features = features.repeat(1, -(-dim // 6))[:, :dim]
        screen = mining._Screen(features, labels)
        # the table is of (features - mean) 2^-k: recover both exactly, then compare in rationals
        mean = [Fraction(v) for v in features.double().mean(dim=0).tolist()]
        centred = [[Fraction(v) - m for v, m in zip(row, mean, strict=True)] for row in features.double().tolist()]
        peak = max(abs(v) for row in centred for v in row)
        scale = Fraction(1)
        while peak * scale >= 1:
            scale /= 2
        while 0 < peak * scale < Fraction(1, 2):
            scale *= 2
        x = [[v * scale for v in row] for row in centred]
        for i, row in enumerate(screen.table.tolist()):
            for j, value in enumerate(row):
                exact = sum((v * v for v in x[j]), Fraction(0)) - 2 * sum(
                    (u * v for u, v in zip(x[i], x[j], strict=True)), Fraction(0)
                )
                assert abs(Fraction(value) - exact) <= Fraction(float(screen._width[i])) / 2

    def test_few_pairs_are_measured_and_many_are_measured_at_once(self, monkeypatch):
        measured, plain = [], mining._Screen._squared_distances

        def counting(self, row, column):
            measured.append(len(row))
            return plain(self, row, column)

        monkeypatch.setattr(mining._Screen, "_squared_distances", counting)
        labels = torch.arange(30).repeat_interleave(10)
        features = torch.randn(300, 32, generator=torch.Generator().manual_seed(0))
        batch_hard_triplets(features, labels)
        assert all(300 <= count <= 330 for count in measured)
        batch_hard_triplets(torch.ones(300, 32), labels)
        assert measured[2:] == [300 * 290, 300 * 9]

    def test_products_of_unknown_precision_are_taken_in_float64(self, monkeypatch):
        def mixed():
            raise RuntimeError("a mix of the old and the new switches")

        monkeypatch.setattr(torch, "get_float32_matmul_precision", mixed)
        features, labels = near_duplicates("duplicates", torch.float32)
        assert mining._Screen(features, labels).table.dtype == torch.float64

    def test_samples_without_a_positive_are_left_out(self):
        features = torch.tensor([[0.0], [1.0], [5.0], [2.0]])
        assert rows(batch_hard_triplets(features, torch.tensor([0, 0, 1, 2]))) == [(0, 1, 3), (1, 0, 3)]

    @pytest.mark.parametrize("search", [mining._Screen, mining._AllPairs])
    @pytest.mark.parametrize("mine", [batch_hard_triplets, hardest_triplets])
    def test_overflow_is_said(self, mine, search, monkeypatch):
        monkeypatch.setattr(mining, "_search", search)
        features = torch.tensor([[1.0], [-1.0], [0.5], [-0.5]], dtype=torch.float64)
        for size in (1e160, 1.5e308):
            with pytest.raises(ValueError, match=r"squared distances overflow torch\.float64"):
                mine(size * features, torch.tensor([0, 0, 1, 1]))


# Multiples of 1/4 are exact in float32, so that ties and the edges of the margin are hit and decided exactly.
GRID = st.integers(0, 12).map(lambda k: k / 4)


class TestPartition:
    @given(GRID, GRID, st.sampled_from([0.25, 0.5, 1.0, 2.5]))
    def test_category_and_loss_range(self, ap, an, margin):
        category = int(triplet_category(torch.tensor(ap), torch.tensor(an), margin))
        loss = max(0.0, ap - an + margin)
        assert (category == EASY) == (loss == 0)
        assert (category == SEMI_HARD) == (0 < loss < margin)
        assert (category == HARD) == (loss >= margin)

    @settings(max_examples=60, deadline=None)
    @given(
        points=st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=4, max_size=16),
        margin=st.sampled_from([0.5, 1.0, 3.0, 7.0]),
    )
    def test_counts_on_a_lattice_with_ties(self, points, margin):
        points = [*points, (0, 0), (1, 0), (1, 1)]
        features = torch.tensor([[float(p)] for p, _ in points])
        labels = torch.tensor([y for _, y in points])
        triplets = brute_force(features, labels)
        counts = count_triplets(features, labels, margin)
        assert counts.easy == sum(an >= ap + margin for *_, ap, an in triplets)
        assert counts.semi_hard == sum(ap < an < ap + margin for *_, ap, an in triplets)
        assert counts.hard == sum(an <= ap for *_, ap, an in triplets)
        mined = semi_hard_triplets(features, labels, margin, pick="hardest")
        if len(mined.anchor):
            values = triplet_loss(*(features[i] for i in mined), margin, reduction="none")
            assert ((values > 0) & (values < margin)).all()

    def test_squared_distances_decide(self):
        # d_ap = 0.5, d_an = 0.68, margin 0.2: plain distances say semi-hard, squared easy (0.4624 > 0.45).
        features = torch.tensor([[0.0], [0.5], [-0.68]], dtype=torch.float64)
        counts = count_triplets(features, torch.tensor([0, 0, 1]), 0.2)
        assert (counts.easy, counts.semi_hard, counts.hard) == (2, 0, 0)
        plain = triplet_category(features[1] - features[0], features[0] - features[2], 0.2)
        assert int(plain) == SEMI_HARD

    def test_collapsed_batch_is_all_hard(self):
        labels = torch.arange(4).repeat_interleave(3)
        counts = count_triplets(torch.ones(12, 5), labels, 0.2)
        assert counts == (0, 0, number_of_triplets(4, 3))
        assert counts.active_fraction == 1


class TestHelpers:
    @pytest.mark.parametrize(("classes", "per_class"), [(2, 2), (3, 4), (5, 2)])
    def test_number_of_triplets(self, classes, per_class):
        labels = torch.arange(classes).repeat(per_class) * 7
        expected = len(brute_force(torch.zeros(len(labels), 1), labels))
        assert number_of_triplets(classes, per_class) == expected
        assert len(anchor_positive_pairs(labels)[0]) == len(labels) * (per_class - 1)

    def test_all_pairs(self):
        i, j, same = all_pairs(torch.tensor([5, 1, 5]))
        assert (i.tolist(), j.tolist(), same.tolist()) == ([0, 0, 1], [1, 2, 2], [False, True, False])

    def test_random_negatives_are_uniform(self):
        labels = torch.tensor([1, 0, 0, 2, 2, 1])
        generator = torch.Generator().manual_seed(0)
        draws = [random_triplets(labels, generator) for _ in range(800)]
        of_first = torch.stack([d.negative[d.anchor == 0] for d in draws]).flatten()
        counts = torch.bincount(of_first, minlength=6).double()
        assert counts[0] == counts[5] == 0
        # Four equally likely negatives: chi-squared with 3 degrees of freedom, 0.1 % point 16.3.
        expected = counts.sum() / 4
        assert float(((counts[1:5] - expected) ** 2 / expected).sum()) < 16.3

    def test_random_semi_hard_negatives_are_uniform(self):
        features = torch.tensor([[0.0], [1.0], [1.01], [-1.02], [1.03], [3.0], [0.5]])
        labels = torch.tensor([0, 0, 1, 1, 2, 1, 2])
        generator = torch.Generator().manual_seed(0)
        picks = [semi_hard_triplets(features, labels, 0.2, generator=generator) for _ in range(800)]
        of_first = torch.stack([t.negative[t.anchor == 0] for t in picks]).flatten()
        counts = torch.bincount(of_first, minlength=7).double()
        assert counts[[0, 1, 5, 6]].sum() == 0
        expected = counts.sum() / 3
        assert float(((counts[[2, 3, 4]] - expected) ** 2 / expected).sum()) < 13.8

    def test_same_generator_same_triplets(self):
        features, labels = batch(1)
        for mine in (
            lambda g: random_triplets(labels, g),
            lambda g: semi_hard_triplets(features, labels, 0.5, generator=g),
        ):
            first, second, other = (mine(torch.Generator().manual_seed(s)) for s in (4, 4, 5))
            assert rows(first) == rows(second)
            assert rows(first) != rows(other)

    def test_no_gradient_and_no_change(self):
        features, labels = batch(2)
        features.requires_grad_()
        before = features.detach().clone()
        mined = semi_hard_triplets(features, labels, 0.5, pick="hardest")
        assert all(index.dtype == torch.int64 and not index.requires_grad for index in mined)
        assert torch.equal(features.detach(), before)

    def test_no_semi_hard_negative_gives_an_empty_result(self):
        features = torch.tensor([[0.0], [0.1], [9.0], [9.1]])
        mined = semi_hard_triplets(features, torch.tensor([0, 0, 1, 1]), 0.2, pick="hardest")
        assert [len(index) for index in mined] == [0, 0, 0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_low_precision(self, dtype):
        features, labels = batch(3)
        features = features.to(dtype)
        mined = rows(semi_hard_triplets(features, labels, 0.5, pick="hardest"))
        assert mined == rows(semi_hard_triplets(features.double(), labels, 0.5, pick="hardest"))

    def test_facenet_batch_needs_memory_of_order_b_squared(self):
        # A full list of the triplets would take 480 * 11 * 468 * 3 * 8 bytes = 59 MB; B^2 floats are 0.9 MB.
        labels = torch.arange(40).repeat_interleave(12)
        features = torch.randn(480, 16, generator=torch.Generator().manual_seed(0))
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as log:
            semi_hard_triplets(features, labels, 0.2, generator=torch.Generator().manual_seed(0))
            count_triplets(features, labels, 0.2)
            batch_hard_triplets(features, labels)
        largest = max(event.cpu_memory_usage for event in log.events())
        assert 0 < largest <= 3 * 480 * 480 * 8


class TestWrongInput:
    features, labels = batch(0)

    def test_margin_pick_and_generator(self):
        with pytest.raises(ValueError, match="margin must be a finite number"):
            semi_hard_triplets(self.features, self.labels, 0.0, pick="hardest")
        with pytest.raises(ValueError, match="margin must be a finite number"):
            count_triplets(self.features, self.labels, float("nan"))
        with pytest.raises(ValueError, match="pick must be one of"):
            semi_hard_triplets(self.features, self.labels, 0.2, pick="easiest")
        with pytest.raises(ValueError, match=r"generator must be a torch\.Generator"):
            semi_hard_triplets(self.features, self.labels, 0.9)
        with pytest.raises(ValueError, match=r"generator must be a torch\.Generator"):
            random_triplets(self.labels, None)

    @pytest.mark.parametrize(
        "mine",
        [
            lambda x, y: semi_hard_triplets(x, y, 0.2, pick="hardest"),
            hardest_triplets,
            batch_hard_triplets,
            lambda x, y: count_triplets(x, y, 0.2),
        ],
    )
    def test_features_and_labels(self, mine):
        with pytest.raises(ValueError, match="features must be finite"):
            mine(self.features * float("nan"), self.labels)
        with pytest.raises(ValueError, match=r"squared distances overflow torch\.float32"):
            mine(1e20 * self.features.float(), self.labels)
        with pytest.raises(ValueError, match="labels must have shape"):
            mine(self.features, self.labels[:-1])
        with pytest.raises(TypeError, match="labels must be an int64 tensor"):
            mine(self.features, self.labels.float())
        with pytest.raises(TypeError, match="features must be a floating-point tensor"):
            mine(self.features.long(), self.labels)
        with pytest.raises(ValueError, match="no positive pair"):
            mine(self.features, torch.arange(len(self.labels)))
        with pytest.raises(ValueError, match="no negative pair"):
            mine(self.features, torch.zeros_like(self.labels))

    def test_helpers(self):
        with pytest.raises(ValueError, match="per_class must be an integer >= 2"):
            number_of_triplets(3, 1)
        with pytest.raises(TypeError, match="classes must be an integer"):
            number_of_triplets(3.0, 2)
        with pytest.raises(TypeError, match="labels must be an int64 tensor"):
            all_pairs([0, 1])
        with pytest.raises(ValueError, match="no positive pair"):
            anchor_positive_pairs(torch.tensor([0, 1]))
