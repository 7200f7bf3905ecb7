"""Protocols of several random splits: BLUFR on LFW, and the template protocols IJB-A, IJB-B and IJB-C."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .._checks import Array, check_count, label_array
from .features import all_pairs_cosines, unit_array
from .identification import dir_at_far, rank_k_identification
from .intervals import Estimate, mean_and_deviation, mean_estimate
from .roc import tar_at_far
from .templates import template_features


@dataclass(frozen=True)
class SplitSummary:
    """A rate over the splits of a protocol: `mean`, `standard_deviation` (ddof = 1) and the `values` themselves."""

    mean: Estimate
    standard_deviation: float
    values: tuple[float, ...]

    @property
    def mean_minus_deviation(self) -> float:
        """mean - standard deviation, the single number that BLUFR reports."""
        return float(self.mean) - self.standard_deviation


def summarise_splits(values: Sequence[float], *, level: float = 0.95, over: str = "splits") -> SplitSummary:
    """Mean and standard deviation of the rates `values` of at least two splits (IJB-A reports both, of 10).

    The interval of the mean is Student's t over the splits, cut to [0, 1]. Random splits of one data set share
    people and images, so it speaks of the splits drawn and not of new people. `supported` is False if it is for
    any of the values, or if all values agree, which leaves the interval without width.
    """
    rates = np.asarray([float(value) for value in values])
    if len(rates) < 2:
        raise ValueError(f"a summary needs at least 2 {over}, got {len(rates)}")
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"the values of the {over} must be rates in [0, 1], got {rates.tolist()}")
    mean = mean_estimate(rates, level=level, over=over, low=0.0, high=1.0)
    deviation = mean_and_deviation(rates)[1]
    mean.supported = deviation > 0 and all(getattr(value, "supported", True) for value in values)
    return SplitSummary(mean, deviation, tuple(rates.tolist()))


@dataclass(frozen=True, eq=False)
class BlufrTrial:
    """Row indices of one trial: all `test` images, and among them the `gallery` and the `probes`."""

    test: np.ndarray
    gallery: np.ndarray
    probes: np.ndarray


@dataclass(frozen=True)
class BlufrResult:
    """`verification` (TAR at the FAR asked) and `identification` (DIR at the FAR asked) over the trials."""

    verification: SplitSummary
    identification: SplitSummary


def blufr_trials(
    labels: Array,
    generator: np.random.Generator,
    *,
    trials: int = 10,
    training_people: int = 1500,
    gallery_people: int = 1000,
) -> list[BlufrTrial]:
    """Random trials by BLUFR's recipe; the defaults are those for LFW's 13,233 images of 5,749 people.

    For each trial `training_people` are set aside; the images of all other people are the test set.
    `gallery_people` of those with at least two images are enrolled with one image each; their other images are
    the genuine probes, all images of the people left are the impostor probes. The published numbers belong to
    the ten trials that the benchmark distributes, not to new ones; give those to `blufr` as `BlufrTrial`s.

    `labels` (N,) integers. Raises ValueError if the people do not suffice.
    """
    labels = label_array(labels, "labels")
    check_count(trials, "trials")
    check_count(training_people, "training_people")
    check_count(gallery_people, "gallery_people")
    people = np.unique(labels)
    if training_people + gallery_people >= len(people):
        raise ValueError(
            f"{training_people} training and {gallery_people} gallery people leave no impostors of {len(people)} people"
        )
    made = []
    for _ in range(trials):
        training = generator.choice(people, training_people, replace=False)
        test = np.flatnonzero(~np.isin(labels, training))
        present, counts = np.unique(labels[test], return_counts=True)
        several = present[counts > 1]
        if len(several) < gallery_people:
            raise ValueError(
                f"the gallery needs {gallery_people} people with two test images, a trial has {len(several)}"
            )
        enrolled = generator.choice(several, gallery_people, replace=False)
        shuffled = generator.permutation(test)
        # the first image of each enrolled person in a random order
        names, first = np.unique(labels[shuffled], return_index=True)
        gallery = shuffled[first[np.isin(names, enrolled)]]
        made.append(BlufrTrial(test, np.sort(gallery), np.setdiff1d(test, gallery)))
    return made


def blufr(
    features: Array,
    labels: Array,
    trials: Sequence[BlufrTrial],
    *,
    far: float = 1e-3,
    identification_far: float = 1e-2,
    rank: int = 1,
) -> BlufrResult:
    """Verification at FAR = 0.1 % and open-set identification at FAR = 1 %, rank 1, over the trials.

    The benchmark of large-scale unconstrained face recognition on LFW (Liao, Lei, Yi, Li, 2014). `features`
    (N, d) of all images, integer `labels` (N,). In each trial verification takes the cosines of all pairs of
    test images (about 157,000 genuine and 47 million impostor on LFW) and identification searches the probes
    in the gallery; `tar_at_far` and `dir_at_far` define both, with their conservative threshold. The number to
    report is `mean_minus_deviation` of each.

    Raises ValueError for fewer than two trials, indices out of range or repeated, a probe that is also in the
    gallery, a gallery or probes outside the test set, and what the two measures refuse.
    """
    unit = unit_array(features)
    labels = label_array(labels, "labels", len(unit))
    if len(trials) < 2:
        raise ValueError(f"BLUFR reports the spread over its trials and needs at least 2, got {len(trials)}")
    verified, identified = [], []
    for number, trial in enumerate(trials):
        test, gallery, probes = (
            _indices(getattr(trial, part), f"{part} of trial {number}", len(unit))
            for part in ("test", "gallery", "probes")
        )
        if not np.isin(np.concatenate((gallery, probes)), test).all():
            raise ValueError(f"gallery and probes of trial {number} must lie in its test set")
        if np.isin(probes, gallery).any():
            raise ValueError(f"a probe of trial {number} is also in its gallery")
        genuine, impostor = all_pairs_cosines(unit[test], labels[test])
        verified.append(tar_at_far(genuine, impostor, far))
        similarity = unit[probes] @ unit[gallery].T
        identified.append(dir_at_far(similarity, labels[probes], labels[gallery], identification_far, rank))
    return BlufrResult(summarise_splits(verified, over="trials"), summarise_splits(identified, over="trials"))


def _indices(values: Array, name: str, rows: int) -> np.ndarray:
    values = label_array(values, name)
    if values.min() < 0 or values.max() >= rows:
        raise ValueError(f"{name} must index {rows} rows, got {int(values.min())} to {int(values.max())}")
    if len(np.unique(values)) < len(values):
        raise ValueError(f"{name} holds a row more than once")
    return values


def template_protocol(
    features: Array,
    labels: Array,
    template_ids: Array,
    media_ids: Array | None = None,
    *,
    comparisons: Array | None = None,
    gallery: Array | None = None,
    probes: Array | None = None,
    far: Sequence[float] = (1e-4, 1e-3, 1e-2, 1e-1),
    fpir: Sequence[float] = (1e-2, 1e-1),
    ranks: Sequence[int] = (1, 5, 10),
) -> dict[str, Estimate]:
    """One split of a template protocol (IJB-A, Klare et al., 2015; IJB-B, IJB-C), by cosine of template features.

    `features` (N, d), integer `labels` (N,), `template_ids` and `media_ids` as in `template_features`, which
    averages within media, then over media, and normalises. Given `comparisons` (n, 2), pairs of template ids,
    the result has `TAR@FAR=x` for each of `far`; given template ids `gallery` (G,) and `probes` (P,), it has
    `rank-k` for each of `ranks` up to G (of the probes with a mate) and, if some probes have none,
    `TPIR@FPIR=x` for each of `fpir` (`dir_at_far` at rank 1: the mate is first and above the threshold). Where
    ten splits are given, `summarise_protocol` puts their results together.

    With about 10,000 impostor comparisons a split, FAR = 0.0001 is a single one: `supported` is then False.

    Raises ValueError for a template of several people, an unknown template, nothing to do, or what the measures
    refuse.
    """
    units = template_features(features, template_ids, media_ids)
    units = np.asarray(units.cpu() if hasattr(units, "cpu") else units, dtype=np.float64)
    ids = label_array(template_ids, "template_ids")
    people = label_array(labels, "labels", len(ids))
    names, first, index = np.unique(ids, return_index=True, return_inverse=True)
    person = people[first]
    mixed = np.flatnonzero(person[index] != people)
    if len(mixed):
        raise ValueError(f"template {int(ids[mixed[0]])} holds images of more than one person")

    def rows(wanted: Array, name: str) -> np.ndarray:
        wanted = label_array(wanted, name)
        place = np.minimum(np.searchsorted(names, wanted), len(names) - 1)
        unknown = wanted[names[place] != wanted]
        if len(unknown):
            raise ValueError(f"{name} names template {int(unknown[0])}, which has no image")
        return place

    if (gallery is None) != (probes is None):
        raise ValueError("gallery and probes must be given together")
    if comparisons is None and gallery is None:
        raise ValueError("nothing to do: give comparisons, or gallery and probes")
    found: dict[str, Estimate] = {}
    if comparisons is not None:
        if np.ndim(comparisons) != 2 or np.shape(comparisons)[1] != 2:
            raise ValueError(f"comparisons must have shape (n, 2), got {tuple(np.shape(comparisons))}")
        left, right = (rows(comparisons[:, side], "comparisons") for side in (0, 1))
        scores, same = np.einsum("ij,ij->i", units[left], units[right]), person[left] == person[right]
        rates = tar_at_far(scores[same], scores[~same], list(far))
        found |= {f"TAR@FAR={rate:g}": estimate for rate, estimate in zip(far, rates, strict=True)}
    if gallery is not None and probes is not None:
        enrolled, searched = rows(gallery, "gallery"), rows(probes, "probes")
        similarity = units[searched] @ units[enrolled].T
        wanted, present = person[searched], person[enrolled]
        mated = np.isin(wanted, present)
        if not mated.any():
            raise ValueError("no probe has a mate in the gallery")
        for k in (k for k in ranks if k <= len(enrolled)):
            found[f"rank-{k}"] = rank_k_identification(similarity[mated], wanted[mated], present, k)
        if not mated.all():
            rates = dir_at_far(similarity, wanted, present, list(fpir))
            found |= {f"TPIR@FPIR={rate:g}": estimate for rate, estimate in zip(fpir, rates, strict=True)}
    return found


def summarise_protocol(splits: Sequence[Mapping[str, float]]) -> dict[str, SplitSummary]:
    """`summarise_splits` of each measure over the results of `template_protocol` for all splits.

    Raises ValueError for fewer than two splits, or if their measures differ.
    """
    if len({tuple(split) for split in splits}) > 1:
        raise ValueError("the splits do not have the same measures")
    if len(splits) < 2:
        raise ValueError(f"a summary needs at least 2 splits, got {len(splits)}")
    return {name: summarise_splits([split[name] for split in splits]) for name in splits[0]}
