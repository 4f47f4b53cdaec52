"""The paper's partition, Table 1 and the τ sweep, against what a person works out by hand."""

from dataclasses import replace

import numpy as np
import pytest

from recipes.confirm.partition import SWEEP_TAUS, SeedOutcomes, partition, table1, tau_sweep

NAN = float("nan")
# One item a line: initial rate, final rates of three seeds, ever positive and positive in training
# of each, and the tag that follows at τ = 0.1.
ITEMS: list[tuple[float, tuple[float, ...], tuple[int, ...], tuple[int, ...], str]] = [
    (0.10, (0.0, 0.0, 0.0), (1, 1, 1), (1, 1, 1), "easy"),  # At τ is easy, whatever comes.
    (0.05, (0.0, 0.09, 0.0), (1, 1, 1), (1, 1, 1), "unlearnable"),
    (0.05, (0.1, 0.5, 1.0), (1, 1, 1), (1, 1, 1), "learnable"),  # At τ is learned.
    (0.05, (0.0, 0.1, 0.0), (1, 1, 1), (1, 1, 1), "undetermined"),  # The seeds disagree.
    (0.05, (0.0, 0.5, NAN), (1, 1, 1), (1, 1, 1), "undetermined"),  # So they do here.
    (0.05, (0.0, 0.0, NAN), (1, 1, 1), (1, 1, 1), "undetermined"),  # One rate is unknown.
    (0.00, (0.0, 0.0, 0.0), (1, 0, 1), (1, 0, 1), "no_positive"),  # One seed is enough: the union.
    (0.00, (0.9, 0.9, 0.9), (0, 1, 1), (0, 1, 1), "no_positive"),  # Even if learned by transfer.
    (0.03, (0.0, 0.0, 0.0), (1, 1, 1), (1, 0, 1), "unlearnable"),  # Positives in the probe count.
    (NAN, (0.0, 0.0, 0.0), (0, 0, 0), (0, 0, 0), "undetermined"),  # Neither easy nor hard.
]


def outcomes() -> SeedOutcomes:
    initial, final, ever, in_training, _ = zip(*ITEMS, strict=True)
    return SeedOutcomes(
        np.array(initial),
        np.array(final).T,
        np.array(ever, dtype=bool).T,
        np.array(in_training, dtype=bool).T,
    )


def tags_of(given: SeedOutcomes, tau: float = 0.1) -> list[str]:
    tags = partition(given.initial_pass_rate, given.final_pass_rates, given.ever_positive, tau)
    return list(tags.tolist())


def test_the_partition_is_the_paper_s() -> None:
    assert tags_of(outcomes()) == [item[-1] for item in ITEMS]


def test_with_one_seed_nothing_disagrees() -> None:
    given = outcomes()
    second = replace(
        given,
        final_pass_rates=given.final_pass_rates[1:2],
        ever_positive=given.ever_positive[1:2],
    )
    assert tags_of(second) == [
        *("easy", "unlearnable", "learnable", "learnable", "learnable", "unlearnable"),
        *("no_positive", "learnable", "unlearnable", "undetermined"),
    ]


def test_no_seeds_or_shapes_that_do_not_fit_are_refused() -> None:
    empty = np.empty((0, 2))
    with pytest.raises(ValueError, match="do not fit"):
        partition(np.zeros(2), empty, empty.astype(bool), 0.1)
    with pytest.raises(ValueError, match="do not fit"):
        partition(np.zeros(2), np.zeros((1, 3)), np.zeros((1, 3), dtype=bool), 0.1)


def test_table_1_gives_shares_of_the_hard_items_and_the_paper_s_own_count() -> None:
    table = table1(outcomes(), 0.1)
    assert table["hard_items"] == 8
    kinds = ["unlearnable", "learnable", "no_positive", "seeds_disagree", "not_judged"]
    assert [table[kind]["items"] for kind in kinds] == [2, 1, 2, 2, 1]
    assert [table[kind]["share"] for kind in kinds] == [0.25, 0.125, 0.25, 0.25, 0.125]
    strict = table["positives_in_training_only"]
    assert [strict[kind]["items"] for kind in kinds] == [1, 1, 3, 2, 1]
    assert sum(strict[kind]["share"] for kind in kinds) == 1


def test_table_1_of_no_hard_items_has_no_shares() -> None:
    table = table1(outcomes(), 0.001)
    assert table["hard_items"] == 2
    rates = np.ones(3)
    seen = np.ones((1, 3), dtype=bool)
    table = table1(SeedOutcomes(rates, rates[None], seen, seen), 0.1)
    assert table["hard_items"] == 0
    assert table["unlearnable"] == {"items": 0, "share": None}


def test_the_sweep_partitions_anew_at_each_tau() -> None:
    given = outcomes()
    items = len(ITEMS)
    scores = {"gradient_similarity": np.arange(items, dtype=float), "pass_rate": np.zeros(items)}
    rows = tau_sweep(given, scores)
    assert [row["tau"] for row in rows] == list(SWEEP_TAUS)
    assert (SWEEP_TAUS[0], SWEEP_TAUS[-1]) == (0.02, 0.3)
    at_tau = next(row for row in rows if row["tau"] == 0.1)
    table = table1(given, 0.1)
    assert {name: at_tau[name] for name in ("hard_items", "unlearnable", "no_positive")} == {
        name: table[name] for name in ("hard_items", "unlearnable", "no_positive")
    }
    # Items 1 and 8 are unlearnable, item 2 is learnable: of its two pairs one is in order.
    assert at_tau["auroc_items"] == 3
    assert at_tau["auroc_gradient_similarity"] == 0.5
    assert at_tau["auroc_pass_rate"] == 0.5
    assert rows[0]["auroc_gradient_similarity"] is None  # No item is learnable there.


def test_items_without_a_score_are_no_part_of_the_sweep_s_auroc() -> None:
    similarity = np.arange(len(ITEMS), dtype=float)
    similarity[8] = NAN
    scores = {"gradient_similarity": similarity, "pass_rate": np.zeros(len(ITEMS))}
    (row,) = tau_sweep(outcomes(), scores, [0.1])
    # Item 1 is unlearnable, and lower than item 2, which is learnable.
    assert (row["auroc_items"], row["auroc_gradient_similarity"]) == (2, 1.0)


def test_more_items_are_hard_and_unlearnable_at_a_higher_tau() -> None:
    random = np.random.default_rng(0)
    items = 500
    initial = random.beta(0.5, 3, items)
    final = random.beta(0.5, 2, (3, items))
    seen = random.random((3, items)) < 0.8
    given = SeedOutcomes(initial, final, seen, seen)
    rows = tau_sweep(given, {"pass_rate": initial})
    for kind in ("unlearnable", "no_positive"):
        counts = [row[kind]["items"] for row in rows]
        assert counts == sorted(counts) and counts[0] < counts[-1]
    hard = [row["hard_items"] for row in rows]
    assert hard == sorted(hard)
    assert hard[4] == (initial < 0.1).sum()
