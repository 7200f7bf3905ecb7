"""Choosing images: people held out, balanced subsets, verification pairs and P x K batches.

Every function works on labels alone, a one-dimensional integer tensor, and returns int64 indices into it on
the device of the labels. Whatever is random comes from a `torch.Generator` on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from reprolib._checks import check_choice, check_count

PAIR_LIMIT = 2**26


def class_split(labels: torch.Tensor, held_out: Iterable[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices (seen, unseen) of a split by identity: `unseen` has all images of the classes `held_out`.

    Both ascending, disjoint, together all of `labels`. Raises `ValueError` if `held_out` is empty, repeats a
    class, names one that `labels` lacks, or leaves none.
    """
    labels = _checked(labels)
    chosen = [int(label) for label in held_out]
    present = set(labels.unique().tolist())
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"held_out must name at least one class and each once, got {chosen}")
    if unknown := sorted(set(chosen) - present):
        raise ValueError(f"held_out names the classes {unknown}, which the labels do not have")
    if len(chosen) == len(present):
        raise ValueError(f"held_out names all {len(present)} classes, so that none is left to train on")
    unseen = torch.isin(labels, torch.tensor(chosen, device=labels.device))
    return (~unseen).nonzero().flatten(), unseen.nonzero().flatten()


def balanced_subset(labels: torch.Tensor, per_class: int, generator: torch.Generator) -> torch.Tensor:
    """Ascending indices of `per_class` images of every class, drawn without replacement.

    Raises `ValueError` if `per_class` is not positive or a class has fewer images.
    """
    labels = _checked(labels)
    check_count(per_class, "per_class")
    parts = []
    for label, members in _members(labels).items():
        if len(members) < per_class:
            raise ValueError(f"class {label} has {len(members)} images, fewer than per_class = {per_class}")
        parts.append(members[torch.randperm(len(members), generator=generator)[:per_class]])
    return torch.cat(parts).sort().values.to(labels.device)


def genuine_impostor_pairs(
    labels: torch.Tensor, generator: torch.Generator | None = None, max_pairs: int | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Verification pairs `(i, j, same)`: indices int64 (M,) with i < j, and bool (M,), true for one person.

    Without `max_pairs` all N (N - 1) / 2 pairs in lexicographic order. With it at most `max_pairs`, half of
    each kind as in the LFW protocol (all of a kind that has fewer), every pair of a kind equally likely,
    none twice, genuine pairs first. Raises `ValueError` if a kind has no pair, if `max_pairs` < 2, if
    `max_pairs` comes without a `generator`, and above 2^26 pairs.
    """
    labels = _checked(labels)
    device, labels = labels.device, labels.cpu()
    count = len(labels)
    _, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
    total = count * (count - 1) // 2
    genuine = int((sizes * (sizes - 1) // 2).sum())
    if genuine == 0 or genuine == total:
        kind = "genuine" if genuine == 0 else "impostor"
        raise ValueError(f"the {count} labels have no {kind} pair, so that there is nothing to verify")
    if max_pairs is None:
        if total > PAIR_LIMIT:
            raise ValueError(f"{count} labels have {total} pairs, more than {PAIR_LIMIT}; give max_pairs")
        i, j = torch.triu_indices(count, count, 1)
        return i.to(device), j.to(device), (labels[i] == labels[j]).to(device)
    if generator is None or not 2 <= max_pairs <= PAIR_LIMIT:
        raise ValueError(f"max_pairs must be from 2 to {PAIR_LIMIT} and come with a generator, got {max_pairs}")
    # sorted by class, position p forms genuine pairs with those before last[p], impostor pairs with the rest
    classes, order = classes.sort(stable=True)
    last = sizes.cumsum(0)[classes]
    position = torch.arange(count)
    parts = []
    for partners, first, available in (
        (last - position - 1, position + 1, genuine),
        (count - last, last, total - genuine),
    ):
        number = _distinct(available, min(max_pairs // 2, available), generator)
        # pairs are numbered position by position: ends[p] is one more than the last number of position p
        ends = partners.cumsum(0)
        p = torch.searchsorted(ends, number, right=True)
        q = first[p] + number - (ends[p] - partners[p])
        parts.append(torch.stack([order[p], order[q]]))
    i, j = torch.cat(parts, dim=1).sort(dim=0).values
    return i.to(device), j.to(device), (labels[i] == labels[j]).to(device)


class PKSampler:
    """Batches of `P` classes with `K` images each, for the losses that compare within a batch.

    Iterating yields int64 index tensors (P * K,), class after class; one pass has `len(labels) // (P * K)`
    batches. The classes are dealt like cards, and so are each class's images: nothing comes again before
    the deck has too few left. `few` says what becomes of a class with fewer than K images: "error"; "leave out";
    "repeat", where its images come more than once in a batch, which makes pairs at distance 0 (a class with one
    image is left out then, too). `left_out` are the classes that never come.

    Raises `ValueError` for P < 2, K < 2, fewer than P classes, and with "error" for such a class. Source: the
    batches of A. Hermans, L. Beyer, B. Leibe, "In Defense of the Triplet Loss", 2017.
    """

    def __init__(self, labels: torch.Tensor, P: int, K: int, generator: torch.Generator, few: str = "error") -> None:
        labels = _checked(labels)
        check_choice(few, "few", ("error", "leave out", "repeat"))
        if P < 2 or K < 2:
            raise ValueError(f"P and K must be at least 2 (classes, images of each), got P = {P}, K = {K}")
        least = {"error": 1, "leave out": K, "repeat": 2}[few]
        classes = _members(labels)
        self._members = [(label, members) for label, members in classes.items() if len(members) >= least]
        self.left_out = tuple(label for label, members in classes.items() if len(members) < least)
        if len(self._members) < P:
            raise ValueError(f"the labels have {len(self._members)} classes, fewer than P = {P}")
        for label, members in self._members:
            if len(members) < K and few == "error":
                raise ValueError(f"class {label} has {len(members)} images, fewer than K = {K}")
        self._device = labels.device
        self._batches = sum(len(members) for _, members in self._members) // (P * K)
        self.P, self.K, self.generator = P, K, generator

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[torch.Tensor]:
        classes = _Deck(torch.arange(len(self._members)), self.generator)
        decks = [_Deck(members, self.generator) for _, members in self._members]
        for _ in range(self._batches):
            chosen = classes.deal(self.P).tolist()
            yield torch.cat([decks[label].deal(self.K) for label in chosen]).to(self._device)


class _Deck:
    """Deals distinct items, all of them before one twice; shuffles them anew when fewer than asked are left."""

    def __init__(self, items: torch.Tensor, generator: torch.Generator) -> None:
        self._items, self._generator = items, generator
        self._left = items[:0]

    def deal(self, count: int) -> torch.Tensor:
        if len(self._left) < count:
            rounds = -(-count // len(self._items))
            mixed = [torch.randperm(len(self._items), generator=self._generator) for _ in range(rounds)]
            self._left = self._items[torch.cat(mixed)]
        hand, self._left = self._left[:count], self._left[count:]
        return hand


def _checked(labels: torch.Tensor) -> torch.Tensor:
    if not isinstance(labels, torch.Tensor) or labels.is_floating_point() or labels.is_complex():
        kind = labels.dtype if isinstance(labels, torch.Tensor) else type(labels).__name__
        raise TypeError(f"labels must be a tensor of integers, got {kind}")
    if labels.ndim != 1 or len(labels) == 0:
        raise ValueError(f"labels must be one-dimensional and not empty, got shape {tuple(labels.shape)}")
    return labels.to(torch.int64)


def _members(labels: torch.Tensor) -> dict[int, torch.Tensor]:
    """Indices of each class on the CPU, classes and indices ascending."""
    classes, sizes = labels.cpu().unique(return_counts=True)
    groups = labels.cpu().sort(stable=True).indices.split(sizes.tolist())
    return dict(zip(classes.tolist(), groups, strict=True))


def _distinct(total: int, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` different numbers of 0 .. total - 1, ascending, every set of them equally likely."""
    if total <= max(2**16, 4 * count):
        return torch.randperm(total, generator=generator)[:count].sort().values
    drawn = torch.empty(0, dtype=torch.int64)
    while len(drawn) < count:
        drawn = torch.cat([drawn, torch.randint(total, (count,), generator=generator)]).unique()
    # all numbers are alike here, so that a random part of what was drawn is a fair choice
    return drawn[torch.randperm(len(drawn), generator=generator)[:count]].sort().values
