"""A real Chromium without a window, and what a page in it said and asked for.

Debian's packages `chromium` and `chromium-driver` and the Python package `selenium`. A test that
needs them fails where they are missing; CURATE_WITHOUT_BROWSER=1 skips it instead.
"""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

REMEDY = (
    "apt-get update && apt-get install -y chromium chromium-driver; "
    "CURATE_WITHOUT_BROWSER=1 runs the suite without the tests of pages"
)
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)


@contextmanager
def chromium(width: int = 1240, height: int = 900) -> Iterator[Any]:
    """Start Chromium with a profile of its own; a Selenium driver."""
    if os.environ.get("CURATE_WITHOUT_BROWSER") == "1":
        pytest.skip("CURATE_WITHOUT_BROWSER is 1")
    try:
        from selenium import webdriver
        from selenium.webdriver.chrome.service import Service
    except ImportError:
        pytest.fail("selenium is not installed: pip install -c constraints.txt -e '.[dev]'")
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.fail(f"no {'chromium' if browser is None else 'chromedriver'} here: {REMEDY}")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*_FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        opened = webdriver.Chrome(options=options, service=Service(driver))
        try:
            yield opened
        finally:
            opened.quit()


def open_page(driver: Any, page: Path) -> None:
    """Load a page and wait until its script has run."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(page.resolve().as_uri())
    ready = "return document.documentElement.dataset.ready === 'true'"
    WebDriverWait(driver, 60).until(lambda each: each.execute_script(ready))


def console(driver: Any) -> list[str]:
    """What the console was told since the last call, violations of the policy among it."""
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Any) -> list[str]:
    """Addresses that documents asked for since the last call, but for the browser's own pages.

    Its start page goes on loading for a while, and what it loads is in the same log. Which document
    asks is the browser's word, not the page's: no page of ours can pass for a `chrome://` one.
    """
    events = (json.loads(entry["message"])["message"] for entry in driver.get_log("performance"))
    asked = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return [each["request"]["url"] for each in asked if not _is_the_browsers_own(each)]


def _is_the_browsers_own(asked: dict[str, Any]) -> bool:
    return str(asked["documentURL"]).startswith(("chrome://", "chrome-untrusted://", "data:,"))
