from __future__ import annotations

import hashlib
import io
import re
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reprolib.data import DataCorrupted, DataUnavailable, data_root, fetch, load_orl
from reprolib.data.faces import CLEAN, LABELS, REPAIRED, OrlRecipe, parse_pgm
from reprolib.data.files import Tree

PIXELS = 112 * 92
URL = OrlRecipe.mirrors[0]


def picture(seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, PIXELS, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("header", [b"P5\n92 112\n255\n", b"P5 92 112 255 ", b"P5\n# a comment\n#more\n92 112\n255\n"])
def test_pgm_pixels_are_taken_as_they_are(header):
    # a first pixel that looks like white space belongs to the picture
    pixels = b"\n\r " + picture()[3:]
    assert parse_pgm(header + pixels, "a.pgm") == pixels


def test_newline_conversion_is_undone():
    pixels = picture().replace(b"\r\n", b"ab")
    converted = (b"P5\n92 112\n255\n" + pixels).replace(b"\n", b"\r\n")
    assert len(converted) > PIXELS + 20
    assert parse_pgm(converted, "a.pgm") == pixels


def test_a_lost_carriage_return_is_filled_in_only_where_one_pixel_is_missing():
    pixels = bytearray(picture().replace(b"\r\n", b"ab"))
    pixels[500:502] = b"\r\n"
    # the damage: the conversion back and forth swallows the picture's own carriage return
    damaged = (b"P5\n92 112\n255\n" + bytes(pixels)).replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
    assert parse_pgm(damaged, "a.pgm", lost_return=500) == bytes(pixels)
    with pytest.raises(DataCorrupted, match=r"a\.pgm has 10303 pixels instead of 10304"):
        parse_pgm(damaged, "a.pgm")
    complete = b"P5\n92 112\n255\n" + bytes(pixels)
    assert parse_pgm(complete, "a.pgm", lost_return=500) == bytes(pixels)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"P5\n92 112\n255",
        b"P2\n92 112\n255\n" + bytes(PIXELS),
        b"P5\n112 92\n255\n" + bytes(PIXELS),
        b"P5\n92 112\n65535\n" + bytes(2 * PIXELS),
        b"P5\n92 112\n255\n" + bytes(PIXELS - 1),
        b"P5\n92 112\n255\n" + bytes(PIXELS + 1),
    ],
)
def test_other_pgm_files_are_refused(raw):
    with pytest.raises(DataCorrupted, match=r"^a\.pgm "):
        parse_pgm(raw, "a.pgm")


@given(st.one_of(st.binary(max_size=100), st.binary(max_size=40).map(lambda tail: b"P5\n92 112\n255\n" + tail)))
def test_arbitrary_bytes_are_no_picture(raw):
    with pytest.raises(DataCorrupted):
        parse_pgm(raw, "a.pgm", lost_return=7)


@pytest.mark.parametrize("layout", ["pgm folder", "zip", "zip with a folder", "npz"])
def test_every_source_gives_the_same_file(fake_faces, tmp_path, layout, network):
    source = tmp_path / "source"
    source.mkdir()
    if layout == "pgm folder":
        for name, raw in fake_faces.pgm().items():
            path = source / "faces" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
    elif layout == "npz":
        source = source / "orl_faces.npz"
        labels = np.repeat(np.arange(40), 10).astype(np.uint8)
        np.savez_compressed(source, images=fake_faces.images, labels=labels)
    else:
        source = source / "att_faces.zip"
        source.write_bytes(fake_faces.zip("att_faces/" if layout.endswith("folder") else ""))
    assert fetch("orl", tmp_path / "root", source) == tmp_path / "root" / "orl"
    path = tmp_path / "root" / "orl" / "orl.npz"
    stored = np.load(path, allow_pickle=False)
    assert np.array_equal(stored["images"], fake_faces.images) and stored["images"].dtype == np.uint8
    assert stored["labels"].tolist() == [k // 10 for k in range(400)] and stored["labels"].dtype == np.uint8
    assert path.read_bytes() == fake_faces.recipe.pack({"images": fake_faces.images, "labels": LABELS})
    assert network.asked == []


def test_the_archive_is_taken_from_its_home(fake_faces, tmp_path, network, capsys):
    network.files[URL] = fake_faces.zip()
    faces = load_orl(tmp_path)
    assert network.asked == [URL]
    assert faces.name == "orl" and faces.num_classes == 40
    assert faces.images.shape == (400, 1, 112, 92) and faces.images.dtype == torch.uint8
    assert faces.labels.dtype == torch.int64 and faces.labels.tolist() == [k // 10 for k in range(400)]
    assert np.array_equal(faces.images[:, 0].numpy(), fake_faces.images)
    assert faces.fingerprint == hashlib.sha256(fake_faces.images.tobytes()).hexdigest()[:16]
    assert "orl: from www.cl.cam.ac.uk, checksum correct" in capsys.readouterr().err
    assert load_orl(tmp_path, device="meta").images.device.type == "meta"
    assert capsys.readouterr().err == ""


def test_an_incomplete_or_altered_archive_is_refused(fake_faces, tmp_path, network):
    source = tmp_path / "source"
    source.mkdir()
    files = fake_faces.pgm()
    for name, message in (
        ("s7/3.pgm", "lacks 1 of the 400 PGM files"),
        ("s8/10.pgm", "must have the published SHA256"),
    ):
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as bundle:
            for key, raw in files.items():
                if key != name:
                    bundle.writestr(key, raw)
                elif "SHA" in message:
                    bundle.writestr(key, raw[:-1] + bytes([raw[-1] ^ 1]))
        (source / "att_faces.zip").write_bytes(stream.getvalue())
        with pytest.raises(DataUnavailable, match=re.escape(message)):
            fetch("orl", tmp_path / "root", source)
        assert not (tmp_path / "root").exists()


def npz(**members: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        for name, raw in members.items():
            bundle.writestr(f"{name}.npy", raw)
    return stream.getvalue()


def npy(array: np.ndarray, **options) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, **options)
    return stream.getvalue()


def header_of(shape: bytes) -> bytes:
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': " + shape
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text


def test_npz_files_of_another_content_are_refused_with_their_name(fake_faces):
    images, labels = fake_faces.images, np.repeat(np.arange(40), 10).astype(np.uint8)
    good = npz(images=npy(images), labels=npy(labels))

    def collect(raw: bytes):
        return fake_faces.recipe.collect(Tree.memory({"orl_faces.npz": raw}, "F"))

    assert np.array_equal(collect(good)[0]["images"], images)
    header = npy(images)[:128]
    huge = header.replace(b"(400, 112, 92)", b"(400000000000, 112, 92)").replace(b" " * 9 + b"\n", b"\n")
    bad = {
        "no labels": npz(images=npy(images)),
        "float": npz(images=npy(images.astype(np.float32)), labels=npy(labels)),
        "few": npz(images=npy(images[:10]), labels=npy(labels)),
        "fortran": npz(images=npy(np.asfortranarray(images)), labels=npy(labels)),
        "version": npz(images=npy(images, version=(2, 0)), labels=npy(labels)),
        "order": npz(images=npy(images[::-1].copy()), labels=npy(labels)),
        "labels": npz(images=npy(images), labels=npy(labels[::-1].copy())),
        "objects": npz(images=npy(np.array([print], dtype=object)), labels=npy(labels)),
        "header": npz(images=b"\x93NUMPY\x01\x00\xff\xffgarbage", labels=npy(labels)),
        "huge": npz(images=huge, labels=npy(labels)),
        "short": npz(images=npy(images)[:-1], labels=npy(labels)),
        "long": npz(images=npy(images) + b"x", labels=npy(labels)),
        "nested": npz(images=header_of(b"(" * 500), labels=npy(labels)),
        "minus": npz(images=header_of(b"-" * 3000), labels=npy(labels)),
        "negative": npz(images=header_of(b"(-1,)"), labels=npy(labels)),
        "keys": npz(images=b"\x93NUMPY\x01\x00\x0b\x00{1: 2, 'd'}\n", labels=npy(labels)),
        "no zip": npy(images),
        "empty": b"",
    }
    for kind, raw in bad.items():
        found, (reason,) = collect(raw)
        assert found is None and ("orl_faces.npz in F" in reason or kind in ("order", "labels")), kind


def test_a_damaged_file_is_fetched_again(fake_faces, tmp_path, network):
    path = tmp_path / "orl" / "orl.npz"
    path.parent.mkdir()
    path.write_bytes(fake_faces.recipe.pack({"images": fake_faces.images, "labels": LABELS})[:-100])
    with pytest.raises(DataUnavailable, match=r"orl\.npz"):
        load_orl(tmp_path)
    network.files[URL] = fake_faces.zip()
    assert np.array_equal(load_orl(tmp_path).images[:, 0].numpy(), fake_faces.images)


def test_the_file_of_older_folders_is_converted(fake_faces, tmp_path, network):
    path = tmp_path / "orl" / "orl_faces.npz"
    path.parent.mkdir()
    np.savez_compressed(path, images=fake_faces.images, labels=LABELS)
    assert np.array_equal(load_orl(tmp_path).images[:, 0].numpy(), fake_faces.images)
    path.unlink()
    assert np.array_equal(load_orl(tmp_path).images[:, 0].numpy(), fake_faces.images) and network.asked == []


def test_the_real_faces_if_this_machine_has_them():
    if not any((data_root() / "orl" / name).is_file() for name in ("orl.npz", "orl_faces.npz")):
        pytest.skip("the ORL faces are not on this machine")
    faces = load_orl()
    assert faces.fingerprint in {CLEAN[:16], REPAIRED[:16]}
    pixels = faces.images.flatten(1).double()
    # squared distances of integers below 2^53 are exact in float64
    gram = pixels @ pixels.T
    distance = gram.diagonal()[:, None] + gram.diagonal()[None, :] - 2 * gram
    nearest = distance.fill_diagonal_(float("inf")).argmin(dim=1)
    # leave-one-out nearest neighbour on raw pixels; 97.5 % is what the intact set gives
    assert (faces.labels[nearest] == faces.labels).sum().item() == 390
