"""Embeddings of a folder of images by a network that `reprolib train` made, in the format that `verify` reads."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from reprolib import networks
from reprolib.batches import prepare
from reprolib.data.files import write_atomic
from reprolib.data.pixels import decode_tensor
from reprolib.state import read_checkpoint
from reprolib.training import embed

ENDINGS = (".jpg", ".jpeg", ".png")


def embed_folder(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    batch_size: int = 128,
) -> Path:
    """Write the embeddings of all images in `folder` and below it to `path`; their names are relative paths.

    Images are cropped, turned grey and merged with their mirror images as in the training that wrote `checkpoint`.
    Raises ValueError for a file that is no such checkpoint, a folder without images, and an image of a size that the
    network does not take.
    """
    state = read_checkpoint(Path(checkpoint))
    about, shape = state["config"], tuple(state["shape"])
    net = about["network"]
    options = {key: tuple(v) if isinstance(v, list) else v for key, v in net["options"].items()}
    model = networks.build(net["name"], net["embedding_dim"], shape, **options)
    model.load_state_dict(state["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device).to(memory_format=torch.channels_last).eval()
    names = sorted(
        os.path.relpath(os.path.join(base, file), folder)
        for base, _, files in os.walk(folder)
        for file in files
        if file.lower().endswith(ENDINGS)
    )
    if not names:
        raise ValueError(f"--images must be a folder with JPEG or PNG files, got {folder}")
    crop = None if about["crop"] is None else tuple(about["crop"])
    parts = []
    starts = range(0, len(names), batch_size)
    for begin in tqdm(starts, "embeddings", unit="batch", disable=None, leave=False, file=sys.stderr):
        images = []
        for name in names[begin : begin + batch_size]:
            image = decode_tensor((Path(folder) / name).read_bytes(), str(Path(folder) / name))
            image = prepare(image[None], crop, about["grey"])[0]
            if tuple(image.shape) != shape:
                raise ValueError(f"image {name} must have the shape {shape} of the network, got {tuple(image.shape)}")
            images.append(image)
        parts.append(embed(model, torch.stack(images).to(device), flip_sum=about["flip_sum"]).cpu())
    stream = io.BytesIO()
    np.savez(stream, embeddings=torch.cat(parts).numpy(), names=np.array(names))
    write_atomic(Path(path), stream.getvalue())
    return Path(path)
