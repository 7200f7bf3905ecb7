"""The sources of the package as part of what a run reads: the modules that its code names and all that these import."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path

from .paths import PACKAGE, reference_folder


def content_hash(kind: str, *parts: str) -> str:
    """SHA-256 of a kind and its parts in their order, to 32 hexadecimal digits."""
    return hashlib.sha256("".join(f"{len(part)}:{part}" for part in (kind, *parts)).encode()).hexdigest()[:32]


def source_hash(package: Path = PACKAGE) -> str:
    """SHA-256 over paths and bytes of all Python files of the package, and the tuned values that its arenas read."""
    files = {file.relative_to(package).as_posix(): file.read_bytes() for file in sorted(package.rglob("*.py"))}
    files |= {file.name: file.read_bytes() for file in reference_folder().glob("tuned.yaml")}
    return content_hash("package", *(f"{name} {hashlib.sha256(files[name]).hexdigest()}" for name in files))


class Sources:
    """The modules of the package as they are on disk now: the hash of each one's code, and what it imports.

    Comments, layout and docstrings do not count. This folder counts by name only: it runs what the others compute.
    """

    def __init__(self, package: Path = PACKAGE) -> None:
        self._text: dict[str, tuple[bytes, bool]] = {}
        self._parsed: dict[str, tuple[str, set[str]]] = {}
        for file in sorted(package.rglob("*.py")):
            parts = file.relative_to(package.parent).with_suffix("").parts
            folder = parts[-1] == "__init__"
            name = ".".join(parts[:-1] if folder else parts)
            if not f"{name}.".startswith(f"{__package__}."):
                self._text[name] = (file.read_bytes(), folder)

    def hash(self, module: str) -> str:
        """Hash of `module` with every module of the package that it imports, directly or not."""
        found, waiting = {}, [module]
        while waiting:
            name = waiting.pop()
            if name in self._text and name not in found:
                if name not in self._parsed:
                    text, folder = self._text[name]
                    tree = ast.parse(text)
                    targets = {target for target in _imported(tree, name, folder) if target in self._text}
                    self._parsed[name] = (content_hash("source", ast.dump(_without_docstrings(tree))), targets)
                found[name], targets = self._parsed[name]
                waiting += targets
        return content_hash("module", module, *(found[name] for name in sorted(found)))


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                node.body = node.body[1:]
    return tree


def _imported(tree: ast.Module, name: str, folder: bool) -> Iterator[str]:
    """Every module that may be meant by the import statements of module `name`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = name.split(".")
            above = parents[: len(parents) - node.level + folder] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
