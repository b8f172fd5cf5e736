"""The console in a real Chromium, against the real worker, Litestream and the local Cloud Storage: one stack for all."""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from selenium.webdriver.common.keys import Keys

from local.browser import MISSING, PHONE, Browser, browser, installed
from local.gcs_process import FakeGcs
from local.screenshots import push
from local.stack import QUICK_LEASE, ConsoleProcess
from local.worker_process import ROOT, WorkerProcess
from tests.processes import URL, Objects

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

PAGE_MAX_BYTES = 150_000
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b[2J\u202egnp.exe\x00{{7*7}}"


@dataclass(frozen=True, slots=True)
class Site:
    """The stack, its console, and a browser."""

    gcs: FakeGcs
    worker: WorkerProcess
    console: ConsoleProcess
    browser: Browser
    downloads: Path

    def open(self, path: str = "/") -> None:
        """Load one of the console's pages."""
        self.browser.open(self.console.url + path)

    def push(self, message_id: str, data: bytes, attributes: dict[str, str] | None = None) -> None:
        """Deliver a message; it is acknowledged."""
        assert push(self.worker.url, message_id, data, attributes) == 204

    def open_rejections(self) -> int:
        """How many are open, by the worker's own word."""
        found = httpx.get(f"{self.worker.url}/rejections", trust_env=False, timeout=60).json()["rejections"]
        return len(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The one stack and the one browser."""
    if not installed():
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)
    folder = tmp_path_factory.mktemp("console")
    downloads = folder / "downloads"
    with FakeGcs(folder / "gcs", buckets=("users",)) as gcs:
        Objects(gcs).initialize()
        worker = WorkerProcess(
            disk=folder / "disk",
            replica_url=URL,
            environment={**gcs.environment(), **QUICK_LEASE},
            port=0,
            log=folder / "worker.log",
        )
        try:
            worker.start().wait_serving()
            with ConsoleProcess(worker, folder / "console.log") as console, browser(downloads) as chromium:
                chromium.look_like()
                yield Site(gcs, worker, console, chromium, downloads)
        finally:
            worker.kill()


def the_page_begins_with_the_verdict(site: Site) -> None:
    """A healthy service: the banner says serving, nothing is made up, and nothing was kept out by the page's own policy."""
    site.push("good-1", b'{"user_id": 1, "email_address": "ann@example.com"}')
    site.open()
    site.browser.until_shows("serving", "#banner")
    assert site.browser.driver.title == "serving · Solowriter"
    assert "None is open" in site.browser.text("#rejections")
    assert "the last half hour is not known yet" in site.browser.text(".tiles")
    assert "ann@example.com" not in site.browser.driver.page_source
    assert site.browser.messages() == []


def a_conflict_is_found_corrected_and_gone(site: Site) -> None:
    """The count appears by itself; the differing field stands beside the stored one; corrected, it has its effect."""
    site.open()
    site.push("conflict-1", b'{"user_id": 1, "email_address": "other@example.com"}')
    site.push("bad/1?#", b'{"user_id": "five"}')
    site.browser.until_shows("conflict", "#rejections", seconds=12)
    site.browser.click("#show-conflict")
    site.browser.until_shows("conflict-1")
    assert "other@example.com" not in site.browser.driver.page_source
    site.browser.click("td a")
    differing = site.browser.one("tr.differs").text
    assert "email_address" in differing
    assert "other@example.com" in differing
    assert "ann@example.com" in differing
    field = site.browser.one("#corrected")
    assert json.loads(field.get_attribute("value") or "")["user_id"] == 1
    field.clear()
    field.send_keys('{"user_id": 2, "email_address": "other@example.com"}')
    site.browser.click("#correct")
    site.browser.until_shows("Done: created", "#outcome")
    assert (
        httpx.get(f"{site.worker.url}/users/2", trust_env=False, timeout=60).json()["email_address"] == "other@example.com"
    )
    site.open()
    site.browser.until_shows("wrong_type", "#rejections")
    # The page may show what the service said up to a second ago.
    site.browser.until(lambda: "conflict" not in site.browser.text("#rejections"), "a count without the conflict", seconds=6)


def a_retry_that_cannot_succeed_says_so(site: Site) -> None:
    """Retried as it was published, a malformed message stays open, and the page says that and not that it is done."""
    site.open("/rejection?id=bad%2F1%3F%23")
    site.browser.click("#retry")
    site.browser.until_shows("still cannot have its effect", "#outcome")
    assert site.browser.text("#state") == "open"


def hostile_text_is_text(site: Site) -> None:
    """Markup, control characters, marks that turn the writing, and a megabyte in every field do nothing but stand there."""
    fields = {"user_id": HOSTILE, "email_address": HOSTILE * 3, HOSTILE: HOSTILE, "settings": "A" * 1_000_000}
    site.push(
        "<b>hostile</b>", json.dumps(fields).encode(), {"<i>name</i>": HOSTILE.replace("\x00", ""), "long": "B" * 1000}
    )
    site.push("not-utf8", b'\xff\xfe{"user_id": \x00 <script>alert(1)</script>')
    site.browser.messages()
    for path, shown in (("%3Cb%3Ehostile%3C%2Fb%3E", "<script>document.title='owned'</script>"), ("not-utf8", r"\xff\xfe{")):
        site.open(f"/rejection?id={path}")
        site.browser.until_shows(shown)
        assert site.browser.driver.title == "Rejected message · Solowriter"
        assert site.browser.driver.find_elements("css selector", "main script, main img, main i") == []
        raw = httpx.get(f"{site.console.url}/rejection?id={path}", trust_env=False, timeout=60)
        assert len(raw.content) < PAGE_MAX_BYTES
        assert not re.search(r"[\x00-\x08\x0b\x0c\x0e-\x1f\u202a-\u202e]", raw.text)
        assert raw.headers["cache-control"] == "no-store"
    site.open("/rejection?id=%3Cb%3Ehostile%3C%2Fb%3E")
    assert "{{7*7}}" in site.browser.text()
    assert "U+202E" in site.browser.text("#fields")
    site.open("/rejections")
    site.browser.until_shows("<b>hostile</b>")
    assert site.browser.messages() == []


def discarding_needs_the_number(site: Site) -> None:
    """Another number than there are discards nothing; theirs discards all of the reason."""
    before = site.open_rejections()
    site.push("malformed-1", b"{")
    site.push("malformed-2", b"[")
    reasons = {
        row["reason"] for row in httpx.get(f"{site.worker.url}/rejections", trust_env=False, timeout=60).json()["rejections"]
    }
    for reason in reasons:
        site.open(f"/rejections?reason={reason}")
        number = len(site.browser.driver.find_elements("css selector", "tbody tr"))
        site.browser.one("#number").send_keys(str(number + 7))
        site.browser.click("#discard-all")
        site.browser.until_shows("nothing was discarded", "#problem")
    assert site.open_rejections() == before + 2
    site.open("/rejections?reason=not_json")
    site.browser.one("#number").send_keys(str(len(site.browser.driver.find_elements("css selector", "tbody tr"))))
    site.browser.click("#discard-all")
    site.browser.until_shows("handled", "#job[data-running=no]")
    site.browser.until_shows("discarded", "#job")
    assert "not_json" not in {
        row["reason"] for row in httpx.get(f"{site.worker.url}/rejections", trust_env=False, timeout=60).json()["rejections"]
    }


def an_export_is_a_file_that_can_be_corrected(site: Site) -> None:
    """The file that the page hands out is what the publisher loads: the message's fields, and what was wrong with it."""
    site.open("/rejection?id=bad%2F1%3F%23")
    site.browser.click("#export")
    found = site.browser.until(lambda: list(site.downloads.glob("rejections-*.jsonl")), "the file")
    line = json.loads(found[0].read_text())
    assert line["user_id"] == "five"
    assert line["_rejection"]["message_id"] == "bad/1?#"


def what_came_after_a_time_is_shown_and_not_undone(site: Site) -> None:
    """The page lists the generations, compares a time with now, gives the command, and leaves the store as it is."""
    time.sleep(1.1)  # the field for a time has whole seconds
    at = time.gmtime()
    time.sleep(1.1)
    site.push("later-1", b'{"user_id": 3}')
    site.open()
    site.browser.click("#read-bucket")
    site.browser.until_shows("live", "#generations")
    site.browser.until_shows("whether the bucket can be restored is not known", "#last-drill")
    field = site.browser.one("#at")
    site.browser.driver.execute_script("arguments[0].value = arguments[1]", field, time.strftime("%Y-%m-%dT%H:%M:%S", at))
    site.browser.click("#compare")
    site.browser.until_shows("1: 1 created", "#undone", seconds=30)
    assert time.strftime("recover --at %Y-%m-%dT%H:%M:%S", at) in site.browser.text()
    assert httpx.get(f"{site.worker.url}/users/3", trust_env=False, timeout=60).status_code == 200


def a_drill_is_run_and_remembered(site: Site) -> None:
    """The drill that the page runs proves the store, and its verdict is what the bucket tells afterwards."""
    site.open()
    site.browser.click("#run-drill")
    site.browser.until_shows("proved", "#job[data-running=no]", seconds=30)
    site.open("/bucket")
    site.browser.until_shows("proved", "#last-drill")


def destructive_verbs_are_only_shown(site: Site) -> None:
    """Erasing and breaking the lease give a dry run and the command; the user and the lease are as before."""
    site.open()
    site.browser.one("#erase-subject").send_keys("1" + Keys.ENTER)
    site.browser.until_shows("python -m worker erase --yes 1")
    site.open()
    site.browser.click("form[action='/break'] button")
    site.browser.until_shows("python -m worker lease break --yes")
    assert httpx.get(f"{site.worker.url}/users/1", trust_env=False, timeout=60).status_code == 200
    assert httpx.get(f"{site.worker.url}/status", trust_env=False, timeout=60).json()["state"] == "serving"


def everything_can_be_reached_by_keyboard(site: Site) -> None:
    """Tab reaches every link, button and field of the page, each shows its focus, and polling does not take it."""
    site.open()
    seen: list[str] = []
    for _ in range(60):
        site.browser.driver.switch_to.active_element.send_keys(Keys.TAB)
        active = site.browser.driver.switch_to.active_element
        outline = active.value_of_css_property("outline-style")
        name = active.get_attribute("id") or active.text or active.get_attribute("name") or ""
        if active.tag_name == "body":
            break
        assert outline != "none", name
        seen.append(name)
    everything = "a[href], button, input:not([type=hidden]), summary"
    shown = [one for one in site.browser.driver.find_elements("css selector", everything) if one.is_displayed()]
    assert len(set(seen)) >= len(shown) - 3, (seen, len(shown))  # some share a name: three buttons say the same
    site.open()
    link = "show-wrong_type"
    site.browser.driver.execute_script(f"document.getElementById('{link}').focus()")
    before = site.browser.one("#banner")
    site.browser.until(lambda: site.browser.one("#banner") != before, "a poll", seconds=12)
    assert site.browser.driver.switch_to.active_element.get_attribute("id") == link
    site.browser.driver.switch_to.active_element.send_keys(Keys.ENTER)
    site.browser.until_shows("Rejected: wrong_type", "h1")


def both_themes_can_be_read_on_a_phone(site: Site) -> None:
    """At 390 px nothing sticks out, and each text has a contrast of 4.5 with what is behind it (WCAG 2.1, 1.4.3)."""
    paths = ("/", "/rejections?reason=wrong_type", "/rejection?id=bad%2F1%3F%23", "/bucket")
    contrast = (Path(__file__).parent / "contrast.js").read_text()
    try:
        for theme, path in itertools.product(("light", "dark"), paths):
            site.browser.look_like(size=PHONE, theme=theme)
            site.open(path)
            site.browser.one("h1")
            assert site.browser.driver.execute_script("return document.documentElement.scrollWidth") <= PHONE[0], path
            assert site.browser.driver.execute_script(contrast) == [], (theme, path)
    finally:
        site.browser.look_like()


def it_works_without_javascript(site: Site) -> None:
    """Without scripts the page is whole, loads itself again, and its forms do what they say."""
    site.browser.scripts(on=False)
    try:
        site.open()
        page = site.browser.driver.page_source
        assert '<meta http-equiv="refresh" content="10">' in page
        site.open("/bucket")
        assert "generations" in site.browser.driver.page_source
        site.open("/rejection?id=bad%2F1%3F%23")
        site.browser.driver.find_element("css selector", "#number").send_keys("1" + Keys.ENTER)
        site.browser.until(lambda: "Done: discarded" in site.browser.driver.page_source, "the page after the form")
    finally:
        site.browser.scripts(on=True)


def what_a_page_costs(site: Site) -> None:
    """A page weighs less than 150 KB with nothing cached, asks the worker 12 times a minute, and never the bucket."""
    site.browser.driver.execute_cdp_cmd("Network.clearBrowserCache", {})
    site.open()
    script = "return performance.getEntries().reduce((sum, each) => sum + (each.encodedBodySize || 0), 0)"
    weight = site.browser.driver.execute_script(script)
    assert 0 < weight < PAGE_MAX_BYTES
    site.browser.driver.execute_script("performance.clearResourceTimings()")
    times = "return performance.getEntriesByType('resource').map((each) => each.startTime)"
    site.browser.until(lambda: len(site.browser.driver.execute_script(times)) >= 2, "two polls")
    first, second = site.browser.driver.execute_script(times)[:2]
    assert second - first > 4900  # milliseconds: the browser's timer may be a little early
    names = site.browser.driver.execute_script("return performance.getEntriesByType('resource').map(each => each.name)")
    assert {name for name in names if "/static/" not in name} == {f"{site.console.url}/live"}
    print(f"a page with nothing cached: {weight:,} bytes")


def the_terminal_shows_the_same(site: Site) -> None:
    """`worker status` gives the same verdict; with --json it prints what the service answered."""
    done = site.worker.run("status", f"--url={site.worker.url}")
    assert done.returncode == 0, done.stderr
    assert re.search(r"verdict +Serving", done.stdout)
    found = json.loads(site.worker.run("status", f"--url={site.worker.url}", "--json").stdout)
    assert found["state"] == "serving"


def a_bucket_that_refuses_is_named(site: Site) -> None:
    """The bucket takes no upload: the open page says since when, why, and what to run; then that it is over."""
    site.open()
    site.browser.until_shows("serving", "#banner")
    site.gcs.faults.add(action="error", verb="insert", name="store/generations", status=403)
    waiting = threading.Thread(target=push, args=(site.worker.url, "stuck-1", b'{"user_id": 9}'))
    waiting.start()
    try:
        site.browser.until_shows("stuck", ".banner.stuck", seconds=20)
        banner = site.browser.text("#banner")
        assert "the bucket refuses the service's account" in banner
        assert "403" in banner
        assert "roles/storage.objectUser" in site.browser.text("#command-next")
        assert "since" in banner
        assert site.browser.driver.title == "stuck · Solowriter"
    finally:
        site.gcs.faults.clear()
        waiting.join(60)
    site.browser.until_shows("serving", ".banner.serving", seconds=20)


def a_dead_worker_is_named(site: Site) -> None:
    """Killed: the open page says that nothing answers, tells what the bucket knows, and shows no number as 0."""
    site.open()
    site.browser.until_shows("serving", "#banner")
    site.worker.kill()
    site.browser.until_shows("stuck", ".banner.stuck", seconds=20)
    assert "does not answer" in site.browser.text("#banner")
    tiles = site.browser.text(".tiles")
    assert "not known" in tiles
    assert not re.search(r"\b0 (held|B|ms)", tiles)
    assert "How many are open is not known" in site.browser.text("#rejections")
    site.open("/rejections")
    site.browser.until_shows("does not answer", "#problem")


def the_log_holds_nothing_of_a_user(site: Site) -> None:
    """After all of this the console's log names no user, no message's content, and no request."""
    log = site.console.log.read_text()
    for secret in ("ann@example.com", "other@example.com", "hostile", "five", "GET /"):
        assert secret not in log


def a_console_that_is_gone_is_noticed(site: Site) -> None:
    """The page says so itself when the console ends: what is shown is not current."""
    site.open()
    site.console.stop()
    site.browser.until(lambda: site.browser.one("#stale").is_displayed(), "the notice", seconds=12)


PARTS = (
    the_page_begins_with_the_verdict,
    a_conflict_is_found_corrected_and_gone,
    a_retry_that_cannot_succeed_says_so,
    hostile_text_is_text,
    discarding_needs_the_number,
    an_export_is_a_file_that_can_be_corrected,
    what_came_after_a_time_is_shown_and_not_undone,
    a_drill_is_run_and_remembered,
    destructive_verbs_are_only_shown,
    everything_can_be_reached_by_keyboard,
    both_themes_can_be_read_on_a_phone,
    it_works_without_javascript,
    what_a_page_costs,
    the_terminal_shows_the_same,
    a_bucket_that_refuses_is_named,
    a_dead_worker_is_named,
    the_log_holds_nothing_of_a_user,
    a_console_that_is_gone_is_noticed,
)
"""In this order: the last ones make the bucket refuse, and end the worker and the console."""


def test_the_console_in_a_browser(site: Site, subtests: pytest.Subtests) -> None:
    """Each of the parts above, on one stack and in one browser: a stack for each of them would take minutes."""
    for part in PARTS:
        with subtests.test(part.__name__):
            part(site)


def test_ci_has_a_browser() -> None:
    """Where CI runs, Chromium is no choice: the tests above must not be skipped there."""
    script = (ROOT / ".ci" / "run").read_text()
    assert re.search(r"apt-get install [^\n]*chromium", script)
    done = subprocess.run([sys.executable, "-c", "import selenium"], check=False)
    assert done.returncode == 0
