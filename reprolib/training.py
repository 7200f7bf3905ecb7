"""How it learns: one loop for every loss. Data lies on the device as uint8; schedules depend on the step alone.

Because the batches of an epoch are drawn from (seed, epoch), the augmentation from (seed, step), and the learning rate,
scale and margin strength are functions of the step, an interrupted run that resumes from its checkpoint ends bit for
bit where it would have ended.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from tqdm import tqdm

from reprolib._checks import check_choice, check_count, check_labels, check_number
from reprolib.checkpoints import Checkpoint, digest, hyper, random_state, set_random_state, shapes

SCHEDULES = ("cosine", "constant", "step")
# one prime for all seeds, so that neighbouring seeds share no epoch and no step
_STRIDE, _AUGMENTATION = 1_000_003, 500_000_000


@dataclass(frozen=True)
class TrainConfig:
    """Everything about the optimisation that is not the model or the loss.

    Attributes:
        epochs: passes over the images (or over the batches of a sampler).
        steps: if given, the run ends after so many steps, in the middle of an epoch or after more than `epochs`.
        batch_size: images a step; the last incomplete batch of an epoch is dropped. A sampler has its own.
        lr: peak learning rate of SGD.
        momentum, weight_decay: of SGD with Nesterov momentum; `loss_weight_decay` replaces the decay for the loss's
            parameters if not None.
        loss_lr_factor: learning rate of the loss's parameters (class weights, scale) relative to `lr`.
        schedule: `cosine` (linear rise over the first `warmup` of the run, cosine fall), `constant`, or `step` (times
            0.1 at each fraction of the run in `milestones`).
        warmup: fraction of the run in which `cosine` rises.
        clip_norm: the gradient of all parameters together is scaled down to this Euclidean norm where it is longer.
        plain: fraction of the run, from its start, trained with plain softmax on the same weights.
        ramp_end: fraction of the run at which the margin reaches its full strength; it starts at `plain` from 0. With
            ramp_end <= plain there is no ramp.
        scale_start: first value of a fixed scale in the ramp (logit units); None if the scale does not take part.
        flip: mirror each image left to right with probability 1/2.
        shift: move each image by up to so many pixels, up or down and left or right, repeating its edge: what a random
            crop of the image padded by `shift` gives.
        bf16: run the network (not the loss) in bfloat16 by autocast; on a CUDA device only.

    Raises:
        ValueError, TypeError: for values out of range, infinite rates, counts that are not whole numbers.
    """

    epochs: int = 4
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    loss_weight_decay: float | None = None
    loss_lr_factor: float = 1.0
    schedule: str = "cosine"
    warmup: float = 0.25
    milestones: tuple[float, ...] = ()
    clip_norm: float | None = None
    plain: float = 0.0
    ramp_end: float = 0.0
    scale_start: float | None = 5.0
    flip: bool = False
    shift: int = 0
    bf16: bool = False
    steps: int | None = None

    def __post_init__(self) -> None:
        check_count(self.epochs, "epochs")
        check_count(self.batch_size, "batch_size", low=2)
        check_count(self.shift, "shift", low=0)
        check_choice(self.schedule, "schedule", SCHEDULES)
        check_number(self.lr, "lr")
        # the largest float below 1: a momentum of 1 never forgets
        check_number(self.momentum, "momentum", high=math.nextafter(1.0, 0.0), closed=True)
        for name in ("weight_decay", "loss_lr_factor"):
            check_number(getattr(self, name), name, closed=True)
        for name in ("warmup", "plain", "ramp_end"):
            check_number(getattr(self, name), name, high=1.0, closed=True)
        for milestone in self.milestones:
            check_number(milestone, "milestones", high=1.0, closed=True)
        if self.loss_weight_decay is not None:
            check_number(self.loss_weight_decay, "loss_weight_decay", closed=True)
        for name in ("clip_norm", "scale_start"):
            if getattr(self, name) is not None:
                check_number(getattr(self, name), name)
        if self.steps is not None:
            check_count(self.steps, "steps")

    @property
    def ramped(self) -> bool:
        """Whether the margin rises from 0."""
        return self.ramp_end > self.plain

    def describe(self) -> dict[str, Any]:
        """The fields as a plain dictionary, for cache keys and records."""
        return asdict(self)


@dataclass
class History:
    """What was logged: `steps` and, for each, the mean loss since the previous entry and the probe's values."""

    steps: list[int] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    probes: list[dict] = field(default_factory=list)


@dataclass
class Trained:
    """A finished run: the network in evaluation mode, its loss (with the class weights), and the history."""

    model: nn.Module
    loss: nn.Module
    history: History


def learning_rate(config: TrainConfig, progress: float) -> float:
    """Learning rate at `progress` in [0, 1) of the run."""
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(progress >= milestone for milestone in config.milestones)
    if progress < config.warmup:
        return config.lr * (0.04 + 0.96 * progress / config.warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * (progress - config.warmup) / (1.0 - config.warmup)))


def ramp(config: TrainConfig, progress: float) -> float:
    """Strength in [0, 1] of the margin (and of the scale's rise) at `progress` of the run."""
    if not config.ramped:
        return 1.0
    return min(max((progress - config.plain) / (config.ramp_end - config.plain), 0.0), 1.0)


def augmentation_seed(seed: int, step: int) -> int:
    """From which what is random in step `step` of the run with `seed` is drawn, so that a resumed run sees the same."""
    return seed * _STRIDE + _AUGMENTATION + step


def flip_and_shift(images: Tensor, generator: torch.Generator, *, flip: bool = True, shift: int = 0) -> Tensor:
    """`images` (n, channels, height, width), each mirrored with probability 1/2 and moved by up to `shift` pixels.

    The move is uniform in -shift .. shift in both directions; pixels from outside repeat the edge. Whatever is random
    comes from `generator`, on the CPU, so that every device gets the same images; the pixels never leave the device.

    Raises:
        ValueError: for a shift that is negative or not smaller than the image.
    """
    n, channels, height, width = images.shape
    if not 0 <= shift < min(height, width):
        raise ValueError(f"the shift must be from 0 to {min(height, width) - 1} pixels, got {shift}")
    mirrored = torch.rand(n, 1, generator=generator) < 0.5
    moves = torch.randint(-shift, shift + 1, (2, n, 1), generator=generator)
    rows = (torch.arange(height) + moves[0]).clamp_(0, height - 1)
    columns = (torch.arange(width) + moves[1]).clamp_(0, width - 1)
    if flip:
        columns = torch.where(mirrored, width - 1 - columns, columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    index = torch.arange(n, device=images.device)[:, None, None, None]
    channel = torch.arange(channels, device=images.device)[None, :, None, None]
    return images[index, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Batches(Protocol):
    """A pass over it is an epoch: index tensors (n,) int64, as many as its length."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Tensor]: ...


class Shuffled:
    """The batches of a plain epoch: all images in random order, each once, without the last incomplete batch."""

    def __init__(self, count: int, batch_size: int, device: torch.device) -> None:
        if batch_size > count:
            raise ValueError(f"batch_size must be at most the number of images, {count}, got {batch_size}")
        self.count, self.batch_size, self.device = count, batch_size, device
        self.generator = torch.Generator()

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[Tensor]:
        order = torch.randperm(self.count, generator=self.generator).to(self.device)
        return iter(order.split(self.batch_size)[: len(self)])


def steps_of(batches: Batches, seed: int, first: int, total: int) -> Iterator[tuple[int, Tensor]]:
    """(step, indices) from step `first` on; each epoch's generator starts from (seed, epoch)."""
    length = len(batches)
    for epoch in range(first // length, -(-total // length)):
        begin = epoch * length
        generator = getattr(batches, "generator", None)
        if isinstance(generator, torch.Generator):
            generator.manual_seed(seed * _STRIDE + epoch)
        skipped, given = max(first - begin, 0), 0
        for index in islice(batches, skipped, total - begin):
            yield begin + skipped + given, index
            given += 1
        if given != min(length, total - begin) - skipped:
            raise ValueError(f"batches must give len(batches) = {length} batches each time, got {skipped + given}")


def head_of(loss: Any) -> Any:
    """The head of a joint loss, or of a joint loss within it; any other loss is its own."""
    while hasattr(loss, "head"):
        loss = loss.head
    return loss


def check_run(loss: nn.Module, images: Tensor, labels: Tensor, config: TrainConfig) -> None:
    """Raises ValueError for labels that do not belong to `images`, and what `config` asks of a loss that lacks it."""
    check_labels(labels, len(images))
    if labels.device != images.device:
        raise ValueError(f"labels must be on the device of the images, {images.device}, got {labels.device}")
    if config.bf16 and images.device.type != "cuda":
        raise ValueError(f"bf16 needs the images on a CUDA device, they are on {images.device}")
    head, name = head_of(loss), type(loss).__name__
    if config.plain > 0 and not (hasattr(loss, "plain_loss") and hasattr(head, "plain_loss")):
        raise ValueError(f"plain must be 0 for {name}, which has no plain_loss to start with, got {config.plain}")
    if config.ramped and not hasattr(head, "set_warmup"):
        raise ValueError(f"ramp_end must be 0 for {name}, which has no margin to raise, got {config.ramp_end}")
    if config.ramped and getattr(head, "annealing", None) is not None:
        raise ValueError(
            f"ramp_end must be 0 for {name} with annealing, which sets the strength, got {config.ramp_end}"
        )


def make_optimizer(model: nn.Module, loss: nn.Module, config: TrainConfig, *, nesterov: bool = True) -> torch.optim.SGD:
    """SGD for both; the loss's parameters have their own decay, and each group its `factor` of the learning rate."""
    loss_decay = config.weight_decay if config.loss_weight_decay is None else config.loss_weight_decay
    groups: list[dict[str, Any]] = [{"params": [p for p in model.parameters() if p.requires_grad], "factor": 1.0}]
    if loss_parameters := [p for p in loss.parameters() if p.requires_grad]:
        groups.append({"params": loss_parameters, "factor": config.loss_lr_factor, "weight_decay": loss_decay})
    # Not fused: on the CPU that kernel ignores strides, and mixes up weights and gradients of different memory formats.
    return torch.optim.SGD(
        groups,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        nesterov=nesterov and config.momentum > 0,
    )


class WarmUp:
    """Sets a head's margin, also within a joint loss, and its scale where that is fixed, by the ramp's strength."""

    def __init__(self, loss: nn.Module, config: TrainConfig) -> None:
        self.head, self.config = head_of(loss), config
        scale = getattr(self.head, "scale", None)
        # read here: no step looks at a number on the device
        self.made_with = None if scale is None else float(scale.detach())
        rises = config.ramped and config.scale_start is not None and getattr(self.head, "normalize_features", False)
        self.rises = rises and not isinstance(scale, nn.Parameter)

    def __call__(self, strength: float) -> None:
        """Set both; nothing for a run whose margin does not rise."""
        if not self.config.ramped:
            return
        start = self.config.scale_start
        if self.rises and start is not None and self.made_with is not None:
            self.head.set_warmup(strength=strength, scale=start + (self.made_with - start) * strength)
        else:
            self.head.set_warmup(strength=strength)


def train(
    model: nn.Module,
    loss: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    *,
    seed: int,
    batches: Batches | None = None,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    probe: Callable[[int, nn.Module, nn.Module], dict] | None = None,
    log_every: int = 50,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    branch: bool = False,
    stop_after: int | None = None,
    label: str = "training",
) -> Trained:
    """Train `model` and `loss` in place by SGD.

    Args:
        model: maps uint8 images (n, channels, height, width) to embeddings (n, d).
        loss: `loss(embeddings, labels)` is a scalar; a margin-softmax head, alone or as the `head` of a joint loss,
            also gets its warm-up from `config`.
        images: uint8 (N, channels, height, width), on the device of the model.
        labels: int64 (N,), same device.
        seed: fixes the order of the images and the augmentation.
        batches: has a length and gives in each pass (an epoch) that many index tensors (n,) int64, on the device of
            the images: a `PKSampler`, a list. If it has a `generator`, that is seeded anew at each
            epoch. None: all images in random order, `config.batch_size` a step.
        augment: `augment(batch, generator)` returns the batch that is trained on; after `config.flip` and
            `config.shift`.
        probe: called at the start and then every `log_every` steps as `probe(step, model, loss)`; what it returns
            is kept in the history. The model is in evaluation mode during the call.
        checkpoint: file to resume from if it exists; written every `checkpoint_every` steps and at `stop_after`.
        branch: the checkpoint may come from a loss with other hyper-parameters, to continue with several from one.
        stop_after: stop after this many steps of the whole run (as an interruption would).

    Raises:
        ValueError: if the batch is larger than the data, shapes disagree, the loss lacks the warm-up that `config` asks
            for, bf16 is asked for without CUDA, the shift is not smaller than the images, the loss becomes NaN or
            infinite, or the checkpoint is damaged or of another run (model, loss, data, configuration, seed).
    """
    check_count(seed, "seed", low=0)
    check_count(log_every, "log_every")
    check_count(checkpoint_every, "checkpoint_every")
    check_run(loss, images, labels, config)
    device = images.device
    sampler: Batches = Shuffled(len(images), config.batch_size, device) if batches is None else batches
    if not hasattr(sampler, "__len__") or len(sampler) < 1:
        raise ValueError(f"batches must have a length of at least 1, got {type(sampler).__name__}")
    total = len(sampler) * config.epochs if config.steps is None else config.steps
    warm_up = WarmUp(loss, config)
    optimizer = make_optimizer(model, loss, config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    history, first, running = History(), 0, torch.zeros((), device=device)
    saved: Checkpoint | None = None
    if checkpoint is not None:
        kind = (type(sampler).__name__, len(sampler), getattr(sampler, "P", None), getattr(sampler, "K", None))
        run = {
            "model": digest(hyper(model), shapes(model)),
            "loss": digest(hyper(loss), warm_up.made_with),
            "shape of the loss": digest(type(loss).__name__, shapes(loss)),
            "configuration": digest(config.describe(), kind, log_every),
            "seed": digest(seed),
            "data": digest(images, labels),
        }
        saved = Checkpoint(checkpoint, run, ("loss",) if branch else ())
        if checkpoint.exists():
            state = saved.read(device)
            model.load_state_dict(state["model"])
            loss.load_state_dict(state["loss"])
            optimizer.load_state_dict(state["optimizer"])
            first, running, history = state["step"], state["running"], History(**state["history"])
            set_random_state(device, state["random"])

    def keep(step: int) -> None:
        if saved is not None:
            parts = {"model": model.state_dict(), "loss": loss.state_dict(), "optimizer": optimizer.state_dict()}
            at = {"step": step, "running": running, "history": asdict(history), "random": random_state(device)}
            saved.write(parts | at)

    def look(step: int) -> None:
        if probe is not None:
            model.eval()
            with torch.no_grad():
                history.probes.append(probe(step, model, loss))
            model.train()

    model.train()
    loss.train()
    if first == 0:
        look(0)
    steps = steps_of(sampler, seed, first, total)
    bar: Iterable[tuple[int, Tensor]] = tqdm(steps, label, total, initial=first, disable=None, leave=False)
    for step, index in bar:
        batch, target = images[index], labels[index]
        if augment is not None or config.flip or config.shift:
            generator = torch.Generator().manual_seed(augmentation_seed(seed, step))
            if config.flip or config.shift:
                batch = flip_and_shift(batch, generator, flip=config.flip, shift=config.shift)
            if augment is not None:
                batch = augment(batch, generator)
        progress = step / total
        warm_up(ramp(config, progress))
        rate = learning_rate(config, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with torch.autocast("cuda", dtype=torch.bfloat16) if config.bf16 else contextlib.nullcontext():
            embeddings = model(batch)
        if config.bf16:
            embeddings = embeddings.float()
        objective: Any = loss.plain_loss if progress < config.plain else loss
        value = objective(embeddings, target)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        if config.clip_norm is not None:
            nn.utils.clip_grad_norm_(parameters, config.clip_norm)
        optimizer.step()
        running += value.detach()
        done = step + 1
        if done % log_every == 0 or done == total:
            mean_loss = float(running) / (done - (history.steps[-1] if history.steps else 0))
            if not math.isfinite(mean_loss):
                raise ValueError(f"the loss became {mean_loss} before step {done}; lower the learning rate")
            history.steps.append(done)
            history.losses.append(mean_loss)
            look(done)
            running.zero_()
        if done % checkpoint_every == 0 or done == stop_after:
            keep(done)
        if done == stop_after:
            break
    else:
        warm_up(1.0)
    model.eval()
    loss.eval()
    return Trained(model, loss, history)


def fit(
    make_model: Callable[[], nn.Module],
    make_loss: Callable[[], nn.Module],
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    *,
    seed: int,
    **options: Any,
) -> Trained:
    """Build model and loss under `seed` and train them: the same seed gives the same initial network to every loss.

    The global random state is left as it was. `options` go to :func:`train`.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = make_model().to(images.device).to(memory_format=torch.channels_last)
        torch.manual_seed(seed + 1)
        loss = make_loss().to(images.device)
        return train(model, loss, images, labels, config, seed=seed, **options)


@torch.no_grad()
def embed(model: nn.Module, images: Tensor, batch_size: int = 2000, *, flip_sum: bool = False) -> Tensor:
    """Embeddings (N, d) float32 of `images`, in evaluation mode; the model's mode is restored.

    With `flip_sum` the sum of the embeddings of each image and of its mirror image.
    """
    if images.shape[0] == 0:
        raise ValueError("there are no images to embed")
    training = model.training
    model.eval()
    parts = []
    for batch in images.split(batch_size):
        features = model(batch).float()
        parts.append(features + model(batch.flip(3)).float() if flip_sum else features)
    model.train(training)
    return torch.cat(parts)


@torch.no_grad()
def accuracy(model: nn.Module, loss: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Closed-set accuracy in [0, 1] by the margin-free logits (with the margin on it would look worse than it is)."""
    head: Any = loss
    return float((head.logits(embed(model, images)).argmax(dim=1) == labels).float().mean())
