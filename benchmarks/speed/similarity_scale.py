"""Time and memory of `measure_similarity` on 100,000 items × 4,096 dimensions.

    python -m benchmarks.speed.similarity_scale                     25,000, 50,000 and 100,000 items
    python -m benchmarks.speed.similarity_scale --items 2000 4000   other sizes
    python -m benchmarks.speed.similarity_scale --folder /big/disk  where to write 3.3 GB

Two rollouts an item, half of the items easy. The gradients lie in a memory-mapped float32 file, as
`curate tag` has them. Each is the sum of a direction that its group of items shares, one of the
item's own, half as long, and noise as long as the group's, so that the nearest neighbours of an
item are those of its group. A smaller size is the first items of the largest.

Each size is measured in a process of its own. Seconds are of the call alone. Memory is VmHWM, the
largest resident set that the kernel saw, mapped pages of the file included; `before` is the same
just before the call, when everything is imported.

Exit status 1 when the largest size takes more than 60 s or 4 GB, when an item of the largest size
takes more than 1.5 times as long as one of the smallest, or when fewer than nine items in ten have
a nearest reference of their own group.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from probes.gradients.similarity import measure_similarity

ROLLOUTS, GROUPS = 2, 100
MOST_SECONDS, MOST_BYTES = 60, 4e9
MOST_GROWTH, LEAST_OWN_GROUP = 1.5, 0.9
ITEMS_AT_ONCE = 1000


def write_gradients(path: Path, items: int, dim: int, seed: int) -> None:
    """Write the gradients of all items, (items × 2, dim) float32, an item's together."""
    rng = np.random.default_rng(seed)
    groups = rng.standard_normal((GROUPS, dim), dtype=np.float32)
    header = {"descr": "<f4", "fortran_order": False, "shape": (items * ROLLOUTS, dim)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for first in range(0, items, ITEMS_AT_ONCE):
            item = np.arange(first, min(first + ITEMS_AT_ONCE, items))
            block = rng.standard_normal((len(item), ROLLOUTS, dim), dtype=np.float32)
            block += 0.5 * rng.standard_normal((len(item), 1, dim), dtype=np.float32)
            block += groups[item % GROUPS, None]
            file.write((block / np.float32(1.5 * dim**0.5)).tobytes())


def peak_bytes() -> int:
    """VmHWM of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])
    raise OSError("/proc/self/status has no VmHWM")


def measure(path: Path, items: int) -> dict[str, Any]:
    """Measure the first `items` items of a file; called in a fresh process."""
    features = np.load(path, mmap_mode="r")[: items * ROLLOUTS]
    item = np.arange(items)
    weights = np.ones(len(features), dtype=np.int64)
    before, started = peak_bytes(), time.perf_counter()
    # Groups come by the last digits, so every group has as many easy items as others.
    found = measure_similarity(
        features, np.repeat(item, ROLLOUTS), weights, is_easy=item // GROUPS % 2 == 0
    )
    seconds, peak = time.perf_counter() - started, peak_bytes()
    nearest = found.nearest[:, 0]
    same = (nearest >= 0) & (nearest % GROUPS == item % GROUPS)
    return {"seconds": seconds, "before": before, "peak": peak, "own_group": float(same.mean())}


def measure_apart(path: Path, items: int) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--measure", str(path), "--items", str(items)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout))


def failures(sizes: list[int], results: list[dict[str, Any]]) -> list[str]:
    """What the largest size, or its growth, misses."""
    last, broken = results[-1], []
    if last["seconds"] > MOST_SECONDS:
        broken.append(f"{last['seconds']:.1f} s for {sizes[-1]:,} items, not {MOST_SECONDS}")
    if last["peak"] > MOST_BYTES:
        broken.append(f"{last['peak'] / 1e9:.2f} GB for {sizes[-1]:,} items, not 4")
    growth = (last["seconds"] / sizes[-1]) / (results[0]["seconds"] / sizes[0])
    if growth > MOST_GROWTH:
        broken.append(f"an item takes {growth:.2f} times as long at the largest size")
    for size, result in zip(sizes, results, strict=True):
        if result["own_group"] < LEAST_OWN_GROUP:
            share = result["own_group"]
            broken.append(f"{size:,} items: only {share:.0%} are nearest to their own group")
    return broken


def main() -> int:
    """Write the gradients, measure each size, and print the table; 1 when a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--items", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="for the file of gradients; default: the temporary one")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure, arguments.items[0])))
        return 0
    sizes = sorted(arguments.items)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        path = Path(folder) / "gradients.npy"
        write_gradients(path, sizes[-1], arguments.dim, arguments.seed)
        results = [measure_apart(path, size) for size in sizes]
    print(f"{ROLLOUTS} rollouts an item, {arguments.dim:,} dimensions\n")
    print(f"{'items':>9}{'seconds':>10}{'µs/item':>10}{'before':>10}{'peak':>10}{'own group':>11}")
    for size, result in zip(sizes, results, strict=True):
        print(
            f"{size:9,}{result['seconds']:10.1f}{1e6 * result['seconds'] / size:10.0f}"
            f"{result['before'] / 1e9:7.2f} GB{result['peak'] / 1e9:7.2f} GB"
            f"{result['own_group']:11.1%}"
        )
    broken = failures(sizes, results)
    for text in broken:
        print(f"missed: {text}", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
