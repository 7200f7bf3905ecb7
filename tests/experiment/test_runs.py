"""Each run leaves one line; a table is made from lines on another day, or after a kill, and is the same."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from reprolib import experiment
from reprolib.experiment.cache import RunCache
from reprolib.experiment.record import plain
from reprolib.experiment.runs import RunLines, read_lines, readable, runs_file

LITERALS = {"profile": "standard", "dataset": "digits", "seeds": [0, 1, 2], "rate": 0.5, "steps": 3}


@pytest.fixture
def lines(tmp_path):
    return RunLines(tmp_path / "runs" / "90.jsonl", "cpu")


def test_a_run_leaves_one_line(tmp_path, lines):
    cache = RunCache(tmp_path / "cache", "cpu", lines)

    def compute(value=0.1):
        return {"eer": value, "curve": (1, 2.5), "name": "a", "none": None}

    made = cache.get("faces", {"seed": 3, "m": 0.35}, compute)
    assert cache.get("faces", {"seed": 3, "m": 0.35}, compute) == made
    (line,) = read_lines(lines.path)
    assert line["key"] == cache.key("faces", {"seed": 3, "m": 0.35}, compute).run
    del line["key"]
    assert line.pop("made_with")["device"] == "cpu"
    assert line == {
        "name": "faces",
        "arguments": {"seed": 3, "m": 0.35},
        "seed": 3,
        "metrics": {"eer": 0.1, "curve": [1, 2.5], "name": "a", "none": None},
        "whole": True,
    }
    # A cached value that has no line yet gets one.
    lines.path.unlink()
    cache.get("faces", {"seed": 3, "m": 0.35}, compute)
    assert len(read_lines(lines.path)) == 1


def test_a_run_is_taken_from_its_line_where_no_file_holds_it(tmp_path, lines):
    def get(folder, device="cpu"):
        cache = RunCache(tmp_path / folder, device, lines)
        return cache.get("x", {"seed": 0}, lambda: {"x": 1.5, "rows": [[1, 2]]})

    first = get("one")
    next((tmp_path / "one").iterdir()).unlink()
    again, elsewhere = get("one"), get("two", "cuda")
    assert first == again == elsewhere == {"x": 1.5, "rows": [[1, 2]]}
    assert [*first] == [*again] == [*elsewhere] == ["x", "rows"]  # tables are made from them in this order
    # Nothing was computed: no file came back.
    assert not list((tmp_path / "one").iterdir())
    assert not (tmp_path / "two").exists()
    again["rows"].append(1)
    assert get("two") == first


def test_a_line_of_other_code_is_not_used(tmp_path, lines):
    cache = RunCache(tmp_path / "cache", "cpu", lines)
    assert cache.get("x", {"seed": 0}, lambda: {"x": 1}) == {"x": 1}
    assert cache.get("x", {"seed": 0}, lambda: {"x": 2}) == {"x": 2}
    assert [line["metrics"]["x"] for line in read_lines(lines.path)] == [1, 2]


@pytest.mark.parametrize("value", [{"features": torch.ones(2)}, {"loss": math.inf}, {"a": [{"b": math.nan}]}])
def test_a_value_that_a_line_cannot_hold_is_computed_again(tmp_path, lines, value):
    for folder in ("one", "two"):
        RunCache(tmp_path / folder, "cpu", lines).get("x", {"seed": 0}, lambda: {"eer": 0.5, **value})
        assert len(list((tmp_path / folder).iterdir())) == 1
    (line,) = read_lines(lines.path)
    assert (line["whole"], line["metrics"]["eer"]) == (False, 0.5)
    assert line["metrics"].get("features") is None
    json.loads(lines.path.read_text(), parse_constant=lambda name: pytest.fail(name))


def test_what_a_reader_sees_of_settings():
    @dataclasses.dataclass
    class Config:
        rate: float
        head: object

    data = SimpleNamespace(fingerprint="abc")
    values = {"data": data, "config": Config(math.inf, torch.nn.ReLU()), "f": math.sin, "t": (1, True)}
    shown = plain(values, "", readable)
    assert shown == {
        "data": {"fingerprint": "abc"},
        "config": {"rate": "inf", "head": "ReLU"},
        "f": "sin",
        "t": [1, True],
    }


def test_a_torn_line_is_left_out_and_does_not_swallow_the_next(lines):
    lines.add("a", "x", {}, {"v": 1})
    whole = lines.path.read_bytes()
    for torn in (whole[:20], b"3", b'{"key": "b"}', b"\xff\xfe"):
        lines.path.write_bytes(whole + torn)
        lines.add("b", "x", {}, {"v": 2})
        assert [line["key"] for line in read_lines(lines.path)] == ["a", "b"]
        assert lines.value("b") == {"v": 2}


def _add_many(path, first):
    lines = RunLines(path, "cpu")
    for index in range(first, first + 30):
        lines.add(f"key {index}", "x", {"seed": index}, {"v": index})


def test_several_processes_add_each_run_once(tmp_path):
    path = tmp_path / "90.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_add_many, args=(path, first)) for first in (0, 15, 0)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert sorted(line["seed"] for line in read_lines(path)) == list(range(45))
    assert len(path.read_bytes().splitlines()) == 45


def test_where_the_lines_are(suite, monkeypatch):
    assert runs_file("90_fixture", "full") == suite.results / "full" / "runs" / "90.jsonl"
    monkeypatch.setenv("REPROLIB_RUNS", "reference")
    assert runs_file("90_fixture", "full") == suite.root / "reference" / "full" / "runs" / "90.jsonl"


@pytest.mark.parametrize(
    ("profile", "expected"), [("smoke", False), ("standard", False), ("full", True), ("paper", True)]
)
def test_the_runs_of_full_and_paper_leave_lines(suite, monkeypatch, profile, expected):
    monkeypatch.setenv("REPROLIB_WORKERS", "1")
    run = experiment.start("90_fixture", {**LITERALS, "profile": profile})

    @run.cached
    def made(seed):
        return {"x": seed}

    @run.cached(lines=False)
    def silent(seed):
        return {"x": -seed}

    assert silent(1) == {"x": -1}
    assert not runs_file("90_fixture", profile).exists()
    assert made(1) == {"x": 1}
    run.close()
    assert runs_file("90_fixture", profile).exists() == expected


SCRIPT = """
import os, time
from reprolib import experiment
profile = "full"
run = experiment.start("90_fixture", globals())

@run.cached
def face_run(seed, m):
    import torch
    return {"eer": float(torch.rand(())) + seed * m, "course": torch.rand(3).tolist()}

rows = []
for m in (0.1, 0.2, 0.3):
    for seed in run.seeds:
        rows.append([m, seed, face_run(seed, m)["eer"]])
        print("made", flush=True)
        time.sleep(float(os.environ["PAUSE"]))
run.judge("F-1", {"x": 1}, run.seeds, holds=True)
run.table("eer", "EER", ["m", "seed", "EER"], rows)
run.finish()
"""


def test_a_run_that_was_killed_and_resumed_elsewhere_gives_the_same_record(suite, tmp_path):
    def start(results, cache, pause):
        folders = {"REPROLIB_RESULTS": str(results), "REPROLIB_CACHE": str(cache), "REPROLIB_WORKERS": "1"}
        environment = {**os.environ, **folders, "PAUSE": str(pause)}
        script = tmp_path / "script.py"
        script.write_text(SCRIPT, encoding="utf-8")
        return subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True)

    def record(results):
        document = json.loads((results / "full" / "90_fixture.json").read_text(encoding="utf-8"))
        return {key: value for key, value in document.items() if key not in ("seconds", "environment")}

    whole = start(tmp_path / "whole", tmp_path / "cache 1", 0)
    assert whole.wait(timeout=300) == 0
    killed = start(tmp_path / "parts", tmp_path / "cache 2", 60)
    assert "90_fixture" in killed.stdout.readline()
    assert killed.stdout.readline() == "made\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stdout.close()
    before = read_lines(tmp_path / "parts" / "full" / "runs" / "90.jsonl")
    assert len(before) == 1
    assert not (tmp_path / "parts" / "full" / "90_fixture.json").exists()
    # On another machine: without the files of the cache.
    resumed = start(tmp_path / "parts", tmp_path / "cache 3", 0)
    assert resumed.wait(timeout=300) == 0
    assert record(tmp_path / "parts") == record(tmp_path / "whole")
    after = read_lines(tmp_path / "parts" / "full" / "runs" / "90.jsonl")
    assert (after[:1], len(after)) == (before, 9)
    assert len(list((tmp_path / "cache 3").iterdir())) == 8
