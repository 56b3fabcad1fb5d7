"""The run folder: where it is, that it can be written, that no other run is using it, where to go on."""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError

from setr_fast.config import Config, to_toml
from setr_fast.data.shards.fetch import is_address
from setr_fast.errors import BackendError, ConfigError
from setr_fast.files import UNWRITABLE, atomic_write, system_error
from setr_fast.train import checkpoint

LOCK = ".lock"


def run_folder(config: Config, *, restarted: bool = False) -> Path:
    """Return the run folder's path; a run that is already there is neither overwritten nor mixed up with this one.

    ``restarted``: the folder is this run's own, made before some of its processes were lost.
    """
    if config.resume and config.run_dir is None:
        raise ConfigError("resume: needs --run-dir, the folder of the run to go on with")
    run_dir = config.run_dir or _default_run_dir(config)
    if not (config.resume or restarted) and (run_dir / "config.toml").exists():
        raise ConfigError(f"run_dir: {run_dir} already holds a run; give --resume or another --run-dir")
    if run_dir.exists() and not run_dir.is_dir():
        raise ConfigError(f"run_dir: must be a folder, got the file {run_dir}; name another")
    return run_dir


def resume_point(config: Config, run_dir: Path, *, restarted: bool = False) -> Path | None:
    """Return the checkpoint to go on from, or nothing for a run that starts."""
    if not (config.resume or restarted):
        return None
    found = checkpoint.newest_intact(run_dir / "checkpoints")
    if found is None and not restarted:
        raise ConfigError(f"resume: {run_dir} holds no complete checkpoint; start anew with another --run-dir")
    return found


@dataclass
class RunFolder:
    """The folder in the hands of the first process, which holds it until ``held`` ends."""

    config: Config
    run_dir: Path
    held: ExitStack
    restarted: bool
    is_held: bool = False

    def hold_if_there(self) -> None:
        """Lock the folder of a run that is gone on with."""
        if (self.config.resume or self.restarted) and self.run_dir.is_dir():
            self.held.enter_context(locked(self.run_dir))
            self.is_held = True

    def make(self) -> None:
        """Make and lock a new run's folder; write down the configuration, which may differ from the one before."""
        if not self.is_held:
            self.held.enter_context(locked(self.run_dir))
            run_folder(self.config, restarted=self.restarted)  # another run may have come first
        data = replace(
            self.config.data,
            root=self.config.data.root and self.config.data.root.resolve(),
            classes=self.config.data.classes and self.config.data.classes.resolve(),
            shards=_absolute(self.config.data.shards),
            val_shards=_absolute(self.config.data.val_shards),
        )
        kept = replace(self.config, data=data, resume=False, run_dir=None, nproc=None)
        with writing(self.run_dir):
            (self.run_dir / "overlays").mkdir(exist_ok=True)
            atomic_write(self.run_dir / "config.toml", to_toml(kept))


@contextmanager
def writing(run_dir: Path) -> Iterator[None]:
    """Turn a failure to write into one line that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number, _ = system_error(error)
        if number not in UNWRITABLE:
            raise
        kept = checkpoint.complete(run_dir / "checkpoints")
        remedy = f"see to it, then go on from {kept[-1].name} with --resume" if kept else "give another --run-dir"
        raise BackendError(f"run_dir: {run_dir} cannot be written ({os.strerror(number)}); {remedy}") from None


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Hold the run folder for this run; the system lets go of it however the process ends.

    Raises: ConfigError if another run holds it.
    """
    with writing(run_dir):
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / "checkpoints" / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(handle, 200, 0).decode(errors="replace").strip() or "another process"
            raise ConfigError(
                f"run_dir: {run_dir} must not be in use by another run, got one by {holder}; wait for it or stop it, "
                "or give another --run-dir"
            ) from None
        except OSError:  # a file system without locks
            yield
            return
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(handle)


def _absolute(shards: str | None) -> str | None:
    """Return shards so that they are found from any folder; an address stays what it is."""
    return shards if shards is None or is_address(shards) else os.path.abspath(shards.removeprefix("file://"))


def _default_run_dir(config: Config) -> Path:
    data = config.data.root.resolve().name if config.data.root else "shards" if config.data.shards else "builtin"
    return Path("runs") / f"{config.model.name}-{data}-{time.strftime('%Y%m%d-%H%M%S')}"
