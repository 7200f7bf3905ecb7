"""How it learns: one loop for every loss. Data lies on the device as uint8; schedules depend on the step alone.

Because the permutation of an epoch is drawn from (seed, epoch) and the learning rate, scale and margin strength are
functions of the step, an interrupted run that resumes from its checkpoint ends bit for bit where it would have ended.
"""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

SCHEDULES = ("one_cycle", "constant", "step")


@dataclass(frozen=True)
class TrainConfig:
    """Everything about the optimisation that is not the model or the loss.

    Attributes:
        epochs: passes over the images.
        batch_size: images a step; the last incomplete batch of an epoch is dropped.
        lr: peak learning rate of SGD with Nesterov momentum.
        momentum, weight_decay: of SGD; ``loss_weight_decay`` replaces the decay for the loss's parameters if not None.
        loss_lr_factor: learning rate of the loss's parameters (class weights, scale) relative to ``lr``.
        schedule: ``one_cycle`` (linear rise over the first quarter, cosine fall), ``constant``, or ``step`` (times
            0.1 at each fraction of the run in ``milestones``).
        plain: fraction of the run, from its start, trained with plain softmax on the same weights.
        ramp_end: fraction of the run at which a scheduled scale and margin reach their full value; they start at
            ``plain`` from ``scale_start`` and 0. With ramp_end = 0 there is no ramp.
        scale_start: first value of the scale in the ramp (logit units).
        nesterov: Nesterov momentum; off for plain SGD experiments.
        flip: mirror each image left to right with probability 1/2.
        shift: move each image by up to so many pixels, up or down and left or right, repeating its edge: what a random
            crop of the image padded by ``shift`` gives.
        bf16: run the network (not the loss) in bfloat16 by autocast; on a CUDA device only.
    """

    epochs: int = 4
    batch_size: int = 128
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    loss_weight_decay: float | None = None
    loss_lr_factor: float = 1.0
    schedule: str = "one_cycle"
    milestones: tuple[float, ...] = ()
    plain: float = 0.0
    ramp_end: float = 0.0
    scale_start: float = 5.0
    nesterov: bool = True
    flip: bool = False
    shift: int = 0
    bf16: bool = False

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2:
            raise ValueError(f"need epochs >= 1 and batch_size >= 2, got {self.epochs} and {self.batch_size}")
        if not (self.lr > 0 and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ValueError(
                "need lr > 0, 0 <= momentum < 1, weight_decay >= 0, "
                f"got {self.lr}, {self.momentum}, {self.weight_decay}"
            )
        if self.schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {self.schedule!r}; allowed are {', '.join(SCHEDULES)}")
        if not (0 <= self.plain <= 1 and 0 <= self.ramp_end <= 1 and self.scale_start > 0):
            raise ValueError(
                "need 0 <= plain <= 1, 0 <= ramp_end <= 1, scale_start > 0, "
                f"got {self.plain}, {self.ramp_end}, {self.scale_start}"
            )
        if isinstance(self.shift, bool) or not isinstance(self.shift, int) or self.shift < 0:
            raise ValueError(f"need a shift of a whole number of pixels >= 0, got {self.shift!r}")

    def describe(self) -> dict:
        """The fields as a plain dictionary, for cache keys and records.

        Options that came later appear only where they are on, so that the key of an older run stays what it was.
        """
        later = {"flip": False, "shift": 0, "bf16": False}
        return {name: value for name, value in asdict(self).items() if name not in later or value != later[name]}


@dataclass
class History:
    """What was logged: ``steps`` and, for each, the mean loss since the previous entry and the probe's values."""

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
    """Learning rate at ``progress`` in [0, 1) of the run."""
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "step":
        return config.lr * 0.1 ** sum(progress >= milestone for milestone in config.milestones)
    rise = 0.25
    if progress < rise:
        return config.lr * (0.04 + 0.96 * progress / rise)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * (progress - rise) / (1.0 - rise)))


def ramp(config: TrainConfig, progress: float) -> float:
    """Strength in [0, 1] of the margin (and of the scale's rise) at ``progress`` of the run."""
    if config.ramp_end <= config.plain:
        return 1.0
    return min(max((progress - config.plain) / (config.ramp_end - config.plain), 0.0), 1.0)


def flip_and_shift(images: Tensor, generator: torch.Generator, *, flip: bool = True, shift: int = 0) -> Tensor:
    """``images`` (n, channels, height, width), each mirrored with probability 1/2 and moved by up to ``shift`` pixels.

    The move is uniform in -shift .. shift in both directions; pixels from outside repeat the edge. Whatever is random
    comes from ``generator``, on the CPU, so that every device gets the same images; the pixels never leave the device.

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


def _epoch_order(count: int, seed: int, epoch: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    return torch.randperm(count, generator=generator).to(device)


def _save(path: Path, state: dict) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(state, file)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def train(
    model: nn.Module,
    loss: nn.Module,
    images: Tensor,
    labels: Tensor,
    config: TrainConfig,
    *,
    seed: int,
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    probe: Callable[[int, nn.Module, nn.Module], dict] | None = None,
    log_every: int = 50,
    checkpoint: Path | None = None,
    checkpoint_every: int = 500,
    stop_after: int | None = None,
    label: str = "training",
) -> Trained:
    """Train ``model`` and ``loss`` in place by SGD.

    Args:
        model: maps uint8 images (n, channels, height, width) to embeddings (n, d).
        loss: ``loss(embeddings, labels)`` is a scalar; a margin-softmax head also gets its warm-up from ``config``.
        images: uint8 (N, channels, height, width), on the device of the model.
        labels: int64 (N,), same device.
        seed: fixes the order of the images and the augmentation.
        augment: ``augment(batch, generator)`` returns the batch that is trained on; after ``config.flip`` and
            ``config.shift``.
        probe: called at the start and then every ``log_every`` steps as ``probe(step, model, loss)``; what it returns
            is kept in the history. The model is in evaluation mode during the call.
        checkpoint: file to resume from if it exists; written every ``checkpoint_every`` steps and at ``stop_after``.
        stop_after: stop after this many steps of the whole run (as an interruption would).

    Raises:
        ValueError: if the batch is larger than the data, shapes disagree, bf16 is asked for without CUDA, the shift is
            not smaller than the images, or the loss becomes NaN or infinite.
    """
    count = images.shape[0]
    if labels.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), got {tuple(labels.shape)}")
    if config.batch_size > count:
        raise ValueError(f"batch_size {config.batch_size} is larger than the {count} images given")
    device = images.device
    if config.bf16 and device.type != "cuda":
        raise ValueError(f"bf16 needs the images on a CUDA device, they are on {device}")
    steps_per_epoch = count // config.batch_size
    total = steps_per_epoch * config.epochs
    scheduled = hasattr(loss, "set_warmup") and config.ramp_end > config.plain
    fixed_scale = scheduled and not isinstance(loss.scale, nn.Parameter) and getattr(loss, "normalize_features", False)
    final_scale = float(loss.scale.detach()) if fixed_scale else None
    loss_decay = config.weight_decay if config.loss_weight_decay is None else config.loss_weight_decay
    groups = [{"params": [p for p in model.parameters() if p.requires_grad], "factor": 1.0}]
    loss_parameters = [p for p in loss.parameters() if p.requires_grad]
    if loss_parameters:
        groups.append({"params": loss_parameters, "factor": config.loss_lr_factor, "weight_decay": loss_decay})
    nesterov = config.nesterov and config.momentum > 0
    # Not fused: on the CPU that kernel ignores strides, and mixes up weights and gradients of different memory formats.
    optimizer = torch.optim.SGD(
        groups, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, nesterov=nesterov
    )
    history, first = History(), 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        loss.load_state_dict(state["loss"])
        optimizer.load_state_dict(state["optimizer"])
        first, final_scale = state["step"], state["final_scale"]
        history = History(**state["history"])
        running = torch.tensor(state["running"], device=device)
    else:
        running = torch.zeros((), device=device)

    def keep(step: int) -> None:
        if checkpoint is not None:
            _save(
                checkpoint,
                {
                    "model": model.state_dict(),
                    "loss": loss.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "step": step,
                    "final_scale": final_scale,
                    "history": asdict(history),
                    "running": float(running),
                },
            )

    def log(step: int, mean_loss: float) -> None:
        if not math.isfinite(mean_loss):
            raise ValueError(f"the loss became {mean_loss} before step {step}; lower the learning rate")
        history.steps.append(step)
        history.losses.append(mean_loss)
        if probe is not None:
            model.eval()
            with torch.no_grad():
                history.probes.append(probe(step, model, loss))
            model.train()

    model.train()
    loss.train()
    if first == 0 and probe is not None:
        model.eval()
        with torch.no_grad():
            history.probes.append(probe(0, model, loss))
        model.train()
    order, order_epoch = None, -1
    bar = tqdm(range(first, total), desc=label, disable=None, leave=False)
    for step in bar:
        epoch, position = divmod(step, steps_per_epoch)
        if epoch != order_epoch:
            order, order_epoch = _epoch_order(count, seed, epoch, device), epoch
        index = order[position * config.batch_size : (position + 1) * config.batch_size]
        batch, target = images[index], labels[index]
        if augment is not None or config.flip or config.shift:
            # drawn from the step alone, so that a resumed run sees the same images
            generator = torch.Generator().manual_seed(seed * 1_000_003 + 500_000_000 + step)
            if config.flip or config.shift:
                batch = flip_and_shift(batch, generator, flip=config.flip, shift=config.shift)
            if augment is not None:
                batch = augment(batch, generator)
        progress = step / total
        if scheduled:
            strength = ramp(config, progress)
            scale = None
            if final_scale is not None:
                scale = config.scale_start + (final_scale - config.scale_start) * strength
            loss.set_warmup(scale=scale, strength=strength)
        rate = learning_rate(config, progress)
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with torch.autocast("cuda", dtype=torch.bfloat16) if config.bf16 else contextlib.nullcontext():
            embeddings = model(batch)
        if config.bf16:
            embeddings = embeddings.float()
        plain = progress < config.plain and hasattr(loss, "plain_loss")
        value = loss.plain_loss(embeddings, target) if plain else loss(embeddings, target)
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        optimizer.step()
        running += value.detach()
        done = step + 1
        if done % log_every == 0 or done == total:
            since = done - (history.steps[-1] if history.steps else 0)
            log(done, float(running) / since)
            running.zero_()
        if checkpoint is not None and (done % checkpoint_every == 0 or done == stop_after):
            keep(done)
        if done == stop_after:
            break
    else:
        if scheduled:
            loss.set_warmup(scale=final_scale, strength=1.0)
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
    **options,
) -> Trained:
    """Build model and loss under ``seed`` and train them: the same seed gives the same initial network to every loss.

    The global random state is left as it was. ``options`` go to :func:`train`.
    """
    devices = [images.device] if images.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        model = make_model().to(images.device, memory_format=torch.channels_last)
        torch.manual_seed(seed + 1)
        loss = make_loss().to(images.device)
        return train(model, loss, images, labels, config, seed=seed, **options)


@torch.no_grad()
def embed(model: nn.Module, images: Tensor, batch_size: int = 2000) -> Tensor:
    """Embeddings (N, d) float32 of ``images``, in evaluation mode; the model's mode is restored."""
    if images.shape[0] == 0:
        raise ValueError("there are no images to embed")
    training = model.training
    model.eval()
    parts = [model(images[begin : begin + batch_size]) for begin in range(0, images.shape[0], batch_size)]
    model.train(training)
    return torch.cat(parts).float()


@torch.no_grad()
def accuracy(model: nn.Module, loss: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Closed-set accuracy in [0, 1] by the margin-free logits (with the margin on it would look worse than it is)."""
    return float((loss.logits(embed(model, images)).argmax(dim=1) == labels).float().mean())
