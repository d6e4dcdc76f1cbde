"""Draw docs/page.png: the top of the page that the explain.py command in README writes.

pip install playwright && python tests/make_page_picture.py        # This needs Chromium or Chrome.
"""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parents[1]
ARGS = "To be, or not to", "--model_size", "shakespeare", "--page"

with tempfile.TemporaryDirectory() as directory, sync_playwright() as playwright:
    page = Path(directory) / "page.html"
    subprocess.run([sys.executable, ROOT / "explain.py", *ARGS, page], cwd=ROOT, check=True)
    program = shutil.which("chromium") or shutil.which("google-chrome")
    browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    tab.goto(page.as_uri())
    tab.wait_for_selector("html[data-drawn]")
    end = tab.locator("#looks").bounding_box()["y"]  # The picture ends after the attention maps.
    clip = {"x": 0, "y": 0, "width": 1280, "height": end - 10}
    tab.screenshot(path=ROOT / "docs" / "page.png", clip=clip, full_page=True)
    browser.close()
