"""The real model on real items through the command line: SmolLM2-135M-Instruct, a GGUF file."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.smollm2 import gguf_file

EXAMPLES = Path(__file__).parent.parent / "examples"
PRODUCTS, ROLLOUTS = 10, 12


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[dict], Path, str]]:
    folder = tmp_path_factory.mktemp("smollm2")
    command = [
        *(sys.executable, "-m", "curate", "tag", str(EXAMPLES / "arithmetic.jsonl")),
        *("--config", str(EXAMPLES / "arithmetic.toml"), "--model", str(gguf_file())),
        *("--limit", str(PRODUCTS), "--min-rollouts", str(ROLLOUTS), "--max-tokens", "20"),
        *("--max-rollouts", str(ROLLOUTS)),
        # Correct rollouts are looked at here, and those that box their answers are short.
        *("--gradient-wrong-rollouts", "1", "--gold-prefixes", "2"),
        *("--out", str(folder / "tagged.jsonl"), "--run-dir", str(folder / "run")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (folder / "tagged.jsonl").open()]
    yield rows[:PRODUCTS], folder / "run", done.stdout


def test_it_gets_one_digit_products_right_sometimes(tagged: tuple[list[dict], Path, str]) -> None:
    rows, _, printed = tagged
    assert all(row["total_rollouts"] == ROLLOUTS for row in rows)
    mean = sum(row["pass_rate"] for row in rows) / PRODUCTS
    # 0.16 to 0.21 in longer runs; 0 would mean a wrong prompt, 1 a wrong verifier.
    assert 0.05 < mean < 0.5
    assert {"easy", "no_positive"} & {row["trainability"] for row in rows}
    assert "tokens/s" in printed


def test_prompts_carry_the_models_own_chat_template(tagged: tuple[list[dict], Path, str]) -> None:
    items = pq.read_table(tagged[1] / "items.parquet").to_pylist()
    for item in items:
        assert item["prompt"].startswith("<|im_start|>system\n")
        assert item["prompt"].endswith("<|im_start|>assistant\n")
        assert "\\boxed{answer}" in item["prompt"]


def test_correct_rollouts_end_properly_and_mostly_hold_the_answer(
    tagged: tuple[list[dict], Path, str],
) -> None:
    rows, run, _ = tagged
    answers = {row["item_id"]: row["answer"] for row in rows}
    correct = holding = 0
    for file in sorted((run / "rollouts").glob("*.parquet")):
        for rollout in pq.read_table(file).to_pylist():
            if rollout["reward"] == 1:
                correct += 1
                assert rollout["completion_token_ids"][-1] == 2  # <|im_end|>
                holding += answers[rollout["item_id"]] in rollout["completion"]
            if rollout["finish_reason"] == "length":
                assert rollout["verdict"] == "truncated" and rollout["reward"] == 0
    # math-verify also takes what equals the answer, such as the product itself: "2 * 3" for 6.
    assert correct >= 5 and holding >= 0.7 * correct


def test_products_share_a_gradient_direction(tagged: tuple[list[dict], Path, str]) -> None:
    rows, run, _ = tagged
    features = np.load(run / "gradients" / "features.npy", allow_pickle=False)
    assert np.isfinite(features).all() and features.shape[1] == 4096
    similar = [row["gradient_similarity"] for row in rows if row["gradient_similarity"] is not None]
    assert len(similar) >= 4
    # One-digit products lie between 0.02 and 0.49; unrelated gradients around 0.
    assert np.mean(similar) > 0.05
