"""The same scores as the official evaluation of Cityscapes, on label files made here."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path

import numpy as np
import pytest
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as official
from cityscapesscripts.helpers.labels import labels as official_labels
from PIL import Image

from setr_fast.data.classes import IGNORED
from setr_fast.metrics import Tally

TRAINED = sorted((label.trainId, label.id, label.name) for label in official_labels if 0 <= label.trainId < 255)
TO_TRAINING = np.full(256, IGNORED, np.uint8)
for training, stored, _ in TRAINED:
    TO_TRAINING[stored] = training
TO_STORED = np.array([stored for _, stored, _ in TRAINED], np.uint8)
STORED = [label.id for label in official_labels if label.id >= 0]


def street(rng: np.random.Generator, classes: list[int], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Stored ids of blocks, ignored ones among them, and an answer in training ids that is right on half of them."""
    blocks = rng.choice(classes, (size[0] // 8, size[1] // 8)).astype(np.uint8)
    truth = blocks.repeat(8, 0).repeat(8, 1)
    noise = rng.integers(0, 19, size).astype(np.uint8)
    known = TO_TRAINING[truth]
    return truth, np.where((rng.random(size) < 0.5) & (known != IGNORED), known, noise)


def official_scores(folder: Path, pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict:
    predictions, truths = [], []
    for index, (truth, answer) in enumerate(pairs):
        stem = f"town_{index:06d}_000019"
        truths.append(str(folder / f"{stem}_gtFine_labelIds.png"))
        predictions.append(str(folder / f"{stem}_pred.png"))
        Image.fromarray(truth).save(truths[-1])
        Image.fromarray(TO_STORED[answer]).save(predictions[-1])
    arguments = copy.copy(official.args)
    arguments.evalInstLevelScore, arguments.quiet, arguments.JSONOutput = False, True, True
    arguments.exportFile = str(folder / "official.json")
    official.evaluateImgLists(predictions, truths, arguments)
    return json.loads(Path(arguments.exportFile).read_text())


@pytest.mark.parametrize("classes", [STORED, [7, 8, 11, 26, 0], [0, 1, 2]])
@pytest.mark.parametrize("seed", range(2))
def test_class_scores_and_their_mean_are_the_official_ones(tmp_path, classes, seed):
    rng = np.random.default_rng(seed)
    pairs = [street(rng, classes, size) for size in ((64, 128), (32, 40), (48, 64))]
    found = official_scores(tmp_path, pairs)
    tally = Tally(19, ignore_index=IGNORED)
    for index, (truth, answer) in enumerate(pairs):
        tally.add(index, answer, TO_TRAINING[truth])
    scores = tally.scores()
    theirs = [found["classScores"][name] for _, _, name in TRAINED]
    np.testing.assert_array_equal(scores.iou, theirs)
    mean = found["averageScoreClasses"]
    assert math.isnan(scores.miou) if math.isnan(mean) else scores.miou == pytest.approx(mean, abs=1e-15)
    if classes == STORED:
        assert not np.isnan(theirs).any()
        assert len(theirs) == 19
