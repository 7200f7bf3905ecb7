"""What learns: the papers' small networks, and a compact one that trains in seconds on two CPU cores.

Every network maps images (N, channels, height, width), uint8 in [0, 255] or float already scaled, to embeddings
(N, embedding_dim), not normalised: normalisation belongs to the losses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from reprolib._checks import check_choice, check_count

# three halvings by pooling, the last 3 / 2 without padding, leave nothing of a smaller picture
LEAST_SIDE = 12


def scale_pixels(images: Tensor) -> Tensor:
    """(pixel - 127.5) / 128 for uint8 images, as in the center-loss code; float images pass unchanged."""
    if images.dtype == torch.uint8:
        return images.float().sub_(127.5).div_(128.0)
    if not images.is_floating_point():
        raise TypeError(f"images must be uint8 or floating point, got {images.dtype}")
    return images


class EmbeddingNet(nn.Module):
    """Convolutions, then a head of fully connected layers that ends in the embedding."""

    def __init__(self, convolutions: nn.Module, head: nn.Module, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.convolutions, self.head, self.image_shape = convolutions, head, image_shape

    def forward(self, images: Tensor) -> Tensor:
        """Embeddings (N, embedding_dim) of images (N, *image_shape)."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images must have shape (N, {self.image_shape}), got {tuple(images.shape)}")
        scaled = scale_pixels(images).contiguous(memory_format=torch.channels_last)
        return self.head(self.convolutions(scaled).flatten(1))


def _flat_size(convolutions: nn.Module, image_shape: tuple[int, int, int]) -> int:
    training = convolutions.training
    convolutions.eval()
    with torch.no_grad():
        size = convolutions(torch.zeros(1, *image_shape)).flatten(1).shape[1]
    convolutions.train(training)
    return size


def compact(
    embedding_dim: int,
    image_shape: tuple[int, int, int] = (1, 28, 28),
    widths: Sequence[int] = (16, 48, 96),
    hidden: int = 128,
    kernels: Sequence[int] = (5, 5, 3),
) -> EmbeddingNet:
    """Convolutions of stride 2 with BatchNorm and ReLU, FC ``hidden`` + BatchNorm + PReLU, FC embedding.

    The hidden layer is what makes a 2-D embedding trainable; ReLU does not touch the embedding, so that features may
    take any direction (SphereFace, appendix C).
    """
    layers: list[nn.Module] = []
    channels = image_shape[0]
    for width, kernel in zip(widths, kernels, strict=True):
        layers += [
            nn.Conv2d(channels, width, kernel, stride=2, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        channels = width
    convolutions = nn.Sequential(*layers)
    head = nn.Sequential(
        nn.Linear(_flat_size(convolutions, image_shape), hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.PReLU(hidden),
        nn.Linear(hidden, embedding_dim),
    )
    return EmbeddingNet(convolutions, head, image_shape)


def _pooled_pairs(image_shape: tuple[int, int, int], kernel: int, *pools: nn.Module) -> nn.Sequential:
    """Two convolutions of 32, then two of 64, then two of 128 channels with PReLU; one of ``pools`` after each two."""
    layers: list[nn.Module] = []
    channels = image_shape[0]
    for width, pool in zip((32, 64, 128), pools, strict=True):
        for _ in range(2):
            layers += [nn.Conv2d(channels, width, kernel, padding=kernel // 2), nn.PReLU(width)]
            channels = width
        layers.append(pool)
    return nn.Sequential(*layers)


def lenets_plus_plus(embedding_dim: int = 2, image_shape: tuple[int, int, int] = (1, 28, 28)) -> EmbeddingNet:
    """LeNets++ (center loss, Table 1): (5,32)/1,2 x2, (5,64)/1,2 x2, (5,128)/1,2 x2, each pooled 2/2; PReLU."""
    convolutions = _pooled_pairs(image_shape, 5, *(nn.MaxPool2d(2, 2) for _ in range(3)))
    head = nn.Sequential(nn.Linear(_flat_size(convolutions, image_shape), embedding_dim), nn.PReLU(embedding_dim))
    return EmbeddingNet(convolutions, head, image_shape)


def normface_net(embedding_dim: int = 3, image_shape: tuple[int, int, int] = (1, 28, 28)) -> EmbeddingNet:
    """NormFace's MNIST net: 3x3 convolutions 32, 32, 64, 64, 128, 128 with PReLU, pooling 2/2, 2/2, 3/2, then FC."""
    convolutions = _pooled_pairs(image_shape, 3, nn.MaxPool2d(2, 2), nn.MaxPool2d(2, 2), nn.MaxPool2d(3, 2))
    head = nn.Sequential(nn.Linear(_flat_size(convolutions, image_shape), embedding_dim))
    return EmbeddingNet(convolutions, head, image_shape)


def sphere4(
    embedding_dim: int = 512, image_shape: tuple[int, int, int] = (3, 112, 112), batch_norm: bool = False
) -> EmbeddingNet:
    """The 4-layer network of SphereFace (Table 2): 3x3 convolutions 64, 128, 256, 512 of stride 2, PReLU, then FC.

    The paper's input is 112 x 96 and its FC layer has 512 outputs; any size and number of channels will do here. The
    convolutions start as K. He et al. 2015 derive for PReLU with slope 1/4, which keeps the variance of the signal.
    With ``batch_norm``, which the paper does not use, each convolution gets one in the place of its bias: without it
    a few thousand images are too few to start from.
    """
    layers: list[nn.Module] = []
    channels = image_shape[0]
    for width in (64, 128, 256, 512):
        convolution = nn.Conv2d(channels, width, 3, stride=2, padding=1, bias=not batch_norm)
        nn.init.kaiming_normal_(convolution.weight, a=0.25)
        if convolution.bias is not None:
            nn.init.zeros_(convolution.bias)
        layers += [convolution, *([nn.BatchNorm2d(width)] if batch_norm else []), nn.PReLU(width)]
        channels = width
    convolutions = nn.Sequential(*layers)
    head = nn.Sequential(nn.Linear(_flat_size(convolutions, image_shape), embedding_dim))
    return EmbeddingNet(convolutions, head, image_shape)


class _Residual(nn.Module):
    """x + two 3x3 convolutions of x, each with BatchNorm and PReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_convolution(width, width, 1), *_convolution(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _convolution(channels: int, width: int, stride: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return [convolution, nn.BatchNorm2d(width), nn.PReLU(width)]


def residual(
    embedding_dim: int = 128,
    image_shape: tuple[int, int, int] = (1, 48, 48),
    widths: Sequence[int] = (32, 64, 128, 192),
    dropout: float = 0.4,
) -> EmbeddingNet:
    """3x3 convolutions of stride 2, all but the first followed by a residual block; dropout, FC, BatchNorm.

    In the manner of SphereFace's and ArcFace's networks (a residual unit after each halving; dropout, FC and BatchNorm
    make the embedding), small enough for faces of 48 x 48 pixels on one core.
    """
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    layers: list[nn.Module] = []
    channels = image_shape[0]
    for place, width in enumerate(widths):
        layers += _convolution(channels, width, 2)
        layers += [_Residual(width)] if place else []
        channels = width
    convolutions = nn.Sequential(*layers)
    head = nn.Sequential(
        nn.Dropout(dropout),
        nn.Linear(_flat_size(convolutions, image_shape), embedding_dim, bias=False),
        nn.BatchNorm1d(embedding_dim),
    )
    return EmbeddingNet(convolutions, head, image_shape)


_BUILDERS: dict[str, Callable[[int, tuple[int, int, int]], EmbeddingNet]] = {
    "compact": compact,
    "lenets++": lenets_plus_plus,
    "normface": normface_net,
    "sphere4": sphere4,
    "sphere4-bn": partial(sphere4, batch_norm=True),
    "residual": residual,
}
NAMES = tuple(_BUILDERS)


def build(name: str, embedding_dim: int, image_shape: tuple[int, int, int] = (1, 28, 28)) -> EmbeddingNet:
    """The network called ``name`` (one of ``NAMES``), initialised from the global generator.

    Raises:
        ValueError: for an unknown name, ``embedding_dim`` < 1, no channel or a side below 12 pixels.
    """
    check_choice(name, "network", NAMES)
    check_count(embedding_dim, "embedding_dim")
    if len(image_shape) != 3 or image_shape[0] < 1 or min(image_shape[1:]) < LEAST_SIDE:
        raise ValueError(
            f"image_shape must be (channels, height, width) with sides of at least {LEAST_SIDE}, got {image_shape}"
        )
    return _BUILDERS[name](embedding_dim, image_shape)
