"""What a reader types into a page of the book is read, computed and graded as `grade` does it."""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
import shutil
import subprocess
from dataclasses import asdict
from functools import cache
from pathlib import Path

import nbformat
import numpy as np
import pytest

from book.exercises import Exercise, answerable
from reprolib.experiment.exercises import Grade

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
NODE = shutil.which("node")
needs_node = pytest.mark.skipif(NODE is None, reason="needs node")

# A right answer of each exercise that a page grades, as a reader may type it.
ANSWERS = {
    "0.1": "log(1 + e^-u)",
    "0.2": "floor(1 + 2*log(2*p)/log(1 - t^2)) + 1",
    "0.4": "2 * sin(t12/2) * sin(gap/2)",
    "1.17": "1/t, t",
    "2.16": "log(1 + (n-1)*exp(-s*min(2, n/(n-1)*sqrt(n*(1/4 + 1/4/(n-1))))))",
    "3.5": "360/2.35",
    "3.12": "1.7705",
    "3.18": "min(2 + sqrt(3), 1 + 360/degrees)",
    "3.21": "(m-1)**2/(2*m)",
    "4.1": "(C-1)*math.exp(s*m)",
    "4.1b": "log((larger-1)/(C-1))/s",
    "4.23": "floor(2*pi/acos(1-m) + 1e-9)",
    "5.10": "2*asin(m_cos/(2*sin(m_arc/2)))",
    "5.11": "π/C",
    "5.17": "log((C-1)*p/(1-p)) / cos(acos(log((C-1)*p/(1-p))/s) - m)",
    "6.4": "log(1-share)/log(1-alpha*n/(1+n))",
    "6.7": "alpha*n/(1+n)/(1-mu) - 1",
    "6.15": "[alpha/2, arccos(1-alpha/2)]",
    "6b.5": "sqrt(2*n/(n-1))",
    "6b.18": "(q*N/(N-1), sqrt((N-1)/N*log((N-1)*(1-q)/q)))",
    "8.1": "max(t_a,t_b) + log(u_a*exp(t_a-max(t_a,t_b)) + u_b*exp(t_b-max(t_a,t_b))) - own",
    "8.2": "m - log(r)/s",
    "9.1": "1/2, 10",
    "9.2": "sqrt(eta*length/sqrt(1 - (1-eta*decay)^2))",
    "9.3": "180 - 90*m/pi, s*(1 - cos(m))",
    "8.3": "exp(delta + l0)/(1 + exp(delta)*expm1(l0))",
}
PYTHON = {name: getattr(np, name) for name in ("sqrt", "exp", "log", "log1p", "expm1", "log2", "log10")}
PYTHON |= {name: getattr(np, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")}
PYTHON |= {"asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "atan2": np.arctan2, "arcsin": np.arcsin}
PYTHON |= {"arccos": np.arccos, "arctan": np.arctan, "ln": np.log, "abs": np.abs, "floor": np.floor, "ceil": np.ceil}
PYTHON |= {"min": min, "max": max, "pi": np.pi, "e": np.e, "math": math}


def by_python(formula: str, **values: float):
    return eval(formula.replace("^", "**").replace("π", "pi"), {**PYTHON, **values})


def in_javascript(script: str, rows: list) -> list:
    """`script` gives a value for each `row`; an error that the reader is told is its sentence."""
    program = f"""
const book = require({json.dumps(str(BOOK / "expression.js"))});
const one = (row) => {{
  try {{ return {script}; }}
  catch (error) {{ if (error instanceof book.FormulaError) return error.message; throw error; }}
}};
console.log(JSON.stringify(JSON.parse(require('fs').readFileSync(0, 'utf8')).map(one)));
"""
    ran = subprocess.run([NODE, "-e", program], input=json.dumps(rows), capture_output=True, text=True, check=True)
    return json.loads(ran.stdout)


@cache
def exercises() -> dict[str, Exercise]:
    """All exercises that a page grades."""
    found = {}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        for some in answerable(nbformat.read(path, 4)).values():
            found |= {one.id: one for one in some}
    return found


def expected(exercise: Exercise) -> Grade:
    """Python's own grading by the values that the page has."""
    by_case = {tuple(case.given): case.values for case in exercise.cases}
    right = lambda *given: by_case[given] if len(by_case[given]) > 1 else by_case[given][0]  # noqa: E731
    grade = Grade()
    if exercise.arguments:
        grade.expect(exercise.id, right, *by_case, tolerance=exercise.tolerance)
    else:
        grade.expect(exercise.id, right(), tolerance=exercise.tolerance)
    return grade


def grown(depth: int, chance: random.Random) -> str:
    """A formula of x and y, of sums, products, powers and functions whose values stay near 1."""
    if depth == 0:
        return chance.choice(["x", "y", "2", "0.5", "1.25e0", ".75", "pi", "(x)", "-y"])
    a, b = grown(depth - 1, chance), grown(depth - 1, chance)
    forms = ["{a} + {b}", "{a}-{b}", "{a}*({b})", "({a})/(4 + sin({b}))", "-{a}", "({a})", "cos({a})^2", "-sin({a})**2"]
    forms += ["exp(-abs({a}))", "log(2 + cos({a}))", "sqrt(1 + ({a})^2)", "atan2({a}, 3 + sin({b}))", "2^-cos({a})"]
    forms += [
        "min({a}, {b}, 1)",
        "max({a}, {b})",
        "asin(sin({a})/2)",
        "acos(cos({b})/3)",
        "tanh({a})",
        "log1p(abs({a}))",
    ]
    forms += ["+{a} - -{b}", "expm1(sin({a}))", "2**2**(sin({a})/2)", "- {a} * - {b}", "arctan({a})", "ln(e + ({a})*0)"]
    return chance.choice(forms).format(a=a, b=b)


@needs_node
def test_formulas_have_the_values_that_numpy_gives_them():
    chance = random.Random(0)
    formulas = [grown(depth, chance) for depth in (1, 1, 2, 2, 3) for _ in range(120)]
    formulas += [
        "-x^2",
        "-x**-2",
        "x^y^2",
        "x-y-2",
        "x/y/2",
        "x - y*2^2",
        "2*-x",
        "floor(-x) + ceil(y)",
        "1e3*x",
        "3.e-1*y",
    ]
    formulas += [
        "log10(x) + log2(y)",
        "sinh(x)*cosh(y) - tan(x)",
        "arcsin(x/9) + arccos(x/9)",
        "e^x + pi^y",
        "math.sin(x)",
    ]
    points = [(0.7, 1.3), (2.1, 0.4)]
    for point in points:
        rows = [[formula, point] for formula in formulas]
        values = in_javascript("book.read(row[0], ['x', 'y'])[0](row[1])", rows)
        right = [by_python(formula, x=point[0], y=point[1]) for formula in formulas]
        for formula, here, there in zip(formulas, values, right, strict=True):
            assert here == pytest.approx(there, rel=1e-12, abs=1e-12), formula
    assert len(set(formulas)) > 400


@needs_node
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("1 +", "it ends where a number or a name is needed"),
        ("2 t", "t stands where the formula should end or go on with an operator"),
        ("(1 + t", "it ends where ) or an operator is needed"),
        ("1)", ") stands where the formula should end or go on with an operator"),
        ("t $ 2", "it has $, which is not part of a formula"),
        ("x + 1", "x is none of t, pi, e and no function"),
        ("sin t", "sin is a function and needs its value in round brackets"),
        ("atan2(t)", "atan2 takes 2 values, got 1"),
        ("sin()", ") stands where a number or a name is needed"),
        ("1" * 1001, "it has more than 1000 characters"),
        # what a language would run is not in the grammar
        ("alert(1)", "alert is none of t, pi, e and no function"),
        ("constructor", "constructor is none of t, pi, e and no function"),
        ("__proto__", "__proto__ is none of t, pi, e and no function"),
        ("t.constructor", "it has ., which is not part of a formula"),
        ("sin.call(1)", "it has ., which is not part of a formula"),
        ("`${t}`", "it has `, which is not part of a formula"),
        ("t = 2", "it has =, which is not part of a formula"),
    ],
)
def test_what_cannot_be_read_is_told_in_one_clause(text, sentence):
    assert in_javascript("book.read(row, ['t'])", [text]) == [sentence]
    exercise = {"arguments": ["t"], "cases": [{"given": [1], "values": [1], "shown": ""}], "tolerance": 1e-9}
    (said,) = in_javascript("book.verdict(row[0], row[1])", [[exercise, text]])
    assert said == f"cannot be read: {sentence}"


def test_no_script_of_the_book_runs_text_as_code():
    for path in BOOK.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\beval\b|\bFunction\b|setTimeout|setInterval|innerHTML|document\.write|\bimport\(", text)


def test_every_exercise_with_a_formula_is_graded_on_its_page():
    assert set(exercises()) == set(ANSWERS)


@needs_node
def test_right_answers_are_right_and_wrong_ones_are_told_as_grade_tells_them(capsys):
    found = exercises()
    right = [[asdict(found[id]), text] for id, text in ANSWERS.items()]
    for (exercise, text), said in zip(right, in_javascript("book.verdict(row[0], row[1])", right), strict=True):
        assert re.fullmatch(r"right \(largest difference \de[+-]\d\d\)", said), f"{exercise['id']}: {text}: {said}"
    pairs = {"1.17": "1/t, 1.1*t", "6.15": "[alpha, arccos(1-alpha/2)]", "6b.18": "q, sqrt(N*q)"}
    pairs |= {"9.1": "0.5, 9", "9.3": "180 - m/2, s*(1 - cos(m))"}
    wrong = [(id, pairs.get(id, f"1.07*({text}) + 0.05")) for id, text in ANSWERS.items()]
    rows = [[asdict(found[id]), text] for id, text in wrong]
    for (id, text), said in zip(wrong, in_javascript("book.verdict(row[0], row[1])", rows), strict=True):
        exercise = found[id]
        answer = lambda *given, e=exercise, t=text: by_python(t, **dict(zip(e.arguments, given, strict=True)))  # noqa: E731
        expected(exercise)(id, answer if exercise.arguments else answer())
        assert f"{id}: {said}" == capsys.readouterr().out.strip()
        assert said.startswith("not right yet")


@needs_node
def test_what_is_no_number_or_has_too_few_parts_or_is_empty_is_not_right():
    found = exercises()
    rows = [("5.11", "log(-C)", "not right yet for the arguments (8): the formula is not a number there")]
    rows += [("1.17", "1/t", "not right yet: the answer must have 2 parts, got 1"), ("5.11", "  ", "not answered yet")]
    rows += [("5.11", "1/0", "not right yet for the arguments (8): largest difference inf, allowed 1e-09")]
    said = in_javascript("book.verdict(row[0], row[1])", [[asdict(found[id]), text] for id, text, _ in rows])
    assert said == [sentence for *_, sentence in rows]


@pytest.mark.slow
def test_a_page_grades_in_the_browser(tmp_path):
    pytest.importorskip("tornado")
    from book import check

    if (program := check.browser_path()) is None:
        pytest.skip("needs Chromium")
    for name in ("expression.js", "answers.js"):
        shutil.copy(BOOK / name, tmp_path)
    # the browser itself refuses to run text as code on this page, and says so on its console
    policy = "script-src file: 'unsafe-inline'"
    head = f'<!DOCTYPE html><meta http-equiv="Content-Security-Policy" content="{policy}">'
    scripts = '<script src="expression.js"></script><script src="answers.js"></script>'
    body = exercises()["5.10"].line() + exercises()["3.5"].line()
    (tmp_path / "index.html").write_text(f"{head}<article>{body}</article>{scripts}", encoding="utf-8")
    typed = """((place, text) => {
      const form = document.querySelectorAll('.answer form')[place];
      form.querySelector('input').value = text;
      form.querySelector('button').click();
      return form.querySelector('output').textContent;
    })"""

    async def answers(*rows: tuple[int, str]) -> tuple[list[str], list[str], str]:
        async with check.browser(program) as page:
            await page.open((tmp_path / "index.html").as_uri())
            # else the debugging protocol would lift the page's policy
            strict = {"allowUnsafeEvalBlockedByCSP": False}
            said = [await page.evaluate(f"{typed}({place}, {json.dumps(text)})", **strict) for place, text in rows]
            silent = check.complaints(page.events, tmp_path)
            refused = "(() => { try { return String(eval('1')); } catch (error) { return error.name; } })()"
            return said, silent, await page.evaluate(refused, **strict)

    said, complaints, refused = asyncio.run(
        answers(
            (0, ANSWERS["5.10"]), (0, "m_cos"), (0, "2*asin("), (0, "alert(1)"), (0, ""), (1, "153.191"), (1, "150")
        )
    )
    assert said[0].startswith("5.10: right (largest difference ")
    assert said[1].startswith("5.10: not right yet for the arguments (0.2, 0.4): largest difference 0.81, allowed")
    assert said[2] == "5.10: cannot be read: it ends where a number or a name is needed"
    assert said[3] == "5.10: cannot be read: alert is none of m_cos, m_arc, pi, e and no function"
    assert said[4] == "5.10: not answered yet"
    assert said[5].startswith("3.5: right") and said[6].startswith("3.5: not right yet: largest difference 0.0208")
    assert (complaints, refused) == ([], "EvalError")
