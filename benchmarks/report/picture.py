"""The picture of a report in docs/report.png, taken in Chromium.

curate report runs/demo                                    after `make demo`
python -m benchmarks.report.picture runs/demo/report.html docs/report.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.browser import chromium, open_page

WIDTH, HEIGHT = 1200, 1640


def main() -> None:
    """Open the page in the light theme and save its upper part."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    arguments = parser.parse_args()
    with chromium() as driver:
        metrics = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.execute_cdp_cmd("Emulation.setScrollbarsHidden", {"hidden": True})
        light = {"features": [{"name": "prefers-color-scheme", "value": "light"}]}
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", light)
        open_page(driver, arguments.page)
        # Charts are drawn once their width is known, a frame later.
        driver.execute_async_script(
            "requestAnimationFrame(() => requestAnimationFrame(arguments[0]))"
        )
        arguments.picture.write_bytes(driver.get_screenshot_as_png())


if __name__ == "__main__":
    main()
