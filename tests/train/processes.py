"""Ranks for tests: forked from a server that has torch loaded, so that a run of four starts in under a second."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from setr_fast.config import Config

_CONTEXT = multiprocessing.get_context("forkserver")
# What a run imports at its first step is loaded once, too: a second of processor time per rank.
_CONTEXT.set_forkserver_preload(["torch", "torch._dynamo", "setr_fast.train.launch", "setr_fast.data.scenes.builtin"])


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(world_size: int, config: Config, log: Path, before: Callable[[], None] | None = None) -> list[BaseProcess]:
    """Start the ranks of one run; each one's output goes to ``log``/<rank>. ``before`` runs first in each."""
    log.mkdir(parents=True, exist_ok=True)
    port = free_port()
    ranks: list[BaseProcess] = [
        _CONTEXT.Process(target=_rank, args=(rank, world_size, port, config, str(log / str(rank)), before))
        for rank in range(world_size)
    ]
    for process in ranks:
        process.start()
    return ranks


def wait(ranks: list[BaseProcess], seconds: float = 300.0) -> list[int]:
    """Wait for the ranks and return their exit codes; those that are still there at the end are killed."""
    deadline = time.monotonic() + seconds
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    for process in ranks:
        if process.is_alive():
            process.kill()
            process.join()
    return [int(process.exitcode or 0) for process in ranks]


def run_ranks(world_size: int, config: Config, log: Path, **options: Any) -> None:
    """Run to the end; fail with what the ranks wrote if one does."""
    codes = wait(start(world_size, config, log, **options))
    texts = "\n".join(file.read_text() for file in sorted(log.iterdir()))
    assert codes == [0] * world_size, f"exit codes {codes}\n{texts[-4000:]}"


def hosts_of_two() -> None:
    """Have four ranks believe that they are on two hosts, and say how their weights are spread and gathered."""
    from torch.distributed.fsdp._fully_shard import _fsdp_param_group

    from setr_fast.train import parallel

    os.environ["LOCAL_WORLD_SIZE"] = "2"
    shard = parallel.fully_shard

    def told(module: Any, **options: Any) -> Any:
        print("spread over", tuple(options["mesh"].shape), options["reshard_after_forward"], flush=True)
        return shard(module, **options)

    gather = _fsdp_param_group.foreach_all_gather

    def counted(*args: Any, **options: Any) -> Any:
        print("weights are gathered", flush=True)
        return gather(*args, **options)

    parallel.fully_shard = told  # type: ignore[assignment]
    _fsdp_param_group.foreach_all_gather = counted


def _rank(rank: int, world_size: int, port: int, config: Config, log: str, before: Callable[[], None] | None) -> None:
    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    import torch

    torch.set_num_threads(1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    from setr_fast.errors import SetrFastError
    from setr_fast.train.launch import run

    try:
        if before is not None:
            before()
        code = run(config, [])
    except SetrFastError as error:
        print(f"setr-fast train: {error}", file=sys.stderr, flush=True)
        code = error.exit_code
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    os._exit(code)
