"""What curation pays: curves of known shape, where they cross, and what cannot be said."""

import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curate.errors import RunError
from curate.run.run import Run
from recipes.confirm import payoff
from recipes.confirm.interventions_text import payoff_text
from recipes.confirm.payoff import HeldOut, compare_arms, payoff_table
from tests.made.run import write_probe_of_two, write_training

SPENT = (0, 1000, 2000, 3000, 4000)
ITEMS = 8
TOTAL = 1000  # Rollouts of an item: so many that a pass rate is what is asked for.

Curve = Callable[[float], float]


def _linear(end: float, by: float) -> Curve:
    """From 0.1 to `end` at `by` rollouts, and flat from there."""
    return lambda spent: 0.1 + (end - 0.1) * min(spent / by, 1.0)


def _rows(curve: Curve, spent: Sequence[int] = SPENT, items: int = ITEMS) -> list[dict[str, Any]]:
    """Items are spread evenly around the curve, by 0.04 at most."""
    spread = np.linspace(-0.04, 0.04, items)
    return [
        {
            "step": 10 * at,
            "rollouts": rollouts,
            "item_id": f"i{item}",
            "total_rollouts": TOTAL,
            "total_correct_rollouts": round(TOTAL * (curve(rollouts) + spread[item])),
        }
        for at, rollouts in enumerate(spent)
        for item in range(items)
    ]


def _write(run: Path, arms: dict[str, Curve], seeds: Sequence[int] = (1, 2, 3)) -> Path:
    for name, curve in arms.items():
        for seed in seeds:
            write_training(run, name, seed, held_out=_rows(curve))
    return run


def _table(run: Path, **options: Any) -> dict[str, Any]:
    table = payoff_table(Run.open(run), **options)
    assert table is not None
    assert json.loads(json.dumps(table, allow_nan=False)) == table
    return table


ARMS = {
    "full": _linear(0.5, 4000),
    "filtered": _linear(0.5, 2200),
    "trimmed": _linear(0.5, 3000),
    "ordered": _linear(0.6, 4000),
    "random": _linear(0.3, 4000),
}


def test_the_point_where_an_arm_reaches_the_full_arms_final_rate(tmp_path: Path) -> None:
    table = _table(_write(write_probe_of_two(tmp_path), ARMS))
    arms = table["arms"]
    assert (table["items"], arms["full"]["seeds"], arms["full"]["rollouts"]) == (8, 3, 4000)
    assert table["target"]["value"] == pytest.approx(0.5)
    assert table["gain"]["value"] == pytest.approx(0.4)
    # It is there at 2,200, between two evaluations; the line between them gets there at 3,000.
    assert arms["filtered"]["reached_at"]["value"] == pytest.approx(3000)
    assert arms["filtered"]["reached_share"]["value"] == pytest.approx(0.75)
    assert arms["full"]["reached_share"]["value"] == pytest.approx(1.0)
    assert arms["ordered"]["reached_at"]["value"] == pytest.approx(3200)  # 0.1 + 0.5 x / 4000
    assert (
        arms["ordered"]["reached_share"]["low"] <= 0.8 <= arms["ordered"]["reached_share"]["high"]
    )
    assert [point["rollouts"] for point in arms["full"]["curve"]] == list(SPENT)
    assert arms["random"]["final"]["value"] == pytest.approx(0.3)
    assert not table["notes"]


def test_on_some_of_the_held_out_items(tmp_path: Path) -> None:
    run = _write(write_probe_of_two(tmp_path), ARMS)
    table = _table(run, item_ids={"i0", "i7", "not held out"})
    assert table["items"] == 2
    assert table["arms"]["random"]["final"]["value"] == pytest.approx(0.3)
    # The first item lies lowest.
    lowest = _table(run, item_ids={"i0"})["arms"]["random"]["final"]["value"]
    assert lowest == pytest.approx(0.26)
    with pytest.raises(RunError, match="no held-out items in common"):
        payoff_table(Run.open(run), item_ids=())


def test_an_arm_that_never_gets_there_has_null(tmp_path: Path) -> None:
    table = _table(_write(write_probe_of_two(tmp_path), ARMS))
    never = table["arms"]["random"]
    nothing = {"value": None, "low": None, "high": None}
    assert never["reached_at"] == never["reached_share"] == nothing
    assert never["reached_fraction"] == 0
    (line,) = (line for line in payoff_text(table).splitlines() if line.startswith("random"))
    assert "never" in line


def test_filtered_minus_random_at_the_end_and_as_area(tmp_path: Path) -> None:
    difference = _table(_write(write_probe_of_two(tmp_path), ARMS))["filtered_minus_random"]
    assert difference["final"]["value"] == pytest.approx(0.2)
    # 0 at first; then 0.4 x / 2200 against 0.2 x / 4000, at the evaluations; flat from 3,000 on.
    at = [0, *(0.4 * min(x / 2200, 1) - 0.2 * x / 4000 for x in SPENT[1:])]
    area = sum((a + b) / 2 for a, b in itertools.pairwise(at)) / 4
    assert difference["mean"]["value"] == pytest.approx(area, abs=1e-3)
    # All items are lifted alike, and so are all seeds: nothing is uncertain.
    for found in difference.values():
        assert found["low"] == pytest.approx(found["value"], abs=1e-3)
        assert found["high"] == pytest.approx(found["value"], abs=1e-3)


def test_seeds_are_evaluated_at_different_points_and_averaged(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path)
    write_training(run, "full", 1, held_out=_rows(_linear(0.5, 4000)))
    write_training(run, "full", 2, held_out=_rows(_linear(0.3, 4000), (0, 1500, 4000)))
    curve = _table(run)["arms"]["full"]["curve"]
    assert [point["rollouts"] for point in curve] == [0, 1000, 1500, 2000, 3000, 4000]
    for point in curve:  # Both are straight lines, so their mean is one.
        assert point["pass_rate"] == pytest.approx(0.1 + 0.3 * point["rollouts"] / 4000, abs=1e-3)


def test_a_lucky_evaluation_is_not_where_a_level_is_reached(tmp_path: Path) -> None:
    """0.55 at 2,000, then 0.2: the monotone curve is at their mean, 0.375, at both."""
    run = write_probe_of_two(tmp_path)
    lucky = dict(zip(SPENT, (0.1, 0.1, 0.55, 0.2, 0.6), strict=True))
    for seed in (1, 2):
        write_training(run, "full", seed, held_out=_rows(_linear(0.5, 4000)))
        write_training(run, "filtered", seed, held_out=_rows(lambda spent: lucky[int(spent)]))
    found = _table(run)["arms"]["filtered"]
    assert found["reached_at"]["value"] == pytest.approx(3000 + 1000 * 0.125 / 0.225)


def test_one_seed_gives_values_without_intervals(tmp_path: Path) -> None:
    table = _table(_write(write_probe_of_two(tmp_path), ARMS, seeds=(1,)))
    assert table["arms"]["filtered"]["reached_share"] == {
        **{"value": pytest.approx(0.75), "low": None, "high": None}
    }
    assert table["filtered_minus_random"]["final"]["value"] == pytest.approx(0.2)
    assert table["filtered_minus_random"]["final"]["low"] is None
    assert table["arms"]["full"]["reached_fraction"] is None
    assert "full, filtered, trimmed, ordered, random" in table["notes"][0]
    assert "one seed" in payoff_text(table)


def test_missing_arms_are_said_and_the_others_told(tmp_path: Path) -> None:
    run = _write(write_probe_of_two(tmp_path), {k: ARMS[k] for k in ("filtered", "random")})
    write_training(run, "full", 1, held_out=_rows(ARMS["full"]), state="started")
    write_training(run, "ordered", 1)  # Finished, but without held-out items.
    table = _table(run)
    assert set(table["arms"]) == {"filtered", "random"}
    assert table["target"] is table["gain"] is table["arms"]["filtered"]["reached_share"] is None
    assert table["filtered_minus_random"]["final"]["value"] == pytest.approx(0.2)
    assert [note.split()[2] for note in table["notes"]] == ["full", "trimmed", "ordered"]
    assert "note: the arm full" in payoff_text(table)
    alone = compare_arms({"full": [], "filtered": _arm([0.1, 0.2])})
    assert alone["filtered_minus_random"] is None and alone["items"] == 2


def test_without_any_arm_there_is_no_table(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path)
    assert payoff_table(Run.open(run)) is None
    write_training(run, "baseline", 1, held_out=_rows(ARMS["full"]))
    assert payoff_table(Run.open(run)) is None


def test_the_small_arms_are_taken_where_they_are_the_only_ones(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path)
    _write(run, {f"{name}-small": curve for name, curve in ARMS.items()})
    assert _table(run)["arms"]["random"]["recipe"] == "random-small"
    _write(run, {"full": ARMS["random"]})
    assert _table(run)["arms"]["full"]["recipe"] == "full"
    assert _table(run, size="-small")["arms"]["full"]["recipe"] == "full-small"


def test_a_full_arm_that_gains_nothing_is_noted(tmp_path: Path) -> None:
    flat = _table(_write(write_probe_of_two(tmp_path), {"full": lambda _: 0.2}))
    assert "cannot be told from none" in flat["notes"][-1]


def _arm(rates: Sequence[float], spent: Sequence[float] = (0, 100)) -> list[HeldOut]:
    """Two runs of two items with the same rates."""
    values = np.repeat(np.array(rates)[:, None], 2, axis=1)
    return [HeldOut(np.array(spent, dtype=float), values, ("a", "b"))] * 2


def test_what_could_not_be_judged_does_not_count() -> None:
    (run, other) = _arm([0.2, 0.4])
    rates = run.rates.copy()
    rates[1, 0] = np.nan
    found = compare_arms({"full": [HeldOut(run.rollouts, rates, run.item_ids), other]})
    assert found["target"]["value"] == pytest.approx(0.4)


def test_arms_are_compared_on_items_in_common_or_not_at_all() -> None:
    full, filtered = _arm([0.2, 0.4]), _arm([0.2, 0.4])
    moved = [HeldOut(run.rollouts, run.rates, ("b", "c")) for run in filtered]
    assert compare_arms({"full": full, "filtered": moved})["items"] == 1
    strangers = [HeldOut(run.rollouts, run.rates, ("c", "d")) for run in filtered]
    with pytest.raises(RunError, match="no held-out items in common"):
        compare_arms({"full": full, "filtered": strangers})


def test_a_damaged_table_is_one_clear_error(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path)
    folder = write_training(run, "full", 1, held_out=_rows(ARMS["full"], (2000, 1000)))
    with pytest.raises(RunError, match="out of order"):
        payoff_table(Run.open(run))
    (folder / "held_out.parquet").write_bytes(b"nothing")
    with pytest.raises(RunError, match="damaged"):
        payoff_table(Run.open(run))


def test_equal_arms_are_mostly_told_equal_and_the_known_share_is_covered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Both arms learn twice as fast as the full one, which ends as high as they are half way."""
    monkeypatch.setattr(payoff, "REPLICATES", 200)  # For time.
    random = np.random.default_rng(5)
    items, rollouts = 60, 16
    names = tuple(map(str, range(items)))
    equal, covered, shares = [], [], []
    for _ in range(40):
        middle = random.normal(-2.5, 1.5, items)

        def arm(speed: float, middle: Any = middle) -> list[HeldOut]:
            runs = []
            for _ in range(3):
                spent = np.arange(7) * 1300.0
                own = random.normal(0, 0.15) + random.normal(0, 0.3, items)
                learned = 3 * (1 - np.exp(-spent * speed / 3000))
                logit = middle + learned[:, None] + own * (spent > 0)[:, None]
                correct = random.binomial(rollouts, 1 / (1 + np.exp(-logit)))
                runs.append(HeldOut(spent, correct / rollouts, names))
            return runs

        found = compare_arms({"full": arm(1), "filtered": arm(2), "random": arm(2)})
        final = found["filtered_minus_random"]["final"]
        equal.append(final["low"] <= 0 <= final["high"])
        ends = found["arms"]["filtered"]["reached_share"]
        value, low, high = (np.inf if end is None else end for end in ends.values())
        shares.append(value)
        covered.append(low <= 0.5 <= high)
    assert np.mean(equal) >= 0.85 and np.mean(covered) >= 0.85
    assert np.median(shares) == pytest.approx(0.5, abs=0.05)
