"""The committed study: its figures from a small confirmed run, its page, and what it runs."""

import copy
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks.study import page as study_page
from benchmarks.study import smollm2 as smollm2_study
from benchmarks.study.page import write_page
from benchmarks.study.plots import PLOTS, judged_items
from benchmarks.study.scores import PAPERS
from curate import confirm
from curate.run.tables import OUTCOMES, REWARDS
from tests.tag_runs import ROOT, additions, tag, write_jsonl

SEEDS = (1, 37, 42)
STEPS = 8


@pytest.fixture(scope="module")
def folder(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of the tiny model whose outcomes follow from the similarity."""
    folder = tmp_path_factory.mktemp("study")
    rows = [row | {"task": "even" if n % 2 else "odd"} for n, row in enumerate(additions(30))]
    dataset = write_jsonl(folder / "items.jsonl", rows)
    out, run = folder / "tagged.jsonl", folder / "run"
    # So that there are easy items, and hard ones with a p_unlearnable.
    enough = ("--min-rollouts", "64", "--tau", "0.06")
    ran = tag(dataset, "--model", tiny_model, "--out", out, "--run-dir", run, *enough)
    assert ran.status == 0, ran.stderr
    rates = pq.read_table(run / "pass_rates.parquet").to_pylist()
    similar = pq.read_table(run / "similarity.parquet")["gradient_similarity"].to_pylist()
    p = pq.read_table(run / "tags.parquet")["p_unlearnable"].to_pylist()
    hard = [v for v, known in zip(similar, p, strict=True) if None not in (v, known)]
    assert len(hard) >= 6
    for seed in SEEDS:
        write_seed(run, seed, rates, [(value or 0) > np.median(hard) for value in similar])
    confirm(run)
    return folder


def write_seed(run: Path, seed: int, rates: list[dict[str, Any]], learned: list[bool]) -> None:
    outcomes, rewards = [], []
    for rate, is_learned in zip(rates, learned, strict=True):
        outcomes.append(
            {
                "item_id": rate["item_id"],
                "initial_pass_rate": rate["pass_rate"],
                "initial_rollouts": rate["total_rollouts"],
                "initial_correct": rate["total_correct_rollouts"],
                "final_pass_rate": 0.5 if is_learned else 0.0,
                "final_rollouts": 32,
                "final_correct": 16 if is_learned else 0,
                "positive_in_training": True,
                "ever_positive": True,
                "visits": STEPS,
            }
        )
        for step in range(STEPS):
            rewards.append(
                {
                    "step": step,
                    "item_id": rate["item_id"],
                    "rollouts": 8,
                    "mean_reward": step / 16 if is_learned else 0.0,
                    "truncated_fraction": 0.0,
                    "clipped_fraction": None,
                    "trained": is_learned,
                }
            )
    folder = run / "validation" / "baseline-small" / str(seed)
    folder.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(outcomes, OUTCOMES.schema), folder / "outcomes.parquet")
    pq.write_table(pa.Table.from_pylist(rewards, REWARDS.schema), folder / "rewards.parquet")
    facts = {"state": "done", "device": "CPU", "seconds": {"training": 10.0, "evaluation": 2.0}}
    (folder / "run.json").write_text(json.dumps(facts | {"versions": {"trl": "1.2.3"}}))
    (folder.parent / "recipe.toml").write_text(
        'hypothesis = "h"\nmax_steps = 8\nprompts_per_step = 30\nnum_generations = 8\n'
        "evaluation_rollouts = 32\n"
    )


@pytest.fixture(scope="module")
def study(folder: Path) -> dict[str, Any]:
    return smollm2_study.collect(folder, "second")


def test_the_document_has_the_figures_of_the_run(folder: Path, study: dict[str, Any]) -> None:
    summary = json.loads((folder / "run/validation/summary.json").read_text())
    for name in ("hard_items", "auroc", "auroc_low", "auroc_high", "auroc_all", "table1"):
        assert study[name] == summary[name]
    assert study["auroc_pass_rate"] is not None and study["auroc_semantic"] is not None
    assert study["real_model"] is True and study["device"] == "CPU"
    assert study["forecast"]["source"] == "gradients"
    assert study["seconds_by_step"]["training"] == 30 and study["versions"]["trl"] == "1.2.3"
    assert study["seconds"] > 36
    assert study["rollouts"]["training"] == 3 * 30 * STEPS * 8
    assert study["rollouts"]["evaluation"] == 3 * 30 * 32
    assert "a small run, on the CPU for want of a GPU: 8 steps of 30 prompts" in study["size"]
    assert [task["items"] for task in study["tasks"].values()] == [15, 15]
    rows = [json.loads(line) for line in (folder / "tagged.jsonl").read_text().splitlines()]
    for name, task in study["tasks"].items():
        of_task = [row for row in rows if row["task"] == name]
        rates = [row["total_correct_rollouts"] / row["total_rollouts"] for row in of_task]
        assert task["initial_pass_rate"] == pytest.approx(np.mean(rates))
        tags = [row["confirmed_trainability"] for row in of_task]
        assert task["learned_items"] == tags.count("learnable")
        assert task["hard_items"] == len(tags) - tags.count("easy")


def test_the_scores_that_were_tried_are_over_the_same_items(study: dict[str, Any]) -> None:
    tried, agreement = study["tried"], study["agreement"]
    judged = judged_items(study)
    assert len(judged) == agreement["unlearnable"] + agreement["learnable"]
    measured = [row for row in judged if row["similarity"] is not None]
    assert tried["items"] == len(measured) >= 4
    outcome = [row["confirmed_trainability"] == "unlearnable" for row in measured]
    wanted = roc_auc_score(outcome, [row["p_unlearnable"] for row in measured])
    assert tried["scores"]["p_unlearnable"]["auroc"] == pytest.approx(wanted)
    # Outcomes were made from the similarity, so it tells them apart without a mistake.
    assert tried["scores"]["gradient similarity (curate)"]["auroc"] == 1
    assert tried["scores"]["gradient similarity (curate)"]["within_tasks"] in (1, None)
    for name in (PAPERS, "plain 5 nearest", "pass rate"):
        assert 0 <= tried["scores"][name]["auroc"] <= 1
    assert tried["calibrate"] is None
    assert "too few confirmed items" in tried["calibrate_note"]


def test_the_papers_score_is_the_mean_cosine_of_mean_gradients(
    folder: Path, study: dict[str, Any]
) -> None:
    features = np.load(folder / "run/gradients/rollouts.npy").astype(float)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    draws = pq.read_table(folder / "run/gradients/rollouts.parquet").to_pylist()
    sums: dict[str, Any] = {}
    for draw, gradient in zip(draws, features, strict=True):
        if draw["reward"]:
            sums[draw["item_id"]] = sums.get(draw["item_id"], 0) + draw["weight"] * gradient
    units = {item_id: each / np.linalg.norm(each) for item_id, each in sums.items()}
    rows = study["item_table"]
    easy = [units[row["item_id"]] for row in rows if row["confirmed_trainability"] == "easy"]
    judged = [row for row in judged_items(study) if row["similarity"] is not None]
    score = [-np.mean([units[row["item_id"]] @ other for other in easy]) for row in judged]
    outcome = [row["confirmed_trainability"] == "unlearnable" for row in judged]
    wanted = roc_auc_score(outcome, score)
    assert study["tried"]["scores"][PAPERS]["auroc"] == pytest.approx(wanted)


def test_reward_curves_are_means_around_each_step(study: dict[str, Any]) -> None:
    curves = study["reward_curves"]
    assert curves["steps"] == list(range(STEPS))
    learnable = curves["groups"]["learnable"]["mean_reward"]
    # At step s the reward is s / 16; at the ends the window is cut off.
    assert learnable[3] == pytest.approx(3 / 16)
    assert learnable[0] == pytest.approx(1 / 16)
    assert set(curves["groups"]["unlearnable"]["mean_reward"]) == {0.0}


def test_the_page_tells_the_document_and_is_the_same_again(
    study: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "new" / "smollm2.json"
    smollm2_study.write_study(study, file)
    read = json.loads(file.read_text())
    assert read == study
    page = file.with_suffix(".md")
    write_page(read, page)
    text = page.read_text()
    interval = f"{study['auroc_low']:.2f} to {study['auroc_high']:.2f}"
    assert f"**{study['auroc']:.2f} ({interval})**" in text
    assert f"Of {study['hard_items']} hard items" in text
    assert f"**{study['too_few']}**" in text
    assert PAPERS in text and "| even | 15 |" in text
    # What is told of the committed studies, which came before the forecast, is not said of this.
    assert '"source": "gradients"' in text and "the rule for `p_unlearnable`" not in text
    assert "None" not in text and "nan" not in text.replace("unlearnable", "")
    files = {path.name: path.read_bytes() for path in page.parent.iterdir()}
    assert set(files) == {page.name, file.name, *(f"smollm2-{name}.svg" for name in PLOTS)}
    for name in PLOTS:
        assert f"](smollm2-{name}.svg)" in text
        root = ElementTree.fromstring(files[f"smollm2-{name}.svg"])
        assert root.tag.endswith("svg")
    write_page(read, page)
    assert {path.name: path.read_bytes() for path in page.parent.iterdir()} == files


def test_the_page_says_whether_the_goal_was_reached(
    study: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_page, "write_plots", lambda *_: None)  # For time.

    def text(**changes: Any) -> str:
        write_page(copy.deepcopy(study) | changes, tmp_path / "page.md")
        return (tmp_path / "page.md").read_text()

    assert "or more, is reached." in text(auroc=0.95, auroc_low=0.91, auroc_high=0.99)
    reached = text(auroc=0.95, auroc_low=0.8, auroc_high=0.99)
    assert "is reached, and the interval holds both" in reached
    assert "or more, is missed." in text(auroc=0.7, auroc_low=0.6, auroc_high=0.8)
    assert "No AUROC" in text(auroc=None, auroc_low=None, auroc_high=None)


@pytest.mark.parametrize("name", ["smollm2", "smollm2-first"])
def test_the_committed_studies_give_their_pages(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study_page, "write_plots", lambda *_: None)  # For time.
    evidence = ROOT / "docs" / "evidence"
    study = json.loads((evidence / f"{name}.json").read_text(encoding="utf-8"))
    write_page(study, tmp_path / f"{name}.md")
    assert (tmp_path / f"{name}.md").read_bytes() == (evidence / f"{name}.md").read_bytes()


def test_finished_steps_are_skipped(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, ...]] = []
    monkeypatch.setattr(smollm2_study, "run_curate", lambda *words: ran.append(words))
    monkeypatch.setattr(smollm2_study, "smollm2", lambda: "MODEL")
    monkeypatch.setattr(smollm2_study, "write_items", lambda *words: ran.append(("items",)))
    smollm2_study.run_steps(folder, "second", "1,42,37")
    assert [words[0] for words in ran] == ["confirm"]
    ran.clear()
    smollm2_study.run_steps(folder, "second", "1,2")
    assert [words[0] for words in ran] == ["validate", "confirm"]
    ran.clear()
    smollm2_study.run_steps(tmp_path, "second", "1")
    assert [words[0] for words in ran] == ["items", "tag", "validate", "confirm"]
    assert ran[1][:4] == ("tag", str(tmp_path / "items.jsonl"), "--model", "MODEL")
    assert ran[2][-4:] == ("--recipe", "baseline-small", "--seeds", "1")
