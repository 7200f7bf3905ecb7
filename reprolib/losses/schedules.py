"""Annealing whose state is a buffer, so that a resumed run continues bit for bit.

It counts the training steps it has served: in training mode each call first adds 1 to `iteration`,
then returns the value at that iteration, so that the first step is iteration 1 (the count of the L-Softmax
and SphereFace layers). In evaluation mode a call, and `value` always, returns the current value and changes
nothing. `at` is the plain function of the iteration, for plots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reprolib._checks import check_choice, check_count, check_number
from reprolib.losses.distance import widened

# name: (base, gamma, power, minimum), as configured in the authors' repositories, and one popular port.
ANNEALING_PRESETS: dict[str, tuple[float, float, float, float]] = {
    "l-softmax-mnist": (1000.0, 0.000025, 35.0, 0.0),
    "l-softmax-cifar10": (1000.0, 0.00002, 45.0, 0.0),
    "l-softmax-cifar10+": (1000.0, 0.00001, 45.0, 0.0),
    "sphereface": (1000.0, 0.12, 1.0, 5.0),
    "sphereface-pytorch": (1500.0, 0.1, 1.0, 5.0),
}


class AnnealedLambda(nn.Module):
    """lambda = max(minimum, base (1 + gamma iteration)^-power), the weight of cos(theta) against psi(theta).

    The annealed target logit of L-Softmax and A-Softmax (Liu et al. 2016; 2017, appendix G) is ||x|| (lambda
    cos(theta) + psi(theta))/(1 + lambda). base, gamma, power, minimum >= 0; base = 0 switches it off. The
    sources' layers keep the count outside their saved state and restart it on resuming.
    """

    iteration: Tensor

    def __init__(self, base: float, gamma: float, power: float, minimum: float = 0.0) -> None:
        super().__init__()
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        for name, number in (("base", base), ("gamma", gamma), ("power", power), ("minimum", minimum)):
            check_number(number, name, closed=True)
        self.base, self.gamma, self.power, self.minimum = map(float, (base, gamma, power, minimum))

    @classmethod
    def preset(cls, name: str) -> AnnealedLambda:
        """The constants of a published example, by a name of `ANNEALING_PRESETS`."""
        check_choice(name, "preset", tuple(ANNEALING_PRESETS))
        return cls(*ANNEALING_PRESETS[name])

    def at(self, iteration: int) -> float:
        """lambda at `iteration` >= 0."""
        check_count(iteration, "iteration", low=0)
        return max(self.minimum, self.base * (1 + self.gamma * iteration) ** -self.power)

    @property
    def value(self) -> float:
        """lambda at the current iteration."""
        return self.at(int(self.iteration))

    def forward(self) -> Tensor:
        """lambda for this step, a scalar on the buffer's device; in training mode the step is counted first."""
        if self.training:
            self.iteration += 1
        # lambda = max(minimum, base (1 + gamma iteration)^-power)
        steps = widened(self.iteration)
        return (self.base * (1 + self.gamma * steps) ** -self.power).clamp_min(self.minimum)

    def extra_repr(self) -> str:
        return f"base={self.base}, gamma={self.gamma}, power={self.power}, minimum={self.minimum}"
