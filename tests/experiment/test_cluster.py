"""Runs made on a Dask cluster are those that are made here, also when a worker is killed on the way."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from fixture_suite import CELLS, NAME, PARAMETERS

from reprolib.__main__ import main
from reprolib.experiment import cluster
from reprolib.experiment.cache import RunCache
from reprolib.experiment.runs import RunLines, read_lines

# The run with seed 1 kills the worker that makes it, once.
KILLED = """\
import os, pathlib, signal
@run.cached
def total(seed):
    marker = pathlib.Path(MARKER)
    if seed == 1 and not marker.exists():
        marker.touch()
        os.kill(os.getppid(), signal.SIGKILL)
        signal.pause()
    return {"sum": float(torch.rand(run.parameters.steps).sum() + run.parameters.rate), "seed": seed}
run.ahead(total, run.seeds)
sums = [total(seed) for seed in run.seeds]"""


@pytest.fixture
def address():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, scheduler_port=0
    ) as made:
        yield made.scheduler_address


@pytest.mark.slow
def test_the_record_is_that_of_a_plain_run_though_a_worker_is_killed(suite, address, tmp_path, monkeypatch, capfd):
    marker = tmp_path / "killed"
    cells = [CELLS[0], KILLED.replace("MARKER", repr(str(marker))), *CELLS[2:]]
    records, keys = [], []
    for options in ([], ["--dask", address]):
        # what a plain run reads: the marker is there, nobody is killed
        marker.touch() if not options else marker.unlink()
        monkeypatch.setenv("REPROLIB_CACHE", str(tmp_path / f"cache{len(records)}"))
        monkeypatch.setenv("REPROLIB_RESULTS", str(tmp_path / f"results{len(records)}"))
        suite.write(PARAMETERS, cells)
        assert main(["run", "90", "--profile", "full", "-p", "dataset=digits", "-p", "steps=3", *options]) == 0
        folder = tmp_path / f"results{len(records)}" / "full"
        document = json.loads((folder / f"{NAME}.json").read_text())
        del document["seconds"]
        records.append(document)
        lines = sorted(read_lines(folder / "runs" / "90.jsonl"), key=lambda line: line["seed"])
        keys.append([(line["key"], line["metrics"], line["made_with"]) for line in lines])
        monkeypatch.delenv(cluster.VARIABLE, raising=False)
    assert records[0] == records[1] and len(keys[0]) == 3 and keys[0] == keys[1]
    assert marker.exists()
    # what was made there is what is found here
    names = [sorted(path.name for path in (tmp_path / f"cache{k}").glob("*.pt")) for k in (0, 1)]
    assert names[0] == names[1] and len(names[0]) == 3


@pytest.mark.slow
def test_an_error_there_is_raised_here(suite, address, monkeypatch):
    monkeypatch.setenv(cluster.VARIABLE, address)

    def failing(seed):
        raise ValueError(f"seed must be even, got {seed}")

    with pytest.raises(ValueError, match="seed must be even, got 1"):
        list(cluster.call_each(failing, [(1,)], address))
    with pytest.raises(RuntimeError, match="ended with status 3"):
        list(cluster.call_each(os._exit, [(3,)], address))
    here = cluster.made_with()
    monkeypatch.setattr(cluster, "made_with", lambda: {**here, "torch": "1.0"})
    with pytest.raises(RuntimeError, match=r"must have the versions and sources of the notebook: torch 1.0, got"):
        list(cluster.call_each(failing, [(1,)], address))


def test_an_address_that_nobody_answers_is_refused(suite, monkeypatch, capsys):
    pytest.importorskip("distributed")
    monkeypatch.setattr(cluster, "CONNECT_SECONDS", 1)
    assert main(["run", "90", "--dask", "tcp://127.0.0.1:9"]) == 2
    assert "--dask must be the address of a Dask scheduler, got tcp://127.0.0.1:9" in capsys.readouterr().err
    assert not suite.results.exists()


def test_the_extra_is_named_where_dask_is_missing(suite, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert main(["run", "90", "--dask", "tcp://127.0.0.1:9"]) == 1
    error = capsys.readouterr().err
    assert error == (
        "reprolib run: run --dask needs the package 'distributed'; pip install 'reprolib[cluster]' brings it\n"
    )


def test_what_was_made_elsewhere_is_found_here(tmp_path, monkeypatch):
    def cache(name: str) -> RunCache:
        return RunCache(tmp_path / name, "cpu", RunLines(tmp_path / name / "90.jsonl", "cpu"))

    def made():
        return {"x": 1.5}

    there, here = cache("there"), cache("here")
    assert there.get("run", {"seed": 3}, made) == {"x": 1.5}
    files = {path.name: path.read_bytes() for path in (tmp_path / "there").glob("*.pt")}
    lines = (tmp_path / "there" / "90.jsonl").read_bytes()
    for _ in range(2):
        here.take(files, lines + b"torn")
    assert here.has_all(lambda: here.get("run", {"seed": 3}, made))
    assert read_lines(tmp_path / "here" / "90.jsonl") == read_lines(tmp_path / "there" / "90.jsonl")
    # a copy that runs for another machine writes into the folder that it is given
    monkeypatch.setenv(cluster.ELSEWHERE, str(tmp_path / "folder"))
    import cloudpickle

    copy = cloudpickle.loads(cloudpickle.dumps(here))
    assert copy.folder == Path(tmp_path, "folder", "cache") and copy.lines.path == tmp_path / "folder" / "runs.jsonl"
