"""The verification sets of the insightface project: `lfw.bin`, `agedb_30.bin`, `cfp_fp.bin`, `calfw.bin`, `cplfw.bin`.

Each is a pickle of two lists: 2N JPEG or PNG files, those of pair i at 2i and 2i + 1, and N truth values, whether the
pair shows one person (insightface, `load_bin` of its verification). The files are bytes, or arrays uint8 in some sets,
the truth values Python's or numpy's. The pairs lie fold by fold, genuine and impostor in blocks inside of each fold.

A pickle can call anything, and these come without a checksum. So it is read with stand-ins for the few names that such
lists need: nothing else is looked up, and not even numpy is called with what the file says.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch

from reprolib.data.files import ArrayUnpickler, DataCorrupted, write_atomic
from reprolib.data.pixels import decode_tensor, is_encoded


class _Dtype:
    """Stands for `numpy.dtype`; `code` is "u1" or "b1", of which a byte order says nothing."""

    def __init__(self, code: str | bytes, *_: object) -> None:
        self.code = code.decode("ascii") if isinstance(code, bytes) else code
        if self.code not in ("u1", "b1"):
            raise pickle.UnpicklingError(f"the pickle holds numpy values of type {self.code!r}, allowed are u1 and b1")

    def __setstate__(self, state: object) -> None:
        pass


class _Array:
    """Stands for a `numpy.ndarray` of one dimension with the type `code`; `raw` are its bytes."""

    code, raw = "", b""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, _, raw = state
        if not isinstance(raw, (bytes, bytearray)) or shape != (len(raw),):
            raise pickle.UnpicklingError(f"the pickle holds an array of shape {shape}, but not its bytes in a row")
        self.code, self.raw = dtype.code, bytes(raw)


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _frombuffer(raw: bytes, dtype: _Dtype, shape: tuple, *_: object) -> _Array:
    found = _Array()
    found.__setstate__((1, shape, dtype, False, raw))
    return found


def _scalar(dtype: _Dtype, raw: bytes) -> bool:
    if dtype.code != "b1" or raw not in (b"\0", b"\1"):
        raise pickle.UnpicklingError(f"the pickle holds the numpy scalar {dtype.code} {raw!r}, which is no truth value")
    return raw == b"\1"


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for `codecs.encode`, as which Python 3 writes bytes in protocol 2."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"the pickle holds a text in {encoding!r} instead of bytes")
    return text.encode("latin1")


class _PairUnpickler(ArrayUnpickler):
    _ALLOWED: ClassVar[dict[tuple[str, str], object]] = {
        ("numpy", "ndarray"): _Array,
        ("numpy", "dtype"): _Dtype,
        ("_codecs", "encode"): _latin1,
        # numpy 2 renamed the package
        **{
            (f"numpy.{core}.{module}", name): stand_in
            for core in ("core", "_core")
            for module, name, stand_in in (
                ("multiarray", "_reconstruct", _reconstruct),
                ("multiarray", "scalar", _scalar),
                ("numeric", "_frombuffer", _frombuffer),
            )
        },
    }


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
            raise ValueError(f"same has to be a row of bool, not {self.same.dtype} {tuple(self.same.shape)}")
        if len(self.same) == 0 or len(self.encoded) != 2 * len(self.same):
            raise ValueError(f"{self.name}: {len(self.encoded)} images for {len(self.same)} pairs, two each are needed")
        for place, image in enumerate(self.encoded):
            if not is_encoded(image):
                raise ValueError(f"image {place} of {self.name} is not the bytes of a JPEG or PNG file")

    def __len__(self) -> int:
        return len(self.same)

    def pair(self, i: int) -> torch.Tensor:
        """Both images of pair `i`, uint8 (2, 3, H, W), RGB; raises `ValueError` unless they exist and are as large."""
        if not 0 <= i < len(self):
            raise ValueError(f"the pair has to be from 0 to {len(self) - 1}, not {i}")
        return self._stack(range(i, i + 1))[0]

    def batches(self, size: int) -> Iterator[torch.Tensor]:
        """All pairs in order, `size` at a time: uint8 (b, 2, 3, H, W), RGB, the last b may be smaller.

        Raises `ValueError` for a size below 1, an image that cannot be decoded and images that differ in size.
        """
        if size < 1:
            raise ValueError(f"a batch has to have at least one pair, not {size}")
        return (self._stack(range(i, min(i + size, len(self)))) for i in range(0, len(self), size))

    def folds(self, count: int = 10) -> torch.Tensor:
        """Fold of each pair, int64 (N,): `count` consecutive ones, the first N % count of them one pair larger."""
        if not 2 <= count <= len(self):
            raise ValueError(f"there can be 2 to {len(self)} folds of {len(self)} pairs, not {count}")
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

    Raises `DataCorrupted` naming it for a pickle that is cut off or asks for anything but bytes, numbers, lists and
    arrays of bytes or truth values, before that is looked up, and for other contents; `OSError` if it cannot be read.
    """
    path = Path(path)
    raw = path.read_bytes()
    try:
        _verify_lengths(raw)
        loaded = _PairUnpickler(io.BytesIO(raw), encoding="bytes").load()
    # an altered pickle can do any harmless thing at the wrong place, and so raise any exception
    except Exception as error:
        raise DataCorrupted(f"{path} holds no readable pickle of pairs ({error or type(error).__name__})") from error
    if not isinstance(loaded, (tuple, list)) or len(loaded) != 2 or not isinstance(loaded[0], (tuple, list)):
        raise DataCorrupted(f"{path} does not hold two lists, of images and of truth values")
    images, same = loaded
    if isinstance(same, _Array) and same.code == "b1" and set(same.raw) <= {0, 1}:
        same = [value == 1 for value in same.raw]
    if not isinstance(same, (tuple, list)) or not all(isinstance(value, bool) for value in same):
        raise DataCorrupted(f"{path} does not hold a list of truth values, True or False, as its second part")
    encoded = tuple(image.raw if isinstance(image, _Array) and image.code == "u1" else image for image in images)
    try:
        return FacePairs(encoded, torch.tensor(same, dtype=torch.bool), str(path))
    except ValueError as error:
        raise DataCorrupted(str(error)) from error


def _verify_lengths(raw: bytes) -> None:
    """Raises `ValueError` unless all lengths (by `genops`) and memo numbers in the pickle `raw` are within it.

    The unpickler would take memory for them first.
    """
    for operation, argument, position in pickletools.genops(raw):
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and not 0 <= argument < len(raw):
            raise ValueError(f"byte {position} asks for {argument} memo entries in {len(raw)} bytes")


def write_facebin(path: str | Path, pairs: Sequence[tuple[bytes, bytes]], same: Sequence[bool] | torch.Tensor) -> None:
    """Writes N pairs of JPEG or PNG files, and whether each shows one person, as `load_facebin` reads them.

    The file is written to a temporary name, then renamed. Raises `ValueError` for no pairs, other lengths, types or
    kinds of files; then nothing has changed on the disk.
    """
    checked = FacePairs(tuple(image for first, second in pairs for image in (first, second)), torch.as_tensor(same))
    write_atomic(Path(path), pickle.dumps((list(checked.encoded), checked.same.tolist()), protocol=4))
