"""Key maps of the recorded models of other code bases: pattern of a source key, our name for it.

Only what the recorded parity data needs. Every source key is mapped or listed as dropped.
"""

from __future__ import annotations

import io
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Rule = tuple[str, str | Callable[[re.Match[str]], str]]

REST = r"(weight|bias|running_mean|running_var|num_batches_tracked)"


def at(template: str, index: Callable[[int], int]) -> Callable[[re.Match[str]], str]:
    """Replacement whose {0} is the first group, a number, after ``index``; the other groups follow."""
    return lambda match: template.format(index(int(match[1])), *match.groups()[1:])


def level(k: int) -> int:
    return k - 2


def reverse(j: int) -> int:
    return 3 - j


def blocks(source: str, target: str, parts: dict[str, str]) -> list[Rule]:
    return [(rf"{source}\.(\d+)\.{part}(weight|bias)", rf"{target}.\1.{ours}.\2") for part, ours in parts.items()]


TIMM = {
    rf"{p}\.": p.replace("\\", "") for p in ("norm1", "norm2", r"attn\.qkv", r"attn\.proj", r"mlp\.fc1", r"mlp\.fc2")
}
MMSEG = {
    r"ln1\.": "norm1",
    r"ln2\.": "norm2",
    r"attn\.attn\.in_proj_": "attn.qkv",
    r"attn\.attn\.out_proj\.": "attn.proj",
}
MMSEG |= {r"ffn\.layers\.0\.0\.": "mlp.fc1", r"ffn\.layers\.1\.": "mlp.fc2"}
PADDLEVIT = {r"attn_norm\.": "norm1", r"mlp_norm\.": "norm2", r"attn\.qkv\.": "attn.qkv", r"attn\.out\.": "attn.proj"}
PADDLEVIT |= {r"mlp\.fc1\.": "mlp.fc1", r"mlp\.fc2\.": "mlp.fc2"}


def encoder(source: str, patch: str, stack: str, parts: dict[str, str]) -> list[Rule]:
    return [
        (rf"{source}\.(cls_token|pos_embed)", r"encoder.\1"),
        (rf"{source}\.patch_embed\.{patch}\.(weight|bias)", r"encoder.patch_embed.\1"),
        *blocks(rf"{source}\.{stack}", "encoder.blocks", parts),
    ]


def up_head(source: str, target: str, stages: int) -> list[Rule]:
    """Official SETR's and PaddleViT's head of Naive and PUP; the source pattern may hold one group."""
    n = source.count("(") + 1
    rules: list[Rule] = [(rf"{source}\.norm\.(weight|bias)", rf"{target}.norm.\{n}")]
    for stage in range(stages):
        rules += [
            (rf"{source}\.conv_{stage}\.(weight|bias)", rf"{target}.stages.{stage}.conv.\{n}"),
            (rf"{source}\.syncbn_fc_{stage}\.{REST}", rf"{target}.stages.{stage}.bn.\{n}"),
        ]
    return [*rules, (rf"{source}\.conv_{stages}\.(weight|bias)", rf"{target}.classifier.\{n}")]


def official_rules(head: str) -> list[Rule]:
    rules = encoder("backbone", "proj", "blocks", TIMM)
    if head != "mla":
        return (
            rules
            + up_head("decode_head", "head", 4 if head == "pup" else 1)
            + up_head(r"auxiliary_head\.(\d)", r"aux_heads.\1", 1)
        )
    return [
        *rules,
        (r"backbone\.norm_(\d)\.(weight|bias)", r"neck.norms.\1.\2"),
        (r"backbone\.mla\.mla_p(\d)_1x1\.0\.weight", at("neck.reduce.{0}.conv.weight", level)),
        (rf"backbone\.mla\.mla_p(\d)_1x1\.1\.{REST}", at("neck.reduce.{0}.bn.{1}", level)),
        (r"backbone\.mla\.mla_p(\d)\.0\.weight", at("neck.smooth.{0}.conv.weight", level)),
        (rf"backbone\.mla\.mla_p(\d)\.1\.{REST}", at("neck.smooth.{0}.bn.{1}", level)),
        (r"decode_head\.mlahead\.head(\d)\.0\.weight", at("head.branches.{0}.0.conv.weight", level)),
        (rf"decode_head\.mlahead\.head(\d)\.1\.{REST}", at("head.branches.{0}.0.bn.{1}", level)),
        (r"decode_head\.mlahead\.head(\d)\.3\.weight", at("head.branches.{0}.1.conv.weight", level)),
        (rf"decode_head\.mlahead\.head(\d)\.4\.{REST}", at("head.branches.{0}.1.bn.{1}", level)),
        (r"decode_head\.cls\.(weight|bias)", r"head.classifier.\1"),
        (r"auxiliary_head\.(\d)\.aux\.weight", r"aux_heads.\1.classifier.weight"),
    ]


def mmseg_rules(head: str) -> list[Rule]:
    rules = encoder("backbone", "projection", "layers", MMSEG)
    rules += [
        (r"backbone\.ln1\.(weight|bias)", r"encoder.norm.\1"),
        (r"decode_head\.conv_seg\.(weight|bias)", r"head.classifier.\1"),
        (r"auxiliary_head\.(\d)\.conv_seg\.(weight|bias)", r"aux_heads.\1.classifier.\2"),
    ]
    if head in ("naive", "pup"):
        rules += [
            (r"decode_head\.norm\.(weight|bias)", r"head.norm.\1"),
            (rf"decode_head\.up_convs\.(\d)\.0\.(conv|bn)\.{REST}", r"head.stages.\1.\2.\3"),
            (r"auxiliary_head\.(\d)\.norm\.(weight|bias)", r"aux_heads.\1.norm.\2"),
            (rf"auxiliary_head\.(\d)\.up_convs\.(\d)\.0\.(conv|bn)\.{REST}", r"aux_heads.\1.stages.\2.\3.\4"),
        ]
    if head == "mla":
        rules += [
            (r"neck\.norm\.(\d)\.(weight|bias)", r"neck.norms.\1.\2"),
            (rf"neck\.mla\.channel_proj\.(\d)\.(conv|bn)\.{REST}", r"neck.reduce.\1.\2.\3"),
            (rf"neck\.mla\.feat_extract\.(\d)\.(conv|bn)\.{REST}", at("neck.smooth.{0}.{1}.{2}", reverse)),
            (rf"decode_head\.up_convs\.(\d)\.(\d)\.(conv|bn)\.{REST}", at("head.branches.{0}.{1}.{2}.{3}", reverse)),
        ]
    if head == "mask":
        rules += [
            *blocks(r"decode_head\.layers", "head.blocks", MMSEG),
            (r"decode_head\.cls_emb", "head.class_embed"),
            (r"decode_head\.dec_proj\.(weight|bias)", r"head.proj_in.\1"),
            (r"decode_head\.patch_proj\.weight", "head.proj_patch"),
            (r"decode_head\.classes_proj\.weight", "head.proj_class"),
            (r"decode_head\.decoder_norm\.(weight|bias)", r"head.norm.\1"),
            (r"decode_head\.mask_norm\.(weight|bias)", r"head.mask_norm.\1"),
        ]
    return rules


def segmenter_rules(head: str) -> list[Rule]:
    return [
        *encoder("encoder", "proj", "blocks", TIMM),
        (r"encoder\.norm\.(weight|bias)", r"encoder.norm.\1"),
        (r"decoder\.head\.(weight|bias)", r"head.classifier.\1"),
        *blocks(r"decoder\.blocks", "head.blocks", TIMM),
        (r"decoder\.cls_emb", "head.class_embed"),
        (r"decoder\.proj_dec\.(weight|bias)", r"head.proj_in.\1"),
        (r"decoder\.proj_patch", "head.proj_patch"),
        (r"decoder\.proj_classes", "head.proj_class"),
        (r"decoder\.decoder_norm\.(weight|bias)", r"head.norm.\1"),
        (r"decoder\.mask_norm\.(weight|bias)", r"head.mask_norm.\1"),
    ]


def paddleseg_rules(head: str) -> list[Rule]:
    """Shared layers appear under several indices: all of them go to the one that we hold."""
    rules = encoder("backbone", "proj", "blocks", TIMM)
    rules += [(r"backbone\.norm\.(weight|bias)", r"encoder.norm.\1")]
    if head in ("naive", "pup"):
        last, aux_last = (7, 2) if head == "pup" else (1, 1)
        rules += [
            (r"head\.cls_head_norm\.(weight|bias)", r"head.norm.\1"),
            (rf"head\.cls_head\.{last}\.(weight|bias)", r"head.classifier.\1"),
            (r"head\.cls_head\.(\d)\._conv\.(weight|bias)", at("head.stages.{0}.conv.{1}", lambda i: i // 2)),
            (rf"head\.cls_head\.(\d)\._batch_norm\.{REST}", at("head.stages.{0}.bn.{1}", lambda i: i // 2)),
            (r"head\.aux_head_norms\.\d\.(weight|bias)", r"aux_heads.0.norm.\1"),
            (rf"head\.aux_heads\.\d\.{aux_last}\.(weight|bias)", r"aux_heads.0.classifier.\1"),
            (r"head\.aux_heads\.\d\.0\._conv\.(weight|bias)", r"aux_heads.0.stages.0.conv.\1"),
            (rf"head\.aux_heads\.\d\.0\._batch_norm\.{REST}", r"aux_heads.0.stages.0.bn.\1"),
        ]
    if head == "mla":
        rules += [
            (r"head\.norms\.\d\.(weight|bias)", r"neck.norms.0.\1"),
            (r"head\.mla\.mla_p(\d)_1x1\._conv\.(weight|bias)", at("neck.reduce.{0}.conv.{1}", level)),
            (rf"head\.mla\.mla_p(\d)_1x1\._batch_norm\.{REST}", at("neck.reduce.{0}.bn.{1}", level)),
            (r"head\.mla\.mla_p(\d)\._conv\.(weight|bias)", at("neck.smooth.{0}.conv.{1}", level)),
            (rf"head\.mla\.mla_p(\d)\._batch_norm\.{REST}", at("neck.smooth.{0}.bn.{1}", level)),
            (r"head\.feat_convs\.\d\.(\d)\._conv\.(weight|bias)", r"head.branches.0.\1.conv.\2"),
            (rf"head\.feat_convs\.\d\.(\d)\._batch_norm\.{REST}", r"head.branches.0.\1.bn.\2"),
            (r"head\.cls_head\.(weight|bias)", r"head.classifier.\1"),
            (r"head\.aux_heads\.\d\.(weight|bias)", r"aux_heads.0.classifier.\1"),
        ]
    if head == "linear":
        rules += [(r"head\.head\.(weight|bias)", r"head.classifier.\1")]
    if head == "mask":
        rules += [
            *blocks(r"head\.blocks", "head.blocks", TIMM),
            (r"head\.cls_token", "head.class_embed"),
            (r"head\.proj_input\.(weight|bias)", r"head.proj_in.\1"),
            (r"head\.(proj_patch|proj_class)\.weight", r"head.\1"),
            (r"head\.decoder_norm\.(weight|bias)", r"head.norm.\1"),
            (r"head\.mask_norm\.(weight|bias)", r"head.mask_norm.\1"),
        ]
    return rules


def paddlevit_rules(head: str) -> list[Rule]:
    embeddings = r"encoder\.transformer\.embeddings"
    rules: list[Rule] = [
        (rf"{embeddings}\.cls_token", "encoder.cls_token"),
        (rf"{embeddings}\.position_embeddings", "encoder.pos_embed"),
        (rf"{embeddings}\.patch_embeddings\.(weight|bias)", r"encoder.patch_embed.\1"),
        *blocks(r"encoder\.transformer\.encoder\.layers", "encoder.blocks", PADDLEVIT),
    ]
    if head != "mla":
        aux = [
            (pattern, at(str(target).replace(r"aux_heads.\1", "aux_heads.{0}").replace(r"\2", "{1}"), level))
            for pattern, target in up_head(r"aux_decoder(\d)", r"aux_heads.\1", 1)
        ]
        return rules + up_head("decoder", "head", 4 if head == "pup" else 1) + aux
    renamed = [
        (pattern.replace("backbone", "encoder").replace(r"decode_head\.mlahead", "decoder"), target)
        for pattern, target in official_rules("mla")
        if not pattern.startswith(
            (r"backbone\.(", r"backbone\.patch", r"backbone\.blocks", "auxiliary", r"decode_head\.cls")
        )
    ]
    return (
        rules
        + renamed
        + [
            (r"decoder\.cls\.(weight|bias)", r"head.classifier.\1"),
            (r"aux_decoder([234])\.aux\.weight", at("aux_heads.{0}.classifier.weight", level)),
        ]
    )


RULES = {
    "setr-official": official_rules,
    "mmseg": mmseg_rules,
    "segmenter": segmenter_rules,
    "paddleseg": paddleseg_rules,
    "paddlevit": paddlevit_rules,
}
# Dead weights: a classifier that never runs, ImageNet heads, PaddleViT's fourth auxiliary head of MLA.
DROPPED = {
    "setr-official": r"(decode_head|auxiliary_head\.\d)\.conv_seg\.(weight|bias)",
    "segmenter": r"encoder\.head(_dist)?\.(weight|bias)",
    "paddlevit": r"aux_decoder5\.aux\.weight",
}


def head_of(config: Mapping[str, Any]) -> str:
    return config["variant"].split("-")[-1]


def target_name(config: Mapping[str, Any], key: str) -> str | None:
    """Return our name of a source key, or None where the key is dropped; KeyError where it is unknown."""
    key = key.replace("._mean", ".running_mean").replace("._variance", ".running_var")
    family = config["family"]
    for name in (key, f"head.{key}"):  # Paddle lists a shared layer under the name of its first owner
        for pattern, replacement in RULES[family](head_of(config)):
            match = re.fullmatch(pattern, name)
            if match:
                return match.expand(replacement) if isinstance(replacement, str) else replacement(match)
    if re.fullmatch(DROPPED.get(family, r"(?!)"), key):
        return None
    raise KeyError(key)


def convert(
    config: Mapping[str, Any], source: Mapping[str, Tensor], spec_state: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Rename a source state dict and bring it to our layout."""
    state: dict[str, Tensor] = {}
    paddle = config["family"].startswith("paddle")
    for key, value in source.items():
        name = target_name(config, key)
        if name is None:
            continue
        if paddle and value.ndim == 2 and name not in ("head.proj_patch", "head.proj_class"):
            value = value.T
        if config["family"] == "mmseg" and name in ("head.proj_patch", "head.proj_class"):
            value = value.T
        if value.ndim == 4 and spec_state[name].ndim == 2:  # a 1x1 convolution for a linear layer
            value = value.flatten(1)
        assert name not in state or torch.equal(state[name], value), f"{key}: shared layers differ"
        state[name] = value.contiguous()
    for name, value in spec_state.items():
        if name.endswith("num_batches_tracked"):  # Paddle's files have no such counter
            state.setdefault(name, torch.zeros(value.shape, dtype=value.dtype))
    return state


# --- files ---------------------------------------------------------------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """Unpickle dictionaries of numpy arrays and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        arrays = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
        if module not in arrays or name not in ("ndarray", "dtype", "_reconstruct"):
            raise pickle.UnpicklingError(f"{module}.{name} is not a numpy array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a recorded state dict without running anything in it."""
    if path.suffix == ".pdparams":
        arrays = _ArraysOnly(io.BytesIO(path.read_bytes())).load()
        arrays.pop("StructuredToParameterName@@", None)
        return {key: torch.from_numpy(value.copy()) for key, value in arrays.items()}
    content = torch.load(path, map_location="cpu", weights_only=True)
    return content.get("state_dict") or content["model"]
