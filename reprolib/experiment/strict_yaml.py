"""The YAML that a person writes for the suite: profiles, claims and `-p key=value`, refused in one sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .paths import UsageError, one_line


class StrictLoader(yaml.SafeLoader):
    """The numbers and truth values of YAML 1.2.

    So 1e-3 is a number, while 1:30 (90 in YAML 1.1), 010 (8), `on` and a date are text; a repeated key is an error.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (the parent class declares it so)
        first: [(tag, pattern) for tag, pattern in resolvers if tag.rsplit(":", 1)[1] in ("null", "merge")]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = [key for position, key in enumerate(keys) if key in keys[:position]]
        if repeated:
            raise yaml.constructor.ConstructorError(None, None, f"key {repeated[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern in (
    ("bool", r"true|True|TRUE|false|False|FALSE"),
    ("int", r"[-+]?(?:0|[1-9](?:_?[0-9])*)"),
    ("float", r"[-+]?(?:(?:\d+\.\d*|\.\d+)(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|INF))|\.(?:nan|NaN|NAN)"),
):
    _first = list("-+.0123456789tTfF")
    StrictLoader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), _first)


def parse_yaml(text: str, what: str) -> Any:
    """The content of `text`, which the error calls `what`. Raises UsageError."""
    try:
        return yaml.load(text, Loader=StrictLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{what} is not valid YAML: {one_line(getattr(error, 'problem', None) or error)}") from error


def read_yaml(path: Path, what: str) -> Any:
    """The content of the file `path`. Raises UsageError for one that cannot be read, too."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{what} cannot be read: {getattr(error, 'strerror', None) or one_line(error)}") from error
    return parse_yaml(text, what)
