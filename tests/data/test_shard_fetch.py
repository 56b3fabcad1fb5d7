"""Shards of a web server: fetched once, kept within bounds, and never half."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from collections import Counter
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setr_fast.cli import main
from setr_fast.data.options import DataConfig
from setr_fast.data.shards import fetch as shard_fetch
from setr_fast.data.shards.fetch import Cache, is_address
from setr_fast.data.shards.source import ShardSource
from setr_fast.data.shards.write import write_shards
from setr_fast.errors import BackendError, DataError
from tests.data.test_shards import make_folder


class _Server(ThreadingHTTPServer):
    """Serves a folder, counts what is asked for, and breaks off answers as told."""

    asked: Counter[str]
    broken: dict[str, int]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.server.asked[name] += 1
        if self.server.broken.get(name, 0):
            self.server.broken[name] -= 1
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            self.wfile.write(b"half")
            return
        super().do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("web")
    list(write_shards(DataConfig(root=make_folder(root / "folder", 12)), root / "shards", (), 20_000))
    return root / "shards"


@pytest.fixture
def server(written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(shard_fetch, "PAUSES_S", (0.01, 0.01))
    shutil.copytree(written, tmp_path / "web")
    web = _Server(("127.0.0.1", 0), partial(_Handler, directory=str(tmp_path / "web")))
    web.asked, web.broken = Counter(), {}
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield web
    web.shutdown()
    thread.join()
    web.server_close()


@pytest.fixture
def config(server: _Server, tmp_path: Path) -> DataConfig:
    return DataConfig(shards=server.url, shard_cache=tmp_path / "cache", shard_mix=2)


def test_samples_of_a_server_are_those_of_the_files(written: Path, server: _Server, config: DataConfig) -> None:
    near, far = ShardSource(DataConfig(shards=str(written)), "train"), ShardSource(config, "train")
    assert far.classes.names == near.classes.names
    for index in (0, len(near) - 1, 0):
        for one, other in zip(far.read(index), near.read(index), strict=True):
            assert np.array_equal(one, other)
    assert list(far.names) == list(near.names)
    shards = [name for name in server.asked if name.endswith(".tar")]
    assert len(shards) == len(far.counts) > 2
    assert {server.asked[name] for name in shards} == {1}


def test_what_comes_next_is_fetched_ahead(server: _Server, config: DataConfig, tmp_path: Path) -> None:
    far = ShardSource(config, "train")
    far.at(0, 0, 0)
    for thread in [t for t in threading.enumerate() if t.name == "shards"]:
        thread.join()
    assert len(list((tmp_path / "cache").glob("*.tar"))) == 4, "two groups of two"
    asked = server.asked.copy()
    group = {far.locate(far.at(0, 0, place))[0].shown for place in range(3)}
    assert server.asked == asked
    assert len(group) <= 2


def _read_all(config: DataConfig) -> None:
    source = ShardSource(config, "train")
    for index in range(len(source)):
        source.read(index)


def test_processes_of_a_machine_share_what_is_fetched(server: _Server, config: DataConfig) -> None:
    context = multiprocessing.get_context("forkserver")
    processes = [context.Process(target=_read_all, args=(config,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert {server.asked[name] for name in server.asked if name.endswith(".tar")} == {1}


def test_a_broken_connection_is_tried_again(server: _Server, config: DataConfig, tmp_path: Path) -> None:
    server.broken["train-000000.tar"] = 2
    ShardSource(config, "train").read(0)
    assert server.asked["train-000000.tar"] == 3
    server.broken["train-000001.tar"] = 3
    far = ShardSource(config, "train")
    with pytest.raises(
        DataError, match=r"train-000001.tar: must be readable, got .* 3 times; check the connection"
    ) as e:
        far.read(far.counts[0])
    assert "\n" not in str(e.value)
    left = [path.name for path in (tmp_path / "cache").iterdir() if "000001" in path.name]
    assert all(name.endswith(".lock") for name in left), "nothing half is kept"
    far.read(far.counts[0])


def test_what_a_server_lacks_is_said_at_once(server: _Server, config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "web" / "train-000001.tar").unlink()
    far = ShardSource(config, "train")
    with pytest.raises(DataError, match=r"train-000001.tar: shard must be readable, got 'HTTP Error 404"):
        far.read(far.counts[0])
    assert server.asked["train-000001.tar"] == 1
    lost = DataConfig(shards=f"{server.url}/nowhere", shard_cache=tmp_path / "cache")
    with pytest.raises(DataError, match=r"nowhere/train.json: an index of shards must be there"):
        ShardSource(lost, "train")


def test_the_cache_keeps_within_its_bounds(
    server: _Server, config: DataConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    table = json.loads((tmp_path / "web" / "train.json").read_text())["shardlist"]
    bound = table[0]["filesize"] + table[1]["filesize"] + 1000
    far = ShardSource(config, "train")
    far.cache = Cache(far.cache.folder, bound)
    first = far.read(0)
    for index in range(len(far)):
        far.read(index)
        assert sum(path.stat().st_size for path in far.cache.folder.glob("*.tar")) <= bound
    assert "raise --data.shard-cache-gib" in caplog.text
    again = far.read(0)
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    assert server.asked["train-000000.tar"] == 2


def test_a_shard_that_changed_on_the_server_is_fetched_again(
    server: _Server, config: DataConfig, tmp_path: Path
) -> None:
    ShardSource(config, "train").read(0)
    kept = next((tmp_path / "cache").glob("*train-000000.tar"))
    kept.write_bytes(kept.read_bytes()[:5000])
    ShardSource(config, "train").read(0)
    assert server.asked["train-000000.tar"] == 2


def test_a_cache_that_cannot_be_written_is_one_line(server: _Server, config: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    far = ShardSource(config, "train")
    far.cache = Cache(tmp_path / "file" / "cache", 2**30)
    with pytest.raises(
        BackendError, match=r"data.shard_cache: .* must take http.*train-000000.tar, got 'Not a directory'"
    ):
        far.read(0)


def test_a_check_names_what_lies_on_the_server(
    server: _Server, config: DataConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    web = tmp_path / "web"
    (web / "val-000000.tar").write_bytes((web / "val-000000.tar").read_bytes()[:3000])
    arguments = ["--data.shards", server.url, "--data.shard-cache", str(tmp_path / "cache")]
    (web / "val.json").write_text('{"shardlist": [{"url": "val-000000.tar"}]}')
    assert main(["data", "check", *arguments]) == 3
    assert f"error: {server.url}/val-000000.tar: shard must be a whole" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "far"),
    [("http://a/b.tar", True), ("pipe:cat a", True), ("s3://b/c", True), ("/a/b.tar", False), ("file:///a.tar", False)],
)
def test_addresses_are_told_from_paths(text: str, far: bool) -> None:
    assert is_address(text) is far


def test_other_schemes_go_through_the_library(written: Path, tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 2**30)
    file = cache.local(f"pipe:cat {written / 'train-000000.tar'}")
    assert file.read_bytes() == (written / "train-000000.tar").read_bytes()
