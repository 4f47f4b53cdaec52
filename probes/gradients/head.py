"""The output head on some positions at a time: logits of all would not fit into memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class OutputHead:
    """A model whose output head sees some positions at a time; what lies below runs once.

    Args:
        model: a causal language model. What it does to the head's input and to the logits, such as
            a cap on them, is done for every chunk.

    Attributes:
        hidden: the head's input at all positions, (rows, columns, width).
        is_apart: whether what lies below the head is a module of its own; where it is not, all
            positions must be one chunk.
    """

    def __init__(self, model: Any) -> None:
        self.hidden: torch.Tensor
        self._model = model
        self._below = model.base_model
        self.is_apart = self._below is not model
        self._output: Any = None
        self._positions = self._chosen = torch.empty(0)

    def __enter__(self) -> OutputHead:
        self._own = vars(self._below).get("forward")
        self._run: Callable[..., Any] = self._below.forward
        if self.is_apart:
            vars(self._below)["forward"] = self._once
        self._hook = self._model.get_output_embeddings().register_forward_pre_hook(self._choose)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()
        if self.is_apart:
            vars(self._below).pop("forward")
            if self._own is not None:
                vars(self._below)["forward"] = self._own

    def slopes(
        self, ids: torch.Tensor, positions: torch.Tensor, tokens: torch.Tensor
    ) -> torch.Tensor:
        """Gradient of -log softmax(logits)[token] to the head's input, (positions, width).

        Args:
            ids: (rows, columns) token ids, the same in every call.
            positions: of the head's input, counted through the rows.
            tokens: (positions,) the next token at each.
        """
        self._positions = positions
        logits = self._model(input_ids=ids, use_cache=False).logits[0]
        with torch.no_grad():
            errors = torch.softmax(logits.float(), dim=-1)
            errors[torch.arange(len(errors), device=errors.device), tokens.to(errors.device)] -= 1
        torch.autograd.backward(logits, errors.to(logits.dtype))
        assert self._chosen.grad is not None
        return self._chosen.grad

    def _once(self, *arguments: Any, **named: Any) -> Any:
        if self._output is None:
            self._output = self._run(*arguments, **named)
        return self._output

    def _choose(self, module: torch.nn.Module, inputs: tuple[Any, ...]) -> Any:
        if not hasattr(self, "hidden"):
            self.hidden = inputs[0]
        flat = inputs[0].detach().flatten(0, 1)
        self._chosen = flat.index_select(0, self._positions.to(flat.device)).requires_grad_()
        return self._chosen[None], *inputs[1:]
