"""One judge of embeddings, against the measures that it puts together and brute force."""

from __future__ import annotations

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
    quick, slow = judge(rows, labels, identification=False), judge(rows, labels, identification=False, draws=20)
    # 28,080 impostor pairs: 28 stand behind FAR 1e-3, 2 behind 1e-4
    assert list(quick) == list(slow) == ["EER", "AUC", "TAR@1e-1", "TAR@1e-2", "TAR@1e-3"]
    for found in (quick, slow):
        assert found["EER"] == pytest.approx(float(equal_error_rate(genuine, impostor)), abs=1e-12)
        assert found["AUC"] == pytest.approx(float(roc_auc(genuine, impostor)), abs=1e-12)
        assert list(found.values())[2:] == tar_at_far(genuine, impostor, [1e-1, 1e-2, 1e-3])
    assert "40 people" in slow["AUC"].method
    assert slow["AUC"].high - slow["AUC"].low > quick["AUC"].high - quick["AUC"].low


def test_identification_by_brute_force():
    rows, labels = embedding(noise=1.4)
    found = judge(rows, labels, fars=[0.25, 0.1, 0.01])
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    first = {person: int(np.flatnonzero(labels == person)[0]) for person in range(40)}
    probes = [i for i in range(240) if i not in first.values()]
    gallery = list(first.values())
    hits = [labels[gallery[int(np.argmax(unit[gallery] @ unit[i]))]] == labels[i] for i in probes]
    assert found["rank-1"] == pytest.approx(np.mean(hits)) and 0.2 < found["rank-1"] < 0.95
    # open set: people 0, 2, 4 .. are enrolled, the others are 120 impostors: 30 and 12 pass
    enrolled = [first[person] for person in range(0, 40, 2)]
    best = {i: (unit[enrolled] @ unit[i]).max() for i in range(240) if i not in enrolled}
    strangers = np.sort([score for i, score in best.items() if labels[i] % 2])[::-1]
    known = [i for i in best if labels[i] % 2 == 0]
    for name, allowed in (("DIR@2.5e-1", 30), ("DIR@1e-1", 12)):
        right = [
            labels[enrolled[int(np.argmax(unit[enrolled] @ unit[i]))]] == labels[i] and best[i] > strangers[allowed]
            for i in known
        ]
        assert found[name] == pytest.approx(np.mean(right))
    assert "DIR@1e-2" not in found and "TAR@1e-2" in found


def test_people_with_one_image_are_strangers():
    rows, labels = embedding(30, 2)
    # the second images of people 20 .. 29 become people of their own
    second = np.array([np.flatnonzero(labels == person)[1] for person in range(20, 30)])
    labels[second] = np.arange(30, 40)
    found = judge(rows, labels, fars=[0.5])
    # 20 people have two images; ten of them and all 20 single images are strangers to the gallery of ten
    assert found["rank-1"].count == 20 and found["DIR@5e-1"].count == 10


def test_separable_people():
    labels = np.repeat(np.arange(30), 5)
    found = judge(torch.eye(30)[torch.from_numpy(labels)], torch.from_numpy(labels), draws=5, fars=[0.2])
    assert found["EER"] == 0 and found["AUC"] == found["rank-1"] == found["DIR@2e-1"] == 1
    # thirty people, all right: not certain
    assert found["AUC"].low == pytest.approx(0.025 ** (1 / 30))


def test_kinds_lengths_and_labels_do_not_matter():
    rows, labels = embedding(20, 4)
    base = judge(rows.astype(np.float32), labels)
    lengths = np.exp2(np.random.default_rng(1).integers(-5, 5, (80, 1)))
    for other in (torch.from_numpy(rows.astype(np.float32)), (rows * lengths).astype(np.float32)):
        assert judge(other, labels * 7 - 3) == base


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
