"""LFW as an arena: nine folds and the people outside the pairs train, the tenth is judged; nobody is in both.

    people = load_lfw_grey()                                     # 13,233 faces of 48 x 48 grey pixels
    faces = lfw_fold(people, read_pairs(lfw_pairs()), fold=0)    # pairs.txt read by reprolib.evaluation

The fold `VALIDATION_FOLD` is for tuning: no record judges it.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from reprolib._checks import check_count
from reprolib.data.arrays import array_text, pack_arrays, text_array, unpack_arrays
from reprolib.data.fetching import data_root
from reprolib.data.files import DataCorrupted, write_atomic
from reprolib.data.lfw import SIZE, LfwDataset, lfw_dataset, load_lfw
from reprolib.data.pixels import resize_area
from reprolib.data.splits import fold_split, people_by_fold

VALIDATION_FOLD = 9


class Pairs(Protocol):
    """What is needed of a list of pairs: image keys "Name_0001", fold and kind of each pair."""

    @property
    def first(self) -> Sequence[str]: ...

    @property
    def second(self) -> Sequence[str]: ...

    @property
    def folds(self) -> np.ndarray: ...

    @property
    def same(self) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class FacesFold:
    """One fold of a verification protocol with all images of its people.

    `train_images`, `test_images` uint8 (N, 1, S, S); `train_labels`, `test_labels` int64 (N,), each from 0 on;
    `pairs` int64 (M, 2), the fold's pairs as rows of `test_images`; `same` bool (M,), True for one person; `judged`
    int64 (K,), the rows of `test_images` whose pairs are all judged.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    pairs: Tensor
    same: Tensor
    judged: Tensor
    fingerprint: str


def load_lfw_grey(
    size: int = 48, crop: int = SIZE, root: str | Path | None = None, device: str | torch.device = "cpu"
) -> LfwDataset:
    """LFW in grey: the central `crop` x `crop` pixels of the aligned 112 x 112, by area to `size` x `size` uint8.

    Made once, then read from one small file beside LFW's (where that folder can be written to). Raises `ValueError`
    for sizes that do not fit, `DataUnavailable`.
    """
    check_count(size, "size", low=8)
    check_count(crop, "crop", low=size)
    if crop > SIZE or (SIZE - crop) % 2:
        raise ValueError(f"crop must be an even number of pixels up to {SIZE}, got {crop}")
    path = data_root(root) / "lfw" / f"grey_{crop}_{size}.npz"
    shapes = {"images": (None, 1, size, size), "names": (None,), "source": (None,)}
    try:
        arrays, _ = unpack_arrays(path.read_bytes(), str(path), shapes)
    except (OSError, DataCorrupted):
        whole = load_lfw(root, grey=True)
        edge = (SIZE - crop) // 2
        parts = whole.images[:, :, edge : SIZE - edge, edge : SIZE - edge].split(512)
        arrays = {
            "images": torch.cat([resize_area(part, size) for part in parts]).numpy(),
            "names": text_array("\n".join(whole.image_names)),
            "source": text_array(f"{whole.alignment}; {whole.fingerprint}"),
        }
        # in a read-only data folder it is made anew each time
        with contextlib.suppress(OSError):
            write_atomic(path, pack_arrays(arrays))
    keys = array_text(arrays["names"], str(path)).split("\n")
    alignment, _, source = array_text(arrays["source"], str(path)).partition("; ")
    fingerprint = hashlib.sha256(source.encode() + arrays["images"].tobytes()).hexdigest()
    return lfw_dataset("LFW, grey", torch.from_numpy(arrays["images"].copy()), keys, fingerprint, alignment).to(device)


def lfw_fold(people: LfwDataset, pairs: Pairs, fold: int, *, least: int = 2, most: int | None = None) -> FacesFold:
    """All images of the people of `fold` against training images of all others who have at least `least` images.

    A person with a single photograph has no genuine pair to learn from: `least=1` takes them in all the same. `most`
    bounds the images of a person among the judged ones, the first by number: without it nine tenths of the genuine
    pairs of two of LFW's folds are pictures of one man (236 and 530 images). Raises `ValueError` for a fold that does
    not exist and for pairs that name other images than `people` has.
    """
    check_count(least, "least")
    if most is not None:
        check_count(most, "most", low=2)
    labels = people.labels.cpu()
    train, test = fold_split(people.names, labels, people_by_fold(pairs.first, pairs.second, pairs.folds), fold)
    train = train[labels.bincount(minlength=len(people.names))[labels[train]] >= least]
    here = np.flatnonzero(np.asarray(pairs.folds) == fold).tolist()
    rows = torch.stack([people.rows([keys[i] for i in here]) for keys in (pairs.first, pairs.second)], dim=1)
    # place of each image among the test images, which are in ascending order
    place = torch.searchsorted(test, rows)
    device = people.images.device
    person = labels[test].unique(return_inverse=True)[1]
    # place of each test image among those of its person
    order, counts = person.sort(stable=True).indices, person.bincount()
    number = torch.empty_like(person)
    number[order] = torch.arange(len(person)) - (counts.cumsum(0) - counts)[person[order]]
    judged = (number < (len(person) if most is None else most)).nonzero().flatten()
    same = torch.from_numpy(np.asarray(pairs.same)[here].astype(bool))
    return FacesFold(
        name=f"{people.name}, fold {fold}, people with at least {least} images train",
        train_images=people.images[train.to(device)],
        train_labels=labels[train].unique(return_inverse=True)[1].to(device),
        test_images=people.images[test.to(device)],
        test_labels=person.to(device),
        pairs=place.to(device),
        same=same.to(device),
        judged=judged.to(device),
        fingerprint=hashlib.sha256(f"{people.fingerprint} {fold} {least} {most} {place.tolist()}".encode()).hexdigest()[
            :16
        ],
    )
