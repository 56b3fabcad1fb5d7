"""Two hosts on one machine: two network namespaces joined by a cable that can be cut."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from setr_fast.config import Config, to_toml
from setr_fast.errors import EXIT_LOST
from setr_fast.train import checkpoint
from setr_fast.train.options import ParallelConfig

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Config]
TIMEOUT_S = 8


def _ip(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture
def hosts() -> Iterator[list[str]]:
    """Two namespaces with addresses 10.213.0.1 and .2; skips with the reason where they are not allowed."""
    if shutil.which("ip") is None:
        pytest.skip("needs iproute2")
    names = [f"setr{os.getpid()}{side}" for side in "ab"]
    made = [_ip("netns", "add", name) for name in names]
    try:
        if any(done.returncode for done in made):
            pytest.skip(f"network namespaces are not allowed here: {made[0].stderr.strip()}")
        if (entered := _ip("netns", "exec", names[0], "true")).returncode != 0:
            pytest.skip(f"nothing may run in a network namespace here: {entered.stderr.strip()}")
        cable = _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
        if cable.returncode:
            pytest.skip(f"veth pairs are not allowed here: {cable.stderr.strip()}")
        for number, name in enumerate(names, 1):
            _ip("-n", name, "addr", "add", f"10.213.0.{number}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
        yield names
    finally:
        for name in names:
            _ip("netns", "delete", name)


def _torchrun(host: str, number: int, file: Path, run_dir: Path, *flags: str) -> subprocess.Popen[str]:
    """Start one host's torchrun, one rank each."""
    command = [
        *("ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(number)),
        *("--master-addr", "10.213.0.1", "--master-port", "29400"),
        *("-m", "setr_fast.train", "--config", str(file), "--run-dir", str(run_dir), *flags),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0"}
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env=environment)


def _steps(run_dir: Path) -> list[int]:
    file = run_dir / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()] if file.exists() else []


def test_a_cut_cable_ends_the_run_in_time_and_it_goes_on(hosts: list[str], tiny: Make, tmp_path: Path) -> None:
    config = tiny(steps=100_000, validate_every=100_000, save_every=3, fsdp=True)
    config = replace(config, run_dir=None, parallel=ParallelConfig(timeout=TIMEOUT_S))
    file, run_dir = tmp_path / "c.toml", tmp_path / "run"
    file.write_text(to_toml(config))
    both = [_torchrun(host, number, file, run_dir) for number, host in enumerate(hosts)]
    try:
        deadline = time.monotonic() + 120
        while not checkpoint.complete(run_dir / "checkpoints"):
            assert all(process.poll() is None for process in both), [p.communicate()[1][-2000:] for p in both]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        _ip("-n", hosts[0], "link", "set", "eth0", "down")
        cut = time.monotonic()
        errors = [process.communicate(timeout=120)[1] for process in both]
        took = time.monotonic() - cut
    finally:
        for process in both:
            process.kill()
    assert all(process.returncode != 0 for process in both)
    assert took < 5 * TIMEOUT_S, "the timeout, the launcher's own patience, and a loaded machine"
    assert f"exitcode  : {EXIT_LOST}" in errors[0], errors[0][-3000:]
    assert "process 0 lost contact with the others" in errors[0]

    _ip("-n", hosts[0], "link", "set", "eth0", "up")
    found = checkpoint.newest_intact(run_dir / "checkpoints")
    assert found is not None
    reached = checkpoint.read_progress(found).step
    flags = ["--resume", "--train.steps", str(reached + 2), "--train.validate-every", str(reached + 2)]
    both = [_torchrun(host, number, file, run_dir, *flags) for number, host in enumerate(hosts)]
    errors = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], errors[0][-3000:]
    assert _steps(run_dir)[-1] == reached + 2
    assert _steps(run_dir) == sorted(_steps(run_dir))
