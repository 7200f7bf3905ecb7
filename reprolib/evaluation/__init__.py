"""How an embedding is judged: verification, identification, templates and angles, each with its uncertainty.

Scores: higher means more similar. All measures are exact over all thresholds (no grid) and return an
`Estimate`, a float with a confidence interval and the name of the method that made it. `judge` takes them of an
embedding, `baselines` makes the embeddings that a network has to beat, `decide` turns seeds or splits into a verdict.
"""

from __future__ import annotations

from .angles import angle_statistics, pair_angles
from .baseline import baselines
from .bootstrap import ScoredPairs, bootstrap_people, scored_pairs
from .decisions import Decision, decide, detectable_effect, power, power_table, trends
from .distractors import distractor_identification, distractor_verification
from .features import all_pairs_cosines, centred_cosines, flip_concat, flip_sum, pair_cosines
from .identification import cmc, dir_at_far, rank_k_identification
from .intervals import Estimate, clopper_pearson, mean_estimate, mean_sd, proportion, wilson
from .judging import judge
from .pairs import PairList, parse_pairs, read_pairs
from .protocols import BlufrTrial, blufr, blufr_trials, summarise_protocol, summarise_splits, template_protocol
from .roc import d_prime, equal_error_rate, roc_auc, roc_curve, tar_at_far, threshold_at_far
from .templates import template_features
from .verification import VerificationResult, exact_threshold, verification_accuracy
from .video import histogram_svm_accuracy, intersection_kernel, video_histograms, video_scores

__all__ = [
    "BlufrTrial",
    "Decision",
    "Estimate",
    "PairList",
    "ScoredPairs",
    "VerificationResult",
    "all_pairs_cosines",
    "angle_statistics",
    "baselines",
    "blufr",
    "blufr_trials",
    "bootstrap_people",
    "centred_cosines",
    "clopper_pearson",
    "cmc",
    "d_prime",
    "decide",
    "detectable_effect",
    "dir_at_far",
    "distractor_identification",
    "distractor_verification",
    "equal_error_rate",
    "exact_threshold",
    "flip_concat",
    "flip_sum",
    "histogram_svm_accuracy",
    "intersection_kernel",
    "judge",
    "mean_estimate",
    "mean_sd",
    "pair_angles",
    "pair_cosines",
    "parse_pairs",
    "power",
    "power_table",
    "proportion",
    "rank_k_identification",
    "read_pairs",
    "roc_auc",
    "roc_curve",
    "scored_pairs",
    "summarise_protocol",
    "summarise_splits",
    "tar_at_far",
    "template_features",
    "template_protocol",
    "threshold_at_far",
    "trends",
    "verification_accuracy",
    "video_histograms",
    "video_scores",
    "wilson",
]
