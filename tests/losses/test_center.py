"""Center loss, its four centre updates as loops over the definitions, and the joint loss."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from reprolib.losses import ArcFace
from reprolib.losses.center import CENTER_UPDATES, CenterLoss, JointLoss, center_step


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


FEATURES = draw(9, 3)
LABELS = torch.tensor([0, 2, 2, 0, 0, 4, 2, 0, 4])


def filled(update: str = "paper", alpha: float = 0.5, **options) -> CenterLoss:
    loss = CenterLoss(5, 3, alpha, update, **options).double()
    loss.centers.copy_(draw(5, 3, seed=9))
    return loss


def one_step(centers: torch.Tensor, alpha: float, update: str) -> torch.Tensor:
    """The definitions, class by class, in Python floats."""
    x, y, c = FEATURES.tolist(), LABELS.tolist(), centers.tolist()
    for j in range(len(c)):
        members = [row for row, label in zip(x, y, strict=True) if label == j]
        n = len(members)
        divisor = {"paper": 1 + n, "caffe": 1 + n, "autograd": len(y) / 2, "scatter": 1}[update]
        for k in range(3):
            delta = math.fsum(c[j][k] - row[k] for row in members) / divisor
            c[j][k] = c[j][k] - alpha * delta
    return torch.tensor(c, dtype=torch.float64)


class TestLoss:
    def test_value_and_reductions(self):
        loss = filled()
        expected = 0.5 * math.fsum(
            (a - b) ** 2
            for row, label in zip(FEATURES.tolist(), LABELS.tolist(), strict=True)
            for a, b in zip(row, loss.centers[label].tolist(), strict=True)
        )
        loss.eval()
        assert float(loss(FEATURES, LABELS)) == pytest.approx(expected, rel=1e-13)
        assert float(filled(reduction="mean").eval()(FEATURES, LABELS)) == pytest.approx(expected / 9, rel=1e-13)

    def test_gradient_is_x_minus_c_and_none_reaches_the_centres(self):
        loss = filled()
        old = loss.centers.clone()
        x = FEATURES.clone().requires_grad_()
        loss(x, LABELS).backward()
        assert torch.allclose(x.grad, FEATURES - old[LABELS], rtol=1e-14)
        assert not list(loss.parameters())
        evaluated = filled().eval()
        assert torch.autograd.gradcheck(lambda f: evaluated(f, LABELS), (x,))

    def test_old_centres_are_used_and_then_moved(self):
        # Algorithm 1: the loss of this batch sees c^t, the next one c^{t+1}.
        loss = filled()
        old = loss.centers.clone()
        frozen = filled().eval()
        first = loss(FEATURES, LABELS)
        assert torch.equal(first, frozen(FEATURES, LABELS))
        assert not torch.equal(loss.centers, old)
        frozen.centers.copy_(loss.centers)
        assert torch.equal(loss(FEATURES, LABELS), frozen(FEATURES, LABELS))

    def test_evaluation_mode_never_moves_the_centres(self):
        for update in CENTER_UPDATES:
            loss = filled(update).eval()
            before = {key: value.clone() for key, value in loss.state_dict().items()}
            loss(FEATURES, LABELS)
            assert all(torch.equal(before[key], value) for key, value in loss.state_dict().items())

    def test_scale_degeneracy(self):
        # x -> x/a, c -> c/a divides L_C by a^2.
        small = filled().eval()
        small.centers.div_(7.0)
        ratio = filled().eval()(FEATURES, LABELS) / small(FEATURES / 7.0, LABELS)
        assert float(ratio) == pytest.approx(49.0, rel=1e-13)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_low_precision_keeps_float32_centres(self, dtype):
        loss = CenterLoss(5, 3)
        x = FEATURES.to(dtype).requires_grad_()
        for _ in range(3):
            value = loss(1000 * x, LABELS)
        value.backward()
        assert value.dtype == loss.centers.dtype == torch.float32
        assert torch.isfinite(value)
        assert torch.isfinite(x.grad).all()
        assert torch.isfinite(loss.centers).all()


class TestUpdate:
    @pytest.mark.parametrize("update", CENTER_UPDATES)
    @pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
    def test_one_step_equals_its_definition(self, update, alpha):
        explicit = filled(update, alpha).eval()
        old = explicit.centers.clone()
        explicit(FEATURES, LABELS)
        assert torch.equal(explicit.centers, old)
        explicit.update_centers(FEATURES, LABELS)
        assert torch.allclose(explicit.centers, one_step(old, alpha, update), rtol=1e-12, atol=1e-14)
        automatic = filled(update, alpha)
        automatic(FEATURES, LABELS)
        assert torch.equal(automatic.centers, explicit.centers)

    def test_absent_classes_stay_and_duplicates_count(self):
        loss = filled()
        old = loss.centers.clone()
        loss.update_centers(FEATURES, LABELS)
        assert torch.equal(loss.centers[[1, 3]], old[[1, 3]])
        assert not torch.equal(loss.centers[[0, 2, 4]], old[[0, 2, 4]])

    def test_paper_step_at_alpha_one_is_the_running_mean_with_the_old_centre_as_one_sample(self):
        loss = filled(alpha=1.0)
        old = loss.centers.clone()
        loss.update_centers(FEATURES, LABELS)
        for j in (0, 2, 4):
            expected = torch.cat([old[j : j + 1], FEATURES[j == LABELS]]).mean(dim=0)
            assert torch.allclose(loss.centers[j], expected, rtol=1e-13)

    def test_autograd_step_is_plain_sgd_on_the_mean_squared_distance(self):
        loss = filled("autograd", 0.4)
        centers = loss.centers.clone().requires_grad_()
        (FEATURES - centers[LABELS]).square().sum().div(len(LABELS)).backward()
        loss.update_centers(FEATURES, LABELS)
        assert torch.allclose(loss.centers, (centers - 0.4 * centers.grad).detach(), rtol=1e-13)

    def test_scatter_equals_a_scatter_subtraction_with_duplicates(self):
        loss = filled("scatter", 0.05)
        old = loss.centers.clone()
        loss.update_centers(FEATURES, LABELS)
        expected = old.clone()
        for row, label in zip(FEATURES, LABELS.tolist(), strict=True):
            expected[label] -= 0.05 * (old[label] - row)
        assert torch.allclose(loss.centers, expected, rtol=1e-13)

    def test_caffe_is_the_paper_step_through_momentum(self):
        loss = filled("caffe", 0.2)
        center, velocity = loss.centers.clone(), torch.zeros(5, 3, dtype=torch.float64)
        for alpha in (0.2, 0.2, 0.02):
            loss.alpha = alpha
            loss.update_centers(FEATURES, LABELS)
            velocity = 0.9 * velocity + alpha * (center - one_step(center, 1.0, "paper"))
            center = center - velocity
            assert torch.allclose(loss.centers, center, rtol=1e-12, atol=1e-14)
        # A class that was never seen stays; one seen once keeps moving by momentum.
        plain = filled("caffe", 0.2)
        start = plain.centers.clone()
        plain.update_centers(FEATURES, LABELS)
        after = plain.centers.clone()
        plain.update_centers(FEATURES[:1] * 0, torch.tensor([1]))
        assert torch.equal(plain.centers[3], start[3])
        assert not torch.equal(plain.centers[4], after[4])

    @pytest.mark.parametrize("update", CENTER_UPDATES)
    @pytest.mark.parametrize("count", [0, 1, 4, 16, 64])
    def test_step_table(self, update, count):
        loss = CenterLoss(2, 1, 0.5, update).double()
        labels = torch.tensor([0] * count + [1] * (64 - count))
        loss.update_centers(torch.ones(64, 1, dtype=torch.float64), labels)
        # From the centre 0 to the mean 1 the step is the fraction of the way.
        assert float(loss.centers[0]) == pytest.approx(center_step(count, 64, 0.5, update), abs=1e-14)

    def test_published_step_table(self):
        # B = 64, unit rate: paper n/(1 + n), autograd 2n/B; scatter with alfa = 0.95.
        table = {
            1: (0.500, 0.031, 0.050),
            4: (0.800, 0.125, 0.200),
            16: (0.941, 0.5, 0.8),
            64: (0.985, 2.0, 3.2),
        }
        for count, expected in table.items():
            found = (
                center_step(count, 64, 1.0),
                center_step(count, 64, 1.0, "autograd"),
                center_step(count, 64, 0.05, "scatter"),
            )
            assert found == pytest.approx(expected, abs=6e-4)

    @pytest.mark.parametrize(("count", "diverges"), [(16, False), (39, False), (41, True), (64, True)])
    def test_scatter_diverges_above_forty_repeats(self, count, diverges):
        loss = CenterLoss(1, 1, 0.05, "scatter").double()
        for _ in range(300):
            loss.update_centers(torch.ones(count, 1, dtype=torch.float64), torch.zeros(count, dtype=torch.int64))
        distance = abs(float(loss.centers[0]) - 1)
        assert distance > 1e3 if diverges else distance < 1e-3


class TestState:
    @pytest.mark.parametrize("update", CENTER_UPDATES)
    def test_a_resumed_run_continues_bit_for_bit(self, update):
        through, first = filled(update, 0.1), filled(update, 0.1)
        batches = [(draw(9, 3, seed=s), LABELS.roll(s)) for s in range(6)]
        for batch in batches:
            through(*batch)
        for batch in batches[:3]:
            first(*batch)
        second = CenterLoss(5, 3, 0.1, update).double()
        second.load_state_dict(first.state_dict())
        for batch in batches[3:]:
            second(*batch)
        for key, value in through.state_dict().items():
            assert torch.equal(value, second.state_dict()[key])

    def test_buffers(self):
        assert list(CenterLoss(5, 3).state_dict()) == ["centers"]
        assert list(CenterLoss(5, 3, update="caffe").state_dict()) == ["centers", "velocity"]
        assert CenterLoss(5, 3).centers.shape == (5, 3)
        assert "update='paper'" in repr(CenterLoss(5, 3))


class TestWrongInput:
    def test_batches(self):
        loss = filled()
        before = loss.centers.clone()
        for call in (loss, loss.update_centers):
            with pytest.raises(ValueError, match=r"labels must lie in 0 \.\. 4, got 6"):
                call(FEATURES, LABELS + 2)
            with pytest.raises(ValueError, match="labels must have shape"):
                call(FEATURES, LABELS[:3])
            with pytest.raises(ValueError, match="3 columns"):
                call(FEATURES[:, :2], LABELS)
            with pytest.raises(ValueError, match="finite"):
                call(FEATURES / 0, LABELS)
            with pytest.raises(TypeError, match="int64"):
                call(FEATURES, LABELS.double())
        assert torch.equal(loss.centers, before)

    def test_constructor(self):
        with pytest.raises(ValueError, match="alpha must be a finite number"):
            CenterLoss(5, 3, 1.5)
        with pytest.raises(ValueError, match="update must be one of"):
            CenterLoss(5, 3, update="sgd")
        with pytest.raises(ValueError, match="reduction must be one of"):
            CenterLoss(5, 3, reduction="none")
        with pytest.raises(ValueError, match="num_classes must be an integer >= 1"):
            CenterLoss(0, 3)
        loss = CenterLoss(5, 3)
        with pytest.raises(ValueError, match="alpha"):
            loss.alpha = -0.1

    def test_center_step(self):
        with pytest.raises(ValueError, match="batch_size"):
            center_step(5, 4, 0.5)
        with pytest.raises(ValueError, match="update"):
            center_step(1, 4, 0.5, "adam")


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw(5, 3, seed=4))

    def logits(self, features):
        return features @ self.weight.T

    def forward(self, features, labels):
        return nn.functional.cross_entropy(self.logits(features), labels)


class TestJoint:
    def test_is_the_weighted_sum_and_passes_the_head_through(self):
        joint = JointLoss(Head(), filled(reduction="mean"), 0.1)
        parts = Head()(FEATURES, LABELS) + 0.1 * filled(reduction="mean")(FEATURES, LABELS)
        assert torch.equal(joint(FEATURES, LABELS), parts)
        assert torch.equal(joint.logits(FEATURES), joint.head.logits(FEATURES))
        assert joint.weight is joint.head.weight
        assert sorted(joint.state_dict()) == ["auxiliary.centers", "head.weight"]

    def test_mode_reaches_the_centres(self):
        joint = JointLoss(Head(), filled(), 0.1).eval()
        before = joint.auxiliary.centers.clone()
        joint(FEATURES, LABELS)
        assert torch.equal(joint.auxiliary.centers, before)
        joint.train()(FEATURES, LABELS)
        assert not torch.equal(joint.auxiliary.centers, before)

    def test_takes_a_function_and_refuses_a_negative_weight(self):
        joint = JointLoss(Head(), lambda features, labels: features.square().sum(), 2.0)
        expected = Head()(FEATURES, LABELS) + 2 * FEATURES.square().sum()
        assert joint(FEATURES, LABELS).item() == pytest.approx(expected.item(), rel=1e-14)
        with pytest.raises(ValueError, match="weight_auxiliary"):
            JointLoss(Head(), filled(), -1.0)


def _centres_of_two_processes(rank: int, folder: str, update: str, wrap: bool) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    loss = JointLoss(ArcFace(4, 3), CenterLoss(3, 4, alpha=0.2, update=update), 0.1)
    model = torch.nn.parallel.DistributedDataParallel(loss) if wrap else loss
    for x, y in _shares(rank):
        model(x, y).backward()
    torch.save(loss.auxiliary.centers, f"{folder}/{rank}.pt")
    # the wrapper holds the group, whose threads must have ended before the process does
    del model
    # who leaves first closes the connection under the other's last exchange
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _shares(rank: int) -> list[tuple[Tensor, Tensor]]:
    """Three batches a process: of unequal sizes, class 2 seen by process 1 alone, class 0 by both."""
    generator = torch.Generator().manual_seed(rank)
    labels = torch.tensor([0, 0, 1, 0]) if rank == 0 else torch.tensor([2, 0, 2])
    return [(torch.randn(len(labels), 4, generator=generator), labels) for _ in range(3)]


@pytest.mark.parametrize(("update", "wrap"), [("paper", True), ("autograd", True), ("caffe", False)])
def test_centres_of_two_processes_are_those_of_the_whole_batch(update, wrap, tmp_path):
    torch.multiprocessing.spawn(_centres_of_two_processes, (str(tmp_path), update, wrap), nprocs=2)
    alone = CenterLoss(3, 4, alpha=0.2, update=update)
    for one, two in zip(_shares(0), _shares(1), strict=True):
        alone(torch.cat([one[0], two[0]]), torch.cat([one[1], two[1]]))
    for rank in range(2):
        centers = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert torch.allclose(centers, alone.centers, atol=1e-6) and centers[2].abs().max() > 0


def test_a_joint_loss_warms_up_with_the_plain_loss_of_its_head():
    head = ArcFace(4, 3, scale=32.0)
    joint = JointLoss(head, CenterLoss(3, 4, reduction="mean"), 0.5)
    x, y = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    expected = head.plain_loss(x, y) + 0.5 * x.square().sum() / 12
    assert torch.allclose(joint.plain_loss(x, y), expected)
