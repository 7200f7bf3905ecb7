"""Writes LFW for `reprolib train`: train.rec, 48 x 48 grey, without the people of a fold, and that fold's pairs.

    python data_scripts/lfw_records.py data/lfw48 [FOLD]

The images are those of the suite's LFW arena, who has two or more and is in no pair of FOLD (by default 9, the fold for
tuning). The pairs go into fold_9.bin, a tenth of either kind in each tenth of the file.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from torch import Tensor

from reprolib.arenas import lfw_faces
from reprolib.data import write_facebin, write_records
from reprolib.data.lfw_folds import VALIDATION_FOLD


def encoded(images: Tensor) -> Iterator[bytes]:
    """A PNG file of each image, uint8 (N, 1, H, W)."""
    for image in images:
        stream = io.BytesIO()
        Image.fromarray(image[0].numpy()).save(stream, "PNG")
        yield stream.getvalue()


def main(folder: str, fold: str = str(VALIDATION_FOLD)) -> None:
    """Write both files into `folder`."""
    faces, path = lfw_faces(int(fold)), Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    write_records(path / "train.rec", encoded(faces.train_images), faces.train_labels.tolist())
    files = list(encoded(faces.test_images))
    genuine, impostor = (faces.pairs[faces.same == kind].tolist() for kind in (True, False))
    # the file is cut into consecutive folds: each must have both kinds
    rows = [pair for two in zip(genuine, impostor, strict=True) for pair in two]
    same = [True, False] * len(genuine)
    write_facebin(path / f"fold_{fold}.bin", [(files[first], files[second]) for first, second in rows], same)
    print(f"{path}: {len(faces.train_labels)} images of {int(faces.train_labels.max()) + 1} people, {len(rows)} pairs")


if __name__ == "__main__":
    main(*sys.argv[1:])
