"""What is peculiar to the patch embedding: two kinds of picture, padding, strips, autograd, compile."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import setr_fast
from setr_fast.errors import ShapeError
from setr_fast.ops import OPS, _native, patch_embed, patch_embed_products, patch_embed_rows

MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
FORWARD, BACKWARD, ROWS = OPS["patch_embed"], OPS["patch_embed_backward"], OPS["patch_embed_rows"]
needs_extension = pytest.mark.skipif(bool(_native.reason()), reason=f"no extension: {_native.reason()}")
_COMPILED = [pytest.param(name, marks=needs_extension) for name in ("native", "native_half")]
BACKENDS = ["reference", *_COMPILED]  # of both directions; test_patch_embed_vnni.py has the one of the forward alone


def arguments(
    B: int = 2, H: int = 19, W: int = 30, P: int = 8, D: int = 12, fit: str = "pad", dtype: torch.dtype = torch.float32
) -> tuple[Any, ...]:
    h, w = (H // P, W // P) if fit == "floor" else (-(-H // P), -(-W // P))
    image = torch.randint(0, 256, (B, H, W, 3), dtype=torch.uint8)
    weight = (torch.randn(D, 3, P, P) * 0.05).to(dtype)
    return image, weight, torch.randn(D).to(dtype), torch.randn(h * w, D).to(dtype), MEAN, STD, h, w


def by_hand(
    image: Tensor, weight: Tensor, bias: Tensor | None, positions: Tensor, mean: list, std: list, h: int, w: int
) -> Tensor:
    """Normalise, pad or cut, convolve, in float64, without any of our code."""
    x = (image.double() - torch.tensor(mean).double()) / torch.tensor(std).double()
    P = weight.shape[-1]
    picture = torch.zeros(len(image), 3, h * P, w * P, dtype=torch.float64)
    rows, columns = min(image.shape[1], h * P), min(image.shape[2], w * P)
    picture[:, :, :rows, :columns] = x.permute(0, 3, 1, 2)[:, :, :rows, :columns]
    out = F.conv2d(picture, weight.double(), None if bias is None else bias.double(), stride=P)
    return out.flatten(2).transpose(1, 2) + positions.double()


@pytest.mark.parametrize("fit", ["pad", "floor"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_bytes_are_normalised_padded_with_the_mean_colour_or_cut(backend: str, fit: str) -> None:
    dtype = torch.bfloat16 if backend == "native_half" else torch.float32
    args = arguments(fit=fit, dtype=dtype)
    got = FORWARD.run(backend, *args)
    limit = 2e-6 if dtype is torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), by_hand(*args), rtol=limit, atol=10 * limit)
    assert got.is_contiguous()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", [(1, 64, 48), (3, 33, 70), (1, 7, 5)], ids=str)
def test_strips_of_any_height_give_the_same(
    backend: str, shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    dtype = torch.bfloat16 if backend == "native_half" else torch.float32
    args = arguments(*shape, dtype=dtype)
    grad = torch.randn(FORWARD.reference(*args).shape).to(dtype)
    whole = FORWARD.run(backend, *args), BACKWARD.run(backend, grad, args[0], args[1], *args[4:])
    monkeypatch.setitem(patch_embed_products.STRIP_BYTES, "cpu", 1)  # one line of patches at a time
    strips = FORWARD.run(backend, *args), BACKWARD.run(backend, grad, args[0], args[1], *args[4:])
    limit = 1e-5 if dtype is torch.float32 else 2e-2
    for a, b in zip(whole, strips, strict=True):
        assert (a - b).abs().max() <= limit * a.abs().max()


def test_strips_cover_every_patch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    image, weight, *_ = arguments(B=5, H=80, W=40)
    for budget in (1, 4000, 10**9):
        monkeypatch.setitem(patch_embed_products.STRIP_BYTES, "cpu", budget)
        seen = np.zeros((5, 10), int)
        for strip in patch_embed_products._strips(image, weight, 10, 5, 4):
            seen[strip.begin : strip.end, strip.first : strip.last] += 1
        assert (seen == 1).all()


def test_a_normalised_picture_gives_what_the_convolution_gives_to_the_bit() -> None:
    x, weight = torch.randn(2, 5, 9, 13), torch.randn(6, 5, 4, 4)
    bias, positions = torch.randn(6), torch.randn(12, 6)
    want = F.conv2d(F.pad(x, (0, 3, 0, 3)), weight, bias, stride=4).flatten(2).transpose(1, 2) + positions
    assert torch.equal(patch_embed(x, weight, bias, positions, [], [], (3, 4)), want)


def test_gradients_of_a_normalised_picture_are_those_of_the_convolution() -> None:
    leaves = [torch.randn(s, dtype=torch.float64) for s in ((2, 4, 9, 13), (6, 4, 4, 4), (6,), (6, 6))]
    ours, theirs = ([t.clone().requires_grad_() for t in leaves] for _ in range(2))
    patch_embed(*ours[:4], [], [], (2, 3)).square().sum().backward()
    x, weight, bias, positions = theirs
    out = F.conv2d(x[..., :8, :12], weight, bias, stride=4).flatten(2).transpose(1, 2) + positions
    out.square().sum().backward()
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_gradients_of_bytes_equal_those_of_the_normalised_picture(backend: str) -> None:
    image, weight, bias, positions, mean, std, h, w = arguments()
    normalised = ((image - torch.tensor(mean)) / torch.tensor(std)).permute(0, 3, 1, 2)
    gradients = []
    for picture in (image, normalised):
        leaves = [t.clone().requires_grad_() for t in (weight, bias, positions)]
        with setr_fast.backend(f"patch_embed={backend if picture is image else 'reference'}"):
            patch_embed(picture, *leaves, mean, std, (h, w)).square().sum().backward()
        gradients.append([t.grad for t in leaves])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@needs_extension
def test_centred_bytes_are_more_exact_in_bfloat16_than_a_normalised_picture() -> None:
    """Bytes are exact in 16 bits; normalised values are rounded."""
    args = arguments(4, 128, 128, 16, 64, dtype=torch.bfloat16)
    args = (*args[:2], None, torch.zeros_like(args[3]).float(), *args[4:])  # sums in float32, so that products show
    exact = by_hand(*args)
    errors = [(FORWARD.run(name, *args).double() - exact).square().mean() for name in ("native", "reference")]
    assert errors[0] < 0.2 * errors[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_poisoned_memory_beside_the_picture_is_not_read(backend: str) -> None:
    """A picture that is a window of a larger one; what lies around it changes."""
    dtype = torch.bfloat16 if backend == "native_half" else torch.float32
    image, *rest = arguments(dtype=dtype)
    around = torch.zeros(4, 40, 50, 3, dtype=torch.uint8)
    window = around[1:3, 5:24, 7:37]
    results = []
    for poison in (0, 255):
        around.fill_(poison)
        window.copy_(image)
        results.append(FORWARD.run(backend, window, *rest))
    assert torch.equal(*results)
    assert torch.equal(results[0], FORWARD.run(backend, image, *rest))


@needs_extension
@pytest.mark.parametrize("how", ["planes", "mirrored", "every second"])
def test_pictures_in_any_memory_order(how: str) -> None:
    image, *rest = arguments(H=24, W=32)
    strange = {
        "planes": image.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
        "mirrored": image.flip(2),
        "every second": image.repeat_interleave(2, dim=2)[:, :, ::2],
    }[how]
    torch.testing.assert_close(FORWARD.run("native", strange, *rest), FORWARD.reference(strange, *rest))
    rows = (8, 3, 4, MEAN, STD, [0.0] * 3, True, torch.float32)
    assert torch.equal(ROWS.run("native", strange, *rows), ROWS.reference(strange, *rows))


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_picture_gives_no_tokens_and_a_gradient_of_zero(backend: str) -> None:
    dtype = torch.bfloat16 if backend == "native_half" else torch.float32
    image, weight, bias, positions, *rest = arguments(dtype=dtype)
    none = image[:0]
    assert FORWARD.run(backend, none, weight, bias, positions, *rest).shape == (0, *positions.shape)
    grad = positions.new_zeros((0, *positions.shape))
    assert not BACKWARD.run(backend, grad, none, weight, *rest).any()


@needs_extension
def test_results_do_not_depend_on_the_number_of_threads() -> None:
    image = torch.randint(0, 256, (2, 200, 300, 3), dtype=torch.uint8)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            results.append(ROWS.run("native", image, 16, 13, 19, MEAN, STD, [0.0] * 3, False, torch.bfloat16))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_autocast_multiplies_in_16_bits_and_keeps_wider_positions() -> None:
    image, weight, bias, positions, mean, std, h, w = arguments()
    leaves = [t.clone().requires_grad_() for t in (weight, bias, positions)]
    exact = by_hand(image, weight, bias, positions, mean, std, h, w)
    with torch.autocast("cpu", torch.bfloat16):
        got = patch_embed(image, *leaves, mean, std, (h, w))
    assert got.dtype is torch.float32
    torch.testing.assert_close(got.double(), exact, rtol=2e-2, atol=5e-2)
    got.sum().backward()
    assert all(t.grad is not None and t.grad.dtype is torch.float32 for t in leaves)


def test_it_compiles_into_a_graph_without_a_break_for_any_size() -> None:
    def run(image: Tensor, weight: Tensor, positions: Tensor, h: int, w: int) -> Tensor:
        return patch_embed(image, weight, None, positions, MEAN, STD, (h, w)) * 2

    compiled = torch.compile(run, backend="eager", fullgraph=True, dynamic=True)
    for height in (19, 40, 33):
        image, weight, _, positions, _, _, h, w = arguments(H=height)
        assert torch.equal(compiled(image, weight, positions, h, w), run(image, weight, positions, h, w))


def test_the_op_passes_gradcheck() -> None:
    image, weight, bias, positions, mean, std, h, w = arguments(1, 5, 9, 4, 3, dtype=torch.float64)
    leaves = [t.requires_grad_() for t in (weight, bias, positions)]
    assert torch.autograd.gradcheck(lambda *t: patch_embed(image, *t, mean, std, (h, w)), leaves)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": torch.zeros(2, 19, 30, dtype=torch.uint8)}, "pictures must be uint8"),
        ({"image": torch.zeros(2, 19, 30, 4, dtype=torch.uint8)}, "weight must be"),
        ({"image": torch.zeros(2, 19, 30, 3, dtype=torch.int32)}, "pictures must be uint8"),
        ({"weight": torch.zeros(12, 3, 8, 7)}, "weight must be"),
        ({"weight": torch.zeros(12, 8, 8)}, "weight must be"),
        ({"bias": torch.zeros(11)}, "bias must be"),
        ({"positions": torch.zeros(11, 12)}, "positions must be"),
        ({"grid": (0, 4)}, "grid must be"),
        ({"mean": [1.0]}, "mean and std 3 numbers"),
    ],
    ids=lambda v: next(iter(v)) if isinstance(v, dict) else "",
)
def test_hostile_arguments_raise(changes: dict[str, Any], message: str) -> None:
    image, weight, bias, positions, mean, std, h, w = arguments()
    given = {"image": image, "weight": weight, "bias": bias, "positions": positions, "mean": mean, "std": std}
    with pytest.raises(ShapeError, match=f"patch_embed: .*{message}"):
        patch_embed(**(given | {"grid": (h, w)} | changes))


@pytest.mark.parametrize("backend", ["reference", pytest.param("native", marks=needs_extension)])
def test_rows_refuse_what_is_no_picture_of_bytes(backend: str) -> None:
    image = torch.zeros(1, 4, 4, 3, dtype=torch.uint8)
    for wrong, patch in ((image.float(), 2), (image[0], 2), (image[..., :2], 2), (image, 0)):
        with pytest.raises(ValueError, match=r"patch_embed_rows: .* must be"):
            ROWS.run(backend, wrong, patch, 2, 2, MEAN, STD, [0.0] * 3, True, torch.float32)
    with pytest.raises(ShapeError, match="3 numbers each"):
        patch_embed_rows(image, 2, (2, 2), [1.0], STD, [0.0] * 3, True, torch.float32)
