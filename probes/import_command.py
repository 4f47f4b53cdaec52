"""`curate import`: its command line, and `import_rollouts`, the function of it."""

from __future__ import annotations

import filecmp
import os
from collections.abc import Sequence
from dataclasses import KW_ONLY
from pathlib import Path
from typing import Any, ClassVar

from curate.command import Command, library_function
from curate.config import AUTO, TagConfig
from curate.errors import UsageError
from curate.settings import argument, option, option_of, settings

_DATASET = "whose rollouts they are (default: the prompts in the files)"
_DRAWN = "how they were drawn, for the card"
_REWARDS = "rewards and pass rates"
_OUTPUT = "where results go"


@settings
class Import(Command):
    """Make a run folder of rollouts that exist, as a trainer or an evaluation wrote them: pass
    rates with intervals, and the tags that these alone can tell. Nothing is sampled, and without
    --model no model is loaded. Files of verl, prime-rl, verifiers, open-instruct, slime, TRL, NeMo
    Gym, open-r1, lm-eval and inspect_ai are recognised, and any table of prompt, completion and
    reward. With --model gradients, lift and forecast follow, as in `curate tag --rollouts`, which
    also takes the run folder of this in the place of files.

    example: curate import eval/rollouts.jsonl --rollouts-by Qwen2.5-7B --temperature 1
    --max-tokens 4096. Then: curate tag train.jsonl --model Qwen/Qwen2.5-7B --rollouts
    runs/rollouts-imported.
    """

    words: ClassVar[str] = "probes.summary:summary_text"

    files: Sequence[str | Path] = argument(
        "files or folders of rollouts, all of one program", metavar="FILE"
    )
    _: KW_ONLY
    model: str = option(
        "the policy that drew them, for gradients, lift and forecast: a model folder, a Hub id or "
        "a .gguf file (default: none, pass rates alone)",
        default="", metavar="MODEL",
    )  # fmt: skip
    out: str = option(
        "the tagged file (default: NAME.tagged.EXT here)",
        default="", group=_OUTPUT, metavar="FILE",
    )  # fmt: skip
    run_dir: str = option(
        "the run folder (default: runs/NAME-imported, or runs/NAME-MODEL)",
        default="", group=_OUTPUT, metavar="FOLDER",
    )  # fmt: skip
    column: Sequence[str] = option(
        "what a column of the files is called, such as reward=accuracy; of item_id, prompt, "
        "completion, reward, step, rollouts, answer, finish_reason; repeatable",
        default=(), metavar="WHAT=NAME",
    )  # fmt: skip

    dataset: str = option(
        "a dataset, in any form that `curate tag` reads; rows without a rollout have no pass rate",
        default="", group=_DATASET, metavar="DATASET",
    )  # fmt: skip
    split: str = option(
        "its split, of a Hub dataset or a datasets folder",
        default="train", group=_DATASET, metavar="NAME", or_number=True,
    )  # fmt: skip
    subset: str = option(
        "its configuration, of a Hub dataset",
        default="", group=_DATASET, metavar="NAME", or_number=True,
    )  # fmt: skip
    prompt_field: str = option(
        "its column of the prompt, when it is not recognised",
        default="", group=_DATASET, metavar="COLUMN", or_number=True,
    )  # fmt: skip
    answer_field: str = option(
        "its column of the gold answer",
        default="", group=_DATASET, metavar="COLUMN", or_number=True,
    )  # fmt: skip

    rollouts_by: str = option(
        "the policy that drew them, in words (default: what the files tell; else the card says "
        "that it is not known)",
        default="", group=_DRAWN, metavar="TEXT",
    )  # fmt: skip
    temperature: float | None = option(
        "at which temperature (default: what the files tell, or unknown)",
        default=None, group=_DRAWN, metavar="T", least=0,
    )  # fmt: skip
    max_tokens: int | None = option(
        "where completions were cut (default: what the files tell, or unknown)",
        default=None, group=_DRAWN, metavar="N", least=1,
    )  # fmt: skip

    verifier: str = option(
        "judge the completions anew: math, exact, numeric, choice, code, or your own "
        "MODULE:FUNCTION (default: rewards as the files have them)",
        default="", group=_REWARDS, metavar="NAME",
    )  # fmt: skip
    correct_from: float = option(
        "the reward of the files from which a rollout is correct",
        default=1.0, group=_REWARDS, metavar="R",
    )  # fmt: skip
    tau: float = option_of(TagConfig, "tau", default=..., group=_REWARDS)
    k: Sequence[int] = option_of(TagConfig, "k", default=..., group=_REWARDS)

    def work(self) -> dict[str, Any]:
        """Make the run, or continue it.

        Returns:
            the summary, as `curate tag --json` prints it: `tags`, `items`, `rollouts`, `taken`
            (what was taken of the files), `tagged_file`, `run_dir` and more.
        """
        self._check()
        from probes.summary import summarize
        from probes.tag import tag_dataset

        config, _ = tag_dataset(self._with_own_dataset(self._config()), without_policy=True)
        return summarize(Path(config.run_dir))

    def _check(self) -> None:
        if not self.files:
            raise UsageError("no files of rollouts: curate import FILE...")
        if not self.dataset:
            fields = ("prompt_field", "answer_field", "split", "subset")
            for name, usual in zip(fields, ("", "", "train", ""), strict=True):
                if getattr(self, name) != usual:
                    raise UsageError(
                        f"--{name.replace('_', '-')} is about --dataset, and there is none; "
                        "columns of the files are named by --column"
                    )
        if self.verifier and self.correct_from != 1:
            raise UsageError(
                "--correct-from is for the rewards of the files, and --verifier judges anew: leave "
                "one of them out"
            )
        from curate.datasets.source import check_dataset_name
        from probes.models.files import check_model_name

        if self.dataset:
            check_dataset_name(self.dataset)
        if self.model:
            check_model_name(self.model)

    def _config(self) -> TagConfig:
        """The settings of `curate tag` that do the same."""
        return TagConfig(
            dataset=self.dataset,
            model=self.model,
            out=self.out,
            run_dir=self.run_dir,
            split=self.split,
            subset=self.subset,
            prompt_field=self.prompt_field,
            answer_field=self.answer_field,
            # A prompt that was logged is complete.
            instruction=AUTO if self.dataset else "",
            rollouts=tuple(map(str, self.files)),
            rollouts_by=self.rollouts_by,
            rollouts_temperature=self.temperature,
            rollouts_max_tokens=self.max_tokens,
            rollout_rewards="judged" if self.verifier else "logged",
            correct_from=self.correct_from,
            column=tuple(self.column),
            golds="needed" if self.verifier else "optional",
            verifier=self.verifier or "math",
            tau=self.tau,
            k=tuple(self.k),
        )

    def _with_own_dataset(self, config: TagConfig) -> TagConfig:
        """The same, where no dataset is named with one of the prompts in the files."""
        if self.dataset:
            return config
        from curate.rollout_files.own_prompts import own_dataset, write_prompts
        from curate.rollout_files.read import open_rollouts, read_columns
        from curate.run.folder import has_rollouts, lock_folder, refuse_foreign_files
        from curate.run.names import MANIFEST

        files = open_rollouts(config.rollouts, read_columns(config.column))
        first = Path(self.files[0]).resolve()
        name = first.name if first.is_dir() else first.name.partition(".")[0] or first.name
        decode, policy = None, "imported"
        if self.model:
            from probes.models.chat import run_tokenizer
            from probes.models.files import resolve_model

            model = resolve_model(self.model)
            decode, policy = run_tokenizer(model, config).decode, model.name
        run_dir = Path(config.run_dir or f"runs/{name}-{policy}")
        if run_dir.is_dir() and not (run_dir / MANIFEST).exists():
            refuse_foreign_files(run_dir)
        dataset = own_dataset(run_dir, name)
        aside = dataset.with_name(f".{dataset.name}.tmp")
        lock = lock_folder(run_dir, "give this run its own --run-dir")
        try:
            write_prompts(files, aside, decode)
            is_same = dataset.exists() and filecmp.cmp(aside, dataset, shallow=False)
            if has_rollouts(run_dir) and not is_same:
                raise UsageError(
                    f"run folder {run_dir} holds other rollouts: give these their own --run-dir, "
                    "or remove the folder"
                )
            aside.replace(dataset)
        finally:
            aside.unlink(missing_ok=True)
            os.close(lock)
        return config.replace(dataset=str(dataset), run_dir=str(run_dir))


import_rollouts = library_function(Import, "import_rollouts")
