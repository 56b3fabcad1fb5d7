"""Two results side by side, from tallies whose difference is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from setr_fast.errors import BackendError, ConfigError, DataError
from setr_fast.metrics import Tally
from setr_fast.metrics.bootstrap import draws
from setr_fast.metrics.commands import compare_command
from setr_fast.metrics.compare import compare_files
from setr_fast.metrics.options import MetricsConfig
from setr_fast.metrics.scores import Scores
from setr_fast.metrics.summary import summary
from setr_fast.metrics.table import compare_table

NAMES = ("road", "sky", "tree", "wall")
PICTURES = 12


def answers(right: float, seed: int, pictures: int = PICTURES) -> list[tuple[np.ndarray, np.ndarray]]:
    """Label maps (the same for every seed) and answers of which about ``right`` are right; class 3 never occurs."""
    found = []
    for index in range(pictures):
        truth, chance = np.random.default_rng(index), np.random.default_rng((7, seed, index))
        labels = truth.integers(0, 3, (24, 30)).astype(np.uint8)
        labels[0] = 255
        wrong = chance.integers(0, 3, labels.shape).astype(np.uint8)
        share = right + 0.1 * truth.standard_normal()
        found.append((np.where(chance.random(labels.shape) < share, labels, wrong) % 4, labels))
    return found


def result(right: float, seed: int = 0, config: MetricsConfig | None = None, **changes: Any) -> dict[str, Any]:
    config = config or MetricsConfig(metrics=("boundary", "mae"), mae_class="sky")
    extra = config.metrics
    tally = Tally(
        4,
        boundary_ratio=config.boundary_ratio if "boundary" in extra else None,
        probability_of=1 if "mae" in extra else None,
    )
    for index, (answer, labels) in enumerate(answers(right, seed)):
        tally.add(index, np.where(answer == 255, 0, answer), labels)
        if "mae" in extra:
            tally.add_error(index, (answer == 1).astype(np.float32), labels)
    found = summary(tally, NAMES, [f"p{index}" for index in range(PICTURES)], config)
    found |= {"format": "setr_fast.result/1", "sha256": {"data": "d" * 64, "weights": f"w{seed}"}, "images": PICTURES}
    found |= {"settings": {"inference": {"flip": bool(seed), "scales": [1.0]}}, "checkpoint": f"run{seed}"}
    return found | changes


@pytest.fixture
def write(tmp_path: Path):
    def save(name: str, content: dict[str, Any]) -> Path:
        (tmp_path / name).write_text(json.dumps(content, allow_nan=False))
        return tmp_path / name

    return save


def test_rows_hold_both_results_and_their_difference(write):
    a, b = result(0.6), result(0.8, seed=1)
    found = compare_files(write("a.json", a), write("b.json", b))
    assert [row.name for row in found.means] == ["mIoU", "aAcc", "mAcc", "mDice", "boundary mIoU", "MAE"]
    assert [row.name for row in found.classes] == list(NAMES)
    for row in found.means[:4]:
        assert (row.first, row.second) == (a[row.name], b[row.name])
        assert row.difference == b[row.name] - a[row.name]
    assert (found.means[4].first, found.means[5].second) == (a["boundary"]["mIoU"], b["mae"]["MAE"])
    assert found.classes[3].difference is found.classes[3].interval is None
    assert found.mismatches == []
    assert found.settings == [
        ("checkpoint", "run0", "run1"),
        ("sha256.weights", "w0", "w1"),
        ("inference.flip", False, True),
    ]


def test_intervals_are_those_of_the_difference_over_pictures_drawn_for_both(write):
    found = compare_files(write("a.json", result(0.6)), write("b.json", result(0.65, seed=1)), resamples=300)
    matrices = []
    for right, seed in ((0.6, 0), (0.65, 1)):
        tallies = []
        for index, (answer, labels) in enumerate(answers(right, seed)):
            tally = Tally(4)
            tally.add(index, np.where(answer == 255, 0, answer), labels)
            tallies.append(tally.confusion)
        matrices.append(np.stack(tallies))
    gaps: dict[str, list[float]] = {"mIoU": [], "aAcc": [], "mAcc": [], "mDice": [], "sky": []}
    for weights in draws(PICTURES, 300, seed=0):
        for row in weights.astype(np.int64):
            one, two = (Scores.of(np.tensordot(row, side, 1)) for side in matrices)
            gaps["mIoU"].append(two.miou - one.miou)
            gaps["aAcc"].append(two.aacc - one.aacc)
            gaps["mAcc"].append(two.macc - one.macc)
            gaps["mDice"].append(two.mdice - one.mdice)
            gaps["sky"].append(two.iou[1] - one.iou[1])
    rows = {row.name: row for row in found.means + found.classes}
    for name, values in gaps.items():
        assert rows[name].interval.low == pytest.approx(np.quantile(values, 0.025), abs=1e-12)
        assert rows[name].interval.high == pytest.approx(np.quantile(values, 0.975), abs=1e-12)
    assert rows["boundary mIoU"].interval is not None
    assert rows["MAE"].interval.low < rows["MAE"].difference < rows["MAE"].interval.high


def test_a_clear_difference_is_called_one_and_none_is_not(write):
    a = write("a.json", result(0.6))
    clear = compare_files(a, write("b.json", result(0.8, seed=1)))
    assert clear.exceeds is True
    assert "more than the choice of pictures explains" in clear.verdict
    assert clear.method == "paired bootstrap over pictures"
    worse = compare_files(write("b.json", result(0.8, seed=1)), a)
    assert worse.exceeds is True
    assert "points below the first" in worse.verdict
    same = compare_files(a, a)
    assert same.exceeds is False
    assert same.means[0].difference == same.means[0].interval.high == 0
    close = compare_files(a, write("c.json", result(0.6, seed=2)))
    assert close.exceeds is False
    assert "no difference is shown" in close.verdict


def test_pairing_finds_a_difference_that_separate_intervals_hide(write):
    a, b = result(0.6), result(0.63, seed=1)
    assert compare_files(write("a.json", a), write("b.json", b)).exceeds is True
    for side in (a, b):
        del side["pictures"]
    apart = compare_files(write("a.json", a), write("b.json", b))
    assert apart.method == "separate bootstrap intervals"
    assert apart.exceeds is False
    assert all(row.interval is None for row in apart.means + apart.classes)
    del b["mIoU_interval"]
    assert compare_files(write("a.json", a), write("b.json", b)).method == "none"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"sha256": {"data": "e" * 64}}, "must be of the first's data, got sha256 dddddddddddd against eeeeeeeeeeee"),
        ({"IoU": {"road": 0.1, "sky": 0.1, "bush": 0.1, "wall": None}}, "first's classes, got 'tree' against 'bush'"),
        ({"IoU": {"road": 0.1, "sky": 0.1}}, "first's classes, got 4 against 2 of them"),
        ({"pixels_per_class": {"road": 1}}, "first's label pixels in every class"),
        ({"absent_classes": "counts_as_one"}, "first's rule for absent classes, got left_out against counts_as_one"),
        ({"boundary": {"ratio": 0.05, "mIoU": 0.1}}, "first's boundary ratio, got 0.02 against 0.05"),
        ({"mae": {"class": "road", "MAE": 0.1}}, "first's class of the MAE, got sky against road"),
    ],
)
def test_what_must_not_be_compared_is_refused_in_one_line_unless_forced(write, changes, told):
    a, b = write("a.json", result(0.6)), write("b.json", result(0.8, seed=1, **changes))
    with pytest.raises(ConfigError, match=told) as caught:
        compare_files(a, b)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert str(b) in str(caught.value)
    forced = compare_files(a, b, force=True)
    assert told in forced.mismatches[0]
    assert all(row.interval is None for row in forced.means + forced.classes)
    assert "mismatch: " in compare_table(forced).splitlines()[0]


def test_pictures_of_other_names_or_labels_are_not_paired(write):
    a, b = result(0.6), result(0.8, seed=1)
    b["pictures"]["names"][0] = "q"
    assert compare_files(write("a.json", a), write("b.json", b)).method == "separate bootstrap intervals"
    b = result(0.8, seed=1)
    tally = Tally(4)
    for index, (answer, labels) in enumerate(reversed(answers(0.8, 1))):
        tally.add(index, answer % 4, labels)
    b["pictures"] = summary(tally, NAMES, a["pictures"]["names"], MetricsConfig())["pictures"]
    assert compare_files(write("a.json", a), write("b.json", b)).method == "separate bootstrap intervals"


def test_damaged_counts_are_refused_naming_the_file(write):
    b = result(0.8, seed=1)
    b["pictures"]["areas"]["rows"] += 1
    with pytest.raises(DataError, match=r"b\.json: counts of single pictures"):
        compare_files(write("a.json", result(0.6)), write("b.json", b))


def test_results_of_other_extras_share_what_both_have(write):
    found = compare_files(
        write("a.json", result(0.6)), write("b.json", result(0.8, seed=1, config=MetricsConfig(bootstrap=0)))
    )
    rows = {row.name: row for row in found.means}
    assert rows["MAE"].second is rows["MAE"].difference is rows["boundary mIoU"].interval is None
    assert rows["mIoU"].interval is not None
    assert " - " in compare_table(found)


def test_table_and_file_say_the_same(write, tmp_path, capsys):
    a, b = write("a.json", result(0.6)), write("b.json", result(0.8, seed=1))
    compare_command(a, b, out=tmp_path / "c.json")
    printed = capsys.readouterr().out
    written = json.loads((tmp_path / "c.json").read_text())
    assert written["verdict"] in printed
    assert written["exceeds"] is True
    assert set(written["IoU"]) == set(NAMES)
    assert f"{100 * written['means']['mIoU']['difference']:+.2f}" in printed
    assert "flip: False -> True" in printed
    assert "95% interval" in printed
    compare_command(a, b, resamples=0)
    assert "*" not in capsys.readouterr().out


def test_wrong_options_are_usage_errors(write, tmp_path):
    a = write("a.json", result(0.6))
    with pytest.raises(ConfigError, match="at least 100"):
        compare_command(a, a, resamples=3)
    (tmp_path / "no").touch()
    with pytest.raises(BackendError, match="out: must be where files can be written"):
        compare_command(a, a, out=tmp_path / "no" / "c.json")


def test_a_result_says_every_score_of_its_tally():
    found = result(0.7)
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert found["mIoU_interval"]["low"] < found["mIoU"] < found["mIoU_interval"]["high"]
    assert found["boundary"]["mIoU_interval"]["low"] < found["boundary"]["mIoU"]
    assert found["boundary"]["IoU"]["wall"] is None
    assert sum(found["pixels_per_class"].values()) == found["pixels"] == PICTURES * 23 * 30
    gaps = []
    for answer, labels in answers(0.7, 0):
        counted = labels != 255
        gaps.append(((answer == 1) != (labels == 1))[counted].mean())
    assert found["mae"]["MAE"] == pytest.approx(np.mean(gaps))
    assert found["mae"]["MAE_where_present"] == found["mae"]["MAE"]
    assert found["mae"]["MAE_where_absent"] is None


def test_pictures_with_and_without_the_class_have_their_own_error():
    tally = Tally(2, probability_of=1)
    for index, labels in enumerate((np.zeros((2, 2)), np.eye(2), np.full((2, 2), 255))):
        ids = labels.astype(np.uint8)
        tally.add(index, np.zeros((2, 2), np.uint8), ids)
        tally.add_error(index, np.full((2, 2), 0.25), ids)
    error = summary(tally, ("wall", "glass"), ["a", "b", "c"], MetricsConfig(metrics=("mae",)))["mae"]
    assert error == {
        "class": "glass",
        "MAE": (0.25 + 0.5) / 2,
        "MAE_where_present": 0.5,
        "MAE_where_absent": 0.25,
        "IoU_mean_of_pictures": 0.5,  # 1 where both are empty, 0 where it was missed
        "pictures": 2,
        "pictures_with_class": 1,
    }
