"""`reprolib train`: a run on a face set of any size, on one process or on many, that goes on where it was stopped.

It is the loop of :mod:`reprolib.training` for images that stay on the disk: the same batches, augmentation, schedules
and initial weights follow from the seed, so that on one process both end in the same weights. On W processes
(`torchrun`) each takes 1/W of every batch; DistributedDataParallel sums the network's gradients, the classes are shared
out by :mod:`reprolib.sharded`. A checkpoint holds the whole state, whatever the number of processes, and is written
also on Ctrl-C and SIGTERM, at the end of the step.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, distributed, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from reprolib import data, networks, sharded
from reprolib.checkpoints import Checkpoint, digest, random_state, set_random_state
from reprolib.config import RunConfig, make_loss
from reprolib.data.files import open_atomic
from reprolib.data.pixels import to_grey
from reprolib.data.sampling import PKSampler
from reprolib.evaluation import pair_cosines, verification_accuracy
from reprolib.training import (
    Shuffled,
    WarmUp,
    augmentation_seed,
    check_run,
    embed,
    flip_and_shift,
    head_of,
    learning_rate,
    make_optimizer,
    ramp,
    steps_of,
)

CHECKPOINT, LOG, RESULT = "checkpoint.pt", "log.jsonl", "result.json"
# SIGHUP: the terminal was closed
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


def prepare(images: Tensor, crop: tuple[int, int] | None, grey: bool) -> Tensor:
    """uint8 images (n, 3, H, W) as the network gets them: their middle, in grey if asked for."""
    if crop is not None:
        height, width = images.shape[-2:]
        if crop[0] > height or crop[1] > width:
            raise ValueError(f"data.crop must fit into images of {height} x {width} pixels, got {list(crop)}")
        top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
        images = images[..., top : top + crop[0], left : left + crop[1]]
    return to_grey(images) if grey else images


class Prepared(Dataset[tuple[Tensor, Tensor]]):
    """A face set whose items at a list of indices are one batch: uint8 images (n, C, H, W) and labels (n,)."""

    def __init__(self, faces: Any, crop: tuple[int, int] | None, grey: bool) -> None:
        self.faces, self.crop, self.grey = faces, crop, grey

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        items = self.faces.__getitems__(list(indices))
        shapes = {tuple(image.shape) for image, _ in items}
        if len(shapes) > 1:
            raise ValueError(f"images must have one size, got {' and '.join(map(str, sorted(shapes)[:2]))} in a batch")
        images = torch.stack([image for image, _ in items])
        return prepare(images, self.crop, self.grey), torch.tensor([label for _, label in items])


def _as_it_is(batch: Any) -> Any:
    """A collate function for items that are a batch already; a function, so that workers may be spawned."""
    return batch


def _leave_signals_alone(worker: int) -> None:
    """In a worker of a loader: a signal to all processes of a job must not end it before its run has stopped.

    It ends when the loader or the process that it works for does.
    """
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@dataclass
class Outcome:
    """Where a run stands: `step` of `total`, the signal that stopped it if one did, the last results by set."""

    step: int
    total: int
    stopped: int | None = None
    results: dict[str, float] = field(default_factory=dict)


class Stop:
    """Ctrl-C and SIGTERM within it ask for an end at the end of the step; the second one ends at once."""

    def __init__(self) -> None:
        self.number = 0

    def _ask(self, number: int, frame: object) -> None:
        if self.number:
            raise KeyboardInterrupt
        self.number = number

    def __enter__(self) -> Stop:
        self._before: dict[int, Any] = {}
        # signals can be caught in the main thread only; nohup has SIGHUP ignored
        with contextlib.suppress(ValueError):
            for number in (getattr(signal, name) for name in SIGNALS if hasattr(signal, name)):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agreed(self) -> int:
        """The signal that this process or any other got, 0 for none; all processes ask at the same step."""
        if sharded.world_size() == 1:
            return self.number
        found = torch.tensor(self.number)
        distributed.all_reduce(found, op=distributed.ReduceOp.MAX)
        return int(found)


@contextlib.contextmanager
def processes(device: str | None = None) -> Iterator[torch.device]:
    """This process's device, and torch.distributed joined if `torchrun` started several processes."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1 and not distributed.is_initialized()
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device in (None, "auto") else str(device)
    place = torch.device(kind)
    if place.type == "cuda" and place.index is None:
        place = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(place)
    if several:
        distributed.init_process_group("cpu:gloo,cuda:nccl" if place.type == "cuda" else "gloo")
    try:
        yield place
    finally:
        if several:
            distributed.destroy_process_group()


def embed_pairs(model: nn.Module, pairs: data.FacePairs, config: RunConfig, device: torch.device) -> Tensor:
    """Embeddings (2N, d) float32 on the CPU of both images of each pair, prepared as in training."""
    parts = []
    for batch in pairs.batches(128):
        images = prepare(batch.flatten(0, 1), config.data.crop, config.data.grey).to(device)
        parts.append(embed(model, images, 256, flip_sum=config.evaluation.flip_sum).cpu())
    return torch.cat(parts)


class Run:
    """The parts of one run on this process; :func:`train` goes through its steps."""

    def __init__(self, config: RunConfig, device: torch.device, stream: TextIO) -> None:
        self.config, self.device, self.stream = config, device, stream
        self.rank, self.world = sharded.rank(), sharded.world_size()
        settings = config.training
        if settings.batch_size % self.world:
            raise ValueError(f"batch_size must be a multiple of {self.world} processes, got {settings.batch_size}")
        if config.tensorboard and self.rank == 0:
            _summary_writer()
        self.faces = data.open_faces(config.data.path, config.data.skip, config.data.index)
        self.labels = torch.as_tensor(self.faces.labels).long()
        self.num_classes = int(self.faces.num_classes)
        self.images = Prepared(self.faces, config.data.crop, config.data.grey)
        self.shape: tuple[int, int, int] = tuple(self.images[0][0].shape)  # type: ignore[assignment]
        # read now: a file that is not there is found before anything runs
        self.pairs = {Path(path).stem: data.open_pairs(path) for path in config.evaluation.sets if self.rank == 0}
        self.sampler = self._sampler()
        self.total = len(self.sampler) * settings.epochs if settings.steps is None else settings.steps
        self._build()

    def _sampler(self) -> Any:
        size, each = self.config.training.batch_size, self.config.per_class
        if each is None:
            return Shuffled(len(self.labels), size, torch.device("cpu"))
        sampler = PKSampler(self.labels, size // each, each, torch.Generator(), few="leave out")
        if sampler.left_out:
            self.say(f"{len(sampler.left_out):,} people have fewer than {each} images and do not take part")
        return sampler

    def _build(self) -> None:
        """Network, loss and optimiser, started from the seed as :func:`reprolib.training.fit` starts them."""
        config, settings = self.config, self.config.training
        torch.manual_seed(config.seed)
        net = config.network
        model: nn.Module = networks.build(net.name, net.embedding_dim, self.shape, **net.options)
        self.model = model.to(self.device).to(memory_format=torch.channels_last)
        torch.manual_seed(config.seed + 1)
        self.loss = make_loss(config.loss, net.embedding_dim, self.num_classes, config.seed)
        if net.start_from is not None:
            self.model.load_state_dict(read_checkpoint(Path(net.start_from))["model"])
        check_run(self.loss, self.labels, self.labels, replace(settings, bf16=False))
        self.ranks = sharded.ShardedLoss(self.loss) if self.world > 1 else None
        self.loss.to(self.device)
        self.head = head_of(self.loss)
        if self.rank:
            # what dropout draws differs from process to process
            torch.manual_seed(augmentation_seed(config.seed, -self.rank))
        self.net = nn.parallel.DistributedDataParallel(self.model) if self.world > 1 else self.model
        self.optimizer = make_optimizer(self.model, self.loss, settings, nesterov=config.nesterov)
        self.parameters = {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        self.parameters |= {f"loss.{name}": p for name, p in self.loss.named_parameters() if p.requires_grad}
        self.warm_up = WarmUp(self.loss, settings)
        self.history: list[dict[str, Any]] = []
        self.running = torch.zeros((), device=self.device)
        run = {name: digest(part) for name, part in config.identity().items()}
        run |= {"images": digest(self.labels, self.num_classes, self.shape)}
        self.checkpoint = Checkpoint(Path(config.output) / CHECKPOINT, run, ())
        # a folder that cannot be made is found now, not at the first checkpoint
        Path(config.output).mkdir(parents=True, exist_ok=True)

    def say(self, text: str) -> None:
        """A line on stderr, from one process."""
        if self.rank == 0:
            print(text, file=self.stream, flush=True)

    # -- the state ---------------------------------------------------------------------------------------------------

    def _sharded(self, name: str) -> bool:
        return self.ranks is not None and name.startswith("loss.") and self.ranks.is_sharded(name)

    def _whole(self, name: str, value: Tensor) -> Tensor | None:
        return self.ranks.whole(name, value) if self.ranks is not None and self._sharded(name) else value

    def _mine(self, name: str, value: Tensor) -> Tensor:
        return self.ranks.mine(name, value) if self.ranks is not None and self._sharded(name) else value

    def save(self, step: int) -> None:
        """Write the checkpoint: gathered on process 0, the same whatever the number of processes."""
        states: list[Any] = [None] * self.world
        if self.world > 1:
            distributed.all_gather_object(states, random_state(self.device))
        else:
            states = [random_state(self.device)]
        loss = {name: self._whole(f"loss.{name}", value) for name, value in self.loss.state_dict().items()}
        momentum = {}
        for name, parameter in self.parameters.items():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                momentum[name] = self._whole(name, buffer)
        if self.rank == 0:
            state = {"model": self.model.state_dict(), "loss": loss, "momentum": momentum, "step": step}
            told = {"running": self.running, "history": self.history, "random": states}
            about = {"config": self.description(), "shape": list(self.shape), "num_classes": self.num_classes}
            self.checkpoint.write(state | told | about)
            self._write_log()

    def description(self) -> dict[str, Any]:
        """What `verify --model` needs to make the network anew and to prepare images for it."""
        net = self.config.network
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in net.options.items()}
        crop = None if self.config.data.crop is None else list(self.config.data.crop)
        return {
            "network": {"name": net.name, "embedding_dim": net.embedding_dim, "options": options},
            "crop": crop,
            "grey": self.config.data.grey,
            "flip_sum": self.config.evaluation.flip_sum,
        }

    def _write_log(self) -> None:
        with open_atomic(Path(self.config.output) / LOG) as stream:
            stream.write("".join(f"{json.dumps(line)}\n" for line in self.history).encode())

    def write_result(self) -> None:
        """What the finished run found on each set, beside what its paper reports: a notebook reads it."""
        last = {line["set"]: line for line in self.history if "set" in line}
        keys = ("exact", "low", "high", "facenet")
        sets = {name: {key: line[key] for key in keys} for name, line in last.items()}
        document = {"steps": self.total, "seed": self.config.seed, "paper": self.config.paper, "sets": sets}
        with open_atomic(Path(self.config.output) / RESULT) as stream:
            stream.write(f"{json.dumps(document, indent=1)}\n".encode())

    def resume(self) -> int:
        """The step to go on from; the state is that of the checkpoint, if there is one."""
        if not self.checkpoint.path.exists():
            return 0
        state = self.checkpoint.read(torch.device("cpu"))
        self.model.load_state_dict(state["model"])
        seed = self.head.sampler.seed.clone() if getattr(self.head, "sampler", None) is not None else None
        self.loss.load_state_dict({name: self._mine(f"loss.{name}", value) for name, value in state["loss"].items()})
        if seed is not None:
            self.head.sampler.seed.copy_(seed)
        for name, value in state["momentum"].items():
            parameter = self.parameters[name]
            buffer = torch.empty_like(parameter, memory_format=torch.preserve_format)
            self.optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(self._mine(name, value))
        self.history, self.running = state["history"], state["running"].to(self.device)
        if len(state["random"]) == self.world:
            set_random_state(self.device, state["random"][self.rank])
        else:
            # another number of processes: dropout draws anew, from the seed and the step
            torch.manual_seed(augmentation_seed(self.config.seed, -self.rank - self.world * (state["step"] + 1)))
        return int(state["step"])

    # -- the steps ---------------------------------------------------------------------------------------------------

    def batches(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images and labels of each step from `first` on."""
        size = self.config.training.batch_size // self.world
        part = slice(self.rank * size, (self.rank + 1) * size)

        def indices() -> Iterator[list[int]]:
            for _, index in steps_of(self.sampler, self.config.seed, first, self.total):
                yield index[part].tolist()

        if self.config.data.in_memory:
            if not hasattr(self, "memory"):
                loader = DataLoader(
                    self.images,
                    batch_sampler=[
                        list(range(i, min(i + 256, len(self.images)))) for i in range(0, len(self.images), 256)
                    ],
                    collate_fn=_as_it_is,
                    num_workers=self.config.data.workers,
                    worker_init_fn=_leave_signals_alone,
                    generator=torch.Generator(),
                )
                parts = tqdm(loader, "images", disable=None if self.rank == 0 else True, leave=False, file=self.stream)
                self.memory = torch.cat([images for images, _ in parts]).to(self.device)
            for rows in indices():
                yield self.memory[torch.tensor(rows, device=self.device)], self.labels[rows]
            return
        workers = self.config.data.workers
        # a generator of its own: the loader's seed must not be drawn from that of dropout
        yield from DataLoader(
            self.images,
            batch_sampler=_Once(indices),
            collate_fn=_as_it_is,
            num_workers=workers,
            worker_init_fn=_leave_signals_alone,
            pin_memory=self.device.type == "cuda",
            prefetch_factor=4 if workers else None,
            generator=torch.Generator(),
        )

    def augment(self, images: Tensor, step: int) -> Tensor:
        """Mirrored and moved as the whole batch of `step` would be, whichever part of it `images` are."""
        settings = self.config.training
        if not settings.flip and not settings.shift:
            return images
        generator = torch.Generator().manual_seed(augmentation_seed(self.config.seed, step))
        if self.world == 1:
            return flip_and_shift(images, generator, flip=settings.flip, shift=settings.shift)
        part = slice(self.rank * len(images), (self.rank + 1) * len(images))
        whole = images.new_zeros(settings.batch_size, *images.shape[1:])
        whole[part] = images
        return flip_and_shift(whole, generator, flip=settings.flip, shift=settings.shift)[part]

    def step(self, step: int, images: Tensor, labels: Tensor) -> None:
        """One step of the optimiser on this process's part of the batch."""
        settings, progress = self.config.training, step / self.total
        images = self.augment(images.to(self.device, non_blocking=True), step)
        labels = labels.to(self.device, non_blocking=True)
        self.warm_up(ramp(settings, progress))
        rate = learning_rate(settings, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            embeddings = self.net(images)
        embeddings = embeddings.float()
        if self.ranks is not None:
            # DistributedDataParallel divides the sum over the processes by their number
            embeddings.register_hook(lambda gradient: gradient * self.world)
        objective: Any = self.loss if self.ranks is None else self.ranks
        value = (objective.plain_loss if progress < settings.plain else objective)(embeddings, labels)
        self.optimizer.zero_grad(set_to_none=True)
        value.backward()
        if self.ranks is not None:
            self.ranks.reduce_gradients()
        if settings.clip_norm is not None:
            self._clip(settings.clip_norm)
        self.optimizer.step()
        self.running += value.detach()

    def _clip(self, most: float) -> None:
        if self.ranks is None:
            nn.utils.clip_grad_norm_([p for group in self.optimizer.param_groups for p in group["params"]], most)
            return
        named = [(name, p.grad) for name, p in self.parameters.items() if p.grad is not None]
        gradients = [gradient for _, gradient in named]
        length = sharded.squared_norm(gradients, [not self._sharded(name) for name, _ in named]).sqrt()
        factor = (most / (length + 1e-6)).clamp_max(1.0)
        for gradient in gradients:
            gradient.mul_(factor)

    def log(self, done: int, images_per_second: float) -> None:
        """The mean loss since the last line, on stderr and in the history; ValueError where it is no number."""
        before = max((line["step"] for line in self.history if "loss" in line), default=0)
        loss = float(self.running) / (done - before)
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} before step {done}; lower the learning rate")
        rate = self.optimizer.param_groups[0]["lr"]
        self.history.append({"step": done, "loss": loss, "lr": rate})
        self.running.zero_()
        left = (self.total - done) * self.config.training.batch_size / images_per_second
        self.say(
            f"step {done} of {self.total}: loss {loss:.4f}, lr {rate:.4g}, {images_per_second:,.0f} images a second, "
            f"{tqdm.format_interval(left)} left"
        )

    def evaluate(self, done: int) -> dict[str, float]:
        """10-fold accuracy on each verification set, by process 0."""
        found: dict[str, float] = {}
        for name, pairs in self.pairs.items():
            features = embed_pairs(self.model, pairs, self.config, self.device)
            scores = pair_cosines(features[0::2], features[1::2])
            line: dict[str, Any] = {"step": done, "set": name}
            for convention in ("exact", "facenet"):
                result = verification_accuracy(scores, pairs.same, pairs.folds(), convention=convention)
                line[convention] = float(result.accuracy)
                if convention == "exact":
                    found[name] = float(result.accuracy)
                    line |= {"low": float(result.accuracy.low), "high": float(result.accuracy.high)}
                    text = f"{result.accuracy.text(percent=True)} %"
            self.history.append(line)
            paper = f", the paper {self.config.paper[name]:g}" if name in self.config.paper else ""
            facenet = f"by insightface's threshold {100 * line['facenet']:.2f}"
            self.say(f"step {done} of {self.total}: {name} {text}, {facenet}{paper}")
        return found


class _Once:
    """The lists of indices that `make` gives, as a batch sampler."""

    def __init__(self, make: Callable[[], Iterator[list[int]]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[list[int]]:
        return self.make()


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ValueError(
            "tensorboard: true must have the package tensorboard; pip install 'reprolib[cluster]' brings it"
        ) from error
    return SummaryWriter


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint of :func:`train`, on the CPU; ValueError in one sentence where there is none."""
    try:
        state = Checkpoint(path, {}, ()).read(torch.device("cpu"))
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    if "config" not in state:
        raise ValueError(f"checkpoint {path} must be one of reprolib train, got that of another run")
    return state


def train(
    config: RunConfig,
    *,
    device: str | None = None,
    stream: TextIO | None = None,
    after_step: Callable[[int], None] | None = None,
) -> Outcome:
    """Run `config` from its checkpoint, or from the start, to its end or to the first signal.

    `after_step` is called with the number of steps done, before a checkpoint is written.

    Raises:
        ValueError: for a configuration that does not fit the data, a checkpoint of another run, a loss that is no
            number.
    """
    with processes(device) as place, Stop() as stop:
        run = Run(config, place, sys.stderr if stream is None else stream)
        first = run.resume()
        kinds = f"{config.loss['name']}, {config.network.name}"
        count = sum(p.numel() for p in run.model.parameters())
        run.say(
            f"{kinds} ({count:,} parameters): {len(run.labels):,} images of {run.num_classes:,} people, "
            f"{run.total:,} steps of {config.training.batch_size} images, {run.world} process(es) on {place.type}"
            + (f", going on from step {first}" if first else "")
        )
        writer = None
        if config.tensorboard and run.rank == 0:
            writer = _summary_writer()(Path(config.output) / "tensorboard", purge_step=first)
        outcome = Outcome(first, run.total)
        outcome.results = {line["set"]: line["exact"] for line in run.history if "set" in line}
        run.net.train()
        run.loss.train()
        begun, since = time.monotonic(), first
        for images, labels in run.batches(first):
            run.step(outcome.step, images, labels)
            outcome.step = done = outcome.step + 1
            ended = done == run.total
            logged = len(run.history)
            if done % config.log_every == 0 or ended:
                run.log(done, (done - since) * config.training.batch_size / max(time.monotonic() - begun, 1e-9))
            if ended:
                run.warm_up(1.0)
            if run.pairs and (done % config.evaluation.every == 0 or ended):
                paused = time.monotonic()
                outcome.results |= run.evaluate(done)
                run.net.train()
                begun += time.monotonic() - paused
            if writer is not None:
                for line in run.history[logged:]:
                    name = f"{line['set']}/" if "set" in line else ""
                    for key in ("loss", "lr", "exact"):
                        if key in line:
                            writer.add_scalar(name + key, line[key], done)
            if after_step is not None:
                after_step(done)
            number = stop.agreed()
            if number or ended or done % config.checkpoint_every == 0:
                run.save(done)
            if number and not ended:
                outcome.stopped = number
                run.say(
                    f"stopped by {signal.Signals(number).name} after step {done}; the same command goes on from there"
                )
                break
        if outcome.step == run.total and run.rank == 0:
            run.write_result()
        if writer is not None:
            writer.close()
        return outcome
