"""Render every prompt once: text, then token ids, which everything after uses unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from curate.datasets.layouts import Message, instruct
from curate.errors import UsageError
from curate.files import atomic_writer
from curate.progress import Progress
from curate.run.tables import ITEMS, Folder
from probes.stages.items import Item

_ROWS_AT_ONCE = 4096


def render(
    conversation: list[Message],
    tokenizer: Any,
    *,
    prompt_end: str,
    tools: list[dict[str, Any]] | None = None,
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

    Returns:
        the text, and its token ids.

    Raises:
        UsageError: the template refuses the conversation (a system turn that it does not know), or
            does not show its tools or the calls of them.
    """
    template = getattr(tokenizer, "chat_template", None)
    bare = [{"role": turn["role"], "content": turn["content"]} for turn in conversation]
    if not template and (tools or bare != conversation):
        raise UsageError("it has tools or calls of tools, and there is no chat template for them")
    if template:
        text = _by_template(conversation, tokenizer, tools)
        # A template says nothing of what it leaves out.
        if tools and text == _by_template(conversation, tokenizer, None):
            raise UsageError("the chat template does not show its tools")
        if bare != conversation and text == _by_template(bare, tokenizer, tools):
            raise UsageError("the chat template does not show its calls of tools")
        return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])
    text = "\n\n".join(turn["content"] for turn in conversation) + prompt_end
    return text, list(tokenizer(text)["input_ids"])


def _by_template(
    conversation: list[Message], tokenizer: Any, tools: list[dict[str, Any]] | None
) -> str:
    import jinja2

    try:
        text = tokenizer.apply_chat_template(
            conversation, tools=tools, add_generation_prompt=True, tokenize=False
        )
    except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"the chat template refuses it: {error}") from error
    return str(text)


def render_items(
    run: Folder,
    items: Sequence[Item],
    tokenizer: Any,
    *,
    instruction: str,
    prompt_end: str,
    is_mixed: bool = False,
    max_tokens: int,
    context_length: int,
) -> dict[str, str]:
    """Write `items.parquet`: item_id, row, prompt, prompt_token_ids, answer, verifier.

    Args:
        is_mixed: whether each item has a verifier of its own.

    Returns:
        the items that are left out, by id, with the reason: the template refuses them, or prompt
        and completion together do not fit the model's context.
    """
    refused: dict[str, str] = {}
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
                    text, token_ids = render(
                        instruct(item.question, instruction),
                        tokenizer,
                        prompt_end=prompt_end,
                        tools=item.question.tools,
                    )
                except UsageError as error:
                    refused[item.item_id] = str(error)
                    continue
                if not token_ids:
                    refused[item.item_id] = "its prompt has no tokens"
                    continue
                if len(token_ids) + max_tokens > context_length:
                    refused[item.item_id] = (
                        f"its prompt of {len(token_ids):,} tokens and --max-tokens "
                        f"{max_tokens:,} exceed the model's context of {context_length:,}"
                    )
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
    return refused
