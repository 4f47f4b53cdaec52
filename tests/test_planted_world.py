"""The end-to-end truth test: `curate tag` in a world whose learnability is known by construction.

`benchmarks/similarity_estimators.py` proves the construction: GRPO lifts the learnable items of
this world over τ, and few of the chance items.
"""

from collections import Counter

import numpy as np
import pytest
import torch

from tests.planted_world import CHANCE, EASY, LEARNABLE, MAX_TOKENS, NEVER, build_world
from tests.tag_runs import read_jsonl, run_curate

SEED = 0
ROLLOUTS = 512


def auroc(positive, negative):
    """Probability that a value of the first is above one of the second, ties counted half."""
    above = np.subtract.outer(np.asarray(positive), np.asarray(negative))
    return ((above > 0) + 0.5 * (above == 0)).mean()


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """The tagged rows; each still has the kind that it was planted as."""
    folder = tmp_path_factory.mktemp("planted")
    threads = torch.get_num_threads()
    # Sums of one thread are the same on every machine with this instruction set.
    torch.set_num_threads(1)
    try:
        world = build_world(folder, SEED)
    finally:
        torch.set_num_threads(threads)
    tagged = folder / "tagged.jsonl"
    ran = run_curate(
        *("tag", world.items, "--model", world.model, "--out", tagged, "--run-dir", folder / "run"),
        *("--instruction", "", "--verifier", "numeric", "--max-tokens", MAX_TOKENS),
        *("--min-rollouts", ROLLOUTS, "--max-rollouts", ROLLOUTS),
    )
    assert ran.status == 0, ran.stderr
    return read_jsonl(tagged)


@pytest.fixture(scope="module")
def hard(rows):
    """By kind, the rows that are hard and have a similarity."""
    found = [row for row in rows if row["kind"] in (LEARNABLE, CHANCE)]
    measured = [
        row for row in found if row["pass_rate"] < 0.1 and row["gradient_similarity"] is not None
    ]
    assert len(measured) >= 0.95 * len(found)
    return {kind: [r for r in measured if r["kind"] == kind] for kind in (LEARNABLE, CHANCE)}


def test_easy_items_and_items_without_a_positive_are_tagged_so(rows):
    tags = {
        kind: Counter(r["trainability"] for r in rows if r["kind"] == kind)
        for kind in (EASY, NEVER)
    }
    assert tags[NEVER] == {"no_positive": 40}
    assert tags[EASY]["easy"] >= 98


def test_pass_rates_do_not_tell_the_hard_kinds_apart(hard):
    rates = {kind: [row["pass_rate"] for row in found] for kind, found in hard.items()}
    assert 0.45 <= auroc(rates[LEARNABLE], rates[CHANCE]) <= 0.55


def test_similarity_tells_the_hard_kinds_apart(hard):
    values = {kind: [row["gradient_similarity"] for row in found] for kind, found in hard.items()}
    assert auroc(values[LEARNABLE], values[CHANCE]) >= 0.95
    chances = {kind: [row["p_unlearnable"] for row in found] for kind, found in hard.items()}
    assert auroc(chances[CHANCE], chances[LEARNABLE]) >= 0.95


def test_tags_tell_the_hard_kinds_apart(hard):
    right = {LEARNABLE: "learnable", CHANCE: "unlearnable"}
    tagged, agreed = 0, 0
    for kind, found in hard.items():
        tags = Counter(row["trainability"] for row in found)
        tagged += tags["learnable"] + tags["unlearnable"]
        agreed += tags[right[kind]]
        assert tags[right[kind]] >= 0.75 * len(found), (kind, tags)
    assert tagged >= 0.9 * sum(len(found) for found in hard.values())
    assert agreed >= 0.88 * tagged


def test_every_tag_of_a_hard_item_gives_its_evidence(hard):
    for row in hard[LEARNABLE] + hard[CHANCE]:
        assert row["gradient_similarity_low"] <= row["gradient_similarity"]
        assert f"{row['gradient_similarity']:.3g}" in row["tag_reason"]
