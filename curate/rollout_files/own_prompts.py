"""The prompts of rollouts as a dataset of their own: `curate import` without `--dataset`.

A row is a distinct prompt with its gold answer: `prompt` (text, or messages), `answer` ("" where
the log has none), `id`, what the log calls it, and `prompt_token_ids` where the log has nothing but
these: the text is then what they decode to. Which rollouts are whose is told by the same
values, so that nothing is guessed. Text that a template of roles was decoded into, as verl logs it
(`user`, the question, `assistant`, a line each), is taken apart into messages again.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from curate.datasets.fields import RowRejected
from curate.datasets.messages import read_messages
from curate.datasets.row import json_text
from curate.datasets.source import Source
from curate.errors import UsageError
from curate.files import atomic_writer
from curate.rollout_files.matching import shown
from curate.rollout_files.read import RolloutFiles
from curate.rollout_files.record import LoggedRollout
from curate.rollout_files.verl import VERL
from curate.run.names import IMPORTED
from curate.run.tables import ITEMS, Folder

Decode = Callable[[list[int]], str]
Key = tuple[str, str]

# Of ChatML, or of Llama's headers, what is left without their special tokens.
_USER = re.compile(r"(?:(?<=\s)|(?<=\.))user\n")
_OTHER_TURN = re.compile(r"(?:user|assistant)\n")


def own_dataset(run_dir: Path, name: str) -> Path:
    """Where the prompts lie that a run was imported with."""
    return run_dir / IMPORTED / f"{name}.jsonl"


def is_own(run_dir: Path, source: Source) -> bool:
    """Whether a dataset is made of the prompts of the rollouts that were imported with it."""
    folder = (run_dir / IMPORTED).resolve()
    return source.path is not None and source.path.resolve().parent == folder


def write_prompts(files: RolloutFiles, path: Path, decode: Decode | None) -> None:
    """Write the distinct prompts of rollouts, in the order of the files.

    Args:
        files: of rollouts.
        path: the dataset to write.
        decode: the text of token ids, where a policy's tokenizer is at hand.

    Raises:
        UsageError: no rollout has a prompt, or only ones of token ids that nothing here decodes.
    """
    seen: set[Key] = set()
    first_without = ""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_writer(path, "w") as out:
        for number, rollout in enumerate(files.rollouts(), 1):
            try:
                row = _row(rollout, files.format, decode)
            except RowRejected as error:
                where = f"{files.where} ({files.format}): rollout {number}"
                first_without = first_without or f"{where} {error}"
                continue
            if _key(row) not in seen:
                seen.add(_key(row))
                out.write(json_text(row) + "\n")
    if not seen and first_without:
        raise UsageError(first_without)
    if not seen:
        problem = f"; the first row: {files.unreadable[0]}" if files.unreadable else ""
        raise UsageError(f"{files.where} has no rollouts{problem}")


def _row(rollout: LoggedRollout, form: str, decode: Decode | None) -> dict[str, Any]:
    """The row of a rollout's prompt; RowRejected says what it lacks."""
    prompt: Any = rollout.prompt
    tokens: list[int] | None = None
    if not prompt and rollout.prompt_token_ids:
        if decode is None:
            raise RowRejected(
                "has a prompt of token ids only: --model names the policy whose tokenizer reads "
                "them"
            )
        prompt = decode(rollout.prompt_token_ids)
        tokens = rollout.prompt_token_ids
    if not prompt:
        raise RowRejected(
            "has no prompt: name its column with --column prompt=NAME, or the dataset with "
            "--dataset"
        )
    if isinstance(prompt, str) and form == VERL.name:
        prompt = _as_messages(prompt)
    if isinstance(prompt, list):
        prompt = _bare(prompt)
    row = {"prompt": prompt, "answer": rollout.answer or ""}
    row |= {"id": rollout.item_id} if rollout.item_id is not None else {}
    return row | ({"prompt_token_ids": tokens} if tokens else {})


def _bare(messages: list[Any]) -> list[Any]:
    """Messages without what logs add to them; as they are where they are not of text alone."""
    try:
        read, _ = read_messages(messages)
    except RowRejected:
        # The run says why it cannot use them. Dates and bytes of Parquet are as the file has them.
        return list(json.loads(json_text(messages)))
    return [{"role": role, "content": content} for role, content in read]


def _as_messages(prompt: str) -> str | list[dict[str, str]]:
    """The messages of a prompt of one question that was rendered; any other as it is."""
    body = prompt.strip().removesuffix("<think>").rstrip()
    if not body.endswith("assistant"):
        return prompt
    body, messages = body.removesuffix("assistant"), []
    if body.startswith("system\n"):
        found = _USER.search(body)
        if found is None:
            return prompt
        system = body[len("system\n") : found.start()].strip()
        messages = [{"role": "system", "content": system}] if system else []
        question = body[found.end() :]
    elif body.startswith("user\n"):
        question = body.removeprefix("user\n")
    else:
        return prompt
    if not question.strip() or _OTHER_TURN.search(question):
        return prompt
    return [*messages, {"role": "user", "content": question.strip("\n")}]


def _key(row: Mapping[str, Any]) -> Key:
    prompt = row["prompt"]
    text = prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True)
    return text, row["answer"]


@dataclass
class OwnPrompts:
    """Finds the item of a rollout by its prompt, which is that of a row; see `ItemMatcher`.

    Attributes:
        ids: of the items.
        places: of each row's prompt, the position of its item; None where the row was rejected.
    """

    ids: Sequence[str]
    files: RolloutFiles
    decode: Decode | None
    places: Mapping[Key, int | None]
    ways: Counter[str] = field(default_factory=Counter)
    unmatched: int = 0
    example: str = ""

    def find(self, rollout: LoggedRollout, number: int = 1) -> int | None:
        """The position of the item that a rollout, or so many, are of; None for a reject's."""
        try:
            place = self.places.get(_key(_row(rollout, self.files.format, self.decode)))
        except RowRejected:
            place = None
        if place is None:
            self.unmatched += number
            self.example = self.example or shown(rollout)
            return None
        self.ways["own prompt"] += number
        return place


def keep_token_ids(run: Folder, source: Source, vocabulary: int) -> None:
    """Give the items whose prompts are known by token ids these, in the place of rendered ones.

    Args:
        run: its `items.parquet` is written.
        source: the dataset of its prompts.
        vocabulary: how many tokens the policy's tokenizer has.

    Raises:
        UsageError: they are of another tokenizer.
        RunError: the file is damaged, or the disk is full.
    """
    known = {
        row.row: row.value for row in source.rows() if row.value and "prompt_token_ids" in row.value
    }
    if not known:
        return
    items = ITEMS.read(run).to_pylist()
    for item in items:
        if row := known.get(item["row"]):
            item |= {"prompt": row["prompt"], "prompt_token_ids": row["prompt_token_ids"]}
            if max(item["prompt_token_ids"]) >= vocabulary:
                raise UsageError(
                    f"the prompt of row {item['row']} of {source.path} has the token id "
                    f"{max(item['prompt_token_ids']):,}, and the model's tokenizer has "
                    f"{vocabulary:,} tokens: another model drew them"
                )
    ITEMS.write(run, pa.Table.from_pylist(items, ITEMS.schema))


def own_places(
    source: Source, item_of_row: Mapping[int, str | None], row_of: Mapping[str, int]
) -> Iterator[tuple[Key, int | None]]:
    """The prompt of every row of the dataset, and the position of its item.

    Args:
        source: the dataset.
        item_of_row: item_id by the number of the row, None for a reject.
        row_of: position of each item by item_id.
    """
    for row in source.rows():
        item_id = item_of_row.get(row.row)
        if row.value is not None:
            yield _key(row.value), None if item_id is None else row_of.get(item_id)
