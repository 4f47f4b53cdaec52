"""A very small grown world is built with the kinds of items that are promised."""

import json

import numpy as np
import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from probes.verifiers.load import load_verifier
from tests.worlds.grown import WorldSettings, grow_world, pass_probability, sampled_pass_rate
from tests.worlds.grown_skills import MARK, SKILLS, SYMBOLS, draw_question

SETTINGS = WorldSettings(
    skills=("plus", "compare", "times", "gcd", "codes0", "median"),
    working_skills=("median",),
    width=32,
    layers=1,
    steps=250,
    learning_rate=5e-3,
    batch=64,
    noise=0.5,
    items=60,
    candidates=60,
    working_samples=64,
    seed=3,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("grown")


@pytest.fixture(scope="module")
def world(folder):
    return grow_world(folder, SETTINGS)


@pytest.mark.parametrize("skill", SKILLS)
def test_every_skill_stays_within_the_symbols_and_its_answers_are_judged_right(skill):
    rng = np.random.default_rng(0)
    exact = load_verifier("exact")
    for _ in range(200):
        question = draw_question(skill, rng)
        for working in question.workings:
            completion = f"{working} {MARK} {question.answer}"
            assert set(f"{question.prompt} {completion}".split()) <= set(SYMBOLS)
            assert exact(completion, question.answer).reward == 1
        assert exact(question.answer, question.answer).reward == 1


def test_items_are_different_questions_of_the_skills_with_all_classes_of_pass_probability(world):
    rows = [json.loads(line) for line in world.items.read_text(encoding="utf-8").splitlines()]
    assert [(q.prompt, q.answer, q.skill) for q in world.questions] == [
        (row["prompt"], row["answer"], row["skill"]) for row in rows
    ]
    assert len({row["prompt"] for row in rows}) == len(rows)
    assert 0.75 * SETTINGS.items <= len(rows) <= SETTINGS.items
    p = world.pass_probabilities
    assert ((p >= 0.001) & (p < 0.1)).sum() >= 0.5 * len(rows)
    assert (p >= 0.1).sum() >= 0.1 * len(rows)
    assert len({row["skill"] for row in rows}) >= 5
    sampled = [
        q.skill for q, exact in zip(world.questions, world.is_exact, strict=True) if not exact
    ]
    assert set(sampled) <= {"median"}


def test_the_tokenizer_on_disk_reads_and_writes_what_the_model_was_taught(world):
    loaded = AutoTokenizer.from_pretrained(world.model)
    for question in world.questions:
        text = f"{question.prompt}\n"
        ids = loaded(text)["input_ids"]
        assert loaded.unk_token_id not in ids
        assert loaded.decode(ids) == question.prompt


def test_exact_pass_probabilities_are_those_of_sampling_and_of_the_model_on_disk(world):
    direct = [q for q, exact in zip(world.questions, world.is_exact, strict=True) if exact]
    model = AutoModelForCausalLM.from_pretrained(world.model)
    p = pass_probability(model, direct)
    assert p == pytest.approx(world.pass_probabilities[world.is_exact], rel=1e-4)
    samples = 400
    rates = sampled_pass_rate(model, direct, samples, max_tokens=world.max_tokens, seed=0)
    # Sum of squared standard errors: its mean is the number of items, its deviation sqrt(2 x it).
    squares = (rates - p) ** 2 / (p * (1 - p) / samples)
    likely = samples * p > 5
    assert squares[likely].sum() <= likely.sum() + 5 * np.sqrt(2 * likely.sum())


def test_the_same_settings_grow_the_same_world(world, tmp_path):
    again = grow_world(tmp_path, SETTINGS)
    assert again.items.read_bytes() == world.items.read_bytes()
    weights = "model.safetensors"
    assert (again.model / weights).read_bytes() == (world.model / weights).read_bytes()


def test_an_unknown_skill_is_refused():
    with pytest.raises(ValueError, match="juggling"):
        WorldSettings(skills=("plus", "juggling"))
