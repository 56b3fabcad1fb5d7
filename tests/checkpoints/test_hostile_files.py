"""Files that are broken or mean harm: one clear line, nothing run, no more memory than the file's size warrants."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from setr_fast.checkpoints.read import read_checkpoint
from setr_fast.errors import CheckpointError

WEIGHTS = {"a.weight": torch.arange(64.0).reshape(8, 8), "a.bias": torch.arange(8.0)}


class _Runs:
    """Pickles as a call of a command that leaves a file behind."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


def _torch(content: Any = WEIGHTS, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def _npz(compressed: bool = False, **arrays: Any) -> bytes:
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)
    return buffer.getvalue()


def _repacked(data: bytes, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", method) as new:
        for name in old.namelist():
            new.writestr(name, change(name, old.read(name)))
    return buffer.getvalue()


def _safetensors(header: Any, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def _expanded(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.as_strided(tensor, shape, (0,) * len(shape))


def _npy(header: str, body: bytes = b"") -> bytes:
    """An ``.npz`` of one array whose header says anything."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("a.npy", b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode() + body)
    return buffer.getvalue()


def _f4(shape: str, code: str = "<f4") -> str:
    return f"{{'descr': '{code}', 'fortran_order': False, 'shape': {shape}}}"


def _doubled(close: bytes, times: int) -> bytes:
    """Instructions for a tuple or list that holds the one before it twice, and so on."""
    steps = b"".join(b"(h" + bytes([at]) + b"h" + bytes([at]) + close + b"\x940" for at in range(times))
    return b")\x940" + steps + b"h" + bytes([times])


P4 = b"\x80\x04"
NAME_X = b"\x8c\1x"
F32 = {"dtype": "F32", "shape": [2]}
BIG = torch.ones(1 << 20)
Z = np.zeros(1 << 17)
CASES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "got 0 bytes"),
    "text": (b"hello, I am a checkpoint", "got bytes of no known format"),
    "web page": (b"<!DOCTYPE html><html>", "got a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", "got a pointer of Git LFS; run `git lfs pull`"),
    "gzip": (b"\x1f\x8b" + bytes(50), "got a gzip archive"),
    "zip cut off": (_torch()[:-100], "cut off"),
    "zip cut in the middle": (_torch()[:700], "cut off"),
    "zip that is not ours": (b"PK\5\6" + bytes(18), "got another zip archive"),
    "legacy cut off": (_torch(zipped=False)[:-20], "must hold all of storage"),
    "legacy cut in the pickle": (_torch(zipped=False)[:100], "cut off"),
    "deflated torch": (_repacked(_torch(), lambda n, b: b, zipfile.ZIP_DEFLATED), "stored as torch does it"),
    "storage too short": (_repacked(_torch(), lambda n, b: b[:8] if "/data/" in n else b), "must hold storage 0"),
    "big-endian": (_repacked(_torch(), lambda n, b: b"big" if "byteorder" in n else b), "must be little-endian"),
    "list": (_torch([torch.ones(2)]), "must hold a dict of tensors, got a list"),
    "no tensors": (_torch({"epoch": 3}), "must hold a dict of named tensors, got one with epoch"),
    "text among weights": (_torch({**WEIGHTS, "x": "y"}), "x must be a dense tensor, got a str"),
    "sparse": (_torch({"x": torch.eye(2).to_sparse()}), "reference to torch._utils._rebuild_sparse_tensor"),
    "a view of 4 TB": (_torch({"x": _expanded(torch.ones(1), (1 << 20, 1 << 20))}), "x must fit its storage of 1"),
    "paddle cut off": (pickle.dumps({"a": np.ones(999)}, 4)[:-300], "cut off"),
    "paddle objects": (pickle.dumps({"a": np.array([{}])}, 4), "must be an array of numbers, got dtype"),
    "paddle list": (pickle.dumps([1], 4), "must hold a dict of named arrays, got a list"),
    "npz objects": (_npz(a=np.array([{}], object)), "must be an array of numbers, got |O"),
    "npz texts": (_npz(a=np.array(["x"])), "must be an array of numbers, got <U1"),
    "npz bomb": (_npz(compressed=True, a=np.zeros(1 << 25)), "must unpack to at most 8 times"),
    "npz with more": (_repacked(_npz(a=np.ones(9)), lambda n, b: b + b"more"), "must have 72 bytes"),
    "npz entry that is none": (_repacked(_npz(a=np.ones(9)), lambda n, b: b"no"), "must be a .npy"),
    "npy of 65 axes": (_npy(_f4("(0," + "1," * 64 + ")")), "must be an array of numbers"),
    "npy of no rows, endless columns": (_npy(_f4(f"(0, {1 << 62})")), "must be an array of numbers"),
    "npy of a strange type": (_npy(_f4("(1,)", "<<>>f4"), bytes(4)), "must be an array of numbers"),
    "npy with code": (_npy("__import__('os').system('true')"), "got a broken header"),
    "zip64 directory outside": (b"PK\5\6" + b"\xff" * 18, "must lie in the file, got a place outside it"),
    "name with an escape": (pickle.dumps({"a\n\x1b[31m": np.ones(2)}, 4), "names of tensors must be printable"),
    "paddle repeats": (
        pickle.dumps({f"n{i}": Z for i in range(999)}, 4),
        "must have bytes of their own, got many that repeat the same",
    ),
    "views of one storage": (_torch({f"n{i}": BIG.view(-1) for i in range(99)}), "tensors must not repeat the file's"),
    "paddle parts": (
        pickle.dumps({"UnpackBigParamInfor@@": {"w": {"OriginShape": [-1, -9], "slices": ["a"]}}, "a": np.ones(9)}, 4),
        "must have all of its parts",
    ),
    "deep tuple as a key": (P4 + b"}N" + b"\x85" * 100_000 + b"Ns.", "a key that is no plain value"),
    "deep tuple as a name": (P4 + b"N" + b"\x85" * 100_000 + NAME_X + b"\x93.", "a name that is no text"),
    "doubled tuple as a key": (P4 + b"}" + _doubled(b"t", 60) + b"Ns.", "a key that is no plain value"),
    "doubled tuple in a set": (P4 + b"(" + _doubled(b"t", 60) + b"\x91.", "a key that is no plain value"),
    "doubled list as a value": (P4 + b"}" + NAME_X + _doubled(b"l", 60) + b"s.", "x must be an array of numbers"),
    "doubled list as an id": (P4 + _doubled(b"l", 60) + b"Q.", "must hold a dict of named arrays"),
    "pairs that are none": (P4 + b"ccollections\nOrderedDict\n]K\1a\x85R.", "an entry that is no pair"),
    "copies of a dict": (
        P4
        + b"}\x94("
        + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(60_000))
        + b"u0"
        + b"ccollections\nOrderedDict\nh\0\x85R" * 30
        + b".",
        "must be made of at most 1000000 entries",
    ),
    "safetensors of no rows, endless columns": (
        _safetensors({"a": {"dtype": "F32", "shape": [0, 1 << 62], "data_offsets": [0, 0]}}, b""),
        "must have a dtype, shape and offsets",
    ),
    "safetensors overlap": (
        _safetensors({"a": F32 | {"data_offsets": [0, 8]}, "b": F32 | {"data_offsets": [4, 12]}}, bytes(12)),
        "b must begin where the tensor before it ends, at 8, got 4",
    ),
    "safetensors hole": (_safetensors({"a": F32 | {"data_offsets": [4, 12]}}, bytes(12)), "a must begin"),
    "safetensors cut off": (save(WEIGHTS)[:-8], "must hold 288 bytes of tensors, got 280"),
    "safetensors too long": (save(WEIGHTS) + bytes(8), "must hold 288 bytes of tensors, got 296"),
    "safetensors header": (_safetensors(b"{" * 60, b""), "its header must be JSON"),
    "safetensors deep header": (_safetensors(b'{"a":' + b"[" * 99999, b""), "its header must be JSON"),
    "safetensors giant header": (struct.pack("<Q", 1 << 39) + b"{}", "its header must fit the file"),
    "safetensors twice": (_safetensors(b'{"a":1,"a":2}', b""), "a name that occurs twice"),
    "safetensors shape": (_safetensors({"a": F32 | {"data_offsets": [0, 12]}}, bytes(12)), "bytes of shape [2]"),
    "safetensors giant shape": (
        _safetensors({"a": {"dtype": "F32", "shape": [1 << 40, 1 << 40], "data_offsets": [0, 8]}}, bytes(8)),
        "must have a dtype, shape and offsets",
    ),
}


def _line(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(str(path))
    assert len(text) < len(str(path)) + 400
    assert caught.value.exit_code == 3
    return text


@pytest.mark.parametrize("name", CASES)
def test_broken_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    data, words = CASES[name]
    (tmp_path / "file.pth").write_bytes(data)
    assert words in _line(tmp_path / "file.pth")


@pytest.mark.parametrize("form", ["zip", "legacy", "paddle", "npz", "bare"])
def test_a_pickle_that_runs_something_runs_nothing(tmp_path: Path, form: str) -> None:
    trace = tmp_path / "ran"
    hostile = {"a.weight": torch.ones(2), "evil": _Runs(trace)}
    arrays = {"a": np.ones(2), "evil": _Runs(trace)}
    data = {
        "zip": lambda: _torch(hostile),
        "legacy": lambda: _torch(hostile, zipped=False),
        "paddle": lambda: pickle.dumps(arrays, 4),
        "npz": lambda: _npz(a=np.array([_Runs(trace)], object)),
        "bare": lambda: pickle.dumps(_Runs(trace), 2),
    }[form]()
    (tmp_path / "file.pth").write_bytes(data)
    text = _line(tmp_path / "file.pth")
    assert not trace.exists()
    assert ("posix.system" in text and "nothing of it was run" in text) or form == "npz"
    assert pickle.loads(pickle.dumps(_Runs(trace))) == 0
    assert trace.exists(), "the trap works where it is let"


def test_places_that_are_no_files(tmp_path: Path) -> None:
    assert "got nothing" in _line(tmp_path / "absent.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "exactly one weights file, got none" in _line(tmp_path / "folder.pth")
    os.mkfifo(tmp_path / "pipe.pth")
    assert "got a device or a pipe" in _line(tmp_path / "pipe.pth")
    (tmp_path / "locked.pth").symlink_to(tmp_path / "locked.pth")
    assert "got nothing" in _line(tmp_path / "locked.pth")


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    assert "must be a path that can be read" in _line(tmp_path / ("x" * 300))
    assert "got nothing" in _line(tmp_path / "a\0b")


@pytest.mark.parametrize("name", ["empty", "npz bomb"])
def test_the_command_ends_with_3_and_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.pth").write_bytes(CASES[name][0])
    command = [sys.executable, "-m", "setr_fast.convert", str(tmp_path / "file.pth"), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1
    assert CASES[name][1] in done.stderr
    assert not (tmp_path / "out").exists()


def test_entries_of_a_zip_may_not_share_bytes(tmp_path: Path) -> None:
    """The densest zip bombs let many entries point at the same bytes."""
    data = bytearray(_npz(a=np.ones(9), b=np.ones(9)))
    directory = data.rfind(b"PK\1\2")
    struct.pack_into("<I", data, directory + 42, 0)
    (tmp_path / "file.npz").write_bytes(data)
    assert "must have bytes of its own" in _line(tmp_path / "file.npz")


def test_a_zip_entry_may_not_occur_twice(tmp_path: Path) -> None:
    data = _npz(a=np.ones(9), b=np.ones(9)).replace(b"b.npy", b"a.npy")
    (tmp_path / "file.npz").write_bytes(data)
    assert "must have different names, got a.npy twice" in _line(tmp_path / "file.npz")


def test_an_entry_that_unpacks_to_more_than_it_says(tmp_path: Path) -> None:
    data = bytearray(_npz(compressed=True, a=np.zeros(1 << 24)))
    directory = data.rfind(b"PK\1\2")
    struct.pack_into("<I", data, directory + 24, 500)
    (tmp_path / "file.npz").write_bytes(data)
    assert "must unpack to 500 bytes, got another number" in _line(tmp_path / "file.npz")


@pytest.mark.parametrize("seed", range(200))
def test_flipped_bytes_never_surprise(tmp_path: Path, seed: int) -> None:
    """Whatever a damaged file does, it is a result or one line, never another exception."""
    draw = np.random.default_rng(seed)
    forms = [
        _torch(),
        _torch(zipped=False),
        pickle.dumps({"a": np.ones((30, 30))}, 4),
        _npz(a=np.ones(9)),
        save(WEIGHTS),
    ]
    data = bytearray(forms[seed % len(forms)])
    for _ in range(int(draw.integers(1, 8))):
        data[int(draw.integers(len(data)))] = int(draw.integers(256))
    path = tmp_path / "file.pth"
    path.write_bytes(data[: int(draw.integers(1, len(data) + 1))] if seed % 3 == 0 else data)
    fault = None
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        fault = str(error)
    assert fault is None or "\n" not in fault


@pytest.mark.parametrize("form", ["zip", "legacy", "paddle", "npz", "safetensors"])
def test_files_cut_anywhere_are_refused(tmp_path: Path, form: str) -> None:
    data = {
        "zip": _torch,
        "legacy": lambda: _torch(zipped=False),
        "paddle": lambda: pickle.dumps({"a": np.ones((30, 30))}, 4),
        "npz": lambda: _npz(a=np.ones(99), b=np.ones(9)),
        "safetensors": lambda: save(WEIGHTS),
    }[form]()
    for part in range(16):
        (tmp_path / "file.pth").write_bytes(data[: len(data) * part // 16])
        _line(tmp_path / "file.pth")


BOMBS = {
    "safetensors of many lists": lambda: _safetensors(b'{"a":[' + b"[]," * 9_000_000 + b"[]]}", b""),
    "endless dicts": lambda: b"\x80\x04" + b"}" * (32 << 20),
    "memo far out": lambda: b"\x80\x04" + b"Nr\xff\xff\xff\x7f" * 9,
    "long bytes": lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 42) + b"x",
    "npz of zeros": lambda: _npz(compressed=True, a=np.zeros(1 << 26)),
    "claimed storage": lambda: _torch(zipped=False).replace(struct.pack("<q", 64), struct.pack("<q", 1 << 40)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_take_no_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bomb.pth"
    path.write_bytes(BOMBS[name]())
    code = (
        "import sys, torch\n"
        "from setr_fast.checkpoints.read import read_checkpoint\n"
        "from setr_fast.errors import CheckpointError\n"
        "def peak():\n"
        "    return int(next(x for x in open('/proc/self/status') if x.startswith('VmHWM')).split()[1])\n"
        "before = peak()\n"
        "try:\n    read_checkpoint(sys.argv[1])\n"
        "except CheckpointError as error:\n    print(error)\n"
        "print(peak() - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    message, grown = done.stdout.strip().splitlines()
    assert message.startswith(str(path))
    assert int(grown) < 200 << 10  # KiB
