"""Load, watch and unload the versions of the models on a server.

A new version is loaded before the old one is unloaded, and a version is unloaded only after the
last request that uses it, so no request fails when versions change.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving.server.servable import Servable
from keras_llm.export.serving.versions import version_number
from keras_llm.types import PathLike

START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50  # get_model_status.proto
_LOG = logging.getLogger("keras_llm.serve")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The configuration of a served model.

    Attributes:
        name: str.
        base_path: str. Folder with a subfolder for each version.
        latest: int. Number of newest versions to serve; 0 serves all versions.
        specific: tuple of int. If not empty, only these versions are served.
        labels: dict of str to int, the labels of versions.
    """

    name: str
    base_path: str
    latest: int = 1
    specific: tuple[int, ...] = ()
    labels: dict[str, int] = dataclasses.field(default_factory=dict)

    def wanted(self) -> list[int]:
        """Return the versions on disk to serve, newest first.

        Folders whose name is not a 64-bit version are ignored, as by TensorFlow Serving.
        """
        try:
            names = os.listdir(self.base_path)
        except OSError:
            return []
        numbers = {n for n in map(version_number, names) if n is not None}
        versions = sorted(numbers, reverse=True)
        versions = [v for v in versions if os.path.isfile(self.folder(v) / "saved_model.pb")]
        if self.specific:
            return [version for version in versions if version in self.specific]
        return versions[: self.latest] if self.latest else versions

    def folder(self, version: int) -> pathlib.Path:
        """Return the folder of a version."""
        return pathlib.Path(self.base_path) / str(version)


class Models:
    """The loaded versions of models.

    Args:
        load: function that takes name, version and folder and returns a `Servable`; it may raise
            ServingError.
    """

    def __init__(self, load: Callable[[str, int, pathlib.Path], Servable]) -> None:
        self._load = load
        self._configs: dict[str, ModelConfig] = {}
        self._versions: dict[str, dict[int, _Version]] = {}  # name -> version -> _Version
        self._lock = threading.Condition()
        self._changing = threading.Lock()  # held while versions are loaded and unloaded
        self._stop = threading.Event()
        self._poller: threading.Thread | None = None

    def configure(self, configs: Sequence[ModelConfig]) -> None:
        """Serve only the given models, and wait until they are loaded.

        Args:
            configs: list of `ModelConfig`.

        Raises:
            ServingError: if a name occurs twice, no version of a model can be loaded, or a label
                refers to a version that is not loaded. The loaded versions are served anyway.
        """
        by_name = {config.name: config for config in configs}
        if len(by_name) != len(configs):
            raise ServingError("INVALID_ARGUMENT", "two models have the same name.")
        for config in configs:
            if not config.name or not config.base_path or "\0" in config.base_path:
                raise ServingError(
                    "INVALID_ARGUMENT", "each model must have a name and a base_path."
                )
        with self._changing:
            old = self._configs
            # Set the new labels after loading, so that they only refer to loaded versions.
            kept = {name: old[name].labels if name in old else {} for name in by_name}
            self._set_configs(
                {n: dataclasses.replace(c, labels=kept[n]) for n, c in by_name.items()}
            )
            self._load_wanted()
            problems = [problem for config in configs for problem in self._problems(config)]
            if not problems:
                self._set_configs(by_name)
            self._unload_unwanted()
        if problems:
            raise ServingError("FAILED_PRECONDITION", " ".join(problems))

    def watch(self, seconds: float) -> None:
        """Check for new and removed versions every `seconds`, in a background thread."""

        def poll():
            while not self._stop.wait(seconds):
                try:
                    self.refresh()
                except Exception:
                    _LOG.exception("failed to check for new versions")

        self._poller = threading.Thread(target=poll, name="versions", daemon=True)
        self._poller.start()

    def refresh(self) -> None:
        """Load new versions from disk, then unload versions that are removed or not configured."""
        with self._changing:
            self._load_wanted()
            self._unload_unwanted()

    @contextlib.contextmanager
    def use(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> Iterator[tuple[int, Servable]]:
        """Keep a version loaded while a request is processed.

        Args:
            name: str.
            version: int, or None for the newest loaded version.
            label: str, or None; mutually exclusive with `version`.

        Yields:
            The version and its `Servable`.

        Raises:
            ServingError: "NOT_FOUND" if the version is not loaded.
        """
        with self._lock:
            version = self._resolve(name, version, label)
            entry = self._versions[name][version]
            entry.users += 1
        try:
            yield version, entry.servable
        finally:
            with self._lock:
                entry.users -= 1
                self._lock.notify_all()

    def status(
        self, name: str, version: int | None = None, label: str | None = None
    ) -> list[tuple[int, int, str, str]]:
        """Return the state of a model's versions.

        Returns:
            A list of (version, state, code, message), newest first.

        Raises:
            ServingError: "NOT_FOUND" if there is no such model or version.
        """
        with self._lock:
            versions = self._versions.get(name, {})
            if label:
                version = self._version_with_label(name, label)
            if name not in self._configs and not versions:
                raise ServingError("NOT_FOUND", f"there is no model {name!r}.")
            if version is not None and version not in versions:
                raise ServingError("NOT_FOUND", f"model {name!r} has no version {version}.")
            return [
                (number, entry.state, entry.code, entry.message)
                for number, entry in sorted(versions.items(), reverse=True)
                if version in (None, number)
            ]

    def names(self) -> dict[str, dict[str, int]]:
        """Return a dict from the name of each model to its labels."""
        with self._lock:
            return {name: dict(config.labels) for name, config in sorted(self._configs.items())}

    def close(self, seconds: float) -> bool:
        """Stop watching, wait for running requests and unload all versions.

        Args:
            seconds: maximum time to wait.

        Returns:
            Whether all versions are unloaded.
        """
        self._stop.set()
        if self._poller is not None:
            self._poller.join()
        end = time.monotonic() + seconds
        with self._changing:
            self._set_configs({})
            threads = self._unload_unwanted()
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in threads)

    def _set_configs(self, configs):
        with self._lock:
            self._configs = configs

    def _resolve(self, name, version, label):
        if name not in self._configs:
            raise ServingError("NOT_FOUND", f"there is no model {name!r}.")
        if label:
            version = self._version_with_label(name, label)
        available = self._available(name)
        if version is None:
            if not available:
                raise ServingError("NOT_FOUND", f"no version of model {name!r} is loaded.")
            return max(available)
        if version not in available:
            raise ServingError("NOT_FOUND", f"version {version} of model {name!r} is not loaded.")
        return version

    def _version_with_label(self, name, label):
        labels = self._configs[name].labels if name in self._configs else {}
        if label not in labels:
            raise ServingError("NOT_FOUND", f"model {name!r} has no label {label!r}.")
        return labels[label]

    def _available(self, name):
        versions = self._versions.get(name, {})
        return [version for version, entry in versions.items() if entry.state == AVAILABLE]

    def _problems(self, config):
        available = self._available(config.name)
        if not available:
            failed = [e.message for e in self._versions.get(config.name, {}).values() if e.message]
            missing = "no version folder with a saved_model.pb"
            yield f"model {config.name!r}: {'; '.join(failed) or missing} in {config.base_path}."
        for label, version in config.labels.items():
            if version not in available:
                yield (
                    f"model {config.name!r}: label {label!r} refers to version {version}, which is "
                    "not loaded."
                )

    def _load_wanted(self):
        for config in list(self._configs.values()):
            for version in config.wanted():
                folder = config.folder(version)
                entry = self._versions.get(config.name, {}).get(version)
                is_loaded = entry is not None and entry.state == AVAILABLE
                if is_loaded and entry.folder == folder:
                    continue  # one that is being unloaded is loaded again
                contents = _contents(folder)
                if entry is not None and entry.message and entry.contents == contents:
                    continue  # it failed before, and its files have not changed
                self._load_one(config.name, version, folder, contents)

    def _load_one(self, name, version, folder, contents):
        entry = _Version(folder, contents)
        old = self._versions.get(name, {}).get(version)
        if old is None or old.state == END:  # a version from another base path is served until then
            self._put(name, version, entry)
        begin = time.monotonic()
        try:
            servable = self._load(name, version, folder)
        except Exception as error:
            with self._lock:
                entry.state = END
                is_known = isinstance(error, ServingError)
                entry.code = error.code if is_known else "INTERNAL"
                entry.message = f"version {version} cannot be loaded: " + (
                    error.message if is_known else f"{type(error).__name__}: {error}"
                )
            _LOG.error("model %s: %s", name, entry.message)
            return
        with self._lock:
            entry.servable, entry.state = servable, AVAILABLE
        self._put(name, version, entry)
        if old is not None and old.state == AVAILABLE:
            self._unload(name, version, old)
        _LOG.info("model %s version %d loaded in %.1f s", name, version, time.monotonic() - begin)

    def _put(self, name, version, entry):
        with self._lock:
            self._versions.setdefault(name, {})[version] = entry

    def _unload_unwanted(self):
        threads = []
        for name, versions in list(self._versions.items()):
            config = self._configs.get(name)
            wanted = config.wanted() if config else []
            available = self._available(name)
            if wanted and not set(wanted) & set(available):
                continue  # no configured version could be loaded, so keep the old ones
            for version in available:
                if version not in wanted:
                    threads.append(self._unload(name, version, versions[version]))
            with self._lock:
                for version, entry in list(versions.items()):
                    if entry.state == END and version not in wanted and entry.message:
                        del versions[version]  # it failed to load and was then removed from disk
        return threads

    def _unload(self, name, version, entry):
        with self._lock:
            entry.state = UNLOADING

        def finish():
            with self._lock:
                self._lock.wait_for(lambda: entry.users == 0)
                servable, entry.servable = entry.servable, None
            servable.close()
            with self._lock:
                entry.state = END
            _LOG.info("model %s version %d unloaded", name, version)

        thread = threading.Thread(target=finish, name=f"unload-{name}-{version}", daemon=True)
        thread.start()
        return thread


@dataclasses.dataclass
class _Version:
    folder: pathlib.Path
    contents: tuple
    state: int = LOADING
    code: str = "OK"
    message: str = ""
    servable: Servable | None = None
    users: int = 0


def _contents(folder):
    """Return the names, sizes and modification times of the files in a folder."""
    rows = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            stat = path.stat()
            rows.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(rows)


def check_base_path(path: PathLike) -> None:
    """Raise InputError unless `path` contains a version."""
    if not ModelConfig("", str(path), latest=0).wanted():
        raise InputError(f"{path} has no version folder with a saved_model.pb (e.g. {path}/1).")
