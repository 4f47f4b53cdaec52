"""The study of interventions in grown worlds: who is grouped, what is drawn, what the page says."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.study import grown_interventions as study
from benchmarks.study.grown_gaps import choose
from benchmarks.study.grown_gradients import measure
from benchmarks.study.grown_interventions import (
    COMPARED_SEEDS,
    GROUPING_SEEDS,
    World,
    drawing,
    groups_of,
    open_world,
)
from benchmarks.study.grown_interventions_page import Study
from benchmarks.study.interval import Interval
from benchmarks.training.rollouts import problem
from tests.worlds.grown import WorldSettings, pass_probability, tokenizer

SKILLS = ("codes0", "compare", "gcd", "plus", "times")
SETTINGS = WorldSettings(
    SKILLS, width=32, layers=1, steps=120, learning_rate=5e-3, batch=64, noise=0.5, items=60,
    candidates=80, seed=3,
)  # fmt: skip


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return open_world(tmp_path_factory.mktemp("worlds") / "w", SETTINGS)


def test_twins_are_other_hard_questions_of_the_same_skill(world: World) -> None:
    places = world.twin_places
    assert len(places) > 10 and world.is_hard[places].all()
    twins = [world.twins[n] for n in places]
    assert len({each.prompt for each in twins}) == len(twins)
    assert not {each.prompt for each in twins} & {each.prompt for each in world.questions}
    assert [each.skill for each in twins] == [world.questions[n].skill for n in places]
    p = pass_probability(world.model, twins)
    assert np.all((p >= 0.001) & (p < 0.1))
    assert np.median(np.abs(np.log(p / world.initial[places]))) < 1


def test_more_pretraining_draws_fresh_questions_half_of_the_skills_of_the_items(
    world: World,
) -> None:
    items = np.array([n for n, each in enumerate(world.questions) if each.skill == "gcd"])
    draw = drawing(world, items, np.random.default_rng(0))
    drawn = [tokenizer().decode(draw()[0]) for _ in range(600)]
    assert not set(drawn) & world.held
    share = np.mean([each.startswith("gcd") for each in drawn])
    assert share == pytest.approx(0.5 + 0.5 * world.shares[SKILLS.index("gcd")], abs=0.08)


def test_similarity_and_lift_are_those_of_gradients(world: World) -> None:
    p, problems = world.initial, [problem(each) for each in world.questions]
    easy = p >= 0.1
    found = measure(world.model, problems, p, easy, group=8, seed=1)

    def slope(n: int) -> torch.Tensor:
        model = copy.deepcopy(world.model)
        ids = torch.tensor([[*problems[n].prompt, *problems[n].right]])
        logits = model(input_ids=ids[:, :-1]).logits[0, len(problems[n].prompt) - 1 :]
        torch.nn.functional.cross_entropy(logits, torch.tensor(problems[n].right)).backward()
        whole = torch.cat([each.grad.flatten() for each in model.parameters()])
        return whole / whole.norm()

    hard = int(np.flatnonzero(world.is_hard)[0])
    wanted = np.mean([float(slope(hard) @ slope(n)) for n in np.flatnonzero(easy)])
    assert found.similarity[hard] == pytest.approx(wanted, abs=0.01)
    assert found.lift.shape == p.shape and np.isfinite(found.lift).all()
    assert found.lift[easy].mean() > 0


def write(world: World, arm: str, seed: int, final: np.ndarray, right: np.ndarray) -> None:
    file = study._file(world, arm, seed)
    file.parent.mkdir(exist_ok=True)
    facts = {"final": final.tolist(), "right": right.tolist()}
    file.write_text(json.dumps(facts), encoding="utf-8")


def made(tmp_path: Path, initial: list[float]) -> World:
    questions = [object()] * len(initial)
    return World(
        tmp_path, SETTINGS, None, questions, np.array(initial), [], np.ones(1), np.ones(1)
    )  # type: ignore[arg-type]  # fmt: skip


def test_groups_are_those_on_which_the_grouping_seeds_agree(tmp_path: Path) -> None:
    world = made(tmp_path, [0.5, 0.05, 0.05, 0.05, 0.05, 0.0001, 0.0011])
    finals = [
        [0.9, 0.5, 0.01, 0.5, 0.02, 0.9, 0.01],
        [0.9, 0.1, 0.02, 0.0, 0.09, 0.9, 0.01],
        [0.9, 0.9, 0.00, 0.5, 0.05, 0.9, 0.01],
    ]
    for number, seed in enumerate(GROUPING_SEEDS):
        right = np.array([9, 9, 9, 9, number, 9, 9])
        write(world, "baseline", seed, np.array(finals[number]), right)
    found = groups_of(world)
    assert found["easy"].tolist() == [0]
    assert found["learnable"].tolist() == [1]
    # The probe's 1,024 rollouts have seen all of them right.
    assert found["unlearnable"].tolist() == [2, 4, 6]
    assert found["right in training"].tolist() == [2, 6]
    assert found["seeds_differ"].tolist() == [3]
    assert not set(GROUPING_SEEDS) & set(COMPARED_SEEDS)


def test_a_world_counts_once_however_many_items_it_has(tmp_path: Path) -> None:
    worlds = [made(tmp_path, [0.05] * size) for size in (6, 60, 3)]
    groups = [{"unlearnable": np.arange(len(each.questions))} for each in worlds]
    trainings = {
        (n, arm): [{"final": [gain * (n + 1)] * len(each.questions)} for _ in range(2)]
        for n, each in enumerate(worlds)
        for arm, gain in (("baseline", 0.0), ("arm", 0.1))
    }
    found = Study(worlds, trainings, groups)
    gains = found.means("arm", "unlearnable") - found.means("baseline", "unlearnable")
    # The third has too few items.
    assert gains[:2].tolist() == pytest.approx([0.1, 0.2]) and np.isnan(gains[2])
    interval = Interval.of(gains)
    assert interval.mean == pytest.approx(0.15)
    assert (interval.low, interval.high) == pytest.approx(
        (0.15 - 12.706 * 0.05, 0.15 + 12.706 * 0.05), rel=1e-3
    )
    assert interval.verdict == "no difference shown"
    assert Interval.of(np.array([0.1, 0.11, 0.12])).verdict == "higher"


def test_clusters_take_turns_and_share_no_skill(tmp_path: Path) -> None:
    from tests.worlds.grown_skills import Question

    world = made(tmp_path, [0.05] * 10)
    skills = ["plus", "plus", "gcd", "gcd", "times", "times", "gcd", "mod", "mod", "plus"]
    questions = [Question(each, "", "", ()) for each in skills]
    world = World(**{**vars(world), "questions": questions})
    clusters = [
        {"places": [0, 1], "verdict": "candidate"},
        {"places": [2, 9], "verdict": "taught"},
        {"places": [2, 3], "verdict": "perhaps"},
        {"places": [4, 5], "verdict": "taught"},
        {"places": [7, 8], "verdict": "candidate"},
    ]
    found = choose(world, clusters)
    assert [(each.skills, each.is_named) for each in found] == [
        (("plus",), True), (("times",), False), (("gcd",), True), (("mod",), True),
    ]  # fmt: skip
