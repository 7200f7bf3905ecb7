"""Five-point alignment of faces: the similarity that takes eyes, nose and mouth corners to fixed places.

Pixel coordinates (x, y) with the origin in the centre of the upper left pixel, x to the right, y down.
"""

from __future__ import annotations

import numpy as np
from PIL import Image

# where eyes, nose tip and mouth corners come to lie in 112 x 112 pixels: the template published with ArcFace
# (J. Deng, J. Guo, N. Xue, S. Zafeiriou, CVPR 2019)
TEMPLATE = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
SIZE = 112


def similarity(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The (2, 3) matrix [A | b] with sum_k |A p_k + b - q_k|^2 least, A a rotation times a scale, no reflection.

    `source` p and `target` q are (K, 2) with K >= 2. With p and q as complex numbers the map is q = alpha p + beta,
    a linear least-squares problem in two unknowns; in two dimensions its solution is that of S. Umeyama,
    "Least-squares estimation of transformation parameters between two point patterns", PAMI 1991.

    Raises `ValueError` for other shapes, values that are not finite, and points p that all coincide.
    """
    source, target = np.asarray(source, np.float64), np.asarray(target, np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 2 or len(source) < 2:
        raise ValueError(f"need two arrays (K, 2) of at least two points, got {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("the points have to be finite")
    p, q = source @ [1, 1j], target @ [1, 1j]
    centred = p - p.mean()
    spread = np.vdot(centred, centred).real
    if spread <= 1e-12 * max(1.0, np.abs(p).max() ** 2):
        raise ValueError("the source points coincide, so that scale and rotation are undetermined")
    # alpha = sum conj(p - mean p) (q - mean q) / sum |p - mean p|^2,   beta = mean q - alpha mean p
    alpha = np.vdot(centred, q - q.mean()) / spread
    beta = q.mean() - alpha * p.mean()
    return np.array([[alpha.real, -alpha.imag, beta.real], [alpha.imag, alpha.real, beta.imag]])


def align(image: Image.Image, points: np.ndarray, template: np.ndarray = TEMPLATE, size: int = SIZE) -> Image.Image:
    """`image` moved so that its `points` (5, 2) come to lie on `template`, `size` x `size`, bilinear, black outside.

    Raises `ValueError` for points that `similarity` refuses or that it would shrink to nothing.
    """
    forward = similarity(points, template)
    scale = float(np.hypot(forward[0, 0], forward[1, 0]))
    if scale < 1e-3:
        raise ValueError(f"the points do not look like a face: the alignment would scale by {scale:.2g}")
    back = np.linalg.inv(forward[:, :2])
    offset = -back @ forward[:, 2]
    # Pillow counts from the corner of the first pixel, the points from its centre: a shift of half a pixel
    offset = offset + 0.5 - back @ [0.5, 0.5]
    coefficients = (*back[0], offset[0], *back[1], offset[1])
    return image.transform((size, size), Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)
