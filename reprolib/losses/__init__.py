"""What is optimised: the margin-softmax head, the metric-learning losses, mining, centres and schedules."""

from reprolib.losses.arcface_terms import angular_triplet_loss, inter_loss, intra_loss
from reprolib.losses.center import CenterLoss, JointLoss, center_step
from reprolib.losses.margin_softmax import (
    ArcFace,
    ASoftmax,
    CombinedMargin,
    CosFace,
    L2Softmax,
    LSoftmax,
    MarginSoftmax,
    NormFace,
    Softmax,
)
from reprolib.losses.margins import (
    AdditiveAngular,
    AdditiveCosine,
    CombinedAngular,
    Margin,
    MultiplicativeAngular,
    NoMargin,
    StraightThrough,
)
from reprolib.losses.metric import (
    CContrastive,
    CTriplet,
    batch_all_triplet_loss,
    batch_hard_triplet_loss,
    c_contrastive_loss,
    c_triplet_loss,
    contrastive_loss,
    deepid2_margin,
    n_pair_loss,
    triplet_loss,
)
from reprolib.losses.mining import (
    batch_hard_triplets,
    count_triplets,
    hardest_triplets,
    random_triplets,
    semi_hard_triplets,
)
from reprolib.losses.sampled import PartialFC, SampledSoftmax
from reprolib.losses.schedules import AnnealedLambda

__all__ = [
    "ASoftmax",
    "AdditiveAngular",
    "AdditiveCosine",
    "AnnealedLambda",
    "ArcFace",
    "CContrastive",
    "CTriplet",
    "CenterLoss",
    "CombinedAngular",
    "CombinedMargin",
    "CosFace",
    "JointLoss",
    "L2Softmax",
    "LSoftmax",
    "Margin",
    "MarginSoftmax",
    "MultiplicativeAngular",
    "NoMargin",
    "NormFace",
    "PartialFC",
    "SampledSoftmax",
    "Softmax",
    "StraightThrough",
    "angular_triplet_loss",
    "batch_all_triplet_loss",
    "batch_hard_triplet_loss",
    "batch_hard_triplets",
    "c_contrastive_loss",
    "c_triplet_loss",
    "center_step",
    "contrastive_loss",
    "count_triplets",
    "deepid2_margin",
    "hardest_triplets",
    "inter_loss",
    "intra_loss",
    "n_pair_loss",
    "random_triplets",
    "semi_hard_triplets",
    "triplet_loss",
]
