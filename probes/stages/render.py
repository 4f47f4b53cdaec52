"""Render every prompt once: text, then token ids, which everything after uses unchanged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.config import TagConfig
from curate.datasets.layouts import Message, Question, instruct
from curate.errors import UsageError
from curate.files import atomic_writer
from curate.progress import Progress, say
from curate.run.tables import ITEMS, Folder
from probes.models.chat import (
    RenderedPrompts,
    check_variables,
    on_day,
    plain_ids,
    template_of,
)
from probes.stages.items import Item

_ROWS_AT_ONCE = 4096


def render(
    conversation: list[Message],
    tokenizer: Any,
    *,
    prompt_end: str,
    tools: list[dict[str, Any]] | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[str, list[int]]:
    """Render a conversation for a policy.

    With a chat template the text ends where the policy's turn begins, and the template brings its
    own special tokens. Without one it is the turns' plain text, an empty line between two, then
    `prompt_end`, and whatever special tokens the tokenizer puts before a text.

    Args:
        conversation: the turns.
        tokenizer: of the policy.
        prompt_end: where there is no chat template.
        tools: descriptions of the tools that the prompt offers.
        variables: of the chat template.

    Returns:
        the text, and its token ids.

    Raises:
        UsageError: the template refuses the conversation (a system turn that it does not know), or
            does not show its tools or the calls of them.
    """
    template = template_of(tokenizer)
    variables = variables or {}
    bare = [{"role": turn["role"], "content": turn["content"]} for turn in conversation]
    if not template and (tools or bare != conversation):
        raise UsageError("it has tools or calls of tools, and there is no chat template for them")
    if template:
        text = _by_template(conversation, tokenizer, tools, variables)
        # A template says nothing of what it leaves out.
        if tools and text == _by_template(conversation, tokenizer, None, variables):
            raise UsageError("the chat template does not show its tools")
        if bare != conversation and text == _by_template(bare, tokenizer, tools, variables):
            raise UsageError("the chat template does not show its calls of tools")
        return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])
    text = "\n\n".join(turn["content"] for turn in conversation) + prompt_end
    return text, plain_ids(tokenizer, text)


def _by_template(
    conversation: list[Message],
    tokenizer: Any,
    tools: list[dict[str, Any]] | None,
    variables: Mapping[str, Any],
) -> str:
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            conversation, tools=tools, add_generation_prompt=True, tokenize=False, **variables
        )
    except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the chat template refuses it: {error}") from error
    return str(text)


@dataclass(frozen=True)
class PromptForm:
    """What prompts are made of beside the dataset's own text.

    Attributes:
        instruction: `curate.datasets.layouts.instruct`.
        prompt_end: what ends a prompt where there is no chat template.
        system: a system message for prompts that have none; "" for none.
        variables: of the chat template.
        day: that it is for a chat template, as 2026-01-31; "" for that on which it is rendered.
    """

    instruction: str
    prompt_end: str
    system: str = ""
    variables: Mapping[str, Any] = field(default_factory=dict)
    day: str = ""

    @classmethod
    def from_config(cls, config: TagConfig, day: str = "") -> PromptForm:
        """That of a run, whose prompts were first rendered on a day."""
        return cls(
            *(config.instruction, config.prompt_end, config.system, config.chat_variables),
            day=config.date or day,
        )

    @property
    def all_variables(self) -> Mapping[str, Any]:
        """The variables, and what tells a chat template the day."""
        return on_day(self.variables, self.day) if self.day else self.variables


class _Renderer:
    """Renders questions for a policy, and counts what is to be said of them."""

    def __init__(self, tokenizer: Any, form: PromptForm) -> None:
        check_variables(tokenizer, form.variables)
        self._tokenizer = tokenizer
        self._form = form
        self._rendered = RenderedPrompts(tokenizer, form.all_variables)
        self.openings: Counter[str] = Counter()
        self.own_system = 0

    def render(self, question: Question) -> tuple[str, list[int]]:
        """The prompt's text, and its token ids.

        Raises:
            UsageError: it cannot be rendered, with the reason.
        """
        if len(question.messages) == 1 and not question.calls:
            content = question.messages[0][1]
            opening = self._rendered.opening(content)
            if opening:
                found = self._rendered.render(content)
                self.openings[opening] += 1
                return found
        conversation = instruct(question, self._form.instruction)
        system = self._form.system
        if system and conversation[0]["role"] == "system":
            self.own_system += 1
            system = ""
        if not system:
            return self._by_form(question, conversation)
        found = self._by_form(question, [{"role": "system", "content": system}, *conversation])
        if found[0] == self._by_form(question, conversation)[0]:
            raise UsageError("the chat template does not show the system message of --system")
        return found

    def _by_form(self, question: Question, conversation: list[Message]) -> tuple[str, list[int]]:
        return render(
            conversation,
            self._tokenizer,
            prompt_end=self._form.prompt_end,
            tools=question.tools,
            variables=self._form.all_variables,
        )

    def say(self, prompts: int) -> None:
        """Say what was made otherwise than others."""
        if self.openings:
            begins = " or ".join(map(repr, sorted(self.openings)))
            say(
                f"warning: {self.openings.total():,} of {prompts:,} prompts are rendered already "
                f"(they begin with {begins}): taken as they are, with no system message, "
                "instruction or chat template of this run"
            )
        if self.own_system:
            say(
                f"{self.own_system:,} of {prompts:,} prompts have a system message of their own, "
                "which stays in the place of --system"
            )


def plain_items(run: Folder, items: Sequence[Item], *, is_mixed: bool = False) -> None:
    """Write `items.parquet` where no policy is to read the prompts: their text, and no token ids.

    Turns stand one after the other, an empty line between two, as without a chat template.
    """
    rows: list[dict[str, Any]] = [
        {
            "item_id": item.item_id,
            "row": item.row,
            "prompt": "\n\n".join(content for _, content in item.question.messages),
            "prompt_token_ids": [],
            "answer": item.question.answer,
            "verifier": item.verifier if is_mixed else None,
        }
        for item in items
    ]
    ITEMS.write(run, pa.Table.from_pylist(rows, schema=ITEMS.schema))


def render_items(
    run: Folder,
    items: Sequence[Item],
    tokenizer: Any,
    form: PromptForm,
    *,
    is_mixed: bool = False,
    max_tokens: int,
    context_length: int,
    embeddings: int = 2**31,
) -> dict[str, str]:
    """Write `items.parquet`: item_id, row, prompt, prompt_token_ids, answer, verifier.

    Args:
        form: what prompts are made of.
        is_mixed: whether each item has a verifier of its own.
        max_tokens: of a completion.
        context_length: of the model.
        embeddings: token ids below it have an embedding in the model.

    Returns:
        the items that are left out, by id, with the reason: the template refuses them, the model
        has no embedding of one of their tokens, or prompt and completion together do not fit its
        context.

    Raises:
        UsageError: the chat template does not read one of the form's variables.
    """
    refused: dict[str, str] = {}
    renderer = _Renderer(tokenizer, form)
    with (
        atomic_writer(ITEMS.path(run)) as file,
        pq.ParquetWriter(file, ITEMS.schema, compression="zstd") as writer,
        Progress("rendering", len(items), "prompts") as progress,
    ):
        for start in range(0, len(items), _ROWS_AT_ONCE):
            rows = []
            for item in items[start : start + _ROWS_AT_ONCE]:
                progress.advance()
                try:
                    text, token_ids = renderer.render(item.question)
                    _check_tokens(token_ids, tokenizer, max_tokens, context_length, embeddings)
                except UsageError as error:
                    refused[item.item_id] = str(error)
                    continue
                rows.append(
                    {
                        "item_id": item.item_id,
                        "row": item.row,
                        "prompt": text,
                        "prompt_token_ids": token_ids,
                        "answer": item.question.answer,
                        "verifier": item.verifier if is_mixed else None,
                    }
                )
            writer.write_table(pa.Table.from_pylist(rows, schema=ITEMS.schema))
    renderer.say(len(items))
    return refused


def _check_tokens(
    token_ids: list[int], tokenizer: Any, max_tokens: int, context_length: int, embeddings: int
) -> None:
    """Refuse a prompt that the model cannot read.

    Raises:
        UsageError: it cannot, with the reason.
    """
    if not token_ids:
        raise UsageError("its prompt has no tokens")
    largest = max(token_ids)
    if largest >= embeddings:
        raise UsageError(
            f"its prompt has the token {tokenizer.convert_ids_to_tokens(largest)!r} (id "
            f"{largest:,}), and the model has embeddings of {embeddings:,} tokens only: its "
            "tokenizer or chat template is another model's"
        )
    if len(token_ids) + max_tokens > context_length:
        raise UsageError(
            f"its prompt of {len(token_ids):,} tokens and --max-tokens "
            f"{max_tokens:,} exceed the model's context of {context_length:,}"
        )
