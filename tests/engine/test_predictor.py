"""Pictures of any size and kind through the predictor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import interpolate

from setr_fast.engine.options import InferenceConfig
from setr_fast.engine.predictor import WHOLE_MAX_PIXELS, predict, scaled_size, windows_of
from setr_fast.engine.windows import window_starts
from setr_fast.errors import ConfigError, DataError, ShapeError

AWKWARD = [(1, 1), (1, 511), (3, 5000), (5000, 3), (97, 223), (32, 32), (33, 31), (64, 80)]


def _normalised(image: np.ndarray, spec) -> torch.Tensor:
    values = (image.astype(np.float64) - spec.mean) / spec.std
    return torch.from_numpy(values.astype(np.float32)).permute(2, 0, 1)[None].contiguous()


def _slide(model, tensor: torch.Tensor, window: tuple[int, int], stride: tuple[int, int]) -> torch.Tensor:
    """Sum over a canvas as large as the picture, divided by a count: the textbook way."""
    height, width = tensor.shape[-2:]
    total, count = torch.zeros(1, model.spec.num_classes, height, width), torch.zeros(1, 1, height, width)
    for top in window_starts(height, window[0], stride[0]):
        for left in window_starts(width, window[1], stride[1]):
            where = (slice(None), slice(None), slice(top, top + window[0]), slice(left, left + window[1]))
            total[where] += model(tensor[where].contiguous())
            count[where] += 1
    return total / count


def _assert_same(found: np.ndarray, scores: torch.Tensor, tolerance: float = 1e-5) -> None:
    first, second = scores[0].topk(2, dim=0).values
    sure = (first - second > tolerance).numpy()
    assert sure.mean() > 0.99
    np.testing.assert_array_equal(found[sure], scores[0].argmax(0).numpy()[sure])


@pytest.mark.parametrize("size", AWKWARD)
@pytest.mark.parametrize(
    "config",
    [
        InferenceConfig(),
        InferenceConfig(mode="whole"),
        InferenceConfig(scales=(0.5, 1.25), flip=True),
        InferenceConfig(resize_short=24),
    ],
    ids=["auto", "whole", "msflip", "resize"],
)
def test_every_size_gives_a_map_of_its_own_size(make_model, make_picture, size, config):
    found = predict(make_model(), make_picture(*size), config)
    assert found.shape == size
    assert found.dtype == np.uint8
    assert found.max() < 5


@pytest.mark.parametrize("size", [(20, 25), (32, 32), (75, 64)])
def test_slide_equals_the_whole_canvas(make_model, make_picture, size):
    model, image = make_model(), make_picture(*size)
    with torch.no_grad():
        scores = _slide(model, _normalised(image, model.spec), (32, 32), (21, 21))
    _assert_same(predict(model, image, InferenceConfig(mode="slide", window_batch=3)), scores)


def test_whole_is_one_pass(make_model, make_picture):
    model, image = make_model(), make_picture(61, 83)
    with torch.no_grad():
        scores = model(_normalised(image, model.spec))
    _assert_same(predict(model, image, InferenceConfig(mode="whole")), scores)


@pytest.mark.parametrize("merge", ["probabilities", "logits"])
def test_scales_and_mirror_equal_the_straightforward_mean(make_model, make_picture, merge):
    cv2 = pytest.importorskip("cv2")
    model, image = make_model(), make_picture(50, 70)
    total = torch.zeros(1, 5, 50, 70)
    for ratio in (0.5, 1.0, 1.75):
        size = int(50 * ratio + 0.5), int(70 * ratio + 0.5)
        resized = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
        for mirrored in (False, True):
            tensor = _normalised(resized[:, ::-1] if mirrored else resized, model.spec)
            with torch.no_grad():
                logits = interpolate(_slide(model, tensor, (32, 32), (21, 21)), (50, 70), mode="bilinear")
            logits = logits.flip(-1) if mirrored else logits
            total += logits.softmax(1) if merge == "probabilities" else logits
    config = InferenceConfig(scales=(0.5, 1.0, 1.75), flip=True, merge=merge)
    _assert_same(predict(model, image, config), total / 6)


def test_resize_short_is_the_keep_ratio_rule_and_comes_back(make_model, make_picture):
    cv2 = pytest.importorskip("cv2")
    model, image = make_model(), make_picture(50, 75)
    resized = cv2.resize(image, (60, 40), interpolation=cv2.INTER_LINEAR)
    with torch.no_grad():
        logits = interpolate(
            _slide(model, _normalised(resized, model.spec), (32, 32), (21, 21)), (50, 75), mode="bilinear"
        )
    _assert_same(predict(model, image, InferenceConfig(resize_short=40)), logits)


@pytest.mark.parametrize(
    ("size", "scale", "options", "expected"),
    [
        ((1, 1), 0.5, {}, (1, 1)),
        ((3, 5000), 0.1, {}, (1, 500)),
        ((1024, 2048), 1.0, {"resize_short": 1025, "resize_long": 2049}, (1025, 2049)),  # Cityscapes, official SETR
        ((512, 683), 1.0, {"resize_short": 512, "resize_long": 2048}, (512, 683)),
        ((300, 2000), 1.0, {"resize_short": 512, "resize_long": 2048}, (307, 2048)),  # the longer edge decides
        ((1025, 2049), 0.5, {"resize_short": 1025, "min_short": 768}, (768, 1535)),
        ((3, 5000), 1.0, {"resize_short": 512}, (2, 4096)),  # never 512 x 853333
        ((3, 5000), 1.0, {"min_short": 512}, (3, 5000)),
        ((100, 200), 0.5, {"min_short": 64}, (64, 128)),
    ],
)
def test_sizes_keep_the_aspect_and_never_reach_zero(size, scale, options, expected):
    assert scaled_size(size, scale, InferenceConfig(**options)) == expected


def test_auto_follows_the_models_rule_up_to_its_limit(make_model):
    side = int(WHOLE_MAX_PIXELS**0.5)
    whole, slide = make_model(inference_mode="whole").spec, make_model().spec
    assert windows_of(whole, (side, side), InferenceConfig()) == ((side, side), (side, side))
    assert windows_of(whole, (side, side + 1), InferenceConfig()) == ((32, 32), (21, 21))
    assert windows_of(slide, (40, 40), InferenceConfig()) == ((32, 32), (21, 21))
    assert windows_of(whole, (40, 40), InferenceConfig(mode="slide"))[0] == (32, 32)


def test_stride_is_the_given_one_the_models_or_two_thirds(make_model):
    spec = make_model(stride=(16, 24)).spec
    assert windows_of(spec, (99, 99), InferenceConfig())[1] == (16, 24)
    assert windows_of(spec, (99, 99), InferenceConfig(stride=(8, 8)))[1] == (8, 8)
    assert windows_of(spec, (99, 99), InferenceConfig(crop=(48, 30))) == ((48, 30), (32, 20))
    assert windows_of(make_model(stride=(64, 64)).spec, (99, 99), InferenceConfig())[1] == (21, 21)


def test_stride_past_the_window_is_refused(make_model, make_picture):
    with pytest.raises(ConfigError, match="stride must be"):
        predict(make_model(), make_picture(50, 50), InferenceConfig(crop=(16, 16), stride=(17, 16)))


def test_large_picture_takes_windows_only(make_model, make_picture):
    model = make_model(inference_mode="whole", image_size=(1024, 1024), stride=(1024, 1024))
    predict(model, np.zeros((WHOLE_MAX_PIXELS // 1024 + 1, 1024, 3), np.uint8), InferenceConfig(window_batch=1))
    assert model.largest == 1024 * 1024


@pytest.mark.parametrize(("values", "size"), [({"fit": "floor"}, (1, 1)), ({"pos_resize": "none"}, (13, 70))])
def test_pictures_too_small_for_the_model_are_padded(make_model, make_picture, values, size):
    assert predict(make_model(**values), make_picture(*size)).shape == size


def test_paths_pillow_images_and_arrays_agree(make_model, make_picture, tmp_path):
    model, image = make_model(), make_picture(40, 50)
    expected = predict(model, image)
    Image.fromarray(image).save(tmp_path / "a.png")
    for given in (str(tmp_path / "a.png"), tmp_path / "a.png", Image.fromarray(image), image.copy(order="F")):
        np.testing.assert_array_equal(predict(model, given), expected)
    image.flags.writeable = False
    np.testing.assert_array_equal(predict(model, image), expected)
    np.testing.assert_array_equal(predict(model, image[:, ::-1][:, ::-1]), expected)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "I;16", "CMYK"])
def test_a_pillow_image_is_read_as_its_file_is(make_model, make_picture, tmp_path, mode):
    image = Image.fromarray(make_picture(20, 30))
    image = (
        Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 200)
        if mode == "I;16"
        else image.convert(mode)
    )
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    np.testing.assert_array_equal(predict(make_model(), image), predict(make_model(), path))


def test_exif_orientation_of_a_pillow_image_is_applied(make_model, make_picture):
    image = Image.fromarray(make_picture(20, 30))
    image.getexif()[0x0112] = 6
    assert predict(make_model(), image).shape == (30, 20)


@pytest.mark.parametrize(("mode", "words"), [("F", "floating-point"), ("I", "32-bit")])
def test_pillow_images_without_a_known_range_are_refused(make_model, mode, words):
    with pytest.raises(ShapeError, match=f"predict: image must have 8 or 16 bits per channel, got {words}"):
        predict(make_model(), Image.new(mode, (4, 4)))


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        7,
    ],
)
def test_other_arrays_are_refused(make_model, wrong):
    with pytest.raises(ShapeError, match="predict: image must"):
        predict(make_model(), wrong)


def test_a_file_that_is_no_picture_is_named(make_model, tmp_path):
    (tmp_path / "b.jpg").write_text("not a picture")
    with pytest.raises(DataError, match=r"b\.jpg"):
        predict(make_model(), tmp_path / "b.jpg")


def test_the_model_is_left_in_the_mode_it_was_in(make_model, make_picture):
    model = make_model()
    model.train()
    model.norm.eval()
    before = model.norm.running_mean.clone()
    predict(model, make_picture(20, 20))
    assert model.training
    assert model.patches.training
    assert not model.norm.training
    assert torch.equal(model.norm.running_mean, before)
    model(torch.zeros(2, 3, 32, 32)).sum().backward()


def test_bf16_runs_the_model_in_bf16(make_model, make_picture):
    model, seen = make_model(), []
    model.classify.register_forward_hook(lambda *args: seen.append(args[2].dtype))
    image = make_picture(40, 40)
    rough = predict(model, image, InferenceConfig(precision="bf16"))
    assert set(seen) == {torch.bfloat16}
    assert (rough == predict(model, image)).mean() > 0.9


def test_strips_of_a_small_budget_change_nothing(make_model, make_picture):
    model, image = make_model(num_classes=200), make_picture(40, 700)
    np.testing.assert_array_equal(predict(model, image, InferenceConfig(canvas_mib=1)), predict(model, image))


def test_out_size_asks_for_another_size(make_model, make_picture):
    model, image = make_model(), make_picture(40, 30)
    with torch.no_grad():
        logits = _slide(model, _normalised(image, model.spec), (32, 32), (21, 21))
    _assert_same(predict(model, image, out_size=(80, 45)), interpolate(logits, (80, 45), mode="bilinear"))
