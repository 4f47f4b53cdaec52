"""`benchmarks/speed/million_items.py` at a small size: engine and probe fit, its checks hold."""

import argparse
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import million_items
from curate.run.folder import read_manifest
from tests.tag_runs import read_jsonl, run_curate

ITEMS = 2000


def test_a_simulated_run_passes_every_stage_and_command(tmp_path: Path) -> None:
    arguments = argparse.Namespace(
        rollouts=4, max_rollouts=8, dim=64, verifier="numeric", workers=1
    )
    config = million_items.settings(tmp_path, ITEMS, arguments)
    costs = million_items.tag_and_watch(config)
    assert {cost.name for cost in costs} >= {"items", "sample", "verify", "gradients", "write"}
    assert all(0 < cost.peak < million_items.MOST_BYTES for cost in costs)
    counts = read_manifest(tmp_path / "run")["counts"]
    assert counts["rounds"] == 2 and 4 * ITEMS < counts["rollouts_drawn"] < 8 * ITEMS
    tags = million_items.count_tags(tmp_path / "tagged.jsonl")
    assert million_items.wrong_tags(ITEMS, tags) == []
    # Wrong rollouts are made of the same gradients as correct ones, so that nothing is lifted and
    # no tag is given; that the gradients are read as they were made shows in the similarity.
    similar: dict[int, list[float]] = {million_items.LEARNABLE: [], million_items.CHANCE: []}
    for row in read_jsonl(tmp_path / "tagged.jsonl"):
        kind = million_items.kind_of(row["question"])
        if kind in similar and row["gradient_similarity"] is not None:
            similar[kind].append(row["gradient_similarity"])
    learnable, chance = (np.mean(values) for values in similar.values())
    assert learnable > 0.5 and abs(chance) < 0.1
    for name, words in million_items.commands(tmp_path).items():
        if name != "report":  # Tested by itself; most of its time does not depend on the items.
            ran = run_curate(*words)
            assert ran.status == 0, ran.stderr
    sizes = million_items.bytes_by_kind(tmp_path)
    assert sizes["run/gradients/rollouts.npy"] > 4 * 64 * counts["rollouts_correct"] / 2


def test_what_grows_faster_than_the_items_is_named() -> None:
    def measured(items: int, cpu: float, peak: int) -> million_items.Measured:
        cost = million_items.Cost("verify", cpu, cpu, peak)
        return million_items.Measured(items, {}, [cost], {}, [])

    # 4 s whatever the size, and 10 ms an item.
    earlier = [measured(100, 5.0, 10**9), measured(1000, 14.0, 10**9)]
    assert million_items.too_dear(earlier, measured(10_000, 140.0, 10**9)) == []
    (slower,) = million_items.too_dear(earlier, measured(10_000, 158.0, 10**9))
    assert "1.60 times" in slower
    assert million_items.too_dear(earlier[1:], measured(10_000, 158.0, 10**9)) == []
    (larger,) = million_items.too_dear([], measured(10_000, 1.0, 7 * 10**9))
    assert "7.00 GB" in larger


@pytest.mark.parametrize("text", ["What is 7 + 12?", "From 0: \\boxed{12345}, 6789."])
def test_its_token_ids_are_those_of_the_saved_tokenizer(tmp_path: Path, text: str) -> None:
    from transformers import AutoTokenizer

    saved = AutoTokenizer.from_pretrained(million_items.save_model(tmp_path / "model"))
    ids = million_items.Bytes().encode(text)
    assert ids == saved(text)["input_ids"]
    assert saved.decode(ids) == text
