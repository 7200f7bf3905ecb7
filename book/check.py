"""Looks at every page of a built book in headless Chromium and says what is wrong.

    python -m book.check build/book/html [--screenshots FOLDER]

A page is loaded at 375 and 1440 pixels, light and dark. Wrong are: a message of the console, an exception, a request
that leaves the folder or fails, a link to a page or place that does not exist, an equation that is not rendered, a page
wider than its window, text too small or with too little contrast.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin, urlparse

from bs4 import BeautifulSoup
from tornado.websocket import WebSocketClientConnection, websocket_connect

WIDTHS = (375, 1440)
THEMES = ("light", "dark")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
SHOTS = ("index", "reading", "explorers", "claims", "which_loss", "api/losses", "notebooks/02_normface")

# What is measured in a page once MathJax is done; contrast by WCAG's relative luminance.
PROBE = """
(async () => {
  const math = document.querySelectorAll('.math');
  if (math.length) {
    for (let wait = 0; wait < 200 && !(window.MathJax && MathJax.startup && MathJax.startup.promise); wait++)
      await new Promise((done) => setTimeout(done, 50));
    await MathJax.startup.promise;
  }
  const raw = [...math].filter((one) => !one.querySelector('mjx-container')).map((one) => one.textContent.slice(0, 80));
  const wrong = [...document.querySelectorAll('mjx-merror, [data-mjx-error]')].map((one) =>
    one.getAttribute('data-mjx-error') || one.textContent);
  const loose = [...document.querySelectorAll('article p, article li, article td')].filter((one) =>
    !one.closest('.highlight, .cell_output, .explorer') && /\\$[^$ ]+\\$|\\\\\\(/.test(
      [...one.childNodes].filter((node) => node.nodeType === 3).map((node) => node.data).join(' ')))
    .map((one) => one.textContent.slice(0, 80));
  const channel = (value) => (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  const parsed = (color) => [...color.match(/[\\d.]+/g).map(Number), 1].slice(0, 4);
  const light = ([r, g, b]) =>
    0.2126 * channel(r / 255) + 0.7152 * channel(g / 255) + 0.0722 * channel(b / 255);
  const over = (below, above) => below.map((value, at) => value * (1 - above[3]) + above[at] * above[3]);
  const behind = (one) => {
    const layers = [];
    for (let at = one; at && (layers.at(-1) || [0, 0, 0, 0])[3] < 1; at = at.parentElement)
      layers.push(parsed(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce(over, [255, 255, 255]);
  };
  let contrast = 21, faint = '', smallest = 99;
  for (const one of document.querySelectorAll('article :is(p, li, td, h1, h2), .explorer label')) {
    if (!one.textContent.trim() || !one.offsetParent) continue;
    const style = getComputedStyle(one);
    const [a, b] = [light(parsed(style.color)), light(behind(one))].sort((x, y) => y - x);
    if ((a + 0.05) / (b + 0.05) < contrast) {
      contrast = (a + 0.05) / (b + 0.05);
      faint = `${one.textContent.trim().slice(0, 60)} (${style.color} on ${behind(one)})`;
    }
    smallest = Math.min(smallest, parseFloat(style.fontSize));
  }
  const explorers = [...document.querySelectorAll('.explorer')].map((one) => one.querySelectorAll('svg path').length);
  return JSON.stringify({
    equations: math.length, raw, wrong, loose, contrast, faint, smallest, explorers,
    wide: document.documentElement.scrollWidth - window.innerWidth,
    images: [...document.images].filter((one) => one.loading !== 'lazy' && !one.naturalWidth)
      .map((one) => one.src.slice(-80)),
  });
})()
"""


class Browser:
    """A page of Chromium, driven by its debugging protocol."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self.socket = socket
        self.events: list[dict[str, Any]] = []
        self._count = 0

    async def _next(self) -> dict[str, Any]:
        message = await self.socket.read_message()
        if message is None:
            raise RuntimeError("Chromium has ended")
        return json.loads(message)

    async def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """The result of one command; events that come meanwhile are kept."""
        self._count += 1
        await self.socket.write_message(json.dumps({"id": self._count, "method": method, "params": arguments}))
        while True:
            message = await self._next()
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)

    async def open(self, address: str) -> None:
        """Load a page to its end."""
        self.events.clear()
        await self.call("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(await self._next())

    async def evaluate(self, script: str, **options: Any) -> Any:
        """What a script gives in the page; `options` are those of the protocol."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True, **options}
        found = await self.call("Runtime.evaluate", **asked)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")


def browser_path() -> str | None:
    """The Chromium of this machine, if it has one."""
    return next((path for name in BROWSERS if (path := shutil.which(name))), None)


@asynccontextmanager
async def browser(program: str) -> AsyncIterator[Browser]:
    """A running Chromium with an empty profile, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="book-", ignore_cleanup_errors=True) as profile:
        options = [*OPTIONS, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
        process = subprocess.Popen([program, *options], stderr=subprocess.PIPE, text=True)
        try:
            assert process.stderr is not None
            port = next(found.group(1) for line in process.stderr if (found := re.search(r"ws://[^:]+:(\d+)/", line)))
            from tornado.httpclient import AsyncHTTPClient

            targets = json.loads((await AsyncHTTPClient().fetch(f"http://127.0.0.1:{port}/json/list")).body)
            page = next(target for target in targets if target["type"] == "page")
            made = Browser(await websocket_connect(page["webSocketDebuggerUrl"], max_message_size=2**28))
            for domain in ("Page", "Runtime", "Log", "Network"):
                await made.call(f"{domain}.enable")
            yield made
        finally:
            process.kill()
            process.wait()


def complaints(events: Sequence[dict[str, Any]], folder: Path) -> list[str]:
    """What the console, the exceptions and the requests of a page say."""
    found = []
    for event in events:
        said = event["params"]
        match event["method"]:
            case "Runtime.consoleAPICalled" if said["type"] in ("error", "warning", "assert"):
                found.append(f"console: {[one.get('value') for one in said['args']]}")
            case "Runtime.exceptionThrown":
                found.append(f"exception: {said['exceptionDetails'].get('exception', {}).get('description', said)}")
            case "Log.entryAdded" if said["entry"]["level"] in ("error", "warning"):
                found.append(f"log: {said['entry']['text']} {said['entry'].get('url', '')}")
            case "Network.loadingFailed" if not said.get("canceled"):
                found.append(f"request failed: {said['errorText']}")
            case "Network.requestWillBeSent":
                address = said["request"]["url"]
                if not address.startswith((folder.as_uri(), "data:", "blob:")):
                    found.append(f"request to another place: {address}")
    return found


def broken_links(folder: Path) -> list[str]:
    """Links and pictures within the book that lead nowhere."""
    pages = {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in folder.rglob("*.html")}
    places = {path: {one["id"] for one in page.find_all(id=True)} for path, page in pages.items()}
    found = []
    for path, page in pages.items():
        asked = [(one.get("href") or one.get("src"), one.name) for one in page.find_all(["a", "link", "img", "script"])]
        for address, kind in asked:
            parts = urlparse(address or "")
            if not address or parts.scheme or parts.netloc:
                if kind in ("link", "img", "script") and parts.netloc:
                    found.append(f"{path.relative_to(folder)}: {kind} from another place: {address}")
                continue
            plain, place = urldefrag(urljoin(path.as_uri(), address))
            target = Path(unquote(urlparse(plain).path))
            if not target.exists():
                found.append(f"{path.relative_to(folder)}: {address} does not exist")
            elif place and target in places and unquote(place) not in places[target]:
                found.append(f"{path.relative_to(folder)}: {address} has no such place")
    return found


def wrongs(measured: dict[str, Any]) -> list[str]:
    """What the probe of a page found wrong."""
    found = [f"equation not rendered: {one}" for one in measured["raw"]]
    found += [f"equation with an error: {one}" for one in measured["wrong"]]
    found += [f"formula left as text: {one}" for one in measured["loose"]]
    found += [f"picture not shown: {one}" for one in measured["images"]]
    if measured["wide"] > 0:
        found.append(f"{measured['wide']} pixels wider than the window")
    if measured["contrast"] < 4.5:
        found.append(f"contrast {measured['contrast']:.1f}, at least 4.5 is needed: {measured['faint']}")
    if measured["smallest"] < 12:
        found.append(f"text of {measured['smallest']} pixels, at least 12 are needed")
    found += ["an explorer drew nothing"] * sum(paths == 0 for paths in measured["explorers"])
    return found


async def look(program: str, folder: Path, screenshots: Path | None) -> tuple[list[str], int]:
    """Wrong things of all pages, and the number of equations seen (at the first width and theme)."""
    found, equations = [], 0
    pages = sorted(path for path in folder.rglob("*.html") if "_static" not in path.parts)
    async with browser(program) as page:
        for width in WIDTHS:
            size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
            await page.call("Emulation.setDeviceMetricsOverride", **size)
            for theme in THEMES:
                scheme = [{"name": "prefers-color-scheme", "value": theme}]
                await page.call("Emulation.setEmulatedMedia", features=scheme)
                for path in pages:
                    name = path.relative_to(folder).with_suffix("").as_posix()
                    print(f"{width} {theme} {name}", file=sys.stderr, flush=True)
                    await page.open(path.as_uri())
                    measured = json.loads(await page.evaluate(PROBE))
                    said = [*complaints(page.events, folder), *wrongs(measured)]
                    found += [f"{name} at {width}, {theme}: {one}" for one in said]
                    equations += measured["equations"] if (width, theme) == (WIDTHS[0], THEMES[0]) else 0
                    if screenshots is not None and name in SHOTS:
                        shot = await page.call("Page.captureScreenshot", format="png")
                        screenshots.mkdir(parents=True, exist_ok=True)
                        file = screenshots / f"{name.replace('/', '-')}-{width}-{theme}.png"
                        file.write_bytes(base64.b64decode(shot["data"]))
        found += await search(page, folder)
    return found, equations


async def search(page: Browser, folder: Path) -> list[str]:
    """What is wrong with the search, if the book has one."""
    if not (folder / "search.html").exists():
        return []
    await page.open(f"{(folder / 'search.html').as_uri()}?q=simplex")
    for _ in range(100):
        if await page.evaluate("document.querySelectorAll('ul.search li a').length"):
            # what goes wrong with what it found is told a moment later
            await asyncio.sleep(1)
            await page.evaluate("0")
            return complaints(page.events, folder)
        await asyncio.sleep(0.1)
    return ["the search finds nothing for simplex"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 all is well, 1 something is wrong, 2 there is nothing to look at."""
    parser = argparse.ArgumentParser(prog="book.check", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the built pages, build/book/html")
    parser.add_argument("--screenshots", type=Path, metavar="FOLDER", help="keep pictures of some pages")
    chosen = parser.parse_args(arguments)
    folder, program = chosen.folder.resolve(), browser_path()
    if not (folder / "index.html").exists() or program is None:
        missing = "no Chromium was found" if program is None else f"{folder} holds no index.html"
        print(f"book.check: {missing}", file=sys.stderr)
        return 2
    found = broken_links(folder)
    seen, equations = asyncio.run(look(program, folder, chosen.screenshots))
    found += seen
    print("\n".join(found))
    pages = len(list(folder.rglob("*.html")))
    print(f"{pages} pages, {equations} formulas, {len(WIDTHS) * len(THEMES)} looks at each: {len(found)} wrong")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
