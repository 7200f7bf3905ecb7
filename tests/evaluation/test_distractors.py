"""MegaFace's protocols against the plain matrix of all cosines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.evaluation import distractor_identification, distractor_verification, distractors, tar_at_far


def unit(values):
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def problem(probes=40, others=300, dimension=8, noise=0.5, seed=0, dtype=np.float64):
    generator = np.random.default_rng(seed)
    a = generator.normal(size=(probes, dimension))
    b = a + noise * generator.normal(size=a.shape)
    return tuple(x.astype(dtype) for x in (a, b, 3 * generator.normal(size=(others, dimension))))


def plain_ranks(a, b, others):
    a, b, others = (unit(x.astype(np.float64)) for x in (a, b, others))
    return 1 + (a @ others.T >= (a * b).sum(1, keepdims=True)).sum(1)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("block", [7, 64, 1 << 22])
def test_identification_against_all_cosines(monkeypatch, dtype, block):
    monkeypatch.setattr(distractors, "_BLOCK", block)
    a, b, others = problem(noise=1.2, dtype=dtype)
    ranks = plain_ranks(a, b, others)
    assert 0.1 < np.mean(ranks == 1) < 0.9
    for k in (1, 3, 10):
        assert distractor_identification(a, b, others, k=k) == np.mean(ranks <= k)
    sizes = [300, 1, 10, 10, 77]
    for k in (1, 3, 20):
        for size, estimate in zip(sizes, distractor_identification(a, b, others, k=k, sizes=sizes), strict=True):
            assert estimate == np.mean(plain_ranks(a, b, others[:size]) <= k)
            assert estimate.count == 40 and f"{size} distractors" in estimate.method


def test_by_pencil():
    # cosines with the probe: mate 0.8, distractors 0.6 and 1
    probe, mate = np.array([[2.0, 0.0]]), np.array([[0.8, 0.6]])
    others = np.array([[3.0, 4.0], [5.0, 0.0]])
    assert distractor_identification(probe, mate, others, sizes=[1, 2]) == [1.0, 0.0]
    assert distractor_identification(probe, mate, others, k=2) == 1


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 2, 5]))
def test_megaface_by_its_definition(seed, k):
    """For each ordered pair (a, b) of a person's images the gallery is {b} and the distractors."""
    generator = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), [1, 2, 3, 3])
    images = generator.normal(size=(4, 6))[labels] + generator.normal(size=(9, 6))
    others = generator.normal(size=(15, 6))
    pairs = [(i, j) for i in range(9) for j in range(9) if i != j and labels[i] == labels[j]]
    found, scores = [], []
    for i, j in pairs:
        gallery = unit(np.concatenate((images[j : j + 1], others))) @ unit(images)[i]
        found.append(0 in np.argsort(-gallery)[:k])
        scores.append(gallery[0])
    first, second = np.array(pairs).T
    assert distractor_identification(images[first], images[second], others, k=k) == np.mean(found)
    impostor = (unit(images) @ unit(others).T).ravel()
    best = max(np.mean(np.array(scores) > t) for t in [-2, *impostor] if np.mean(impostor > t) <= 0.05)
    assert distractor_verification(np.array(scores), images, others, 0.05) == best


def test_a_probe_that_has_failed_stays_failed(monkeypatch):
    # every distractor of the first block beats every mate; the later ones are not counted for them any more
    a, _, _ = problem(20)
    everyone = np.concatenate((a, -a, problem(seed=3)[2]))
    monkeypatch.setattr(distractors, "_BLOCK", 64)
    for k in (1, 2, 25):
        ranks = plain_ranks(a, -a, everyone)
        assert distractor_identification(a, -a, everyone, k=k) == np.mean(ranks <= k)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("dimension", [2, 3, 64, 511])
def test_a_distractor_equal_to_the_mate_is_a_failure(dtype, dimension):
    a, b, others = problem(25, 100, dimension, noise=0.1, dtype=dtype)
    # 3 b is rounded differently from b, yet its direction is the same to rounding
    for copies in (b, 3 * b):
        everyone = np.concatenate((others, copies[:5]))
        found = plain_ranks(a, b, everyone) == 1
        found[:5] = False
        assert distractor_identification(a, b, everyone) == np.mean(found)
        if dimension >= 64:
            # only its own copy comes near a mate, and counts once: the mate has rank 2
            assert distractor_identification(a, b, copies) == 0
            assert distractor_identification(a, b, copies, k=2) == 1


@pytest.mark.parametrize("change", [3e-6, 1e-4])
def test_a_close_call_is_decided_beyond_the_product(change):
    # 3e-6 is inside the band where a float32 product of 512 terms is not trusted, 1e-4 is outside
    generator = np.random.default_rng(5)
    probe = unit(generator.normal(size=(1, 512)))
    aside = generator.normal(size=(1, 512))
    aside = unit(aside - (aside @ probe.T) * probe)

    def at(cosine):
        return (cosine * probe + (1 - cosine**2) ** 0.5 * aside).astype(np.float32)

    probe32, mate = probe.astype(np.float32), at(0.8)
    assert distractor_identification(probe32, mate, at(0.8 - change)) == 1
    assert distractor_identification(probe32, mate, at(0.8 + change)) == 0


@pytest.mark.parametrize("noise", [0.3, 1.2, 3.0])
def test_products_in_half_precision_give_the_same_result(monkeypatch, noise):
    a, b, others = problem(60, 2000, 32, noise, dtype=np.float32)
    expected = [np.mean(plain_ranks(a, b, others[:size]) <= k) for k in (1, 5) for size in (10, 2000)]
    monkeypatch.setattr(distractors, "_screening_dtype", lambda probes: torch.bfloat16)
    found = [distractor_identification(a, b, others[:size], k=k) for k in (1, 5) for size in (10, 2000)]
    assert found == expected
    # copies of the mate are ties, which the screening cannot see
    assert distractor_identification(a, b, b) == 0


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 64, 512]))
def test_the_error_of_a_cosine_in_half_precision_is_within_its_bound(seed, dimension):
    generator = np.random.default_rng(seed)
    scales = 2.0 ** generator.integers(-20, 20, size=(2, 50, dimension))
    x, y = (
        torch.from_numpy(unit(generator.normal(size=(50, dimension)) * scales[0])),
        torch.from_numpy(unit(generator.normal(size=(50, dimension)) * scales[1])),
    )
    product = (x.bfloat16() @ y.bfloat16().T).double()
    assert (product - x @ y.T).abs().max() <= distractors._slack(torch.bfloat16, dimension)


@pytest.mark.parametrize("block", [16, 1 << 22])
def test_verification_is_tar_at_far(monkeypatch, block):
    monkeypatch.setattr(distractors, "_BLOCK", block)
    a, b, others = problem(30, 200)
    genuine = (unit(a) * unit(b)).sum(1)
    fars = [1 / 6000, 1e-3, 0.5, 0.02, 1.0]
    ours = distractor_verification(genuine, a, others, fars)
    theirs = tar_at_far(genuine, (unit(a) @ unit(others).T).ravel(), fars)
    assert [e.as_dict() for e in ours] == [e.as_dict() for e in theirs]
    assert distractor_verification(genuine, a, others, 1e-3) == ours[1]
    assert not ours[1].supported and ours[3].supported


def test_memory_mapped_and_other_kinds(tmp_path):
    a, b, others = problem(dtype=np.float32)
    expected = distractor_identification(a, b, others)
    np.save(tmp_path / "others.npy", others)
    assert distractor_identification(a, b, np.load(tmp_path / "others.npy", mmap_mode="r")) == expected
    tensors = (torch.from_numpy(x) for x in (a, b, others))
    assert distractor_identification(*tensors) == expected
    assert distractor_identification(a, b, torch.from_numpy(others)[:, :].flip(0)) == expected
    assert distractor_identification(a, b, others[::-1]) == expected
    half = [torch.from_numpy(x).half() for x in (a, b, others)]
    assert distractor_identification(*half) == np.mean(plain_ranks(*(x.numpy() for x in half)) == 1)


def test_norms_do_not_matter():
    a, b, others = problem()
    generator = np.random.default_rng(1)
    scaled = [x * np.exp2(generator.integers(-300, 300, (len(x), 1))) for x in (a, b, others)]
    assert distractor_identification(*scaled) == distractor_identification(a, b, others)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda a, b, o: (a, b[:3], o), ValueError, "P, d"),
        (lambda a, b, o: (a, b, o[:, :3]), ValueError, "N, d"),
        (lambda a, b, o: (a, b, o[:0]), ValueError, "rows"),
        (lambda a, b, o: (a[0], b, o), ValueError, "rows"),
        (lambda a, b, o: (a, b, o.astype(int)), TypeError, "floating"),
        (lambda a, b, o: (a, b, np.where(o == o[7, 3], np.nan, o)), ValueError, "distractors hold NaN"),
        (lambda a, b, o: (0 * a, b, o), ValueError, "probes hold a zero"),
        (lambda a, b, o: (a, b * np.inf, o), ValueError, "mates hold NaN"),
    ],
)
def test_wrong_input_is_named(change, error, words):
    with pytest.raises(error, match=words):
        distractor_identification(*change(*problem()))


def test_wrong_options_are_named():
    a, b, others = problem()
    with pytest.raises(ValueError, match="k must be an integer >= 1"):
        distractor_identification(a, b, others, k=0)
    for sizes in ([0], [301]):
        with pytest.raises(ValueError, match="between 1 and 300"):
            distractor_identification(a, b, others, sizes=sizes)
    with pytest.raises(ValueError, match="empty"):
        distractor_identification(a, b, others, sizes=[])
    with pytest.raises(ValueError, match="share d"):
        distractor_verification(a[:, 0], a, others[:, :2], 0.1)
    with pytest.raises(ValueError, match="far"):
        distractor_verification(a[:, 0], a, others, 0)
