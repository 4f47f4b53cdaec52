"""Render every prompt once: text, then token ids, which everything after uses unchanged."""

from __future__ import annotations

from typing import Any

from curate.config import AUTO
from curate.errors import UsageError
from curate.layouts import Question

# The suffix of the paper's runs (verl's instruction for mathematics).
INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."


def instruct(question: Question, instruction: str) -> list[dict[str, str]]:
    """Return the conversation with the instruction added to its last turn.

    A prompt that is a conversation in the dataset is complete as it stands: with `auto` only plain
    text, which became a single user turn, gets the instruction.
    """
    conversation = question.conversation()
    if instruction == AUTO:
        instruction = INSTRUCTION if question.is_plain_text else ""
    if instruction:
        last = conversation[-1]
        conversation[-1] = {**last, "content": f"{last['content']} {instruction}"}
    return conversation


def render(conversation: list[dict[str, str]], tokenizer: Any) -> tuple[str, list[int]]:
    """Render a conversation for a policy.

    With a chat template the text ends where the policy's turn begins, and the template brings its
    own special tokens. Without one it is the turns' plain text, a line end, and whatever special
    tokens the tokenizer puts before a text.

    Returns:
        the text, and its token ids.

    Raises:
        UsageError: the template refuses the conversation (a system turn that it does not know).
    """
    if getattr(tokenizer, "chat_template", None):
        import jinja2

        try:
            text = tokenizer.apply_chat_template(
                conversation, add_generation_prompt=True, tokenize=False
            )
        except (jinja2.TemplateError, ValueError, KeyError, TypeError) as error:
            raise UsageError(f"the chat template refuses it: {error}") from error
        return text, list(tokenizer(text, add_special_tokens=False)["input_ids"])
    text = "\n\n".join(turn["content"] for turn in conversation) + "\n"
    return text, list(tokenizer(text)["input_ids"])
