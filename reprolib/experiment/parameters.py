"""Parameters of a notebook: what it declares, what a profile sets, what a user overrides.

A notebook's `parameters` cell holds literals only: they are profile `standard`. The other profiles are YAML files that
hold differences from it, in a block `defaults` (every notebook) and one block a notebook; `paper` starts from `full`.
"""

from __future__ import annotations

import ast
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn

import nbformat
import torch

from .paths import UsageError, notebooks_folder, one_line, profiles_folder
from .strict_yaml import parse_yaml, read_yaml

PROFILES = ("smoke", "standard", "full", "paper")
BASE = "standard"
# The files that a profile is read from, a later one over an earlier one.
_LAYERS = {"smoke": ("smoke",), BASE: (), "full": ("full",), "paper": ("full", "paper")}
_LITERALS = (bool, int, float, str, list, tuple, dict, type(None))
# torch and numpy take any of them, and JSON keeps them exactly.
LARGEST_SEED = 2**63 - 1
# Ten folds with one pair of the same and one of different people in each.
FEWEST_PAIRS = 20


def check_profile(profile: str, *more: str) -> None:
    """Raise UsageError unless `profile` is one of PROFILES or of `more`."""
    if profile not in (*more, *PROFILES):
        raise UsageError(f"unknown profile {profile!r}; profiles are {', '.join((*more, *PROFILES))}")


def device_name() -> str:
    """`REPROLIB_DEVICE`, else `cuda` if there is one, else `cpu`."""
    return os.environ.get("REPROLIB_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")


def resolve_profile(profile: str) -> str:
    """`auto` is `full` where there is a GPU, else `standard`. Raises UsageError for an unknown profile."""
    check_profile(profile, "auto")
    if profile == "auto":
        return "full" if device_name().startswith("cuda") else BASE
    return profile


def load_profile(profile: str) -> dict[str, dict[str, Any]]:
    """The blocks of one profile file: `{"defaults": {...}, "01_l2_softmax": {...}, ...}`, differences only.

    Raises UsageError for an unknown profile and for a file that is not a mapping of mappings.
    """
    check_profile(profile)
    if profile == BASE:
        return {}
    path = profiles_folder() / f"{profile}.yaml"
    blocks = read_yaml(path, f"profile file {path.name}")
    if not isinstance(blocks, dict) or not all(isinstance(block, dict) for block in blocks.values()):
        raise UsageError(f"profile file {path.name} must be a mapping of mappings, got {blocks!r}")
    return blocks


def profile_parameters(notebook: str, profile: str) -> dict[str, Any]:
    """All parameters of `notebook` in `profile`, `profile` among them; types checked against its parameters cell.

    Raises UsageError for an unknown notebook or profile and for a profile that sets what the notebook does not declare.
    """
    literals = notebook_literals(notebook)
    values = {**literals, "profile": profile}
    check_profile(profile)
    for layer in _LAYERS[profile]:
        blocks = load_profile(layer)
        changes = {**blocks.get("defaults", {}), **blocks.get(notebook, {})}
        if unknown := sorted(set(changes) - set(literals) | {"profile"} & set(changes)):
            raise UsageError(f"profile {layer!r} sets {unknown[0]!r}, which {notebook} does not declare")
        values |= changes
    return {name: check_value(name, value, literals[name]) for name, value in values.items()}


def read_notebook(name: str) -> nbformat.NotebookNode:
    """The notebook `name` as its file is now. Raises UsageError for an unknown one and for a file that is none."""
    path = notebooks_folder() / f"{name}.ipynb"
    if not path.is_file():
        known = ", ".join(sorted(other.stem for other in path.parent.glob("*.ipynb")))
        found = f"notebooks are {known}" if known else f"notebooks are looked for in {path.parent}, which has none"
        raise UsageError(f"unknown notebook {name!r}; {found}")
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except Exception as error:  # whatever a damaged file makes the reader raise
        raise UsageError(f"notebook {name} cannot be read: {one_line(error)[:200]}") from error
    return notebook


def notebook_literals(name: str) -> dict[str, Any]:
    """The parameters that notebook `name` declares, `profile` among them. Raises UsageError if it cannot be read."""
    notebook = read_notebook(name)
    try:
        declared = declared_parameters(notebook)
    except (UsageError, SyntaxError) as error:
        raise UsageError(f"notebook {name}: {one_line(error)[:200]}") from error
    if declared.get("profile") != BASE:
        raise UsageError(f"notebook {name}: its parameters cell must hold profile = {BASE!r}")
    return {key: check_value(key, value, value) for key, value in declared.items()}


def declared_parameters(notebook: nbformat.NotebookNode) -> dict[str, Any]:
    """Names and literals of the one cell tagged `parameters` in a notebook.

    Raises UsageError when there is no such cell or more than one, or when it holds anything but `name =
    literal`.
    """
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    tagged = [cell for cell in code if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise UsageError(f"a notebook needs one cell tagged 'parameters', this one has {len(tagged)}")
    declared: dict[str, Any] = {}
    for statement in ast.parse(tagged[0]["source"]).body:
        try:
            (target,) = statement.targets  # type: ignore[attr-defined]
            name, value = target.id, ast.literal_eval(statement.value)  # type: ignore[attr-defined]
        except (AttributeError, ValueError):
            text = ast.unparse(statement)
            raise UsageError(f"the parameters cell may hold only 'name = literal', not {text!r}") from None
        if name in declared or name.startswith("_"):
            raise UsageError(f"parameter {name!r} is declared twice or begins with an underscore")
        declared[name] = value
    return declared


def check_value(name: str, value: Any, literal: Any) -> Any:
    """`value` with the type of the declared `literal`; an int is taken for a float, no other is converted.

    An element of a list must be of a type that the declared list has. A number must be finite, and positive where the
    declared ones are (a margin or a class may be 0); a list must not be empty or hold a value twice where the declared
    one is not and does not. `seeds` must be distinct integers of 0 to 2^63 - 1, `dataset` one of the image data sets,
    and a number of verification pairs at least 20. Raises UsageError.
    """
    what = f"parameter {name!r}"
    value = typed(what, value, literal)
    if name == "seeds":
        seeds = value if isinstance(value, list) else []
        whole = all(type(seed) is int and 0 <= seed <= LARGEST_SEED for seed in seeds)
        if not seeds or not whole or len(set(seeds)) < len(seeds):
            _refuse(what, f"be a list of distinct integers from 0 to {LARGEST_SEED}", value)
    if name == "dataset":
        from ..data.datasets import NAMES

        if value not in NAMES:
            _refuse(what, f"be one of {', '.join(NAMES)}", value)
    if name.split("_")[-1] == "pairs" and type(value) is int and value < FEWEST_PAIRS:
        _refuse(what, f"be at least {FEWEST_PAIRS}", value)
    return value


def _refuse(what: str, must: str, value: Any) -> NoReturn:
    raise UsageError(f"{what} must {must}, got {value!r}")


def typed(what: str, value: Any, literal: Any) -> Any:
    """`value` as the general rules of `check_value` take it for `literal`; `what` names it in the UsageError."""
    if isinstance(literal, float) and type(value) is int:
        value = float(value)
    if isinstance(value, tuple):
        value = list(value)
    wanted = list if isinstance(literal, tuple) else type(literal)
    # A declared None says nothing about the type.
    if literal is not None and type(value) is not wanted:
        _refuse(what, f"be of type {wanted.__name__}", value)
    if isinstance(value, dict):
        return {key: typed(what, item, (literal or {}).get(key)) for key, item in value.items()}
    if isinstance(value, list):
        items = [typed(what, item, _alike(item, literal)) for item in value]
        if literal and not value:
            _refuse(what, "be a list of at least one value", value)
        if literal and len(set(map(repr, items))) < len(items) and len(set(map(repr, literal))) == len(literal):
            _refuse(what, "be a list of distinct values", value)
        return items
    if type(value) not in _LITERALS:
        _refuse(what, "be a plain literal", value)
    if isinstance(value, float) and not math.isfinite(value):
        _refuse(what, "be finite", value)
    if type(value) in (int, float) and type(literal) in (int, float) and literal >= 0:
        if value < 0:
            _refuse(what, "not be negative", value)
        if value == 0 < literal and "margin" not in what:
            _refuse(what, "be positive", value)
    return value


def _alike(item: Any, literals: Iterable[Any] | None) -> Any:
    """The smallest of `literals` with the type of `item`, else the smallest float, else the first of them.

    An integer in a list names a class or an identity, which may be 0.
    """
    alike = [one for one in literals or () if type(one) is type(item)]
    alike = alike or [one for one in literals or () if isinstance(one, float)] or list(literals or [None])
    if type(alike[0]) is int:
        return 0
    return min(alike) if isinstance(alike[0], (float, str)) else alike[0]


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["epochs=2", "seeds=[0, 1]"]` as a dictionary; the values are read as YAML. Raises UsageError."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"a parameter must be given as -p name=value, got {pair!r}")
        if name in overrides:
            raise UsageError(f"parameter {name!r} is given twice")
        if name == "profile":
            raise UsageError("the profile is chosen with --profile, not with -p")
        overrides[name] = parse_yaml(text, f"the value of parameter {name!r}")
    return overrides


def with_overrides(notebook: str, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` (all parameters of `notebook`) with `overrides` checked and put in. Raises UsageError."""
    for name in overrides:
        if name not in values:
            raise UsageError(f"unknown parameter {name!r} of {notebook}; its parameters are {', '.join(values)}")
    return {name: check_value(name, overrides.get(name, value), value) for name, value in values.items()}


def resolve(notebook: str, given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Final parameters of a running notebook from the literals `given` in its namespace.

    `REPROLIB_PARAMETERS` (the runner) holds them as JSON. Otherwise the profile is the namespace's `profile` if
    that is not `standard`, else `REPROLIB_PROFILE`; each parameter still at its standard literal takes the
    profile's value, and one that a user changed stays. Raises UsageError for an unknown name, profile or
    type.
    """
    literals = profile_parameters(notebook, BASE)
    if final := environment.get("REPROLIB_PARAMETERS"):
        given = json.loads(final)
    given = with_overrides(notebook, literals, given)
    check_profile(given["profile"])
    if final:
        return dict(given)
    profile = given["profile"]
    if profile == BASE:
        profile = environment.get("REPROLIB_PROFILE") or BASE
    values = profile_parameters(notebook, profile)
    changed = {name: value for name, value in given.items() if value != literals[name] and name != "profile"}
    return with_overrides(notebook, values, changed)


def literal_names(namespace: Mapping[str, Any]) -> dict[str, Any]:
    """The plain literals of a notebook's namespace that do not begin with `_`: its possible parameters."""
    # IPython keeps the inputs and the outputs of a session in these two.
    history = {"In", "Out"}
    return {
        name: value
        for name, value in namespace.items()
        if not name.startswith("_") and name not in history and type(value) in _LITERALS
    }
