"""A training step of every loss on a pretended accelerator: no mix of devices, no host read, no CPU generator."""

from __future__ import annotations

import itertools

import pytest
import torch

from reprolib import losses
from reprolib.losses import AnnealedLambda, CenterLoss, JointLoss, PartialFC
from tests.device_discipline import DeviceDiscipline, pretended

N, D, C = 12, 8, 40
FUSED = {
    "softmax": lambda **o: losses.Softmax(D, C, **o),
    "l2": lambda **o: losses.L2Softmax(D, C, learn_scale=True, **o),
    "normface": lambda **o: losses.NormFace(D, C, **o),
    "lsoftmax": lambda **o: losses.LSoftmax(D, C, annealing=AnnealedLambda.preset("sphereface"), **o),
    "asoftmax": lambda **o: losses.ASoftmax(D, C, **o),
    "cosface": lambda **o: losses.CosFace(D, C, drop=2.0**-24, **o),
    "arcface": lambda **o: losses.ArcFace(D, C, guard="hard", **o),
    "combined": lambda **o: losses.CombinedMargin(D, C, **o),
}
HEADS = {
    **{
        f"{name}, {kind}": (lambda build=build, option=option: build(**option()))
        for (name, build), (kind, option) in itertools.product(
            FUSED.items(),
            {
                "fused": dict,
                "reference": lambda: {"implementation": "reference"},
                "Partial FC": lambda: {"sampler": PartialFC(0.5, corrected=True)},
            }.items(),
        )
    },
    "caffe": lambda: losses.ASoftmax(D, C, gradient="caffe"),
    "joint": lambda: JointLoss(losses.ArcFace(D, C), CenterLoss(C, D, reduction="mean"), 0.1),
    "center": lambda: CenterLoss(C, D, update="caffe"),
    "c-contrastive": lambda: losses.CContrastive(D, C),
    "c-triplet": lambda: losses.CTriplet(D, C),
}


def batch(dtype: torch.dtype = torch.float32):
    return pretended(torch.randn(N, D).to(dtype).requires_grad_()), pretended(torch.randint(0, C, (N,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", HEADS)
def test_a_training_step_of_a_head(name, dtype):
    head, (x, y) = pretended(HEADS[name]()), batch(dtype)
    with DeviceDiscipline():
        if hasattr(head, "set_warmup"):
            head.set_warmup(strength=0.5)
        head(x, y).backward()
        if hasattr(head, "plain_loss"):
            head.plain_loss(x, y).backward()
        if hasattr(head, "logits"):
            assert head.logits(x).shape == (N, C)
    assert all(t.grad is not None for t in (x, *head.parameters()))


@pytest.mark.parametrize(
    "name, loss",
    {
        "contrastive": lambda x, y: losses.contrastive_loss(x, x.flip(0), y == y.flip(0), 1.0),
        "normface pairs": lambda x, y: losses.contrastive_loss(x, x.flip(0), y == y.flip(0), 1.0, form="normface"),
        "triplet": lambda x, y: losses.triplet_loss(x, x.flip(0), x.roll(1, 0), 0.2),
        "soft triplet": lambda x, y: losses.triplet_loss(x, x.flip(0), x.roll(1, 0), soft=True, squared=False),
        "n-pair": lambda x, y: losses.n_pair_loss(x, x.flip(0), y, l2_weight=0.1),
        "intra": lambda x, y: losses.intra_loss(x, x.roll(1, 0), y % N),
        "batch hard": lambda x, y: losses.batch_hard_triplet_loss(x, y % 4, 0.3),
        "inter": lambda x, y: losses.inter_loss(x, y % N),
    }.items(),
)
def test_a_training_step_of_a_function(name, loss):
    x, y = batch()
    with DeviceDiscipline():
        loss(x, y).backward()
    assert x.grad is not None


def test_what_the_mode_refuses():
    x, on_cpu = torch.ones(3, device="meta"), torch.ones(3)
    refused = {
        "mixes the devices": lambda: x + on_cpu,
        "copies from the device": lambda: x.cpu(),
        "host wait": lambda: x.sum().item(),
        "makes the host": lambda: x.nonzero(),
        "generator of cpu": lambda: torch.rand(3, device="meta", generator=torch.Generator()),
    }
    for message, call in refused.items():
        with pytest.raises(AssertionError, match=message), DeviceDiscipline():
            call()
    with DeviceDiscipline():
        assert (x * 2 + torch.tensor(1.0)).shape == (3,) and on_cpu.sum().item() == 3.0
