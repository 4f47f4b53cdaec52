"""Gradient similarity on planted features, where the truth is known."""

import tracemalloc
from dataclasses import fields

import numpy as np
import pytest

from probes.gradients.similarity import Similarity, measure_similarity, moderate_variances
from probes.gradients.similarity import halves as similarity_halves

DIM = 64
NOISE = (0.1, 0.2, 0.35)
"""Standard deviations of the noise per dimension, on a mean gradient of length 1."""


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def planted_means(rng, alignments):
    """Unit vectors with the given alignment to the shared direction, the first axis."""
    own = rng.normal(size=(len(alignments), DIM))
    own[:, 0] = 0
    means = unit(own) * np.sqrt(1 - alignments**2)[:, None]
    means[:, 0] = alignments
    return means


def planted_rollouts(rng, means, noise, rollouts):
    """`rollouts` noisy gradients of every item, and the item of each row."""
    index = np.repeat(np.arange(len(means)), rollouts)
    return means[index] + noise[index, None] * rng.normal(size=(len(index), DIM)), index


@pytest.fixture(scope="module")
def shrinkage():
    """E[u] = shrinkage · μ for u = g / ‖g‖, g ~ N(μ, noise² I), ‖μ‖ = 1, by 200,000 draws."""
    rng = np.random.default_rng(0)
    start = np.eye(DIM)[0]
    return {s: unit(start + s * rng.normal(size=(200_000, DIM)))[:, 0].mean() for s in NOISE}


def measure(features, index, weights=None, is_easy=None, **options) -> Similarity:
    weights = np.ones(len(features), dtype=np.int64) if weights is None else weights
    is_easy = np.arange(index.max() + 1) % 2 == 0 if is_easy is None else is_easy
    return measure_similarity(features, index, weights, is_easy, **options)


def assert_same(left, right, *, tolerance=1e-5, items=slice(None)):
    for field in fields(Similarity):
        a, b = getattr(left, field.name)[items], getattr(right, field.name)
        if field.name in ("nearest", "rollouts_used"):
            np.testing.assert_array_equal(a, b, err_msg=field.name)
        else:
            np.testing.assert_allclose(
                a, b, rtol=tolerance, atol=tolerance, equal_nan=True, err_msg=field.name
            )


def small_world(seed=1, items=30):
    rng = np.random.default_rng(seed)
    means = planted_means(rng, rng.uniform(0, 0.9, items))
    noise = rng.choice(NOISE, items)
    return planted_rollouts(rng, means, noise, rng.integers(1, 9, items))


def test_definitions_against_a_plain_computation():
    features, index = small_world()
    weights = np.random.default_rng(2).integers(1, 4, len(features))
    is_easy = np.arange(30) % 3 == 0
    result = measure(features, index, weights, is_easy)
    rows = np.repeat(np.arange(len(features)), weights)
    gradients, index = features[rows], index[rows]
    directions = unit(gradients)
    means = np.stack([directions[index == item].mean(axis=0) for item in range(30)])
    for item in range(30):
        own = gradients[index == item]
        k = len(own)
        others = np.arange(30) != item
        references = np.flatnonzero(others & is_easy)
        halves = similarity_halves(DIM)
        near = [unit(means[references][:, half]) for half in halves]
        scores = [unit(directions[index == item][:, halves[h]]) @ near[h].T for h in (0, 1)]
        assert result.rollouts_used[item] == k
        if k > 1:
            alignments = []
            for draw in range(k):
                for choose, measured in ((0, 1), (1, 0)):
                    others_say = np.delete(scores[choose], draw, axis=0).sum(axis=0)
                    direction = unit(np.maximum(others_say, 0) ** 2 @ near[measured])
                    alignments.append(unit(own[draw, halves[measured]]) @ direction)
            assert result.similarity[item] == pytest.approx(np.mean(alignments), abs=1e-6)
        else:
            assert np.isnan(result.similarity[item])
        nearest = references[np.argsort(-sum(scores).sum(axis=0))[:5]]
        np.testing.assert_array_equal(result.nearest[item], nearest)
        assert result.similarity_easy[item] == pytest.approx(
            means[item] @ unit(means[others & is_easy].sum(axis=0)), abs=1e-6
        )
        assert result.similarity_hard[item] == pytest.approx(
            means[item] @ unit(means[others & ~is_easy].sum(axis=0)), abs=1e-6
        )
        mean_square = (own**2).sum(axis=1).mean()
        assert result.mean_squared_norm[item] == pytest.approx(mean_square)
        if k > 1:
            square = (own.mean(axis=0) ** 2).sum()
            expected = (k * square - mean_square) / ((k - 1) * square)
            assert result.reliability[item] == pytest.approx(max(expected, 0.0), abs=1e-5)
        else:
            assert np.isnan(result.reliability[item])


REPEATS = 20


def coverage(rng, references, draw_item):
    """Share of the intervals that hold the mean over `REPEATS` samples of the same item.

    references: (items, dim), exact. draw_item(i) gives one sample of item i: rows and weights.
    """
    samples = [draw_item(item) for item in range(100) for _ in range(REPEATS)]
    features = np.vstack([references, *(rows for rows, _ in samples)])
    weights = np.concatenate([np.full(len(references), 9), *(weights for _, weights in samples)])
    sizes = [len(rows) for rows, _ in samples]
    index = np.concatenate(
        [np.arange(len(references)), np.repeat(len(references) + np.arange(len(sizes)), sizes)]
    )
    is_easy = np.arange(len(references) + len(samples)) < len(references)
    result = measure(features, index, weights, is_easy)
    similarity, low, high = (
        values[len(references) :].reshape(100, REPEATS)
        for values in (result.similarity, result.low, result.high)
    )
    truth = similarity.mean(axis=1, keepdims=True)
    return np.mean((low <= truth) & (truth <= high))


@pytest.mark.parametrize("rollouts", [2, 4, 8, 16])
def test_interval_covers_what_other_samples_of_the_item_give(rollouts):
    """100 items at three noise levels, 30 % of them lucky (no shared direction)."""
    rng = np.random.default_rng(100 + rollouts)
    references = planted_means(rng, rng.uniform(0.3, 0.9, 60))
    means = planted_means(rng, np.where(rng.random(100) < 0.3, 0.0, rng.uniform(0.3, 0.9, 100)))
    noise = rng.choice(NOISE, 100)

    def draw_item(item):
        rows = means[item] + noise[item] * rng.normal(size=(rollouts, DIM))
        return rows, np.ones(rollouts, dtype=np.int64)

    assert 0.89 <= coverage(rng, references, draw_item) <= 0.985


@pytest.mark.parametrize("probabilities", [(0.5, 0.5), (0.7, 0.2, 0.1), (0.9, 0.1)])
@pytest.mark.parametrize("rollouts", [2, 4, 8, 16])
def test_interval_covers_where_completions_repeat(probabilities, rollouts):
    """Each item has few correct completions: most draws repeat, and many items show just one."""
    rng = np.random.default_rng(10 * rollouts + len(probabilities))
    references = planted_means(rng, rng.uniform(0.3, 0.9, 60))
    means = planted_means(rng, rng.uniform(0, 0.9, 100))
    completions = means[:, None] + 0.2 * rng.normal(size=(100, len(probabilities), DIM))

    def draw_item(item):
        draws = rng.multinomial(rollouts, probabilities)
        return completions[item, draws > 0], draws[draws > 0]

    assert coverage(rng, references, draw_item) >= 0.89


def test_items_with_one_draw_have_no_similarity():
    """No other draw of theirs can choose the neighbours that it is measured on."""
    rng = np.random.default_rng(7)
    rollouts = rng.choice([1, 4], 200)
    means = planted_means(rng, rng.uniform(0, 0.9, 200))
    features, index = planted_rollouts(rng, means, np.full(200, 0.2), rollouts)
    result = measure(features, index)
    for values in (result.similarity, result.low, result.high, result.standard_error):
        np.testing.assert_array_equal(np.isnan(values), rollouts == 1)
    assert np.isfinite(result.similarity_easy).all()


def test_lucky_items_lie_around_zero_and_others_do_not():
    rng = np.random.default_rng(3)
    lucky = np.arange(800) % 4 == 0
    means = planted_means(rng, np.where(lucky, 0.0, 0.8))
    features, index = planted_rollouts(rng, means, np.full(800, 0.2), np.full(800, 4))
    result = measure(features, index, is_easy=np.arange(800) % 4 == 1)
    assert abs(np.mean(result.similarity[lucky])) < 0.03
    assert np.mean(result.similarity[~lucky]) > 0.25
    assert np.mean(result.low[~lucky] > 0) > 0.95
    # Chance alignments of 32 coordinates, which the intervals do not hold, are larger than noise.
    assert np.mean(result.low[lucky] > 0) < 0.15


def test_an_item_near_a_few_references_is_similar_though_most_are_foreign():
    """Twenty skills of five easy items each: alignment with the mean direction would be small."""
    rng = np.random.default_rng(3)
    skills = unit(rng.normal(size=(20, DIM)))
    skill = np.repeat(np.arange(20), 8)
    is_easy = np.tile(np.arange(8) < 5, 20)
    lucky = np.tile(np.arange(8) == 7, 20)
    means = unit(skills[skill] + 0.1 * rng.normal(size=(160, DIM)))
    means[lucky] = unit(rng.normal(size=(20, DIM)))
    features, index = planted_rollouts(rng, means, np.full(160, 0.15), np.full(160, 4))
    result = measure(features, index, is_easy=is_easy)
    learnable = ~is_easy & ~lucky
    assert np.median(result.low[learnable]) > np.quantile(result.similarity[lucky], 0.9)
    assert (skill[result.nearest[learnable][:, 0]] == skill[learnable]).mean() > 0.9
    mean_direction = result.similarity_easy
    assert np.median(result.similarity[learnable]) > 1.5 * np.median(mean_direction[learnable])


def test_similarity_does_not_grow_with_the_number_of_rollouts():
    rng = np.random.default_rng(4)
    rollouts = np.where(np.arange(400) % 2 == 0, 2, 16)
    means = planted_means(rng, np.full(400, 0.6))
    features, index = planted_rollouts(rng, means, np.full(400, 0.35), rollouts)
    result = measure(features, index)
    few, many = result.similarity[rollouts == 2], result.similarity[rollouts == 16]
    # One rollout chooses worse than fifteen, but no more than that is lost.
    assert many.mean() < 1.2 * few.mean()
    item_means = np.stack([unit(features)[index == item].mean(axis=0) for item in range(400)])
    plain = unit(item_means) @ unit(item_means.sum(axis=0))
    assert plain[rollouts == 16].mean() > 1.5 * plain[rollouts == 2].mean()


@pytest.mark.parametrize("noise", NOISE)
def test_reliability_is_close_to_the_truth(noise):
    rng = np.random.default_rng(5)
    means = planted_means(rng, rng.uniform(0, 0.9, 300))
    features, index = planted_rollouts(rng, means, np.full(300, noise), np.full(300, 8))
    result = measure(features, index)
    truth = 1 / (1 + noise**2 * DIM / 8)  # ‖μ‖² / E‖ḡ‖²
    assert np.median(result.reliability) == pytest.approx(truth, abs=0.03)
    assert result.mean_squared_norm.mean() == pytest.approx(1 + noise**2 * DIM, rel=0.02)


def test_reliability_of_pure_noise_is_near_zero_and_never_negative():
    rng = np.random.default_rng(6)
    result = measure(rng.normal(size=(800, DIM)), np.repeat(np.arange(100), 8))
    assert result.reliability.min() == 0.0
    assert np.mean(result.reliability) < 0.12


def test_order_of_rollouts_does_not_matter():
    features, index = small_world()
    shuffled = np.random.default_rng(8).permutation(len(features))
    assert_same(measure(features[shuffled], index[shuffled]), measure(features, index))


def test_order_of_items_does_not_matter():
    features, index = small_world()
    is_easy = np.arange(30) % 3 == 0
    reference = measure(features, index, is_easy=is_easy)
    new_place = np.random.default_rng(9).permutation(30)
    moved_easy = np.empty(30, dtype=bool)
    moved_easy[new_place] = is_easy
    moved = measure(features, new_place[index], is_easy=moved_easy)
    np.testing.assert_array_equal(moved.nearest[new_place], new_place[reference.nearest])
    for field in fields(Similarity):
        if field.name != "nearest":
            np.testing.assert_allclose(
                getattr(moved, field.name)[new_place],
                getattr(reference, field.name),
                rtol=1e-5,
                atol=1e-5,
                err_msg=field.name,
            )


def test_scale_of_single_gradients_does_not_move_the_similarity():
    features, index = small_world()
    scales = np.random.default_rng(10).uniform(0.01, 100, (len(features), 1))
    scaled, plain = measure(features * scales, index), measure(features, index)
    np.testing.assert_allclose(scaled.similarity, plain.similarity, atol=1e-5)
    np.testing.assert_allclose(scaled.low, plain.low, atol=1e-5)


@pytest.mark.parametrize("block_bytes", [1, 8 * DIM * 30, 8 * DIM * 1000])
def test_block_size_does_not_matter(block_bytes):
    features, index = small_world()
    assert_same(measure(features, index, block_bytes=block_bytes), measure(features, index))


def test_weights_equal_repeated_rows():
    features, index = small_world()
    weights = np.random.default_rng(11).integers(1, 5, len(features))
    repeated = np.repeat(np.arange(len(features)), weights)
    assert_same(measure(features[repeated], index[repeated]), measure(features, index, weights))


def test_repeated_draws_count_but_do_not_make_the_spread_certain():
    features, index = small_world()
    weights = np.ones(len(features), dtype=np.int64)
    first = np.flatnonzero(index == 1)[:1]
    rows = np.concatenate([first, np.flatnonzero(index != 1)])
    weights[first] = 2
    twice = measure(features[rows], index[rows], weights[rows])
    weights[first] = 18
    often = measure(features[rows], index[rows], weights[rows])
    assert often.rollouts_used[1] == 18
    # 18 equal draws say as much of the spread as 2, and nine times as much of the mean.
    assert often.standard_error[1] == pytest.approx(twice.standard_error[1] / 3)
    assert often.degrees_of_freedom[1] == twice.degrees_of_freedom[1]


def test_memmap_in_half_precision_and_bounded_memory(tmp_path):
    rng = np.random.default_rng(12)
    items, rollouts, dim = 64, 16, 8192
    path = tmp_path / "features.npy"
    stored = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float16, shape=(items * rollouts, dim)
    )
    shared = rng.normal(size=dim)
    for row in range(len(stored)):
        stored[row] = 0.3 * shared + rng.normal(size=dim)
    stored.flush()
    index = np.repeat(np.arange(items), rollouts)
    mapped = np.load(path, mmap_mode="r")
    tracemalloc.start()
    result = measure(mapped, index, block_bytes=2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 * 2**20 < mapped.nbytes
    assert_same(result, measure(np.array(mapped), index))
    in_double = measure(np.array(mapped).astype(np.float64), index)
    assert_same(result, in_double)


def test_items_without_rollouts_are_nan_everywhere():
    features, index = small_world(items=10)
    index = np.where(index >= 5, index + 1, index)  # item 5 has none, nor has item 11
    result = measure(features, index, is_easy=np.arange(12) % 2 == 0)
    for item in (5, 11):
        assert result.rollouts_used[item] == 0
        for field in fields(Similarity):
            if field.name not in ("rollouts_used", "nearest"):
                assert np.isnan(getattr(result, field.name)[item]), field.name
        assert (result.nearest[item] == -1).all()
        assert item not in result.nearest
    used = result.rollouts_used > 1
    assert used.sum() == 9
    assert np.isfinite(result.similarity[used]).all()
    assert np.isfinite(result.high[used]).all()


def test_zero_gradients_and_zero_weights_are_left_out():
    features, index = small_world(items=10)
    weights = np.ones(len(features), dtype=np.int64)
    extended = np.vstack([features, np.zeros((2, DIM)), features[:2]])
    extended_index = np.concatenate([index, [0, 3], [4, 5]])
    extended_weights = np.concatenate([weights, [1, 1], [0, 0]])
    assert_same(measure(extended, extended_index, extended_weights), measure(features, index))


def test_too_few_items_for_a_direction():
    rng = np.random.default_rng(13)
    alone = measure(rng.normal(size=(4, DIM)), np.zeros(4, dtype=np.int64))
    assert np.isnan(alone.similarity[0]) and np.isnan(alone.low[0])
    assert np.isfinite(alone.reliability[0])
    assert (alone.nearest == -1).all()
    two = measure(rng.normal(size=(8, DIM)), np.repeat([0, 1], 4))
    # Item 0 is the only easy one: leaving it out leaves nothing to compare it with.
    assert np.isnan(two.low[0]) and np.isfinite(two.low[1])
    assert np.isnan(two.similarity_easy[0]) and np.isfinite(two.similarity_easy[1])
    np.testing.assert_array_equal(two.nearest[:, 0], [-1, 0])
    assert (two.nearest[:, 1:] == -1).all()
    cancelling = np.array([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [1.0, 1.0]])
    opposed = measure(
        cancelling, np.array([0, 1, 2, 3]), is_easy=np.array([False, True, True, True])
    )
    assert opposed.similarity_easy[1] == 0 or np.isnan(opposed.similarity_easy[1])
    none = measure_similarity(
        np.empty((0, DIM)), np.empty(0, int), np.empty(0, int), np.array([True, False])
    )
    assert np.isnan(none.similarity).all()


def test_no_spread_anywhere_gives_no_interval():
    features, index = small_world()
    first = np.unique(index, return_index=True)[1]
    result = measure(features[first], index[first], np.full(30, 3))
    assert np.isfinite(result.similarity).all()
    assert np.isnan(result.low).all() and np.isnan(result.standard_error).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": np.ones((3, 1))}, "rollouts, dim"),
        ({"item_index": np.array([0, 1])}, "as many"),
        ({"item_index": np.array([0, 1, 2])}, "0 to 1"),
        ({"item_index": np.array([0, -1, 1])}, "0 to 1"),
        ({"weights": np.array([1, -1, 1])}, "multiplicities"),
        ({"weights": np.array([1, 0.5, 1])}, "multiplicities"),
        ({"features": np.array([[1.0, 0], [np.nan, 0], [1.0, 0]])}, "row 1 is not finite"),
        ({"features": np.array([[1.0, 0], [1.0, 0], [np.inf, 0]])}, "row 2 is not finite"),
    ],
)
def test_bad_input_is_refused(change, message):
    inputs = {
        "features": np.ones((3, 2)),
        "item_index": np.array([0, 0, 1]),
        "weights": np.ones(3, dtype=np.int64),
        "is_easy": np.array([True, False]),
    }
    with pytest.raises(ValueError, match=message):
        measure_similarity(**(inputs | change))


def test_moderation_recovers_the_prior_it_was_drawn_from():
    rng = np.random.default_rng(14)
    freedom = rng.choice([1.0, 3.0, 7.0, 15.0], 20_000)
    true_variances = 0.04 * 8 / rng.chisquare(8, 20_000)  # s0² = 0.04, d0 = 8
    variances = true_variances * rng.chisquare(freedom) / freedom
    moderated, total = moderate_variances(variances, freedom)
    np.testing.assert_allclose(total - freedom, 8, rtol=0.1)
    expected = (8 * 0.04 + freedom * variances) / (8 + freedom)
    np.testing.assert_allclose(moderated, expected, rtol=0.05)


def test_moderation_of_equal_variances_pools_them():
    rng = np.random.default_rng(15)
    freedom = np.append(np.full(500, 3.0), 0.0)
    variances = np.append(0.01 * rng.chisquare(3, 500) / 3, 0.0)
    moderated, total = moderate_variances(variances, freedom)
    assert moderated[-1] == pytest.approx(0.01, rel=0.1)
    assert np.ptp(moderated) < 0.005
    assert total.max() <= freedom.sum()


def test_moderation_with_fewer_than_three_items_pools_and_caps():
    moderated, total = moderate_variances(np.array([0.04, 0.01, 0.0]), np.array([1.0, 3.0, 0.0]))
    pooled = (0.04 + 0.03) / 4
    assert moderated[2] == pytest.approx(pooled)
    assert moderated[0] == pytest.approx((4 * pooled + 0.04) / 5)
    np.testing.assert_array_equal(total, [4.0, 4.0, 4.0])
