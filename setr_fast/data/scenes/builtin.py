"""The built-in data set: drawn landscapes with objects, so that training starts with nothing to download.

A scene has a sky, ground, often water, and four to nine objects that stand on the ground (far ones smaller, higher up,
hazier and partly hidden). The classes share their colours: what tells them apart is texture, outline and
where they are. Scene i of a split is a function of (seed, split, i) alone, so it does not change with the number of
scenes, and splits never share one.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from setr_fast.data.classes import IGNORED, ClassTable
from setr_fast.data.draws import Draws, philox, word
from setr_fast.data.scenes.outlines import Outline, ball, building, bush, pole, tent
from setr_fast.data.scenes.textures import Plane, clouds, grain, ripples, soil, value_noise
from setr_fast.errors import ConfigError

SKY, GROUND, WATER, BUILDING, BALL, TENT, POLE, BUSH = range(8)
CLASSES = (
    ("sky", (135, 190, 235)),
    ("ground", (155, 125, 85)),
    ("water", (30, 90, 180)),
    ("building", (120, 120, 130)),
    ("ball", (230, 60, 60)),
    ("tent", (240, 160, 30)),
    ("pole", (250, 235, 60)),
    ("bush", (50, 140, 60)),
)

_CACHE_BYTES = 96 * 2**20
"""Drawn scenes are kept where the whole set fits in this much memory."""

_COLOURS = (  # anchors that all surfaces choose from; each class has its own weights, and every class overlaps others
    (105, 150, 200),  # blue
    (150, 150, 152),  # grey
    (205, 150, 120),  # pink
    (100, 130, 80),  # green
    (135, 105, 78),  # brown
    (195, 178, 140),  # sand
    (170, 85, 70),  # red
    (80, 86, 96),  # dark
    (215, 215, 210),  # white
    (220, 175, 75),  # yellow
    (55, 105, 125),  # teal
)
_WEIGHTS = {  # in the order above; the favourite of each class has about half
    SKY: (12, 3, 2, 0, 0, 1, 0, 1, 3, 1, 0),
    GROUND: (0, 2, 1, 3, 12, 4, 1, 1, 1, 1, 0),
    WATER: (4, 1, 1, 2, 1, 0, 0, 2, 1, 0, 11),
    BUILDING: (1, 11, 1, 1, 1, 3, 2, 2, 2, 0, 1),
    BALL: (2, 1, 1, 1, 1, 1, 11, 1, 2, 2, 1),
    TENT: (2, 1, 1, 2, 1, 2, 2, 1, 1, 11, 1),
    POLE: (1, 2, 1, 0, 1, 1, 3, 2, 11, 2, 1),
    BUSH: (0, 1, 1, 12, 3, 1, 2, 2, 0, 1, 1),
}
_OBJECTS = {BUILDING: 3.0, BALL: 4.0, TENT: 4.0, POLE: 4.0, BUSH: 3.5}
_OUTLINES = {BUILDING: building, BALL: ball, TENT: tent, POLE: pole, BUSH: bush}


class BuiltinScenes:
    """A data set of drawn scenes."""

    def __init__(self, count: int, size: int, seed: int, split: str) -> None:
        """Prepare ``count`` scenes of ``size x size`` pixels; nothing is drawn yet.

        Raises: ConfigError if there are no scenes, or they are under 32 pixels a side.
        """
        if count < 1 or size < 32:
            raise ConfigError(
                f"built-in scenes: count and size must be at least 1 and 32, got {count} and {size}; "
                "see --data.builtin-train, --data.builtin-val and --data.builtin-size"
            )
        self.classes = ClassTable(
            names=tuple(name for name, _ in CLASSES),
            palette=tuple(colour for _, colour in CLASSES),
            ids=tuple(range(len(CLASSES))),
            ignored=frozenset({IGNORED}),
        )
        self.names: Sequence[str] = [f"{split}_{index:05d}" for index in range(count)]
        self._size = size
        self._seed = seed
        self._split = split
        self._keep = count * size * size * 4 <= _CACHE_BYTES
        self._drawn: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}

    def __len__(self) -> int:
        return len(self.names)

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_drawn": {}}  # a worker draws its own: less to send than what is drawn

    def read(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """Return scene ``index``: picture [S, S, 3] RGB and labels [S, S]. Both belong to the caller."""
        if not 0 <= index < len(self):
            raise IndexError(f"scene {index} of {len(self)}")
        if index not in self._drawn:
            scene = draw_scene(self._size, Draws(philox(self._seed, "scene", index, word(self._split))))
            if not self._keep:
                return scene
            self._drawn[index] = scene
        image, label = self._drawn[index]
        return image.copy(), label.copy()


def draw_scene(size: int, draws: Draws) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one scene: land first, objects from far to near over it, then light and camera."""
    canvas = _Canvas(size, draws)
    canvas.land()
    for base in sorted(draws.uniform(0.02, 1.0) for _ in range(draws.integer(4, 9))):
        canvas.stand(base)
    return canvas.photograph(), canvas.label


def _colour(draws: Draws, kind: int) -> Plane:
    """Return a colour [3] that a surface of this class may have."""
    anchor = _COLOURS[draws.pick(_WEIGHTS[kind])]
    shift = draws.uniform(-25, 25)
    return np.array([value + shift + draws.uniform(-15, 15) for value in anchor], np.float32)


class _Canvas:
    """A scene while it is drawn: picture [3, S, S] float32 in grey levels, and its labels."""

    def __init__(self, size: int, draws: Draws) -> None:
        self.size = size
        self.draws = draws
        self.image = np.empty((3, size, size), np.float32)
        self.label = np.full((size, size), SKY, np.uint8)
        self.y = np.arange(size, dtype=np.float32)[:, None]
        self.x = np.arange(size, dtype=np.float32)[None, :]
        self.unit = max(size / 14, 2.5)
        self.horizon = draws.uniform(0.22, 0.5) * size
        self.light = 1.0 if draws.chance(0.5) else -1.0  # which side the light comes from
        self.haze = draws.uniform(0.0, 0.45)
        self.air = _colour(draws, SKY)

    def land(self) -> None:
        """Paint sky, ground and water over the whole canvas."""
        draws, size = self.draws, self.size
        surface = self.air[:, None, None] + clouds(draws, size, size, self.unit)
        self.image[:] = surface + (self.y - self.horizon) * (draws.uniform(-0.2, 0.5) * 90 / size)
        hills = value_noise(draws, 1, size, 1.0, size / draws.uniform(1.5, 5)) * (draws.uniform(0, 0.06) * size)
        skyline = self.x * draws.uniform(-0.12, 0.12) + hills
        below = self.y > skyline + (self.horizon - 0.5 * float(skyline[0, 0] + skyline[0, -1]))
        self._cover(below, GROUND, soil(draws, size, size, self.unit))
        if draws.chance(0.7):
            self._cover(below & self._lake(), WATER, ripples(draws, size, size, self.unit))
        if draws.chance(0.3):
            self.label[_ring(below, 1)] = IGNORED

    def _lake(self) -> NDArray[np.bool_]:
        """Return where water may be: a sea up to the horizon, or a pond."""
        draws, size = self.draws, self.size
        depth = size - self.horizon
        if draws.chance(0.5):
            shore = value_noise(draws, 1, size, 1.0, size / draws.uniform(2, 6)) * (0.12 * depth)
            shore = shore + (self.x - size / 2) * draws.uniform(-0.25, 0.25)
            return self.y < shore + (self.horizon + draws.uniform(0.2, 0.75) * depth)
        centre_y, centre_x = self.horizon + draws.uniform(0.3, 0.9) * depth, draws.uniform(0, 1) * size
        radius_y, radius_x = draws.uniform(0.15, 0.4) * depth, draws.uniform(0.2, 0.5) * size
        dy, dx = (self.y - centre_y) * (1 / radius_y), (self.x - centre_x) * (1 / radius_x)
        return dy * dy + dx * dx < 1

    def _cover(self, where: NDArray[np.bool_], kind: int, texture: Plane) -> None:
        colour = _colour(self.draws, kind)
        if kind == WATER:  # water mirrors the sky to some degree
            mirror = self.draws.uniform(0, 0.6)
            colour = colour + (self.air - colour) * mirror
        np.copyto(self.image, colour[:, None, None] + texture, where=where)
        self.label[where] = kind

    def stand(self, base: float) -> None:
        """Put one object on the ground; ``base`` is 0 at the horizon and 1 at the lower edge."""
        draws, size = self.draws, self.size
        kind = list(_OBJECTS)[draws.pick(list(_OBJECTS.values()))]
        foot = self.horizon + base * (size * 1.05 - self.horizon)
        scale = (0.45 + 0.75 * base) * size
        outline = _OUTLINES[kind](draws, foot, draws.uniform(-0.05, 1.05) * size, scale, self.light)
        if kind == BALL and draws.chance(0.3):  # a balloon
            outline = ball(draws, draws.uniform(0.15, 0.6) * size, draws.uniform(0, 1) * size, scale, self.light)
        else:
            self._shadow(outline)
        self._paint(outline, kind, (1 - base) * self.haze)

    def _box(self, outline: Outline, margin: int) -> tuple[slice, slice] | None:
        """Return the part of the canvas that the outline can touch, None if it lies outside."""
        y0, y1 = max(int(outline.top) - margin, 0), min(int(outline.bottom) + 1 + margin, self.size)
        x0, x1 = max(int(outline.left) - margin, 0), min(int(outline.right) + 1 + margin, self.size)
        return (slice(y0, y1), slice(x0, x1)) if y0 < y1 and x0 < x1 else None

    def _shadow(self, outline: Outline) -> None:
        reach = (outline.right - outline.left) * 0.5
        flat = Outline(
            outline.bottom - 0.22 * reach,
            outline.bottom + 0.22 * reach,
            outline.left - 0.35 * reach * (1 + self.light),
            outline.right + 0.35 * reach * (1 - self.light),
        )
        box = self._box(flat, 1)
        if box is None:
            return
        dy = (self.y[box[0]] - (flat.bottom + flat.top) / 2) * (2 / (flat.bottom - flat.top))
        dx = (self.x[:, box[1]] - (flat.right + flat.left) / 2) * (2 / (flat.right - flat.left))
        self.image[:, box[0], box[1]] *= np.where(dy * dy + dx * dx < 1, np.float32(0.68), np.float32(1))

    def _paint(self, outline: Outline, kind: int, fade: float) -> None:
        """Paint an object: its two colours mixed by its pattern, its shading, the haze before it, its border."""
        draws = self.draws
        border = min(draws.pick((4, 4, 2)), 1 if self.size < 96 else 2)
        box = self._box(outline, 2)
        first, second = _colour(draws, kind), _colour(draws, kind)
        if box is None:
            return
        inside, mix, shade = outline.draw(self.y[box[0]], self.x[:, box[1]])
        pixels = first[:, None, None] + (second - first)[:, None, None] * mix + shade
        pixels += (self.air[:, None, None] - pixels) * fade
        np.copyto(self.image[:, box[0], box[1]], pixels, where=inside)
        label = self.label[box]
        label[inside] = kind
        if border:  # as in painted masks, where nobody is sure of the edges
            label[_ring(inside, border)] = IGNORED

    def photograph(self) -> NDArray[np.uint8]:
        """Return the picture as a camera sees it [S, S, 3]: uneven light, colour cast, blur, noise, 8 bits."""
        draws, size = self.draws, self.size
        tilt_y, tilt_x = draws.uniform(-0.35, 0.35) / size, draws.uniform(-0.35, 0.35) / size
        gain = (self.y - size / 2) * tilt_y + (self.x - size / 2) * tilt_x
        gain += draws.uniform(0.75, 1.15)
        for channel in range(3):
            self.image[channel] *= gain * draws.uniform(0.9, 1.1)
        image = np.ascontiguousarray(self.image.transpose(1, 2, 0))
        image += (_blurred(image) - image) * draws.uniform(0.1, 0.9)
        image += grain(draws, size, size * 3).reshape(size, size, 3) * draws.uniform(3, 14)
        return np.clip(image, 0, 255).astype(np.uint8)


def _blurred(image: Plane) -> Plane:
    """Return the picture under a 3x3 binomial filter; its outermost pixels stay as they are."""
    out = image.copy()
    rows = (image[:-2] + image[2:]) * 0.5
    rows = (rows + image[1:-1]) * 0.5
    columns = (rows[:, :-2] + rows[:, 2:]) * 0.5
    out[1:-1, 1:-1] = (columns + rows[:, 1:-1]) * 0.5
    return out


def _ring(inside: NDArray[np.bool_], width: int) -> NDArray[np.bool_]:
    """Return the pixels just outside a shape, and for width 2 those just inside as well."""
    touched = inside.copy()
    touched[1:] |= inside[:-1]
    touched[:-1] |= inside[1:]
    touched[:, 1:] |= inside[:, :-1]
    touched[:, :-1] |= inside[:, 1:]
    if width == 1:
        return touched & ~inside
    core = inside.copy()
    core[1:] &= inside[:-1]
    core[:-1] &= inside[1:]
    core[:, 1:] &= inside[:, :-1]
    core[:, :-1] &= inside[:, 1:]
    return touched & ~core
