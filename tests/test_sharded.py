"""Losses whose classes lie on several processes are those of one process: values, gradients, centres, in float64."""

from __future__ import annotations

import pytest
import ranks
import torch
from torch import distributed, multiprocessing

from reprolib.losses import ASoftmax, CosFace, PartialFC, SampledSoftmax
from reprolib.sharded import ShardedLoss, block, rank, world_size


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


@pytest.fixture
def alone(tmp_path):
    """A group of one process."""
    distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield
    distributed.destroy_process_group()


@pytest.mark.parametrize("rate", [0.05, 0.4])
@pytest.mark.parametrize("corrected", [False, True])
def test_partial_fc_draws_the_same_classes_and_gives_the_same_gradient(alone, rate, corrected):
    for labels in (ranks.batch()[1], torch.full((ranks.BATCH,), 3)):
        found = []
        for wrap in (lambda loss: loss, ShardedLoss):
            torch.manual_seed(0)
            sampler = PartialFC(rate, corrected=corrected, seed=4)
            loss = CosFace(ranks.IN_FEATURES, ranks.CLASSES, margin=0.2, scale=9.0, sampler=sampler).double()
            x = ranks.batch()[0].requires_grad_()
            value = wrap(loss)(x, labels)
            value.backward()
            found.append((value.detach(), x.grad, loss.weight.grad))
        for one, other in zip(*found, strict=True):
            assert bool(one.isfinite().all()) and float((one - other).abs().max()) <= 1e-10


def test_what_several_processes_cannot_do_is_refused(alone):
    for loss, message in (
        (ASoftmax(4, 6, gradient="caffe"), "must be trained by one process"),
        (CosFace(4, 6, sampler=SampledSoftmax(3)), "sampler must be PartialFC"),
        (CosFace(4, 6, drop=2.0**-12), "drop and sparse_grad must be off"),
    ):
        with pytest.raises(ValueError, match=message):
            ShardedLoss(loss)
