"""Sampling the planted world and differentiating its correct rollouts, with the real probes."""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from probes.engines.base import SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.gradients.batch import TokenizedRollout
from probes.gradients.lora import GradientProbe
from probes.gradients.tap import Adapter
from probes.models.files import resolve_model
from probes.models.load import Policy, load_policy
from probes.stages.render import render
from probes.verifiers.load import load_verifier
from tests.worlds.planted import MAX_TOKENS, PlantedWorld


@dataclass(frozen=True)
class ProbedWorld:
    """What was sampled and measured; `rows` are the correct rollouts that were differentiated."""

    total_rollouts: int
    """Of every item."""
    correct_rollouts: NDArray[np.int64]
    """(items,)."""
    item_index: NDArray[np.int64]
    """(rows,), items in order, an item's rows together."""
    features: Mapping[str, NDArray[np.float32]]
    """(rows, dim), by the name of what was differentiated."""
    seconds: Mapping[str, float]
    """By stage."""


def load_world_policy(world: PlantedWorld) -> Policy:
    return load_policy(
        resolve_model(str(world.model)), device=torch.device("cpu"), dtype=torch.float32
    )


def prompt_token_ids(world: PlantedWorld, policy: Policy) -> list[list[int]]:
    """Every item's prompt as `curate tag --instruction ""` renders it."""
    lines = world.items.read_text(encoding="utf-8").splitlines()
    prompts = [json.loads(line)["prompt"] for line in lines]
    return [
        render([{"role": "user", "content": p}], policy.tokenizer, prompt_end="\n")[1]
        for p in prompts
    ]


def probe_world(
    world: PlantedWorld,
    targets: Mapping[str, tuple[str, ...]],
    *,
    samples: int = 256,
    most: int = 16,
    seed: int = 0,
) -> ProbedWorld:
    """Sample every item, judge the rollouts, and differentiate the first `most` correct ones.

    targets: for each name of a set of features, the modules whose gradients they hold.
    """
    policy = load_world_policy(world)
    prompts = prompt_token_ids(world, policy)
    golds = [str(question.gold) for question in world.questions]
    verifier = load_verifier("numeric")
    seconds = {}

    start = time.perf_counter()
    engine = TransformersEngine(
        policy, seed=seed, temperature=1.0, max_tokens=MAX_TOKENS, max_rows=512
    )
    requests = [SampleRequest(str(i), ids, 0, samples) for i, ids in enumerate(prompts)]
    correct: list[list[tuple[int, list[int]]]] = [[] for _ in prompts]
    rewards: dict[tuple[str, str], int | None] = {}
    for rollout in engine.sample(requests):
        item = int(rollout.item_id)
        text = policy.tokenizer.decode(rollout.completion_token_ids, skip_special_tokens=True)
        if (text, golds[item]) not in rewards:
            rewards[text, golds[item]] = verifier(text, golds[item]).reward
        if rewards[text, golds[item]] == 1:
            correct[item].append((rollout.sample, rollout.completion_token_ids))
    seconds["sampling"] = time.perf_counter() - start

    rollouts, item_index = [], []
    for item, completions in enumerate(correct):
        for _, completion in sorted(completions)[:most]:
            rollouts.append(TokenizedRollout(prompts[item], completion))
            item_index.append(item)
    features = {}
    for name, modules in targets.items():
        start = time.perf_counter()
        probe = GradientProbe(policy, Adapter(targets=modules))
        features[name] = np.zeros((len(rollouts), probe.dim), dtype=np.float32)
        for positions, gradients in probe.gradients(rollouts):
            features[name][positions] = gradients
        seconds[name] = time.perf_counter() - start
    return ProbedWorld(
        total_rollouts=samples,
        correct_rollouts=np.array([len(completions) for completions in correct]),
        item_index=np.array(item_index),
        features=features,
        seconds=seconds,
    )
