"""Target functions phi(cos theta) of the margin losses, each with its derivative in closed form.

A margin replaces the target logit ``s cos(theta_y)`` by ``s phi(theta_y)``. The head in
:mod:`reprolib.losses.margin_softmax` needs two numbers for it: the value phi and the slope
``D = d phi / d cos(theta)``. Both are given here for every paper of the suite, finite at theta = 0 and
theta = pi in every floating type (half types are computed in float32).

``strength`` t in [0, 1] is the warm-up: additive margins use ``t m``; the multiplicative one uses the papers'
annealed logit ``(lambda cos + psi) / (1 + lambda)`` with ``t = 1 / (1 + lambda)``.
"""

from __future__ import annotations

import math
from numbers import Integral

import torch
from torch import Tensor

from reprolib._checks import check_choice, check_number
from reprolib.losses.distance import at_least_float32, root, widened

# the last numbers inside the half-open ranges [0, 2), [0, pi), and the first outside (0, 10]
BELOW_2, BELOW_PI, ABOVE_10 = math.nextafter(2.0, 0.0), math.nextafter(math.pi, 0.0), math.nextafter(10.0, 11.0)
GUARDS = ("none", "hard", "easy", "clamp", "mirror")


def safe_cosine(cosine: Tensor) -> Tensor:
    """The cosine in at least float32, clamped to [-1, 1] (rounding may exceed it by an ulp)."""
    return at_least_float32(cosine).clamp(-1.0, 1.0)


def exact_sine(cosine: Tensor) -> Tensor:
    """sin(theta) = sqrt((1 - cos)(1 + cos)), exactly 0 at cos = +-1, with a finite (zero) derivative there."""
    square = ((1.0 - cosine) * (1.0 + cosine)).clamp_min(0.0)
    return torch.where(square > 0, root(square.clamp_min(torch.finfo(cosine.dtype).tiny)), square)


def safe_sine(cosine: Tensor) -> Tensor:
    """sin(theta) = sqrt(1 - cos^2), kept >= sqrt(machine epsilon) so that a slope 1/sin(theta) stays finite."""
    # (1 - c)(1 + c) loses no digits near |c| = 1, where 1 - c^2 would.
    square = (1.0 - cosine) * (1.0 + cosine)
    return root(square.clamp_min(torch.finfo(cosine.dtype).eps))


class Margin:
    """A target function phi(cos theta). Subclasses give :meth:`_value_and_slope` for wide, clamped cosines."""

    is_identity = False

    def value_and_slope(self, cosine: Tensor, strength: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        """Return (phi, d phi / d cos), both of the shape and dtype of ``cosine`` (cosines of the target angle)."""
        if isinstance(strength, Tensor):
            # a head in half precision keeps its strength in half, which would round the margin too
            strength = strength.to(cosine.dtype)
        value, slope = self._value_and_slope(safe_cosine(cosine), strength)
        return value.to(cosine.dtype), slope.to(cosine.dtype)

    def _value_and_slope(self, cosine: Tensor, strength: float | Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__name__} does not define a target function")

    def __repr__(self) -> str:
        inside = ", ".join(f"{key}={value!r}" for key, value in vars(self).items())
        return f"{type(self).__name__}({inside})"


class NoMargin(Margin):
    """phi(theta) = cos(theta): softmax, L2-Softmax, NormFace."""

    is_identity = True

    def _value_and_slope(self, cosine: Tensor, strength: float | Tensor) -> tuple[Tensor, Tensor]:
        return cosine, torch.ones_like(cosine)


class MultiplicativeAngular(Margin):
    """psi(theta) = (-1)^k cos(m theta) - 2k on [k pi/m, (k+1) pi/m] (L-Softmax eq. 6; A-Softmax; notebook 03).

    cos(m theta) is the Chebyshev polynomial T_m(cos theta), so no arccos is needed, and
    d psi / d cos = (-1)^k m U_{m-1}(cos theta) = m |sin(m theta)| / sin(theta), which is m^2 at both ends.

    Args:
        m: the integer multiplier, 1 to 10.
    """

    m: int

    def __init__(self, m: int) -> None:
        if isinstance(m, bool) or not isinstance(m, Integral) or not 1 <= m <= 10:
            raise ValueError(f"the angular multiplier m must be an integer from 1 to 10, got {m!r}")
        self.m = int(m)

    def _value_and_slope(self, cosine: Tensor, strength: float | Tensor) -> tuple[Tensor, Tensor]:
        # T_0 = 1, T_1 = c, T_{n+1} = 2c T_n - T_{n-1};  U_0 = 1, U_1 = 2c, same recurrence
        t_before, t = torch.ones_like(cosine), cosine
        u_before, u = torch.zeros_like(cosine), torch.ones_like(cosine)
        for _ in range(self.m - 1):
            t_before, t = t, 2.0 * cosine * t - t_before
            u_before, u = u, 2.0 * cosine * u - u_before
        # k = number of knots j pi/m (0 < j < m) that theta has passed
        k = torch.zeros_like(cosine)
        for j in range(1, self.m):
            k = k + (cosine < math.cos(j * math.pi / self.m)).to(cosine.dtype)
        sign = 1.0 - 2.0 * torch.remainder(k, 2.0)
        psi = sign * t - 2.0 * k
        slope = (sign * self.m * u).clamp_min(0.0)
        # annealed logit (lambda cos + psi) / (1 + lambda), t = 1 / (1 + lambda)
        return cosine + strength * (psi - cosine), 1.0 + strength * (slope - 1.0)


class AdditiveCosine(Margin):
    """phi(theta) = cos(theta) - m (CosFace eq. 4; AM-Softmax; notebook 04).

    Args:
        m: the margin in units of cosine, 0 <= m < 2.
    """

    def __init__(self, m: float) -> None:
        check_number(m, "the cosine margin m", high=BELOW_2, closed=True)
        self.m = float(m)

    def _value_and_slope(self, cosine: Tensor, strength: float | Tensor) -> tuple[Tensor, Tensor]:
        return cosine - strength * self.m, torch.ones_like(cosine)


class AdditiveAngular(Margin):
    """phi(theta) = cos(theta + m) (ArcFace eq. 3; notebook 05), with the guards in use for theta > pi - m.

    d phi / d cos = sin(theta + m) / sin(theta), unbounded as theta -> 0; it is capped through
    :func:`safe_sine`, and the gradient in x, which carries another factor sin(theta), stays |sin(theta + m)| / ||x||.

    Args:
        m: the margin in radians, 0 <= m < pi.
        guard: ``none`` (the paper), ``hard`` (cos theta - m sin m beyond pi - m), ``easy`` (cos theta beyond
            pi/2), ``clamp`` (cos(min(theta + m, pi))), ``mirror`` (-2 - cos(theta + m) beyond pi - m).
    """

    def __init__(self, m: float, guard: str = "none") -> None:
        check_number(m, "the angular margin m (radians)", high=BELOW_PI, closed=True)
        check_choice(guard, "guard", GUARDS)
        self.m = float(m)
        self.guard = guard

    def _value_and_slope(self, cosine: Tensor, strength: float | Tensor) -> tuple[Tensor, Tensor]:
        m = torch.as_tensor(strength * self.m, dtype=cosine.dtype, device=cosine.device)
        cos_m, sin_m = widened(m).cos().to(m.dtype), widened(m).sin().to(m.dtype)
        # cos(theta + m) = cos(theta) cos(m) - sin(theta) sin(m)
        value = cosine * cos_m - exact_sine(cosine) * sin_m
        # d cos(theta + m) / d cos(theta) = cos(m) + sin(m) cos(theta) / sin(theta)
        slope = cos_m + sin_m * cosine / safe_sine(cosine)
        if self.guard == "none":
            return value, slope
        one = torch.ones_like(cosine)
        if self.guard == "easy":
            return torch.where(cosine > 0, value, cosine), torch.where(cosine > 0, slope, one)
        # theta <= pi - m  <=>  cos(theta) >= -cos(m)
        inside = cosine >= -cos_m
        if self.guard == "hard":
            return torch.where(inside, value, cosine - m * sin_m), torch.where(inside, slope, one)
        if self.guard == "clamp":
            return torch.where(inside, value, -one), torch.where(inside, slope, torch.zeros_like(cosine))
        return torch.where(inside, value, -2.0 - value), torch.where(inside, slope, -slope)


class CombinedAngular(Margin):
    """phi(theta) = cos(m1 theta + m2) - m3 with real m1 (ArcFace eq. 4; notebook 05).

    d phi / d cos = m1 sin(m1 theta + m2) / sin(theta). Not monotone once m1 theta + m2 > pi.

    Args:
        m1: angular multiplier, 0 < m1 <= 10.
        m2: angular margin in radians, 0 <= m2 < pi.
        m3: cosine margin, 0 <= m3 < 2.
    """

    def __init__(self, m1: float = 1.0, m2: float = 0.0, m3: float = 0.0) -> None:
        check_number(m1, "the angular multiplier m1", high=ABOVE_10)
        check_number(m2, "the angular margin m2 (radians)", high=BELOW_PI, closed=True)
        check_number(m3, "the cosine margin m3", high=BELOW_2, closed=True)
        self.m1, self.m2, self.m3 = float(m1), float(m2), float(m3)

    def _value_and_slope(self, cosine: Tensor, strength: float | Tensor) -> tuple[Tensor, Tensor]:
        m1 = 1.0 + strength * (self.m1 - 1.0)
        # arccos(c) as atan2(sin, cos): accurate at both ends
        wide, sine = widened(cosine), safe_sine(cosine)
        value = (m1 * torch.atan2(widened(exact_sine(cosine)), wide) + strength * self.m2).cos() - strength * self.m3
        slope = m1 * (m1 * torch.atan2(widened(sine), wide) + strength * self.m2).sin() / sine
        return value.to(cosine.dtype), slope.to(cosine.dtype)


class StraightThrough(Margin):
    """The margin's value with slope 1: what insightface and opensphere compute (notebook 05).

    Their code changes the target logit under ``no_grad``, so that automatic differentiation sees the identity.
    """

    def __init__(self, margin: Margin) -> None:
        if not isinstance(margin, Margin):
            raise TypeError(f"StraightThrough wraps a Margin, got {type(margin).__name__}")
        self.margin = margin

    def _value_and_slope(self, cosine: Tensor, strength: float | Tensor) -> tuple[Tensor, Tensor]:
        value, _ = self.margin._value_and_slope(cosine, strength)
        # value without gradient, plus cos - cos: autograd, too, sees the identity
        value = value.detach() + (cosine - cosine.detach())
        return value, torch.ones_like(cosine)
