from __future__ import annotations

import hashlib
import io
import random

import numpy as np
import pytest
import torch

from reprolib.checkpoints import Checkpoint
from reprolib.experiment import cache as cache_module
from reprolib.experiment import paths
from reprolib.experiment.cache import RunCache, seeded
from reprolib.experiment.paths import write_atomically
from reprolib.training import TrainConfig


@pytest.fixture
def cache(tmp_path):
    return RunCache(tmp_path / "cache", "cpu")


class Counted:
    """A compute function that counts its calls; the count is no part of it."""

    def __init__(self, value):
        self.value = value
        self.calls = 0

    def __reduce__(self):
        return Counted, (repr(self.value),)

    def __call__(self):
        self.calls += 1
        return self.value


def test_a_run_is_computed_once_and_comes_back_equal(cache):
    base = torch.arange(1000.0)
    value = {
        "weights": base[:3],
        "array": np.array([1.5, 2.5]),
        "loss": 0.25,
        "count": np.int64(3),
        "curve": [(0, 1.0), (1, 0.5)],
        "notes": {"ok": True, "none": None, "name": "a"},
    }
    compute = Counted(value)
    first = cache.get("run", {"seed": 0}, compute)
    second = cache.get("run", {"seed": 0}, compute)
    assert compute.calls == 1
    for got in (first, second):
        assert torch.equal(got["weights"], base[:3])
        assert got["weights"].untyped_storage().nbytes() == 12
        assert torch.equal(got["array"], torch.tensor([1.5, 2.5], dtype=torch.float64))
        assert {key: got[key] for key in ("loss", "count", "curve", "notes")} == {
            "loss": 0.25,
            "count": 3,
            "curve": [[0, 1.0], [1, 0.5]],
            "notes": {"ok": True, "none": None, "name": "a"},
        }
        assert type(got["count"]) is int
    (file,) = cache.folder.iterdir()
    # After its digest a plain torch file, without code in it.
    assert torch.load(io.BytesIO(file.read_bytes()[32:]), weights_only=True)["value"]["loss"] == 0.25


def test_the_key_depends_on_all_that_shapes_a_run(cache, tmp_path, monkeypatch):
    def compute():
        return {}

    key = cache.key("run", {"seed": 0, "rate": 0.1}, compute)
    assert cache.key("run", {"rate": 0.1, "seed": 0}, compute) == key
    assert RunCache(tmp_path / "elsewhere", "cpu").key("run", {"seed": 0, "rate": 0.1}, compute) == key
    others = [
        cache.key("other", {"seed": 0, "rate": 0.1}, compute),
        cache.key("run", {"seed": 1, "rate": 0.1}, compute),
        cache.key("run", {"seed": 0, "rate": 0.1, "more": None}, compute),
        cache.key("run", {"seed": 0, "rate": 0.1}, lambda: {"x": 1}),
    ]
    assert len({key, *others}) == 5
    # Another device or library is another file, but the same run and the same random numbers.
    elsewhere = RunCache(tmp_path, "cuda").key("run", {"seed": 0, "rate": 0.1}, compute)
    monkeypatch.setattr(cache_module.metadata, "version", lambda name: "0.0")
    updated = RunCache(tmp_path, "cpu").key("run", {"seed": 0, "rate": 0.1}, compute)
    for other in (elsewhere, updated):
        assert other[:2] == key[:2]
        assert other.stored != key.stored
    # The random numbers follow from the settings, not from the code.
    assert others[3].settings == key.settings
    assert others[1].settings != key.settings


def test_what_a_run_captures_is_part_of_its_key(cache):
    faces, config = torch.arange(8, dtype=torch.uint8).reshape(2, 4), TrainConfig(epochs=1)

    def compute():
        return {"x": float(faces.float().mean()), "epochs": config.epochs}

    before = cache.get("run", {"seed": 0}, compute)
    faces.copy_(255 - faces)
    inverted = cache.get("run", {"seed": 0}, compute)
    assert inverted["x"] == 255 - before["x"]
    config = TrainConfig(epochs=2)
    assert cache.get("run", {"seed": 0}, compute) == {"x": inverted["x"], "epochs": 2}
    assert len(list(cache.folder.iterdir())) == 3


def test_what_has_no_content_is_refused_in_one_sentence(cache, tmp_path):
    log = open(tmp_path / "log", "w")  # noqa: SIM115

    def compute():
        print(file=log)
        return {}

    with pytest.raises(TypeError, match=r"'run' cannot be told from others: log is of type _io\.Text"):
        cache.get("run", {}, compute)
    with pytest.raises(TypeError, match=r"others: handles\[0\] is of type"):
        cache.get("run", {"handles": [log]}, Counted({}))
    log.close()
    assert not cache.folder.exists()


def test_random_numbers_do_not_depend_on_what_came_before_nor_leave_a_trace(cache):
    def compute():
        return {"x": [random.random(), float(np.random.rand()), float(torch.rand(()))]}

    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    computed = cache.get("noise", {"seed": 0}, compute)
    after = [random.random(), float(np.random.rand()), float(torch.rand(()))]
    for file in cache.folder.iterdir():
        file.unlink()
    torch.rand(5)
    assert cache.get("noise", {"seed": 0}, compute) == computed
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    assert cache.get("noise", {"seed": 0}, compute) == computed
    assert [random.random(), float(np.random.rand()), float(torch.rand(()))] == after
    assert cache.get("noise", {"seed": 1}, compute) != computed


def test_seeded_restores_the_generators_when_the_block_fails():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with pytest.raises(RuntimeError), seeded(7):
        raise RuntimeError
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "text", "other"])
def test_a_damaged_file_is_deleted_and_computed_again(cache, capsys, damage):
    compute = Counted({"x": torch.arange(64.0)})
    cache.get("run", {}, compute)
    (file,) = cache.folder.iterdir()
    raw = bytearray(file.read_bytes())
    if damage == "truncated":
        file.write_bytes(raw[: len(raw) // 2])
    elif damage == "flipped":
        place = raw.find(torch.arange(64.0).numpy().tobytes())
        assert place > 0
        raw[place + 17] ^= 1
        file.write_bytes(raw)
    elif damage == "other":
        Checkpoint(file, {"key": "another"}, ()).write({"value": {"x": 0}})
    else:
        file.write_bytes(b"" if damage == "empty" else b"no torch file")
    assert torch.equal(cache.get("run", {}, compute)["x"], torch.arange(64.0))
    assert compute.calls == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "damaged" in message
    cache.get("run", {}, compute)
    assert compute.calls == 2
    assert [path.name for path in cache.folder.iterdir()] == [file.name]


def test_a_file_with_code_in_it_is_not_run(cache, tmp_path):
    compute = Counted({"x": 1})
    cache.get("run", {}, compute)
    (file,) = cache.folder.iterdir()

    class Trap:
        def __reduce__(self):
            return open, (str(tmp_path / "trap"), "w")

    buffer = io.BytesIO()
    torch.save(Trap(), buffer)
    for digest in (b"", hashlib.sha256(buffer.getvalue()).digest()):
        file.write_bytes(digest + buffer.getvalue())
        assert cache.get("run", {}, compute) == {"x": 1}
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize("value", [3, [1], None, {"x": object()}, {"x": {"y": torch.nn.Linear(1, 1)}}])
def test_a_value_that_cannot_be_stored_raises_and_leaves_nothing(cache, value):
    with pytest.raises(TypeError, match="run"):
        cache.get("run", {}, Counted(value))
    assert not cache.folder.exists()


def test_a_failing_run_leaves_nothing(cache):
    def compute():
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        cache.get("run", {}, compute)
    assert not cache.folder.exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b"])
def test_a_name_is_a_file_name(cache, name):
    with pytest.raises(ValueError, match="letters"):
        cache.get(name, {}, Counted({}))


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "folder" / "a.json"
    write_atomically(path, "old")

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(paths.os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    monkeypatch.undo()
    assert [(file.name, file.read_text()) for file in path.parent.iterdir()] == [("a.json", "old")]
    write_atomically(path, b"new")
    assert path.read_text() == "new"
