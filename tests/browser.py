"""A headless Chromium for tests of pages: its DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

_NAMES = (
    "chromium-headless-shell",
    "chrome-headless-shell",
    "chromium",
    "chromium-browser",
    "google-chrome",
)
_FLAGS = (
    "--headless",
    "--remote-debugging-pipe",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--hide-scrollbars",
    "--force-color-profile=srgb",
    # Chromium does not start as root in its sandbox, and it only opens pages of the tests.
    "--no-sandbox",
)


def find_chromium() -> str:
    """The program that `WOSAC_CHROMIUM` names, else one on the PATH; without one, skip the test."""
    names = (os.environ["WOSAC_CHROMIUM"],) if "WOSAC_CHROMIUM" in os.environ else _NAMES
    program = next((path for name in names if (path := shutil.which(name))), None)
    if program is None or shutil.which("bash") is None:
        pytest.skip("no browser: install chromium (Debian: chromium-headless-shell)")
    return program


class Browser:
    """One tab of a headless Chromium.

    Attributes:
        problems: exceptions, errors and warnings on the console since the last `open`.
        requests: the addresses that were loaded since the last `open`.
    """

    def __init__(self, profile: Path, timeout: float = 30.0) -> None:
        """Start it.

        Args:
            profile: an empty folder for its files.
            timeout: seconds that it may take to answer.
        """
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._timeout = timeout
        self._loaded = False
        self._number = 0
        self._buffer = b""
        # It reads commands from descriptor 3 and answers on 4. Ours must be neither before bash
        # has put them there.
        commands, self._to = os.pipe()
        self._from, answers = os.pipe()
        low, high = (fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (commands, answers))
        script = f'exec "$@" 3<&{low} 4>&{high}'
        command = [find_chromium(), *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", *command],
            pass_fds=(low, high),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (commands, answers, low, high):
            os.close(descriptor)
        self._session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._to)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._from)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the DevTools protocol, and its answer."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        result: dict[str, Any] = answer["result"]
        return result

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self._timeout
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._from], [], [], max(0, end - time.monotonic()))
            chunk = os.read(self._from, 1 << 16) if ready else b""
            if not chunk:
                raise TimeoutError("the browser does not answer")
            self._buffer += chunk
        message, _, self._buffer = self._buffer.partition(b"\0")
        fields: dict[str, Any] = json.loads(message)
        return fields

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                exception = details.get("exception", {})
                self.problems.append(exception.get("description", details["text"]))
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.problems.append(" ".join(str(a.get("value")) for a in params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.problems.append(params["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Page.loadEventFired":
                self._loaded = True

    def open(self, address: Path | str) -> None:
        """Load a page and wait until it is there."""
        url = address.resolve().as_uri() if isinstance(address, Path) else address
        # From a blank page, a change after the # alone loads the page anew as well.
        for each in ("about:blank", url):
            self.problems, self.requests, self._loaded = [], [], False
            answer = self.call("Page.navigate", url=each)
            if "errorText" in answer:
                raise RuntimeError(f"{each}: {answer['errorText']}")
            while not self._loaded:
                self._note(self._next())

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in answer:
            raise RuntimeError(answer["exceptionDetails"]["exception"]["description"])
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """Click the middle of an element with the mouse."""
        x, y = self.run(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            "e.scrollIntoView({block: 'center', inline: 'center'});"
            "const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2];"
            "})()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        """Press a key that is none of a character: Tab, Enter, ArrowRight, Home."""
        code = {"Tab": 9, "Enter": 13, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        keys = {"key": key, "code": key, "windowsVirtualKeyCode": code[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **keys, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **keys)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self.call("Input.insertText", text=text)

    def resize(self, width: int, height: int, *, dark: bool = False, mobile: bool = False) -> None:
        """Set the size of the window in pixels, and the colour scheme that is asked for."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if mobile else 1,
            mobile=mobile,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of the window, or of the whole page."""
        picture = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))
