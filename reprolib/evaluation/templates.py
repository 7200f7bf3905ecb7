"""One feature for a set of images of one person: the templates of IJB-A, IJB-B and IJB-C."""

from __future__ import annotations

import numpy as np
import torch

from .._checks import Array, feature_rows, label_array, row_tensor

_ROWS = 1 << 14


def template_features(features: Array, template_ids: Array, media_ids: Array | None = None) -> Array:
    """Unit feature of each template by media averaging (IJB-A protocol).

    `features` (N, d), integer `template_ids` (N,). With `media_ids` (N,), the images of one medium in one
    template (the frames of a video) are averaged first and the media next, so that a long video weighs no
    more than a still; without, every image is its own medium. The mean is then L2-normalised:

        t = mean over media (mean over images of the medium),  result t / |t|

    Returns (T, d) in the kind of `features` (tensor or array; half precision gives float32), rows in
    ascending order of template id, as in `numpy.unique(template_ids)`. Sums are float64. Features are
    averaged as given: normalise them first if their norms should not weigh; add or concatenate a flipped
    image's features first, too.

    Raises ValueError for wrong shapes, no rows, NaN, or a template whose mean is zero and has no direction.
    """
    rows = feature_rows(features, "features")
    names, template = np.unique(label_array(template_ids, "template_ids", len(rows)), return_inverse=True)
    if media_ids is None:
        weight = 1 / np.bincount(template)[template]
    else:
        media = np.unique(label_array(media_ids, "media_ids", len(rows)), return_inverse=True)[1]
        # a medium is named within its template: the same id in another template is another medium
        named, medium = np.unique(template * (media.max() + 1) + media, return_inverse=True)
        media_of_template = np.bincount(named // (media.max() + 1))
        # mean of means: image i weighs 1 / (media in its template * images in its medium)
        weight = 1 / (media_of_template[template] * np.bincount(medium)[medium])

    total = torch.zeros(len(names), rows.shape[1], dtype=torch.float64)
    reach = torch.zeros(len(names), dtype=torch.float64)
    index, weights = torch.from_numpy(template), torch.from_numpy(weight)
    for start in range(0, len(rows), _ROWS):
        part = slice(start, start + _ROWS)
        chunk = row_tensor(rows[part]).to("cpu", torch.float64) * weights[part, None]
        total.index_add_(0, index[part], chunk)
        reach.index_add_(0, index[part], torch.linalg.vector_norm(chunk, dim=1))
    if not torch.isfinite(reach).all():
        raise ValueError("features hold NaN or infinite values; every value must be finite")
    norm = torch.linalg.vector_norm(total, dim=1)
    # features that cancel leave a rounding error of about 1e-16 of their norms
    empty = torch.nonzero(norm <= 1e-13 * reach)[:, 0]
    if len(empty):
        raise ValueError(f"template {int(names[int(empty[0])])} has a zero mean feature, which has no direction")
    unit = total / norm[:, None]
    if isinstance(rows, torch.Tensor):
        return unit.to(rows.device, rows.dtype if rows.dtype == torch.float64 else torch.float32)
    return unit.numpy().astype(rows.dtype if rows.dtype.itemsize > 4 else np.float32)
