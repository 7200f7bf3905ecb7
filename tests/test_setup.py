"""The ways to set the project up ask for the same packages, and what is pinned satisfies them."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
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
    parsed = map(Requirement, project["project"]["dependencies"])
    return {canonicalize_name(one.name): one for one in parsed}


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
    assert options == ["--constraint constraints.txt", "--editable ."]
    named = [Requirement(line) for line in nested["pip"] if not line.startswith("-")]
    assert {canonicalize_name(one.name): str(one.specifier) for one in named} == {
        name: str(one.specifier) for name, one in requirements.items()
    }


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
        assert requirement.specifier.contains(versions[name]), f"{name}=={versions[name]}"


def test_the_profiles_are_shipped_with_the_package(project):
    (pattern,) = project["tool"]["setuptools"]["package-data"]["reprolib.experiment"]
    shipped = {path.stem for path in (ROOT / "reprolib" / "experiment").glob(pattern)}
    assert shipped == {"smoke", "standard", "full", "paper"}


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
@pytest.mark.parametrize("target", ["reproduce", "test", "lint", "clean"])
def test_make_knows_its_targets(target):
    command = ["make", "--dry-run", target]
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert dry.returncode == 0, dry.stderr
    if target in ("reproduce", "test"):
        assert "reprolib fetch mnist orl" in dry.stdout
