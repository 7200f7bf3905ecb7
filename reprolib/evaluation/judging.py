"""One judge of embeddings: verification over all pairs of a set, closed-set and open-set identification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from .._checks import Array, check_count, far_values, feature_rows, label_array, row_tensor, unit_rows
from .bootstrap import bootstrap_people, far_name, scored_pairs
from .features import all_pairs_cosines
from .identification import dir_at_far, rank_k_identification
from .intervals import Estimate
from .roc import equal_error_rate, is_supported, roc_auc, tar_at_far

FARS = (1e-1, 1e-2, 1e-3, 1e-4)


@torch.no_grad()
def judge(
    embeddings: Array,
    labels: Array,
    *,
    fars: Sequence[float] = FARS,
    identification: bool = True,
    draws: int = 0,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`EER`, `AUC`, `TAR@1e-1` ..; `rank-1`, `DIR@1e-1` .. of `embeddings` (N, d) with people `labels` (N,), by cosine.

    Verification takes all N (N - 1) / 2 pairs. Rank-1: the first image of each person is the gallery, the other images
    are searched in it. DIR at FAR (open set): of the people with several images every second one, in the order of
    their labels, is enrolled with its first image; the images of all people who are not enrolled are the impostor
    probes. A FAR is left out unless at least ten impostor scores (probes, for DIR) lie above its threshold.

    Intervals take pairs and probes as independent, which is too narrow where seeds or folds do not make the interval:
    with `draws` > 0 those of EER, AUC and TAR come from `bootstrap_people` with `draws` and `seed`.

    3,000 images (4.5 million pairs) take about 200 MB. Raises ValueError for shapes, NaN, a zero row, fewer than two
    people with several images, or a FAR outside (0, 1]; TypeError for wrong dtypes.
    """
    check_count(draws, "draws", low=0)
    rows = row_tensor(feature_rows(embeddings, "embeddings")).cpu()
    labels = label_array(labels, "labels", len(rows))
    _, first, counts = np.unique(labels, return_index=True, return_counts=True)
    if (counts > 1).sum() < 2:
        raise ValueError(f"labels must name at least 2 people with several images, got {int((counts > 1).sum())}")
    rates = far_values(list(fars))[0].tolist()

    genuine, impostor = all_pairs_cosines(rows, labels)
    measured = [far for far in rates if is_supported(far, len(impostor))]
    if draws:
        found = bootstrap_people(scored_pairs(rows, labels), fars=measured, draws=draws, seed=seed)
    else:
        found = {"EER": equal_error_rate(genuine, impostor, replicates=100), "AUC": roc_auc(genuine, impostor)}
        found |= {f"TAR@{far_name(far)}": tar_at_far(genuine, impostor, far) for far in measured}
    if not identification:
        return found

    unit, everyone = unit_rows(rows.double(), "embeddings").numpy(), np.arange(len(rows))
    others = np.setdiff1d(everyone, first)
    found["rank-1"] = rank_k_identification(unit[others] @ unit[first].T, labels[others], labels[first])
    enrolled = first[counts > 1][::2]
    probes = np.setdiff1d(everyone, enrolled)
    strangers = int((~np.isin(labels[probes], labels[enrolled])).sum())
    scores = unit[probes] @ unit[enrolled].T
    for far in rates:
        if is_supported(far, strangers):
            found[f"DIR@{far_name(far)}"] = dir_at_far(scores, labels[probes], labels[enrolled], far)
    return found
