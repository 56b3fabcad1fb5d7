"""Killed at any moment, a run goes on to the bit; what cannot be written costs nothing that had been."""

from __future__ import annotations

import functools
import json
import os
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from setr_fast.cli import main
from setr_fast.config import Config
from setr_fast.errors import EXIT_ENVIRONMENT, EXIT_LOST, EXIT_RESUME, BackendError, ConfigError
from setr_fast.models.store import load_model
from setr_fast.train import checkpoint, saver
from setr_fast.train.folder import locked
from setr_fast.train.launch import run
from tests.train.conftest import tiny_in
from tests.train.processes import run_ranks, start, wait

Make = Callable[..., Config]
STEPS = 6


def _config(tiny: Make, name: str, **changes: object) -> Config:
    return tiny(name, steps=STEPS, validate_every=STEPS, save_every=1, ema=0.9, keep=2, **changes)


def _folder(config: Config) -> Path:
    assert config.run_dir is not None
    return config.run_dir / "checkpoints"


@pytest.fixture(scope="module")
def whole_of_two(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """The run that nobody disturbed, sharded over two ranks; not to be changed."""
    folder = tmp_path_factory.mktemp("whole")
    config = _config(tiny_in(folder), "run", fsdp=True)
    run_ranks(2, config, folder / "log")
    return config


def _final(config: Config) -> dict[str, torch.Tensor]:
    return checkpoint.read_tensors(_folder(config) / f"step_{STEPS:08d}")


def _same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _die_while_shards_are_written() -> None:
    write = saver.Writer.write_data

    def write_and_die(self: saver.Writer, *args: object) -> object:
        if "step_00000004" in str(self.path):
            (Path(str(self.path)) / "__0_0.distcp").write_bytes(b"half")
            _die()
        return write(self, *args)

    saver.Writer.write_data = write_and_die


def _die_before_the_folder_gets_its_name() -> None:
    rename = os.rename

    def die_or_rename(source: Path, target: Path) -> None:
        if str(target).endswith("step_00000004"):
            _die()
        rename(source, target)

    saver.os.rename = die_or_rename


def _die_while_old_ones_are_deleted() -> None:
    remove = shutil.rmtree

    def die_or_remove(path: Path, **options: object) -> None:
        if str(path).endswith("step_00000002"):
            next(Path(path).glob("shards/*.distcp")).unlink()
            _die()
        remove(path, **options)

    saver.shutil.rmtree = die_or_remove


@pytest.mark.parametrize(
    "death", [_die_while_shards_are_written, _die_before_the_folder_gets_its_name, _die_while_old_ones_are_deleted]
)
def test_killed_during_a_save_a_run_goes_on_to_the_bit(tiny: Make, tmp_path: Path, death: Callable[[], None]) -> None:
    whole, broken = _config(tiny, "whole"), _config(tiny, "broken")
    run(whole, [])
    assert wait(start(1, broken, tmp_path / "log", before=death)) == [-signal.SIGKILL]
    newest = 4 if death is _die_while_old_ones_are_deleted else 3
    found = checkpoint.newest_intact(_folder(broken))
    assert found is not None
    assert checkpoint.read_progress(found).step == newest
    run(replace(broken, resume=True), [])
    assert _same(_final(broken), _final(whole))
    assert not list(_folder(broken).glob(".writing-*"))


def test_killed_ranks_at_a_random_moment(tiny: Make, whole_of_two: Config, tmp_path: Path) -> None:
    """Two sharding ranks; the one that is left over says that it lost contact, and with which code."""
    chance = random.Random(tmp_path.name)
    for name, victims in (("all", [0, 1]), ("one", [1])):
        broken = _config(tiny, name, fsdp=True)
        ranks = start(2, broken, tmp_path / f"log-{name}")
        _until(functools.partial(checkpoint.complete, _folder(broken)))
        time.sleep(chance.uniform(0.0, 0.5))
        for rank in victims:
            ranks[rank].kill()
        codes = wait(ranks)
        if name == "one" and codes[1] != 0:  # it may have been done already
            assert codes[0] == EXIT_LOST
            assert "lost contact" in (tmp_path / "log-one" / "0").read_text()
        run_ranks(2, replace(broken, resume=True), tmp_path / f"log-{name}-again")
        assert _same(_final(broken), _final(whole_of_two))


def test_another_number_of_ranks_goes_on_with_the_same_losses(tiny: Make, tmp_path: Path) -> None:
    one = tiny("one", steps=8, validate_every=8, save_every=4)
    run(one, [])
    two = tiny("two", steps=8, validate_every=8, save_every=4, fsdp=True)
    run_ranks(2, two, tmp_path / "log")
    expected = _losses(one)
    for config in (one, two):
        shutil.rmtree(_folder(config) / "step_00000008")
    run(replace(two, resume=True, fsdp=False), [])
    assert _losses(two) == pytest.approx(expected, rel=1e-5)
    run_ranks(2, replace(one, resume=True, fsdp=True), tmp_path / "log-again")
    assert _losses(one) == pytest.approx(expected, rel=1e-5)


def _small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_full_disk_is_one_line_and_costs_nothing(tiny: Make, tmp_path: Path, ranks: int) -> None:
    config = _config(tiny, "run", fsdp=ranks > 1)
    run(replace(config, train=replace(config.train, steps=3)), [])
    codes = wait(start(ranks, replace(config, resume=True), tmp_path / "full", before=_small_files_only))
    assert codes == [EXIT_ENVIRONMENT] * ranks
    text = (tmp_path / "full" / "0").read_text()
    assert "a checkpoint could not be written (" in text
    assert "Traceback" not in text
    assert [p.name for p in checkpoint.complete(_folder(config))] == ["step_00000002", "step_00000003"]
    assert not list(_folder(config).glob(".writing-*"))
    run(replace(config, resume=True), [])
    assert checkpoint.fault_of(_folder(config) / "step_00000006") is None


def test_a_folder_that_cannot_be_written_is_one_line(tiny: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match=r"cannot be written \(Not a directory\); give another --run-dir"):
        run(replace(tiny(), run_dir=tmp_path / "file" / "run"), [])


def test_two_runs_do_not_share_a_folder(tiny: Make) -> None:
    config = tiny(steps=2, validate_every=2)
    run(config, [])
    assert config.run_dir is not None
    before = sorted(p.name for p in config.run_dir.rglob("*"))
    with (
        locked(config.run_dir),
        pytest.raises(ConfigError, match=rf"in use by another run, got one by process {os.getpid()}"),
    ):
        run(replace(config, resume=True), [])
    assert sorted(p.name for p in config.run_dir.rglob("*")) == before
    run(replace(config, resume=True), [])


def test_told_to_stop_every_rank_saves_and_says_resume_me(tiny: Make, tmp_path: Path) -> None:
    config = tiny(steps=3000, validate_every=3000, fsdp=True)
    ranks = start(2, config, tmp_path / "log")
    assert config.run_dir is not None
    metrics = config.run_dir / "metrics.jsonl"
    _until(lambda: metrics.exists() and metrics.read_text().count("\n") >= 2)
    pid = ranks[1].pid
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    assert wait(ranks) == [EXIT_RESUME] * 2
    assert "state saved; go on with: python -m setr_fast.train" in (tmp_path / "log" / "0").read_text()
    saved = checkpoint.complete(_folder(config))
    assert len(saved) == 1
    assert checkpoint.read_progress(saved[0]).step >= 2


def _losses(config: Config) -> list[float]:
    assert config.run_dir is not None
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [r["train/loss"] for r in records if "train/loss" in r]


def _until(what: Callable[[], object], seconds: float = 90.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def test_consolidate_gives_the_weights_of_the_newest_checkpoint_as_a_model_folder(
    whole_of_two: Config, tmp_path: Path
) -> None:
    arguments = ["consolidate", str(whole_of_two.run_dir), "--out", str(tmp_path / "model"), "--weights", "raw"]
    assert main(arguments) == 0
    state = load_model(tmp_path / "model").state_dict()
    saved = _final(whole_of_two)
    weights = {name.removeprefix("weights/"): value for name, value in saved.items() if name.startswith("weights/")}
    assert weights
    for name, value in weights.items():
        assert torch.equal(state[name], value), name
