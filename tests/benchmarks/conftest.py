"""The benches' tests: marked slow, at the smallest sizes, what a child process would measure measured here."""

from __future__ import annotations

import importlib
import sys

import pytest
import torch

from benchmarks import heads, kit, miners, partial_fc
from reprolib.data import ImageDataset


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow: what takes seconds and guards no formula")


@pytest.fixture
def in_process(monkeypatch):
    """The limit on memory must not stay in this process."""

    def call(module, function, settings, timeout=0.0):
        return getattr(importlib.import_module(module), function)(**settings)

    for module in (heads, miners, partial_fc):
        monkeypatch.setattr(module, "in_child", call)
        if hasattr(module, "limit_memory"):
            monkeypatch.setattr(module, "limit_memory", lambda total: None)


@pytest.fixture
def without_packages(monkeypatch):
    """No optional package is installed."""
    monkeypatch.setattr(kit.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(sys.modules, "faiss", None)


@pytest.fixture(scope="session")
def images() -> ImageDataset:
    generator = torch.Generator().manual_seed(0)

    def some(count):
        labels = torch.arange(count) % 10
        pixels = torch.randint(0, 60, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
        for image, label in zip(pixels, labels.tolist(), strict=True):
            image[0, 2 * label : 2 * label + 4] = 255
        return pixels, labels

    return ImageDataset("bars", *some(256), *some(100), 10, "bars")
