"""Scores of video pairs (YouTube Faces): three published ways that give three different numbers.

YouTube Faces (Wolf, Hassner, Maoz, 2011) has 5,000 pairs of videos in 10 folds; whatever the score, the fold
accuracy is that of `verification_accuracy`, except for NormFace's classifier, which brings its own threshold.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

from .._checks import (
    Array,
    check_choice,
    check_count,
    check_number,
    feature_rows,
    float_array,
    label_array,
    row_tensor,
    same_array,
    unit_rows,
)
from .verification import VerificationResult, fold_ids, held_out, summarise_folds

METHODS = ("mean_of_scores", "score_of_mean")


def _frames(
    features: Array, video_ids: Array, first: Array, second: Array, max_frames: int | None
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """Unit frames of each video that is compared, in the order of the rows, and the pairs as indices of them."""
    unit = unit_rows(row_tensor(feature_rows(features, "features")).cpu().double(), "features").numpy()
    ids = label_array(video_ids, "video_ids", len(unit))
    first = label_array(first, "first")
    second = label_array(second, "second", len(first))
    if max_frames is not None:
        check_count(max_frames, "max_frames")
    names, index = np.unique(np.concatenate((first, second)), return_inverse=True)
    missing = names[~np.isin(names, ids)]
    if len(missing):
        raise ValueError(f"video {int(missing[0])} is compared but has no frame")
    videos = [unit[np.flatnonzero(ids == name)[:max_frames]] for name in names]
    return videos, index[: len(first)], index[len(first) :]


def video_scores(
    features: Array,
    video_ids: Array,
    first: Array,
    second: Array,
    *,
    method: str = "mean_of_scores",
    max_frames: int | None = None,
) -> np.ndarray:
    """Score (n,) float64 of video `first[i]` with video `second[i]` from the features of their frames.

    `features` (N, d) of frames, integer `video_ids` (N,); `first`, `second` (n,) video ids. With unit frames u of
    one video and v of the other:

    - "mean_of_scores": the mean of all frame-pair cosines, mean <u_i, v_j> = <mean u, mean v>. FaceNet (2015)
      averages squared distances 2 - 2 <u_i, v_j> over the first 100 frames: the same order, `max_frames=100`.
    - "score_of_mean": the cosine of the mean frames, <mean u, mean v> / (|mean u| |mean v|), a video by the
      centre of its features (ArcFace, 2019). Videos whose frames disagree are not scored lower for it.

    Raises ValueError for shapes, NaN, a video without frames, an unknown method, or a mean of zero.
    """
    check_choice(method, "method", METHODS)
    videos, left, right = _frames(features, video_ids, first, second, max_frames)
    means = np.stack([frames.mean(axis=0) for frames in videos])
    if method == "score_of_mean":
        norms = np.linalg.norm(means, axis=1, keepdims=True)
        if (norms < 1e-13).any():
            raise ValueError("the frames of a video have a mean of zero, which has no direction")
        means = means / norms
    return np.clip(np.einsum("ij,ij->i", means[left], means[right]), -1, 1)


def video_histograms(
    features: Array, video_ids: Array, first: Array, second: Array, *, bins: int = 100, max_frames: int | None = None
) -> np.ndarray:
    """Histograms (n, bins) of the frame-pair cosines of each pair of videos, over [-1, 1], each of sum 1.

    Arguments as in `video_scores`. NormFace (2017) describes a pair of videos by such a histogram of 100 bins;
    shares instead of counts make videos of different length comparable.
    """
    check_count(bins, "bins")
    videos, left, right = _frames(features, video_ids, first, second, max_frames)
    result = np.empty((len(left), bins))
    for row, (i, j) in enumerate(zip(left, right, strict=True)):
        cosines = np.clip(videos[i] @ videos[j].T, -1, 1)
        result[row] = np.histogram(cosines, bins=bins, range=(-1, 1))[0] / cosines.size
    return result


def intersection_kernel(a: Array, b: Array) -> np.ndarray:
    """Histogram intersection kernel (n, m): K(g, h) = sum over bins of min(g_i, h_i) (Swain and Ballard, 1991)."""
    a, b = float_array(a, "a", 2), float_array(b, "b", 2)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"histograms must have the same bins, got {a.shape[1]} and {b.shape[1]}")
    # min(g, h) = (g + h - |g - h|) / 2
    return (a.sum(axis=1)[:, None] + b.sum(axis=1) - cdist(a, b, "cityblock")) / 2


def histogram_svm_accuracy(
    histograms: Array, same: Array, folds: int | Array, *, cost: float = 1.0, level: float = 0.95
) -> VerificationResult:
    """k-fold accuracy of a support vector machine with histogram intersection kernel (NormFace, 2017).

    `histograms` (n, bins) of `video_histograms`, `same` (n,), `folds` as in `verification_accuracy`. For each
    fold, scikit-learn's `SVC` is trained on the pairs of the other folds and judges the fold by the sign of its
    decision function, so that all `fold_thresholds` are 0. `cost` is its C: the paper does not give one.
    Standard error and interval as in `verification_accuracy`; `convention` is "hik-svm".

    Raises ValueError for shapes, NaN, negative shares, a cost that is not positive, or training folds with one
    kind of pair only.
    """
    # imported where it is used: a second that every other measure can do without
    from sklearn.svm import SVC

    histograms = float_array(histograms, "histograms", 2)
    if histograms.min() < 0:
        raise ValueError(f"histograms must not be negative, got {histograms.min()}")
    check_number(cost, "cost")
    same = same_array(same, len(histograms))
    ids = fold_ids(folds, len(same))
    kernel = intersection_kernel(histograms, histograms)
    accuracies = []
    for test in held_out(ids, same):
        machine = SVC(C=cost, kernel="precomputed").fit(kernel[np.ix_(~test, ~test)], same[~test])
        decided = machine.decision_function(kernel[np.ix_(test, ~test)]) > 0
        accuracies.append(float((decided == same[test]).mean()))
    return summarise_folds(accuracies, [0.0] * len(accuracies), ids, same, "hik-svm", level)
