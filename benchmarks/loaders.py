"""Images a second out of each format of face sets, against torchvision's ImageFolder and the original mxnet.

The same JPEG faces lie in each format; all are read in a random order, and by `stream`, in batches, in this process: by
one core, from the system's cache. What is measured is processor time, in alternating rounds. Then how
long a set of 5.2 million images takes to open, and what memory that needs, from an index alone, as MS1MV3 has it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import PILToTensor

from benchmarks.kit import count, in_child, installed, mebibytes, peak_above, ratios, show, spread
from reprolib.data import FaceImages, FaceRecords, open_faces, write_lmdb, write_parquet, write_records, write_tars
from reprolib.data.converting import write_folder, write_zip
from reprolib.data.recordio import encode_record

# one image after the other, as mxnet is asked to: without a DataLoader and batches
ALONE = "rec, one by one"
SIZE, PEOPLE = 112, 200
IDENTITIES = 93_000
IMAGE_FOLDER, MXNET = "torchvision's ImageFolder", "mxnet 1.9.1"
# at each line of its input: all images by key, decoded, one after the other
MXNET_CODE = """
import json, sys, time
import mxnet as mx
records = mx.recordio.MXIndexedRecordIO(sys.argv[1] + ".idx", sys.argv[1] + ".rec", "r")
for line in sys.stdin:
    keys, began = json.loads(line), time.process_time()
    for key in keys:
        head, image = mx.recordio.unpack(records.read_idx(key))
        mx.image.imdecode(image).asnumpy()
    print(time.process_time() - began, flush=True)
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Numbers of images and rounds, and who may answer for mxnet."""
    parser.add_argument("--images", type=count, default=4_000, metavar="N")
    parser.add_argument("--records", type=count, default=5_200_000, metavar="N", help="of the large index")
    parser.add_argument("--rounds", type=count, default=3, metavar="N", help="timed rounds (default: 3)")
    parser.add_argument("--batch", type=count, default=128, metavar="N")
    parser.add_argument("--mxnet", metavar="PYTHON", help="an interpreter that has mxnet 1.9.1")


def faces(number: int) -> Iterator[bytes]:
    """Smooth random pictures as JPEG files of quality 95, of about the size of an aligned face's."""
    generator = np.random.default_rng(0)
    for _ in range(number):
        coarse = Image.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8))
        stream = io.BytesIO()
        coarse.resize((SIZE, SIZE), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=95)
        yield stream.getvalue()


def _sets(folder: Path, images: list[bytes], labels: list[int]) -> dict[str, FaceImages]:
    """The same images in every format whose package is there."""
    writers: dict[str, Callable[..., Any]] = {"a.rec": write_records, "b": write_folder, "c.zip": write_zip}
    writers["d.tar"] = write_tars
    if installed("pyarrow"):
        writers["e.parquet"] = write_parquet
    if installed("lmdb"):
        writers["f.lmdb"] = write_lmdb
    for name, write in writers.items():
        write(folder / name, images, labels)
    return {name.partition(".")[2] or "folder": open_faces(folder / name) for name in writers}


@contextmanager
def _mxnet(python: str | None, records: Path, order: list[int]) -> Iterator[dict[str, Callable[[], float]]]:
    """What makes a process of mxnet's read all images once; nothing without its interpreter."""
    if python is None:
        yield {}
        return
    environment = {"PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [python, "-c", MXNET_CODE, str(records)],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        bufsize=0,
    ) as process:

        def read() -> float:
            assert process.stdin is not None and process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.write(f"{json.dumps(order)}\n".encode())
            if not (seconds := process.stdout.readline()):
                raise RuntimeError(f"--mxnet must name an interpreter that has mxnet 1.9.1, got {python}")
            return float(seconds)

        try:
            yield {MXNET: read}
        finally:
            process.kill()


def _processor(read: Callable[[], Any]) -> float:
    began = time.process_time()
    read()
    return time.process_time() - began


def _all_of(data: Any, batch: int, order: list[int] | None) -> Callable[[], None]:
    def read() -> None:
        for _ in DataLoader(data, batch_size=batch, sampler=order):
            pass

    return read


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Alternating rounds over all formats and ImageFolder; mxnet in a process of its own."""
    images = list(faces(arguments.images))
    labels = sorted(k % PEOPLE for k in range(len(images)))
    order = np.random.default_rng(1).permutation(len(images)).tolist()
    with tempfile.TemporaryDirectory() as name:
        sets = _sets(Path(name), images, labels)
        functions = {f"{kind}, random": _all_of(one, arguments.batch, order) for kind, one in sets.items()}
        functions |= {f"{kind}, stream": _all_of(one.stream(), arguments.batch, None) for kind, one in sets.items()}
        peer = ImageFolder(str(Path(name, "b")), transform=PILToTensor())
        functions[IMAGE_FOLDER] = _all_of(peer, arguments.batch, order)
        # a random image of a parquet file costs its whole row group: that is no way to read one
        functions.pop("parquet, random", None)
        functions[ALONE] = lambda: [sets["rec"][k] for k in order] and None
        with _mxnet(arguments.mxnet, Path(name, "a"), order) as original:
            timed = {kind: partial(_processor, read) for kind, read in functions.items()} | original
            seconds: dict[str, list[float]] = {kind: [] for kind in timed}
            for round_ in range(arguments.rounds + 1):
                for kind, read in timed.items():
                    took = read()
                    # the first round is not counted
                    seconds[kind] += [took] if round_ else []
    peers = [other for other in (IMAGE_FOLDER, MXNET) if other in seconds]
    ours_to = {
        kind: {other: ratios(values, seconds[other]) for other in peers}
        for kind, values in seconds.items()
        if kind not in peers
    }
    rows = [
        [kind, spread(len(images) / value for value in values), *(ours_to.get(kind, {}).get(other) for other in peers)]
        for kind, values in seconds.items()
    ]
    columns = ["", "images a second", *(f"time to {other}" for other in peers)]
    show(f"{len(images):,} JPEG files of {SIZE} x {SIZE}, one core", columns, rows)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "train.rec")
        _write_large(path, arguments.records, min(IDENTITIES, arguments.records))
        large = in_child("benchmarks.loaders", "open_large", {"path": str(path), "threads": 1})
        large["index_mebibytes"] = round(path.with_suffix(".idx").stat().st_size / 2**20)
    rows = [
        [what, large[what]] for what in ("images", "people", "index", "labels", "mebibytes", "failed") if what in large
    ]
    show(f"opening records of {arguments.records:,} images (seconds, MiB)", ["", ""], rows)
    return {
        "images": len(images),
        "bytes": sum(map(len, images)),
        "rounds": arguments.rounds,
        "seconds": {kind: spread(values) for kind, values in seconds.items()},
        "ours_to": ours_to,
        "large": large,
    }


def open_large(path: str) -> dict[str, Any]:
    """Seconds until the set at `path` has its index, then its labels, and the memory that both took at most.

    The records hold the first bytes of a JPEG file and no more: none of them is decoded. Labels come from the records
    of the identities.
    """
    found: dict[str, Any] = {}

    def read() -> None:
        began = time.perf_counter()
        records = FaceRecords(path)
        found["images"] = len(records)
        index = time.perf_counter()
        found["people"] = records.num_classes
        found.update({"index": round(index - began, 2), "labels": round(time.perf_counter() - index, 2)})

    peak = peak_above(read)
    return {**found, "mebibytes": mebibytes(peak)}


def _write_large(path: Path, images: int, people: int) -> None:
    keys = np.arange(1, images + 1)
    labels = (keys - 1) * people // images
    # a part of 28 bytes, header and the beginning of an image
    words = np.zeros((images, 9), "<u4")
    words[:, 0], words[:, 1] = 0xCED7230A, 28
    words[:, 3], words[:, 4] = labels.astype("<f4").view("<u4"), keys
    words[:, 8] = 0xE0FFD8FF
    begins = np.flatnonzero(np.diff(labels, prepend=-1)) + 1
    ends = np.append(begins[1:], images + 1)
    last = [(0, images + 1, images + 1 + people)]
    last += list(zip(range(images + 1, images + 1 + people), begins.tolist(), ends.tolist(), strict=True))
    with open(path, "wb") as stream:
        words.tofile(stream)
        for key, begin, end in last:
            header = np.array([2, 0, key, 0, 0, 0], "<u4").tobytes() + np.array([begin, end], "<f4").tobytes()
            stream.write(encode_record(header))
    offsets = np.append(np.arange(images) * 36, images * 36 + np.arange(people + 1) * 40)
    all_keys = np.append(keys, [key for key, _, _ in last])
    with open(path.with_suffix(".idx"), "w") as stream:
        stream.writelines(f"{key}\t{offset}\n" for key, offset in zip(all_keys.tolist(), offsets.tolist(), strict=True))
