"""Importing transformers without the packages that it wants for nothing that is done here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType
from typing import Any, cast

import torch


def import_lightly() -> None:
    """Import the parts of torch and transformers that every model's code does, without the rest.

    Tuning a threshold of assisted generation by an ROC curve takes scikit-learn wherever it is
    installed, and a compiler that is not used takes Triton, which without a GPU has nothing to
    compile for: a second and 100 to 170 MB in every process with a model. What was imported before
    stays as it is.
    """
    if not torch.cuda.is_available():
        with _hidden("triton"):
            import_module("torch._dynamo")
        # It remembers what was found, and what comes later shall look for itself.
        for function in vars(import_module("torch.utils._triton")).values():
            if hasattr(function, "cache_clear"):
                function.cache_clear()
    utils: Any = import_module("transformers.utils")
    is_there = utils.is_sklearn_available
    utils.is_sklearn_available = lambda: False
    try:
        import_module("transformers.generation.candidate_generator")
    finally:
        utils.is_sklearn_available = is_there


def import_gguf() -> Any:
    """The module that reads GGUF files, without Mistral's tokenizers, which bring OpenCV along."""
    with _hidden("mistral_common"):
        return import_module("gguf")


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Have a package that was not imported yet count as not installed."""
    if package in sys.modules:
        yield
        return
    modules = cast("dict[str, ModuleType | None]", sys.modules)
    modules[package] = None
    try:
        yield
    finally:
        del modules[package]
