"""The 2-D and 3-D toys of the papers: does every loss train on MNIST, in how many seconds, over how many seeds?"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from benchmarks.kit import count, show
from reprolib import data, losses, models, training
from reprolib.training import TrainConfig

# The recipe of the toys: plain softmax first, then scale and margin rise on the circle (notebooks 01 to 05).
RAMP: dict[str, Any] = {"epochs": 5, "plain": 0.7, "ramp_end": 0.95}


class Toy(NamedTuple):
    """A loss on embeddings of `dim` components, how it is trained, and the accuracy wanted."""

    dim: int
    make_loss: Callable[[], nn.Module]
    config: TrainConfig
    wanted: float = 0.97


TOYS: dict[str, Toy] = {
    "softmax": Toy(2, lambda: losses.Softmax(2, 10, bias=False), TrainConfig(epochs=3), 0.98),
    "l2_softmax": Toy(2, lambda: losses.L2Softmax(2, 10, alpha=10.0, bias=False), TrainConfig(**RAMP, scale_start=4.0)),
    "normface": Toy(
        2, lambda: losses.NormFace(2, 10, scale=20.0, learn_scale=False), TrainConfig(**RAMP, scale_start=6.0)
    ),
    "a_softmax": Toy(2, lambda: losses.ASoftmax(2, 10, m=2), TrainConfig(**RAMP)),
    "cosface": Toy(2, lambda: losses.CosFace(2, 10, m=0.15, scale=24.0), TrainConfig(**RAMP, scale_start=5.0)),
    "arcface": Toy(2, lambda: losses.ArcFace(2, 10, m=0.3, scale=24.0), TrainConfig(**RAMP, scale_start=5.0)),
    "a_softmax_3d": Toy(3, lambda: losses.ASoftmax(3, 10, m=3), TrainConfig(**{**RAMP, "epochs": 4})),
    "arcface_3d": Toy(
        3,
        lambda: losses.ArcFace(3, 10, m=0.3, scale=24.0),
        TrainConfig(**{**RAMP, "epochs": 4}, scale_start=5.0),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Seeds and losses."""
    parser.add_argument("--seeds", type=count, default=5, metavar="N", help="default: 5")
    parser.add_argument("--only", nargs="+", choices=list(TOYS), default=list(TOYS), metavar="LOSS")


def run(arguments: argparse.Namespace, mnist: data.ImageDataset | None = None) -> dict[str, Any]:
    """Test accuracy and seconds of the MNIST toy for each loss over `--seeds` seeds, with the accuracy wanted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mnist = data.load("mnist", device=device) if mnist is None else mnist
    result: dict[str, Any] = {"device": device.type}
    rows = []
    for name in arguments.only:
        chosen = TOYS[name]
        accuracies, seconds = [], []
        for seed in range(arguments.seeds):
            began = time.perf_counter()
            trained = training.fit(
                functools.partial(models.build, "compact", chosen.dim),
                chosen.make_loss,
                mnist.train_images,
                mnist.train_labels,
                chosen.config,
                seed=seed,
                label=f"{name} {seed}",
            )
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(round(time.perf_counter() - began, 1))
            accuracy = training.accuracy(trained.model, trained.loss, mnist.test_images, mnist.test_labels)
            accuracies.append(round(accuracy, 4))
            print(f"{name} seed {seed}: {accuracies[-1]:.2%} in {seconds[-1]} s", file=sys.stderr)
        reached = sum(accuracy >= chosen.wanted for accuracy in accuracies)
        result[name] = {"accuracy": accuracies, "wanted": chosen.wanted, "seeds_reached": reached, "seconds": seconds}
        rows.append([name, min(accuracies), max(accuracies), chosen.wanted, f"{reached} of {len(accuracies)}"])
    show("MNIST toys", ["loss", "lowest", "highest", "wanted", "seeds that reach it"], rows)
    return result
