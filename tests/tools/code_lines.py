"""Prints the code lines of each room of the package: without blanks, comments and docstrings.

python tests/tools/code_lines.py [FOLDER ...]     (default: reprolib)
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter
from pathlib import Path

_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)


def code_lines(source: str) -> int:
    """Number of lines of Python `source` that hold code."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            docstrings.update(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - docstrings)


def by_room(folder: Path) -> Counter[str]:
    """Code lines of each file and folder directly in `folder`."""
    rooms: Counter[str] = Counter()
    for path in sorted(folder.rglob("*.py")):
        rooms[path.relative_to(folder).parts[0]] += code_lines(path.read_text(encoding="utf-8"))
    return rooms


if __name__ == "__main__":
    for name in sys.argv[1:] or ["reprolib"]:
        counted = by_room(Path(name))
        for room, lines in [*counted.most_common(), (f"{name}, all", counted.total())]:
            print(f"{lines:6d}  {room}")
