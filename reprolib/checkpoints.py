"""The file that an interrupted run goes on from; refused where it is damaged or belongs to another run."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reprolib.data.files import open_atomic


def digest(*parts: Any) -> str:
    """32 hex digits of what `parts` hold: the bytes, type and shape of tensors, the `repr` of all else."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        if isinstance(part, Tensor):
            digest.update(f"{part.dtype} {tuple(part.shape)}".encode())
            digest.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def shapes(module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of all parameters and buffers."""
    return [(name, tuple(value.shape)) for name, value in module.state_dict().items()]


def hyper(module: nn.Module) -> list[Any]:
    """Numbers and names that the parts of a module were made with."""
    plain = [{k: v for k, v in vars(part).items() if isinstance(v, int | float | str)} for part in module.modules()]
    return [repr(module), [sorted((k, v) for k, v in part.items() if k != "training") for part in plain]]


def random_state(device: torch.device) -> list[Tensor]:
    """What dropout draws from."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def set_random_state(device: torch.device, states: list[Tensor]) -> None:
    """Put back what `random_state` gave."""
    torch.set_rng_state(states[0].cpu())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1].cpu(), device)


class Checkpoint:
    """One file: a digest of 32 bytes, then the state of a run as `torch.save` writes it.

    `run` holds a digest of each thing that tells one run from another; those named in `may_differ` are not compared.
    """

    def __init__(self, path: Path, run: dict[str, str], may_differ: tuple[str, ...]) -> None:
        self.path, self.run, self.may_differ = path, run, may_differ

    def write(self, state: dict[str, Any]) -> None:
        """Write `state`, tensors and plain values, with what tells its run from others."""
        stream = io.BytesIO()
        torch.save(state | {"run": self.run}, stream)
        raw = stream.getvalue()
        with open_atomic(self.path) as file:
            file.write(hashlib.sha256(raw).digest())
            file.write(raw)

    def read(self, device: torch.device) -> dict[str, Any]:
        """The state, on `device`; `ValueError` for a damaged file and for that of another run, naming what differs."""
        content = self.path.read_bytes()
        digest, raw = content[:32], content[32:]
        if hashlib.sha256(raw).digest() != digest:
            raise ValueError(f"checkpoint {self.path} is damaged or no checkpoint of a run; remove it to start anew")
        state = torch.load(io.BytesIO(raw), map_location=device, weights_only=True)
        names = [name for name in self.run if self.run[name] != state["run"].get(name) and name not in self.may_differ]
        if names:
            other = "another " + ", another ".join(names)
            raise ValueError(f"checkpoint {self.path} belongs to a run with {other}; remove it or name another file")
        return state
