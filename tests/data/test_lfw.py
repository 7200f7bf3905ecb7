"""LFW on a small stand-in with the same layouts, names and code paths; the real one where this machine has it."""

from __future__ import annotations

import gzip
import hashlib
import io
import re
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprolib.data import (
    DataCorrupted,
    DataUnavailable,
    data_root,
    datasets,
    fetch,
    lfw,
    lfw_pairs,
    load_lfw,
    load_lfw_grey,
)
from reprolib.data.alignment import TEMPLATE
from reprolib.data.lfw import ALIGNED, CROPPED, LANDMARKS, LfwRecipe, PairsRecipe, parse_landmarks
from reprolib.data.pixels import decode_image, resize_area, to_grey

KEYS = ["Aaron_Eckhart_0001", "Bo_Li_0001", "Bo_Li_0002", "Bo_Li_0010", "Jean-Luc_de_X_0001"]
PAIRS = b"1\t1\nBo_Li\t1\t2\nAaron_Eckhart\t1\tBo_Li\t10\n"


def path_of(key: str, ending: str = "jpg") -> str:
    return f"{key[:-5]}/{key}.{ending}"


def encoded(pixels: np.ndarray, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return stream.getvalue()


def decoded(raw: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(raw)).convert("RGB")).transpose(2, 0, 1)


class FakeLfw:
    """Five images of three people, aligned (112) and original (250), and recipes that accept just these names."""

    def __init__(self) -> None:
        rng = np.random.default_rng(2)
        coarse = {key: rng.integers(0, 256, (5, 5, 3), dtype=np.uint8) for key in KEYS}
        self.aligned, self.original = (
            {
                key: encoded(np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC)))
                for key, small in coarse.items()
            }
            for side in (112, 250)
        )
        self.landmarks = "".join(
            f"{path_of(key)}\t" + "\t".join(f"{v:.3f}" for v in np.add(TEMPLATE, (60 + row, 55 - row)).ravel()) + "\n"
            for row, key in enumerate(KEYS)
        ).encode()
        self.recipe, self.pairs = LfwRecipe(), PairsRecipe()
        self.recipe.count = len(KEYS)
        self.recipe.keys_sha256 = hashlib.sha256("".join(f"{key}\n" for key in KEYS).encode()).hexdigest()
        self.recipe.landmarks_sha256 = hashlib.sha256(self.landmarks).hexdigest()
        self.pairs.sha256 = hashlib.sha256(PAIRS).hexdigest()

    def zip(self, images: dict[str, bytes], prefix: str = "") -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as bundle:
            bundle.writestr(f"{prefix}README", "credit")
            for key in reversed(KEYS):
                bundle.writestr(prefix + path_of(key), images[key])
        return stream.getvalue()

    def tgz(self) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as bundle:
            for key in KEYS:
                info = tarfile.TarInfo(f"lfw/{path_of(key)}")
                info.size = len(self.original[key])
                bundle.addfile(info, io.BytesIO(self.original[key]))
        self.recipe.archive_sha256 = hashlib.sha256(stream.getvalue()).hexdigest()
        return stream.getvalue()


@pytest.fixture
def fake(monkeypatch, network) -> FakeLfw:
    fake = FakeLfw()
    monkeypatch.setattr(lfw, "LFW", fake.recipe)
    monkeypatch.setattr(lfw, "LFW_PAIRS", fake.pairs)
    monkeypatch.setitem(datasets.RECIPES, "lfw", fake.recipe)
    monkeypatch.setitem(datasets.COMPANIONS, "lfw", fake.pairs)
    return fake


def put(folder, files: dict[str, bytes]):
    for name, raw in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


@pytest.mark.parametrize("layout", ["folder", "zip", "zip in folder", "stored"])
def test_aligned_images_are_taken_as_they_are(fake, tmp_path, network, layout):
    source = put(tmp_path / "source", {"pairs.txt": PAIRS})
    if layout == "folder":
        put(source, {f"some/where/{path_of(key)}": raw for key, raw in fake.aligned.items()})
    elif layout == "stored":
        network.files[fake.pairs.mirrors[0]] = PAIRS
        put(tmp_path / "other", {"lfw/faces.zip": fake.zip(fake.aligned)})
        fetch("lfw", tmp_path / "other")
        source = tmp_path / "other" / "lfw" / "lfw_112.npz"
    else:
        put(source, {"faces.zip": fake.zip(fake.aligned, "some/where/")})
    if layout == "zip":
        network.files[fake.pairs.mirrors[0]] = PAIRS
        source = source / "faces.zip"
    assert fetch("lfw", tmp_path / "root", source) == tmp_path / "root" / "lfw"
    assert sorted(path.name for path in (tmp_path / "root" / "lfw").iterdir()) == ["lfw_112.npz", "pairs.txt"]
    asked = list(network.asked)
    faces = load_lfw(tmp_path / "root")
    assert network.asked == asked, "what is stored is not asked for again"
    assert faces.name == "lfw" and faces.alignment == ALIGNED and faces.num_classes == 3
    assert faces.images.shape == (5, 3, 112, 112) and faces.images.dtype == torch.uint8
    assert all(np.array_equal(faces.images[row], decoded(fake.aligned[key])) for row, key in enumerate(KEYS))
    assert faces.labels.tolist() == [0, 1, 1, 1, 2] and faces.labels.dtype == torch.int64
    assert faces.names == ("Aaron_Eckhart", "Bo_Li", "Jean-Luc_de_X") and faces.image_names == tuple(KEYS)
    assert re.fullmatch("[0-9a-f]{16}", faces.fingerprint)
    assert lfw_pairs(tmp_path / "root").read_bytes() == PAIRS


def test_rows_find_images_by_their_keys(fake, tmp_path):
    put(tmp_path / "lfw", {"faces.zip": fake.zip(fake.aligned)})
    faces = load_lfw(tmp_path)
    assert faces.rows(["Bo_Li_0010", "Aaron_Eckhart_0001", "Bo_Li_0010"]).tolist() == [3, 0, 3]
    with pytest.raises(ValueError, match=r"no image 'Bo_Li_0003' \(1 of 2 unknown\)"):
        faces.rows(["Bo_Li_0001", "Bo_Li_0003"])


def test_grey_and_fingerprints(fake, tmp_path):
    put(tmp_path / "lfw", {"faces.zip": fake.zip(fake.aligned)})
    full, grey = load_lfw(tmp_path), load_lfw(tmp_path, grey=True)
    red, green, blue = full.images[0].to(torch.int64)
    expected = (299 * red + 587 * green + 114 * blue + 500) // 1000
    assert grey.images.shape == (5, 1, 112, 112) and torch.equal(grey.images[0, 0].to(torch.int64), expected)
    assert grey.fingerprint != full.fingerprint and load_lfw(tmp_path, grey=True).fingerprint == grey.fingerprint
    assert torch.equal(grey.labels, full.labels) and load_lfw(tmp_path, "meta").images.device.type == "meta"


def test_originals_are_aligned_by_landmarks_beside_them(fake, tmp_path):
    files = {path_of(key): raw for key, raw in fake.original.items()}
    put(tmp_path / "a", {**files, "lfw_landmark.txt": fake.landmarks})
    put(tmp_path / "b", {"faces.zip": fake.zip(fake.original), "lfw_landmark.txt.gz": gzip.compress(fake.landmarks)})
    put(tmp_path / "c", {"lfw.tgz": fake.tgz(), "lfw_landmark.txt": fake.landmarks})
    for folder in "abc":
        (tmp_path / folder).rename(tmp_path / "lfw")
        faces = load_lfw(tmp_path)
        assert faces.alignment == LANDMARKS
        for row, key in enumerate(KEYS):
            # the landmarks are the template moved by whole pixels: alignment cuts that window out
            top, left = 55 - row, 60 + row
            window = decoded(fake.original[key])[:, top : top + 112, left : left + 112].astype(int)
            assert np.abs(faces.images[row].numpy().astype(int) - window).max() <= 1
        (tmp_path / "lfw").rename(tmp_path / folder)


def test_originals_without_landmarks_are_cut_out(fake, tmp_path):
    put(tmp_path / "lfw", {"faces.zip": fake.zip(fake.original)})
    faces = load_lfw(tmp_path)
    assert faces.alignment == CROPPED
    picture = Image.open(io.BytesIO(fake.original[KEYS[0]])).crop((61, 53, 189, 181))
    expected = np.asarray(picture.resize((112, 112), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    # away from the border, where the resampling of a crop cannot see beyond it
    difference = faces.images[0].numpy().astype(int) - expected
    assert np.abs(difference[:, 3:-3, 3:-3]).max() <= 1


@pytest.mark.parametrize("with_landmarks", [True, False])
def test_the_archive_of_a_mirror_is_verified_and_aligned(fake, tmp_path, network, capsys, with_landmarks):
    network.files[fake.recipe.mirrors[0]] = fake.tgz() + b"altered"
    network.files[fake.recipe.mirrors[1]] = fake.tgz()
    if with_landmarks:
        network.files[lfw.LANDMARKS_URL] = fake.landmarks
    faces = load_lfw(tmp_path)
    assert network.asked == [*fake.recipe.mirrors, lfw.LANDMARKS_URL]
    assert faces.alignment == (LANDMARKS if with_landmarks else CROPPED)
    said = capsys.readouterr().err
    assert "from vis-www.cs.umass.edu, checksum correct" in said
    assert ("no landmarks (the network is down)" in said) == (not with_landmarks)


def test_altered_landmarks_of_the_mirror_are_not_used(fake, tmp_path, network, capsys):
    network.files = {fake.recipe.mirrors[0]: fake.tgz(), lfw.LANDMARKS_URL: fake.landmarks.replace(b"0001", b"0002")}
    assert load_lfw(tmp_path).alignment == CROPPED
    assert "lfw_landmark.txt must have the published SHA256" in capsys.readouterr().err


def altered(fake: FakeLfw, **change: bytes | None) -> dict[str, bytes]:
    images = {**fake.aligned}
    for key, raw in change.items():
        if raw is None:
            del images[key]
        else:
            images[key] = raw
    return {path_of(key): raw for key, raw in images.items()}


def test_sources_that_are_not_lfw_are_refused(fake, tmp_path):
    ramp = np.zeros((100, 100, 3), np.uint8)
    bad = {
        "has 4 images of the 5 of LFW": altered(fake, Bo_Li_0002=None),
        "must have the published SHA256": altered(fake, Bo_Li_0002=None, Bo_Li_0003=fake.aligned["Bo_Li_0002"]),
        "no readable JPEG or PNG": altered(fake, Bo_Li_0002=fake.aligned["Bo_Li_0002"][:200]),
        "is no readable JPEG": altered(fake, Bo_Li_0002=b"GIF89a"),
        "100 x 100 pixels, allowed are squares of 112": altered(fake, Bo_Li_0002=encoded(ramp)),
        "250 x 250 pixels, allowed are squares of 112": altered(fake, Bo_Li_0002=fake.original["Bo_Li_0002"]),
        "100 x 100 pixels, allowed are squares of 112 or 250": {path_of(key): encoded(ramp) for key in KEYS},
        "is longer than the 1048576 bytes": altered(fake, Bo_Li_0002=bytes(2**20 + 1)),
        "nothing of this data set in it": {"a.txt": b""},
    }
    for number, (message, files) in enumerate(bad.items()):
        source = put(tmp_path / f"source{number}", files)
        with pytest.raises(DataUnavailable, match=re.escape(message)):
            fetch("lfw", tmp_path / "root", source)
        assert not (tmp_path / "root").exists()


def test_landmarks_that_do_not_fit_are_refused(fake, tmp_path):
    files = {f"lfw/{path_of(key)}": raw for key, raw in fake.original.items()}
    lines = fake.landmarks.splitlines(keepends=True)
    bad = {
        "lack the image Aaron_Eckhart_0001": b"".join(lines[1:]),
        "line 2 of": lines[0] + b"Bo_Li/Bo_Li_0001.jpg 1 2 3\n",
        "no face": path_of(KEYS[0]).encode() + b" 9 9" * 5 + b"\n",
        "line 1 of": b"\xff\xfe",
    }
    for number, (message, landmarks) in enumerate(bad.items()):
        source = put(tmp_path / f"source{number}", {**files, "lfw_landmark.txt": landmarks})
        with pytest.raises(DataUnavailable, match=message):
            fetch("lfw", tmp_path / "root", source)
    funneled = {name.replace("lfw/", "lfw_funneled/"): raw for name, raw in files.items()}
    source = put(tmp_path / "funneled", {**funneled, "lfw_landmark.txt": fake.landmarks})
    with pytest.raises(DataUnavailable, match="is a funneled version"):
        fetch("lfw", tmp_path / "root", source)


@pytest.mark.parametrize(
    "line",
    [
        "Bo_Li/Bo_Li_0001.jpg 1 2 3 4 5 6 7 8 9",
        "Bo_Li/Bo_Li_0001.jpg 1 2 3 4 5 6 7 8 9 x",
        "Bo_Li/Bo_Li_0001.jpg 1 2 3 4 5 6 7 8 9 nan",
        "Bo_Li/Bo_Li_0001.jpg 1 2 3 4 5 6 7 8 9 251",
        "Bo_Li/Bo_Li_0001.jpg 1 2 3 4 5 6 7 8 9 -1",
        "Bo_Li/Al_Li_0001.jpg 1 2 3 4 5 6 7 8 9 10",
        "",
    ],
)
def test_lines_that_are_no_landmarks_are_named(line):
    good = "Al_Li/Al_Li_0001.jpg\t" + "\t".join("12345") + "\t6\t7\t8\t9\t10"
    assert parse_landmarks(good.encode(), "F")["Al_Li_0001"].tolist() == [[1, 2], [3, 4], [5, 6], [7, 8], [9, 10]]
    with pytest.raises(DataCorrupted, match="line 2 of F is not a path and ten numbers from 0 to 250"):
        parse_landmarks(f"{good}\n{line}\n".encode(), "F")
    with pytest.raises(DataCorrupted, match="line 2 of F names Al_Li_0001 again"):
        parse_landmarks(f"{good}\n{good}\n".encode(), "F")


def test_a_damaged_stored_file_is_made_again_and_never_used(fake, tmp_path):
    put(tmp_path / "lfw", {"faces.zip": fake.zip(fake.aligned)})
    before = load_lfw(tmp_path)
    stored = tmp_path / "lfw" / "lfw_112.npz"
    raw = stored.read_bytes()
    for damaged in (raw[:-1000], raw[:3000] + bytes([raw[3000] ^ 1]) + raw[3001:], b""):
        stored.write_bytes(damaged)
        assert torch.equal(load_lfw(tmp_path).images, before.images)
        assert stored.read_bytes() == raw
    (tmp_path / "lfw" / "faces.zip").unlink()
    stored.write_bytes(raw[:-1000])
    with pytest.raises(DataUnavailable, match=r"lfw_112\.npz"):
        load_lfw(tmp_path)


def test_a_folder_marked_read_only_is_read_and_not_written_to(fake, tmp_path, capsys):
    folder = put(tmp_path / "lfw", {"faces.zip": fake.zip(fake.aligned)})
    folder.chmod(0o555)
    try:
        assert load_lfw(tmp_path).num_classes == 3
        assert [path.name for path in folder.iterdir()] == ["faces.zip"]
        assert "marked read-only" in capsys.readouterr().err
    finally:
        folder.chmod(0o755)


def test_pairs_of_another_protocol_are_refused(fake, tmp_path):
    put(tmp_path / "lfw", {"pairs.txt": PAIRS[:-1]})
    with pytest.raises(DataUnavailable, match=r"pairs\.txt must have the published SHA256"):
        lfw_pairs(tmp_path)


JPEG = encoded(np.random.default_rng(0).integers(0, 256, (112, 112, 3), dtype=np.uint8))


@given(position=st.integers(0, len(JPEG) - 1), change=st.integers(0, 255))
def test_altered_images_are_decoded_or_refused(position, change):
    raw = bytearray(JPEG)
    raw[position] ^= change
    for candidate in (bytes(raw), JPEG[:position]):
        try:
            assert decode_image(candidate, "a.jpg", (112,)).size == (112, 112)
        except DataCorrupted as error:
            assert "a.jpg" in str(error)


@given(st.integers(1, 20), st.data())
def test_area_means_against_python_fractions(side, data):
    size = data.draw(st.integers(1, side))
    image = np.random.default_rng(side).integers(0, 256, (side, side), dtype=np.uint8)
    found = resize_area(torch.from_numpy(image)[None, None], size)[0, 0].tolist()
    # blow each pixel up to size x size, average blocks of side x side: whole numbers throughout
    fine = np.kron(image.astype(np.int64), np.ones((size, size), np.int64))
    blocks = fine.reshape(size, side, size, side).sum(axis=(1, 3))
    assert found == ((2 * blocks + side * side) // (2 * side * side)).tolist()


def test_grey_of_grey_is_itself():
    grey = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)
    assert torch.equal(to_grey(grey.expand(1, 3, 16, 16)), grey)


def test_the_real_set_if_this_machine_has_it():
    folder = data_root() / "lfw"
    if not any((folder / name).is_file() for name in ("lfw_112.npz", "lfw_aligned_112.zip")):
        pytest.skip("LFW is not on this machine")
    faces = load_lfw_grey(16)
    assert faces.images.shape == (13233, 1, 16, 16) and faces.num_classes == 5749 == len(faces.names)
    counts = faces.labels.bincount()
    assert counts.min() == 1 and int((counts >= 2).sum()) == 1680 and int((counts >= 20).sum()) == 62
    assert faces.names[int(counts.argmax())] == "George_W_Bush" and int(counts.max()) == 530
    assert faces.image_names[int(faces.rows(["Aaron_Eckhart_0001"]))] == "Aaron_Eckhart_0001"
