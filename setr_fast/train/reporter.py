"""What a run says: a progress bar on a terminal, plain lines elsewhere, and files in the run folder always."""

from __future__ import annotations

import json
import math
import re
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from setr_fast.files import atomic_write


class Reporter:
    """Writes ``metrics.jsonl`` and ``train.log``; shows loss, learning rate, images/s and time left.

    Only the first rank has one that speaks; the others' are silent and write nothing.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        steps: int,
        first_step: int,
        batch_size: int,
        log_every: int,
        speaks: bool,
        tensorboard: bool,
        step_flops: float = 0.0,
        peak_flops: float = 0.0,
    ) -> None:
        """``step_flops``: operations of a step; ``peak_flops``: operations/s of all devices, what MFU is a part of."""
        self.run_dir, self.steps, self.batch_size, self.log_every = run_dir, steps, batch_size, log_every
        self.speaks = speaks
        self._first_step = first_step
        self.step_flops, self.peak_flops = step_flops, peak_flops
        self._window: list[tuple[float, float, float, float]] = []
        """(loss, accuracy, seconds, waited) of each step since the last record."""
        self._saving = 0.0
        """Seconds that training stood still for checkpoints since the last record."""
        self._spent = 0.0
        self._done = 0
        self._bar: Any = None
        self._events: Any = None
        if speaks:
            self._cut_metrics(first_step)
            if tensorboard:
                self._events = _tensorboard(run_dir)

    def __enter__(self) -> Reporter:
        if self.speaks and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True))
            self._bar.start()
            self._task = self._bar.add_task("starting", total=self.steps, completed=self._first_step)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._events is not None:
            self._events.close()

    def line(self, text: str) -> None:
        """Say one line and keep it in ``train.log``."""
        if not self.speaks:
            return
        with (self.run_dir / "train.log").open("a") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, file=sys.stderr, flush=True)

    def step(self, step: int, loss: float, accuracy: float, lr: float, seconds: float, waited: float = 0.0) -> None:
        """Take in one finished step (counted from 1); every ``log_every``-th becomes a record.

        ``waited``: the part of ``seconds`` before the batch was there.
        """
        if not self.speaks:
            return
        self._window.append((loss, accuracy, seconds, waited))
        self._spent += seconds
        self._done += 1
        left = self._spent / self._done * (self.steps - step)
        mean, right, spent, idle = (sum(values) for values in zip(*self._window, strict=True))
        mean, right, spent = mean / len(self._window), right / len(self._window), max(spent, 1e-9)
        rate = self.batch_size * len(self._window) / spent
        text = f"loss {loss:.4f}  lr {lr:.2e}  {rate:.1f} images/s"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        if step % self.log_every == 0 or step == self.steps:
            speed = {
                "train/images_per_second": rate,
                "train/data_wait": idle / spent,
                "train/peak_mib": _peak_bytes() / 2**20,
            }
            if self.peak_flops:
                speed["train/mfu"] = self.step_flops * len(self._window) / spent / self.peak_flops
            if self._saving:
                speed["train/save_wait"] = self._saving / (spent + self._saving)
            losses = {"train/loss": mean, "train/pixel_accuracy": right}
            self.record({"step": step, **losses, "train/lr": lr, **speed})
            if self._bar is None:
                shown = f"{rate:.1f} images/s  data {speed['train/data_wait']:.0%}"
                shown += f"  save {speed['train/save_wait']:.0%}" if self._saving else ""
                shown += f"  MFU {speed['train/mfu']:.0%}" if self.peak_flops else ""
                self.line(f"step {step}/{self.steps}  loss {mean:.4f}  lr {lr:.2e}  {shown}  left {_clock(left)}")
            self._window.clear()
            self._saving = 0.0
        elif self._done == 1 and self._bar is None:  # a first sign of life, and how long it will take
            self.line(f"step {step}/{self.steps}  loss {loss:.4f}  {rate:.1f} images/s  left {_clock(left)}")

    def saving(self, seconds: float) -> None:
        """Take in how long training stood still for a checkpoint."""
        self._saving += seconds

    def validation(self, step: int, scores: dict[str, Any]) -> None:
        """Record a validation: ``mIoU``, ``aAcc``, ``mAcc`` and ``IoU`` per class name."""
        flat = {f"val/{key}": scores[key] for key in ("mIoU", "aAcc", "mAcc")}
        flat |= {f"val/IoU/{name}": value for name, value in scores["IoU"].items()}
        self.record({"step": step, **flat})
        shown = "  ".join(f"{key} {scores[key]:.4f}" for key in ("mIoU", "aAcc", "mAcc"))
        self.line(f"step {step}/{self.steps}  {shown}")

    def record(self, values: dict[str, Any]) -> None:
        """Append one line of JSON; numbers that are not finite become null."""
        if not self.speaks:
            return
        clean = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        with (self.run_dir / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(clean) + "\n")
        if self._events is not None:
            for key, value in clean.items():
                if key != "step" and value is not None:
                    self._events.add_scalar(key, value, clean["step"])

    def _cut_metrics(self, first_step: int) -> None:
        """Drop records of steps that a resumed run will do again."""
        path = self.run_dir / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for text in path.read_text().splitlines():
            try:
                if json.loads(text)["step"] <= first_step:
                    kept.append(text + "\n")
            except (ValueError, KeyError, TypeError):  # the line a crash cut off
                continue
        atomic_write(path, "".join(kept))


def _peak_bytes() -> int:
    """Return the most memory that this process has held: on a GPU in tensors, else all of it (0 where nothing says)."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.is_file() else None
    return int(found[1]) * 1024 if found else 0


def _tensorboard(run_dir: Path) -> Any:
    from setr_fast.errors import BackendError

    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise BackendError("train.tensorboard: needs the extra; pip install 'setr_fast[tensorboard]'") from None
    return SummaryWriter(str(run_dir / "events"))


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
