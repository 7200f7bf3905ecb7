"""Alignment against known similarities, the same problem by singular values, and pictures with marked points."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from reprolib.data.alignment import SIZE, TEMPLATE, align, similarity


def umeyama(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Umeyama 1991, eqs. 34 to 43, by the singular values of the covariance."""
    mean_p, mean_q = source.mean(0), target.mean(0)
    covariance = (target - mean_q).T @ (source - mean_p) / len(source)
    u, singular, vt = np.linalg.svd(covariance)
    sign = np.diag([1.0, np.sign(np.linalg.det(u) * np.linalg.det(vt))])
    rotation = u @ sign @ vt
    scale = np.trace(np.diag(singular) @ sign) / (source - mean_p).var(axis=0).sum()
    return np.column_stack([scale * rotation, mean_q - scale * rotation @ mean_p])


coordinates = st.floats(-200, 200, allow_nan=False, width=32)


@given(angle=st.floats(-3.2, 3.2), scale=st.floats(0.05, 20), shift=st.tuples(coordinates, coordinates))
def test_a_known_similarity_is_recovered(angle, scale, shift):
    matrix = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    found = similarity(TEMPLATE, TEMPLATE @ matrix.T + shift)
    assert np.allclose(found, np.column_stack([matrix, shift]), rtol=0, atol=1e-10 * max(1, scale * 200))
    # aligned back, the points land on the template
    back = similarity(TEMPLATE @ matrix.T + shift, TEMPLATE)
    landed = (TEMPLATE @ matrix.T + shift) @ back[:, :2].T + back[:, 2]
    assert np.allclose(landed, TEMPLATE, rtol=0, atol=1e-8)


@pytest.mark.parametrize("seed", range(20))
def test_least_squares_as_umeyama(seed):
    rng = np.random.default_rng(seed)
    source, target = rng.normal(size=(2, 5, 2)) * 50
    found = similarity(source, target)
    assert np.allclose(found, umeyama(source, target), atol=1e-9)
    # scale and rotation, no reflection, no shear
    assert found[0, 0] == found[1, 1] and found[0, 1] == -found[1, 0]
    best = ((source @ found[:, :2].T + found[:, 2] - target) ** 2).sum()
    for _ in range(50):
        a, b, *shift = rng.normal(size=4) * 0.1
        other = found + np.array([[a, -b, shift[0]], [b, a, shift[1]]])
        assert ((source @ other[:, :2].T + other[:, 2] - target) ** 2).sum() > best


def test_a_mirrored_face_is_not_mirrored_back():
    mirrored = TEMPLATE * [-1, 1]
    assert np.linalg.det(similarity(mirrored, TEMPLATE)[:, :2]) > 0


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        (np.zeros((5, 2)), TEMPLATE, "coincide"),
        (np.full((5, 2), 1e3), TEMPLATE, "coincide"),
        (TEMPLATE[:1], TEMPLATE[:1], "at least two points"),
        (TEMPLATE[:4], TEMPLATE, "two arrays"),
        (TEMPLATE.ravel(), TEMPLATE.ravel(), "two arrays"),
        (np.where(TEMPLATE > 90, np.nan, TEMPLATE), TEMPLATE, "finite"),
    ],
)
def test_points_without_a_similarity_are_refused(source, target, message):
    with pytest.raises(ValueError, match=message):
        similarity(source, target)


def test_the_identity_leaves_every_pixel():
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    assert np.array_equal(np.asarray(align(Image.fromarray(pixels), TEMPLATE)), pixels)


def test_whole_pixel_shifts_move_pixels_and_leave_black_outside():
    pixels = np.random.default_rng(1).integers(1, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    moved = np.asarray(align(Image.fromarray(pixels), TEMPLATE - [3, 5]))
    # the point at (x, y) goes to (x + 3, y + 5)
    assert np.array_equal(moved[5:, 3:], pixels[:-5, :-3])
    assert not moved[:5].any() and not moved[:, :3].any()


@pytest.mark.parametrize(("angle", "scale"), [(0.0, 0.9), (0.3, 1.2), (-0.5, 0.7), (3.0, 1.0)])
def test_marks_in_a_picture_land_on_the_template(angle, scale):
    """Each landmark is a soft blob; its centre of mass in the aligned picture is where the template says."""
    matrix = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    points = (TEMPLATE - 56) @ matrix.T + [125.3, 117.8]
    y, x = np.mgrid[:250, :250]
    for point, expected in zip(points, TEMPLATE, strict=True):
        blob = 250 * np.exp(-((x - point[0]) ** 2 + (y - point[1]) ** 2) / (2 * 3.0**2))
        picture = Image.fromarray(np.rint(blob).astype(np.uint8)).convert("RGB")
        aligned = np.asarray(align(picture, points), dtype=np.float64)[:, :, 0]
        assert aligned.shape == (SIZE, SIZE)
        rows, columns = np.mgrid[:SIZE, :SIZE]
        centre = np.array([(columns * aligned).sum(), (rows * aligned).sum()]) / aligned.sum()
        assert np.abs(centre - expected).max() < 0.05


def test_a_shrinking_alignment_is_refused():
    # points of which no rotation resembles the template: the mirrored template, mirrored again in its moments
    centred = (TEMPLATE - TEMPLATE.mean(0)) @ [1, 1j]
    points = np.array([1, -2, 1, 0, 0], dtype=complex)
    # made orthogonal to the template, so that alpha = 0
    points -= points.mean()
    points -= centred * np.vdot(centred, points) / np.vdot(centred, centred)
    with pytest.raises(ValueError, match="do not look like a face"):
        align(Image.new("RGB", (250, 250)), np.column_stack([points.real, points.imag]) * 20 + 125)
