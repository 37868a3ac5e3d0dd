"""Draw the pictures of the documentation: `nox -s pictures`.

What is shown are real runs, in a real browser. Each picture is a WebP in `docs/pictures/`, 1,400 pixels wide.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from selenium import webdriver
from selenium.webdriver.chrome.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

PICTURES = Path(__file__).parent.resolve() / "pictures"
WIDTH, HEIGHT = 1400, 1000
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
DOWN = ("--rate", "150..300:6s,300:4s", "--fault", "server.down:from=4,until=5.5")
SETTLES_S = 3
"""How long a page may take to draw what it shows."""


def cpsim(*arguments: str) -> None:
    """Run a command of cpsim, whatever it finds."""
    subprocess.run(["cpsim", *arguments], check=False, stdout=subprocess.DEVNULL)  # noqa: S603, S607


@contextmanager
def fake(*arguments: str) -> Iterator[dict[str, str]]:
    """A fake that runs as a process, with its addresses as in its ready file."""
    ready = Path("ready")
    command = ["cpsim", "serve", "--unix", "creditapi.socket", "--http", "127.0.0.1:0", "--ready-file", ready]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.DEVNULL) as process:  # noqa: S603
        try:
            while not ready.exists() and process.poll() is None:
                time.sleep(0.1)
            yield dict(line.split(maxsplit=1) for line in ready.read_text(encoding="utf-8").splitlines())
        finally:
            process.terminate()


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """A browser that has no window."""
    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for flag in ("--headless", "--no-sandbox", "--disable-gpu", f"--window-size={WIDTH},{HEIGHT}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        yield driver
    finally:
        driver.quit()


def draw(driver: webdriver.Chrome, address: str, name: str) -> None:
    """Draw the upper part of a page."""
    driver.get(address)
    time.sleep(SETTLES_S)
    shot = driver.execute_cdp_cmd("Page.captureScreenshot", {"format": "webp", "quality": 80})
    (PICTURES / f"{name}.webp").write_bytes(base64.b64decode(shot["data"]))


def main() -> None:
    """Draw all pictures."""
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, browser() as driver:
        os.chdir(folder)
        Path("secret").write_text("demo\n", encoding="utf-8")
        with fake("--fault", "late=0.02:kind=claim,probability=0.05") as at:
            target = ("--target", "./creditapi.socket", "--server", at["http"])
            secret = ("--project", "demo", "--secret-file", "secret")
            cpsim("run", "smoke", "--seed", "7", "--rate", "150", *target, *secret)
            draw(driver, at["http"].removesuffix("api"), "dashboard")
        cpsim("run", "smoke", "--seed", "7", "--output", "down", *DOWN)
        draw(driver, Path("down/report.html").resolve().as_uri(), "run")
        for seed in "12345678":
            cpsim("run", "smoke", "--seed", seed, "--rate", "400")
        cpsim("runs", "--page", "runs.html")
        draw(driver, Path("runs.html").resolve().as_uri(), "runs")
        cpsim("run", "challenge", "--seed", "7", "--virtual", "--output", "credit")
        cpsim("report", "credit", "--output", "credit.html")
        draw(driver, Path("credit.html").resolve().as_uri(), "credit")


if __name__ == "__main__":
    main()
