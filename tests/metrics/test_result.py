"""Result files: counts in little room, and files that hold anything else."""

from __future__ import annotations

import base64
import json
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setr_fast.errors import DataError
from setr_fast.metrics.pictures import PictureCounts, part_of
from setr_fast.metrics.result import FORMAT, packed, read_result, unpacked


def counts_of(pictures: int, classes: int, seed: int = 0) -> PictureCounts:
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(pictures):
        counts = rng.integers(0, 2**33, (classes, 3)) * (rng.random((classes, 1)) < 0.3)
        counts[:, 0] = counts.min(1)
        found.append(part_of(counts))
    return PictureCounts.of(found, classes)


@given(st.integers(0, 6), st.integers(1, 300), st.integers(0, 99))
def test_counts_come_back_as_they_were(pictures, classes, seed):
    counts = counts_of(pictures, classes, seed)
    again = unpacked(json.loads(json.dumps(packed(counts))), pictures, classes, "here")
    for name in ("lengths", "classes", "counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(counts, name))


def test_two_thousand_pictures_of_a_hundred_and_fifty_classes_are_a_megabyte_or_two():
    rng, parts = np.random.default_rng(0), []
    for _ in range(2000):
        counts = np.zeros((150, 3), np.int64)
        chosen = rng.choice(150, 20, replace=False)
        counts[chosen] = np.sort(rng.integers(0, 350_000, (20, 3)))
        parts.append(part_of(counts))
    assert len(packed(PictureCounts.of(parts, 150))["int64_zlib_base64"]) < 2**20


def _altered(**changes) -> dict:
    block = packed(counts_of(4, 5))
    return block | changes


def _of_values(values: list[int], rows: int) -> dict:
    data = zlib.compress(np.array(values, "<i8").tobytes())
    return {"rows": rows, "int64_zlib_base64": base64.b64encode(data).decode()}


@pytest.mark.parametrize(
    "block",
    [
        None,
        [],
        {},
        _altered(rows=True),
        _altered(rows=-1),
        _altered(rows=10**9),
        _altered(rows=1),
        _altered(int64_zlib_base64=None),
        _altered(int64_zlib_base64="!"),
        _altered(int64_zlib_base64="AAAA"),
        _altered(int64_zlib_base64=base64.b64encode(zlib.compress(bytes(2**26))).decode()),
        _of_values([1, 0, 0, 0, 0, 2, 2, 2, 2], 1),  # five lengths for four pictures
        _of_values([1, 0, 0, 0, 5, 2, 2, 2], 1),  # class 5 of 5
        _of_values([1, 0, 0, 0, 4, 3, 2, 3], 1),  # more hits than labels
        _of_values([1, 0, 0, 0, 4, -1, 2, 3], 1),
        _of_values([0, 0, 0, 0, 4, 1, 2, 3], 1),  # a row of no picture
    ],
)
def test_a_block_that_is_none_is_refused_in_one_line(block):
    with pytest.raises(DataError, match=r"^a\.json: counts of single pictures must be .*evaluate again$") as caught:
        unpacked(block, 4, 5, "a.json")
    assert caught.value.exit_code == 3


def test_a_correct_block_by_hand_is_read():
    counts = unpacked(_of_values([1, 0, 0, 0, 4, 1, 2, 3], 1), 4, 5, "a.json")
    assert counts.totals()[4].tolist() == [1, 2, 3]


FINE = {"format": FORMAT, "mIoU": 0.5, "aAcc": 1, "mAcc": None, "IoU": {"a": 0.5}, "sha256": {"data": "x"}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "No such file"),
        ("", "got another file"),
        ("{", "got another file"),
        ("[" * 100_000, "got another file"),
        ("[1]", "got another file"),
        ("{}", "got another file"),
        (json.dumps(FINE | {"mIoU": "high"}), "got another file"),
        (json.dumps(FINE | {"mIoU": 47.3}), "got another file"),
        (json.dumps(FINE | {"mIoU": float("nan")}), "got another file"),
        (json.dumps(FINE | {"mIoU": True}), "got another file"),
        (json.dumps(FINE | {"IoU": {"a": []}}), "got another file"),
        (json.dumps(FINE | {"sha256": {}}), "got another file"),
        (json.dumps(FINE | {"format": "setr_fast.result/9"}), "use the setr_fast that wrote it"),
        ("\udcff", "got another file"),
    ],
)
def test_a_file_that_is_no_result_is_refused_in_one_line(tmp_path: Path, text, told):
    path = tmp_path / "a.json"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=told) as caught:
        read_result(path)
    assert str(caught.value).startswith(f"{path}: result must be ")
    assert "\n" not in str(caught.value)


def test_results_without_a_format_are_those_of_the_first_version(tmp_path: Path):
    old = {key: value for key, value in FINE.items() if key != "format"}
    (tmp_path / "a.json").write_text(json.dumps(old))
    assert read_result(tmp_path / "a.json") == old
    with pytest.raises(DataError, match="Is a directory"):
        read_result(tmp_path)
