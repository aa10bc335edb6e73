"""Download source packages from a package index without running their code.

`pip download` builds the metadata of a source package, which runs its code.
"""

import ast
import base64
import html.parser
import pathlib
import re
import shutil
import ssl
import subprocess
import sys
import urllib.parse
import urllib.request

from keras_llm.errors import InputError

_PYPI = "https://pypi.org/simple"
_TIMEOUT = 60  # seconds without data


def download(package, folder):
    """Download a source package.

    The file comes from pip's `find-links`, folders or pages, or else from the page of the project
    on the indexes that pip is configured for. Of the links on a page, only one with the SHA-256 of
    the package is followed, or one with its file name if the page gives no SHA-256. Of pip's other
    settings, `proxy` and `cert` are used, and the environment variables of proxies.

    Args:
        package: `packages.Package`.
        folder: path of an existing folder.

    Returns:
        The path of the file. Its SHA-256 is not verified.

    Raises:
        InputError: if no index has the file.
        OSError: if it cannot be downloaded.
    """
    settings = _pip_settings()
    path = folder / package.file
    pages = []
    for place in settings.get("find-links", "").split():
        local = pathlib.Path(place.removeprefix("file://"))
        if (local / package.file).is_file():
            shutil.copyfile(local / package.file, path)
            return path
        if "://" in place and not local.is_dir():
            pages.append(place)
    indexes = [settings.get("index-url", _PYPI), *settings.get("extra-index-url", "").split()]
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        indexes = []
    error = InputError(
        f"no index or `find-links` of pip has {package.file} with sha256 {package.sha256}"
    )
    project = re.sub(r"[-_.]+", "-", package.project).lower()
    for page in [*pages, *(f"{index.rstrip('/')}/{project}/" for index in indexes)]:
        try:
            if link := _find(package, page, settings):
                with _open(link, settings) as answer, open(path, "wb") as file:
                    shutil.copyfileobj(answer, file)
                return path
        except OSError as failure:
            error = failure
    raise error


def _find(package, page, settings):
    """Return the address of a package on the page of its project, or None."""
    with _open(page, settings) as answer:
        parser = _Links()
        parser.feed(answer.read().decode("utf-8", "replace"))
    for link in parser.links:
        address, _, fragment = urllib.parse.urljoin(page, link).partition("#")
        name = urllib.parse.unquote(urllib.parse.urlsplit(address).path.rpartition("/")[2])
        digest = fragment.removeprefix("sha256=") if fragment.startswith("sha256=") else ""
        if digest == package.sha256 or (not digest and name == package.file):
            return address
    return None


class _Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.links = []

    def handle_starttag(self, tag, attrs):
        if tag == "a":
            self.links += [value for name, value in attrs if name == "href" and value]


def _open(address, settings):
    """Open an address, which may have a user name and a password, as those of pip's indexes."""
    parts = urllib.parse.urlsplit(address)
    if parts.scheme == "file" and address.endswith("/"):
        address += "index.html"
    host = parts.netloc.rpartition("@")[2]
    request = urllib.request.Request(
        address.replace(parts.netloc, host, 1), headers={"Accept": "text/html, */*;q=0.1"}
    )
    if parts.username is not None:
        user = (
            f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        )
        token = base64.b64encode(user.encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {token}")
    context = ssl.create_default_context(cafile=settings.get("cert"))
    handlers = [urllib.request.HTTPSHandler(context=context)]
    if proxy := settings.get("proxy"):
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    return urllib.request.build_opener(*handlers).open(request, timeout=_TIMEOUT)


def _pip_settings():
    """Return pip's settings from its files and from environment variables, strs by name."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    rows = dict(line.split("=", 1) for line in lines if "=" in line)
    settings = {}
    for section in ("global.", "download.", ":env:."):  # the last one has priority
        for name, value in rows.items():
            if name.startswith(section):
                settings[name.removeprefix(section)] = str(ast.literal_eval(value))
    return settings
