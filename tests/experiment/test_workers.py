"""Runs made ahead in worker processes are the runs that the notebook would have made itself."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cloudpickle
import joblib
import pytest
import torch

from reprolib import experiment
from reprolib.experiment import UsageError, progress
from reprolib.experiment.cache import RunCache
from reprolib.experiment.workers import worker_count

LITERALS = {"profile": "standard", "dataset": "digits", "seeds": [0, 1, 2], "rate": 0.5, "steps": 3}

# Executed as the cells of a notebook are: its functions belong to __main__ and are sent to the workers as they are.
CELLS = """
import os
import torch

table, value = torch.arange(10.0), "a global variable with the name of an attribute used below"


class Scaled(torch.nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.value = factor

    def forward(self, x):
        return self.value * x


@run.cached(name="trained")
def trained_run(factor, seed):
    if factor < 0:
        raise ValueError(f"the factor must not be negative, got {factor}")
    model = Scaled(factor)
    # reductions of this size depend on the number of threads
    total = float(model(torch.randn(1_000_000) + table[seed]).sum())
    return {"total": total, "value": model.value, "process": os.getpid(), "threads": torch.get_num_threads()}
"""


def notebook(monkeypatch, cache, workers):
    """The namespace of a notebook with CELLS, its runs kept in the folder `cache`."""
    monkeypatch.setenv("REPROLIB_CACHE", str(cache))
    monkeypatch.setenv("REPROLIB_WORKERS", str(workers))
    space = {"__name__": "__main__", **LITERALS}
    space["run"] = experiment.start("90_fixture", space)
    exec(CELLS, space)
    return space


pytestmark = pytest.mark.usefixtures("suite")


def without_process(result):
    return {key: value for key, value in result.items() if key != "process"}


def test_runs_made_ahead_are_those_that_are_made_here(tmp_path, monkeypatch):
    rows = [(factor, seed) for factor in (1.0, 3.0) for seed in (0, 1)]
    alone = notebook(monkeypatch, tmp_path / "one", workers=1)
    alone["run"].ahead(alone["trained_run"], rows)
    assert not (tmp_path / "one").exists()
    here = [alone["trained_run"](*row) for row in rows]

    many = notebook(monkeypatch, tmp_path / "two", workers=2)
    many["run"].ahead(many["trained_run"], iter(rows))
    stored = sorted(path.name for path in (tmp_path / "two").iterdir())
    assert stored == sorted(path.name for path in (tmp_path / "one").iterdir())
    there = [many["trained_run"](*row) for row in rows]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == stored

    assert {result["process"] for result in here} == {os.getpid()}
    assert os.getpid() not in {result["process"] for result in there}
    assert [without_process(one) for one in here] == [without_process(one) for one in there]
    assert {result["threads"] for result in (*here, *there)} == {1}
    assert len({result["total"] for result in there}) == 4


def test_a_single_argument_may_stand_for_itself(tmp_path, monkeypatch):
    space = notebook(monkeypatch, tmp_path, workers=2)
    exec("def by_seed(seed):\n    return trained_run(1.0, seed)", space)
    space["run"].ahead(space["by_seed"], range(2))
    assert os.getpid() not in {space["by_seed"](seed)["process"] for seed in range(2)}


def test_a_run_made_inside_another_is_found_by_it(tmp_path, monkeypatch):
    space = notebook(monkeypatch, tmp_path, workers=2)
    outer = """
@run.cached
def branch(seed, factor):
    return {"start": trained_run(1.0, seed)["total"], "factor": factor}
"""
    exec(outer, space)
    space["run"].ahead(space["branch"], [(0, 1.0), (0, 2.0), (1, 1.0)])
    assert len(list(tmp_path.glob("branch-*.pt"))) == 3
    assert len(list(tmp_path.glob("trained-*.pt"))) == 2
    assert space["branch"](0, 2.0)["start"] == space["trained_run"](1.0, 0)["total"]


def test_stored_runs_are_left_out(tmp_path, monkeypatch):
    space = notebook(monkeypatch, tmp_path, workers=2)
    sent = []
    monkeypatch.setattr(experiment, "call_each", lambda function, rows, workers: sent.append((rows, workers)))
    space["trained_run"](1.0, 0)
    space["run"].ahead(space["trained_run"], [(1.0, 0), (1.0, 1), (1.0, 2)])
    assert sent == [([(1.0, 1), (1.0, 2)], 2)]
    # One run is made where it is asked for.
    space["trained_run"](1.0, 1)
    space["run"].ahead(space["trained_run"], [(1.0, 0), (1.0, 1), (1.0, 2)])
    assert len(sent) == 1


def test_an_error_in_a_worker_is_raised_in_the_notebook(tmp_path, monkeypatch):
    space = notebook(monkeypatch, tmp_path / "cache", workers=2)
    with pytest.raises(ValueError, match="the factor must not be negative"):
        space["run"].ahead(space["trained_run"], [(-1.0, 0), (-1.0, 1)])
    assert not (tmp_path / "cache").exists()


def alive(process: int) -> bool:
    """Whether a process runs; one that ended and that nobody waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_do_not_outlive_a_notebook_that_is_killed(tmp_path):
    # one worker is left waiting, the other is in the middle of a run
    names = tmp_path / "processes"
    names.mkdir()
    code = f"""
import os, pathlib, time
from reprolib.experiment.workers import call_each

def work(row):
    pathlib.Path({str(names)!r}, str(os.getpid())).touch()
    time.sleep(600 if row else 2)

call_each(work, [(0,), (1,)], 2)
"""
    script = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)
    try:
        limit = time.monotonic() + 60
        while len(workers := [int(path.name) for path in names.iterdir()]) < 2:
            assert script.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        time.sleep(3)
        assert all(map(alive, workers))
    finally:
        script.send_signal(signal.SIGKILL)
        script.wait()
    limit = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < limit, workers
        time.sleep(0.1)


def test_a_worker_that_is_killed_costs_time_and_no_result(tmp_path, monkeypatch, capsys):
    space = notebook(monkeypatch, tmp_path / "cache", workers=2)
    marker = tmp_path / "killed"
    fragile = f"""
import pathlib, signal

@run.cached
def fragile(seed):
    marker = pathlib.Path({str(marker)!r})
    if os.getpid() != {os.getpid()} and seed == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return {{"seed": seed}}
"""
    exec(fragile, space)
    space["run"].ahead(space["fragile"], range(3))
    assert marker.exists()
    assert "a worker process was killed; its runs are made one at a time" in capsys.readouterr().err
    assert [space["fragile"](seed)["seed"] for seed in range(3)] == [0, 1, 2]
    # and the next table has workers again
    space["run"].ahead(space["trained_run"], [(1.0, 0), (1.0, 1)])
    assert os.getpid() not in {space["trained_run"](1.0, seed)["process"] for seed in range(2)}


def test_progress_is_told_to_a_file_and_to_nobody_on_the_page(tmp_path, monkeypatch, capsys):
    path = tmp_path / "progress.txt"
    monkeypatch.setenv(progress.VARIABLE, str(path))
    space = notebook(monkeypatch, tmp_path / "cache", workers=2)
    capsys.readouterr()
    space["run"].ahead(space["trained_run"], [(1.0, 0), (1.0, 1), (1.0, 2)])
    assert "trained_run 0 of 3 runs" in path.read_text()
    assert progress.state(path) == ""  # all are done
    assert capsys.readouterr() == ("", "")


def test_progress_in_a_terminal_is_one_line_and_in_a_log_what_is_new(tmp_path, monkeypatch):
    path = tmp_path / "progress.txt"
    assert progress.state(path) == ""
    monkeypatch.setenv(progress.VARIABLE, str(path))
    clock = {"now": 1000.0}
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock["now"])
    runs = progress.told(range(12), "face_run", 12)
    next(runs)
    assert progress.state(path) == "face_run 0 of 12 runs"
    clock["now"] += 30.0
    for _ in range(3):
        next(runs)
        clock["now"] += 30.0
    assert progress.state(path) == "face_run 3 of 12 runs, 04:30 left"  # 30 s a run, 9 runs left

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    shown, log = Terminal(), io.StringIO()
    for stream in (shown, log):
        display = progress.Display(stream)
        display.files["04_cosface"] = path
        display.files["05_arcface"] = tmp_path / "nosuch"
        display.show()
        display.show()
        display.clear()
    assert log.getvalue() == "04_cosface: face_run 3 of 12 runs, 04:30 left\n"
    first = shown.getvalue().split("\r\x1b[K")[1]
    assert first == "04_cosface: face_run 3 of 12 runs, 04:30 left | 05_arcface"[: len(first)]
    assert "\n" not in shown.getvalue()
    assert shown.getvalue().endswith("\r\x1b[K")
    assert len(list(runs)) == 8
    assert progress.state(path) == ""
    closed = io.StringIO()
    closed.close()
    display.stream = closed
    display.show()  # the run goes on


def test_looking_for_stored_runs_computes_nothing_and_moves_no_generator(tmp_path):
    cache, computed = RunCache(tmp_path / "cache", "cpu"), tmp_path / "computed"

    marker = str(computed)  # a path would be read by the content of its file

    def wanted():
        torch.rand(3)
        return cache.get("run", {"seed": 0}, lambda: {"x": Path(marker).write_text("yes")})

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    assert not cache.has_all(wanted)
    assert not computed.exists()
    assert not cache.folder.exists()
    assert torch.equal(torch.rand(1), expected)
    wanted()
    assert cache.has_all(wanted)
    assert computed.exists()
    with pytest.raises(ZeroDivisionError):
        cache.has_all(lambda: 1 / 0)
    assert cache.get("other", {}, lambda: {"x": 2}) == {"x": 2}


def test_the_key_of_a_run_is_the_same_after_the_way_to_a_worker(tmp_path, monkeypatch):
    space = notebook(monkeypatch, tmp_path, workers=1)
    cache = RunCache(tmp_path, "cpu")
    trained = space["trained_run"].function
    before = cache.key("run", {}, trained)
    sent = cloudpickle.loads(cloudpickle.dumps(trained))
    assert sent is not trained
    assert cache.key("run", {}, sent) == before
    space["value"] = "not what the code reads, only a name that an attribute has"
    assert cache.key("run", {}, trained) == before
    space["table"] = 1.0
    assert cache.key("run", {}, trained) != before


def test_the_record_stays_in_the_notebook(tmp_path, monkeypatch):
    run = notebook(monkeypatch, tmp_path, workers=2)["run"]
    sent = cloudpickle.loads(cloudpickle.dumps(run))
    assert (sent.seeds, sent.profile, sent.workers) == (run.seeds, run.profile, 2)
    assert not sent.record.claims
    assert list(run.record.claims) == ["F-1"]


def test_number_of_workers(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.delenv("REPROLIB_WORKERS", raising=False)
    assert worker_count("standard", cpu) == min(joblib.cpu_count(), 4)
    assert worker_count("smoke", cpu) == worker_count("standard", cuda) == 1
    # the runner gives a notebook its share of the cores in this way
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")
    assert worker_count("standard", cpu) == 1
    monkeypatch.setenv("REPROLIB_WORKERS", "3")
    assert worker_count("smoke", cpu) == 3
    for wrong in ("0", "-1", "2.5", "many", ""):
        monkeypatch.setenv("REPROLIB_WORKERS", wrong)
        with pytest.raises(UsageError, match="REPROLIB_WORKERS must be a whole number of at least 1"):
            worker_count("standard", cpu)
