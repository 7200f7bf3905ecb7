"""RecordIO against files put together by hand: every layout gives the images, a damaged file is refused."""

from __future__ import annotations

import io
import pickle
import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprolib.data import DataCorrupted, FaceRecords, write_records
from reprolib.data.recordio import encode_record, read_record, scan_records

MAGIC = bytes.fromhex("0a23d7ce")


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (9, 12)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def pixels_of(raw: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).transpose(2, 0, 1)


def content(labels: list[float], key: int, image: bytes, *, short: bool = False) -> bytes:
    """A header and an image: one label in the header itself if `short`, else all of them behind it."""
    if short:
        return struct.pack("<IfQQ", 0, labels[0], key, 0) + image
    return struct.pack("<IfQQ", len(labels), 0, key, 0) + struct.pack(f"<{len(labels)}f", *labels) + image


def part(raw: bytes, kind: int = 0) -> bytes:
    return MAGIC + struct.pack("<I", kind << 29 | len(raw)) + raw + b"\0" * (-len(raw) % 4)


class Packed:
    """Four images of three classes with keys 1 .. 4, the header 0 and two identities, as insightface packs them."""

    def __init__(self) -> None:
        self.images = [encoded(1), encoded(2, "JPEG"), encoded(3), encoded(4)]
        self.labels = [0, 0, 2, 1]
        records = [(k, content([self.labels[k - 1], 1], k, self.images[k - 1])) for k in (1, 2, 3, 4)]
        records += [(0, content([5, 7], 0, b"")), (5, content([1, 3], 5, b"")), (6, content([3, 5], 6, b""))]
        self.rec, self.offsets, lines = b"", {}, []
        for key, raw in records:
            self.offsets[key] = len(self.rec)
            lines.append(f"{key}\t{len(self.rec)}\n")
            self.rec += part(raw)
        self.idx = "".join(lines).encode()

    def write(self, folder, rec: bytes | None = None, idx: bytes | None = None, **files: bytes):
        folder.mkdir(exist_ok=True)
        (folder / "train.rec").write_bytes(self.rec if rec is None else rec)
        (folder / "train.idx").write_bytes(self.idx if idx is None else idx)
        for name, raw in files.items():
            (folder / name).write_bytes(raw)
        return folder


PACKED = Packed()


@pytest.mark.parametrize("index", [True, False])
def test_a_set_with_a_header(tmp_path, index):
    folder = PACKED.write(tmp_path / "set", property=b"3,9,12\n")
    if not index:
        (folder / "train.idx").unlink()
    with FaceRecords(folder) as records:
        assert records.path == folder / "train.rec" and len(records) == 4 and records.num_classes == 3
        assert records.labels.dtype == torch.int64 and records.labels.tolist() == PACKED.labels
        for row, raw in enumerate(PACKED.images):
            assert records.image(row).dtype == torch.uint8
            assert np.array_equal(records.image(row).numpy(), pixels_of(raw))
        images, labels = records.load(torch.tensor([3, 1, 1]))
        assert images.shape == (3, 3, 9, 12) and labels.tolist() == [1, 0, 0]
        assert torch.equal(images[0], records.image(3)) and torch.equal(images[1], images[2])
    # closed, it opens again; a copy in another process has the index already
    again = pickle.loads(pickle.dumps(records))
    assert "_buffer" not in again.__dict__ and torch.equal(again.image(2), records.image(2))


def test_without_a_header_all_keys_are_images(tmp_path):
    records = [(7, content([4], 7, PACKED.images[0], short=True)), (0, content([2, 9], 0, PACKED.images[1]))]
    raw = [part(record) for _, record in records]
    folder = PACKED.write(tmp_path, b"".join(raw), f"7\t0\r\n0\t{len(raw[0])}".encode())
    found = FaceRecords(folder / "train.rec")
    assert found.labels.tolist() == [2, 4] and found.num_classes == 5
    assert np.array_equal(found.image(0).numpy(), pixels_of(PACKED.images[1]))
    # ids that were never set do not contradict the index, but cannot replace it
    raw = b"".join(part(content([k], 0, PACKED.images[k])) for k in (0, 2))
    PACKED.write(tmp_path, raw, f"3\t0\n8\t{len(part(content([0], 0, PACKED.images[0])))}\n".encode())
    assert FaceRecords(tmp_path).labels.tolist() == [0, 2]
    (tmp_path / "train.idx").unlink()
    with pytest.raises(DataCorrupted, match="has the key 0 more than once"):
        len(FaceRecords(tmp_path))


@pytest.mark.parametrize("place", [0, 1, 2, 4, 8])
def test_a_magic_number_in_an_image_splits_the_record(place, tmp_path):
    # behind the end of a PNG file anything may follow
    image = PACKED.images[0] + b"\0" * (-len(PACKED.images[0]) % 4) + b"\0" * place + MAGIC * 2 + b"ab"
    raw = content([3], 0, image, short=True)
    cut = raw.index(MAGIC)
    by_hand = part(raw[:cut], 1) + part(b"", 2) + part(b"ab", 3) if place % 4 == 0 else part(raw)
    assert encode_record(raw) == by_hand
    assert read_record(memoryview(by_hand), 0, "r").image == image
    write_records(tmp_path / "a.rec", [image, PACKED.images[1]], [3, 0])
    assert (tmp_path / "a.rec").read_bytes().startswith(by_hand)
    found = FaceRecords(tmp_path / "a.rec")
    assert found.labels.tolist() == [3, 0] and np.array_equal(found.image(0).numpy(), pixels_of(image))


@given(st.lists(st.lists(st.sampled_from([MAGIC, b"", b"\n", b"#\xd7", b"abcd"]), max_size=12), min_size=1, max_size=4))
def test_any_bytes_come_back(pieces):
    contents = [bytes(24) + b"".join(piece) for piece in pieces]
    raw = memoryview(b"".join(map(encode_record, contents)))
    _, offsets = scan_records(raw, "f")
    assert [bytes(read_record(raw, int(offset), "r").image) for offset in offsets] == [c[24:] for c in contents]
    # a reader can look for the magic number at multiples of 4 to find where parts begin
    begins = [place for place in range(0, len(raw), 4) if raw[place : place + 4] == MAGIC]
    assert len(begins) == len(contents) + sum(c[k : k + 4] == MAGIC for c in contents for k in range(0, len(c), 4))


def test_the_writer(tmp_path):
    path = tmp_path / "new" / "a.rec"
    write_records(path, iter(PACKED.images), np.array(PACKED.labels))
    expected = b"".join(
        part(content([label], key, image, short=True))
        for key, (image, label) in enumerate(zip(PACKED.images, PACKED.labels, strict=True))
    )
    assert path.read_bytes() == expected
    begins = [k for k in range(0, len(expected), 4) if expected[k : k + 4] == MAGIC]
    assert path.with_suffix(".idx").read_text() == "".join(f"{key}\t{begin}\n" for key, begin in enumerate(begins))
    found = FaceRecords(path)
    assert len(found) == 4 and found.labels.tolist() == PACKED.labels and found.num_classes == 3
    bad = {
        "not a.dat": (tmp_path / "a.dat", PACKED.images, [0] * 4),
        "ends after 3": (path, PACKED.images, [0] * 3),
        "ends after 4": (path, iter(PACKED.images), [0] * 5),
        "at least one": (path, [], []),
        "image 1 has to be the bytes": (path, [PACKED.images[0], b"GIF89a"], [0, 1]),
        "label 0 .* not 0.5": (path, PACKED.images, [0.5] * 4),
        "label 1 .* not -1": (path, PACKED.images, [0, -1, 0, 0]),
        "label 0 .* not nan": (path, PACKED.images, [float("nan")] * 4),
        "from 0 to 16777215, not 16777216": (path, PACKED.images, [2**24] * 4),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            write_records(*arguments)
    assert path.read_bytes() == expected and sorted(p.name for p in path.parent.iterdir()) == ["a.idx", "a.rec"]


def test_what_is_damaged_is_named(tmp_path):
    rec, idx, at = PACKED.rec, PACKED.idx, PACKED.offsets

    def changed(place: int, raw: bytes) -> bytes:
        return rec[:place] + raw + rec[place + len(raw) :]

    def header(*labels: float) -> bytes:
        return changed(at[0] + 32, struct.pack("<2f", *labels))

    bad = {
        "train.rec is empty": (b"", idx),
        "names no record": (rec, b""),
        "cut off": (rec[:-4], idx),
        "cannot begin at byte": (rec[: at[5]], idx),
        "record 1 of .* has 0x00000000 at byte 0, not the magic number 0xced7230a": (changed(at[1], bytes(4)), idx),
        "record 2 of .* is cut off: it ends at byte": (changed(at[2] + 4, struct.pack("<I", 2**29 - 1)), idx),
        "record 1 of .* begins .* with a part of kind 2": (changed(at[1] + 7, b"\x40"), idx),
        "record 2 of .* goes on at byte .* with a part of kind 0": (changed(at[2] + 7, b"\x20"), idx),
        "record 2 of .* ends at byte .* no other record": (changed(at[2] + 4, struct.pack("<I", 40)), idx),
        "too few for the 4294967295 labels": (changed(at[2] + 8, b"\xff" * 4), idx),
        "record 2 of .* holds neither a JPEG nor": (changed(at[2] + 8, b"\0"), idx),
        "record 2 of .* says that it is record 3": (changed(at[2] + 16, b"\3"), idx),
        "record 2 of .* has the label 0.5": (changed(at[2] + 32, struct.pack("<f", 0.5)), idx),
        "record 2 of .* has the label -1.0": (changed(at[2] + 32, struct.pack("<f", -1)), idx),
        "record 2 of .* has the label nan": (changed(at[2] + 32, struct.pack("<f", float("nan"))), idx),
        "record 2 of .* says that it is record 3; without": (
            rec,
            idx.replace(b"2\t", b"9\t").replace(b"3\t", b"2\t").replace(b"9\t", b"3\t"),
        ),
        "has the key 2 more than once": (rec, idx.replace(b"3\t", b"2\t")),
        "has the offset 0 more than once": (rec, idx.replace(b"2\t%d" % at[2], b"2\t0")),
        "lacks the key 2, the images have the keys 1 to 4": (rec, idx.replace(b"2\t", b"12\t")),
        "line 2 of .* instead of a key": (rec, idx.replace(b"2\t", b"2 ")),
        "line 1 of .* instead of a key": (rec, b"\xff" + idx),
        "too many for the index": (rec, idx * 200),
        "record 2 of .* cannot begin at byte": (rec, idx.replace(b"2\t%d" % at[2], b"2\t%d" % (at[2] + 2))),
        "cannot begin at byte 999999": (rec, idx.replace(b"2\t%d" % at[2], b"2\t999999")),
        "lacks the key 7, .* keys 1 to 999": (header(1000, 1002), idx),
        "neither an image nor a header": (header(float("nan"), 7), idx),
        "record 6 of .* has 8 bytes, its header alone": (rec[: at[6]] + part(bytes(8)), idx),
        "record 5 of .* holds neither": (header(6, 7), idx),
        "record 6 of .* has no image, and record 0 is not a header": (rec, idx.replace(b"\n0\t%d\n" % at[0], b"\n")),
    }
    for number, (message, (raw, index)) in enumerate(bad.items()):
        folder = PACKED.write(tmp_path / str(number), raw, index)
        with pytest.raises(DataCorrupted, match=message):
            FaceRecords(folder).labels.tolist()
    folder = PACKED.write(tmp_path / "property", property=b"2,9,12")
    with pytest.raises(DataCorrupted, match=r"record 3 of .* has the label 2.0, allowed are whole numbers from 0 to 1"):
        FaceRecords(folder).load([2])
    PACKED.write(folder, property=b"2;9;12")
    with pytest.raises(DataCorrupted, match="num_classes,height,width"):
        FaceRecords(folder).labels.tolist()
    with pytest.raises(FileNotFoundError):
        len(FaceRecords(tmp_path / "nowhere.rec"))


def test_images_and_indices_that_do_not_fit(tmp_path):
    images = [PACKED.images[0], encoded(5, "PNG", (12, 9)), PACKED.images[1][:-200], encoded(6, "PNG", (1, 5000))]
    write_records(tmp_path / "a.rec", images, range(4))
    found = FaceRecords(tmp_path / "a.rec")
    assert found.labels.tolist() == [0, 1, 2, 3] and found.image(1).shape == (3, 12, 9)
    for indices, message in (
        ([0, 1], r"record 1 of .*a.rec has \(height, width\) \(12, 9\), the first one asked for \(9, 12\)"),
        ([2], "record 2 of .*a.rec is no readable JPEG or PNG image"),
        ([3], "record 3 of .*a.rec has 5000 x 1 pixels"),
        ([4], "from 0 to 3, not 4 to 4"),
        ([-1, 0], "from 0 to 3, not -1 to 0"),
        ([], "non-empty row of integers"),
        ([0.0], "non-empty row of integers, not torch.float32"),
        ([True, False], "not torch.bool"),
        ([[0]], "integers"),
    ):
        with pytest.raises(ValueError, match=message):
            found.load(indices)
    with pytest.raises(ValueError, match="from 0 to 3"):
        found.image(4)


# magic number, length, count of labels and id: what is not a label or a pixel
FRAMES = [
    place
    for offset in PACKED.offsets.values()
    for place in (*range(offset, offset + 12), *range(offset + 16, offset + 24))
]


@pytest.mark.parametrize("index", [True, False])
def test_a_damaged_structure_is_noticed_or_harmless(index, tmp_path_factory):
    folder = PACKED.write(tmp_path_factory.mktemp("set"))
    expected = np.stack([pixels_of(raw) for raw in PACKED.images])

    def outcome(rec: bytes, idx: bytes) -> str:
        PACKED.write(folder, rec, idx)
        if not index:
            (folder / "train.idx").unlink()
        found = FaceRecords(folder)
        try:
            images, labels = found.load(range(len(found)))
        except DataCorrupted as error:
            assert str(folder / "train.") in str(error)
            return "refused"
        count = len(found)
        assert labels.tolist() == PACKED.labels[:count] and np.array_equal(images.numpy(), expected[:count])
        return "original" if count == 4 else "shorter"

    @given(st.sampled_from(FRAMES), st.integers(1, 255), st.integers(0, len(PACKED.rec) - 1))
    def damage(place, change, cut):
        altered = bytearray(PACKED.rec)
        altered[place] ^= change
        assert outcome(bytes(altered), PACKED.idx) != "shorter"
        # with neither index nor header nothing tells how many records there were
        between = not index and cut in PACKED.offsets.values()
        assert outcome(PACKED.rec[:cut], PACKED.idx) == "refused" or between

    @given(st.integers(0, len(PACKED.idx) - 1), st.integers(1, 255))
    def damage_index(place, change):
        altered = bytearray(PACKED.idx)
        altered[place] ^= change
        assert outcome(PACKED.rec, bytes(altered)) != "shorter"
        assert outcome(PACKED.rec, PACKED.idx[:place]) != "shorter"

    damage()
    if index:
        damage_index()
