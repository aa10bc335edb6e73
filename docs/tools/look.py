"""Check every page of the built site in headless Chromium: `make look`.

Each page is opened at desktop and phone width, light and dark, with access to the site only. The
four screenshots are saved side by side as sheets in build/look, several for a long page. Problems
are printed and set the exit code to 1: a request to another host, an error in the console, a page
that is wider than its window, a picture or formula that is not displayed.
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
LONGEST = 6000  # pixels of a page in one sheet

WRONG = """() => {
  const issues = [];
  const room = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > room) {
    const wide = [...document.querySelectorAll(".md-main *")].filter(
      (e) => e.getBoundingClientRect().right > room + 1 && !e.closest(
        ".md-typeset__scrollwrap, .formula, pre, .highlight, .md-sidebar"));
    issues.push("wider than the window: " + wide.slice(0, 3).map((e) => e.outerHTML.slice(0, 80)));
  }
  for (const image of document.querySelectorAll("article img"))
    if (!image.naturalWidth) issues.push("picture not shown: " + image.src);
  for (const math of document.querySelectorAll("article math"))
    if (!math.getBoundingClientRect().width) issues.push("formula not shown: " + math.textContent);
  return issues;
}"""


def main(*names):
    """Check the named pages, e.g. `zh/faq.html`, or all of them.

    Returns:
        The exit code: 1 if there are problems, else 0.
    """
    shutil.rmtree(SHEETS, ignore_errors=True)
    SHEETS.mkdir(parents=True)
    chromium = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    pages = sorted(path.relative_to(SITE) for path in SITE.rglob("*.html"))
    pages = [page for page in pages if not names or str(page) in names]
    if not pages:
        sys.exit(f"{SITE} has no such pages; run `make docs` first")
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
    """A browser window with one width and color scheme."""

    def __init__(self, browser, width, scheme):
        self._page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self._problems = []
        self._page.route("**/*", self._only_here)
        self._page.on("pageerror", lambda error: self._problems.append(str(error)))
        self._page.on("console", self._on_console)

    def at(self, url):
        """Open a page and return a list of problems."""
        self._problems = []
        self._page.goto(url, wait_until="load")
        self._page.wait_for_timeout(200)  # the theme wraps tables after load
        return [*self._problems, *self._page.evaluate(WRONG)]

    def pictures(self):
        """Yield screenshots of the page, split if it is too long."""
        height = self._page.evaluate("document.documentElement.scrollHeight")
        width = self._page.viewport_size["width"]
        for top in range(0, height, LONGEST):
            clip = {"x": 0, "y": top, "width": width, "height": min(height - top, LONGEST)}
            yield Image.open(io.BytesIO(self._page.screenshot(full_page=True, clip=clip)))

    def _only_here(self, route):
        url = urllib.parse.urlsplit(route.request.url)
        if url.hostname == "localhost" or url.scheme in ("data", "blob"):
            return route.continue_()
        self._problems.append(f"requests {route.request.url}")
        return route.abort()

    def _on_console(self, message):
        if message.type == "error":
            self._problems.append(message.text)


def _sheet(images):
    """Join images side by side, desktop ones at half size; None is skipped."""
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
