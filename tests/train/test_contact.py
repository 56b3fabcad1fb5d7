"""Processes that lose each other: what is said, how long they wait, that nobody waits in leaving."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from setr_fast.config import Config
from setr_fast.errors import EXIT_LOST, BackendError, ConfigError
from setr_fast.train import launch, ranks
from setr_fast.train.launch import run
from setr_fast.train.ranks import LostContactError, device_of, explained, joined
from tests.train.processes import start, wait

Make = Callable[..., Config]
NCCL = (
    "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:94, {}, NCCL version 2.28.9\n{}\nLast error:\n{}"
)
GONE = [
    dist.DistBackendError(
        NCCL.format(
            "remote process exited or there was a network error",
            "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
            "socketPollConnect poll() returned 1, no POLLOUT events",
        )
    ),
    dist.DistBackendError(
        NCCL.format(
            "unhandled system error (run with NCCL_DEBUG=INFO for details)",
            "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
            "socketStartConnect: Connect to 10.0.0.2<41235> failed : Connection refused",
        )
    ),
    dist.DistBackendError(
        "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, NumelIn=1, "
        "NumelOut=1, Timeout(ms)=600000) ran for 600013 milliseconds before timing out."
    ),
    dist.DistNetworkError("The client socket has timed out after 600000ms while trying to connect to (n1, 29400)."),
    RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:4"),
]
BROKEN = [
    NCCL.format(
        "invalid usage (run with NCCL_DEBUG=WARN for details)",
        "ncclInvalidUsage: This usually reflects invalid usage of NCCL library.",
        "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1b000",
    ),
    NCCL.format(
        "unhandled system error (run with NCCL_DEBUG=INFO for details)",
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
        "Error while creating shared memory segment /dev/shm/nccl-Jpq2vM (size 9637888)",
    ),
]


@pytest.mark.parametrize("error", GONE)
def test_a_peer_that_is_gone_is_told_as_that(error: RuntimeError) -> None:
    told = explained(error, rank=3)
    assert isinstance(told, LostContactError)
    assert "\n" not in str(told)
    assert str(told).startswith("train: process 3 lost contact with the others (")


@pytest.mark.parametrize("text", BROKEN)
def test_what_a_restart_would_not_mend_is_no_lost_peer(text: str) -> None:
    told = explained(dist.DistBackendError(text), rank=0)
    assert isinstance(told, BackendError)
    assert text.splitlines()[-1] in str(told)
    assert "\n" not in str(told)


@pytest.mark.parametrize("error", [RuntimeError("CUDA error: misaligned address"), ConfigError("x"), SystemExit(5)])
def test_other_errors_stay_what_they_are(error: BaseException) -> None:
    assert explained(error, rank=0) is error


def test_the_gpu_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number on the host; or the only one, where a scheduler shows each process its own."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for seen, local, device in ((8, 3, "cuda:3"), (1, 0, "cuda:0"), (1, 5, "cuda:0")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda seen=seen: seen)
        assert device_of(local) == torch.device(device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(BackendError, match=r"process 4 of this host must have a GPU, got 4; start 4 at most"):
        device_of(4)


def test_memory_that_is_full_is_one_line(tiny: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 1.2 "
            "GiB is free. Including non-PyTorch memory, this process has 77.8 GiB memory in use."
        )

    monkeypatch.setattr("setr_fast.train.loop.take_step", full)
    with pytest.raises(BackendError, match=r"^train: a step must fit into memory, got: CUDA out of memory. Tried"):
        run(tiny(), [])


def _hang_in_leaving() -> None:
    """Have the group's end wait for a process that will not come, as NCCL's does, and one process fail by itself."""

    def never(*_: object) -> None:
        time.sleep(3600)

    ranks.dist.destroy_process_group = never
    if os.environ["RANK"] == "1":
        launch.prepare = _fail


def _fail(*_: object) -> None:
    raise ConfigError("only this process finds this wrong")


def test_a_process_that_fails_does_not_wait_for_the_others_in_leaving(tiny: Make, tmp_path: Path) -> None:
    config = tiny(fsdp=True, steps=2, validate_every=2)
    processes = start(2, config, tmp_path / "log", before=_hang_in_leaving)
    processes[1].join(150)
    assert processes[1].exitcode == ConfigError.exit_code
    assert wait(processes, 150) == [EXIT_LOST, ConfigError.exit_code]
    assert "process 0 lost contact with the others" in (tmp_path / "log" / "0").read_text()


def test_limits_of_groups_follow_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of a mesh and the group that saves have it, where torch's own is half an hour."""
    monkeypatch.setattr(ranks.dist, "new_group", lambda **options: options)
    for_saves: Any = ranks.Ranks(0, 2, torch.device("cpu"), timeout_s=7.0).group()
    assert for_saves == {"backend": "gloo", "timeout": timedelta(seconds=7)}
    set_to: list[float] = []
    monkeypatch.setattr(ranks, "_set_pg_timeout", lambda limit, group: set_to.append(limit.total_seconds()))
    ranks.Ranks(0, 2, torch.device("cpu"), timeout_s=7.0).keep_time("a", "b")  # type: ignore[arg-type]
    assert set_to == [7.0, 7.0]
    set_to.clear()
    ranks.Ranks(0, 1, torch.device("cpu")).keep_time()
    assert set_to == [], "one process waits for nobody"
    with joined(group=False, timeout_s=3.0) as one:
        assert one.timeout_s == 3.0
