"""Sharding, mixed precision, recomputation, compilation: each changes memory or speed, never the steps."""

from __future__ import annotations

import functools
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from torch.distributed.tensor import DTensor

from setr_fast.config import Config
from setr_fast.errors import ConfigError
from setr_fast.models.model import create_model
from setr_fast.nn import chance
from setr_fast.train import loop, parallel
from setr_fast.train.average import Average
from setr_fast.train.launch import run
from setr_fast.train.options import ParallelConfig, TrainConfig
from setr_fast.train.prepare import prepare
from setr_fast.train.ranks import Ranks, joined
from tests.train.processes import hosts_of_two, run_ranks

Make = Callable[..., Config]
ALONE = Ranks(0, 1, torch.device("cpu"))


def _losses(config: Config) -> list[float]:
    assert config.run_dir is not None
    records = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [r["train/loss"] for r in records if "train/loss" in r]


def _compile_without_a_compiler() -> None:
    """Trace and differentiate as torch.compile does, but run the graphs with PyTorch's own operators."""
    parallel.torch.compile = functools.partial(torch.compile, backend="aot_eager")


def test_everything_at_once_takes_the_steps_of_one_plain_process(tiny: Make, tmp_path: Path) -> None:
    """FSDP2 that frees weights after use, blocks in groups, selective recomputation, compiled blocks, parts."""
    plain = tiny("plain", steps=4, validate_every=4, accumulate=2, ema=0.9)
    run(plain, [])
    train = replace(plain.train, recompute="selective", compile=True)
    options = ParallelConfig(reshard="always", group=2)
    config = replace(tiny("all", fsdp=True), train=train, parallel=options)
    run_ranks(2, config, tmp_path / "log", before=_compile_without_a_compiler)
    assert _losses(config) == pytest.approx(_losses(plain), rel=1e-5)


def test_a_copy_per_host_takes_the_steps_of_one_process(tiny: Make, tmp_path: Path) -> None:
    options: dict[str, Any] = {"steps": 3, "validate_every": 3, "batch_size": 8, "accumulate": 2}
    plain = tiny("plain", **options)
    run(plain, [])
    config = replace(tiny("hosts", fsdp=True, **options), parallel=ParallelConfig(replicas=0))
    run_ranks(4, config, tmp_path / "log", before=hosts_of_two)
    said = (tmp_path / "log" / "3").read_text()
    assert said.count("spread over (2, 2) False") >= 4, "each block"
    assert said.count("weights are gathered") == 3 * (4 + 1), "once a step: four blocks and the root, for both parts"
    assert _losses(config) == pytest.approx(_losses(plain), rel=1e-5)


def test_bf16_shards_follow_bf16_autocast(tiny: Make) -> None:
    """Blocks are gathered in bf16; batch norm, embedding and heads keep 32 bits, and all gradients are."""
    plain = tiny("plain", steps=3, validate_every=3, precision="bf16")
    run(plain, [])
    config = replace(tiny("fsdp", steps=3, validate_every=3, precision="bf16", fsdp=True))
    seen: dict[str, set[torch.dtype]] = {"block": set(), "bn": set()}
    with joined(group=True) as ranks:
        assert config.run_dir is not None
        parts = prepare(config, config.run_dir, ranks)
        block, bn = parts.model.encoder.blocks[0], parts.model.head.stages[0].bn
        block.register_forward_pre_hook(lambda m, _: seen["block"].add(m.mlp.fc1.weight.dtype))
        bn.register_forward_pre_hook(lambda m, _: seen["bn"].update((m.weight.dtype, m.running_var.dtype)))
        (config.run_dir / "checkpoints").mkdir(parents=True)
        (config.run_dir / "overlays").mkdir()
        loop.train(parts, ranks, resume_from=None)
        gradients = {p.grad.dtype for p in parts.model.parameters() if p.grad is not None}
    assert seen == {"block": {torch.bfloat16}, "bn": {torch.float32}}
    assert gradients == {torch.float32}
    assert _losses(config) == pytest.approx(_losses(plain), rel=2e-2)


def test_a_sharded_model_starts_on_the_meta_device_with_the_weights_of_a_plain_one(
    tiny: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(fsdp=True)
    assert config.run_dir is not None
    devices = []
    spread = parallel.spread

    def watched(model: Any, *args: Any, **options: Any) -> Any:
        devices.append({p.device.type for p in model.parameters()})
        return spread(model, *args, **options)

    monkeypatch.setattr("setr_fast.train.prepare.spread", watched)
    with joined(group=True) as ranks:
        sharded = prepare(config, config.run_dir, ranks).model
        values = {name: p.full_tensor() for name, p in sharded.named_parameters() if isinstance(p, DTensor)}
        average = Average(sharded, 0.9)
        assert all(isinstance(t, DTensor) for t in average.weights.values()), "the average is sharded too"
    plain = prepare(replace(config, fsdp=False), config.run_dir, ALONE).model
    assert devices == [{"meta"}, {"cpu"}]
    assert values.keys() == dict(plain.named_parameters()).keys()
    assert all(torch.equal(values[name], p) for name, p in plain.named_parameters())


@pytest.mark.parametrize("parts", [1, 4])
def test_gradients_are_reduced_once_a_step(tiny: Make, monkeypatch: pytest.MonkeyPatch, parts: int) -> None:
    reductions = [0]
    reduce = _fsdp_param_group.foreach_reduce

    def counted(*args: Any, **options: Any) -> Any:
        reductions[0] += 1
        return reduce(*args, **options)

    monkeypatch.setattr(_fsdp_param_group, "foreach_reduce", counted)
    run(tiny(steps=2, validate_every=2, accumulate=parts, fsdp=True), [])
    assert reductions[0] == 2 * (4 + 1), "two steps, four blocks and the root"


def _model() -> Any:
    return create_model(
        "segmenter_mask_vit_t16", num_classes=4, image_size=64, depth=3, width=64, num_heads=2, drop_path=0.3
    )


def _gradients(recompute: str, compiled: bool = False) -> tuple[list[Tensor], int]:
    """Return gradients, and the bytes that were kept for the backward pass beside the weights."""
    torch.manual_seed(0)
    model = _model()
    config = TrainConfig(recompute=recompute, compile=compiled)  # type: ignore[arg-type]
    loss = parallel.spread(model, ALONE, config, ParallelConfig(), fsdp=False, bf16=False)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with chance.places(torch.arange(2)):
        with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
            torch.manual_seed(1)
            value, _ = loss(torch.randn(2, 3, 64, 64), torch.randint(0, 4, (2, 64, 64)))
        value.backward()
    return [p.grad.clone() for p in model.parameters() if p.grad is not None], sum(kept.values())


def test_recomputation_gives_the_same_gradients_from_less_memory() -> None:
    """Dropout and stochastic depth draw the same again."""
    plain, kept = _gradients("none")
    selective, less = _gradients("selective")
    full, least = _gradients("full")
    for other in (selective, full):
        for a, b in zip(plain, other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    assert least < 0.7 * kept
    assert least <= less < kept  # what the selective form keeps by itself is not seen by hooks


def test_selective_recomputation_does_not_run_attention_again() -> None:
    runs = {}
    for kind in ("none", "selective", "full"):
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            _gradients(kind)
        names = [event.name for event in profile.events()]
        runs[kind] = names.count("aten::_scaled_dot_product_flash_attention_for_cpu")
    assert runs == {"none": 3, "selective": 3, "full": 6}, "the encoder has three blocks; the decoder's draw dropout"


def test_compiled_blocks_share_few_graphs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks differ in their rates; none may fall back to eager for having been compiled too often."""
    torch._dynamo.reset()
    monkeypatch.setattr(parallel.torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    plain, _ = _gradients("none")
    compiled, _ = _gradients("none", compiled=True)
    for a, b in zip(plain, compiled, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)
    counters = torch._dynamo.utils.counters
    assert not counters["graph_break"], dict(counters["graph_break"])
    assert counters["stats"]["unique_graphs"] >= 1


@pytest.mark.slow
def test_inductor_compiles_blocks_and_takes_the_same_steps(tiny: Make) -> None:
    """With torch.compile's own code generator: C++ on a CPU, for each block, around our ops."""
    if "slow" not in os.environ.get("SETR_FAST_TESTS", ""):
        pytest.skip("compiles C++ for a minute or more; SETR_FAST_TESTS=slow runs it")
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler on a CPU, and there is no g++ here")
    torch._dynamo.reset()
    plain, compiled = (
        tiny(name, steps=4, validate_every=4, compile=name == "compiled") for name in ("plain", "compiled")
    )
    run(plain, [])
    run(compiled, [])
    assert torch._inductor.metrics.generated_kernel_count > 0
    assert _losses(compiled) == pytest.approx(_losses(plain), rel=1e-4)
    for kind in ("none", "selective", "full"):
        expected, _ = _gradients(kind)
        torch._dynamo.reset()
        found, _ = _gradients(kind, compiled=True)
        for a, b in zip(expected, found, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_shapes_of_the_mesh_are_checked() -> None:
    with pytest.raises(ConfigError, match=r"fsdp.replicas: must divide the number of processes \(4\), got 3"):
        parallel.mesh_of(Ranks(0, 4, torch.device("cpu")), ParallelConfig(replicas=3))
    with pytest.raises(ConfigError, match="replicas must be 0 or more"):
        ParallelConfig(replicas=-1)
    with pytest.raises(ConfigError, match="timeout"):
        ParallelConfig(timeout=0)
