"""A loss over several processes of torch.distributed: each holds its images and its share of the classes.

With W processes, b images on each and N = W b, process r holds the rows of the class weights in its block. It gathers
the N features (N d numbers) and makes the logits of its own classes, a few matrices of N x C / W by automatic
differentiation (the head of one process, which holds no whole one, is :mod:`reprolib.losses.fused`). Three more
numbers a sample are exchanged: with O_r the other classes in block r, top_i the largest logit of the other classes,

    top_i = max_r max_{j in O_r} z_ij        total_i = sum_r sum_{j in O_r} e^{z_ij - top_i}       z_iy from its block
    L = (1/N) sum_i log(1 + e^{others_i - z_iy}),        others_i = top_i + log total_i

so every process has the loss of the whole batch, and its gradients in its own classes and images are those that one
process would have: the gradient in the features is summed over the processes on the way back. Nothing but collectives
of torch.distributed is used. Losses within a batch gather the features and are computed whole by every process; centres
take the part of each and sum it (:class:`reprolib.losses.CenterLoss`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, distributed, nn

from reprolib._checks import check_batch
from reprolib.losses import ASoftmax, CenterLoss, JointLoss, Margin, MarginSoftmax, NoMargin, PartialFC
from reprolib.losses.distance import computing_dtype, full_precision
from reprolib.losses.fused import norm


def rank() -> int:
    """The number of this process, 0 where there is one."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def world_size() -> int:
    """The number of processes, 1 where torch.distributed is not initialised."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def block(count: int, of: int, among: int) -> slice:
    """The rows of `count` that process `of` of `among` holds: consecutive, the first ones one row larger."""
    small, larger = divmod(count, among)
    begin = of * small + min(of, larger)
    return slice(begin, begin + small + (of < larger))


class _Gather(torch.autograd.Function):
    """The rows of all processes in their order; `parts`: each computes a part of the loss, so gradients are summed."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, parts: bool) -> Tensor:
        ctx.parts, ctx.count = parts, len(rows)
        received = [torch.empty_like(rows) for _ in range(world_size())]
        distributed.all_gather(received, rows.contiguous())
        return torch.cat(received)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # a copy: the sum is made in place
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        if ctx.parts:
            distributed.all_reduce(gradient)
        return gradient[rank() * ctx.count : (rank() + 1) * ctx.count], None


class _Sum(torch.autograd.Function):
    """The sum over all processes, which all go on alike: the gradient of each part is the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        total = part.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


def gather_labels(labels: Tensor) -> Tensor:
    """The labels of all processes, in their order."""
    received = [torch.empty_like(labels) for _ in range(world_size())]
    distributed.all_gather(received, labels.contiguous())
    return torch.cat(received)


class ShardedLoss:
    """`loss` over all processes: called with this process's features and labels, the mean over the whole batch.

    The class weights (and biases) of `loss` become this process's rows of them, in place; every other tensor stays
    whole. The gradient in the features is that of the whole batch's mean, so DistributedDataParallel, which divides by
    the number of processes, wants it times that number. After each backward pass call :meth:`reduce_gradients`.

    Raises:
        ValueError: for a head with fewer classes than processes, or with an option that needs all classes.
    """

    def __init__(self, loss: nn.Module) -> None:
        self.loss = loss
        head: Any = loss.head if isinstance(loss, JointLoss) else loss
        self.head: MarginSoftmax | None = head if isinstance(head, MarginSoftmax) else None
        if self.head is None:
            if isinstance(loss, JointLoss):
                raise ValueError(f"head must be a margin-softmax head, got {type(loss.head).__name__}")
            return
        if self.head.num_classes < world_size():
            raise ValueError(
                f"num_classes must be at least the number of processes, {world_size()}, got {self.head.num_classes}"
            )
        if isinstance(self.head, ASoftmax) and self.head.gradient == "caffe":
            raise ValueError("gradient 'caffe' must be trained by one process, its weights are changed in place")
        if self.head.sampler is not None and not isinstance(self.head.sampler, PartialFC):
            raise ValueError(f"sampler must be PartialFC on several processes, got {type(self.head.sampler).__name__}")
        if self.head.drop or self.head.sparse_grad:
            raise ValueError("drop and sparse_grad must be off on several processes")
        self.rows = block(self.head.num_classes, rank(), world_size())
        for name in ("weight", "bias"):
            if getattr(self.head, name) is not None:
                mine = getattr(self.head, name).detach()[self.rows].clone()
                setattr(self.head, name, nn.Parameter(mine))
        if self.head.sampler is not None:
            # each block draws among its own classes; what it draws does not follow from another block's draw
            self.head.sampler.seed += 1_000_003 * rank()

    def is_sharded(self, name: str) -> bool:
        """Whether the tensor `name` of the loss's state is this process's rows of a larger one."""
        return self.head is not None and name.rpartition(".")[2] in ("weight", "bias") and "auxiliary" not in name

    def __call__(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of the whole batch, the same number on every process."""
        return self._value(features, labels, plain=False)

    def plain_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Softmax without normalisation or margin on the same weights: the warm-up."""
        return self._value(features, labels, plain=True)

    def _value(self, features: Tensor, labels: Tensor, plain: bool) -> Tensor:
        loss: Any = self.loss
        if isinstance(loss, JointLoss):
            own = self._head_value(features, labels, plain)
            if isinstance(loss.auxiliary, CenterLoss):
                part = loss.auxiliary(features, labels)
                share = world_size() if loss.auxiliary.reduction == "mean" else 1
                return own + loss.weight_auxiliary * _Sum.apply(part / share)
            return own + loss.weight_auxiliary * self._whole(loss.auxiliary, features, labels)
        if self.head is not None:
            return self._head_value(features, labels, plain)
        return self._whole(loss, features, labels)

    @staticmethod
    def _whole(loss: Any, features: Tensor, labels: Tensor) -> Tensor:
        """A loss within a batch, of the whole batch, by every process."""
        return loss(_Gather.apply(features, False), gather_labels(labels))

    def _head_value(self, features: Tensor, labels: Tensor, plain: bool) -> Tensor:
        head: Any = self.head
        check_batch(features, labels, head.num_classes, columns=head.in_features)
        if head.annealing is not None and head.training and not plain:
            head.strength.copy_(1.0 / (1.0 + head.annealing()))
        margin: Margin = NoMargin() if plain else head.margin
        with full_precision(features):
            dtype = computing_dtype(features, head.weight)
            x: Tensor = _Gather.apply(features.to(dtype), True)
            y = gather_labels(labels)
            begin, end = self.rows.start, self.rows.stop
            mine = ((y >= begin) & (y < end)).nonzero().squeeze(1)
            place = y[mine] - begin
            weight, bias, correction = head.weight, head.bias, None
            if head.sampler is not None and head.training and not plain:
                classes, place, correction = head.sampler(place, end - begin)
                weight, bias = weight[classes], None if bias is None else bias[classes]
            w = weight.to(dtype)
            b = None if bias is None else bias.to(dtype)
            # z_ij = R_i C_j cos(theta_ij) + b_j for the classes of this block
            r_x, r_w = norm(x, head.eps), norm(w, head.eps)
            big_r = head.scale.to(dtype).expand_as(r_x) if head.normalize_features and not plain else r_x
            big_c = torch.ones_like(r_w) if head.normalize_weights and not plain else r_w
            if plain or not (head.normalize_features or head.normalize_weights):
                z = x @ w.t()
            else:
                z = (x * (big_r / r_x)[:, None]) @ (w * (big_c / r_w)[:, None]).t()
            if b is not None:
                z = z + b
            if correction is not None:
                z = z + correction.to(dtype)
            own = torch.zeros_like(z, dtype=torch.bool)
            own[mine, place] = True
            z = z.masked_fill(own, -math.inf)
            # a block from which no class was drawn, and a batch without any other class, are as e^-inf
            smallest, lowest = torch.finfo(dtype).tiny, torch.finfo(dtype).min
            top = z.detach().amax(dim=1) if z.shape[1] else torch.full_like(r_x.detach(), lowest)
            distributed.all_reduce(top, op=distributed.ReduceOp.MAX)
            top = top.clamp_min(lowest)
            total = (z - top[:, None]).exp().sum(dim=1)
            # z_iy, with the margin, where the own class is in this block
            x_y, w_y = x[mine], w[place]
            cosine = (x_y * w_y).sum(dim=1) / (r_x[mine] * r_w[place])
            phi, _ = margin.value_and_slope(cosine, head.strength)
            target = big_r[mine] * big_c[place] * phi
            if b is not None:
                target = target + b[place]
            whole = _Sum.apply(torch.stack([total, torch.zeros_like(total).index_put((mine,), target)]))
            others = top + whole[0].clamp_min(smallest).log()
            return -nn.functional.logsigmoid(whole[1] - others).mean()

    def reduce_gradients(self) -> None:
        """Sum what each process has of the gradient in a learned scale, which all of them hold."""
        if self.head is not None and isinstance(self.head.scale, nn.Parameter) and self.head.scale.grad is not None:
            distributed.all_reduce(self.head.scale.grad)

    def whole(self, name: str, mine: Tensor) -> Tensor | None:
        """The tensor of which `mine` are this process's rows, on process 0 and its CPU; None on the others."""
        if not self.is_sharded(name):
            return mine
        assert self.head is not None
        count = self.head.num_classes
        blocks = [block(count, one, world_size()) for one in range(world_size())]
        # gathered parts are equally large: the smaller blocks are one row short
        most = blocks[0].stop
        part = mine.detach().cpu()
        part = torch.cat([part, part.new_zeros(most - len(part), *part.shape[1:])])
        received = [torch.empty_like(part) for _ in blocks] if rank() == 0 else None
        distributed.gather(part, received, dst=0)
        if received is None:
            return None
        return torch.cat([rows[: one.stop - one.start] for rows, one in zip(received, blocks, strict=True)])

    def mine(self, name: str, whole: Tensor) -> Tensor:
        """This process's part of the `whole` tensor `name`."""
        return whole[self.rows] if self.is_sharded(name) else whole


def squared_norm(gradients: list[Tensor], shared: list[bool]) -> Tensor:
    """Sum of the squares of all gradients, those that every process holds counted once."""
    zero = torch.zeros((), device=gradients[0].device)
    held = sum((g.float().square().sum() for g, both in zip(gradients, shared, strict=True) if both), zero)
    own = sum((g.float().square().sum() for g, both in zip(gradients, shared, strict=True) if not both), zero.clone())
    distributed.all_reduce(own)
    return held + own
