"""Numbers: identities without a download. An identity is a number of k digits, an image k MNIST digits side by side.

    people = load_numbers("train", seed=0)     # 600 identities, 20 images each, (12000, 1, 14, 42) uint8
    others = load_numbers("unseen", seed=0)    # 300 other numbers, written with the digits of MNIST's test set

The digits are average-pooled by 2 to 14 x 14 pixels. A tenth of all numbers, the same for every seed, are the
validation identities, for tuning alone; the seed deals the others into training and unseen ones. Training and
validation images use MNIST's training digits, no digit image in both (the last sixth of the file is for validation);
unseen identities are written with test digits, so that neither the number nor the handwriting was seen in training.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reprolib._checks import check_choice, check_count, check_number
from reprolib.data.datasets import NAMES, ImageDataset, load

PARTS = ("train", "validation", "unseen")
QUALITIES = ("clean", "blur", "occlusion", "contrast", "mixed")
WORST_LEVEL = 3
SIDE = 14
# the numbers kept for validation are drawn from this seed, whatever the seed of a run
VALIDATION_SEED = 20_161
# a step of quality: standard deviation of the blur in pixels, covered share of the width
_BLUR, _COVER = 0.8, 0.12


@dataclass(frozen=True, eq=False)
class NumbersDataset:
    """Images of numbers.

    `images` uint8 (N, 1, 14, 14 k) and `labels` int64 (N,) in 0 .. num_classes - 1 on the device; `numbers`
    (num_classes,) int64, the number that each label stands for (twice where an identity has two labels); `levels`
    (N,) int64, the quality of each image, from 0 (clean) to 3; `kinds` (N,), the place in `QUALITIES` of what was
    done to it (0 at level 0); `fingerprint`, 16 hex digits of the SHA-256 of all of them.
    """

    name: str
    images: Tensor
    labels: Tensor
    numbers: Tensor
    levels: Tensor
    kinds: Tensor
    fingerprint: str

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return len(self.numbers)


def split_numbers(digits: int, train: int, unseen: int, seed: int) -> dict[str, Tensor]:
    """The numbers of each of `PARTS`, int64, disjoint: `train` and `unseen` of them, and a tenth of all for validation.

    The validation numbers depend on `digits` alone. Raises `ValueError` if more are asked than there are.
    """
    check_count(digits, "digits")
    if digits > 5:
        raise ValueError(f"digits must be from 1 to 5, got {digits}")
    check_count(train, "identities", low=2)
    check_count(unseen, "unseen", low=2)
    total = 10**digits
    order = torch.randperm(total, generator=torch.Generator().manual_seed(VALIDATION_SEED))
    validation, others = order[: total // 10], order[total // 10 :]
    if train + unseen > len(others):
        raise ValueError(
            f"identities + unseen must be at most {len(others)} with {digits} digits "
            f"(a tenth of the {total} numbers is for validation), got {train} + {unseen}"
        )
    dealt = others[torch.randperm(len(others), generator=_generator(seed, "split"))]
    return {"train": dealt[:train], "unseen": dealt[len(dealt) - unseen :], "validation": validation}


def load_numbers(
    part: str,
    *,
    seed: int,
    digits: int = 3,
    identities: int | None = None,
    unseen: int | None = None,
    per_identity: int | None = None,
    quality: str = "clean",
    levels: tuple[int, ...] = (0, 1, 2, 3),
    imbalance: float = 1.0,
    labels_per_identity: int = 1,
    dataset: str | ImageDataset = "mnist",
    root: str | Path | None = None,
    device: str | torch.device = "cpu",
) -> NumbersDataset:
    """One of `PARTS` of the numbers of a `seed`, whole and on `device`; the same arguments give the same bytes.

    Args:
        seed: deals the numbers into training and unseen ones and draws the digit images.
        digits: k, the digits of a number; there are 10^k identities.
        identities, unseen: how many train and how many are unseen; by default six and three tenths of all. More
            training identities with the same seed and `unseen` contain the fewer.
        per_identity: images of each; by default 20, of the unseen ones 10.
        quality: "clean", one kind of damage, or "mixed": each image gets one kind by chance.
        levels: each image's level is drawn from these, 0 (clean) to 3 (worst): a Gaussian blur of 0.8 pixels a level,
            a grey bar over 12 % of the width a level, or half the contrast a level.
        imbalance: images of the most frequent identity over those of the rarest, geometric between, mean
            `per_identity`, none below 2; 1 is balanced.
        labels_per_identity: 2 gives each identity two labels, its images dealt between them: the labels of a web
            collection in which a person comes twice. Not for unseen and validation identities.
        dataset: "mnist", "fashion_mnist" or "digits", or one that was loaded; each has ten classes of glyphs.

    Raises:
        ValueError, TypeError: for another part, quality or level, or counts that do not fit.
        DataUnavailable: if the digits cannot be had.
    """
    check_choice(part, "part", PARTS)
    check_choice(quality, "quality", QUALITIES)
    check_count(labels_per_identity, "labels_per_identity")
    check_number(imbalance, "imbalance", low=1.0, closed=True)
    per_identity = (10 if part == "unseen" else 20) if per_identity is None else per_identity
    check_count(per_identity, "per_identity", low=2 * labels_per_identity)
    if part != "train" and (labels_per_identity > 1 or imbalance > 1):
        raise ValueError(f"labels_per_identity and imbalance must be 1 for {part} identities, they are for training")
    if not levels or any(level not in range(WORST_LEVEL + 1) for level in levels):
        raise ValueError(f"levels must be numbers from 0 to {WORST_LEVEL}, got {levels}")
    total = 10**digits
    train = 6 * total // 10 if identities is None else identities
    chosen = split_numbers(digits, train, 3 * total // 10 if unseen is None else unseen, seed)[part]
    if isinstance(dataset, str):
        check_choice(dataset, "dataset", NAMES)
        dataset = load(dataset, root)
    generator = _generator(seed, part)
    counts = _images_of_each(len(chosen), per_identity, imbalance, generator)
    identity = torch.arange(len(chosen)).repeat_interleave(counts)
    images = _write(chosen[identity], digits, *_glyphs(dataset, part), generator)
    images, level, kind = degrade(images, quality, levels, generator)
    labels = identity * labels_per_identity
    if labels_per_identity > 1:
        first = counts.cumsum(0) - counts
        labels = labels + (torch.arange(len(labels)) - first[identity]) % labels_per_identity
    numbers = chosen.repeat_interleave(labels_per_identity)
    digest = hashlib.sha256()
    for tensor in (images, labels, numbers, level, kind):
        digest.update(tensor.numpy().tobytes())
    return NumbersDataset(
        name=f"numbers of {digits} digits ({dataset.name}), {part}",
        images=images.to(device),
        labels=labels.to(device),
        numbers=numbers.to(device),
        levels=level.to(device),
        kinds=kind.to(device),
        fingerprint=digest.hexdigest()[:16],
    )


def degrade(
    images: Tensor, quality: str, levels: tuple[int, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """`images` uint8 (N, 1, H, W) made worse, with the level (N,) and the kind (N,) of each; see `load_numbers`."""
    count = len(images)
    if quality == "clean":
        return images, torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64)
    level = torch.tensor(levels)[torch.randint(len(levels), (count,), generator=generator)]
    kind = torch.randint(1, 4, (count,), generator=generator)
    if quality != "mixed":
        kind = torch.full_like(kind, QUALITIES.index(quality))
    kind = kind * (level > 0)
    place = torch.rand(count, generator=generator, dtype=torch.float64)
    images = images.clone()
    for step in range(1, WORST_LEVEL + 1):
        blurred, covered, paled = (((level == step) & (kind == number)).nonzero().flatten() for number in (1, 2, 3))
        images[blurred] = _blurred(images[blurred], step)
        images[covered] = _covered(images[covered], step, place[covered])
        images[paled] = _paled(images[paled], step)
    return images, level, kind


def _blurred(images: Tensor, level: int) -> Tensor:
    # weights in 1 / 1024, summed in integers: every machine gets the same bytes
    reach = 7
    shape = [math.exp(-0.5 * (offset / (_BLUR * level)) ** 2) for offset in range(-reach, reach + 1)]
    weights = [round(1024 * weight / sum(shape)) for weight in shape]
    weights[reach] += 1024 - sum(weights)
    pixels = images.to(torch.int64)
    for axis in (2, 3):
        place, total = torch.arange(pixels.shape[axis]), torch.full_like(pixels, 512)
        for offset, weight in zip(range(-reach, reach + 1), weights, strict=True):
            total += weight * pixels.index_select(axis, (place + offset).clamp(0, len(place) - 1))
        pixels = total // 1024
    return pixels.to(torch.uint8)


def _covered(images: Tensor, level: int, place: Tensor) -> Tensor:
    # `place` in [0, 1) says where the bar begins
    columns = torch.arange(images.shape[-1])
    bar = round(_COVER * level * len(columns))
    begin = (place * (len(columns) - bar + 1)).long()[:, None]
    return images.masked_fill(((columns >= begin) & (columns < begin + bar))[:, None, None], 128)


def _paled(images: Tensor, level: int) -> Tensor:
    # halved about middle grey, halves up
    return ((images.to(torch.int64) - 128) // 2**level + 128).to(torch.uint8)


def _generator(seed: int, purpose: str) -> torch.Generator:
    check_count(seed, "seed", low=0)
    digest = hashlib.sha256(f"numbers {purpose} {seed}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _images_of_each(count: int, mean: int, imbalance: float, generator: torch.Generator) -> Tensor:
    if imbalance == 1:
        return torch.full((count,), mean)
    # geometric from 1 to 1 / imbalance, scaled to the mean
    share = imbalance ** -torch.linspace(0, 1, count, dtype=torch.float64)
    sizes = (share * (mean * count / share.sum())).round().long().clamp_(min=2)
    return sizes[torch.randperm(count, generator=generator)]


def _glyphs(dataset: ImageDataset, part: str) -> tuple[Tensor, Tensor]:
    """The images (n, 28, 28) and labels that a part is written with."""
    if dataset.num_classes != 10 or tuple(dataset.train_images.shape[1:]) != (1, 2 * SIDE, 2 * SIDE):
        raise ValueError(f"dataset must have ten classes of 28 x 28 grey images, {dataset.name} has not")
    if part == "unseen":
        images, labels = dataset.test_images, dataset.test_labels
    else:
        kept = len(dataset.train_labels) // 6
        rows = slice(-kept, None) if part == "validation" else slice(0, -kept)
        images, labels = dataset.train_images[rows], dataset.train_labels[rows]
    return images.cpu().squeeze(1), labels.cpu()


def _write(numbers: Tensor, digits: int, glyphs: Tensor, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Images uint8 (N, 1, 14, 14 digits), one of each of `numbers`: every digit a random glyph of its class."""
    order = classes.sort(stable=True).indices
    sizes = classes.bincount(minlength=10)
    first = sizes.cumsum(0) - sizes
    powers = 10 ** torch.arange(digits - 1, -1, -1)
    wanted = numbers[:, None] // powers % 10
    draw = torch.rand(wanted.shape, generator=generator, dtype=torch.float64)
    # only the glyphs that are used are pooled
    used, rows = order[first[wanted] + (draw * sizes[wanted]).long()].unique(return_inverse=True)
    pixels = glyphs[used].to(torch.int32).unflatten(1, (SIDE, 2)).unflatten(3, (SIDE, 2))
    # the mean of four pixels, halves up
    pooled = ((pixels.sum(dim=(2, 4)) + 2) // 4).to(torch.uint8)
    return pooled[rows].permute(0, 2, 1, 3).flatten(2).unsqueeze(1).contiguous()
