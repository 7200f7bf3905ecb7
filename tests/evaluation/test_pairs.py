"""The parser of pair lists: pencil, round trips, and one clear sentence for every defect."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib.evaluation import PairList, parse_pairs, read_pairs

SMALL = "2\t1\nAnn\t1\t4\nAnn\t2\tBob_J.\t1\nCy\t10\t2\nDee\t1\tCy\t3\n"
PLAIN = "a/1.jpg b/1.jpg 0\na/1.jpg a/2.jpg 1\n" * 2

names = st.text(st.characters(codec="utf-8", exclude_categories=("Z", "C")), min_size=1, max_size=8)


def test_by_pencil():
    pairs = parse_pairs(SMALL)
    assert isinstance(pairs, PairList) and len(pairs) == 4 and pairs.fold_count == 2
    assert pairs.first == ("Ann_0001", "Ann_0002", "Cy_0010", "Dee_0001")
    assert pairs.second == ("Ann_0004", "Bob_J._0001", "Cy_0002", "Cy_0003")
    assert pairs.same.tolist() == [True, False, True, False] and pairs.folds.tolist() == [0, 0, 1, 1]


def test_plain_list_by_pencil():
    pairs = parse_pairs(PLAIN, plain_folds=2)
    assert pairs.first == ("a/1.jpg",) * 4 and pairs.second == ("b/1.jpg", "a/2.jpg") * 2
    assert pairs.same.tolist() == [False, True] * 2 and pairs.folds.tolist() == [0, 0, 1, 1]


def test_view_1_is_a_single_fold():
    assert parse_pairs("1\nAnn\t1\t2\nAnn\t1\tBob\t1").fold_count == 1


@settings(max_examples=60)
@given(st.integers(1, 4), st.integers(1, 4), names, names, st.randoms(use_true_random=False))
def test_what_is_written_is_read(folds, each, one, two, random):
    if one == two:
        two = one + "x"
    lines, expected = [f"{folds}\t{each}"], []
    for fold in range(folds):
        for _ in range(each):
            i, j = random.sample(range(1, 10_001), 2)
            lines.append(f"{one}\t{i}\t{j}")
            expected.append((f"{one}_{i:04d}", f"{one}_{j:04d}", True, fold))
        for _ in range(each):
            i, j = random.randint(1, 9), random.randint(1, 9)
            lines.append(f"{one}\t{i}\t{two}\t{j}")
            expected.append((f"{one}_{i:04d}", f"{two}_{j:04d}", False, fold))
    text = random.choice(["\n", "\r\n"]).join(lines) + random.choice(["", "\n", "\r\n \n"])
    pairs = parse_pairs(text)
    assert list(zip(pairs.first, pairs.second, pairs.same, pairs.folds, strict=True)) == expected


@settings(max_examples=200)
@given(st.text(max_size=60) | st.text("ab 01\t\n", max_size=40))
def test_any_text_is_read_or_refused_with_one_line(text):
    try:
        pairs = parse_pairs(text, plain_folds=1)
    except ValueError as error:
        assert str(error).startswith("pairs") and "\n" not in str(error)
    else:
        assert len(pairs) == len(pairs.second) == len(pairs.same) == len(pairs.folds) >= 1


def test_a_file(tmp_path):
    path = tmp_path / "pairs.txt"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL.replace("\n", "\r\n").encode())
    assert read_pairs(path).first == parse_pairs(SMALL).first
    assert read_pairs(str(path)).same.tolist() == [True, False] * 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "pairs is empty"),
        ("\n\n", "pairs is empty"),
        ("hello\n", "line 1 must be"),
        ("10 300 5\n", "line 1 must be"),
        ("x\t300\n", "line 1 must be"),
        ("-1\t3\n", "line 1 must be"),
        ("1.0\t3\n", "line 1 must be"),
        ("٣\t3\n", "line 1 must be"),
        ("9" * 5000 + "\t3\n", "line 1 must be"),
        ("\n" + SMALL, "line 1 must be"),
        ("0\t3\n", "at least 1 fold and 1 pair, got 0 and 3"),
        ("2\t0\n", "at least 1 fold and 1 pair, got 2 and 0"),
        (SMALL.replace("2\t1\n", "3\t1\n"), r"3 x \(1 \+ 1\) = 6 pairs .* has 4 more lines"),
        (SMALL.rsplit("\n", 2)[0], "= 4 pairs .* has 3 more lines"),
        (SMALL + "Eve\t1\t2\n", "has 5 more lines"),
        (SMALL.replace("Cy\t10\t2\n", "Cy\t10\n"), r"line 4 must be a genuine pair .* got 'Cy\\t10'"),
        (SMALL.replace("Cy\t10\t2\n", "Cy\t10\tDee\t1\n"), "line 4 must be a genuine pair"),
        (SMALL.replace("Cy\t10\t2\n", "\n"), "line 4 must be a genuine pair .* got ''"),
        (SMALL.replace("Ann\t2\tBob_J.\t1", "Ann\t2\t3"), "line 3 must be an impostor pair"),
        (SMALL.replace("Ann\t2\tBob_J.\t1", "Ann\t2\tAnn\t3"), "line 3 must pair two people, but both are Ann"),
        (SMALL.replace("Ann\t1\t4", "Ann\t4\t4"), "line 2 pairs image 4 of Ann with itself"),
        (SMALL.replace("Ann\t1\t4", "Ann\t0\t4"), "line 2: the number .* from 1 on, got '0'"),
        (SMALL.replace("Ann\t1\t4", "Ann\t-1\t4"), "line 2: the number .* got '-1'"),
        (SMALL.replace("Ann\t1\t4", "Ann\t1.5\t4"), "line 2: the number"),
        (SMALL.replace("Cy\t3", "Cy\tx"), "line 5: the number .* got 'x'"),
        (SMALL.replace("Cy\t3", "Cy\t3\0"), "NUL"),
        ("a b 1\na b 2\n", "line 2 must be 'name_a name_b same'"),
        ("a b 1\na b\n", "line 2 must be 'name_a name_b same'"),
        ("a b 1\na a 0\n", "line 2 pairs a with itself"),
        ("a b 1\nc b 0\na c 0\n", "3 pairs, which 2 equal folds do not divide"),
    ],
)
def test_defects_are_named(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse_pairs(text, plain_folds=2)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_pairs(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="cannot be read"):
        read_pairs(tmp_path)
    (tmp_path / "image").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match="not a text file"):
        read_pairs(tmp_path / "image")
    with pytest.raises(ValueError, match="plain_folds"):
        parse_pairs(PLAIN, plain_folds=0)


def test_the_official_file():
    path = Path(os.environ.get("REPROLIB_DATA", "data")) / "lfw" / "pairs.txt"
    if not path.exists():
        pytest.skip("LFW's pairs.txt is not in the data folder")
    pairs = read_pairs(path)
    assert len(pairs) == 6000 and pairs.fold_count == 10
    assert np.bincount(pairs.folds).tolist() == [600] * 10
    assert np.bincount(pairs.folds[pairs.same]).tolist() == [300] * 10
    assert (pairs.first[0], pairs.second[0]) == ("Abel_Pacheco_0001", "Abel_Pacheco_0004")
    assert len({*pairs.first, *pairs.second}) == 7701
    # folds are disjoint in people
    people = [
        {key[:-5] for key, f in zip(pairs.first + pairs.second, [*pairs.folds] * 2, strict=True) if f == fold}
        for fold in range(10)
    ]
    assert sum(map(len, people)) == len(set().union(*people)) == 4281


@pytest.mark.parametrize("name", ["Jan van Dam", "Jan\u00a0Dam", "\u674e\u3000A", "a  b"])
def test_where_tabs_separate_a_name_may_hold_spaces(name):
    text = f"2\t1\n{name}\t1\t2\n{name}\t1\tEva B\t1\nEva B\t1\t2\nEva B\t\t1\t{name}\t2\t\r\n"
    pairs = parse_pairs(text)
    assert pairs.first == (f"{name}_0001", f"{name}_0001", "Eva B_0001", "Eva B_0001")
    assert pairs.second == (f"{name}_0002", "Eva B_0001", "Eva B_0002", f"{name}_0002")
    listed = parse_pairs(f"{name}_1\tEva B_1\t0\r\nEva B_1 \tEva B_2\t1\n", plain_folds=2)
    assert (listed.first, listed.second) == ((f"{name}_1", "Eva B_1"), ("Eva B_1", "Eva B_2"))
    with pytest.raises(ValueError, match=r"line 2 must be a genuine pair .* got '.*\\t1'"):
        parse_pairs(f"1\t1\n{name}\t1\n{name}\t1\tEva\t1\n")


def test_without_tabs_only_ascii_blanks_separate():
    pairs = parse_pairs("a\u00a0b  c 1\n \u674e\u3000A   c 0\n", plain_folds=1)
    assert pairs.first == ("a\u00a0b", "\u674e\u3000A") and pairs.second == ("c", "c")
    with pytest.raises(ValueError, match="line 1 must be"):
        parse_pairs("Jan van Dam_1 Eva_1 0\n", plain_folds=1)
