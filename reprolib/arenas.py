"""Where losses are compared: numbers and LFW, one recipe each; a run is (loss, seed) -> metrics on identities unseen.

    numbers_run("arcface", seed=0)          # {"EER": .., "AUC": .., "TAR@1e-3": ..}, with the tuned margin and scale
    lfw_run("softmax", fold=0, seed=0)

Every loss of `LOSSES` is made by `build_loss` and trained by the one loop. Its hyper-parameters were tuned on the
arena's validation identities (`python -m benchmarks.tuning`) and stand in one table, read by `tuned`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reprolib import losses, models, training
from reprolib._checks import check_choice
from reprolib.data.fetching import repository_root
from reprolib.data.lfw import lfw_pairs
from reprolib.data.lfw_folds import FacesFold, lfw_fold, load_lfw_grey
from reprolib.data.numbers import NumbersDataset, load_numbers
from reprolib.data.sampling import PKSampler
from reprolib.evaluation import (
    all_pairs_cosines,
    angle_statistics,
    baselines,
    exact_threshold,
    judge,
    pair_cosines,
    read_pairs,
    roc_auc,
    tar_at_far,
)
from reprolib.losses.mining import all_pairs, semi_hard_triplets
from reprolib.training import TrainConfig, Trained

# images of one person among those whose pairs are all judged on LFW
MOST_IMAGES = 20
# of the ROC curve in a report: 1e-4 to 1, eight a decade
CURVE_FARS = tuple(10 ** (-step / 8) for step in range(32, -1, -1))
TUNED = Path("reference", "tuned.yaml")


class InBatch(nn.Module):
    """A loss within a batch, `value(embeddings, labels)`, as a module without parameters; `unit` normalises first."""

    def __init__(self, value: Callable[..., Tensor], *, unit: bool, **hyper: Any) -> None:
        super().__init__()
        self.value, self.unit, self.hyper = value, unit, hyper

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, features (N, d) and labels (N,), a scalar."""
        return self.value(nn.functional.normalize(features) if self.unit else features, labels, **self.hyper)

    def extra_repr(self) -> str:
        """What `repr` shows between the parentheses."""
        return f"{self.value.__name__}, unit={self.unit}, {self.hyper}"


def contrastive(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Hadsell's contrastive loss over all pairs of the batch, genuine and impostor pairs with half the weight each."""
    i, j, same = all_pairs(labels)
    each = losses.contrastive_loss(
        features.index_select(0, i), features.index_select(0, j), same, margin, reduction="none"
    )
    # (mean over same + mean over different) / 2, as a product that needs no look at which pairs are which
    genuine = same.to(each.dtype)
    return ((each * genuine).sum() / genuine.sum() + (each * (1 - genuine)).sum() / (1 - genuine).sum()) / 2


def semi_hard(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """FaceNet's triplet loss of the batch: the nearest semi-hard negative of each pair; 0 if there is none."""
    triplets = semi_hard_triplets(features, labels, margin, pick="hardest")
    if not len(triplets.anchor):
        return features.sum() * 0
    anchor, positive, negative = (features.index_select(0, index) for index in triplets)
    return losses.triplet_loss(anchor, positive, negative, margin)


def n_pair(features: Tensor, labels: Tensor, l2_weight: float) -> Tensor:
    """N-pair loss (Sohn 2016) of a batch of couples, both images of a class side by side."""
    return losses.n_pair_loss(features[0::2], features[1::2], labels[0::2], l2_weight=l2_weight)


def _annealed(kind: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def make(d: int, classes: int, *, margin: int, least: float, after: int = 200) -> nn.Module:
        # lambda = 1000 (1 + gamma k)^-1 falls to 1 at step k = `after`, then to `least` or on
        annealing = losses.AnnealedLambda(1000.0, 999.0 / after, 1.0, least)
        return kind(d, classes, margin=margin, annealing=annealing)

    return make


def _with_center(d: int, classes: int, *, weight: float, rate: float = 0.5) -> nn.Module:
    center = losses.CenterLoss(classes, d, rate, reduction="mean")
    return losses.JointLoss(losses.Softmax(d, classes, bias=False), center, weight)


def _with_contrastive(d: int, classes: int, *, weight: float, margin: float) -> nn.Module:
    return losses.JointLoss(
        losses.Softmax(d, classes, bias=False), InBatch(contrastive, unit=True, margin=margin), weight
    )


@dataclass(frozen=True)
class Entry:
    """How a loss is made, `make(d, classes, **hyper)`, and trained.

    `per_class`: images of each class in a batch, None for shuffled images; `ramped`: the margin rises as the recipe
    says; `clip_norm`: bound on the gradient, for the loss that has none of its own.
    """

    make: Callable[..., nn.Module]
    per_class: int | None = None
    ramped: bool = False
    clip_norm: float | None = None


LOSSES: dict[str, Entry] = {
    "softmax": Entry(lambda d, c: losses.Softmax(d, c, bias=False)),
    "l2_softmax": Entry(lambda d, c, *, scale: losses.L2Softmax(d, c, scale=scale, bias=False)),
    "normface": Entry(lambda d, c, *, scale: losses.NormFace(d, c, scale=scale, learn_scale=False)),
    "l_softmax": Entry(_annealed(losses.LSoftmax)),
    "a_softmax": Entry(_annealed(losses.ASoftmax)),
    "cosface": Entry(lambda d, c, *, scale, margin: losses.CosFace(d, c, margin=margin, scale=scale), ramped=True),
    "arcface": Entry(lambda d, c, *, scale, margin: losses.ArcFace(d, c, margin=margin, scale=scale), ramped=True),
    "arcface_straight_through": Entry(
        lambda d, c, *, scale, margin: losses.ArcFace(d, c, margin=margin, scale=scale, gradient="straight_through"),
        ramped=True,
    ),
    "combined": Entry(
        lambda d, c, *, scale, m1, m2, m3: losses.CombinedMargin(d, c, m1=m1, m2=m2, m3=m3, scale=scale), ramped=True
    ),
    "softmax_center": Entry(_with_center),
    "contrastive": Entry(lambda d, c, *, margin: InBatch(contrastive, unit=True, margin=margin), per_class=4),
    "softmax_contrastive": Entry(_with_contrastive, per_class=4),
    "triplet_batch_hard": Entry(
        lambda d, c, *, margin: InBatch(losses.batch_hard_triplet_loss, unit=True, margin=margin), per_class=4
    ),
    "triplet_semi_hard": Entry(lambda d, c, *, margin: InBatch(semi_hard, unit=True, margin=margin), per_class=4),
    "n_pair": Entry(
        lambda d, c, *, l2_weight: InBatch(n_pair, unit=False, l2_weight=l2_weight), per_class=2, clip_norm=5.0
    ),
}


def build_loss(name: str, in_features: int, num_classes: int, **hyper: Any) -> nn.Module:
    """The loss called `name`, one of `LOSSES`, for embeddings of `in_features` and `num_classes` classes.

    `hyper`: `scale` (logit units), `margin` (radians, cosine or distance between unit vectors; an integer for L- and
    A-Softmax, with `least`, the least lambda), `m1, m2, m3`, `weight` (lambda of a joint loss), `l2_weight`.

    Raises:
        ValueError: for another name; for a hyper-parameter that this loss lacks or needs.
    """
    check_choice(name, "loss", tuple(LOSSES))
    try:
        return LOSSES[name].make(in_features, num_classes, **hyper)
    except TypeError as error:
        raise ValueError(f"hyper-parameters of {name} must be those it has, got {hyper} ({error})") from error


class Tuned:
    """Read from the table of tuned values; a cached run whose code names :data:`tuned` is known by the table, too."""

    @property
    def fingerprint_as(self) -> dict[str, Any]:
        """What the run cache takes for it."""
        return _table(repository_root() / TUNED)

    def __call__(self, arena: str, loss: str) -> dict[str, Any]:
        """The hyper-parameters of `loss` that did best on the validation identities of `arena` ("numbers" or "lfw").

        `lr` and `loss_lr_factor` among them belong to the training, the others to :func:`build_loss`.

        Raises:
            ValueError: if the table has no such loss.
        """
        found = self.fingerprint_as.get(arena, {})
        check_choice(loss, f"loss tuned on {arena}", tuple(found))
        return dict(found[loss]["best"])


tuned = Tuned()


@cache
def _table(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError(f"the tuned values stand in {TUNED} of the repository, which is not at {path.parents[1]}")
    import yaml  # only what reads the table needs it

    return yaml.safe_load(path.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Recipe:
    """A network, `network(dimension, image_shape)`, and its optimisation: the same for every loss of an arena."""

    dimension: int
    network: partial[models.EmbeddingNet]
    config: TrainConfig

    def describe(self) -> dict[str, Any]:
        """What tells one recipe from another, as plain values."""
        made = {"network": self.network.func.__name__, "dimension": self.dimension, **self.network.keywords}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in {**made, **self.config.describe()}.items()
        }


NUMBERS = Recipe(
    64,
    partial(models.compact, widths=(16, 32, 64), kernels=(5, 5, 3), hidden=256),
    TrainConfig(epochs=6, lr=0.2, warmup=0.1, ramp_end=0.4, scale_start=None),
)
LFW = Recipe(
    128,
    partial(models.residual, widths=(24, 48, 96, 160), dropout=0.4),
    TrainConfig(epochs=12, lr=0.2, warmup=0.05, ramp_end=0.3, scale_start=None, flip=True, shift=3),
)


def fit_recipe(
    recipe: Recipe,
    loss: str,
    hyper: Mapping[str, Any],
    images: Tensor,
    labels: Tensor,
    *,
    seed: int,
    **options: Any,
) -> Trained:
    """Train the recipe's network with `loss`; `hyper` as :func:`tuned` gives it, `options` as for `train`.

    Losses within a batch get P x K batches of `config.batch_size` images, K of each class or as many as the rarest has,
    for as many steps as an epoch of shuffled images has.
    """
    check_choice(loss, "loss", tuple(LOSSES))
    entry, own, config = LOSSES[loss], dict(hyper), recipe.config
    steps = config.epochs * (len(images) // config.batch_size)
    rates = {name: own.pop(name) for name in ("lr", "loss_lr_factor") if name in own}
    ramp_end = config.ramp_end if entry.ramped else 0.0
    config = replace(config, steps=steps, ramp_end=ramp_end, clip_norm=entry.clip_norm, **rates)
    counts = labels.bincount()
    if entry.per_class is not None:
        K = min(entry.per_class, int(counts.min()))
        options["batches"] = PKSampler(labels, min(config.batch_size // K, len(counts)), K, torch.Generator())
    shape = tuple(images.shape[1:])
    return training.fit(
        lambda: recipe.network(recipe.dimension, shape),
        lambda: build_loss(loss, recipe.dimension, len(counts), **own),
        images,
        labels,
        config,
        seed=seed,
        **options,
    )


def unseen_metrics(embeddings: Tensor, labels: Tensor) -> dict[str, float]:
    """EER, AUC and TAR at each FAR by :func:`reprolib.evaluation.judge` over all pairs, shares in [0, 1]."""
    return {name: float(value) for name, value in judge(embeddings, labels, identification=False).items()}


def unseen_report(embeddings: Tensor, labels: Tensor) -> dict[str, Any]:
    """All that `judge` measures and more of the same embeddings, as plain numbers: what a table and its figures need.

    "curve": the TAR at each of `CURVE_FARS`; "Intra", "Inter": degrees, as in Table 3 of ArcFace.
    """
    angles = angle_statistics(nn.functional.normalize(embeddings.detach().cpu().double()), labels)
    curve = tar_at_far(*all_pairs_cosines(embeddings, labels), CURVE_FARS)
    return {name: float(value) for name, value in judge(embeddings, labels).items()} | {
        "curve": [float(rate) for rate in curve],
        "Intra": float(angles.intra),
        "Inter": float(angles.inter),
    }


def load_numbers_pair(
    seed: int,
    part: str = "unseen",
    training_data: Mapping[str, Any] | None = None,
    test_data: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
) -> tuple[NumbersDataset, NumbersDataset]:
    """The training numbers of `seed` and those of `part`; see :func:`numbers_run`."""
    chosen = dict(training_data or {})
    both = {name: chosen[name] for name in ("digits", "dataset", "root", "identities", "unseen") if name in chosen}
    people = load_numbers("train", seed=seed, device=device, **chosen)
    return people, load_numbers(part, seed=seed, device=device, **both | dict(test_data or {}))


def numbers_run(
    loss: str,
    *,
    seed: int,
    hyper: Mapping[str, Any] | None = None,
    part: str = "unseen",
    recipe: Recipe = NUMBERS,
    training_data: Mapping[str, Any] | None = None,
    test_data: Mapping[str, Any] | None = None,
    device: str | torch.device = "cpu",
    measure: Callable[[Tensor, Tensor], dict[str, Any]] = unseen_metrics,
    **options: Any,
) -> dict[str, Any]:
    """Train `loss` on the training numbers of `seed` and judge it on all pairs of `part` ("unseen" or "validation").

    `hyper` is :func:`tuned`'s by default. `training_data` and `test_data` are options of `load_numbers` (quality,
    identities, images per identity ..); digits and the data set are taken from `training_data` for both. `measure`
    gets the embeddings and their labels.
    """
    people, others = load_numbers_pair(seed, part, training_data, test_data, device)
    hyper = tuned("numbers", loss) if hyper is None else hyper
    trained = fit_recipe(recipe, loss, hyper, people.images, people.labels, seed=seed, **options)
    return measure(training.embed(trained.model, others.images), others.labels)


def baseline_reports(
    recipe: Recipe, train_images: Tensor, train_labels: Tensor, images: Tensor, labels: Tensor, *, seed: int
) -> dict[str, dict[str, Any]]:
    """`unseen_report` by name of what a trained network has to beat: pixels, PCA, LDA, the untrained network."""
    found = baselines(train_images.cpu(), train_labels.cpu(), images.cpu())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        untrained = recipe.network(recipe.dimension, tuple(images.shape[1:])).to(images.device).eval()
    rows = {name: torch.from_numpy(values) for name, values in found.items()}
    rows["untrained"] = training.embed(untrained, images)
    return {name: unseen_report(values, labels.to(values.device)) for name, values in rows.items()}


def lfw_faces(fold: int, device: str | torch.device = "cpu") -> FacesFold:
    """A fold of LFW as the arena takes it: 48 x 48 grey, who has one image does not train, 20 of each are judged."""
    return lfw_fold(load_lfw_grey(device=device), read_pairs(lfw_pairs()), fold, most=MOST_IMAGES)


def lfw_run(
    loss: str,
    *,
    fold: int,
    seed: int,
    hyper: Mapping[str, Any] | None = None,
    recipe: Recipe = LFW,
    faces: FacesFold | None = None,
    device: str | torch.device = "cpu",
    measure: Callable[[Tensor, Tensor], dict[str, Any]] = unseen_metrics,
    **options: Any,
) -> dict[str, Any]:
    """Train `loss` on LFW without the people of `fold` and judge it on them.

    Metrics: all pairs of at most 20 images of each person, and the fold's 600 pairs. The mirror image's embedding is
    added. `accuracy` is that of the 600 pairs at the threshold that suits the fold's own pairs best: a number to
    follow, not that of the protocol, which chooses it on the other nine folds.
    """
    if faces is None:
        faces = lfw_faces(fold, device)
    hyper = tuned("lfw", loss) if hyper is None else hyper
    trained = fit_recipe(recipe, loss, hyper, faces.train_images, faces.train_labels, seed=seed, **options)
    embed = partial(training.embed, trained.model, batch_size=500, flip_sum=True)
    return lfw_report(embed, faces, measure)[0]


def lfw_report(
    embed: Callable[[Tensor], Tensor], faces: FacesFold, measure: Callable[[Tensor, Tensor], dict[str, Any]]
) -> tuple[dict[str, Any], Tensor]:
    """What :func:`lfw_run` says of the network behind `embed`, and the embeddings of all test images, (N, d)."""
    features = embed(faces.test_images)
    scores, same = pair_cosines(*features[faces.pairs.T]), faces.same.cpu().numpy()
    found = measure(features[faces.judged], faces.test_labels[faces.judged]) | {
        "accuracy": float(((scores > exact_threshold(scores, same)) == same).mean()),
        "AUC of the pairs": float(roc_auc(scores[same], scores[~same])),
    }
    return found, features
