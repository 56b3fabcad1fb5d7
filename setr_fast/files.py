"""Writing files so that a crash leaves either the old content or the new, never half of it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from setr_fast.errors import BackendError, ConfigError

TEMPORARY = ".setr_fast-"
"""How the names of unfinished files begin."""
UNWRITABLE = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EIO,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EFBIG,
    errno.EBUSY,
}
"""What the system says when a disk is full or a place cannot be written."""
NO_FAULT_OF_OURS = UNWRITABLE - {errno.ENOENT} | {errno.ELOOP, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG}
"""What it says of disks, permissions, names and limits; a file that is not there may be a program's fault."""


def cannot_write(what: str, place: Path, error: OSError | None = None) -> BackendError:
    """Return the error for an option's place where the system lets us write nothing: the environment's, in every verb.

    A name that no system would take there (a file for a folder, an ending) is the user's, a ConfigError.
    """
    why = f" ({os.strerror(error.errno)})" if error is not None and error.errno else ""
    return BackendError(
        f"{what}: must be where files can be written, got {place}{why}; see to the disk or the permissions, or name "
        "another"
    )


def make_folder(path: Path, what: str) -> None:
    """Make the folder that an option names, and those above it.

    Raises: ConfigError if a file has that name; BackendError if it cannot be made.
    """
    try:
        if path.exists() and not path.is_dir():
            raise ConfigError(f"{what}: must be a folder, got the file {path}; name another")
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise cannot_write(what, path, error) from None


def make_parents(path: Path, what: str) -> None:
    """Make the folders above what an option names.

    Raises: BackendError if they cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise cannot_write(what, path, NotADirectoryError(errno.ENOTDIR, "a file above it")) from None
    except OSError as error:
        raise cannot_write(what, path, error) from None


def place_for_file(path: Path, what: str) -> None:
    """Make the folders above the file that an option names, before long work.

    Raises: ConfigError if it is a folder's name; BackendError if the folders cannot be made.
    """
    make_parents(path, what)
    try:
        if path.is_dir():
            raise ConfigError(f"{what}: must be a file, got the folder {path}; name a file in it")
        _refuse_devices(path)
    except OSError as error:  # a name that is too long
        raise cannot_write(what, path, error) from None


def system_error(error: BaseException) -> tuple[int, str]:
    """Return the system's number of the failure behind an error and the path it names; 0 and '' where there is none."""
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, OSError) and behind.errno:
            return behind.errno, str(behind.filename2 or behind.filename or "")
        if told := re.search(r"os error (\d+)", str(behind)):  # safetensors gives it in words
            return int(told[1]), ""
        behind = behind.__cause__ or behind.__context__
    return 0, ""


def atomic_write(path: Path, content: bytes | str, *, name_too: bool = True) -> None:
    """Replace ``path`` by ``content``: temporary name in the same folder, fsync, rename.

    ``name_too``: false where another file of the folder is written next, which makes the names of both reach the disk.
    """
    path = Path(path)
    _refuse_devices(path)
    data = content.encode() if isinstance(content, str) else content
    # A fixed short prefix: the target's own name may already be as long as a file name can be.
    handle, temporary = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    if name_too:
        sync_folder(path.parent)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yield a temporary file's path that becomes ``path`` when the block ends without an error: for content that is
    too large to hold twice."""
    path = Path(path)
    _refuse_devices(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block ends without an error.

    An existing folder of that name is moved aside first and deleted last, so that at every moment one
    complete folder exists under one of the two names.
    """
    path = Path(path)
    _refuse_devices(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
    try:
        yield temporary
        os.chmod(temporary, 0o777 & ~_umask())
        for file in sorted(temporary.rglob("*")):
            if file.is_file():
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
        sync_folder(temporary)
        if path.exists():
            aside = Path(tempfile.mkdtemp(prefix=TEMPORARY + "old-", dir=path.parent))
            os.rename(path, aside / path.name)
            os.rename(temporary, path)
            shutil.rmtree(aside)
        else:
            os.rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder reach the disk."""
    if os.name != "posix":  # folders cannot be opened elsewhere
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def can_be_made(path: Path) -> bool:
    """Return whether a file of this name, and the folders it wants, may be made here: asked before long work."""
    folder = Path(path).absolute().parent
    while not os.path.lexists(folder):
        folder = folder.parent
    return folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)


def _refuse_devices(path: Path) -> None:
    """Refuse to put anything in a device's or a pipe's place: who may do anything would lose /dev/null."""
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ConfigError(f"{path}: must be a file or a folder, got a device or a pipe; name another")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
