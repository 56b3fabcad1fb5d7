"""Configs of mmcv and mmengine (Python files), read as literals: nothing in them is executed.

What is no literal (a call other than ``dict(...)``, an import, a class) is left out, as if it were not written.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping
from typing import Any

from setr_fast.checkpoints.faults import Unusable, shortened

_MAX_LENGTH = 10_000
_MAX_VALUES = 100_000
_MISSING = object()
_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
}


def parse_python(text: str, base: Callable[[list[str]], dict[str, Any]] = lambda names: {}) -> dict[str, Any]:
    """Return the top-level names of a config and their values, laid over what its ``_base_`` files give.

    ``base`` is called with the texts of ``_base_`` and returns their merged values.

    Raises: Unusable for what is no Python, or too much.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise Unusable(
            f"must be a config in Python, got {shortened(error) or type(error).__name__}",
            "give the values as overrides",
        ) from None
    names: dict[str, Any] = {}
    inherited: dict[str, Any] = {}
    for node in tree.body:
        if not isinstance(node, ast.Assign) or len(node.targets) != 1 or not isinstance(node.targets[0], ast.Name):
            continue
        name = node.targets[0].id
        try:
            value = _value(node.value, {**names, "_base_": inherited})
        except RecursionError:
            value = _MISSING
        if name == "_base_":
            files = [value] if isinstance(value, str) else value if isinstance(value, list) else []
            inherited = base([file for file in files if isinstance(file, str)])
        elif value is not _MISSING:
            names[name] = value
    bounded(names)
    return merged(inherited, names)


def bounded(value: Any) -> None:
    """Refuse what is reached too often to be walked through: names, aliases and products make few bytes long.

    Raises: Unusable.
    """
    pending: list[Any] = [value]
    for _ in range(_MAX_VALUES):
        if not pending:
            return
        item = pending.pop()
        if isinstance(item, dict):
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
    raise Unusable(f"must hold at most {_MAX_VALUES} values, got more", "give the values as overrides")


def merged(under: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one config over another as mmcv and PaddleSeg do: dicts entry by entry, all else replaced.

    ``_delete_=True`` (mmcv) and ``_inherited_: False`` (PaddleSeg) replace a dict as a whole.
    """
    result = dict(under)
    for key, value in over.items():
        if key in ("_delete_", "_inherited_"):
            continue
        if isinstance(value, dict):
            below = result.get(key)
            fresh = value.get("_delete_") is True or value.get("_inherited_") is False
            result[key] = merged(below if isinstance(below, dict) and not fresh else {}, value)
        else:
            result[key] = value
    return result


def _value(node: ast.expr, names: Mapping[str, Any]) -> Any:
    """Return the value of an expression of literals and names, or _MISSING."""
    match node:
        case ast.Constant(value=value):
            return value
        case ast.Name(id=name):
            return names.get(name, _MISSING)
        case ast.List(elts=items):
            return _items(items, names)
        case ast.Tuple(elts=items):
            return tuple(_items(items, names))
        case ast.Dict(keys=keys, values=values):
            pairs = [
                (_MISSING if key is None else _value(key, names), _value(value, names))
                for key, value in zip(keys, values, strict=True)
            ]
            return {k: v for k, v in pairs if isinstance(k, (str, int)) and v is not _MISSING}
        case ast.Call(func=ast.Name(id="dict"), args=[], keywords=keywords):
            result: dict[str, Any] = {}
            for keyword in keywords:
                value = _value(keyword.value, names)
                if keyword.arg is None and isinstance(value, dict):
                    result |= value
                elif keyword.arg is not None and value is not _MISSING:
                    result[keyword.arg] = value
            return result
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            value = _value(operand, names)
            return -value if isinstance(value, (int, float)) else _MISSING
        case ast.BinOp(left=left, op=op, right=right):
            return _binary(_OPERATORS.get(type(op)), _value(left, names), _value(right, names))
        case ast.Attribute(value=inner, attr=key) | ast.Subscript(value=inner, slice=ast.Constant(value=key)):
            return _entry(_value(inner, names), key)
        case ast.Set(elts=[ast.Set(elts=[inner])]):  # {{_base_.name}}
            return _value(inner, names)
    return _MISSING


def _entry(holder: Any, key: Any) -> Any:
    try:
        return holder[key] if isinstance(holder, (dict, list, tuple)) else _MISSING
    except (KeyError, IndexError, TypeError):
        return _MISSING


def _items(nodes: list[ast.expr], names: Mapping[str, Any]) -> list[Any]:
    return [value for node in nodes if (value := _value(node, names)) is not _MISSING]


def _binary(apply: Callable[[Any, Any], Any] | None, left: Any, right: Any) -> Any:
    numbers = all(isinstance(side, (int, float)) and abs(side) < 1e15 for side in (left, right))
    lists = isinstance(left, list) and isinstance(right, (list, int))
    if lists and len(left) * (right if isinstance(right, int) else 1) > _MAX_LENGTH:
        return _MISSING
    if apply is None or not (numbers or lists):
        return _MISSING
    try:
        return apply(left, right)
    except (TypeError, ZeroDivisionError):
        return _MISSING
