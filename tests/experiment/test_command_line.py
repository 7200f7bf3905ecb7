from __future__ import annotations

import json
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from reprolib import __main__ as command_line
from reprolib.experiment import runner
from reprolib.experiment.runner import Outcome


def call(capsys, *arguments: str) -> tuple[int, str, str]:
    try:
        status = command_line.main(arguments)
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "nosuch"], "unknown notebook 'nosuch'; notebooks are 90_fixture"),
        (["run", "--profile", "nosuch"], "unknown profile 'nosuch'"),
        (["run", "-p", "nosuch=1"], "unknown parameter 'nosuch' of 90_fixture"),
        (["run", "-p", "steps=1.5"], "parameter 'steps' must be of type int, not 1.5"),
        (["run", "-p", "steps"], "-p name=value"),
        (["run", "-p", "profile=smoke"], "--profile"),
        (["run", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["run", "--profile", "smoke", "--save-outputs"], "--save-outputs is for profile 'standard'"),
        (["report", "--profile", "nosuch"], "unknown profile 'nosuch'"),
        (["report"], "no record of profile 'standard'"),
        (["claims", "--profile", "smoke"], "no record of profile 'smoke'"),
        (["fetch", "nosuch"], "unknown data set 'nosuch'"),
        (["nosuch"], "invalid choice: 'nosuch'"),
        ([], "the following arguments are required"),
    ],
)
def test_wrong_input_is_one_line_status_2_and_nothing_written(suite, capsys, arguments, message):
    before = suite.files()
    status, out, err = call(capsys, *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("reprolib")
    assert message in err
    assert suite.files() == before
    assert list((suite.root / "data").iterdir()) == []


def test_status_1_when_a_notebook_fails(suite, capsys, monkeypatch):
    outcome = Outcome("90_fixture", "failed", message="cell [1] failed")
    monkeypatch.setattr(runner, "run_job", lambda *_, **__: outcome)
    assert call(capsys, "run", "90") == (1, "", "90_fixture: cell [1] failed\n")


def test_run_passes_its_options_on(suite, capsys, monkeypatch):
    seen = {}

    def run_job(job, results, cores, **options):
        seen.update(job=job, results=results, options=options)
        return Outcome(job.name, "run")

    monkeypatch.setattr(runner, "run_job", run_job)
    monkeypatch.chdir(suite.root)
    arguments = ["-p", "steps=4", "-p", "rate=1e-2", "--force", "--results", "here"]
    assert call(capsys, "run", "90", "--profile", "smoke", *arguments)[0] == 0
    assert seen["job"].parameters["steps"] == 4
    assert seen["job"].parameters["rate"] == 0.01
    assert seen["results"] == suite.root / "here"
    assert seen["options"] == {"force": True, "save_outputs": False}


def test_interrupted_is_one_line_and_status_130(suite, capsys, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, "run_job", interrupt)
    assert call(capsys, "run") == (130, "", "reprolib run: interrupted\n")


def test_report_and_claims_print_what_is_recorded(suite, capsys):
    from test_report import document, write

    write(suite, document())
    status, out, err = call(capsys, "report")
    assert (status, err) == (0, "")
    assert out.startswith("Profile standard\n")
    assert (suite.results / "standard" / "report.md").exists()
    status, out, err = call(capsys, "claims", "--paper", "Fixture")
    assert (status, err) == (0, "")
    assert out.endswith("2 reproduced, 0 not reproduced, 1 inconclusive\n")


def test_fetch_takes_data_from_a_folder(suite, capsys, monkeypatch):
    from reprolib import data

    calls = []
    monkeypatch.setattr(data, "fetch", lambda *arguments: calls.append(arguments))
    assert call(capsys, "fetch")[0] == 0
    assert call(capsys, "fetch", "fashion_mnist", "--from", "a", "--to", "b")[0] == 0
    assert calls == [("mnist", None, None), ("orl", None, None), ("fashion_mnist", "b", "a")]


def test_data_that_cannot_be_had_is_status_1(suite, capsys, monkeypatch):
    from reprolib import data

    def refuse(*_):
        raise data.DataUnavailable("mnist cannot be had")

    monkeypatch.setattr(data, "fetch", refuse)
    assert call(capsys, "fetch") == (1, "", "reprolib fetch: mnist cannot be had\n")


def test_bench_runs_the_named_benchmarks(suite, capsys, monkeypatch):
    module = types.ModuleType("reprolib.benchmarks")
    module.BENCHES = {"one": lambda arguments: {"seconds": 1.5}, "two": lambda arguments: {"seconds": 2.5}}
    monkeypatch.setitem(sys.modules, "reprolib.benchmarks", module)
    status, out, _ = call(capsys, "bench", "two")
    assert (status, json.loads(out)) == (0, {"bench": "two", "seconds": 2.5})
    assert call(capsys, "bench")[1].count("\n") == 2
    assert call(capsys, "bench", "one", "nosuch") == (
        2,
        "",
        "reprolib bench: unknown benchmark 'nosuch'; benchmarks are one, two\n",
    )


def test_the_module_runs_from_any_folder_without_terminal_and_input(suite, tmp_path):
    root = Path(command_line.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "reprolib"]
    options = {"cwd": tmp_path, "env": environment, "stdin": subprocess.DEVNULL}
    options |= {"capture_output": True, "text": True}
    ended = subprocess.run([*command, "run", "nosuch"], **options)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "reprolib run: unknown notebook 'nosuch'; notebooks are 90_fixture\n"
    assert "fetch" in subprocess.run([*command, "--help"], **options).stdout
