"""What happens when something goes wrong for real: disks that are full or closed, processes that are killed, clocks.

The table of faults in the book names each of these tests.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest
from fixture_suite import NAME, PARAMETERS
from test_command_line import processes
from test_runner import STANDARD, fake, with_another  # noqa: F401 (a fixture)

import reprolib.__main__ as command_line
from reprolib.experiment import runner
from reprolib.experiment.cache import RunCache
from reprolib.experiment.kernel import NotebookFailed
from reprolib.experiment.paths import remove_leftovers, write_atomically
from reprolib.experiment.runner import prepare, run_notebooks, unchanged
from reprolib.experiment.runs import RunLines, read_lines

ROOT = Path(command_line.__file__).resolve().parents[1]


def mounted(folder: Path, options: str) -> None:
    """A file system in memory on `folder`; the test is skipped where this process may not mount one."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("needs mount")
    if done.returncode:
        pytest.skip(f"may not mount a file system: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a file system of 256 kB."""
    folder = tmp_path / "disk"
    mounted(folder, "size=256k")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: Path, leave: int = 0) -> Path:
    """Take all room of a file system but `leave` bytes."""
    path = folder / "filling"
    with open(path, "wb", buffering=0) as stream, contextlib.suppress(OSError):
        while True:
            stream.write(bytes(4096))
    os.truncate(path, path.stat().st_size - leave)
    return path


def command(*arguments: str) -> subprocess.Popen:
    """The command line in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        [sys.executable, "-m", "reprolib", *arguments], env=environment, start_new_session=True, **pipes
    )


def test_a_full_disk_keeps_the_last_result_and_is_one_line(suite, fake, small_disk, capsys):  # noqa: F811
    results = small_disk / "results"
    run_notebooks([], "standard", results=results)
    record = results / "standard" / f"{NAME}.json"
    good = record.read_bytes()
    capsys.readouterr()
    # there is room for the record (and for what is tried at the start), not for the executed copy
    filling = fill(small_disk, leave=8192)
    text = nbformat.read(suite.path, 4)
    text.cells[0].source = "# Fixture\n" + "x" * 30_000
    nbformat.write(text, suite.path)
    (outcome,) = run_notebooks([], "standard", results=results, force=True)
    assert outcome.status == "failed"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{NAME}: its result is not stored: ") and line.endswith("No space left on device")
    assert not list(small_disk.rglob("*.part"))
    assert json.loads(record.read_bytes()).keys() == json.loads(good).keys()
    # what is there does not count as a result of this run
    filling.unlink()
    (outcome,) = run_notebooks([], "standard", results=results)
    assert outcome.status == "run"


def test_a_disk_that_is_full_from_the_start_is_found_before_a_kernel_starts(suite, fake, small_disk):  # noqa: F811
    fill(small_disk)
    with pytest.raises(OSError, match="cannot be written to: No space left on device"):
        run_notebooks([], "standard", results=small_disk / "results")
    assert fake.calls == []


def test_a_full_disk_costs_the_cached_run_and_no_line_before(small_disk, capsys):
    cache = RunCache(small_disk / "cache", "cpu")
    lines = RunLines(small_disk / "runs" / "90.jsonl", "cpu")
    lines.add("a", "trained", {"seed": 1}, {"eer": 0.5})
    filling = fill(small_disk)
    value = cache.get("trained", {"seed": 1}, lambda: {"features": [0.25] * 50_000})
    assert len(value["features"]) == 50_000
    assert "this run is not kept" in capsys.readouterr().err
    assert not list(small_disk.rglob("*.part"))
    with pytest.raises(OSError, match="No space left on device"):
        for key in range(1000):
            lines.add(f"b{key}", "trained", {"seed": 2}, {"curve": [0.123456789] * 100})
    filling.unlink()
    lines.add("c", "trained", {"seed": 3}, {"eer": 0.25})
    found = read_lines(lines.path)
    assert (found[0]["key"], found[-1]["key"]) == ("a", "c")


def test_results_on_a_file_system_that_is_read_only(suite, fake, tmp_path):  # noqa: F811
    folder = tmp_path / "disk"
    mounted(folder, "size=1m")
    try:
        results = folder / "results"
        run_notebooks([], "standard", results=results)
        before = {path: path.read_bytes() for path in results.rglob("*") if path.is_file()}
        subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
        (outcome,) = run_notebooks([], "standard", results=results)
        assert outcome.status == "cached"
        with pytest.raises(OSError, match="cannot be written to: Read-only file system"):
            run_notebooks([], "standard", results=results, force=True)
        assert len(fake.calls) == 1
        assert {path: path.read_bytes() for path in results.rglob("*") if path.is_file()} == before
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_runner_that_is_killed_while_it_stores_leaves_nothing_half_written(suite, fake):  # noqa: F811
    run_notebooks([], "standard")
    (job,) = prepare([], "standard", {})
    folder, chance = suite.results / "standard", random.Random(0)
    whole = 0
    for _ in range(100):
        child = os.fork()
        if child == 0:  # stores one result after the other until it is killed
            with contextlib.suppress(BaseException):
                os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
                while True:
                    runner.run_job(job, folder, fake.kernels, force=True)
            os._exit(1)
        time.sleep(chance.uniform(0.005, 0.05))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        for suffix in (".json", ".ipynb"):
            json.loads((folder / f"{NAME}{suffix}").read_text(encoding="utf-8"))
        whole += unchanged(job, folder, fake.kernels.data)
    # killed at any moment: some between two files, most not
    assert whole > 0
    (outcome,) = run_notebooks([], "standard")
    assert outcome.status in ("run", "cached")
    remove_leftovers(folder, seconds=0)
    assert [name for name in suite.files() if not name.endswith(".failed.ipynb")] == STANDARD


def test_a_clock_that_is_set_back_changes_no_result(suite, fake, monkeypatch):  # noqa: F811
    data = suite.root / "data" / "digits.bin"
    data.write_bytes(b"1")
    run_notebooks([], "standard")
    folder = suite.results / "standard"
    leftover = folder / ".90.json.x1.part"
    leftover.touch()
    # it was an hour later when these were written
    later = time.time() + 3600
    for path in folder.iterdir():
        os.utime(path, (later, later))
    (outcome,) = run_notebooks([], "standard")
    assert (outcome.status, leftover.exists()) == ("cached", True)
    (outcome,) = run_notebooks([], "standard", force=True)
    assert outcome.status == "run"
    # and it runs backwards during a run
    clock = iter(range(10**9, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))
    (outcome,) = run_notebooks([], "standard", force=True)
    assert outcome.status == "run"
    assert outcome.document["seconds"] >= 0


# From here on with real kernels.


def test_a_kernel_without_memory_is_named_in_one_line_and_stops_no_other(suite, capsys):
    other = with_another(suite)
    hungry = "from resource import *\nsetrlimit(RLIMIT_AS, (2**32, getrlimit(RLIMIT_AS)[1]))"
    suite.write(PARAMETERS, [hungry, "whole = bytes(2**40)"])
    outcomes = run_notebooks([], "smoke")
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [(NAME, "failed"), (other, "run")]
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{NAME}: cell [3] (whole = bytes(2**40)) failed: MemoryError")
    assert last == f"failed: {NAME}"


def test_a_kernel_that_is_killed_from_outside_takes_along_what_it_started(suite, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FAULTS", str(tmp_path / "word"))
    suite.write(PARAMETERS, ["import subprocess, time\nsubprocess.Popen(['sleep', '600'])", "time.sleep(600)"])
    killed: list[int] = []

    def kill():  # as the kernel of the machine does when memory runs out
        limit = time.monotonic() + 120
        while time.monotonic() < limit:
            for process in processes(str(tmp_path / "word")):
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{process}/cmdline").read_bytes()
                    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
                    if b"ipykernel" in words and children:
                        time.sleep(1)
                        os.kill(process, signal.SIGKILL)
                        killed.append(process)
                        return
            time.sleep(0.1)

    thread = threading.Thread(target=kill)
    thread.start()
    (outcome,) = run_notebooks([], "smoke")
    thread.join()
    assert killed
    assert outcome.message.endswith("failed: the kernel died, perhaps for lack of memory")
    assert capsys.readouterr().err == f"{outcome}\n"
    limit = time.monotonic() + 20
    while left := [process for process in processes(str(tmp_path / "word")) if process != os.getpid()]:
        assert time.monotonic() < limit, left
        time.sleep(0.2)


def test_eight_kernels_that_start_at_once_do_not_meet(suite):
    for number in range(91, 98):
        with_another(suite, f"{number}_other")
        write_atomically(suite.claims.with_name(f"{number}.yaml"), suite.claims.read_text(encoding="utf-8"))
    outcomes = run_notebooks([], "smoke", at_once=8)
    assert [(outcome.status, outcome.message) for outcome in outcomes] == [("run", "")] * 8


@pytest.mark.slow
def test_two_runners_on_one_folder_at_the_same_time(suite):
    both = [command("run", "--profile", "smoke", "--force") for _ in range(2)]
    for one in both:
        out, err = one.communicate(timeout=300)
        assert (one.returncode, err) == (0, ""), err
        assert "1 checks passed" in out
    assert not [name for name in suite.files() if name.endswith(".part")]
    (outcome,) = run_notebooks([], "smoke")
    assert outcome.status in ("cached", "run")  # whole, or not taken for a result
    (outcome,) = run_notebooks([], "smoke")
    assert outcome.status == "cached"


@pytest.mark.slow
def test_a_reader_of_the_output_that_leaves_during_a_run_ends_it(suite):
    with_another(suite)
    running = command("run", "--profile", "smoke")
    assert running.stdout is not None and running.stderr is not None
    running.stdout.close()  # | head -0
    assert running.wait(timeout=300) == 141
    assert running.stderr.read() == ""
    running.stderr.close()
    # what was done before is whole
    (job, *_) = prepare([NAME], "smoke", {})
    assert unchanged(job, suite.results / "smoke", suite.root / "data")


def test_a_failing_notebook_is_said_at_once_and_again_at_the_end(suite, fake, monkeypatch, capsys):  # noqa: F811
    other, real = with_another(suite), runner.execute

    def fails(name, *arguments):
        if name == NAME:
            raise NotebookFailed("cell [1] failed")
        return real(name, *arguments)

    monkeypatch.setattr(runner, "execute", fails)
    assert command_line.main(["run", "--profile", "standard"]) == 1
    printed = capsys.readouterr()
    assert printed.err.splitlines() == [f"{NAME}: cell [1] failed", f"failed: {NAME}"]
    assert f"{other}: 1 checks passed" in printed.out
