"""The images of a run: the same batches from every format, and what can only be read in its own order."""

from __future__ import annotations

import io
import tarfile
import zipfile
from pathlib import Path

import pytest
import ranks
import torch
from PIL import Image

from reprolib import batches
from reprolib.data import converting, open_faces
from reprolib.data.archives import FaceArchives, add_file


@pytest.fixture
def faces(tmp_path):
    ranks.write_faces(tmp_path)
    return tmp_path


def compressed_tar(source: Path, target: Path) -> None:
    """One folder a person, whose files lie in another order than their names: as tar finds them on a disk."""
    converting.write_faces(source / "folder", converting.select(open_faces(source / "train.rec")))
    files = sorted((source / "folder").rglob("*.png"), key=lambda path: (path.name[::-1], path))
    with tarfile.open(target, "w:gz") as bundle:
        for path in files:
            add_file(bundle, str(path.relative_to(source)), path.read_bytes())


def deflated_zip(source: Path, target: Path) -> None:
    converting.write_faces(source / "stored.zip", converting.select(open_faces(source / "train.rec")))
    with zipfile.ZipFile(source / "stored.zip") as stored, zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            # the same pixels, not compressed by the PNG: deflate has something to do
            stream = io.BytesIO()
            Image.open(io.BytesIO(stored.read(name))).save(stream, "PNG", compress_level=0)
            packed.writestr(name, stream.getvalue())


MADE = {"set.tar.gz": compressed_tar, "set.zip": deflated_zip}
FORMATS = ("set.tar", "set-{}.tar", "folder", "set.zip", "set.tar.gz", "set.parquet", "set.lmdb")


@pytest.mark.parametrize("in_memory", [False, True], ids=["read", "memory"])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_trains_the_same_network_bit_for_bit(faces, name, in_memory):
    ranks.run(faces, "records", training__steps=5, **ranks.RESIDUAL)
    target = faces / name
    if name in MADE:
        MADE[name](faces, target)
    else:
        for extra in {"parquet": ("pyarrow",), "lmdb": ("lmdb",)}.get(target.suffix[1:], ()):
            pytest.importorskip(extra)
        converting.write_faces(target, converting.select(open_faces(faces / "train.rec")), per_tar=20)
    path = str(target).replace("{}", "*")
    ranks.run(faces, "other", training__steps=5, data__path=path, data__in_memory=in_memory, **ranks.RESIDUAL)
    ranks.assert_same(ranks.final(faces, "records"), ranks.final(faces, "other"))


def test_a_compressed_tar_is_read_once_into_the_memory_or_refused(faces, monkeypatch):
    compressed_tar(faces, faces / "set.tgz")
    opened = []
    opener = FaceArchives._from_stream

    def counted(self, archive, ordinal, name):
        begins = self._cursor is None or self._cursor[1] >= ordinal
        opened.append(begins)
        return opener(self, archive, ordinal, name)

    monkeypatch.setattr(FaceArchives, "_from_stream", counted)
    monkeypatch.setattr(batches, "READ_AT_ONCE", 10)
    # three batches an epoch, each of which begins anew
    monkeypatch.setattr(batches, "REREADS", 2)
    path = {"data__path": str(faces / "set.tgz")}
    ranks.run(faces, "run", training__steps=5, data__in_memory=True, **path)
    # once for the shape of an image, and once for all
    assert len(opened) == 57 and sum(opened) == 2
    with pytest.raises(ValueError, match=r"data.in_memory must be true for .*set.tgz, a compressed tar, .* as .rec or"):
        ranks.run(faces, "refused", training__steps=5, **path)
    # an epoch that ends before that is none
    assert ranks.run(faces, "short", training__steps=1, **path).step == 1


def test_images_of_two_sizes_are_refused_in_the_memory_too(faces):
    converting.write_faces(faces / "folder", converting.select(open_faces(faces / "train.rec")))
    last = max((faces / "folder").rglob("*.png"))
    Image.new("RGB", (24, 20)).save(last)
    for in_memory in (False, True):
        with pytest.raises(ValueError, match=r"images must have one size, got \(3, 20, 24\) and \(3, 24, 24\)"):
            ranks.run(faces, "run", data__path=str(faces / "folder"), data__in_memory=in_memory)


def test_prepared_images_are_the_middle_and_grey():
    images = torch.arange(2 * 3 * 6 * 5, dtype=torch.uint8).reshape(2, 3, 6, 5)
    assert torch.equal(batches.prepare(images, (4, 3), False), images[:, :, 1:5, 1:4])
    assert batches.prepare(images, None, True).shape == (2, 1, 6, 5)
    with pytest.raises(ValueError, match=r"data.crop must fit into images of 6 x 5 pixels, got \[7, 3\]"):
        batches.prepare(images, (7, 3), False)
