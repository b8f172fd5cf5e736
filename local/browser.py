"""A real Chromium, Debian's, driven by Selenium: for the browser tests and the screenshots of the console.

Nothing is downloaded: Selenium's own manager is not used, and the browser talks to this machine only.
"""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

PROGRAMS: Final = ("chromium", "chromedriver")
MISSING: Final = "Chromium is not installed: apt-get install chromium chromium-driver"
DESKTOP: Final = (1180, 820)
PHONE: Final = (390, 844)
_WAIT_SECONDS: Final = 20.0


def installed() -> bool:
    """Whether there is a Chromium, and what drives it."""
    return all(shutil.which(name) for name in PROGRAMS)


class Browser:
    """One browser with one window."""

    def __init__(self, driver: webdriver.Chrome) -> None:
        self.driver = driver

    def open(self, url: str) -> None:
        """Load a page."""
        self.driver.get(url)

    def one(self, selector: str) -> WebElement:
        """The first element that a CSS selector names, once it is there."""
        found: list[WebElement] = self.until(lambda: self.driver.find_elements(By.CSS_SELECTOR, selector), selector)
        return found[0]

    def text(self, selector: str = "main") -> str:
        """The text of an element, as it is seen."""
        found: str = self.driver.execute_script("return document.querySelector(arguments[0]).innerText", selector)
        return found

    def click(self, selector: str) -> None:
        """Click, wherever on the page it stands."""
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", self.one(selector))
        self.one(selector).click()

    def until(self, condition: Callable[[], Any], what: str, *, seconds: float = _WAIT_SECONDS) -> Any:
        """The first true value of a condition; an element that was replaced meanwhile counts as not yet.

        Raises:
            TimeoutException: It did not come true.
        """
        return WebDriverWait(self.driver, seconds, poll_frequency=0.05).until(lambda _: condition(), what)

    def until_shows(self, words: str, selector: str = "main", *, seconds: float = _WAIT_SECONDS) -> None:
        """Return once an element's text holds these words."""
        self.one(selector)
        self.until(lambda: words.lower() in self.text(selector).lower(), f"{words!r} in {selector}", seconds=seconds)

    def look_like(self, *, size: tuple[int, int] = DESKTOP, theme: str = "light") -> None:
        """Take a width and height in CSS pixels, and the colours that the person prefers."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def scripts(self, *, on: bool) -> None:
        """Let pages that are loaded from now on run scripts, or not."""
        self.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not on})

    def messages(self) -> list[str]:
        """What the browser has complained of since the last call: errors of scripts, and what the page's policy kept out."""
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]  # type: ignore[no-untyped-call]

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """Write what is seen, or the whole page, as PNG."""
        options = {"format": "png", "captureBeyondViewport": whole, "optimizeForSpeed": False}
        if whole:
            size = self.driver.execute_cdp_cmd("Page.getLayoutMetrics", {})["cssContentSize"]
            options["clip"] = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        found = self.driver.execute_cdp_cmd("Page.captureScreenshot", options)
        file.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(downloads: Path | None = None) -> Iterator[Browser]:
    """A browser without a window on the screen; ended after the block.

    Args:
        downloads: Where files go that a page hands out.
    """
    with tempfile.TemporaryDirectory(prefix="solowriter-chromium-", ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = shutil.which(PROGRAMS[0]) or PROGRAMS[0]
        for argument in (
            "--headless=new",
            "--no-sandbox",  # root has none, and the pages are our own
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--disable-component-update",
            "--no-first-run",
            "--no-proxy-server",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        if downloads is not None:
            options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
        driver = webdriver.Chrome(options=options, service=Service(shutil.which(PROGRAMS[1])))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
