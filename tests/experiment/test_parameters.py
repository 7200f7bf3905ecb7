from __future__ import annotations

import pytest
from fixture_suite import CELLS

from reprolib.experiment import parameters
from reprolib.experiment.parameters import (
    check_value,
    declared_parameters,
    literal_names,
    parse_overrides,
    profile_parameters,
    resolve,
    with_overrides,
)
from reprolib.experiment.paths import UsageError, notebooks_folder

STANDARD = {"profile": "standard", "dataset": "digits", "seeds": [0, 1, 2], "rate": 0.5, "steps": 3}
SMOKE = {"profile": "smoke", "dataset": "digits", "seeds": [0, 1], "rate": 0.25, "steps": 1}


def cell(source: str, **metadata: object) -> dict:
    return {"cell_type": "code", "source": source, "metadata": metadata}


def notebook(source: str) -> dict:
    return {"cells": [cell("import os"), cell(source, tags=["parameters"])]}


@pytest.mark.parametrize("profile", parameters.PROFILES)
def test_shipped_profiles_fit_the_notebooks_and_hold_differences_only(profile, monkeypatch):
    monkeypatch.delenv("REPROLIB_PROFILES", raising=False)
    notebooks = {path.stem for path in notebooks_folder().glob("*.ipynb")}
    blocks = parameters.load_profile(profile)
    assert set(blocks) - {"defaults"} <= notebooks
    below = "full" if profile == "paper" else "standard"
    for name in notebooks:
        values, start = profile_parameters(name, profile), profile_parameters(name, below)
        assert values["profile"] == profile
        assert {key: type(value) for key, value in values.items()} == {k: type(v) for k, v in start.items()}
        start |= blocks.get("defaults", {})
        for key, value in blocks.get(name, {}).items():
            assert start[key] != value, f"{key} of {name} is no difference"


def test_smoke_has_two_seeds_so_that_a_standard_deviation_exists(monkeypatch):
    monkeypatch.delenv("REPROLIB_PROFILES", raising=False)
    assert len(parameters.load_profile("smoke")["defaults"]["seeds"]) >= 2


def test_standard_is_the_parameters_cell_and_paper_starts_from_full(suite):
    assert profile_parameters("90_fixture", "standard") == STANDARD
    assert profile_parameters("90_fixture", "smoke") == SMOKE
    full = {**STANDARD, "profile": "full", "dataset": "mnist", "rate": 1.0, "steps": 30}
    assert profile_parameters("90_fixture", "full") == full
    assert profile_parameters("90_fixture", "paper") == {**full, "profile": "paper", "rate": 1.5, "steps": 300}
    (suite.root / "profiles" / "smoke.yaml").write_text("{}\n", encoding="utf-8")
    assert profile_parameters("90_fixture", "smoke") == {**STANDARD, "profile": "smoke"}


def test_profile_parameters_convert_an_int_of_the_profile_to_the_float_of_the_standard(suite):
    full = profile_parameters("90_fixture", "full")
    assert full["rate"] == 1.0
    assert type(full["rate"]) is float


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("90_fixture: {rte: 3}\n", "sets 'rte', which 90_fixture does not declare"),
        ("defaults: {rte: 3}\n", "sets 'rte', which 90_fixture does not declare"),
        ("defaults: {profile: full}\n", "sets 'profile'"),
        ("90_fixture: {rate: x}\n", "'rate' must be of type float"),
        ("90_fixture: {rate: .nan}\n", "finite"),
        ("90_fixture: {rate: -1.0}\n", "must not be negative"),
        ("90_fixture: {steps: 0}\n", "must be positive"),
        ("defaults: {seeds: [0, 0]}\n", "distinct"),
        ("defaults: {dataset: digit}\n", "mnist, fashion_mnist, digits"),
        ("defaults: {dataset: digits, dataset: mnist}\n", "given twice"),
        ("defaults: {dataset: digits\n", "not valid YAML"),
        ("- 1\n", "must be a mapping"),
        ("90_fixture: 3\n", "must be a mapping"),
    ],
)
def test_a_profile_that_does_not_fit_the_notebook_is_refused(suite, text, message):
    (suite.root / "profiles" / "smoke.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(UsageError, match=message) as caught:
        profile_parameters("90_fixture", "smoke")
    assert "\n" not in str(caught.value)


def test_unknown_profile_and_notebook_are_refused(suite):
    with pytest.raises(UsageError, match="unknown profile 'nosuch'; profiles are smoke, standard, full, paper"):
        profile_parameters("90_fixture", "nosuch")
    for name in ("91_other", "defaults"):
        with pytest.raises(UsageError, match=f"unknown notebook '{name}'; notebooks are 90_fixture"):
            profile_parameters(name, "standard")
    (suite.root / "profiles" / "smoke.yaml").unlink()
    with pytest.raises(UsageError, match=r"profile file .*smoke.yaml cannot be read"):
        profile_parameters("90_fixture", "smoke")


@pytest.mark.parametrize(
    "parameters",
    ["profile = 'smoke'\nrate = 0.5", "rate = 0.5", "profile = 'standard'\nrate = 1e999", "profile = = 1"],
)
def test_a_parameters_cell_that_is_no_standard_profile_is_refused(suite, parameters):
    suite.write(parameters, CELLS)
    with pytest.raises(UsageError, match=r"notebook 90_fixture|finite"):
        profile_parameters("90_fixture", "standard")


def test_declared_parameters_reads_literals():
    source = 'profile = "standard"\nrate = -0.5  # rate\nseeds = [0, 1]\nflag = True\nnothing = None\n'
    expected = {"profile": "standard", "rate": -0.5, "seeds": [0, 1], "flag": True, "nothing": None}
    assert declared_parameters(notebook(source)) == expected


@pytest.mark.parametrize(
    "source", ["a = 2 * b", "a, b = 1, 2", "import os", "a = 1\na = 2", "_a = 1", "a.b = 1", "f()"]
)
def test_declared_parameters_refuses_all_but_literals(source):
    with pytest.raises(UsageError):
        declared_parameters(notebook(source))


def test_declared_parameters_needs_exactly_one_cell():
    with pytest.raises(UsageError, match="has 0"):
        declared_parameters({"cells": [cell("a = 1")]})
    with pytest.raises(UsageError, match="has 2"):
        declared_parameters({"cells": [cell("a = 1", tags=["parameters"])] * 2})


@pytest.mark.parametrize(
    ("value", "literal", "expected"),
    [
        (2, 0.5, 2.0),
        (2, 3, 2),
        ("a", "b", "a"),
        ([1, 2], [0.5], [1.0, 2.0]),
        ([1, "learned", 2.5], [1, 2.5, "learned"], [1, "learned", 2.5]),
        ((1, 2), [0], [1, 2]),
        ([], [], []),
        ([0], [7, 8], [0]),
        ([0.0, 0.5], [0.0, 1.0], [0.0, 0.5]),
        (True, False, True),
        ({"a": 1}, {"a": 0.5}, {"a": 1.0}),
        ("anything", None, "anything"),
    ],
)
def test_check_value_accepts(value, literal, expected):
    checked = check_value("x", value, literal)
    assert checked == expected
    assert repr(checked) == repr(expected)


@pytest.mark.parametrize(
    ("value", "literal"),
    [
        (0.5, 3),
        (True, 3),
        (True, 0.5),
        (1, True),
        ("1", 1),
        (1, "1"),
        ([1], 1),
        (1, [1]),
        ([1, "x"], [1]),
        ([None], [1]),
        (float("nan"), 1.0),
        (float("inf"), 1.0),
        (None, 1.0),
        (object(), None),
        # where the declared ones are positive, distinct or not empty
        (0, 3),
        (-1, 3),
        (0.0, 0.5),
        (-0.5, 0.0),
        ([], [1]),
        ([-1], [1]),
        ([0.0], [0.5, 1.0]),
        ([0.5, 0.5], [0.5, 1.0]),
        ([0.1, -0.1], [0.0, 0.1]),
    ],
)
def test_check_value_refuses(value, literal):
    with pytest.raises(UsageError, match="'x'"):
        check_value("x", value, literal)


@pytest.mark.parametrize("seeds", [[], [0, 0], [-1], [0.0], [True], "0", [2**63], [99999999999999999999]])
def test_seeds_are_distinct_integers(seeds):
    with pytest.raises(UsageError, match="seeds"):
        check_value("seeds", seeds, [0])


def test_every_seed_that_is_taken_can_seed_everything():
    from reprolib.experiment.cache import seed_everything, seeded

    for seed in check_value("seeds", [0, 2**32, parameters.LARGEST_SEED], [0]):
        with seeded(seed):
            seed_everything(seed)


def test_a_margin_may_be_zero_and_pairs_must_fill_ten_folds():
    assert check_value("toy_margins", [0.0, 0.5], [0.3]) == [0.0, 0.5]
    assert check_value("margin", 0, 0.5) == 0.0
    assert check_value("verification_pairs", 20, 6000) == 20
    for name in ("pairs", "verify_pairs", "verification_pairs"):
        for few in (0, 1, 19):
            with pytest.raises(UsageError, match=f"parameter '{name}' must be"):
                check_value(name, few, 6000)


def test_overrides_are_read_as_yaml():
    pairs = ["epochs=2", "rate=1e-3", "seeds=[3, 4]", "name=a=b", "flag=true", "day=2020-01-01", "text=''"]
    assert parse_overrides(pairs) == {
        "epochs": 2,
        "rate": 0.001,
        "seeds": [3, 4],
        "name": "a=b",
        "flag": True,
        "day": "2020-01-01",
        "text": "",
    }


@pytest.mark.parametrize("text", ["1:30", "1:30:00", "1_", "010", "0b1", "on", "yes", "2020-01-01"])
def test_yaml_1_1_makes_no_number_or_truth_value_of_text(text):
    assert parse_overrides([f"x={text}"]) == {"x": text}
    assert parse_overrides([f"x=[{text}]"]) == {"x": [text]}


@pytest.mark.parametrize(
    ("text", "value"),
    [("0", 0), ("-3", -3), ("1_000", 1000), ("+1.5", 1.5), ("1e3", 1000.0), ("False", False), ("~", None), ("", None)],
)
def test_yaml_numbers_and_truth_values(text, value):
    parsed = parse_overrides([f"x={text}"])["x"]
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    "pairs", [["epochs"], ["=2"], ["a b=2"], ["a=1", "a=2"], ["profile=smoke"], ["a=[1"], ["a=" + "9" * 5000]]
)
def test_malformed_overrides_are_refused_in_one_line(pairs):
    with pytest.raises(UsageError) as caught:
        parse_overrides(pairs)
    assert "\n" not in str(caught.value)


def test_an_undeclared_override_is_refused_by_name():
    with pytest.raises(
        UsageError, match="unknown parameter 'epochs' of 90_fixture; its parameters are profile, dataset"
    ):
        with_overrides("90_fixture", STANDARD, {"epochs": 3})


@pytest.mark.parametrize(
    ("given", "environment", "expected"),
    [
        ({}, {}, STANDARD),
        ({}, {"REPROLIB_PROFILE": "smoke"}, SMOKE),
        ({"profile": "smoke"}, {}, SMOKE),
        # What the user set stays, what is at its standard literal follows the profile.
        ({"profile": "smoke", "steps": 7}, {}, {**SMOKE, "steps": 7}),
        ({"steps": 7}, {"REPROLIB_PROFILE": "smoke"}, {**SMOKE, "steps": 7}),
        ({"steps": 7}, {}, {**STANDARD, "steps": 7}),
        # A profile that is asked for in the call comes before the one of the environment.
        ({"profile": "smoke"}, {"REPROLIB_PROFILE": "full"}, SMOKE),
        ({}, {"REPROLIB_PARAMETERS": '{"profile": "smoke"}'}, {**STANDARD, "profile": "smoke"}),
        ({}, {"REPROLIB_PARAMETERS": '{"steps": 7}', "REPROLIB_PROFILE": "smoke"}, {**STANDARD, "steps": 7}),
        ({"rate": 2}, {}, {**STANDARD, "rate": 2.0}),
    ],
)
def test_resolve(suite, given, environment, expected):
    assert resolve("90_fixture", {**STANDARD, **given}, environment) == expected


@pytest.mark.parametrize(
    ("given", "environment", "message"),
    [
        ({"nosuch": 1}, {}, "unknown parameter 'nosuch'"),
        ({}, {"REPROLIB_PARAMETERS": '{"nosuch": 1}'}, "unknown parameter 'nosuch'"),
        ({"steps": "3"}, {}, "'steps' must be of type int"),
        ({"profile": "fast"}, {}, "unknown profile 'fast'"),
        ({}, {"REPROLIB_PARAMETERS": '{"profile": "fast"}'}, "unknown profile 'fast'"),
        ({}, {"REPROLIB_PROFILE": "fast"}, "unknown profile 'fast'"),
    ],
)
def test_resolve_refuses(suite, given, environment, message):
    with pytest.raises(UsageError, match=message):
        resolve("90_fixture", {**STANDARD, **given}, environment)


def test_literal_names_leaves_out_history_modules_and_private_names():
    namespace = {
        "a": 1,
        "b": [1],
        "_c": 2,
        "In": ["a"],
        "Out": {},
        "os": pytest,
        "f": len,
        "__name__": "x",
        "n": None,
    }
    assert literal_names(namespace) == {"a": 1, "b": [1], "n": None}
