"""The table of interventions: who is compared with whom, regression to the mean, intervals."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from curate.errors import RunError, UsageError
from curate.run.run import Run
from curate.tags import Trainability
from recipes.confirm.interventions import RecipeRuns, compare, intervention_table
from recipes.confirm.interventions_text import interventions_text
from tests.made.run import write_probe_of_two, write_training

TAU = 0.1
ROLLOUTS = 32
LEARNABLE, UNLEARNABLE = Trainability.LEARNABLE, Trainability.UNLEARNABLE


def _rows(rates: dict[str, float | None], **more: Any) -> list[dict[str, Any]]:
    return [{"item_id": name, "final_pass_rate": rate, **more} for name, rate in rates.items()]


def _group(table: dict[str, Any], recipe: str, group: str = "unlearnable") -> dict[str, Any]:
    (row,) = (row for row in table["recipes"] if row["recipe"] == recipe)
    return dict(row["groups"][group])


def _seven(*rates: float) -> dict[str, float | None]:
    """Items u0 to u6 with these final pass rates over and over."""
    return {f"u{i}": rates[i % len(rates)] for i in range(7)}


CONFIRMED = dict.fromkeys(_seven(0.0), "unlearnable")


# --- Who is compared -------------------------------------------------------------------------


def test_a_recipe_that_helps_is_higher_and_one_that_harms_lower(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path)
    for seed in (1, 42, 37):
        write_training(run, "baseline-small", seed, outcomes=_rows(_seven(0.0, 0.03)))
        write_training(run, "no-kl-small", seed, outcomes=_rows(_seven(0.5, 0.6)), hypothesis="KL")
        write_training(run, "mine", seed, outcomes=_rows(_seven(0.0, 0.03)))
    table = intervention_table(Run.open(run), CONFIRMED, "baseline-small")
    assert json.loads(json.dumps(table)) == table
    assert [row["recipe"] for row in table["recipes"]] == ["mine", "no-kl-small"]
    higher, same = _group(table, "no-kl-small"), _group(table, "mine")
    assert higher["verdict"] == "higher" and higher["items"] == higher["confirmed_items"] == 7
    assert higher["difference"] == pytest.approx((4 * 0.5 + 3 * 0.57) / 7)
    assert higher["difference_low"] <= higher["difference"] <= higher["difference_high"]
    assert higher["pass_rate"] == pytest.approx((4 * 0.5 + 3 * 0.6) / 7)
    assert higher["baseline_pass_rate"] == pytest.approx(3 * 0.03 / 7)
    assert (higher["reached_tau"], higher["baseline_reached_tau"]) == (1, 0)
    assert same["verdict"] == "no difference shown" and same["difference"] == 0
    assert table["recipes"][1]["hypothesis"] == "KL"
    assert table["recipes"][1]["paper_found"].startswith("no effect on the unlearnable")
    assert table["recipes"][0]["paper_found"] is None  # A recipe of the user's own.
    turned = intervention_table(
        Run.open(run), CONFIRMED, "no-kl-small"
    )  # There all seven are learnable.
    assert _group(turned, "mine", "learnable")["verdict"] == "lower"
    assert _group(turned, "mine")["items"] == 0


def test_a_pair_of_runs_is_compared_on_what_the_other_seeds_chose(tmp_path: Path) -> None:
    """Item u0 is over tau in the baseline's seed 2 only, so only seed 2 is compared on it."""
    run = write_probe_of_two(tmp_path)
    for seed in (1, 2, 3):
        base = _seven(0.0) | {"u0": 0.9 if seed == 2 else 0.0}
        write_training(run, "baseline", seed, outcomes=_rows(base))
        write_training(run, "no-kl", seed, outcomes=_rows(_seven(0.0) | {"u0": 0.7}))
    table = intervention_table(Run.open(run), CONFIRMED, "baseline")
    found = _group(table, "no-kl")
    # Seeds 1 and 3: six items, no difference. Seed 2: seven, of which u0 falls from 0.9 to 0.7.
    assert found["difference"] == pytest.approx(-0.2 / 7 / 3)
    assert found["baseline_pass_rate"] == pytest.approx(0.9 / 7 / 3)
    assert found["items"] == 7


def test_easy_items_and_those_without_a_positive_or_a_final_rate_are_in_no_group(
    tmp_path: Path,
) -> None:
    run = write_probe_of_two(tmp_path)
    for seed in (1, 2, 3):
        rows = [
            *_rows(_seven(0.0)),
            *_rows({"easy": 0.0}, initial_pass_rate=0.5),
            *_rows({"at_tau": 0.0}, initial_pass_rate=TAU),
            *_rows({"never": 0.0}, ever_positive=seed == 1),
            *_rows({"seldom": 0.0}, ever_positive=seed != 1),
            *_rows({"unjudged": None}),
            *_rows({"split": 0.5 if seed == 1 else 0.0}),
        ]
        write_training(run, "baseline", seed, outcomes=rows)
        write_training(run, "no-kl", seed, outcomes=rows)
    table = intervention_table(Run.open(run), CONFIRMED, "baseline")
    # `split` and `seldom` are unlearnable by seeds 2 and 3, so seed 1 is compared on them.
    assert _group(table, "no-kl")["items"] == 9
    assert _group(table, "no-kl", "learnable")["items"] == 0
    assert _group(table, "no-kl", "learnable")["note"] == "no item in this group"


def test_tau_is_the_runs_own(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path, tau=0.02)
    for seed in (1, 2):
        write_training(run, "baseline", seed, outcomes=_rows(_seven(0.05), initial_pass_rate=0.01))
        write_training(run, "no-kl", seed, outcomes=_rows(_seven(0.05), initial_pass_rate=0.01))
    table = intervention_table(Run.open(run), CONFIRMED, "baseline")
    assert table["tau"] == 0.02
    assert _group(table, "no-kl", "learnable")["items"] == 7


def test_runs_pair_by_seed_and_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path)
    for seed in (1, 2, 3):
        write_training(run, "baseline", seed, outcomes=_rows(_seven(0.0)))
    for seed, state in ((3, "done"), (2, "done"), (1, "started"), (9, "done")):
        write_training(run, "no-kl", seed, outcomes=_rows(_seven(0.1 * seed)), state=state)
    write_training(run, "sft", 1, outcomes=_rows(_seven(0.0)), state="started")
    write_training(run, ".items", 1)
    (run / "validation" / "confirmed.parquet").write_bytes(b"")
    table = intervention_table(Run.open(run), CONFIRMED, "baseline")
    assert [row["recipe"] for row in table["recipes"]] == ["no-kl"]
    assert table["recipes"][0]["seeds"] == [2, 3, 9]
    assert _group(table, "no-kl")["difference"] == pytest.approx(0.25)


@pytest.mark.parametrize(
    "base_seeds, seeds, items, note",
    [
        ((1,), (1, 2), 7, "the baseline has one seed"),
        ((1, 2), (3, 4), 7, "no seed in common"),
        ((1, 2), (1,), 7, "one seed: "),
        ((1, 2), (1, 2), 4, "fewer than 5 items"),
    ],
)
def test_what_cannot_be_said_is_null_with_its_reason(
    tmp_path: Path, base_seeds: tuple[int, ...], seeds: tuple[int, ...], items: int, note: str
) -> None:
    run = write_probe_of_two(tmp_path)
    rates = dict(list(_seven(0.0).items())[:items])
    for seed in base_seeds:
        write_training(run, "baseline", seed, outcomes=_rows(rates))
    for seed in seeds:
        write_training(run, "no-kl", seed, outcomes=_rows(dict.fromkeys(rates, 0.5)))
    table = intervention_table(Run.open(run), CONFIRMED, "baseline")
    found = _group(table, "no-kl")
    assert found["verdict"] is found["difference_low"] is found["difference_high"] is None
    assert note in found["note"]
    assert found["confirmed_pass_rate"] == 0.5  # As in the paper, it can still be told.
    assert found["note"] in interventions_text(table)


def test_no_run_of_the_baseline_and_damaged_runs_are_clear_errors(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path)
    with pytest.raises(UsageError, match="no validation yet: `curate validate` makes one"):
        intervention_table(Run.open(run), {}, "baseline")
    folder = write_training(run, "baseline", 1)
    with pytest.raises(RunError, match=r"outcomes\.parquet is missing"):
        intervention_table(Run.open(run), {}, "baseline")
    (folder / "run.json").write_text("[1]")
    with pytest.raises(RunError, match=r"run\.json is damaged"):
        intervention_table(Run.open(run), {}, "baseline")


def test_the_text_has_each_verdict_and_warns_of_many_comparisons(tmp_path: Path) -> None:
    run = write_probe_of_two(tmp_path)
    rates = _seven(0.0, 0.05) | {f"l{i}": 0.8 for i in range(7)}
    for seed in (1, 2, 3):
        write_training(run, "baseline", seed, outcomes=_rows(rates))
        write_training(
            run, "sft", seed, outcomes=_rows(dict.fromkeys(rates, 0.3)), hypothesis="SIGNAL"
        )
    text = interventions_text(intervention_table(Run.open(run), CONFIRMED, "baseline"))
    first, second = (line for line in text.splitlines() if line.startswith("sft  "))
    assert "learnable" in first and first.endswith("lower") and "100% -> 100%" in first
    assert "unlearnable" in second and second.endswith("higher") and "0% -> 100%" in second
    assert "sft: SIGNAL" in text and "the paper found: the gap" in text
    assert "2 comparisons with 95 % intervals: about 0.1" in text


# --- Regression to the mean ------------------------------------------------------------------


def _study(
    random: np.random.Generator, *, items: int, seeds: int, of_runs: float, alike: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Final rates of two recipes that do the same, each of shape (items, seeds).

    Items differ, every run is off by `of_runs` as a whole (in logits) and by 0.7 an item; of the
    latter runs of one seed have the share `alike` in common.
    """
    middle = random.normal(-1.8, 1.6, (items, 1))
    shared = random.normal(size=(items, seeds))
    rates = []
    for _ in range(2):
        own = np.sqrt(alike) * shared + np.sqrt(1 - alike) * random.normal(size=(items, seeds))
        logit = middle + random.normal(0, of_runs, seeds) + 0.7 * own
        rates.append(random.binomial(ROLLOUTS, 1 / (1 + np.exp(-logit))) / ROLLOUTS)
    return rates[0], rates[1]


@pytest.mark.parametrize(
    "items, seeds, of_runs, alike, fewest",
    [
        (60, 3, 0.0, 0.0, 0.94),
        (60, 3, 0.2, 0.0, 0.91),
        (200, 3, 0.5, 0.0, 0.90),
        (60, 3, 0.2, 0.6, 0.88),
        (60, 5, 0.2, 0.0, 0.92),
        (60, 2, 0.0, 0.0, 0.92),
    ],
)
@pytest.mark.parametrize("group", [LEARNABLE, UNLEARNABLE])
def test_where_nothing_changes_the_interval_holds_0_about_95_percent_of_the_time(
    items: int, seeds: int, of_runs: float, alike: float, fewest: float, group: Trainability
) -> None:
    random = np.random.default_rng(7)
    names = tuple(range(seeds))
    positive = np.ones((items, seeds), dtype=bool)
    holds, differences, naive = [], [], []
    for _ in range(300):
        before, after = _study(random, items=items, seeds=seeds, of_runs=of_runs, alike=alike)
        found = compare(
            RecipeRuns(names, before, positive),
            RecipeRuns(names, after, positive),
            np.zeros(items),
            TAU,
            group,
        )
        if found["verdict"] is not None:
            holds.append(found["verdict"] == "no difference shown")
            differences.append(found["difference"])
        chosen = (before < TAU).all(1) if group == UNLEARNABLE else (before >= TAU).all(1)
        naive.append((after - before)[chosen].mean())
    assert len(holds) > 290
    # fewest: what was seen in longer simulations, less two standard errors of this one.
    assert fewest <= np.mean(holds) <= 0.995
    error = np.std(differences) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < 3 * error
    # The trap is there: on the items that the baseline's runs chose the same recipe looks other.
    shift = np.mean(naive) * (1 if group == UNLEARNABLE else -1)
    assert shift > 0.005 and shift > 2 * np.std(naive) / np.sqrt(len(naive))


def test_an_effect_of_the_size_that_matters_is_found() -> None:
    """From a mean of 0.05 on the unlearnable by 0.1 upwards, with the paper's three seeds."""
    random = np.random.default_rng(3)
    positive = np.ones((60, 3), dtype=bool)
    names = (1, 42, 37)
    verdicts = []
    for _ in range(100):
        before, after = _study(random, items=60, seeds=3, of_runs=0.1, alike=0.0)
        after = np.minimum(after + random.binomial(ROLLOUTS, 0.1, after.shape) / ROLLOUTS, 1.0)
        found = compare(
            RecipeRuns(names, before, positive),
            RecipeRuns(names, after, positive),
            np.zeros(60),
            TAU,
            UNLEARNABLE,
        )
        verdicts.append(found["verdict"])
    assert verdicts.count("higher") >= 90 and "lower" not in verdicts
