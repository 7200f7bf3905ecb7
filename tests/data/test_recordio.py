"""RecordIO against files put together by hand: every layout gives the images, a damaged file is refused."""

from __future__ import annotations

import io
import pickle
import struct
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprolib.data import DataCorrupted, FaceRecords, open_faces, write_records
from reprolib.data.facesets import exact_stop
from reprolib.data.recordio import encode_record, first_labels, read_index, read_record, scan_records

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


def load(faces, rows) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels at `rows` as a DataLoader puts them together."""
    images, labels = torch.utils.data.default_collate(faces.__getitems__(list(rows)))
    return images, labels


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
    records = FaceRecords(folder)
    assert records.path == folder / "train.rec" and len(records) == 4 and records.num_classes == 3
    assert records.labels.dtype == torch.int64 and records.labels.tolist() == PACKED.labels
    for row, raw in enumerate(PACKED.images):
        assert records.image(row).dtype == torch.uint8
        assert np.array_equal(records.image(row).numpy(), pixels_of(raw))
    images, labels = load(records, [3, 1, 1])
    assert images.shape == (3, 3, 9, 12) and labels.tolist() == [1, 0, 0]
    assert torch.equal(images[0], records.image(3)) and torch.equal(images[1], images[2])
    # a copy for another process is a path
    assert len(pickle.dumps(records)) < 500
    assert torch.equal(pickle.loads(pickle.dumps(records)).image(2), records.image(2))


def test_without_a_header_all_keys_are_images(tmp_path):
    records = [(7, content([4], 7, PACKED.images[0], short=True)), (0, content([2, 9], 0, PACKED.images[1]))]
    raw = [part(record) for _, record in records]
    folder = PACKED.write(tmp_path, b"".join(raw), f"7\t0\r\n0\t{len(raw[0])}".encode())
    found = FaceRecords(folder / "train.rec")
    # in the order of the index, not of the keys
    assert found.labels.tolist() == [4, 2] and found.num_classes == 5 and [found.key(0), found.key(1)] == [7, 0]
    assert np.array_equal(found.image(1).numpy(), pixels_of(PACKED.images[1]))
    # ids that were never set say nothing: without an index the keys then count from 0
    raw = b"".join(part(content([k], 0, PACKED.images[k])) for k in (0, 2))
    PACKED.write(tmp_path, raw, f"3\t0\n8\t{len(part(content([0], 0, PACKED.images[0])))}\n".encode())
    for keys in ([3, 8], [0, 1]):
        found = FaceRecords(tmp_path)
        assert found.labels.tolist() == [0, 2] and [found.key(0), found.key(1)] == keys
        (tmp_path / "train.idx").unlink(missing_ok=True)


def shuffled(order: list[int], folder, *, index: bool = True):
    """The images of PACKED in another `order`: keys from 0, the ids of the source kept (insightface, shuffle_rec)."""
    rec, lines = b"", []
    for key, number in enumerate(order):
        lines.append(f"{key}\t{len(rec)}\n")
        rec += part(content([PACKED.labels[number - 1]], number, PACKED.images[number - 1], short=True))
    PACKED.write(folder, rec, "".join(lines).encode())
    if not index:
        (folder / "train.idx").unlink()
    return FaceRecords(folder)


@pytest.mark.parametrize("index", [True, False])
def test_ids_of_the_source_are_no_damage(index, tmp_path):
    order = [3, 1, 4, 2]
    found = shuffled(order, tmp_path, index=index)
    images, labels = load(found, range(4))
    assert found.labels.tolist() == labels.tolist() == [PACKED.labels[k - 1] for k in order]
    assert all(np.array_equal(images[row], pixels_of(PACKED.images[k - 1])) for row, k in enumerate(order))


PROPERTIES = {
    "3,9,12": True,
    "3,9,12\n": True,
    "3,9,12\n4\n": True,
    "3,9,12\n4\nshuffled\n2026-11-30 13:04:04.946222\n": True,
    "3, 9, 12": True,
    "3,9,12\r\n4\r\n": True,
    "3 9 12\n": True,
    "3,9,12,3\n": True,
    "3\n": True,
    "\ufeff3,9,12\n": True,
    "": False,
    "\n3,9,12": False,
    "3;9;12": False,
    "0,9,12": False,
    "-3,9,12": False,
    "three": False,
    "3.0,9,12": False,
    "9" * 99: False,
}


@pytest.mark.parametrize("text", PROPERTIES)
def test_property(text, tmp_path):
    found = FaceRecords(PACKED.write(tmp_path, property=text.encode()))
    if PROPERTIES[text]:
        assert found.num_classes == 3 and load(found, [2])[1].tolist() == [2]
    else:
        with pytest.raises(DataCorrupted, match="num_classes,height,width"):
            print(found.num_classes)


def test_an_index_is_read_wherever_its_meaning_is_clear(tmp_path):
    keys = [int(line.split()[0]) for line in PACKED.idx.splitlines()]
    variants = {
        "blank last line": PACKED.idx + b"\n",
        "blank lines": PACKED.idx.replace(b"\n", b"\n\n"),
        "no end of the last line": PACKED.idx[:-1],
        "trailing blank": PACKED.idx.replace(b"\n", b" \n"),
        "blanks for tabs": PACKED.idx.replace(b"\t", b"  "),
        "a column more": PACKED.idx.replace(b"\n", b"\t17\n"),
        "a text more": PACKED.idx.replace(b"\n", b"\tname 1\n"),
        "windows": PACKED.idx.replace(b"\n", b"\r\n"),
        "old mac": PACKED.idx.replace(b"\n", b"\r"),
    }
    for name, idx in variants.items():
        folder = PACKED.write(tmp_path / name.replace(" ", "_"), idx=idx)
        found, offsets = read_index(folder / "train.idx", 10**6)
        assert found.tolist() == keys and offsets.tolist() == [PACKED.offsets[key] for key in keys], name
        assert FaceRecords(folder).labels.tolist() == PACKED.labels


def test_an_index_of_some_records_is_a_set_of_its_own(tmp_path):
    raw = [part(content([k], k, PACKED.images[k])) for k in range(3)]
    PACKED.write(tmp_path, b"".join(raw), f"0\t0\n1\t{len(raw[0])}\n".encode())
    with pytest.warns(UserWarning, match="train.idx names 2 records, behind which .*train.rec goes on"):
        assert FaceRecords(tmp_path).labels.tolist() == [0, 1]
    # those at the end, or in the middle left out: nothing to notice
    PACKED.write(tmp_path, b"".join(raw), f"2\t{len(raw[0] + raw[1])}\n0\t0\n".encode())
    assert FaceRecords(tmp_path).labels.tolist() == [2, 0]


def test_a_bad_image_is_listed_and_can_be_left_out(tmp_path):
    images = [*PACKED.images[:2], b"", PACKED.images[3], PACKED.images[1][:-200], b"GIF89a"]
    raw = [part(content([k // 2], k, image, short=True)) for k, image in enumerate(images)]
    places = np.cumsum([0, *map(len, raw)])[:-1]
    PACKED.write(tmp_path, b"".join(raw), "".join(f"{k}\t{at}\n" for k, at in enumerate(places)).encode())
    found = FaceRecords(tmp_path)
    # labels need no image
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2] and found.num_classes == 3
    for row, message in ((2, "neither a JPEG nor a PNG"), (4, "no readable JPEG"), (5, "neither a JPEG nor a PNG")):
        with pytest.raises(DataCorrupted, match=f"record {row} of .*{message}"):
            found.image(row)
    assert list(found.damaged()) == [2, 5] and list(found.damaged(pixels=True)) == [2, 4, 5]
    assert "record 4 of" in found.damaged(pixels=True)[4]
    kept = FaceRecords(tmp_path, skip=found.damaged(pixels=True))
    assert len(kept) == 3 and kept.labels.tolist() == [0, 0, 1] and kept.damaged(pixels=True) == {}
    assert [kept.key(row) for row in range(3)] == [0, 1, 3]
    with pytest.raises(ValueError, match=r"skip must hold keys of images in .*, got 17"):
        len(FaceRecords(tmp_path, skip=[17]))
    # the last record of a set without a header, too
    raw[-1] = part(content([2], 5, b"", short=True))
    PACKED.write(tmp_path, b"".join(raw))
    (tmp_path / "train.idx").unlink()
    assert FaceRecords(tmp_path).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_file_cut_off_while_it_is_open_is_an_error_and_no_signal(tmp_path):
    # some pages, so that touching the lost ones would end the process
    image = PACKED.images[0] + bytes(40_000)
    write_records(tmp_path / "train.rec", [image] * 3, [0, 1, 2])
    found = FaceRecords(tmp_path)
    assert found.image(2).shape == (3, 9, 12)
    with open(tmp_path / "train.rec", "r+b") as stream:
        stream.truncate(100)
    for call in (lambda: found.image(2), lambda: found.labels):
        with pytest.raises(DataCorrupted, match="was cut off to 100 bytes while it was open"):
            call()


def test_labels_of_identities_are_those_of_the_records(tmp_path):
    images, labels = [PACKED.images[k % 4] for k in range(9)], [0, 0, 0, 1, 2, 2, 3, 3, 3]
    write_records(tmp_path / "train.rec", iter(images), labels, identities=True)
    assert (tmp_path / "property").read_text() == "4,9,12\n"
    found = FaceRecords(tmp_path)
    assert found.labels.tolist() == labels and found._labels_of_identities().tolist() == labels
    assert found.key(0) == 1 and len(found) == 9 and found.num_classes == 4
    # the header and the identities as face2rec2 writes them
    rec = memoryview((tmp_path / "train.rec").read_bytes())
    keys, offsets = read_index(tmp_path / "train.idx", len(rec))
    assert keys.tolist() == [*range(1, 10), 0, *range(10, 14)]
    records = {int(k): read_record(rec, int(at), "r") for k, at in zip(keys, offsets, strict=True)}
    assert records[0].labels.tolist() == [10, 14] and not records[0].image
    assert [records[k].labels.tolist() for k in range(10, 14)] == [[1, 4], [4, 5], [5, 7], [7, 10]]
    assert first_labels(np.frombuffer(rec, "<u4"), offsets[:9]).tolist() == labels
    # an image inside of a range whose label is another one is noticed when it is used
    raw = bytearray(rec)
    struct.pack_into("<f", raw, int(offsets[1]) + 12, 3)
    (tmp_path / "train.rec").write_bytes(raw)
    changed = FaceRecords(tmp_path)
    assert changed.labels.tolist() == labels
    with pytest.raises(DataCorrupted, match=r"record 2 of .* has the label 3, its identity 0"):
        changed.image(1)
    # ends that differ are no range of one label
    struct.pack_into("<f", raw, int(offsets[2]) + 12, 3)
    (tmp_path / "train.rec").write_bytes(raw)
    assert FaceRecords(tmp_path).labels.tolist() == [0, 3, 3, *labels[3:]]
    for wrong in ([1, 1, 2], [0, 2, 2], [0, 1, 0]):
        with pytest.raises(ValueError, match="to ascend"):
            write_records(tmp_path / "train.rec", images[:3], wrong, identities=True)


def test_the_end_of_more_images_than_float32_can_count():
    # 2^24 + 1 rounds to 2^24, 2^24 + 3 to 2^24 + 4
    for stop in range(2**24 - 3, 2**24 + 9):
        keys = np.arange(2**24 - 20, 2**24 + 20)[::-1]
        has_image = (keys < stop).tolist()
        assert exact_stop(float(np.float32(stop)), keys, has_image.__getitem__) == stop


def test_hostile_records_are_refused_at_once(tmp_path):
    # 25 million labels, as a view; 2.5 million parts; labels of a header that count nothing
    many = part(struct.pack("<IfQQ", 25_000_000, 0, 0, 0) + bytes(100_000_000))
    assert read_record(memoryview(many), 0, "r").labels.nbytes == 100_000_000
    pieces = memoryview(part(bytes(24), 1) + part(b"", 2) * 100_000 + part(b"", 3))
    with pytest.raises(DataCorrupted, match="r has more than 1000 parts"):
        read_record(pieces, 0, "r")
    for label in (-5.0, 2.5, 1e30, float("inf"), float("nan"), 0.0):
        raw = part(content([label, label], 0, b"")) + part(content([0], 1, PACKED.images[0]))
        PACKED.write(tmp_path, raw, b"0\t0\n1\t40\n")
        with pytest.raises(DataCorrupted, match=r"record 0 of .* is a header|lacks the key 2"):
            len(FaceRecords(tmp_path))


@pytest.mark.parametrize("kind", ["records", "folder"])
def test_a_loader_with_workers(kind, tmp_path):
    images, labels = PACKED.images * 3, [0, 1, 2, 2] * 3
    if kind == "records":
        write_records(tmp_path / "train.rec", images, labels)
    else:
        labels = sorted(labels)
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = tmp_path / f"person{label}" / "deep" / f"{row:02}.{'JPG' if image[0] == 255 else 'png'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        (tmp_path / "empty").mkdir()
        (tmp_path / "person0" / "notes.txt").write_text("none")
    faces = open_faces(tmp_path)
    assert len(faces) == 12 and faces.labels.tolist() == labels and faces.num_classes == 3
    expected = [pixels_of(image) for image in images]
    assert all(
        np.array_equal(image, expected[row]) and label == labels[row] for row, (image, label) in enumerate(faces)
    )
    loader = torch.utils.data.DataLoader(faces, batch_size=5, num_workers=2, multiprocessing_context="fork")
    batches = list(loader)
    assert torch.cat([label for _, label in batches]).tolist() == labels
    assert np.array_equal(torch.cat([image for image, _ in batches]), np.stack(expected))
    # in the order asked for, the same one twice
    items = faces.__getitems__([7, 0, 7])
    assert [np.array_equal(image, expected[row]) for (image, _), row in zip(items, (7, 0, 7), strict=True)] == [
        True
    ] * 3
    for i in (-1, 12):
        with pytest.raises(IndexError, match="from 0 to 11"):
            faces[i]


def test_folders_of_images(tmp_path):
    for name, raw in (("b/2.png", PACKED.images[0]), ("b/1.jpg", b"GIF89a"), ("a/x.jpeg", PACKED.images[1])):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(raw)
    faces = open_faces(tmp_path)
    assert faces.classes == ("a", "b") and faces.labels.tolist() == [0, 1, 1]
    assert [faces.key(row) for row in range(3)] == ["a/x.jpeg", "b/1.jpg", "b/2.png"]
    with pytest.raises(DataCorrupted, match=r"b/1\.jpg is neither a JPEG nor a PNG"):
        load(faces, [0, 1])
    assert list(faces.damaged()) == ["b/1.jpg"]
    kept = open_faces(tmp_path, skip=faces.damaged())
    assert load(kept, [0, 1])[1].tolist() == [0, 1]
    assert torch.equal(pickle.loads(pickle.dumps(kept)).image(1), kept.image(1))
    with pytest.raises(ValueError, match="one folder a class"):
        len(open_faces(tmp_path / "a"))
    with pytest.raises(ValueError, match=r"skip must hold keys of images in .*, got 'c'"):
        len(open_faces(tmp_path, skip=["c"]))


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
        "got a.dat": (tmp_path / "a.dat", PACKED.images, [0] * 4),
        "ends after 3": (path, PACKED.images, [0] * 3),
        "ends after 4": (path, iter(PACKED.images), [0] * 5),
        "at least one": (path, [], []),
        "image 1 must be the bytes": (path, [PACKED.images[0], b"GIF89a"], [0, 1]),
        "label 0 .* got 0.5": (path, PACKED.images, [0.5] * 4),
        "label 1 .* got -1": (path, PACKED.images, [0, -1, 0, 0]),
        "label 0 .* got nan": (path, PACKED.images, [float("nan")] * 4),
        "from 0 to 16777215, got 16777216": (path, PACKED.images, [2**24] * 4),
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
        "must hold a key, a tab and an offset in each line, got .* no data": (rec, b""),
        "cut off": (rec[:-4], idx),
        "cannot begin at byte": (rec[: at[5]], idx),
        "record 1 of .* has 0x00000000 at byte 0, not the magic number 0xced7230a": (changed(at[1], bytes(4)), idx),
        "record 2 of .* is cut off: it ends at byte": (changed(at[2] + 4, struct.pack("<I", 2**29 - 1)), idx),
        "record 1 of .* begins .* with a part of kind 2": (changed(at[1] + 7, b"\x40"), idx),
        "record 2 of .* goes on at byte .* with a part of kind 0": (changed(at[2] + 7, b"\x20"), idx),
        "record 2 of .* ends at byte .* no other record": (changed(at[2] + 4, struct.pack("<I", 40)), idx),
        "too few for the 4294967295 labels": (changed(at[2] + 8, b"\xff" * 4), idx),
        "record 2 of .* has the label 0.5": (changed(at[2] + 32, struct.pack("<f", 0.5)), idx),
        "record 2 of .* has the label -1.0": (changed(at[2] + 32, struct.pack("<f", -1)), idx),
        "record 2 of .* has the label nan": (changed(at[2] + 32, struct.pack("<f", float("nan"))), idx),
        "has the key 2 more than once": (rec, idx.replace(b"3\t", b"2\t")),
        "has the offset 0 more than once": (rec, idx.replace(b"2\t%d" % at[2], b"2\t0")),
        "lacks the key 2, the images have the keys 1 to 4": (rec, idx.replace(b"2\t", b"12\t")),
        "must hold a key, a tab and an offset in each line, got .*'2;": (rec, idx.replace(b"2\t", b"2;")),
        "must hold a key, a tab and an offset in each line, got .*'ÿ1'": (rec, b"\xff" + idx),
        "must hold a key, a tab and an offset in each line, got a negative": (rec, b"-" + idx),
        "must hold a key, a tab and an offset in each line, got .*'1.'": (rec, b"1." + idx[1:]),
        "too many for the index": (rec, idx * 200),
        "record 2 of .* cannot begin at byte": (rec, idx.replace(b"2\t%d" % at[2], b"2\t%d" % (at[2] + 2))),
        "cannot begin at byte 999999": (rec, idx.replace(b"2\t%d" % at[2], b"2\t999999")),
        "lacks the key 7, .* keys 1 to 999": (header(1000, 1002), idx),
        "is a header with the labels nan and 7": (header(float("nan"), 7), idx),
        "record 6 of .* has 8 bytes, its header alone": (rec[: at[6]] + part(bytes(8)), idx),
        "record 6 of .* has no image, and record 0 is not a header": (rec, idx.replace(b"\n0\t%d\n" % at[0], b"\n")),
    }
    for number, (message, (raw, index)) in enumerate(bad.items()):
        folder = PACKED.write(tmp_path / str(number), raw, index)
        with pytest.raises(DataCorrupted, match=message):
            found = FaceRecords(folder)
            load(found, range(len(found)))
    folder = PACKED.write(tmp_path / "property", property=b"2,9,12")
    with pytest.raises(DataCorrupted, match=r"record 3 of .* has the label 2.0, allowed are whole numbers from 0 to 1"):
        load(FaceRecords(folder), [2])
    with pytest.raises(FileNotFoundError):
        len(FaceRecords(tmp_path / "nowhere.rec"))


def test_images_that_cannot_be_decoded_are_named(tmp_path):
    images = [PACKED.images[0], encoded(5, "PNG", (12, 9)), PACKED.images[1][:-200], encoded(6, "PNG", (1, 5000))]
    write_records(tmp_path / "a.rec", images, range(4))
    found = FaceRecords(tmp_path / "a.rec")
    assert found.labels.tolist() == [0, 1, 2, 3] and found.image(1).shape == (3, 12, 9)
    with pytest.raises(DataCorrupted, match=r"record 2 of .*a.rec is no readable JPEG or PNG image"):
        found.image(2)
    with pytest.raises(DataCorrupted, match=r"record 3 of .*a.rec has 5000 x 1 pixels"):
        found.image(3)
    for row in (4, -1):
        with pytest.raises(IndexError, match=f"i must be from 0 to 3, got {row}"):
            found.image(row)


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
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                images, labels = load(found, range(len(found)))
            except DataCorrupted as error:
                assert str(folder / "train.") in str(error)
                return "refused"
        count = len(found)
        assert labels.tolist() == PACKED.labels[:count] and np.array_equal(images.numpy(), expected[:count])
        return "original" if count == 4 else "announced" if said else "shorter"

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
