"""constraints.txt: versions that can be installed together, also beside the torch that the package index has."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
INDEXED = {"2.13.0": ["triton==3.7.1", "setuptools>=77.0.3", "sympy>=1.13.3", "networkx>=2.5.1", "fsspec>=0.8.5"]}
"""What the package index's Linux build of torch asks for, by its version, read from its metadata. The CPU-only build
asks for less: with it, pins that nobody else can install go unnoticed."""


def _pins() -> dict[str, str]:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return {canonicalize_name(name): pin for name, _, pin in (line.partition("==") for line in lines if line)}


def test_the_pins_are_what_torch_of_the_package_index_asks_for() -> None:
    pins = _pins()
    assert pins["torch"] in INDEXED, "write down what this torch asks for: pip download torch==..., its METADATA"
    wrong = [text for text in INDEXED[pins["torch"]] if not _allows(Requirement(text), pins)]
    assert not wrong, "pip install -c constraints.txt torch would fail"


def test_the_pins_suit_each_other() -> None:
    pins, held = _pins(), 0
    for name, pin in pins.items():
        try:
            needs = requires(name) or []
            if version(name) != pin:
                continue
        except PackageNotFoundError:
            continue
        for text in needs:
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                assert _allows(requirement, pins), f"{name} {pin} needs {text}"
                held += 1
    assert held > 20, "too few of the pinned packages are installed to tell"


def _allows(requirement: Requirement, pins: dict[str, str]) -> bool:
    pin = pins.get(canonicalize_name(requirement.name))
    return pin is None or requirement.specifier.contains(pin, prereleases=True)
