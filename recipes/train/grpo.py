"""GRPO as the paper runs it: TRL's trainer with dynamic sampling, replay, and a log of groups.

Rollouts are drawn by the probe's sampler from the model that is trained, or by TRL's vLLM
(`recipes.train.vllm`). TRL 1.16 has no dynamic sampling (trl#3708). Here a step samples groups,
through `GRPOTrainer._generate_and_score_completions`, until enough of them have unequal rewards;
what TRL returns is then replaced by the groups that were kept. Every process decides on the groups
of all processes, gathered, and so decides the same.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import LoraConfig, PeftModel
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import add_fused_lm_head, pad

from probes.engines.base import Rollout, SampleRequest
from probes.engines.transformers import TransformersEngine
from probes.models.adapters import add_before_rounding
from probes.models.load import Policy
from probes.verifiers.pool import VerifierPool
from probes.verifiers.verdict import Verdict
from recipes.recipe import Recipe
from recipes.train.checkpoints import load_state, remove_older, save_state
from recipes.train.clipping import ClippedTokens
from recipes.train.groups import (
    Group,
    ReplayBuffer,
    advantages,
    prompts_to_ask,
    with_replay,
)
from recipes.train.kept_rollouts import KeptRollouts
from recipes.train.packing import can_pack, pack, packed_log_probs
from recipes.train.prompts import PromptStream, TrainingItem
from recipes.train.settings import TrainingProgress
from recipes.train.vllm import TrainingVllm, importance_ratios, starting

# Of prompts that one round of sampling asks for at most, in those of a step: a round is held whole.
_ROUND = 4


_Drawn = tuple[Rollout, Sequence[float]]
"""A rollout, and the log-probabilities of its tokens in vLLM; none where that did not draw it."""


@dataclass
class _Turn:
    """What TRL samples at once on this process: places of the stream, and what came of each."""

    items: dict[int, TrainingItem]
    kept: dict[int, list[Rollout]] = field(default_factory=dict)
    """The groups that are made of the probe's rollouts."""
    drawn: dict[int, list[_Drawn]] = field(default_factory=dict)
    rewards: list[float] = field(default_factory=list)
    """Of all rollouts, nan where one could not be judged."""

    @property
    def rollouts(self) -> list[Rollout]:
        """All of them, in the order of their places."""
        return [rollout for place in self.items for rollout, _ in self.drawn[place]]


class RecipeTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPO with dynamic sampling, oversampling with replay, and a log of every generated group.

    Args:
        policy: to be trained.
        adapter: what is trained of it; all parameters if None.
        reference: the model of the KL term; None with an adapter, or without a KL term.
        recipe: what to do.
        stream: the prompts.
        pool: judges completions; entered by the caller.
        seed: of the sampling and of the adapter.
        max_tokens: of a completion.
        settings: from `trainer_settings`.
        keep_checkpoints: all of them, not only the newest.
        kept: rollouts of the probe, which the first step takes where there are enough; the others
            are sampled.
    """

    # Of the base class, whose types are not read.
    num_generations: int
    use_vllm: bool
    _buffered_inputs: list[dict[str, Any]] | None

    def __init__(
        self,
        policy: Policy,
        recipe: Recipe,
        stream: PromptStream,
        pool: VerifierPool,
        *,
        seed: int,
        max_tokens: int,
        settings: GRPOConfig,
        adapter: LoraConfig | None = None,
        reference: Any = None,
        keep_checkpoints: bool = False,
        kept: KeptRollouts | None = None,
        callbacks: Sequence[Any] = (),
    ) -> None:
        self.policy = policy
        self.recipe = recipe
        self.stream = stream
        self.pool = pool
        self.sampling_seed = seed
        self.max_tokens = max_tokens
        self.keep_checkpoints = keep_checkpoints
        self.kept = kept
        self._started, self._seconds_before = time.monotonic(), 0.0
        self.progress = TrainingProgress()
        self.buffer = ReplayBuffer(recipe.replay_reuse)
        self.clipped = ClippedTokens()
        self._turn = _Turn({})
        self._score_later = False
        self._last_log_probs: torch.Tensor | None = None
        # TRL would load the reference by a name, which a GGUF file does not have.
        settings.beta = recipe.beta if adapter else 0.0
        with starting(policy.files) if settings.use_vllm else nullcontext():
            super().__init__(
                model=policy.model,
                reward_funcs=[self._verified],
                args=settings,
                # TRL hands out rows of a dataset; ours come from the stream, and these stand for
                # them.
                train_dataset=Dataset.from_dict({"prompt": [""] * recipe.prompts_per_step}),
                processing_class=policy.tokenizer,
                peft_config=adapter,
                callbacks=list(callbacks),
            )

        self._vllm: TrainingVllm | None = None
        if self.use_vllm:
            self._vllm = TrainingVllm(self.vllm_generation, policy.eos_token_ids, seed)
        add_before_rounding(self.model)
        self.beta = recipe.beta
        if reference is not None:
            add_fused_lm_head(reference, temperature=self.temperature)
            self.ref_model = self.accelerator.prepare_model(reference, evaluation_mode=True)

    def close(self) -> None:
        """Free what draws rollouts, where that is not the model that is trained."""
        if self._vllm:
            self._vllm.close(alone=self.accelerator.num_processes == 1)
            self._vllm = None

    @property
    def step_in_hand(self) -> int:
        """Number of the step that is being worked on, from 1."""
        return int(self.state.global_step) // self.recipe.updates_per_step + 1

    # --- Sampling --------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Sample groups until the step's batch is full; return this process's share of it."""
        self.clipped.settle(self.progress.rows)
        wanted = self.recipe.prompts_per_step
        most = wanted * (self.recipe.max_sampling_rounds if self.recipe.dynamic_sampling else 1)
        kept: list[Group] = []
        spare: list[Group] = []
        asked = 0
        while asked < most:
            now = self._to_ask(wanted - len(kept), len(kept)) if asked else wanted
            now = min(now, most - asked)
            asked += now
            self.progress.sampling_rounds += 1
            for group in self._sample_groups(now):
                is_kept = (group.has_signal or not self.recipe.dynamic_sampling) and (
                    len(kept) < wanted
                )
                (kept if is_kept else spare).append(group)
            if len(kept) == wanted:
                break
        # Places that stay empty are filled with groups of equal rewards, whose advantages are zero.
        filling = [group for group in reversed(spare) if not group.has_signal]
        filling = filling[: wanted - len(kept)]
        progress = self.progress
        progress.unfilled += len(filling)
        progress.kept += len(kept)
        progress.surplus += sum(group.has_signal for group in spare)
        progress.without_signal += sum(not group.has_signal for group in [*spare, *kept])
        batch = kept + filling
        trained = {group.number for group in kept if group.has_signal}
        for row in progress.rows[len(progress.rows) - len(kept) - len(spare) :]:
            row["trained"] = row["group"] in trained
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        return self._to_tensors(batch[process::processes])

    def _to_ask(self, missing: int, kept: int) -> int:
        """How many more prompts to sample for the groups that a step still lacks."""
        progress = self.progress
        signals = progress.kept + progress.surplus + kept  # Of the steps before, and of this one.
        most = _ROUND * self.recipe.prompts_per_step
        return prompts_to_ask(missing, signals, progress.groups, most)

    def _sample_groups(self, wanted: int) -> list[Group]:
        """Sample at least as many groups as wanted, every process its share; return all of them."""
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        share = math.ceil(wanted / processes)
        first = self.progress.place + process * share
        self._turn = _Turn({place: self.stream[place] for place in range(first, first + share)})
        size = self.recipe.rollouts_per_group
        rows = [
            {
                "prompt": "",
                "item_id": item.item_id,
                "answer": item.answer,
                "verifier": item.verifier,
            }
            for item in self._turn.items.values()
            for _ in range(size)
        ]
        with self._only_sampling(size):
            super()._generate_and_score_completions(rows)
        groups = gather_object(self._groups())
        self.progress.place += processes * share
        return [self._take_in(group) for group in groups]

    @contextmanager
    def _only_sampling(self, size: int) -> Iterator[None]:
        """Have TRL sample and judge groups of `size`; the loss's inputs come later."""
        num_generations, self.num_generations = self.num_generations, size
        use_vllm, self.use_vllm = self.use_vllm, False
        self._score_later = True
        try:
            yield
        finally:
            self.num_generations, self.use_vllm = num_generations, use_vllm
            self._score_later = False

    def _groups(self) -> list[Group]:
        """This process's groups, as they were drawn and judged."""
        turn, groups = self._turn, []
        rewards = iter(turn.rewards)
        for place, item in turn.items.items():
            drawn = turn.drawn[place]
            rollouts = [rollout for rollout, _ in drawn]
            groups.append(
                Group(
                    number=place,
                    item_id=item.item_id,
                    prompt_token_ids=list(item.prompt_token_ids),
                    completions=[list(rollout.completion_token_ids) for rollout in rollouts],
                    rewards=list(islice(rewards, len(rollouts))),
                    truncated=[_is_cut(rollout) for rollout in rollouts],
                    samples=[rollout.sample for rollout in rollouts] if place in turn.kept else (),
                    threshold=self.pool.thresholds[item.verifier or self.pool.verifier],
                    log_probs=[log_probs for _, log_probs in drawn],
                )
            )
        return groups

    def _take_in(self, group: Group) -> Group:
        """Count and log a group as it was sampled; cut it down where it was oversampled."""
        progress = self.progress
        progress.groups += 1
        progress.rollouts += len(group.completions)
        tokens = sum(map(len, group.completions))
        progress.tokens += tokens
        if group.samples:
            progress.kept_rollouts += len(group.completions)
            progress.kept_tokens += tokens
        progress.rows.append(
            {
                "group": group.number,
                "step": self.step_in_hand,
                "item_id": group.item_id,
                "rollouts": len(group.completions),
                "mean_reward": group.mean_reward,
                "truncated_fraction": group.truncated_fraction,
                "clipped_fraction": None,
                "trained": False,
                "correct_rollouts": int(group.is_correct.sum()),
                "samples": list(group.samples),
            }
        )
        if not self.recipe.replay_positives:
            return group
        rng = np.random.default_rng([self.sampling_seed, group.number])
        chosen = with_replay(
            group, self.recipe.replay_positives, self.recipe.num_generations, self.buffer, rng
        )
        progress.replayed += chosen.has_signal and not group.has_signal
        return chosen

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        """Return the run's own token ids: nothing is rendered or tokenized again."""
        items, size = self._turn.items.values(), self.recipe.rollouts_per_group
        return [list(item.prompt_token_ids) for item in items for _ in range(size)], None, {}

    def _generate_single_turn(
        self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        """Draw with the probe's sampler or vLLM; what drives it depends on seed and groups."""
        turn, size = self._turn, self.recipe.rollouts_per_group
        # In the first step the probe's rollouts are on-policy.
        if self.kept is not None and self.step_in_hand == 1:
            turn.kept = self.kept.take({n: item.item_id for n, item in turn.items.items()}, size)
        requests = {
            place: SampleRequest(f"{item.item_id}/{place}", item.prompt_token_ids, 0, size)
            for place, item in turn.items.items()
            if place not in turn.kept
        }
        place_of = {request.item_id: place for place, request in requests.items()}
        turn.drawn = {place: [(each, ()) for each in turn.kept[place]] for place in turn.kept}
        for drawn in self._sample(list(requests.values()), self.recipe.temperature):
            turn.drawn.setdefault(place_of[drawn[0].item_id], []).append(drawn)
        for place in requests:
            turn.drawn[place].sort(key=lambda drawn: drawn[0].sample)
        return [list(rollout.completion_token_ids) for rollout in turn.rollouts], None

    def _sample(self, requests: Sequence[SampleRequest], temperature: float) -> Iterator[_Drawn]:
        """Draw from the policy as it is now."""
        if self._vllm:
            yield from self._vllm.draw(requests, temperature, int(self.state.global_step))
            return
        model = self.accelerator.unwrap_model(self.model)
        engine = TransformersEngine(
            Policy(**{**vars(self.policy), "model": model}),
            seed=self.sampling_seed,
            temperature=temperature,
            max_tokens=self.max_tokens,
        )
        was_training = model.training
        model.eval()
        try:
            with self.accelerator.autocast():
                for rollout in engine.sample(requests):
                    yield rollout, ()
        finally:
            model.train(was_training)

    def _verified(
        self,
        completions: list[str],
        answer: list[str],
        verifier: list[str | None],
        **_: Any,
    ) -> list[float | None]:
        """Note the rewards of this process's completions, of which a cut one is wrong."""
        asked = list(zip(completions, answer, verifier, strict=True))
        verdicts = self._judge(asked, self._turn.rollouts)
        rewards = [0.0 if verdict is None else verdict.reward for verdict in verdicts]
        self._turn.rewards = [math.nan if reward is None else reward for reward in rewards]
        return rewards

    def _judge(
        self, asked: Sequence[tuple[str, str, str | None]], rollouts: Sequence[Rollout]
    ) -> list[Verdict | None]:
        """Judge in the verifier's processes; None for what was cut, as in the probe."""
        pairs = [
            pair for pair, rollout in zip(asked, rollouts, strict=True) if not _is_cut(rollout)
        ]
        verdicts = iter(self.pool.judge(pairs))
        return [None if _is_cut(rollout) else next(verdicts) for rollout in rollouts]

    # --- The batch that reaches the loss -------------------------------------------------------

    def _to_tensors(self, groups: Sequence[Group]) -> dict[str, Any]:
        """The rows of some groups, with their advantages and log-probabilities, in TRL's form."""
        device = self.accelerator.device
        prompts = [list(g.prompt_token_ids) for g in groups for _ in g.completions]
        completions = [list(completion) for g in groups for completion in g.completions]
        padding = self._tokenizer.pad_token_id

        def padded(rows: list[list[int]], side: str) -> tuple[torch.Tensor, torch.Tensor]:
            ids = [torch.tensor(row) for row in rows]
            mask = [torch.ones(len(row), dtype=torch.long) for row in rows]
            return (
                pad(ids, padding_value=padding, padding_side=side).to(device),
                pad(mask, padding_value=0, padding_side=side).to(device),
            )

        prompt_ids, prompt_mask = padded(prompts, "left")
        completion_ids, completion_mask = padded(completions, "right")
        values = np.concatenate([advantages(group.rewards) for group in groups])
        numbers = [group.number for group in groups for _ in group.completions]
        batch = {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "completion_ids": completion_ids,
            "completion_mask": completion_mask,
            "advantages": torch.tensor(values, dtype=torch.float32, device=device),
            "num_items_in_batch": self.accelerator.gather(completion_mask.sum()).sum(),
            "group": torch.tensor(numbers, device=device),
        }
        is_corrected = self.use_vllm and self.vllm_importance_sampling_correction
        if self.recipe.updates_per_step > 1 or is_corrected:
            batch["old_per_token_logps"] = self._log_probs_of(self.model, batch)
        if is_corrected:
            batch["importance_sampling_ratio"] = self._importance_ratios(batch, groups)
        if self.beta:
            batch["ref_per_token_logps"] = self._reference_log_probs(batch)
        return batch

    def _importance_ratios(
        self, batch: dict[str, torch.Tensor], groups: Sequence[Group]
    ) -> torch.Tensor:
        """The ratios by which the loss corrects for what vLLM computes differently, and a log."""
        trained, mask = batch["old_per_token_logps"], batch["completion_mask"]
        drawn = torch.full_like(trained, float("nan"))
        rows = [log_probs for group in groups for log_probs in group.log_probs]
        # Kept and replayed rollouts have none: as without vLLM, they count as drawn just now.
        for row, log_probs in zip(drawn, rows, strict=True):
            row[: len(log_probs)] = torch.tensor(log_probs, dtype=row.dtype)
        ratios = importance_ratios(
            trained,
            drawn,
            mask,
            mode=self.vllm_importance_sampling_mode,
            most=self.vllm_importance_sampling_clip_max,
        )
        is_known = mask.bool() & ~drawn.isnan()
        counted = ratios if ratios.shape[1] == 1 else ratios[is_known]
        log = self._metrics["train"]
        for name, values in (
            ("importance_sampling_ratio", counted.flatten()),
            ("sampling_logp_difference", (trained - drawn).abs()[is_known]),
        ):
            # Of all processes; those of a process without any stay out.
            own = [(values.sum().item(), len(values), values.max().item())] if len(values) else []
            every = gather_object(own)
            if every:
                sums, counts, largest = zip(*every, strict=True)
                log[f"sampling/{name}/mean"].append(sum(sums) / sum(counts))
                log[f"sampling/{name}/max"].append(max(largest))
        return ratios

    def _log_probs_of(self, model: Any, batch: dict[str, Any]) -> torch.Tensor:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], dim=1)
        mask = torch.cat([batch["prompt_mask"], batch["completion_mask"]], dim=1)
        size = self.args.per_device_train_batch_size
        columns = batch["completion_ids"].shape[1]
        with torch.no_grad():
            found = [
                self._get_per_token_logps_and_entropies(
                    model, ids[first : first + size], mask[first : first + size], columns
                )[0]
                for first in range(0, len(ids), size)
            ]
        return torch.cat(found)

    def _reference_log_probs(self, batch: dict[str, Any]) -> torch.Tensor:
        if self.ref_model is not None:
            return self._log_probs_of(self.ref_model, batch)
        unwrapped = self.accelerator.unwrap_model(self.model)
        assert isinstance(unwrapped, PeftModel)
        with unwrapped.disable_adapter():
            return self._log_probs_of(self.model, batch)

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *args: Any,
        compute_aux_loss: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Compute a prompt that several rows share once, where that saves work."""
        if self._score_later:
            return torch.zeros(len(input_ids), logits_to_keep, device=input_ids.device), None, None
        found: tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None] | None = None
        if not compute_aux_loss:
            found = self._packed(model, input_ids, attention_mask, logits_to_keep)
        if found is None:
            # The batch is as wide as the longest rollout of the step; these rows may be shorter.
            used = attention_mask.any(dim=0).nonzero().flatten()
            start, stop = int(used[0]), int(used[-1]) + 1
            unused = input_ids.shape[1] - stop
            found = super()._get_per_token_logps_and_entropies(
                model,
                input_ids[:, start:stop],
                attention_mask[:, start:stop],
                logits_to_keep - unused,
                *args,
                compute_aux_loss=compute_aux_loss,
                **kwargs,
            )
            # The head of a model that is spread over GPUs lies on another one than the tokens.
            log_probs, entropies, loss = (
                None if values is None else values.to(input_ids.device) for values in found
            )
            assert log_probs is not None
            if unused:
                log_probs = _wider(log_probs, unused)
                entropies = None if entropies is None else _wider(entropies, unused)
            found = log_probs, entropies, loss
        if torch.is_grad_enabled():
            self._last_log_probs = found[0].detach()
        return found

    def _packed(
        self, model: Any, ids: torch.Tensor, mask: torch.Tensor, columns: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, None] | None:
        if not can_pack(self.policy.model.config.get_text_config()):
            return None
        first = ids.shape[1] - columns
        rows = list(zip(ids, mask.bool(), strict=True))
        packing = pack(
            [row[:first][keep[:first]].tolist() for row, keep in rows],
            [row[first:][keep[first:]].tolist() for row, keep in rows],
        )
        if packing is None:
            return None
        with self.accelerator.autocast():
            log_probs, entropies = packed_log_probs(
                model, packing, mask[:, first:], self.policy.model.dtype
            )
        return log_probs, entropies, None

    def _prepare_inputs(self, generation_batch: Any) -> dict[str, Any]:
        """Keep groups whole after TRL has shuffled rows, so that their prompts can be shared."""
        before = self._buffered_inputs
        inputs: dict[str, Any] = super()._prepare_inputs(generation_batch)
        if self._buffered_inputs is not before and self._buffered_inputs is not None:
            self._buffered_inputs = _whole_groups(self._buffered_inputs)
            inputs = self._buffered_inputs[self._step % self.args.steps_per_generation]
        return inputs

    def compute_loss(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Note, by group, how many tokens the loss clips."""
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        log_probs, old = self._last_log_probs, inputs.get("old_per_token_logps")
        if log_probs is not None and self.model.training:
            ratio = torch.exp(log_probs - (log_probs if old is None else old))
            gain = inputs["advantages"][:, None]
            is_clipped = ((ratio < 1 - self.epsilon_low) & (gain < 0)) | (
                (ratio > 1 + self.epsilon_high) & (gain > 0)
            )
            mask = inputs["completion_mask"]
            self.clipped.add(inputs["group"].tolist(), is_clipped, mask)
        return loss

    # --- Checkpoints ----------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Add the stream's place, the log and the replay buffer; then drop older checkpoints."""
        self.clipped.settle(self.progress.rows)
        super()._save_checkpoint(model, trial)
        # With every process's random state in it, the checkpoint can be declared whole.
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            folder = Path(self.args.output_dir)
            newest = folder / f"checkpoint-{self.state.global_step}"
            tables = {
                "groups": self.progress.rows,
                "held_out": self.progress.held_out,
                "replay": self.buffer.to_rows(),
            }
            state = {
                **self.progress.counts(),
                "seconds": self.seconds,
                "metrics": self.progress.metrics,
            }
            save_state(newest, state, {name: rows for name, rows in tables.items() if rows})
            if not self.keep_checkpoints:
                remove_older(folder, newest)
        self.accelerator.wait_for_everyone()

    def restore(self, checkpoint: Path) -> None:
        """Take up what `_save_checkpoint` added; weights and optimizer are TRL's to load."""
        state, tables = load_state(checkpoint)
        self._seconds_before = state.pop("seconds")
        self.progress = TrainingProgress(
            **state, rows=tables.get("groups", []), held_out=tables.get("held_out", [])
        )
        self.buffer = ReplayBuffer.from_rows(self.recipe.replay_reuse, tables.get("replay", []))

    @property
    def seconds(self) -> float:
        """Seconds of training, over all tries."""
        return self._seconds_before + time.monotonic() - self._started

    # --- Held-out items -------------------------------------------------------------------------

    def pass_counts(
        self, items: Sequence[TrainingItem], rollouts: int, temperature: float
    ) -> list[tuple[str, int, int]]:
        """Sample items with the policy as it is now; every process takes its share.

        Returns:
            item_id, judged and correct rollouts of each item, on every process.
        """
        process, processes = self.accelerator.process_index, self.accelerator.num_processes
        mine = items[process::processes]
        answers = {item.item_id: (item.answer, item.verifier) for item in mine}
        requests = [
            SampleRequest(item.item_id, item.prompt_token_ids, 0, rollouts) for item in mine
        ]
        drawn = [rollout for rollout, _ in self._sample(requests, temperature)]
        texts = self.policy.tokenizer.batch_decode(
            [rollout.completion_token_ids for rollout in drawn],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        asked = [(text, *answers[each.item_id]) for text, each in zip(texts, drawn, strict=True)]
        counts = {item.item_id: [0, 0] for item in mine}
        for rollout, verdict in zip(drawn, self._judge(asked, drawn), strict=True):
            if verdict is None or verdict.reward is not None:
                counts[rollout.item_id][0] += 1
                counts[rollout.item_id][1] += verdict is not None and verdict.is_correct
        found = [(item_id, judged, correct) for item_id, (judged, correct) in counts.items()]
        gathered: list[tuple[str, int, int]] = gather_object(found)
        return gathered


def _is_cut(rollout: Rollout) -> bool:
    return rollout.finish_reason == "length"


def _wider(values: torch.Tensor, columns: int) -> torch.Tensor:
    """Append columns of zeros."""
    return torch.nn.functional.pad(values, (0, columns))


def _whole_groups(chunks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sort the rows of a step so that groups stand together, in the order of their first rows."""
    merged = {
        name: torch.cat([chunk[name] for chunk in chunks]) if value.ndim else value
        for name, value in chunks[0].items()
    }
    numbers = merged["group"].tolist()
    first = {number: i for i, number in reversed(list(enumerate(numbers)))}
    order = torch.tensor(sorted(range(len(numbers)), key=lambda i: (first[numbers[i]], i)))
    size = len(numbers) // len(chunks)
    return [
        {
            name: value[order[i * size : (i + 1) * size]] if value.ndim else value
            for name, value in merged.items()
        }
        for i in range(len(chunks))
    ]
