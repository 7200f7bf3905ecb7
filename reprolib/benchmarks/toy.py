"""The 2-D MNIST toys: accuracy and seconds over seeds."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reprolib import data, losses, models, training
from reprolib.training import TrainConfig

SEEDS = (0, 1, 2, 3, 4)

# The recipe of the 2-D toys: plain softmax first, then the scale rises on the circle (notebooks 01 and 02).
TOY_RAMP = {"epochs": 5, "plain": 0.7, "ramp_end": 0.95}
TOYS: dict[str, tuple[Callable[[], nn.Module], TrainConfig, float]] = {
    "softmax": (lambda: losses.Softmax(2, 10, bias=False), TrainConfig(epochs=3), 0.98),
    "l2_softmax": (
        lambda: losses.L2Softmax(2, 10, alpha=10.0, bias=False),
        TrainConfig(**TOY_RAMP, scale_start=4.0),
        0.97,
    ),
    "normface": (
        lambda: losses.NormFace(2, 10, scale=20.0, learn_scale=False),
        TrainConfig(**TOY_RAMP, scale_start=6.0),
        0.97,
    ),
}


def toy(arguments: argparse.Namespace) -> dict[str, Any]:
    """Test accuracy and seconds of the 2-D MNIST toy for each loss over five seeds, with the accuracy wanted."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    mnist = data.load("mnist", device=device)
    result: dict[str, Any] = {"device": device.type, "threads": torch.get_num_threads()}
    for name, (make_loss, config, wanted) in TOYS.items():
        accuracies, seconds = [], []
        for seed in SEEDS:
            began = time.perf_counter()
            trained = training.fit(
                lambda: models.build("compact", 2),
                make_loss,
                mnist.train_images,
                mnist.train_labels,
                config,
                seed=seed,
                label=f"{name} {seed}",
            )
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(round(time.perf_counter() - began, 1))
            accuracy = training.accuracy(trained.model, trained.loss, mnist.test_images, mnist.test_labels)
            accuracies.append(round(accuracy, 4))
            print(f"{name} seed {seed}: {accuracies[-1]:.2%} in {seconds[-1]} s", file=sys.stderr)
        reached = sum(accuracy >= wanted for accuracy in accuracies)
        result[name] = {"accuracy": accuracies, "wanted": wanted, "seeds_reached": reached, "seconds": seconds}
    return result
