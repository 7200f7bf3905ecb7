"""Arenas: every loss is made and trained by the one way, judged on people unseen, and tuned by the same search."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import pilots, tuning
from reprolib import arenas, losses, models
from reprolib.data import load
from reprolib.data.fetching import repository_root
from reprolib.data.lfw_folds import FacesFold
from reprolib.experiment.fingerprint import Fingerprint
from reprolib.experiment.sources import Sources
from reprolib.training import TrainConfig

GLYPHS = load("digits")
SMALL = arenas.Recipe(
    8,
    partial(models.compact, widths=(4, 8, 8), kernels=(3, 3, 3), hidden=16),
    TrainConfig(epochs=1, batch_size=40, lr=0.05, warmup=0.1, ramp_end=0.4, scale_start=None),
)
DATA = {"digits": 2, "dataset": GLYPHS, "per_identity": 8, "identities": 40}
MIDDLE = {
    name: {knob.name: knob.at(0) for knob in knobs} | tuning.FIXED.get(name, {}) for name, knobs in tuning.KNOBS.items()
}


def run(loss, hyper, seed=0, **options):
    return arenas.numbers_run(loss, seed=seed, hyper=hyper, recipe=SMALL, training_data=DATA, **options)


def test_every_loss_has_knobs_and_every_knob_a_loss():
    assert set(tuning.KNOBS) == set(arenas.LOSSES)


@pytest.mark.parametrize("loss", arenas.LOSSES)
def test_every_loss_trains_and_is_judged_on_unseen_numbers(loss):
    found = run(loss, MIDDLE[loss])
    # 300 images of 30 unseen numbers: 43,500 impostor pairs, too few for a FAR of 1e-4
    assert list(found) == ["EER", "AUC", "TAR@1e-1", "TAR@1e-2", "TAR@1e-3"]
    assert all(0 <= value <= 1 for value in found.values()) and found["AUC"] > 0.5
    assert found == run(loss, MIDDLE[loss])


def test_a_head_gets_its_ramp_and_an_annealed_one_its_lambda_alone():
    seen = {}

    def probe(step, model, loss):
        head = getattr(loss, "head", loss)
        return {"strength": float(head.strength)} if hasattr(head, "strength") else {}

    people = arenas.load_numbers("train", seed=0, **DATA)
    for loss in ("arcface", "combined", "a_softmax"):
        trained = arenas.fit_recipe(
            SMALL, loss, MIDDLE[loss], people.images, people.labels, seed=0, probe=probe, log_every=1
        )
        seen[loss] = [entry["strength"] for entry in trained.history.probes[1:]]
    # 8 steps; the ramp ends at 0.4 of them
    for loss in ("arcface", "combined"):
        assert seen[loss] == pytest.approx([min(k / 8 / 0.4, 1.0) for k in range(8)])
    # lambda = 1000 / (1 + 999 / 200 k), strength 1 / (1 + lambda)
    expected = [1 / (1 + 1000 / (1 + 999 / 200 * k)) for k in range(1, 9)]
    assert seen["a_softmax"] == pytest.approx(expected, rel=1e-5)


def test_classes_with_few_images_get_batches_of_what_they_have():
    people = arenas.load_numbers("train", seed=0, **DATA | {"per_identity": 3})
    seen = []

    def watch(batch, generator):
        seen.append(len(batch))
        return batch

    arenas.fit_recipe(SMALL, "triplet_batch_hard", {"margin": 0.3}, people.images, people.labels, seed=0, augment=watch)
    # 120 images, 40 a step: 13 classes with three images each
    assert seen == [39] * 3


def test_contrastive_is_the_mean_of_the_two_kinds():
    x = torch.nn.functional.normalize(
        torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    )
    y = torch.tensor([0, 0, 1, 1, 1, 2])
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for i in range(6):
        for j in range(i + 1, 6):
            distance = math.dist(x[i].tolist(), x[j].tolist())
            same = bool(y[i] == y[j])
            kinds[same].append(distance**2 / 2 if same else max(0.0, 1.2 - distance) ** 2 / 2)
    expected = (sum(kinds[True]) / len(kinds[True]) + sum(kinds[False]) / len(kinds[False])) / 2
    assert float(arenas.contrastive(x, y, 1.2)) == pytest.approx(expected, rel=1e-12)


def test_semi_hard_is_the_mean_over_pairs_with_their_nearest_negative_behind_the_positive():
    x = torch.nn.functional.normalize(
        torch.randn(8, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    )
    y = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    squared = [[math.dist(a, b) ** 2 for b in x.tolist()] for a in x.tolist()]
    values = []
    for a in range(8):
        for p in range(8):
            if a == p or y[a] != y[p]:
                continue
            behind = [squared[a][n] for n in range(8) if y[n] != y[a] and 0 < squared[a][n] - squared[a][p] < 0.5]
            values += [0.5 + squared[a][p] - min(behind)] if behind else []
    assert float(arenas.semi_hard(x, y, 0.5)) == pytest.approx(sum(values) / len(values), rel=1e-12)
    # two classes far apart: no semi-hard negative, and still a value with a gradient
    apart = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]], requires_grad=True)
    none = arenas.semi_hard(apart, torch.tensor([0, 0, 1, 1]), 0.5)
    none.backward()
    assert float(none.detach()) == 0 and not apart.grad.any()


def test_build_loss_gives_the_papers_classes_and_names_what_is_wrong():
    head = arenas.build_loss("arcface", 8, 5, scale=24.0, margin=0.4)
    assert isinstance(head, losses.ArcFace) and head.weight.shape == (5, 8) and float(head.scale) == 24.0
    with pytest.raises(ValueError, match="loss must be one of 'softmax', "):
        arenas.build_loss("arc", 8, 5)
    with pytest.raises(ValueError, match=r"hyper-parameters of softmax must be those it has, got \{'margin': 1\}"):
        arenas.build_loss("softmax", 8, 5, margin=1)
    with pytest.raises(ValueError, match="hyper-parameters of cosface must be those it has"):
        arenas.build_loss("cosface", 8, 5, scale=3.0)


def test_metrics_are_those_of_all_pairs():
    x = torch.randn(9, 3, generator=torch.Generator().manual_seed(1))
    y = torch.arange(9) % 3
    rows = torch.nn.functional.normalize(x.double()).tolist()
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for i in range(9):
        for j in range(i + 1, 9):
            kinds[bool(y[i] == y[j])].append(sum(p * q for p, q in zip(rows[i], rows[j], strict=True)))
    wins = sum(g > i for g in kinds[True] for i in kinds[False])
    found = arenas.unseen_metrics(x, y)
    assert found["AUC"] == pytest.approx(wins / (9 * 27))
    # 27 impostor pairs bear no FAR with ten false accepts
    assert list(found) == ["EER", "AUC"]
    many = torch.randn(60, 3, generator=torch.Generator().manual_seed(1))
    scores = many @ many.T / (many.norm(dim=1)[:, None] * many.norm(dim=1))
    kind = torch.arange(60) % 6
    upper = torch.ones(60, 60).triu(1).bool()
    genuine, impostor = (scores[upper & kind_of] for kind_of in (kind[:, None] == kind, kind[:, None] != kind))
    # at FAR 1e-2 floor(15) of the 1,500 impostor pairs may be accepted: the threshold is the 16th largest
    threshold = impostor.sort(descending=True).values[15]
    expected = float((genuine > threshold).double().mean())
    assert arenas.unseen_metrics(many, kind)["TAR@1e-2"] == pytest.approx(expected, abs=1e-6)


def test_lfw_run_judges_the_fold():
    generator = torch.Generator().manual_seed(0)
    base = torch.randint(0, 256, (50, 1, 4, 4), generator=generator).repeat_interleave(4, 2).repeat_interleave(4, 3)
    noise = partial(torch.randint, -30, 30, (50, 1, 16, 16), generator=generator)
    images = torch.cat([(base + noise()).clamp(0, 255).to(torch.uint8) for _ in range(4)])
    labels = torch.arange(50).repeat(4)
    train, test = labels < 35, labels >= 35
    # the 15 people follow each other four times: k and k + 15 are one person, k and k + 1 are two
    first = torch.arange(15)
    pairs = torch.cat([torch.stack([first, first + 15], 1), torch.stack([first, first + 1], 1)])
    same = torch.arange(30) < 15
    fold = FacesFold(
        "made", images[train], labels[train], images[test], labels[test] - 35, pairs, same, torch.arange(60), "0"
    )
    recipe = replace(SMALL, config=replace(SMALL.config, epochs=20, shift=1))
    found = arenas.lfw_run("cosface", fold=0, seed=0, hyper={"scale": 16.0, "margin": 0.1}, recipe=recipe, faces=fold)
    assert found["AUC"] > 0.9 and found["accuracy"] > 0.8 and found["AUC of the pairs"] > 0.9


def search(score):
    tried = []

    def noted(hyper):
        tried.append(tuple(hyper.values()))
        return score(*hyper.values())

    knobs = tuning.Knob("a", 8.0, 2.0), tuning.Knob("b", 3, step=1, low=1)
    return *tuning.search(knobs, noted), tried


def test_the_search_tries_five_and_goes_further_at_an_end():
    best, ends, tried = search(lambda a, b: -abs(a - 8) - abs(b - 3))
    assert best == {"a": 8.0, "b": 3} and not ends and len(set(tried)) == 5
    best, ends, tried = search(lambda a, b: -abs(a - 32) - abs(b - 3))
    assert best == {"a": 32.0, "b": 3} and not ends and len(set(tried)) == 7
    best, ends, tried = search(lambda a, b: a - abs(b - 3))
    assert best == {"a": 1020.0, "b": 3} and ends == {"a"} and len(set(tried)) == 11
    best, ends, tried = search(lambda a, b: -abs(math.log2(a / 15)) - abs(b - 3))
    assert best == {"a": 16.0, "b": 3} and not ends

    # the best a depends on b: one pass ends at (32, 6), the next one goes on to (64, 6)
    def tilted(a, b):
        x, y = math.log2(a / 8) - 4, b - 7
        return -x * x - y * y + 1.2 * x * y

    best, ends, tried = search(tilted)
    assert best == {"a": 64.0, "b": 6} and not ends
    # a ridge along which no single knob gains: only a start on it finds the end
    knobs = tuning.Knob("a", 8.0, 2.0), tuning.Knob("b", 3, step=1, low=1)

    def ridge(hyper):
        return -abs(math.log2(hyper["a"] / 8) - hyper["b"] + 3) - 0.1 * abs(hyper["b"] - 6)

    assert tuning.search(knobs, ridge)[0] == {"a": 8.0, "b": 3}
    assert tuning.search(knobs, ridge, {"a": 3, "b": 3})[0] == {"a": 64.0, "b": 6}
    # 2 is the least that b may be: an end of the hyper-parameter, not of the grid
    best, ends, tried = search(lambda a, b: -abs(a - 8) - b)
    assert best == {"a": 8.0, "b": 2} and not ends and all(isinstance(b, int) for _, b in tried)


def test_tuning_resumes_and_writes_the_table_that_is_read(tmp_path, monkeypatch):
    calls = []

    def made(loss, hyper, seed):
        calls.append((loss, tuple(sorted(hyper.items())), seed))
        rate = (hyper["lr"] / 0.2 - 1) ** 2 / 100
        tar = 1 - (hyper["margin"] - 0.48) ** 2 - (hyper["scale"] / 24 - 1) ** 2 - rate + seed / 1e6
        return {"TAR@1e-3": tar, "EER": 0.1}

    monkeypatch.setattr(tuning, "arena_run", lambda arena: (made, {"arena": arena}))
    monkeypatch.setattr(arenas, "TUNED", tmp_path / "tuned.yaml")
    monkeypatch.setattr(tuning, "SECOND_START", {})
    arguments = ["numbers", "--losses", "arcface", "--runs", str(tmp_path / "runs.jsonl"), "--table", str(arenas.TUNED)]
    assert tuning.main(arguments) == 0
    first = arenas.TUNED.read_bytes()
    assert len(calls) == 7 * 2 == len(set(calls))
    lines = (tmp_path / "runs.jsonl").read_text().splitlines()
    (tmp_path / "runs.jsonl").write_text("\n".join(lines[:7]) + "\n")
    tuning.main(arguments)
    assert len(calls) == 21 and arenas.TUNED.read_bytes() == first
    entry = yaml.safe_load(first)["numbers"]["arcface"]
    assert entry["best"]["scale"] == 24.0 and entry["best"]["margin"] == 0.5 and len(entry["candidates"]) == 7
    arenas._table.cache_clear()
    assert arenas.tuned("numbers", "arcface") == entry["best"]
    with pytest.raises(ValueError, match="loss tuned on numbers must be one of 'arcface', got 'softmax'"):
        arenas.tuned("numbers", "softmax")
    arenas._table.cache_clear()
    assert all(json.loads(line)["recipe"] == {"arena": "numbers"} for line in lines)


def test_a_second_start_finds_what_the_walk_from_the_middle_does_not():
    def two_hills(loss, hyper, seed):
        hill = (hyper["scale"] / 24 - 1) ** 2 + (hyper["lr"] / 0.2 - 1) ** 2
        other = (hyper["scale"] / 7.11 - 1) ** 2 + (hyper["lr"] / 3.2 - 1) ** 2
        return {"TAR@1e-3": max(0.9 - hill, 0.95 - 10 * other) - (hyper["margin"] - 0.2) ** 2}

    assert tuning.tune("cosface", two_hills, [0])["best"] == {"scale": 24.0, "lr": 0.2, "margin": 0.2}
    entry = tuning.tune("cosface", two_hills, [0], ({}, *tuning.SECOND_START["cosface"]))
    assert entry["best"] == {"scale": 7.11, "lr": 3.2, "margin": 0.2} and not entry["at_an_end"]
    assert {"scale": 24.0, "lr": 0.2, "margin": 0.2} in [one["hyper"] for one in entry["candidates"]]


def test_a_run_that_diverges_is_the_worst_candidate_and_other_errors_stop(tmp_path):
    def bad(loss, hyper, seed):
        raise ValueError("the loss became nan before step 50; lower the learning rate")

    runs = tuning.Runs(tmp_path / "runs.jsonl", bad, {})
    assert runs("softmax", {"lr": 9.0}, 0) == {"TAR@1e-3": 0.0}

    def worse(loss, hyper, seed):
        raise ValueError("another")

    with pytest.raises(ValueError, match="another"):
        tuning.Runs(tmp_path / "other.jsonl", worse, {})("softmax", {}, 0)


def test_pilots_vary_network_and_training_and_tell_what_they_cost(tmp_path, monkeypatch, capsys):
    variants = ({}, {"epochs": 2, "hidden": 12}, {"lr": 0.02})
    monkeypatch.setattr(arenas, "NUMBERS", SMALL)
    monkeypatch.setattr(pilots, "VARIANTS", {"numbers": variants})
    monkeypatch.setattr(pilots, "data_of", lambda arena, changes: (DATA, dict(changes)))
    recipe = pilots.vary(SMALL, variants[1])
    assert recipe.config.epochs == 2 and recipe.network.keywords["hidden"] == 12 and SMALL.config.epochs == 1
    arguments = [
        "numbers",
        "--runs",
        str(tmp_path / "runs.jsonl"),
        "--table",
        str(tmp_path / "pilots.md"),
        "--only",
        "0",
        "1",
    ]
    assert pilots.main(arguments) == 0
    lines = (tmp_path / "pilots.md").read_text().splitlines()
    assert lines[2].startswith("| recipe | loss | EER | AUC |") and lines[2].endswith("| CPU s |")
    made = json.loads((tmp_path / "runs.jsonl").read_text().splitlines()[1])["metrics"]
    assert lines[5].split(" | ")[2:4] == [f"{100 * made[name]:.2f}" for name in ("EER", "AUC")]
    assert [line.split(" | ")[:2] for line in lines[4:]] == [
        ["| as it is", "softmax"], ["| as it is", "arcface"],
        ["| epochs = 2, hidden = 12", "softmax"], ["| epochs = 2, hidden = 12", "arcface"],
    ]  # fmt: skip
    assert len((tmp_path / "runs.jsonl").read_text().splitlines()) == 4

    def never(*args, **options):
        raise AssertionError("a run that has its line was made again")

    monkeypatch.setattr(pilots, "timed", never)
    pilots.main(arguments)
    assert (tmp_path / "pilots.md").read_text().splitlines() == lines and "softmax TAR@1e-3" in capsys.readouterr().out


def test_a_report_is_the_metrics_and_what_brute_force_finds():
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(16).repeat_interleave(15)
    centres = torch.randn(16, 6, generator=generator, dtype=torch.float64)
    embeddings = centres[labels] + 0.8 * torch.randn(240, 6, generator=generator, dtype=torch.float64)
    found = arenas.unseen_report(embeddings, labels)
    assert arenas.unseen_metrics(embeddings, labels).items() <= found.items()

    unit = torch.nn.functional.normalize(embeddings)
    cosine = unit @ unit.T
    first = [int((labels == person).nonzero()[0]) for person in range(16)]
    probes = [i for i in range(240) if i not in first]
    hits = [max(first, key=lambda g: float(cosine[i, g])) for i in probes]
    assert found["rank-1"] == sum(bool(labels[g] == labels[i]) for i, g in zip(hits, probes, strict=True)) / len(probes)

    enrolled = first[::2]
    best = {i: max(enrolled, key=lambda g: float(cosine[i, g])) for i in range(240) if i not in enrolled}
    strangers = sorted((float(cosine[i, g]) for i, g in best.items() if labels[i] % 2), reverse=True)
    threshold = strangers[math.floor(0.1 * len(strangers))]
    mated = [i for i in best if labels[i] % 2 == 0]
    right = [labels[best[i]] == labels[i] and float(cosine[i, best[i]]) > threshold for i in mated]
    # 120 strangers: too few for a FAR of 1e-2
    assert "DIR@1e-2" not in found and found["DIR@1e-1"] == pytest.approx(sum(map(bool, right)) / len(mated))

    upper = torch.ones(240, 240).triu(1).bool()
    same = labels[:, None] == labels
    impostors = cosine[upper & ~same].sort(descending=True).values
    for far, rate in zip(arenas.CURVE_FARS, found["curve"], strict=True):
        allowed = math.floor(far * len(impostors) + 1e-9)
        expected = (
            1.0 if allowed >= len(impostors) else float((cosine[upper & same] > impostors[allowed]).double().mean())
        )
        assert rate == pytest.approx(expected, abs=1e-9)
    assert len(found["curve"]) == 33 and found["curve"] == sorted(found["curve"])


def test_baselines_are_reported_beside_an_untrained_network_of_the_seed():
    people, others = arenas.load_numbers_pair(0, training_data=DATA)
    sets = people.images, people.labels, others.images, others.labels
    found = arenas.baseline_reports(SMALL, *sets, seed=0)
    assert list(found) == ["pixels", "pca", "lda", "untrained"]
    assert all(report["AUC"] > 0.5 for report in found.values())
    state = torch.random.get_rng_state()
    again, other = (arenas.baseline_reports(SMALL, *sets, seed=seed) for seed in (0, 1))
    assert again == found
    assert other["untrained"] != found["untrained"] and other["lda"] == found["lda"]
    assert torch.equal(state, torch.random.get_rng_state())
    own = run("softmax", MIDDLE["softmax"], measure=arenas.unseen_report)
    assert own["rank-1"] > 0 and run("softmax", MIDDLE["softmax"]).items() <= own.items()


def test_a_run_that_reads_the_tuned_values_is_known_by_them(tmp_path, monkeypatch):
    def key():
        arenas._table.cache_clear()
        return Fingerprint(Sources()).of(lambda: arenas.tuned("numbers", "arcface")["scale"], "run")

    before = key()
    table = yaml.safe_load(Path(repository_root(), arenas.TUNED).read_text(encoding="utf-8"))
    table["numbers"]["arcface"]["best"]["scale"] += 1.0
    monkeypatch.setattr(arenas, "TUNED", tmp_path / "tuned.yaml")
    (tmp_path / "tuned.yaml").write_text(yaml.safe_dump(table), encoding="utf-8")
    assert before != key() == key()
    arenas._table.cache_clear()


def test_the_tuned_values_are_those_of_the_repository_that_is_named(tmp_path, monkeypatch):
    assert set(arenas.tuned("numbers", "arcface")) >= {"scale", "margin"}
    monkeypatch.setenv("REPROLIB_ROOT", str(tmp_path))
    with pytest.raises(ValueError, match="of the repository, which is not at"):
        arenas.tuned("numbers", "arcface")
    (tmp_path / "reference").mkdir()
    (tmp_path / arenas.TUNED).write_text("numbers: {arcface: {best: {scale: 3.0}}}")
    assert arenas.tuned("numbers", "arcface") == {"scale": 3.0}
