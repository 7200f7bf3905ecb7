from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib.data import PKSampler, balanced_subset, class_split, genuine_impostor_pairs
from reprolib.data.sampling import _distinct

some_labels = st.lists(st.integers(-3, 6), min_size=1, max_size=40).map(lambda x: torch.tensor(x))
seeds = st.integers(0, 2**31)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(some_labels.filter(lambda y: len(y.unique()) > 1), st.data())
def test_class_split_is_a_partition_disjoint_in_identity(labels, data):
    classes = sorted(set(labels.tolist()))
    held_out = data.draw(st.lists(st.sampled_from(classes), min_size=1, max_size=len(classes) - 1, unique=True))
    seen, unseen = class_split(labels, held_out)
    assert sorted(seen.tolist() + unseen.tolist()) == list(range(len(labels)))
    assert seen.tolist() == sorted(seen.tolist()) and unseen.tolist() == sorted(unseen.tolist())
    assert set(labels[unseen].tolist()) == set(held_out)
    assert set(labels[seen].tolist()).isdisjoint(held_out)


@pytest.mark.parametrize(
    ("held_out", "message"),
    [([], "at least one"), ([1, 1], "each once"), ([7], r"\[7\]"), ([0, 1, 2], "all 3 classes")],
)
def test_class_split_refuses_what_is_no_split(held_out, message):
    with pytest.raises(ValueError, match=message):
        class_split(torch.tensor([0, 1, 2, 0]), held_out)


@given(some_labels, seeds, st.data())
def test_balanced_subset_has_as_many_of_each_class(labels, seed, data):
    counts = {label: labels.tolist().count(label) for label in set(labels.tolist())}
    per_class = data.draw(st.integers(1, min(counts.values())))
    index = balanced_subset(labels, per_class, generator(seed))
    assert index.tolist() == sorted(set(index.tolist()))
    chosen = labels[index].tolist()
    assert {label: chosen.count(label) for label in counts} == dict.fromkeys(counts, per_class)
    assert torch.equal(index, balanced_subset(labels, per_class, generator(seed)))


def test_balanced_subset_draws_every_image_equally_often():
    labels = torch.tensor([0] * 6 + [1] * 3)
    draws = 2000
    g = generator(1)
    hits = torch.zeros(9)
    for _ in range(draws):
        hits[balanced_subset(labels, 2, g)] += 1
    for share, group in ((2 / 6, hits[:6]), (2 / 3, hits[6:])):
        sigma = math.sqrt(draws * share * (1 - share))
        assert ((group - draws * share).abs() < 5 * sigma).all()


def test_balanced_subset_refuses_more_than_there_is():
    labels = torch.tensor([0, 0, 0, 4])
    with pytest.raises(ValueError, match="class 4 has 1 images, fewer than per_class = 2"):
        balanced_subset(labels, 2, generator())
    with pytest.raises(ValueError, match="per_class must be an integer >= 1, got 0"):
        balanced_subset(labels, 0, generator())


def all_pairs(labels: torch.Tensor) -> tuple[set, set]:
    y = labels.tolist()
    pairs = [(i, j) for i in range(len(y)) for j in range(i + 1, len(y))]
    return {p for p in pairs if y[p[0]] == y[p[1]]}, {p for p in pairs if y[p[0]] != y[p[1]]}


two_kinds = some_labels.filter(lambda y: 1 < len(y.unique()) < len(y))


@given(two_kinds)
def test_all_pairs(labels):
    genuine, impostor = all_pairs(labels)
    i, j, same = genuine_impostor_pairs(labels)
    pairs = list(zip(i.tolist(), j.tolist(), strict=True))
    assert pairs == sorted(genuine | impostor)
    assert same.dtype == torch.bool and i.dtype == j.dtype == torch.int64
    assert same.tolist() == [pair in genuine for pair in pairs]


@given(two_kinds, seeds, st.integers(2, 300))
def test_drawn_pairs_are_distinct_balanced_and_right(labels, seed, max_pairs):
    genuine, impostor = all_pairs(labels)
    i, j, same = genuine_impostor_pairs(labels, generator(seed), max_pairs)
    pairs = list(zip(i.tolist(), j.tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)
    drawn_genuine = {pair for pair, flag in zip(pairs, same.tolist(), strict=True) if flag}
    drawn_impostor = set(pairs) - drawn_genuine
    assert drawn_genuine <= genuine and drawn_impostor <= impostor
    assert len(drawn_genuine) == min(max_pairs // 2, len(genuine))
    assert len(drawn_impostor) == min(max_pairs // 2, len(impostor))
    again = genuine_impostor_pairs(labels, generator(seed), max_pairs)
    assert torch.equal(i, again[0]) and torch.equal(j, again[1]) and torch.equal(same, again[2])


def test_every_pair_of_a_kind_is_drawn_equally_often():
    labels = torch.tensor([0, 1, 0, 2, 1, 0, 2])
    genuine, impostor = all_pairs(labels)
    g, draws = generator(2), 1000
    hits = dict.fromkeys(genuine | impostor, 0)
    for _ in range(draws):
        i, j, _ = genuine_impostor_pairs(labels, g, 4)
        for pair in zip(i.tolist(), j.tolist(), strict=True):
            hits[pair] += 1
    for kind in (genuine, impostor):
        share = 2 / len(kind)
        sigma = math.sqrt(draws * share * (1 - share))
        assert all(abs(hits[pair] - draws * share) < 5 * sigma for pair in kind)


def test_few_pairs_of_many_labels_need_no_full_list():
    labels = torch.arange(60_000) % 10
    i, j, same = genuine_impostor_pairs(labels, generator(), 6000)
    assert same.sum() == 3000 and len(same) == 6000 and (i < j).all()
    assert torch.equal(labels[i] == labels[j], same)
    with pytest.raises(ValueError, match=r"1799970000 pairs, more than 67108864; give max_pairs"):
        genuine_impostor_pairs(labels)


@pytest.mark.parametrize(("labels", "kind"), [([0, 1, 2], "genuine"), ([3, 3], "impostor"), ([1], "genuine")])
def test_pairs_of_one_kind_only_are_refused(labels, kind):
    with pytest.raises(ValueError, match=f"no {kind} pair"):
        genuine_impostor_pairs(torch.tensor(labels))


@pytest.mark.parametrize(("g", "max_pairs"), [(None, 10), (generator(), 1), (generator(), 2**30)])
def test_pairs_to_draw_need_a_generator_and_a_sound_number(g, max_pairs):
    with pytest.raises(ValueError, match="max_pairs must be from 2 to 67108864 and come with a generator"):
        genuine_impostor_pairs(torch.tensor([0, 0, 1]), g, max_pairs)


@given(seeds, st.integers(1, 2000), st.integers(2**17, 2**60))
def test_distinct_numbers_of_a_large_range(seed, count, total):
    numbers = _distinct(total, count, generator(seed)).tolist()
    assert len(numbers) == count and numbers == sorted(set(numbers))
    assert numbers[0] >= 0 and numbers[-1] < total


@given(st.integers(2, 6), st.integers(2, 5), seeds, st.data())
def test_pk_batches_have_p_classes_of_k_distinct_images(P, K, seed, data):
    sizes = data.draw(st.lists(st.integers(K, 12), min_size=P, max_size=8))
    flat = [3 * c - 5 for c, size in enumerate(sizes) for _ in range(size)]
    labels = torch.tensor(data.draw(st.permutations(flat)))
    sampler = PKSampler(labels, P, K, generator(seed))
    batches = list(sampler)
    assert len(batches) == len(sampler) == len(labels) // (P * K) >= 1
    for batch in batches:
        assert batch.dtype == torch.int64 and batch.shape == (P * K,)
        assert len(set(batch.tolist())) == P * K
        grouped = labels[batch].reshape(P, K)
        assert (grouped == grouped[:, :1]).all() and len(grouped[:, 0].unique()) == P
    again = list(PKSampler(labels, P, K, generator(seed)))
    assert all(torch.equal(a, b) for a, b in zip(batches, again, strict=True))


def test_pk_passes_differ_and_a_full_deal_uses_every_image_once():
    labels = torch.arange(4).repeat_interleave(6)
    sampler = PKSampler(labels, P=4, K=2, generator=generator())
    first, second = torch.cat(list(sampler)), torch.cat(list(sampler))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(24))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("P", "K", "message"),
    [
        (1, 2, "P = 1"),
        (2, 1, "K = 1"),
        (3, 2, "2 classes, fewer than P = 3"),
        (2, 3, "class 5 has 2 images, fewer than K = 3"),
    ],
)
def test_pk_sampler_refuses_batches_that_cannot_be_made(P, K, message):
    with pytest.raises(ValueError, match=message):
        PKSampler(torch.tensor([0, 0, 0, 5, 5]), P, K, generator())


WRONG = [
    (torch.tensor([0.0, 1.0, 1.0]), TypeError, "torch.float32"),
    (torch.tensor([0.0, math.nan]), TypeError, "integers"),
    ([0, 1, 1], TypeError, "list"),
    (torch.zeros(2, 2, dtype=torch.int64), ValueError, r"\(2, 2\)"),
    (torch.zeros(0, dtype=torch.int64), ValueError, r"\(0,\)"),
]


@pytest.mark.parametrize(("labels", "error", "message"), WRONG)
def test_labels_have_to_be_one_dimensional_integers(labels, error, message):
    for use in (
        lambda: class_split(labels, [1]),
        lambda: balanced_subset(labels, 1, generator()),
        lambda: genuine_impostor_pairs(labels),
        lambda: PKSampler(labels, 2, 2, generator()),
    ):
        with pytest.raises(error, match=message):
            use()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_any_integer_type_are_accepted(dtype):
    labels = torch.tensor([0, 0, 1, 1], dtype=dtype)
    assert class_split(labels, [1])[1].tolist() == [2, 3]
    assert genuine_impostor_pairs(labels)[2].sum() == 2
    assert len(PKSampler(labels, 2, 2, generator())) == 1


def test_people_with_few_images_are_left_out_or_repeated():
    labels = torch.tensor([0] * 5 + [1] * 2 + [2] + [3] * 4 + [4] * 3)
    with pytest.raises(ValueError, match="class 1 has 2 images, fewer than K = 4"):
        PKSampler(labels, 2, 4, generator())
    sampler = PKSampler(labels, 2, 4, generator(), few="leave out")
    assert sampler.left_out == (1, 2, 4) and len(sampler) == 1
    assert {int(label) for batch in sampler for label in labels[batch]} == {0, 3}
    sampler = PKSampler(labels, 4, 4, generator(), few="repeat")
    assert sampler.left_out == (2,) and len(sampler) == 0
    sampler = PKSampler(labels.repeat(3), 5, 10, generator(), few="repeat")
    assert sampler.left_out == () and len(sampler) == 0
    sampler = PKSampler(labels.repeat(10), 5, 25, generator(), few="repeat")
    batches = list(sampler)
    assert len(batches) == 1
    for label in range(5):
        drawn = batches[0][labels.repeat(10)[batches[0]] == label]
        # 25 of 50, 20, 10, 40 and 30 images: no image again before all others came
        assert len(drawn) == 25 and len(drawn.unique()) == min(25, int((labels == label).sum()) * 10)
        assert drawn.bincount().max() <= -(-25 // (int((labels == label).sum()) * 10))
    with pytest.raises(ValueError, match="few must be one of 'error', 'leave out', 'repeat', got 'drop'"):
        PKSampler(labels, 2, 2, generator(), few="drop")
    with pytest.raises(ValueError, match="the labels have 2 classes, fewer than P = 3"):
        PKSampler(labels, 3, 4, generator(), few="leave out")
