"""Scatter of classes: within, between, and over how many directions it spreads."""

from __future__ import annotations

from torch import Tensor


def scatter_matrices(features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """(S_w, S_b), each (d, d) float64: of N `features` (N, d) about their class means, and of these about the mean.

    S_w = (1/N) sum_i (x_i - m_{y_i})(x_i - m_{y_i})^T, S_b = (1/N) sum_i (m_{y_i} - m)(m_{y_i} - m)^T; their sum is the
    covariance of all features.
    """
    x = features.double()
    _, index, sizes = labels.unique(return_inverse=True, return_counts=True)
    means = x.new_zeros(len(sizes), x.shape[1]).index_add_(0, index, x) / sizes[:, None]
    within, between = x - means[index], means[index] - x.mean(0)
    return within.T @ within / len(x), between.T @ between / len(x)


def effective_rank(matrix: Tensor) -> Tensor:
    """(tr S)^2 / tr S^2 of a symmetric S >= 0: k if k eigenvalues are equal and the others 0, whatever the scale."""
    return matrix.trace().square() / matrix.square().sum()
