"""Decoding within bounds: 16-bit grey levels keep their upper half, files that unfold without measure are refused."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from reprolib.data import DataCorrupted
from reprolib.data import pixels as pixels_module
from reprolib.data.pixels import SIDE_LIMIT, decode_image, decode_tensor

RAMP = np.tile(np.arange(0, 2**16, 257, dtype=np.uint16), (5, 1))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file by hand: `rows` with a filter byte each (PNG specification, section 11)."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)), *chunks]
    parts += [(b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "kind", ["grey", "grey and alpha", "colour", "colour and alpha", "grey with a transparent level"]
)
def test_16_bits_become_the_upper_8(kind):
    colour = {"grey": 0, "grey and alpha": 4, "colour": 2, "colour and alpha": 6}.get(kind, 0)
    channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
    values = np.repeat(RAMP[:, :, None], channels, axis=2) ^ np.arange(channels, dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    chunks = [(b"tRNS", b"\0\7")] if "transparent" in kind else []
    found = decode_tensor(png(256, 5, 16, colour, rows, *chunks), "a.png").numpy()
    assert found.shape == (3, 5, 256) and np.array_equal(found, np.broadcast_to(RAMP >> 8, found.shape))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_modes_are_what_pillow_makes_of_them(mode):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 8, 3), dtype=np.uint8)).convert(mode)
    expected = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(decode_tensor(saved(image), "a.png").numpy(), expected)


def test_images_that_unfold_without_measure_are_refused_at_once():
    blank = bytes(SIDE_LIMIT * 3 + 1)
    scan = saved(Image.new("RGB", (2048, 2048)), "JPEG", progressive=True)
    last = scan.rindex(b"\xff\xda")
    bad = {
        "4096 x 4096 pixels in .* bytes": png(SIDE_LIMIT, SIDE_LIMIT, 8, 2, blank * 50),
        "far too large": png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        "allowed are 4096 a side": png(SIDE_LIMIT + 1, 1, 8, 2, bytes(4)),
        "scans of 2048 x 2048 pixels": scan[:-2] + scan[last:-2] * 2000 + scan[-2:],
        "no readable": png(9, 9, 8, 2, b"\0" * 20),
    }
    for message, raw in bad.items():
        start = time.process_time()
        with pytest.raises(DataCorrupted, match=f"a.png .*{message}"):
            decode_tensor(raw, "a.png")
        assert time.process_time() - start < 1
    # usual numbers of scans, large photographs and small blank ones are fine
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (1100, 1000, 3), dtype=np.uint8))
    assert decode_image(saved(noise, "JPEG", progressive=True), "a.jpg").size == (1000, 1100)
    assert decode_image(saved(Image.new("RGB", (1000, 1000))), "a.png").size == (1000, 1000)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(112, 112), (37, 50), (1, 1)])
def test_jpeg_files_have_the_same_pixels_whoever_decodes_them(mode, size):
    pixels = np.random.default_rng(4).integers(0, 256, (*size, 3)).cumsum(1).astype(np.uint8)
    for options in ({}, {"quality": 95, "subsampling": 0}, {"progressive": True}, {"quality": 20, "optimize": True}):
        raw = saved(Image.fromarray(pixels).convert(mode), "JPEG", **options)
        expected = torch.from_numpy(np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).transpose(2, 0, 1).copy())
        assert torch.equal(decode_tensor(raw, "a"), expected)
        assert torch.equal(pixels_module._by_pillow(raw, "a"), expected)
        # four components are left to Pillow
        assert pixels_module._plain_jpeg(raw) == (None if mode == "CMYK" else size[::-1])


def test_a_decoder_with_other_pixels_is_not_used(monkeypatch):
    raw = saved(Image.fromarray(np.random.default_rng(4).integers(0, 256, (20, 30, 3), dtype=np.uint8)), "JPEG")
    expected = decode_tensor(raw, "a")

    def missing(raw):
        raise ImportError("no image library")

    for other in (lambda raw: expected + 1, missing):
        pixels_module._torchvision_decodes_the_same.cache_clear()
        monkeypatch.setattr(pixels_module, "_by_torchvision", other)
        assert torch.equal(decode_tensor(raw, "a"), expected)
    pixels_module._torchvision_decodes_the_same.cache_clear()


@pytest.mark.parametrize("cut", [3, 20, 200, 700, -40, -2])
def test_a_jpeg_file_that_is_cut_off_is_refused_by_name(cut):
    raw = saved(Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 40, 3), dtype=np.uint8)), "JPEG")
    with pytest.raises(DataCorrupted, match=r"b\.jpg is no readable"):
        decode_tensor(raw[:cut], "b.jpg")


def test_a_jpeg_file_of_odd_segments_is_measured_as_pillow_does():
    raw = saved(Image.fromarray(np.random.default_rng(4).integers(0, 256, (40, 24, 3), dtype=np.uint8)), "JPEG")
    assert pixels_module._plain_jpeg(raw) == (24, 40)
    expected = decode_tensor(raw, "a")
    frame = raw.index(b"\xff\xc0")
    # a comment that looks like a frame, fill bytes before a marker
    comment = b"\xff\xfe\x00\x0d\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x00"
    for odd, size in ((comment, (24, 40)), (b"\xff\xff", None)):
        changed = raw[:frame] + odd + raw[frame:]
        assert pixels_module._plain_jpeg(changed) == size
        assert torch.equal(decode_tensor(changed, "a"), expected)
    huge = raw[: frame + 5] + struct.pack(">HH", 9000, 9000) + raw[frame + 9 :]
    with pytest.raises(DataCorrupted, match=r"c\.jpg has 9000 x 9000 pixels, allowed are 4096 a side"):
        decode_tensor(huge, "c.jpg")
