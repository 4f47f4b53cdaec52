"""What the adapter sits on: matrices of a model's blocks, and how much of the blocks they are."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

from curate.errors import UsageError
from probes.models.modules import FusedExperts, fused_experts, linear_layers, routers

# Linear layers that are never called: Mamba multiplies by the weight of its time steps itself.
_USED_BY_WEIGHT = ("dt_proj",)


@dataclass(frozen=True)
class Target:
    """A matrix that the adapter sits on, or one of each expert.

    Attributes:
        module: that holds it: a linear layer, a router, or experts that are one tensor a layer.
        parameter: its name there.
        is_product: whether the module gives the product with it, and perhaps a bias, and no more.
        experts: what the module is, where it holds experts.
    """

    module: torch.nn.Module
    parameter: str = "weight"
    is_product: bool = True
    experts: FusedExperts | None = None

    @property
    def matrix(self) -> torch.Tensor:
        """(fan_out, fan_in), or of experts (experts, fan_out, fan_in)."""
        if self.experts:
            return self.experts.matrix(self.parameter)
        weight: torch.Tensor = getattr(self.module, self.parameter)
        return weight.T if isinstance(self.module, Conv1D) else weight


def find_targets(model: Any, names: tuple[str, ...]) -> dict[str, Target]:
    """Find the matrices that the adapter sits on, by full name, in the model's order.

    Args:
        model: a causal language model.
        names: last parts of their names, or `("auto",)` for those of every linear layer, router and
            expert in the transformer's blocks; of a model that sees images too, where it reads
            text.

    Raises:
        UsageError: a name that no module has (lists those that could be meant).
    """
    candidates = _candidates(model)
    if names == ("auto",):
        head = model.get_output_embeddings()
        reading = _reading_text(model)
        # The blocks stand in a list, so a layer inside one has a number in its name.
        inside = {
            name: target
            for name, target in candidates.items()
            if target.module is not head
            and _is_in_block(name)
            and id(target.module) in reading
            and name.rpartition(".")[2] not in _USED_BY_WEIGHT
        }
        if not inside:
            raise UsageError(
                "this architecture has no linear layers in numbered blocks; name the modules to "
                f"differentiate with --gradient-targets, out of: {_listed(candidates)}"
            )
        return inside
    leaves = {name.rpartition(".")[2] for name in candidates}
    missing = [name for name in names if name not in leaves]
    if missing:
        raise UsageError(
            f"--gradient-targets: the model has no module {missing[0]!r}; "
            f"it has: {_listed(candidates)}"
        )
    return {n: t for n, t in candidates.items() if n.rpartition(".")[2] in names}


def _candidates(model: Any) -> dict[str, Target]:
    linear, choosing, fused = linear_layers(model), routers(model), fused_experts(model)
    found = {}
    for name, module in model.named_modules():
        if name in linear or name in choosing:
            found[name] = Target(module, is_product=name in linear)
        elif name in fused:
            for parameter in fused[name].matrices:
                found[f"{name}.{parameter}"] = Target(module, parameter, False, fused[name])
    return found


@dataclass(frozen=True)
class Coverage:
    """How much of a model's blocks its gradients are of.

    Attributes:
        share: of the numbers in all matrices of the blocks, those that are differentiated.
        left_out: the other matrices, without the number of their block, the largest first.
    """

    share: float
    left_out: tuple[str, ...]

    def __str__(self) -> str:
        names = ", ".join(self.left_out[:3]) + (", ..." if len(self.left_out) > 3 else "")
        return (
            f"gradients are of {self.share:.1%} of the weights in the model's blocks: "
            f"{names} have none"
        )


def coverage(model: Any, names: tuple[str, ...]) -> Coverage:
    """Tell how much of a model is differentiated.

    Convolutions are not, nor are experts and routers that `fused_experts` and `routers` do not
    know.

    Raises:
        UsageError: what `find_targets` raises.
    """
    targets = find_targets(model, names).values()
    within = {id(getattr(target.module, target.parameter)) for target in targets}
    read_text = _reading_text(model)
    reading = {
        id(parameter)
        for module in model.modules()
        if id(module) in read_text
        for parameter in module.parameters(recurse=False)
    }
    # Those of linear layers are no matrices either.
    biases = {id(bias) for experts in fused_experts(model).values() for bias in experts.biases()}
    total = covered = 0
    left: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or not _is_in_block(name) or id(parameter) not in reading - biases:
            continue
        total += parameter.numel()
        if id(parameter) in within:
            covered += parameter.numel()
        else:
            kind = re.sub(r"^.*?\.\d+\.", "", name)
            left[kind] = left.get(kind, 0) + parameter.numel()
    return Coverage(covered / max(total, 1), tuple(sorted(left, key=lambda kind: -left[kind])))


def _is_in_block(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


def _reading_text(model: Any) -> set[int]:
    """Ids of the modules that read text: all but what sees or hears, where a model can."""
    config = model.config
    others = any(getattr(config, f"{sense}_config", None) for sense in ("vision", "audio"))
    decoder = model.get_decoder() if others else model
    return {id(module) for module in decoder.modules()}


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names}))
