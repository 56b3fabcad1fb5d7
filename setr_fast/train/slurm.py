"""Ranks as SLURM numbers them: ``srun`` starts the processes, these variables say who each one is."""

from __future__ import annotations

import re
from collections.abc import Mapping

from setr_fast.errors import ConfigError

_FIRST_PORT, _PORTS = 20000, 10000


def ranks_of_slurm(environment: Mapping[str, str]) -> dict[str, str]:
    """Return torch's variables (RANK, ...) for a task of an ``srun`` with several; nothing elsewhere.

    The first host of the step is where the ranks meet, at a port that follows from the job's number unless
    MASTER_ADDR and MASTER_PORT are set.

    Source: slurm.schedmd.com/srun.html, "OUTPUT ENVIRONMENT VARIABLES".
    """
    tasks = int(environment.get("SLURM_NTASKS", "1") or 1)
    if "SLURM_PROCID" not in environment or "SLURM_STEP_ID" not in environment or tasks < 2:
        return {}
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    job = int(environment.get("SLURM_JOB_ID", "0"))
    here = int(environment.get("SLURM_NODEID", "0"))
    return {
        "RANK": environment["SLURM_PROCID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_RANK": environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": str(_tasks_per_host(environment.get("SLURM_STEP_TASKS_PER_NODE", str(tasks)))[here]),
        "MASTER_ADDR": environment.get("MASTER_ADDR") or first_host(hosts),
        "MASTER_PORT": environment.get("MASTER_PORT") or str(_FIRST_PORT + job % _PORTS),
    }


def first_host(hosts: str) -> str:
    """Return the first host of a list such as ``gpu[003-007,12]-ib,login1``."""
    match = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,]*))?", hosts)
    if match is None:
        raise ConfigError(f"SLURM: the list of hosts must name one, got {hosts!r}; set MASTER_ADDR")
    return "".join(part or "" for part in match.groups())


def _tasks_per_host(text: str) -> list[int]:
    """Return tasks of each host from ``8(x2),4``."""
    counts: list[int] = []
    for number, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(number)] * int(times or 1)
    return counts
