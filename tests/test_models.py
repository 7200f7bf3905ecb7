"""Shapes and sizes of the papers' networks, counted by hand from their tables."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprolib import models


def layers(model: nn.Module, kind: type) -> list:
    return [module for module in model.modules() if isinstance(module, kind)]


def test_lenets_plus_plus_is_table_1_of_the_center_loss_paper():
    model = models.build("lenets++", 2)
    convolutions = layers(model, nn.Conv2d)
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128),
    ]  # fmt: skip
    assert all(c.kernel_size == (5, 5) and c.stride == (1, 1) and c.padding == (2, 2) for c in convolutions)
    assert [p.kernel_size for p in layers(model, nn.MaxPool2d)] == [2, 2, 2]
    assert len(layers(model, nn.PReLU)) == 7
    # 28 -> 14 -> 7 -> 3: 128 x 3 x 3 = 1152 inputs of the 2-D layer
    assert layers(model, nn.Linear)[0].in_features == 1152
    weights = 25 * (1 * 32 + 32 * 32 + 32 * 64 + 64 * 64 + 64 * 128 + 128 * 128) + 1152 * 2
    biases, slopes = 2 * (32 + 64 + 128) + 2, 2 * (32 + 64 + 128) + 2
    assert sum(p.numel() for p in model.parameters()) == weights + biases + slopes


def test_normface_net_is_the_authors_mnist_net():
    model = models.build("normface", 3)
    assert [c.out_channels for c in layers(model, nn.Conv2d)] == [32, 32, 64, 64, 128, 128]
    assert all(c.kernel_size == (3, 3) for c in layers(model, nn.Conv2d))
    assert [(p.kernel_size, p.stride) for p in layers(model, nn.MaxPool2d)] == [(2, 2), (2, 2), (3, 2)]
    assert layers(model, nn.Linear)[-1].out_features == 3


@pytest.mark.parametrize("name", models.NAMES)
def test_embeddings_have_the_asked_dimension_and_any_sign(name):
    torch.manual_seed(0)
    model = models.build(name, 16).eval()
    images = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    features = model(images)
    assert features.shape == (40, 16) and features.dtype == torch.float32
    assert bool((features < 0).any()) and bool((features > 0).any())


@pytest.mark.parametrize("shape", [(1, 32, 32), (1, 56, 46), (1, 112, 92), (3, 32, 32), (3, 64, 64)])
def test_compact_takes_faces_and_colour(shape):
    model = models.build("compact", 8, image_shape=shape)
    images = torch.randint(0, 256, (4, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    features = model(images)
    assert features.shape == (4, 8)
    features.square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.any()) for p in model.parameters())
    # stride 2 with odd kernels halves upwards, three times
    height, width = (-(-side // 8) for side in shape[1:])
    assert layers(model, nn.Linear)[0].in_features == 96 * height * width
    assert layers(model, nn.Conv2d)[0].in_channels == shape[0]


def test_compact_on_grey_digits_is_what_it_always_was():
    """The layers written out in the order in which they draw their weights, bit for bit."""
    torch.manual_seed(3)
    model = models.build("compact", 2)
    torch.manual_seed(3)
    convolutions = [nn.Conv2d(1, 16, 5, 2, 2, bias=False), nn.Conv2d(16, 48, 5, 2, 2, bias=False)]
    convolutions.append(nn.Conv2d(48, 96, 3, 2, 1, bias=False))
    first, last = nn.Linear(96 * 4 * 4, 128, bias=False), nn.Linear(128, 2)
    expected = [*(c.weight for c in convolutions), first.weight, last.weight]
    found = [module.weight for module in layers(model, (nn.Conv2d, nn.Linear))]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    images = torch.randint(0, 256, (5, 1, 28, 28), generator=torch.Generator().manual_seed(4), dtype=torch.uint8)
    x = ((images.float() - 127.5) / 128).contiguous(memory_format=torch.channels_last)
    for convolution in convolutions:
        # a fresh BatchNorm in evaluation mode divides by sqrt(1 + eps)
        x = nn.BatchNorm2d(convolution.out_channels).eval()(convolution(x)).relu()
    x = nn.functional.prelu(nn.BatchNorm1d(128).eval()(first(x.flatten(1))), torch.full((128,), 0.25))
    assert torch.equal(model.eval()(images), last(x))


@pytest.mark.parametrize("shape", [(3, 112, 112), (1, 64, 64), (3, 112, 96)])
def test_sphere4_is_table_2_of_the_sphereface_paper(shape):
    model = models.build("sphere4", 512, image_shape=shape)
    convolutions = layers(model, nn.Conv2d)
    assert [(c.in_channels, c.out_channels) for c in convolutions] == [
        (shape[0], 64),
        (64, 128),
        (128, 256),
        (256, 512),
    ]
    assert all(c.kernel_size == (3, 3) and c.stride == (2, 2) and c.padding == (1, 1) for c in convolutions)
    assert len(layers(model, nn.PReLU)) == 4 and not layers(model, nn.BatchNorm2d)
    # four halvings: 112 -> 7, 96 -> 6, 64 -> 4
    flat = 512 * (shape[1] // 16) * (shape[2] // 16)
    weights = 9 * (shape[0] * 64 + 64 * 128 + 128 * 256 + 256 * 512) + flat * 512
    biases, slopes = 64 + 128 + 256 + 512 + 512, 64 + 128 + 256 + 512
    assert sum(p.numel() for p in model.parameters()) == weights + biases + slopes
    images = torch.randint(0, 256, (2, *shape), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert model(images).shape == (2, 512)
    normed = models.build("sphere4-bn", 512, image_shape=shape)
    # a scale and an offset for each channel replace its bias
    assert sum(p.numel() for p in normed.parameters()) == weights + biases + slopes + 64 + 128 + 256 + 512
    assert normed.eval()(images).shape == (2, 512)


def test_sphere4_keeps_the_size_of_its_signal():
    torch.manual_seed(0)
    model = models.build("sphere4", 64, image_shape=(3, 64, 64)).eval()
    x = torch.randn(8, 3, 64, 64)
    with torch.no_grad():
        spread = float(model.convolutions(x).square().mean())
    # the mean square stays 1 from layer to layer but for the zeros at two of the four borders, which take
    # 1 - (1 - 1/(3 n))^2 of it, n = 32, 16, 8, 4: together 0.72 is left
    assert 0.6 < spread < 0.85


def test_pixels_are_scaled_once():
    pixels = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert models.scale_pixels(pixels).tolist() == [[-127.5 / 128, 127.5 / 128]]
    ready = torch.randn(2, 2)
    assert models.scale_pixels(ready) is ready
    with pytest.raises(TypeError, match="uint8 or floating point"):
        models.scale_pixels(torch.zeros(2, dtype=torch.int64))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match=r"network must be one of 'compact', .* got 'resnet'"):
        models.build("resnet", 2)
    with pytest.raises(ValueError, match="embedding_dim must be an integer >= 1, got 0"):
        models.build("compact", 0)
    for shape in ((28, 28), (0, 28, 28), (1, 11, 28)):
        with pytest.raises(ValueError, match="image_shape must be"):
            models.build("normface", 2, image_shape=shape)
    assert models.build("normface", 2, image_shape=(1, 12, 12)).head[0].in_features == 128
    with pytest.raises(ValueError, match="images must have shape"):
        models.build("compact", 2)(torch.zeros(1, 28, 28))


def test_the_residual_net_halves_four_times_with_a_block_after_the_last_three():
    model = models.residual(128, (1, 48, 48), widths=(32, 64, 128, 192))
    convolutions = layers(model, nn.Conv2d)
    pairs = [(c.in_channels, c.out_channels, c.stride[0]) for c in convolutions]
    expected = [(1, 32, 2)]
    for before, width in ((32, 64), (64, 128), (128, 192)):
        expected += [(before, width, 2), (width, width, 1), (width, width, 1)]
    assert pairs == expected and all(c.kernel_size == (3, 3) for c in convolutions)
    # 48 -> 24 -> 12 -> 6 -> 3
    assert layers(model, nn.Linear)[0].in_features == 192 * 3 * 3
    assert len(layers(model, nn.Dropout)) == 1 and isinstance(model.head[-1], nn.BatchNorm1d)


def test_a_residual_block_adds_its_input():
    model = models.residual(4, (1, 16, 16), widths=(2, 3), dropout=0.0).eval()
    (block,) = layers(model, models._Residual)
    x = torch.randn(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.allclose(block(x) - x, block.body(x), atol=1e-6)
        for part in layers(block, nn.BatchNorm2d):
            part.weight.zero_()
        assert torch.equal(block(x), x)
    with pytest.raises(ValueError, match=r"dropout must be in \[0, 1\), got 1"):
        models.residual(dropout=1.0)
