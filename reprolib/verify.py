"""`python -m reprolib verify EMBEDDINGS PAIRS`: a face verification report for embeddings from anywhere.

EMBEDDINGS is an `.npz` file (`numpy.savez`), read without unpickling, with two arrays:

- `embeddings`, floating point of shape (N, d), one row an image; lengths do not matter, cosines are compared;
- `names` or `paths`, strings of shape (N,): the name of each row's image. A pair list finds an image by exactly
  this name, else by its last path component without the ending of an image file: `lfw/Ann/Ann_0001.jpg` is also
  `Ann_0001`. Names are compared in Unicode's form NFC, so that a name composed by another system is the same name.
  Rows that no pair uses may hold anything.

PAIRS is a list in the format of LFW's `pairs.txt` or a plain list of `name_a name_b same`; see
`reprolib.evaluation.pairs`. What is computed is stated where it is defined: `verification_accuracy`, `tar_at_far`,
`equal_error_rate` and `roc_auc` in `reprolib.evaluation`.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from reprolib.data.files import write_atomic
from reprolib.evaluation import (
    Estimate,
    PairList,
    VerificationResult,
    centred_cosines,
    equal_error_rate,
    pair_cosines,
    read_pairs,
    roc_auc,
    roc_curve,
    tar_at_far,
    verification_accuracy,
)

DEFAULT_FARS = (1e-3, 1e-2, 1e-1)
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".pgm", ".ppm", ".tif", ".tiff")
ACCURACIES = {
    "exact": "accuracy, exact threshold",
    "sphereface": "accuracy, sphereface's convention",
    "facenet": "accuracy, facenet's and insightface's",
    "sphereface_centred": "accuracy, sphereface's, centred features",
}


@dataclass(frozen=True)
class Verification:
    """What `verify` measured; `accuracies` by the keys of `ACCURACIES`, None where centring is impossible.

    `notes` are sentences on what the list of pairs does to the numbers; empty for a sound list.
    """

    pairs: PairList
    dimension: int
    scores: np.ndarray
    accuracies: dict[str, VerificationResult | None]
    fars: tuple[float, ...]
    tars: tuple[Estimate, ...]
    equal_error_rate: Estimate
    auc: Estimate
    notes: tuple[str, ...]


def read_embeddings(path: str | os.PathLike[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """(embeddings (N, d) float, names (N,)) of the `.npz` file at `path`, in the format of this module.

    Raises ValueError with one sentence if the file cannot be read, lacks an array, or holds wrong shapes or dtypes.
    What the rows hold is checked by `verify`, for those that it uses.
    """
    path = Path(path)
    try:
        with path.open("rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError(f"{path} is not an .npz file, or it is truncated")
        with np.load(path, allow_pickle=False) as archive:
            key = next((key for key in ("names", "paths") if key in archive.files), None)
            if "embeddings" not in archive.files or key is None:
                held = ", ".join(archive.files) or "nothing"
                raise ValueError(f"{path} must hold the arrays embeddings and names (or paths), but holds {held}")
            embeddings, names = _member(archive, "embeddings", path), _member(archive, key, path)
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror or error})") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{path} is a damaged .npz file ({error})") from error
    if embeddings.dtype.kind != "f" or embeddings.ndim != 2 or embeddings.size == 0:
        raise ValueError(
            f"embeddings in {path} must be floating point of shape (N, d), "
            f"got {embeddings.dtype} of shape {embeddings.shape}"
        )
    if names.dtype.kind not in "US" or names.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{key} in {path} must be {len(embeddings)} strings, one for each embedding, "
            f"got {names.dtype} of shape {names.shape}"
        )
    if names.dtype.kind == "S":
        try:
            names = np.char.decode(names, "utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{key} in {path} are not UTF-8 ({error.reason})") from error
    return embeddings, tuple(names.tolist())


def _member(archive: Any, name: str, path: Path) -> np.ndarray:
    try:
        array = archive[name]
    except (ValueError, EOFError, OSError, zipfile.BadZipFile, zlib.error, MemoryError, SyntaxError) as error:
        raise ValueError(f"{name} in {path} cannot be read ({error})") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} in {path} is not an array")
    return array


def image_key(name: str) -> str:
    """Last component of a path, without the ending of an image file: 'lfw/Ann/Ann_0001.jpg' is 'Ann_0001'."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, ending = last.rpartition(".")
    return stem if stem and dot + ending.lower() in IMAGE_ENDINGS else last


def rows_of(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Row of each `wanted` image among `names`: by the whole name, else by `image_key`, both in form NFC.

    Raises ValueError for images that are missing, or whose name or key several rows share.
    """
    whole: dict[str, list[int]] = {}
    keys: dict[str, list[int]] = {}
    for row, name in enumerate(map(_composed, names)):
        whole.setdefault(name, []).append(row)
        keys.setdefault(image_key(name), []).append(row)
    found = {name: whole.get(_composed(name)) or keys.get(image_key(_composed(name)), []) for name in set(wanted)}
    missing = sorted(name for name, rows in found.items() if not rows)
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(found)} images in the pairs have no embedding, the first is {missing[0]!r}"
        )
    for name in wanted:
        if len(found[name]) > 1:
            first, second = (names[row] for row in found[name][:2])
            either = (
                f"is the name of {len(found[name])} embeddings"
                if first == second
                else f"may be {first!r} or {second!r}"
            )
            raise ValueError(f"{name!r} in the pairs {either}")
    return np.array([found[name][0] for name in wanted])


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", name)


def _check_rows(embeddings: np.ndarray, rows: np.ndarray, wanted: Sequence[str]) -> None:
    """Raise unless the embedding of each of the `wanted` images is finite and not zero."""
    for what, wrong in (
        ("NaN or infinite values", ~np.isfinite(embeddings).all(axis=1)),
        ("only zeros, which have no direction", (embeddings == 0).all(axis=1)),
    ):
        if wrong[rows].any():
            raise ValueError(f"the embedding of {wanted[int(wrong[rows].argmax())]!r} holds {what}")


def notes_on(pairs: PairList, first: np.ndarray, second: np.ndarray) -> tuple[str, ...]:
    """What a reader of the numbers must know about the list: one sentence each, from the rows of each pair.

    Folds of one kind of pair only, pairs that are listed several times (in either order, under any name of an image),
    pairs listed as genuine and as impostor. Raises ValueError for an image paired with itself under two names.
    """
    itself = np.flatnonzero(first == second)
    if len(itself):
        a, b = pairs.first[itself[0]], pairs.second[itself[0]]
        raise ValueError(f"a pair must have two images, got {a!r} and {b!r}, which have the same embedding")
    found = []
    counts = np.bincount(pairs.folds, minlength=pairs.fold_count)
    genuine = np.bincount(pairs.folds, weights=pairs.same, minlength=pairs.fold_count)
    for kind, folds in (("genuine", np.flatnonzero(genuine == counts)), ("impostor", np.flatnonzero(genuine == 0))):
        if len(folds):
            hold = f"{_numbered(folds + 1)} {'hold' if len(folds) > 1 else 'holds'} {kind} pairs only"
            found.append(f"{hold}, so that no threshold is judged on both kinds there; store the pairs fold by fold")
    low, high = np.minimum(first, second), np.maximum(first, second)
    kept, index = np.unique(np.stack((low, high)), axis=1, return_inverse=True)
    times = np.bincount(index.ravel())
    if kept.shape[1] < len(pairs):
        repeated = int((times > 1).sum())
        found.append(
            f"{repeated} {'pairs are' if repeated > 1 else 'pair is'} listed more than once ({len(pairs)} lines, "
            f"{kept.shape[1]} different pairs); the intervals and folds count each line as a pair of its own"
        )
    as_genuine = np.bincount(index.ravel(), weights=pairs.same)
    both = (as_genuine > 0) & (as_genuine < times)
    if both.any():
        line = int(np.flatnonzero(both[index.ravel()])[0])
        found.append(
            f"{int(both.sum())} {'pairs are' if both.sum() > 1 else 'pair is'} listed as genuine and as impostor, "
            f"the first is {pairs.first[line]!r} with {pairs.second[line]!r}"
        )
    return tuple(found)


def _numbered(folds: np.ndarray) -> str:
    """'fold 3', 'folds 1-5, 8'."""
    runs = np.split(folds, np.flatnonzero(np.diff(folds) > 1) + 1)
    return f"fold{'s' if len(folds) > 1 else ''} " + ", ".join(
        f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs
    )


def verify(
    embeddings: np.ndarray, names: Sequence[str], pairs: PairList, fars: Sequence[float] = DEFAULT_FARS
) -> Verification:
    """The verification report of `embeddings` (N, d), named `names`, on `pairs`; `fars` in ascending order, once.

    The three conventions of `verification_accuracy` judge the same cosines; "sphereface_centred" is that
    convention after centring on the training folds, as its released evaluation does. Raises ValueError for a
    single fold, pairs of one kind only, missing images, one name twice, NaN, infinity or a zero row, each only for
    images that a pair uses, or a FAR outside (0, 1].
    """
    if pairs.fold_count < 2:
        raise ValueError("the pairs are a single fold; the cross-validated accuracy needs at least 2")
    wanted = (*pairs.first, *pairs.second)
    rows = rows_of(names, wanted)
    _check_rows(embeddings, rows, wanted)
    sides = rows[: len(pairs)], rows[len(pairs) :]
    notes = notes_on(pairs, *sides)
    first, second = (embeddings[side] for side in sides)
    scores = pair_cosines(first, second)
    fars = tuple(sorted(set(map(float, fars))))
    genuine, impostor = scores[pairs.same], scores[~pairs.same]
    accuracies: dict[str, VerificationResult | None] = {
        convention: verification_accuracy(scores, pairs.same, pairs.folds, convention=convention)
        for convention in ("exact", "sphereface", "facenet")
    }
    try:
        centred = centred_cosines(first, second, pairs.folds)
    except ValueError:
        # an embedding that equals the mean of the training folds has no direction after centring
        accuracies["sphereface_centred"] = None
    else:
        accuracies["sphereface_centred"] = verification_accuracy(
            centred, pairs.same, pairs.folds, convention="sphereface"
        )
    return Verification(
        pairs=pairs,
        dimension=embeddings.shape[1],
        scores=scores,
        accuracies=accuracies,
        fars=fars,
        tars=tuple(tar_at_far(genuine, impostor, fars)),
        equal_error_rate=equal_error_rate(genuine, impostor),
        auc=roc_auc(genuine, impostor),
        notes=notes,
    )


def summary(found: Verification) -> str:
    """The report as text, one measure a line, each with its 95 % interval."""
    genuine = int(found.pairs.same.sum())
    lines = [
        f"{len(found.pairs)} pairs ({genuine} genuine, {len(found.pairs) - genuine} impostor) "
        f"in {found.pairs.fold_count} folds, {found.dimension} dimensions, cosine scores",
        "",
    ]
    rows: list[tuple[str, str]] = []
    for key, title in ACCURACIES.items():
        result = found.accuracies[key]
        text = "undefined: an embedding equals the mean of the training folds"
        if result is not None:
            text = f"{result.accuracy.text(percent=True)} %, standard error {100 * result.standard_error:.2f}"
        rows.append((title, text))
    rows += [
        (f"TAR at FAR {far:g}", f"{tar.text(percent=True)} %") for far, tar in zip(found.fars, found.tars, strict=True)
    ]
    rows.append(("equal error rate", f"{found.equal_error_rate.text(percent=True)} %"))
    rows.append(("area under the ROC curve", found.auc.text(digits=5)))
    lines += [f"{title:<42}{text}" for title, text in rows]
    # of the four only the centred one can be missing
    exact = cast(VerificationResult, found.accuracies["exact"]).accuracy
    measures = [exact, found.tars[0], found.equal_error_rate, found.auc]
    names = ("accuracy", "TAR", "EER", "AUC")
    methods = "; ".join(f"{name}: {measure.method}" for name, measure in zip(names, measures, strict=True))
    lines += ["", f"[ ] 95 % intervals ({methods})."]
    if not all(measure.supported for measure in (*found.tars, found.equal_error_rate)):
        lines.append("* fewer than ten errors, or impostor scores above the threshold, stand behind this rate.")
    if not exact.supported:
        lines.append("* this accuracy has folds of one kind of pair only, see the note.")
    lines += [f"note: {note}." for note in found.notes]
    return "\n".join(lines)


def as_document(found: Verification) -> dict[str, Any]:
    """The report as plain JSON values; every measure has `value, low, high, level, count, method, supported`."""
    accuracies = {}
    for key, result in found.accuracies.items():
        accuracies[key] = result and {
            **result.accuracy.as_dict(),
            "standard_error": result.standard_error,
            "fold_accuracies": list(result.fold_accuracies),
            "fold_thresholds": list(result.fold_thresholds),
        }
    genuine = int(found.pairs.same.sum())
    return {
        "pairs": {"genuine": genuine, "impostor": len(found.pairs) - genuine, "folds": found.pairs.fold_count},
        "dimension": found.dimension,
        "score": "cosine",
        "accuracy": accuracies,
        "tar_at_far": [{"far": far, **tar.as_dict()} for far, tar in zip(found.fars, found.tars, strict=True)],
        "equal_error_rate": found.equal_error_rate.as_dict(),
        "auc": found.auc.as_dict(),
        "notes": list(found.notes),
    }


def roc_png(found: Verification) -> bytes:
    """The exact ROC curve, with a logarithmic FAR axis down to one impostor pair, as PNG."""
    # The library computes without the packages that draw.
    from matplotlib.figure import Figure

    from reprolib import plots

    genuine, impostor = found.scores[found.pairs.same], found.scores[~found.pairs.same]
    curve = roc_curve(genuine, impostor)
    figure = Figure(figsize=(6, 4.5), dpi=100, layout="constrained")
    floor = min(1 / len(impostor), found.fars[0], 0.5)
    label = f"AUC {found.auc.text(digits=4)}"
    title = f"{len(genuine)} genuine and {len(impostor)} impostor pairs"
    plots.roc({label: (curve.far, curve.tar)}, ax=figure.add_subplot(), title=title, far_floor=floor)
    stream = io.BytesIO()
    figure.savefig(stream, format="png")
    return stream.getvalue()


def run(
    embeddings: str | os.PathLike[str],
    pairs: str | os.PathLike[str],
    output: str | os.PathLike[str],
    fars: Sequence[float] = DEFAULT_FARS,
    plain_folds: int = 10,
) -> str:
    """Verifies the two files, writes `verification.json` and `roc.png` into `output`, and returns the text.

    Nothing is written unless everything could be computed; each file is written whole or not at all.
    """
    output = Path(output)
    occupied = next((part for part in (output, *output.parents) if part.exists()), output)
    if not occupied.is_dir():
        raise ValueError(f"{output} cannot be the output folder: {occupied} is a file")
    listed = read_pairs(pairs, plain_folds=plain_folds)
    rows, names = read_embeddings(embeddings)
    found = verify(rows, names, listed, fars)
    sources = {
        kind: {"file": Path(path).name, "sha256": hashlib.sha256(Path(path).read_bytes()).hexdigest()}
        for kind, path in (("embeddings", embeddings), ("pairs", pairs))
    }
    document = json.dumps({"sources": sources, **as_document(found)}, indent=2, allow_nan=False, ensure_ascii=False)
    try:
        picture = roc_png(found)
        written = f"{output / 'verification.json'}, {output / 'roc.png'}"
    except ModuleNotFoundError as error:
        picture = b""
        written = f"{output / 'verification.json'}; for roc.png install the package {error.name}"
    write_atomic(output / "verification.json", (document + "\n").encode("utf-8"))
    if picture:
        write_atomic(output / "roc.png", picture)
    return f"{summary(found)}\n\nwritten: {written}"
