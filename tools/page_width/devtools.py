"""A headless Chromium on a pipe: one page at a time, as a screen of any width has it."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .browser import _FLAGS, BrowserError, program

_PHONE_BELOW = 600
"""Pixels of width."""
CUT_TEXT = """(() => {
  const found = [], root = document.documentElement;
  if (root.scrollWidth > root.clientWidth) found.push("page is " + root.scrollWidth + " wide");
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; node = walker.nextNode();) {
    if (!node.data.trim()) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    const box = range.getBoundingClientRect();
    if (!box.width) continue;
    const say = what => found.push(what + ": " + JSON.stringify(node.data.trim().slice(0, 60)));
    const home = node.parentElement.closest("td, th, li, p, h1, h2, h3, summary, code, a");
    const outer = home && home.closest("td, th, li, p, h1, h2, h3, summary");
    const block = outer && outer.getBoundingClientRect();
    if (block && (box.right > block.right + 1 || box.left < block.left - 1)) say("over its border");
    let held = false;
    for (let at = node.parentElement; at && at !== document.body; at = at.parentElement) {
      const style = getComputedStyle(at), wide = at.scrollWidth > at.clientWidth + 1;
      if (wide && (style.overflowX === "hidden" || style.overflowX === "clip")) say("cut");
      held = held || style.overflowX === "auto" || style.overflowX === "scroll";
    }
    if (!held && (box.right > root.clientWidth + 1 || box.left < -1)) say("outside the screen");
  }
  return found;
})()"""
"""Texts of a page that are cut, stand over their cell's border, or outside the screen."""


class Browser:
    """A tab of Chromium; ``requests`` and ``said`` are what its page has asked for and said."""

    def __init__(self, reads: int, writes: int, seconds: float) -> None:
        self._reads, self._writes, self._end = reads, writes, time.monotonic() + seconds
        self._buffer, self._numbers, self._session = b"", itertools.count(1), ""
        self.requests: list[str] = []
        self.said: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = session["sessionId"]
        for domain in ("Page", "Runtime", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """The result of a method of the DevTools protocol."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        found = self._until(lambda each: each.get("id") == number)
        if "error" in found:
            raise BrowserError(f"{method}: {found['error']}")
        return found["result"]

    def open(self, page: Path, width: int, height: int = 900) -> None:
        """Show a page in ``width`` pixels, a phone's if they are few, and wait for it."""
        self.requests.clear()
        self.said.clear()
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < _PHONE_BELOW,
        )
        self.call("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda each: each.get("method") == "Page.loadEventFired")
        self.evaluate("document.fonts.ready.then(() => 1)")

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript in the page."""
        options = {"returnByValue": True, "awaitPromise": True}
        found = self.call("Runtime.evaluate", expression=expression, **options)
        if "exceptionDetails" in found:
            raise BrowserError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        found = self.call(
            "Page.captureScreenshot",
            format="png",
            captureBeyondViewport=True,
            clip={**size, "scale": 1},
        )
        path.write_bytes(base64.b64decode(found["data"]))

    def _until(self, is_wanted: Any) -> Any:
        while True:
            while b"\0" in self._buffer:
                text, self._buffer = self._buffer.split(b"\0", 1)
                message = json.loads(text)
                self._note(message)
                if is_wanted(message):
                    return message
            left = self._end - time.monotonic()
            if left <= 0 or not select.select([self._reads], [], [], left)[0]:
                raise BrowserError("the browser has not answered in time")
            data = os.read(self._reads, 2**20)
            if not data:
                raise BrowserError("the browser has ended")
            self._buffer += data

    def _note(self, message: Any) -> None:
        method, params = message.get("method"), message.get("params", {})
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        if method in ("Page.javascriptDialogOpening", "Runtime.exceptionThrown") or (
            method == "Runtime.consoleAPICalled"
        ):
            self.said.append(f"{method} {json.dumps(params)[:200]}")


@contextlib.contextmanager
def open_browser(seconds: float) -> Iterator[Browser]:
    """A browser for the block, which ends it after ``seconds``.

    Raises:
        BrowserError: there is none, or it does not answer.
    """
    path = program()
    if path is None:
        raise BrowserError("no Chromium is here: apt-get install chromium")
    down, up = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = os.posix_spawn(
            path,
            [path, *_FLAGS, f"--user-data-dir={profile}", "--remote-debugging-pipe"],
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                # First out of the way of each other: the pipes may have these numbers.
                (os.POSIX_SPAWN_DUP2, down[0], 103),
                (os.POSIX_SPAWN_DUP2, up[1], 104),
                (os.POSIX_SPAWN_DUP2, 103, 3),
                (os.POSIX_SPAWN_DUP2, 104, 4),
            ],
            setpgroup=0,
        )
        os.close(down[0])
        os.close(up[1])
        try:
            yield Browser(up[0], down[1], seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            os.close(up[0])
            os.close(down[1])
