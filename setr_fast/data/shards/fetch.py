"""Shards wherever they lie: a pattern becomes a list, and an address becomes a file on this machine.

Shards on this machine are read where they are. Those of a web server are fetched whole, once per machine, into a
folder of bounded size; a half-fetched file never has a shard's name. http is read by urllib, which says what went
wrong and compares lengths; the library's curl does neither. What else the library opens (s3, gs, hf, pipe) it opens.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from setr_fast.data.faults import Fault, FaultError, some
from setr_fast.errors import BackendError, ConfigError, DataError

logger = logging.getLogger("setr_fast")

TIMEOUT_S = 60.0
PAUSES_S = (1.0, 4.0, 10.0)
"""Waits before another try; a web server's 4xx is final."""
CHUNK = 2**20
RECENT_S = 60.0
"""A shard used this lately is probably one of those that are being mixed."""
TABLES = ("classes.csv", "classes.json", "classes.toml")


@dataclass(frozen=True)
class ShardList:
    """The shards of a split, in their written order."""

    base: str
    """Folder or address that the shards lie in."""
    shards: tuple[str, ...]
    counts: tuple[int | None, ...]
    """Samples of each, where an index says so."""
    sizes: tuple[int | None, ...]
    """Bytes of each, where an index says so."""


def is_address(text: str) -> bool:
    """Return whether this names something outside this machine's file system."""
    return ("://" in text and not text.startswith("file://")) or text.startswith("pipe:")


def expand(spec: str, split: str, cache: Cache) -> ShardList:
    """Return the shards that a pattern (braces or ``*``), an index (.json) or a folder with ``{split}.json`` names."""
    spec = spec.removeprefix("file://")
    if spec.endswith(".json"):
        return _by_index(spec, cache)
    if ".tar" not in spec.rpartition("/")[2]:
        return _by_index(f"{spec.rstrip('/')}/{split}.json", cache)
    shards = _expanded(spec)
    base = shards[0].rpartition("/")[0] or "."
    stem = shards[0].rpartition("/")[2].split(".tar")[0].rstrip("0123456789").rstrip("-_")
    table = _table(f"{base}/{stem}.json", cache) if stem else None
    known = {entry["url"].rpartition("/")[2]: entry for entry in table or []}
    return _listed(base, shards, [known.get(shard.rpartition("/")[2], {}) for shard in shards])


def class_table(base: str, cache: Cache) -> Path | None:
    """Return the class table that lies beside shards, if any."""
    for name in TABLES:
        found = cache.optional(f"{base}/{name}")
        if found is not None:
            return found
    return None


def _expanded(spec: str) -> list[str]:
    try:
        from webdataset.shardlists import expand_urls
    except ImportError:
        raise BackendError("data.shards: needs the library webdataset; pip install 'setr_fast[shards]'") from None
    shards: list[str] = []
    for part in expand_urls(spec) if not spec.startswith("pipe:") else [spec]:
        found = sorted(glob.glob(part)) if "*" in part and not is_address(part) else [part]
        if not found:
            raise ConfigError(f"data.shards: {part} must name files, got none; check the path")
        shards += found
    twice = {shard for shard in shards if shards.count(shard) > 1} if len(set(shards)) < len(shards) else set()
    if twice:
        raise ConfigError(f"data.shards: shards must differ, got {some(sorted(twice), 2)} twice; correct the pattern")
    return shards


def _by_index(place: str, cache: Cache) -> ShardList:
    table = _table(place, cache)
    if table is None:
        rule = "an index of shards must be there, got no such file"
        remedy = "write shards with `setr-fast data shards`, or give a pattern of .tar files"
        raise FaultError(Fault(place, rule, remedy))
    base = place.rpartition("/")[0] or "."
    shards = [entry["url"] for entry in table]
    shards = [s if is_address(s) or s.startswith("/") else f"{base}/{s}" for s in shards]
    if not shards:
        raise FaultError(Fault(place, "an index must list at least one shard, got none", "write the shards again"))
    return _listed(base, shards, table)


def _listed(base: str, shards: list[str], entries: list[dict[str, Any]]) -> ShardList:
    counts, sizes = (tuple(entry.get(key) for entry in entries) for key in ("nsamples", "filesize"))
    return ShardList(base, tuple(shards), counts, sizes)


def _table(place: str, cache: Cache) -> list[dict[str, Any]] | None:
    """Return the list ``shardlist`` of an index; none where there is no such file."""
    file = cache.optional(place)
    if file is None:
        return None
    try:
        entries = json.loads(file.read_text())["shardlist"]
        good = all(
            isinstance(e["url"], str) and isinstance(e.get("nsamples", 0), int) and e.get("nsamples", 0) >= 0
            for e in entries
        )
        if not good or not isinstance(entries, list):
            raise ValueError("an entry without url or with a wrong nsamples")
        return entries
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        rule = f"an index must be JSON with a 'shardlist' of url and nsamples, got '{error}'"
        raise FaultError(Fault(place, rule, "delete it, or write the shards again")) from None


@dataclass(frozen=True)
class Cache:
    """A folder that keeps what was fetched, the longest unused going first; shared by all processes of a machine."""

    folder: Path
    most_bytes: int

    def local(self, shown: str, size: int | None = None) -> Path:
        """Return the file that holds a shard, fetched if it is not there or has not ``size`` bytes.

        Raises: DataError in one line if it cannot be had.
        """
        if not is_address(shown):
            return Path(shown.removeprefix("file://"))
        file = self._place(shown)
        if _used(file, size):
            return file
        with self._held(shown, file):
            if not _used(file, size):
                _fetch(shown, file)
                self._make_room(file)
        return file

    def optional(self, shown: str) -> Path | None:
        """Return a small file that may be missing; its newest state, not one from an earlier run."""
        if not is_address(shown):
            file = Path(shown.removeprefix("file://"))
            return file if file.is_file() else None
        if not shown.startswith(("http://", "https://")):
            return None
        file = self._place(shown)
        with self._held(shown, file):
            try:
                _fetch(shown, file)
            except _MissingError:
                return None
        return file

    @contextlib.contextmanager
    def _held(self, shown: str, file: Path) -> Iterator[None]:
        """Hold a file of the cache, so that one process fetches it and the others wait for that."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(file.with_name(file.name + ".lock")):
                yield
        except OSError as error:
            why = error.strerror or error
            raise BackendError(
                f"data.shard_cache: {self.folder} must take {shown}, got '{why}'; make room, or set another one"
            ) from None

    def _place(self, shown: str) -> Path:
        name = shown.split("?")[0].rpartition("/")[2][-80:]
        return self.folder / f"{hashlib.sha256(shown.encode()).hexdigest()[:16]}-{name}"

    def _make_room(self, newest: Path) -> None:
        """Delete shards until the rest is small enough; who still reads one keeps it until done."""
        found = []
        for path in self.folder.glob("*.tar*"):
            with contextlib.suppress(OSError):
                if path.suffix not in (".lock", ".part"):
                    stat = path.stat()
                    found.append((stat.st_mtime, stat.st_size, path))
        total = sum(size for _, size, _ in found)
        for used, size, path in sorted(found):
            if total <= self.most_bytes or path == newest:
                break
            if time.time() - used < RECENT_S:
                remedy = "raise --data.shard-cache-gib or lower --data.shard-mix"
                logger.warning("%s: shards in use go to make room; %s", self.folder, remedy)
            path.unlink(missing_ok=True)
            total -= size


class _MissingError(DataError):
    """A web server says that there is no such file, or that it is not for us."""


def _used(file: Path, size: int | None) -> bool:
    """Return whether a file is there, and note that it was used now."""
    try:
        found = file.stat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return False
    with contextlib.suppress(OSError):  # another user's
        os.utime(file)
    return size is None or found == size


def _fetch(address: str, file: Path) -> None:
    """Write what an address holds under ``file``, which appears when all of it is there."""
    part = file.with_name(file.name + ".part")
    for pause in (*PAUSES_S, None):
        try:
            with part.open("wb") as out:
                _copy(address, out)
            os.replace(part, file)
            return
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError, EOFError) as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            if isinstance(error, urllib.error.HTTPError) and 400 <= error.code < 500 and error.code not in (408, 429):
                raise _MissingError(f"{address}: shard must be readable, got '{reason}'; check the address") from None
            if pause is None:
                tries = len(PAUSES_S) + 1
                raise DataError(
                    f"{address}: must be readable, got '{reason}' {tries} times; check the connection, then --resume"
                ) from None
            logger.warning("%s: %s; trying again in %g s", address, reason, pause)
            time.sleep(pause)
        finally:
            part.unlink(missing_ok=True)


def _copy(address: str, out: Any) -> None:
    if not address.startswith(("http://", "https://")):
        _copy_by_library(address, out)
        return
    request = urllib.request.Request(address, headers={"User-Agent": "setr_fast", "Accept-Encoding": "identity"})
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
        promised, got = answer.headers.get("Content-Length"), 0
        while chunk := answer.read(CHUNK):
            out.write(chunk)
            got += len(chunk)
        if promised is not None and got != int(promised):
            raise EOFError(f"the connection ended after {got} of {promised} bytes")


def _copy_by_library(address: str, out: Any) -> None:
    from webdataset.gopen import gopen

    def told(do: Callable[[], Any]) -> Any:
        try:
            return do()
        except Exception as error:  # commands, cloud libraries: nearly anything
            raise EOFError(" ".join(str(error).split())[:200]) from None

    with told(lambda: gopen(address, "rb")) as stream:
        while chunk := told(lambda: stream.read(CHUNK)):
            out.write(chunk)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process: one fetches, the others wait for what it fetched."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        with contextlib.suppress(OSError):  # a file system without locks: then two may fetch the same
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
