from __future__ import annotations

import json
import math
import random

import numpy as np
import pytest
import torch

from reprolib import experiment
from reprolib.experiment import UsageError, pick_device
from reprolib.experiment.claims import Claim
from reprolib.theory import checks

LITERALS = {"profile": "standard", "dataset": "digits", "seeds": [0, 1, 2], "rate": 0.5, "steps": 3}


@pytest.fixture
def begin(suite, monkeypatch):
    """Starts the fixture notebook in a namespace with these literals."""
    monkeypatch.setenv("REPROLIB_WORKERS", "1")
    suite.claims.unlink()
    started = []

    def begin(namespace=None, **changes):
        space = {**LITERALS, **changes} if namespace is None else namespace
        started.append(experiment.start("90_fixture", space))
        return started[-1], space

    yield begin
    for run in started:
        run.close()


def one_is_one(id="90.one"):
    return checks.check_identity(1.0, 1.0, id=id, statement="one is one", source="eq. (1)")


def claim(run, id="F-1", **changes):
    texts = {"paper": "Fixture", "statement": "x is large", "source": "Table 1", "criterion": "x above 1"}
    run.record.add_claim(Claim(id, **{**texts, **changes}))


def test_start_resolves_seeds_and_says_so_in_one_stable_line(begin, capsys, monkeypatch):
    monkeypatch.setenv("REPROLIB_PROFILE", "smoke")
    run, namespace = begin(steps=7)
    assert capsys.readouterr().out == "90_fixture | profile smoke | dataset digits | seeds 0, 1\n"
    expected = {"profile": "smoke", "dataset": "digits", "seeds": [0, 1], "rate": 0.25, "steps": 7}
    assert vars(run.parameters) == expected
    assert (run.profile, run.seeds, run.device) == ("smoke", (0, 1), torch.device("cpu"))
    # The names of the parameters cell mean the final values, too.
    assert {name: namespace[name] for name in expected} == expected


def test_start_seeds_every_generator(begin):
    draws = []
    for _ in range(2):
        begin(seeds=[5])
        draws.append([random.random(), float(np.random.rand()), float(torch.rand(()))])
    begin(seeds=[6])
    assert draws[0] == draws[1] != [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_start_makes_the_cpu_deterministic(begin):
    begin()
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.utils.deterministic.fill_uninitialized_memory


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"nosuch": 1}, "unknown parameter 'nosuch'"),
        ({"steps": 1.5}, "'steps' must be of type int"),
        ({"profile": "fast"}, "unknown profile 'fast'"),
        ({"dataset": "imagenet"}, "mnist, fashion_mnist, digits"),
    ],
)
def test_start_refuses_a_wrong_parameter(begin, changes, message):
    with pytest.raises(UsageError, match=message):
        begin(**changes)


def test_start_refuses_an_unknown_notebook(suite):
    with pytest.raises(UsageError, match="unknown notebook '91_nosuch'; notebooks are 90_fixture"):
        experiment.start("91_nosuch", dict(LITERALS))


def test_the_setup_cell_can_run_again(begin):
    first, namespace = begin()
    one_is_one()
    namespace["accuracy"] = 0.5
    second, _ = begin(namespace)
    one_is_one()
    assert len(second.record.checks) == 1
    # The run before does not listen any more.
    assert len(first.record.checks) == 1
    with pytest.raises(UsageError, match="'accuracy'"):
        begin(accuracy=0.5)


def test_device_is_chosen_by_the_environment(monkeypatch):
    monkeypatch.setenv("REPROLIB_DEVICE", "cpu")
    assert pick_device() == torch.device("cpu")
    monkeypatch.setenv("REPROLIB_DEVICE", "nosuch")
    with pytest.raises(UsageError, match="'nosuch'"):
        pick_device()
    if not torch.cuda.is_available():
        monkeypatch.setenv("REPROLIB_DEVICE", "cuda")
        with pytest.raises(UsageError, match="cannot be used"):
            pick_device()
        monkeypatch.delenv("REPROLIB_DEVICE")
        assert pick_device() == torch.device("cpu")


def test_finish_writes_the_record(begin, suite, capsys):
    run, _ = begin()
    claim(run, min_seeds=3, paper_value=2.5)
    error = one_is_one()
    shown = run.table("t", "A table", ["seed", "x"], [[0, 0.123456], [1, None]])
    assert repr(shown) == "A table\nseed  x\n----  ------\n0     0.1235\n1     –"
    assert run.judge("F-1", {"x": 3.0}, seeds=run.seeds, holds=True) == "reproduced"
    capsys.readouterr()
    run.finish()
    assert capsys.readouterr().out == "recorded 1 checks, 1 claims, 1 tables\n"
    text = (suite.results / "standard" / "90_fixture.json").read_text(encoding="utf-8")
    document = json.loads(text)
    assert text == json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    assert document["seconds"] > 0
    assert set(document["environment"]) == {"python", "platform", "packages", "device", "threads"}
    del document["seconds"], document["environment"]
    assert document["checks"][0].pop("detail") == {"elements": 1}
    assert document == {
        "notebook": "90_fixture",
        "profile": "standard",
        "parameters": LITERALS,
        "checks": [
            {
                "id": "90.one",
                "statement": "one is one",
                "source": "eq. (1)",
                "kind": "identity",
                "measured": error,
                "tolerance": 1e-12,
                "passed": True,
            }
        ],
        "claims": [
            {
                "id": "F-1",
                "paper": "Fixture",
                "statement": "x is large",
                "source": "Table 1",
                "criterion": "x above 1",
                "paper_value": 2.5,
                "measured": {"x": 3.0},
                "seeds": [0, 1, 2],
                "verdict": "reproduced",
            }
        ],
        "findings": [],
        "tables": [{"id": "t", "title": "A table", "columns": ["seed", "x"], "rows": [[0, 0.123456], [1, None]]}],
    }


def test_finish_refuses_an_unjudged_claim_and_writes_nothing(begin, suite):
    run, _ = begin()
    claim(run)
    with pytest.raises(RuntimeError, match="'F-1' was declared but not judged"):
        run.finish()
    assert not suite.results.exists()


def test_finish_refuses_a_failed_check_and_writes_nothing(begin, suite):
    run, _ = begin()
    with pytest.raises(AssertionError):
        checks.check_identity(1.0, 2.0, id="90.wrong", statement="one is two", source="eq. (2)")
    with pytest.raises(RuntimeError, match=r"check '90.wrong' did not pass"):
        run.finish()
    assert not suite.results.exists()


def test_duplicate_ids_raise(begin):
    run, _ = begin()
    one_is_one()
    claim(run)
    run.table("t", "T", ["a"], [[1]])
    with pytest.raises(ValueError, match=r"'90.one' is already"):
        one_is_one()
    with pytest.raises(ValueError, match="'F-1' is already"):
        claim(run)
    with pytest.raises(ValueError, match="'t' is already"):
        run.table("t", "T", ["a"], [[1]])


def test_unknown_ids_and_infinite_numbers_raise(begin):
    run, _ = begin()
    claim(run)
    with pytest.raises(ValueError, match="'F-2' was not declared; declared are: F-1"):
        run.judge("F-2", {"x": 1.0}, holds=True)
    with pytest.raises(ValueError, match="finite"):
        run.judge("F-1", {"x": math.nan}, holds=True)


def test_views_choose_by_prefix(begin):
    run, _ = begin()
    one_is_one("90.a-one")
    one_is_one("90.b-one")
    claim(run, "F-1")
    claim(run, "G-1")
    assert [row[0] for row in run.show_checks("90.b").rows] == ["90.b-one"]
    assert [row[-1] for row in run.show_checks(measured=False).rows] == ["passed", "passed"]
    assert [row[0] for row in run.show_claims("G").rows] == ["G-1"]


NOTEBOOK = """
import torch

faces = torch.arange(4.0)
calls = []


class Log:
    def __reduce__(self):
        return Log, ()

    def add(self, *call):
        calls_of_the_test.append(call)


log = Log()


@run.cached
def face_run(seed, m=0.5, **options):
    log.add(seed, m)
    rate, device = run.parameters.rate, run.device
    return {"x": float(m * faces.sum() + torch.rand(()) + rate), "faces": faces.to(device), **options}


@run.cached(name="twice-run")
def twice(seed):
    log.add("twice", seed)
    return {"x": 2 * face_run(seed)["x"]}
"""


@pytest.fixture
def notebook(begin, monkeypatch):
    """Starts a notebook with two cached functions; returns its namespace and the calls that were computed."""
    import builtins

    made = []
    monkeypatch.setattr(builtins, "calls_of_the_test", made, raising=False)

    def notebook(code=NOTEBOOK, **changes):
        run, _ = begin(**changes)
        space = {"__name__": "__main__", "run": run}
        exec(code, space)
        return space

    return notebook, made


def test_a_cached_function_is_computed_once_for_its_arguments(notebook, suite):
    open_notebook, made = notebook
    first = open_notebook()
    assert first["face_run"].__name__ == "face_run"
    value = first["face_run"](0, 0.35)
    assert torch.equal(value["faces"], torch.arange(4.0))
    assert first["face_run"](0, m=0.35)["x"] == value["x"]
    assert first["face_run"](0, 0.5)["x"] == first["face_run"](0)["x"] != first["face_run"](1)["x"]
    assert first["face_run"](0, extra=1)["extra"] == 1
    assert made == [(0, 0.35), (0, 0.5), (1, 0.5), (0, 0.5)]
    # Another kernel, another list of seeds: the same runs.
    again = open_notebook(seeds=[0, 1, 2, 3])
    assert again["face_run"](0, 0.35)["x"] == value["x"]
    assert len(made) == 4
    assert sorted({path.name.split("-")[0] for path in suite.cache.iterdir()}) == ["face_run"]


def test_what_a_cached_function_reads_is_part_of_its_key(notebook):
    open_notebook, made = notebook
    space = open_notebook()
    before = space["face_run"](0)["x"]
    space["faces"] = 3.0 - space["faces"] + 1
    assert space["face_run"](0)["x"] != before
    assert open_notebook(rate=0.75)["face_run"](0)["x"] != before
    assert open_notebook(NOTEBOOK.replace("m * faces", "2 * m * faces"))["face_run"](0)["x"] != before
    assert len(made) == 4
    assert open_notebook(steps=7)["face_run"](0)["x"] == before
    assert len(made) == 4


def test_a_cached_function_counts_in_those_that_call_it(notebook, suite):
    open_notebook, made = notebook
    assert open_notebook()["twice"](1)["x"] == 2 * open_notebook()["face_run"](1)["x"]
    open_notebook(NOTEBOOK.replace("m * faces", "3 * m * faces"))["twice"](1)
    assert made == [("twice", 1), (1, 0.5)] * 2
    assert len(list(suite.cache.glob("twice-run-*.pt"))) == 2


def test_cached_functions_are_made_ahead(notebook, monkeypatch):
    monkeypatch.setenv("REPROLIB_WORKERS", "2")
    open_notebook, _ = notebook
    # The workers have no list of calls.
    space = open_notebook(NOTEBOOK.replace("log.add(seed, m)", "pass"))
    space["run"].ahead(space["face_run"], [(0, 0.1), (1, 0.1), 2])
    # From here on nothing is computed, only found.
    space["run"]._cache.only_stored = True
    assert space["face_run"](0, 0.1)["x"] != space["face_run"](1, 0.1)["x"] != space["face_run"](2)["x"]


def test_the_record_is_nothing_that_a_cached_run_may_read(notebook):
    open_notebook, _ = notebook
    space = open_notebook(NOTEBOOK.replace("log.add(seed, m)", "tables = run.record.tables"))
    with pytest.raises(TypeError, match=r"'face_run' cannot be told from others: run\.record, which"):
        space["face_run"](0)


CLAIMS = """
claims:
  F-1:
    paper: Fixture
    statement: x is large
    source: Table 1
    criterion: x above 1
    rule: statement
    paper_value: 3.0
    power: sees 0.2 with 3 seeds
findings:
  FF-1: {statement: y rises, source: here, criterion: slope above 0, rule: trend, direction: rising, paper_value: null}
"""


def test_claims_are_declared_by_their_file_and_recorded(begin, suite, capsys):
    suite.claims.write_text(CLAIMS, encoding="utf-8")
    run, _ = begin()
    assert run.show_claims().columns[4] == "power"
    assert [(row[0], row[4], row[-1]) for row in run.show_claims().rows] == [
        ("F-1", "sees 0.2 with 3 seeds", "not judged yet")
    ]
    assert [(row[0], row[1], row[-1]) for row in run.show_findings().rows] == [("FF-1", "here", "not judged yet")]
    with pytest.raises(RuntimeError, match="claim 'F-1' was declared but not judged"):
        run.finish()
    assert run.judge("F-1", {"x": 2.0}, run.seeds, holds=True) == "reproduced"
    assert run.judge("FF-1", ours=[[1.0, 2.0]], swept=[0, 1], seeds=[0]) == "inconclusive"
    capsys.readouterr()
    run.finish()
    assert capsys.readouterr().out == "recorded 0 checks, 1 claims, 1 findings, 0 tables\n"
    document = json.loads((suite.results / "standard" / "90_fixture.json").read_text(encoding="utf-8"))
    assert [claim["verdict"] for claim in document["claims"]] == ["reproduced"]
    assert document["findings"][0]["paper"] == ""
    reason = "a single difference: no interval"
    assert document["findings"][0]["measured"] == {"slope": 1.0, "n": 1, "reason": reason}
    suite.claims.write_text(CLAIMS + "more: 1\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"90.yaml must be a mapping with the keys"):
        begin()


def test_a_table_of_the_reference_is_shown(begin, suite):
    run, _ = begin()
    assert run.reference_table("t") is None
    run.table("t", "A table", ["a"], [[0.5]])
    run.finish()
    path = suite.root / "reference" / "full" / "90_fixture.json"
    path.parent.mkdir(parents=True)
    path.write_text((suite.results / "standard" / "90_fixture.json").read_text(encoding="utf-8"), encoding="utf-8")
    assert repr(run.reference_table("t")).splitlines() == ["A table (reference, profile full)", "a", "---", "0.5"]
    with pytest.raises(ValueError, match="no table 'nosuch', got t"):
        run.reference_table("nosuch")


def test_claims_stand_beside_those_of_the_reference(begin, suite):
    suite.claims.write_text(CLAIMS, encoding="utf-8")
    run, _ = begin()
    assert repr(run.reference_claims()).strip() == "The reference of profile full: there is none yet"
    declared = list(run.record.claims.values())
    for claim in declared:
        claim.verdict, claim.measured, claim.seeds = "reproduced", {}, [0, 1]
    run.finish()
    document = json.loads((suite.results / "standard" / "90_fixture.json").read_text(encoding="utf-8"))
    path = suite.root / "reference" / "full" / "90_fixture.json"
    path.parent.mkdir(parents=True)
    document["claims"][0] |= {"verdict": "inconclusive", "seeds": [0, 1, 2]}
    document["claims"][0]["measured"]["difference"] = {"value": -1.25, "low": -2.0, "high": 0.5, "level": 0.95}
    path.write_text(json.dumps(document), encoding="utf-8")
    first = run.reference_claims().rows[0]
    assert first[0] == declared[0].id and first[2:] == ("–", "2", "reproduced", "-1.25 [-2, 0.5]", "3", "inconclusive")
