"""Requests, tokens and costs of language models, as lines for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def estimate_text(estimate: Mapping[str, Any]) -> str:
    """Write what would be asked."""
    return (
        f"{estimate['requests']:,} requests, about {estimate['prompt_tokens']:,} tokens in and at "
        f"most {estimate['completion_tokens']:,} out, {_cost(estimate, 'at most ')}"
    )


def usage_text(asked: Mapping[str, Any], reused: Mapping[str, Any]) -> str:
    """Write what was asked now, and what had been asked before."""
    text = (
        f"{asked['requests']:,} requests now, {asked['prompt_tokens']:,} tokens in and "
        f"{asked['completion_tokens']:,} out, {_cost(asked)}; "
        f"{reused['requests']:,} answers were kept from before"
    )
    if asked["not_counted"]:
        text += f"; the server did not count the tokens of {asked['not_counted']:,}"
    return text


def _cost(usage: Mapping[str, Any], before: str = "") -> str:
    if usage["cost"] is None:
        return "cost not known (--price-in, --price-out)"
    return f"cost {before}{usage['cost']:,.4g}"
