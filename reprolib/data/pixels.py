"""Pixels: image files decoded with bounds, sizes and colours changed in whole numbers, the same on every machine."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Collection

import numpy as np
import torch
from PIL import Image

from reprolib.data.files import DataCorrupted

SIDE_LIMIT = 4096
SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")


def is_encoded(raw: object) -> bool:
    """Whether `raw` is bytes that begin as a JPEG or PNG file does."""
    return isinstance(raw, bytes) and raw.startswith(SIGNATURES)


def decode_image(
    raw: bytes, label: str, sides: Collection[int] | None = None, formats: tuple[str, ...] = ("JPEG", "PNG")
) -> Image.Image:
    """The RGB image that a file of one of `formats` holds: a square with one of `sides`, else up to 4096 pixels a side.

    The size is checked before a pixel is decoded. Raises `DataCorrupted` naming the file `label`.
    """
    try:
        image = Image.open(io.BytesIO(raw), formats=formats)
        found = f"{image.width} x {image.height}"
        if sides is None and max(image.size) > SIDE_LIMIT:
            raise DataCorrupted(f"{label} has {found} pixels, allowed are {SIDE_LIMIT} a side")
        if sides is not None and (image.width != image.height or image.width not in sides):
            raise DataCorrupted(f"{label} has {found} pixels, allowed are squares of {' or '.join(map(str, sides))}")
        return image.convert("RGB")
    except DataCorrupted:
        raise
    # what Pillow raises for files that are cut off or altered
    except (OSError, ValueError, SyntaxError, EOFError, IndexError, struct.error, zlib.error) as error:
        raise DataCorrupted(f"{label} is no readable {' or '.join(formats)} image ({error})") from error
    except Image.DecompressionBombError as error:
        raise DataCorrupted(f"{label} is far too large ({error})") from error


def decode_tensor(raw: bytes, label: str) -> torch.Tensor:
    """The image that `decode_image` returns, as uint8 (3, H, W), RGB."""
    return torch.from_numpy(np.array(decode_image(raw, label)).transpose(2, 0, 1).copy())


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
