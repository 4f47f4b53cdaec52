"""A pilot: a few steps of GRPO by a recipe, and the kept rollouts scored under what it gives.

RUN/pilot/<recipe>/<seed>: train -> policy -> log_probabilities.parquet

The first step trains on rollouts of the probe where they are what it would sample: drawn by the
same policy, at the recipe's temperature, and not cut sooner. Those that reached the loss with a
signal are in `trained.parquet` and are left out of the scoring: their own log-probabilities rise
because they were trained on, and would tell of them and not of the item. (Whether a rollout is left
out depends on the rewards of its group alone, not on what it says, so that means over the correct
and over the wrong ones that are left stay means over draws.)

Each step is skipped where its result is there already, so that a killed pilot goes on: training
from its newest checkpoint, scoring from its last file. Weights are dropped in the end.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from curate.errors import UsageError
from curate.files import write_atomically
from curate.run_folder import find_run, lock_folder, read_parquet, write_parquet
from probes.checkpoints import open_checkpoint
from probes.models import Policy
from probes.rescoring_stage import rescore_run
from recipes.checkpoints import checkpoints
from recipes.job_folder import check_recipe, is_done, machine_facts, note, say
from recipes.kept_rollouts import KeptRollouts
from recipes.outcomes import REWARD_SCHEMA
from recipes.recipe import Recipe
from recipes.selection import select_items
from recipes.tagged_run import TaggedRun
from recipes.trainer_settings import trainer_settings
from recipes.training import Training, export_policy, process_state, train_grpo

PILOTS = "pilot"
"""The folder of a run that holds its pilots."""
SCORED_FILE = "log_probabilities.parquet"
TRAINED_SCHEMA = pa.schema({"item_id": pa.string(), "sample": pa.int32()})
"""Rollouts of the probe that the first step learned from."""
_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
