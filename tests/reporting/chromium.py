"""A headless Chromium, driven through its DevTools protocol over a pair of pipes: no driver, no port, no package."""

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

REQUIRED = "SPARSEKIT_REQUIRE_CHROMIUM"
"""Environment variable: where it is set, a missing Chromium fails the tests that need it."""

MISSING = "no Chromium on this machine: install Debian's package 'chromium' (apt-get install chromium)"
_PATIENCE_S = 120
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


def executable() -> str | None:
    """Where Chromium is, None where it is not."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Chromium:
    """One tab.

    Attributes:
        events: what the browser reported since the last `open`, as DevTools events.
    """

    def __init__(self, profile: Path) -> None:
        """Start it with a fresh profile in the folder ``profile``."""
        found = executable()
        assert found, MISSING
        to_read, its_output = os.pipe()
        its_input, to_write = os.pipe()
        # The browser reads commands from descriptor 3 and writes answers to descriptor 4.
        start = f'exec "$0" "$@" 3<&{its_input} 4>&{its_output}'
        command = ["/bin/bash", "-c", start, found, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        with open(profile.with_suffix(".log"), "wb") as log:
            self._process = subprocess.Popen(command, pass_fds=(its_input, its_output), stdout=log, stderr=log)
        os.close(its_input)
        os.close(its_output)
        self._from, self._to = to_read, to_write
        self._received = b""
        self._sent = 0
        self._session: str | None = None
        self.events: list[dict[str, Any]] = []
        page = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(_PATIENCE_S)
        os.close(self._from)
        os.close(self._to)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """One command; its result."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._sent:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def open(self, path: Path, width: int, height: int, scheme: str = "light") -> None:
        """Load a file into a window of so many CSS pixels, with ``scheme`` "light" or "dark"."""
        self.resize(width, height)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())

    def resize(self, width: int, height: int) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if width < 500 else 1,
            mobile=width < 500,
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.send("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of the window, or of the whole page."""
        image = self.send("Page.captureScreenshot", captureBeyondViewport=whole)
        if whole:
            size = self.send("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            image = self.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(image["data"]))

    def print(self, path: Path) -> None:
        """A PDF as it would be printed."""
        path.write_bytes(base64.b64decode(self.send("Page.printToPDF")["data"]))

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + _PATIENCE_S
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._from], [], [], max(0.0, until - time.monotonic()))
            part = os.read(self._from, 1 << 20) if ready else b""
            assert part, f"Chromium {'ended' if ready else 'does not answer'}"
            self._received += part
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)
