"""Pixels: image files decoded with bounds, sizes and colours changed in whole numbers, the same on every machine."""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
import zlib
from collections.abc import Collection

import numpy as np
import torch
from PIL import Image

from reprolib.data.files import DataCorrupted

SIDE_LIMIT = 4096
# a photograph of more than a million pixels takes more than a byte for a hundred of them
LARGE, PIXELS_A_BYTE = 2**20, 100
# the most scans of a JPEG file; ten are usual, and each costs the time of all pixels
SCAN_LIMIT, SCANNED_LIMIT = 100, 16 * SIDE_LIMIT**2
JPEG, PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"


def is_encoded(raw: object) -> bool:
    """Whether `raw` is bytes that begin as a JPEG or PNG file does."""
    return isinstance(raw, bytes) and raw.startswith((JPEG, PNG))


def _check(size: tuple[int, int], scans: int, raw: bytes, label: str, sides: Collection[int] | None) -> None:
    """Raises `DataCorrupted` for a (width, height) or a number of scans that no honest file has."""
    found = f"{size[0]} x {size[1]}"
    if sides is None and max(size) > SIDE_LIMIT:
        raise DataCorrupted(f"{label} has {found} pixels, allowed are {SIDE_LIMIT} a side")
    if sides is not None and (size[0] != size[1] or size[0] not in sides):
        raise DataCorrupted(f"{label} has {found} pixels, allowed are squares of {' or '.join(map(str, sides))}")
    if size[0] * size[1] > max(LARGE, PIXELS_A_BYTE * len(raw)):
        raise DataCorrupted(f"{label} has {found} pixels in {len(raw)} bytes, which no photograph has")
    if scans > SCAN_LIMIT or scans * size[0] * size[1] > SCANNED_LIMIT:
        raise DataCorrupted(f"{label} has {scans} scans of {found} pixels, which no honest file has")


def _open(raw: bytes, label: str, sides: Collection[int] | None, formats: tuple[str, ...]) -> Image.Image:
    """The image of a file whose size and number of scans are within bounds, its pixels not yet decoded."""
    with warnings.catch_warnings():
        # sizes that Pillow only warns of are refused here
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(raw), formats=formats)
    _check(image.size, _scans(raw) if image.format == "JPEG" else 1, raw, label, sides)
    return image


def _scans(raw: bytes) -> int:
    return raw.count(b"\xff\xda")


def _rgb(image: Image.Image) -> Image.Image:
    """`image` in RGB; of grey levels with 16 bits the upper 8, as OpenCV reads them, since Pillow would clip at 255."""
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


def decode_image(
    raw: bytes, label: str, sides: Collection[int] | None = None, formats: tuple[str, ...] = ("JPEG", "PNG")
) -> Image.Image:
    """The RGB image that a file of one of `formats` holds: a square with one of `sides`, else up to 4096 pixels a side.

    Size and scans are checked before a pixel is decoded; 16 bits become the upper 8. Raises `DataCorrupted` naming the
    file `label`.
    """
    try:
        return _rgb(_open(raw, label, sides, formats))
    except DataCorrupted:
        raise
    except Image.DecompressionBombError as error:
        raise DataCorrupted(f"{label} is far too large ({error})") from error
    # what Pillow raises for files that are cut off or altered
    except (OSError, ValueError, SyntaxError, LookupError, EOFError, struct.error, zlib.error) as error:
        raise DataCorrupted(f"{label} is no readable {' or '.join(formats)} image ({error})") from error


def decode_tensor(raw: bytes, label: str) -> torch.Tensor:
    """The image that `decode_image` returns, as uint8 (3, H, W), RGB.

    JPEG files of 8 bits, grey or in colours, go through torchvision, which takes half the time, if it gives the same
    pixels on this machine.
    """
    if size := _plain_jpeg(raw):
        _check(size, _scans(raw), raw, label, None)
        # what is wrong with a file is said by Pillow
        with contextlib.suppress(RuntimeError):
            if _torchvision_decodes_the_same():
                return _by_torchvision(raw)
    return _by_pillow(raw, label)


def _by_pillow(raw: bytes, label: str) -> torch.Tensor:
    return torch.from_numpy(np.asarray(decode_image(raw, label)).transpose(2, 0, 1).copy())


def _by_torchvision(raw: bytes) -> torch.Tensor:
    # takes a while to import, and is needed for JPEG files only
    from torchvision.io import ImageReadMode, decode_jpeg

    with warnings.catch_warnings():
        # a version that no longer has it is told by an ImportError, and Pillow is used
        warnings.simplefilter("ignore", DeprecationWarning)
        return decode_jpeg(torch.frombuffer(bytearray(raw), dtype=torch.uint8), mode=ImageReadMode.RGB)


def _plain_jpeg(raw: bytes) -> tuple[int, int] | None:
    """(width, height) of a JPEG file with 8 bits in one or three components; None for any other file.

    A segment is 0xff, its kind, two bytes of length and length - 2 more; kinds 0xc0 to 0xc2 are the frame: bits,
    height, width, number of components (ITU-T T.81, B.2.2).
    """
    at = 2
    while raw.startswith(JPEG) and at + 10 <= len(raw) and raw[at] == 0xFF:
        kind, length, bits, height, width, components = struct.unpack_from(">BHBHHB", raw, at + 1)
        if 0xC0 <= kind <= 0xC2:
            return (width, height) if bits == 8 and components in (1, 3) and width and height else None
        # markers without a length, the beginning of the pixels, and fill bytes: Pillow reads on
        if kind < 0xC3 or 0xD0 <= kind <= 0xDA or kind == 0xFF:
            return None
        at += 2 + length
    return None


@functools.lru_cache(maxsize=1)
def _torchvision_decodes_the_same() -> bool:
    """Whether torchvision's libjpeg gives the pixels of Pillow's: coarse colours, grey, several scans."""
    ramp = np.add.outer(np.arange(37) * 5, np.arange(23) * 3)
    picture = Image.fromarray((ramp[..., None] * [1, 2, 3] % 256).astype(np.uint8))
    for mode, options in (("RGB", {"subsampling": 2}), ("RGB", {"progressive": True, "quality": 95}), ("L", {})):
        stream = io.BytesIO()
        picture.convert(mode).save(stream, "JPEG", **options)
        try:
            same = torch.equal(_by_torchvision(stream.getvalue()), _by_pillow(stream.getvalue(), "a pattern"))
        # torchvision may be built without its image library
        except (ImportError, RuntimeError):
            return False
        if not same:
            return False
    return True


def resize_area(images: torch.Tensor, size: int) -> torch.Tensor:
    """uint8 (N, C, S, S) as uint8 (N, C, size, size), size <= S: the mean over the area of each new pixel, halves up.

    New pixel i covers [i S / size, (i + 1) S / size). The overlaps times `size` are whole numbers and sum to S, so
    that all sums stay below 2^24 and are exact in float32. Raises `ValueError` for another size.
    """
    side = images.shape[-1]
    if not 1 <= size <= side or 256 * side * side >= 2**24:
        raise ValueError(f"the size has to be from 1 to {side}, and that below 256, not {size}")
    if size == side:
        return images
    edges = torch.arange(size + 1) * side
    begin, end = torch.arange(side) * size, torch.arange(1, side + 1) * size
    overlap = torch.minimum(edges[1:, None], end) - torch.maximum(edges[:-1, None], begin)
    weights = overlap.clamp_min(0).float()
    sums = weights @ images.float() @ weights.T
    # whole numbers again, because a rounded quotient could step over the half
    area = side * side
    return ((sums.to(torch.int32) + area // 2) // area).to(torch.uint8)


def to_grey(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, H, W), RGB, as uint8 (N, 1, H, W): (299 R + 587 G + 114 B) / 1000, halves up (ITU-R BT.601)."""
    red, green, blue = images.to(torch.int32).split(1, dim=1)
    return ((299 * red + 587 * green + 114 * blue + 500) // 1000).to(torch.uint8)
