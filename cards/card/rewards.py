"""The section of a dataset card about the rewards: what their columns hold, and what follows."""

from __future__ import annotations

from cards.card.facts import RunFacts
from cards.card.markdown import table
from cards.card.metadata import REWARDS
from cards.card.sections import PLACEHOLDER
from curate.run.rollouts import rollout_shards
from curate.run.tables import ROLLOUT_TESTS, read_schema

_COLUMNS = {
    "`item_id`, `sample`": "whose rollout it is, and its number within the item, from 0",
    "`reward`": "what the verifier gave: 1 or 0, or the number of a reward function; null where it "
    "could not judge",
    "`correct`": "whether it counts as correct; null where it could not be judged",
    "`verdict`": "correct, wrong, no_answer, truncated, or why it was not judged",
    "`finish_reason`, `truncated`": "stop or length, and whether it was cut at the token limit",
    "`tokens`": "length of the completion, with its end token; null where it is not known",
    "`log_probability`": "of the completion under the model at temperature 1, nats; null where the "
    "engine did not give it",
}


def rewards_section(facts: RunFacts, repo: str) -> str:
    """What the configuration of the rewards holds, and how pass rates are recomputed from it."""
    repo = repo or PLACEHOLDER
    columns = [*_COLUMNS.items(), *_of_tests(facts)]
    lines = [
        "### Rewards",
        "",
        f"The configuration `{REWARDS}` has a row for every rollout that the tags rest on, without "
        "its text, in the splits of the items' tags:",
        "",
        *table([("column", "meaning"), *columns]),
        "",
        *(_in_rounds(facts, repo) if _has_rounds(facts) else _at_once(repo)),
    ]
    return "\n".join(lines)


def _of_tests(facts: RunFacts) -> list[tuple[str, str]]:
    """The columns that only runs have in which programs are judged."""
    files = rollout_shards(facts.run.path)
    if not files or not set(ROLLOUT_TESTS) <= set(read_schema(files[0]).names):
        return []
    names = ", ".join(f"`{name}`" for name in ROLLOUT_TESTS)
    return [(names, "of a program: how many tests it passed, and how many there are")]


def _has_rounds(facts: RunFacts) -> bool:
    """Whether some items may have stopped early."""
    config = facts.run.config
    return not config.rollouts and config.min_rollouts < config.max_rollouts


def _at_once(repo: str) -> list[str]:
    return [
        "`pass_rate` is the share of correct ones among those that were judged, c of n, and "
        "`pass_rate_low`, `pass_rate_high` are its Clopper-Pearson interval at 95 %:",
        "",
        "```python",
        "import numpy as np",
        "import pandas as pd",
        "from datasets import load_dataset",
        "from scipy.stats import beta",
        "",
        f'splits = load_dataset("{repo}", "{REWARDS}").values()',
        'judged = pd.concat([split.to_pandas() for split in splits]).dropna(subset="correct")',
        "",
        'n, c = (judged["correct"].astype(int).groupby(judged["item_id"]).agg(each) '
        'for each in ("size", "sum"))',
        "pass_rate, low, high = c / n, beta.ppf(0.025, c, n - c + 1), "
        "beta.ppf(0.975, c + 1, n - c)",
        "",
        "# There is no interval below 0 of n or above n of n.",
        "low, high = np.where(c == 0, 0, low), np.where(c == n, 1, high)",
        "```",
    ]


def _in_rounds(facts: RunFacts, repo: str) -> list[str]:
    config = facts.run.config
    return [
        "Rollouts were drawn in rounds, and items that were decided stopped early. So "
        "`pass_rate` is freed of the bias of stopping early, which c of n has, and its interval "
        "holds whatever made an item stop (both are derived in `probes/statistics/plan.py` of "
        "curate, which computes them):",
        "",
        "```python",
        "from datasets import concatenate_datasets, load_dataset",
        "from probes.statistics.recount import pass_rates  # pip install rl-curate",
        "",
        f'rewards = concatenate_datasets(list(load_dataset("{repo}", "{REWARDS}").values()))',
        'rates = pass_rates(rewards.with_format("arrow")[:], '
        f"min_rollouts={config.min_rollouts}, max_rollouts={config.max_rollouts}, "
        f"tau={config.tau!r})",
        "```",
    ]
