"""The papers' networks, as their tables and released models state them: for faces of 112 x 96 or 112 x 112 pixels.

    build("sphere64", 512, (3, 112, 96))       # SphereFace, CosFace
    build("ir50", 512, (3, 112, 112))          # ArcFace

| name | paper | what it is |
|---|---|---|
| sphere4, 10, 20, 36, 64 | SphereFace, Table 2 | four stages, each a convolution of stride 2 and its residual units |
| resnet27 | L2-Softmax, NormFace, the released center loss | 27 convolutions, four poolings |
| ir50, ir100 | ArcFace | improved residual units, then BN, dropout, FC, BN |
| mobilefacenet | Chen et al. 2018, Table 1 | inverted bottlenecks, a depthwise convolution over the whole map |

Departures, all of them: the convolutions within SphereFace's and resnet27's residual units have no bias, because the
released models hold it at 0; the released 64-layer model has 7 units in its second stage where Table 2 has 8, and here
stands the table. The network of the center-loss paper's Fig. 4 shares weights locally and its number of layers is
legible from the figure alone: what its authors released, and train in their example, is resnet27.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from reprolib import models
from reprolib._checks import check_choice, check_count, check_number
from reprolib.models import EmbeddingNet

# residual units in each of SphereFace's four stages (Table 2)
SPHERE_UNITS = {"sphere10": (0, 1, 2, 0), "sphere20": (1, 2, 4, 1), "sphere36": (2, 4, 8, 2), "sphere64": (3, 8, 16, 3)}
RESNET27_UNITS = (1, 2, 5, 3)
IR_UNITS = {"ir50": (3, 4, 14, 3), "ir100": (3, 13, 30, 3)}
# t (expansion), c (channels), n (repeats), s (stride of the first), Table 1 of MobileFaceNet
BOTTLENECKS = ((2, 64, 5, 2), (4, 128, 1, 2), (2, 128, 6, 1), (4, 128, 1, 2), (2, 128, 2, 1))


def _caffe_xavier(layer: nn.Conv2d | nn.Linear) -> nn.Module:
    """Weights uniform in +- sqrt(3 / inputs of a unit), bias 0."""
    bound = math.sqrt(3.0 / layer.weight[0].numel())
    nn.init.uniform_(layer.weight, -bound, bound)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class SphereUnit(nn.Module):
    """x + two 3x3 convolutions of x, each with PReLU; weights start from N(0, 0.01^2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            convolution = nn.Conv2d(width, width, 3, padding=1, bias=False)
            nn.init.normal_(convolution.weight, std=0.01)
            layers += [convolution, nn.PReLU(width)]
        self.body = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def sphere(
    embedding_dim: int, image_shape: tuple[int, int, int] = (3, 112, 96), *, units: Sequence[int] = (1, 2, 4, 1)
) -> EmbeddingNet:
    """SphereFace's network of 4 + 2 sum(units) convolutions: 64, 128, 256, 512 channels, PReLU, then FC."""
    layers: list[nn.Module] = []
    channels, height, width = image_shape
    for planes, count in zip((64, 128, 256, 512), units, strict=True):
        layers += [_caffe_xavier(nn.Conv2d(channels, planes, 3, stride=2, padding=1)), nn.PReLU(planes)]
        layers += [SphereUnit(planes) for _ in range(count)]
        channels, height, width = planes, -(-height // 2), -(-width // 2)
    head = nn.Sequential(_caffe_xavier(nn.Linear(channels * height * width, embedding_dim)))
    return EmbeddingNet(nn.Sequential(*layers), head, image_shape)


def resnet27(embedding_dim: int, image_shape: tuple[int, int, int] = (3, 112, 96)) -> EmbeddingNet:
    """27 convolutions of 3x3: 32, then 64 to 512 channels without padding, each pooled 2/2 and followed by units."""
    layers: list[nn.Module] = [_caffe_xavier(nn.Conv2d(image_shape[0], 32, 3)), nn.PReLU(32)]
    channels, (height, width) = 32, (side - 2 for side in image_shape[1:])
    for planes, count in zip((64, 128, 256, 512), RESNET27_UNITS, strict=True):
        # the poolings of the released model round up
        layers += [_caffe_xavier(nn.Conv2d(channels, planes, 3)), nn.PReLU(planes)]
        layers += [nn.MaxPool2d(2, 2, ceil_mode=True), *(SphereUnit(planes) for _ in range(count))]
        channels, height, width = planes, -(-(height - 2) // 2), -(-(width - 2) // 2)
    if min(height, width) < 1:
        raise ValueError(f"image_shape must have sides of at least 50 pixels for resnet27, got {image_shape}")
    head = nn.Sequential(_caffe_xavier(nn.Linear(channels * height * width, embedding_dim)))
    return EmbeddingNet(nn.Sequential(*layers), head, image_shape)


class ImprovedUnit(nn.Module):
    """ArcFace's unit: x + BN-Conv-BN-PReLU-Conv-BN of x; where the size changes, a 1x1 convolution and BN carry x."""

    def __init__(self, channels: int, planes: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, planes, 3, padding=1, bias=False),
            nn.BatchNorm2d(planes),
            nn.PReLU(planes),
            nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(planes),
        )
        self.carry: nn.Module = nn.Identity()
        if stride != 1 or channels != planes:
            self.carry = nn.Sequential(
                nn.Conv2d(channels, planes, 1, stride=stride, bias=False), nn.BatchNorm2d(planes)
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.carry(x) + self.body(x)


def improved_resnet(
    embedding_dim: int,
    image_shape: tuple[int, int, int] = (3, 112, 112),
    *,
    units: Sequence[int] = IR_UNITS["ir50"],
    dropout: float = 0.4,
) -> EmbeddingNet:
    """ArcFace's ResNet: a convolution of 64 channels, four stages of units, then BN-Dropout-FC-BN.

    The last BatchNorm's factor stays 1, as the authors hold it.
    """
    check_number(dropout, "dropout", high=math.nextafter(1.0, 0.0), closed=True)
    channels, height, width = image_shape
    layers: list[nn.Module] = [nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64)]
    channels = 64
    for planes, count in zip((64, 128, 256, 512), units, strict=True):
        for place in range(count):
            layers.append(ImprovedUnit(channels, planes, 1 if place else 2))
            channels = planes
        height, width = -(-height // 2), -(-width // 2)
    for module in (part for layer in layers for part in layer.modules()):
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.1)
    last = nn.BatchNorm1d(embedding_dim)
    last.weight.requires_grad_(False)
    head = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels * height * width, embedding_dim), last)
    return EmbeddingNet(nn.Sequential(*layers, nn.BatchNorm2d(channels)), head, image_shape)


def _convolution(channels: int, planes: int, kernel: int, stride: int, groups: int, prelu: bool) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, planes, kernel, stride, kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    return [convolution, nn.BatchNorm2d(planes), *([nn.PReLU(planes)] if prelu else [])]


class Bottleneck(nn.Module):
    """1x1 to t times the channels, depthwise 3x3, 1x1 without a nonlinearity; + x where the size stays."""

    def __init__(self, channels: int, planes: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.body = nn.Sequential(
            *_convolution(channels, inner, 1, 1, 1, True),
            *_convolution(inner, inner, 3, stride, inner, True),
            *_convolution(inner, planes, 1, 1, 1, False),
        )
        self.adds = stride == 1 and channels == planes

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.adds else self.body(x)


def mobilefacenet(embedding_dim: int = 128, image_shape: tuple[int, int, int] = (3, 112, 112)) -> EmbeddingNet:
    """MobileFaceNet: two convolutions, 15 bottlenecks, 1x1 to 512, a depthwise one of the map's size, 1x1 and BN."""
    channels, height, width = image_shape
    layers = [*_convolution(channels, 64, 3, 2, 1, True), *_convolution(64, 64, 3, 1, 64, True)]
    channels, height, width = 64, -(-height // 2), -(-width // 2)
    for expansion, planes, count, stride in BOTTLENECKS:
        for place in range(count):
            layers.append(Bottleneck(channels, planes, 1 if place else stride, expansion))
            channels = planes
        height, width = -(-height // stride), -(-width // stride)
    layers += _convolution(channels, 512, 1, 1, 1, True)
    whole = nn.Conv2d(512, 512, (height, width), groups=512, bias=False)
    head = nn.Sequential(nn.Linear(512, embedding_dim, bias=False), nn.BatchNorm1d(embedding_dim))
    return EmbeddingNet(nn.Sequential(*layers, whole, nn.BatchNorm2d(512)), head, image_shape)


_BUILDERS: dict[str, tuple[Callable[..., EmbeddingNet], dict[str, Any], tuple[str, ...]]] = {
    "sphere4": (models.sphere4, {}, ("batch_norm",)),
    **{name: (sphere, {"units": units}, ()) for name, units in SPHERE_UNITS.items()},
    "resnet27": (resnet27, {}, ()),
    **{name: (improved_resnet, {"units": units}, ("dropout",)) for name, units in IR_UNITS.items()},
    "mobilefacenet": (mobilefacenet, {}, ()),
    # small ones, for small sets
    "residual": (models.residual, {}, ("widths", "dropout")),
    "compact": (models.compact, {}, ("widths", "hidden", "kernels")),
}
NAMES = tuple(_BUILDERS)


def build(name: str, embedding_dim: int, image_shape: tuple[int, int, int], **options: Any) -> EmbeddingNet:
    """The network `name`, one of `NAMES`, for images of `image_shape` (channels, height, width).

    `options`: `dropout` (ir50, ir100, residual), `widths` (residual, compact), `batch_norm` (sphere4).

    Raises:
        ValueError: for an unknown name or option, and sizes that it cannot take.
    """
    check_choice(name, "network", NAMES)
    check_count(embedding_dim, "embedding_dim")
    builder, own, allowed = _BUILDERS[name]
    for option in options:
        if option not in allowed:
            raise ValueError(f"options of {name} must be among {', '.join(allowed) or 'none'}, got {option!r}")
    if len(image_shape) != 3 or image_shape[0] < 1 or min(image_shape[1:]) < models.LEAST_SIDE:
        raise ValueError(
            f"image_shape must be (channels, height, width), sides from {models.LEAST_SIDE} pixels, got {image_shape}"
        )
    return builder(embedding_dim, image_shape, **own, **options)
