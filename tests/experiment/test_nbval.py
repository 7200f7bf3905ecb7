"""What the suite's pytest settings make of nbval: outputs of tagged cells count, warnings do not."""

from __future__ import annotations

import os
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


def test_a_changed_output_fails_and_a_changed_warning_does_not(tmp_path):
    notebook(tmp_path / "good.ipynb", "1.0\n")
    notebook(tmp_path / "tampered.ipynb", "1.1\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rA", "--color=no"]
    command += ["-p", "no:cacheprovider", "-p", "conftest"]
    command += [f"--rootdir={ROOT}", "-c", str(ROOT / "pyproject.toml"), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}"}
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    lines = [line for line in ended.stdout.splitlines() if line.startswith(("PASSED", "FAILED"))]
    outcomes = sorted((line[:6], line[7:].split(" - ")[0].split("/")[-1]) for line in lines)
    assert outcomes == [
        ("FAILED", "tampered.ipynb::Cell 0"),
        ("PASSED", "good.ipynb::Cell 0"),
        ("PASSED", "good.ipynb::Cell 1"),
        ("PASSED", "tampered.ipynb::Cell 1"),
    ], ended.stdout + ended.stderr
