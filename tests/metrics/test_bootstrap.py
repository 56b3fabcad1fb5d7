"""The interval against drawing pictures in a plain loop, and against what is known of means."""

from __future__ import annotations

import json

import numpy as np
import pytest

from setr_fast.metrics import bootstrap
from setr_fast.metrics.bootstrap import differences, draws, interval, mean_differences, miou_interval, weighted
from setr_fast.metrics.pictures import PictureCounts, part_of
from setr_fast.metrics.scores import Scores, iou_of, mean_of


def matrices(count: int, classes: int, seed: int = 0, hit: float = 0.7) -> np.ndarray:
    """Confusion matrices of pictures that differ in how well they are done, each with some of the classes."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 50, (count, classes, classes))
    found[:, np.arange(classes), np.arange(classes)] += (rng.random((count, 1)) * 1000 * hit).astype(np.int64)
    found *= (rng.random((count, classes)) < 0.5)[:, :, None]
    return found


def counts_of(confusions: np.ndarray) -> PictureCounts:
    return PictureCounts.of([part_of(Scores.of(one).counts) for one in confusions], confusions.shape[1])


@pytest.mark.parametrize("absent", ["left_out", "counts_as_one"])
@pytest.mark.parametrize("cells", [1, 100, 2**20])
def test_interval_is_the_quantiles_of_scores_of_redrawn_sets(monkeypatch, absent, cells):
    monkeypatch.setattr(bootstrap, "_CELLS", cells)
    confusions = matrices(9, 6)
    scored = []
    for weights in draws(9, 200, seed=5):
        for row in weights:
            drawn = [confusions[index] for index in range(9) for _ in range(int(row[index]))]
            assert len(drawn) == 9
            scored.append(Scores.of(sum(drawn), absent).miou)
    found = miou_interval(counts_of(confusions), absent, resamples=200, seed=5)
    assert len(scored) == 200
    assert found.low == pytest.approx(np.quantile(scored, 0.025), abs=1e-12)
    assert found.high == pytest.approx(np.quantile(scored, 0.975), abs=1e-12)
    assert found.standard_error == pytest.approx(np.std(scored), abs=1e-12)
    assert json.loads(json.dumps(found.as_dict(), allow_nan=False))["resamples"] == 200


def test_a_seed_says_all_and_another_says_other():
    counts = counts_of(matrices(30, 4))
    one, again, other = (miou_interval(counts, "left_out", seed=seed) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert one.low < Scores.of(matrices(30, 4).sum(0)).miou < one.high
    assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.3)


def test_every_picture_is_drawn_once_in_the_mean():
    weights = np.concatenate(list(draws(40, 5000, seed=0)))
    assert weights.shape == (5000, 40)
    assert (weights.sum(1) == 40).all()
    np.testing.assert_allclose(weights.mean(0), 1, atol=0.08)
    np.testing.assert_allclose(weights.var(0), 1 - 1 / 40, atol=0.1)


def test_sums_past_32_bits_are_exact():
    huge = 2**40 + 1
    counts = counts_of(np.full((3, 1, 1), huge))
    sums = weighted(counts, np.array([[3.0, 0.0, 0.0], [1.0, 1.0, 1.0]]))
    assert sums.tolist() == [[[3 * huge] * 3], [[3 * huge] * 3]]


def test_nothing_to_draw_from_is_no_interval():
    assert miou_interval(counts_of(matrices(1, 3)), "left_out") is None
    assert miou_interval(counts_of(matrices(5, 3)), "left_out", resamples=0) is None
    assert miou_interval(PictureCounts.of([], 3), "left_out") is None
    empty = counts_of(np.zeros((4, 3, 3), np.int64))
    assert miou_interval(empty, "left_out") is None
    assert interval(np.array([np.nan, np.nan]), resamples=2, seed=0) is None


def test_a_resample_without_any_pixel_is_left_out():
    confusions = np.zeros((2, 2, 2), np.int64)
    confusions[1] = [[3, 1], [0, 4]]
    found = miou_interval(counts_of(confusions), "left_out", resamples=100)
    assert found.low == found.high == pytest.approx((3 / 4 + 4 / 5) / 2)


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    """200 sets of 60 pictures of one population: the 95 % interval misses its mIoU in about 5 % of them."""
    everyone = matrices(6000, 3, seed=9)
    truth = Scores.of(everyone.sum(0)).miou
    rng, held = np.random.default_rng(4), 0
    for seed in range(200):
        drawn = everyone[rng.integers(0, 6000, 60)]
        found = miou_interval(counts_of(drawn), "left_out", resamples=300, seed=seed)
        held += found.low <= truth <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_differences_draw_both_sides_alike():
    first, second = matrices(12, 4, seed=1), matrices(12, 4, seed=2)
    sides = counts_of(first), counts_of(second)

    def score(counts):
        return mean_of(iou_of(counts, "left_out"))[..., None]

    found = differences(*sides, score, resamples=150, seed=3)
    expected = []
    for weights in draws(12, 150, seed=3):
        for row in weights.astype(np.int64):
            redrawn = [Scores.of(np.tensordot(row, side, 1)).miou for side in (first, second)]
            expected.append(redrawn[1] - redrawn[0])
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-12)
    assert not differences(sides[0], sides[0], score, resamples=100).any()


def test_differences_of_one_number_per_picture():
    first, second = np.array([0.1, np.nan, 0.3, 0.0]), np.array([0.2, 0.5, 0.1, np.nan])
    found = mean_differences(first, second, resamples=100, seed=7)
    expected = []
    for row in np.concatenate(list(draws(4, 100, seed=7))):
        both = row[0] + row[2]
        expected.append((0.1 * row[0] - 0.2 * row[2]) / both if both else np.nan)
    np.testing.assert_allclose(found, expected, atol=1e-12)
