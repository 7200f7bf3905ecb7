from __future__ import annotations

import json
import shutil
import sys
import threading
from pathlib import Path

import nbformat
import papermill
import pytest
from fixture_suite import CELLS, NAME, PARAMETERS
from papermill.exceptions import PapermillExecutionError

from reprolib.experiment import kernel, runner
from reprolib.experiment.kernel import NotebookFailed, kernel_manager_class
from reprolib.experiment.paths import UsageError
from reprolib.experiment.runner import find_notebooks, prepare, resolve_profile, run_notebooks

STANDARD = [
    "notebooks/90_fixture.ipynb",
    "results/standard/90_fixture.ipynb",
    "results/standard/90_fixture.json",
]
STANDARD.append("results/standard/90_fixture.key")


def record(suite, profile="standard") -> dict:
    return json.loads((suite.results / profile / f"{NAME}.json").read_text(encoding="utf-8"))


@pytest.fixture
def fake(monkeypatch):
    """Replaces the kernel: writes a record and gives the notebook back, or fails as told."""
    calls = []

    def execute(name, notebook, injected, profile, staging, data, cores):
        calls.append(dict(injected))
        fake.cores = cores
        if fake.failure:
            nbformat.write(notebook, staging / "executed.ipynb")
            raise NotebookFailed(fake.failure)
        parameters = {**fake.parameters[profile], **{k: v for k, v in injected.items() if k != "profile"}}
        check = {"id": "a", "passed": True}
        claim = {"id": "b", "verdict": "inconclusive"}
        document = {"parameters": parameters, "seconds": 2.0, "checks": [check], "claims": [claim]}
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
    fake.parameters = {
        "standard": {"profile": "standard", "dataset": "digits", "seeds": [0, 1, 2], "rate": 0.5, "steps": 3},
        "smoke": {"profile": "smoke", "dataset": "digits", "seeds": [0, 1], "rate": 0.25, "steps": 1},
    }
    monkeypatch.setattr(runner, "execute", execute)
    return fake


@pytest.mark.parametrize("name", ["90", "90_fixture", "90_fixture.ipynb", "notebooks/90_fixture.ipynb"])
def test_a_notebook_has_three_names(suite, name):
    assert find_notebooks([name]) == {NAME: suite.path}
    assert find_notebooks([]) == {NAME: suite.path}


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


def test_only_what_differs_from_the_parameters_cell_is_injected(suite):
    assert prepare([], "standard", {})[0].injected == {}
    assert prepare([], "standard", {"steps": 3})[0].injected == {}
    assert prepare([], "standard", {"rate": 1})[0].injected == {"rate": 1.0}
    (job,) = prepare([], "smoke", {"steps": 2})
    assert job.injected == {"profile": "smoke", "seeds": [0, 1], "rate": 0.25, "steps": 2}
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


@pytest.mark.parametrize(
    "cell", [PARAMETERS.replace("0.5", "0.6"), PARAMETERS + "\nmore = 1", PARAMETERS.replace("steps = 3", "")]
)
def test_a_parameters_cell_that_differs_from_the_standard_profile_is_refused(suite, cell):
    suite.write(cell, CELLS)
    with pytest.raises(UsageError, match="differs from profile 'standard'"):
        prepare([], "standard", {})


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
        "90_fixture: 1 checks passed; claims: 0 reproduced, 0 not reproduced, 1 inconclusive; 2 s\n"
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
    (suite.root / "data" / "a.bin").write_bytes(b"1")
    assert [calls(), calls()] == [3, 3]
    (suite.root / "data" / "a.bin").write_bytes(b"12")
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
    fake.parameters["standard"]["steps"] = 99
    (outcome,) = run_notebooks([], "standard")
    assert "other parameters" in outcome.message
    fake.parameters = {"standard": fake.parameters["standard"]}
    assert suite.files() == STANDARD[:1]


def with_another(suite, name="91_other"):
    """A second notebook in the suite, the same under another name."""
    text = suite.path.read_text(encoding="utf-8")
    suite.path.with_name(f"{name}.ipynb").write_text(text.replace(NAME, name), encoding="utf-8")
    profile = suite.root / "profiles" / "standard.yaml"
    profile.write_text(profile.read_text() + f"{name}: {{rate: 0.5, steps: 3}}\n")
    return name


def test_several_notebooks_end_with_a_summary(suite, fake, capsys):
    with_another(suite)
    run_notebooks([], "standard")
    lines = capsys.readouterr().out.splitlines()
    assert lines[3:] == [
        "Profile standard",
        "notebook    status  checks passed  reproduced  not reproduced  inconclusive  seconds",
        "----------  ------  -------------  ----------  --------------  ------------  -------",
        "90_fixture  run     1              0           0               1             2",
        "91_other    run     1              0           0               1             2",
        "all                 2              0           0               2             4",
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
    assert printed.err == f"{NAME}: cell [1] failed\n"
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
    assert fake.cores == cores


def test_no_notebook_at_once_is_refused(suite, fake):
    with pytest.raises(UsageError, match="at least one notebook has to run at once, not 0"):
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
        runner.copy_outputs(executed, suite.path)


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
    assert (outcome.status, outcome.checks, dict(outcome.verdicts)) == ("run", 1, {"reproduced": 1})
    assert suite.files() == STANDARD
    first = record(suite)
    assert first["parameters"] == prepare([], "standard", {})[0].parameters
    executed = nbformat.read(suite.results / "standard" / f"{NAME}.ipynb", as_version=4)
    tags = [tag for cell in executed.cells for tag in cell.metadata.get("tags", [])]
    assert "injected-parameters" not in tags
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


def test_a_failing_cell_is_named_in_one_line(suite, capsys):
    suite.write(PARAMETERS, ["1 + 1", "\n\nvalues = []\nvalues[rate > 0]\n", "1 + 1"])
    (outcome,) = run_notebooks([], "smoke", {"steps": 2})
    assert outcome.status == "failed"
    captured = capsys.readouterr()
    assert captured.err == "90_fixture: cell [4] (values = []) failed: IndexError: list index out of range\n"
    assert captured.out == ""
    assert suite.files() == ["notebooks/90_fixture.ipynb", "results/smoke/90_fixture.failed.ipynb"]


def test_a_kernel_that_dies_and_a_cell_that_hangs_are_named_in_one_line(suite, monkeypatch, tmp_path, capfd):
    suite.write(PARAMETERS, ["import os\nos._exit(1)"])
    (outcome,) = run_notebooks([], "smoke")
    assert outcome.message == "cell (import os) failed: the kernel died, perhaps for lack of memory"
    assert capfd.readouterr().err == f"{outcome}\n"
    log = tmp_path / "kernel.log"
    log.write_text("[IPKernelApp] a\nFatal Python error: Segmentation fault\n[IPKernelApp] b\n\n")
    assert kernel._last_line(log) == "Fatal Python error: Segmentation fault"
    monkeypatch.setitem(kernel.CELL_SECONDS, "smoke", 1)
    suite.write(PARAMETERS, ["import time\ntime.sleep(60)"])
    (outcome,) = run_notebooks([], "smoke")
    assert outcome.message == "cell (import time) failed: it ran longer than 1 s"


def test_a_bare_papermill_call_refuses_an_unknown_parameter(suite):
    options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    options["kernel_manager_class"] = kernel_manager_class({})
    output = suite.root / "out.ipynb"
    with pytest.raises(PapermillExecutionError, match="unknown parameter 'nosuch' of 90_fixture"):
        papermill.execute_notebook(str(suite.path), str(output), parameters={"nosuch": 1}, **options)
    assert not suite.results.exists()


def test_the_kernel_is_this_interpreter_with_this_package(suite):
    import reprolib

    lines = ["import sys, reprolib", "print(sys.executable)", "print(reprolib.__file__)"]
    suite.write(PARAMETERS, ["\n".join(lines)])
    options = {"kernel_name": "python3", "language": "python", "progress_bar": False}
    options["kernel_manager_class"] = kernel_manager_class({})
    output = papermill.execute_notebook(str(suite.path), None, cwd=str(suite.root), **options)
    executable, package = output.cells[2].outputs[0].text.splitlines()
    assert Path(executable) == Path(sys.executable)
    assert Path(package) == Path(reprolib.__file__)


def test_figures_are_stored_with_a_palette_and_look_the_same():
    import base64
    import io

    import numpy as np
    from PIL import Image

    from reprolib.experiment.runner import smaller_png

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
    from reprolib.experiment.runner import smaller_png

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
