"""Beside other code bases: their own networks with the same sizes, with the same weights where a mapping exists.

Opt in: ``pip install -e .[peers]`` and ``pytest benchmarks/ --benchmark-only -m peers``. Pictures come normalised to
both sides, in float32 on the processor; out come logits at full size.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import setr_fast
from benchmarks import peers
from benchmarks.contest import Contest, Side
from benchmarks.model_sides import OURS
from benchmarks.outcome_rows import finish, rows_of
from benchmarks.test_models import CLASSES, HEADS, settled
from setr_fast.models.model import SegmentationModel, create_model
from setr_fast.ops._op import REFERENCE

pytestmark = [pytest.mark.peers]
LARGE = pytest.param("vit_l16", 512, 1, marks=pytest.mark.full)
SIZES = [("vit_t16", 256, 1), LARGE]
MMSEG = "mmsegmentation"
WITHOUT_MAPPING = {"transformers SegFormer-B0": peers.segformer, "transformers EoMT": peers.eomt}
FACTOR = 4.0
"""Times the other code base's own error that ours may be: two orders of the same operations, equally good."""


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("encoder", "size", "batch"), SIZES)
def test_beside_mmsegmentation(
    head: str,
    encoder: str,
    size: int,
    batch: int,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    tmp_path: Path,
) -> None:
    """The same weights, through ``setr_fast.checkpoints``; logits at full size on both sides, held to float64."""
    model = network(f"{head}_{encoder}", size, seed)
    theirs = _or_skip(lambda: peers.mmsegmentation(model, tmp_path))
    exact = copy.deepcopy(model).double()
    sides = {MMSEG: theirs, OURS: model}
    contest = Contest(
        {name: Side(_inferring(run), torch.float32, MMSEG, FACTOR, ours=name == OURS) for name, run in sides.items()},
        lambda index: (_pictures(seed + index, batch, size),),
        lambda arguments: _inferring(exact)(arguments[0].double()),
    )
    outcome = contest.run(rounds=9, seconds=6.0)
    rows = rows_of(contest, outcome, MMSEG, **_common(f"{head}_{encoder}", size, batch))
    record(rows)
    finish(rows, outcome, benchmark, _inferring(model), contest.ring.next(0))


@pytest.mark.parametrize("peer", WITHOUT_MAPPING)
@pytest.mark.parametrize(("encoder", "size", "batch"), SIZES)
def test_beside_transformers(
    peer: str,
    encoder: str,
    size: int,
    batch: int,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
) -> None:
    """Other designs for the same task, beside ours with the mask head. No mapping of weights exists.

    They compute something else, so speed alone compares. Ours is held to our plain operations, which run beside it; the
    peer's own distance from float64 is what its row tells.
    """
    model = network(f"segmenter_mask_{encoder}", size, seed)
    other, call = _or_skip(lambda: WITHOUT_MAPPING[peer](model))
    networks = {peer: (other, call), REFERENCE: (model, _plainly), OURS: (model, lambda net, picture: net(picture))}

    def side(name: str) -> Side:
        net, run = networks[name]
        exact = copy.deepcopy(net).double()
        return Side(
            _inferring(partial(run, net)),
            torch.float32,
            REFERENCE if name == OURS else name,
            ours=name == OURS,
            truth=lambda arguments: _inferring(partial(run, exact))(arguments[0].double()),
        )

    contest = Contest(
        {name: side(name) for name in networks},
        lambda index: (_pictures(seed + index, batch, size),),
        lambda arguments: arguments[0],
    )
    outcome = contest.run(rounds=9, seconds=6.0)
    rows = rows_of(contest, outcome, peer, **_common(f"{peer} and segmenter_mask_{encoder}", size, batch))
    record(rows)
    finish(rows, outcome, benchmark, _inferring(model), contest.ring.next(0))


def network(name: str, size: int, seed: int) -> SegmentationModel:
    """Return a network for pictures of a fixed size, which is what mmsegmentation's files describe."""
    torch.manual_seed(seed)
    return settled(create_model(name, CLASSES, size)).eval()


def _pictures(seed: int, batch: int, size: int) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))


def _plainly(net: Any, picture: Tensor) -> Tensor:
    with setr_fast.backend(REFERENCE):
        logits: Tensor = net(picture)
        return logits


def _inferring(run: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        with torch.inference_mode():
            return run(*args)

    return call


def _or_skip(build: Callable[[], Any]) -> Any:
    try:
        return build()
    except peers.NotHere as reason:
        pytest.skip(str(reason))


def _common(name: str, size: int, batch: int) -> dict[str, Any]:
    return {
        "kind": "peer",
        "name": name,
        "case": f"{size}px, {CLASSES} classes, batch {batch}",
        "direction": "inference",
        "size": [batch, size, size],
        "pictures": batch,
        "chosen": OURS,
    }
