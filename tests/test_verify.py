"""`python -m reprolib verify`: embeddings with known answers, the format, and one clear line for a bad file."""

from __future__ import annotations

import io
import json
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reprolib import __main__ as command_line
from reprolib import verify
from reprolib.evaluation import parse_pairs

PEOPLE, IMAGES = 12, 3


def pair_text(folds=3, each=4, seed=0):
    """Folds of `each` genuine and `each` impostor pairs; the people of a fold are its own."""
    generator = np.random.default_rng(seed)
    lines = [f"{folds}\t{each}"]
    for people in np.split(np.arange(PEOPLE), folds):
        for n in range(each):
            i, j = generator.choice(IMAGES, 2, replace=False) + 1
            lines.append(f"P{people[n % len(people)]}\t{i}\t{j}")
        for n in range(each):
            a, b = people[n % len(people)], people[(n + 1) % len(people)]
            lines.append(f"P{a}\t{generator.integers(1, IMAGES + 1)}\tP{b}\t{generator.integers(1, IMAGES + 1)}")
    return "\n".join(lines) + "\n"


def names():
    return np.array([f"P{p}_{i:04d}" for p in range(PEOPLE) for i in range(1, IMAGES + 1)])


def separable():
    """Every image of person p is the unit vector p."""
    return np.repeat(np.eye(PEOPLE), IMAGES, axis=0)


def call(capsys, *arguments):
    try:
        status = command_line.main(["verify", *map(str, arguments)])
    except SystemExit as stop:
        status = stop.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def files(tmp_path):
    np.savez(tmp_path / "e.npz", embeddings=separable(), names=names())
    (tmp_path / "pairs.txt").write_text(pair_text(), encoding="utf-8")
    return tmp_path


def test_separable_embeddings(files, capsys):
    out = files / "new" / "folder"
    status, text, err = call(capsys, files / "e.npz", files / "pairs.txt", "--output", out, "--far", "0.5", "0.1")
    assert (status, err) == (0, "")
    assert text.count("100.00 [") == 6  # four accuracies, two TARs
    assert "24 pairs (12 genuine, 12 impostor) in 3 folds, 12 dimensions" in text
    assert {path.name for path in out.iterdir()} == {"verification.json", "roc.png"}
    assert (out / "roc.png").read_bytes().startswith(b"\x89PNG\r\n")
    document = json.loads((out / "verification.json").read_text(encoding="utf-8"))
    assert list(document["accuracy"]) == ["exact", "sphereface", "facenet", "sphereface_centred"]
    assert all(accuracy["value"] == 1 for accuracy in document["accuracy"].values())
    assert [row["far"] for row in document["tar_at_far"]] == [0.1, 0.5]
    for measure in (*document["tar_at_far"], document["equal_error_rate"], document["auc"]):
        assert measure["low"] <= measure["value"] <= measure["high"] and measure["method"]
    assert document["equal_error_rate"]["value"] == 0 and document["auc"]["value"] == 1
    assert str(files) not in json.dumps(document)


def test_random_embeddings_are_a_coin():
    # ten seeds: the 95 % intervals hold 0.5 in at least seven of ten with probability 0.999
    covered = 0
    for seed in range(10):
        generator = np.random.default_rng(seed)
        pairs = parse_pairs("\n".join(f"a{n} b{n} {n % 2}" for n in range(400)))
        everyone = [*pairs.first, *pairs.second]
        found = verify.verify(generator.normal(size=(800, 16)), everyone, pairs)
        covered += found.auc.low <= 0.5 <= found.auc.high
        assert abs(found.accuracies["exact"].accuracy - 0.5) < 0.1 and abs(found.equal_error_rate - 0.5) < 0.1
    assert covered >= 7


def test_by_pencil():
    # cosines: fold 0: 0.8 genuine, 0.6 impostor; fold 1: 0 genuine, -1 impostor
    rows = np.array([[2.0, 0], [0.8, 0.6], [0.6, 0.8], [0, 3], [-1, 0]])
    pairs = parse_pairs("a b 1\na c 0\na d 1\na e 0\n", plain_folds=2)
    found = verify.verify(rows, list("abcde"), pairs, [1.0, 0.5])
    assert found.scores == pytest.approx([0.8, 0.6, 0, -1])
    # fold 0 with t = -0.5 (fold 1's middle) accepts both, fold 1 with t = 0.7 rejects both
    assert found.accuracies["exact"].fold_accuracies == (0.5, 0.5)
    assert found.accuracies["exact"].fold_thresholds == pytest.approx((-0.5, 0.7))
    # far 0.5 allows one of two impostors: t = -1; wins 0.8 > 0.6, 0.8 > -1, 0 > -1 of four
    assert found.fars == (0.5, 1.0) and found.tars == (1.0, 1.0)
    assert found.auc == 0.75


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1))
def test_lengths_rotation_and_order_do_not_matter(seed):
    generator = np.random.default_rng(seed)
    rows, listed = separable() + 2 * generator.normal(size=(36, 12)), names()
    pairs = parse_pairs(pair_text(seed=seed))
    base = verify.verify(rows, listed, pairs)
    rotation = np.linalg.qr(generator.normal(size=(12, 12)))[0]
    order = generator.permutation(36)
    scale = np.exp(generator.normal(size=(36, 1)))
    moved = verify.verify(scale[order] * (rows @ rotation)[order], listed[order], pairs)
    assert np.allclose(moved.scores, base.scores, atol=1e-12)
    assert moved.auc == base.auc and moved.tars == base.tars
    assert moved.accuracies["exact"].fold_accuracies == base.accuracies["exact"].fold_accuracies


def test_how_images_are_found():
    listed = ["x/Ann/Ann_0001.jpg", "Ann_0002", "y\\Bob_0001.PNG", "c/1.jpg", "d/1.jpg", "J._Li_0001"]
    wanted = ["Ann_0001", "Ann_0002", "Bob_0001", "d/1.jpg", "J._Li_0001"]
    assert verify.rows_of(listed, wanted).tolist() == [0, 1, 2, 4, 5]
    with pytest.raises(
        ValueError, match=r"'1' in the pairs may be each of 2 embeddings, as of 'c/1.jpg' and 'd/1.jpg'"
    ):
        verify.rows_of(listed, ["1"])
    with pytest.raises(ValueError, match="2 of the 3 images in the pairs have no embedding, the first is 'Eve_0001'"):
        verify.rows_of(listed, ["Ann_0002", "Zoe_0001", "Eve_0001"])


@pytest.mark.parametrize("kind", ["float16", "float32", ">f8"])
def test_kinds_of_arrays(files, capsys, kind):
    paths = np.array([f"p/{name}.jpg".encode() for name in names()])
    np.savez_compressed(files / "e.npz", embeddings=separable().astype(kind), paths=paths)
    assert call(capsys, files / "e.npz", files / "pairs.txt", "--output", files / "out")[0] == 0


def test_an_embedding_at_the_mean_leaves_centring_undefined():
    pairs = parse_pairs("a b 0\na c 1\na b 0\na c 1\n", plain_folds=2)
    rows = np.array([[1.0, 0], [3.0, 0], [2.0, 1.0]])
    # training folds hold a, b, a, c: their mean is (7/4, 1/4), no embedding; with a = mean it is undefined
    assert verify.verify(rows, list("abc"), pairs).accuracies["sphereface_centred"] is not None
    rows = np.array([[1.0, 0], [2.0, 0], [0.0, 0]]) + np.array([0, 1.0])
    found = verify.verify(rows, list("abc"), pairs)
    assert found.accuracies["sphereface_centred"] is None and "undefined" in verify.summary(found)
    assert verify.as_document(found)["accuracy"]["sphereface_centred"] is None


def save(**arrays):
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def with_value(value):
    rows = separable()
    rows[4] = value
    return save(embeddings=rows, names=names())


def archive_of(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as bundle:
        for name, raw in members.items():
            bundle.writestr(f"{name}.npy", raw)
    return stream.getvalue()


def npy(array):
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def flipped(raw):
    middle = len(raw) // 2
    return raw[:middle] + bytes([raw[middle] ^ 255]) + raw[middle + 1 :]


GOOD = save(embeddings=separable(), names=names())
HUGE = npy(np.zeros((2, 2))).replace(b"(2, 2)", b"(2000000000000, 9)").replace(b" " * 12 + b"\n", b"\n")


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (None, "cannot be read"),
        (b"", "not an .npz file"),
        (b"hello", "not an .npz file"),
        (npy(separable()), "not an .npz file"),
        (GOOD[:-200], "not an .npz file, or it is truncated"),
        (flipped(GOOD), "embeddings in"),
        (archive_of(embeddings=b"hello", names=npy(names())), "embeddings in"),
        (archive_of(embeddings=npy(separable())[:-8], names=npy(names())), "embeddings in"),
        (archive_of(embeddings=HUGE, names=npy(names())), "embeddings in"),
        (save(embeddings=separable()), "must hold the arrays embeddings and names (or paths), but holds embeddings"),
        (save(features=separable(), names=names()), "but holds features, names"),
        (save(embeddings=separable()[0], names=names()), "floating point of shape (N, d), got float64 of shape (12,)"),
        (save(embeddings=separable().astype(int), names=names()), "floating point of shape (N, d), got int64"),
        (save(embeddings=separable()[:, :0], names=names()), "of shape (36, 0)"),
        (save(embeddings=separable(), names=names()[:-1]), "must be 36 strings"),
        (save(embeddings=separable(), names=np.arange(36)), "must be 36 strings"),
        (save(embeddings=separable(), names=names().astype(object)), "names in"),
        (save(embeddings=separable(), names=np.array([b"\xff"] * 36)), "cannot be read ('utf-8' codec"),
        (
            save(embeddings=np.tile(separable(), (2, 1)), names=np.tile(names(), 2)),
            "in the pairs may be each of 2 embeddings",
        ),
        (with_value(np.nan), "'P1_0002'"),
        (with_value(np.inf), "NaN or infinite"),
        (with_value(0.0), "only zeros"),
        (save(embeddings=separable()[3:], names=names()[3:]), "have no embedding, the first is 'P0_000"),
    ],
)
def test_a_bad_npz_is_one_line_and_nothing_is_written(files, capsys, raw, words):
    path = files / "bad.npz"
    if raw is not None:
        path.write_bytes(raw)
    before = sorted(files.rglob("*"))
    status, out, err = call(capsys, path, files / "pairs.txt", "--output", files / "out")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("reprolib verify: ") and words in err
    assert sorted(files.rglob("*")) == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("what\n", "line 1 must be"),
        (pair_text().replace("P0\t", "P0\tx", 1), "line"),
        (pair_text()[:-20], "pairs by its first line"),
        ("4\n" + pair_text(1).split("\n", 1)[1], "single fold"),
        ("P0_0001 P0_0002 1\nP0_0001 P0_0003 1\n" * 5, "genuine and impostor"),
    ],
)
def test_bad_pairs_are_one_line_and_nothing_is_written(files, capsys, text, words):
    path = files / "bad.txt"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    status, out, err = call(capsys, files / "e.npz", path, "--output", files / "out")
    assert (status, out, err.count("\n")) == (2, "", 1) and words in err
    assert not (files / "out").exists()


@pytest.mark.parametrize("far", ["0", "-1", "1.5", "nan", "x"])
def test_a_bad_far(files, capsys, far):
    out = files / "out"
    status, text, err = call(capsys, files / "e.npz", files / "pairs.txt", "--output", out, f"--far={far}")
    assert (status, text, err.count("\n")) == (2, "", 1) and "far" in err and not out.exists()


def test_an_output_that_is_a_file(files, capsys):
    for output in (files / "e.npz", files / "e.npz" / "below"):
        status, _, err = call(capsys, files / "e.npz", files / "pairs.txt", "--output", output)
        assert status == 2 and "e.npz is a file" in err
    assert (files / "e.npz").read_bytes() == GOOD


def test_plain_pairs_and_their_folds(files, capsys):
    path = files / "plain.txt"
    path.write_text("".join(f"P{n}_0001 P{n}_0002 1\nP{n}_0001 P{n + 1}_0001 0\n" for n in range(6)), encoding="utf-8")
    assert "10 equal folds" in call(capsys, files / "e.npz", path, "--output", files / "out")[2]
    status, out, _ = call(capsys, files / "e.npz", path, "--output", files / "out", "--folds", "3")
    assert status == 0 and "in 3 folds" in out


def test_the_help_states_the_format(capsys):
    status, out, _ = call(capsys, "--help")
    assert status == 0 and "embeddings" in out and "Name_%04d" in out and "names" in out


def plain(lines):
    return "".join(f"{a} {b} {same}\n" for a, b, same in lines)


def noisy(people=40, seed=0):
    """Two images a person, hard to tell apart, with the genuine and impostor pairs of one ring of people."""
    generator = np.random.default_rng(seed)
    listed = [f"Q{i:03d}_{k:04d}" for i in range(people) for k in (1, 2)]
    rows = np.repeat(generator.normal(size=(people, 16)), 2, axis=0) + 1.3 * generator.normal(size=(2 * people, 16))
    genuine = [(f"Q{i:03d}_0001", f"Q{i:03d}_0002", 1) for i in range(people)]
    impostor = [(f"Q{i:03d}_0001", f"Q{(i + 1) % people:03d}_0002", 0) for i in range(people)]
    return rows, listed, genuine, impostor


def report(rows, listed, lines, folds=10):
    found = verify.verify(rows, listed, parse_pairs(plain(lines), plain_folds=folds))
    return found.notes, verify.summary(found), found


def test_a_list_sorted_by_label_is_told_so():
    rows, listed, genuine, impostor = noisy()
    notes, text, found = report(rows, listed, genuine + impostor)
    assert [note.split(";")[0] for note in notes] == [
        "folds that hold genuine pairs only: 1, 2, 3, 4, 5",
        "folds that hold impostor pairs only: 6, 7, 8, 9, 10",
    ]
    assert all("store the pairs fold by fold" in note and f"note: {note}." in text for note in notes)
    # the star of the accuracy is explained by the folds, not by a lack of errors
    stars = [line for line in text.splitlines() if line.startswith("*")]
    assert not found.accuracies["exact"].accuracy.supported and "* this accuracy has folds of one kind" in "".join(
        stars
    )
    assert verify.as_document(found)["notes"] == list(notes)
    # one fold of one kind among mixed ones
    mixed = [line for pair in zip(genuine, impostor, strict=True) for line in pair]
    notes, _, _ = report(rows, listed, mixed[:40] + genuine[:10], folds=5)
    assert notes[0].startswith("folds that hold genuine pairs only: 5;")


def test_a_sound_list_has_no_note():
    rows, listed, genuine, impostor = noisy()
    notes, text, _ = report(rows, listed, [line for pair in zip(genuine, impostor, strict=True) for line in pair])
    assert notes == () and "note:" not in text and "one kind of pair" not in text


def test_pairs_that_are_listed_again_are_told():
    rows, listed, genuine, impostor = noisy()
    notes, _, _ = report(rows, listed, (genuine[:4] + impostor[:4]) * 10)
    assert len(notes) == 1 and notes[0].startswith("pairs listed more than once: 8 (80 lines, 8 different pairs)")
    # the other order, and another name of the same image, are the same pair
    mixed = [line for pair in zip(genuine, impostor, strict=True) for line in pair][:20]
    a, b, same = mixed[0]
    for again in ((b, a, same), (f"x/{a}.jpg", b, same)):
        notes, _, _ = report(rows, [f"x/{name}.jpg" for name in listed], [*mixed[:-1], again], folds=2)
        assert len(notes) == 1 and notes[0].startswith("pairs listed more than once: 1 (20 lines, 19 different")


def test_a_pair_listed_as_both_kinds_is_told():
    rows, listed, genuine, _ = noisy()
    both = [line for a, b, _ in genuine for line in ((a, b, 1), (b, a, 0))]
    notes, _, _ = report(rows, listed, both)
    assert any(
        note == "pairs listed as genuine and as impostor: 40, the first is 'Q000_0001' with 'Q000_0002'"
        for note in notes
    )


def test_an_image_paired_with_itself_under_two_names():
    rows, listed, genuine, impostor = noisy()
    lines = [genuine[0], impostor[0], ("x/Q003_0001.jpg", "Q003_0001", 1), impostor[1]]
    with pytest.raises(ValueError, match=r"two images, got 'x/Q003_0001\.jpg' and 'Q003_0001'"):
        report(rows, listed, lines, folds=2)


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_row_that_no_pair_uses_may_hold_anything(files, capsys, value):
    rows = np.concatenate((separable(), np.full((2, PEOPLE), value)))
    np.savez(files / "e.npz", embeddings=rows, names=np.append(names(), ["spare", "spare"]))
    assert call(capsys, files / "e.npz", files / "pairs.txt", "--output", files / "out")[0] == 0
    used = parse_pairs(pair_text()).first[0]
    rows[names().tolist().index(used)] = value
    np.savez(files / "e.npz", embeddings=rows[:-2], names=names())
    status, _, err = call(capsys, files / "e.npz", files / "pairs.txt", "--output", files / "out2")
    assert status == 2 and f"the embedding of {used!r} holds" in err and err.count("\n") == 1


def test_composed_and_decomposed_names_are_one():
    composed, decomposed = "Jos\u00e9_0001", "Jose\u0301_0001"
    assert verify.rows_of([decomposed, "Ann_0001"], ["Ann_0001", composed]).tolist() == [1, 0]
    assert verify.rows_of([f"a/{composed}.jpg"], [decomposed]).tolist() == [0]
    with pytest.raises(ValueError, match="may be"):
        verify.rows_of([composed, decomposed], [composed])
    with pytest.raises(ValueError, match="may be each of 2 embeddings"):
        verify.rows_of(["Ann", "Ann"], ["Ann"])
