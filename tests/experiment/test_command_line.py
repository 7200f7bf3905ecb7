from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fixture_suite import PARAMETERS

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
        (["run", "-p", "steps=1.5"], "parameter 'steps' must be of type int, got 1.5"),
        (["run", "-p", "steps"], "-p name=value"),
        (["run", "-p", "profile=smoke"], "--profile"),
        (["run", "--nosuch"], "unrecognized arguments: --nosuch"),
        (["run", "--profile", "smoke", "--save-outputs"], "--save-outputs must be given with profile standard or full"),
        (["run", "mine/90_fixture.ipynb"], "mine/90_fixture.ipynb is not one of the notebooks in"),
        (["run", "-p", "seeds=[]"], "'seeds' must be a list of at least one value"),
        (["run", "-p", "seeds=[99999999999999999999]"], "'seeds' must be a list of distinct integers"),
        (["run", "-p", "steps=1:30"], "'steps' must be of type int, got '1:30'"),
        (["run", "-p", "steps=0"], "'steps' must be positive, got 0"),
        (["run", "--at-once", "x"], "argument --at-once: must be an integer >= 1, got x"),
        (["run", "--at-once", "0"], "argument --at-once: must be an integer >= 1, got 0"),
        (["run", "--at-once", "1_0"], "argument --at-once: must be an integer >= 1, got 1_0"),
        (["bench"], "invalid choice: 'bench'"),
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

    def run_job(job, folder, kernels, **options):
        seen.update(job=job, folder=folder, options=options, same_bits=os.environ["REPROLIB_SAME_BITS"])
        return Outcome(job.name, "run")

    monkeypatch.setattr(runner, "run_job", run_job)
    monkeypatch.chdir(suite.root)
    monkeypatch.setenv("REPROLIB_SAME_BITS", "0")
    arguments = ["--same-bits", "-p", "steps=4", "-p", "rate=1e-2", "--force", "--results", "here"]
    assert call(capsys, "run", "90", "--profile", "smoke", *arguments)[0] == 0
    assert seen["job"].parameters["steps"] == 4
    assert seen["job"].parameters["rate"] == 0.01
    assert seen["folder"] == suite.root / "here" / "smoke"
    assert seen["same_bits"] == "1"
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
    assert out.endswith("2 reproduced, 0 contradicted, 1 inconclusive\n")


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


@pytest.mark.parametrize("device", ["meta", "nosuch", "cuda:99"])
def test_a_device_that_cannot_compute_is_refused_at_the_start(suite, capsys, monkeypatch, device):
    monkeypatch.setenv("REPROLIB_DEVICE", device)
    message = f"reprolib run: REPROLIB_DEVICE={device!r} cannot be used on this machine\n"
    assert call(capsys, "run", "--profile", "smoke") == (2, "", message)
    assert suite.files() == ["notebooks/90_fixture.ipynb"]


def test_an_unwritable_results_folder_is_one_line_and_status_1(suite, capsys):
    suite.results.write_text("a file")
    status, out, err = call(capsys, "run")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert err.endswith("results/standard cannot be written to: Not a directory\n")


def test_report_writes_a_page_and_what_is_committed(suite, capsys, tmp_path):
    from test_report import commit, document, write

    commit(suite, document())
    mine = document()
    mine["claims"] = []
    write(suite, mine)
    page, readme = tmp_path / "report.html", suite.root / "README.md"
    readme.write_text("| [`90_fixture`](x) | what | 0 | 0 / 0 / 0 | – |\n", encoding="utf-8")
    status, out, err = call(capsys, "report", "--html", str(page), "--commit")
    assert (status, err) == (0, "")
    assert f"written to {page}" in out
    assert page.read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    # of the committed record, not of the reader's
    assert readme.read_text(encoding="utf-8") == "| [`90_fixture`](x) | what | 1 | 2 / 0 / 1 | – |\n"
    committed = (suite.root / "reference" / "standard" / "report.md").read_text(encoding="utf-8")
    assert "| F-2 |" in committed and "Beside the reference" not in committed
    status, out, err = call(capsys, "report", "--html", str(tmp_path / "no.html" / "\0"))
    assert status != 0 and len(err.splitlines()) == 1


def test_report_without_a_folder_to_write_to_prints_its_table(suite, capsys, monkeypatch):
    from test_report import document, write

    from reprolib.experiment import report

    write(suite, document())

    def refuse(path, content):
        raise OSError(f"{path} cannot be written: Read-only file system")

    monkeypatch.setattr(report, "write_atomically", refuse)
    status, out, err = call(capsys, "report")
    assert status == 0
    assert out.startswith("Profile standard\n")
    assert err.startswith("reprolib report: the full report is not kept: ")
    assert err.endswith("report.md cannot be written: Read-only file system\n")


def test_a_missing_package_is_named(suite, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "reprolib.experiment.runner", None)
    monkeypatch.delattr("reprolib.experiment.runner", raising=False)
    status, out, err = call(capsys, "run")
    assert (status, out, err.count("\n")) == (1, "", 1)
    assert "pip install 'reprolib[notebooks]'" in err


def printing(monkeypatch, text: str) -> None:
    """`reprolib claims` prints `text`."""
    from reprolib.experiment import report

    monkeypatch.setattr(report, "load_records", lambda profile: [])
    monkeypatch.setattr(report, "list_claims", lambda records, paper: text)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp437", "cp1252"])
def test_what_the_output_cannot_encode_is_shown_as_its_code(suite, monkeypatch, encoding):
    printing(monkeypatch, "α = 4, résultats, ≤, \udcff, 顔")
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert command_line.main(["claims"]) == 0
    shown = stream.buffer.getvalue().decode(encoding)
    assert "\\u9854" in shown and "\\udcff" in shown
    for character in "αé≤":
        assert character in shown or character.encode("ascii", "backslashreplace").decode() in shown


def test_without_any_output_stream_the_command_still_works(suite, monkeypatch):
    printing(monkeypatch, "text")
    monkeypatch.setattr(sys, "stdout", None)  # python -m reprolib claims >&-
    assert command_line.main(["claims"]) == 0


@pytest.mark.skipif(os.name != "posix", reason="needs the pipes of POSIX")
def test_a_reader_that_left_is_no_error(suite, capsys, monkeypatch):
    printing(monkeypatch, "text\n" * 100_000)
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert command_line.main(["claims"]) == 141
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written_is_one_line_and_status_1(suite, capsys, monkeypatch):
    printing(monkeypatch, "text")
    stream = open("/dev/full", "w", encoding="utf-8")  # noqa: SIM115 (closing it fails, too)
    monkeypatch.setattr(sys, "stdout", stream)
    assert command_line.main(["claims"]) == 1
    assert capsys.readouterr().err.endswith("No space left on device\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    stream.close()


@pytest.mark.skipif(os.name != "posix", reason="needs the signals of POSIX")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_that_asks_to_end_is_one_line_and_its_status(suite, capsys, monkeypatch, name):
    number = getattr(signal, name)

    class Done(Outcome):
        def __str__(self) -> str:
            return f"{self.name}: cached"

    def run_job(job, *_, **__):
        os.kill(os.getpid(), number)
        time.sleep(1)
        return Done(job.name, "cached")

    monkeypatch.setattr(runner, "run_job", run_job)
    before = signal.signal(number, signal.SIG_DFL)
    try:
        assert call(capsys, "run") == (128 + number, "", f"reprolib run: ended by {name}\n")
        assert signal.getsignal(number) is signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN)  # nohup
        assert call(capsys, "run") == (0, "90_fixture: cached\n", "")
    finally:
        signal.signal(number, before)


def processes(word: str) -> list[int]:
    """Processes whose environment names `word`, without those that ended."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ended = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
            if not ended and word.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


SLEEPING = [
    "import joblib, os, pathlib, time, torch",
    """\
import reprolib.experiment.workers as workers
def work(row):
    pathlib.Path(os.environ["STARTED"], f"{os.getpid()}").touch()
    time.sleep(600)
workers.call_each(work, [(0,), (1,)], 2)""",
]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_ends_kernels_and_workers(suite, tmp_path, name, at_once):
    suite.write(PARAMETERS, SLEEPING)
    text = suite.path.read_text(encoding="utf-8")
    suite.path.with_name("91_other.ipynb").write_text(text, encoding="utf-8")
    started = tmp_path / "started"
    started.mkdir()
    root = Path(command_line.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root), "STARTED": str(started)}
    command = [sys.executable, "-m", "reprolib", "run", "--profile", "standard", "--at-once", str(at_once)]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    running = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    try:
        limit = time.monotonic() + 400
        while len(list(started.iterdir())) < 2 * at_once:
            assert running.poll() is None and time.monotonic() < limit
            time.sleep(0.1)
        assert len(processes(str(started))) >= 1 + 3 * at_once
        # as a terminal does, to all processes of the runner's group; kernels have groups of their own
        os.killpg(running.pid, getattr(signal, name))
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    said = {"SIGINT": "reprolib run: interrupted\n", "SIGTERM": "reprolib run: ended by SIGTERM\n", "SIGKILL": ""}
    status = {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -9}
    assert (running.returncode, out, err) == (status[name], "", said[name])
    limit = time.monotonic() + 60
    while left := processes(str(started)):
        assert time.monotonic() < limit, left
        time.sleep(0.2)
    assert suite.files() == ["notebooks/90_fixture.ipynb", "notebooks/91_other.ipynb"]


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
