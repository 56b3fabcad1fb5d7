"""The launcher of one's own: lost ranks are replaced, a lost launcher takes its ranks along, launches end well."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from setr_fast.config import Config, to_toml
from setr_fast.train import checkpoint
from setr_fast.train.folder import locked
from setr_fast.train.launch import _verdict, run
from setr_fast.train.slurm import first_host, ranks_of_slurm
from tests.train.processes import run_ranks

ROOT = Path(__file__).resolve().parents[2]
Make = Callable[..., Config]


NAMELESS = ["unshare", "--uts", "sh", "-c", 'hostname nowhere.invalid && exec "$@"', "sh"]
"""Run a command on a host whose name leads nowhere, as many containers' and laptops' do."""


def _start(config: Config, file: Path, *flags: str, host: Sequence[str] = ()) -> subprocess.Popen[str]:
    assert config.run_dir is not None
    file.write_text(to_toml(replace(config, run_dir=None)))
    argv = ["--config", str(file), "--run-dir", str(config.run_dir), *flags]
    command = [*host, sys.executable, "-m", "setr_fast.train", *argv]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def _children(pid: int) -> list[int]:
    """Return the ranks that a launcher has started: not multiprocessing's own processes."""
    listed = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(p) for p in listed if b"setr_fast.train" in Path(f"/proc/{p}/cmdline").read_bytes()]


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[-1].split()[0] == "Z"
    except OSError:
        return True


def _until(what: Callable[[], object], process: subprocess.Popen[str], seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert process.poll() is None, process.communicate()[1][-3000:]
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def _steps(config: Config) -> list[int]:
    assert config.run_dir is not None
    file = config.run_dir / "metrics.jsonl"
    if not file.exists():
        return []
    return [json.loads(line)["step"] for line in file.read_text().splitlines() if line.endswith("}")]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_a_killed_rank_is_replaced_and_a_killed_launcher_takes_its_ranks_along(tiny: Make, tmp_path: Path) -> None:
    config = tiny(steps=3000, validate_every=3000, save_every=5, fsdp=True)
    launcher = _start(config, tmp_path / "c.toml", "--nproc", "2")
    assert config.run_dir is not None
    folder = config.run_dir / "checkpoints"
    try:
        _until(lambda: checkpoint.complete(folder), launcher)
        first = _children(launcher.pid)
        assert len(first) == 2
        os.kill(first[1], signal.SIGKILL)
        reached = max(_steps(config))
        _until(lambda: _children(launcher.pid) and not set(_children(launcher.pid)) & set(first), launcher)
        _until(lambda: max(_steps(config), default=0) > reached + 5, launcher)
        assert _steps(config) == sorted(set(_steps(config))), "steps that are done again must not stand twice"
        second = _children(launcher.pid)
    finally:
        launcher.kill()
    error = launcher.communicate(timeout=30)[1]
    assert "a process was killed, the newest checkpoint is step_" in error
    assert "starting all 2 again" in error
    deadline = time.monotonic() + 20
    while not all(map(_gone, second)):
        assert time.monotonic() < deadline, "ranks must end with their launcher"
        time.sleep(0.05)
    with locked(config.run_dir):
        found = checkpoint.newest_intact(folder)
    assert found is not None


def test_sigterm_to_the_launcher_saves_and_says_resume_me(tiny: Make, tmp_path: Path) -> None:
    config = tiny(steps=3000, validate_every=3000)
    launcher = _start(config, tmp_path / "c.toml", "--nproc", "2")
    try:
        _until(lambda: len(_steps(config)) >= 2, launcher)
        launcher.terminate()
        error = launcher.communicate(timeout=90)[1]
    finally:
        launcher.kill()
    assert launcher.returncode == 75, error
    assert error.count("state saved") == 1, error
    assert config.run_dir is not None
    assert len(checkpoint.complete(config.run_dir / "checkpoints")) == 1


@pytest.mark.parametrize("launches", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_launches_in_a_row_exit_0(tiny: Make, tmp_path: Path, launches: int) -> None:
    """gloo's worker threads used to abort one launch in four after its work was done; and on a host whose name leads
    nowhere torch's launcher waits for itself, if it is left to look that up."""
    allowed = shutil.which("unshare") and subprocess.run([*NAMELESS, "true"], capture_output=True, check=False)
    nameless = allowed and allowed.returncode == 0
    for number in range(launches):
        config = tiny(f"run{number}", steps=1, validate_every=1, fsdp=True)
        process = _start(config, tmp_path / "c.toml", "--nproc", "2", host=NAMELESS if nameless else ())
        out, error = process.communicate(timeout=180)
        assert process.returncode == 0, f"launch {number}: exit code {process.returncode}\n{error[-3000:]}"
        assert out.count("checkpoint") == 1
        assert "Warning" not in error, error
        assert config.run_dir is not None
        assert (config.run_dir / "best" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("codes", "verdict"),
    [([-9], 76), ([-9, 76], 76), ([76, 76], 76), ([76, 3], 3), ([3], 3), ([-15, 5], 5), ([75, 75], 75), ([1], 1)],
)
def test_a_ranks_own_error_counts_more_than_the_contact_it_costs_others(codes: list[int], verdict: int) -> None:
    assert _verdict(codes) == verdict


SLURM = {
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_NTASKS": "12",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_STEP_NODELIST": "gpu[003-004]-ib,login1",
    "SLURM_STEP_TASKS_PER_NODE": "8,4",
}


def test_ranks_are_read_from_slurm() -> None:
    assert ranks_of_slurm(SLURM) == {
        "RANK": "9",
        "WORLD_SIZE": "12",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": "gpu003-ib",
        "MASTER_PORT": str(20000 + 123456 % 10000),
    }
    assert ranks_of_slurm(SLURM | {"MASTER_ADDR": "head", "MASTER_PORT": "1"})["MASTER_ADDR"] == "head"
    assert ranks_of_slurm(SLURM | {"SLURM_NTASKS": "1"}) == {}, "one task starts its own processes"
    assert ranks_of_slurm({k: v for k, v in SLURM.items() if k != "SLURM_STEP_ID"}) == {}, "sbatch, not srun"
    assert ranks_of_slurm({}) == {}


@pytest.mark.parametrize(
    ("hosts", "first"),
    [("a", "a"), ("n1,n2", "n1"), ("n[1-3]", "n1"), ("n[07,9-12]", "n07"), ("r1-n[2,3]-x,z[1-2]", "r1-n2-x")],
)
def test_first_host_of_a_slurm_list(hosts: str, first: str) -> None:
    assert first_host(hosts) == first


def _task_of_srun() -> None:
    """Put what srun sets in the place of what torchrun sets."""
    rank = os.environ["RANK"]
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR"):
        del os.environ[name]
    os.environ |= SLURM | {
        "SLURM_NTASKS": "2",
        "SLURM_PROCID": rank,
        "SLURM_LOCALID": rank,
        "SLURM_NODEID": "0",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_STEP_TASKS_PER_NODE": "2",
    }


def test_a_run_under_slurm(tiny: Make, tmp_path: Path) -> None:
    """Two tasks of a pretended srun find each other."""
    config = tiny(steps=2, validate_every=2, fsdp=True)
    run_ranks(2, config, tmp_path / "log", before=_task_of_srun)
    assert "cpu, 2 processes" in (tmp_path / "log" / "0").read_text()
    assert "step 2/2" in (tmp_path / "log" / "0").read_text()
    assert "step 2/2" not in (tmp_path / "log" / "1").read_text()


def test_torchrun_restarts_go_on_from_the_newest_checkpoint(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --max-restarts torchrun starts the same command again: its folder is there, and that is right."""
    config = tiny(steps=4, validate_every=4, save_every=2)
    run(replace(config, train=replace(config.train, steps=2)), [])
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert run(config, []) == 0
    assert _steps(config) == [1, 2, 2, 3, 4, 4]
