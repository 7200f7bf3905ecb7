"""One interface for all formats: the same bytes, labels, batches and streams from each, and from each to each."""

from __future__ import annotations

import base64
import io
import pickle
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from reprolib.data import (
    DataCorrupted,
    FaceArchives,
    FaceImages,
    FaceList,
    FaceParquet,
    faceimages,
    open_faces,
    write_lmdb,
    write_parquet,
    write_records,
    write_tars,
)
from reprolib.data.files import several

COUNT, CLASSES = 13, 4


def encoded(seed: int, kind: str = "PNG", size: tuple[int, int] = (8, 6)) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


FILES = [encoded(k, "JPEG" if k % 3 else "PNG") for k in range(COUNT)]
LABELS = sorted(k % CLASSES for k in range(COUNT))
PIXELS = [np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).transpose(2, 0, 1) for raw in FILES]
NAMES = [
    f"s{label}/{k:02}.{'png' if raw[0] == 137 else 'jpg'}"
    for k, (label, raw) in enumerate(zip(LABELS, FILES, strict=True))
]


def tar_bytes(files: dict[str, bytes], mode: str = "w", kind: int = tarfile.GNU_FORMAT) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, format=kind) as bundle:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            bundle.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def samples(files=FILES, labels=LABELS) -> dict[str, bytes]:
    """As webdataset's writer names them, with a part that is of no use here."""
    found: dict[str, bytes] = {}
    for k, (raw, label) in enumerate(zip(files, labels, strict=True)):
        found |= {f"{k:06}.cls": b"%d" % label, f"{k:06}.json": b"{}", f"{k:06}.{NAMES[k][-3:]}": raw}
    return found


def records(folder: Path, files=FILES) -> Path:
    write_records(folder / "train.rec", FILES, LABELS, identities=True)
    raw = (folder / "train.rec").read_bytes()
    for before, after in zip(FILES, files, strict=True):
        raw = raw.replace(before, after)
    (folder / "train.rec").write_bytes(raw)
    return folder


def folder(top: Path, files=FILES) -> Path:
    for name, raw in zip(NAMES, files, strict=True):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(raw)
    return top


def tars(top: Path, files=FILES) -> Path:
    """Two, as other programmes write them."""
    content = list(samples(files).items())
    (top / "set-000.tar").write_bytes(tar_bytes(dict(content[:18])))
    (top / "set-001.tar").write_bytes(tar_bytes(dict(content[18:]), kind=tarfile.PAX_FORMAT))
    return top / "set-{000..001}.tar"


def compressed(top: Path, files=FILES) -> Path:
    path = top / "faces.tgz"
    path.write_bytes(tar_bytes({f"faces/{name}": raw for name, raw in zip(NAMES, files, strict=True)}, "w:gz"))
    return path


def zipped(top: Path, files=FILES) -> Path:
    path = top / "faces.zip"
    with zipfile.ZipFile(path, "w") as bundle:
        bundle.writestr("faces/read.me", "of no use")
        bundle.writestr("__MACOSX/faces/s0/._00.png", "of no use")
        for k in np.random.default_rng(0).permutation(COUNT):
            packed = zipfile.ZIP_DEFLATED if k % 2 else zipfile.ZIP_STORED
            bundle.writestr(f"faces/{NAMES[k]}", files[k], packed)
    return path


def listed(top: Path, files=FILES) -> Path:
    folder(top, files)
    path = top / "faces.lst"
    path.write_text("".join(f"{k}\t{LABELS[k]:f}\t{NAMES[k]}\n" for k in range(COUNT)))
    return path


def celebrities(top: Path, files=FILES) -> Path:
    path = top / "faces.tsv"
    rows = [f"m.0{'abcd'[LABELS[k]]}\t{k}\tu\tp\tf{k}\tr\t{base64.b64encode(files[k]).decode()}" for k in range(COUNT)]
    path.write_text("\n".join(rows) + "\n")
    return path


def parquet(top: Path, files=FILES) -> Path:
    """Two files with row groups of four, images as bytes alone."""
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    for number, rows in enumerate((slice(0, 9), slice(9, None))):
        table = arrow.table({"img": arrow.array(files[rows], arrow.binary()), "label": LABELS[rows]})
        pyarrow.parquet.write_table(table, top / f"{number}.parquet", row_group_size=4)
    return top


def lmdb_set(top: Path, files=FILES) -> Path:
    """As folder2lmdb scripts write it."""
    lmdb = pytest.importorskip("lmdb")
    with (
        lmdb.open(str(top / "set.lmdb"), subdir=False, map_size=2**24) as environment,
        environment.begin(write=True) as to,
    ):
        for k in range(COUNT):
            to.put(b"%d" % k, pickle.dumps((files[k], LABELS[k])))
        to.put(b"__len__", pickle.dumps(COUNT))
        to.put(b"__keys__", pickle.dumps([b"%d" % k for k in range(COUNT)]))
    return top / "set.lmdb"


FORMATS = (records, folder, tars, compressed, zipped, listed, celebrities, parquet, lmdb_set)
every_format = pytest.mark.parametrize("write", FORMATS, ids=lambda write: write.__name__)


@every_format
def test_each_format_holds_the_same_set(write, tmp_path, monkeypatch):
    monkeypatch.setattr(faceimages, "BLOCK", 3)
    faces = open_faces(write(tmp_path))
    assert isinstance(faces, FaceImages)
    assert len(faces) == COUNT and faces.num_classes == CLASSES
    assert faces.labels.dtype == torch.int64 and faces.labels.tolist() == LABELS
    assert [faces.encoded(k) for k in range(COUNT)] == list(zip(FILES, LABELS, strict=True))
    assert np.array_equal(faces.image(12).numpy(), PIXELS[12]) and faces[5][1] == LABELS[5]
    batches = list(faces.batches(5))
    assert [len(labels) for _, labels in batches] == [5, 5, 3]
    assert np.array_equal(torch.cat([images for images, _ in batches]), np.stack(PIXELS))
    assert torch.cat([labels for _, labels in batches]).tolist() == LABELS
    # the order asked for, not the order of the disk
    assert [label for _, label in faces.__getitems__([12, 0, 12, 6])] == [LABELS[k] for k in (12, 0, 12, 6)]
    for wrong in (-1, COUNT):
        with pytest.raises(IndexError, match=f"i must be from 0 to 12, got {wrong}"):
            faces.image(wrong)
        with pytest.raises(IndexError, match=f"got {wrong}"):
            faces.__getitems__([0, wrong])
    # a copy for another process is a path
    assert len(pickle.dumps(faces)) < 500
    assert pickle.loads(pickle.dumps(faces)).encoded(3) == (FILES[3], LABELS[3])
    keys = [faces.key(k) for k in range(COUNT)]
    assert len(set(keys)) == COUNT
    kept = open_faces(faces.path, skip=keys[2:5])
    assert len(kept) == COUNT - 3 and kept.encoded(2) == (FILES[5], LABELS[5])
    with pytest.raises(ValueError, match=r"skip must hold keys of images in .*, got 'nobody'"):
        len(open_faces(faces.path, skip=["nobody"]))


def place_of(image: torch.Tensor) -> int:
    return next(k for k, pixels in enumerate(PIXELS) if np.array_equal(image, pixels))


@every_format
def test_a_stream_has_each_image_once_in_an_order_of_its_own(write, tmp_path, monkeypatch):
    monkeypatch.setattr(faceimages, "BLOCK", 3)
    faces = open_faces(write(tmp_path))
    plain = faces.stream(None)
    assert sorted(place_of(image) for image, _ in plain) == list(range(COUNT))
    if write is not zipped:  # its images lie in an order of their own
        assert [place_of(image) for image, _ in plain] == list(range(COUNT))
    orders = []
    for epoch in (0, 1, 0):
        stream = faces.stream(7, buffer=4)
        stream.set_epoch(epoch)
        orders.append([place_of(image) for image, label in stream if label == LABELS[place_of(image)]])
    assert all(sorted(order) == list(range(COUNT)) for order in orders)
    assert orders[0] == orders[2] != orders[1] and orders[0] != sorted(orders[0])
    # two processes with two workers each: six images each, no two the same
    seen = []
    for rank in (0, 1):
        stream = faces.stream(7, buffer=4, rank=rank, world=2)
        loader = DataLoader(stream, batch_size=2, num_workers=2, multiprocessing_context="fork")
        seen.append([place_of(image) for images, _ in loader for image in images])
        assert len(stream) == len(seen[rank]) == 6
    assert len({*seen[0], *seen[1]}) == 12


@every_format
def test_one_bad_image_is_reported_and_left_out(write, tmp_path, monkeypatch):
    files = [*FILES[:4], b"GIF89a" + FILES[4][6:], *FILES[5:9], FILES[9][:40].ljust(len(FILES[9])), *FILES[10:]]
    faces = open_faces(write(tmp_path, files))
    assert faces.labels.tolist() == LABELS
    with pytest.raises(DataCorrupted, match="neither a JPEG nor a PNG"):
        faces.image(4)
    assert list(faces.damaged()) == [faces.key(4)]
    damaged = faces.damaged(pixels=True)
    assert set(damaged) == {faces.key(4), faces.key(9)}
    assert str(tmp_path) in damaged[faces.key(9)]
    kept = open_faces(faces.path, skip=damaged)
    assert kept.damaged(pixels=True) == {} and len(kept) == COUNT - 2
    assert kept.labels.tolist() == [label for k, label in enumerate(LABELS) if k not in (4, 9)]
    with pytest.raises(DataCorrupted):
        list(faces.stream())
    with pytest.warns(UserWarning, match=r"left out: .*(neither a JPEG|no readable)"):
        assert len(list(faces.stream(skip_damaged=True))) == COUNT - 2


@every_format
def test_a_kept_index_is_read_while_it_is_of_the_same_files(write, tmp_path, monkeypatch):
    path, index = write(tmp_path), tmp_path.parent / f"{tmp_path.name}.index.npz"
    faces = open_faces(path, index=index)
    assert faces.labels.tolist() == LABELS and index.is_file()
    made = index.stat().st_mtime_ns
    again = pickle.loads(pickle.dumps(faces))
    monkeypatch.setattr(type(again), "_all_labels" if write is records else "_scan", None)
    assert again.labels.tolist() == LABELS and again.encoded(7) == (FILES[7], LABELS[7])
    assert index.stat().st_mtime_ns == made
    monkeypatch.undo()
    # a longer name, another file: made anew
    next(file for file in faces._files() if file.exists()).touch()
    assert open_faces(path, index=index).labels.tolist() == LABELS
    assert index.stat().st_mtime_ns != made
    index.write_bytes(b"PK\3\4 something else")
    with pytest.raises(DataCorrupted, match="index must be a file that was made as one"):
        print(open_faces(path, index=index).labels)


@pytest.mark.slow
@every_format
def test_workers_that_are_spawned(write, tmp_path):
    faces = open_faces(write(tmp_path))
    loader = DataLoader(faces, batch_size=5, num_workers=2, multiprocessing_context="spawn")
    assert [place_of(image) for images, _ in loader for image in images] == list(range(COUNT))


LISTS = {
    "im2rec": "0\t2.0\tp/0.jpg\n1\t0\tp/1.jpg\n",
    "im2rec with two labels": "0\t2.0\t7\tp/0.jpg\n1\t0\t8\tp/1.jpg\n",
    "insightface": "1\tp/0.jpg\t2\n1\tp/1.jpg\t0\n",
    "insightface with points": "1\tp/0.jpg\t2\t" + "\t".join("123456789") + "\n1\tp/1.jpg\t0\n",
    "path and label": "p/0.jpg\t2\r\n\r\np/1.jpg\t0\r\n",
    "label and path": "2\tp/0.jpg\n0\tp/1.jpg",
}


@pytest.mark.parametrize("kind", LISTS)
def test_lists(kind, tmp_path):
    (tmp_path / "p").mkdir()
    for k in range(2):
        (tmp_path / "p" / f"{k}.jpg").write_bytes(FILES[k])
    (tmp_path / "a.lst").write_bytes(LISTS[kind].encode())
    faces = open_faces(tmp_path / "a.lst")
    assert isinstance(faces, FaceList) and faces.labels.tolist() == [2, 0] and faces.num_classes == 3
    assert [faces.encoded(k)[0] for k in range(2)] == FILES[:2] and faces.key(1) == "p/1.jpg"
    (tmp_path / "p" / "1.jpg").unlink()
    assert list(faces.damaged()) == ["p/1.jpg"] and "is no file" in faces.damaged()["p/1.jpg"]


def test_lists_of_other_forms_are_refused(tmp_path):
    path = tmp_path / "a.lst"
    for text, message in (
        ("", "must name at least one image"),
        ("a b.jpg\n", "line 1 of .*a.lst must have the columns"),
        ("a.jpg\tb.jpg\n", "line 1 of .*a.lst must have the columns"),
        ("1\ta.jpg\t3\n1\tb.jpg\n", "line 2 of .*a.lst must have at least 3 columns, got 2"),
        ("a.jpg\t-1\n", "whole numbers from 0 on as labels, got -1"),
        ("a.jpg\t1.5\n", "whole numbers from 0 on as labels, got 1.5"),
        ("a.jpg\tnan\n", "whole numbers from 0 on as labels, got nan"),
    ):
        path.write_text(text)
        with pytest.raises(DataCorrupted, match=message):
            print(open_faces(path).labels)
    # names are numbered in alphabetical order
    path.write_text("a.jpg\tZoe\nb.jpg\tAnn\n")
    faces = open_faces(path)
    assert faces.labels.tolist() == [1, 0] and faces.classes == ("Ann", "Zoe") and faces.class_name(1) == "Zoe"
    celebrities(tmp_path)
    text = (tmp_path / "faces.tsv").read_text().splitlines()
    (tmp_path / "faces.tsv").write_text("\n".join([text[0], text[1][:-9] + "*"]))
    with pytest.raises(DataCorrupted, match=r"line 2 of .*faces.tsv holds no image in base64"):
        open_faces(tmp_path / "faces.tsv").image(1)


def test_a_sample_without_a_class_is_reported_and_can_be_left_out(tmp_path):
    files = samples(FILES[:4], [3, 0, 1, 2])
    del files["000001.cls"]
    files["000002.cls"] = b"one"
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    faces = FaceArchives(tmp_path / "a.tar")
    assert faces.encoded(3) == (FILES[3], 2)
    with pytest.raises(DataCorrupted, match=r"000001.jpg in .*a.tar has no class, which must be a whole number"):
        print(faces.labels)
    assert list(faces.damaged()) == ["000001.jpg", "000002.jpg"]
    kept = FaceArchives(tmp_path / "a.tar", skip=faces.damaged())
    assert kept.labels.tolist() == [3, 2] and kept.num_classes == 4


def test_folders_in_an_archive_are_classes(tmp_path):
    def classes_of(*names: str):
        (tmp_path / "a.tar").write_bytes(tar_bytes(dict(zip(names, FILES, strict=False))))
        return FaceArchives(tmp_path / "a.tar")

    faces = classes_of("./lfw/Bo/1.jpg", "./lfw/Al/1.jpg", "./lfw/Bo/2.jpg")
    assert faces.classes == ("Al", "Bo") and faces.labels.tolist() == [0, 1, 1]
    assert faces.encoded(0) == (FILES[1], 0) and faces.key(0) == "lfw/Al/1.jpg"
    # folders of one name in different places are two; numbers are names
    assert classes_of("x/a/1.jpg", "x/b/a/1.jpg", "x/a/2.jpg").classes == ("a", "b/a")
    assert classes_of("/x/1.jpg", "/x/y/1.jpg").classes == ("x", "x/y")
    assert classes_of("7/1.jpg", "12/1.jpg").classes == ("12", "7")
    assert classes_of("one/1.jpg").classes == ("one",)
    with pytest.raises(DataCorrupted, match=r"1.jpg in .*a.tar has neither a .cls file nor a folder"):
        len(classes_of("1.jpg", "a/1.jpg"))
    with pytest.raises(DataCorrupted, match="holds no JPEG or PNG file"):
        len(classes_of("a/1.gif"))


def test_archives_that_are_damaged_are_refused(tmp_path):
    good = tar_bytes(samples())
    packed = compressed(tmp_path).read_bytes()
    whole = zipped(tmp_path).read_bytes()
    for name, raw in (
        ("a.tar", b""),
        ("a.tar", b"\1" * 2000),
        ("a.tar", good[: len(good) // 2 + 100]),
        ("a.tar", good[:2048] + b"\1" + good[2049:]),
        ("a.tar", packed),
        ("a.tgz", good[:3]),
        ("a.tgz", packed[: len(packed) // 2]),
        ("a.tgz", packed[:-30] + bytes(30)),
        ("a.zip", b""),
        ("a.zip", whole[: len(whole) // 2]),
        ("a.zip", whole.replace(b"PK\1\2\x14\3\x14\0\0\0\0", b"PK\1\2\x14\3\x14\0\1\0\0")),
    ):
        (tmp_path / name).write_bytes(raw)
        with pytest.raises(DataCorrupted, match=rf"a\.{name[2:]}"):
            faces = FaceArchives(tmp_path / name)
            for k in range(len(faces)):
                faces.encoded(k)
    (tmp_path / "a.tar").write_bytes(good[: len(good) // 2])
    with pytest.warns(UserWarning, match=r"a.tar has no mark at its end: it may have been cut off there"):
        assert len(FaceArchives(tmp_path / "a.tar")) == 7
    # one byte of what is packed, and a file that was cut off after its index was made
    place = whole.index(FILES[2][-20:]) + 3 if FILES[2] in whole else whole.index(b"PK\1\2") - 40
    (tmp_path / "a.zip").write_bytes(whole[:place] + b"\x77" + whole[place + 1 :])
    assert len(FaceArchives(tmp_path / "a.zip").damaged(pixels=True)) <= 1
    (tmp_path / "b.tar").write_bytes(good)
    faces = FaceArchives(tmp_path / "b.tar")
    assert faces.encoded(0)[0] == FILES[0]
    (tmp_path / "b.tar").write_bytes(good[:1000])
    with pytest.raises(DataCorrupted, match="was cut off to 1000 bytes while it was open"):
        faces.image(5)
    # what claims to unfold to far more than a photograph does
    with zipfile.ZipFile(tmp_path / "c.zip", "w", zipfile.ZIP_DEFLATED) as bundle:
        bundle.writestr("a/0.jpg", FILES[1] + bytes(20_000_000))
    with pytest.raises(DataCorrupted, match="claims to have"):
        FaceArchives(tmp_path / "c.zip").image(0)


def test_a_compressed_tar_is_read_forward_once(tmp_path, monkeypatch):
    from reprolib.data import archives

    opened = []
    real = archives.open_tar
    monkeypatch.setattr(archives, "open_tar", lambda path: opened.append(path) or real(path))
    faces = FaceArchives(compressed(tmp_path))
    assert [label for _, label in faces.stream(None)] == LABELS and len(opened) == 2
    assert len(list(faces.batches(4))) == 4 and len(opened) == 3
    faces.image(2)
    assert len(opened) == 4


def test_files_that_a_name_stands_for(tmp_path):
    for name in ("a-00.tar", "a-01.tar", "a-10.tar", "b.tar", "note.txt"):
        (tmp_path / name).write_bytes(b"")

    def names(path):
        return [one.name for one in several(path, (".tar",))]

    assert names(tmp_path / "a-{00..02}.tar") == ["a-00.tar", "a-01.tar", "a-02.tar"]
    assert names(tmp_path / "a-*.tar") == ["a-00.tar", "a-01.tar", "a-10.tar"]
    assert names(tmp_path) == ["a-00.tar", "a-01.tar", "a-10.tar", "b.tar"]
    assert names(tmp_path / "note.txt") == []
    (tmp_path / "person").mkdir()
    assert names(tmp_path) == []
    with pytest.raises(ValueError, match=r"path must name archives that end with \.tar"):
        FaceArchives(tmp_path / "c-*.tar")


@pytest.mark.parametrize("layout", ["text", "pickle"])
def test_lmdb(layout, tmp_path):
    lmdb = pytest.importorskip("lmdb")
    path = tmp_path / "set.lmdb"
    if layout == "text":
        write_lmdb(path, FILES[:4], [2, 0, 1, 2])
        with pytest.raises(ValueError, match="path must be a folder that does not exist yet"):
            write_lmdb(path, FILES[:1], [0])
        with pytest.raises(ValueError, match="image 1 must be the bytes of a JPEG or PNG"):
            write_lmdb(tmp_path / "b.lmdb", [FILES[0], b"GIF89a"], [0, 1])
        with pytest.raises(ValueError, match="at least one image"):
            write_lmdb(tmp_path / "b.lmdb", [], [])
        assert [one.name for one in tmp_path.iterdir()] == ["set.lmdb"]
        change = b"label-000000003", None
    else:
        with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as to:
            for k, label in enumerate([2, 0, 1, 2]):
                to.put(b"%d" % k, pickle.dumps((FILES[k], label)))
        change = b"2", b"cos\nsystem\n(S'true'\ntR."
    assert open_faces(path).labels.tolist() == [2, 0, 1, 2]
    assert [open_faces(path).encoded(k)[0] for k in range(4)] == FILES[:4]
    # a copy of the file, in which one class is no longer there
    copy = tmp_path / "copy"
    copy.mkdir()
    (copy / "data.mdb").write_bytes((path / "data.mdb").read_bytes())
    with lmdb.open(str(copy), map_size=2**24) as environment, environment.begin(write=True) as to:
        to.delete(change[0]) if change[1] is None else to.put(*change)
    faces = open_faces(copy)
    assert len(faces) == 4 and faces.encoded(3) == (FILES[3], 2)
    assert list(faces.damaged()) == [faces.key(2)]
    assert open_faces(copy, skip=faces.damaged()).labels.tolist() == [2, 0, 2]
    (tmp_path / "bad.lmdb").write_bytes(b"x" * 9000)
    with pytest.raises(DataCorrupted, match="is not a readable LMDB"):
        len(open_faces(tmp_path / "bad.lmdb"))
    with pytest.raises(FileNotFoundError):
        len(open_faces(tmp_path / "nowhere.lmdb"))


def test_parquet_of_other_contents_is_refused(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    def put(**columns) -> Path:
        pyarrow.parquet.write_table(arrow.table(columns), tmp_path / "a.parquet")
        return tmp_path / "a.parquet"

    for columns, message in (
        ({"image": FILES[:2]}, "must have a column for the labels, called label or"),
        ({"label": [0, 1]}, "must have a column for the images, called image or"),
        ({"image": FILES[:2], "label": [0.5, 1.0]}, "whole numbers from 0 on as labels, got 0.5"),
        ({"image": arrow.array([], arrow.binary()), "label": arrow.array([], arrow.int64())}, "at least one row"),
        ({"image": FILES[:2], "label": [0, None]}, "row 1 of row group 0 of .* has no class"),
    ):
        with pytest.raises(DataCorrupted, match=message):
            print(open_faces(put(**columns)).labels)
    faces = open_faces(put(image=arrow.array([FILES[0], None], arrow.binary()), identity=["Zoe", "Ann"]))
    assert faces.labels.tolist() == [1, 0] and faces.class_name(0) == "Ann"
    assert list(faces.damaged()) == ["a.parquet/0/1"]
    with pytest.raises(DataCorrupted, match="is not a readable parquet file"):
        (tmp_path / "b.parquet").write_bytes(b"PAR1 and no more")
        len(open_faces(tmp_path / "b.parquet"))
    with pytest.raises(FileNotFoundError):
        len(open_faces(tmp_path / "nowhere.parquet"))
    write_parquet(tmp_path / "c.parquet", FILES * 50, LABELS * 50)
    faces = FaceParquet(tmp_path / "c.parquet")
    assert faces._found["places"][-1].tolist() == [0, 2, 50 * COUNT - 513] and faces.encoded(600)[0] == FILES[600 % 13]


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "a.parquet"), ("lmdb", "a.lmdb")])
def test_a_package_that_is_missing_is_named_with_its_extra(package, name, tmp_path, monkeypatch):
    (tmp_path / name).write_bytes(b"x")
    for module in [module for module in sys.modules if module.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"needs the package '{package}'; pip install 'reprolib\[data\]'"):
        len(open_faces(tmp_path / name))


def test_webdataset_reads_what_is_written_here(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    written = write_tars(tmp_path / "set-{}.tar", FILES, LABELS, per_tar=5)
    assert [path.name for path in written] == ["set-000000.tar", "set-000001.tar", "set-000002.tar"]
    found = list(webdataset.WebDataset([str(path) for path in written], shardshuffle=False))
    assert [one.get("jpg", one.get("png")) for one in found] == FILES
    assert [int(one["cls"]) for one in found] == LABELS
    for path, images, message in (
        (tmp_path / "a.tgz", FILES, "path must be called something.tar, got a.tgz"),
        (tmp_path / "a.tar", [], "at least one image, got none"),
        (tmp_path / "a.tar", [FILES[0], b"GIF89a"], "image 1 must be the bytes of a JPEG or PNG"),
    ):
        with pytest.raises(ValueError, match=message):
            write_tars(path, images, [0] * len(images))
    assert not (tmp_path / "a.tar").exists()


def test_what_a_stream_or_batches_cannot_be_asked_for(tmp_path):
    faces = open_faces(folder(tmp_path))
    for options, message in (
        ({"buffer": 0}, "buffer must be an integer >= 1, got 0"),
        ({"world": 0}, "world must be an integer >= 1, got 0"),
        ({"rank": 2, "world": 2}, "rank must be an integer between 0 and 1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            faces.stream(0, **options)
    with pytest.raises(ValueError, match="epoch must be an integer >= 0, got -1"):
        faces.stream().set_epoch(-1)
    with pytest.raises(ValueError, match="size must be an integer >= 1, got 0"):
        faces.batches(0)
    (tmp_path / NAMES[7]).write_bytes(encoded(7, size=(8, 9)))
    with pytest.raises(ValueError, match=rf"{NAMES[7]} has \(height, width\) \(8, 9\), one before it \(8, 6\)"):
        list(faces.batches(13))


def test_an_archive_that_is_streamed_is_open_in_one_process_only(tmp_path):
    # a stream of a compressed tar that was begun here is not continued by a worker
    faces = FaceArchives(compressed(tmp_path))
    assert faces.encoded(1)[0] == FILES[1]
    loader = DataLoader(faces, batch_size=13, num_workers=1, multiprocessing_context="fork")
    assert [place_of(image) for images, _ in loader for image in images] == list(range(COUNT))
    assert faces.encoded(5)[0] == FILES[5]
