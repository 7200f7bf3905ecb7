"""What the suite's pytest settings make of nbval: outputs of tagged cells count, warnings do not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
from nbformat import v4

ROOT = Path(__file__).resolve().parents[2]


def notebook(path: Path, stored: str) -> None:
    source = "import sys\nprint(1.0)\nprint('different each time', id(object()), file=sys.stderr)"
    tagged = v4.new_code_cell(source, metadata={"tags": ["nbval-check-output"]}, execution_count=1)
    tagged.outputs = [
        v4.new_output("stream", name="stdout", text=stored),
        v4.new_output("stream", name="stderr", text="different each time 0\n"),
    ]
    free = v4.new_code_cell("print(2.0)", execution_count=2)
    free.outputs = [v4.new_output("stream", name="stdout", text="another\n")]
    nbformat.write(v4.new_notebook(cells=[tagged, free]), path)


def outcomes(folder: Path, *arguments: str) -> list[tuple[str, str]]:
    """(PASSED or FAILED, notebook and cell) of a pytest process with the suite's settings, sorted."""
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--color=no", "-p", "no:cacheprovider", *arguments]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("REPROLIB_")}
    environment["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("PASSED", "FAILED"))]
    assert lines, ended.stdout + ended.stderr
    return sorted((line[:6], line[7:].split(" - ")[0].split("/")[-1]) for line in lines)


def test_a_changed_output_fails_and_a_changed_warning_does_not(tmp_path):
    notebook(tmp_path / "good.ipynb", "1.0\n")
    notebook(tmp_path / "tampered.ipynb", "1.1\n")
    settings = ("-p", "conftest", f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml"))
    assert outcomes(ROOT, *settings, str(tmp_path)) == [
        ("FAILED", "tampered.ipynb::Cell 0"),
        ("PASSED", "good.ipynb::Cell 0"),
        ("PASSED", "good.ipynb::Cell 1"),
        ("PASSED", "tampered.ipynb::Cell 1"),
    ]


def test_a_single_notebook_runs_at_smoke_and_leaves_the_committed_records_alone(tmp_path):
    for name in ("conftest.py", "pyproject.toml", "tests/sanitize.cfg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks").mkdir()
    source = "import os\nprint(os.environ['REPROLIB_PROFILE'], os.path.isabs(os.environ['REPROLIB_RESULTS']))"
    cell = v4.new_code_cell(source, metadata={"tags": ["nbval-check-output"]}, execution_count=1)
    cell.outputs = [v4.new_output("stream", name="stdout", text="smoke True\n")]
    nbformat.write(v4.new_notebook(cells=[cell]), tmp_path / "notebooks" / "one.ipynb")
    assert outcomes(tmp_path, "notebooks/one.ipynb") == [("PASSED", "one.ipynb::Cell 0")]
