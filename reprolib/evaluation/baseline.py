"""Embeddings that a trained network has to beat: pixels and the linear methods, fitted on the training people.

An arena in which networks lose to them decides nothing about losses. The untrained network is the caller's, who has
the model: `features` of it are judged like these.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .._checks import check_count, label_array


def baselines(
    train_images: Any, train_labels: Any, test_images: Any, *, components: int = 200, discriminants: int = 64
) -> dict[str, np.ndarray]:
    """Float32 embeddings of `test_images` (M, ..) uint8 by name, fitted on `train_images` (N, ..) and `train_labels`.

    - "pixels": pixel / 255 minus the mean of the training images.
    - "pca": the first `components` principal components, divided by the square root of the within-class covariance
      (PCA and within-class whitening): E D^(-1/2) E^T of S_w = E D E^T, so that S_w becomes the identity.
    - "lda": the first `discriminants` linear discriminants of those components, unit S_w (Fisherfaces: Belhumeur,
      Hespanha, Kriegman 1997, where PCA makes S_w regular as well).

    There are at most as many components as N minus the number of classes, the rank of S_w, and as pixels, and at most
    as many discriminants as classes less 1; directions without within-class spread are dropped. A class of one image
    adds nothing to S_w.

    Raises TypeError unless the images are uint8, ValueError for shapes that differ, fewer than two classes, or no class
    with two different images.
    """
    # imported where it is used: a second that every other measure can do without
    from sklearn.decomposition import PCA
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    check_count(components, "components")
    check_count(discriminants, "discriminants")
    train, test = _pixels(train_images, "train_images"), _pixels(test_images, "test_images")
    if train.shape[1] != test.shape[1]:
        raise ValueError(f"test_images must have {train.shape[1]} pixels as train_images do, got {test.shape[1]}")
    classes, labels = np.unique(label_array(train_labels, "train_labels", len(train)), return_inverse=True)
    if not 1 < len(classes) < len(train):
        raise ValueError(
            f"train_labels must name at least 2 classes, one of them of several images, got {len(classes)} classes of "
            f"{len(train)} images"
        )
    mean = train.mean(axis=0, dtype=np.float64).astype(np.float32)
    train, test = train - mean, test - mean
    rank = min(components, len(train) - len(classes), train.shape[1])
    # randomised for large sets, so that its state is part of the result
    pca = PCA(rank, random_state=0).fit(train)
    fitted, judged = (pca.transform(images).astype(np.float64) for images in (train, test))

    whiten = _within_class_whitening(fitted, labels, len(classes))
    fitted, judged = fitted @ whiten, judged @ whiten
    lda = LinearDiscriminantAnalysis(n_components=min(discriminants, len(classes) - 1, whiten.shape[1]))
    projected = lda.fit(fitted, labels).transform(judged)
    return {name: rows.astype(np.float32) for name, rows in {"pixels": test, "pca": judged, "lda": projected}.items()}


def _pixels(images: Any, name: str) -> np.ndarray:
    images = np.asarray(images)
    if images.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8 images, got dtype {images.dtype}")
    if images.ndim < 2 or images.size == 0:
        raise ValueError(f"{name} must have shape (N, ...) with N >= 1, got {images.shape}")
    return images.reshape(len(images), -1).astype(np.float32) / 255


def _within_class_whitening(rows: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """(k, k') matrix W with W^T S_w W = I; directions in which no class varies are dropped, else symmetric."""
    sums = np.zeros((classes, rows.shape[1]))
    np.add.at(sums, labels, rows)
    centred = rows - (sums / np.bincount(labels)[:, None])[labels]
    spread, axes = np.linalg.eigh(centred.T @ centred / (len(rows) - classes))
    kept = spread > 1e-6 * spread[-1]
    if spread[-1] <= 0 or not kept.any():
        raise ValueError("train_images must differ within some class, got classes of equal images")
    scaled = axes[:, kept] / np.sqrt(spread[kept])
    return scaled @ axes.T if kept.all() else scaled
