"""Settings of the whole test session: the smoke profile, folders of its own, the order, and what nbval compares.

Here and not in tests/, so that ``pytest notebooks/02_normface.ipynb`` has them, too.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

from reprolib._arithmetic import same_kernels

# Before torch and numpy are loaded, here, in the workers of pytest-xdist and in the kernels of nbval.
for _name, _value in same_kernels().items():
    os.environ.setdefault(_name, _value)

ROOT = Path(__file__).resolve().parent
_NOTEBOOKS = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
_VARIABLES = ("REPROLIB_PROFILE", "REPROLIB_RESULTS", "REPROLIB_CACHE", "REPROLIB_RUNS", "PYTHONPATH")

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("suite")


def pytest_collectstart(collector: pytest.Collector) -> None:
    # nbval compares what a cell prints and shows, not its warnings.
    if hasattr(collector, "skip_compare") and "stderr" not in collector.skip_compare:
        collector.skip_compare += ("stderr",)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks first, they take longest; then the tests that look at their records, behind the cells of each."""
    notebooks = {item.path.stem for item in items if item.path.suffix == ".ipynb"}

    def place(item: pytest.Item) -> tuple[bool, str, bool]:
        group = _group(item.nodeid)
        follows = group in notebooks
        return (not follows, group if follows else "", item.path.suffix != ".ipynb")

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """One worker runs all cells of a notebook and the tests of its record; the other tests of a file stay together.

    By the name of the test alone: the marks of `--dist=loadgroup` are not seen by pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return ByGroup(config, log)


def _group(nodeid: str) -> str:
    """'02_normface' for 'notebooks/02_normface.ipynb::Cell 3' and 'tests/x.py::test_name[02_normface]', or the file."""
    file, _, test = nodeid.partition("::")
    if file.endswith(".ipynb"):
        return Path(file).stem
    parameter = test.partition("[")[2].removesuffix("]")
    return parameter if parameter in _NOTEBOOKS else file


def pytest_configure(config: pytest.Config) -> None:
    import torch

    # Small tensors lose more in hand-offs between threads than they gain.
    torch.set_num_threads(1)
    # The path in pyproject.toml is relative to it, whatever folder pytest is called from.
    config.option.nbval_sanitize_with = str(ROOT / "tests" / "sanitize.cfg")
    if hasattr(config, "workerinput"):
        return  # a worker of pytest-xdist has the variables, and so the folders, of the process that started it
    folder = Path(tempfile.mkdtemp(prefix="reprolib-tests-"))
    config.stash[_FOLDER] = folder
    config.stash[_BEFORE] = {name: os.environ.get(name) for name in _VARIABLES}
    os.environ["REPROLIB_PROFILE"] = "smoke"
    os.environ["REPROLIB_RESULTS"] = str(folder / "results")
    os.environ["REPROLIB_CACHE"] = str(folder / "cache")
    # Lines of runs go where the results go.
    os.environ.pop("REPROLIB_RUNS", None)
    # The kernels of nbval start in the notebooks' folder.
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    shutil.rmtree(config.stash[_FOLDER], ignore_errors=True)
    for name, value in config.stash[_BEFORE].items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


_FOLDER = pytest.StashKey[Path]()
_BEFORE = pytest.StashKey[dict]()
