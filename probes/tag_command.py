"""`curate tag`: its command line, and the function of its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from curate.command import Command
from curate.config import TagConfig, config_from_mapping
from curate.errors import UsageError
from curate.settings import declared_in, option, settings

if TYPE_CHECKING:
    from curate.tagged.table import TaggedTable


@settings
class Tag(Command, TagConfig):
    """Sample rollouts of every item, verify them, measure from their gradients how training moves
    each item, forecast its pass rate, and write the dataset with a tag and its evidence in every
    row. Everything measured is kept in the run folder: after Ctrl-C or a kill the same command
    continues where it stopped.

    example: curate tag gsm8k.jsonl --model Qwen/Qwen2.5-0.5B-Instruct --limit 50. Exit status: 0
    done, 1 failed while running, 2 bad usage or input, 130 interrupted.
    """

    config_help: ClassVar[str] = "settings from a file; options override it"

    dry_run: bool = option(
        "read and check everything, draw a few rollouts, and tell what the run would cost in time, "
        "disk and memory; nothing is written or kept",
        default=False, group="where results go",
    )  # fmt: skip

    @property
    def run_config(self) -> TagConfig:
        """The settings of the run, without those that only the command has."""
        return TagConfig(**{name: getattr(self, name) for name in declared_in(TagConfig)})

    def since(self, started: float) -> dict[str, Any]:
        """Probe all items, or with --shard a part of them; the summary, or the part's facts.

        With --dry-run, what they would cost.
        """
        self._check_names()
        # What these import takes seconds, or ten on a busy machine.
        from probes.dry_run import dry_run
        from probes.summary import summarize
        from probes.tag import probe_part, tag_dataset

        if self.dry_run:
            if self.rollouts:
                raise UsageError("--dry-run tells what sampling costs, and --rollouts samples none")
            return dry_run(self.run_config, started)
        if self.shard:
            return probe_part(self.run_config)
        config, _ = tag_dataset(self.run_config, started)
        return summarize(Path(config.run_dir))

    def _check_names(self) -> None:
        """Refuse a dataset or a model that is not there."""
        from curate.datasets.source import check_dataset_name
        from probes.models.files import check_model_name

        for name in ("dataset", "model"):
            if not getattr(self, name):
                hint = "; pass rates alone need no model: curate import" if self.rollouts else ""
                raise UsageError(
                    f"no {name} given: curate tag DATASET --model MODEL needs both{hint}"
                )
        check_dataset_name(self.dataset)
        check_model_name(self.model)

    def text(self, found: dict[str, Any]) -> str:
        """The summary as a table, or what to do after a part, or what a dry run found."""
        if self.dry_run:
            from probes.dry_run import dry_run_text

            return dry_run_text(found)
        if self.shard:
            is_done = f"round {found['round']} is done"
            state = "this run is finished" if found["finished"] else is_done
            return (
                f"shard {found['shard']}: {state}, {found['rollouts']:,} rollouts; next: all "
                f"others,\nthen curate merge {found['run_dir']}"
            )
        from probes.summary import summary_text

        return summary_text(found)


def tag(dataset: str | Path, model: str | Path, **settings: Any) -> TaggedTable:
    """Probe every item of a dataset and write the tagged dataset, as `curate tag` does.

    Args:
        dataset: a file, folder or Hub id.
        model: a model folder, a Hub id (`org/name@revision`) or a .gguf file.
        settings: the options of `curate tag`, with underscores: `min_rollouts=64`. Not `dry_run`:
            what a run would cost tells `probes.dry_run.dry_run`.

    Returns:
        the tagged dataset, a row for every row of the input, as it stands in the tagged file: an
        Arrow table that a notebook shows (`.arrow` is the `pyarrow.Table`).

    Raises:
        UsageError: bad input or settings.
        RunError: a stage failed; the same call continues.
    """
    from curate.datasets.layouts import run_layout
    from curate.datasets.source import open_source
    from curate.run.quality import run_schema
    from curate.tagged.table import TaggedTable
    from curate.tagged.write import read_table, with_types
    from probes.tag import tag_dataset

    if settings.pop("dry_run", False):
        raise UsageError(
            "tag() returns what was tagged; what it would cost tells another function: "
            "probes.dry_run.dry_run(curate.config.TagConfig(dataset=..., model=...))"
        )
    values = {"dataset": dataset, "model": model, **settings}
    config, out = tag_dataset(config_from_mapping(values, "tag()"))
    source, run_dir = open_source(out), Path(config.run_dir)
    return TaggedTable(
        with_types(read_table(source), run_schema(run_dir, config)),
        run_dir,
        run_layout(source, config),
    )
