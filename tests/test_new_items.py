"""`curate compare` on new items and their parents, of which the truth is planted."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.made.run import Items, made_run
from tests.tag_runs import run_curate, write_jsonl

DIM, DRAWS, PARENTS = 512, 8, 12
OLD = [f"{number:016x}" for number in range(2 * PARENTS)]
NEW = [f"{number:016x}" for number in range(100, 100 + PARENTS)]


def _write(folder: Path, ids: list[str], directions: Any, rng: Any, parents: list[str]) -> Path:
    """A run whose items have gradients around these directions, with noise twice as long."""
    noise = 2 * rng.normal(size=(len(ids) * DRAWS, DIM)) / np.sqrt(DIM)
    gradients = np.repeat(directions, DRAWS, axis=0) + noise
    item = np.repeat(np.arange(len(ids)), DRAWS)
    out = folder.parent / f"{folder.name}.jsonl"
    rows = [
        {"item_id": each, "trainability": "unlearnable", "total_correct_rollouts": DRAWS}
        for each in ids
    ]
    for row, parent in zip(rows, parents, strict=bool(parents)):
        row["parent_item_id"] = parent
    write_jsonl(out, rows)
    return made_run(
        folder,
        Items(
            *(ids, [DRAWS] * len(ids), ["unlearnable"] * len(ids)),
            gradients=(gradients.astype(np.float32), item),
        ),
        settings={"out": str(out)},
        tables={"rows": {"row": list(range(1, len(ids) + 1)), "reason": [None] * len(ids)}},
        manifest={"stages": {"tags": {"state": "done"}, "write": {"state": "done"}}},
    )


def _runs(folder: Path, *, share: float, more: list[str] = []) -> tuple[Path, Path]:  # noqa: B006
    """Parents with directions of their own; `share` of each new item's is its parent's."""
    rng = np.random.default_rng(0)
    own = rng.normal(size=(2 * PARENTS, DIM))
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    other = rng.normal(size=(PARENTS, DIM))
    other /= np.linalg.norm(other, axis=1, keepdims=True)
    new = np.sqrt(share) * own[:PARENTS] + np.sqrt(1 - share) * other
    return (
        _write(folder / "run", OLD, own, rng, []),
        _write(folder / "new", [*NEW, *more], np.vstack([new, own[: len(more)]]), rng,
               [*OLD[:PARENTS], *([""] * len(more))]),
    )  # fmt: skip


def _compare(a: Path, b: Path) -> dict[str, Any]:
    ran = run_curate("compare", a, b, "--json")
    assert ran.status == 0, ran.stderr
    return dict(json.loads(ran.stdout))


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_whether_new_items_are_near_their_parents(tmp_path: Path, share: float) -> None:
    a, b = _runs(tmp_path, share=share)
    found = _compare(a, b)["new_items"]
    assert found["new_items"] == found["parents"] == PARENTS
    assert found["with_gradients"] == {"new_items": PARENTS, "parents": PARENTS}
    # The noise is twice as long as the direction: a rollout has a cosine of 1/√5 with its item's.
    truth = np.sqrt(share) / 5
    assert found["to_parent"]["mean"] == pytest.approx(truth, abs=0.02)
    assert found["to_other_parents"]["mean"] == pytest.approx(0, abs=0.01)
    low, high = found["difference"]["low"], found["difference"]["high"]
    assert (low > 0) if share else (low < 0 < high)
    assert found["parents_before"]["mean"] == pytest.approx(0, abs=0.01)
    # One new item in all others is the parent's own.
    change = truth / (len(OLD) - 1 + PARENTS)
    assert found["parents_change"]["mean"] == pytest.approx(change, abs=0.003)
    text = run_curate("compare", a, b).stdout
    assert "new item to its parent" in text and "0 in both" in text


def test_each_mean_is_that_of_all_pairs_of_rollouts(tmp_path: Path) -> None:
    a, b = _runs(tmp_path, share=0.3)
    found = _compare(a, b)["new_items"]
    old, new = (np.load(run / "gradients/rollouts.npy").astype(np.float64) for run in (a, b))
    unit = [each / np.linalg.norm(each, axis=1, keepdims=True) for each in (old, new)]
    cosines = unit[1] @ unit[0].T
    own = [cosines[i * DRAWS : (i + 1) * DRAWS, i * DRAWS : (i + 1) * DRAWS].mean()
           for i in range(PARENTS)]  # fmt: skip
    assert found["to_parent"]["mean"] == pytest.approx(np.mean(own))
    parents = cosines[:, : PARENTS * DRAWS].reshape(PARENTS, DRAWS, PARENTS, DRAWS).mean((1, 3))
    others = (parents.sum() - np.trace(parents)) / (PARENTS * (PARENTS - 1))
    assert found["to_other_parents"]["mean"] == pytest.approx(others)
    among = (unit[0] @ unit[0].T).reshape(len(OLD), DRAWS, len(OLD), DRAWS).mean((1, 3))
    np.fill_diagonal(among, 0)
    before = among[:PARENTS].sum(axis=1)
    assert found["parents_before"]["mean"] == pytest.approx(before.mean() / (len(OLD) - 1))
    after = (before + parents.sum(axis=0)) / (len(OLD) - 1 + PARENTS)
    assert found["parents_after"]["mean"] == pytest.approx(after.mean())


def test_beside_items_that_both_runs_have(tmp_path: Path) -> None:
    summary = _compare(*_runs(tmp_path, share=0.5, more=OLD[:6]))
    assert summary["items"]["compared"] == 6
    assert summary["new_items"]["new_items"] == PARENTS
    assert summary["groups"]


def test_another_policy_is_not_compared(tmp_path: Path) -> None:
    a, b = _runs(tmp_path, share=0.5)
    manifest = json.loads((b / "manifest.json").read_text())
    manifest["model"]["weight_hash"] = "another"
    (b / "manifest.json").write_text(json.dumps(manifest))
    found = _compare(a, b)["new_items"]
    assert found["to_parent"] is None and "another policy" in found["note"]
    assert "not compared: the two runs" in run_curate("compare", a, b).stdout
