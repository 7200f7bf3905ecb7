"""Answers to exercises: right, wrong with the place, unanswered, and answers that stop."""

from __future__ import annotations

import math

import cloudpickle
import numpy as np
import pytest
import torch

from reprolib import experiment
from reprolib.experiment.exercises import Grade


@pytest.fixture
def told(capsys):
    """The line that a grade prints."""

    def tell(grade: Grade, id: str, yours: object) -> str:
        grade(id, yours)
        return capsys.readouterr().out.removesuffix("\n")

    return tell


def square() -> Grade:
    grade = Grade()
    grade.expect("5.3", lambda x: x * x, (1.5,), (3.0,), tolerance=1e-9)
    return grade


def test_a_right_function(told):
    assert told(square(), "5.3", lambda x: x**2) == "5.3: right (largest difference 0e+00)"
    assert told(square(), "5.3", lambda x: x**2 + 4e-10) == "5.3: right (largest difference 2e-10)"


def test_a_wrong_function_is_told_where(told):
    line = told(square(), "5.3", lambda x: x**2 if x < 2 else 9.9)
    # |9.9 - 9| / 9
    assert line == "5.3: not right yet for the arguments (3): largest difference 0.1, allowed 1e-09"


@pytest.mark.parametrize("nothing", [None, lambda x: (_ for _ in ()).throw(NotImplementedError)])
def test_what_is_not_answered(told, nothing):
    assert told(square(), "5.3", nothing) == "5.3: not answered yet"


def test_an_answer_that_stops_raises_nothing(told):
    assert told(square(), "5.3", lambda x: x / 0).startswith("5.3: not right yet, it stops with ZeroDivisionError")
    assert told(square(), "5.3", lambda: 1).startswith("5.3: not right yet, it stops with TypeError")
    assert told(square(), "5.3", lambda x: "nine").startswith("5.3: not right yet, it stops with ValueError")
    assert told(square(), "5.3", 7.0).startswith("5.3: not right yet, it stops with TypeError")


def test_nan_is_wrong_wherever_it_is(told):
    for bad in (1.5, 3.0):
        line = told(square(), "5.3", lambda x, bad=bad: math.nan if x == bad else x * x)
        assert line.startswith(f"5.3: not right yet for the arguments ({bad:g}): largest difference nan")
    grade = Grade()
    grade.expect("1", lambda: [np.zeros(2), np.zeros(2)], ())
    assert "part 0, entry 1: largest difference nan" in told(grade, "1", lambda: [np.array([0, np.nan]), np.ones(2)])


def test_tensors_are_told_the_case_and_the_entry(told):
    x, grade = torch.arange(6.0, dtype=torch.float64).reshape(2, 3), Grade()
    grade.expect("2.1", lambda x: (x.sin(), x.sum()), (x,))
    assert told(grade, "2.1", lambda x: (x.sin(), x.sum())).startswith("2.1: right")
    off = torch.zeros(2, 3, dtype=torch.float64)
    off[1, 2] = 0.25
    line = told(grade, "2.1", lambda x: (x.sin() + off, x.sum()))
    assert line == "2.1: not right yet for case 1, part 0, entry 1, 2: largest difference 0.25, allowed 1e-09"
    assert "must have 2 parts" in told(grade, "2.1", lambda x: x.sin())
    assert "must have shape (2, 3), got (3, 2)" in told(grade, "2.1", lambda x: (x.sin().T, x.sum()))


def test_an_answer_does_not_change_the_arguments_of_the_next_one(told):
    x, grade = torch.ones(3, dtype=torch.float64), Grade()
    grade.expect("2.1", lambda x: 2 * x, (x,))
    assert told(grade, "2.1", lambda x: x.mul_(2)).startswith("2.1: right")
    assert x.sum() == 3


def test_a_value(told):
    grade = Grade()
    grade.expect("0.1", [1.4, 72.5], tolerance=1e-2)
    assert told(grade, "0.1", (1.4, 72.54)) == "0.1: right (largest difference 6e-04)"
    assert told(grade, "0.1", [1.5, 72.5]) == "0.1: not right yet: largest difference 0.0714, allowed 1e-02"
    assert told(grade, "0.1", None) == "0.1: not answered yet"


def test_a_check_of_ones_own(told):
    grade = Grade()
    grade.register("3.2", lambda yours: (abs(yours - 2), 0.5, " on the left side"))
    assert told(grade, "3.2", 2.25) == "3.2: right (largest difference 2e-01)"
    assert told(grade, "3.2", 3) == "3.2: not right yet on the left side: largest difference 1, allowed 5e-01"


def test_misuse_by_the_page_is_refused():
    grade = square()
    with pytest.raises(ValueError, match=r"exercise must be one of 5\.3, got '5.4'"):
        grade("5.4", None)
    with pytest.raises(TypeError, match="check of exercise '1' must be a function, got 3"):
        grade.register("1", 3)
    for right, cases in ((abs, ()), (3.0, ((1,),))):
        with pytest.raises(ValueError, match="must have a function and its cases or a value"):
            grade.expect("1", right, *cases)


def test_a_run_goes_to_its_workers_without_the_exercises(suite):
    literals = {"profile": "standard", "dataset": "digits", "seeds": [0], "rate": 0.5, "steps": 3}
    run = experiment.start("90_fixture", literals)
    run.grade.expect("1", lambda x: x, (1,))
    sent = cloudpickle.loads(cloudpickle.dumps(run))
    with pytest.raises(ValueError, match="exercise must be one of none, got '1'"):
        sent.grade("1", None)
