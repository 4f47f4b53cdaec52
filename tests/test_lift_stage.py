"""The lift of a run by gradients, its unit, who teaches whom, and the files: by brute force."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import t as student_t

from curate.config import TagConfig
from curate.errors import RunError
from curate.run.features import RolloutFeatures
from curate.run.rollouts import Outcomes
from probes.lift.gradients import group_weights
from probes.lift.item_gradients import item_gradients
from probes.lift.preconditioner import draw_rows
from probes.stages.lift import (
    ItemLift,
    lift_inputs,
    measured_lift,
    read_lift,
    write_lift,
    write_teaching,
)

ITEMS, DIM, ROLLOUTS = 14, 24, 40
CONFIG = TagConfig().replace(tau=0.2)


def make_run(seed: int = 0, signal: float = 1.0) -> tuple[RolloutFeatures, Outcomes]:
    """Items with 0 to 30 correct rollouts of 40; correct ones share a direction of this length."""
    random = np.random.default_rng(seed)
    correct = np.array([0, 1, 1, 2, 2, 3, 4, 5, 6, 7, 12, 20, 30, 40])
    common = signal * random.normal(size=DIM) / np.sqrt(DIM)
    rows: list[tuple[int, int, int, int]] = []
    for item, c in enumerate(correct):
        rows += [(item, int(random.integers(1, 4)) if c > 1 else 1, 1, 0) for _ in range(min(c, 5))]
    rows += [(item, 1, 0, 0) for item, c in enumerate(correct) if 0 < c < 40 for _ in range(3)]
    item, weights, reward, _ = (
        np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)
    )
    noise = random.normal(size=(len(rows), DIM)) / np.sqrt(DIM)
    # Features are the gradient of the loss: correct rollouts have it against what they share.
    sign = np.where(reward == 1, -1.0, 1.0)[:, None]
    features = (noise + sign * common).astype(np.float32)
    tokens = random.integers(1, 9, size=len(rows))
    judged = np.full(len(correct), ROLLOUTS)
    return (
        RolloutFeatures(features, item, weights, reward, tokens),
        Outcomes(judged, judged, correct.astype(np.int64)),
    )


@dataclass(frozen=True)
class ByHand:
    """What the definitions give, item by item, without a sum taken twice."""

    lift: Any
    unit: float
    effects: Any
    """(items, items): what a group of item j does for the log odds of item i."""
    teaching: Any


def by_hand(run: RolloutFeatures, found: Outcomes, config: TagConfig = CONFIG) -> ByHand:
    n, c = found.judged, found.correct
    p = np.minimum((c + 0.5) / (n + 1), 0.99)
    groups = group_weights(n, c, config.group_size, config.policy_loss)
    w, q = groups.weight, groups.signal
    draws = np.bincount(run.item, run.weights, minlength=len(n))
    used = w[run.item] * run.weights / draws[run.item]
    chosen = run.features[draw_rows(used, 0)].astype(float)
    values, vectors = np.linalg.eigh(chosen.T @ chosen)
    # The inner product of the step, (C/ĉ + 0.01)^(−1/2), as a matrix.
    power = (np.maximum(values, 0) / values.max() + 0.01) ** -0.5
    product = vectors @ np.diag(power) @ vectors.T
    g = -run.features.astype(float)
    s = g * run.completion_tokens[:, None]
    h, d = np.full((2, len(n), DIM), np.nan)
    own = np.full(len(n), np.nan)
    ratios = []
    for item in range(len(n)):
        right = np.repeat(*_of(run, item, 1))
        wrong = np.repeat(*_of(run, item, 0))
        if not len(right):
            continue
        h[item] = s[right].mean(axis=0)
        has_wrong = len(wrong) > 0
        mean_wrong = g[wrong].mean(axis=0) if has_wrong else np.zeros(DIM)
        d[item] = g[right].mean(axis=0) - mean_wrong if has_wrong else np.zeros(DIM)
        k = len(right)
        pairs = [s[a] @ product @ g[b] for i, a in enumerate(right) for j, b in enumerate(right)
                 if i != j]  # fmt: skip
        alone = np.mean([s[a] @ product @ g[a] for a in right])
        if k > 1:
            ratios.append((np.mean(pairs), alone))
        own[item] = np.mean(pairs) if k > 1 else alone
    share = np.clip(sum(each[0] for each in ratios) / sum(each[1] for each in ratios), 0, 1)
    effects = (h @ product @ (w[:, None] * np.nan_to_num(d)).T) / (1 - p)[:, None]
    lift, teaching = np.full((2, len(n)), np.nan)
    for item in np.flatnonzero(np.isfinite(own)):
        k = len(np.repeat(*_of(run, item, 1)))
        pair = own[item] if k > 1 else share * own[item]
        wrong = np.repeat(*_of(run, item, 0))
        against = h[item] @ product @ g[wrong].mean(axis=0) if len(wrong) else 0.0
        itself = w[item] * (pair - against) / (1 - p[item])
        lift[item] = (np.delete(effects[item], item).sum() + itself) / q.sum()
        pupils = [i for i in range(len(n)) if i != item and c[i] / n[i] < config.tau and c[i] > 0]
        teaching[item] = effects[pupils, item].mean()
    known = np.isfinite(lift)
    return ByHand(lift, w[known] @ lift[known] / w[known].sum(), effects, teaching)


def _of(run: RolloutFeatures, item: int, reward: int) -> tuple[Any, Any]:
    rows = np.flatnonzero((run.item == item) & (run.reward == reward))
    return rows, run.weights[rows]


# --- The measurement -------------------------------------------------------------------------


def test_the_lift_is_that_of_the_definition() -> None:
    run, found = make_run()
    expected = by_hand(run, found)
    lift, raw, facts = measured_lift(run, found, CONFIG)
    np.testing.assert_allclose(raw.lift, expected.lift, rtol=2e-3, atol=1e-4)
    np.testing.assert_allclose(raw.teaching, expected.teaching, rtol=2e-3, atol=1e-4)
    assert facts["unit"] == pytest.approx(expected.unit, rel=1e-3)
    np.testing.assert_allclose(lift.lift, expected.lift / expected.unit, rtol=5e-3, atol=1e-3)
    assert np.isnan(lift.lift[0]) and np.isfinite(lift.lift[1:]).all()
    assert facts["items_with_lift"] == ITEMS - 1


def test_step_and_slope_of_an_item_are_who_teaches_whom() -> None:
    run, found = make_run(3)
    expected = by_hand(run, found)
    inputs = lift_inputs(run, found)
    vectors = item_gradients(inputs, group_size=8, loss="grpo", block_bytes=2000)
    known = np.isfinite(expected.lift)
    effects = vectors.slope @ vectors.step.T
    np.testing.assert_allclose(
        effects[np.ix_(known, known)], expected.effects[np.ix_(known, known)], rtol=2e-3, atol=1e-4
    )
    assert not effects[~known].any() and vectors.pupil is vectors.slope
    # As the items of a target the same items have the same slopes.
    target = item_gradients(inputs, group_size=8, loss="grpo", pupils=inputs)
    np.testing.assert_allclose(target.pupil, vectors.slope, rtol=1e-4, atol=1e-6)


def test_folded_to_less_memory_inner_products_are_the_same_on_average() -> None:
    run, found = make_run(3)
    inputs = lift_inputs(run, found)
    whole = item_gradients(inputs, group_size=8, loss="grpo")
    full = whole.slope @ whole.step.T
    seen = []
    for seed in range(40):
        folded = item_gradients(
            inputs, group_size=8, loss="grpo", seed=seed, most_bytes=8 * ITEMS * DIM // 2
        )
        assert folded.step.shape == (ITEMS, DIM // 2)
        seen.append(folded.slope @ folded.step.T)
    error = np.std(seen, axis=0) / np.sqrt(len(seen))
    assert (np.abs(np.mean(seen, axis=0) - full) <= 5 * error + 1e-6).mean() > 0.97


def test_in_its_unit_training_lifts_its_own_items_by_one() -> None:
    run, found = make_run(1)
    lift, raw, facts = measured_lift(run, found, CONFIG)
    weight = group_weights(found.judged, found.correct, CONFIG.group_size).weight
    known = np.isfinite(lift.lift)
    assert np.average(lift.lift[known], weights=weight[known]) == pytest.approx(1)
    # The errors and what comes from others are in the same unit.
    for name in ("lift", "standard_error", "from_others"):
        ours, theirs = getattr(lift, name), getattr(raw, name)
        np.testing.assert_allclose(ours, theirs / facts["unit"])


def test_the_unit_takes_the_length_of_the_gradients_out() -> None:
    run, found = make_run(2)
    lift, _, facts = measured_lift(run, found, CONFIG)
    longer, _, other = measured_lift(replace(run, features=run.features * 7), found, CONFIG)
    np.testing.assert_allclose(longer.lift, lift.lift, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(longer.standard_error, lift.standard_error, rtol=1e-3)
    assert other["unit"] == pytest.approx(facts["unit"] * 49, rel=1e-3)


def test_where_training_lifts_nothing_there_is_no_lift_and_the_reason() -> None:
    run, found = make_run(3)
    # What the wrong rollouts of an item do, the correct ones do more: training pulls all down.
    features = run.features.copy()
    for item in range(ITEMS):
        right, wrong = ((run.item == item) & (run.reward == r) for r in (1, 0))
        if right.any() and wrong.any():
            unit = features[right].mean(axis=0)
            features[wrong] = 3 * unit
            features[right] = np.where(np.arange(right.sum())[:, None] % 2, 2 * unit, unit)
    lift, _, facts = measured_lift(replace(run, features=features), found, CONFIG)
    assert facts["unit"] < 0
    assert facts["why_none"].startswith("training on the items of this run does not lift them")
    for name in ("lift", "standard_error", "from_others", "degrees_of_freedom"):
        assert np.isnan(getattr(lift, name)).all()


def test_a_run_without_a_correct_rollout_has_no_lift() -> None:
    empty = np.zeros(0, dtype=np.int64)
    run = RolloutFeatures(np.zeros((0, DIM), np.float32), empty, empty, empty, empty)
    judged = np.full(3, 32)
    found = Outcomes(judged, judged, np.zeros(3, dtype=np.int64))
    lift, _, facts = measured_lift(run, found, CONFIG, with_pairs=True)
    assert np.isnan(lift.lift).all()
    assert facts["unit"] is None and facts["items_with_lift"] == 0
    assert facts["why_none"] == "no item has a correct rollout"


def test_a_target_is_whom_teaching_is_for() -> None:
    run, found = make_run(4)
    other, theirs = make_run(5)
    target = lift_inputs(other, theirs)
    lift, raw, _ = measured_lift(run, found, CONFIG, target)
    plain, without, _ = measured_lift(run, found, CONFIG)
    np.testing.assert_allclose(lift.lift, plain.lift)
    assert np.nanmax(np.abs(raw.teaching - without.teaching)) > 1e-3


def test_gradients_of_an_earlier_version_are_refused() -> None:
    run, found = make_run()
    with pytest.raises(RunError, match="of an earlier version of curate"):
        measured_lift(replace(run, completion_tokens=None), found, CONFIG)
    damaged = run.features.copy()
    damaged[3] = np.nan
    with pytest.raises(RunError, match="damaged: features row 3 is not finite"):
        measured_lift(replace(run, features=damaged), found, CONFIG)


# --- Who teaches whom ------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run folder that has its items."""
    ids = [f"item-{n:02d}" for n in range(ITEMS)]
    pq.write_table(pa.table({"item_id": ids}), tmp_path / "items.parquet")
    return tmp_path


def test_teachers_and_pupils_are_those_of_the_whole_matrix(folder: Path) -> None:
    run, found = make_run(6)
    _, raw, facts = measured_lift(run, found, CONFIG, with_pairs=True)
    ids = pq.read_table(folder / "items.parquet")["item_id"]
    write_teaching(folder, ids, raw, facts["unit"])
    rows = pq.read_table(folder / "teaching.parquet").to_pylist()
    expected = by_hand(run, found)
    effects = 100 * expected.effects / expected.unit
    np.fill_diagonal(effects, np.nan)
    c, names = found.correct, ids.to_pylist()
    assert [row["item_id"] for row in rows] == names
    taught = [np.nan if row["teaching"] is None else row["teaching"] for row in rows]
    np.testing.assert_allclose(taught, 100 * expected.teaching / expected.unit, rtol=5e-3, atol=0.1)
    hard = np.flatnonzero((c > 0) & (c / found.judged < CONFIG.tau))
    seen = 0
    for item, row in enumerate(rows):
        # No teacher has a share of nothing: item 0 has no correct rollout, 13 no wrong one.
        others = [j for j in range(1, ITEMS - 1) if j != item]
        pupils = [i for i in hard if i != item]
        for name, values, sign in (
            ("teachers", {j: effects[item, j] for j in others}, 1),
            ("helps", {i: effects[i, item] for i in pupils}, 1),
            ("hurts", {i: effects[i, item] for i in pupils}, -1),
        ):
            teaches = name == "teachers" or 0 < item < ITEMS - 1
            known = {k: v for k, v in values.items() if np.isfinite(v) and sign * v > 0}
            best = sorted(known, key=lambda k: -sign * known[k])[:3] if teaches else []
            np.testing.assert_allclose(
                row[f"{name}_by"], [known[k] for k in best], rtol=5e-3, atol=0.05
            )
            assert row[name] == [names[k] for k in best]
            seen += len(best)
    assert seen > 3 * ITEMS


def test_without_a_unit_teaching_is_unknown(folder: Path) -> None:
    run, found = make_run(6)
    _, raw, _ = measured_lift(run, found, CONFIG)
    ids = pq.read_table(folder / "items.parquet")["item_id"]
    for unit in (None, -0.5):
        write_teaching(folder, ids, raw, unit)
        table = pq.read_table(folder / "teaching.parquet")
        assert table.column_names == ["item_id", "teaching"]
        assert table["teaching"].null_count == ITEMS


# --- The files -------------------------------------------------------------------------------


def test_what_is_written_is_read_again(folder: Path) -> None:
    lift = ItemLift(
        lift=np.arange(ITEMS, dtype=float),
        standard_error=np.full(ITEMS, 0.5),
        degrees_of_freedom=np.full(ITEMS, 7.0),
        from_others=np.linspace(-1, 1, ITEMS),
    )
    lift.lift[2] = lift.standard_error[2] = np.nan
    write_lift(folder, lift, "gradients", {"unit": 0.25})
    table, facts = read_lift(folder)
    assert facts == {"source": "gradients", "unit": 0.25}
    assert json.loads((folder / "lift.json").read_text()) == facts
    half = student_t.ppf(0.975, 7) * 0.5
    np.testing.assert_allclose(table["lift_low"].to_numpy(), lift.lift - half)
    np.testing.assert_allclose(table["lift_high"].to_numpy(), lift.lift + half)
    np.testing.assert_array_equal(table["from_others"].to_numpy(), lift.from_others)
    for name in ("lift", "lift_low", "lift_high", "standard_error"):
        assert table[name][2].as_py() is None
    # Of a source that knows neither, the error is a normal's and nobody can tell who taught.
    write_lift(folder, replace(lift, degrees_of_freedom=None, from_others=None), "pilot", {})
    table, facts = read_lift(folder)
    assert facts == {"source": "pilot"}
    assert table["from_others"].null_count == ITEMS
    width = table["lift_high"][0].as_py() - table["lift_low"][0].as_py()
    assert width == pytest.approx(2 * 1.959964 * 0.5)


def test_lifts_of_other_items_are_refused(folder: Path) -> None:
    short = ItemLift(np.zeros(3), np.ones(3))
    with pytest.raises(RunError, match=f"has {ITEMS} items, and the lift is of 3"):
        write_lift(folder, short, "pilot", {})
    assert not (folder / "lift.parquet").exists()


def test_missing_and_damaged_files_are_named(folder: Path) -> None:
    with pytest.raises(RunError, match=r"lift\.parquet"):
        read_lift(folder)
    write_lift(folder, ItemLift(np.zeros(ITEMS), np.ones(ITEMS)), "pilot", {})
    (folder / "lift.json").write_text("{")
    with pytest.raises(RunError, match=r"lift\.json is missing or damaged"):
        read_lift(folder)
    (folder / "lift.json").unlink()
    with pytest.raises(RunError, match=r"lift\.json is missing or damaged"):
        read_lift(folder)
