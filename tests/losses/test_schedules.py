"""Annealing and warm-up: published values, order of counting, and resuming."""

from __future__ import annotations

import copy
import math
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch import nn

from reprolib.losses.schedules import ANNEALING_PRESETS, AnnealedLambda


class TestAnnealedLambda:
    @pytest.mark.parametrize(
        ("preset", "iteration", "expected"),
        [
            ("l-softmax-mnist", 1, 999.0),
            ("l-softmax-mnist", 1000, 421.0),
            ("l-softmax-mnist", 5000, 16.2),
            ("l-softmax-mnist", 10000, 0.406),
            ("l-softmax-mnist", 20000, 6.9e-4),
            ("sphereface", 100, 76.9),
            ("sphereface", 1000, 8.26),
            ("sphereface", 28000, 5.0),
        ],
    )
    def test_values_of_the_published_examples(self, preset, iteration, expected):
        assert AnnealedLambda.preset(preset).at(iteration) == pytest.approx(expected, rel=5e-3)

    @pytest.mark.parametrize(("preset", "floor_at"), [("sphereface", 1659), ("sphereface-pytorch", 2990)])
    def test_first_iteration_at_the_floor(self, preset, floor_at):
        schedule = AnnealedLambda.preset(preset)
        assert schedule.at(floor_at) == 5.0
        assert schedule.at(floor_at - 1) > 5.0

    @pytest.mark.parametrize("preset", ANNEALING_PRESETS)
    def test_formula_and_monotony(self, preset):
        base, gamma, power, minimum = ANNEALING_PRESETS[preset]
        schedule = AnnealedLambda.preset(preset)
        values = [schedule.at(k) for k in range(0, 40000, 500)]
        exact = [max(minimum, math.exp(math.log(base) - power * math.log1p(gamma * k))) for k in range(0, 40000, 500)]
        assert values == pytest.approx(exact, rel=1e-12)
        assert all(a >= b for a, b in pairwise(values))

    def test_counts_from_one_in_training_and_not_in_evaluation(self):
        schedule = AnnealedLambda(1000.0, 0.12, 1.0, 5.0)
        assert schedule.value == 1000.0
        assert schedule() == schedule.at(1) == schedule.value
        schedule.eval()
        assert schedule() == schedule() == schedule.at(1)
        schedule.train()
        assert schedule() == schedule.at(2)
        assert int(schedule.iteration) == 2

    def test_base_zero_switches_it_off(self):
        assert AnnealedLambda(0.0, 1.0, 1.0).at(0) == 0.0

    def test_wrong_input(self):
        with pytest.raises(ValueError, match="base must be a finite number"):
            AnnealedLambda(-1.0, 0.1, 1.0)
        with pytest.raises(ValueError, match="gamma"):
            AnnealedLambda(1.0, math.nan, 1.0)
        with pytest.raises(ValueError, match="preset must be one of"):
            AnnealedLambda.preset("mnist")
        with pytest.raises(ValueError, match="iteration must be an integer >= 0"):
            AnnealedLambda.preset("sphereface").at(-1)


@pytest.mark.parametrize("make", [partial(AnnealedLambda.preset, name) for name in ("sphereface", "l-softmax-mnist")])
class TestState:
    def test_a_resumed_run_continues_bit_for_bit(self, make):
        through, first = make(), make()
        values = [through() for _ in range(20)]
        begun = [first() for _ in range(8)]
        second = make()
        second.load_state_dict(copy.deepcopy(first.state_dict()))
        assert begun + [second() for _ in range(12)] == values

    def test_the_count_is_a_buffer_of_the_module_that_holds_it(self, make):
        holder = nn.Module()
        holder.schedule = make()
        holder.schedule()
        assert {key: int(value) for key, value in holder.state_dict().items()} == {"schedule.iteration": 1}
        assert holder.half().schedule.iteration.dtype == torch.int64
        assert not list(holder.parameters())
