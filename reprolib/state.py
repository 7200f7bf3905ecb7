"""What changes as a run goes on, and the checkpoint that holds all of it, whatever the number of processes.

Process 0 writes: class weights and their momentum are gathered there. Each process reads the whole file and takes its
rows, so that a run may go on with more processes or fewer.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from reprolib import networks, sharded
from reprolib.batches import Batches
from reprolib.checkpoints import Checkpoint, digest, random_state, set_random_state
from reprolib.config import RunConfig, make_loss
from reprolib.training import augmentation_seed, check_run, head_of, make_optimizer

CHECKPOINT = "checkpoint.pt"


class State:
    """Network, loss, optimiser, random state and what was seen: started from the seed, written, and read again.

    `net` is the network as the processes train it together, `ranks` the loss over them, None where there is one.
    """

    def __init__(self, config: RunConfig, batches: Batches, device: torch.device) -> None:
        self.config, self.device, self.shape = config, device, batches.shape
        self.rank, self.world = sharded.rank(), sharded.world_size()
        self.num_classes, settings, net = batches.num_classes, config.training, config.network
        # as reprolib.training.fit starts them
        torch.manual_seed(config.seed)
        model: nn.Module = networks.build(net.name, net.embedding_dim, self.shape, **net.options)
        self.model = model.to(device).to(memory_format=torch.channels_last)
        torch.manual_seed(config.seed + 1)
        self.loss = make_loss(config.loss, net.embedding_dim, self.num_classes, config.seed)
        if net.start_from is not None:
            self.model.load_state_dict(read_checkpoint(Path(net.start_from))["model"])
        check_run(self.loss, batches.labels, batches.labels, replace(settings, bf16=False))
        self.ranks = sharded.ShardedLoss(self.loss) if self.world > 1 else None
        self.loss.to(device)
        self.head = head_of(self.loss)
        if self.rank:
            # what dropout draws differs from process to process
            torch.manual_seed(augmentation_seed(config.seed, -self.rank))
        self.net = nn.parallel.DistributedDataParallel(self.model) if self.world > 1 else self.model
        self.optimizer = make_optimizer(self.model, self.loss, settings, nesterov=config.nesterov)
        self.parameters = {f"model.{name}": p for name, p in self.model.named_parameters() if p.requires_grad}
        self.parameters |= {f"loss.{name}": p for name, p in self.loss.named_parameters() if p.requires_grad}
        self.history: list[dict[str, Any]] = []
        self.running = torch.zeros((), device=device)
        run = {name: digest(part) for name, part in config.identity().items()}
        run |= {"images": digest(batches.labels, self.num_classes, self.shape)}
        self.checkpoint = Checkpoint(Path(config.output) / CHECKPOINT, run, ())
        # a folder that cannot be made is found now, not at the first checkpoint
        Path(config.output).mkdir(parents=True, exist_ok=True)

    def is_sharded(self, name: str) -> bool:
        """Whether each process holds some rows of the tensor `name`, as "loss.weight"."""
        return self.ranks is not None and name.startswith("loss.") and self.ranks.is_sharded(name)

    def _whole(self, name: str, value: Tensor) -> Tensor | None:
        return self.ranks.whole(name, value) if self.ranks is not None and self.is_sharded(name) else value

    def _mine(self, name: str, value: Tensor) -> Tensor:
        return self.ranks.mine(name, value) if self.ranks is not None and self.is_sharded(name) else value

    def save(self, step: int) -> None:
        """Write the checkpoint: gathered on process 0, the same whatever the number of processes."""
        states: list[Any] = [random_state(self.device)]
        if self.world > 1:
            states = [None] * self.world
            distributed.all_gather_object(states, random_state(self.device))
        loss = {name: self._whole(f"loss.{name}", value) for name, value in self.loss.state_dict().items()}
        momentum = {}
        for name, parameter in self.parameters.items():
            buffer = self.optimizer.state.get(parameter, {}).get("momentum_buffer")
            if buffer is not None:
                momentum[name] = self._whole(name, buffer)
        if self.rank == 0:
            state = {"model": self.model.state_dict(), "loss": loss, "momentum": momentum, "step": step}
            told = {"running": self.running, "history": self.history, "random": states}
            about = {"config": self._description(), "shape": list(self.shape), "num_classes": self.num_classes}
            self.checkpoint.write(state | told | about)

    def _description(self) -> dict[str, Any]:
        """What `verify --model` needs to make the network anew and to prepare images for it."""
        net = self.config.network
        options = {key: list(value) if isinstance(value, tuple) else value for key, value in net.options.items()}
        crop = None if self.config.data.crop is None else list(self.config.data.crop)
        return {
            "network": {"name": net.name, "embedding_dim": net.embedding_dim, "options": options},
            "crop": crop,
            "grey": self.config.data.grey,
            "flip_sum": self.config.evaluation.flip_sum,
        }

    def resume(self) -> int:
        """The step to go on from; the state is that of the checkpoint, if there is one."""
        found = self.checkpoint.path.exists()
        if self.world > 1:
            all_found: list[Any] = [None] * self.world
            distributed.all_gather_object(all_found, found)
            if len(set(all_found)) > 1:
                raise ValueError(f"checkpoint {self.checkpoint.path} must be on a disk that all processes see")
        if not found:
            return 0
        state = self.checkpoint.read(torch.device("cpu"))
        self.model.load_state_dict(state["model"])
        seed = self.head.sampler.seed.clone() if getattr(self.head, "sampler", None) is not None else None
        self.loss.load_state_dict({name: self._mine(f"loss.{name}", value) for name, value in state["loss"].items()})
        if seed is not None:
            self.head.sampler.seed.copy_(seed)
        for name, value in state["momentum"].items():
            parameter = self.parameters[name]
            buffer = torch.empty_like(parameter, memory_format=torch.preserve_format)
            self.optimizer.state[parameter]["momentum_buffer"] = buffer.copy_(self._mine(name, value))
        self.history, self.running = state["history"], state["running"].to(self.device)
        if len(state["random"]) == self.world:
            set_random_state(self.device, state["random"][self.rank])
        else:
            # another number of processes: dropout draws anew, from the seed and the step
            torch.manual_seed(augmentation_seed(self.config.seed, -self.rank - self.world * (state["step"] + 1)))
        return int(state["step"])


def read_checkpoint(path: Path) -> dict[str, Any]:
    """The state in a checkpoint of `reprolib train`, on the CPU; ValueError in one sentence where there is none."""
    try:
        state = Checkpoint(path, {}, ()).read(torch.device("cpu"))
    except OSError as error:
        raise ValueError(f"checkpoint {path} cannot be read: {error.strerror or error}") from error
    if "config" not in state:
        raise ValueError(f"checkpoint {path} must be one of reprolib train, got that of another run")
    return state
