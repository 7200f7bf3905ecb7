"""Verification sets as Python 2, Python 3 and numpy wrote them; anything else in a pickle is refused, not run."""

from __future__ import annotations

import io
import os
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprolib.data import DataCorrupted, FacePairs, load_facebin, write_facebin
from reprolib.evaluation import verification_accuracy


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (6, 5)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


IMAGES = [encoded(seed, "JPEG" if seed % 3 == 0 else "PNG") for seed in range(6)]
SAME = [True, False, True]
PIXELS = np.stack([np.asarray(Image.open(io.BytesIO(raw))).transpose(2, 0, 1) for raw in IMAGES]).reshape(3, 2, 3, 6, 5)


def python2() -> bytes:
    """The pickle that Python 2 writes in protocol 2: its strings are bytes of one or four bytes of length."""
    raw = b"\x80\x02]q\x00("
    for number, image in enumerate(IMAGES, start=1):
        raw += b"T" + struct.pack("<i", len(image)) + image if len(image) > 255 else b"U" + bytes([len(image)]) + image
        raw += b"q" + bytes([number])
    return raw + b"e]q\x10(\x88\x89\x88e\x86q\x11."


def old_numpy(raw: bytes) -> bytes:
    return raw.replace(b"cnumpy._core.", b"cnumpy.core.")


ARRAYS = [np.frombuffer(raw, np.uint8) for raw in IMAGES]
LAYOUTS = {
    "python2": python2(),
    "numpy1": old_numpy(pickle.dumps((ARRAYS, list(np.array(SAME))), protocol=2)),
    **{f"bytes{p}": pickle.dumps((IMAGES, SAME), protocol=p) for p in (1, 2, 4, 5)},
    **{f"arrays{p}": pickle.dumps([ARRAYS, np.array(SAME)], protocol=p) for p in (2, 3, 4, 5)},
    **{f"mixed{p}": pickle.dumps((tuple(IMAGES), tuple(np.array(SAME))), protocol=p) for p in (2, 4, 5)},
}


def check(pairs: FacePairs) -> None:
    assert len(pairs) == 3 and pairs.same.dtype == torch.bool and pairs.same.tolist() == SAME
    found = torch.cat(list(pairs.batches(2)))
    assert found.dtype == torch.uint8 and np.array_equal(found.numpy(), PIXELS)
    assert torch.equal(pairs.pair(1), found[1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_the_same_pairs(layout, tmp_path):
    path = tmp_path / "lfw.bin"
    path.write_bytes(LAYOUTS[layout])
    check(load_facebin(path))
    # by chance a byte of an array could be the same as a whole pickle, a prefix of one never is
    for cut in range(0, len(LAYOUTS[layout]), 17):
        path.write_bytes(LAYOUTS[layout][:cut])
        with pytest.raises(DataCorrupted, match="lfw"):
            load_facebin(path)


@pytest.mark.parametrize("same", [SAME, np.array(SAME), torch.tensor(SAME)])
def test_the_writer(same, tmp_path):
    path = tmp_path / "new" / "a.bin"
    write_facebin(path, [tuple(IMAGES[:2]), tuple(IMAGES[2:4]), tuple(IMAGES[4:])], same)
    check(load_facebin(path))
    assert pickle.loads(path.read_bytes()) == (IMAGES, SAME)
    before = path.read_bytes()
    for pairs, values, message in (
        ([], [], "same has to be a row of bool|two each are needed"),
        ([tuple(IMAGES[:2])], SAME, "2 images for 3 pairs"),
        ([tuple(IMAGES[:2])], [1], "same has to be a row of bool, not torch.int64"),
        ([(IMAGES[0], b"GIF89a")], [True], "image 1 of the pairs is not the bytes"),
        ([(IMAGES[0], "name.png")], [True], "image 1 of the pairs is not the bytes"),
        ([IMAGES[:3]], [True], "unpack"),
    ):
        with pytest.raises(ValueError, match=message):
            write_facebin(path, pairs, values)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == ["a.bin"]


class Evil:
    def __init__(self, *call) -> None:
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_in_a_pickle_is_run(protocol, tmp_path):
    path, trace = tmp_path / "lfw.bin", tmp_path / "trace"
    for call in (
        (os.system, f"touch {trace}"),
        (eval, f"open({str(trace)!r}, 'w')"),
        (np.fromfile, str(trace)),
        (np.lib.format.open_memmap, str(trace), "w+", np.uint8, (1,)),
        (bytearray, 10),
        (getattr, "a", "b"),
        (open, str(trace), "w"),
    ):
        for value in (Evil(*call), ([*IMAGES[:5], Evil(*call)], SAME), (IMAGES, [Evil(*call)])):
            path.write_bytes(pickle.dumps(value, protocol=protocol))
            with pytest.raises(DataCorrupted, match=r"lfw.bin holds no readable pickle .* which is not allowed"):
                load_facebin(path)
    assert not trace.exists()


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "lfw.bin"
    objects = np.array(IMAGES, dtype=object)
    wide = pickle.dumps((ARRAYS, SAME), protocol=2).replace(b"K\x01K", b"K\x01M\x01", 1)
    bad = {
        "no readable pickle": [b"", b"\x80\x02", b"garbage", IMAGES[0], b"cos\nsystem\n(S'true'\ntR.", wide],
        # one byte is promised 4 GiB, one entry a memo of 2^31
        "not enough data|expected .* bytes": [
            b"\x80\x04\x8e" + struct.pack("<Q", 2**32) + b"a.",
            b"T\xff\xff\xff\x7fa.",
        ],
        "memo entries": [b"\x80\x02]r\xff\xff\xff\x7f."],
        "numpy values of type 'O8', allowed are u1 and b1": [(objects, SAME), (IMAGES, objects)],
        "numpy values of type 'f8'": [(IMAGES, np.ones(3))],
        "array of shape": [(ARRAYS[0].reshape(1, -1), SAME), ([a[:4].reshape(2, 2) for a in ARRAYS], SAME)],
        "numpy values of type 'i8'": [(IMAGES, [np.int64(1)] * 3)],
        "numpy scalar u1 .* no truth value": [(IMAGES, [np.uint8(1)] * 3)],
        "two lists": [
            IMAGES,
            (IMAGES,),
            (IMAGES, SAME, SAME),
            {0: IMAGES, 1: SAME},
            (b"ab", SAME),
            5,
            (ARRAYS[0], SAME),
        ],
        "list of truth values": [
            (IMAGES, [1, 0, 1]),
            (IMAGES, [True, None, False]),
            (IMAGES, b"\1\0\1"),
            (IMAGES, None),
        ],
        "6 images for 2 pairs": [(IMAGES, SAME[:2]), (IMAGES, np.array(SAME[:2]))],
        "5 images for 3 pairs": [(IMAGES[:5], SAME)],
        "0 images for 0 pairs": [([], [])],
        "image 2 of .*lfw.bin is not the bytes": [
            ([*IMAGES[:2], x, *IMAGES[3:]], SAME) for x in (b"x", "a", 3, [IMAGES[2]])
        ],
        "image 0 of .*lfw.bin is not the bytes": [([np.array(SAME)] * 6, SAME)],
    }
    for message, contents in bad.items():
        for content in contents:
            path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
            with pytest.raises(DataCorrupted, match=message) as caught:
                load_facebin(path)
            assert "lfw.bin" in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_facebin(tmp_path / "nowhere.bin")


def test_images_that_do_not_fit():
    pairs = FacePairs((*IMAGES[:3], encoded(7, size=(5, 6)), IMAGES[4][:-60], IMAGES[5]), torch.tensor(SAME), "a.bin")
    assert pairs.pair(0).shape == (2, 3, 6, 5)
    for i, message in (
        (1, r"image 3 of a.bin has \(height, width\) \(5, 6\), one before it \(6, 5\)"),
        (2, "image 4 of a.bin is no readable JPEG or PNG image"),
        (3, "from 0 to 2, not 3"),
        (-1, "from 0 to 2, not -1"),
    ):
        with pytest.raises(ValueError, match=message):
            pairs.pair(i)
    with pytest.raises(ValueError, match="image 3 of"):
        list(pairs.batches(3))
    with pytest.raises(ValueError, match="at least one pair, not 0"):
        pairs.batches(0)
    with pytest.raises(ValueError, match="row of bool"):
        FacePairs(tuple(IMAGES), torch.tensor([1, 0, 1]))


@pytest.mark.parametrize("pairs", [20, 23, 29, 600])
def test_folds_are_consecutive_and_score(pairs):
    same = torch.arange(pairs) % 2 == 0
    found = FacePairs(tuple(IMAGES[:1] * (2 * pairs)), same)
    folds = found.folds()
    expected = np.repeat(np.arange(10), [len(part) for part in np.array_split(np.arange(pairs), 10)])
    assert folds.dtype == torch.int64 and np.array_equal(folds.numpy(), expected)
    scores = same.double() + torch.rand(pairs, generator=torch.Generator().manual_seed(0)) / 2
    assert verification_accuracy(scores, same, folds).accuracy == 1
    assert found.folds(2).bincount().tolist() == [pairs - pairs // 2, pairs // 2]
    for count in (1, pairs + 1):
        with pytest.raises(ValueError, match=f"2 to {pairs} folds"):
            found.folds(count)


@pytest.mark.parametrize("layout", ["python2", "bytes4", "arrays3", "arrays5", "mixed5"])
def test_an_altered_file_is_refused_or_holds_pairs(layout, tmp_path_factory):
    path, raw = tmp_path_factory.mktemp("bin") / "lfw.bin", LAYOUTS[layout]
    starts = [raw.find(image[8:]) for image in IMAGES]
    # the pickle around the images: their pixels have no checksum
    outside = [
        place
        for place in range(len(raw))
        if not any(0 <= start <= place < start + len(image) - 8 for start, image in zip(starts, IMAGES, strict=True))
    ]

    @given(place=st.sampled_from(outside), change=st.integers(1, 255))
    def damage(place, change):
        altered = bytearray(raw)
        altered[place] ^= change
        path.write_bytes(altered)
        try:
            found = load_facebin(path)
            assert len(found.encoded) == 2 * len(found)
            images = torch.cat(list(found.batches(1)))
        except DataCorrupted as error:
            assert "lfw.bin" in str(error)
        else:
            assert all(
                any(np.array_equal(image, pair) for pair in PIXELS.reshape(-1, 3, 6, 5))
                for image in images.flatten(0, 1).numpy()
            )

    damage()
