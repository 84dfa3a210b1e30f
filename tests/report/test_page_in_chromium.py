"""The page as a browser shows it: nothing is complained of, every plot is seen, phones and dark rooms are served."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prune2deploy.report.content import ReportContent
from prune2deploy.report.html import html_report

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome", "chrome") if (found := shutil.which(name))),
    None,
)
PHONE, DESK = 360, 1200

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium or Chrome on the path")


class GoneError(Exception):
    """The browser does not answer."""


class Browser:
    """One headless Chromium with one page, spoken to over a pipe in the DevTools protocol: no port, no driver."""

    def __init__(self, profile: Path) -> None:
        command_read, self._commands = _high_pipe()
        self._answers, answer_write = _high_pipe()
        arguments = (
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--remote-debugging-pipe", "--no-first-run", f"--user-data-dir={profile}", "about:blank"),
        )
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        self._process = subprocess.Popen(
            [str(CHROMIUM), *arguments],
            preexec_fn=lambda: (os.dup2(command_read, 3), os.dup2(answer_write, 4)),
            pass_fds=(3, 4),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(answer_write)
        self._pending = b""
        self._number = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Security"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer; what happens meanwhile goes to ``events``."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                found: dict[str, Any] = answer["result"]
                return found
            self.events.append(answer)

    def show(self, page: Path, *, width: int, dark: bool = False) -> None:
        """Load a file from disk in a window of that width and wait until it stands."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 500)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", media="", features=[scheme])
        self.events.clear()
        self.ask("Page.navigate", url=page.as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression on the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page, not only the window, as PNG."""
        taken = self.ask("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def close(self) -> None:
        """End the browser that this object started."""
        os.close(self._commands)
        os.close(self._answers)
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _next(self) -> dict[str, Any]:
        until = time.monotonic() + 60
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], max(0, until - time.monotonic()))
            piece = os.read(self._answers, 1 << 20) if ready else b""
            if not piece:
                raise GoneError("Chromium has gone or does not answer")
            self._pending += piece
        message, self._pending = self._pending.split(b"\0", 1)
        answer: dict[str, Any] = json.loads(message)
        return answer


def _high_pipe() -> tuple[int, int]:
    """A pipe whose ends are out of the way of the two descriptors that Chromium wants."""
    ends = os.pipe()
    reading, writing = (fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends)
    for end in ends:
        os.close(end)
    return reading, writing


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    try:
        opened = Browser(tmp_path_factory.mktemp("chromium"))
    except (GoneError, BrokenPipeError) as error:
        # Of the machine, as its absence is: some containers have a Chromium that may not start.
        pytest.skip(f"{CHROMIUM} does not start: {error}")
    yield opened
    opened.close()


PLOTS = "Array.from(document.querySelectorAll('figure svg'))"
OPEN_ALL = "document.querySelectorAll('details').forEach(one => { one.open = true; })"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory, full_content: ReportContent) -> Path:
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(html_report(full_content), encoding="utf-8")
    return path


def complaints(browser: Browser) -> list[dict[str, Any]]:
    """What Chromium wrote on its console, and what it refused or wanted to fetch besides the page itself."""
    told = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    fetched = [
        event["params"]["request"]["url"] for event in browser.events if event["method"] == "Network.requestWillBeSent"
    ]
    assert len(fetched) >= 1
    return [event for event in browser.events if event["method"] in told] + fetched[1:]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, 700, DESK])
def test_the_page_fits_its_window_and_the_console_stays_empty(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.show(page, width=width, dark=dark)
    browser.evaluate(OPEN_ALL)
    assert complaints(browser) == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width


@pytest.mark.parametrize("width", [PHONE, DESK])
def test_every_plot_is_seen_whole(browser: Browser, page: Path, width: int) -> None:
    browser.show(page, width=width)
    browser.evaluate(OPEN_ALL)
    boxes = browser.evaluate(
        f"{PLOTS}.map(one => {{ const box = one.getBoundingClientRect();"
        "return {id: one.parentElement.id, left: box.left, right: box.right, width: box.width, height: box.height,"
        "shapes: one.querySelectorAll('path, use, text').length}; })"
    )
    expected = ("speedups", "pareto0", "latency0", "parts0", "widths", "history", "signals")
    assert {f"plot-{name}" for name in expected} <= {box["id"] for box in boxes}
    for box in boxes:
        assert box["width"] > 250, box
        assert box["height"] > 80, box
        assert box["left"] >= 0, box
        assert box["right"] <= width, box
        assert box["shapes"] > 10, box


def test_no_text_of_a_plot_is_cut_off(browser: Browser, page: Path) -> None:
    browser.show(page, width=DESK)
    browser.evaluate(OPEN_ALL)
    outside = browser.evaluate(
        f"{PLOTS}.flatMap(one => {{ const box = one.getBoundingClientRect();"
        "return Array.from(one.querySelectorAll('text')).filter(text => { const own = text.getBoundingClientRect();"
        "return own.left < box.left - 2 || own.right > box.right + 2 || own.top < box.top - 2"
        "|| own.bottom > box.bottom + 2; }).map(text => one.parentElement.id + ': ' + text.textContent); })"
    )
    assert outside == []


def test_text_of_a_plot_is_legible_on_a_phone(browser: Browser, page: Path) -> None:
    browser.show(page, width=PHONE)
    browser.evaluate(OPEN_ALL)
    heights = browser.evaluate(
        f"{PLOTS}.flatMap(one => Array.from(one.querySelectorAll('text')).map(text =>"
        "parseFloat(getComputedStyle(text).fontSize) * one.getBoundingClientRect().width / one.viewBox.baseVal.width))"
    )
    assert min(heights) >= 9


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_words_and_lines_stand_out_from_what_lies_behind_them(browser: Browser, page: Path, dark: bool) -> None:
    """WCAG's contrast: 4.5 for text, 3 for the marks and lines of plots that mean something."""
    browser.show(page, width=DESK, dark=dark)
    colours = browser.evaluate(
        "Object.fromEntries(['page', 'surface', 'ink', 'muted', 'accent', 'dense', 'pruned', 'reduced', 'other1',"
        "'other2', 'other3', 'other4', 'good', 'bad', 'open'].map(name => { const one = document.createElement('i');"
        "one.style.color = `var(--${name})`; document.body.append(one);"
        "return [name, getComputedStyle(one).color.match(/[0-9]+/g).map(Number)]; }))"
    )
    assert (luminance(colours["page"]) < 0.1) == dark
    for name, colour in colours.items():
        if name not in ("page", "surface"):
            least = 4.5 if name in ("ink", "muted", "accent", "good", "bad", "open") else 3
            assert contrast(colour, colours["surface"]) >= least, name
    shown = browser.evaluate(
        "[getComputedStyle(document.querySelector('h1')).color, getComputedStyle(document.body).backgroundColor,"
        "getComputedStyle(document.querySelector('#plot-speedups text')).fill]"
    )
    assert len(set(shown)) >= 2
    assert shown[0] != shown[1] != shown[2]


def test_the_page_prints_with_its_plots(browser: Browser, page: Path) -> None:
    browser.show(page, width=DESK, dark=True)
    printed = browser.ask("Page.printToPDF", printBackground=True, transferMode="ReturnAsBase64")
    document = base64.b64decode(printed["data"])
    assert document.startswith(b"%PDF")
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.ask("Emulation.setEmulatedMedia", media="print", features=[dark])
    assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    for element in ("h1", ".said li", "#plot-speedups text", "#table-speed td"):
        colour = browser.evaluate(
            f"(style => (style.fill === 'rgb(0, 0, 0)' ? style.color : style.fill).match(/[0-9]+/g).map(Number))"
            f"(getComputedStyle(document.querySelector('{element}')))"
        )
        assert luminance(colour) < 0.2, element
    assert browser.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--pruned')") == "#1f6feb"


def luminance(colour: list[int]) -> float:
    """Relative luminance of an sRGB colour, in [0, 1]. Source: WCAG 2.2."""
    linear = [part / 255 / 12.92 if part <= 10 else ((part / 255 + 0.055) / 1.055) ** 2.4 for part in colour[:3]]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: list[int], other: list[int]) -> float:
    """Contrast ratio of two colours, from 1 to 21. Source: WCAG 2.2."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)
