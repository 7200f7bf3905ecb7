"""Splits by identity: nobody in both parts, everybody tested."""

from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib.data import (
    data_root,
    fold_split,
    identity_split,
    people_by_fold,
    people_outside_pairs,
    rotation_split,
    rotations,
)
from reprolib.data.lfw import PAIRS_SHA256
from reprolib.data.splits import person_of

ORL_LABELS = torch.arange(40).repeat_interleave(10)


def test_orl_ten_rotations_of_30_and_10_people():
    times_tested = torch.zeros(40, dtype=torch.int64)
    for rotation in range(10):
        train, test = rotation_split(ORL_LABELS, rotation, 10, held_out=10)
        seen, unseen = set(ORL_LABELS[train].tolist()), set(ORL_LABELS[test].tolist())
        assert len(seen) == 30 and len(unseen) == 10 and not seen & unseen
        assert sorted(train.tolist() + test.tolist()) == list(range(400))
        times_tested[list(unseen)] += 1
    assert times_tested.tolist() != [0] * 40 and times_tested.min() >= 1
    # ten rotations of ten people are a hundred places for forty people
    assert times_tested.sum() == 100 and times_tested.max() - times_tested.min() <= 1


@given(st.data())
def test_any_rotation_is_disjoint_and_tests_every_class(data):
    classes = sorted(data.draw(st.sets(st.integers(-50, 50), min_size=2, max_size=30)))
    labels = torch.tensor(classes * 2)
    count = data.draw(st.integers(2, len(classes)))
    smallest = -(-len(classes) // count)
    held_out = data.draw(st.one_of(st.none(), st.integers(smallest, len(classes) - 1)))
    tested = rotations(labels, count, held_out)
    assert set().union(*tested) == set(classes)
    assert all(len(set(group)) == len(group) == (held_out or smallest) for group in tested)
    if held_out is None and len(classes) % count == 0:
        assert sum(map(len, tested)) == len(classes)
    for rotation in range(count):
        train, test = rotation_split(labels, rotation, count, held_out)
        assert not set(labels[train].tolist()) & set(labels[test].tolist())
        assert set(labels[test].tolist()) == set(tested[rotation])


@pytest.mark.parametrize(("count", "held_out"), [(0, None), (41, None), (10, 3), (10, 40), (1, None)])
def test_rotations_that_cannot_be_are_refused(count, held_out):
    with pytest.raises(ValueError, match="rotations"):
        rotations(ORL_LABELS, count, held_out)
    with pytest.raises(ValueError, match="from 0 to 9, not 10"):
        rotation_split(ORL_LABELS, 10)


def test_a_person_is_read_off_the_key():
    assert person_of("Jean-Pierre_Raffarin_0012") == "Jean-Pierre_Raffarin"
    for key in ("Aaron_Eckhart", "Aaron_Eckhart_1", "_0001", "Aaron_000a", "Aaron_00²1", "", "Aaron_Eckhart_0001.jpg"):
        with pytest.raises(ValueError, match="form Name_0001"):
            person_of(key)


NAMES = ("A", "B", "C", "D", "E", "F")
LABELS = torch.tensor([0, 0, 1, 2, 2, 3, 4, 5, 5, 5])


def test_fold_split_by_hand():
    people = people_by_fold(["A_0001", "B_0001", "C_0001"], ["A_0002", "C_0002", "D_0001"], [0, 0, 1])
    assert people == [{"A", "B", "C"}, {"C", "D"}]
    assert people_outside_pairs(NAMES, people) == ("E", "F")
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
    with pytest.raises(ValueError, match="from 0 to 1, not 2"):
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
