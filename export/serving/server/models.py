"""The models of a server: which versions lie on disk, which are loaded, and who uses them.

A new version is loaded before an old one goes, and a version goes only when the last request that
uses it is answered, so a change of versions fails no request.
"""

import contextlib
import dataclasses
import logging
import pathlib
import threading
import time

from keras_llm.errors import InputError, ServingError
from keras_llm.export.serving.server.servable import Servable

START, LOADING, AVAILABLE, UNLOADING, END = 10, 20, 30, 40, 50  # get_model_status.proto
_LOG = logging.getLogger("keras_llm.serve")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A model that shall be served.

    Attributes:
        name: str.
        base_path: str, the folder that has a folder for each version.
        latest: int, how many of the newest versions to serve; 0 serves all of them.
        specific: tuple of int. If not empty, these versions and no other.
        labels: dict of str to int, names of versions.
    """

    name: str
    base_path: str
    latest: int = 1
    specific: tuple = ()
    labels: dict = dataclasses.field(default_factory=dict)

    def wanted(self):
        """The versions on disk that shall be served, newest first."""
        try:
            names = [path.name for path in pathlib.Path(self.base_path).iterdir()]
        except OSError:
            return []
        found = sorted((int(n) for n in names if n.isdecimal() and n.isascii()), reverse=True)
        found = [v for v in found if (self.folder(v) / "saved_model.pb").is_file()]
        if self.specific:
            return [version for version in found if version in self.specific]
        return found[: self.latest] if self.latest else found

    def folder(self, version):
        """The folder of a version."""
        return pathlib.Path(self.base_path) / str(version)


class Models:
    """Loads, watches and hands out the versions of models.

    Args:
        load: function of (name, version, folder) to a `Servable`; raises ServingError.
        allow_unavailable_labels: bool. Whether a label may name a version that is not loaded.
    """

    def __init__(self, load, allow_unavailable_labels=False):
        self._load = load
        self._allow_unavailable_labels = allow_unavailable_labels
        self._configs = {}
        self._versions = {}  # name -> version -> _Version
        self._lock = threading.Condition()
        self._changing = threading.Lock()  # held by whoever loads and unloads
        self._stop = threading.Event()
        self._poller = None

    def configure(self, configs):
        """Serve these models and no others; returns when they are loaded.

        Args:
            configs: list of `ModelConfig`.

        Raises:
            ServingError: if a name occurs twice, nothing of a model can be loaded, or a label
                names a version that is not. What can be served is.
        """
        by_name = {config.name: config for config in configs}
        if len(by_name) != len(configs):
            raise ServingError("INVALID_ARGUMENT", "two models have the same name.")
        for config in configs:
            if not config.name or not config.base_path:
                raise ServingError("INVALID_ARGUMENT", "each model needs a name and a base_path.")
        with self._changing:
            old = self._configs
            # A label moves only to a version that is loaded, so the new labels wait for it.
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

    def watch(self, seconds):
        """Look for new and removed versions every so many seconds, in the background."""

        def poll():
            while not self._stop.wait(seconds):
                try:
                    self.refresh()
                except Exception:
                    _LOG.exception("looking for versions failed")

        self._poller = threading.Thread(target=poll, name="versions", daemon=True)
        self._poller.start()

    def refresh(self):
        """Load what is new on disk, then unload what is gone or no longer wanted."""
        with self._changing:
            self._load_wanted()
            self._unload_unwanted()

    @contextlib.contextmanager
    def use(self, name, version=None, label=None):
        """Hold a version while a request is answered.

        Args:
            name: str.
            version: int, or None for the newest that is loaded.
            label: str, or None; not together with `version`.

        Yields:
            The version and its `Servable`.

        Raises:
            ServingError: "NOT_FOUND" if there is none.
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

    def status(self, name, version=None, label=None):
        """The state of a model's versions.

        Returns:
            List of (version, state, code, message), newest first.

        Raises:
            ServingError: "NOT_FOUND" if there is no such model or version.
        """
        with self._lock:
            known = self._versions.get(name, {})
            if label:
                version = self._labelled(name, label)
            if name not in self._configs and not known:
                raise ServingError("NOT_FOUND", f"there is no model {name!r}.")
            if version is not None and version not in known:
                raise ServingError("NOT_FOUND", f"model {name!r} has no version {version}.")
            return [
                (number, entry.state, entry.code, entry.message)
                for number, entry in sorted(known.items(), reverse=True)
                if version in (None, number)
            ]

    def names(self):
        """Names of the models, with the labels of each: a dict."""
        with self._lock:
            return {name: dict(config.labels) for name, config in sorted(self._configs.items())}

    def close(self, seconds):
        """Stop watching, wait for requests and unload everything.

        Args:
            seconds: how long to wait.

        Returns:
            Whether everything has ended.
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
        known = self._versions.get(name, {})
        if name not in self._configs:
            raise ServingError("NOT_FOUND", f"there is no model {name!r}.")
        if label:
            version = self._labelled(name, label)
        available = [number for number, entry in known.items() if entry.state == AVAILABLE]
        if version is None:
            if not available:
                raise ServingError("NOT_FOUND", f"no version of model {name!r} is loaded.")
            return max(available)
        if version not in available:
            raise ServingError("NOT_FOUND", f"version {version} of model {name!r} is not loaded.")
        return version

    def _labelled(self, name, label):
        labels = self._configs[name].labels if name in self._configs else {}
        if label not in labels:
            raise ServingError("NOT_FOUND", f"model {name!r} has no label {label!r}.")
        return labels[label]

    def _available(self, name):
        known = self._versions.get(name, {})
        return [version for version, entry in known.items() if entry.state == AVAILABLE]

    def _problems(self, config):
        available = self._available(config.name)
        if not available:
            failed = [e.message for e in self._versions.get(config.name, {}).values() if e.message]
            wanted = "no version folder with a saved_model.pb"
            yield f"model {config.name!r}: {'; '.join(failed) or wanted} in {config.base_path}."
        for label, version in config.labels.items():
            if version not in available and not self._allow_unavailable_labels:
                yield f"model {config.name!r}: label {label!r} names version {version}, not loaded."

    def _load_wanted(self):
        for config in list(self._configs.values()):
            for version in config.wanted():
                folder = config.folder(version)
                entry = self._versions.get(config.name, {}).get(version)
                is_loaded = entry is not None and entry.state != END
                if is_loaded and entry.folder == folder:
                    continue
                contents = _contents(folder)
                if entry is not None and entry.message and entry.contents == contents:
                    continue  # it failed, and nothing has changed since
                self._load_one(config.name, version, folder, contents)

    def _load_one(self, name, version, folder, contents):
        entry = _Version(folder, contents)
        old = self._versions.get(name, {}).get(version)
        if old is None or old.state == END:  # one from another base path serves until then
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
        for name, known in list(self._versions.items()):
            config = self._configs.get(name)
            wanted = config.wanted() if config else []
            available = self._available(name)
            if wanted and not set(wanted) & set(available):
                continue  # nothing newer could be loaded: what there is stays
            for version in available:
                if version not in wanted:
                    threads.append(self._unload(name, version, known[version]))
            with self._lock:
                for version, entry in list(known.items()):
                    if entry.state == END and version not in wanted and entry.message:
                        del known[version]  # a version that failed, and was then taken away
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
    """What tells whether a folder has changed: names, sizes and times of its files."""
    found = []
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(OSError):
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return tuple(found)


def check_base_path(path):
    """Raise InputError unless a folder of versions lies there."""
    if not ModelConfig("", str(path), latest=0).wanted():
        raise InputError(f"{path} has no version folder with a saved_model.pb (e.g. {path}/1).")
