"""No CPU kernel executes more instructions than it did: a gate without noise, unlike a time."""

from __future__ import annotations

import pytest

from benchmarks import counts
from setr_fast.ops import OPS

RECORD = counts.read_record()
PROFILE = """
ob=(1) /lib/libtorch_cpu.so
fn=(1) a
12 100
cob=(2) /x/setr_fast/_native.so
cfn=(2) kernel
calls=3 40
12 5000
ob=(2)
fn=(2)
40 2000
+1 30
* 4
-2 6
cob=(1)
cfn=(1)
calls=1 12
41 999
"""


def test_only_the_extension_is_charged_and_not_what_it_calls() -> None:
    assert counts.self_cost(PROFILE, "_native.so") == 2040
    assert counts.self_cost(PROFILE, "libtorch_cpu.so") == 100


def test_two_percent_more_is_seen_and_so_is_a_kernel_that_was_never_counted() -> None:
    assert counts.grown({"a/b/c": 1000}, {"a/b/c": 1019}) == []
    assert "+2.1%" in counts.grown({"a/b/c": 1000}, {"a/b/c": 1021})[0]
    assert "not recorded" in counts.grown({}, {"a/b/c": 1})[0]


def test_every_op_with_a_cpu_kernel_is_recorded() -> None:
    with_kernel = {
        op.name for op in OPS.values() if any(b.name == "native" and b.device != "cuda" for b in op.backends)
    }
    assert with_kernel - counts.NEWER == {name.split("/")[0] for name in RECORD["counts"]}, (
        "run python -m benchmarks.counts --write"
    )


def test_no_cpu_kernel_executes_more_instructions_than_recorded() -> None:
    if why := counts.missing():
        pytest.skip(why)
    if counts.compiler() != RECORD["compiler"]:
        pytest.skip(f"counts were taken with {RECORD['compiler']}, this extension was made by {counts.compiler()}")
    lines = counts.grown(RECORD["counts"], counts.count(list(RECORD["counts"])))
    assert not lines, "\n".join([*lines, "if that is meant, run python -m benchmarks.counts --write"])
