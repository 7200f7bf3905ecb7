"""Parameters of a notebook: what it declares, what a profile sets, what a user overrides.

A notebook's `parameters` cell holds literals only, those of profile `standard`. The profiles are YAML files
with a block `defaults` (common to all notebooks) and one block per notebook; all of them have the same keys
and types.
"""

from __future__ import annotations

import ast
import math
import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from .paths import UsageError, profiles_folder

PROFILES = ("smoke", "standard", "full", "paper")
BASE = "standard"
_LITERALS = (bool, int, float, str, list, tuple, dict, type(None))


class _Loader(yaml.SafeLoader):
    """YAML of the profiles and of `-p key=value`: 1e-3 is a number, a repeated key an error, a date text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 (the parent class declares it so)
        first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for position, key in enumerate(keys) if key in keys[:position]]
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"),
    list("-+.0123456789"),
)


def _one_line(error: yaml.YAMLError) -> str:
    return " ".join(str(getattr(error, "problem", None) or error).split())


def load_profile(profile: str) -> dict[str, dict[str, Any]]:
    """The blocks of one profile: `{"defaults": {...}, "01_l2_softmax": {...}, ...}`.

    Raises UsageError for an unknown profile and for a file that is not a mapping of mappings.
    """
    if profile not in PROFILES:
        raise UsageError(f"unknown profile {profile!r}; profiles are {', '.join(PROFILES)}")
    path = profiles_folder() / f"{profile}.yaml"
    try:
        blocks = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except yaml.YAMLError as error:
        raise UsageError(f"profile file {path.name} is not valid YAML: {_one_line(error)}") from error
    if not isinstance(blocks, dict) or "defaults" not in blocks:
        raise UsageError(f"profile file {path.name} must be a mapping with a block 'defaults'")
    for name, block in blocks.items():
        if not isinstance(block, dict):
            raise UsageError(f"block {name!r} of profile file {path.name} must be a mapping, not {block!r}")
    return blocks


def profile_parameters(notebook: str, profile: str) -> dict[str, Any]:
    """All parameters of `notebook` in `profile`, `profile` among them; types checked against `standard`."""
    blocks = load_profile(profile)
    if notebook not in blocks or notebook == "defaults":
        known = ", ".join(sorted(set(blocks) - {"defaults"})) or "none"
        raise UsageError(f"profile {profile!r} has no block for notebook {notebook!r}; its notebooks are: {known}")
    values = {"profile": profile, **blocks["defaults"], **blocks[notebook]}
    if profile == BASE:
        return {name: check_value(name, value, value) for name, value in values.items()}
    literals = profile_parameters(notebook, BASE)
    for name in sorted(set(values) ^ set(literals)):
        where = profile if name in values else BASE
        raise UsageError(f"parameter {name!r} of {notebook} is set in profile {where!r} only")
    return {name: check_value(name, values[name], literal) for name, literal in literals.items()}


def declared_parameters(notebook: Mapping[str, Any]) -> dict[str, Any]:
    """Names and literals of the one cell tagged `parameters` in a notebook (nbformat 4 node or its JSON).

    Raises UsageError when there is no such cell or more than one, or when it holds anything but `name =
    literal`.
    """
    tagged = [
        cell
        for cell in notebook["cells"]
        if cell["cell_type"] == "code" and "parameters" in cell.get("metadata", {}).get("tags", [])
    ]
    if len(tagged) != 1:
        raise UsageError(f"a notebook needs one cell tagged 'parameters', this one has {len(tagged)}")
    source = tagged[0]["source"]
    declared: dict[str, Any] = {}
    for statement in ast.parse(source if isinstance(source, str) else "".join(source)).body:
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

    An element of a list must be of a type that the declared list has. Floats must be finite.
    `seeds` must be distinct integers >= 0 and `dataset` one of the image data sets. Raises UsageError.
    """
    value = _typed(name, value, literal)
    if name == "seeds":
        seeds = value if isinstance(value, list) else []
        whole = all(type(seed) is int and seed >= 0 for seed in seeds)
        if not seeds or not whole or len(set(seeds)) < len(seeds):
            raise UsageError(f"parameter 'seeds' must be a list of distinct integers >= 0, not {value!r}")
    if name == "dataset":
        from ..data.datasets import NAMES

        if value not in NAMES:
            raise UsageError(f"parameter 'dataset' must be one of {', '.join(NAMES)}, not {value!r}")
    return value


def _typed(name: str, value: Any, literal: Any) -> Any:
    if isinstance(literal, float) and type(value) is int:
        value = float(value)
    if isinstance(value, tuple):
        value = list(value)
    wanted = list if isinstance(literal, tuple) else type(literal)
    # A declared None says nothing about the type.
    if literal is not None and type(value) is not wanted:
        raise UsageError(f"parameter {name!r} must be of type {wanted.__name__}, not {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"parameter {name!r} must be finite, not {value!r}")
    if isinstance(value, list):
        return [_typed(name, item, _alike(item, literal)) for item in value]
    if isinstance(value, dict):
        return {key: _typed(name, item, (literal or {}).get(key)) for key, item in value.items()}
    if not isinstance(value, _LITERALS):
        raise UsageError(f"parameter {name!r} must be a plain literal, not {value!r}")
    return value


def _alike(item: Any, literals: list[Any] | None) -> Any:
    """The first of `literals` with the type of `item`, else the first float, else the first."""
    wanted = [type(item), float]
    ranked = sorted(literals or [None], key=lambda one: wanted.index(type(one)) if type(one) in wanted else 2)
    return ranked[0]


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """`["epochs=2", "seeds=[0, 1]"]` as a dictionary; the values are read as YAML. Raises UsageError."""
    overrides: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.isidentifier():
            raise UsageError(f"a parameter is given as -p name=value, not {pair!r}")
        if name in overrides:
            raise UsageError(f"parameter {name!r} is given twice")
        if name == "profile":
            raise UsageError("the profile is chosen with --profile, not with -p")
        try:
            overrides[name] = yaml.load(text, Loader=_Loader)
        except yaml.YAMLError as error:
            raise UsageError(f"the value of parameter {name!r} is not valid YAML: {_one_line(error)}") from error
    return overrides


def with_overrides(notebook: str, values: dict[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`values` (all parameters of `notebook`) with `overrides` checked and put in. Raises UsageError."""
    for name in overrides:
        if name not in values:
            raise UsageError(f"unknown parameter {name!r} of {notebook}; its parameters are {', '.join(values)}")
    return {name: check_value(name, overrides.get(name, value), value) for name, value in values.items()}


def resolve(notebook: str, given: Mapping[str, Any], environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Final parameters of a running notebook from the literals `given` in its namespace.

    `REPROLIB_FINAL=1` (the runner): taken as they are. Otherwise the profile is the namespace's `profile` if
    that is not `standard`, else `REPROLIB_PROFILE`; each parameter still at its standard literal takes the
    profile's value, and one that a user changed stays. Raises UsageError for an unknown name, profile or
    type.
    """
    literals = profile_parameters(notebook, BASE)
    given = with_overrides(notebook, literals, given)
    if given["profile"] not in PROFILES:
        raise UsageError(f"unknown profile {given['profile']!r}; profiles are {', '.join(PROFILES)}")
    if environment.get("REPROLIB_FINAL") == "1":
        return given
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
