"""The pass rate against the outcome in a public GRPO log: `curate confirm --training` on real data.

    python -m benchmarks.study.public_log acc_step_500.json

The file is `data/acc_step_500.json` of ypwang61/One-Shot-RLVR (Apache-2.0): the accuracy of 8
rollouts of 1,209 MATH items in each epoch of 500 steps of GRPO of Qwen2.5-Math-1.5B. The first
rollouts of an item stand for a probe, though the policy trains on meanwhile, its newest 32 are the
outcome; items with fewer than 47 epochs are left out. p_unlearnable is 1 less the pass rate, so
that its AUROC is that of the pass rate alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from curate import confirm
from tests.made.run import Items, made_run

_GROUP, _FEWEST_EPOCHS = 8, 47
_TAUS, _PROBES = (0.1, 0.2, 0.25), (32, 64, 128)


def judge(folder: Path, log: Path, rates: Mapping[str, Sequence[float]], tau: float, n: int) -> Any:
    """The summary of `confirm` with the first `n` rollouts of each item as its probe."""
    correct = [round(_GROUP * sum(each[: n // _GROUP])) for each in rates.values()]
    share = np.array(correct) / n
    tags = np.where(share >= tau, "easy", "undetermined").tolist()
    items = Items(list(rates), correct, rollouts=n, tags=tags, p_unlearnable=1 - share)
    one = [1] * len(rates)
    tables = {
        "items": {"prompt_token_ids": [[1]] * len(rates), "answer": [""] * len(rates)},
        "rows": {"row": np.cumsum(one), "reason": [None] * len(rates)},
    }
    run = made_run(folder / f"{tau}-{n}", items, tables=tables, settings={"tau": tau, "out": ""})
    # Each item has its own last epoch, so the final part is the whole log but the probe's.
    return confirm(run, training=[log], rollouts_per_reward=_GROUP, final_part=0.5)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("file", type=Path, help="acc_step_500.json")
    rates = json.loads(parser.parse_args().file.read_text(encoding="utf-8"))
    rates = {name: each for name, each in rates.items() if len(each) >= _FEWEST_EPOCHS}
    print(f"{len(rates):,} items; AUROC of the pass rate alone for ending below tau")
    print(f"{'tau':>5}{'probe':>7}{'hard':>6}{'unlearnable':>13}{'learnable':>11}  AUROC (95 %)")
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.json"
        log.write_text(json.dumps(rates), encoding="utf-8")
        for tau in _TAUS:
            for n in _PROBES:
                found = judge(Path(folder), log, rates, tau, n)
                counts = (found["confirmed"][tag] for tag in ("unlearnable", "learnable"))
                low, high = found["auroc_low"], found["auroc_high"]
                print(
                    f"{tau:5g}{n:7d}{found['hard_items']:6,}"
                    + "{:13,}{:11,}".format(*counts)
                    + f"  {found['auroc']:.3f} ({low:.2f} to {high:.2f})"
                )


if __name__ == "__main__":
    main()
