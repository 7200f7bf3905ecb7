from __future__ import annotations

import dataclasses
import functools
import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reprolib.experiment import cache as cache_module
from reprolib.experiment import paths
from reprolib.experiment.cache import RunCache, canonical, describe_code, seeded, source_hash
from reprolib.experiment.paths import write_atomically


@pytest.fixture
def cache(tmp_path):
    return RunCache(tmp_path / "cache", "cpu")


class Counted:
    """A compute function that counts its calls."""

    def __init__(self, value):
        self.value = value
        self.calls = 0

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
    # A plain torch file, without code in it.
    assert torch.load(file, weights_only=True)["value"]["loss"] == 0.25


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
        RunCache(tmp_path, "cuda").key("run", {"seed": 0, "rate": 0.1}, compute),
    ]
    monkeypatch.setattr(torch, "__version__", "0.0")
    others.append(cache.key("run", {"seed": 0, "rate": 0.1}, compute))
    monkeypatch.undo()
    monkeypatch.setattr(cache, "sources", "changed")
    others.append(cache.key("run", {"seed": 0, "rate": 0.1}, compute))
    assert len({key, *others}) == 8


def test_source_hash_follows_names_and_contents(tmp_path):
    (tmp_path / "losses").mkdir()
    (tmp_path / "losses" / "a.py").write_text("x = 1\n")
    (tmp_path / "training.py").write_text("y = 1\n")
    before = source_hash("losses", "training.py", package=tmp_path)
    assert source_hash("losses", "training.py", package=tmp_path) == before
    (tmp_path / "losses" / "note.txt").write_text("no code")
    (tmp_path / "plots.py").write_text("z = 1\n")
    assert source_hash("losses", "training.py", package=tmp_path) == before
    (tmp_path / "losses" / "a.py").rename(tmp_path / "losses" / "b.py")
    renamed = source_hash("losses", "training.py", package=tmp_path)
    (tmp_path / "training.py").write_text("y = 2\n")
    changed = source_hash("losses", "training.py", package=tmp_path)
    assert len({before, renamed, changed}) == 3


def test_canonical_takes_data_sets_by_fingerprint_and_dataclasses_by_field():
    @dataclasses.dataclass
    class Config:
        epochs: int
        rates: tuple

    data = SimpleNamespace(fingerprint="abc", images=torch.zeros(3))
    assert canonical({"data": data, "config": Config(2, (0.1, np.float64(0.5)))}) == {
        "data": {"fingerprint": "abc"},
        "config": {
            "type": Config.__qualname__,
            "epochs": 2,
            "rates": [0.1, 0.5],
        },
    }
    with pytest.raises(ValueError, match="rate"):
        canonical({"rate": math.nan})
    for value in ({"model": torch.nn.Linear(1, 1)}, {"x": torch.zeros(1)}, {1: 2}):
        with pytest.raises(TypeError):
            canonical(value)


def make(source: str, name: str = "compute", **names):
    """A function as a notebook defines it: in `__main__`."""
    namespace = {"__name__": "__main__", **names}
    exec(source, namespace)
    return namespace[name]


def test_a_notebooks_code_is_part_of_the_key():
    body = "def helper(x):\n    return x + {}\ndef compute():\n    return {{'x': helper(scale)}}\n"
    described = describe_code(make(body.format(1), scale=2.0))
    assert describe_code(make("# a comment\n\n" + body.format(1), scale=2.0)) == described
    assert describe_code(make(body.format(2), scale=2.0)) != described
    assert describe_code(make(body.format(1), scale=3.0)) != described
    # A tensor or a model says nothing by itself; its settings belong into the configuration.
    assert describe_code(make(body.format(1), scale=torch.zeros(1))) == describe_code(
        make(body.format(1), scale=torch.ones(1))
    )


def test_closures_defaults_partials_and_classes_are_part_of_the_key():
    def bind(value):
        return lambda: {"x": value}

    assert describe_code(bind(1)) == describe_code(bind(1))
    assert describe_code(bind(1)) != describe_code(bind(2))
    source = "def compute(x={}):\n    return {{'x': x}}\n"
    assert describe_code(make(source.format(1))) != describe_code(make(source.format(2)))
    function = make(source.format(1))
    assert describe_code(functools.partial(function, 1)) != describe_code(functools.partial(function, 2))
    nested = "class Net:\n    def width(self):\n        return {}\n"
    nested += "def compute():\n    return {{'x': Net().width()}}\n"
    assert describe_code(make(nested.format(1))) != describe_code(make(nested.format(2)))


def test_a_recursive_function_has_a_description():
    source = "def compute(n=3):\n    return {'x': n} if n == 0 else compute(n - 1)\n"
    assert describe_code(make(source)) == describe_code(make(source))


def test_package_code_outside_the_hashed_parts_is_described_by_its_source():
    from reprolib.data import sampling
    from reprolib.theory import checks

    source = "def compute():\n    return {'x': part}\n"
    described = dict(describe_code(make(source, part=checks))[1])["part"]
    assert described == ["reprolib.theory.checks", source_hash("theory")]
    assert dict(describe_code(make(source, part=sampling))[1])["part"] == ["reprolib.data.sampling", ""]
    assert describe_code(sampling.class_split) == ["reprolib.data.sampling.class_split", ""]


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
        torch.save({"key": "another", "value": {"x": 0}}, file)
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

    torch.save(Trap(), file)
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


def test_all_hashed_parts_are_named_as_on_disk():
    assert set(cache_module.TRAINING_SOURCES) == {"losses", "models.py", "training.py", "data", "evaluation"}
