"""`reprolib train`: the same run as the notebooks' loop, stopped and resumed or not, on one process and several."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ranks
import torch

from reprolib import networks
from reprolib.__main__ import main
from reprolib.batches import prepare
from reprolib.config import make_loss, parse
from reprolib.data import load_facebin, open_faces
from reprolib.embeddings import embed_folder
from reprolib.experiment.strict_yaml import read_yaml
from reprolib.experiment.trained import trained_rows
from reprolib.loop import LOG
from reprolib.state import read_checkpoint
from reprolib.training import embed, fit

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def faces(tmp_path):
    ranks.write_faces(tmp_path)
    return tmp_path


@pytest.mark.parametrize("data", [{}, {"data__workers": 1}, {"data__in_memory": True}], ids=["", "worker", "memory"])
def test_one_process_is_the_notebooks_loop_bit_for_bit(faces, data):
    ranks.run(faces, "run", **ranks.RESIDUAL, **data)
    config = ranks.settings(faces, "run", **ranks.RESIDUAL)
    items = open_faces(faces / "train.rec").__getitems__(range(56))
    images, labels = torch.stack([image for image, _ in items]), torch.tensor([label for _, label in items])
    model = partial(networks.build, "residual", 16, (3, 24, 24), widths=(4, 8), dropout=0.2)
    trained = fit(model, lambda: make_loss(config.loss, 16, 7), images, labels, config.training, seed=0, log_every=4)
    found = ranks.final(faces, "run")
    for name, value in trained.model.state_dict().items():
        assert torch.equal(found[f"model.{name}"], value), name
    for name, value in trained.loss.state_dict().items():
        assert torch.equal(found[f"loss.{name}"], value), name
    lines = [json.loads(line) for line in (faces / "run" / LOG).read_text().splitlines()]
    assert [line["loss"] for line in lines] == trained.history.losses


def test_evaluation_bf16_progress_and_verify(faces, capfd):
    changes = {"evaluation": {"sets": [str(faces / "pairs.bin")], "every": 6}, "training__bf16": True}
    outcome = ranks.run(faces, "run", **changes, training__steps=30, paper={"notebook": "05", "pairs": 99.5})
    err = capfd.readouterr().err
    assert ", the paper 99.5" in err
    assert [row[1:3] for row in trained_rows("05_arcface", faces)] == [["pairs", 99.5]]
    assert "arcface, compact (" in err and "56 images of 7 people, 30 steps of 16 images, 1 process(es) on cpu" in err
    assert re.search(r"step 28 of 30: loss [\d.]+, lr [\d.e-]+, [\d,]+ images a second, \d\d:\d\d left", err)
    lines = [json.loads(line) for line in (faces / "run" / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines if "set" in line] == [6, 12, 18, 24, 30]
    assert outcome.results == {"pairs": lines[-1]["exact"]} and outcome.results["pairs"] > 0.75
    # the embeddings of a folder, judged by the command, are those of the evaluation
    pairs = load_facebin(faces / "pairs.bin")
    (faces / "images").mkdir()
    for place, raw in enumerate(pairs.encoded):
        (faces / "images" / f"{place}.png").write_bytes(raw)
    listed = "".join(f"{2 * k} {2 * k + 1} {int(same)}\n" for k, same in enumerate(pairs.same.tolist()))
    (faces / "pairs.txt").write_text(listed)
    model = ["--model", str(faces / "run" / "checkpoint.pt"), "--images", str(faces / "images")]
    output = ["--output", str(faces / "report")]
    assert main(["verify", *model, *output, str(faces / "pairs.txt")]) == 0
    assert "accuracy, exact threshold" in capfd.readouterr().out
    found = json.loads((faces / "report" / "verification.json").read_text())
    assert found["accuracy"]["exact"]["value"] == pytest.approx(outcome.results["pairs"])


def test_embeddings_of_a_folder_are_the_networks(faces):
    ranks.run(
        faces,
        "run",
        data__grey=True,
        data__crop=[22, 20],
        evaluation={"flip_sum": False},
        training__steps=2,
        **ranks.PLAIN,
    )
    state = read_checkpoint(faces / "run" / "checkpoint.pt")
    assert state["shape"] == [1, 22, 20]
    (faces / "images" / "deep").mkdir(parents=True)
    raw = load_facebin(faces / "pairs.bin").encoded
    for place in (0, 1, 2):
        (faces / "images" / "deep" / f"{place}.png").write_bytes(raw[place])
    with np.load(embed_folder(faces / "run" / "checkpoint.pt", faces / "images", faces / "made.npz")) as made:
        assert made["names"].tolist() == ["deep/0.png", "deep/1.png", "deep/2.png"]
        rows = torch.from_numpy(made["embeddings"])
    model = networks.build("sphere4", 16, (1, 22, 20))
    model.load_state_dict(state["model"])
    images = load_facebin(faces / "pairs.bin")._stack(range(2)).flatten(0, 1)[:3]
    assert torch.allclose(rows, embed(model, prepare(images, (22, 20), True)), atol=1e-5)


def test_what_cannot_be_is_refused_in_one_line_with_status_2(faces, capsys):
    (faces / "run.yaml").write_text("data: {path: x, wrong: 1}\nnetwork: {name: sphere4}\nloss: {name: arcface}\n")
    whole = ["training={steps: 4, batch_size: 16}", f"output={faces}/out", f"data={{path: {faces}/train.rec}}"]
    cases = {
        (): "run.yaml lacks the key 'training'",
        tuple(whole[:2]): "unknown key 'wrong' in data; its keys are path, skip, index, crop, grey, in_memory, workers",
        (*whole, "training.epoch=3"): "unknown key 'epoch' in training",
        (*whole, "looss=3"): "unknown key 'looss' in",
        (*whole, "loss.marging=0.5"): "ArcFace has no hyper-parameter 'marging'",
        (*whole, "loss.name=arc"): "loss.name must be one of 'softmax'",
        (*whole, "network.name=vgg"): "network must be one of",
        (*whole, "network.dropout=0.5"): "options of sphere4 must be among batch_norm, got 'dropout'",
        (*whole, "training.lr=-1"): "lr must be a finite number",
        (*whole, "training.steps=a"): "steps must be an integer, got 'a'",
        (*whole, "data.path=/nowhere.rec"): "nowhere.rec",
        (*whole, "training.batch_size=500"): "batch_size must be at most the number of images, 56",
        (*whole, "paper={lfw: 101}"): "paper.lfw must be a finite number in [0, 100], got 101",
        (*whole, "loss={name: n_pair, l2_weight: 0.01}", "per_class=4"): "per_class must be 2 for n_pair",
        (*whole, "loss={name: triplet_semi_hard, margin: 0.2}"): "per_class must be given for triplet_semi_hard",
        (*whole, "evaluation={sets: [a/lfw.bin, b/lfw.bin]}"): "evaluation.sets must have different file names",
        (*whole, "per_class=3"): "batch_size must be a multiple of per_class",
        (*whole, "seed"): "must be given as -p name=value",
    }
    for values, message in cases.items():
        options = [part for value in values for part in ("-p", value)]
        status = main(["train", str(faces / "run.yaml"), *options])
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1) and message in err, (values, err)
        assert status == (1 if "nowhere" in message else 2)
    assert not (faces / "out").exists()
    # the checkpoint of another run
    options = [part for value in whole for part in ("-p", value)]
    assert main(["train", str(faces / "run.yaml"), *options]) == 0
    capsys.readouterr()
    assert main(["train", str(faces / "run.yaml"), *options, "-p", "loss.margin=0.2"]) == 2
    assert "belongs to a run with another loss" in capsys.readouterr().err
    assert main(["verify", "--model", str(faces / "out" / "checkpoint.pt"), "a", "b"]) == 2
    assert "verify must get EMBEDDINGS PAIRS" in capsys.readouterr().err


def test_tensorboard_is_named_where_it_is_missing(faces, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match=r"pip install 'reprolib\[cluster\]'"):
        ranks.run(faces, "run", tensorboard=True)


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_are_valid_and_name_their_paper(path):
    config = parse(read_yaml(path, path.name), path.name)
    with torch.device("meta"):
        shape = (1 if config.data.grey else 3, *(config.data.crop or (112, 112)))
        networks.build(config.network.name, config.network.embedding_dim, shape, **config.network.options)
    assert config.output == f"runs/{path.stem}"
    assert path.read_text(encoding="utf-8").startswith("# ")


def test_two_processes_train_as_one(faces):
    """A network without BatchNorm and dropout, whose batches do not depend on their division."""
    changes = {"evaluation": {"sets": [str(faces / "pairs.bin")]}, "training__clip_norm": 0.5, **ranks.PLAIN}
    ranks.run(faces, "one", **changes)
    ranks.processes(faces, ranks.Part(2, "two", changes))
    ranks.assert_same(ranks.final(faces, "one"), ranks.final(faces, "two"), 2e-5)


@pytest.mark.slow
def test_a_signal_to_all_processes_of_the_command_leaves_a_checkpoint(faces):
    """As a terminal, torchrun and a cluster send it: to the workers of the loader, too."""
    values = {
        "data": {"path": str(faces / "train.rec"), "workers": 2},
        "network": {"name": "compact", "embedding_dim": 16},
        "loss": {"name": "arcface"},
        "training": {"steps": 100_000, "batch_size": 16},
        "output": str(faces / "run"),
        "log_every": 20,
    }
    (faces / "run.yaml").write_text(json.dumps(values))
    command = [sys.executable, "-m", "reprolib", "train", str(faces / "run.yaml")]
    for number in (signal.SIGTERM, signal.SIGINT):
        child = subprocess.Popen(
            command, env=ranks.environment(), stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        assert child.stderr is not None
        seen = ""
        while "loss" not in seen:
            seen = child.stderr.readline()
            assert seen, "the command ended"
        os.killpg(child.pid, number)
        rest = child.stderr.read()
        assert child.wait(60) == 128 + number
        (said,) = re.findall(rf"stopped by {number.name} after step (\d+);", rest)
        assert "Traceback" not in rest
        assert read_checkpoint(faces / "run" / "checkpoint.pt")["step"] == int(said) >= 20
