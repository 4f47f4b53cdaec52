"""verl's dataset with a sampler that learns from its rewards (verl 0.9.1).

verl had samplers of the user's up to 0.7; since then the order is that of the dataset, or shuffled
(`create_rl_sampler`), and what it offers is a dataset of one's own (`data.custom_cls`). So this one
gives, whatever row is asked for, the next one that was drawn.

Rewards come back in one of two ways. The trainer of `trainer.use_v1=False` hands every batch to
`on_batch_end`. That of 0.9 gives them to its replay buffer: `recipes.sampler.verl_v1`.

The state goes into `data.pt` of verl's checkpoints, with that of its data loader. The trainer is
one process, so that there is one order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch.utils.data import get_worker_info
from verl.utils.dataset.rl_dataset import RLHFDataset

from recipes.sampler.items import ItemSampler, SamplerSettings


class CurateDataset(RLHFDataset):  # type: ignore[misc]
    """RLHFDataset on items whose rewards are expected to differ.

    `data.train_files` has the columns that `curate tag` wrote, as `--format verl` keeps them; other
    files, such as those of the validation, are read as verl reads them. `+data.curate.NAME=VALUE`
    sets what `SamplerSettings` has, and `+data.curate.correct_from` the score from which on a
    rollout counts as right (1).
    """

    training: ClassVar[CurateDataset | None] = None
    """The one of the training files, for who has rewards."""

    def __init__(self, data_files: Any, *args: Any, config: Any, **kwargs: Any) -> None:
        super().__init__(data_files, *args, config=config, **kwargs)
        self.item_sampler: ItemSampler | None = None
        if _files(data_files) != _files(config.get("train_files")):
            return
        settings = dict(config.get("curate") or {})
        self.correct_from = float(settings.pop("correct_from", 1.0))
        self.item_sampler = ItemSampler.of(self.dataframe, SamplerSettings(**settings))
        self._batch = min(int(config.get("train_batch_size") or 1), len(self.item_sampler))
        self._next: list[int] = []
        CurateDataset.training = self

    def __getitem__(self, item: int) -> dict[str, Any]:
        """The next row that was drawn, of the training files; else the row asked for."""
        if self.item_sampler is None:
            return dict(super().__getitem__(item))
        if get_worker_info() is not None:
            raise ValueError(
                "data.dataloader_num_workers must be 0: the copy of the dataset in a worker learns "
                "nothing of rewards"
            )
        if not self._next:
            self._next = self.item_sampler.draw(self._batch)
        row = self.dataframe[self._next[0]]["item_id"]
        found = dict(super().__getitem__(self._next.pop(0)))
        # Of all that a row has only this is sure to stay beside its rollouts.
        found["extra_info"] = {**found["extra_info"], "item_id": row}
        return found

    def observe(self, extra_info: Sequence[Any], scores: Sequence[float]) -> None:
        """Learn from the rollouts of a batch.

        Args:
            extra_info: of each rollout's prompt, as `__getitem__` gave it.
            scores: of each rollout.
        """
        assert self.item_sampler is not None
        self.item_sampler.observe(
            [each["item_id"] for each in extra_info],
            [score >= self.correct_from for score in scores],
        )

    def on_batch_end(self, batch: Any) -> None:
        """What the trainer of `trainer.use_v1=False` calls after each step with a `DataProto`."""
        scores = batch.batch["token_level_scores"].sum(dim=-1).tolist()
        self.observe(batch.non_tensor_batch["extra_info"], scores)

    def state_dict(self) -> dict[str, Any]:
        """For verl's checkpoint; empty of files that are not drawn from."""
        if self.item_sampler is None:
            return {}
        return {"sampler": self.item_sampler.state_dict(), "next": list(self._next)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From verl's checkpoint.

        Raises:
            ValueError: it is of other items.
        """
        if self.item_sampler is not None and state:
            self.item_sampler.load_state_dict(state["sampler"])
            self._next = list(state["next"])


def _files(given: Any) -> list[str]:
    """Paths as they were given: one, or several."""
    if given is None:
        return []
    return [given] if isinstance(given, str) else [str(each) for each in given]
