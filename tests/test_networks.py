"""The papers' networks: layers and parameters counted anew from the papers' tables, and what others published."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprolib import networks


def built(name: str, dimension: int, shape: tuple[int, int, int]) -> nn.Module:
    """Without memory: only the shapes count."""
    with torch.device("meta"):
        return networks.build(name, dimension, shape)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def convolutions(model: nn.Module) -> list[nn.Conv2d]:
    return [module for module in model.modules() if isinstance(module, nn.Conv2d)]


# SphereFace, Table 2: convolutions of 3 x 3 with so many channels in each stage, the first of each of stride 2
SPHEREFACE = {4: (1, 1, 1, 1), 10: (1, 3, 5, 1), 20: (3, 5, 9, 3), 36: (5, 9, 17, 5), 64: (7, 17, 33, 7)}


@pytest.mark.parametrize("depth", SPHEREFACE)
def test_spherefaces_networks(depth):
    model = built(f"sphere{depth}", 512, (3, 112, 96))
    found = convolutions(model)
    assert len(found) == depth == sum(SPHEREFACE[depth])
    assert [sum(c.out_channels == width for c in found) for width in (64, 128, 256, 512)] == list(SPHEREFACE[depth])
    assert all(c.kernel_size == (3, 3) and c.padding == (1, 1) for c in found)
    assert sum(c.stride == (2, 2) for c in found) == 4
    count, channels = 0, 3
    for width, layers in zip((64, 128, 256, 512), SPHEREFACE[depth], strict=True):
        # weights and bias of the first, weights of the others, a slope a channel of each
        count += 9 * channels * width + width + (layers - 1) * 9 * width * width + layers * width
        channels = width
    # 112 x 96 is halved four times
    count += 512 * 7 * 6 * 512 + 512
    assert parameters(model) == count
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def test_resnet27_of_l2_softmax_normface_and_center_loss():
    model = built("resnet27", 512, (3, 112, 96))
    found = convolutions(model)
    assert len(found) == 27
    assert [sum(c.out_channels == width for c in found) for width in (32, 64, 128, 256, 512)] == [1, 3, 5, 11, 7]
    assert sum(isinstance(module, nn.MaxPool2d) for module in model.modules()) == 4
    steps = 9 * (3 * 32 + 32 * 64 + 64 * 128 + 128 * 256 + 256 * 512) + (32 + 64 + 128 + 256 + 512)
    units = 9 * (2 * 64**2 + 4 * 128**2 + 10 * 256**2 + 6 * 512**2)
    slopes = 32 + 3 * 64 + 5 * 128 + 11 * 256 + 7 * 512
    # 112 - 2 - 2 = 108, 54 - 2 = 52, 26 - 2 = 24, 12 - 2 = 10, 5; and 92, 44, 20, 8, 4 from 96
    assert parameters(model) == steps + units + slopes + 512 * 5 * 4 * 512 + 512


@pytest.mark.parametrize(("name", "units"), [("ir50", (3, 4, 14, 3)), ("ir100", (3, 13, 30, 3))])
def test_arcfaces_networks(name, units):
    model = built(name, 512, (3, 112, 112))
    # 50 and 100 layers: two a unit, the first convolution and the fully connected layer
    assert 2 * sum(units) + 2 == int(name[2:])
    count, channels = 9 * 3 * 64 + 3 * 64, 64
    for width, repeats in zip((64, 128, 256, 512), units, strict=True):
        # BN, convolution, BN, PReLU, convolution, BN
        first = 2 * channels + 9 * channels * width + 3 * width + 9 * width * width + 2 * width
        other = 2 * width + 9 * width * width + 3 * width + 9 * width * width + 2 * width
        count += first + channels * width + 2 * width + (repeats - 1) * other
        channels = width
    count += 2 * 512 + 512 * 7 * 7 * 512 + 512 + 2 * 512
    assert parameters(model) == count
    if name == "ir100":
        # 65.1320 million is what Intel's model zoo states of the authors' MXNet model: a BatchNorm behind a convolution
        # or the fully connected layer is one bias there, those before a unit and before the dropout stay two numbers
        before_units = sum(m.num_features for m in model.modules() if isinstance(m, nn.BatchNorm2d)) - sum(
            c.out_channels for c in convolutions(model)
        )
        slopes = sum(m.num_parameters for m in model.modules() if isinstance(m, nn.PReLU))
        weights = sum(m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear)))
        biases = sum(c.out_channels for c in convolutions(model)) + 512
        assert round((weights + biases + 2 * before_units + slopes) / 1e6, 4) == 65.1320
    assert [type(module).__name__ for module in model.head] == ["Dropout", "Linear", "BatchNorm1d"]
    assert not model.head[2].weight.requires_grad and model.head[0].p == 0.4


def test_mobilefacenet():
    model = built("mobilefacenet", 128, (3, 112, 112))

    def normalised(channels: int, prelu: bool = True) -> int:
        return (3 if prelu else 2) * channels

    def bottleneck(channels: int, width: int, t: int) -> int:
        inner = t * channels
        ways = channels * inner + normalised(inner) + 9 * inner + normalised(inner)
        return ways + inner * width + normalised(width, prelu=False)

    count = 9 * 3 * 64 + normalised(64) + 9 * 64 + normalised(64)
    count += 5 * bottleneck(64, 64, 2) + bottleneck(64, 128, 4) + 6 * bottleneck(128, 128, 2)
    count += bottleneck(128, 128, 4) + 2 * bottleneck(128, 128, 2)
    count += 128 * 512 + normalised(512) + 49 * 512 + normalised(512, prelu=False)
    count += 512 * 128 + normalised(128, prelu=False)
    assert parameters(model) == count
    # the paper says 0.99 million: so it is where each BatchNorm is one bias of the convolution before it
    folded = sum(m.num_features for m in model.modules() if isinstance(m, (nn.BatchNorm2d, nn.BatchNorm1d)))
    assert round((count - folded) / 1e6, 2) == 0.99


@pytest.mark.parametrize("name", networks.NAMES)
def test_each_network_embeds_and_learns(name):
    torch.manual_seed(0)
    model = networks.build(name, 8, (3, 56, 52))
    images = torch.randint(0, 256, (2, 3, 56, 52), dtype=torch.uint8)
    if name == "ir100":
        model.eval()
        with torch.no_grad():
            assert model(images).shape == (2, 8)
        return
    features = model(images)
    assert features.shape == (2, 8)
    features.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters() if p.requires_grad)


def test_refusals_name_what_is_wrong():
    with pytest.raises(ValueError, match=r"network must be one of 'sphere4'.*got 'vgg'"):
        networks.build("vgg", 8, (3, 112, 96))
    with pytest.raises(ValueError, match="options of sphere20 must be among none, got 'dropout'"):
        networks.build("sphere20", 8, (3, 112, 96), dropout=0.1)
    with pytest.raises(ValueError, match="sides from 12 pixels"):
        networks.build("sphere20", 8, (3, 8, 8))
