"""Every family and head at random sizes: written in its own layout, read back to the bit, told from all others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import setr_fast
from setr_fast.checkpoints.families import FAMILIES, Shapes
from setr_fast.checkpoints.load import map_source
from setr_fast.checkpoints.read import read_checkpoint
from tests.checkpoints.random_models import (
    PAIRS,
    foreign_tensors,
    overrides_of,
    random_spec,
    random_state,
    write_file,
)

SEEDS = range(4)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("family", "head"), PAIRS)
def test_a_random_model_comes_back_to_the_bit(family: str, head: str, seed: int, tmp_path: Path) -> None:
    spec = random_spec(family, head, seed)
    state = random_state(spec, family, seed)
    path = write_file(family, foreign_tensors(family, spec, state), tmp_path)
    loaded = setr_fast.load(path, **overrides_of(spec))
    assert loaded.spec == spec
    assert not loaded.training
    found = loaded.state_dict()
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].is_contiguous()
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize(("family", "head"), PAIRS)
def test_every_key_of_a_file_is_accounted_for(family: str, head: str, tmp_path: Path) -> None:
    spec = random_spec(family, head, 0).replace(pos_grid=(2, 2), image_size=(64, 64))
    tensors = foreign_tensors(family, spec, random_state(spec, family))
    source = read_checkpoint(write_file(family, tensors, tmp_path))
    account = map_source(source, **overrides_of(spec) | {"image_size": 2 * spec.patch_size}).account
    used = [key for sources in account.used.values() for key in sources]
    dropped = account.dropped.keys() - {"StructuredToParameterName@@"}
    assert sorted([*used, *dropped]) == sorted(tensors)
    assert account.used.keys() | account.filled.keys() == random_state(spec, family).keys()
    assert all(account.dropped.values())
    assert all("counter" in reason or "count of batches" in reason for reason in account.filled.values())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize(("family", "head"), PAIRS)
def test_no_other_family_claims_a_file(family: str, head: str, seed: int) -> None:
    spec = random_spec(family, head, seed)
    tensors = foreign_tensors(family, spec, random_state(spec, family))
    shapes = Shapes({name: tuple(tensor.shape) for name, tensor in tensors.items()}, "file")
    assert [known.name for known in FAMILIES.values() if known.detect(shapes)] == [family]
    assert FAMILIES[family].find(shapes).fields["head"] == head


@pytest.mark.parametrize(("family", "head"), PAIRS)
def test_rules_and_shapes_agree_both_ways(family: str, head: str) -> None:
    """Two different sources never go to one target, nor one source to two; storing undoes loading."""
    spec = random_spec(family, head, 1)
    state = random_state(spec, family, 1)
    rules = FAMILIES[family].rules(spec)
    assert sorted(rule.target for rule in rules) == sorted(state)
    sources = [key for rule in rules for key in rule.sources]
    assert len(sources) == len(set(sources))
    for rule in rules:
        parts = rule.transform.store(state[rule.target])
        assert [tuple(part.shape) for part in parts] == rule.source_shapes(state[rule.target].to("meta"))
        if parts:
            assert torch.equal(rule.transform.load(parts), state[rule.target])
