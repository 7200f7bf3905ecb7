"""Splits by identity: nobody in both parts, everybody tested."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib.data import data_root, fold_split, identity_split, people_by_fold
from reprolib.data.lfw import PAIRS_SHA256
from reprolib.data.splits import person_of


def test_a_person_is_read_off_the_key():
    assert person_of("Jean-Pierre_Raffarin_0012") == "Jean-Pierre_Raffarin"
    for key in ("Aaron_Eckhart", "Aaron_Eckhart_1", "_0001", "Aaron_000a", "Aaron_00²1", "", "Aaron_Eckhart_0001.jpg"):
        with pytest.raises(ValueError, match="must have the form Name_0001"):
            person_of(key)


NAMES = ("A", "B", "C", "D", "E", "F")
LABELS = torch.tensor([0, 0, 1, 2, 2, 3, 4, 5, 5, 5])


def test_fold_split_by_hand():
    people = people_by_fold(["A_0001", "B_0001", "C_0001"], ["A_0002", "C_0002", "D_0001"], [0, 0, 1])
    assert people == [{"A", "B", "C"}, {"C", "D"}]
    # C is in both folds: of the two she is only tested
    train, test = fold_split(NAMES, LABELS, people, 0)
    assert test.tolist() == [0, 1, 2, 3, 4] and train.tolist() == [5, 6, 7, 8, 9]
    train, test = fold_split(NAMES, LABELS, people, 1)
    assert test.tolist() == [3, 4, 5] and train.tolist() == [0, 1, 2, 6, 7, 8, 9]


@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1, max_size=5), min_size=1, max_size=4))
def test_overlapping_folds_never_leak(fold_people):
    for fold in range(len(fold_people)):
        train, test = fold_split(NAMES, LABELS, fold_people, fold)
        seen, unseen = ({NAMES[label] for label in LABELS[part].tolist()} for part in (train, test))
        assert not seen & unseen and unseen == fold_people[fold] and seen == set(NAMES) - unseen


def test_folds_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="fold must be from 0 to 1, got 2"):
        fold_split(NAMES, LABELS, [{"A"}, {"B"}], 2)
    with pytest.raises(ValueError, match="names 'X', of whom there is no image"):
        fold_split(NAMES, LABELS, [{"A", "X"}, {"B"}], 0)
    with pytest.raises(ValueError, match="none is left to train on"):
        fold_split(NAMES, LABELS, [set(NAMES), {"B"}], 0)
    with pytest.raises(ValueError, match=r"numbered 0 \.\. K - 1"):
        people_by_fold(["A_0001"], ["B_0001"], [1])
    with pytest.raises(ValueError, match="shorter"):
        people_by_fold(["A_0001"], ["B_0001"], [])


def test_the_folds_of_the_real_protocol_are_disjoint_in_identity():
    path = data_root() / "lfw" / "pairs.txt"
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != PAIRS_SHA256:
        pytest.skip("the pairs of LFW are not on this machine")
    rows = [line.split() for line in path.read_text().splitlines()[1:]]
    keys = [(row[0], row[1], row[-2] if len(row) == 4 else row[0], row[-1]) for row in rows]
    first = [f"{name}_{int(number):04d}" for name, number, _, _ in keys]
    second = [f"{name}_{int(number):04d}" for _, _, name, number in keys]
    people = people_by_fold(first, second, [row // 600 for row in range(len(rows))])
    assert len(rows) == 6000 and len(people) == 10
    # 4,281 people, each in one fold only
    assert sum(map(len, people)) == len(set().union(*people)) == 4281


def test_identity_split_renumbers_either_part():
    labels = torch.tensor([7, 2, 9, 2, 4, 7])
    images = 10 * labels
    (seen, seen_labels), (unseen, unseen_labels) = identity_split(images, labels, [9, 2])
    assert seen.tolist() == [70, 40, 70] and seen_labels.tolist() == [1, 0, 1]
    assert unseen.tolist() == [20, 90, 20] and unseen_labels.tolist() == [0, 1, 0]
    with pytest.raises(ValueError, match="held_out"):
        identity_split(images, labels, [3])
