"""CIFAR-10: 50,000 + 10,000 photographs of ten kinds of things, 32 x 32 pixels, RGB.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. Used in notebook 03 (the error of
L-Softmax by margin). Two contents are told apart: the original, from the binary or the Python version, and one that
went through JPEG, whose pixels are not the original ones and which is called "CIFAR-10 (JPEG)".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from reprolib.data.arrays import Shape, array_text, check_digest, read_arrays, text_array
from reprolib.data.fetching import Arrays, Recipe
from reprolib.data.files import DataCorrupted, Tree
from reprolib.data.pickles import read_pickle
from reprolib.data.pixels import decode_image

ORIGINAL, JPEG = "CIFAR-10", "CIFAR-10 (JPEG)"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIDE = 32
PIXELS = 3 * SIDE * SIDE
# MD5 of the archives, and of the pickles in the Python version
ARCHIVES_MD5 = {"c32a1d4ab5d03f1284b67883e8d87530": "binary", "c58f30108f718f92721af3b95e74349a": "Python"}
PICKLES_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
JPEG_FILES = ("cifar10_train_jpeg.npz", "cifar10_test_jpeg.npz")
Content = tuple[np.ndarray, np.ndarray]


class CifarRecipe(Recipe):
    """One .npz of uint8 arrays, `images` (60000, 3, 32, 32), `labels`, `variant`, with their checksum.

    The first 50,000 images are for training. Archives are verified by their published MD5 and so are pickles, before
    they are read; of the extracted files of the binary version only the structure and the class counts can be.
    """

    name = "cifar10"
    file = "cifar10.npz"
    mirrors = ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",)
    raw_folders = ("cifar10_jpeg", "cifar-10-batches-bin", "cifar-10-batches-py")
    advice = (
        "Connect to the network, or name with --from cifar-10-binary.tar.gz, cifar-10-python.tar.gz, a folder with "
        "the files of one of them, or one with cifar10_train_jpeg.npz and cifar10_test_jpeg.npz."
    )
    batch = 10_000
    archives_md5 = ARCHIVES_MD5
    pickles_md5 = PICKLES_MD5

    @property
    def shapes(self) -> dict[str, Shape]:  # type: ignore[override]
        # five batches for training, one for testing
        return {"images": (6 * self.batch, 3, SIDE, SIDE), "labels": (6 * self.batch,), "variant": (None,)}

    def open(self, raw: bytes, name: str, label: str) -> Tree:
        if name.lower().endswith((".tar.gz", ".tgz")):
            check_digest(raw, self.archives_md5, label, "md5")
        return super().open(raw, name, label)

    def verify(self, arrays: Arrays, digest: str, label: str) -> None:
        variant = array_text(arrays["variant"], label)
        if variant not in (ORIGINAL, JPEG):
            raise DataCorrupted(f"{label} holds {variant[:40]!r}, neither {ORIGINAL!r} nor {JPEG!r}")
        labels = arrays["labels"]
        for part, size in ((labels[: -self.batch], 5 * self.batch), (labels[-self.batch :], self.batch)):
            counts = np.bincount(part, minlength=len(CLASSES)).tolist()
            if counts != [size // len(CLASSES)] * len(CLASSES):
                raise DataCorrupted(f"{label} is altered: its classes have {counts} images instead of equally many")

    def candidates(self, tree: Tree) -> Iterator[Callable[[], Arrays]]:
        """Takes the six .bin files, the six pickles or the two files of JPEG images, in this order."""
        pickles = list(self.pickles_md5)
        for files, read in (
            ([f"{file}.bin" for file in pickles], self._from_binary),
            (pickles, self._from_pickle),
            (list(JPEG_FILES), self._from_jpeg),
        ):
            places = [tree.named(file) for file in files]
            if all(places):
                yield partial(self._join, tree, [names[0] for names in places], files, read)

    def _join(
        self, tree: Tree, names: list[str], files: list[str], read: Callable[[bytes, str, str], Content]
    ) -> Arrays:
        parts = [
            read(tree.read(name, self.limit), file, f"{name} in {tree.label}")
            for name, file in zip(names, files, strict=True)
        ]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return {"images": images, "labels": labels, "variant": text_array(JPEG if files[0] in JPEG_FILES else ORIGINAL)}

    def _from_binary(self, raw: bytes, file: str, label: str) -> Content:
        """Records of one label byte, then 32 x 32 bytes each of red, green and blue, row by row."""
        if len(raw) != self.batch * (1 + PIXELS):
            raise DataCorrupted(f"{label} has {len(raw)} bytes instead of {self.batch * (1 + PIXELS)}")
        records = np.frombuffer(raw, np.uint8).reshape(self.batch, 1 + PIXELS)
        return self._checked(records[:, 1:], records[:, 0], label)

    def _from_pickle(self, raw: bytes, file: str, label: str) -> Content:
        check_digest(raw, (self.pickles_md5[file],), label, "md5")
        batch = read_pickle(raw, label)
        try:
            return self._checked(np.asarray(batch[b"data"]), np.asarray(batch[b"labels"]), label)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            raise DataCorrupted(f"{label} does not hold a batch of CIFAR-10 ({error})") from error

    def _checked(self, pixels: np.ndarray, labels: np.ndarray, label: str) -> Content:
        shapes = pixels.shape == (self.batch, PIXELS) and labels.shape == (self.batch,)
        if not shapes or pixels.dtype != np.uint8 or labels.min() < 0 or labels.max() >= len(CLASSES):
            raise DataCorrupted(f"{label} does not hold {self.batch} images with labels from 0 to {len(CLASSES) - 1}")
        return pixels.reshape(-1, 3, SIDE, SIDE), labels.astype(np.uint8)

    def _from_jpeg(self, raw: bytes, file: str, label: str) -> Content:
        """Arrays `prefix` (the header that all files share), `data` (the rest of each), `offsets`, `labels`."""
        count = 5 * self.batch if file == JPEG_FILES[0] else self.batch
        kinds = {"prefix": "|u1", "data": "|u1", "labels": "|u1", "offsets": "<i8"}
        arrays = read_arrays(raw, label, {key: (dtype, (None,)) for key, dtype in kinds.items()})
        prefix, data, labels, offsets = (arrays[key] for key in kinds)
        if len(offsets) != count + 1 or len(labels) != count or labels.max() >= len(CLASSES):
            raise DataCorrupted(f"{label} does not hold {count} images with labels from 0 to {len(CLASSES) - 1}")
        if offsets[0] != 0 or offsets[-1] != len(data) or (np.diff(offsets) <= 0).any():
            raise DataCorrupted(f"{label} is altered: its offsets do not cut {len(data)} bytes into {count} files")
        head, body = prefix.tobytes(), data.tobytes()
        images = np.empty((count, 3, SIDE, SIDE), np.uint8)
        for row in range(count):
            raw = head + body[offsets[row] : offsets[row + 1]]
            image = decode_image(raw, f"image {row} of {label}", (SIDE,), ("JPEG",))
            images[row] = np.asarray(image).transpose(2, 0, 1)
        return images, labels


CIFAR10 = CifarRecipe()
