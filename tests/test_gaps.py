"""`curate gaps`: each reason is found where it was planted, and so are clusters."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

import curate
from curate.errors import UsageError
from recipes.gaps.reasons import COMPETES, LUCK, NOBODY, NOTHING, UNKNOWN, WEAK, Estimate, why_not
from recipes.gaps.span import _of
from recipes.gaps.text import _ending, _short, gaps_text
from tests.made.run import Items, made_run, write_table
from tests.tag_runs import read_jsonl, run_curate

_DIM = 96
_ROLLOUTS = 64
# Each: how many items, correct of 64, and the directions of correct and of wrong rollouts.
_Kind = tuple[int, int, dict[int, float], dict[int, float]]
_KINDS: dict[str, _Kind] = {
    "sums": (12, 32, {0: 1}, {0: -1}),
    "sorting": (12, 32, {1: 1}, {1: -1}),
    "weak": (1, 4, {0: 0.3}, {}),
    "competes": (1, 4, {1: -0.5}, {}),
    "alone": (1, 4, {2: 1}, {}),
    "luck": (1, 6, {3: 1}, {3: 1}),
    "gcd": (4, 4, {4: 1}, {}),
    "codes": (3, 4, {5: 1}, {}),
}


def _write(
    run: Path, draws: int, noise: float, seed: int = 0, kinds: dict[str, _Kind] | None = None
) -> Path:
    """A run of planted gradients, `draws` correct and 4 wrong ones an item."""
    rng = np.random.default_rng(seed)
    kinds = _KINDS if kinds is None else kinds
    ids, correct, rows = [], [], []
    for name, (count, right, along, against) in kinds.items():
        for n in range(count):
            ids.append(f"{name} {n}")
            correct.append(right)
            rows += [
                (ids[-1], reward, -_vector(direction, noise, rng))
                for reward, direction, many in ((1, along, draws), (0, against, 4))
                for _ in range(min(many, right) if reward else many)
            ]
    tags = ["easy" if each > 6 else "unlearnable" for each in correct]
    items = Items(ids, correct, tags, rollouts=_ROLLOUTS, forecast=[0.5] * len(ids))
    made_run(run, items)
    rows.sort(key=lambda row: -row[1])
    count = len(rows)
    (run / "gradients").mkdir(exist_ok=True)
    np.save(run / "gradients/rollouts.npy", np.array([row[2] for row in rows], np.float32))
    write_table(
        run / "gradients/rollouts.parquet",
        {
            "item_id": [row[0] for row in rows],
            "sample": np.zeros(count, np.int32),
            "weight": np.ones(count, np.int32),
            "tokens": np.full(count, 5, np.int32),
            "completion_tokens": np.full(count, 5, np.int32),
            "reward": np.array([row[1] for row in rows], np.int8),
        },
    )
    return run


def _vector(
    direction: dict[int, float], noise: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    vector = np.asarray(noise * rng.normal(size=_DIM) / np.sqrt(_DIM))
    for axis, length in direction.items():
        vector[axis] += length
    return vector


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(tmp_path_factory.mktemp("planted") / "run", draws=6, noise=0.1)


@pytest.fixture(scope="module")
def found(planted: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The summary, and the line of each item."""
    out = planted.parent / "gaps.jsonl"
    facts = curate.gaps(planted, out)
    return facts, {line["item_id"]: line for line in read_jsonl(out)}


@pytest.mark.parametrize(
    ("item", "reason"),
    [("weak 0", WEAK), ("competes 0", COMPETES), ("alone 0", NOBODY), ("luck 0", LUCK)],
)
def test_each_reason_is_found_where_it_was_planted(found: Any, item: str, reason: str) -> None:
    line = found[1][item]
    assert (line["gap"], line["gap_likely"]) == (reason, reason), line
    assert line["gap_reason"].startswith(f"{reason}: ")


def test_the_numbers_behind_a_reason_are_those_that_were_planted(found: Any) -> None:
    _, lines = found
    assert lines["weak 0"]["inside"] == pytest.approx(1, abs=0.2)
    assert lines["alone 0"]["inside"] == pytest.approx(0, abs=0.05)
    assert lines["luck 0"]["own"] == pytest.approx(0, abs=0.05)
    assert lines["luck 0"]["right_wrong_cosine"] == pytest.approx(1, abs=0.05)
    # Who teaches and who is in the way is named, strongest first.
    assert all(name.startswith("sums ") for name in lines["weak 0"]["taught_by"])
    assert 10 < lines["weak 0"]["teachers_alike"] < 13
    assert all(name.startswith("sorting ") for name in lines["competes 0"]["competes_with"])
    assert lines["competes 0"]["competes_with"][0] in lines["competes 0"]["gap_reason"]


def test_items_that_would_teach_each_other_stand_together(found: Any) -> None:
    facts, lines = found
    assert facts["items"] == 11 and facts["alone"] == 4
    assert [sorted(each["item_ids"]) for each in facts["clusters"]] == [
        [f"gcd {n}" for n in range(4)],
        [f"codes {n}" for n in range(3)],
    ]
    for number, cluster in enumerate(facts["clusters"], 1):
        assert cluster["verdict"] == "candidate"
        assert cluster["alignment"] == pytest.approx(1, abs=0.1)
        assert cluster["inside_high"] < 0.25
        assert cluster["examples"][0]["prompt"] == f"prompt of {cluster['item_ids'][0]}"
        assert all(lines[each]["cluster"] == number for each in cluster["item_ids"])
    assert lines["alone 0"]["cluster"] is None


def test_a_cluster_that_others_teach_is_no_candidate(tmp_path: Path) -> None:
    kinds = {**_KINDS, "gcd": (4, 4, {1: 0.3}, {})}
    facts = curate.gaps(_write(tmp_path / "run", draws=4, noise=0.1, kinds=kinds))
    verdicts = {each["item_ids"][0].split()[0]: each["verdict"] for each in facts["clusters"]}
    assert verdicts == {"gcd": "taught", "codes": "candidate"}


def test_noise_makes_neither_reasons_nor_clusters(tmp_path: Path) -> None:
    noisy: dict[str, _Kind] = {
        name: (count, right, {}, {}) for name, (count, right, *_) in _KINDS.items()
    }
    kinds = {**noisy, "sums": _KINDS["sums"], "sorting": _KINDS["sorting"]}
    clusters, certain = 0, 0
    for seed in range(5):
        run = _write(tmp_path / str(seed), draws=4, noise=1, seed=seed, kinds=kinds)
        facts = curate.gaps(run)
        clusters += len(facts["clusters"])
        certain += facts["reasons"][WEAK] + facts["reasons"][COMPETES] + facts["reasons"][NOTHING]
    # Of 55 items of noise a twentieth is said to be taught by chance, another to compete.
    assert clusters <= 1 and certain <= 8


def test_with_a_single_rollout_an_item_is_uncertain(tmp_path: Path) -> None:
    run = _write(tmp_path / "run", draws=1, noise=1)
    curate.gaps(run, tmp_path / "o.jsonl")
    lines = read_jsonl(tmp_path / "o.jsonl")
    unknown = [line for line in lines if line["gap"] == UNKNOWN]
    assert len(unknown) >= 9
    assert all("not certain from 1 correct rollout" in line["gap_reason"] for line in unknown)
    assert all(line["right_wrong_cosine"] is None for line in lines)


def test_reasons_are_asked_in_their_order() -> None:
    sure = Estimate(0.5, 0.4, 0.6)

    def reason(**changed: Any) -> tuple[str, str]:
        usual: dict[str, Any] = {"draws": 8, "own": sure, "inside": sure, "from_others": sure}
        found = why_not(**{**usual, "lift": 0.4, "typical": 0.5, **changed})
        return found.reason, found.likely

    below, unsure = Estimate(-0.5, -0.6, -0.4), Estimate(0.1, -0.3, 0.6)
    luck = Estimate(0.0, -0.02, 0.02)
    assert reason() == (WEAK, WEAK)
    assert reason(lift=1.2) == (NOTHING, NOTHING)
    assert reason(from_others=below) == (COMPETES, COMPETES)
    assert reason(from_others=below, own=luck) == (LUCK, LUCK)
    assert reason(inside=Estimate(0.1, 0.0, 0.2)) == (NOBODY, NOBODY)
    assert reason(inside=unsure) == (UNKNOWN, NOBODY)
    assert reason(from_others=unsure) == (UNKNOWN, WEAK)
    assert reason(draws=0) == (UNKNOWN, UNKNOWN)
    # Where gradients of all items are noisy, what is luck is less.
    assert reason(own=Estimate(0.03, 0.02, 0.04)) == (LUCK, LUCK)
    assert reason(own=Estimate(0.03, 0.02, 0.04), typical=0.06) == (WEAK, WEAK)


def test_the_command_tells_reasons_and_clusters(planted: Path, tmp_path: Path) -> None:
    ran = run_curate("gaps", planted, "-o", tmp_path / "o.jsonl")
    assert ran.status == 0, ran.stderr
    assert "11 items that training is not known to solve: 11 unlearnable" in ran.stdout
    assert "cluster 1: 4 items; nobody else teaches it: a candidate for mid-training" in ran.stdout
    assert "4 items stand alone" in ran.stdout
    assert "  prompt of gcd " in ran.stdout
    ran = run_curate("gaps", planted, "--json")
    assert json.loads(ran.stdout)["clusters"][1]["items"] == 3


def test_leaving_an_item_out_of_the_span_is_finding_that_of_the_others() -> None:
    rng = np.random.default_rng(0)
    teachers = np.arange(0, 20, 2)
    steps = (rng.normal(size=(10, 4)) * [4, 3, 2, 1] @ rng.normal(size=(4, 30))).astype(np.float32)
    steps[3, 5] += 40  # A direction of its own.
    span = _of(teachers, steps, np.zeros((2, 10, 30), np.float32))
    for left_out in ([6], [0, 4], [1], []):
        rows = ~np.isin(teachers, left_out)
        _, squares, vectors = np.linalg.svd(steps[rows].astype(float), full_matrices=False)
        expected = vectors[squares**2 > span.floor]
        found = span.without(left_out) @ span.vectors.astype(float)
        assert len(found) == len(expected)
        assert found.T @ found == pytest.approx(expected.T @ expected, abs=1e-3)
    assert len(span.without([6])) < span.directions


def test_of_a_prompt_its_question_is_shown() -> None:
    asked = ("Double 41.", "What is 7 + 8?")
    prompts = [f"<user>{'Be brief. ' * 9}{each}<end>\n<assistant>" for each in asked]
    examples = [{"item_id": str(n), "prompt": each} for n, each in enumerate(prompts)]
    ending = _ending([{"examples": examples}])
    shown = [_short(each, ending) for each in prompts]
    assert all(
        line.startswith("…") and line.endswith(each)
        for line, each in zip(shown, asked, strict=True)
    )
    assert _short("a\nb\x1b", 0) == "a b\\x1b" and _ending([]) == 0
    turns = "<|im_start|>user\nDouble 83.<|im_end|>\n<|im_start|>assistant\n166<|im_end|>\n"
    assert _short(f"{turns}<|im_start|>user\nDouble 41.<|im_end|>\n", 0) == "Double 41."


def test_a_run_without_gradients_is_refused(planted: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted, run)
    (run / "gradients/rollouts.npy").unlink()
    with pytest.raises(UsageError, match="has no gradients of rollouts"):
        curate.gaps(run)


@pytest.mark.parametrize(
    "name",
    ["rollouts/00000.parquet", "gradients/rollouts.npy", "gradients/rollouts.parquet"],
)
@pytest.mark.parametrize("left", [0, 50])
def test_a_file_that_was_cut_off_is_named(
    planted: Path, tmp_path: Path, name: str, left: int
) -> None:
    run = tmp_path / "run"
    shutil.copytree(planted, run)
    file = run / name
    file.parent.mkdir(exist_ok=True)
    whole = (run / "gradients/rollouts.parquet" if not file.exists() else file).read_bytes()
    file.write_bytes(whole[:left])
    ran = run_curate("gaps", run)
    assert ran.status == 1 and ran.stdout == ""
    assert f"{file} is missing or damaged" in ran.last_line


def test_a_run_of_easy_items_asks_for_nothing(tmp_path: Path) -> None:
    kinds = {"sums": _KINDS["sums"], "sorting": _KINDS["sorting"]}
    run = _write(tmp_path / "run", draws=4, noise=0.1, kinds=kinds)
    facts = curate.gaps(run, tmp_path / "o.jsonl")
    assert facts["items"] == 0 and facts["clusters"] == []
    assert (tmp_path / "o.jsonl").read_text() == ""
    assert "rarely right: nothing is missing\n" in run_curate("gaps", run).stdout
    none_right = gaps_text({"items": 0, "without_correct": 50, "notes": []})
    assert "50 items have no correct rollout" in none_right and "nothing" not in none_right


def test_where_a_step_takes_nothing_of_any_item_nobody_teaches(tmp_path: Path) -> None:
    # Without a wrong rollout a step takes nothing of an item: there is no span.
    run = _write(tmp_path / "run", draws=4, noise=0.1, kinds={"gcd": _KINDS["gcd"]})
    gradients = run / "gradients/rollouts"
    index = pq.read_table(gradients.with_suffix(".parquet"))
    right = np.flatnonzero(index["reward"].to_numpy() == 1)
    features = np.load(gradients.with_suffix(".npy"))[right]
    pq.write_table(index.take(right), gradients.with_suffix(".parquet"))
    np.save(gradients.with_suffix(".npy"), features)
    facts = curate.gaps(run, tmp_path / "o.jsonl")
    assert facts["directions"] == 0 and facts["reasons"][NOBODY] == 4
    assert facts["signal_held"] == 0 and facts["clusters"][0]["inside"] == 0
    lines = read_jsonl(tmp_path / "o.jsonl")
    assert all(line["from_others"] == 0 and line["taught_by"] == [] for line in lines)
