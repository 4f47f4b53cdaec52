"""The modules of a model that are linear maps, whatever its architecture calls them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

# Falcon's computes the same by another product. A router that is made a linear layer of its own
# kind (Llama 4) gives other things than the product.
_SAME_PRODUCT = ("FalconLinear",)
_FORWARDS = (torch.nn.Linear.forward, Conv1D.forward)
# What code raises that is run in another way than it was written for.
_FAILURES = (
    *(RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError, LookupError),
    AssertionError,
)
# What gives a matrix in another precision, as some routers want theirs.
_CASTS = ("type", "to", "float")


def linear_layers(model: Any) -> dict[str, torch.nn.Module]:
    """Find the modules whose output is their input times a matrix, and perhaps a bias.

    Returns:
        `torch.nn.Linear` and `Conv1D` modules by full name, in the model's order; their own kinds
        that compute something else are left out.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D)
        and (type(module).forward in _FORWARDS or type(module).__name__ in _SAME_PRODUCT)
    }


@dataclass(frozen=True)
class FusedExperts:
    """Experts that are one tensor a layer, in the form that transformers gives most of them.

    Its interface for experts runs all of these by one function (`grouped_mm`, `batched_mm`), from
    attributes that say how the tensors lie: hidden → `up` → gate → `down`, times the weight of the
    router, summed over a token's experts.

    Attributes:
        module: has the tensors.
        up: the name of the first; of gate and up projection in one, where there is a gate.
        down: the name of the second.
    """

    module: Any
    up: str
    down: str = "down_proj"

    @property
    def matrices(self) -> tuple[str, str]:
        """Names of the tensors."""
        return self.up, self.down

    @property
    def count(self) -> int:
        """How many experts there are."""
        return int(getattr(self.module, self.up).shape[0])

    def matrix(self, name: str) -> torch.Tensor:
        """Give a tensor as (experts, fan_out, fan_in)."""
        own: torch.Tensor = getattr(self.module, name)
        return own.transpose(1, 2) if self.module.is_transposed else own

    def bias(self, name: str) -> torch.Tensor | None:
        """(experts, fan_out) of a tensor, where there is one."""
        found: torch.Tensor | None = getattr(self.module, f"{name}_bias", None)
        return found if self.module.has_bias else None

    def biases(self) -> Iterator[torch.Tensor]:
        """Those that there are."""
        yield from (bias for bias in map(self.bias, self.matrices) if bias is not None)

    def between(self, products: torch.Tensor) -> torch.Tensor:
        """Give the input of `down` from products with `up`, (pairs, fan_out)."""
        act = self.module._apply_gate if self.module.has_gate else self.module.act_fn
        found: torch.Tensor = act(products)
        return found


def fused_experts(model: Any) -> dict[str, FusedExperts]:
    """Find the experts that are one tensor a layer, by full name, in the model's order.

    Those whose form is their own (Llama 4, DBRX, code that comes with a model) are left out.
    """
    found = {}
    for name, module in model.named_modules():
        # What `transformers.integrations.moe.use_experts_implementation` puts on a class; its
        # wrapper tells a forward that others may stand in for.
        told = ("has_gate", "has_bias", "is_transposed", "_apply_gate", "num_experts")
        if all(hasattr(module, each) for each in told):
            experts = FusedExperts(module, "gate_up_proj" if module.has_gate else "up_proj")
            if hasattr(type(module).forward, "__wrapped__") and _has_the_form(experts):
                found[name] = experts
    return found


def _has_the_form(experts: FusedExperts) -> bool:
    """Whether the tensors are what the attributes say, and all that there is."""
    own = dict(experts.module.named_parameters(recurse=False))
    biases = [f"{name}_bias" for name in experts.matrices] if experts.module.has_bias else []
    if own.keys() != {*experts.matrices, *biases}:
        return False
    if any(own[name].ndim != 3 or not own[name].is_floating_point() for name in experts.matrices):
        return False
    up, down = map(experts.matrix, experts.matrices)
    inner = up.shape[1] // (2 if experts.module.has_gate else 1)
    return bool(
        up.shape[0] == down.shape[0] == experts.module.num_experts and down.shape[2] == inner
    )


def routers(model: Any) -> dict[str, torch.nn.Module]:
    """Find the routers that multiply by their weight themselves, and then choose experts.

    A router is a module beside experts that are one tensor a layer, with a row of its weight for
    each. (Many are linear layers, which `linear_layers` finds.) What else it does is told by its
    code: it is run without numbers, and one that does not multiply its input once by its weight is
    left out.
    """
    modules = dict(model.named_modules())
    linear = linear_layers(model)
    found = {}
    for name, module in modules.items():
        counts = {len(p) for p in module.parameters(recurse=False) if p.ndim == 3}
        above = name.rpartition(".")[0]
        for child, router in modules[above].named_children() if counts and name else ():
            full = f"{above}.{child}" if above else child
            weight = getattr(router, "weight", None)
            if full in linear or not isinstance(weight, torch.nn.Parameter) or weight.ndim != 2:
                continue
            if len(weight) in counts and _multiplies_once(router):
                found[full] = router
    return {name: found[name] for name in modules if name in found}


def _multiplies_once(module: torch.nn.Module) -> bool:
    """Whether a module gives its input times its weight to the rest of its code, once."""
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    shapes = {name: torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    tokens, (experts, width) = 3, shapes["weight"].shape
    hidden = torch.empty(1, tokens, width, dtype=shapes["weight"].dtype, device="meta")
    # Some are given a number for each expert, which is added where they choose.
    wanted = list(inspect.signature(module.forward).parameters.values())[1:]
    others = [torch.empty(experts, device="meta") for one in wanted if one.default is one.empty]
    seen = []

    def product(inputs: torch.Tensor, matrix: torch.Tensor, bias: Any) -> torch.Tensor:
        seen.append(inputs.numel() == tokens * width)
        return torch.nn.functional.linear(inputs, matrix, bias)

    products = ProductsWith(shapes["weight"], product)
    try:
        with torch.no_grad(), products:
            functional_call(module, shapes, (hidden, *others))
    except _FAILURES:  # Of code that wants other inputs, or numbers.
        return False
    return seen == [True] and not products.others


class ProductsWith(TorchFunctionMode):
    """While it is on, linear products with one matrix are made by a function of ours.

    Args:
        matrix: (fan_out, fan_in); also where it is cast to another precision first.
        product: called with input, matrix and bias.

    Attributes:
        others: names of what else was done with the matrix.
    """

    def __init__(
        self, matrix: torch.Tensor, product: Callable[[Any, Any, Any], torch.Tensor]
    ) -> None:
        super().__init__()
        self.others: list[str] = []
        self._matrices = [matrix]
        self._product = product

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run a function of torch, or the product in its place."""
        kwargs = kwargs or {}
        is_ours = [any(each is one for one in self._matrices) for each in args]
        if function is torch.nn.functional.linear and len(args) > 1 and is_ours[1]:
            bias = args[2] if len(args) > 2 else kwargs.get("bias")
            return self._product(args[0], args[1], bias)
        output = function(*args, **kwargs)
        if any(is_ours):
            name = getattr(function, "__name__", "")
            if name in _CASTS and output.shape == self._matrices[0].shape:
                self._matrices.append(output)
            elif isinstance(output, torch.Tensor):
                self.others.append(name)
        return output
