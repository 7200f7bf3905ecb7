"""Numbers: the identities they promise, disjoint and repeatable; what was done to an image is what is said of it."""

from __future__ import annotations

import pytest
import torch
from scipy import ndimage

from reprolib.data import load
from reprolib.data.numbers import degrade, load_numbers, split_numbers

GLYPHS = load("digits")


def numbers(part="train", seed=0, **options):
    return load_numbers(part, seed=seed, dataset=GLYPHS, **{"digits": 2, "per_identity": 4, **options})


def pooled(images):
    """Average pooling by 2 in float64, halves up."""
    return torch.floor(torch.nn.functional.avg_pool2d(images.double(), 2) + 0.5).to(torch.uint8)


def test_the_parts_are_disjoint_and_the_validation_numbers_are_the_same_for_every_seed():
    for digits in (2, 3):
        total = 10**digits
        kept = None
        for seed in range(3):
            parts = split_numbers(digits, 6 * total // 10, 3 * total // 10, seed)
            everything = torch.cat(list(parts.values()))
            assert everything.sort().values.tolist() == list(range(total))
            kept = parts["validation"].tolist() if kept is None else kept
            assert parts["validation"].tolist() == kept
    a, b = (split_numbers(3, 600, 300, seed)["train"] for seed in (0, 1))
    assert set(a.tolist()) != set(b.tolist())


def test_more_training_identities_contain_the_fewer_and_leave_the_unseen_ones_alone():
    few, many = (split_numbers(3, count, 300, 5) for count in (70, 600))
    assert set(few["train"].tolist()) < set(many["train"].tolist())
    assert torch.equal(few["unseen"], many["unseen"])


def test_each_image_shows_its_number_with_glyphs_of_its_part():
    kept = len(GLYPHS.train_labels) // 6
    glyphs = {
        "train": (GLYPHS.train_images[:-kept], GLYPHS.train_labels[:-kept]),
        "validation": (GLYPHS.train_images[-kept:], GLYPHS.train_labels[-kept:]),
        "unseen": (GLYPHS.test_images, GLYPHS.test_labels),
    }
    for part, (images, classes) in glyphs.items():
        of_class = {c: {bytes(g.numpy().tobytes()) for g in pooled(images[classes == c])} for c in range(10)}
        made = numbers(part, digits=3, identities=20, unseen=10)
        assert made.images.shape[1:] == (1, 14, 42) and made.images.dtype == torch.uint8
        for image, label in zip(made.images[::7], made.labels[::7].tolist(), strict=True):
            text = f"{int(made.numbers[label]):03d}"
            for place, digit in enumerate(text):
                cell = image[:, :, 14 * place : 14 * place + 14].contiguous()
                assert cell.numpy().tobytes() in of_class[int(digit)]


def test_the_defaults_are_six_and_three_tenths_of_all_numbers():
    train, unseen, validation = (
        load_numbers(part, seed=1, digits=2, dataset=GLYPHS) for part in ("train", "unseen", "validation")
    )
    assert [len(part.labels) for part in (train, unseen, validation)] == [60 * 20, 30 * 10, 10 * 20]
    assert train.labels.bincount().tolist() == [20] * 60 and train.num_classes == 60


def test_the_same_seed_gives_the_same_bytes_and_everything_counts_in_the_fingerprint():
    first, second = numbers(), numbers()
    assert torch.equal(first.images, second.images) and first.fingerprint == second.fingerprint
    prints = {first.fingerprint}
    for change in (
        {"seed": 1},
        {"part": "unseen"},
        {"quality": "blur"},
        {"per_identity": 5},
        {"labels_per_identity": 2},
    ):
        prints.add(numbers(**change).fingerprint)
    assert len(prints) == 6


@pytest.mark.parametrize("quality", ["blur", "occlusion", "contrast", "mixed"])
def test_the_level_and_kind_of_each_image_are_what_was_done_to_it(quality):
    clean = torch.randint(0, 256, (400, 1, 14, 28), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    made, levels, kinds = degrade(clean, quality, (0, 1, 3), torch.Generator().manual_seed(2))
    assert sorted(set(levels.tolist())) == [0, 1, 3]
    names = ("clean", "blur", "occlusion", "contrast")
    shown = {names[kind] for kind in kinds.tolist()}
    assert shown == ({"clean", quality} if quality != "mixed" else set(names))
    same = (made == clean).flatten(1).all(dim=1)
    assert torch.equal(same, levels == 0) and torch.equal(kinds == 0, levels == 0)
    for image, before, level, kind in zip(made[:, 0], clean[:, 0], levels.tolist(), kinds.tolist(), strict=True):
        if names[kind] == "occlusion":
            changed = (image != before).any(dim=0).nonzero().flatten()
            bar = round(0.12 * level * 28)
            assert changed.max() - changed.min() < bar and (image[:, changed] == 128).all()
        if names[kind] == "contrast":
            assert torch.equal(image, torch.floor((before.double() - 128) / 2**level + 128).to(torch.uint8))
        if names[kind] == "blur":
            # 0.8 pixels a level; twice rounded to whole grey levels
            sigma = 0.8 * level
            wanted = ndimage.gaussian_filter(before.double().numpy(), sigma, mode="nearest", radius=7)
            assert abs(image.double().numpy() - wanted).max() <= 1.5


def test_a_blur_leaves_an_even_picture_and_the_middle_of_mass():
    flat = torch.full((3, 1, 14, 28), 77, dtype=torch.uint8)
    assert torch.equal(degrade(flat, "blur", (3,), torch.Generator())[0], flat)
    point = torch.zeros(1, 1, 14, 28, dtype=torch.uint8)
    point[0, 0, 7, 14] = 255
    spread = degrade(point, "blur", (1,), torch.Generator())[0].double()[0, 0]
    assert torch.equal(spread, spread.flip(1).roll(1, 1))
    # exp(-1 / (2 0.8^2)) at a distance of one pixel
    assert float(spread[7, 15] / spread[7, 14]) == pytest.approx(0.4578, abs=0.02)


def test_imbalance_and_two_labels_an_identity():
    long_tail = numbers(per_identity=20, imbalance=10.0)
    counts = long_tail.labels.bincount().double()
    assert counts.max() / counts.min() == pytest.approx(10, rel=0.15) and counts.mean() == pytest.approx(20, rel=0.03)
    twice = numbers(per_identity=6, labels_per_identity=2)
    assert twice.num_classes == 120 and twice.labels.bincount().tolist() == [3] * 120
    assert torch.equal(twice.numbers[0::2], twice.numbers[1::2]) and len(set(twice.numbers.tolist())) == 60


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"part": "test"}, "part must be one of"),
        ({"quality": "noise"}, "quality must be one of"),
        ({"levels": (4,), "quality": "blur"}, "levels must be numbers from 0 to 3"),
        ({"levels": ()}, "levels must be numbers from 0 to 3"),
        ({"digits": 6}, "digits must be from 1 to 5, got 6"),
        ({"digits": 1.0}, "digits must be an integer"),
        ({"identities": 80, "unseen": 20}, "at most 90 with 2 digits"),
        ({"per_identity": 1}, "per_identity must be an integer >= 2"),
        ({"per_identity": 3, "labels_per_identity": 2}, "per_identity must be an integer >= 4"),
        ({"imbalance": 0.5}, "imbalance must be"),
        ({"part": "unseen", "imbalance": 2.0}, "must be 1 for unseen identities"),
        ({"seed": -1}, "seed must be an integer >= 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        numbers(**options)


def test_glyphs_of_another_size_are_refused():
    other = type(GLYPHS)("wide", *[torch.zeros(20, 1, 32, 32, dtype=torch.uint8), torch.arange(20) % 10] * 2, 10, "0")
    with pytest.raises(ValueError, match="ten classes of 28 x 28"):
        load_numbers("train", seed=0, dataset=other)
