"""Beside other code bases: their own networks with the same sizes, with the same weights where a mapping exists.

Opt in: ``pip install -e .[peers]`` and ``pytest benchmarks/ --benchmark-only -m peers``; ``-m "peers and full"`` has
the large encoders. PaddleSeg lives in an environment of its own, whose interpreter SETR_FAST_PADDLESEG names; official
SETR and Segmenter are in no registry: SETR_FAST_SETR_REPO and SETR_FAST_SEGMENTER_REPO name checkouts and
SETR_FAST_PEER_PYTHON an interpreter that can run them. What is not there is skipped, with the reason. Pictures come
normalised to both sides, in float32 on the processor; out come logits at full size.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import peers
from benchmarks.contest import Contest, Side
from benchmarks.model_sides import OURS
from benchmarks.networks import HEADS, facts, inferring, network, normalised, plainly
from benchmarks.outcome_rows import finish, rows_of
from benchmarks.peer_process import PeerNetwork, official, paddleseg
from setr_fast.models.code_bases import fields_of
from setr_fast.models.model import SegmentationModel
from setr_fast.ops._op import REFERENCE

pytestmark = [pytest.mark.peers]
LARGE = pytest.param("vit_l16", 512, 1, marks=pytest.mark.full)
SIZES = [("vit_t16", 256, 1), LARGE]
MMSEG, PADDLE = "mmsegmentation", "PaddleSeg"
OFFICIAL = {"setr": "official SETR", "segmenter": "official Segmenter"}
WITHOUT_MAPPING = {"transformers SegFormer-B0": peers.segformer, "transformers EoMT": peers.eomt}
FACTOR = 4.0
"""Times the other code base's own error that ours may be: two orders of the same operations, equally good."""
AS_PADDLESEG = {"shared_modules": True, "head_channels": 256, "aux_channels": 256, "branch_channels": 128}
AS_MMSEG = {"setr_mla": fields_of("mmseg", "setr_mla")}  # its decoder is another than the official one
AS_OFFICIAL_SETR = {"head_channels": 256, "aux_channels": 256}
OF_HEAD = {"setr_mla": {"class_token": "keep"}, "segmenter_mask": {"decoder_qkv_bias": False}}
DIFFERENT = "no parity: different model"
SAME = 1e-4
"""Share of the largest logit by which a peer may miss float64 and still be said to compute the same function."""


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
    model = network(f"{head}_{encoder}", size, seed, **AS_MMSEG.get(head, {})).eval()
    theirs = _or_skip(lambda: peers.mmsegmentation(model, tmp_path))
    side = Side(inferring(theirs), torch.float32, MMSEG, FACTOR, ours=False)
    _compare_mapped(MMSEG, side, model, facts(f"{head}_{encoder}", size, batch, "inference"), benchmark, record, seed)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("encoder", "size", "batch"), SIZES)
def test_beside_paddleseg(
    head: str,
    encoder: str,
    size: int,
    batch: int,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    tmp_path: Path,
) -> None:
    """As beside mmsegmentation; their forward runs, and is timed, in a process of its own.

    Ours is shaped as theirs is fixed to be: one module for what SETR has one of per level, heads of one width.
    """
    model = network(f"{head}_{encoder}", size, seed, **AS_PADDLESEG, **OF_HEAD.get(head, {})).eval()
    theirs = _or_skip(lambda: paddleseg(model, tmp_path))
    common = facts(f"{head}_{encoder}", size, batch, "inference")
    _compare_process(PADDLE, theirs, model, common, benchmark, record, seed)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize(("encoder", "size", "batch"), SIZES)
def test_beside_the_official_code(
    head: str,
    encoder: str,
    size: int,
    batch: int,
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
    tmp_path: Path,
) -> None:
    """As beside PaddleSeg: SETR of fudan-zvg/SETR, Segmenter of rstrudel/segmenter, heads as wide as they fix them."""
    family = head.partition("_")[0]
    options = AS_OFFICIAL_SETR if family == "setr" else {}
    model = network(f"{head}_{encoder}", size, seed, **options).eval()
    theirs = _or_skip(lambda: official(family, model, tmp_path))
    common = facts(f"{head}_{encoder}", size, batch, "inference")
    _compare_process(OFFICIAL[family], theirs, model, common, benchmark, record, seed)


def _compare_process(
    peer: str,
    theirs: PeerNetwork,
    model: SegmentationModel,
    common: dict[str, Any],
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
) -> None:
    """As ``_compare_mapped``, with a peer whose process is then ended."""
    side = Side(theirs, torch.float32, peer, FACTOR, ours=False, clock=theirs.seconds)
    try:
        _compare_mapped(peer, side, model, common, benchmark, record, seed)
    finally:
        theirs.close()


def _compare_mapped(
    peer: str,
    theirs: Side,
    model: SegmentationModel,
    common: dict[str, Any],
    benchmark: Any,
    record: Callable[[Any], None],
    seed: int,
) -> None:
    """Time a peer and ours on the same weights and pictures; theirs must compute the same function as well."""
    batch, size, _ = common["size"]
    exact = copy.deepcopy(model).double()
    contest = Contest(
        {peer: theirs, OURS: Side(inferring(model), torch.float32, peer, FACTOR)},
        lambda index: (normalised(seed + index, batch, size),),
        lambda arguments: inferring(exact)(arguments[0].double()),
    )
    outcome = contest.run(rounds=9, seconds=6.0, memory=theirs.clock is None)
    assert peer not in outcome.not_run, outcome.not_run[peer]
    own, largest = outcome.parity[peer].error, max(float(e[0].abs().max()) for e in contest.exact[peer])
    assert own <= SAME * largest, f"{peer} is off by {own:.3g} of {largest:.3g}: another function"
    common["case"] += f", beside {peer}"
    rows = rows_of(contest, outcome, peer, kind="peer", chosen=OURS, **common)
    record(rows)
    finish(rows, outcome, benchmark, inferring(model), contest.ring.next(0))


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

    They compute something else, so speed alone compares, and their rows say so. Ours is held to our plain operations,
    which run beside it; the peer is held to its own network in float64.
    """
    model = network(f"segmenter_mask_{encoder}", size, seed).eval()
    other, call = _or_skip(lambda: WITHOUT_MAPPING[peer](model))
    networks = {peer: (other, call), REFERENCE: (model, plainly), OURS: (model, lambda net, picture: net(picture))}

    def side(name: str) -> Side:
        net, run = networks[name]
        exact = copy.deepcopy(net).double()
        return Side(
            inferring(partial(run, net)),
            torch.float32,
            REFERENCE if name == OURS else name,
            ours=name == OURS,
            truth=lambda arguments: inferring(partial(run, exact))(arguments[0].double()),
        )

    contest = Contest(
        {name: side(name) for name in networks},
        lambda index: (normalised(seed + index, batch, size),),
        lambda arguments: arguments[0],
    )
    outcome = contest.run(rounds=9, seconds=6.0)
    outcome.parity[peer] = dataclasses.replace(outcome.parity[peer], why=outcome.parity[peer].why or DIFFERENT)
    common = facts(f"{peer} and segmenter_mask_{encoder}", size, batch, "inference")
    rows = rows_of(contest, outcome, peer, kind="other design", chosen=OURS, **common)
    record(rows)
    finish(rows, outcome, benchmark, inferring(model), contest.ring.next(0))


def _or_skip(build: Callable[[], Any]) -> Any:
    try:
        return build()
    except peers.NotHere as reason:
        pytest.skip(str(reason))
