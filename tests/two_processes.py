"""Train on two processes and write what each of them decided: `accelerate launch` runs this."""

import hashlib
import json
import sys
from pathlib import Path

import torch

from recipes.recipe import read_recipe
from recipes.train import job
from recipes.train.processes import process_state
from recipes.validate.command import Validate
from recipes.validate.validate import validate_run


def main(run: str, recipe: str) -> None:
    original = job.train_grpo

    def noting(training):
        trainer = original(training)
        weights = hashlib.sha256()
        for parameter in trainer.accelerator.unwrap_model(trainer.model).parameters():
            weights.update(parameter.detach().float().numpy().tobytes())
        log = json.dumps(trainer.progress.rows, sort_keys=True)
        said = {
            "weights": weights.hexdigest(),
            "log": hashlib.sha256(log.encode()).hexdigest(),
            "buffer": trainer.buffer.to_rows(),
            **trainer.progress.counts(),
        }
        file = Path(run) / f"said-{process_state().process_index}.json"
        file.write_text(json.dumps(said), encoding="utf-8")
        return trainer

    job.train_grpo = noting
    torch.set_num_threads(1)
    validate_run(Validate(run, seeds=[1]), [read_recipe(recipe)])


if __name__ == "__main__":
    main(*sys.argv[1:])
