"""Prompts that a dataset holds as a chat template rendered them: told by how they begin."""

from __future__ import annotations

# What opens a turn, or a text, in the templates of Qwen and ChatML, Llama, Mistral, Gemma, Phi,
# Zephyr, DeepSeek, GLM, gpt-oss, Granite and Command.
_OPENINGS = (
    *("<|im_start|>", "<|begin_of_text|>", "<|start_header_id|>", "[INST]", "<<SYS>>"),
    *("[SYSTEM_PROMPT]", "<start_of_turn>", "<|user|>", "<|system|>", "<|start|>", "[gMASK]"),
    *("<｜begin▁of▁sentence｜>", "<｜User｜>", "<|START_OF_TURN_TOKEN|>", "<|start_of_role|>"),
)
# What begins a sequence may stand before that.
_BEGINNINGS = ("<s>", "<bos>", "<BOS_TOKEN>", "<|startoftext|>", "<|endoftext|>")


def rendered_opening(text: str) -> str:
    """What a prompt begins with that only rendered ones do, such as `<|im_start|>`; or ""."""
    start = text.lstrip()
    for beginning in _BEGINNINGS:
        start = start.removeprefix(beginning).lstrip()
    return next((opening for opening in _OPENINGS if start.startswith(opening)), "")
