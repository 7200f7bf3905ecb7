"""The measuring kit: rounds, spreads, what the system does not tell, and children that fail."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from benchmarks import kit


def test_rounds_alternate_and_the_warm_up_is_not_counted():
    order = []
    seconds = kit.alternate({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3, warm_up=2)
    # each twice: what is short is called once to wake the threads up
    assert order == ["a", "a", "b", "b"] * 5
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_a_ratio_is_taken_round_by_round():
    # the machine is ten times slower in the second round: the ratios do not see it
    assert kit.ratios([1.0, 10.0, 1.0], [2.0, 20.0, 4.0]) == {"median": 0.5, "min": 0.25, "max": 0.5}
    assert kit.ratios(None, [1.0]) is kit.ratios([1.0], []) is kit.ratio(None, 1.0) is kit.ratio(1.0, 0.0) is None
    assert kit.ratio(1.0, 3.0) == 0.333
    assert kit.spread([3.0, 1.0, 2.0001]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_the_fastest_is_one_that_was_measured():
    assert kit.fastest({"a": [3.0, 1.0, 3.0], "b": [2.0, 2.0, 2.0]}, ("a", "b", "c")) == "b"
    assert kit.fastest({}, ("a",)) is None


def test_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    called = []

    def nothing(*_, **__):
        raise FileNotFoundError("/proc")

    monkeypatch.setattr(Path, "read_text", nothing)
    monkeypatch.setattr(Path, "write_text", nothing)
    assert kit.status_bytes("VmRSS") is None
    assert kit.peak_above(lambda: called.append(1)) is None and called == [1]
    assert kit.mebibytes(None) is None
    assert kit.available_bytes() == 8 * kit.GIB


def test_the_peak_of_what_is_freed_again_is_seen():
    rise = kit.peak_above(lambda: len(bytearray(50 * kit.MIB)))
    if rise is None:
        pytest.skip("this system does not tell the peak of resident memory")
    assert 49 * kit.MIB <= rise < 80 * kit.MIB


def test_a_lack_of_memory_is_recognised():
    assert kit.is_out_of_memory(MemoryError()) and kit.is_out_of_memory(RuntimeError("can't allocate memory: 1"))
    assert not kit.is_out_of_memory(RuntimeError("shape mismatch"))


def test_counts_of_the_command_line():
    assert kit.count("10_572") == 10_572
    for text in ("0", "-3", "1.5", "many"):
        with pytest.raises(argparse.ArgumentTypeError, match=f"must be an integer >= 1, got {text}"):
            kit.count(text)


@pytest.mark.slow
def test_a_child_that_fails_or_takes_too_long_is_one_line():
    assert kit.in_child("benchmarks.kit", "nosuch", {})["failed"].startswith("ImportError")
    assert kit.in_child("time", "sleep", {"secs": 30}, timeout=0.01) == {"failed": "not finished after 0 s"}


def test_tables_show_spreads_and_gaps(capsys):
    kit.show("title", ["a", "b", "c"], [[None, {"median": 2.0, "min": 1.0, "max": 3.0}, 12345]])
    assert capsys.readouterr().err.splitlines()[1:] == ["title", "a  b           c", "-  2 (1 .. 3)  12,345"]
