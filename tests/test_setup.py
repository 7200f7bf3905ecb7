"""The ways to set the project up ask for the same packages, and what is pinned satisfies them."""

from __future__ import annotations

import ast
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import reprolib
from reprolib import _arithmetic

ROOT = Path(__file__).resolve().parents[1]
EXTRAS = ("notebooks", "test", "bench", "dev", "data")
# Not installed for the tests, which leave out what needs them; the book is asked for by `make book` alone.
UNTESTED = ("cluster", "book")
# What is imported under another name than its package's.
PACKAGES = {"xdist": "pytest-xdist", "sklearn": "scikit-learn", "PIL": "pillow", "yaml": "pyyaml", "IPython": "ipython"}
LIBRARY = ("losses", "theory", "data", "evaluation", "models.py", "training.py", "optim.py", "verify.py", "_checks.py")
HEADLINE = {"jupyterlab", "torch", "torchvision", "matplotlib", "seaborn", "papermill", "nbval"}
PYTHONS = ("3.10.0", "3.11.2", "3.11.7", "3.12.1", "3.13.0", "3.14.0")

try:
    import tomllib
except ModuleNotFoundError:
    import tomli as tomllib


@pytest.fixture(scope="module")
def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def requirements(project) -> dict[str, Requirement]:
    extras = project["project"]["optional-dependencies"]
    lines = [*project["project"]["dependencies"], *(line for extra in EXTRAS for line in extras[extra])]
    found: dict[str, Requirement] = {}
    for one in map(Requirement, lines):
        # a package that two extras ask for is asked for in the same way
        assert str(found.setdefault(canonicalize_name(one.name), one)) == str(one)
    return found


@pytest.fixture(scope="module")
def pins() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def environment(python: str) -> dict[str, str]:
    short = ".".join(python.split(".")[:2])
    linux = {"sys_platform": "linux", "platform_machine": "x86_64", "os_name": "posix"}
    return {**default_environment(), **linux, "python_full_version": python, "python_version": short}


def test_conda_environment_asks_for_the_packages_of_pyproject(project, requirements):
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert conda["name"] == project["project"]["name"]
    python, pip, nested = conda["dependencies"]
    assert python == f"python{project['project']['requires-python']}"
    assert pip == "pip"
    options = [line for line in nested["pip"] if line.startswith("-")]
    assert options == ["--constraint constraints.txt", f"--editable .[{','.join(EXTRAS)}]"]
    named = [Requirement(line) for line in nested["pip"] if not line.startswith("-")]
    assert {canonicalize_name(one.name): str(one) for one in named} == {
        name: str(one) for name, one in requirements.items()
    }


def imported(*paths: Path, everywhere: bool = True) -> set[str]:
    """Packages other than Python's own and this one that files import, without `everywhere` when they are loaded."""
    found: set[str] = set()
    for path in (file for top in paths for file in ([top] if top.suffix == ".py" else top.rglob("*.py"))):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree) if everywhere else tree.body:
            if isinstance(node, ast.Import):
                found.update(alias.name.split(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                found.add(node.module.split(".")[0])
    return {
        PACKAGES.get(name, name)
        for name in found - set(sys.stdlib_module_names) - {"reprolib", "benchmarks", "book", "tests"}
    }


def test_what_is_imported_is_declared(project, requirements):
    library = {canonicalize_name(Requirement(line).name) for line in project["project"]["dependencies"]}
    extras = project["project"]["optional-dependencies"]
    assert set(extras) == {*EXTRAS, *UNTESTED}
    assert library >= {
        canonicalize_name(name) for name in imported(*(ROOT / "reprolib" / part for part in LIBRARY), everywhere=False)
    }
    notebooks = library | {canonicalize_name(Requirement(line).name) for line in extras["notebooks"]}
    suite = imported(*(ROOT / "reprolib" / part for part in (*LIBRARY, "plots.py", "experiment", "__main__.py")))
    assert notebooks >= {canonicalize_name(name) for name in suite}
    tests = {canonicalize_name(name) for name in imported(ROOT / "tests", ROOT / "conftest.py")}
    own = {canonicalize_name(path.stem) for path in (ROOT / "tests").rglob("*.py")}
    assert set(requirements) >= tests - own


def test_what_is_imported_where_it_is_used_is_in_the_extra_that_the_error_names(project):
    named = []
    for path in (ROOT / "reprolib").rglob("*.py"):
        named += re.findall(r'needed\(\s*"(\w+)[\w.]*",\s*"[^"]+",\s*"(\w+)"', path.read_text(encoding="utf-8"))
    assert {package for package, _ in named} >= {"pyarrow", "lmdb"}
    for package, extra in named:
        listed = project["project"]["optional-dependencies"][extra]
        assert package in {canonicalize_name(Requirement(line).name) for line in listed}


def test_the_source_distribution_holds_the_repository():
    for name in ("CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md", "MANIFEST.in", ".pre-commit-config.yaml"):
        assert (ROOT / name).is_file()
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (reprolib.__version__, "MIT")
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [hook["id"] for repo in hooks["repos"] for hook in repo["hooks"]] == ["ruff", "ruff-format", "mypy"]


FILES_OF_THE_MANIFEST = """
import sys
from setuptools.command.egg_info import FileList

files = FileList()
for line in open("MANIFEST.in", encoding="utf-8").read().splitlines():
    if line and not line.startswith("#"):
        files.process_template_line(line)
sys.stdout.write("\\n".join(files.files))
"""


def test_the_manifest_takes_every_committed_file():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone")
    # in a process of its own: setuptools puts its own distutils in the place of the one that others have imported
    command = [sys.executable, "-c", FILES_OF_THE_MANIFEST]
    taken = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split("\n")
    listed = subprocess.run(["git", "ls-files"], capture_output=True, text=True, check=True, cwd=ROOT).stdout.split(
        "\n"
    )
    # what setuptools takes by itself
    rest = {name for name in listed if name and not name.startswith("reprolib/")} - {"LICENSE", "pyproject.toml"}
    assert rest - set(taken) - {"MANIFEST.in"} == set()


def test_lines_of_code_are_counted_without_comments_blanks_and_docstrings(tmp_path, capsys):
    source = '"""Doc\n\nstring."""\n\n# comment\ndef f(x):\n    """Doc."""\n'
    source += "    y = (\n        x\n    )\n\n    return y  # and so\n"
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "a.py").write_text(source)
    (tmp_path / "b.py").write_text('TEXT = (\n    "no docstring"\n)\n')
    count = runpy.run_path(str(ROOT / "tests" / "tools" / "code_lines.py"))
    assert count["code_lines"](source) == 5
    assert count["by_room"](tmp_path) == {"room": 5, "b.py": 3}


def test_arithmetic_is_asked_for_only_where_the_processor_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(_arithmetic.platform, "machine", lambda: "x86_64")
    info = tmp_path / "cpuinfo"
    info.write_text("processor : 0\nflags\t\t: fpu sse2 avx2 fma avx512f\n")
    assert _arithmetic.same_kernels(info) == _arithmetic.SAME_KERNELS
    for flags in ("fpu sse2 avx", "fpu avx2", ""):
        info.write_text(f"processor : 0\nflags\t\t: {flags}\n")
        assert _arithmetic.same_kernels(info) == {}
    assert _arithmetic.same_kernels(tmp_path / "nosuch") == {}
    monkeypatch.setattr(_arithmetic.platform, "machine", lambda: "aarch64")
    info.write_text("processor : 0\nflags\t\t: avx2 fma\n")
    assert _arithmetic.same_kernels(info) == {}


def test_the_same_bits_are_asked_for_by_the_environment(monkeypatch):
    monkeypatch.setattr(_arithmetic, "same_kernels", lambda: {"A": "b"})
    monkeypatch.delenv("REPROLIB_SAME_BITS", raising=False)
    assert _arithmetic.asked_kernels() == {}
    monkeypatch.setenv("REPROLIB_SAME_BITS", "1")
    assert _arithmetic.asked_kernels() == {"A": "b"}
    monkeypatch.setenv("REPROLIB_SAME_BITS", "yes")
    with pytest.raises(ValueError, match="REPROLIB_SAME_BITS must be 0 or 1, got 'yes'"):
        _arithmetic.asked_kernels()


@pytest.mark.skipif(not _arithmetic.same_kernels(), reason="needs Linux and a processor with AVX2")
def test_the_tests_and_what_they_start_use_these_kernels():
    import torch

    assert os.environ["ATEN_CPU_CAPABILITY"] == "avx2"
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"


def test_headline_packages_are_required(requirements):
    assert set(requirements) >= HEADLINE


@pytest.mark.parametrize("python", PYTHONS)
def test_each_requirement_has_one_exact_pin_that_satisfies_it(requirements, pins, python):
    chosen = [pin for pin in pins if pin.marker is None or pin.marker.evaluate(environment(python))]
    names = [canonicalize_name(pin.name) for pin in chosen]
    assert len(names) == len(set(names))
    versions = {}
    for pin in chosen:
        (specifier,) = pin.specifier
        assert specifier.operator == "=="
        assert "+" not in specifier.version
        assert pin.url is None
        versions[canonicalize_name(pin.name)] = specifier.version
    for name, requirement in requirements.items():
        if requirement.marker is not None and not requirement.marker.evaluate(environment(python)):
            continue
        assert requirement.specifier.contains(versions[name]), f"{name}=={versions[name]}"


def test_what_the_book_needs_is_pinned_once(project, pins):
    versions = {canonicalize_name(pin.name): pin for pin in pins}
    for line in project["project"]["optional-dependencies"]["book"]:
        wanted, pin = Requirement(line), versions[canonicalize_name(Requirement(line).name)]
        (specifier,) = pin.specifier
        assert wanted.specifier.contains(specifier.version)
        assert pin.marker is None or pin.marker.evaluate(environment("3.11.2"))


def test_the_profiles_are_shipped_with_the_package(project):
    (pattern,) = project["tool"]["setuptools"]["package-data"]["reprolib.experiment"]
    shipped = {path.stem for path in (ROOT / "reprolib" / "experiment").glob(pattern)}
    assert shipped == {"smoke", "full", "paper"}  # standard is what the notebooks declare
    for name in project["tool"]["setuptools"]["package-data"]["reprolib"]:
        assert (ROOT / "reprolib" / name).is_file()


def test_nbval_runs_with_the_settings_that_the_notebooks_are_written_for(project):
    settings = project["tool"]["pytest"]["ini_options"]
    assert {"tests", "notebooks"} <= set(settings["testpaths"])
    for option in ("--nbval-lax", "--nbval-current-env", "--nbval-sanitize-with=tests/sanitize.cfg"):
        assert option in settings["addopts"].split()


def test_every_pattern_of_the_sanitizer_is_read_by_nbval():
    from nbval.plugin import get_sanitize_patterns

    text = (ROOT / "tests" / "sanitize.cfg").read_text(encoding="utf-8")
    written = re.findall(r"^regex:", text, flags=re.MULTILINE)
    assert len(list(get_sanitize_patterns(text))) == len(written) > 0


def test_continuous_integration_is_make_test():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert script.startswith("#!/usr/bin/env bash\n")
    assert "set -euo pipefail" in script
    assert script.rstrip().endswith("make test")
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    steps = [step.get("run") for job in workflow["jobs"].values() for step in job["steps"]]
    assert "bash .ci/run" in steps


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["reproduce", "test", "test-slow", "lint", "lines", "book", "clean"])
def test_make_knows_its_targets(target):
    command = ["make", "--dry-run", target]
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert dry.returncode == 0, dry.stderr
    if target in ("reproduce", "test"):
        assert "reprolib fetch mnist orl" in dry.stdout
