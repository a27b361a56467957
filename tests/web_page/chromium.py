"""One Chromium for all pages of a test process: each page has a context, so nothing, of its own."""

import atexit
import os
import shutil
import signal
import subprocess
import tempfile
import time
from functools import lru_cache
from pathlib import Path

from tests.rig.programs import require_program

FLAGS = [
    "--no-sandbox",
    # Made-up microphone and camera; the screen that is shared is really the page's own tab.
    "--use-fake-device-for-media-stream=display-media-type=browser",
    "--use-fake-ui-for-media-stream",
    "--autoplay-policy=no-user-gesture-required",
    "--disable-features=WebRtcHideLocalIpsWithMdns",
    "--disable-background-networking",
]
_ALONE = [
    # What a driver that starts a browser by itself asks for, as far as tests depend on it.
    "--headless=new",
    "--hide-scrollbars",
    "--mute-audio",
    "--no-first-run",
    "--disable-background-timer-throttling",
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
]


@lru_cache(maxsize=1)
def shared_chromium() -> str:
    """Where to connect to it by the DevTools protocol; it ends with this process."""
    program = require_program("chromium", apt="chromium")
    folder = tempfile.mkdtemp(prefix="chromium-")
    process = subprocess.Popen(
        [program, *FLAGS, *_ALONE, f"--user-data-dir={folder}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    atexit.register(_end, process, folder)
    while process.poll() is None:
        if len(told := _told(Path(folder) / "DevToolsActivePort")) == 2:
            return f"ws://127.0.0.1:{told[0]}{told[1]}"
        time.sleep(0.02)
    raise RuntimeError(f"{program} ended with {process.returncode} before it could be used")


def _told(file: Path) -> list[str]:
    """Its port and the path there, once it has them."""
    return file.read_text().splitlines() if file.exists() else []


def _end(process: subprocess.Popen[bytes], folder: str) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    shutil.rmtree(folder, ignore_errors=True)
