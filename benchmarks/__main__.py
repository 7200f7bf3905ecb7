"""Command line of the benchmarks: `python -m benchmarks {heads,miners,search,tar,popular,partial_fc,loaders,table}`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import torch

from benchmarks import heads, loaders, miners, partial_fc, popular, search, table, tar
from reprolib.data.files import write_atomic

BENCHES = {
    "heads": heads,
    "miners": miners,
    "search": search,
    "tar": tar,
    "popular": popular,
    "partial_fc": partial_fc,
    "loaders": loaders,
}


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def build_parser() -> argparse.ArgumentParser:
    """One subcommand a bench, each with its own options."""
    parser = _Parser(prog="benchmarks", description="reprolib measured against its peers.")
    commands = parser.add_subparsers(dest="name", required=True, metavar=f"{{{','.join((*BENCHES, 'table'))}}}")
    for name, bench in BENCHES.items():
        documentation = (bench.__doc__ or "").strip()
        command = commands.add_parser(name, help=documentation.splitlines()[0], description=documentation)
        bench.add_arguments(command)
        command.add_argument("--output", type=Path, metavar="DIR", help="folder for NAME.json (default: none)")
        command.add_argument("--threads", type=int, metavar="N", help="torch's threads (default: one a core)")
    command = commands.add_parser("table", help="the README's table from the files of a folder")
    command.add_argument("folder", type=Path, metavar="DIR", help="folder with NAME.json, such as reference/bench")
    command.add_argument("--readme", type=Path, metavar="FILE", help="replace the table in this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 something cannot be had, 2 wrong arguments, 130 interrupted."""
    chosen = build_parser().parse_args(arguments)
    try:
        if chosen.name == "table":
            made = table.markdown(chosen.folder)
            print(made)
            if chosen.readme is not None:
                text = table.replaced(chosen.readme.read_text(encoding="utf-8"), made)
                write_atomic(chosen.readme, text.encode())
            return 0
        if chosen.threads is not None:
            torch.set_num_threads(chosen.threads)
        result = {"bench": chosen.name, "threads": torch.get_num_threads(), **BENCHES[chosen.name].run(chosen)}
        print(json.dumps(result), flush=True)
        if chosen.output is not None:
            chosen.output.mkdir(parents=True, exist_ok=True)
            write_atomic(chosen.output / f"{chosen.name}.json", (json.dumps(result, indent=1) + "\n").encode())
        return 0
    except (ValueError, RuntimeError, OSError) as error:
        print(f"benchmarks {chosen.name}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt:
        print(f"benchmarks {chosen.name}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
