"""Write `docs/images/page.png`, the README's picture: the page of `manyvec serve` over the sample passages.

    python scripts/screenshot.py ["your question"]

Needs Chromium and its driver (Debian: apt-get install chromium chromium-driver) and the extras `serve` and `dev`.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from urllib.parse import quote

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

import manyvec
from manyvec import files

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "page.png"
QUESTION = "Who discovered oxygen?"
SIZE = "--window-size=1100,800"


def main(arguments: list[str]) -> int:
    question = arguments[0] if arguments else QUESTION
    with tempfile.TemporaryDirectory() as folder:
        uri = str(Path(folder) / "encyclopedia")
        with manyvec.Index.create(uri, filter_columns={"article": str, "n_words": int, "topics": list[str]}) as index:
            index.add(files.read(ROOT / "examples" / "data" / "squad_sample.jsonl"))
        command = [sys.executable, "-m", "manyvec", "serve", "--index", uri, "--port", "0"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        try:
            assert server.stderr is not None
            url = next(line.split()[0] for line in server.stderr if line.startswith("http://"))
            take(f"{url}?q={quote(question)}", folder)
        finally:
            server.terminate()
            server.wait()
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size:,} bytes")
    return 0


def take(url: str, folder: str) -> None:
    """Open the page, wait until matched words are marked, and write the picture."""
    options = webdriver.ChromeOptions()
    # Chromium's sandbox does not run as root.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    for flag in ["--headless", "--hide-scrollbars", SIZE, f"--user-data-dir={folder}/chromium", *sandbox]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        # The first search also reads what later ones have in memory.
        for _ in range(2):
            driver.get(url)
            WebDriverWait(driver, 120).until(lambda _: driver.find_elements("css selector", ".hit mark"))
        PICTURE.parent.mkdir(exist_ok=True)
        PICTURE.write_bytes(driver.get_screenshot_as_png())
    finally:
        driver.quit()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
