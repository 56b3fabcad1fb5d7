"""A disk that is really full, or that turns read-only: a memory file system of a few megabytes."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from setr_fast.config import Config
from setr_fast.errors import BackendError
from setr_fast.train import checkpoint
from setr_fast.train.launch import run

Make = Callable[..., Config]


def _mount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["mount", *arguments], capture_output=True, text=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Sixteen megabytes; skips with the reason where nothing may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    made = _mount("-t", "tmpfs", "-o", "size=16m", "tmpfs", str(place))
    if made.returncode:
        pytest.skip(f"nothing may be mounted here: {made.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def _kept(config: Config) -> dict[str, dict[str, torch.Tensor]]:
    assert config.run_dir is not None
    found = checkpoint.complete(config.run_dir / "checkpoints")
    assert all(checkpoint.fault_of(saved) is None for saved in found)
    return {saved.name: checkpoint.read_tensors(saved) for saved in found}


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_disk_that_fills_up_or_turns_read_only_costs_nothing(tiny: Make, disk: Path) -> None:
    config = replace(tiny("run", validate_every=6, save_every=3, keep=4), run_dir=disk / "run")
    run(config, [])
    whole = _kept(config)["step_00000006"]
    shutil.rmtree(disk / "run" / "checkpoints" / "step_00000006")  # as if it had been killed after step 3
    before = _kept(config)
    assert list(before) == ["step_00000003"]
    resumed = replace(config, resume=True)

    assert _mount("-o", "remount,ro", str(disk)).returncode == 0
    with pytest.raises(
        BackendError, match=r"run_dir: .* cannot be written \(Read-only file system\); see to it, then go"
    ):
        run(resumed, [])
    assert _mount("-o", "remount,rw,size=16m", str(disk)).returncode == 0

    for spare in (0, 100_000):  # no room for a line of text; room for that, and none for a checkpoint
        with (disk / "junk").open("wb", buffering=0) as junk:
            try:
                while junk.write(bytes(2**16)) == 2**16:
                    pass
            except OSError:
                pass
            junk.truncate(max(0, junk.tell() - spare))
        with pytest.raises(BackendError, match="No space left on device") as caught:
            run(resumed, [])
        assert "\n" not in str(caught.value)
        after = _kept(config)
        assert after.keys() == before.keys()
        assert all(_same(after[name], before[name]) for name in before)
        (disk / "junk").unlink()

    run(resumed, [])
    assert _same(_kept(config)["step_00000006"], whole)
