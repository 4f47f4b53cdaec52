"""What is missing for the items of a run that training will not solve: all of it put together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.errors import RunError, UsageError
from curate.files import write_atomically
from curate.run.features import joined
from curate.run.rollouts import outcomes_of
from curate.run.run import Run
from curate.run.tables import PASS_RATES
from curate.tags import Trainability
from probes.lift.gradients import open_work
from probes.stages.lift import ItemLift, lift_inputs, measured_lift, read_rewards
from recipes.gaps.clusters import Cluster, find_clusters
from recipes.gaps.evidence import Evidence, gather
from recipes.gaps.reasons import REASONS, Estimate, Found, why_not
from recipes.gaps.span import Span, find_span

Floats = NDArray[np.float64]

MOST_ITEMS = 2048
_MOST_OTHERS = 256
_BLOCK_BYTES = 2**28
_NAMED = 3
_EXAMPLES = 3


@dataclass(frozen=True)
class Gaps:
    """What is missing in a run.

    Attributes:
        facts: counts, reasons and clusters, in plain values.
        lines: an item each, as `-o` writes them.
    """

    facts: dict[str, Any]
    lines: list[dict[str, Any]]


def find_gaps(path: Path, out: Path | None = None) -> dict[str, Any]:
    """Find what is missing; what is returned and raised is told in `recipes.gaps.command`.

    Args:
        path: the run folder.
        out: where a line an item goes; None: nowhere.
    """
    found = gaps_of(Run.open(path))
    if out is not None:
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in found.lines)
        try:
            write_atomically(out, text)
        except OSError as error:
            raise RunError(f"cannot write {out}: {error.strerror or error}") from error
    return found.facts | {"file": None if out is None else str(out)}


def gaps_of(run: Run) -> Gaps:
    """What is missing for the items of a run that training is not known to solve.

    Raises:
        UsageError: the run has no gradients of rollouts.
        RunError: a file of the run is missing or damaged.
    """
    path = run.path
    tags = np.array(run.tags(), dtype=object)
    features = run.features()
    if features is None or features.completion_tokens is None:
        raise UsageError(
            f"{path} has no gradients of rollouts with their lengths, by which `gaps` goes: "
            "`curate tag` with another --run-dir measures them"
        )
    features = joined(path, run.row_of)
    found = outcomes_of(PASS_RATES.read(path))
    notes: list[str] = []
    items = _items(tags, found.correct, found.judged, run.config.tau, notes)
    rewards = read_rewards(path, run.row_of)
    group_size, loss = run.config.group_size, run.config.policy_loss
    lift, _, facts = measured_lift(features, found, run.config, rewards=rewards)
    if facts.get("why_none"):
        notes.append(f"no lift: {facts['why_none']}")
    try:
        inputs = lift_inputs(features, found, rewards)
        work = open_work(inputs, np.zeros(len(tags), dtype=bool), group_size, loss)
        span = find_span(work, _BLOCK_BYTES)
        others = _others(features.correct.item, features.correct.weights, items, len(tags))
        evidence = gather(work, span, items, others, _BLOCK_BYTES) if items else None
    except ValueError as error:
        raise RunError(f"the gradients of {path} are damaged: {error}") from error
    ids = run.ids.to_pylist()
    reasons: list[Found] = []
    clusters: list[Cluster] = []
    lines: list[dict[str, Any]] = []
    if evidence is not None:
        clusters = find_clusters(evidence, span, items)
        of = {int(n): number for number, each in enumerate(clusters, 1) for n in each.places}
        rates = found.correct / np.maximum(found.judged, 1)
        for n, item in enumerate(items):
            reason, line = _line(n, item, evidence, span, lift, ids)
            reasons.append(reason)
            known = {"item_id": ids[item], "trainability": tags[item], "pass_rate": rates[item]}
            lines.append({**known, **line, "cluster": of.get(n)})
    counts = Counter(each.reason for each in reasons)
    likely = Counter(each.likely for each in reasons)
    told = dict(zip(items, reasons, strict=True))
    facts = {
        "run": str(path),
        "items": len(items),
        "tags": dict(Counter(str(tags[item]) for item in items)),
        "without_correct": int((found.correct == 0).sum()),
        "directions": span.directions,
        "signal_held": span.held,
        "reasons": {reason: counts[reason] for reason in REASONS},
        "likely": {reason: likely[reason] for reason in REASONS},
        "clusters": [_facts(each, run, items, told) for each in clusters],
        "alone": len(items) - sum(len(each.places) for each in clusters),
        "notes": notes,
    }
    return Gaps(_plain(facts), _plain(lines))


def _items(
    tags: NDArray[np.object_],
    correct: NDArray[np.int64],
    judged: NDArray[np.int64],
    tau: float,
    notes: list[str],
) -> list[int]:
    """Unlearnable items, and undetermined hard ones that were right now and then."""
    open_ = (tags == str(Trainability.UNDETERMINED)) & (correct > 0) & (correct < tau * judged)
    asked = np.flatnonzero((tags == str(Trainability.UNLEARNABLE)) | open_)
    if len(asked) > MOST_ITEMS:
        # Unlearnable ones first, and of these those of which most is known.
        order = np.lexsort((-correct[asked], open_[asked]))
        notes.append(
            f"{len(asked):,} items ask for a reason: only the {MOST_ITEMS:,} of which most is "
            "known have one, unlearnable ones first"
        )
        asked = np.sort(asked[order[:MOST_ITEMS]])
    return [int(item) for item in asked]


def _others(
    item: NDArray[np.int64], weights: NDArray[np.int64], asked: Sequence[int], items: int
) -> list[int]:
    """Items with three correct rollouts at least, spread over the run."""
    there = np.bincount(item, weights, minlength=items) >= 3
    there[list(asked)] = False
    found = np.flatnonzero(there)
    chosen = np.unique(np.linspace(0, len(found) - 1, min(len(found), _MOST_OTHERS)).astype(int))
    return [int(each) for each in found[chosen]]


def _line(
    n: int, item: int, evidence: Evidence, span: Span, lift: ItemLift, ids: Sequence[str]
) -> tuple[Found, dict[str, Any]]:
    """The reason of an item, and the numbers behind it."""
    own, inside = (
        Estimate(float(each.value[n]), float(each.low[n]), float(each.high[n]))
        for each in (evidence.own, evidence.inside)
    )
    assert lift.from_others is not None and lift.degrees_of_freedom is not None  # By gradients.
    from_others = Estimate.by_error(
        float(lift.from_others[item]), float(lift.standard_error[item]),
        float(lift.degrees_of_freedom[item]),
    )  # fmt: skip
    effects = evidence.effects[n]
    helping = np.clip(effects, 0, None)
    order = np.argsort(effects, kind="stable")
    against = [int(span.teachers[m]) for m in order[:_NAMED] if effects[m] < 0]
    teachers = [int(span.teachers[m]) for m in order[::-1][:_NAMED] if effects[m] > 0]
    squares = float(helping @ helping)
    as_many = float(helping.sum()) ** 2 / squares if squares > 0 else 0.0
    found = why_not(
        int(evidence.draws[n]), own, inside, from_others, float(lift.lift[item]),
        evidence.typical, teachers=as_many, against=ids[against[0]] if against else "",
    )  # fmt: skip
    total = float(np.abs(effects).sum())
    share = {int(t): float(e) / total for t, e in zip(span.teachers, effects, strict=True) if e}
    return found, {
        "correct_gradients": int(evidence.draws[n]),
        "gap": found.reason,
        "gap_likely": found.likely,
        "gap_reason": found.sentence,
        "inside": inside.value, "inside_low": inside.low, "inside_high": inside.high,
        "from_others": from_others.value, "from_others_low": from_others.low,
        "from_others_high": from_others.high, "lift": float(lift.lift[item]),
        "own": own.value, "own_low": own.low, "own_high": own.high,
        "right_wrong_cosine": float(evidence.cosine[n]),
        "teachers_alike": as_many,
        "taught_by": [ids[each] for each in teachers],
        "taught_by_share": [share[each] for each in teachers],
        "competes_with": [ids[each] for each in against],
        "competes_with_share": [share[each] for each in against],
    }  # fmt: skip


def _facts(
    cluster: Cluster, run: Run, items: Sequence[int], told: dict[int, Found]
) -> dict[str, Any]:
    members = [items[n] for n in cluster.places]
    ids = run.ids.take(members)
    prompts = run.prompts(ids.slice(0, _EXAMPLES)).to_pylist()
    names = ids.to_pylist()
    return {
        "items": len(members),
        "verdict": cluster.verdict,
        "alignment": cluster.alignment,
        "inside": cluster.inside.value,
        "inside_low": cluster.inside.low,
        "inside_high": cluster.inside.high,
        "likely": dict(Counter(told[each].likely for each in members)),
        "examples": [
            {"item_id": name, "prompt": prompt}
            for name, prompt in zip(names[:_EXAMPLES], prompts, strict=True)
        ],
        "item_ids": names,
    }


def _plain(value: Any) -> Any:
    """Numbers as JSON has them: nan and infinity are null."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_plain(each) for each in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value
