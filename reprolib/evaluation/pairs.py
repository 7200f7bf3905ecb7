"""Lists of image pairs: LFW's `pairs.txt` and a plain list of three columns.

LFW's format (Huang et al., 2007): the first line holds the number of folds k and the number n of pairs of each
kind in a fold, separated by a tab. Then come, fold by fold, n lines `name<TAB>i<TAB>j` (a genuine pair: images i
and j of one person) and n lines `name1<TAB>i<TAB>name2<TAB>j` (an impostor pair). Image i of `name` has the key
`name_%04d`, in LFW the file `name/name_%04d.jpg`. With only one number n in the first line (LFW's View 1) there
is a single fold.

The plain list has no first line of numbers, only lines `name_a name_b same` with same 1 (genuine) or 0
(impostor), for the pairs of CFP-FP, AgeDB-30 or of one's own. Its folds are equal contiguous blocks.

Where a line has tabs, tabs alone separate, so that a name may hold spaces; otherwise spaces do. Other white space
(U+00A0, U+3000) belongs to the name.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .._checks import check_count

_SIZE_LIMIT = 256 << 20
_NUMBER = re.compile(r"[0-9]{1,9}")
_BLANKS = " \t\r\f\v"


@dataclass(frozen=True, eq=False)
class PairList:
    """Pairs in the order of the file: image keys `first` and `second`, `same` (n,) bool, `folds` (n,) from 0."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    same: np.ndarray
    folds: np.ndarray

    def __len__(self) -> int:
        return len(self.first)

    @property
    def fold_count(self) -> int:
        return int(self.folds.max()) + 1


def read_pairs(path: str | os.PathLike[str], *, plain_folds: int = 10) -> PairList:
    """The pairs of the file `path`; see `parse_pairs`. ValueError also for a file that cannot be read as text."""
    path = Path(path)
    try:
        if path.stat().st_size > _SIZE_LIMIT:
            raise ValueError(f"{path} is longer than {_SIZE_LIMIT >> 20} MiB, which no list of pairs is")
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    return parse_pairs(text, str(path), plain_folds=plain_folds)


def parse_pairs(text: str, label: str = "pairs", *, plain_folds: int = 10) -> PairList:
    """The pairs in `text`, in one of the two formats of this module; `label` names the text in errors.

    `plain_folds` is the number of folds of a plain list; LFW's format states its own. Raises ValueError, with
    the line, for a wrong first line, number of lines, columns or image number, for an image paired with itself,
    a person paired with themself as impostors, or a plain list that the folds do not divide.
    """
    check_count(plain_folds, "plain_folds")
    lines = text.split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise ValueError(f"{label} is empty")
    if "\0" in text:
        raise ValueError(f"{label} holds NUL bytes; it is not a list of pairs")
    rows = [_columns(line) for line in lines]
    if len(rows[0]) <= 2 and all(_NUMBER.fullmatch(word) for word in rows[0]) and rows[0]:
        return _official(rows, lines, label)
    if len(rows[0]) == 3 and rows[0][2] in ("0", "1"):
        return _plain(rows, lines, label, plain_folds)
    raise ValueError(
        f"{label} line 1 must be 'folds<TAB>pairs' as in LFW's pairs.txt, or 'name_a name_b same' with same 0 or 1, "
        f"got {_shown(lines[0])}"
    )


def _columns(line: str) -> list[str]:
    line = line.strip(_BLANKS)
    parts = re.split(r"\t+", line) if "\t" in line else re.split(r"[ \r\f\v]+", line)
    return [part.strip(_BLANKS) for part in parts] if line else []


def _official(rows: list[list[str]], lines: list[str], label: str) -> PairList:
    folds, each = (1, int(rows[0][0])) if len(rows[0]) == 1 else (int(rows[0][0]), int(rows[0][1]))
    if folds < 1 or each < 1:
        raise ValueError(f"{label} line 1 must name at least 1 fold and 1 pair, got {folds} and {each}")
    expected = 2 * folds * each
    if len(rows) - 1 != expected:
        raise ValueError(
            f"{label} must hold {folds} x ({each} + {each}) = {expected} pairs by its first line, "
            f"but has {len(rows) - 1} more lines"
        )
    first, second = [], []
    for index, row in enumerate(rows[1:]):
        where, genuine = f"{label} line {index + 2}", index % (2 * each) < each
        if len(row) != (3 if genuine else 4):
            form = "a genuine pair 'name<TAB>i<TAB>j'" if genuine else "an impostor pair 'name1<TAB>i<TAB>name2<TAB>j'"
            raise ValueError(f"{where} must be {form}, got {_shown(lines[index + 1])}")
        name, i, other, j = (row[0], row[1], row[0], row[2]) if genuine else row
        if not genuine and name == other:
            raise ValueError(f"{where} must pair two people, but both are {name}")
        first.append(_key(name, i, where))
        second.append(_key(other, j, where))
        if first[-1] == second[-1]:
            raise ValueError(f"{where} pairs image {i} of {name} with itself")
    order = np.arange(expected)
    return PairList(tuple(first), tuple(second), order % (2 * each) < each, order // (2 * each))


def _plain(rows: list[list[str]], lines: list[str], label: str, folds: int) -> PairList:
    if len(rows) % folds:
        raise ValueError(f"{label} has {len(rows)} pairs, which {folds} equal folds do not divide")
    for number, row in enumerate(rows, start=1):
        if len(row) != 3 or row[2] not in ("0", "1"):
            raise ValueError(
                f"{label} line {number} must be 'name_a name_b same' with same 0 or 1, got {_shown(lines[number - 1])}"
            )
        if row[0] == row[1]:
            raise ValueError(f"{label} line {number} pairs {row[0]} with itself")
    first, second, same = zip(*rows, strict=True)
    blocks = np.repeat(np.arange(folds), len(rows) // folds)
    return PairList(first, second, np.array([flag == "1" for flag in same]), blocks)


def _key(name: str, number: str, where: str) -> str:
    if not _NUMBER.fullmatch(number) or int(number) < 1:
        raise ValueError(f"{where}: the number of an image must be an integer from 1 on, got {_shown(number)}")
    return f"{name}_{int(number):04d}"


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
