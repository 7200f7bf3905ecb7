"""The README's tables from files, and the command line that writes them."""

from __future__ import annotations

import json

import pytest

from benchmarks import table, tar
from benchmarks.__main__ import main


def spread(median):
    return {"median": median, "min": median / 2, "max": 2 * median}


TIMED = {
    "features": "trained",
    "seconds": {
        name: spread(value)
        for name, value in {
            "ours": 1.0,
            "raw softmax": 1.25,
            "insightface formulation": 2.0,
            "floor of three products": 0.9,
        }.items()
    },
    "ours_to": {"raw softmax": spread(0.8), "insightface formulation": spread(0.5)},
    "best_peer": "raw softmax",
    "best_raw_peer": "raw softmax",
    "left_out": {"torch, chunked": "old"},
}
DOCUMENTS = {
    "heads": {
        "batch": 512,
        "error": {"angles": [20, 35], "errors": {"ours": {"loss": [1e-6, 2e-6], "features": [3e-5, None]}}},
        "sizes": [
            {
                "classes": 85_742,
                "timed": [TIMED],
                "peak": {"ours": {"above_mib": 41.2}, "raw softmax": {"above_mib": 412.0}},
            },
            {"classes": 1_000_000, "limit_gib": 8.0, "timed": [], "peak": {"ours": {"peak_gib": 4.71}}},
        ],
    },
    "miners": {
        "rounds": 1,
        "results": [
            {
                "batch": batch,
                "kind": "batch-hard",
                "ours": {"seconds": spread(0.06), "above_mib": 30.0},
                "pytorch-metric-learning": {"failed": "needs more than 2 GiB"},
                "time_to_peer": None,
                "memory_to_peer": None,
            }
            for batch in (450, 1800)
        ],
    },
    "tar": {
        "far": [0.1] * 6,
        "impostor_scores": 15_639_000,
        "seconds": {"ours": spread(0.025), "np.sort": spread(0.5), "scikit-learn": spread(6.0)},
        "ours_to": {"np.sort": spread(0.05), "scikit-learn": spread(0.0041)},
    },
    "search": {
        "probes": 1000,
        "distractors": 1_000_000,
        "missing": "the package faiss is not installed",
        "mib_above": {"ours": None},
        "seconds": {"ours": spread(6.0)},
        "ours_to": {},
    },
    "popular": {
        "ratio_at_least": 46,
        "ours": {"seconds_to_98": 12.97},
        "popular": {"seconds_to_98": None, "seconds_spent": 600.1},
    },
    "partial_fc": {
        "difference": {"accuracy": {"value": 0.0167, "low": -0.0026, "high": 0.0359}},
        "time_ratio": 0.193,
        "memory_ratio": 0.23,
    },
}  # fmt: skip
ROWS = [
    "| ArcFace, a step of 512, 85,742 classes, trained features | 1 s, 41 MiB | raw softmax: 1.25 s, 412 MiB "
    "| 0.8 (0.4 to 1.6); memory 0.1 |",
    "| ArcFace, a step of 512, 1,000,000 classes, within 8 GiB | 4.7 GiB at its peak | none runs | |",
    "| Partial FC (rate 0.1) against the full head: LFW accuracy; time, memory | +1.7 points [-0.3, +3.6] | "
    "| 0.19, 0.23 |",
    "| 2-D MNIST to 98 % against the popular center-loss loop | 13 s | not reached in 600 s | at most 0.022 |",
    "| batch-hard triplets of a batch of 1,800 | 0.06 s, 30 MiB | pytorch-metric-learning: needs more than 2 GiB "
    "| -; memory - |",
    "| TAR at 6 FARs, 15.6 million impostor scores | 0.025 s | np.sort: 0.5 s | 0.05 (0.025 to 0.1) |",
    "| TAR at 6 FARs, 15.6 million impostor scores | 0.025 s | scikit-learn: 6 s | 0.0041 (0.0021 to 0.0082) |",
    "| rank-1 of 1,000 probes against 1,000,000 distractors | 6 s | the package faiss is not installed | |",
]


@pytest.fixture
def folder(tmp_path):
    for name, document in DOCUMENTS.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    return tmp_path


def test_rows_in_the_order_of_the_benches(folder):
    assert table.rows(folder) == ROWS


def test_all_heads_and_errors_have_their_tables(folder):
    lines = table.markdown(folder).splitlines()
    assert "| 85,742, trained | 1 s | 1.25 s | 2 s | - | 0.9 s |" in lines
    assert "| relative error at | 20° | 35° |" in lines and "| ours | 3e-05 | not finite |" in lines


def test_files_of_an_older_form_are_left_out(folder, tmp_path):
    (folder / "tar.json").write_text(json.dumps({"ratio": 3}))
    assert "tar" not in table.documents(folder) and len(table.rows(folder)) == len(ROWS) - 2
    with pytest.raises(ValueError, match="none of the present form"):
        table.markdown(tmp_path / "nosuch")


def test_the_table_in_the_readme_is_replaced_and_again(folder):
    made = table.markdown(folder)
    readme = f"# A\n\n| kept |\n\n{table.HEADING}\n\nWords.\n\n| old |\n|---|\n| row |\n\nMore words.\n"
    once = table.replaced(readme, made)
    assert made in once and "| old |" not in once and once.startswith("# A\n\n| kept |")
    assert once.endswith(f"{table.END}\n\nMore words.\n")
    assert table.replaced(table.replaced(once, "| other |"), made) == once
    with pytest.raises(ValueError, match="must have one heading"):
        table.replaced("nothing", made)
    with pytest.raises(ValueError, match="there must be a table"):
        table.replaced(f"{table.HEADING}\n", made)


def test_the_command_line_writes_what_it_prints(tmp_path, capsys):
    words = ["tar", "--genuine", "100", "--impostor", "2000", "--rounds", "1"]
    assert main([*words, "--output", str(tmp_path / "new")]) == 0
    written = json.loads((tmp_path / "new" / "tar.json").read_text())
    assert written == json.loads(capsys.readouterr().out) and written["bench"] == "tar"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["tar.json"]
    readme = tmp_path / "README.md"
    readme.write_text(f"{table.HEADING}\n\n| old |\n")
    assert main(["table", str(tmp_path / "new"), "--readme", str(readme)]) == 0
    assert capsys.readouterr().out.strip() in readme.read_text()


def test_wrong_words_are_one_line(capsys, monkeypatch):
    for words in (["heads", "--batch", "0"], ["nosuch"], ["heads", "--only", "nosuch"]):
        with pytest.raises(SystemExit) as stopped:
            main(words)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and error.count("\n") == 1 and error.startswith("benchmarks")
    monkeypatch.setattr(tar, "by_sorting", lambda *_: [0.5])
    assert main(["tar", "--genuine", "10", "--impostor", "200", "--rounds", "1"]) == 1
    assert "differs from np.sort's" in capsys.readouterr().err
