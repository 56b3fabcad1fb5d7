"""Other code bases beside ours whose networks live in a process of their own, with the interpreter that can run them.

Paddle brings an OpenMP runtime and matrix libraries that do not share a process with torch's; official SETR and
official Segmenter need releases of mmcv and timm that ours must not. While one side runs, the other waits; each takes
the time of its own forward, with as many threads.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import disturbance, machine
from benchmarks.peers import NotHere
from setr_fast.checkpoints.export import export, write_export
from setr_fast.models.model import SegmentationModel

WORKER = Path(__file__).with_name("peer_worker.py")
PADDLE_PYTHON, PEER_PYTHON = "SETR_FAST_PADDLESEG", "SETR_FAST_PEER_PYTHON"
REPOSITORIES = {"segmenter": "SETR_FAST_SEGMENTER_REPO", "setr": "SETR_FAST_SETR_REPO"}
"""Of the official code bases, and the variables that name checkouts: neither is in any registry."""


class PeerNetwork:
    """Another code base's own network: normalised pictures to full-size logits."""

    def __init__(self, python: str, arguments: list[str], folder: Path) -> None:
        self.folder = folder
        self.elapsed = 0.0
        with (folder / "worker.log").open("w") as log:
            self.process = subprocess.Popen(
                [python, str(WORKER), *arguments],
                env=_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        disturbance.companions.add(self.process.pid)
        try:
            machine.note_versions(self._ask({"load": str(folder)}))
        except Exception:
            self.close()
            raise

    def __call__(self, picture: Tensor) -> Tensor:
        """Return the logits of normalised pictures."""
        np.save(self.folder / "picture.npy", picture.numpy())
        said = self._ask({"run": str(self.folder / "picture.npy"), "to": str(self.folder / "logits.npy")})
        self.elapsed += float(said["seconds"])
        return torch.from_numpy(np.load(self.folder / "logits.npy"))

    def seconds(self) -> float:
        """Return what the calls since it was last asked took, by the clock of the process that ran them."""
        elapsed, self.elapsed = self.elapsed, 0.0
        return elapsed

    def close(self) -> None:
        """End the process."""
        disturbance.companions.discard(self.process.pid)
        self.process.communicate()

    def _ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(json.dumps(question), file=self.process.stdin, flush=True)
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        reply: dict[str, Any] = json.loads(line) if line else {"error": (self.folder / "worker.log").read_text()[-500:]}
        if "error" in reply:
            raise RuntimeError(f"{WORKER.name}: {reply['error']}")
        return reply


def paddleseg(model: SegmentationModel, folder: Path) -> PeerNetwork:
    """Return PaddleSeg's own network with the weights of ``model``; NotHere without PaddleSeg."""
    python = os.environ.get(PADDLE_PYTHON, sys.executable)
    _require(python, "paddleseg", f"{PADDLE_PYTHON} names the interpreter of an environment with .[paddleseg]")
    write_export(export("paddleseg", model.spec, model.state_dict()), folder / "model.pdparams")
    return PeerNetwork(python, ["paddleseg"], folder)


def official(family: str, model: SegmentationModel, folder: Path) -> PeerNetwork:
    """Return the network of official Segmenter or SETR with the weights of ``model``; NotHere without a checkout."""
    repository = os.environ.get(REPOSITORIES[family])
    if not repository:
        raise NotHere(f"{REPOSITORIES[family]} names no checkout of the code base, which is in no registry")
    python = os.environ.get(PEER_PYTHON, sys.executable)
    needed = "timm" if family == "segmenter" else "mmcv"
    _require(python, needed, f"{PEER_PYTHON} names the interpreter of an environment that can run the code base")
    name = "checkpoint.pth" if family == "segmenter" else "model.pth"
    write_export(export(family, model.spec, model.state_dict()), folder / name)
    return PeerNetwork(python, [family, repository], folder)


def _require(python: str, package: str, remedy: str) -> None:
    found = f"import importlib.util, sys; sys.exit(importlib.util.find_spec({package!r}) is None)"
    if subprocess.run([python, "-c", found], env=_environment(), capture_output=True).returncode:
        raise NotHere(f"{python} has no {package}; {remedy}")


def _environment() -> dict[str, str]:
    """Return what the process starts with: as many threads as here. Paddle's own default is one."""
    threads = str(torch.get_num_threads())
    environment = os.environ | {"OMP_NUM_THREADS": threads, "FLAGS_paddle_num_threads": threads}
    environment.pop("PYTHONPATH", None)
    return environment
