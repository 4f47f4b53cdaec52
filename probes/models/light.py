"""Importing transformers without scikit-learn, which it wants for nothing that is done here."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def import_generation() -> None:
    """Import the code that draws tokens, which every model's code does.

    A part of it tunes a threshold of assisted generation by an ROC curve, and for that takes
    scikit-learn wherever it is installed: a second and 50 to 100 MB in every process with a model.
    Where it was imported before nothing changes.
    """
    utils: Any = import_module("transformers.utils")
    is_there = utils.is_sklearn_available
    utils.is_sklearn_available = lambda: False
    try:
        import_module("transformers.generation.candidate_generator")
    finally:
        utils.is_sklearn_available = is_there
