"""SGD with momentum whose step costs what the sampled rows cost, and which equals the dense step all the same.

While a row's loss gradient is 0, a step of SGD with momentum mu, weight decay l and learning rate h is linear in the
row's weight p and velocity v, with the same 2 x 2 matrix for every component:
    v <- mu v + l p,   p <- p - h v         (Nesterov: p <- p - h (l p + mu v), with the new v)
The product of the matrices since a row was last touched brings it up to date in one go. The products are numbers that
all rows share; one small table of them, in float64, is all that a step without the row costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from reprolib._checks import check_count, check_number


def idle_step(lr: float, momentum: float, weight_decay: float, nesterov: bool) -> Tensor:
    """(2, 2) float64: what one step without loss gradient makes of (p, v)."""
    # g = l p; v' = mu v + g; p' = p - h v', or p - h (g + mu v')
    velocity = (weight_decay, momentum)
    step = [momentum * entry for entry in velocity] if nesterov else list(velocity)
    if nesterov:
        step[0] += weight_decay
    return torch.tensor([[1.0 - lr * step[0], -lr * step[1]], velocity], dtype=torch.float64)


class SparseMomentumSGD(torch.optim.Optimizer):
    """SGD with momentum for parameters whose gradient is sparse by rows; dense gradients get the ordinary step.

    Equal to ``torch.optim.SGD`` on dense gradients except for rounding, also when lr changes from step to step. A row
    must be brought up to date before it is read: :meth:`attach` makes a head do it, :meth:`flush` does it for all.
    Every ``horizon`` steps all rows are, so that the table stays small.

    Args:
        params: parameters or groups, as for every optimiser of torch.
        lr: learning rate > 0.
        momentum: in [0, 1).
        weight_decay: coupled (L2) decay >= 0.
        nesterov: Nesterov momentum.
        horizon: steps between two passes over all rows.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        horizon: int = 1024,
    ) -> None:
        check_number(lr, "lr")
        check_number(momentum, "momentum", high=1.0 - 1e-12, closed=True)
        check_number(weight_decay, "weight_decay", closed=True)
        check_count(horizon, "horizon")
        self.horizon = horizon
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov})

    def attach(self, head: Any) -> None:
        """Bring the rows of ``head.weight`` up to date whenever the head reads them, all when its state is saved."""
        if not any(head.weight is p for group in self.param_groups for p in group["params"]):
            raise ValueError("the head's weight is not among this optimiser's parameters")
        head.row_hooks.append(partial(self.catch_up, head.weight))
        head.register_state_dict_pre_hook(partial(self._before_saving, head.weight))

    def _before_saving(self, weight: Tensor, *_: Any) -> None:
        self.catch_up(weight, None)

    @torch.no_grad()
    def catch_up(self, weight: Tensor, rows: Tensor | None) -> None:
        """Bring ``rows`` (K,) int64 without repeats, or all rows if None, of a parameter up to date, in place."""
        state = self.state.get(weight)
        if not state or "last" not in state:
            return
        now = len(state["carry"]) - 1
        last = state["last"]
        behind = (last < now).nonzero().squeeze(1) if rows is None else rows[last[rows] < now]
        if not len(behind):
            return
        carry = state["carry"][last[behind].to(state["carry"].device)].to(weight)
        p, v = weight[behind], state["velocity"][behind]
        weight[behind] = carry[:, 0, :1] * p + carry[:, 0, 1:] * v
        state["velocity"][behind] = carry[:, 1, :1] * p + carry[:, 1, 1:] * v
        last[behind] = now

    def flush(self) -> None:
        """Bring every row of every parameter up to date."""
        for group in self.param_groups:
            for p in group["params"]:
                self.catch_up(p, None)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step; ``closure`` re-evaluates the loss, as for every optimiser of torch."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "velocity" not in state:
                    state["velocity"] = torch.zeros_like(p)
                if p.grad.is_sparse:
                    self._sparse_step(p, p.grad.coalesce(), state, group)
                elif "last" in state:
                    raise ValueError("a parameter that had sparse gradients now has a dense one; call it with one kind")
                else:
                    self._update(p, p.grad, state["velocity"], group)
        return loss

    def _update(self, p: Tensor, grad: Tensor, velocity: Tensor, group: dict[str, Any]) -> None:
        grad = grad + group["weight_decay"] * p
        velocity.mul_(group["momentum"]).add_(grad)
        p.sub_(group["lr"] * (grad + group["momentum"] * velocity if group["nesterov"] else velocity))

    def _sparse_step(self, p: Tensor, grad: Tensor, state: dict[str, Any], group: dict[str, Any]) -> None:
        if "last" not in state:
            state["last"] = torch.zeros(p.shape[0], dtype=torch.int64, device=p.device)
            state["carry"] = torch.eye(2, dtype=torch.float64)[None]
        rows = grad.indices()[0]
        self.catch_up(p, rows)
        values, velocity = p[rows], state["velocity"][rows]
        self._update(values, grad.values(), velocity, group)
        p[rows], state["velocity"][rows] = values, velocity
        # every product since an earlier step grows by this step's matrix; the newest entry is the identity
        matrix = idle_step(*(group[name] for name in ("lr", "momentum", "weight_decay", "nesterov")))
        state["carry"] = torch.cat([matrix @ state["carry"], torch.eye(2, dtype=torch.float64)[None]])
        state["last"][rows] = len(state["carry"]) - 1
        if len(state["carry"]) > self.horizon:
            self.catch_up(p, None)
            state["last"].zero_()
            state["carry"] = torch.eye(2, dtype=torch.float64)[None]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As for every optimiser of torch; the table and the row counts keep their own types."""
        super().load_state_dict(state_dict)
        saved = [key for group in state_dict["param_groups"] for key in group["params"]]
        mine = [p for group in self.param_groups for p in group["params"]]
        for key, p in zip(saved, mine, strict=True):
            old = state_dict["state"].get(key, {})
            if "last" in old:
                self.state[p]["last"] = old["last"].to(p.device, torch.int64, copy=True)
                self.state[p]["carry"] = old["carry"].to("cpu", torch.float64, copy=True)
