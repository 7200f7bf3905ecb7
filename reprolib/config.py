"""What `reprolib train` is told: sections with strict keys, each value checked before anything runs.

    data: {path: data/casia, crop: [112, 96], workers: 8}
    network: {name: sphere20, embedding_dim: 512}
    loss: {name: a_softmax, margin: 4, annealing: sphereface}
    training: {steps: 28000, batch_size: 128, lr: 0.1, schedule: step, milestones: [16000, 24000], nesterov: false}
    evaluation: {every: 2000, sets: [data/casia/lfw.bin]}
    output: runs/sphereface_20

`training` takes the fields of :class:`reprolib.training.TrainConfig`; milestones above 1 are steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from torch import nn

from reprolib import losses
from reprolib._checks import check_choice, check_count, check_number
from reprolib.arenas import build_loss
from reprolib.training import TrainConfig

HEADS: dict[str, type[losses.MarginSoftmax]] = {
    "softmax": losses.Softmax,
    "l2_softmax": losses.L2Softmax,
    "normface": losses.NormFace,
    "l_softmax": losses.LSoftmax,
    "a_softmax": losses.ASoftmax,
    "cosface": losses.CosFace,
    "arcface": losses.ArcFace,
    "combined": losses.CombinedMargin,
}
IN_BATCH = ("contrastive", "triplet_batch_hard", "triplet_semi_hard", "n_pair")


def _check_text(value: Any, name: str) -> None:
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} must be a text, got {value!r}")


def _check_bool(value: Any, name: str) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be true or false, got {value!r}")


@dataclass(frozen=True)
class Data:
    """`path`, `skip` (keys of images to leave out) and `index` (a file) as for :func:`reprolib.data.open_faces`.

    `crop` (height, width) takes the middle of each image; `grey` its luminance, one channel. `in_memory` decodes all
    images at the start; else `workers` processes (0: none) do it as the run goes on.
    """

    path: str
    skip: tuple[Any, ...] = ()
    index: str | None = None
    crop: tuple[int, int] | None = None
    grey: bool = False
    in_memory: bool = False
    workers: int = 0

    def __post_init__(self) -> None:
        _check_text(self.path, "data.path")
        _check_bool(self.grey, "data.grey")
        _check_bool(self.in_memory, "data.in_memory")
        check_count(self.workers, "data.workers", low=0)
        if self.index is not None:
            _check_text(self.index, "data.index")
        if not isinstance(self.skip, tuple):
            raise ValueError(f"data.skip must be a list of keys, got {self.skip!r}")
        if self.crop is not None:
            if not isinstance(self.crop, tuple) or len(self.crop) != 2:
                raise ValueError(f"data.crop must be [height, width], got {self.crop!r}")
            for side in self.crop:
                check_count(side, "data.crop")


@dataclass(frozen=True)
class Network:
    """`name` and options as for :func:`reprolib.networks.build`; `start_from` is a checkpoint to take weights from."""

    name: str
    embedding_dim: int = 512
    start_from: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_text(self.name, "network.name")
        check_count(self.embedding_dim, "network.embedding_dim")
        if self.start_from is not None:
            _check_text(self.start_from, "network.start_from")


@dataclass(frozen=True)
class Evaluation:
    """After each `every` steps and at the end each of `sets` (.bin or parquet) is verified.

    `flip_sum` adds the embedding of the mirror image.
    """

    sets: tuple[str, ...] = ()
    every: int = 2000
    flip_sum: bool = True

    def __post_init__(self) -> None:
        if not isinstance(self.sets, tuple):
            raise ValueError(f"evaluation.sets must be a list of files, got {self.sets!r}")
        for path in self.sets:
            _check_text(path, "evaluation.sets")
        names = [Path(path).stem for path in self.sets]
        if len(set(names)) < len(names):
            raise ValueError(f"evaluation.sets must have different file names, got {', '.join(names)}")
        check_count(self.every, "evaluation.every")
        _check_bool(self.flip_sum, "evaluation.flip_sum")


@dataclass(frozen=True)
class RunConfig:
    """A whole run, as a file of :func:`parse` describes it.

    `loss` is a name of :data:`HEADS` or :data:`IN_BATCH` with the hyper-parameters of that class; beside them
    `annealing` (a preset's name, or base, gamma, power, minimum), `sample_rate` and `corrected` (Partial FC), `center`
    (weight, alpha, update). `per_class` images of each class make a batch; None: shuffled images. `paper` holds the
    notebook of the paper, as "05", and the accuracy in percent that it reports for a set, by the set's file name.
    """

    data: Data
    network: Network
    loss: dict[str, Any]
    training: TrainConfig
    output: str
    evaluation: Evaluation = field(default_factory=Evaluation)
    per_class: int | None = None
    nesterov: bool = True
    paper: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    log_every: int = 100
    checkpoint_every: int = 1000
    tensorboard: bool = False

    def __post_init__(self) -> None:
        _check_text(self.output, "output")
        for name in ("nesterov", "tensorboard"):
            _check_bool(getattr(self, name), name)
        check_count(self.seed, "seed", low=0)
        for name in ("log_every", "checkpoint_every"):
            check_count(getattr(self, name), name)
        if self.per_class is not None:
            check_count(self.per_class, "per_class", low=2, high=self.training.batch_size // 2)
            if self.training.batch_size % self.per_class:
                raise ValueError(
                    f"batch_size must be a multiple of per_class, {self.per_class}, got {self.training.batch_size}"
                )
        loss = self.loss.get("name")
        if loss in IN_BATCH and (self.per_class is None or (loss == "n_pair" and self.per_class != 2)):
            needed = "2" if loss == "n_pair" else "given"
            raise ValueError(
                f"per_class must be {needed} for {loss}, which compares within a batch, got {self.per_class}"
            )
        if not isinstance(self.paper, dict):
            raise ValueError(f"paper must be a section of keys and values, got {self.paper!r}")
        for name, value in self.paper.items():
            if name == "notebook":
                _check_text(value, "paper.notebook")
            else:
                check_number(value, f"paper.{name}", high=100.0, closed=True)
        make_loss(self.loss, 4, 4)

    def identity(self) -> dict[str, Any]:
        """What must not change between the parts of one run: all but where things lie and how often one looks."""
        network = {**asdict(self.network), "start_from": None}
        seen = {"crop": self.data.crop, "grey": self.data.grey, "skip": self.data.skip}
        training = self.training.describe()
        own = {"per_class": self.per_class, "nesterov": self.nesterov, "seed": self.seed}
        return {"data": seen, "network": network, "loss": self.loss, "training": training, **own}


def make_loss(settings: Mapping[str, Any], in_features: int, num_classes: int, seed: int = 0) -> nn.Module:
    """The loss that the section `loss` describes; ValueError in one sentence for what it cannot be."""
    hyper = dict(settings)
    name = hyper.pop("name", None)
    check_choice(name, "loss.name", (*HEADS, *IN_BATCH))
    if name in IN_BATCH:
        return build_loss(name, in_features, num_classes, **hyper)
    rate, corrected, center = (hyper.pop(key, None) for key in ("sample_rate", "corrected", "center"))
    if corrected is not None and rate is None:
        raise ValueError("loss.corrected must come with loss.sample_rate")
    try:
        if rate is not None:
            hyper["sampler"] = losses.PartialFC(rate, corrected=bool(corrected), seed=seed)
        if (annealing := hyper.pop("annealing", None)) is not None:
            preset = isinstance(annealing, str)
            made = losses.AnnealedLambda.preset(annealing) if preset else losses.AnnealedLambda(**annealing)
            hyper["annealing"] = made
        head = HEADS[name](in_features, num_classes, **hyper)
        if center is None:
            return head
        own = dict(center)
        weight = own.pop("weight")
        return losses.JointLoss(head, losses.CenterLoss(num_classes, in_features, reduction="mean", **own), weight)
    except (TypeError, KeyError) as error:
        text = f"lacks {error}" if isinstance(error, KeyError) else str(error)
        raise ValueError(f"loss {name}: {text}") from error


def _section(kind: Any, values: Any, where: str) -> Any:
    if not isinstance(values, Mapping):
        raise ValueError(f"{where} must be a section of keys and values, got {values!r}")
    allowed = {one.name: one for one in fields(kind)}
    for key in values:
        if key not in allowed:
            raise ValueError(f"unknown key {key!r} in {where}; its keys are {', '.join(allowed)}")
    made = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    try:
        return kind(**made)
    except TypeError as error:
        raise ValueError(f"{where}: {str(error).removeprefix(f'{kind.__name__}.__init__() ')}") from error


def _training(values: Any) -> TrainConfig:
    if not isinstance(values, Mapping):
        raise ValueError(f"training must be a section of keys and values, got {values!r}")
    settings = dict(values)
    for key in ("flip", "bf16"):
        _check_bool(settings.get(key, False), f"training.{key}")
    points = settings.pop("milestones", [])
    if not isinstance(points, list):
        raise ValueError(f"training.milestones must be a list, got {points!r}")
    config: TrainConfig = _section(TrainConfig, settings, "training")
    for point in points:
        check_number(point, "training.milestones")
    if any(point > 1 for point in points) and config.steps is None:
        raise ValueError(f"training.milestones above 1 are steps and need training.steps, got {points!r}")
    # step / steps >= point / steps, in floats too, exactly when step >= point
    fractions = tuple(point / config.steps if point > 1 and config.steps else point for point in points)
    return replace(config, milestones=fractions)


def parse(values: Any, what: str = "the configuration") -> RunConfig:
    """The run that `values`, the content of a YAML file, describes.

    Raises:
        ValueError: in one sentence, for an unknown or missing key and every value that cannot be.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{what} must hold sections of keys and values, got {type(values).__name__}")
    allowed = [one.name for one in fields(RunConfig)]
    given = dict(values)
    for key in given:
        if key not in allowed:
            raise ValueError(f"unknown key {key!r} in {what}; its keys are {', '.join(allowed)}")
    for key in ("data", "network", "loss", "training", "output"):
        if key not in given:
            raise ValueError(f"{what} lacks the key {key!r}")
    training = dict(given["training"]) if isinstance(given["training"], Mapping) else given["training"]
    network = given["network"]
    if isinstance(network, Mapping):
        known = {one.name for one in fields(Network)} - {"options"}
        options = {key: tuple(v) if isinstance(v, list) else v for key, v in network.items() if key not in known}
        network = {key: v for key, v in network.items() if key in known} | {"options": options}
    if not isinstance(given["loss"], Mapping):
        raise ValueError(f"loss must be a section of keys and values, got {given['loss']!r}")
    given |= {
        "data": _section(Data, given["data"], "data"),
        "network": _section(Network, network, "network"),
        "loss": dict(given["loss"]),
        "training": _training(training),
        "evaluation": _section(Evaluation, given.get("evaluation", {}), "evaluation"),
    }
    try:
        return RunConfig(**given)
    except TypeError as error:
        raise ValueError(str(error)) from error


def override(values: Any, name: str, value: Any) -> None:
    """Put `value` at the dotted `name`, as "training.steps", into the content of a file, in place."""
    *sections, key = name.split(".")
    for section in sections:
        values = values.setdefault(section, {}) if isinstance(values, dict) else None
    if not isinstance(values, dict) or not key:
        raise ValueError(f"{name} must name a key as section.key, got {name!r}")
    values[key] = value
