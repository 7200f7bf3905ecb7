"""What is optimised: the margin-softmax head, the metric-learning losses, mining, centres and schedules."""

from reprolib.losses.center import CenterLoss
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
    n_pair_loss,
    triplet_loss,
)
from reprolib.losses.schedules import AnnealedLambda, LinearRamp

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
    "L2Softmax",
    "LSoftmax",
    "LinearRamp",
    "Margin",
    "MarginSoftmax",
    "MultiplicativeAngular",
    "NoMargin",
    "NormFace",
    "Softmax",
    "StraightThrough",
    "batch_all_triplet_loss",
    "batch_hard_triplet_loss",
    "c_contrastive_loss",
    "c_triplet_loss",
    "contrastive_loss",
    "n_pair_loss",
    "triplet_loss",
]
