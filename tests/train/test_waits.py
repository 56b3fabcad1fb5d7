"""A step asks a card for one thing, at its end: counted on tensors without values, which answer nothing.

``meta`` stands for the card: whatever reads a value there fails, and copies between it and the CPU are seen.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import setr_fast
from setr_fast.data.loader import Batch
from setr_fast.errors import DataError
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.nn import chance
from setr_fast.ops import OPS
from setr_fast.ops._labels import labels_known
from setr_fast.train.criterion import build_criterion
from setr_fast.train.options import LossConfig, TrainConfig
from setr_fast.train.parallel import LossModule
from setr_fast.train.ranks import Ranks
from setr_fast.train.step import take_step

CARD = torch.device("meta")
LOOKED_INTO = ("upsample_cross_entropy", "upsample_class_sums")
"""Ops that are run as a card runs them while none of our kernels is a default there; others tell their shapes."""
HEADS = ("setr_naive", "setr_pup", "setr_mla", "segmenter_linear", "segmenter_mask")
READS = {"_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim", "equal"}


class Waits(TorchDispatchMode):
    """Notes what would make a processor wait for a card; ops that might are looked into, and not only at."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        space, _, name = func._schema.name.partition("::")
        if space == "setr_fast" and name in OPS and name.startswith(LOOKED_INTO):
            with torch.no_grad(), self:
                return OPS[name]._dispatch(*args)
        self.calls += 1
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        picks = name in ("index", "index_put", "index_put_") and any(
            t is not None and t.dtype in (torch.bool, torch.uint8) for t in args[1]
        )
        if name in READS or picks:
            self.found.append(name)
        result = func(*args, **(kwargs or {}))
        moved = {t.device for t in (*tensors, *tree_leaves(result)) if isinstance(t, Tensor)}
        if len(moved) > 1 and name in ("_to_copy", "copy_"):
            self.found.append(f"{name} of {tensors[-1].shape}")
        return result


@pytest.fixture(autouse=True)
def _autocast_of_no_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it torch says that it knows no autocast of the device that stands for a card."""
    asked, cast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(torch, "autocast", lambda kind, **how: nullcontext() if kind == "meta" else cast(kind, **how))
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind="cpu": kind != "meta" and asked(kind))


def _model(name: str, device: torch.device, **options: Any) -> SegmentationModel:
    sizes: dict[str, Any] = {"width": 32, "depth": 2, "num_heads": 2, "head_channels": 8, "taps": (0, 1)}
    if name == "setr_mla":
        sizes |= {"depth": 4, "taps": (0, 1, 2, 3), "branch_channels": 8}
    if name.startswith("segmenter"):
        sizes = {"width": 32, "depth": 2, "num_heads": 2, "taps": (1,)}
    with device:
        return create_model(f"{name}_vit_t16", num_classes=5, image_size=32, **sizes, **options)


def _step(model: SegmentationModel, *criterion: Any) -> Waits:
    image, places = torch.empty(2, 3, 32, 32, device=CARD), torch.empty(2, dtype=torch.int64, device=CARD)
    labels, waits = torch.empty(2, 32, 32, dtype=torch.uint8, device=CARD), Waits()
    with labels_known(), chance.places(places), waits:
        model.loss_and_accuracy(image, labels, *criterion).loss.backward()
    assert waits.calls > 100
    return waits


@pytest.mark.parametrize("name", HEADS)
def test_no_head_waits_for_a_card(name: str) -> None:
    aux = {} if name.startswith("segmenter") else {"aux_levels": (0, 1)}
    assert _step(_model(name, CARD, dropout=0.1, drop_path=0.1, **aux).train()).found == []


@pytest.mark.parametrize("kind", ["ohem", "focal", "dice"])
@pytest.mark.parametrize("rule", ["mmseg", "paddleseg"])
def test_no_other_loss_waits_for_a_card(kind: str, rule: str) -> None:
    config = LossConfig(kind=(kind,), class_weights=(1.0, 2.0, 3.0, 4.0, 5.0), ohem_rule=rule)  # type: ignore[arg-type]
    model, judge = _model("setr_naive", CARD, aux_levels=(0,)).train(), build_criterion(config, 5)
    first, again = _step(model, judge), _step(model, judge)
    assert [what for what in first.found if what != "_to_copy of torch.Size([5])"] == [], "weights travel once"
    assert again.found == []


@pytest.mark.gpu
@pytest.mark.parametrize("chosen", ["", "upsample_cross_entropy=triton"])
@pytest.mark.parametrize("name", HEADS)
def test_a_card_is_not_waited_for(name: str, chosen: str) -> None:
    """PyTorch itself raises where something waits."""
    card, aux = torch.device("cuda"), {} if name.startswith("segmenter") else {"aux_levels": (0, 1)}
    model = _model(name, torch.device("cpu"), dropout=0.1, drop_path=0.1, **aux).to(card).train()
    image, places = torch.randn(2, 3, 32, 32, device=card), torch.arange(2, device=card)
    labels = torch.randint(0, 5, (2, 32, 32), device=card).byte()
    with setr_fast.backend(chosen), labels_known(), chance.places(places), torch.autocast("cuda", torch.bfloat16):
        model.loss(image, labels).backward()  # compiles, makes tables
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            model.loss(image, labels).backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_wait_would_be_seen() -> None:
    waits = Waits()
    with waits:
        torch.ones(3)[torch.ones(3) > 0].sum().item()
        torch.zeros(3).to(CARD)
    assert waits.found == ["index", "_local_scalar_dense", "_to_copy of torch.Size([3])"]


@pytest.fixture(params=["at once", "at the end"])
def _read(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("setr_fast.train.step._answers_at_once", lambda device: request.param == "at once")
    with setr_fast.backend("upsample_cross_entropy=by_rows"):  # which lets labels pass that were looked at before
        yield


@pytest.mark.usefixtures("_read")
def test_a_label_that_is_no_class_names_its_pictures_and_moves_no_weight() -> None:
    model = _model("setr_naive", torch.device("cpu"), aux_levels=(0,))
    labels = torch.randint(0, 5, (3, 32, 32), dtype=torch.uint8)
    labels[0, 0], labels[1, 4, 4], labels[2, 31, 31] = 255, 77, 200
    batch = Batch(torch.randn(3, 3, 32, 32), labels, ["a.png", "b.png", "c.png"])
    before = [p.clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    config = TrainConfig(batch_size=3, accumulate=2, precision="fp32", clip_norm=1.0)
    with pytest.raises(DataError, match=r"must be 0 to 4 or the ignored label 255, got 77 in b\.png, c\.png; correct"):
        take_step(model, LossModule(model), optimizer, batch, config, Ranks(0, 1, torch.device("cpu")), 0)
    assert all(map(torch.equal, before, model.parameters()))
