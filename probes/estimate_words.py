"""What a run is expected to cost, in a few lines for a reader."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.estimate import DAY, SAMPLED_TOKEN, Estimate, Prices, Sample, SmallerPlan, Span, Work

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_UNITS = ((2 * _DAY, _DAY, "days"), (1.5 * _HOUR, _HOUR, "h"), (1.5 * _MINUTE, _MINUTE, "min"))


def estimate_lines(
    work: Work, sample: Sample, prices: Prices, cost: Estimate, smaller: Sequence[SmallerPlan]
) -> list[str]:
    """Tell an estimate, and the smaller plans where it may be of more than a day.

    Args:
        work, sample, prices: what it was reckoned from.
        cost: the estimate.
        smaller: plans that cost less, dearest first; told only where the run is long.
    """
    limit = f"--max-tokens {work.max_tokens:,}"
    length = f"{_of(cost.length)} a rollout"
    if sample.rollouts:
        length += f", {sample.cut_share(work.max_tokens):.0%} cut at {limit}"
    else:
        length += f", were all as long as {limit}: none was finished, so lengths are unknown"
    at_most = f", at most {about(cost.most_seconds)}" if _has_rounds(work) else ""
    stages = [f"{name} {about(span.middle)}" for name, span in cost.seconds.items() if span.middle]
    disk = f", at most {size(cost.most_disk_bytes)}"
    memory = "" if prices.gradient_token else " so far, and more for gradients"
    lines = [
        f"  rollouts  {_rollouts(work, cost)}",
        f"  tokens    about {count(cost.tokens.middle)}: {length}",
        f"  time      {duration_of(cost.whole)}{at_most}: {', '.join(stages)}",
        f"  disk      about {size(cost.disk_bytes.middle)}{disk}",
        f"  memory    about {size(cost.memory_bytes)}{memory}",
    ]
    if cost.is_long:
        lines += smaller_lines(smaller, may="" if cost.whole.middle > DAY else "maybe ")
    return lines


def basis(
    sample: Sample,
    tokens: int,
    seconds: float,
    prices: Prices,
    differentiated: int = 0,
    *,
    first: bool = False,
) -> str:
    """What an estimate was reckoned from.

    Args:
        sample: the rollouts.
        tokens: that were drawn, of unfinished rollouts too.
        seconds: that they took.
        prices: whether a gradient was measured.
        differentiated: rollouts that were, for that.
        first: whether they are of the run's first prompts, and not of some from anywhere.
    """
    text = f"from {_drawn(sample, first=first)} ({tokens:,} tokens in {about(seconds)})"
    if prices.gradient_token:
        return f"{text}; gradients from {counted(differentiated, 'rollout')}"
    low, _, high = SAMPLED_TOKEN
    return (
        f"{text}; gradients not measured: a token is taken to cost {low:.2g} to {high:g} times "
        "a sampled one"
    )


def _drawn(sample: Sample, *, first: bool) -> str:
    unfinished = len(np.asarray(sample.unfinished))
    if unfinished and not sample.rollouts:
        return f"{counted(unfinished, 'rollout')} in the making, of which none was finished"
    prompts = counted(sample.prompts, "prompt")
    if first:
        prompts = f"its first {prompts}" if sample.prompts > 1 else "its first prompt"
    making = f" and {unfinished:,} in the making" if unfinished else ""
    return f"{counted(sample.rollouts, 'rollout')} of {prompts}{making}"


def smaller_lines(smaller: Sequence[SmallerPlan], *, may: str = "") -> list[str]:
    """Tell what each smaller plan costs; `may` stands before how long the run is."""
    if not smaller:
        return [f"  {may}more than a day"]
    width = max(len(each.options) for each in smaller)
    return [
        f"  {may}more than a day; smaller plans, by what is added to the command:",
        *(
            f"    {each.options:<{width}}  {about(each.estimate.whole.middle):>8}  {each.loses}"
            for each in smaller
        ),
    ]


def _has_rounds(work: Work) -> bool:
    return work.plan.max_rollouts > work.plan.min_rollouts


def _rollouts(work: Work, cost: Estimate) -> str:
    if not _has_rounds(work):
        return f"{cost.round_one:,}, in one round"
    low, middle, high = map(count, cost.rollouts)
    most = f"{cost.most_rollouts:,}"
    if low == high == most:
        return f"{cost.round_one:,} in round one; in all {most}"
    between = f" ({low} to {high})" if low != high else ""
    return f"{cost.round_one:,} in round one; in all about {middle}{between}, at most {most}"


def _of(span: Span) -> str:
    low, middle, high = (f"{each:,.0f}" for each in span)
    return middle if low == high else f"{middle} ({low} to {high})"


def counted(number: int, what: str) -> str:
    """So many of a kind: `1 prompt`, `8 prompts`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def count(number: float) -> str:
    """A number of which two digits are known."""
    for unit, name in ((1e9, "billion"), (1e6, "million")):
        if number >= unit:
            return f"{_two_digits(number / unit)} {name}"
    digits = len(f"{max(number, 1):.0f}")
    return f"{round(number, 2 - digits):,.0f}"


def duration_of(span: Span) -> str:
    """A span of seconds, such as `about 3 h (2 h to 5 h)`."""
    low, middle, high = (about(each) for each in span)
    return f"about {middle}" if low == high else f"about {middle} ({low} to {high})"


def about(seconds: float) -> str:
    """A time of which two digits are known, such as `40 s`, `5.3 h` or `12 days`."""
    for least, unit, name in _UNITS:
        if seconds >= least:
            return f"{_two_digits(seconds / unit)} {name}"
    return f"{_two_digits(seconds)} s"


def _two_digits(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number < 10 else count(number)


def size(number: float) -> str:
    """Bytes of which two digits are known."""
    for unit in ("kB", "MB", "GB"):
        number /= 1000
        if number < 1000:
            return f"{number:.2g} {unit}" if number < 100 else f"{count(number)} {unit}"
    return f"{number / 1000:.2g} TB"
