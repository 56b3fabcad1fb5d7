"""From a configuration to a finished run: alone, under a launcher or a scheduler, or launching ranks of its own."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from setr_fast.config import Config
from setr_fast.data.checks.check import verify
from setr_fast.errors import EXIT_INTERRUPTED, EXIT_LOST, EXIT_OK, EXIT_RESUME, BackendError, ConfigError
from setr_fast.train import checkpoint
from setr_fast.train.folder import RunFolder, locked, resume_point, run_folder, writing
from setr_fast.train.loop import train
from setr_fast.train.prepare import VERIFIED, prepare, splits_of
from setr_fast.train.ranks import by_first, joined
from setr_fast.train.slurm import ranks_of_slurm

RESTARTS = "SETR_FAST_RESTARTS"
"""Set for processes that take the place of lost ones: how often that has happened."""
MOST_PROCESSES = 1024  # of one machine

logger = logging.getLogger("setr_fast")


def run(config: Config, argv: list[str]) -> int:
    """Train as configured and return the exit code; start one process per GPU first where that was not done yet."""
    if "RANK" not in os.environ:
        os.environ.update(ranks_of_slurm(os.environ))
    if config.nproc is not None and not 1 <= config.nproc <= MOST_PROCESSES:
        raise ConfigError(f"nproc: must lie in 1..{MOST_PROCESSES}, got {config.nproc}")
    processes = config.nproc or max(1, torch.cuda.device_count())
    if "RANK" not in os.environ and processes > 1:
        return _run_processes(processes, config, argv)
    if config.fsdp and processes == 1 and "RANK" not in os.environ:
        logger.info("--fsdp with one process has nothing to share out; --nproc 2 starts two, also without a GPU")
    restarted = any(os.environ.get(name, "0") != "0" for name in (RESTARTS, "TORCHELASTIC_RESTART_COUNT"))
    with joined(group=config.fsdp, timeout_s=config.parallel.timeout) as ranks, ExitStack() as held:
        run_dir = by_first(ranks, lambda: run_folder(config, restarted=restarted))
        hold = RunFolder(config, run_dir, held, restarted=restarted)
        by_first(ranks, hold.hold_if_there)
        resume_from = by_first(ranks, lambda: resume_point(config, run_dir, restarted=restarted))
        parts = prepare(config, run_dir, ranks)
        by_first(ranks, hold.make)  # last: what fails before this leaves nothing behind
        ranks.keep_time()
        with writing(run_dir), _memory():
            scores = train(parts, ranks, resume_from=resume_from)
        if ranks.is_first:
            best = f"best mIoU {scores['best_mIoU']:.4f}  checkpoint {scores['checkpoint']}"
            print(f"mIoU {scores['mIoU']:.4f}  {best}", flush=True)
    return EXIT_OK


@contextmanager
def _memory() -> Iterator[None]:
    """Turn memory that is full into one line that says what to do."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "can't allocate memory" not in str(error):
            raise
        told = " ".join(str(error).split())[-1000:].split(". GPU ")[0]
        raise BackendError(
            f"train: a step must fit into memory, got: {told}; lower --train.batch-size, or let setr-fast plan "
            "name options that fit"
        ) from None


def _run_processes(processes: int, config: Config, argv: list[str]) -> int:
    """Run the same command in several processes by torch's elastic launcher; return the first failure's exit code.

    Ranks that were killed, or lost contact with one that was, are started again from the newest checkpoint.
    """
    if torch.cuda.is_available() and processes > torch.cuda.device_count():
        raise BackendError(f"nproc: must be at most {torch.cuda.device_count()}, the GPUs here, got {processes}")
    run_dir = run_folder(config)  # what is wrong with folder or data is said once, before there are processes
    if run_dir.exists():
        with locked(run_dir):
            resume_point(config, run_dir)
    verify(config.data, splits_of(config), level=config.data.check)
    os.environ[VERIFIED] = "1"
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    if loopback := [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])  # else gloo looks up this host's name
    folder = [] if config.run_dir else ["--run-dir", str(run_dir)]  # one name for all ranks
    arguments = ["-m", "setr_fast.train", *_without_nproc(argv), *folder]
    logging.getLogger("torch.distributed.elastic").setLevel(logging.ERROR)  # it announces every signal it passes on
    for attempt in range(config.train.restarts + 1):
        os.environ[RESTARTS] = str(attempt)
        code = _launch_once(processes, arguments)
        if code != EXIT_LOST:
            return code
        if attempt < config.train.restarts:
            logger.warning("%s; starting all %d again", _lost(run_dir), processes)
    raise BackendError(f"train: {_lost(run_dir)}, {config.train.restarts + 1} times; see why, then go on with --resume")


def _launch_once(processes: int, arguments: list[str]) -> int:
    """Start the ranks and wait for them; EXIT_LOST where one was killed."""
    launcher = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="localhost",  # not this host's name, which need not lead anywhere: all ranks are here
        max_restarts=0,
        monitor_interval=0.2,
        metrics_cfg={},
    )
    try:
        elastic_launch(launcher, sys.executable)(*arguments)
    except ChildFailedError as error:
        return _verdict([failure.exitcode for failure in error.failures.values()])
    except SignalException as error:
        return EXIT_RESUME if error.sigval == signal.SIGTERM else EXIT_INTERRUPTED
    return EXIT_OK


def _verdict(codes: list[int]) -> int:
    """Return what a launch ended with, given the codes of the ranks that failed.

    A rank's own error counts more than the loss of contact that it causes in others; negative: killed by a signal.
    """
    own = [code for code in codes if code > 0 and code != EXIT_LOST]
    return own[0] if own else EXIT_LOST


def _lost(run_dir: Path) -> str:
    kept = checkpoint.complete(run_dir / "checkpoints")
    return f"a process was killed, the newest checkpoint is {kept[-1].name if kept else 'none yet'}"


def _without_nproc(argv: list[str]) -> list[str]:
    """Drop ``--nproc N``, which is done."""
    kept, arguments = [], iter(argv)
    for argument in arguments:
        if argument == "--nproc":
            next(arguments, None)
        elif not argument.startswith("--nproc="):
            kept.append(argument)
    return kept
