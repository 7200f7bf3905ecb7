"""What is optimised: the margin-softmax head, the metric-learning losses, mining, centres and schedules."""

# a name imported as itself is public, for type checkers, too
from reprolib.losses.agents import (
    CContrastive as CContrastive,
    CTriplet as CTriplet,
    c_contrastive_loss as c_contrastive_loss,
    c_triplet_loss as c_triplet_loss,
)
from reprolib.losses.arcface_terms import (
    angular_triplet_loss as angular_triplet_loss,
    inter_loss as inter_loss,
    intra_loss as intra_loss,
)
from reprolib.losses.center import CenterLoss as CenterLoss, JointLoss as JointLoss, center_step as center_step
from reprolib.losses.margin_softmax import (
    ArcFace as ArcFace,
    ASoftmax as ASoftmax,
    CombinedMargin as CombinedMargin,
    CosFace as CosFace,
    L2Softmax as L2Softmax,
    LSoftmax as LSoftmax,
    MarginSoftmax as MarginSoftmax,
    NormFace as NormFace,
    Softmax as Softmax,
)
from reprolib.losses.margins import (
    AdditiveAngular as AdditiveAngular,
    AdditiveCosine as AdditiveCosine,
    CombinedAngular as CombinedAngular,
    Margin as Margin,
    MultiplicativeAngular as MultiplicativeAngular,
    NoMargin as NoMargin,
    StraightThrough as StraightThrough,
)
from reprolib.losses.metric import (
    batch_all_triplet_loss as batch_all_triplet_loss,
    batch_hard_triplet_loss as batch_hard_triplet_loss,
    contrastive_loss as contrastive_loss,
    deepid2_margin as deepid2_margin,
    n_pair_loss as n_pair_loss,
    triplet_loss as triplet_loss,
)
from reprolib.losses.mining import (
    batch_hard_triplets as batch_hard_triplets,
    count_triplets as count_triplets,
    hardest_triplets as hardest_triplets,
    random_triplets as random_triplets,
    semi_hard_triplets as semi_hard_triplets,
)
from reprolib.losses.sampled import PartialFC as PartialFC, SampledSoftmax as SampledSoftmax
from reprolib.losses.schedules import AnnealedLambda as AnnealedLambda
