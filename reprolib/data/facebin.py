"""The verification sets of the insightface project: `lfw.bin`, `agedb_30.bin`, `cfp_fp.bin`, `calfw.bin`, `cplfw.bin`.

Each is a pickle of two lists: 2N JPEG or PNG files, those of pair i at 2i and 2i + 1, and N truth values, whether the
pair shows one person (insightface, `load_bin` of its verification). The files are bytes, or arrays uint8 in some sets,
the truth values Python's or numpy's. The pairs lie fold by fold, genuine and impostor in blocks inside of each fold.

A pickle can call anything, and these come without a checksum: `reprolib.data.pickles` reads them and calls nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reprolib._checks import check_count
from reprolib.data.files import DataCorrupted, write_atomic
from reprolib.data.pickles import read_pickle
from reprolib.data.pixels import decode_tensor, is_encoded


@dataclass(frozen=True, eq=False)
class FacePairs:
    """N pairs of faces: `encoded` (2N,), JPEG or PNG files, pair i at 2i and 2i + 1; `same` bool (N,); a `name`.

    Images are decoded when asked for, since those of 6,000 pairs of 112 x 112 pixels take 450 MB. Score such a set by
    embedding both images of each pair, `z = model(images.flatten(0, 1))` for each of the `batches`, then
    `verification_accuracy(pair_cosines(z[0::2], z[1::2]), pairs.same, pairs.folds())` of `reprolib.evaluation`, with
    `convention="facenet"` for the threshold that insightface reports. Raises `ValueError` for other lengths or types.
    """

    encoded: tuple[bytes, ...]
    same: torch.Tensor
    name: str = "the pairs"

    def __post_init__(self) -> None:
        if self.same.dtype != torch.bool or self.same.ndim != 1:
            raise ValueError(f"same must be a row of bool, got {self.same.dtype} {tuple(self.same.shape)}")
        images, pairs = len(self.encoded), len(self.same)
        if pairs == 0 or images != 2 * pairs:
            raise ValueError(f"{self.name} must be two images a pair, got {images} for {pairs} pairs")
        for place, image in enumerate(self.encoded):
            if not is_encoded(image):
                raise ValueError(f"image {place} of {self.name} must be the bytes of a JPEG or PNG file")

    def __len__(self) -> int:
        return len(self.same)

    def pair(self, i: int) -> torch.Tensor:
        """Both images of pair `i`, uint8 (2, 3, H, W), RGB; raises `ValueError` unless they exist and are as large."""
        if not 0 <= i < len(self):
            raise ValueError(f"i must be from 0 to {len(self) - 1}, got {i}")
        return self._stack(range(i, i + 1))[0]

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """All pairs in order, `size` at a time: uint8 (b, 2, 3, H, W), RGB, the last b may be smaller.

        Raises `ValueError` for a size below 1, an image that cannot be decoded and images that differ in size.
        """
        check_count(size, "size")
        return (self._stack(range(i, min(i + size, len(self)))) for i in range(0, len(self), size))

    def folds(self, count: int = 10) -> torch.Tensor:
        """Fold of each pair, int64 (N,): `count` consecutive ones, the first N % count of them one pair larger."""
        check_count(count, "count", low=2, high=len(self))
        sizes = [len(self) // count + (fold < len(self) % count) for fold in range(count)]
        return torch.arange(count).repeat_interleave(torch.tensor(sizes))

    def _stack(self, pairs: range) -> torch.Tensor:
        images: list[torch.Tensor] = []
        for place in range(2 * pairs.start, 2 * pairs.stop):
            images.append(decode_tensor(self.encoded[place], f"image {place} of {self.name}"))
            if images[-1].shape != images[0].shape:
                found, first = (tuple(image.shape[1:]) for image in (images[-1], images[0]))
                raise ValueError(f"image {place} of {self.name} has (height, width) {found}, one before it {first}")
        return torch.stack(images).unflatten(0, (-1, 2))


def load_facebin(path: str | Path) -> FacePairs:
    """The pairs in the .bin file `path`, still encoded.

    Files may be bytes, bytearrays or uint8 arrays of shape (n,) or (n, 1), as OpenCV's imencode returns them; truth
    values True and False or the integers 1 and 0, in a list or an array (N,) or (N, 1). Raises `DataCorrupted` naming
    it for other contents and for a pickle that `read_pickle` refuses; `OSError` if it cannot be read.
    """
    path = Path(path)
    loaded = read_pickle(path.read_bytes(), str(path))
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2:
        raise DataCorrupted(f"{path} does not hold two lists, of images and of truth values")
    images, same = loaded
    images = images.tolist() if isinstance(images, np.ndarray) and images.dtype == object else images
    same = same.tolist() if isinstance(same, np.ndarray) else same
    if not isinstance(images, (tuple, list)) or not isinstance(same, (tuple, list)):
        kinds = f"a {type(images).__name__} and a {type(same).__name__}"
        raise DataCorrupted(f"{path} does not hold two lists, of images and of truth values, but {kinds}")
    # one array may stand at many places: each becomes bytes once
    files = {id(image): _file_bytes(image) for image in images}
    try:
        encoded = tuple(files[id(image)] for image in images)
        return FacePairs(encoded, torch.tensor([_truth(value) for value in same]).bool(), str(path))
    except ValueError as error:
        raise DataCorrupted(f"{path} does not hold pairs of faces: {error}") from error


def _file_bytes(image: Any) -> Any:
    """The bytes of a file that is stored as an array; whatever else is left to `FacePairs` to judge."""
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and (image.ndim == 1 or image.shape[1:] == (1,)):
        return image.tobytes()
    return image


def _truth(value: object) -> bool:
    if isinstance(value, (list, np.ndarray)) and len(value) == 1:
        value = value[0]
    if isinstance(value, (bool, np.bool_, int, np.integer)) and value in (0, 1):
        return bool(value)
    kind = f"the integer {str(value)[:20]}" if isinstance(value, (int, np.integer)) else f"a {type(value).__name__}"
    raise ValueError(f"truth values must be True, False, 1 or 0, got {kind}")


def write_facebin(path: str | Path, pairs: Sequence[tuple[bytes, bytes]], same: Sequence[bool] | torch.Tensor) -> None:
    """Writes N pairs of JPEG or PNG files, and whether each shows one person, as `load_facebin` reads them.

    The file is written to a temporary name, then renamed. Raises `ValueError` for no pairs, other lengths, types or
    kinds of files; then nothing has changed on the disk.
    """
    checked = FacePairs(tuple(image for first, second in pairs for image in (first, second)), torch.as_tensor(same))
    write_atomic(Path(path), pickle.dumps((list(checked.encoded), checked.same.tolist()), protocol=4))
