"""Look at every page of the built site in headless Chromium: `make look`.

Each page is opened at the width of a desktop and of a phone, light and dark, with nothing to be had
but the site itself. Pictures of the four go side by side into sheets in build/look, several for a
long page. What is wrong is printed, and the exit code is 1: a request elsewhere, an error in the
console, a page that is wider than its window, a picture or formula that is not shown.
"""

import functools
import http.server
import io
import itertools
import pathlib
import shutil
import sys
import threading
import urllib.parse

from PIL import Image
from playwright import sync_api

ROOT = pathlib.Path(__file__).parent.parent.parent
SITE, SHEETS = ROOT / "build/site", ROOT / "build/look"
WIDTHS = {"desktop": 1280, "phone": 390}
LONGEST = 6000  # pixels of a page that are in one sheet

WRONG = """() => {
  const found = [];
  const room = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > room) {
    const wide = [...document.querySelectorAll(".md-main *")].filter(
      (e) => e.getBoundingClientRect().right > room + 1 && !e.closest(
        ".md-typeset__scrollwrap, .formula, pre, .highlight, .md-sidebar"));
    found.push("wider than the window: " + wide.slice(0, 3).map((e) => e.outerHTML.slice(0, 80)));
  }
  for (const image of document.querySelectorAll("article img"))
    if (!image.naturalWidth) found.push("no picture: " + image.src);
  for (const math of document.querySelectorAll("article math"))
    if (!math.getBoundingClientRect().width) found.push("no formula: " + math.textContent);
  return found;
}"""


def main(*names):
    """Look at the pages of these names, e.g. `zh/faq.html`, or at all."""
    shutil.rmtree(SHEETS, ignore_errors=True)
    SHEETS.mkdir(parents=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    pages = sorted(path.relative_to(SITE) for path in SITE.rglob("*.html"))
    pages = [page for page in pages if not names or str(page) in names]
    if not pages:
        sys.exit(f"{SITE} has no such pages; make docs")
    problems = []
    with _server() as server, sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        looks = {
            (name, scheme): _Look(browser, width, scheme)
            for (name, width), scheme in itertools.product(WIDTHS.items(), ("light", "dark"))
        }
        for page in pages:
            pictures = []
            for (name, scheme), look in looks.items():
                for problem in look.at(f"http://localhost:{server.server_port}/{page}"):
                    problems.append(f"{page}, {name}, {scheme}: {problem}")
                pictures.append(look.pictures())
            for part, images in enumerate(itertools.zip_longest(*pictures)):
                name = "_".join(page.with_suffix("").parts) + (f"-{part + 1}" if part else "")
                _sheet(images).save(SHEETS / f"{name}.png")
        browser.close()
    print("\n".join(dict.fromkeys(problems)))
    print(f"{len(pages)} pages, {len(problems)} problems; sheets in {SHEETS}")
    return 1 if problems else 0


class _Look:
    """A window of one width and scheme."""

    def __init__(self, browser, width, scheme):
        self._page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self._problems = []
        self._page.route("**/*", self._only_here)
        self._page.on("pageerror", lambda error: self._problems.append(str(error)))
        self._page.on("console", self._told)

    def at(self, url):
        """Open a page and tell what is wrong."""
        self._problems = []
        self._page.goto(url, wait_until="load")
        self._page.wait_for_timeout(200)  # tables are wrapped after that
        return [*self._problems, *self._page.evaluate(WRONG)]

    def pictures(self):
        """The page, cut where it is too long."""
        height = self._page.evaluate("document.documentElement.scrollHeight")
        width = self._page.viewport_size["width"]
        for top in range(0, height, LONGEST):
            clip = {"x": 0, "y": top, "width": width, "height": min(height - top, LONGEST)}
            yield Image.open(io.BytesIO(self._page.screenshot(full_page=True, clip=clip)))

    def _only_here(self, route):
        url = urllib.parse.urlsplit(route.request.url)
        if url.hostname == "localhost" or url.scheme in ("data", "blob"):
            return route.continue_()
        self._problems.append(f"asks for {route.request.url}")
        return route.abort()

    def _told(self, message):
        if message.type == "error":
            self._problems.append(message.text)


def _sheet(images):
    """The pictures side by side, those of the desktop at half their size; None is nothing."""
    images = [image.convert("RGB") for image in images if image]
    images = [image.reduce(2) if image.width > 640 else image for image in images]
    sheet = Image.new("RGB", (sum(i.width + 10 for i in images), max(i.height for i in images)))
    left = 0
    for image in images:
        sheet.paste(image, (left, 0))
        left += image.width + 10
    return sheet


def _server():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(
        ("localhost", 0), functools.partial(Quiet, directory=str(SITE))
    )
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
