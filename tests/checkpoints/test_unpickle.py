"""The pickle reader: equal to Python's on plain values, and unable to run anything."""

from __future__ import annotations

import pickle
import pickletools
from collections import OrderedDict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from setr_fast.checkpoints.faults import Unusable
from setr_fast.checkpoints.unpickle import Call, Global, Span, read_pickle

ORDERED = {Global("collections", "OrderedDict")}
leaves = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(max_size=300)
hashable = st.text() | st.integers() | st.tuples(st.integers(), st.text())
values = st.recursive(
    leaves, lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(hashable, inner), max_leaves=30
)


@settings(max_examples=200, deadline=None)
@given(value=values, protocol=st.integers(0, 5))
def test_plain_values_come_out_as_python_reads_them(value: Any, protocol: int) -> None:
    admitted = {Global("_codecs", "encode"), Global("__builtin__", "bytes"), Global("builtins", "bytes")}
    data = b"before" + pickle.dumps(value, protocol)
    found, end = read_pickle(data, 6, admitted)
    assert end == len(data)
    if protocol >= 3:  # before that, bytes are a call
        assert found == value
        assert repr(found) == repr(value)


def test_shared_and_self_referring_values_keep_their_identity() -> None:
    shared: list[Any] = [1]
    found, _ = read_pickle(pickle.dumps([shared, shared, (shared,)]), 0, ())
    assert found[0] is found[1] is found[2][0]
    shared.append(shared)
    found, _ = read_pickle(pickle.dumps(shared), 0, ())
    assert found[1] is found


def test_ordered_dicts_become_dicts_and_lose_their_attributes() -> None:
    value = OrderedDict(a=1)
    value._metadata = {"version": 1}  # type: ignore[attr-defined]
    assert read_pickle(pickle.dumps(value, 2), 0, ORDERED)[0] == {"a": 1}


def test_long_bytes_and_texts_stay_in_the_buffer() -> None:
    data = pickle.dumps([b"x" * 5000, "y" * (1 << 21)], 4)
    (raw, text), _ = read_pickle(data, 0, ())
    assert isinstance(raw, Span)
    assert data[raw.start : raw.start + raw.length] == b"x" * 5000
    assert isinstance(text, Span)
    assert text.text
    assert data[text.start : text.start + text.length] == b"y" * (1 << 21)


class _Runs:
    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "args"), [(eval, ("1/0",)), (exec, ("x = 1/0",)), (__import__, ("this",)), (getattr, ([], "clear"))]
)
def test_calls_are_refused_by_name(protocol: int, function: Any, args: tuple[Any, ...]) -> None:
    name = {"__import__": "__import__"}.get(function.__name__, function.__name__)
    with pytest.raises(Unusable, match=rf"reference to (builtins|__builtin__)\.{name}"):
        read_pickle(pickle.dumps({"weight": _Runs(function, *args)}, protocol), 0, ORDERED)


def test_an_admitted_call_is_only_recorded() -> None:
    admitted = {Global("builtins", "exec")}
    data = pickle.dumps(_Runs(exec, "raise SystemExit(1)"))
    found, _ = read_pickle(data, 0, admitted)
    assert found == Call(Global("builtins", "exec"), ("raise SystemExit(1)",))


HOSTILE = {
    "instance of a class": b"(S'true'\nios\nsystem\n.",
    "instance of an unread class": b"(ios\nsystem\n.",
    "object of the stack": b"(cos\nsystem\nX\4\0\0\0trueo.",
    "extension registry": b"\x80\x02\x82\x01.",
    "call of a text": b"X\2\0\0\0osX\1\0\0\0a\x85R.",
    "state of a list": b"](K\1t\x62.",
    "memo that is not there": b"h\7.",
    "memo at a giant place, then nothing": b"Nr\xff\xff\xff\x7f",
    "a text longer than the file": b"X\xff\xff\xff\x7fabc.",
    "bytes longer than memory": b"\x8e\xff\xff\xff\xff\xff\xff\xff\x7fabc.",
    "an empty stack": b".",
    "no mark": b"KKt.",
    "an item for no list": b"K\1K\2a.",
    "an unhashable key": b"}]K\1s.",
    "endless dicts": b"}" * 2_000_000,
    "endless line": b"c" + b"a" * 3_000_000,
    "cut off": pickle.dumps({"a": list(range(1000))})[:-40],
    "out-of-band buffer": b"\x80\x05\x97.",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_streams_are_refused_in_words(name: str) -> None:
    with pytest.raises(Unusable) as caught:
        read_pickle(HOSTILE[name], 0, ())
    assert "\n" not in caught.value.what
    assert len(caught.value.what) < 300


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200))
def test_random_bytes_never_surprise(data: bytes) -> None:
    try:
        read_pickle(data, 0, ORDERED)
    except Unusable:
        return


@settings(max_examples=200, deadline=None)
@given(cut=st.integers(0, 400), flip=st.integers(0, 255), at=st.integers(0, 400))
def test_damaged_streams_never_surprise(cut: int, flip: int, at: int) -> None:
    data = bytearray(pickle.dumps({"a": OrderedDict(b=[1, 2.5, "c", None, (True,)]), "d": b"e" * 100}, 2))
    data[at % len(data)] = flip
    try:
        read_pickle(bytes(data[: cut or None]), 0, ORDERED | {Global("_codecs", "encode")})
    except Unusable:
        return


def test_every_instruction_that_is_read_is_one_of_pickles() -> None:
    from setr_fast.checkpoints.unpickle import _STEPS

    known = {ord(op.code): op.name for op in pickletools.opcodes}
    left_out = {name for code, name in known.items() if code not in _STEPS}
    assert set(_STEPS) <= set(known)
    # What is left out: classes and extensions by other ways than a name, texts of Python 2, buffers outside the stream.
    assert left_out == {
        "STOP",  # ends the loop itself
        *("STRING", "PERSID", "INST", "OBJ", "EXT1", "EXT2", "EXT4", "NEXT_BUFFER", "READONLY_BUFFER"),
    }
