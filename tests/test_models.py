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


def test_compact_takes_faces():
    model = models.build("compact", 8, image_shape=(1, 56, 46)).eval()
    assert model(torch.zeros(3, 1, 56, 46, dtype=torch.uint8)).shape == (3, 8)


def test_pixels_are_scaled_once():
    pixels = torch.tensor([[0, 255]], dtype=torch.uint8)
    assert models.scale_pixels(pixels).tolist() == [[-127.5 / 128, 127.5 / 128]]
    ready = torch.randn(2, 2)
    assert models.scale_pixels(ready) is ready
    with pytest.raises(TypeError, match="uint8 or floating point"):
        models.scale_pixels(torch.zeros(2, dtype=torch.int64))


def test_wrong_input_is_refused():
    with pytest.raises(ValueError, match="unknown network 'resnet'"):
        models.build("resnet", 2)
    with pytest.raises(ValueError, match="at least 1"):
        models.build("compact", 0)
    with pytest.raises(ValueError, match="images must have shape"):
        models.build("compact", 2)(torch.zeros(1, 28, 28))
