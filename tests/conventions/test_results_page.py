"""docs/results.md says what the recipes and docs/reproduced.toml say."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from setr_fast.config import published, recipe_names

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.fixture(scope="module")
def writer() -> ModuleType:
    spec = importlib.util.spec_from_file_location("results_page", DOCS / "results_page.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_page_is_what_the_recipes_make_of_it(writer: ModuleType) -> None:
    assert (DOCS / "results.md").read_text() == writer.page(), "run `python docs/results_page.py`"


def test_every_published_recipe_stands_in_it_once(writer: ModuleType) -> None:
    page = writer.page()
    for name in recipe_names():
        if published(name).source:
            assert page.count(f"| {name} |") == 1


def test_a_run_of_no_recipe_is_refused(writer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "reproduced.toml").write_text('[[run]]\nrecipe = "camvid_big"\nby = "x"\nwhere = "y"\n')
    monkeypatch.setattr(writer, "HERE", tmp_path)
    with pytest.raises(AssertionError, match="camvid_big"):
        writer.page()


def test_recorded_runs_are_a_table_a_curve_and_their_classes(
    writer: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    run = {"kind": "trained", "data": "camvid val", "steps": 800, "batch_size": 8, "model": "setr_mla_vit_t16"}
    run |= {"mIoU": 0.3, "aAcc": 0.7, "IoU": {"sky": 0.9, "car": 0.1}, "curve": [[400, 0.2], [800, 0.3]]}
    run |= {"train_images_per_second": 5.0, "peak_mib": 800, "minutes": 20.0, "train_threads": 1, "threads": 2}
    run |= {"machine": "m", "commit": "abc", "weights_millions": 5.9}
    results, docs = tmp_path / "benchmarks" / "results" / "cpu", tmp_path / "docs"
    results.mkdir(parents=True)
    docs.mkdir()
    (docs / "reproduced.toml").write_text("")
    old, new = ({**run, "run": "mla", "mIoU": value} for value in (0.1, 0.3))
    naive = {**run, "run": "naive", "model": "setr_naive_vit_t16", "peak_mib": None}
    (results / "1.jsonl").write_text(json.dumps(old) + "\n")
    (results / "2.jsonl").write_text(json.dumps(new) + "\n" + json.dumps(naive) + "\n")
    monkeypatch.setattr(writer, "HERE", docs)
    page = writer.page()
    assert "| mla | setr_mla_vit_t16 | 5.90 | 800 x 8 | 30.00 | 70.00 | 5.00 | 800 | 20 | 1 | m | abc |" in page
    assert "| naive | setr_naive_vit_t16 | 5.90 | 800 x 8 | 30.00 | 70.00 | 5.00 |  | 20 | 1 | m | abc |" in page
    assert "| car | 10.00 | 10.00 |" in page
    assert "10.00 | 70.00" not in page, "the newer run of a name counts"
    assert "](reproduced/camvid-val.svg)" in page
    writer.draw()
    picture = (docs / "reproduced" / "camvid-val.svg").read_text()
    assert ">mla<" in picture
    assert ">naive<" in picture


def test_every_recorded_run_is_in_its_picture(writer: ModuleType) -> None:
    for data, runs in writer._recorded().items():
        picture = (DOCS / "reproduced" / writer._curve(data)).read_text()
        assert all(f">{run['run']}<" in picture for run in runs), "run `python docs/results_page.py`"
