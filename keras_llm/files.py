"""Read text files with clear errors and write files and folders atomically."""

import codecs
import contextlib
import ctypes
import gzip
import io
import os
import pathlib
import shutil
import tempfile
import zlib
from collections.abc import Iterator, Sequence

import filelock

from keras_llm.errors import InputError
from keras_llm.types import PathLike

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
CONVERSATION_SUFFIXES = (".jsonl", ".json")  # both also with ".gz"


@contextlib.contextmanager
def atomic_folder(
    path: PathLike, overwrite: bool = False, keep_if: Sequence[str] = (), resume: bool = False
) -> Iterator[pathlib.Path]:
    """Write a folder under a temporary name and rename it when it is complete.

    The temporary name is `<path>.partial`, locked while this process runs. Files left there by a
    killed process are removed by the next one. An existing folder at `path` does not change until
    the rename.

    Args:
        path: str or path of the final folder.
        overwrite: bool. Whether to replace an existing `path`.
        keep_if: list of glob patterns. An unfinished folder with a matching file is kept if the
            body raises, and is removed only with `overwrite`.
        resume: bool. Whether to continue with an existing unfinished folder.

    Yields:
        `pathlib.Path` of the temporary folder.

    Raises:
        InputError: if `path`, or an unfinished folder that matches `keep_if`, exists and
            `overwrite` is False; or if another process is writing the folder.
    """
    path = pathlib.Path(path)
    check_free(path, overwrite)
    partial = path.with_name(path.name + ".partial")
    _make_folder(partial.parent)
    with _locked(partial):
        if partial.exists() and not resume:
            if not overwrite:
                check_finished(path, keep_if)
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        try:
            yield partial
            _replace_folder(partial, path)
        except BaseException:
            if not _has_any(partial, keep_if):
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def atomic_file(path: PathLike, overwrite: bool = False) -> Iterator[pathlib.Path]:
    """Write a file under a temporary name and rename it when it is complete.

    Args:
        path: str or path of the final file.
        overwrite: bool. Whether to replace an existing `path`.

    Yields:
        `pathlib.Path` of the temporary file, which the body must create.

    Raises:
        InputError: if `path` is a folder, or exists and `overwrite` is False, or another process
            is writing it.
    """
    path = pathlib.Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder; choose another name.")
    check_free(path, overwrite)
    partial = path.with_name(f".partial-{path.name}")  # keep the suffix: writers depend on it
    _make_folder(partial.parent)
    with _locked(partial):
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{error.filename} is a file, not a folder.") from None


def read_utf8(path: PathLike) -> str:
    """Return the text of a UTF-8 file; see `utf8_lines`."""
    return "".join(utf8_lines(path))


def utf8_lines(path: PathLike) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with line feeds; decompress it if its name ends in `.gz`.

    Only one line is in memory at a time. A byte order mark is removed.

    Args:
        path: str or path.

    Yields:
        str, the lines. Joined, they are the text.

    Raises:
        InputError: if the file does not exist or is not a complete gzip file; or if a line is not
            UTF-8 or has a null character (as in UTF-16 and binary files), naming the line.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    is_gzip = path.suffix == ".gz"
    offset = 0
    try:
        with (gzip.open if is_gzip else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield _decoded(path, number, line, offset)
                offset += len(line)
    except (OSError, EOFError, zlib.error) as error:
        reason = "is not a complete gzip file" if is_gzip else "cannot be read"
        raise InputError(f"{path} {reason}: {error}.") from None


def text_lines(path: PathLike) -> Iterator[str]:
    """Yield the lines of `utf8_lines` with universal newlines: `\\r\\n` and `\\r` become `\\n`."""
    for line in utf8_lines(path):
        if "\r" not in line:
            yield line
        else:
            yield from io.StringIO(line, newline=None)


def _decoded(path: pathlib.Path, number: int, line: bytes, offset: int) -> str:
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        hint = "; it begins like UTF-16" if number == 1 and line.startswith(marks) else ""
        raise InputError(
            f"{path}, line {number}: not UTF-8 (byte {line[error.start]:#04x} at offset "
            f"{offset + error.start}{hint})."
        ) from None
    if "\0" in text:
        raise InputError(
            f"{path}, line {number}: a null character; the file may be UTF-16 or binary."
        )
    return text


def check_free(path: PathLike, overwrite: bool = False) -> None:
    """Raise InputError if `path` exists and `overwrite` is False. An empty folder is allowed."""
    path = pathlib.Path(path)
    occupied = any(path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not overwrite:
        raise InputError(
            f"{path} exists; choose another name, or pass overwrite=True (--overwrite)."
        )


def check_finished(path: PathLike, keep_if: Sequence[str]) -> None:
    """Raise InputError if `atomic_folder` has kept an unfinished folder of `path`."""
    path = pathlib.Path(path)
    partial = path.with_name(path.name + ".partial")
    if _has_any(partial, keep_if):
        raise InputError(
            f"{partial} holds an unfinished run; remove it, or pass overwrite=True (--overwrite) "
            "or resume=True (--resume)."
        )


def _has_any(folder: pathlib.Path, patterns: Sequence[str]) -> bool:
    return any(any(folder.glob(pattern)) for pattern in patterns)


def check_writable(path: PathLike) -> None:
    """Raise InputError if `path` cannot be created, because of its nearest existing folder."""
    path = pathlib.Path(path).absolute()
    folder = next(parent for parent in path.parents if parent.exists())
    try:
        tempfile.TemporaryDirectory(prefix=".keras_llm-", dir=folder).cleanup()
    except OSError as error:
        raise InputError(
            f"{path} cannot be written: {folder}: {error.strerror or error}."
        ) from None


@contextlib.contextmanager
def _locked(path: pathlib.Path) -> Iterator[None]:
    """Hold a lock file next to `path`; the system releases it when the process ends."""
    lock = filelock.FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(f"{path} is being written by another process.") from None
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows an open file cannot be removed
            os.unlink(lock.lock_file)
        lock.release()


def _replace_folder(new: pathlib.Path, path: pathlib.Path) -> None:
    if not path.exists():
        os.rename(new, path)
        return
    if _exchange(new, path):
        shutil.rmtree(new)
        return
    # Without an atomic exchange, rename the old folder first: a kill between the two renames
    # leaves both versions complete under other names.
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(path, old)
    os.rename(new, path)
    shutil.rmtree(old)


def _exchange(first: pathlib.Path, second: pathlib.Path) -> bool:
    """Swap two names atomically; return False if the system does not support it."""
    at_cwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), rename_exchange) == 0
