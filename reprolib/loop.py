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
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import Tensor, distributed, nn
from tqdm import tqdm

from reprolib import data, sharded
from reprolib.batches import SIGNALS, Batches, prepare
from reprolib.config import RunConfig
from reprolib.data.files import open_atomic
from reprolib.evaluation import pair_cosines, verification_accuracy
from reprolib.state import State
from reprolib.training import WarmUp, embed, learning_rate, ramp

LOG, RESULT = "log.jsonl", "result.json"


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
        if config.tensorboard and self.rank == 0:
            _summary_writer()
        self.batches = Batches(config, device, stream)
        if left_out := self.batches.left_out:
            self.say(f"{left_out:,} people have fewer than {config.per_class} images and do not take part")
        self.total = self.batches.total
        # read now: a file that is not there is found before anything runs
        self.pairs = {Path(path).stem: data.open_pairs(path) for path in config.evaluation.sets if self.rank == 0}
        self.state = State(config, self.batches, device)
        self.warm_up = WarmUp(self.state.loss, config.training)

    def say(self, text: str) -> None:
        """A line on stderr, from one process."""
        if self.rank == 0:
            print(text, file=self.stream, flush=True)

    def introduce(self, first: int) -> None:
        """What is trained on what, from step `first` on."""
        config, faces = self.config, self.batches
        count = sum(p.numel() for p in self.state.model.parameters())
        self.say(
            f"{config.loss['name']}, {config.network.name} ({count:,} parameters): {len(faces.labels):,} images of "
            f"{faces.num_classes:,} people, {self.total:,} steps of {config.training.batch_size} images, "
            f"{self.world} process(es) on {self.device.type}" + (f", going on from step {first}" if first else "")
        )

    def save(self, step: int) -> None:
        """Write the checkpoint and, beside it, the history."""
        self.state.save(step)
        if self.rank == 0:
            self._write(LOG, "".join(f"{json.dumps(line)}\n" for line in self.state.history))

    def write_result(self) -> None:
        """What the finished run found on each set, beside what its paper reports: a notebook reads it."""
        last = {line["set"]: line for line in self.state.history if "set" in line}
        keys = ("exact", "low", "high", "facenet")
        sets = {name: {key: line[key] for key in keys} for name, line in last.items()}
        document = {"steps": self.total, "seed": self.config.seed, "paper": self.config.paper, "sets": sets}
        self._write(RESULT, f"{json.dumps(document, indent=1)}\n")

    def _write(self, name: str, text: str) -> None:
        with open_atomic(Path(self.config.output) / name) as stream:
            stream.write(text.encode())

    def step(self, step: int, images: Tensor, labels: Tensor) -> None:
        """One step of the optimiser on this process's part of the batch."""
        settings, state, progress = self.config.training, self.state, step / self.total
        images = self.batches.augment(images.to(self.device, non_blocking=True), step)
        labels = labels.to(self.device, non_blocking=True)
        self.warm_up(ramp(settings, progress))
        rate = learning_rate(settings, progress)
        for group in state.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=settings.bf16):
            embeddings = state.net(images)
        embeddings = embeddings.float()
        if state.ranks is not None:
            # DistributedDataParallel divides the sum over the processes by their number
            embeddings.register_hook(lambda gradient: gradient * self.world)
        objective: Any = state.loss if state.ranks is None else state.ranks
        value = (objective.plain_loss if progress < settings.plain else objective)(embeddings, labels)
        state.optimizer.zero_grad(set_to_none=True)
        value.backward()
        if state.ranks is not None:
            state.ranks.reduce_gradients()
        if settings.clip_norm is not None:
            self._clip(settings.clip_norm)
        state.optimizer.step()
        state.running += value.detach()

    def _clip(self, most: float) -> None:
        state = self.state
        if state.ranks is None:
            nn.utils.clip_grad_norm_([p for group in state.optimizer.param_groups for p in group["params"]], most)
            return
        named = [(name, p.grad) for name, p in state.parameters.items() if p.grad is not None]
        gradients = [gradient for _, gradient in named]
        length = sharded.squared_norm(gradients, [not state.is_sharded(name) for name, _ in named]).sqrt()
        factor = (most / (length + 1e-6)).clamp_max(1.0)
        for gradient in gradients:
            gradient.mul_(factor)

    def log(self, done: int, images_per_second: float) -> None:
        """The mean loss since the last line, on stderr and in the history; ValueError where it is no number."""
        before = max((line["step"] for line in self.state.history if "loss" in line), default=0)
        loss = float(self.state.running) / (done - before)
        if not math.isfinite(loss):
            raise ValueError(f"the loss became {loss} before step {done}; lower the learning rate")
        rate = self.state.optimizer.param_groups[0]["lr"]
        self.state.history.append({"step": done, "loss": loss, "lr": rate})
        self.state.running.zero_()
        left = (self.total - done) * self.config.training.batch_size / images_per_second
        self.say(
            f"step {done} of {self.total}: loss {loss:.4f}, lr {rate:.4g}, {images_per_second:,.0f} images a second, "
            f"{tqdm.format_interval(left)} left"
        )

    def evaluate(self, done: int) -> dict[str, float]:
        """10-fold accuracy on each verification set, by process 0."""
        found: dict[str, float] = {}
        for name, pairs in self.pairs.items():
            features = embed_pairs(self.state.model, pairs, self.config, self.device)
            scores = pair_cosines(features[0::2], features[1::2])
            line: dict[str, Any] = {"step": done, "set": name}
            for convention in ("exact", "facenet"):
                result = verification_accuracy(scores, pairs.same, pairs.folds(), convention=convention)
                line[convention] = float(result.accuracy)
                if convention == "exact":
                    found[name] = float(result.accuracy)
                    line |= {"low": float(result.accuracy.low), "high": float(result.accuracy.high)}
                    text = f"{result.accuracy.text(percent=True)} %"
            self.state.history.append(line)
            paper = f", the paper {self.config.paper[name]:g}" if name in self.config.paper else ""
            facenet = f"by insightface's threshold {100 * line['facenet']:.2f}"
            self.say(f"step {done} of {self.total}: {name} {text}, {facenet}{paper}")
        return found


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ModuleNotFoundError as error:
        raise ValueError(
            "tensorboard: true must have the package tensorboard; pip install 'reprolib[cluster]' brings it"
        ) from error
    return SummaryWriter


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
        first = run.state.resume()
        run.introduce(first)
        writer = None
        if config.tensorboard and run.rank == 0:
            writer = _summary_writer()(Path(config.output) / "tensorboard", purge_step=first)
        outcome, history = Outcome(first, run.total), run.state.history
        outcome.results = {line["set"]: line["exact"] for line in history if "set" in line}
        run.state.net.train()
        run.state.loss.train()
        begun, since = time.monotonic(), first
        for images, labels in run.batches.of_steps(first):
            run.step(outcome.step, images, labels)
            outcome.step = done = outcome.step + 1
            ended = done == run.total
            logged = len(history)
            if done % config.log_every == 0 or ended:
                run.log(done, (done - since) * config.training.batch_size / max(time.monotonic() - begun, 1e-9))
            if ended:
                run.warm_up(1.0)
            if run.pairs and (done % config.evaluation.every == 0 or ended):
                paused = time.monotonic()
                outcome.results |= run.evaluate(done)
                run.state.net.train()
                begun += time.monotonic() - paused
            if writer is not None:
                for line in history[logged:]:
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
