"""Folders of pages, served to a headless Chromium that measures how wide each one is."""

from __future__ import annotations

import contextlib
import json
import queue
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

PROGRAMS = ("chromium", "google-chrome", "chromium-browser")
MEASURE = Path(__file__).parent / "measure.html"
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--disable-dev-shm-usage", "--hide-scrollbars", "--window-size=1400,1000"),
)
"""Nothing is asked of any other machine; a container has little shared memory."""


class BrowserError(Exception):
    """There is no browser, or it has measured nothing."""


@dataclass(frozen=True)
class Width:
    """One page at one width of the screen."""

    page: str
    """/site/planning/index.html"""
    width: int
    height: int
    title: str
    scroll_width: int
    """Of the whole page; more than ``client_width`` is a page that moves sideways."""
    client_width: int
    outside: list[str]
    """Elements to the right of the screen, in no box that scrolls."""
    scrolling: list[str]
    """Tables that are wider than the box they scroll in."""

    @property
    def overflows(self) -> bool:
        """Whether a reader has to move the page sideways, or does not see something."""
        return self.scroll_width > self.client_width or bool(self.outside)


def program() -> str | None:
    """A Chromium of this machine."""
    return next((found for name in PROGRAMS if (found := shutil.which(name))), None)


def measure(folders: Mapping[str, Path], widths: tuple[int, ...], seconds: float) -> list[Width]:
    """Every page (``*.html``) below the folders, at every width.

    Args:
        folders: by the first part of their pages' addresses: ``{"site": Path("build/site")}``.
        widths: of the screen, in CSS pixels.
        seconds: for all of it.

    Raises:
        BrowserError: see there.
    """
    browser = program()
    if browser is None:
        raise BrowserError(f"none of {', '.join(PROGRAMS)} is here: apt-get install chromium")
    pages = [
        quote(f"/{name}/{path.relative_to(folder).as_posix()}")
        for name, folder in folders.items()
        for path in sorted(folder.rglob("*.html"))
    ]
    if not pages:
        raise BrowserError(f"no page below {', '.join(map(str, folders.values()))}")
    with (
        _served(folders, pages, widths) as (address, results),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile,
    ):
        process = subprocess.Popen(
            [browser, *_FLAGS, f"--user-data-dir={profile}", address],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            found = results.get(timeout=seconds)
        except queue.Empty:
            raise BrowserError(f"{browser} has measured nothing in {seconds:.0f} s") from None
        finally:
            process.kill()
            process.wait()
    if isinstance(found, str):
        raise BrowserError(found)
    return [Width(**each) for each in found]


@contextlib.contextmanager
def _served(
    folders: Mapping[str, Path], pages: list[str], widths: tuple[int, ...]
) -> Iterator[tuple[str, queue.Queue[Any]]]:
    """The address of the measuring page on this machine, and where its results arrive."""
    results: queue.Queue[Any] = queue.Queue()
    wanted = json.dumps({"pages": pages, "widths": widths})
    start = MEASURE.read_text(encoding="utf-8").replace("WANTED", wanted)
    handler = partial(_Handler, folders=folders, start=start, results=results)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", results
        finally:
            server.shutdown()


class _Handler(SimpleHTTPRequestHandler):
    def __init__(
        self, *args: Any, folders: Mapping[str, Path], start: str, results: queue.Queue[Any]
    ) -> None:
        self._folders, self._start, self._results = folders, start, results
        super().__init__(*args)

    def do_GET(self) -> None:
        if self.path != "/":
            super().do_GET()
            return
        body = self._start.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        self._results.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def translate_path(self, path: str) -> str:
        """A file below one of the folders."""
        name, _, rest = path.lstrip("/").partition("/")
        if name not in self._folders:
            return ""
        self.directory = str(self._folders[name])
        return super().translate_path("/" + rest)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""
