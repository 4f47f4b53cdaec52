"""Kept rollouts of a finished run, scored under the policy that drew them and under another.

Of each item only those rollouts are scored that its log odds are read from (`checkpoint_lift`): the
correct ones where it is solved at most half of the time, else the wrong ones, and then some correct
ones too, for an item whose wrong ones are all left out.

Both policies score in float32 where there is room for it. In bfloat16 the log-probability of a
dozen tokens is off by some hundredths, differently for each policy, and that of a long completion
by as much as a short training moves it.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Mapping
from functools import cached_property
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray

from curate.errors import RunError
from curate.run.folder import lock_folder
from curate.run.names import RESCORING
from curate.run.tables import ITEMS, PASS_RATES, read_parquet, write_parquet
from probes.lift.checkpoint import CheckpointLift, log_ratio_lift
from probes.models.checkpoints import open_checkpoint
from probes.models.files import ModelFiles
from probes.models.load import Policy, choose_device, choose_dtype, load_policy, outline_policy
from probes.rescoring.rescore import rescore_run

# Of the outcome that an item's log odds are read from: their error is below 0.13 of a log ratio's.
_MOST = 64
# Of the other outcome, where it may be all that is left.
_FEW = 4
# Of a GPU's free memory, which float32 weights may take.
_WEIGHTS_SHARE = 0.5


class RolloutScores:
    """The scores of a run's rollouts, and what they say of a policy.

    Args:
        run: the folder of a finished run.
        files: the policy that was probed.
        trust_remote_code: run Python code that comes with the model.
    """

    def __init__(self, run: Path, files: ModelFiles, *, trust_remote_code: bool = False) -> None:
        self.run = run
        self.files = files
        self.trust_remote_code = trust_remote_code

    @cached_property
    def _items(self) -> pa.Table:
        return ITEMS.read(self.run, "item_id", "prompt_token_ids").combine_chunks()

    @cached_property
    def _dtype(self) -> torch.dtype:
        device = choose_device()
        if device.type == "cpu":
            return torch.float32
        model = outline_policy(self.files, trust_remote_code=self.trust_remote_code).model
        weights = 4 * sum(parameter.numel() for parameter in model.parameters())
        free, _ = torch.cuda.mem_get_info()
        return torch.float32 if weights < _WEIGHTS_SHARE * free else choose_dtype(device)

    def open(self, checkpoint: str) -> Policy:
        """Load a checkpoint of the policy, to score under it; see `open_checkpoint`."""
        return open_checkpoint(
            checkpoint,
            self.files,
            dtype=self._dtype,
            trust_remote_code=self.trust_remote_code,
        )

    @cached_property
    def row_of(self) -> dict[str, int]:
        """Position of each item by item_id."""
        return {item_id: row for row, item_id in enumerate(self._items["item_id"].to_pylist())}

    @cached_property
    def pass_rates(self) -> NDArray[np.float64]:
        """(c + 1/2) / (n + 1) of each item, shape (items,)."""
        names = ("total_rollouts", "total_correct_rollouts")
        rates = PASS_RATES.read(self.run, *names)
        n, c = (rates[name].to_numpy().astype(np.float64) for name in names)
        return np.asarray((c + 0.5) / (n + 1))

    @property
    def _initial_file(self) -> Path:
        dtype = str(self._dtype).removeprefix("torch.")
        return self.run / RESCORING / f"initial-{dtype}.parquet"

    def under(
        self,
        policy: Policy,
        folder: Path,
        *,
        leave_out: Mapping[str, Collection[int]] = MappingProxyType({}),
        label: str,
    ) -> pa.Table:
        """Score the rollouts under a policy; see `rescore_run`.

        Args:
            folder: what a killed try scored is found there.
            leave_out: by item_id, the numbers of rollouts that the policy was trained on.
        """
        is_often_solved = self.pass_rates > 0.5
        return rescore_run(
            self.run,
            self._items,
            self.row_of,
            policy,
            most_correct=np.where(is_often_solved, _FEW, _MOST),
            most_wrong=np.where(is_often_solved, _MOST, 0),
            folder=folder,
            leave_out=leave_out,
            label=label,
        )

    def initial(self) -> pa.Table:
        """The scores under the policy that drew the rollouts, which the run folder keeps.

        Raises:
            UsageError: another process scores them, or the model cannot be loaded.
            RunError: a file is damaged, or the disk is full.
        """
        file = self._initial_file
        if not file.exists():
            lock = lock_folder(file.parent, "try again later")
            try:
                policy = load_policy(
                    self.files, dtype=self._dtype, trust_remote_code=self.trust_remote_code
                )
                table = self.under(policy, file.with_suffix(""), label="scoring, initial policy")
                write_parquet(file, table)
                shutil.rmtree(file.with_suffix(""), ignore_errors=True)
            finally:
                os.close(lock)
        return read_parquet(file)

    def lift(self, after: pa.Table) -> CheckpointLift:
        """How far a policy has moved each item.

        Args:
            after: from `under`.

        Raises:
            RunError: the scores under the initial policy are of other rollouts.
        """
        initial = self.initial()
        places = pc.index_in(_keys(after), value_set=_keys(initial))
        if places.null_count:
            raise RunError(f"{self._initial_file} is of other rollouts; remove it")
        before = initial["log_probability"].take(places)
        column = after.column_names.index("log_probability")
        same = after.set_column(column, "log_probability", before)
        return log_ratio_lift(same, after, self.row_of, self.pass_rates)


def _keys(table: pa.Table) -> pa.Array:
    samples = pc.cast(table["sample"], pa.string())
    return pc.binary_join_element_wise(table["item_id"], samples, "/").combine_chunks()
