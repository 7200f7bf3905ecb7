"""How an embedding is judged: verification, identification, templates and angles, each with its uncertainty.

Scores: higher means more similar. All measures are exact over all thresholds (no grid) and return an
`Estimate`, a float with a confidence interval and the name of the method that made it. `judge` takes them of an
embedding, `baselines` makes the embeddings that a network has to beat, `decide` turns seeds or splits into a verdict.
"""

# a name imported as itself is public, for type checkers, too
from .angles import angle_statistics as angle_statistics, pair_angles as pair_angles
from .baseline import baselines as baselines
from .bootstrap import ScoredPairs as ScoredPairs, bootstrap_people as bootstrap_people, scored_pairs as scored_pairs
from .decisions import (
    Decision as Decision,
    decide as decide,
    detectable_effect as detectable_effect,
    power as power,
    power_table as power_table,
    trends as trends,
)
from .distractors import (
    distractor_identification as distractor_identification,
    distractor_verification as distractor_verification,
)
from .features import (
    all_pairs_cosines as all_pairs_cosines,
    centred_cosines as centred_cosines,
    flip_concat as flip_concat,
    flip_sum as flip_sum,
    pair_cosines as pair_cosines,
)
from .identification import cmc as cmc, dir_at_far as dir_at_far, rank_k_identification as rank_k_identification
from .intervals import (
    Estimate as Estimate,
    clopper_pearson as clopper_pearson,
    mean_estimate as mean_estimate,
    mean_sd as mean_sd,
    proportion as proportion,
    wilson as wilson,
)
from .judging import judge as judge
from .pairs import PairList as PairList, parse_pairs as parse_pairs, read_pairs as read_pairs
from .protocols import (
    BlufrTrial as BlufrTrial,
    blufr as blufr,
    blufr_trials as blufr_trials,
    summarise_protocol as summarise_protocol,
    summarise_splits as summarise_splits,
    template_protocol as template_protocol,
)
from .roc import (
    equal_error_rate as equal_error_rate,
    roc_auc as roc_auc,
    roc_curve as roc_curve,
    tar_at_far as tar_at_far,
    threshold_at_far as threshold_at_far,
)
from .templates import template_features as template_features
from .verification import (
    VerificationResult as VerificationResult,
    exact_threshold as exact_threshold,
    verification_accuracy as verification_accuracy,
)
from .video import (
    histogram_svm_accuracy as histogram_svm_accuracy,
    intersection_kernel as intersection_kernel,
    video_histograms as video_histograms,
    video_scores as video_scores,
)
