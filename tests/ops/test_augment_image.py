"""augment_image: the same bits as OpenCV, from the reference and from the compiled routine."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from setr_fast.errors import ShapeError
from setr_fast.ops import OPS, _native, augment_image
from setr_fast.ops.augment_image import hsv_to_rgb, rgb_to_hsv

LEVELS = torch.arange(256, dtype=torch.float32).repeat(3, 1)
OP = OPS["augment_image"]
side = st.integers(1, 40)
needs_extension = pytest.mark.skipif(bool(_native.reason()), reason=f"no extension: {_native.reason()}")
BACKENDS = ["reference", pytest.param("native", marks=needs_extension)]


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def table(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, 256, dtype=np.uint8))


def resized(backend: str, image: Tensor, height: int, width: int) -> np.ndarray:
    """Only the resize, back as uint8 [h, w, 3]."""
    out = OP.run(backend, image, [height, width], [0, 0], [height, width], False, None, None, 0, None, LEVELS)
    return out.permute(1, 2, 0).to(torch.uint8).numpy()


@st.composite
def arguments(draw: st.DrawFn) -> tuple:
    height, width, seed = draw(side), draw(side), draw(st.integers(0, 99))
    size = [height, width] if draw(st.booleans()) else [draw(side), draw(side)]
    if draw(st.integers(0, 5)) == 0:
        height, width = 2 * size[0], 2 * size[1]
    offset, crop = [draw(st.integers(0, 45)), draw(st.integers(0, 45))], [draw(side), draw(side)]
    tables = [table(seed + i) if draw(st.booleans()) else None for i in range(3)]
    hue = draw(st.sampled_from([0, 0, 1, -18, 17, 179, 180, -1000]))
    normalise = torch.randn(3, 256, generator=torch.Generator().manual_seed(seed))
    return picture(height, width, seed), size, offset, crop, draw(st.booleans()), *tables[:2], hue, tables[2], normalise


@needs_extension
@given(arguments())
@settings(max_examples=200, deadline=None)
def test_native_gives_the_bits_of_the_reference(args: tuple) -> None:
    assert torch.equal(OP.run("native", *args), OP.run("reference", *args))


@pytest.mark.parametrize("backend", BACKENDS)
def test_resize_equals_opencv_bit_for_bit(backend: str) -> None:
    cv2 = pytest.importorskip("cv2")
    rng = np.random.default_rng(3)
    for trial in range(150):
        height, width, new_height, new_width = (int(n) for n in rng.integers(1, 90, 4))
        if trial % 5 == 0:
            height, width = 2 * new_height, 2 * new_width
        if trial % 7 == 0:
            new_width = width
        image = picture(height, width, trial)
        expected = cv2.resize(image.numpy(), (new_width, new_height), interpolation=cv2.INTER_LINEAR)
        got = resized(backend, image, new_height, new_width)
        assert np.array_equal(got, expected.reshape(got.shape)), (height, width, new_height, new_width)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("source", "size"), [((360, 480), (493, 658)), ((512, 683), (257, 343)), ((300, 400), (150, 200))]
)
def test_resize_equals_opencv_at_real_sizes(backend: str, source: tuple[int, int], size: tuple[int, int]) -> None:
    cv2 = pytest.importorskip("cv2")
    image = picture(*source)
    expected = cv2.resize(image.numpy(), size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(resized(backend, image, *size), expected)


def test_rgb_to_hsv_equals_opencv_for_every_colour() -> None:
    cv2 = pytest.importorskip("cv2")
    for red in range(0, 256, 17):
        green, blue = np.mgrid[0:256, 0:256]
        rgb = np.stack((np.full_like(green, red), green, blue), -1).astype(np.uint8)
        assert np.array_equal(rgb_to_hsv(torch.from_numpy(rgb)).numpy(), cv2.cvtColor(rgb, cv2.COLOR_RGB2HSV))


def test_hsv_to_rgb_equals_opencv_for_every_colour() -> None:
    """Vector code of OpenCV with FMA: the same. Without FMA it may differ, by one level and rarely."""
    cv2 = pytest.importorskip("cv2")
    different = 0
    for hue in range(0, 180):
        saturation, value = np.mgrid[0:256:3, 0:256]
        hsv = np.stack((np.full_like(value, hue), saturation, value), -1).astype(np.uint8)
        gap = np.abs(hsv_to_rgb(torch.from_numpy(hsv)).numpy().astype(int) - cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB))
        assert gap.max() <= 1
        different += int((gap > 0).sum())
    if cv2.checkHardwareSupport(12):  # CV_CPU_FMA3, which the Python module does not name
        assert different == 0
    assert different <= 180 * 86 * 256 * 3 // 10_000


@needs_extension
def test_native_colour_equals_the_reference_for_every_hue_and_saturation() -> None:
    """All (h, s, v) pass through: hues by turning a colour of each sector, saturations by the table."""
    value, saturation = np.mgrid[0:256, 0:256]
    colours = torch.from_numpy(np.stack((value, value - value * saturation // 255, value // 2), -1).astype(np.uint8))
    for hue in range(1, 180, 7):
        args = (colours, [256, 256], [0, 0], [256, 256], False, None, table(hue), hue, None, LEVELS)
        assert torch.equal(OP.run("native", *args), OP.run("reference", *args))


@pytest.mark.parametrize("backend", BACKENDS)
def test_own_size_returns_the_picture_itself(backend: str) -> None:
    image = picture(13, 17)
    assert np.array_equal(resized(backend, image, 13, 17), image.numpy())


@pytest.mark.parametrize("backend", BACKENDS)
def test_flip_mirrors_the_picture_and_leaves_padding_right_and_below(backend: str) -> None:
    image = picture(4, 3)
    args = ([4, 3], [1, 0], [5, 6], True, None, None, 0, None, LEVELS + 1)
    out = OP.run(backend, image, *args)
    assert torch.equal(out[:, :3, :3], image[1:].flip(1).permute(2, 0, 1).float() + 1)
    assert not out[:, 3:].any()
    assert not out[:, :, 3:].any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_crop_of_the_resized_picture_is_the_crop_of_the_whole(backend: str) -> None:
    image = picture(31, 23)
    whole = resized(backend, image, 47, 50)
    part = OP.run(backend, image, [47, 50], [11, 7], [20, 30], False, None, None, 0, None, LEVELS)
    assert np.array_equal(part.permute(1, 2, 0).numpy(), whole[11:31, 7:37])


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_come_in_the_stated_order(backend: str) -> None:
    image, pre, post, saturation = picture(5, 6), table(1), table(2), table(3)
    out = OP.run(backend, image, [5, 6], [0, 0], [5, 6], False, pre, saturation, 5, post, LEVELS)
    hsv = rgb_to_hsv(pre[image.long()]).long()
    hsv = torch.stack(((hsv[..., 0] + 5) % 180, saturation[hsv[..., 1]].long(), hsv[..., 2]), -1).to(torch.uint8)
    assert torch.equal(out, post[hsv_to_rgb(hsv).long()].permute(2, 0, 1).float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_pictures_are_read_as_they_look(backend: str) -> None:
    wide = picture(12, 20)
    args = ([9, 11], [0, 0], [9, 11], False, None, None, 3, None, LEVELS)
    for view in (wide[::2, 1:14], wide.transpose(0, 1), wide.flip(2)):
        assert torch.equal(OP.run(backend, view, *args), OP.run("reference", view.contiguous(), *args))


@needs_extension
@given(arguments())
@settings(max_examples=50, deadline=None)
def test_native_writes_every_output_value_and_nothing_else(args: tuple) -> None:
    module, (height, width) = _native.load(), args[3]
    buffer = np.full(3 * height * width + 128, np.nan, dtype=np.float32)
    out = buffer[64:-64].reshape(3, height, width)
    arrays = [a.numpy() if isinstance(a, Tensor) else a for a in args]
    module.augment_image(*arrays, out=out)
    assert np.isnan(buffer[:64]).all()
    assert np.isnan(buffer[-64:]).all()
    assert np.array_equal(out, OP.run("reference", *args).numpy())


GOOD = (picture(4, 5), [4, 5], [0, 0], [4, 5], False, None, None, 0, None, LEVELS)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("place", "value"),
    [
        (0, torch.zeros(4, 5, 3)),
        (0, torch.zeros(4, 5, 4, dtype=torch.uint8)),
        (0, torch.zeros(4, 5, dtype=torch.uint8)),
        (0, torch.zeros(0, 5, 3, dtype=torch.uint8)),
        (1, [0, 5]),
        (1, [-4, 5]),
        (1, [2**62, 5]),
        (1, [4]),
        (2, [-1, 0]),
        (2, [0, 2**60]),
        (3, [0, 5]),
        (3, [2**40, 2**40]),
        (3, [4, 5, 6]),
        (5, torch.zeros(255, dtype=torch.uint8)),
        (6, torch.zeros(256)),
        (8, torch.zeros(2, 256, dtype=torch.uint8)),
        (9, torch.zeros(3, 255)),
        (9, torch.zeros(3, 256, dtype=torch.int64)),
    ],
)
def test_hostile_arguments_raise(backend: str, place: int, value: object) -> None:
    """ShapeError from the op; the compiled routine called past its checks raises too, and never crashes."""
    args = [value if i == place else a for i, a in enumerate(GOOD)]
    with pytest.raises(ShapeError, match="augment_image"):
        augment_image(*args)
    with pytest.raises((ShapeError, TypeError)):
        OP.run(backend, *args)
