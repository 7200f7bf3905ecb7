"""One judge of embeddings, against the measures that it puts together and brute force."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from reprolib.evaluation import all_pairs_cosines, equal_error_rate, judge, roc_auc, tar_at_far


def embedding(people=40, images=6, noise=1.0, seed=0):
    generator = np.random.default_rng(seed)
    labels = generator.permutation(np.repeat(np.arange(people), images))
    return generator.normal(size=(people, 12))[labels] + noise * generator.normal(size=(len(labels), 12)), labels


def test_verification_is_that_of_all_pairs():
    rows, labels = embedding()
    genuine, impostor = all_pairs_cosines(rows, labels)
    quick, slow = judge(rows, labels, draws=0), judge(rows, labels, draws=20)
    # 28,080 impostor pairs: 28 stand behind FAR 1e-3, 2 behind 1e-4
    assert list(quick.tar) == [0.1, 0.01, 0.001] and quick.left_out == (1e-4,)
    assert (quick.people, quick.genuine, quick.impostor) == (40, len(genuine), len(impostor)) == (40, 600, 28080)
    for found in (quick, slow):
        assert found.equal_error_rate == pytest.approx(float(equal_error_rate(genuine, impostor)), abs=1e-12)
        assert found.auc == pytest.approx(float(roc_auc(genuine, impostor)), abs=1e-12)
        assert list(found.tar.values()) == tar_at_far(genuine, impostor, list(found.tar))
    assert "40 people" in slow.auc.method and slow.auc.high - slow.auc.low > quick.auc.high - quick.auc.low
    document = json.loads(json.dumps(slow.as_dict(), allow_nan=False))
    assert document["tar"]["0.001"]["value"] == slow.tar[0.001] and document["left_out"] == [1e-4]


def test_identification_by_brute_force():
    rows, labels = embedding(noise=1.4)
    found = judge(rows, labels, draws=0, fars=[0.2, 0.1, 0.01])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    first = {person: int(np.flatnonzero(labels == person)[0]) for person in range(40)}
    probes = [i for i in range(240) if i not in first.values()]
    gallery = list(first.values())
    hits = [labels[gallery[int(np.argmax(unit[gallery] @ unit[i]))]] == labels[i] for i in probes]
    assert found.rank1 == pytest.approx(np.mean(hits)) and 0.2 < found.rank1 < 0.95
    # open set: people 0, 2, 4 .. are enrolled, the others are 120 impostors: 24 and 12 pass
    enrolled = [first[person] for person in range(0, 40, 2)]
    best = {i: (unit[enrolled] @ unit[i]).max() for i in range(240) if i not in enrolled}
    strangers = np.sort([score for i, score in best.items() if labels[i] % 2])[::-1]
    known = [i for i in best if labels[i] % 2 == 0]
    for far, allowed in ((0.2, 24), (0.1, 12)):
        right = [
            labels[enrolled[int(np.argmax(unit[enrolled] @ unit[i]))]] == labels[i] and best[i] > strangers[allowed]
            for i in known
        ]
        assert found.dir[far] == pytest.approx(np.mean(right))
    assert found.dir_left_out == (0.01,) and list(found.dir) == [0.2, 0.1]
    assert "20 people as clusters" in found.dir[0.1].method and found.rank1.low < found.rank1 < found.rank1.high


def test_separable_people():
    labels = np.repeat(np.arange(30), 5)
    found = judge(torch.eye(30)[torch.from_numpy(labels)], torch.from_numpy(labels), draws=5, fars=[0.2])
    assert found.equal_error_rate == 0 and found.auc == found.rank1 == found.dir[0.2] == 1
    # thirty people, all right: not certain
    assert found.rank1.low == pytest.approx(0.025 ** (1 / 30)) and found.auc.low < 1


def test_kinds_lengths_and_labels_do_not_matter():
    rows, labels = embedding(20, 4)
    base = judge(rows.astype(np.float32), labels, draws=0)
    lengths = np.exp2(np.random.default_rng(1).integers(-5, 5, (80, 1)))
    for other in (torch.from_numpy(rows.astype(np.float32)), (rows * lengths).astype(np.float32)):
        assert judge(other, labels * 7 - 3, draws=0).as_dict() == base.as_dict()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda rows, labels: (rows, np.arange(len(labels))),
            ValueError,
            "at least 2 people with several images, got 0",
        ),
        (lambda rows, labels: (rows, labels[:-1]), ValueError, "labels must have"),
        (lambda rows, labels: (rows, labels * 1.0), TypeError, "labels must be integers"),
        (lambda rows, labels: (0 * rows, labels), ValueError, "zero vector"),
        (lambda rows, labels: (rows * np.nan, labels), ValueError, "NaN"),
        (lambda rows, labels: (rows.astype(int), labels), TypeError, "floating"),
    ],
)
def test_wrong_input_is_named(change, error, words):
    with pytest.raises(error, match=words):
        judge(*change(*embedding(5, 3)))
