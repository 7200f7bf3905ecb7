"""The original mxnet reads records written here, and what it writes is read here.

It needs an interpreter of its own, that of an environment with mxnet 1.9.1 and numpy below 1.24, which
REPROLIB_MXNET_PYTHON names.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess

import numpy as np
import pytest
from test_facesets import CLASSES, COUNT, FILES, LABELS, PIXELS

from reprolib.data import FaceRecords, write_records

PYTHON = os.environ.get("REPROLIB_MXNET_PYTHON")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON, reason="needs REPROLIB_MXNET_PYTHON")]

# As insightface's rec2image and its data set for training go through a set.
READ = """
import hashlib, json, sys
import mxnet as mx
records = mx.recordio.MXIndexedRecordIO(sys.argv[1] + ".idx", sys.argv[1] + ".rec", "r")
head, _ = mx.recordio.unpack(records.read_idx(0))
found = {"header": [float(x) for x in head.label], "flag": head.flag, "identities": [], "images": []}
for key in range(int(head.label[0]), int(head.label[1])):
    one, _ = mx.recordio.unpack(records.read_idx(key))
    found["identities"].append([float(x) for x in one.label])
for key in range(1, int(head.label[0])):
    one, image = mx.recordio.unpack(records.read_idx(key))
    pixels = mx.image.imdecode(image).asnumpy()
    hashes = [hashlib.sha256(raw).hexdigest() for raw in (image, pixels.tobytes())]
    found["images"].append([float(one.label), *hashes])
print(json.dumps(found))
"""
WRITE = """
import json, sys
import mxnet as mx
folder, many = sys.argv[1], sys.argv[2] == "many"
labels = json.load(open(folder + "/labels.json"))
records = mx.recordio.MXIndexedRecordIO(folder + "/train.idx", folder + "/train.rec", "w")
for key, label in enumerate(labels):
    image = open("%s/%d.image" % (folder, key), "rb").read()
    head = mx.recordio.IRHeader(0, [label, 1.0, 2.0] if many else label, key, 0)
    records.write_idx(key, mx.recordio.pack(head, image))
records.close()
"""


def original(code: str, *arguments: str) -> str:
    done = subprocess.run([PYTHON, "-c", code, *arguments], capture_output=True, text=True, env={"PATH": "/usr/bin"})
    assert done.returncode == 0, done.stderr
    return done.stdout


def sha256(raw: bytes) -> str:
    return hashlib.sha256(raw).hexdigest()


def test_the_original_reads_ours(tmp_path):
    write_records(tmp_path / "train.rec", FILES, LABELS, identities=True)
    found = json.loads(original(READ, str(tmp_path / "train")))
    assert found["header"] == [COUNT + 1, COUNT + 1 + CLASSES] and found["flag"] == 2
    sizes = np.bincount(LABELS)
    ends = np.cumsum(sizes) + 1
    assert found["identities"] == [[end - size, end] for size, end in zip(sizes, ends, strict=True)]
    for row, (label, file, pixels) in enumerate(found["images"]):
        assert (label, file) == (LABELS[row], sha256(FILES[row]))
        # JPEG is decoded by another library there
        if FILES[row].startswith(b"\x89PNG"):
            assert pixels == sha256(np.ascontiguousarray(PIXELS[row].transpose(1, 2, 0)).tobytes())


@pytest.mark.parametrize("labels", ["one", "many"])
def test_ours_reads_the_original(labels, tmp_path):
    # a file with the magic number of a part in it
    magic = b"\x0a\x23\xd7\xce"
    files = [*FILES[:-1], FILES[0] + bytes(-len(FILES[0]) % 4) + magic * 3 + b"end"]
    for key, raw in enumerate(files):
        (tmp_path / f"{key}.image").write_bytes(raw)
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    original(WRITE, str(tmp_path), labels)
    faces = FaceRecords(tmp_path)
    assert faces.labels.tolist() == LABELS
    assert [faces.encoded(k)[0] for k in range(COUNT)] == files
    (tmp_path / "train.idx").unlink()
    assert [FaceRecords(tmp_path).encoded(k) for k in range(COUNT)] == list(zip(files, LABELS, strict=True))
