"""Notebooks at profile paper show what `reprolib train` found."""

from __future__ import annotations

import json

import pytest

from reprolib.experiment import UsageError
from reprolib.experiment.trained import TRAINED_COLUMNS, trained_rows


def test_rows_are_those_of_the_notebooks_own_paper(tmp_path):
    sets = {"lfw": {"exact": 0.99517, "low": 0.993, "high": 0.9968, "facenet": 0.995}}
    for name, paper in (("arcface", {"notebook": "05", "lfw": 99.53}), ("cosface", {"notebook": "04"})):
        (tmp_path / name).mkdir()
        document = {"steps": 32000, "seed": 1, "paper": paper, "sets": sets}
        (tmp_path / name / "result.json").write_text(json.dumps(document))
    assert trained_rows("05_arcface", tmp_path) == [["arcface", "lfw", 99.53, 99.52, "99.30 to 99.68", 32000, 1]]
    assert trained_rows("04_cosface", tmp_path)[0][2] == "-"
    assert trained_rows("06_center_triplet", tmp_path) == trained_rows("05_arcface", tmp_path / "nothing") == []
    assert len(TRAINED_COLUMNS) == 7


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "arcface").mkdir()
    (tmp_path / "arcface" / "result.json").write_text("{}")
    with pytest.raises(UsageError, match=r"result.json must be what reprolib train wrote, got 'paper'"):
        trained_rows("05_arcface", tmp_path)
