"""The images of a run that stay on the disk: each process's part of each batch, as the network gets them.

Which images make the batch of a step, and how each is mirrored and moved, follows from the seed and the step alone, so
that a run goes on anywhere, on any number of processes.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from reprolib import data, sharded
from reprolib.config import RunConfig
from reprolib.data.archives import FaceArchives
from reprolib.data.pixels import to_grey
from reprolib.data.sampling import PKSampler
from reprolib.training import Shuffled, augmentation_seed, flip_and_shift, steps_of

# SIGHUP: the terminal was closed
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")
# images that are read at once into the memory
READ_AT_ONCE = 256
# how often an epoch may unpack a compressed tar from its beginning
REREADS = 20


def prepare(images: Tensor, crop: tuple[int, int] | None, grey: bool) -> Tensor:
    """uint8 images (n, 3, H, W) as the network gets them: their middle, in grey if asked for."""
    if crop is not None:
        height, width = images.shape[-2:]
        if crop[0] > height or crop[1] > width:
            raise ValueError(f"data.crop must fit into images of {height} x {width} pixels, got {list(crop)}")
        top, left = (height - crop[0]) // 2, (width - crop[1]) // 2
        images = images[..., top : top + crop[0], left : left + crop[1]]
    return to_grey(images) if grey else images


class Prepared(Dataset[tuple[Tensor, Tensor]]):
    """A face set whose items at a list of indices are one batch: uint8 images (n, C, H, W) and labels (n,)."""

    def __init__(self, faces: Any, crop: tuple[int, int] | None, grey: bool) -> None:
        self.faces, self.crop, self.grey = faces, crop, grey

    def __len__(self) -> int:
        return len(self.faces)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        items = self.faces.__getitems__(list(indices))
        one_size([image.shape for image, _ in items])
        images = torch.stack([image for image, _ in items])
        return prepare(images, self.crop, self.grey), torch.tensor([label for _, label in items])


def one_size(shapes: Sequence[Sequence[int]]) -> None:
    """ValueError unless all `shapes` are the same."""
    if len(found := {tuple(shape) for shape in shapes}) > 1:
        raise ValueError(f"images must have one size, got {' and '.join(map(str, sorted(found)[:2]))} in a set")


def _as_it_is(batch: Any) -> Any:
    """A collate function for items that are a batch already; a function, so that workers may be spawned."""
    return batch


def _leave_signals_alone(worker: int) -> None:
    """In a worker of a loader: a signal to all processes of a job must not end it before its run has stopped.

    It ends when the loader or the process that it works for does.
    """
    for name in SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


class _Once:
    """The lists of indices that `make` gives, as a batch sampler."""

    def __init__(self, make: Callable[[], Iterator[list[int]]]) -> None:
        self.make = make

    def __iter__(self) -> Iterator[list[int]]:
        return self.make()


class Batches:
    """The face set of a run and this process's part of its batches; `total` steps in all.

    Raises ValueError for a batch that the processes cannot share, and for a large compressed tar that is not read into
    the memory.
    """

    def __init__(self, config: RunConfig, device: torch.device, stream: TextIO) -> None:
        self.config, self.device, self.stream = config, device, stream
        self.rank, self.world = sharded.rank(), sharded.world_size()
        settings = config.training
        if settings.batch_size % self.world:
            raise ValueError(f"batch_size must be a multiple of {self.world} processes, got {settings.batch_size}")
        self.faces = data.open_faces(config.data.path, config.data.skip, config.data.index)
        self.labels = torch.as_tensor(self.faces.labels).long()
        self.num_classes = int(self.faces.num_classes)
        self.images = Prepared(self.faces, config.data.crop, config.data.grey)
        self.shape: tuple[int, int, int] = tuple(self.images[0][0].shape)  # type: ignore[assignment]
        self.left_out = 0
        self.sampler = self._sampler()
        self.total = len(self.sampler) * settings.epochs if settings.steps is None else settings.steps
        self._memory: Tensor | None = None
        if not config.data.in_memory:
            self._check_order()

    def _sampler(self) -> Any:
        size, each = self.config.training.batch_size, self.config.per_class
        if each is None:
            return Shuffled(len(self.labels), size, torch.device("cpu"))
        sampler = PKSampler(self.labels, size // each, each, torch.Generator(), few="leave out")
        self.left_out = len(sampler.left_out)
        return sampler

    @property
    def _places(self) -> np.ndarray:
        """Where each image lies on the disk."""
        return self.faces._places

    def _check_order(self) -> None:
        """A shuffled epoch must not unpack a compressed tar over and over."""
        if not isinstance(self.faces, FaceArchives):
            return
        size, count = self.config.training.batch_size, min(self.total, len(self.sampler))
        rows = np.random.default_rng(0).permutation(len(self.labels))
        # the images of a batch are read in the order of the disk
        parts = (rows[i : i + size] for i in range(0, size * count, size))
        if self.faces.rereads(np.concatenate([part[np.argsort(self._places[part])] for part in parts])) > REREADS:
            raise ValueError(
                f"data.in_memory must be true for {self.config.data.path}, a compressed tar, which can only be read "
                "from its beginning; or write the set as .rec or .tar by data_scripts/prepare_faces.py"
            )

    def of_steps(self, first: int) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's images and labels of each step from `first` on."""
        size = self.config.training.batch_size // self.world
        part = slice(self.rank * size, (self.rank + 1) * size)

        def indices() -> Iterator[list[int]]:
            for _, index in steps_of(self.sampler, self.config.seed, first, self.total):
                yield index[part].tolist()

        if self.config.data.in_memory:
            memory = self._in_memory()
            for rows in indices():
                yield memory[torch.tensor(rows, device=self.device)], self.labels[rows]
            return
        workers = self.config.data.workers
        yield from self._loader(_Once(indices), pin_memory=self.device.type == "cuda", ahead=4 if workers else None)

    def _loader(self, indices: Any, *, pin_memory: bool = False, ahead: int | None = None) -> DataLoader[Any]:
        return DataLoader(
            self.images,
            batch_sampler=indices,
            collate_fn=_as_it_is,
            num_workers=self.config.data.workers,
            worker_init_fn=_leave_signals_alone,
            pin_memory=pin_memory,
            prefetch_factor=ahead,
            # a generator of its own: the loader's seed must not be drawn from that of dropout
            generator=torch.Generator(),
        )

    def _in_memory(self) -> Tensor:
        """All images, read once in the order of the disk."""
        if self._memory is None:
            order = np.argsort(self._places, kind="stable").tolist()
            parts = [order[i : i + READ_AT_ONCE] for i in range(0, len(order), READ_AT_ONCE)]
            memory = torch.empty(len(order), *self.shape, dtype=torch.uint8)
            hidden = None if self.rank == 0 else True
            shown = tqdm(self._loader(parts), "images", disable=hidden, leave=False, file=self.stream)
            for rows, (images, _) in zip(parts, shown, strict=True):
                one_size([self.shape, images.shape[1:]])
                memory[rows] = images
            self._memory = memory.to(self.device)
        return self._memory

    def augment(self, images: Tensor, step: int) -> Tensor:
        """Mirrored and moved as the whole batch of `step` would be, whichever part of it `images` are."""
        settings = self.config.training
        if not settings.flip and not settings.shift:
            return images
        generator = torch.Generator().manual_seed(augmentation_seed(self.config.seed, step))
        if self.world == 1:
            return flip_and_shift(images, generator, flip=settings.flip, shift=settings.shift)
        part = slice(self.rank * len(images), (self.rank + 1) * len(images))
        whole = images.new_zeros(settings.batch_size, *images.shape[1:])
        whole[part] = images
        return flip_and_shift(whole, generator, flip=settings.flip, shift=settings.shift)[part]
