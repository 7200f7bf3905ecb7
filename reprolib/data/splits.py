"""Splits by identity: nobody is in both parts, so that the test is about people never seen in training.

The pairs of a protocol come in as plain keys ("Name_0001") and fold numbers; reading pairs.txt is not done here.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch

from reprolib.data.sampling import class_split


def rotations(labels: torch.Tensor, count: int = 10, held_out: int | None = None) -> list[tuple[int, ...]]:
    """The classes tested in each of `count` rotations: every class in at least one, `held_out` of them in each.

    Rotation r tests the classes at the places r C // count, then the next ones, of the ascending C classes, round the
    end. `held_out` is ceil(C / count) by default, so that each class is tested once where `count` divides C. For ORL:
    ten rotations, 30 people train, `held_out=10` test. Raises `ValueError` if that leaves no class to train on or a
    class is never tested.
    """
    classes = labels.unique().tolist()
    total = len(classes)
    if count < 1 or count > total:
        raise ValueError(f"there can be 1 to {total} rotations of {total} classes, not {count}")
    least = -(-total // count)
    size = least if held_out is None else held_out
    if not least <= size < total:
        raise ValueError(
            f"{count} rotations of {total} classes have to test {least} to {total - 1} at a time, not {size}"
        )
    starts = [rotation * total // count for rotation in range(count)]
    return [tuple(sorted(classes[(start + k) % total] for k in range(size))) for start in starts]


def rotation_split(
    labels: torch.Tensor, rotation: int, count: int = 10, held_out: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Ascending indices (train, test) of one of the `rotations`; for ORL: `rotation_split(labels, r, 10, 10)`.

    Raises `ValueError` as `rotations` does and for a rotation that is not in 0 .. count - 1.
    """
    tested = rotations(labels, count, held_out)
    if not 0 <= rotation < count:
        raise ValueError(f"the rotation has to be from 0 to {count - 1}, not {rotation}")
    return class_split(labels, tested[rotation])


def person_of(key: str) -> str:
    """The person of an image key: "Aaron_Eckhart" of "Aaron_Eckhart_0001"; raises `ValueError` for another form."""
    person, _, number = key.rpartition("_")
    if not person or len(number) != 4 or not number.isascii() or not number.isdigit():
        raise ValueError(f"an image key has the form Name_0001, not {key!r}")
    return person


def people_by_fold(first: Iterable[str], second: Iterable[str], folds: Iterable[int]) -> list[frozenset[str]]:
    """The people of each fold, from the two image keys ("Name_0001") and the fold of every pair.

    Folds are numbered 0 .. K - 1 and none may be empty; raises `ValueError` otherwise and for unequal lengths.
    """
    members: dict[int, set[str]] = {}
    for one, two, fold in zip(first, second, folds, strict=True):
        members.setdefault(int(fold), set()).update((person_of(one), person_of(two)))
    if sorted(members) != list(range(len(members))) or len(members) < 2:
        raise ValueError(f"the folds have to be numbered 0 .. K - 1 with K of at least 2, not {sorted(members)}")
    return [frozenset(members[fold]) for fold in range(len(members))]


def people_outside_pairs(names: Sequence[str], fold_people: Iterable[Collection[str]]) -> tuple[str, ...]:
    """Those of `names` (one entry a person) who are in no fold, in order."""
    inside = set().union(*fold_people)
    return tuple(name for name in names if name not in inside)


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
        raise ValueError(f"the fold has to be from 0 to {len(fold_people) - 1}, not {fold}")
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
