"""The columns that trainers read, made from a tagged row; the curate columns travel along.

| format | columns | read from |
|---|---|---|
| trl | prompt (messages), answer | TRL 1.16: GRPOTrainer; reward functions get every column |
| verl | prompt, data_source, ability, reward_model, extra_info | verl 0.9.1: RLHFDataset |
| open-instruct | messages, ground_truth, dataset | open_instruct/dataset_transformation.py |
| prime-rl | prompt, answer, info | verifiers 0.4: TaskData; its v0 environments' datasets |

A column that is set anew but held something else is kept as `original_NAME`, and so is one that
TRL's trainer has a value of its own for (TRL 1.16: GRPOTrainer._calculate_rewards, which hands
reward functions every column as a keyword beside its own). Columns that only
describe a row (data_source, ability, extra_info, dataset, info) stay where the dataset has them.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.datasets.fields import RowRejected
from curate.datasets.layouts import (
    Layout,
    Message,
    choose_layout,
    instruct,
    read_question,
)
from curate.datasets.rendered import rendered_opening
from curate.datasets.row import json_text
from curate.datasets.source import Source
from curate.errors import UsageError
from curate.settings import did_you_mean
from curate.tagged.joined import column_of
from curate.tagged.rows import TaggedDataset, tag_columns
from curate.tagged.training_file import TrainingFile
from curate.tagged.write import SUFFIXES, columns_of
from curate.tags import Trainability

_MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
_STYLED = pa.struct([("style", pa.string()), ("ground_truth", pa.string())])
_PLACED = pa.struct([("index", pa.int64()), ("split", pa.string())])
_TEXT = pa.string()
_SCHEMAS = {
    "trl": {"prompt": _MESSAGES, "answer": _TEXT},
    "verl": {
        "data_source": _TEXT,
        "prompt": _MESSAGES,
        "ability": _TEXT,
        "reward_model": _STYLED,
        "extra_info": _PLACED,
    },
    "open-instruct": {"messages": _MESSAGES, "ground_truth": _TEXT, "dataset": _TEXT},
    "prime-rl": {"prompt": _MESSAGES, "answer": _TEXT, "info": _TEXT},
}
_SUFFIXES = dict.fromkeys(_SCHEMAS, (".jsonl", ".parquet")) | {
    "verl": (".parquet",),  # All of its versions read that.
    "jsonl": (".jsonl",),
    "parquet": (".parquet",),
}
FORMATS = tuple(_SUFFIXES)
"""What `--format` takes: the trainers, then plain files."""
_DESCRIPTIVE = ("data_source", "ability", "extra_info", "dataset", "info")
_ORIGINAL = "original_"
# What the trainer itself hands to reward functions under that name.
_TAKEN = {
    "trl": ("prompts", "completions", "trainer_state", "log_extra", "log_metric", "environments"),
}
_NAME_THEM = "name the columns that were, with --prompt-field and --answer-field"
# The run's verifiers that judge mathematics.
_MATHEMATICAL = ("math", "numeric")


@dataclass(frozen=True)
class Formatter:
    """Writes rows for one trainer.

    Attributes:
        schema: the columns that it sets.
        notes: what the user should know about the file.
        drop: what errors say to do about rows that no item is in.
        reason: the column that says why a row has none.
        set_aside: columns that get another name, because the trainer has its own under theirs.
    """

    trainer: str
    layout: Layout
    instruction: str
    system: str
    data_source: str
    ability: str
    schema: pa.Schema
    notes: tuple[str, ...] = ()
    set_aside: Mapping[str, str] = dataclasses.field(default_factory=dict)
    drop: str = "drop such rows with `curate filter` first"
    reason: str = "tag_reason"

    def annotations(self, source: Source) -> Iterator[dict[str, Any]]:
        """The columns of every row of a source, in order.

        Raises:
            UsageError: a row has no prompt and answer that were tagged; names it.
        """
        for index, row in enumerate(source.rows()):
            yield self._columns(row.row, row.value or {}, index)

    def _columns(self, number: int, value: Mapping[str, Any], index: int) -> dict[str, Any]:
        if not value.get("item_id"):
            raise UsageError(
                f"row {number} has no item to train on: {value.get(self.reason) or 'not tagged'}; "
                f"{self.drop}"
            )
        try:
            question = read_question(value, self.layout)
        except RowRejected as error:
            raise UsageError(f"row {number}: {error}; {_NAME_THEM}") from error
        if question.item_id != value["item_id"]:
            raise UsageError(
                f"row {number}: what {self.layout.prompt_field!r} and "
                f"{self.layout.answer_field or 'the last message'!r} hold is not what was tagged; "
                f"{_NAME_THEM}. A file can be written for a trainer once, by the last command"
            )
        if question.calls:
            raise UsageError(
                f"row {number}: its prompt has tools or calls of tools, which files for trainers "
                "cannot hold yet; drop such rows with `curate filter` first"
            )
        opening = rendered_opening(question.messages[-1][1])
        if opening:
            raise UsageError(
                f"row {number}: its prompt is rendered already (it begins with {opening!r}), and a "
                "trainer would render it again; drop such rows with `curate filter` first, or tag "
                "the dataset with prompts that are not rendered"
            )
        messages: list[Message] = instruct(question, self.instruction)
        if self.system and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system}, *messages]
        made: dict[str, Any] = {
            "prompt": messages,
            "messages": messages,
            "answer": question.answer,
            "ground_truth": question.answer,
            "reward_model": {"style": "rule", "ground_truth": question.answer},
            "data_source": self.data_source,
            "dataset": self.data_source,
            "ability": self.ability,
            "extra_info": {"index": index, "split": "train"},
            "info": json_text({name: value[name] for name in tag_columns(list(value))}),
        }
        originals = (name for name in self.schema.names if name.startswith(_ORIGINAL))
        for name in originals:
            made[name] = value.get(name.removeprefix(_ORIGINAL))
            if made[name] is not None and self.schema.field(name).type == _TEXT:
                made[name] = _text(made[name])
        return made


def check_format(name: str, out: Path) -> str:
    """The suffix whose kind of file is written to `out`.

    Raises:
        UsageError: no such format, or a file of that name would be another kind.
    """
    given = out.suffix.lower()
    if not name:
        if given not in SUFFIXES:
            raise UsageError(f"{out}: the suffix must be one of {', '.join(SUFFIXES)}")
        return given
    if name not in _SUFFIXES:
        hint = did_you_mean(name, FORMATS, quote=False) or f"; known: {', '.join(FORMATS)}"
        raise UsageError(f"no format is named {name!r}{hint}")
    if given in SUFFIXES and given not in _SUFFIXES[name]:
        raise UsageError(
            f"{out}: {name} files end in {' or '.join(_SUFFIXES[name])}, not in {given}"
        )
    return given if given in SUFFIXES else _SUFFIXES[name][0]


def make_formatter(
    trainer: str, tagged: TaggedDataset, chosen: Source, options: TrainingFile
) -> Formatter | None:
    """Prepare writing rows for a trainer; None for a format that is no trainer's.

    Args:
        tagged: where the rows come from.
        chosen: the rows that are written.

    Raises:
        UsageError: a row that is to be written has no prompt and answer that were tagged.
    """
    if trainer not in _SCHEMAS:
        return None
    config = tagged.config
    prompt_field = options.prompt_field or (config.prompt_field if config else "")
    answer_field = options.answer_field or (config.answer_field if config else "")
    layout = choose_layout(tagged.source, prompt_field, answer_field)
    columns = columns_of(tagged.source)
    wanted = {
        name: kind for name, kind in _SCHEMAS[trainer].items() if not _stays(name, columns, layout)
    }
    instruction = options.instruction
    notes: tuple[str, ...] = ()
    if instruction is None:
        instruction = config.instruction if config else ""
        if config is None:
            notes = (
                "no run in ./runs wrote this file or tagged its rows, so prompts are as in the "
                "dataset; if the run added an instruction, give --instruction auto or its text",
            )
        elif tagged.run is not None:
            notes = (
                f"{tagged.run} tagged these rows, so prompts end with its instruction "
                f"{instruction!r:.60}: nothing to do"
                if instruction
                else f"{tagged.run} tagged these rows and added no instruction, so prompts are as "
                "in the dataset: nothing to do",
            )
    if config and (config.chat_template or config.chat_template_kwargs):
        notes = (
            *notes,
            "the run rendered prompts with a chat template or variables of its own "
            "(--chat-template, --chat-template-kwargs): give them to the trainer too",
        )
    formatter = Formatter(
        trainer,
        layout,
        instruction,
        config.system if config else "",
        options.data_source or _data_source(trainer, tagged),
        "math" if config is None or config.verifier in _MATHEMATICAL else "other",
        pa.schema(list(wanted.items())),
        notes,
        drop=_drop(tagged, options),
        reason=column_of(tagged.model, "tag_reason") if tagged.model else "tag_reason",
    )
    schema = list(formatter.schema)
    for name in _changed(formatter, chosen, [name for name in wanted if name in columns]):
        kind = tagged.source.schema.field(name).type if tagged.source.schema else _TEXT
        schema.append(pa.field(f"{_ORIGINAL}{name}", kind))
    set_aside = _set_aside(trainer, columns)
    notes += tuple(
        f"column {name!r} is written as {other!r}: {trainer} has a value of its own of that name"
        for name, other in set_aside.items()
    )
    return dataclasses.replace(
        formatter, schema=pa.schema(schema), notes=notes, set_aside=set_aside
    )


def _drop(tagged: TaggedDataset, options: TrainingFile) -> str:
    """The command that leaves out rows without an item; `filter` drops them whatever it keeps."""
    given, out = Path(options.tagged), Path(options.out)
    suffix = Path(tagged.source.path or out).suffix or ".jsonl"
    keep = " ".join(f"--keep {tag}" for tag in Trainability)
    chosen = out.with_name(f"{out.stem}.chosen{suffix}")
    whose = ["--model", tagged.model] if tagged.model else []
    command = shlex.join(["curate", "filter", str(given), *whose, *keep.split(), "-o", str(chosen)])
    return f"drop such rows first, and go on from the rows that are left: {command}"


def _set_aside(trainer: str, columns: Collection[str]) -> dict[str, str]:
    """Names that a trainer takes, and what those columns are called instead."""
    found: dict[str, str] = {}
    for name in _TAKEN.get(trainer, ()):
        if name in columns:
            other = f"{_ORIGINAL}{name}"
            while other in columns:
                other = _ORIGINAL + other
            found[name] = other
    return found


def _stays(name: str, columns: Collection[str], layout: Layout) -> bool:
    """Whether a column that the dataset has is what the trainer wants."""
    if name == "reward_model":
        return layout.answer_field == "reward_model.ground_truth"
    return name in columns and name in _DESCRIPTIVE


def _changed(formatter: Formatter, chosen: Source, names: list[str]) -> list[str]:
    """Those of the columns whose value is another in some row; this also checks every row."""
    changed: dict[str, None] = {}
    for row, made in zip(chosen.rows(), formatter.annotations(chosen), strict=True):
        for name in names:
            before = (row.value or {}).get(name)
            if before is not None and before != made[name]:
                changed[name] = None
    return [name for name in names if name in changed]


def _data_source(trainer: str, tagged: TaggedDataset) -> str:
    """The name by which verl and open-instruct choose what judges an answer."""
    if trainer == "open-instruct":
        return "math"
    if tagged.config is None:
        return tagged.source.name.removesuffix(".tagged")
    dataset = tagged.config.dataset
    path = Path(dataset)
    is_file = path.suffix.lower() in (*SUFFIXES, ".ndjson", ".gz")
    return path.name.partition(".")[0] if is_file or path.is_absolute() else dataset


def _text(value: object) -> str:
    return value if isinstance(value, str) else json_text(value)
