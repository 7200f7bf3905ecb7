"""Command line of the suite: `python -m reprolib {fetch,run,report,claims,verify,train}`."""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from reprolib import __version__
from reprolib._arithmetic import SAME_BITS

PROFILE_HELP = "smoke, standard, full or paper"

VERIFY_HELP = """Prints the cross-validated accuracy in three conventions, TAR at FARs, the equal error rate and the
area under the ROC curve, each with its interval, and writes verification.json and roc.png. EMBEDDINGS is a file of
numpy.savez with the arrays embeddings, floating point (N, d), and names (or paths), strings (N,), such as Ann_0001 or
lfw/Ann/Ann_0001.jpg. Image i of a person in LFW's pairs.txt is looked up as Name_%04d. A plain list has lines
'name_a name_b same' with same 1 or 0. With --model and --images the embeddings are made first, of the aligned images
in FOLDER by a checkpoint of `train`, and kept as embeddings.npz."""

TRAIN_HELP = """Trains as CONFIG.yaml says, or goes on from the checkpoint in its output folder; recipes/ holds one file
a table row of the papers. Several processes: torchrun --nproc-per-node 4 -m reprolib train CONFIG.yaml. Ctrl-C and
SIGTERM leave a checkpoint at the end of the step."""


class _Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {' '.join(message.split())}\n")


def _count(text: str) -> int:
    if not text.isascii() or not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer >= 1, got {text}")
    return int(text)


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="reprolib", description="Fetch the data, run the notebooks, report what they found.")
    parser.add_argument("--version", action="version", version=f"reprolib {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="{fetch,run,report,claims,verify,train}")

    fetch = commands.add_parser("fetch", help="fetch data sets and verify them")
    known = "mnist, fashion_mnist, orl, lfw, cifar10 (default: mnist orl)"
    fetch.add_argument("names", nargs="*", metavar="NAME", help=known)
    fetch.add_argument("--from", dest="source", metavar="FOLDER", help="take the files from a folder or archive")
    fetch.add_argument("--to", metavar="FOLDER", help="data folder (default: REPROLIB_DATA, else data/)")
    fetch.set_defaults(action=_fetch)

    run = commands.add_parser("run", help="run notebooks; without a name all of them")
    run.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="01, 01_l2_softmax or the notebook's path")
    run.add_argument("--profile", default="auto", help=f"auto (full with a GPU, else standard), {PROFILE_HELP}")
    run.add_argument("-p", dest="parameters", action="append", default=[], metavar="NAME=VALUE", help="one parameter")
    run.add_argument("--force", action="store_true", help="run even if nothing has changed")
    run.add_argument("--results", metavar="DIR", help="folder of the results (default: results/)")
    run.add_argument("--save-outputs", action="store_true", help="put the outputs into the notebooks")
    run.add_argument("--at-once", type=_count, default=1, metavar="N", help="notebooks at the same time (default: 1)")
    run.add_argument("--same-bits", action="store_true", help="kernels that add alike on all x86-64 with AVX2; slower")
    run.add_argument("--dask", metavar="ADDRESS", help="make the runs on the cluster of this Dask scheduler")
    run.set_defaults(action=_run)

    report = commands.add_parser("report", help="table of the recorded results, also written as Markdown")
    claims = commands.add_parser("claims", help="the papers' claims with criterion, values and verdict")
    claims.add_argument("--paper", metavar="TEXT", help="only papers whose name contains TEXT")
    report.add_argument("--html", type=Path, metavar="FILE", help="write the report as one HTML page")
    report.add_argument(
        "--commit", action="store_true", help="bring README and reference/<profile>/report.md up to date"
    )
    for command, action in ((report, _report), (claims, _claims)):
        command.add_argument("--profile", help=PROFILE_HELP)
        command.set_defaults(action=action)

    verify = commands.add_parser("verify", help="verification report for your embeddings", description=VERIFY_HELP)
    verify.add_argument(
        "files",
        nargs="+",
        metavar="FILE",
        help="EMBEDDINGS PAIRS: an .npz file with embeddings (N, d) and names (N,), and LFW's pairs.txt or lines of "
        "'name_a name_b same'; with --model PAIRS alone",
    )
    verify.add_argument("--model", metavar="CHECKPOINT", help="checkpoint.pt of train, to make the embeddings")
    verify.add_argument("--images", metavar="FOLDER", help="the images of the pairs, aligned as for training")
    verify.add_argument("--output", metavar="FOLDER", default="verification", help="default: verification/")
    verify.add_argument("--far", type=float, nargs="+", metavar="RATE", help="default: 0.001 0.01 0.1")
    verify.add_argument("--folds", type=int, default=10, metavar="K", help="folds of a plain list (default: 10)")
    verify.set_defaults(action=_verify)

    train = commands.add_parser("train", help="train on a face set as a file says", description=TRAIN_HELP)
    train.add_argument("config", metavar="CONFIG.yaml", help="what to train on what, and how")
    train.add_argument(
        "-p", dest="values", action="append", default=[], metavar="NAME=VALUE", help="one value, as data.path=faces"
    )
    train.add_argument("--device", metavar="DEVICE", help="cpu, cuda (default: REPROLIB_DEVICE, else what there is)")
    train.set_defaults(action=_train)
    return parser


def _fetch(arguments: argparse.Namespace) -> int:
    from reprolib import data

    for name in arguments.names or ["mnist", "orl"]:
        data.fetch(name, arguments.to, arguments.source)
    return 0


def _run(arguments: argparse.Namespace) -> int:
    from reprolib.experiment.parameters import parse_overrides
    from reprolib.experiment.runner import run_notebooks

    if arguments.same_bits:
        os.environ[SAME_BITS] = "1"
    if arguments.dask:
        from reprolib.experiment import cluster

        with cluster.connected(arguments.dask):
            os.environ[cluster.VARIABLE] = arguments.dask
    outcomes = run_notebooks(
        arguments.notebooks,
        arguments.profile,
        parse_overrides(arguments.parameters),
        force=arguments.force,
        save_outputs=arguments.save_outputs,
        results=Path(arguments.results).resolve() if arguments.results else None,
        at_once=arguments.at_once,
    )
    return int(any(outcome.status == "failed" for outcome in outcomes))


def _report(arguments: argparse.Namespace) -> int:
    from reprolib.experiment import report
    from reprolib.experiment.paths import write_atomically

    records = report.load_records(arguments.profile)
    print(report.overview(records))
    if arguments.html is not None:
        write_atomically(arguments.html, report.html_report(records))
        print(f"\nwritten to {arguments.html}")
    if arguments.commit:
        print(
            "\n".join(
                ["", *(f"written to {os.path.relpath(path)}" for path in report.commit_report(arguments.profile))]
            )
        )
    try:
        path = report.write_report(records)
    except OSError as error:
        print(f"reprolib report: the full report is not kept: {error}", file=sys.stderr)
    else:
        print(f"\nwritten in full to {os.path.relpath(path)}")
    return 0


def _claims(arguments: argparse.Namespace) -> int:
    from reprolib.experiment.report import list_claims, load_records

    print(list_claims(load_records(arguments.profile), arguments.paper))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from reprolib import verify

    fars, files = arguments.far or verify.DEFAULT_FARS, arguments.files
    wanted = 2 if arguments.model is None else 1
    if (arguments.model is None) != (arguments.images is None) or len(files) != wanted:
        raise ValueError("verify must get EMBEDDINGS PAIRS, or --model CHECKPOINT --images FOLDER PAIRS")
    if arguments.model is None:
        print(verify.run(files[0], files[1], arguments.output, fars, arguments.folds))
        return 0
    from reprolib.embeddings import embed_folder

    made = embed_folder(arguments.model, arguments.images, Path(arguments.output) / "embeddings.npz")
    print(verify.run(made, files[0], arguments.output, fars, arguments.folds))
    return 0


def _train(arguments: argparse.Namespace) -> int:
    from reprolib import config
    from reprolib.experiment.strict_yaml import parse_yaml, read_yaml
    from reprolib.loop import train

    values = read_yaml(Path(arguments.config), arguments.config)
    for pair in arguments.values:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"a value must be given as -p name=value, got {pair!r}")
        config.override(values, name, parse_yaml(text, f"the value of {name}"))
    outcome = train(
        config.parse(values, arguments.config), device=arguments.device or os.environ.get("REPROLIB_DEVICE")
    )
    for name, accuracy in outcome.results.items():
        print(f"{name}: {100 * accuracy:.2f} %")
    return 0 if outcome.stopped is None else 128 + outcome.stopped


class Stopped(KeyboardInterrupt):
    """A signal other than Ctrl-C asks the command to end; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.number = number


@contextlib.contextmanager
def _signals_end_the_command() -> Iterator[None]:
    """SIGTERM and SIGHUP (the terminal is closed) end the command as Ctrl-C does, unless they are ignored (nohup)."""

    def stop(number: int, frame: object) -> None:
        raise Stopped(number)

    before = {}
    for name in ("SIGTERM", "SIGHUP"):
        # Signals can be caught in the main thread only.
        with contextlib.suppress(AttributeError, ValueError):
            number = getattr(signal, name)
            if signal.getsignal(number) is signal.SIG_DFL:
                before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _never_fail_to_encode() -> None:
    """A character that the terminal or file cannot show is printed as its code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 done, 1 a notebook failed or data cannot be had, 2 wrong arguments, 128 + n ended by signal n.

    So 130 after Ctrl-C, 143 after SIGTERM, and 141 when the reader of the output is gone (`| head`).
    """
    _never_fail_to_encode()
    chosen = build_parser().parse_args(arguments)
    try:
        with _signals_end_the_command():
            status = chosen.action(chosen)
            if sys.stdout is not None:
                sys.stdout.flush()
        return status
    except BrokenPipeError:
        # What is still to be flushed when Python ends goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    except ModuleNotFoundError as error:
        needed = f"this command needs the package {error.name!r}; pip install 'reprolib[notebooks]' brings it"
        # a format of files says itself what it needs
        print(f"reprolib {chosen.command}: {error if 'pip install' in str(error) else needed}", file=sys.stderr)
        return 1
    except (ValueError, RuntimeError, OSError) as error:
        print(f"reprolib {chosen.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    except KeyboardInterrupt as stopped:
        print(f"reprolib {chosen.command}: {str(stopped) or 'interrupted'}", file=sys.stderr)
        return 128 + getattr(stopped, "number", signal.SIGINT)


if __name__ == "__main__":
    sys.exit(main())
