"""A report of 100,000 items: what it costs to write, and whether its page stays responsive.

    python -m benchmarks.report.page                  the whole of it, in Chromium
    python -m benchmarks.report.page --items 2000     a quick look

The run is made up: prompts, counts, similarities, and 32 rollouts of every tenth item. `curate
report` runs in a process of its own, whose largest resident set is its peak. In the page each
action is timed from its event to the second frame after it, which is when its result was drawn.

Exit status 1 when the command passes 3 GB, the page 100 MB, loading 20 s, or an action 2 s (a
scroll 0.25 s): far above what a machine of two busy cores needs.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.browser import chromium, open_page
from tests.made.report import item_id, write_report_run

MOST_BYTES, MOST_PAGE, MOST_LOADING, MOST_ACTION, MOST_SCROLL = 3e9, 100e6, 20.0, 2.0, 0.25

_TIMED = """
const [action, argument, done] = arguments;
const grid = document.getElementById('grid');
const actions = {
  sort: () => document.querySelector(`[data-key=${argument}] button`).click(),
  filter: () => document.querySelector(`[data-tag=${argument}]`).click(),
  clear: () => document.getElementById('clear').click(),
  search: () => {
    document.getElementById('search').value = argument;
    document.getElementById('search').dispatchEvent(new Event('input'));
  },
  scroll: () => (grid.scrollTop = Number(argument)),
  open: () => document.querySelector('#grid .row').click(),
};
const start = performance.now();
actions[action]();
const drawn = () => requestAnimationFrame(() => requestAnimationFrame(
  () => done((performance.now() - start) / 1000)));
action === 'search' ? setTimeout(drawn, 90) : drawn();
"""


def write_page(run: Path, page: Path) -> tuple[float, int]:
    """Seconds and peak bytes of the command."""
    start = time.monotonic()
    command = [sys.executable, "-m", "curate", "report", str(run), "-o", str(page)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    peak = 1024 * resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return time.monotonic() - start, peak


def time_actions(driver: Any, items: int) -> dict[str, float]:
    """Seconds of each action, the longest where it is done several times."""

    def timed(action: str, argument: object = "") -> float:
        return float(driver.execute_async_script(_TIMED, action, str(argument)))

    height = 34 * items
    return {
        "sort by similarity": timed("sort", "similarity"),
        "the same, falling": timed("sort", "similarity"),
        "sort by prompt": timed("sort", "prompt"),
        "filter by a tag": timed("filter", "learnable"),
        "clear": timed("clear"),
        "first search": timed("search", item_id(items // 2)),
        "another search": timed("search", "what is 7"),
        "clear again": timed("clear"),
        "scroll, longest of 40": max(timed("scroll", height * n // 40) for n in range(40)),
        "open the first item": timed("open"),
    }


def main() -> int:
    """Run it, print the table; 1 when a bound is passed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, default=100_000)
    items = parser.parse_args().items
    with tempfile.TemporaryDirectory() as name:
        run = write_report_run(Path(name) / "run", items, rollouts_of=items // 10)
        page = Path(name) / "report.html"
        seconds, peak = write_page(run, page)
        size = page.stat().st_size
        with chromium() as driver:
            start = time.monotonic()
            open_page(driver, page)
            loading = time.monotonic() - start
            actions = time_actions(driver, items)
    print(f"{items:,} items: written in {seconds:.1f} s, peak {peak / 1e9:.2f} GB")
    print(f"page {size / 1e6:.1f} MB, loaded in {loading:.1f} s")
    for name, taken in actions.items():
        print(f"{name:<24}{1000 * taken:>8,.0f} ms")
    scroll = actions.pop("scroll, longest of 40")
    broken = [
        text
        for text, value, most in (
            ("peak bytes", peak, MOST_BYTES),
            ("bytes of the page", size, MOST_PAGE),
            ("seconds of loading", loading, MOST_LOADING),
            ("seconds of an action", max(actions.values()), MOST_ACTION),
            ("seconds of a scroll", scroll, MOST_SCROLL),
        )
        if value > most
    ]
    for text in broken:
        print(f"failed: {text}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
