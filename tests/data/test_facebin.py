"""Verification sets as Python 2, Python 3 and numpy wrote them; anything else in a pickle is refused, not run."""

from __future__ import annotations

import codecs
import io
import os
import pickle
import struct
import time
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprolib.data import DataCorrupted, FacePairs, load_facebin, pickles, write_facebin
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


COLUMNS = [array.reshape(-1, 1) for array in ARRAYS]
INTEGERS = [1, 0, 1]
LAYOUTS |= {
    # OpenCV before 4.5.4 encodes to columns; insightface puts the truth values through numpy.asarray
    **{f"columns{p}": old_numpy(pickle.dumps((COLUMNS, SAME), protocol=p)) for p in (0, 2, 4, 5)},
    **{f"integers{p}": pickle.dumps((IMAGES, INTEGERS), protocol=p) for p in (0, 1, 2, 4)},
    **{f"int64 {p}": pickle.dumps((IMAGES, list(np.array(INTEGERS))), protocol=p) for p in (0, 2, 4)},
    **{f"array of int64 {p}": pickle.dumps((IMAGES, np.array(INTEGERS)), protocol=p) for p in (0, 2, 5)},
    "big-endian": pickle.dumps((IMAGES, np.array(INTEGERS, ">i4")), protocol=2),
    "a column of truth values": pickle.dumps((IMAGES, np.array(SAME)[:, None]), protocol=4),
    "a list of rows": pickle.dumps((IMAGES, list(np.array(SAME)[:, None])), protocol=4),
    **{f"bytearrays{p}": pickle.dumps(([bytearray(i) for i in IMAGES], SAME), protocol=p) for p in (0, 2, 3, 4, 5)},
    **{f"objects{p}": pickle.dumps((np.array(IMAGES, object), SAME), protocol=p) for p in (2, 4)},
    "numpy1 protocol 0": old_numpy(pickle.dumps((ARRAYS, SAME), protocol=0)),
}


def python2_text() -> bytes:
    """Protocol 0 as Python 2 writes it: strings as it prints them, truth values as I01 and I00."""
    raw = b"((lp0\n"
    for number, image in enumerate(IMAGES, start=1):
        printed = "".join(chr(b) if 32 <= b < 127 and chr(b) not in "\\'" else f"\\x{b:02x}" for b in image)
        raw += f"S'{printed}'\np{number}\na".encode()
    return raw + b"(lp7\nI01\naI00\naI01\natp8\n."


LAYOUTS["python2 protocol 0"] = python2_text()


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
        ([], [], "same must be a row of bool|two images a pair"),
        ([tuple(IMAGES[:2])], SAME, "two images a pair, got 2 for 3 pairs"),
        ([tuple(IMAGES[:2])], [1], "same must be a row of bool, got torch.int64"),
        ([(IMAGES[0], b"GIF89a")], [True], "image 1 of the pairs must be the bytes"),
        ([(IMAGES[0], "name.png")], [True], "image 1 of the pairs must be the bytes"),
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
            with pytest.raises(
                DataCorrupted,
                match=r"lfw.bin holds no readable pickle .*(which is not allowed|calls bytearray with int)",
            ):
                load_facebin(path)
    assert not trace.exists()


def test_other_contents_are_refused(tmp_path):
    path = tmp_path / "lfw.bin"
    wide = pickle.dumps((ARRAYS, SAME), protocol=2).replace(b"K\x01K", b"K\x01M\x01", 1)
    bad = {
        "no readable pickle": [b"", b"\x80\x02", b"garbage", IMAGES[0], b"cos\nsystem\n(S'true'\ntR.", wide],
        # one byte is promised 4 GiB, one entry a memo of 2^31
        "holds no readable pickle": [
            b"\x80\x04\x8e" + struct.pack("<Q", 2**32) + b"a.",
            b"T\xff\xff\xff\x7fa.",
        ],
        "numpy values of type 'S": [(np.array(IMAGES), SAME)],
        "numpy values of type 'M8'": [(IMAGES, np.array(["2026-11-30"] * 3, "M8[D]"))],
        "truth values must be .* got a float": [(IMAGES, np.ones(3))],
        "truth values must be .* got a list": [(IMAGES, np.ones((3, 2), bool))],
        "image 0 of .*lfw.bin must be the bytes": [
            ([a[:4].reshape(2, 2) for a in ARRAYS], SAME),
            ([np.array(SAME)] * 6, SAME),
            ([a.astype(np.int32) for a in ARRAYS], SAME),
        ],
        "two lists": [
            IMAGES,
            (IMAGES,),
            (IMAGES, SAME, SAME),
            (b"ab", SAME),
            5,
            (ARRAYS[0], SAME),
        ],
        "two lists, of images and of truth values, but a list and": [
            (IMAGES, b"\1\0\1"),
            (IMAGES, None),
            (IMAGES, {}),
        ],
        "truth values must be .* got a NoneType": [(IMAGES, [True, None, False])],
        "truth values must be .* got the integer 2": [(IMAGES, [1, 0, 2]), (IMAGES, np.array([1, 0, 2]))],
        "truth values must be .* got the integer -1": [(IMAGES, [1, 0, -1])],
        "0x47, which is not allowed": [(IMAGES, [1.0, 0.0, 1.0])],
        "a key is a int": [{0: IMAGES, 1: SAME}],
        "got 6 for 2 pairs": [(IMAGES, SAME[:2]), (IMAGES, np.array(SAME[:2]))],
        "got 5 for 3 pairs": [(IMAGES[:5], SAME)],
        "got 0 for 0 pairs": [([], [])],
        "image 2 of .*lfw.bin must be the bytes": [
            ([*IMAGES[:2], x, *IMAGES[3:]], SAME) for x in (b"x", "a", 3, [IMAGES[2]])
        ],
    }
    for message, contents in bad.items():
        for content in contents:
            path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol=2))
            with pytest.raises(DataCorrupted, match=message) as caught:
                load_facebin(path)
            assert "lfw.bin" in str(caught.value)
    with pytest.raises(FileNotFoundError):
        load_facebin(tmp_path / "nowhere.bin")


DEEP = b"N" + b"2\x86" * 40  # DUP, TUPLE2: 2^40 leaves for whoever hashes, compares or prints it
TEXT = b"X" + struct.pack("<I", 2**20) + b"a" * 2**20
RECONSTRUCT = b"cnumpy.core.multiarray\n_reconstruct\nN\x85R"
HOSTILE = {
    "a tuple of tuples as key": b"\x80\x02})" + b"\x85" * 9000 + b"Ns.",
    "hash bomb": b"\x80\x02}" + DEEP + b"Ns.",
    "set": b"\x80\x04(" + DEEP + b"\x91.",
    "compares": b"\x80\x02" + RECONSTRUCT + b"(K\x01" + DEEP + b"NNNtb.",
    "prints": b"\x80\x02c_codecs\nencode\n" + DEEP + DEEP + b"\x86R.",
    "laughs": b"\x80\x02]" + b"".join(b"q%c](" % k + b"h%c" % k * 9 + b"e" for k in range(40)) + b"K\x01\x86.",
    "changes a function": b"\x80\x02c_codecs\nencode\n}X\x01\0\0\0xX\x01\0\0\0ysb.",
    "changes a class": b"\x80\x02cnumpy\nndarray\nN}X\x04\0\0\0codeX\x02\0\0\0u1s\x86b.",
    "dotted": b"\x80\x04\x8c\x05numpy\x8c\x11ndarray.__class__\x93.",
    "persistent": b"Phello\n.",
    "out of band": b"\x80\x05\x97.",
    "extension": b"\x80\x02\x82\x01.",
    "object": b"\x80\x02cnumpy\nndarray\n)\x81.",
    "long": b"\x80\x02\x8a\xff" + bytes(255) + b".",
    "long 4": b"\x80\x02\x8b\xfb\xff\xff\xffabc.",
    "bytes of 2^62": b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"abc.",
    "bytearray of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"abc.",
    "frame of 2^60": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.",
    "memo of 2^32": b"\x80\x02Nr\xff\xff\xff\xff.",
    "memo of many digits": b"Np" + b"9" * 5000 + b"\n.",
    "empty memo": b"\x80\x02h\x05.",
    "itself": b"\x80\x02]q\0h\0a.",
    "copies": b"\x80\x02]q\1(c_codecs\nencode\nq\2"
    + TEXT
    + b"q\3X\6\0\0\0latin1q\4\x86q\5R"
    + b"h\2h\5R" * 3000
    + b"e.",
    "one array many times": b"\x80\x02]("
    + RECONSTRUCT
    + b"(K\1M\0\x10\x85cnumpy\ndtype\nX\2\0\0\0u1\x85RI00\nB"
    + struct.pack("<I", 4096)
    + bytes(4096)
    + b"tbq\1"
    + b"h\1" * 30_000
    + b"e]\x88a\x86.",
    "400,000 Nones": b"\x80\x02](" + b"N" * 400_000 + b"e.",
    "400,000 empty sets": b"\x80\x04](" + b"\x8f" * 400_000 + b"e.",
    "400,000 empty lists": b"\x80\x04](" + b"]" * 400_000 + b"e.",
    "400,000 marks": b"\x80\x04" + b"(" * 400_000,
    "junk behind the end": pickle.dumps((IMAGES, SAME)) + b"junk",
    "nothing": b"",
    "no pairs": b"\x80\x02]q\x00]q\x01\x86q\x02.",
    "type of an array": b"\x80\x02cnumpy\ndtype\nX\x02\0\0\0V9\x85R.",
    "call of a list": b"\x80\x02]]R.",
    "shape of 2^62": b"\x80\x02" + RECONSTRUCT + b"(K\1\x8a\x08" + struct.pack("<q", 2**62) + b"\x85cnumpy\ndtype\n"
    b"X\2\0\0\0u1\x85RI00\nC\0tb.",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_pickles_end_at_once_and_change_nothing(kind, tmp_path):
    path = tmp_path / "lfw.bin"
    path.write_bytes(HOSTILE[kind])
    names = {module: set(vars(module)) for module in (np, codecs, pickles)}
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(DataCorrupted, match=r"lfw\.bin") as caught:
        load_facebin(path)
    # tracing makes each operation several times slower
    assert time.process_time() - start < 5 and len(str(caught.value)) < 400
    assert tracemalloc.get_traced_memory()[1] < 100 * 2**20
    tracemalloc.stop()
    assert {module: set(vars(module)) for module in names} == names


def test_images_that_do_not_fit():
    pairs = FacePairs((*IMAGES[:3], encoded(7, size=(5, 6)), IMAGES[4][:-60], IMAGES[5]), torch.tensor(SAME), "a.bin")
    assert pairs.pair(0).shape == (2, 3, 6, 5)
    for i, message in (
        (1, r"image 3 of a.bin has \(height, width\) \(5, 6\), one before it \(6, 5\)"),
        (2, "image 4 of a.bin is no readable JPEG or PNG image"),
        (3, "from 0 to 2, got 3"),
        (-1, "from 0 to 2, got -1"),
    ):
        with pytest.raises(ValueError, match=message):
            pairs.pair(i)
    with pytest.raises(ValueError, match="image 3 of"):
        list(pairs.batches(3))
    with pytest.raises(ValueError, match="size must be an integer >= 1, got 0"):
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
        with pytest.raises(ValueError, match=f"count must be an integer between 2 and {pairs}"):
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
