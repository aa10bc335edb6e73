"""Find models by name on the hubs of Hugging Face and Kaggle. Imports no TensorFlow."""

import contextlib
import functools
import hashlib
import pathlib
import re
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from keras_llm.errors import InputError, optional_packages
from keras_llm.json_files import read_json
from keras_llm.types import PathLike

# The files of a repository that are needed. Patterns are matched from the start of the path.
_FILES = (
    *(
        "config.json",
        "generation_config.json",
        "model*.safetensors",
        "model.safetensors.index.json",
    ),
    *("tokenizer*.json", "special_tokens_map.json", "added_tokens.json", "chat_template.j*"),
    *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "sp*.model", "sentencepiece*"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("1_Pooling/config.json", "2_*/config.json"),
    *("model.weights.h5", "tokenizer/*"),  # of a task of this library
)
_KAGGLE = re.compile(r"[\w-]+/[\w.-]+/keras/[\w.-]+(/\d+)?")
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK = 1 << 24  # bytes


class Name(NamedTuple):
    """The parts of the name of a model, such as `hf:OWNER/NAME@REVISION/FILE.gguf`.

    Attributes:
        hub: "hf" or "kaggle".
        repository: str, e.g. "HuggingFaceTB/SmolLM2-135M", or the handle of a Kaggle model.
        revision: str or None, a branch, tag or commit.
        file: str or None, a GGUF file of the repository.
    """

    hub: str
    repository: str
    revision: str | None = None
    file: str | None = None


def is_name(path: object) -> bool:
    """Return whether a path is the name of a model on a hub, which begins with hf: or kaggle:."""
    return isinstance(path, str) and path.startswith(("hf:", "kaggle:"))


def is_checkpoint(path: PathLike) -> bool:
    """Return whether a path is a GGUF file, or a folder of Hugging Face rather than of a task."""
    path = pathlib.Path(path)
    if path.suffix == ".gguf":
        return path.is_file()
    config = path / "config.json"
    with contextlib.suppress(InputError):  # of a damaged file, which the reader reports
        return config.is_file() and "model_type" in read_json(config)
    return False


def parse(name: str, revision: str | None = None) -> Name:
    """Split a name into its parts.

    Raises:
        InputError: if the name is malformed, or has a revision beside the argument.
    """
    hub, _, rest = name.partition(":")
    if hub == "kaggle":
        is_safe = not {".", ".."} & set(rest.split("/"))
        if not _KAGGLE.fullmatch(rest) or not is_safe or revision is not None:
            raise InputError(
                f"{name}: a model of Kaggle is named kaggle:OWNER/MODEL/keras/VARIATION or "
                "kaggle:OWNER/MODEL/keras/VARIATION/VERSION, without a `revision`."
            )
        return Name(hub, rest)
    match = re.fullmatch(
        r"((?:[\w.-]+/)?[\w.-]+?)(?:@([\w.-]+))?(?:/((?:[\w. -]+/)*[\w. -]+\.gguf))?", rest
    )
    if match is None:
        raise InputError(
            f"{name} is not a model name: it must be hf:OWNER/NAME, hf:OWNER/NAME@REVISION or "
            "hf:OWNER/NAME/FILE.gguf."
        )
    repository, own_revision, file = match.groups()
    if None not in (revision, own_revision):
        raise InputError(f"{name} names a revision, and `revision` is {revision!r}.")
    return Name(hub, repository, revision or own_revision, file)


def fetch(name: str, revision: str | None = None, token: str | None = None) -> pathlib.Path:
    """Download the files of a model that are needed, or find them in the cache of the hub.

    The libraries of the hubs download: their caches, tokens, proxies and offline modes are
    respected, and an interrupted download is resumed. A process asks once for each name.

    Args:
        name: str, `hf:OWNER/NAME`, `hf:OWNER/NAME@REVISION`, `hf:OWNER/NAME/FILE.gguf` or
            `kaggle:OWNER/MODEL/keras/VARIATION`.
        revision: str or None. A branch, tag or commit of a Hugging Face repository.
        token: str or None. An access token of Hugging Face; defaults to the one of the login.

    Returns:
        A path: the folder of the files, or the GGUF file.

    Raises:
        InputError: if the model cannot be downloaded; the message says why.
    """
    return _fetched(name, parse(name, revision), token)


@functools.cache
def _fetched(name, parts, token):
    if parts.hub != "kaggle":
        return _from_hf(name, parts, token)
    if token is not None:
        raise InputError(f"{name}: `token` is of Hugging Face; Kaggle has a login of its own.")
    return _from_kaggle(name, parts)


def file_of(path: PathLike) -> PathLike:
    """Return a path, or the downloaded file of `hf:OWNER/NAME/FILE.gguf`.

    Raises:
        InputError: if it is a name without a file, or cannot be downloaded.
    """
    if not is_name(path):
        return path
    if parse(str(path)).file is None:
        raise InputError(f"{path} names no GGUF file: it must be hf:OWNER/NAME/FILE.gguf.")
    return fetch(str(path))


def folder_of(
    path: PathLike, revision: str | None = None, token: str | None = None
) -> pathlib.Path:
    """Return a folder, or the downloaded one of `OWNER/NAME` or `hf:OWNER/NAME`.

    Raises:
        InputError: if the model cannot be downloaded, or `path` is a folder and `revision` or
            `token` is given.
    """
    if is_name(path):
        parts = parse(str(path), revision)
        if parts.hub != "hf" or parts.file is not None:
            raise InputError(f"{path} is not the name of a repository, hf:OWNER/NAME.")
        return fetch(str(path), revision, token)
    folder = pathlib.Path(path)
    if isinstance(path, str) and not folder.exists() and _REPOSITORY.fullmatch(path):
        try:
            return fetch(f"hf:{path}", revision, token)
        except InputError as error:
            raise InputError(f"there is no folder {path}; {error}") from None
    if revision is not None or token is not None:
        raise InputError(f"`revision` and `token` are only for names of a hub, got {path}.")
    return folder


def _from_hf(name, parts, token):
    import huggingface_hub as hub

    begin, options = time.time(), {"revision": parts.revision, "token": token}
    with _hf_errors(name, parts):
        if parts.file is not None:
            path = pathlib.Path(hub.hf_hub_download(parts.repository, parts.file, **options))
        else:
            folder = hub.snapshot_download(parts.repository, allow_patterns=_FILES, **options)
            path = pathlib.Path(folder)
            _check_files(name, path)
    for file in [path] if path.is_file() else path.rglob("*"):
        _check_hash(name, file, begin)
    return path


def _check_files(name, folder):
    """Raise InputError if a repository has no config or no weights that can be read."""
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{name} has no config.json; name one of its GGUF files, if it has any: "
            "hf:OWNER/NAME/FILE.gguf."
        )
    if not [*folder.glob("*.safetensors"), *folder.glob("*.weights.h5")]:
        raise InputError(
            f"{name} has no safetensors; pickled weights, which can run code, are not read."
        )


def _check_hash(name, file, begin):
    """Raise InputError and delete a new file if it has another hash; the hub checks only sizes."""
    blob = file.resolve()
    # The cache names large files by their hash.
    if not blob.is_file() or not _SHA256.fullmatch(blob.name) or blob.stat().st_mtime < begin - 1:
        return
    digest = hashlib.sha256()
    with open(blob, "rb") as opened:
        while chunk := opened.read(_CHUNK):
            digest.update(chunk)
    if digest.hexdigest() != blob.name:
        blob.unlink()
        raise InputError(
            f"{name}: the download of {file.name} is damaged: its SHA-256 is not "
            "the one that the hub reports. It was deleted; try again."
        )


@contextlib.contextmanager
def _hf_errors(name: str, parts: Name) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` into an `InputError` of one line."""
    from huggingface_hub import constants, errors

    page = f"{constants.ENDPOINT}/{parts.repository}"
    try:
        yield
    except errors.GatedRepoError:
        raise InputError(
            f"{name} is gated: accept its terms at {page} and log in with that account "
            "(`hf auth login`, HF_TOKEN or `token`)."
        ) from None
    except errors.RepositoryNotFoundError:
        raise InputError(
            f"{name}: there is no such model at {page}, or it is private and needs a token "
            "(`hf auth login`, HF_TOKEN or `token`)."
        ) from None
    except errors.RevisionNotFoundError:
        raise InputError(f"{name}: there is no revision {parts.revision!r} at {page}.") from None
    except errors.RemoteEntryNotFoundError:
        raise InputError(f"{name}: there is no file {parts.file!r} at {page}.") from None
    except errors.LocalEntryNotFoundError as error:
        is_partial = isinstance(error, errors.IncompleteSnapshotError)
        missing = "only a part of it is" if is_partial else "it is not"
        raise InputError(
            f"{name}: {missing} in the cache {constants.HF_HUB_CACHE}, and {constants.ENDPOINT} "
            f"cannot be reached{_reason(error)}."
        ) from None
    except errors.HFValidationError as error:
        raise InputError(f"{name} is not a model name: {_first_line(error)}") from None
    except Exception as error:  # the libraries below raise many classes
        raise InputError(f"{name} cannot be downloaded: {_first_line(error)}") from error


def _reason(error: Any) -> str:
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return " (HF_HUB_OFFLINE is set)"
    return "" if error.__cause__ is None else f" ({_first_line(error.__cause__)})"


def _first_line(error: Any) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _from_kaggle(name, parts):
    with optional_packages(name):
        import kagglehub
    try:
        return pathlib.Path(kagglehub.model_download(parts.repository))
    except Exception as error:  # kagglehub raises many classes
        raise InputError(f"{name} cannot be downloaded: {_first_line(error)}") from error
