"""The preconditioner is a power of a second moment: here from the dense matrix."""

import numpy as np
import pytest

from probes.lift.preconditioner import MOST_ROWS, Preconditioner, draw_rows, fit_preconditioner

DAMPING = 0.01


def dense(gradients, repeats):
    """(C/ĉ + 0.01)^(−1/4) as a matrix, (dim, dim)."""
    gradients = gradients.astype(np.float64)
    second = (gradients * repeats[:, None]).T @ gradients / repeats.sum()
    values, vectors = np.linalg.eigh(second)
    scaled = (np.maximum(values, 0) / values.max() + DAMPING) ** -0.25
    return vectors @ np.diag(scaled) @ vectors.T


@pytest.mark.parametrize(
    ("rows", "dim", "rank"), [(6, 20, 6), (30, 20, 20), (40, 20, 5), (1, 8, 1)]
)
def test_it_is_the_power_of_the_second_moment(rows, dim, rank):
    random = np.random.default_rng(0)
    scales = np.geomspace(1, 0.1, rank)
    gradients = (random.normal(size=(rows, rank)) * scales) @ random.normal(size=(rank, dim))
    gradients = gradients.astype(np.float32)
    repeats = random.integers(1, 5, size=rows)
    found = fit_preconditioner(gradients, repeats)
    assert len(found.basis) <= min(rows, rank)  # Nothing but directions that were seen.
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(len(found.basis)), atol=1e-4)
    vectors = random.normal(size=(7, dim)).astype(np.float32)
    expected = vectors @ dense(gradients, repeats)
    np.testing.assert_allclose(found.apply(vectors), expected, rtol=2e-3, atol=2e-3)


def test_inner_products_are_those_of_the_inverse_root():
    random = np.random.default_rng(1)
    gradients = random.normal(size=(12, 10)).astype(np.float32)
    repeats = np.ones(12, dtype=np.int64)
    x, y = random.normal(size=(2, 10)).astype(np.float32)
    found = fit_preconditioner(gradients, repeats)
    power = dense(gradients, repeats)
    expected = float(x @ power @ power @ y)  # (C/ĉ + 0.01)^(−1/2)
    inner = float(found.apply(x[None])[0] @ found.apply(y[None])[0])
    assert inner == pytest.approx(expected, rel=1e-3)


def test_the_scale_of_the_gradients_and_their_repeats_do_not_matter():
    random = np.random.default_rng(2)
    gradients = random.normal(size=(8, 16)).astype(np.float32)
    vectors = random.normal(size=(3, 16)).astype(np.float32)
    repeats = random.integers(1, 4, size=8)
    expected = fit_preconditioner(gradients, repeats).apply(vectors)
    longer = fit_preconditioner(gradients * 100, repeats * 7).apply(vectors)
    np.testing.assert_allclose(longer, expected, rtol=1e-3, atol=1e-4)
    written_out = fit_preconditioner(np.repeat(gradients, repeats, axis=0), np.ones(repeats.sum()))
    np.testing.assert_allclose(written_out.apply(vectors), expected, rtol=1e-3, atol=1e-3)


def test_a_direction_in_which_gradients_differ_wildly_moves_less():
    random = np.random.default_rng(3)
    gradients = 0.1 * random.normal(size=(50, 6))
    gradients[:, 0] *= 30
    found = fit_preconditioner(gradients.astype(np.float32), np.ones(50, dtype=np.int64))
    moved = np.linalg.norm(found.apply(np.eye(6, dtype=np.float32)), axis=1)
    assert moved[0] == pytest.approx(1.01**-0.25, rel=0.01)
    assert (moved[1:] > 2.5).all()
    # Where no gradient has been seen nothing is known, and all is scaled alike.
    flat = np.zeros((4, 6), np.float32)
    flat[:, 0] = 1
    unseen = fit_preconditioner(flat, np.ones(4, dtype=np.int64)).apply(np.eye(6, dtype=np.float32))
    np.testing.assert_allclose(np.diag(unseen)[1:], DAMPING**-0.25, rtol=1e-5)


@pytest.mark.parametrize("rows", [0, 3])
def test_without_a_gradient_nothing_changes(rows):
    gradients = np.zeros((rows, 5), np.float32)
    found = fit_preconditioner(gradients, np.ones(rows, dtype=np.int64))
    vectors = np.random.default_rng(4).normal(size=(2, 5)).astype(np.float32)
    assert isinstance(found, Preconditioner)
    np.testing.assert_array_equal(found.apply(vectors), vectors)


def test_rows_are_drawn_by_weight_and_the_same_every_time():
    weights = np.array([0.0, 1.0, 3.0, 0.0])
    rows = draw_rows(weights, seed=5)
    assert len(rows) == MOST_ROWS and (np.diff(rows) >= 0).all()
    np.testing.assert_array_equal(rows, draw_rows(weights, seed=5))
    assert set(rows.tolist()) == {1, 2}
    # 3 in 4, within four standard errors of 1,024 draws.
    assert (rows == 2).mean() == pytest.approx(0.75, abs=0.055)
    assert len(draw_rows(np.zeros(4), seed=5)) == 0
    assert len(draw_rows(np.zeros(0), seed=5)) == 0
