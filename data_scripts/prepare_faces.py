"""Counts a face set, converts it from one format to another, aligns it, takes identities out of it.

python data_scripts/prepare_faces.py casia.zip                                  # counts only
python data_scripts/prepare_faces.py casia.zip casia/train.rec --remove overlap_with_lfw.txt --skip-damaged
python data_scripts/prepare_faces.py train.rec 'shards/set-{}.tar' --order shuffled
python data_scripts/prepare_faces.py photos aligned.zip --landmarks points.txt --width 96
python data_scripts/prepare_faces.py lfw.parquet lfw.bin                        # verification pairs
"""

from __future__ import annotations

import argparse
import functools
import sys

from tqdm import tqdm

from reprolib.data import DataCorrupted, converting, open_faces, open_pairs
from reprolib.data.parquet import holds_pairs


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("source", help="any format that reprolib.data.open_faces or open_pairs reads")
    made.add_argument("target", nargs="?", help=f"ends with {converting.TARGETS}; pairs: .bin or .parquet")
    made.add_argument("--remove", metavar="FILE", help="identities to leave out, one name or number a line")
    made.add_argument("--order", choices=converting.ORDERS, default="label", help="default: label; stored is fastest")
    made.add_argument("--seed", type=int, default=0, help="of the shuffled order (default: 0)")
    made.add_argument("--landmarks", metavar="FILE", help="align by lines 'key x1 y1 ... x5 y5'")
    made.add_argument("--width", type=int, choices=(96, 112), default=112, help="of aligned images (default: 112)")
    made.add_argument("--png", action="store_true", help="aligned images as PNG instead of JPEG of quality 95")
    made.add_argument("--per-tar", type=int, default=10_000, metavar="N", help="images in each of many tars")
    made.add_argument("--skip-damaged", action="store_true", help="leave out images that cannot be decoded or aligned")
    made.add_argument("--index", metavar="FILE", help="keeps what takes long to find out of the source")
    return made


def main(given: list[str] | None = None) -> int:
    arguments = parser().parse_args(given)
    try:
        prepare(arguments)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        print(f"prepare_faces: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) and not isinstance(error, DataCorrupted) else 1
    return 0


def prepare(arguments: argparse.Namespace) -> None:
    if arguments.source.endswith(".bin") or holds_pairs(arguments.source):
        pairs = open_pairs(arguments.source)
        genuine = int(pairs.same.sum())
        print(f"{len(pairs)} pairs, {genuine} of one person and {len(pairs) - genuine} of two")
        if arguments.target:
            converting.write_pairs(arguments.target, pairs)
            print(f"written: {arguments.target}")
        return
    faces = open_faces(arguments.source, index=arguments.index)
    points = converting.read_landmarks(arguments.landmarks) if arguments.landmarks else None
    if arguments.skip_damaged:
        bad = faces.damaged(pixels=True)
        if points is not None:
            keys = (faces.key(row) for row in range(len(faces)))
            bad |= {key: f"{key} has no landmarks" for key in keys if key not in points and key not in bad}
        for message in bad.values():
            print(f"left out: {message}", file=sys.stderr)
        print(f"{len(bad)} of {len(faces)} images left out")
        faces = open_faces(arguments.source, skip=bad)
    names = converting.read_names(arguments.remove) if arguments.remove else []
    chosen = converting.select(faces, names, arguments.order, arguments.seed)
    if names:
        print(f"{len(chosen.removed)} identities removed, {len(chosen.absent)} names of the list are not in the set")
    print(chosen.counts())
    if arguments.target:
        options = {"width": arguments.width, "png": arguments.png, "per_tar": arguments.per_tar}
        shown = functools.partial(tqdm, unit=" images", disable=None)
        converting.write_faces(arguments.target, chosen, points, shown=shown, **options)
        print(f"written: {arguments.target}")


if __name__ == "__main__":
    sys.exit(main())
