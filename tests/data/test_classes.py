"""Class tables, colours, and the table from stored ids to training ids."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from setr_fast.data.classes import IGNORED, ILLEGAL, ClassTable, find_class_table, read_class_table
from setr_fast.data.palette import default_palette
from setr_fast.errors import ConfigError, DataError

TWO = ClassTable(("sky", "road"), ((1, 2, 3), (4, 5, 6)), (0, 1), frozenset({2}), ((2, (7, 8, 9)),), True)


def write(tmp_path: Path, content: str, name: str = "classes.csv") -> Path:
    (tmp_path / name).write_text(content, encoding="utf-8")
    return tmp_path / name


def test_csv_in_any_order_and_with_marks_of_other_systems(tmp_path: Path) -> None:
    path = write(tmp_path, "\ufeffid,name,r,g,b,ignore\r\n2,void,9,9,9,1\r\n\r\n 1 , road ,4,5,6,0\r\n0,sky,1,2,3,\r\n")
    table = read_class_table(path)
    assert table.names == ("sky", "road")
    assert table.palette == ((1, 2, 3), (4, 5, 6))
    assert table.ids == (0, 1)
    assert table.ignored == {2}
    assert table.colour_ids() == {(1, 2, 3): 0, (4, 5, 6): 1, (9, 9, 9): 2}


def test_json_and_toml_say_the_same_as_csv(tmp_path: Path) -> None:
    csv = read_class_table(write(tmp_path, "id,name,r,g,b,ignore\n0,sky,1,2,3,0\n1,road,4,5,6,0\n2,void,7,8,9,1\n"))
    rows = '[{"id":0,"name":"sky","color":[1,2,3]},{"id":1,"name":"road","colour":[4,5,6]},'
    rows += '{"id":2,"name":"void","color":[7,8,9],"ignore":true}]'
    json = read_class_table(write(tmp_path, f'{{"classes": {rows}}}', "a.json"))
    bare = read_class_table(write(tmp_path, rows, "b.json"))
    toml = read_class_table(
        write(
            tmp_path,
            '[[classes]]\nid=0\nname="sky"\ncolor=[1,2,3]\n[[classes]]\nid=1\nname="road"\ncolor=[4,5,6]\n'
            '[[classes]]\nid=2\nname="void"\ncolor=[7,8,9]\nignore=1\n',
            "a.toml",
        )
    )
    assert csv == json == bare == toml == TWO


def test_names_alone_are_numbered_and_get_colours(tmp_path: Path) -> None:
    table = read_class_table(write(tmp_path, '["sky", "road", "Stra\u00dfe \u200c"]', "a.json"))
    assert table.ids == (0, 1, 2)
    assert table.palette == default_palette(3)
    with pytest.raises(DataError, match="colours r, g, b must be given"):
        table.colour_ids()
    assert read_class_table(write(tmp_path, "id,name\n0,a\n1,b\n")).palette == default_palette(2)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "at least one class"),
        ("id,name\n", "at least one class"),
        ("name,r,g,b\nsky,1,2,3\n", "first line must be"),
        ("id,name,ignored\n0,a,0\n1,b,1\n", "got 'id,name,ignored'"),
        ("id;name\n0;a\n", "first line must be"),
        ("id,name,r,g,b\n0,sky,1,2\n", "line 2 must have 5 columns, got 4"),
        ("id,name,r,g,b\n0,sky,1,2,3\n1,road,1,2,256\n", "line 3: b must be 0..255, got 256"),
        ("id,name,r,g,b\n0,sky,1,2,x\n", "line 2: b must be a whole number, got 'x'"),
        ("id,name\nzero,sky\n", "line 2: id must be a whole number"),
        ("id,name\n0,\n", "line 2: name must be"),
        ("id,name\n0,a\n0,b\n", "line 3: ids must differ, got 0 again after line 2"),
        ("id,name\n0,a\n1,a\n", "line 3: names must differ, got 'a' again after line 2"),
        ("id,name\n0,a\n1,b\n4,c\n", "no row for id 2, 3, though line 4 has id 4"),
        ("id,name\n0,a\n1,b\n4,c\n255,d\n", "no row for id 2, 3, though line 4 has id 4"),
        ("id,name\n0,a\n254,b\n", "though line 3 has id 254"),
        ("id,name\n0,a\n", "2..254 classes"),
        ("id,name,ignore\n0,a,0\n1,b,1\n", "2..254 classes"),
        ("id,name,ignore\n0,a,0\n1,b,yes\n", "ignore must be 0 or 1, got 'yes'"),
        ("id,name\n-1,a\n0,b\n", "id of a class must be 0..65535, got -1"),
        ("id,name\n" + "".join(f"{i},c{i}\n" for i in range(255)), "2..254 classes that are not ignored, got 255"),
    ],
)
def test_bad_tables_name_file_and_row(tmp_path: Path, content: str, words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_class_table(path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("{", "a.json", "valid JSON"),
        ('{"names": []}', "a.json", "a list 'classes'"),
        ('[{"id": 0}]', "a.json", "entry 1 must have id, name"),
        ('[{"id": 0, "name": "a", "color": "red"}]', "a.json", "entry 1: colour must be"),
        ('[{"id": 0, "name": "a", "color": [1, 2, 3]}, {"id": 1, "name": "b"}]', "a.json", "entry 2: r must be given"),
        ('[{"id": Infinity, "name": "a"}]', "a.json", "entry 1: id must be a whole number"),
        ('[{"id": true, "name": "a"}]', "a.json", "entry 1: id must be a whole number"),
        ("classes = ", "a.toml", "valid TOML"),
        ("id,name\n", "a.yaml", "must be .csv, .json or .toml"),
    ],
)
def test_bad_json_and_toml_name_the_entry(tmp_path: Path, content: str, name: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_class_table(write(tmp_path, content, name))


def test_unreadable_tables_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be readable"):
        read_class_table(tmp_path / "none.csv")
    (tmp_path / "a.csv").write_bytes(b"id,name\n0,a\n1,Stra\xdfe\n")
    with pytest.raises(DataError, match="line 3"):
        read_class_table(tmp_path / "a.csv")


def test_two_tables_in_one_folder_are_ambiguous(tmp_path: Path) -> None:
    assert find_class_table(tmp_path) is None
    write(tmp_path, "id,name\n0,a\n1,b\n")
    assert find_class_table(tmp_path) == tmp_path / "classes.csv"
    write(tmp_path, "[]", "classes.json")
    with pytest.raises(DataError, match=r"classes.csv, classes.json"):
        find_class_table(tmp_path)


def test_one_colour_for_two_ids_only_matters_for_colour_masks(tmp_path: Path) -> None:
    table = read_class_table(write(tmp_path, "id,name,r,g,b,ignore\n0,a,1,2,3,0\n1,b,4,5,6,0\n2,c,1,2,3,1\n"))
    assert table.num_classes == 2
    with pytest.raises(DataError, match=r"colours must differ .* 'a' and 'ignored id 2'"):
        table.colour_ids()


# ---- stored id -> training id ---------------------------------------------------------------------------------------


def test_lookup_of_a_plain_table() -> None:
    lookup = TWO.lookup()
    assert lookup.dtype == np.uint8
    assert lookup.shape == (65536,)
    assert lookup[[0, 1, 2, 3, 254, 255, 256, 65535]].tolist() == [0, 1, 255, 254, 254, 255, 254, 254]


def test_offset_is_added_before_ids_are_looked_up() -> None:
    """-1 is 'reduce zero label': 0 is ignored, 1 becomes class 0, and 255 stays ignored."""
    lookup = ClassTable.numbered(150).lookup(offset=-1)
    assert lookup[[0, 1, 150, 151, 255]].tolist() == [255, 0, 149, 254, 255]
    assert ClassTable.numbered(3).lookup(offset=2)[[0, 1, 255]].tolist() == [2, 254, 255]


def test_ignore_index_adds_to_what_is_ignored_and_wins_over_a_class() -> None:
    lookup = ClassTable.numbered(3).lookup(ignore_index=0)
    assert lookup[[0, 1, 2, 3, 255]].tolist() == [255, 1, 2, 254, 255]


def test_ids_that_start_at_one_need_no_offset(tmp_path: Path) -> None:
    table = read_class_table(write(tmp_path, "id,name\n1,wall\n2,building\n"))
    assert table.lookup()[[0, 1, 2, 255]].tolist() == [254, 0, 1, 255]


def test_255_is_a_class_where_the_table_says_so(tmp_path: Path) -> None:
    rows = "0,background,0\n255,glass,0\n" + "".join(f"{i},unused{i},1\n" for i in range(1, 255))
    table = read_class_table(write(tmp_path, "id,name,ignore\n" + rows))
    assert table.names == ("background", "glass")
    assert table.lookup()[[0, 1, 254, 255]].tolist() == [0, 255, 255, 1]


@pytest.mark.parametrize(
    ("rows", "stored", "trained"),
    [
        ("0,background\n255,object\n", [0, 1, 254, 255], [0, 254, 254, 1]),
        ("255,object\n0,background\n", [0, 255], [0, 1]),
        ("0,a\n1,b\n2,c\n255,d\n", [0, 1, 2, 3, 255], [0, 1, 2, 254, 3]),
    ],
)
def test_255_may_stand_alone_after_the_other_classes(
    tmp_path: Path, rows: str, stored: list[int], trained: list[int]
) -> None:
    table = read_class_table(write(tmp_path, "id,name\n" + rows))
    assert table.num_classes == rows.count("\n")
    assert table.lookup()[stored].tolist() == trained


def test_ignored_ids_may_be_negative_or_far_away(tmp_path: Path) -> None:
    path = write(tmp_path, "id,name,ignore\n-1,plate,1\n0,a,0\n1,b,0\n255,border,1\n1000,odd,1\n")
    assert read_class_table(path).lookup()[[0, 1, 2, 255, 1000, 65535]].tolist() == [0, 1, 254, 255, 255, 254]


@given(st.integers(1, 254), st.integers(-300, 300), st.none() | st.integers(0, 300))
def test_lookup_agrees_with_the_rule_for_each_id(count: int, offset: int, ignore: int | None) -> None:
    lookup = ClassTable.numbered(count).lookup(offset, ignore)
    for stored in range(600):
        moved = stored + offset
        if stored == ignore or moved < 0:
            wanted = IGNORED
        elif moved < count:
            wanted = moved
        else:
            wanted = IGNORED if stored == 255 else ILLEGAL
        assert lookup[stored] == wanted


@pytest.mark.parametrize("count", [0, 255, 1000])
def test_more_classes_than_a_byte_can_tell_apart_are_refused(count: int) -> None:
    with pytest.raises(ConfigError, match=r"1\.\.254"):
        ClassTable.numbered(count)


def test_default_palette_is_the_published_colour_map() -> None:
    colours = default_palette(256)
    assert colours[:4] == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))
    assert colours[20] == (0, 64, 128)
    assert colours[255] == (224, 224, 192)
    assert len(set(colours)) == 256
    assert default_palette(3) == colours[:3]
