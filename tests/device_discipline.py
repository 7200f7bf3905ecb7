"""A pretended accelerator that needs none: tensors on ``meta``, and a mode that sees every operation on them.

Refused are a mix of devices, a random generator of another device, and whatever would make the host wait for the
device: reading a number, copying to the CPU, and results whose shape depends on values.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
HOST_READS = {
    getattr(aten, name)
    for name in ("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique2")
} | {aten.unique_dim, aten.unique_consecutive, aten.bincount}


class DeviceDiscipline(TorchDispatchMode):
    """Raises AssertionError where an accelerator would fail or the host would wait for it.

    With `answer` a read of one number gives that number and is counted in `reads`, for runs that may read now and then.
    """

    def __init__(self, answer: float | None = None) -> None:
        super().__init__()
        self.answer, self.reads = answer, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        # a number on the CPU may meet tensors of any device
        devices = {t.device.type for t in tensors if t.dim() > 0 or t.device.type != "cpu"}
        packet = func.overloadpacket
        if packet is aten._local_scalar_dense and "meta" in devices and self.answer is not None:
            self.reads += 1
            return self.answer
        if packet in HOST_READS and "meta" in devices:
            raise AssertionError(f"{func} makes the host wait for the device")
        target = kwargs.get("device")
        if packet is aten._to_copy and target is not None and "meta" in devices and torch.device(target).type == "cpu":
            raise AssertionError(f"{func} copies from the device to the host")
        if len(devices) > 1:
            copies_over = packet is aten.copy_ and args[0].device.type == "meta"
            if not copies_over:
                raise AssertionError(f"{func} mixes the devices {sorted(devices)}")
        for leaf in leaves:
            if isinstance(leaf, torch.Generator):
                wanted = torch.device(target).type if target is not None else next(iter(devices), "cpu")
                if wanted != leaf.device.type:
                    raise AssertionError(f"{func} draws on {wanted} with a generator of {leaf.device.type}")
        return func(*args, **kwargs)


def pretended(x: Any) -> Any:
    """A tensor or module moved to the pretended device; a tensor keeps whether it wants a gradient."""
    if isinstance(x, Tensor):
        return x.detach().to("meta").requires_grad_(x.requires_grad)
    return x.to("meta")
