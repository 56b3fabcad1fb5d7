"""Parity with recorded outputs of the published code bases: features, logits, losses, gradients, statistics.

The files are read as users read them. Tolerances: ten times the recorded rounding error of the peer (float32 against
float64), at most 1e-4.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

import setr_fast
from setr_fast.checkpoints.read import read_checkpoint
from setr_fast.errors import ShapeError
from setr_fast.models.model import SegmentationModel
from setr_fast.nn.conv import resize
from setr_fast.nn.embed import tokens_to_map
from tests.models.recorded import Recorded, read_recorded

PUBLISHED = ("setr-official", "mmseg-setr", "paddleseg-setr", "paddlevit-setr")
SETR = [f"{source}-{head}" for source in PUBLISHED for head in ("naive", "pup", "mla")]
SEGMENTER = [
    f"{source}-{head}"
    for source in ("mmseg-segmenter", "segmenter", "paddleseg-segmenter")
    for head in ("linear", "mask")
]


@pytest.fixture
def recorded(request: pytest.FixtureRequest, shared: Path) -> Recorded:
    return read_recorded(shared / "fixtures" / "parity" / request.param)


every = pytest.mark.parametrize("recorded", SETR + SEGMENTER, indirect=True)


@every
def test_features_match_the_peer(recorded: Recorded) -> None:
    model, image = recorded.model(), recorded.tensor("input")
    grid = model.grid(image)
    with torch.no_grad():
        taps = model.encoder(image, grid)
        levels = model.levels(image, grid)
    features = [n for n in recorded.arrays if re.fullmatch(r"feat\d", n)]
    for name in features:
        tap = taps[int(name[4:])]
        recorded.check(tokens_to_map(tap, grid) if recorded.arrays[name].ndim == 4 else tap, name)
    for name in (n for n in recorded.arrays if re.fullmatch(r"neck\d", n)):
        order = levels[::-1] if recorded.config["family"] == "mmseg" else levels
        recorded.check(order[int(name[4:])], name)
    if "tokens" in recorded.arrays:
        want = recorded.tensor("tokens")[:, model.spec.leading_tokens :]
        assert (taps[-1] - want).abs().max() <= recorded.tolerance("tokens")
    assert features or "tokens" in recorded.arrays


@every
def test_logits_match_the_peer(recorded: Recorded) -> None:
    model, image = recorded.model(), recorded.tensor("input")
    with torch.no_grad():
        main, *aux = model.all_logits(image)
        recorded.check(main, "logits_low")
        recorded.check(model.logits(image), "logits_low")
        recorded.check(model(image), "logits")
    names = [n for n in recorded.arrays if re.fullmatch(r"aux\d_logits_low", n)]
    assert len(aux) == len(names)
    for index, logits in enumerate(aux):
        recorded.check(logits, f"aux{index}_logits_low")
        if f"aux{index}_logits" in recorded.arrays:
            full = resize(logits, (image.shape[-2], image.shape[-1]), model.spec.align_corners)
            recorded.check(full, f"aux{index}_logits")


@every
def test_the_overrides_are_enough_without_a_config(recorded: Recorded, tmp_path: Path) -> None:
    """The file by itself in a folder, and nothing but tensors in it."""
    file = recorded.folder / recorded.config["weights"]
    alone = tmp_path / file.name
    if file.suffix == ".pth":
        source = read_checkpoint(file)
        torch.save({source.wrapper: source.tensors}, alone)
    else:
        shutil.copy(file, alone)
    model, image = setr_fast.load(alone, **recorded.overrides), recorded.tensor("input")
    with torch.no_grad():
        recorded.check(model.logits(image), "logits_low")
        recorded.check(model(image), "logits")
        for index, logits in enumerate(model.all_logits(image)[1:]):
            recorded.check(logits, f"aux{index}_logits_low")
    loss = model.train().loss(image, recorded.tensor("labels"))
    assert loss.item() == pytest.approx(float(recorded.arrays["train.loss_total"]), rel=1e-5)


@every
def test_logits_in_float64_are_closer_than_the_peers_rounding(recorded: Recorded) -> None:
    model = recorded.model().double()
    with torch.no_grad():
        error = (model.logits(recorded.tensor("input").double()) - recorded.tensor("logits_low_f64")).abs().max()
    # Paddle holds epsilons and the ratios of bilinear upsampling in float32 even then.
    assert error <= (1e-6 if recorded.config["family"].startswith("paddle") else 1e-9), float(error)


@every
def test_training_step_matches_the_peer(recorded: Recorded) -> None:
    model = recorded.model().train()
    loss = model.loss(recorded.tensor("input"), recorded.tensor("labels"))
    loss.backward()
    assert loss.item() == pytest.approx(float(recorded.arrays["train.loss_total"]), rel=1e-5)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    seen = set()
    for key, want in zip(recorded.arrays["train.grad_names"], recorded.arrays["train.grad_norms"], strict=True):
        name = recorded.target(str(key))
        if name is None:
            continue
        seen.add(name)
        got = 0.0 if gradients[name] is None else gradients[name].norm().item()
        # Biases that batch statistics cancel have no gradient but rounding noise.
        noise = 1e-5 if _cancelled(model, name) else 0.0
        assert got == pytest.approx(float(want), rel=1e-3, abs=noise), key
    assert seen == gradients.keys()
    _check_gradients(recorded, gradients)
    _check_statistics(recorded, model)


def _cancelled(model: SegmentationModel, name: str) -> bool:
    """Biases of a convolution in front of a batch norm, and of a LayerNorm in front of a 1x1 one and a batch norm."""
    if name.endswith("conv.bias"):
        return True
    one_by_one = model.spec.head == "naive" or model.spec.head == "mla"
    return one_by_one and bool(re.fullmatch(r"(head\.norm|aux_heads\.\d\.norm|neck\.norms\.\d)\.bias", name))


def _check_gradients(recorded: Recorded, gradients: dict[str, Tensor | None]) -> None:
    for key in (k for k in recorded.arrays if k.startswith("train.grad.")):
        name = recorded.target(key.removeprefix("train.grad."))
        want = recorded.tensor(key)
        gradient = gradients[name]
        got = torch.zeros_like(want) if gradient is None else gradient.reshape(want.shape)
        scale = want.abs().max().item()
        assert (got - want).abs().max().item() <= 1e-3 * scale + 1e-9, key


def _check_statistics(recorded: Recorded, model: SegmentationModel) -> None:
    state = model.state_dict()
    for key in (k for k in recorded.arrays if k.startswith("train.after.")):
        name = recorded.target(key.removeprefix("train.after."))
        got = state[name]
        if key.endswith("._variance"):
            # Paddle's running variance takes the biased variance of the batch, torch's the unbiased one. The first
            # batch norm of a branch, as all recorded ones are, sees one value per patch.
            count = len(recorded.arrays["input"]) * recorded.arrays["feat0"].shape[1]
            old = 0.9 * recorded.mapped.state[name]
            got = old + (got - old) * (count - 1) / count
        torch.testing.assert_close(got, recorded.tensor(key), rtol=1e-4, atol=1e-5, msg=key)


# What the recordings changed in the peer, in our switches.
ENCODER_EPS = ("layer_norm_eps", "final_norm_eps")
HEAD_EPS = ("head_norm_eps", "decoder_layer_norm_eps", "decoder_norm_eps")
WRONG_LOW = {
    "LayerNorm eps 1e-5": dict.fromkeys(ENCODER_EPS + HEAD_EPS, 1e-5),
    "LayerNorm eps 1e-6": dict.fromkeys(ENCODER_EPS + HEAD_EPS, 1e-6),
    "LayerNorm eps 1e-5 in the backbone": dict.fromkeys(ENCODER_EPS, 1e-5),
    "LayerNorm eps 1e-6 in the backbone": dict.fromkeys(ENCODER_EPS, 1e-6),
    "LayerNorm eps 1e-6 in the encoder": dict.fromkeys(ENCODER_EPS, 1e-6),
    "LayerNorm eps 1e-5 in the head": dict.fromkeys(HEAD_EPS, 1e-5),
    "LayerNorm eps 1e-6 in the head": dict.fromkeys(HEAD_EPS, 1e-6),
    "LayerNorm eps 1e-6 in the decoder": dict.fromkeys(HEAD_EPS, 1e-6),
    "class token kept in the blocks": {"class_token": "keep"},
}


@every
def test_wrong_switches_change_the_logits_as_much_as_in_the_peer(recorded: Recorded) -> None:
    """A switch that is not wired would leave the logits alone."""
    model, image = recorded.model(), recorded.tensor("input")
    inverted = {"head_align_corners": not model.spec.head_align_corners}
    wrong = WRONG_LOW | {"align_corners inverted inside the head": inverted}
    checked = 0
    for name, expected in recorded.config["wrong_choice_max_abs_change_of_logits_low"].items():
        if name in wrong:
            with torch.no_grad():
                difference = (recorded.model(**wrong[name]).logits(image) - model.logits(image)).abs().max().item()
            assert difference == pytest.approx(expected, rel=0.02, abs=2e-5), name
            checked += 1
    expected = recorded.config.get("wrong_choice_max_abs_change_of_logits", {})
    last = expected.get("align_corners inverted in the last resize")
    if last is not None:
        with torch.no_grad():
            difference = (recorded.model(align_corners=not model.spec.align_corners)(image) - model(image)).abs().max()
        assert difference.item() == pytest.approx(last, rel=0.02)
    assert checked


@pytest.mark.parametrize("recorded", ["setr-official-pup", "paddlevit-setr-mla"], indirect=True)
def test_a_fixed_position_table_refuses_other_sizes(recorded: Recorded) -> None:
    with pytest.raises(ShapeError, match="pictures must be"):
        recorded.model()(torch.zeros(1, 3, 96, 64))
