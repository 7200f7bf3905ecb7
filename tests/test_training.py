"""The training loop: it learns, repeats bit for bit, resumes bit for bit, and refuses wrong input."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace

import pytest
import torch

from reprolib import models, training
from reprolib.data import PKSampler
from reprolib.losses.center import CenterLoss, JointLoss
from reprolib.losses.margin_softmax import ASoftmax, CosFace, LSoftmax, NormFace, Softmax
from reprolib.losses.schedules import AnnealedLambda
from reprolib.training import TrainConfig
from tests.device_discipline import DeviceDiscipline, pretended


def blobs(count: int = 240, classes: int = 3, seed: int = 0):
    """Images whose class shows as a bright quarter of the picture."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % classes
    images = torch.randint(0, 60, (count, 1, 28, 28), generator=generator, dtype=torch.uint8)
    for index, label in enumerate(labels.tolist()):
        images[index, 0, 7 * label : 7 * label + 7] += 150
    return images, labels


def net():
    return models.compact(4, widths=(4, 8, 8), hidden=16)


CONFIG = TrainConfig(epochs=3, batch_size=24, lr=0.05, plain=0.2, ramp_end=0.6, scale_start=4.0)


def fit(loss=lambda: CosFace(4, 3, m=0.2, scale=16.0), config=CONFIG, seed=5, **options):
    images, labels = blobs()
    return training.fit(net, loss, images, labels, config, seed=seed, **options)


def same_state(first, second) -> bool:
    pairs = [(first.model, second.model), (first.loss, second.loss)]
    return all(
        torch.equal(a, b)
        for one, two in pairs
        for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True)
    )


def test_it_learns_what_can_be_learnt():
    images, labels = blobs(seed=9)
    trained = fit(log_every=5)
    assert training.accuracy(trained.model, trained.loss, images, labels) > 0.95
    assert trained.history.losses[-1] < trained.history.losses[0]


def test_two_runs_are_equal_and_another_seed_is_not():
    first, second, other = fit(), fit(), fit(seed=6)
    assert same_state(first, second) and first.history == second.history
    assert not same_state(first, other)


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    fit(config=TrainConfig(epochs=1, batch_size=24))
    assert torch.equal(torch.rand(3), expected)


def test_the_same_seed_gives_every_loss_the_same_initial_network():
    first_weights = []
    for loss in (lambda: Softmax(4, 3), lambda: NormFace(4, 3)):

        def probe(step, model, loss):
            return {"first": float(model.convolutions[0].weight.detach().sum())}

        trained = fit(loss, config=TrainConfig(epochs=1, batch_size=24), probe=probe)
        first_weights.append(trained.history.probes[0]["first"])
    assert first_weights[0] == first_weights[1]


@pytest.mark.parametrize("stop", [1, 7, 10, 17, 29])
def test_a_resumed_run_ends_bit_for_bit_where_it_would_have(tmp_path, stop):
    def probe(step, model, loss):
        return {"scale": float(loss.scale), "strength": float(loss.strength)}

    options = {"probe": probe, "log_every": 4}
    whole = fit(**options)
    path = tmp_path / "run.pt"
    fit(checkpoint=path, stop_after=stop, **options)
    resumed = fit(checkpoint=path, **options)
    assert same_state(whole, resumed)
    assert whole.history.steps == resumed.history.steps
    assert whole.history.probes == resumed.history.probes
    assert whole.history.losses == pytest.approx(resumed.history.losses, rel=1e-6)
    assert [file.name for file in tmp_path.iterdir()] == ["run.pt"]


@pytest.mark.parametrize("head", [ASoftmax, LSoftmax])
@pytest.mark.parametrize("stop", [1, 13, 24])
def test_a_resumed_lambda_annealed_run_ends_bit_for_bit_where_it_would_have(tmp_path, head, stop):
    def loss():
        # falls to its minimum 0.5 within the 30 steps
        return head(4, 3, m=4, annealing=AnnealedLambda(100.0, 0.6, 2.0, 0.5))

    def probe(step, model, loss):
        return {"strength": float(loss.strength), "count": int(loss.annealing.iteration)}

    options = {"probe": probe, "log_every": 1, "config": TrainConfig(epochs=3, batch_size=24, lr=0.02)}
    whole = fit(loss, **options)
    path = tmp_path / "run.pt"
    fit(loss, checkpoint=path, stop_after=stop, **options)
    resumed = fit(loss, checkpoint=path, **options)
    assert same_state(whole, resumed) and whole.history == resumed.history
    strengths = [entry["strength"] for entry in whole.history.probes[1:]]
    # step k = 1, 2, .. trains with lambda = max(0.5, 100 (1 + 0.6 k)^-2), strength = 1 / (1 + lambda)
    expected = [1 / (1 + max(0.5, 100 * (1 + 0.6 * k) ** -2)) for k in range(1, 31)]
    assert strengths == pytest.approx(expected, rel=1e-6) and strengths[-1] == pytest.approx(2 / 3)
    assert [entry["count"] for entry in whole.history.probes] == list(range(31))


AUGMENTED = TrainConfig(epochs=3, batch_size=24, lr=0.05, plain=0.2, ramp_end=0.6, scale_start=4.0, flip=True, shift=3)


@pytest.mark.parametrize("stop", [1, 10, 17])
def test_a_resumed_run_with_augmentation_ends_bit_for_bit_where_it_would_have(tmp_path, stop):
    whole, plain = fit(config=AUGMENTED), fit()
    path = tmp_path / "run.pt"
    fit(config=AUGMENTED, checkpoint=path, stop_after=stop)
    resumed = fit(config=AUGMENTED, checkpoint=path)
    assert same_state(whole, resumed)
    assert not same_state(whole, plain)


def test_a_resumed_run_with_dropout_ends_bit_for_bit_where_it_would_have(tmp_path):
    def dropping():
        return models.residual(4, (1, 28, 28), widths=(4, 6), dropout=0.5)

    def run(**options):
        return training.fit(
            dropping, lambda: Softmax(4, 3), *blobs(), TrainConfig(batch_size=24, steps=7), seed=2, **options
        )

    path = tmp_path / "run.pt"
    run(checkpoint=path, stop_after=4)
    torch.manual_seed(99)
    assert same_state(run(), run(checkpoint=path))


def test_augmentation_that_is_off_changes_nothing():
    options = {"epochs": 3, "batch_size": 24, "lr": 0.05, "plain": 0.2, "ramp_end": 0.6, "scale_start": 4.0}
    off = TrainConfig(**options, flip=False, shift=0, bf16=False)
    first, second = fit(config=off), fit(augment=lambda batch, generator: batch)
    assert same_state(first, second) and first.history == second.history
    assert off.describe() == CONFIG.describe()
    assert AUGMENTED.describe() == {**CONFIG.describe(), "flip": True, "shift": 3}


def numbered(count: int, height: int, width: int) -> torch.Tensor:
    """Images with two channels; the pixel at row y and column x is 16 y + x, plus 100 in the second channel."""
    picture = 16 * torch.arange(height)[:, None] + torch.arange(width)
    return torch.stack([picture, picture + 100]).to(torch.uint8).repeat(count, 1, 1, 1)


def test_flip_and_shift_give_the_pixels_they_promise():
    images = numbered(400, 5, 7)
    moved = training.flip_and_shift(images, torch.Generator().manual_seed(0), flip=True, shift=2)
    assert moved.shape == images.shape and moved.dtype == torch.uint8
    counts: dict[tuple[bool, int, int], int] = {}
    options = {}
    for mirror in (False, True):
        for dy in range(-2, 3):
            for dx in range(-2, 3):
                # what a crop of the padded picture gives, pixel by pixel
                rows = [min(max(y + dy, 0), 4) for y in range(5)]
                columns = [min(max(x + dx, 0), 6) for x in range(7)]
                columns = [6 - x for x in columns] if mirror else columns
                picture = [[[16 * y + x + 100 * c for x in columns] for y in rows] for c in range(2)]
                options[mirror, dy, dx] = torch.tensor(picture, dtype=torch.uint8)
    for image in moved:
        matches = [key for key, picture in options.items() if torch.equal(image, picture)]
        assert len(matches) == 1
        counts[matches[0]] = counts.get(matches[0], 0) + 1
    # 400 draws of 50 equally likely outcomes: none is missing, none comes thrice as often as expected
    assert len(counts) == 50 and max(counts.values()) < 24
    assert 150 < sum(number for (mirror, _, _), number in counts.items() if mirror) < 250


def test_augmentation_off_is_the_identity_and_the_generator_decides():
    images = numbered(20, 6, 6)
    assert torch.equal(training.flip_and_shift(images, torch.Generator(), flip=False, shift=0), images)
    first, second, other = (
        training.flip_and_shift(images, torch.Generator().manual_seed(seed), shift=2) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second) and not torch.equal(first, other)
    with pytest.raises(ValueError, match="from 0 to 5 pixels, got 6"):
        training.flip_and_shift(images, torch.Generator(), shift=6)


def test_bf16_needs_a_cuda_device():
    with pytest.raises(ValueError, match="bf16 needs the images on a CUDA device, they are on cpu"):
        fit(config=TrainConfig(epochs=1, batch_size=24, bf16=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_bf16_learns_on_a_cuda_device():
    images, labels = (part.cuda() for part in blobs())
    config = TrainConfig(epochs=3, batch_size=24, lr=0.05, bf16=True, flip=True, shift=1)
    trained = training.fit(net, lambda: Softmax(4, 3), images, labels, config, seed=5)
    assert training.accuracy(trained.model, trained.loss, images, labels) > 0.95
    assert all(p.dtype == torch.float32 for p in trained.model.parameters())


def test_warm_up_follows_the_config():
    def probe(step, model, loss):
        return {"step": step, "scale": float(loss.scale), "strength": float(loss.strength)}

    trained = fit(probe=probe, log_every=1)
    by_step = {entry["step"]: entry for entry in trained.history.probes}
    # 30 steps: plain for 6, ramp until 18; the probe after step k sees the value used in step k (progress (k-1)/30)
    assert by_step[3]["strength"] == 0.0 and by_step[3]["scale"] == pytest.approx(4.0)
    assert by_step[13]["strength"] == pytest.approx((12 / 30 - 0.2) / 0.4, rel=1e-6)
    assert by_step[13]["scale"] == pytest.approx(4.0 + 12.0 * (12 / 30 - 0.2) / 0.4, rel=1e-6)
    assert float(trained.loss.scale) == 16.0 and float(trained.loss.strength) == 1.0


def test_plain_part_is_softmax_on_the_same_weights():
    # with plain = 1 the margin is never used: CosFace trains exactly as a bias-free softmax
    config = TrainConfig(epochs=1, batch_size=24, plain=1.0)
    first = fit(lambda: CosFace(4, 3, m=0.2), config=config)
    second = fit(lambda: Softmax(4, 3, bias=False), config=config)
    assert torch.allclose(first.loss.weight, second.loss.weight, atol=1e-6)


def test_learning_rates():
    one = TrainConfig(lr=0.1)
    tenth = TrainConfig(lr=0.1, warmup=0.1)
    assert training.learning_rate(tenth, 0.1) == pytest.approx(0.1)
    assert training.learning_rate(tenth, 0.55) == pytest.approx(0.05)
    assert training.learning_rate(TrainConfig(lr=0.1, warmup=0.0), 0.0) == pytest.approx(0.1)
    assert training.learning_rate(one, 0.0) == pytest.approx(0.004)
    assert training.learning_rate(one, 0.25) == pytest.approx(0.1)
    assert training.learning_rate(one, 0.625) == pytest.approx(0.05)
    step = TrainConfig(lr=0.1, schedule="step", milestones=(0.5, 0.75))
    rates = [training.learning_rate(step, t) for t in (0.0, 0.49, 0.5, 0.8)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert training.learning_rate(TrainConfig(lr=0.1, schedule="constant"), 0.9) == 0.1


def test_augmentation_sees_its_own_generator():
    seen = []

    def augment(batch, generator):
        seen.append(int(torch.randint(0, 1000, (1,), generator=generator)))
        return batch

    config = TrainConfig(epochs=1, batch_size=24)
    fit(config=config, augment=augment)
    first, seen[:] = list(seen), []
    fit(config=config, augment=augment)
    assert seen == first and len(set(seen)) > 1


def test_embed_restores_the_mode_and_needs_images():
    model = net().train()
    images, _ = blobs(12)
    assert training.embed(model, images, batch_size=5).shape == (12, 4)
    assert model.training
    with pytest.raises(ValueError, match="no images"):
        training.embed(model, images[:0])


def test_divergence_is_an_error():
    def exploding(features, labels):
        return features.square().sum() * math.inf

    class Loss(torch.nn.Module):
        forward = staticmethod(exploding)

    with pytest.raises(ValueError, match="the loss became"):
        fit(Loss, config=TrainConfig(epochs=1, batch_size=24), log_every=1)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"epochs": 1.5},
        {"epochs": True},
        {"batch_size": 1},
        {"batch_size": 32.0},
        {"steps": 0},
        {"lr": 0.0},
        {"lr": float("nan")},
        {"lr": float("inf")},
        {"loss_lr_factor": float("inf")},
        {"loss_weight_decay": -1.0},
        {"momentum": 1.0},
        {"weight_decay": float("inf")},
        {"schedule": "one_cycle"},
        {"milestones": (0.5, 1.5)},
        {"warmup": 1.5},
        {"plain": 1.5},
        {"ramp_end": float("nan")},
        {"scale_start": 0.0},
        {"clip_norm": 0.0},
        {"shift": -1},
        {"shift": 1.5},
        {"shift": True},
    ],
)
def test_wrong_configurations_are_refused(options):
    (name,) = options
    with pytest.raises((TypeError, ValueError), match=f"^{name} must be "):
        TrainConfig(**options)


def test_wrong_data_is_refused():
    images, labels = blobs(30)
    with pytest.raises(ValueError, match="labels must have shape"):
        training.train(net(), Softmax(4, 3), images, labels[:-1], CONFIG, seed=0)
    with pytest.raises(TypeError, match="labels must be an int64 tensor"):
        training.train(net(), Softmax(4, 3), images, labels.int(), CONFIG, seed=0)
    with pytest.raises(ValueError, match="at most the number of images, 30, got 31"):
        training.train(net(), Softmax(4, 3), images, labels, TrainConfig(batch_size=31), seed=0)
    with pytest.raises(ValueError, match="seed must be an integer >= 0"):
        training.train(net(), Softmax(4, 3), images, labels, CONFIG, seed=-1)


class Pull(torch.nn.Module):
    """A metric loss: the mean squared distance to the first image of the batch."""

    def forward(self, features, labels):
        return (features - features[:1]).square().mean()


class Spy(CosFace):
    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.strengths, self.scales = [], []

    def forward(self, features, labels):
        self.strengths.append(float(self.strength))
        self.scales.append(float(self.scale))
        return super().forward(features, labels)


class Joint(torch.nn.Module):
    """The least that a joint loss is: a head and a second term."""

    def __init__(self, head):
        super().__init__()
        self.head, self.second = head, Pull()

    def forward(self, features, labels):
        return self.head(features, labels) + 0.1 * self.second(features, labels)


WRAPS = {
    "alone": lambda head: head,
    "any module": Joint,
    "joint": lambda head: JointLoss(head, Pull(), 0.1),
    "twice": lambda head: JointLoss(JointLoss(head, Pull(), 0.1), Pull(), 0.1),
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS)
def test_the_ramp_reaches_a_head_alone_and_in_a_joint_loss(wrap):
    config = TrainConfig(epochs=1, batch_size=24, ramp_end=0.5, scale_start=4.0)
    head = Spy(4, 3, m=0.2, scale=16.0)
    fit(lambda: wrap(head), config=config)
    # 10 steps, step k at progress k / 10
    assert head.strengths == pytest.approx([min(k / 5, 1.0) for k in range(10)])
    assert head.scales == pytest.approx([4.0 + 12.0 * min(k / 5, 1.0) for k in range(10)])
    still = Spy(4, 3, m=0.2, scale=16.0)
    fit(lambda: wrap(still), config=replace(config, scale_start=None))
    assert still.strengths == head.strengths and set(still.scales) == {16.0}


def test_a_warm_up_that_the_loss_does_not_have_is_refused():
    with pytest.raises(ValueError, match=r"ramp_end must be 0 for Pull, which has no margin to raise, got 0\.5"):
        fit(Pull, config=TrainConfig(epochs=1, ramp_end=0.5))
    with pytest.raises(ValueError, match=r"plain must be 0 for Pull, which has no plain_loss to start with, got 0\.2"):
        fit(Pull, config=TrainConfig(epochs=1, plain=0.2))
    with pytest.raises(ValueError, match="plain must be 0 for Joint"):
        fit(lambda: Joint(CosFace(4, 3)), config=TrainConfig(epochs=1, plain=0.2, ramp_end=0.5))
    for wrap in (WRAPS["joint"], WRAPS["twice"]):
        with pytest.raises(ValueError, match="plain must be 0 for JointLoss, which has no plain_loss"):
            fit(lambda wrap=wrap: wrap(Pull()), config=TrainConfig(epochs=1, plain=0.2))
        with pytest.raises(ValueError, match="ramp_end must be 0 for JointLoss, which has no margin"):
            fit(lambda wrap=wrap: wrap(Pull()), config=TrainConfig(epochs=1, ramp_end=0.2))
        # and without a warm-up it is a loss like others
        assert fit(lambda wrap=wrap: wrap(Pull()), config=TrainConfig(epochs=1, batch_size=24)).history.steps == [10]
    with pytest.raises(ValueError, match="ramp_end must be 0 for ASoftmax with annealing"):
        fit(
            lambda: ASoftmax(4, 3, annealing=AnnealedLambda(10.0, 1.0, 1.0)), config=TrainConfig(epochs=1, ramp_end=0.5)
        )


def test_clipping_bounds_the_step_and_a_loose_bound_changes_nothing():
    config = TrainConfig(epochs=1, batch_size=24, lr=0.1, momentum=0.0, weight_decay=0.0, schedule="constant", steps=1)
    before = [p.detach().clone() for p in fit(config=replace(config, lr=1e-30)).model.parameters()]

    def moved(clip_norm):
        after = fit(config=replace(config, clip_norm=clip_norm)).model.parameters()
        return sum(float((p.detach() - q).square().sum()) for p, q in zip(after, before, strict=True)) ** 0.5

    free = moved(None)
    # the step of plain SGD is lr times the gradient: at most lr times the bound, for network and loss together
    assert free > 2 * 0.1 * 0.01 and 0 < moved(0.01) <= 0.1 * 0.01 * (1 + 1e-5)
    assert same_state(fit(config=replace(config, clip_norm=1e6)), fit(config=config))


@pytest.mark.parametrize("kind", ["pk", "list"])
@pytest.mark.parametrize("stop", [1, 9, 11])
def test_batches_of_a_sampler_train_and_resume_bit_for_bit(tmp_path, kind, stop):
    images, labels = blobs()
    seen: list[list[int]] = []

    def options():
        generator = torch.Generator()
        if kind == "pk":
            return {"batches": PKSampler(labels, 3, 8, generator)}
        return {"batches": [torch.arange(k, k + 24) for k in range(0, 96, 24)]}

    config = TrainConfig(epochs=4, lr=0.02, steps=14, clip_norm=1.0)
    marked = images.clone()
    marked[:, 0, 27, 27] = torch.arange(len(images)).to(torch.uint8)

    def watch(batch, generator):
        seen.append(batch[:, 0, 27, 27].tolist())
        return batch

    def run(**more):
        return training.fit(net, Pull, marked, labels, config, seed=3, augment=watch, **options(), **more)

    whole = run()
    expected, seen[:] = [list(row) for row in seen], []
    assert len(expected) == 14 and whole.history.steps == [14]
    if kind == "pk":
        for row in expected:
            assert labels[row].bincount().tolist() == [8, 8, 8]
    path = tmp_path / "run.pt"
    run(checkpoint=path, stop_after=stop)
    resumed = run(checkpoint=path)
    assert same_state(whole, resumed) and seen == expected


def test_batches_without_a_length_or_with_a_wrong_one_are_refused():
    images, labels = blobs()

    class Short(list):
        def __len__(self):
            return 5

    for batches, message in (
        (iter([]), "must have a length"),
        ([], "must have a length"),
        (Short([torch.arange(9)] * 3), "got 3"),
    ):
        with pytest.raises(ValueError, match=message):
            training.fit(net, Pull, images, labels, TrainConfig(epochs=1), seed=0, batches=batches)


def test_a_damaged_checkpoint_is_refused_in_one_sentence(tmp_path):
    path = tmp_path / "run.pt"
    fit(checkpoint=path, stop_after=4)
    good = path.read_bytes()
    flipped = bytearray(good)
    flipped[len(good) // 2] ^= 1
    for content in (b"", good[:-1], good[: len(good) // 2], bytes(flipped), pickle.dumps({"step": 3}), b"\0" * 999):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"^checkpoint .*run\.pt is damaged or no checkpoint of a run; remove it"):
            fit(checkpoint=path)
        assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"config": replace(CONFIG, lr=0.06)}, "configuration"),
        ({"seed": 6}, "seed"),
        ({"loss": lambda: CosFace(4, 3, m=0.3, scale=16.0)}, "loss"),
        ({"loss": lambda: CosFace(4, 3, m=0.2, scale=17.0)}, "loss"),
        ({"loss": lambda: NormFace(4, 3)}, "loss, another shape of the loss"),
        ({"model": lambda: models.compact(4, widths=(4, 8, 8), hidden=17)}, "model"),
        ({"images": 1}, "data"),
        ({"labels": 1}, "data"),
    ],
)
def test_the_checkpoint_of_another_run_is_refused(tmp_path, change, name):
    path = tmp_path / "run.pt"
    fit(checkpoint=path, stop_after=4)
    images, labels = blobs()
    if "images" in change:
        images[7, 0, 0, 0] ^= 1
    if "labels" in change:
        labels[7] = (labels[7] + 1) % 3
    loss = change.get("loss", lambda: CosFace(4, 3, m=0.2, scale=16.0))
    with pytest.raises(ValueError, match=f"belongs to a run with another {name}; remove it"):
        training.fit(
            change.get("model", net), loss, images, labels, change.get("config", CONFIG),
            seed=change.get("seed", 5), checkpoint=path,
        )  # fmt: skip


def test_a_branch_continues_from_one_checkpoint_with_another_margin(tmp_path):
    path = tmp_path / "run.pt"
    # the plain part, 6 steps of 30, is the same for every margin
    fit(lambda: CosFace(4, 3, m=0.0, scale=16.0), checkpoint=path, stop_after=6)
    branched = fit(lambda: CosFace(4, 3, m=0.3, scale=16.0), checkpoint=path, branch=True)
    assert same_state(branched, fit(lambda: CosFace(4, 3, m=0.3, scale=16.0)))


def test_mirrored_embeddings_are_added():
    model, (images, _) = net(), blobs(12)
    both = training.embed(model, images, 5, flip_sum=True)
    assert torch.allclose(both, training.embed(model, images) + training.embed(model, images.flip(3)), atol=1e-6)


def test_no_step_reads_a_value_on_the_host(monkeypatch):
    reads = []
    for method in ("item", "tolist", "__bool__", "__float__", "__int__"):
        real = getattr(torch.Tensor, method)
        monkeypatch.setattr(
            torch.Tensor, method, lambda self, *a, _r=real, _n=method: (reads.append(_n), _r(self, *a))[1]
        )
    counts = []
    for steps in (4, 8):
        reads.clear()
        config = TrainConfig(lr=0.01, clip_norm=1.0, flip=True, shift=1, steps=steps)
        training.fit(net, Pull, *blobs(), replace(config, batch_size=24), seed=0, log_every=100)
        counts.append(len(reads))
    assert counts[0] == counts[1]


PRETENDED = {
    "ramp": (
        lambda: CosFace(4, 3),
        TrainConfig(batch_size=24, plain=0.3, ramp_end=0.7, flip=True, shift=2, clip_norm=1.0),
    ),
    "learned scale": (lambda: NormFace(4, 3), TrainConfig(batch_size=24, schedule="constant")),
    "annealing": (lambda: ASoftmax(4, 3, annealing=AnnealedLambda.preset("sphereface")), TrainConfig(batch_size=24)),
    "joint": (
        lambda: JointLoss(CosFace(4, 3), CenterLoss(3, 4, reduction="mean"), 0.1),
        TrainConfig(batch_size=24, plain=0.3, ramp_end=0.7),
    ),
    "no head": (Pull, TrainConfig(batch_size=24, momentum=0.0)),
}


@pytest.mark.parametrize("name", PRETENDED)
def test_a_run_on_a_pretended_accelerator_reads_one_number_for_each_entry_of_the_history(name):
    make, config = PRETENDED[name]
    images, labels = (pretended(t) for t in blobs())

    def reads(steps):
        loss = pretended(make())
        with DeviceDiscipline(answer=1.0) as discipline:
            trained = training.train(
                pretended(net()), loss, images, labels, replace(config, steps=steps), seed=1, log_every=2
            )
        assert trained.history.steps == list(range(2, steps + 1, 2))
        return discipline.reads

    # at the start the scale that the head was made with, where it has one
    start = reads(2) - 1
    assert start == int(hasattr(training.head_of(make()), "scale"))
    assert reads(6) == start + 3


def test_embedding_on_a_pretended_accelerator_reads_nothing():
    images, _ = (pretended(t) for t in blobs())
    model = pretended(net())
    with DeviceDiscipline():
        assert training.embed(model, images, 100, flip_sum=True).shape == (240, 4)
