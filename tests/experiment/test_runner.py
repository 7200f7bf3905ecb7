from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import papermill
import pytest
from fixture_suite import CELLS, NAME, PARAMETERS
from papermill.exceptions import PapermillExecutionError

from reprolib._arithmetic import SAME_KERNELS, same_kernels
from reprolib.experiment import committed, kernel, runner
from reprolib.experiment.kernel import NotebookFailed, kernel_manager_class
from reprolib.experiment.parameters import resolve_profile
from reprolib.experiment.paths import UsageError, remove_leftovers, unwritable, write_atomically
from reprolib.experiment.report import counts, overview
from reprolib.experiment.runner import find_notebooks, prepare, run_notebooks

STANDARD = [
    "notebooks/90_fixture.ipynb",
    "results/standard/90_fixture.ipynb",
    "results/standard/90_fixture.json",
]
STANDARD.append("results/standard/90_fixture.key")


def record(suite, profile="standard", name=NAME) -> dict:
    return json.loads((suite.results / profile / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def fake(monkeypatch):
    """Replaces the kernel: writes a record and gives the notebook back, or fails as told."""
    calls = []

    def execute(name, notebook, parameters, staging, kernels):
        profile = parameters["profile"]
        calls.append(dict(parameters))
        fake.kernels = kernels
        if fake.failure:
            raise NotebookFailed(fake.failure, notebook)
        parameters = {**parameters, **fake.parameters}
        check = {"id": "a", "passed": True}
        claim = {"id": "b", "verdict": "inconclusive", "measured": {"x": 2.5}}
        document = {"notebook": name, "profile": profile, "parameters": parameters, "seconds": 2.0, "tables": []}
        document |= {"checks": [check], "claims": [claim], "findings": []}
        (staging / profile).mkdir()
        (staging / profile / f"{name}.json").write_text(json.dumps(document))
        ran = nbformat.reads(nbformat.writes(notebook), as_version=4)
        for count, cell in enumerate((cell for cell in ran.cells if cell.cell_type == "code"), 1):
            cell.execution_count = count
            cell.metadata["papermill"] = {"duration": 1.0}
            cell.outputs = [nbformat.v4.new_output("stream", text=f"cell {count}\n")]
        ran.metadata["papermill"] = {"version": "x"}
        return ran

    fake.failure = ""
    fake.calls = calls
    fake.parameters = {}
    monkeypatch.setattr(runner, "execute", execute)
    return fake


@pytest.mark.parametrize("name", ["90", "90_fixture", "90_fixture.ipynb", "notebooks/90_fixture.ipynb"])
def test_a_notebook_has_three_names_from_any_folder(suite, name):
    assert find_notebooks([name]) == {NAME: suite.path}
    assert find_notebooks([]) == {NAME: suite.path}


def test_a_path_must_lead_to_the_notebook_itself(suite, tmp_path, monkeypatch):
    monkeypatch.chdir(suite.root)
    mine = suite.root / "mine"
    mine.mkdir()
    shutil.copy(suite.path, mine)
    (mine / "link.ipynb").symlink_to(suite.path)
    for name in (str(suite.path), "notebooks/90_fixture.ipynb", "./notebooks/../notebooks/90_fixture.ipynb"):
        assert find_notebooks([name]) == {NAME: suite.path}
    (mine / "linked").symlink_to(suite.path.parent)
    assert find_notebooks(["mine/linked/90_fixture.ipynb"]) == {NAME: suite.path}
    for name in ("mine/90_fixture.ipynb", "/no/such/folder/90_fixture.ipynb", "mine/90_fixture", "nosuch/90"):
        with pytest.raises(UsageError, match=r"is not one of the notebooks in .*notebooks"):
            find_notebooks([name])
    # a copy in the working directory has a path, too
    monkeypatch.chdir(mine)
    with pytest.raises(UsageError, match="is not one of the notebooks"):
        find_notebooks(["90_fixture.ipynb"])
    assert find_notebooks(["90_fixture"]) == {NAME: suite.path}


def test_without_notebooks_it_says_what_is_needed(suite):
    suite.path.unlink()
    with pytest.raises(UsageError, match=r"there is no notebook in .*; to run them, clone the repository"):
        find_notebooks([])


def test_an_unknown_or_ambiguous_notebook_is_refused(suite):
    for name in ("91", "nosuch", "", "9", "90_", "fixture"):
        with pytest.raises(UsageError, match="notebooks are 90_fixture"):
            find_notebooks([name])
    shutil.copy(suite.path, suite.path.with_name("90_other.ipynb"))
    with pytest.raises(UsageError, match="unknown notebook '90'; notebooks are 90_fixture, 90_other"):
        find_notebooks(["90"])


def test_auto_is_full_on_a_gpu_and_standard_elsewhere(monkeypatch):
    monkeypatch.setenv("REPROLIB_DEVICE", "cpu")
    assert resolve_profile("auto") == "standard"
    monkeypatch.setenv("REPROLIB_DEVICE", "cuda:0")
    assert resolve_profile("auto") == "full"
    assert resolve_profile("smoke") == "smoke"
    with pytest.raises(UsageError, match="profiles are auto, smoke, standard, full, paper"):
        resolve_profile("nosuch")


def test_a_notebook_is_given_all_parameters_with_their_final_values(suite):
    (job,) = prepare([], "smoke", {"steps": 2})
    assert job.parameters == {
        "profile": "smoke",
        "dataset": "digits",
        "seeds": [0, 1],
        "rate": 0.25,
        "steps": 2,
    }


@pytest.mark.parametrize(
    ("profile", "overrides", "message"),
    [
        ("standard", {"nosuch": 1}, "unknown parameter 'nosuch'"),
        ("standard", {"steps": 1.5}, "'steps' must be of type int"),
        ("standard", {"dataset": "nosuch"}, "must be one of mnist"),
        ("nosuch", {}, "unknown profile"),
    ],
)
def test_wrong_input_is_refused_before_anything_is_written(suite, fake, profile, overrides, message):
    before = suite.files()
    with pytest.raises(UsageError, match=message):
        run_notebooks([], profile, overrides)
    assert suite.files() == before
    assert fake.calls == []


def test_a_file_that_is_no_notebook_is_refused(suite):
    for text in (
        "no json",
        "{}",
        json.dumps({"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}),
    ):
        suite.path.write_text(text, encoding="utf-8")
        with pytest.raises(UsageError, match="90_fixture"):
            prepare([], "standard", {})


def test_an_unchanged_notebook_is_not_run_again(suite, fake, capsys):
    run_notebooks([], "standard")
    assert capsys.readouterr().out == (
        "90_fixture: 1 checks passed; claims: 0 reproduced, 0 contradicted, 1 inconclusive; 2 s\n"
    )
    run_notebooks([], "standard")
    assert capsys.readouterr().out == ("90_fixture: unchanged, cached result of 1 checks (use --force to run again)\n")
    assert len(fake.calls) == 1
    run_notebooks([], "standard", force=True)
    assert len(fake.calls) == 2
    assert suite.files() == STANDARD


def test_every_change_makes_it_run_again(suite, fake, monkeypatch):
    def calls():
        run_notebooks([], "standard")
        return len(fake.calls)

    assert [calls(), calls()] == [1, 1]
    suite.write(PARAMETERS, [*CELLS, "1 + 1"])
    assert [calls(), calls()] == [2, 2]
    # digits is the parameter `dataset` of this notebook
    (suite.root / "data" / "digits.bin").write_bytes(b"1")
    assert [calls(), calls()] == [3, 3]
    (suite.root / "data" / "digits.bin").write_bytes(b"12")
    assert [calls(), calls()] == [4, 4]
    record_path = suite.results / "standard" / f"{NAME}.json"
    record_path.write_text(record_path.read_text() + " ")
    assert [calls(), calls()] == [5, 5]
    record_path.with_suffix(".ipynb").unlink()
    assert [calls(), calls()] == [6, 6]
    record_path.with_suffix(".key").write_text("damaged")
    assert [calls(), calls()] == [7, 7]
    monkeypatch.setattr(runner, "source_hash", lambda: "another package")
    assert [calls(), calls()] == [8, 8]
    run_notebooks([], "standard", {"steps": 4})
    assert [calls(), calls()] == [10, 10]


def state(suite, **parameters) -> list:
    job = prepare([], "standard", parameters)[0]
    return [entry[0] for entry in runner.data_state(suite.root / "data", job)]


def test_only_the_data_sets_that_a_notebook_names_count(suite):
    files = ["digits/a", "digits/deep/b", "digits/.c.12-ab.part", "orl/a", "lfw/a", "casia/a", "fashion_mnist/a"]
    files += ["mnist/t10k", "cifar-10-batches-bin/a", "README.md", ".hidden/a"]
    for name in files:
        path = suite.root / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    assert state(suite) == ["digits/a", "digits/deep/b"]
    assert state(suite, dataset="mnist") == ["mnist/t10k"]
    assert "fashion_mnist/a" in state(suite, dataset="fashion_mnist")
    suite.write(PARAMETERS, [*CELLS, "from reprolib.data import load_orl, load_cifar10"])
    assert state(suite) == ["cifar-10-batches-bin/a", "digits/a", "digits/deep/b", "orl/a"]
    suite.write(PARAMETERS + '\nfolder = "somewhere/casia"', CELLS)
    assert state(suite) == ["casia/a", "digits/a", "digits/deep/b"]


def test_a_file_that_vanishes_meanwhile_is_no_error(suite):
    folder, stop = suite.root / "data" / "digits", threading.Event()
    folder.mkdir()

    def another_run_fetches():
        while not stop.is_set():
            (folder / ".a.part").write_bytes(b"1")
            (folder / ".a.part").replace(folder / "a")
            (folder / "a").unlink()

    job = prepare([], "standard", {})[0]
    thread = threading.Thread(target=another_run_fetches)
    thread.start()
    try:
        found, rounds, limit = set(), 0, time.monotonic() + 60
        # on a busy machine the two threads may meet seldom
        while rounds < 1000 or (len(found) < 2 and time.monotonic() < limit):
            found.add(tuple(map(tuple, runner.data_state(suite.root / "data", job))))
            rounds += 1
    finally:
        stop.set()
        thread.join()
    assert len(found) > 1  # seen with the file and without it
    assert runner.data_state(suite.root / "nosuch", job) == []


def test_a_package_that_changes_during_the_run_makes_the_result_stale(suite, fake, monkeypatch):
    execute = runner.execute

    def edited_meanwhile(*arguments):
        monkeypatch.setattr(runner, "source_hash", lambda: "edited")
        return execute(*arguments)

    monkeypatch.setattr(runner, "execute", edited_meanwhile)
    run_notebooks([], "standard")
    run_notebooks([], "standard")
    assert len(fake.calls) == 2


def test_a_changed_output_is_no_change(suite, fake):
    run_notebooks([], "standard", save_outputs=True)
    shutil.rmtree(suite.root / "reference")  # nothing to compare with
    run_notebooks([], "standard")
    assert len(fake.calls) == 1


def test_a_failed_run_keeps_the_last_good_result_and_its_own_copy(suite, fake, capsys):
    run_notebooks([], "standard")
    good = record(suite)
    fake.failure = "cell [3] (x = 1 / 0) failed: ZeroDivisionError: division by zero"
    (outcome,) = run_notebooks([], "standard", force=True)
    assert outcome.status == "failed"
    assert capsys.readouterr().err == f"90_fixture: {fake.failure}\n"
    assert record(suite) == good
    assert suite.files() == sorted([*STANDARD, "results/standard/90_fixture.failed.ipynb"])
    fake.failure = ""
    run_notebooks([], "standard", force=True)
    assert suite.files() == STANDARD


@pytest.mark.parametrize("broken", [".json", ".ipynb", ".key"])
def test_an_interrupted_write_never_leaves_a_mixture_that_counts_as_done(suite, fake, monkeypatch, broken):
    run_notebooks([], "standard")
    real = runner.write_atomically

    def interrupted(path, content):
        if path.suffix == broken:
            raise KeyboardInterrupt
        real(path, content)

    monkeypatch.setattr(runner, "write_atomically", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_notebooks([], "standard", force=True)
    monkeypatch.setattr(runner, "write_atomically", real)
    assert not [name for name in suite.files() if name.endswith(".part")]
    run_notebooks([], "standard")
    assert len(fake.calls) == 3
    run_notebooks([], "standard")
    assert len(fake.calls) == 3


def test_a_notebook_that_writes_no_record_or_ran_otherwise_fails(suite, fake):
    fake.parameters["steps"] = 99
    (outcome,) = run_notebooks([], "standard")
    assert "other parameters" in outcome.message
    assert suite.files() == STANDARD[:1]


def test_a_results_folder_that_cannot_be_written_is_found_before_a_kernel_starts(suite, fake):
    suite.results.write_text("a file")
    with pytest.raises(OSError, match=r"the results folder .* cannot be written to: Not a directory"):
        run_notebooks([], "standard")
    assert fake.calls == []


def test_a_result_that_is_there_needs_no_folder_that_can_be_written(suite, fake, monkeypatch):
    run_notebooks([], "standard")
    monkeypatch.setattr(runner, "unwritable", lambda folder: "Read-only file system")
    (outcome,) = run_notebooks([], "standard")
    assert outcome.status == "cached"
    with pytest.raises(OSError, match="Read-only file system"):
        run_notebooks([], "standard", force=True)


def test_a_cache_that_cannot_be_written_is_a_warning(suite, fake, capsys):
    suite.cache.write_text("a file")
    (outcome,) = run_notebooks([], "standard")
    assert outcome.status == "run"
    warning = capsys.readouterr().err
    assert warning == f"the cache {suite.cache} cannot be written to (Not a directory); the trained runs are not kept\n"
    assert fake.kernels.cache is None


def test_a_full_disk_at_the_end_names_the_notebook_and_stops_no_other(suite, fake, monkeypatch, capsys):
    other, real = with_another(suite), runner.write_atomically

    def full(path, content):
        if path.name == f"{NAME}.json":
            raise OSError(f"{path} cannot be written: No space left on device")
        real(path, content)

    monkeypatch.setattr(runner, "write_atomically", full)
    outcomes = run_notebooks([], "standard")
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [(NAME, "failed"), (other, "run")]
    first, last = capsys.readouterr().err.splitlines()
    assert first.startswith(f"{NAME}: its result is not stored: ") and first.endswith("No space left on device")
    assert last == f"failed: {NAME}"
    assert not list((suite.results / "standard").glob(f"{NAME}.*"))


def test_a_disk_that_takes_no_more_leaves_the_old_file_whole(tmp_path):
    resource = pytest.importorskip("resource")
    path = tmp_path / "record.json"
    write_atomically(path, "old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"record.json cannot be written: File too large"):
            write_atomically(path, bytes(10_000))
        reason = unwritable(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert reason == "File too large"
    assert unwritable(tmp_path) == ""
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_is_removed_after_a_day(tmp_path):
    old, new, other = (tmp_path / name for name in (".a.json.x1.part", ".b.json.x2.part", "c.part"))
    for path in (old, new, other):
        path.touch()
    os.utime(old, (0, 0))
    os.utime(other, (0, 0))
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == [new, other]


@pytest.mark.parametrize("suffix", [".json", ".ipynb", ".key"])
def test_a_truncated_result_is_made_again(suite, fake, suffix):
    run_notebooks([], "standard")
    path = suite.results / "standard" / f"{NAME}{suffix}"
    whole = path.read_bytes()
    for part in (whole[: len(whole) // 2], b"", b"\xff"):
        path.write_bytes(part)
        before = len(fake.calls)
        (outcome,) = run_notebooks([], "standard")
        assert (outcome.status, len(fake.calls)) == ("run", before + 1)
    path.unlink()
    path.mkdir()
    (outcome,) = run_notebooks([], "standard")
    assert outcome.status == "failed"
    assert "its result is not stored" in outcome.message


def test_two_runners_on_one_folder_leave_no_mixture_that_counts_as_done(suite, fake, monkeypatch):
    real, second = runner.write_atomically, []

    def interleaved(path, content):
        real(path, content)
        if path.suffix == ".json" and not second:
            # between the record and the executed copy of the first runner a second one stores all of its own
            second.append(path)
            job = prepare([], "standard", {})[0]
            monkeypatch.setattr(runner, "finished_record", lambda job, staging: real_record(job, staging, b" "))
            assert runner.run_job(job, suite.results / "standard", fake.kernels, force=True).status == "run"

    def real_record(job, staging, more=b""):
        return (staging / "standard" / f"{job.name}.json").read_bytes() + more

    monkeypatch.setattr(runner, "finished_record", real_record)
    monkeypatch.setattr(runner, "write_atomically", interleaved)
    run_notebooks([], "standard")
    monkeypatch.setattr(runner, "write_atomically", real)
    assert second
    before = len(fake.calls)
    (outcome,) = run_notebooks([], "standard")
    assert (outcome.status, len(fake.calls)) == ("run", before + 1)


def test_claims_are_compared_with_the_committed_record(suite, fake, capsys):
    run_notebooks([], "standard")
    assert "in the reference" not in capsys.readouterr().out
    path = suite.root / "reference" / "standard" / f"{NAME}.json"
    path.parent.mkdir(parents=True)
    committed = record(suite)
    committed["claims"][0] |= {"verdict": "reproduced", "measured": {"x": 7.5}}
    path.write_text(json.dumps(committed))
    # a run, and one that is taken over
    for options in ({"force": True}, {}):
        run_notebooks([], "standard", **options)
        printed = capsys.readouterr().out
        (row,) = [line.split("  ") for line in printed.splitlines() if line.startswith("b ")]
        cells = [cell.strip() for cell in row if cell.strip()]
        assert cells == ["b", "x 2.5", "x 7.5", "inconclusive", "reproduced", "differs"]
        assert printed.endswith(f"\n\n{NAME}: 0 of 1 claims as in the reference; 1 differ (b)\n")
    # other parameters are another experiment
    run_notebooks([], "standard", {"steps": 4})
    assert "in the reference" not in capsys.readouterr().out


def test_an_interruption_stops_every_kernel_and_stores_nothing(suite, fake, monkeypatch):
    with_another(suite)
    waiting = threading.Barrier(2, timeout=60)

    def execute(name, notebook, parameters, staging, kernels):
        if waiting.wait() == 0:
            raise KeyboardInterrupt  # as if the signal came now
        limit = time.monotonic() + 60
        while not kernels.stopped:
            assert time.monotonic() < limit
            time.sleep(0.01)
        raise NotebookFailed("the kernel died", notebook)

    before = suite.files()
    monkeypatch.setattr(runner, "execute", execute)
    with pytest.raises(KeyboardInterrupt):
        run_notebooks([], "standard", at_once=2)
    assert suite.files() == before


def test_kernels_that_start_while_all_are_stopped_are_stopped_too(tmp_path):
    started = [subprocess.Popen(["sleep", "60"], start_new_session=True) for _ in range(3)]
    kernels = kernel.Kernels(tmp_path, None, tmp_path, 1)
    for process in started[:2]:
        kernels.started(tmp_path / str(process.pid), process.pid)
    kernels.ended(tmp_path / str(started[0].pid))
    try:
        kernels.stop()
        kernels.started(tmp_path, started[2].pid)
        assert [process.wait(timeout=10) for process in started[1:]] == [-9, -9]
        assert started[0].poll() is None
    finally:
        for process in started:
            process.kill()
            process.wait()


def with_another(suite, name="91_other"):
    """A second notebook in the suite, the same under another name."""
    text = suite.path.read_text(encoding="utf-8")
    suite.path.with_name(f"{name}.ipynb").write_text(text.replace(NAME, name), encoding="utf-8")
    shutil.copy(suite.claims, suite.claims.with_name("91.yaml"))
    return name


def test_several_notebooks_end_with_a_summary(suite, fake, capsys):
    with_another(suite)
    run_notebooks([], "standard")
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:] == [
        "Profile standard",
        *repr(overview([record(suite), record(suite, name="91_other")])).splitlines()[1:],
    ]


def test_notebooks_at_once_are_reported_in_order_and_one_failure_stops_no_other(suite, fake, monkeypatch, capsys):
    other, started = with_another(suite), threading.Barrier(2, timeout=60)
    execute = runner.execute

    def together(name, *arguments):
        started.wait()  # passes only if both run at the same time
        if name == NAME:
            raise NotebookFailed("cell [1] failed")
        return execute(name, *arguments)

    monkeypatch.setattr(runner, "execute", together)
    outcomes = run_notebooks([], "standard", at_once=2)
    assert [(outcome.name, outcome.status) for outcome in outcomes] == [(NAME, "failed"), (other, "run")]
    printed = capsys.readouterr()
    assert printed.err == f"{NAME}: cell [1] failed\nfailed: {NAME}\n"
    assert printed.out.splitlines()[0].startswith(f"{other}: 1 checks passed")


def test_notebooks_at_once_give_the_same_records(suite, tmp_path, monkeypatch):
    with_another(suite)
    documents = []
    for at_once in (1, 2):
        monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / f"cache {at_once}"))
        folder = tmp_path / f"results {at_once}"
        outcomes = run_notebooks([], "standard", results=folder, at_once=at_once)
        assert [outcome.status for outcome in outcomes] == ["run", "run"]
        records = [
            json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / "standard").glob("*.json"))
        ]
        assert len(records) == 2
        for document in records:
            del document["seconds"]
        documents.append(records)
    assert documents[0] == documents[1]


@pytest.mark.parametrize(("at_once", "cores"), [(1, 6), (2, 3), (4, 1), (7, 1)])
def test_notebooks_at_once_share_the_cores(suite, fake, monkeypatch, at_once, cores):
    monkeypatch.setattr(runner.joblib, "cpu_count", lambda: 6)
    run_notebooks([], "standard", at_once=at_once)
    assert fake.kernels.cores == cores


def test_no_notebook_at_once_is_refused(suite, fake):
    with pytest.raises(UsageError, match="must be at least 1, got 0"):
        run_notebooks([], "standard", at_once=0)
    assert suite.files() == STANDARD[:1]


def test_save_outputs_changes_outputs_and_nothing_else(suite, fake):
    before = nbformat.read(suite.path, as_version=4)
    run_notebooks([], "standard", save_outputs=True)
    text = suite.path.read_text(encoding="utf-8")
    after = nbformat.read(suite.path, as_version=4)
    for old, new in zip(before.cells, after.cells, strict=True):
        assert (new.id, new.source, new.metadata) == (old.id, old.source, old.metadata)
    assert [cell.execution_count for cell in after.cells if cell.cell_type == "code"] == list(range(1, len(CELLS) + 2))
    assert after.cells[1].outputs[0].text == "cell 1\n"
    assert after.metadata.kernelspec.name == "python3"
    assert "papermill" not in text
    # Saved again from the unchanged result: the same bytes.
    run_notebooks([], "standard", save_outputs=True)
    assert suite.path.read_text(encoding="utf-8") == text
    assert len(fake.calls) == 1


def test_outputs_of_full_are_saved_on_any_device(suite, fake):
    run_notebooks([], "full")
    committed = suite.root / "reference" / "full" / f"{NAME}.json"
    assert fake.kernels.lines == suite.results and not committed.exists()
    run_notebooks([], "full", save_outputs=True, force=True)
    assert fake.kernels.lines == suite.root / "reference"
    assert json.loads(committed.read_text()) == record(suite, "full")
    committed.unlink()
    run_notebooks([], "full", save_outputs=True)  # from the unchanged result
    assert json.loads(committed.read_text()) == record(suite, "full")
    assert nbformat.read(suite.path, as_version=4).cells[1].outputs[0].text == "cell 1\n"


@pytest.mark.parametrize(("profile", "overrides"), [("smoke", {}), ("standard", {"steps": 4})])
def test_outputs_of_another_run_are_not_saved(suite, fake, profile, overrides):
    with pytest.raises(UsageError, match="--save-outputs"):
        run_notebooks([], profile, overrides, save_outputs=True)
    assert fake.calls == []


def test_a_notebook_that_changed_meanwhile_does_not_get_the_outputs(suite, fake):
    run_notebooks([], "standard")
    executed = nbformat.read(suite.results / "standard" / f"{NAME}.ipynb", as_version=4)
    suite.write(PARAMETERS, ["1 + 1", *CELLS])
    with pytest.raises(UsageError, match="changed while it ran"):
        committed.copy_outputs(executed, suite.path)


# From here on with real kernels.


def test_a_real_run_gives_the_same_record_everywhere(suite, tmp_path, monkeypatch):
    # A kernelspec that cannot start, found first: the runner must not ask for it.
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    broken = {
        "argv": ["/nonexistent/python", "{connection_file}"],
        "display_name": "broken",
        "language": "python",
    }
    (spec / "kernel.json").write_text(json.dumps(broken))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    # An environment variable of a surrounding test run does not reach the kernel.
    monkeypatch.setenv("REPROLIB_PROFILE", "full")
    (outcome,) = run_notebooks([], "standard", save_outputs=True)
    assert (outcome.status, counts(outcome.document)) == ("run", {"checks": 1, "reproduced": 1, "findings": 0})
    assert suite.files() == STANDARD
    first = record(suite)
    assert first["parameters"] == prepare([], "standard", {})[0].parameters
    executed = nbformat.read(suite.results / "standard" / f"{NAME}.ipynb", as_version=4)
    before = nbformat.read(suite.path, as_version=4)
    assert [cell.source for cell in executed.cells] == [cell.source for cell in before.cells]
    assert str(tmp_path) not in (suite.results / "standard" / f"{NAME}.ipynb").read_text(encoding="utf-8")
    nbformat.validate(nbformat.read(suite.path, as_version=4))

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    run_notebooks([], "standard", force=True)
    second = record(suite)
    for document in (first, second):
        del document["seconds"], document["environment"]
    # The first run had an empty cache, the second a full one.
    assert second == first
    assert len(list(suite.cache.iterdir())) == 3
    assert list(elsewhere.iterdir()) == []


def test_outputs_of_another_profile_are_those_of_the_committed_cells(suite):
    (suite.root / "profiles" / "full.yaml").write_text("90_fixture: {steps: 5}\n", encoding="utf-8")
    (outcome,) = run_notebooks([], "full", save_outputs=True)
    assert (outcome.status, outcome.message) == ("run", "")
    assert record(suite, "full")["parameters"]["steps"] == 5
    shown = nbformat.read(suite.path, as_version=4)
    assert shown.cells[2].outputs[0].text == "90_fixture | profile full | dataset digits | seeds 0, 1, 2\n"


def test_a_failing_cell_is_named_in_one_line(suite, capsys):
    suite.write(PARAMETERS, ["1 + 1", "\n\nvalues = []\nvalues[rate > 0]\n", "1 + 1"])
    (outcome,) = run_notebooks([], "smoke", {"steps": 2})
    assert outcome.status == "failed"
    captured = capsys.readouterr()
    assert captured.err == "90_fixture: cell [3] (values = []) failed: IndexError: list index out of range\n"
    assert captured.out == ""
    assert suite.files() == ["notebooks/90_fixture.ipynb", "results/smoke/90_fixture.failed.ipynb"]


def test_a_kernel_that_dies_and_a_cell_that_hangs_are_named_in_one_line(suite, monkeypatch, tmp_path, capfd):
    suite.write(PARAMETERS, ["import os\nos._exit(1)"])
    (outcome,) = run_notebooks([], "smoke")
    assert outcome.message == "cell [2] (import os) failed: the kernel died, perhaps for lack of memory"
    assert capfd.readouterr().err == f"{outcome}\n"
    log = tmp_path / "kernel.log"
    log.write_text("[IPKernelApp] a\nFatal Python error: Segmentation fault\n[IPKernelApp] b\n\n")
    assert kernel.last_line(log) == "Fatal Python error: Segmentation fault"
    monkeypatch.setitem(kernel.CELL_SECONDS, "smoke", 1)
    suite.write(PARAMETERS, ["import time\ntime.sleep(60)"])
    (outcome,) = run_notebooks([], "smoke")
    assert outcome.message == "cell [2] (import time) failed: it ran longer than 1 s"


def test_a_bare_papermill_call_refuses_an_unknown_parameter(suite):
    options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    options["kernel_manager_class"] = kernel_manager_class({})
    output = suite.root / "out.ipynb"
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'nosuch' of 90_fixture"):
        papermill.execute_notebook(str(suite.path), str(output), parameters={"nosuch": 1}, **options)
    assert not suite.results.exists()


def test_kernels_take_no_ports_that_two_could_pick(tmp_path):
    names = set()
    for k in range(3):
        folder = tmp_path / str(k)
        folder.mkdir()
        manager = kernel_manager_class({}, folder)()
        assert manager.transport == "ipc"
        names.add(manager.ip)
        assert Path(manager.connection_file).parent == folder
    assert len(names) == 3
    deep = tmp_path / ("x" * 100)
    deep.mkdir()
    assert kernel_manager_class({}, deep)().transport == "tcp"  # the path of a socket is short


@pytest.mark.parametrize("asked", ["0", "1"])
def test_the_kernel_is_this_interpreter_with_this_package_and_the_arithmetic_asked_for(suite, monkeypatch, asked):
    import reprolib

    monkeypatch.setenv("REPROLIB_SAME_BITS", asked)
    for name in SAME_KERNELS:
        monkeypatch.delenv(name, raising=False)

    lines = ["import sys, os, reprolib", "print(sys.executable)", "print(reprolib.__file__)"]
    lines += ["print(os.environ.get('ATEN_CPU_CAPABILITY'))"]
    suite.write(PARAMETERS, ["\n".join(lines)])
    options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    options["kernel_manager_class"] = kernel_manager_class({})
    output = papermill.execute_notebook(str(suite.path), None, cwd=str(suite.root), **options)
    executable, package, arithmetic = output.cells[2].outputs[0].text.splitlines()
    assert Path(executable) == Path(sys.executable)
    assert Path(package) == Path(reprolib.__file__)
    assert arithmetic == (same_kernels().get("ATEN_CPU_CAPABILITY", "None") if asked == "1" else "None")


def test_figures_are_stored_with_a_palette_and_look_the_same():
    import base64
    import io

    import numpy as np
    from PIL import Image

    from reprolib.experiment.committed import smaller_png

    x, y = np.meshgrid(np.arange(300), np.arange(200))
    # a smooth disc on white: many shades, as in an antialiased drawing
    shade = np.clip(255 - 2 * np.abs(np.hypot(x - 150, y - 100) - 60), 0, 255)
    pixels = np.stack([shade, shade, np.full_like(shade, 255)], axis=2).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    before = base64.b64encode(buffer.getvalue()).decode()
    after = smaller_png(before)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(after))).convert("RGB")).astype(int)
    assert len(after) < len(before)
    # 256 shades on fewer colours: a few levels of 255, nowhere one that the eye would see in a drawing
    error = np.abs(shown - pixels)
    assert error.mean() <= 3 and error.max() <= 16


def test_a_figure_with_fewer_colours_keeps_rare_class_colours_apart():
    import base64
    import io

    import numpy as np
    from PIL import Image, ImageColor

    from reprolib import plots
    from reprolib.experiment.committed import smaller_png

    generator = np.random.default_rng(0)
    # a drawing of very many shades with ten small patches, one of each class colour
    pixels = generator.integers(200, 256, (300, 300, 3)).astype(np.uint8)
    wanted = [ImageColor.getrgb(plots.class_color(k)[:7]) for k in range(10)]
    for k, color in enumerate(wanted):
        pixels[10 + 20 * k : 16 + 20 * k, 10:16] = color
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    after = smaller_png(base64.b64encode(buffer.getvalue()).decode())
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(after))).convert("RGB")).astype(int)
    for k, color in enumerate(wanted):
        assert np.abs(shown[13 + 20 * k, 13] - color).max() <= 24
