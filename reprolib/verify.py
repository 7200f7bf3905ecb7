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

import functools
import hashlib
import io
import json
import os
import unicodedata
import zipfile
from collections import defaultdict
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
    what = str(path)
    arrays = []
    try:
        with open(path, "rb") as stream:
            if not zipfile.is_zipfile(stream):
                raise ValueError("it is not an .npz file, or it is truncated")
            stream.seek(0)
            with np.load(stream, allow_pickle=False) as archive:
                key = "names" if "names" in archive.files else "paths"
                if not {"embeddings", key} <= set(archive.files):
                    held = ", ".join(archive.files) or "nothing"
                    raise ValueError(f"it must hold the arrays embeddings and names (or paths), but holds {held}")
                for name in ("embeddings", key):
                    what = f"{name} in {path}"
                    arrays.append(np.asarray(archive[name]))
        embeddings, names = arrays
        if names.dtype.kind == "S":
            names = np.char.decode(names, "utf-8")
    # numpy, zipfile and zlib raise errors of many kinds for altered files
    except Exception as error:
        raise ValueError(f"{what} cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if embeddings.dtype.kind != "f" or embeddings.ndim != 2 or embeddings.size == 0:
        raise ValueError(
            f"embeddings in {path} must be floating point of shape (N, d), "
            f"got {embeddings.dtype} of shape {embeddings.shape}"
        )
    if names.dtype.kind != "U" or names.shape != embeddings.shape[:1]:
        raise ValueError(
            f"{key} in {path} must be {len(embeddings)} strings, one for each embedding, "
            f"got {names.dtype} of shape {names.shape}"
        )
    return embeddings, tuple(names.tolist())


def image_key(name: str) -> str:
    """Last component of a path, without the ending of an image file: 'lfw/Ann/Ann_0001.jpg' is 'Ann_0001'."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    stem, dot, ending = last.rpartition(".")
    return stem if stem and dot + ending.lower() in IMAGE_ENDINGS else last


def rows_of(names: Sequence[str], wanted: Sequence[str]) -> np.ndarray:
    """Row of each `wanted` image among `names`: by the whole name, else by `image_key`, both in form NFC.

    Raises ValueError for images that are missing, or whose name or key several rows share.
    """
    whole: dict[str, list[int]] = defaultdict(list)
    keys: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(map(_composed, names)):
        whole[name].append(row)
        keys[image_key(name)].append(row)
    found = {name: whole.get(_composed(name)) or keys.get(image_key(_composed(name)), []) for name in set(wanted)}
    missing = sorted(name for name, rows in found.items() if not rows)
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(found)} images in the pairs have no embedding, the first is {missing[0]!r}"
        )
    for name in wanted:
        if len(found[name]) > 1:
            several = " and ".join(repr(names[row]) for row in found[name][:2])
            raise ValueError(f"{name!r} in the pairs may be each of {len(found[name])} embeddings, as of {several}")
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
    for kind, only in (("genuine", genuine == counts), ("impostor", genuine == 0)):
        if only.any():
            folds = ", ".join(map(str, np.flatnonzero(only) + 1))
            found.append(
                f"folds that hold {kind} pairs only: {folds}; no threshold is judged on both kinds there, store the "
                "pairs fold by fold"
            )
    sorted_pairs = np.sort(np.stack((first, second)), axis=0)
    different, index, times = np.unique(sorted_pairs, axis=1, return_inverse=True, return_counts=True)
    if different.shape[1] < len(pairs):
        found.append(
            f"pairs listed more than once: {(times > 1).sum()} ({len(pairs)} lines, {different.shape[1]} different "
            "pairs); the intervals and folds count each line as a pair of its own"
        )
    as_genuine = np.bincount(index.ravel(), weights=pairs.same)
    both = (as_genuine > 0) & (as_genuine < times)
    if both.any():
        line = int(both[index.ravel()].argmax())
        found.append(
            f"pairs listed as genuine and as impostor: {both.sum()}, the first is {pairs.first[line]!r} with "
            f"{pairs.second[line]!r}"
        )
    return tuple(found)


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
    judged = functools.partial(verification_accuracy, same=pairs.same, folds=pairs.folds)
    accuracies: dict[str, VerificationResult | None] = {
        convention: judged(scores, convention=convention) for convention in ("exact", "sphereface", "facenet")
    }
    try:
        centred = centred_cosines(first, second, pairs.folds)
    except ValueError:
        # an embedding that equals the mean of the training folds has no direction after centring
        accuracies["sphereface_centred"] = None
    else:
        accuracies["sphereface_centred"] = judged(centred, convention="sphereface")
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
    rates = {f"TAR at FAR {far:g}": tar for far, tar in zip(found.fars, found.tars, strict=True)}
    rates["equal error rate"] = found.equal_error_rate
    rows += [(title, f"{rate.text(percent=True)} %") for title, rate in rates.items()]
    rows.append(("area under the ROC curve", found.auc.text(digits=5)))
    lines += [f"{title:<42}{text}" for title, text in rows]
    # of the four only the centred one can be missing
    exact = cast(VerificationResult, found.accuracies["exact"]).accuracy
    measures = {"accuracy": exact, "TAR": found.tars[0], "EER": found.equal_error_rate, "AUC": found.auc}
    methods = "; ".join(f"{name}: {measure.method}" for name, measure in measures.items())
    lines += ["", f"[ ] 95 % intervals ({methods})."]
    if not all(rate.supported for rate in rates.values()):
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
    files = {output / "verification.json": f"{document}\n".encode()}
    remark = ""
    try:
        files[output / "roc.png"] = roc_png(found)
    except ModuleNotFoundError as error:
        remark = f"; for roc.png install the package {error.name}"
    for path, content in files.items():
        write_atomic(path, content)
    return f"{summary(found)}\n\nwritten: {', '.join(map(str, files))}{remark}"
