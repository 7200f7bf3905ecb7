"""The book builds without a notebook being run, and a browser finds nothing wrong with its pages."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
NEEDED = ("sphinx", "myst_nb", "furo", "sphinx_copybutton")

missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}: make book")]


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> Path:
    """The built pages; a warning is an error, and a kernel cannot start."""
    output = tmp_path_factory.mktemp("book")
    command = [sys.executable, "-m", "book.build", "--output", str(output), "--strict"]
    # a kernel would find no place for its sockets and files
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JUPYTER_RUNTIME_DIR": "/dev/null/no"}
    environment |= {"BOOK_REPOSITORY": "somebody/some-where"}
    began = time.monotonic()
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    assert time.monotonic() - began < 300
    return output / "html"


def test_every_notebook_claim_and_room_has_its_page(html):
    for name in PAGES:
        assert (html / "notebooks" / f"{name}.html").exists()
    for name in ("claims", "findings", "checks", "explorers", "which_loss", "glossary", "faults", "citation", "search"):
        assert (html / f"{name}.html").exists()
    assert "reprolib.theory.bounds.simplex_scale" in (html / "api" / "theory.html").read_text(encoding="utf-8")


def test_solutions_and_bookkeeping_are_folded_and_badges_lead_to_the_notebook(html):
    text = (html / "notebooks" / "02_normface.html").read_text(encoding="utf-8")
    assert text.count("<details class=") > 5
    assert "colab.research.google.com/github/somebody/some-where/blob/main/notebooks/02_normface.ipynb" in text
    assert "mybinder.org/v2/gh/somebody/some-where/main" in text


def test_numbered_equations_are_places_that_text_and_docstrings_lead_to(html):
    text = (html / "notebooks" / "01_l2_softmax.html").read_text(encoding="utf-8")
    assert 'id="eq-1-9"' in text and 'href="#eq-1-9"' in text
    assert "../notebooks/01_l2_softmax.html#eq-" in (html / "api" / "theory.html").read_text(encoding="utf-8")


def test_the_librarys_pages_lead_to_the_equations_of_every_paper(html):
    text = (html / "api" / "losses.html").read_text(encoding="utf-8")
    for page, tag in (
        ("03_l_softmax_a_softmax", "3-4"),
        ("04_cosface", "4-1"),
        ("05_arcface", "5-3"),
        ("08_scale", "8-11"),
    ):
        assert f'href="../notebooks/{page}.html#eq-{tag}"' in text
    for page, tag in (("06_center_triplet", "6-4"), ("06b_contrastive_npair", "6b-13")):
        assert f'href="../notebooks/{page}.html#eq-{tag}"' in text


def test_a_page_has_a_line_for_each_answer_that_it_can_grade(html):
    text = (html / "notebooks" / "05_arcface.html").read_text(encoding="utf-8")
    assert text.count('<div class="answer"') == 3
    for name in ("expression.js", "answers.js"):
        assert f'src="../_static/{name}"' in text and (html / "_static" / name).exists()
    assert "answers.js" not in (html / "index.html").read_text(encoding="utf-8")


def test_a_browser_finds_nothing_wrong(html, tmp_path):
    pytest.importorskip("tornado")
    from book import check

    if check.browser_path() is None:
        pytest.skip("needs Chromium")
    assert check.main([str(html), "--screenshots", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("*.png"))) == len(check.SHOTS) * len(check.WIDTHS) * len(check.THEMES)


def test_the_check_sees_what_is_wrong(tmp_path, capsys):
    pytest.importorskip("tornado")
    from book import check

    if check.browser_path() is None:
        pytest.skip("needs Chromium")
    body = "<p style='color: #ccc; background: #fff; font-size: 9px'>x</p><p>left $a+b$</p><a href='nosuch.html'>x</a>"
    body += "<div style='width: 2000px'>x</div><span class='math'>\\(a\\)</span><img src='https://example.org/x.png'>"
    script = "window.MathJax = {startup: {promise: Promise.resolve()}}; console.error('loud'); nosuch()"
    head = "<!DOCTYPE html><meta name='viewport' content='width=device-width'>"
    page = f"{head}<script>{script}</script><article>{body}</article>"
    (tmp_path / "index.html").write_text(page, encoding="utf-8")
    assert check.main([str(tmp_path)]) == 1
    said = capsys.readouterr().out
    for part in ("loud", "nosuch is not defined", "nosuch.html does not exist", "from another place", "contrast 1.6"):
        assert part in said
    for part in ("pixels wider than the window", "9 pixels", "equation not rendered", "formula left as text"):
        assert part in said
