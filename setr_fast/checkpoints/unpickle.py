"""A pickle reader that cannot run anything: it has no way to import a name or to call a function.

Where a pickle asks for a call, a record of that wish is returned (``Call``), and only for names that the reader of
the file format admits; the format's own code then makes sense of it. Long byte strings stay in the file (``Span``), so
that gigabytes of weights pass by without being copied. Every loop is bounded by the file's length, and what a few
bytes may grow to by ``_MAX_STEPS``.

Source: the opcodes as ``pickletools`` documents them, protocols 0 to 5.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection
from dataclasses import dataclass
from mmap import mmap
from typing import Any

from setr_fast.checkpoints.faults import DISTRUST, Unusable, shortened

_MAX_STEPS = 1_000_000  # the largest training checkpoints (weights, optimizer, logs) take a tenth of it
_LONG = 1024  # bytes; shorter strings are read at once
_LONG_TEXT = 1 << 20
_KEY_PARTS = 8  # of a tuple that is a key
_MARK = object()
Buffer = bytes | memoryview | mmap
_DICTS = {("collections", "OrderedDict"), ("collections", "defaultdict"), ("builtins", "dict"), ("__builtin__", "dict")}


@dataclass(frozen=True, slots=True)
class Global:
    """A name that the pickle refers to; it is never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(slots=True, repr=False)
class Call:
    """A call that the pickle asks for and nobody makes, with the state it wants to set on the result."""

    function: Global
    args: tuple[Any, ...]
    state: Any = None

    def __repr__(self) -> str:
        return f"a call of {self.function}"  # its arguments may be endless


@dataclass(frozen=True, slots=True)
class Span:
    """A long byte string (or UTF-8 text) that stays in the buffer."""

    start: int
    length: int
    text: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class PersistentId:
    """A reference to something outside the pickle (torch: a storage)."""

    value: Any

    def __repr__(self) -> str:
        return f"a reference to {shortened(self.value)}"


def read_pickle(
    data: Buffer, start: int, admitted: Collection[Global], persistent: Callable[[Any], Any] = PersistentId
) -> tuple[Any, int]:
    """Return the object of the pickle at ``start``, and the position after its end.

    ``persistent`` turns a persistent id into what stands for it.

    Raises: Unusable for names that are not admitted, damaged streams, and streams that grow out of proportion.
    """
    machine = _Machine(data, start, admitted, persistent)
    try:
        return machine.run(), machine.at
    except (IndexError, struct.error):
        raise Unusable("its pickle must be whole, got one that is cut off") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise Unusable(f"its pickle must be sound, got a broken one ({shortened(error)})") from None


class _Machine:
    def __init__(
        self, data: Buffer, start: int, admitted: Collection[Global], persistent_id: Callable[[Any], Any]
    ) -> None:
        self.data = data
        self.size = len(data)
        self.at = start
        self.admitted = admitted
        self.persistent_id = persistent_id
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0

    def run(self) -> Any:
        for _ in range(_MAX_STEPS):
            code = self.data[self.at]
            self.at += 1
            if code == 0x2E:  # STOP
                return self.stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise Unusable(f"its pickle must hold plain data, got the instruction {bytes([code])!r}", DISTRUST)
            step(self)
        raise Unusable(f"its pickle must take at most {_MAX_STEPS} steps, got more", "save only the state dict")

    # --- reading ---

    def take(self, count: int) -> bytes:
        if count < 0 or self.at + count > self.size:
            raise IndexError
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.at
        while self.data[end] != 0x0A:
            end += 1
            if end - self.at > _LONG_TEXT:
                raise Unusable("a line of its pickle must be short, got an endless one")
        return self.take(end + 1 - self.at)[:-1].decode("latin-1")

    def blob(self, layout: str, text: bool = False) -> bytes | str | Span:
        count = self.number(layout)
        if count > (_LONG_TEXT if text else _LONG):
            if self.at + count > self.size:
                raise IndexError
            self.at += count
            return Span(self.at - count, count, text)
        raw = self.take(count)
        return raw.decode("utf-8", "surrogatepass") if text else raw

    # --- the stack ---

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def marked(self) -> list[Any]:
        """Pop everything down to the last mark."""
        at = len(self.stack) - 1
        while self.stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise IndexError
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def name(self, module: Any, name: Any) -> Global:
        if type(module) is not str or type(name) is not str:
            raise TypeError("a name that is no text")
        found = Global(module, name)
        if found not in self.admitted:
            told = shortened(found)
            raise Unusable(f"its pickle must hold only tensors and plain values, got a reference to {told}", DISTRUST)
        return found

    # --- what instructions do ---

    def reduce(self) -> None:
        args = self.stack.pop()
        self.call(self.stack.pop(), args)

    def call(self, function: Any, args: Any) -> None:
        if not isinstance(function, Global) or not isinstance(args, tuple):
            raise Unusable("its pickle must call names with arguments, got something else", DISTRUST)
        if (function.module, function.name) in _DICTS:
            given = args[0] if args and isinstance(args[0], (list, dict)) else []
            self.copied += len(given)
            if self.copied > _MAX_STEPS:
                raise Unusable(f"its dicts must be made of at most {_MAX_STEPS} entries, got more", DISTRUST)
            pairs = given.items() if isinstance(given, dict) else (_two(pair) for pair in given)
            self.push({_key(key): value for key, value in pairs})
        else:
            self.push(Call(function, args))

    def new(self, with_keywords: bool) -> None:
        keywords = self.stack.pop() if with_keywords else {}
        args = self.stack.pop()
        if keywords:
            raise Unusable("its pickle must make objects without keywords, got some", DISTRUST)
        self.call(self.stack.pop(), args)

    def build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        if isinstance(target, Call):
            target.state = state
        elif not isinstance(target, dict):  # a dict's attributes (torch: _metadata) say nothing about the weights
            raise Unusable("its pickle must set the state of objects, got that of a plain value", DISTRUST)

    def append(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("items for something that is no list")
        target.extend(items)

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict) or len(items) % 2:
            raise TypeError("entries for something that is no dict")
        target.update(_pairs(items))

    def add_items(self) -> None:
        items = [_key(item) for item in self.marked()]
        self.stack[-1].update(items)

    def get(self, index: int) -> None:
        self.push(self.memo[index])

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def integer(self) -> None:
        text = self.line()
        self.push({"00": False, "01": True}[text] if text in ("00", "01") else int(text))

    def persistent(self) -> None:
        self.push(self.persistent_id(self.stack.pop()))

    def stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.push(self.name(module, name))

    def top(self, count: int) -> None:
        items = tuple(self.stack[len(self.stack) - count :])
        if len(items) != count:
            raise IndexError
        del self.stack[len(self.stack) - count :]
        self.push(items)


def _pairs(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(map(_key, items[::2]), items[1::2], strict=True))


def _two(pair: Any) -> Any:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        raise TypeError("an entry that is no pair")
    return pair


def _key(value: Any) -> Any:
    """Return a key of a dict or set that may be hashed: Python does it by recursion, in time without bound."""
    parts = value if isinstance(value, tuple) and len(value) <= _KEY_PARTS else (value,)
    if not all(part is None or isinstance(part, (str, bytes, int, float, Global, Span)) for part in parts):
        raise TypeError("a key that is no plain value")
    return value


def _long(m: _Machine, layout: str) -> int:
    return int.from_bytes(m.take(m.number(layout)), "little", signed=True)


_STEPS: dict[int, Callable[[_Machine], Any]] = {
    ord(code): step
    for code, step in {
        "\x80": lambda m: m.take(1),  # PROTO
        "\x95": lambda m: m.take(8),  # FRAME
        "(": lambda m: m.push(_MARK),
        "0": lambda m: m.stack.pop(),
        "1": lambda m: m.marked(),
        "2": lambda m: m.push(m.stack[-1]),
        "N": lambda m: m.push(None),
        "\x88": lambda m: m.push(True),
        "\x89": lambda m: m.push(False),
        "I": lambda m: m.integer(),
        "L": lambda m: m.push(int(m.line().rstrip("L"))),
        "J": lambda m: m.push(m.number("<i")),
        "K": lambda m: m.push(m.number("<B")),
        "M": lambda m: m.push(m.number("<H")),
        "\x8a": lambda m: m.push(_long(m, "<B")),
        "\x8b": lambda m: m.push(_long(m, "<i")),
        "F": lambda m: m.push(float(m.line())),
        "G": lambda m: m.push(m.number(">d")),
        "T": lambda m: m.push(str(m.take(m.number("<i")), "latin-1")),  # texts of Python 2
        "U": lambda m: m.push(str(m.take(m.number("<B")), "latin-1")),
        "V": lambda m: m.push(m.line().encode("latin-1").decode("raw-unicode-escape")),
        "X": lambda m: m.push(m.blob("<I", text=True)),
        "\x8c": lambda m: m.push(m.blob("<B", text=True)),
        "\x8d": lambda m: m.push(m.blob("<Q", text=True)),
        "B": lambda m: m.push(m.blob("<I")),
        "C": lambda m: m.push(m.blob("<B")),
        "\x8e": lambda m: m.push(m.blob("<Q")),
        "\x96": lambda m: m.push(m.blob("<Q")),
        "]": lambda m: m.push([]),
        "}": lambda m: m.push({}),
        ")": lambda m: m.push(()),
        "\x8f": lambda m: m.push(set()),
        "l": lambda m: m.push(m.marked()),
        "d": lambda m: m.push(_pairs(m.marked())),
        "t": lambda m: m.push(tuple(m.marked())),
        "\x85": lambda m: m.top(1),
        "\x86": lambda m: m.top(2),
        "\x87": lambda m: m.top(3),
        "\x91": lambda m: m.push(frozenset(map(_key, m.marked()))),
        "a": lambda m: m.append([m.stack.pop()]),
        "e": lambda m: m.append(m.marked()),
        "s": lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
        "u": lambda m: m.set_items(m.marked()),
        "\x90": lambda m: m.add_items(),
        "g": lambda m: m.get(int(m.line())),
        "h": lambda m: m.get(m.number("<B")),
        "j": lambda m: m.get(m.number("<I")),
        "p": lambda m: m.put(int(m.line())),
        "q": lambda m: m.put(m.number("<B")),
        "r": lambda m: m.put(m.number("<I")),
        "\x94": lambda m: m.put(len(m.memo)),
        "c": lambda m: m.push(m.name(m.line(), m.line())),
        "\x93": lambda m: m.stack_global(),
        "R": lambda m: m.reduce(),
        "\x81": lambda m: m.new(with_keywords=False),
        "\x92": lambda m: m.new(with_keywords=True),
        "b": lambda m: m.build(),
        "Q": lambda m: m.persistent(),
    }.items()
}
