"""Splits by identity: nobody is in both parts, so that the test is about people never seen in training.

The pairs of a protocol come in as plain keys ("Name_0001") and fold numbers; reading pairs.txt is not done here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

from reprolib.data.sampling import class_split


def person_of(key: str) -> str:
    """The person of an image key: "Aaron_Eckhart" of "Aaron_Eckhart_0001"; raises `ValueError` for another form."""
    person, _, number = key.rpartition("_")
    if not person or len(number) != 4 or not number.isascii() or not number.isdigit():
        raise ValueError(f"an image key must have the form Name_0001, got {key!r}")
    return person


def people_by_fold(first: Iterable[str], second: Iterable[str], folds: Iterable[int]) -> list[frozenset[str]]:
    """The people of each fold, from the two image keys ("Name_0001") and the fold of every pair.

    Folds are numbered 0 .. K - 1 and none may be empty; raises `ValueError` otherwise and for unequal lengths.
    """
    members: dict[int, set[str]] = {}
    for one, two, fold in zip(first, second, folds, strict=True):
        members.setdefault(int(fold), set()).update((person_of(one), person_of(two)))
    if sorted(members) != list(range(len(members))) or len(members) < 2:
        raise ValueError(f"the folds must be numbered 0 .. K - 1 with K of at least 2, got {sorted(members)}")
    return [frozenset(members[fold]) for fold in range(len(members))]


def fold_split(
    names: Sequence[str], labels: torch.Tensor, fold_people: Sequence[Collection[str]], fold: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices (train, test) of the images for one fold of a verification protocol.

    Test: all images of the people of that fold. Train: all others, that is the other folds and the people outside the
    pairs, without anyone of the tested fold even if another fold names them too. `names[labels[i]]` is the person on
    image i; `fold_people` is what `people_by_fold` returns. Raises `ValueError` for a fold that does not exist, a
    person whom `names` lacks, and if nobody is left to train on.
    """
    if not 0 <= fold < len(fold_people):
        raise ValueError(f"fold must be from 0 to {len(fold_people) - 1}, got {fold}")
    number = {name: label for label, name in enumerate(names)}
    if unknown := sorted(name for name in fold_people[fold] if name not in number):
        raise ValueError(f"fold {fold} names {unknown[0]!r}, of whom there is no image ({len(unknown)} such people)")
    return class_split(labels, sorted(number[name] for name in fold_people[fold]))


def identity_split(
    images: torch.Tensor, labels: torch.Tensor, held_out: Iterable[int]
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
    """`(images, labels)` of the classes that train and of the classes `held_out`, by `class_split`.

    The labels of either part are renumbered 0, 1, ... in the ascending order of its classes, int64.
    """
    seen, unseen = (
        (images[part], labels[part].unique(return_inverse=True)[1]) for part in class_split(labels, held_out)
    )
    return seen, unseen
