"""A set that goes through every format comes back with the same bytes; the script that does it says what it did."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_facesets import CLASSES, COUNT, FILES, LABELS, NAMES, compressed, encoded, folder

from reprolib.data import FacePairs, FaceRecords, converting, load_facebin, open_faces, open_pairs, write_facebin
from reprolib.data.alignment import TEMPLATE, align
from reprolib.data.converting import aligned, read_landmarks, read_names, select, write_faces

SCRIPT = Path(__file__).parents[2] / "data_scripts" / "prepare_faces.py"
main = runpy.run_path(str(SCRIPT))["main"]
CHAIN = ("a.rec", "b.tar", "c.parquet", "d.lmdb", "e.zip", "f-{}.tar", "g")


def contents(path) -> list[tuple[bytes, int]]:
    faces = open_faces(path)
    assert faces.num_classes == CLASSES
    return [faces.encoded(k) for k in range(len(faces))]


def test_a_set_goes_through_all_formats_and_comes_back_the_same(tmp_path, capsys):
    pytest.importorskip("pyarrow")
    pytest.importorskip("lmdb")
    expected = list(zip(FILES, LABELS, strict=True))
    path = folder(tmp_path / "start")
    for name in CHAIN:
        target = tmp_path / name
        assert main([str(path), str(target), "--per-tar", "5"]) == 0
        said = capsys.readouterr().out
        assert f"{COUNT} images of {CLASSES} identities, 3 to 4 each, median 3; the first has 8x6 pixels" in said
        path = Path(str(target).replace("{}", "*"))
        assert contents(path) == expected, name
    assert len(list(tmp_path.glob("f-*.tar"))) == 3
    # of the records each has its identity: the labels come from these
    found = FaceRecords(tmp_path / "a.rec")
    assert found._labels_of_identities().tolist() == LABELS
    # the same images make the same files
    for name in ("a.rec", "b.tar", "c.parquet", "e.zip"):
        again = tmp_path / "again" / name
        assert main([str(tmp_path / "g"), str(again)]) == 0
        assert again.read_bytes() == (tmp_path / name).read_bytes()
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_pairs_go_through_parquet_and_come_back_the_same(tmp_path, capsys):
    arrow = pytest.importorskip("pyarrow")
    write_facebin(
        tmp_path / "a.bin", [(FILES[0], FILES[1]), (FILES[2], FILES[2]), (FILES[4], FILES[3])], [True, True, False]
    )
    assert main([str(tmp_path / "a.bin"), str(tmp_path / "b.parquet")]) == 0
    assert "3 pairs, 2 of one person and 1 of two" in capsys.readouterr().out
    assert main([str(tmp_path / "b.parquet"), str(tmp_path / "c.bin")]) == 0
    first, last = (load_facebin(tmp_path / name) for name in ("a.bin", "c.bin"))
    assert last.encoded == first.encoded == (*FILES[:3], FILES[2], FILES[4], FILES[3])
    assert last.same.tolist() == first.same.tolist()
    found = open_pairs(tmp_path / "b.parquet")
    assert isinstance(found, FacePairs) and found.same.tolist() == [True, True, False]
    assert torch.equal(found.pair(2), open_pairs(tmp_path / "a.bin").pair(2))
    # as hubs have them: images as bytes, truth as bool
    table = arrow.table({"image1": FILES[:2], "image2": FILES[2:4], "label": [False, True]})
    import pyarrow.parquet

    pyarrow.parquet.write_table(table, tmp_path / "d.parquet")
    assert open_pairs(tmp_path / "d.parquet").encoded == (FILES[0], FILES[2], FILES[1], FILES[3])
    for label, image, message in (
        ([0, 2], FILES[2:4], "must have the labels 0 and 1, got 2"),
        ([0, 1], [FILES[2], None], "image 3 of .* must be the bytes"),
    ):
        table = arrow.table({"image1": FILES[:2], "image2": arrow.array(image, arrow.binary()), "label": label})
        pyarrow.parquet.write_table(table, tmp_path / "e.parquet")
        with pytest.raises(ValueError, match=message):
            open_pairs(tmp_path / "e.parquet")
    assert main([str(tmp_path / "a.bin"), str(tmp_path / "f.rec")]) == 2
    assert "target of pairs must end with .bin or .parquet, got f.rec" in capsys.readouterr().err


def test_identities_are_removed_and_orders_kept(tmp_path, capsys):
    path = folder(tmp_path / "start")
    listed = tmp_path / "overlap.txt"
    listed.write_text("s1  # in LFW\n\nsomebody else\n")
    assert read_names(listed) == ["s1", "somebody else"]
    assert main([str(path), str(tmp_path / "a.tar"), "--remove", str(listed), "--order", "shuffled"]) == 0
    said = capsys.readouterr().out
    assert "1 identities removed, 1 names of the list are not in the set" in said
    found = open_faces(tmp_path / "a.tar")
    left = [(raw, label - (label > 1)) for raw, label in zip(FILES, LABELS, strict=True) if label != 1]
    here = [found.encoded(k) for k in range(len(found))]
    assert sorted(here) == sorted(left) and here != left
    stored = select(open_faces(path), order="stored")
    assert stored.rows.tolist() == list(range(COUNT)) and stored.labels.tolist() == LABELS
    with pytest.raises(ValueError, match="at least one identity must be left"):
        select(open_faces(path), [f"s{k}" for k in range(CLASSES)])
    with pytest.raises(ValueError, match="order must be one of 'label', 'stored', 'shuffled'"):
        select(open_faces(path), order="random")
    with pytest.raises(ValueError, match=r"target must end with .rec, .tar, .*, got a.npz"):
        write_faces(tmp_path / "a.npz", stored)


def test_a_set_that_cannot_be_read_in_another_order_says_so(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    table = arrow.table({"image": FILES, "label": [k % 2 for k in range(COUNT)]})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet", row_group_size=4)
    # four groups: 0 0 0 0 1 1 1 1 2 2 2 2 3; by label even and odd rows, so 4 + 3 reads instead of 4
    faces = open_faces(tmp_path / "a.parquet")
    assert faces.rereads(select(faces).rows) == 7 / 4 and faces.rereads(select(faces, order="stored").rows) == 1
    packed = open_faces(compressed(tmp_path))
    assert packed.rereads(np.arange(COUNT)) == 1 and packed.rereads(np.array([3, 1, 2, 0])) == 3
    assert open_faces(folder(tmp_path / "start")).rereads(np.array([3, 1, 2, 0])) == 1
    monkeypatch.setattr(converting, "REREADS", 1.5)
    with pytest.raises(ValueError, match=r"order must be 'stored' for .*a.parquet: .* would be read 2 times over"):
        write_faces(tmp_path / "b.rec", select(faces))
    write_faces(tmp_path / "b.rec", select(faces, order="stored"))
    assert FaceRecords(tmp_path / "b.rec").labels.tolist() == [k % 2 for k in range(COUNT)]


def test_damaged_images_are_left_out_if_asked_for(tmp_path, capsys):
    path = folder(tmp_path / "start")
    (path / NAMES[3]).write_bytes(FILES[3][:60])
    assert main([str(path), str(tmp_path / "a.rec"), "--skip-damaged"]) == 0
    said = capsys.readouterr()
    assert f"left out: {path / NAMES[3]} is no readable" in said.err and "1 of 13 images left out" in said.out
    assert len(open_faces(tmp_path / "a.rec")) == COUNT - 1
    (path / NAMES[3]).write_bytes(b"GIF89a")
    assert main([str(path), str(tmp_path / "b.rec")]) == 1
    assert "is neither a JPEG nor a PNG" in capsys.readouterr().err
    assert not (tmp_path / "b.rec").exists()
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "b.rec")]) == 1


def test_faces_are_aligned_by_their_landmarks(tmp_path, capsys):
    raw = encoded(3, size=(150, 130))
    points = TEMPLATE * 1.1 + [4, 7]
    face = Image.open(io.BytesIO(aligned(raw, points, "x", png=True)))
    assert np.array_equal(face, align(Image.open(io.BytesIO(raw)), points)) and face.size == (112, 112)
    narrow = Image.open(io.BytesIO(aligned(raw, points, "x", width=96, png=True)))
    # the template of 112 x 96 lies 8 pixels further left
    expected = align(Image.open(io.BytesIO(raw)), points, TEMPLATE - [8, 0]).crop((0, 0, 96, 112))
    assert narrow.size == (96, 112)
    assert np.abs(np.asarray(narrow).astype(int) - np.asarray(expected)).max() <= 1
    for k in range(3):
        file = tmp_path / "start" / f"person {k % 2}" / f"{k}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(k, size=(150, 130)))
    lines = [f"person {k % 2}/{k}.png\t" + " ".join(f"{value:.3f}" for value in points.ravel()) for k in range(2)]
    (tmp_path / "points.txt").write_text("\n".join(lines))
    assert np.abs(read_landmarks(tmp_path / "points.txt")["person 1/1.png"] - points).max() < 1e-3
    given = [str(tmp_path / "start"), str(tmp_path / "a.zip"), "--landmarks", str(tmp_path / "points.txt"), "--png"]
    assert main(given) == 1
    assert "the landmarks lack person 0/2.png" in capsys.readouterr().err
    assert main([*given, "--skip-damaged", "--width", "96"]) == 0
    assert "person 0/2.png has no landmarks" in capsys.readouterr().err
    made = open_faces(tmp_path / "a.zip")
    assert len(made) == 2 and made.image(1).shape == (3, 112, 96)
    (tmp_path / "points.txt").write_text("a 1 2 3\n")
    with pytest.raises(ValueError, match=r"line 1 of .*points.txt must be a key and ten numbers"):
        read_landmarks(tmp_path / "points.txt")


def test_the_script_runs_by_itself(tmp_path):
    path = folder(tmp_path / "start")
    done = subprocess.run([sys.executable, SCRIPT, path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.startswith(f"{COUNT} images of {CLASSES} identities"), done.stderr
