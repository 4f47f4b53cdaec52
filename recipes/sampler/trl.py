"""TRL's GRPOTrainer with a sampler that learns from its rewards.

It takes the place of `_get_train_sampler` (TRL 1.16, where a `RepeatSampler` gives each prompt to
its group and repeats the batch), and listens in `_calculate_rewards`, which has the rewards of all
processes. Every process has a sampler of its own, sees the same rewards and so draws the same.

The data loader asks for batches before they are trained on, so that rewards count from the next but
one batch on. A checkpoint holds the sampler's state and all that it drew in the epoch: a run that
is resumed draws what it would have drawn.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import Sampler
from transformers.trainer_utils import get_last_checkpoint
from trl import GRPOTrainer

from curate.files import write_atomically
from recipes.sampler.items import ItemSampler, SamplerSettings

STATE = "curate_sampler.json"
"""What the state is called in a checkpoint."""


class SampledGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """GRPOTrainer on items whose rewards are expected to differ.

    `train_dataset` has the columns that `curate tag` wrote, as `--format trl` keeps them.

    Args:
        sampling: how the sampler judges; its group size and seed are the trainer's.
        correct_from: reward from which on a rollout counts as right, the weighted sum where there
            are several reward functions.
        args, kwargs: of `GRPOTrainer`.

    Raises:
        ValueError: the dataset is a stream, or lacks a column.
    """

    def __init__(
        self,
        *args: Any,
        sampling: SamplerSettings = SamplerSettings(),  # noqa: B008 (frozen)
        correct_from: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if not hasattr(self.train_dataset, "__len__"):
            raise ValueError("a stream cannot be drawn from: load the dataset whole")
        settings = replace(sampling, group_size=self.num_generations, seed=self.args.seed)
        self.item_sampler = ItemSampler.of(self.train_dataset, settings)
        self.correct_from = correct_from
        self.drawn: list[int] = []
        """Rows of the epoch so far, in the order of the draws."""
        self._is_resumed = False

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        return _Draws(
            self,
            batch=self.args.generation_batch_size // self.num_generations,
            prompts=len(self.train_dataset if dataset is None else dataset),
            mini_repeat=self.num_generations,
            repeat=self.num_iterations * self.args.steps_per_generation,
        )

    def _calculate_rewards(self, inputs: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        rewards: torch.Tensor = super()._calculate_rewards(inputs, *args, **kwargs)
        if self.model.training:
            ids = gather_object([each["item_id"] for each in inputs])
            total = (rewards * self.reward_weights.to(rewards.device)).nansum(dim=1)
            unjudged = torch.isnan(rewards).all(dim=1).tolist()
            right = (total >= self.correct_from).tolist()
            self.item_sampler.observe(
                ids, [None if no else yes for no, yes in zip(unjudged, right, strict=True)]
            )
        return rewards

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        folder = Path(self._get_output_dir(trial=trial)) / f"checkpoint-{self.state.global_step}"
        if self.args.should_save:
            # At the end of an epoch the next one draws anew.
            is_whole = float(self.state.epoch or 0).is_integer()
            state = self.item_sampler.state_dict() | {"epoch": [] if is_whole else self.drawn}
            write_atomically(folder / STATE, json.dumps(state) + "\n")

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, as `GRPOTrainer` does; a checkpoint gives back the sampler's state too.

        Raises:
            ValueError: there is no such checkpoint, or it has no state of a sampler, or one of
                other items.
        """
        folder: Any = resume_from_checkpoint
        if resume_from_checkpoint is True:
            folder = get_last_checkpoint(self.args.output_dir)  # type: ignore[no-untyped-call]
        if folder:
            file = Path(folder) / STATE
            if not file.exists():
                raise ValueError(f"{folder} has no {STATE}: it is of a training without a sampler")
            state = json.loads(file.read_text(encoding="utf-8"))
            self.item_sampler.load_state_dict(state)
            self.drawn = [] if self.args.ignore_data_skip else list(state["epoch"])
            self._is_resumed = True
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)


class _Draws(Sampler[int]):
    """The rows of an epoch, each batch drawn when it is asked for.

    A run that was resumed first gets what it was given before, which the trainer passes over.
    """

    def __init__(
        self, trainer: SampledGRPOTrainer, batch: int, prompts: int, mini_repeat: int, repeat: int
    ) -> None:
        self.trainer, self.batch = trainer, batch
        self.mini_repeat, self.repeat = mini_repeat, repeat
        self.batches = prompts // batch

    def __len__(self) -> int:
        return self.batches * self.batch * self.mini_repeat * self.repeat

    def __iter__(self) -> Iterator[int]:
        trainer = self.trainer
        if not trainer._is_resumed:
            trainer.drawn = []
        trainer._is_resumed = False
        for number in range(self.batches):
            start = number * self.batch
            if start == len(trainer.drawn):
                trainer.drawn += trainer.item_sampler.draw(self.batch)
            rows = trainer.drawn[start : start + self.batch]
            for _ in range(self.repeat):
                for row in rows:
                    yield from [row] * self.mini_repeat
