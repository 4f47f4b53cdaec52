"""One step of GRPO on a LoRA adapter, by autograd alone, and what it does to log-probabilities.

It shares no code with `probes.gradients.lora`, whose gradients it is compared with: the adapter is
added to what the model's modules give, or to the tensors of experts and routers before they are
used; rollouts go one by one, and nothing is shared between them.
With f_r the gradient of the mean token loss of rollout r, a move of the adapter's B by d changes
the log-probability of its completion, to first order, by −|y_r| ⟨f_r, d⟩. That is what lift and
forecast are made of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.pytorch_utils import Conv1D

from probes.gradients.batch import TokenizedRollout
from probes.gradients.tap import Adapter, lora_a
from probes.gradients.targets import Target, find_targets
from probes.models.load import Policy


class TrainedAdapter:
    """A LoRA adapter whose B can move, zero at first; A as the gradients have it.

    Args:
        policy: that it adapts, while `installed`.
        adapter: its rank, scale, modules and seed.

    Attributes:
        b: B of every matrix in the model's order, (fan_out, rank) float32, or of experts (experts,
            fan_out, rank).
    """

    def __init__(self, policy: Policy, adapter: Adapter) -> None:
        self.policy, self.adapter = policy, adapter
        self._targets = find_targets(policy.model, adapter.targets)
        self._a: list[torch.Tensor] = []
        self.b: list[torch.Tensor] = []
        for name, target in self._targets.items():
            *experts, fan_out, fan_in = target.matrix.shape
            # A model may lie on several devices.
            device = target.matrix.device
            self._a.append(lora_a(adapter, name, fan_in, *experts).to(device))
            zero = torch.zeros(*experts, fan_out, adapter.rank, device=device)
            self.b.append(zero.requires_grad_())

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Have the policy's model compute with the adapter."""
        handles, others = [], dict[torch.nn.Module, dict[str, Callable[[], torch.Tensor]]]()
        for target, a, b in zip(self._targets.values(), self._a, self.b, strict=True):
            if target.is_product:
                handles.append(target.module.register_forward_hook(self._added(a, b)))
            else:
                moved = self._moved(target, a, b)
                others.setdefault(target.module, {})[target.parameter] = moved
        for module, tensors in others.items():
            before, after = _with_tensors(tensors)
            handles += [
                module.register_forward_pre_hook(before),
                module.register_forward_hook(after, always_call=True),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _moved(
        self, target: Target, a: torch.Tensor, b: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        """Give what makes the tensor of a target with the adapter in it, float32."""
        scale = self.adapter.alpha / self.adapter.rank
        own: torch.Tensor = getattr(target.module, target.parameter)
        is_turned = target.experts is not None and target.experts.module.is_transposed

        def moved() -> torch.Tensor:
            step = scale * (b @ a)
            return own.float() + (step.transpose(-1, -2) if is_turned else step)

        return moved

    def _added(self, a: torch.Tensor, b: torch.Tensor) -> Callable[..., torch.Tensor]:
        scale = self.adapter.alpha / self.adapter.rank

        def hook(module: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
            hidden = inputs[0].float()
            down = torch.nn.functional.linear(hidden, a)
            # Added to an output that is rounded already, what is smaller than half a rounding step
            # would be lost; added before, it is kept on average.
            matrix = module.weight.T if isinstance(module, Conv1D) else module.weight
            bias = None if module.bias is None else module.bias.float()
            own = torch.nn.functional.linear(hidden, matrix.float(), bias)
            return (own + scale * torch.nn.functional.linear(down, b)).to(output.dtype)

        return hook

    def mean_log_probability(self, rollout: TokenizedRollout) -> torch.Tensor:
        """(1/|y|) log π(y | x), with a graph to B where the adapter is installed."""
        ids = [*rollout.prompt_token_ids, *rollout.completion_token_ids]
        tokens = torch.tensor([ids], device=self.policy.device)
        first = len(rollout.prompt_token_ids)
        logits = self.policy.model(input_ids=tokens[:, :-1], use_cache=False).logits[0, first - 1 :]
        logs = torch.log_softmax(logits.float(), dim=-1)
        return logs.gather(1, tokens[0, first:, None].to(logs.device)).mean()

    def gradients(self, rollouts: Sequence[TokenizedRollout]) -> NDArray[np.float32]:
        """Gradient of each rollout's mean token loss to B, (rollouts, coordinates)."""
        found = []
        with torch.enable_grad(), self.installed():
            for rollout in rollouts:
                slopes = torch.autograd.grad(-self.mean_log_probability(rollout), self.b)
                found.append(torch.cat([slope.flatten().cpu() for slope in slopes]).numpy())
        return np.stack(found)

    def step(
        self,
        rollouts: Sequence[TokenizedRollout],
        advantages: Sequence[float],
        *,
        learning_rate: float,
    ) -> NDArray[np.float32]:
        """Take one step down GRPO's loss −(1/R) Σ_r A_r (1/|y_r|) Σ_t ratio_t; return B, flat."""
        optimizer = torch.optim.SGD(self.b, lr=learning_rate)
        optimizer.zero_grad()
        with torch.enable_grad(), self.installed():
            for rollout, advantage in zip(rollouts, advantages, strict=True):
                # On the policy that drew them every ratio is 1, with the gradient of its log.
                loss = -advantage * self.mean_log_probability(rollout) / len(rollouts)
                loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return self.position()

    def position(self) -> NDArray[np.float32]:
        """B of all modules in turn, (coordinates,)."""
        return torch.cat([b.detach().flatten().cpu() for b in self.b]).numpy()

    def scale(self, factor: float) -> None:
        """Multiply B."""
        with torch.no_grad():
            for b in self.b:
                b.mul_(factor)


def _with_tensors(
    tensors: Mapping[str, Callable[[], torch.Tensor]],
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Hooks for before and after a module's forward, which runs in float32 and with other tensors.

    They are made anew for each run, since a backward pass ends the life of their graph.
    """
    dtypes: list[torch.dtype] = []

    def before(module: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        dtypes.append(inputs[0].dtype)
        for name, own in module.named_parameters(recurse=False):
            # Found before the module's parameters are.
            vars(module)[name] = tensors[name]() if name in tensors else own.float()
        return inputs[0].float(), *inputs[1:]

    def after(module: torch.nn.Module, inputs: Any, output: Any) -> Any:
        for name, _ in module.named_parameters(recurse=False):
            vars(module).pop(name, None)
        dtype = dtypes.pop()
        if isinstance(output, tuple):
            return tuple(each.to(dtype) if each.is_floating_point() else each for each in output)
        return output.to(dtype)

    return before, after
