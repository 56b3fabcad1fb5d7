"""Masks of class ids out of COCO annotations (instances or stuff, .json): polygons and run lengths, rasterised.

Where objects overlap, the smaller one is on top. Category ids become class ids 1, 2, ... in the order of the ids; 0 is
background. Polygons are filled by Pillow's rule: a pixel on the outline belongs to the object, whereas pycocotools
rounds outlines its own way, so borders may differ by a pixel.

Source: github cocodataset/cocoapi, common/maskApi.c (run lengths: columns first, differences of differences).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from setr_fast.data.faults import Fault, FaultError
from setr_fast.data.formats.signatures import MAX_PIXELS
from setr_fast.data.layouts.lists import leads_outside, split_name
from setr_fast.data.prepare.steps import Job, index_png

Annotations = dict[str, Any]


def coco_jobs(annotations: Path, out: Path) -> Iterator[Job]:
    """Yield the masks to write into ``out``, one per picture, and beside them ``classes.csv``.

    Raises: FaultError for a file that is no COCO annotation.
    """
    content = _content(annotations)
    categories = sorted(content["categories"], key=lambda entry: entry["id"])
    if len(categories) > 253:
        raise _fault(annotations, f"categories must be 253 or fewer, got {len(categories)}")
    classes = {entry["id"]: index for index, entry in enumerate(categories, 1)}
    names = ["background", *(str(entry["name"]) for entry in categories)]
    table = "id,name\n" + "".join(f"{index},{_quoted(name)}\n" for index, name in enumerate(names))
    yield Job(out / "classes.csv", (annotations,), partial(str.encode, table))
    objects: dict[Any, list[Annotations]] = {}
    for entry in content["annotations"]:
        objects.setdefault(entry.get("image_id"), []).append(entry)
    for image in content["images"]:
        name = str(image["file_name"])
        if wrong := leads_outside(name):
            raise _fault(annotations, f"file_name must {wrong}, got '{name}'")
        make = partial(_mask, annotations, image, objects.get(image["id"], []), classes)
        yield Job(out / f"{split_name(name)[0]}.png", (annotations,), make)


def _content(path: Path) -> Annotations:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        rule = f"must be a file that can be read, got '{error.strerror}'"
        raise FaultError(Fault(path, rule, "check the path")) from None
    except (ValueError, RecursionError) as error:
        raise _fault(path, f"must be JSON, got '{type(error).__name__}'") from None
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in keys):
        raise _fault(path, "must hold the lists images, annotations and categories, got others")
    return content


def _mask(path: Path, image: Annotations, objects: list[Annotations], classes: dict[int, int]) -> bytes:
    height, width = int(image["height"]), int(image["width"])
    if not 0 < height * width <= MAX_PIXELS:
        raise _fault(path, f"picture {image['file_name']} must have 1 to {MAX_PIXELS} pixels, got {width} x {height}")
    mask = np.zeros((height, width), np.uint8)
    filled = []
    for entry in objects:
        if entry.get("category_id") not in classes:
            raise _fault(path, f"annotation {entry.get('id')} must be of a category, got {entry.get('category_id')}")
        area = rasterise(path, entry.get("segmentation"), height, width)
        filled.append((int(area.sum()), classes[entry["category_id"]], area))
    for _, value, area in sorted(filled, key=lambda item: -item[0]):
        mask[area] = value
    return index_png(mask)


def rasterise(path: Path, segmentation: Any, height: int, width: int) -> np.ndarray:
    """Return the pixels of one object, bool [H, W]: polygons, or run lengths as a list or as COCO's text."""
    if isinstance(segmentation, dict):
        counts = segmentation.get("counts")
        if list(segmentation.get("size", [])) != [height, width]:
            raise _fault(path, f"run lengths must be of {height} x {width} pixels, got {segmentation.get('size')}")
        runs = _runs(counts) if isinstance(counts, str) else [int(count) for count in counts or []]
        if sum(runs) != height * width or min(runs, default=-1) < 0:
            raise _fault(path, f"run lengths must add up to {height * width}, got {sum(runs)}")
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        return flat.reshape(width, height).T
    if not isinstance(segmentation, list) or not all(isinstance(part, list) for part in segmentation):
        raise _fault(path, f"segmentation must be polygons or run lengths, got {type(segmentation).__name__}")
    canvas = Image.new("1", (width, height))
    draw = ImageDraw.Draw(canvas)
    for part in segmentation:
        if len(part) < 6 or len(part) % 2:
            raise _fault(path, f"polygon must have three points or more, x and y each, got {len(part)} numbers")
        draw.polygon([float(value) for value in part], fill=1, outline=1)
    return np.array(canvas)


def _runs(text: str) -> list[int]:
    """Return run lengths from COCO's text: 5 bits a letter, each number relative to the one two before it."""
    runs: list[int] = []
    place = 0
    while place < len(text):
        value, shift, more = 0, 0, True
        while more and place < len(text):
            bits = ord(text[place]) - 48
            value |= (bits & 31) << shift
            more = bool(bits & 32)
            place, shift = place + 1, shift + 5
            if not more and bits & 16:
                value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if "," in name or '"' in name else name


def _fault(path: Path, what: str) -> FaultError:
    return FaultError(Fault(path, what, "correct the annotation file"))
