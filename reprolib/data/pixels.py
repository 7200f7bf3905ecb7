"""Pixels: image files decoded with bounds, sizes and colours changed in whole numbers, the same on every machine."""

from __future__ import annotations

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


def _open(raw: bytes, label: str, sides: Collection[int] | None, formats: tuple[str, ...]) -> Image.Image:
    """The image of a file whose size and number of scans are within bounds, its pixels not yet decoded."""
    with warnings.catch_warnings():
        # sizes that Pillow only warns of are refused here
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        image = Image.open(io.BytesIO(raw), formats=formats)
    found = f"{image.width} x {image.height}"
    if sides is None and max(image.size) > SIDE_LIMIT:
        raise DataCorrupted(f"{label} has {found} pixels, allowed are {SIDE_LIMIT} a side")
    if sides is not None and (image.width != image.height or image.width not in sides):
        raise DataCorrupted(f"{label} has {found} pixels, allowed are squares of {' or '.join(map(str, sides))}")
    if image.width * image.height > max(LARGE, PIXELS_A_BYTE * len(raw)):
        raise DataCorrupted(f"{label} has {found} pixels in {len(raw)} bytes, which no photograph has")
    scans = raw.count(b"\xff\xda") if image.format == "JPEG" else 1
    if scans > SCAN_LIMIT or scans * image.width * image.height > SCANNED_LIMIT:
        raise DataCorrupted(f"{label} has {scans} scans of {found} pixels, which no honest file has")
    return image


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
    """The image that `decode_image` returns, as uint8 (3, H, W), RGB."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(decode_image(raw, label)).transpose(2, 0, 1)))


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
