"""Chromium without a window, driven through two pipes in its DevTools protocol: no library, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")


def find() -> str | None:
    """Find a Chromium: what CROSSOVER_CHROMIUM says, else the usual names."""
    return os.environ.get("CROSSOVER_CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Chromium:
    """A browser with one page; what the page asked the network for and told the console is kept."""

    def __init__(self, program: str, profile: Path) -> None:
        ours, theirs = os.pipe(), os.pipe()
        # The protocol's pipes are descriptors 3 (in) and 4 (out) of the browser; a shell puts them there.
        script = f'exec "$0" "$@" 3<&{ours[0]} 4>&{theirs[1]}'
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
                   "--remote-debugging-pipe", f"--user-data-dir={profile}", "--disable-background-networking",
                   "--hide-scrollbars", "about:blank"]  # fmt: skip
        self.process = subprocess.Popen(
            ["bash", "-c", script, program, *options], pass_fds=(ours[0], theirs[1]), stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(ours[0])
        os.close(theirs[1])
        self._to, self._from, self._rest = ours[1], theirs[0], b""
        self._number, self._session = 0, ""
        self.requests: list[str] = []
        self.console: list[str] = []
        self._events: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._to)
        os.close(self._from)
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Ask the browser for something and wait for the answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            said = self._next(time.monotonic() + 30)
            if said.get("id") == self._number:
                assert "error" not in said, said
                return said["result"]

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._from, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        line, _, self._rest = self._rest.partition(b"\0")
        said = json.loads(line)
        self._note(said.get("method", ""), said.get("params", {}))
        return said

    def _note(self, method: str, params: dict[str, Any]) -> None:
        self._events.append(method)
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Runtime.exceptionThrown":
            self.console.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled":
            self.console.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded":
            self.console.append(params["entry"]["text"])

    def open(self, address: str) -> None:
        """Open a page and wait until it is there."""
        self.requests.clear()
        self.console.clear()
        self._events.clear()
        self.call("Page.navigate", url=address)
        until = time.monotonic() + 30
        while "Page.loadEventFired" not in self._events:
            self._next(until)

    def show(self, width: int, *, dark: bool = False, height: int = 900, medium: str = "") -> None:
        """Give the page a width in CSS pixels, a taste in colours, and a medium."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=width < 600)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=medium, features=[scheme])

    def ask(self, expression: str) -> Any:
        """Evaluate JavaScript in the page (from outside: the page's own policy does not bind it)."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 15.0) -> None:
        """Wait until an expression is true in the page."""
        until = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < until, f"never true: {expression}"
            time.sleep(0.05)

    def screenshot(self, path: Path, *, whole: bool = True) -> bytes:
        """Store a picture of the page."""
        made = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        picture = base64.b64decode(made["data"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture)
        return picture
