"""Files for other code bases: as those write them, read back to the bit, and never of another function."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import setr_fast
from setr_fast.checkpoints.export import export, write_export
from setr_fast.checkpoints.families import FAMILIES
from setr_fast.checkpoints.load import assemble
from setr_fast.checkpoints.peer_layout import TARGETS
from setr_fast.checkpoints.read import read_checkpoint
from setr_fast.errors import ConfigError
from setr_fast.models.spec import ModelSpec
from tests.checkpoints.random_models import PAIRS, foreign_tensors, random_spec, random_state
from tests.models.recorded import read_recorded

WRITTEN = [(family, head) for family, head in PAIRS if family in TARGETS and head != "none"]
RECORDED = [
    *(f"mmseg-{name}" for name in ("msflip", "slide", "segmenter-linear", "segmenter-mask")),
    *(f"{family}-setr-{head}" for family in ("mmseg", "paddleseg") for head in ("naive", "pup", "mla")),
    *(f"paddleseg-{name}" for name in ("slide-msflip", "segmenter-linear", "segmenter-mask")),
    *(f"segmenter-{name}" for name in ("inference", "linear", "mask")),
    *(f"setr-official-{name}" for name in ("naive", "pup", "mla", "slide-msflip")),
]


def _name(family: str) -> str:
    return "model.pdparams" if family == "paddleseg" else "checkpoint.pth"


def _spec(family: str, head: str, seed: int) -> ModelSpec:
    spec = random_spec(family, head, seed).replace(mlp_ratio=float(2 + seed % 3))
    if family == "setr":  # knows square pictures only
        side = spec.pos_grid[0]
        size = (side * spec.patch_size,) * 2
        spec = spec.replace(pos_grid=(side, side), image_size=size, stride=(max(size[0] * 2 // 3, 1),) * 2)
    return spec


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_file_is_written_again_as_its_own_code_wrote_it(shared: Path, tmp_path: Path, name: str) -> None:
    recorded = read_recorded(shared / "fixtures/parity" / name)
    mapped = recorded.mapped
    original = read_checkpoint(recorded.folder / recorded.config["weights"])
    made = export(mapped.family.name, mapped.spec, mapped.state)
    assert made.changed == made.differences == {}
    write_export(made, tmp_path / _name(made.family))
    written = read_checkpoint(tmp_path / _name(made.family))
    assert (written.kind, written.wrapper) == (original.kind, original.wrapper)
    assert written.tensors.keys() == original.tensors.keys()
    for key, tensor in original.tensors.items():
        assert written.tensors[key].dtype == tensor.dtype
        assert written.tensors[key].shape == tensor.shape
        assert key in made.dead or torch.equal(written.tensors[key], tensor), key
    loaded = setr_fast.load(tmp_path / _name(made.family))  # all that the weights do not say is in the config beside
    assert loaded.spec.replace(name=mapped.spec.name) == mapped.spec
    assert all(torch.equal(tensor, mapped.state[key]) for key, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("family", "head"), WRITTEN)
def test_random_models_are_read_back_with_their_config_alone(family: str, head: str, seed: int, tmp_path: Path) -> None:
    spec = _spec(family, head, seed)
    state = random_state(spec, family, seed)
    made = export(family, spec, state)
    assert made.tensors.keys() == foreign_tensors(family, spec, state).keys()
    write_export(made, tmp_path / _name(family))
    loaded = setr_fast.load(tmp_path / _name(family))
    assert loaded.spec.replace(name=spec.name) == spec
    assert loaded.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[key]) for key, tensor in loaded.state_dict().items())


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("family", "head"), WRITTEN)
def test_another_code_base_gets_the_same_function_or_nothing(
    family: str, head: str, target: str, tmp_path: Path
) -> None:
    spec = _spec(family, head, 5)
    if family in ("segmenter", "mmseg") and head == "mask":  # heads 64 wide, as everybody has them
        spec = spec.replace(distilled=False, width=64, num_heads=1, decoder_width=64, decoder_num_heads=1)
    if head == "pup":
        spec = spec.replace(patch_size=16, image_size=(32, 32), pos_grid=(2, 2), stride=(21, 21), aux_scales=(4,))
    state = random_state(spec, family, 5)
    try:
        made = export(target, spec, state)
    except ConfigError as error:
        message = str(error)
    else:
        message = ""
        write_export(made, tmp_path / _name(target))
        theirs = setr_fast.load(tmp_path / _name(target)).double()
        picture = torch.randn(2, 3, *spec.image_size, dtype=torch.float64)
        ours = assemble(spec, dict(state)).double()
        with torch.no_grad():
            ours_all, theirs_all = [ours(picture), *ours.all_logits(picture)[1:]], [theirs(picture)]
            theirs_all += theirs.all_logits(picture)[1:]
            aux = [theirs.spec.aux_levels.index(level) for level in ours.spec.aux_levels]
            torch.testing.assert_close(ours_all[0], theirs_all[0], rtol=1e-4, atol=1e-5)
            for a, index in zip(ours_all[1:], aux, strict=True):
                torch.testing.assert_close(a, theirs_all[1 + index], rtol=1e-4, atol=1e-5)
    assert bool(message) == ((family, head, target) not in SAME)
    if message:
        assert message.startswith("convert: ")
        assert "\n" not in message


SAME = {(family, head, family) for family, head in WRITTEN} | {
    ("setr", "naive", "mmseg"),
    ("setr", "pup", "mmseg"),
    ("mmseg", "naive", "setr"),
    ("mmseg", "pup", "setr"),
    ("paddleseg", "naive", "setr"),
    ("paddleseg", "linear", "mmseg"),
    ("paddleseg", "linear", "segmenter"),
    ("paddleseg", "mask", "mmseg"),
    ("segmenter", "linear", "mmseg"),
    ("segmenter", "linear", "paddleseg"),
    ("segmenter", "mask", "mmseg"),
}


def test_biases_in_front_of_a_batch_norm_are_folded(tmp_path: Path) -> None:
    """mmsegmentation's convolutions have none; in evaluation the function is the same."""
    spec = _spec("mmseg", "pup", 1)
    state = random_state(spec.replace(conv_bias=True), "mmseg", 1)
    made = export("mmseg", spec.replace(conv_bias=True), state)
    assert made.changed == {"conv_bias": "folded into the batch norms' running means"}
    assert not any(".conv.bias" in key for key in made.tensors)
    picture = torch.randn(1, 3, *spec.image_size, dtype=torch.float64)
    with torch.no_grad():
        before = assemble(spec.replace(conv_bias=True), dict(state)).double().logits(picture)
        after = assemble(made.spec, dict(made.state)).double().logits(picture)
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-5)


def test_shared_modules_must_be_equal_to_be_shared() -> None:
    spec = _spec("paddleseg", "mla", 2)
    state = random_state(spec.replace(shared_modules=False), "paddleseg", 2)
    with pytest.raises(ConfigError, match=r"paddleseg shares one module among all levels, so aux_heads.* must equal"):
        export("paddleseg", spec.replace(shared_modules=False), state)
    for key in state:
        for prefix in ("aux_heads", "neck.norms", "head.branches"):
            if key.startswith(prefix + "."):
                first = f"{prefix}.0.{key.removeprefix(prefix + '.').partition('.')[2]}"
                state[key] = state[first].clone()
    made = export("paddleseg", spec.replace(shared_modules=False), state)
    assert made.changed == {"shared_modules": "equal modules under one name"}
    assert made.spec.replace(name=spec.name) == spec


def test_what_a_code_base_cannot_build_is_named() -> None:
    spec = _spec("mmseg", "mask", 0)
    state = random_state(spec, "mmseg", 0)
    with pytest.raises(ConfigError, match=r"with head mask must be written as mmseg, paddleseg, segmenter, got setr"):
        export("setr", spec, state)
    odd = spec.replace(decoder_norm_eps=1e-3)
    with pytest.raises(ConfigError, match=r"mmseg has no such model: mlp_ratio must be a whole number, got 2.5"):
        export("mmseg", spec.replace(mlp_ratio=2.5), state)
    with pytest.raises(ConfigError, match=r"mmseg computes another function: decoder_norm_eps is 1e-05 there, 0.001"):
        export("mmseg", odd, state)


def test_every_target_is_a_family() -> None:
    assert set(TARGETS) <= set(FAMILIES)
