"""Segmenter of PaddleViT, of which nothing was recorded: its layers written out once more, in Paddle's convention.

Source: github BR-IDL/PaddleViT, semantic_segmentation/src/models/{segmentor.py, backbones/vit.py, backbones/deit.py,
decoders/segmentor_head.py}. Keys and shapes are those that its modules register; linear weights are [in, out].
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import setr_fast

WIDTH, HEADS, DEPTH, HIDDEN, PATCH, SIDE, CLASSES = 24, 3, 2, 60, 8, 32, 5
VIT = {"n1": "attn_norm", "out": "attn.out", "n2": "mlp_norm"}
DEIT = {"n1": "norm1", "out": "attn.proj", "n2": "norm2"}
EMBEDDINGS = "encoder.transformer.embeddings."


class Peer:
    """The network as a function of its state dict."""

    def __init__(self, deit: bool, mask: bool) -> None:
        self.state: dict[str, Tensor] = {}
        self.draw = torch.Generator().manual_seed(int(deit) * 2 + int(mask))
        self.deit, self.mask = deit, mask

    def tensor(self, name: str, *shape: int) -> Tensor:
        if name not in self.state:
            self.state[name] = torch.randn(shape, generator=self.draw, dtype=torch.float32) * 0.3
        assert self.state[name].shape == shape
        return self.state[name].double()

    def linear(self, name: str, x: Tensor, out: int, bias: bool = True) -> Tensor:
        y = x @ self.tensor(name + ".weight", x.shape[-1], out)
        return y + self.tensor(name + ".bias", out) if bias else y

    def norm(self, name: str, x: Tensor, eps: float) -> Tensor:
        size = x.shape[-1]
        return F.layer_norm(x, (size,), self.tensor(name + ".weight", size), self.tensor(name + ".bias", size), eps)

    def layer(self, name: str, x: Tensor, parts: dict[str, str]) -> Tensor:
        h = self.norm(f"{name}.{parts['n1']}", x, 1e-6)
        q, k, v = (
            t.unflatten(2, (HEADS, -1)).transpose(1, 2)
            for t in self.linear(name + ".attn.qkv", h, 3 * WIDTH).chunk(3, 2)
        )
        h = (q @ k.transpose(2, 3) * (WIDTH // HEADS) ** -0.5).softmax(3) @ v
        x = x + self.linear(f"{name}.{parts['out']}", h.transpose(1, 2).flatten(2), WIDTH)
        h = F.gelu(self.linear(name + ".mlp.fc1", self.norm(f"{name}.{parts['n2']}", x, 1e-6), HIDDEN))
        return x + self.linear(name + ".mlp.fc2", h, WIDTH)

    def __call__(self, image: Tensor) -> Tensor:
        batch, tokens = len(image), (SIDE // PATCH) ** 2
        names = ("encoder.class_token", "encoder.distill_token") if self.deit else (EMBEDDINGS + "cls_token",)
        first = [self.tensor(name, 1, 1, WIDTH).expand(batch, -1, -1) for name in names]
        patch = "encoder.patch_embed.proj" if self.deit else EMBEDDINGS + "patch_embeddings"
        kernel, bias = self.tensor(patch + ".weight", WIDTH, 3, PATCH, PATCH), self.tensor(patch + ".bias", WIDTH)
        x = F.conv2d(image, kernel, bias, PATCH).flatten(2).transpose(1, 2)
        pos = "encoder.pos_embed" if self.deit else EMBEDDINGS + "position_embeddings"
        x = torch.cat([*first, x], 1) + self.tensor(pos, 1, tokens + len(first), WIDTH)
        for index in range(DEPTH):
            layers = "encoder.layers" if self.deit else "encoder.transformer.encoder.layers"
            x = self.layer(f"{layers}.{index}", x, DEIT if self.deit else VIT)
        x = self.norm("norm", x, 1e-5)[:, len(first) :]
        masks = self._masks(x) if self.mask else self.linear("decoder.head", x, CLASSES)
        grid = masks.transpose(1, 2).unflatten(2, (SIDE // PATCH, -1))
        return F.interpolate(grid, size=(SIDE, SIDE), mode="bilinear", align_corners=False)

    def _masks(self, x: Tensor) -> Tensor:
        classes = self.tensor("decoder.mask_tokens", 1, CLASSES, WIDTH).expand(len(x), -1, -1)
        x = torch.cat([self.linear("decoder.proj_decoder", x, WIDTH), classes], 1)
        x = self.norm("decoder.decoder_norm", self.layer("decoder.layers.0", x, VIT), 1e-5)
        patches = self.linear("decoder.proj_patch", x[:, :-CLASSES], WIDTH, bias=False)
        masks = self.linear("decoder.proj_class", x[:, -CLASSES:], WIDTH, bias=False)
        patches, masks = (t / t.norm(dim=-1, keepdim=True) for t in (patches, masks))
        return self.norm("decoder.mask_norm", patches @ masks.transpose(1, 2), 1e-5)


@pytest.mark.parametrize("mask", [True, False], ids=["mask", "linear"])
@pytest.mark.parametrize("deit", [True, False], ids=["deit", "vit"])
def test_a_file_of_its_layout_computes_what_its_code_computes(deit: bool, mask: bool, tmp_path: Path) -> None:
    peer, image = Peer(deit, mask), torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)
    want = peer(image)
    path = tmp_path / "segmenter.pdparams"
    path.write_bytes(pickle.dumps({name: tensor.numpy() for name, tensor in peer.state.items()}, protocol=4))
    model = setr_fast.load(path, num_heads=HEADS)
    assert (model.spec.head, model.spec.distilled) == ("mask" if mask else "linear", deit)
    with torch.no_grad():
        torch.testing.assert_close(model.double()(image), want, rtol=1e-9, atol=1e-9)
