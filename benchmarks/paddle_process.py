"""PaddleSeg beside ours: its networks live in a process of their own, with the interpreter that has Paddle.

Both frameworks bring OpenMP runtimes and matrix libraries that do not share a process. While one side runs, the other
waits; each takes the time of its own forward, with as many threads.
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

WORKER = Path(__file__).with_name("paddle_worker.py")
VARIABLE = "SETR_FAST_PADDLESEG"


class PaddleNetwork:
    """PaddleSeg's own network with the weights of ``model``: normalised pictures to full-size logits."""

    def __init__(self, model: SegmentationModel, folder: Path) -> None:
        python = os.environ.get(VARIABLE, sys.executable)
        threads = str(torch.get_num_threads())
        # Paddle's own default is one thread.
        environment = os.environ | {"OMP_NUM_THREADS": threads, "FLAGS_paddle_num_threads": threads}
        environment.pop("PYTHONPATH", None)
        if subprocess.run([python, "-c", "import paddleseg"], env=environment, capture_output=True).returncode:
            raise NotHere(
                f"{python} has no paddleseg; {VARIABLE} names the interpreter of an environment with .[paddleseg]"
            )
        write_export(export("paddleseg", model.spec, model.state_dict()), folder / "model.pdparams")
        self.folder = folder
        self.elapsed = 0.0
        with (folder / "worker.log").open("w") as log:
            self.process = subprocess.Popen(
                [python, str(WORKER)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        disturbance.companions.add(self.process.pid)
        machine.note_versions(self._ask({"load": str(folder)}))

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
            raise RuntimeError(f"paddleseg: {reply['error']}")
        return reply
