"""What the processes of the tests of several processes do; a module of its own, so that they can import it."""

from __future__ import annotations

import io
import os
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import distributed, multiprocessing

from reprolib import config, losses
from reprolib.data import write_facebin, write_records
from reprolib.loop import train
from reprolib.losses import AnnealedLambda, CenterLoss, JointLoss, PartialFC
from reprolib.sharded import ShardedLoss, block
from reprolib.state import read_checkpoint

IN_FEATURES, CLASSES, BATCH = 6, 11, 8
# neither: what a process makes of its part of a batch depends on nothing else
PLAIN = {"network": {"name": "sphere4", "embedding_dim": 16}}
# what draws random numbers and what has buffers: dropout, BatchNorm
RESIDUAL = {"network": {"name": "residual", "embedding_dim": 16, "widths": [4, 8], "dropout": 0.2}}


def made() -> dict[str, torch.nn.Module]:
    """Every loss with a class count that neither 2 nor 4 divides, in float64, the same on every process."""
    torch.manual_seed(3)
    d, c = IN_FEATURES, CLASSES
    found: dict[str, torch.nn.Module] = {
        "softmax": losses.Softmax(d, c),
        "l2_softmax": losses.L2Softmax(d, c, scale=8.0, learn_scale=True),
        "normface": losses.NormFace(d, c, scale=9.0),
        "l_softmax": losses.LSoftmax(d, c, margin=3),
        "a_softmax": losses.ASoftmax(d, c, margin=4, annealing=AnnealedLambda.preset("sphereface")),
        "cosface": losses.CosFace(d, c, margin=0.3, scale=20.0),
        "arcface": losses.ArcFace(d, c, margin=0.5, scale=30.0),
        "arcface_official": losses.ArcFace(d, c, gradient="straight_through", scale=30.0),
        "combined": losses.CombinedMargin(d, c, m1=1.1, m2=0.2, m3=0.1, scale=16.0),
        "partial_all": losses.ArcFace(d, c, scale=30.0, sampler=PartialFC(1.0)),
        "center": JointLoss(losses.Softmax(d, c), CenterLoss(c, d, reduction="mean"), 0.1),
    }
    for loss in found.values():
        head = getattr(loss, "head", loss)
        if head.bias is not None:
            torch.nn.init.normal_(head.bias)
    return {name: loss.double() for name, loss in found.items()}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(BATCH, IN_FEATURES, generator=generator, dtype=torch.float64)
    return features, torch.randint(CLASSES, (BATCH,), generator=generator)


def results(rank: int, world: int, folder: Path) -> None:
    """Loss, gradients and centres of every loss on `world` processes; written by each for the test to compare."""
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
    torch.set_num_threads(1)
    features, labels = batch()
    rows, found = block(BATCH, rank, world), {}
    for name, loss in made().items():
        sharded = ShardedLoss(loss)
        for plain in (False, True):
            x = features[rows].clone().requires_grad_()
            loss.zero_grad(set_to_none=True)
            value = (sharded.plain_loss if plain else sharded)(x, labels[rows])
            value.backward()
            sharded.reduce_gradients()
            gradients = {key: p.grad for key, p in loss.named_parameters() if p.grad is not None}
            # a copy: buffers go on changing
            state = {key: sharded.whole(key, value.clone()) for key, value in loss.state_dict().items()}
            whole = {key: sharded.whole(key, gradient) for key, gradient in gradients.items()}
            found[name, plain] = {"value": value.detach(), "x": x.grad, "gradients": whole, "state": state}
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


def write_faces(folder: Path, people: int = 7, each: int = 8, size: int = 24) -> None:
    """`train.rec`, and `pairs.bin` of the same people: a pattern a person, with noise."""
    generator = np.random.default_rng(1)
    patterns = generator.integers(40, 216, (people, size, size, 3))
    images, labels = [], []
    for person in range(people):
        for _ in range(each):
            pixels = (patterns[person] + generator.normal(0, 40, (size, size, 3))).clip(0, 255).astype(np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            images.append(stream.getvalue())
            labels.append(person)
    write_records(folder / "train.rec", images, labels, identities=True)
    pairs, same = [], []
    for k in range(40):
        first, second = k % people * each + k % 4, (k % people if k % 2 else (k + 1) % people) * each + 4 + k % 3
        pairs.append((images[first], images[second]))
        same.append(bool(k % 2))
    write_facebin(folder / "pairs.bin", pairs, same)


def settings(folder: Path, output: str, **changes: Any) -> config.RunConfig:
    """A run of 12 steps on `write_faces`' images; `changes` are dotted names with `__` for the dot."""
    values: dict[str, Any] = {
        "data": {"path": str(folder / "train.rec")},
        "network": {"name": "compact", "embedding_dim": 16, "widths": [8, 16], "kernels": [3, 3], "hidden": 32},
        "loss": {"name": "arcface", "scale": 12.0, "margin": 0.3},
        "training": {
            "steps": 12,
            "batch_size": 16,
            "lr": 0.05,
            "warmup": 0.1,
            "ramp_end": 0.5,
            "flip": True,
            "shift": 2,
        },
        "output": str(folder / output),
        "log_every": 4,
        "checkpoint_every": 5,
    }
    for name, value in changes.items():
        config.override(values, name.replace("__", "."), value)
    return config.parse(values)


@dataclass(frozen=True)
class Part:
    """A run, or a part of one, on `world` processes; process 1 gets SIGTERM after step `stop_at`, if that is not 0.

    `copy_of` is the output that it goes on from, if not its own; `of_1` the output of process 1, as if it saw another
    disk; `refused` what `train` says.
    """

    world: int
    output: str
    changes: dict[str, Any]
    stop_at: int = 0
    copy_of: str | None = None
    of_1: str | None = None
    refused: str | None = None

    def run(self, rank: int, folder: Path, meet: Path) -> None:
        """What process `rank` does of it."""
        if self.copy_of is not None and rank == 0:
            shutil.copytree(folder / self.copy_of, folder / self.output)
        distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=self.world)

        def after_step(done: int) -> None:
            if done == self.stop_at and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        try:
            made = settings(folder, self.of_1 or self.output if rank == 1 else self.output, **self.changes)
            outcome = train(made, device="cpu", after_step=after_step)
        except ValueError as error:
            assert self.refused is not None and self.refused in str(error), error
        else:
            assert self.refused is None and outcome.stopped == (signal.SIGTERM if self.stop_at else None)
        distributed.destroy_process_group()


def run_parts(rank: int, folder: Path, parts: Sequence[Part]) -> None:
    """What process `rank` does of all `parts`, one after the other."""
    torch.set_num_threads(1)
    for number, part in enumerate(parts):
        if rank < part.world:
            part.run(rank, folder, folder / f"meet-{number}")


def final(folder: Path, output: str) -> dict:
    """All that a checkpoint holds of weights and state, by name."""
    state = read_checkpoint(folder / output / "checkpoint.pt")
    parts = {f"{part}.{name}": value for part in ("model", "loss", "momentum") for name, value in state[part].items()}
    return parts | {"step": torch.tensor(state["step"])}


def assert_same(first: dict, second: dict, tolerance: float = 0.0) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        if tolerance == 0.0:
            assert torch.equal(value, second[name]), name
        else:
            assert torch.allclose(value.double(), second[name].double(), rtol=0, atol=tolerance), name


def run(folder: Path, output: str, stop_at: int = 0, **changes):
    """`train`, with SIGTERM after step `stop_at`."""

    def after_step(done: int) -> None:
        if done == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    return train(settings(folder, output, **changes), device="cpu", after_step=after_step)


def processes(folder: Path, *parts: Part) -> None:
    """Run all `parts` by the same processes, since these take long to start."""
    multiprocessing.spawn(run_parts, (folder, parts), nprocs=max(part.world for part in parts))


def environment() -> dict[str, str]:
    """For child processes: the tree that is tested, one thread."""
    root = Path(__file__).resolve().parents[1]
    paths = os.pathsep.join(filter(None, [str(root), str(root / "tests"), os.environ.get("PYTHONPATH")]))
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
