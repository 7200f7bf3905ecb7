"""Checkpoints: what tells runs apart is content; the tests of the training loop use them whole."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from reprolib.checkpoints import Checkpoint, digest, hyper
from reprolib.losses import ArcFace, CenterLoss, JointLoss, NormFace, Softmax


def test_a_digest_sees_every_element_type_and_shape():
    base = torch.arange(6, dtype=torch.float32)
    changed = base.clone()
    changed[3] = 3.0000002
    others = [changed, base.half(), base.bfloat16(), base.view(2, 3), base[:5], base[:0], base.double(), "tensor"]
    assert len({digest(one) for one in [base, *others]}) == len(others) + 1
    assert digest(base.view(2, 3).t().contiguous().t()) == digest(base.view(2, 3))
    assert digest(base) == digest(base.clone()) and digest(base, base) != digest(base)


def test_hyper_parameters_of_a_loss_and_of_its_parts_are_seen():
    def joint(weight, rate=0.5, margin=0.2):
        return JointLoss(ArcFace(4, 3, m=margin), CenterLoss(3, 4, rate), weight)

    made = [joint(0.1), joint(0.2), joint(0.1, rate=0.4), joint(0.1, margin=0.3), Softmax(4, 3), NormFace(4, 3)]
    assert len({digest(hyper(one)) for one in made}) == len(made)
    # neither the weights nor the mode count
    assert digest(hyper(joint(0.1))) == digest(hyper(joint(0.1).eval()))
    assert digest(hyper(nn.Dropout(0.1))) != digest(hyper(nn.Dropout(0.2)))


def test_a_checkpoint_comes_back_and_names_what_differs(tmp_path):
    path = tmp_path / "deep" / "run.pt"
    Checkpoint(path, {"data": "a", "seed": "1"}, ()).write({"step": 3, "x": torch.ones(2)})
    state = Checkpoint(path, {"data": "a", "seed": "1"}, ()).read(torch.device("cpu"))
    assert state["step"] == 3 and torch.equal(state["x"], torch.ones(2))
    with pytest.raises(ValueError, match="another data, another seed; remove it"):
        Checkpoint(path, {"data": "b", "seed": "2"}, ()).read(torch.device("cpu"))
    assert Checkpoint(path, {"data": "a", "seed": "2"}, ("seed",)).read(torch.device("cpu"))["step"] == 3
    assert [file.name for file in path.parent.iterdir()] == ["run.pt"]
