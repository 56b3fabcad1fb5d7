"""docs/results.md says what the recipes and docs/reproduced.toml say."""

from __future__ import annotations

import importlib.util
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
