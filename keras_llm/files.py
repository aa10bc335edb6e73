"""Text files read with clear errors; writes that are whole or not at all."""

import codecs
import contextlib
import ctypes
import fcntl
import gzip
import os
import pathlib
import shutil
import zlib

from keras_llm.errors import InputError


@contextlib.contextmanager
def atomic_folder(path, overwrite=False, keep_if=(), resume=False):
    """Fill a folder under a temporary name and rename it when it is whole.

    The temporary name is `<path>.partial`, locked while this process lives. What a killed
    process left there is cleared by the next one; a folder already at `path` stays untouched
    until the rename.

    Args:
        path: where the folder shall be.
        overwrite: bool. Whether to replace what is at `path`.
        keep_if: list of glob patterns of what makes an unfinished folder worth keeping: one
            that has any stays behind if the body raises, and is cleared only with `overwrite`.
        resume: bool. Whether to go on with an unfinished folder as it is.

    Yields:
        `pathlib.Path` of the temporary folder.

    Raises:
        InputError: if `path`, or an unfinished folder worth keeping, exists and `overwrite` is
            False; or another process is writing it.
    """
    path = pathlib.Path(path)
    check_free(path, overwrite)
    partial = path.with_name(path.name + ".partial")

    def worth_keeping():
        return any(any(partial.glob(pattern)) for pattern in keep_if)

    partial.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        if partial.exists() and not resume:
            if worth_keeping() and not overwrite:
                raise InputError(
                    f"{partial} holds an unfinished run; remove it, or pass overwrite=True "
                    "(--overwrite) or resume=True (--resume)."
                )
            shutil.rmtree(partial)
        partial.mkdir(exist_ok=True)
        try:
            yield partial
            _replace_folder(partial, path)
        except BaseException:
            if not worth_keeping():
                shutil.rmtree(partial, ignore_errors=True)
            raise


@contextlib.contextmanager
def atomic_file(path, overwrite=False):
    """Write a file under a temporary name and rename it when it is whole.

    Args:
        path: where the file shall be.
        overwrite: bool. Whether to replace what is at `path`.

    Yields:
        `pathlib.Path` of the temporary file, which the body must create.

    Raises:
        InputError: if `path` exists and `overwrite` is False, or another process is writing
            it.
    """
    path = pathlib.Path(path)
    check_free(path, overwrite)
    partial = path.with_name(f".partial-{path.name}")  # keeps the suffix
    partial.parent.mkdir(parents=True, exist_ok=True)
    with _locked(partial):
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def read_utf8(path):
    """The text of a UTF-8 file; name and errors are those of `utf8_lines`."""
    return "".join(utf8_lines(path))


def utf8_lines(path):
    """The lines of a UTF-8 file with their line feeds, decompressed if its name ends in `.gz`.

    One line is in memory at a time. A byte order mark is left out.

    Args:
        path: str or path.

    Yields:
        strs; joined they are the text.

    Raises:
        InputError: if it is missing or no whole gzip file, or naming the line that is not UTF-8
            or has a null character, as UTF-16 and binary files do.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist.")
    is_packed = path.suffix == ".gz"
    offset = 0
    try:
        with (gzip.open if is_packed else open)(path, "rb") as file:
            for number, line in enumerate(file, 1):
                yield _decoded(path, number, line, offset)
                offset += len(line)
    except (OSError, EOFError, zlib.error) as error:
        kind = "is not a whole gzip file" if is_packed else "cannot be read"
        raise InputError(f"{path} {kind}: {error}.") from None


def _decoded(path, number, line, offset):
    try:
        text = line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        marks = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        likely = "; it begins like UTF-16" if number == 1 and line.startswith(marks) else ""
        raise InputError(
            f"{path}, line {number}: not UTF-8 (byte {line[error.start]:#04x} at offset "
            f"{offset + error.start}{likely})."
        ) from None
    if "\0" in text:
        raise InputError(f"{path}, line {number}: a null character; is it UTF-16, or no text?")
    return text


def check_free(path, overwrite=False):
    """Raise InputError if something is at `path` and `overwrite` is False.

    An empty folder is free.
    """
    path = pathlib.Path(path)
    occupied = any(path.iterdir()) if path.is_dir() else path.exists()
    if occupied and not overwrite:
        raise InputError(
            f"{path} exists; choose another name, or pass overwrite=True (--overwrite)."
        )


@contextlib.contextmanager
def _locked(path):
    """Hold a lock beside `path`; the kernel drops it when the process ends, however it ends."""
    lock_path = path.with_name(f".{path.name}.lock")
    with open(lock_path, "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = os.fstat(lock.fileno()).st_nlink  # 0: its last holder has just removed it
        except BlockingIOError:
            held = False
        if not held:
            raise InputError(f"{path} is being written by another process.")
        try:
            yield
        finally:
            lock_path.unlink(missing_ok=True)


def _replace_folder(new, path):
    if not path.exists():
        os.rename(new, path)
        return
    if _exchange(new, path):
        shutil.rmtree(new)
        return
    # Without an atomic exchange the old folder is set aside first: a kill between the two
    # renames leaves both versions whole under other names.
    old = path.with_name(path.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    os.rename(path, old)
    os.rename(new, path)
    shutil.rmtree(old)


def _exchange(first, second):
    """Swap two names atomically; False where the system cannot."""
    at_cwd, rename_exchange = -100, 2
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return renameat2(at_cwd, os.fsencode(first), at_cwd, os.fsencode(second), rename_exchange) == 0
