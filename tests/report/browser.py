"""Headless Chromium for tests of pages; whoever asks for it is skipped where it is missing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

LOOKED_FOR = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def chromium(width: int = 1280, height: int = 900, *, dark: bool = False) -> Iterator[Any]:
    """Yield a driver without a network; skips the test, with the reason, where selenium or Chromium is missing."""
    pytest.importorskip("selenium", reason="selenium is not installed: pip install selenium")
    browser = next((path for name in LOOKED_FOR if (path := shutil.which(name))), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("Chromium or its driver is missing: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for flag in ("--headless=new", "--disable-gpu", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver, env=dict(os.environ)))
    try:
        emulate = found.execute_cdp_cmd
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        emulate("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        emulate("Emulation.setEmulatedMedia", {"features": [scheme]})
        emulate("Network.enable", {})
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        emulate("Network.emulateNetworkConditions", offline)
        yield found
    finally:
        found.quit()


def show(driver: Any, page: Path) -> None:
    """Open a page and wait until none of its visible figures is still being drawn."""
    from selenium.webdriver.support.ui import WebDriverWait

    driver.get(page.resolve().as_uri())
    drawn = (
        "place.closest('details:not([open])') || place.dataset.state === 'drawn' || place.dataset.state === 'failed'"
    )
    settled = f"return [...document.querySelectorAll('.figure')].every(place => {drawn})"
    WebDriverWait(driver, 30).until(lambda one: one.execute_script(settled))


def screenshot(driver: Any, path: Path) -> None:
    """Write the whole page as a PNG."""
    import base64

    found = driver.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True, "format": "png"})
    path.write_bytes(base64.b64decode(found["data"]))
