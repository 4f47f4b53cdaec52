"""Blocks that are run again during the backward pass, so that their insides need not be kept.

What transformers has for this belongs to training: it is switched on with the model's training
mode, which brings dropout, and only for models that say they support it. Here the blocks' own
forward is wrapped for the length of one pass, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint


def blocks(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Find the blocks of a transformer: members of lists of modules that lie in no other list."""
    found: list[torch.nn.Module] = []

    def look(module: torch.nn.Module) -> None:
        for child in module.children():
            if isinstance(child, torch.nn.ModuleList):
                found.extend(child)
            else:
                look(child)

    look(model)
    return found


@contextmanager
def recomputed(model: torch.nn.Module) -> Iterator[None]:
    """Have a model's blocks keep their inputs only, and run again in the backward pass.

    Forward and backward pass must both lie inside. Results are bitwise the same where the same
    operation on the same numbers gives the same result.
    """
    wrapped = list(dict.fromkeys(blocks(model)))
    # Another library may have put a forward of its own on a module.
    own = [vars(block).get("forward") for block in wrapped]
    try:
        for block in wrapped:
            vars(block)["forward"] = _checkpointed(block.forward)
        yield
    finally:
        for block, before in zip(wrapped, own, strict=True):
            if before is None:
                vars(block).pop("forward", None)
            else:
                vars(block)["forward"] = before


def _checkpointed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*arguments: Any, **named: Any) -> Any:
        # Nothing is drawn at random in evaluation mode.
        return checkpoint(
            forward, *arguments, use_reentrant=False, preserve_rng_state=False, **named
        )

    return run
