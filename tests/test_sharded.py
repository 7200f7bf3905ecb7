"""Losses whose classes lie on several processes are those of one process: values, gradients, centres, in float64."""

from __future__ import annotations

import pytest
import ranks
import torch
from torch import multiprocessing

from reprolib.sharded import block, rank, world_size


def expected(name: str, plain: bool) -> dict:
    """By one process; the state is that after the loss and the plain one, in this order."""
    loss = ranks.made()[name]
    features, labels = ranks.batch()
    for last in (False, True)[: plain + 1]:
        loss.zero_grad(set_to_none=True)
        x = features.clone().requires_grad_()
        value = (loss.plain_loss if last else loss)(x, labels)
        value.backward()
    gradients = {key: p.grad for key, p in loss.named_parameters() if p.grad is not None}
    return {"value": value.detach(), "x": x.grad, "gradients": gradients, "state": loss.state_dict()}


@pytest.mark.parametrize("world", [2, 4])
def test_loss_and_gradients_are_those_of_one_process(world, tmp_path):
    multiprocessing.spawn(ranks.results, (world, tmp_path), nprocs=world)
    found = [torch.load(tmp_path / f"{one}.pt", weights_only=False) for one in range(world)]
    assert len(found[0]) == 2 * len(ranks.made())
    for name, plain in found[0]:
        want, parts = expected(name, plain), [one[name, plain] for one in found]
        for part in parts:
            assert float((part["value"] - want["value"]).abs()) <= 1e-10, (name, plain)
        features = torch.cat([part["x"] for part in parts])
        assert float((features - want["x"]).abs().max()) <= 1e-10, (name, plain)
        assert parts[0]["gradients"].keys() == want["gradients"].keys()
        for key, gradient in want["gradients"].items():
            difference = float((parts[0]["gradients"][key] - gradient).abs().max())
            assert difference <= 1e-10, (name, plain, key, difference)
        # weights, scale, strength, count of the annealing, centres
        for key, value in want["state"].items():
            assert float((parts[0]["state"][key] - value).abs().max()) <= 1e-10, (name, plain, key)


def test_blocks_cover_all_rows_in_order():
    for count in (4, 11, 12, 13):
        blocks = [block(count, one, 4) for one in range(4)]
        assert [row for rows in blocks for row in range(rows.start, rows.stop)] == list(range(count))
        assert blocks[0].stop - (blocks[3].stop - blocks[3].start) in (0, 1)
    assert (rank(), world_size()) == (0, 1)
