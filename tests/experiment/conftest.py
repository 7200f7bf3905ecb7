"""The tiny suite in a temporary folder, with the environment that makes it the current one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fixture_suite import Suite

from reprolib import experiment


@pytest.fixture(autouse=True)
def no_run_is_left_listening() -> Iterator[None]:
    """A run listens to the checks of its process until the next one begins, also to those of other tests."""
    yield
    if experiment._current is not None:
        experiment._current[0].close()
        experiment._current = None


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Suite]:
    made = Suite(tmp_path / "suite")
    monkeypatch.setenv("REPROLIB_ROOT", str(made.root))
    monkeypatch.setenv("REPROLIB_PROFILES", str(made.root / "profiles"))
    monkeypatch.setenv("REPROLIB_RESULTS", str(made.results))
    monkeypatch.setenv("REPROLIB_CACHE", str(made.cache))
    monkeypatch.setenv("REPROLIB_DATA", str(made.root / "data"))
    monkeypatch.setenv("REPROLIB_DEVICE", "cpu")
    monkeypatch.delenv("REPROLIB_PROFILE", raising=False)
    monkeypatch.delenv("REPROLIB_PARAMETERS", raising=False)
    monkeypatch.delenv("REPROLIB_RUNS", raising=False)
    yield made
    # what experiment.start sets for the whole process
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
