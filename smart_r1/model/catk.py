"""Checkpoints of CAT-K: the names of its weights, and ours for them."""

from __future__ import annotations

import collections
import dataclasses
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from smart_r1.model.checkpoint import save_model
from smart_r1.model.config import CONFIGS, ModelConfig
from smart_r1.model.smart import SMART
from smart_r1.tokens.vocabulary import load_vocabulary
from wosac_toolkit.errors import FormatError, some_ids
from wosac_toolkit.io.files import one_line

_PREFIX = "encoder."

# What they call a part -> what we do. Of the lines that fit, the first holds.
_NAMES = [
    (r"agent_encoder\.token_emb_veh\.mlp\.", "agent_decoder.token.0."),
    (r"agent_encoder\.token_emb_ped\.mlp\.", "agent_decoder.token.1."),
    (r"agent_encoder\.token_emb_cyc\.mlp\.", "agent_decoder.token.2."),
    (r"agent_encoder\.type_a_emb\.", "agent_decoder.agent_class."),
    (r"agent_encoder\.shape_emb\.mlp\.", "agent_decoder.size."),
    (r"agent_encoder\.fusion_emb\.mlp\.", "agent_decoder.fusion."),
    (r"agent_encoder\.token_predict_head\.mlp\.", "agent_decoder.head."),
    (r"agent_encoder\.x_a_emb\.", "agent_decoder.motion."),
    (r"agent_encoder\.r_t_emb\.", "agent_decoder.time_relation."),
    (r"agent_encoder\.r_pt2a_emb\.", "agent_decoder.map_relation."),
    (r"agent_encoder\.r_a2a_emb\.", "agent_decoder.agent_relation."),
    (r"agent_encoder\.t_attn_layers\.", "agent_decoder.time_layers."),
    (r"agent_encoder\.pt2a_attn_layers\.", "agent_decoder.map_layers."),
    (r"agent_encoder\.a2a_attn_layers\.", "agent_decoder.agent_layers."),
    (r"map_encoder\.token_emb\.mlp\.", "map_encoder.token."),
    (r"map_encoder\.type_pt_emb\.", "map_encoder.point_type."),
    (r"map_encoder\.polygon_type_emb\.", "map_encoder.polygon."),
    (r"map_encoder\.light_pl_emb\.", "map_encoder.light."),
    (r"map_encoder\.r_pt2pt_emb\.", "map_encoder.relation."),
    (r"map_encoder\.pt2pt_layers\.", "map_encoder.layers."),
]
_PARTS = [
    (r"\.freqs\.weight$", ".frequencies"),
    (r"\.mlps\.", ".scalars."),
    (r"\.to_out\.(\d)", r".out.\1"),  # Of a Fourier embedding; that of attention has no number.
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_k_r\.", ".relation_key."),
    (r"\.to_v_r\.", ".relation_value."),
    (r"\.to_s\.", ".skip."),
    (r"\.to_g\.", ".gate."),
    (r"\.to_out\.", ".out."),
    (r"\.ff_mlp\.", ".feed_forward."),
    (r"\.attn_prenorm_x_src\.", ".source_norm."),
    (r"\.attn_prenorm_x_dst\.", ".target_norm."),
    (r"\.attn_prenorm_r\.", ".relation_norm."),
    (r"\.attn_postnorm\.", ".out_norm."),
    (r"\.ff_prenorm\.", ".feed_forward_norm."),
    (r"\.ff_postnorm\.", ".feed_forward_out_norm."),
]


def our_name(name: str) -> str | None:
    """Our name of a weight of theirs; None for what SMART does not have."""
    name = name.removeprefix(_PREFIX)
    for pattern, ours in _NAMES:
        renamed, found = re.subn(f"^{pattern}", ours, name)
        if not found:
            continue
        for part, our_part in _PARTS:
            renamed = re.sub(part, our_part, renamed)
        return renamed
    return None


def import_checkpoint(
    checkpoint: Path, motion: Path, curves: Path | None, size: str | None, out: Path
) -> tuple[str, int]:
    """Turn a checkpoint of CAT-K into a model of ours.

    Args:
        checkpoint: `.ckpt`, `.pt` or `.safetensors`.
        motion: the motion tokens it was trained with.
        curves: the map curves, where `motion` does not hold them.
        size: one of `CONFIGS`; None for the one whose shapes fit.
        out: folder of the model.

    Returns:
        The size's name and the number of parameters.

    Raises:
        FormatError: a file cannot be read, or does not hold what it should.
    """
    weights, where = _read_weights(checkpoint), str(checkpoint)
    vocabulary = load_vocabulary(motion, curves)
    sizes = [size] if size is not None else [n for n, c in CONFIGS.items() if _fits(c, weights)]
    if not sizes:
        raise FormatError(
            "its weights have the shapes of no size that is known",
            where=where,
            mend=f"only CAT-K's SMART can be read; sizes are {', '.join(CONFIGS)}",
        )
    # The authors' models were trained on what the public code does where an agent enters.
    config = dataclasses.replace(CONFIGS[sizes[0]], entry_motion="global")
    model = SMART(config, vocabulary)
    load_weights(model, weights, where)
    save_model(out, model, {"imported_from": checkpoint.name})
    return sizes[0], sum(parameter.numel() for parameter in model.parameters())


def _fits(config: ModelConfig, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights have the shapes of a size."""
    query = weights.get(f"{_PREFIX}agent_encoder.t_attn_layers.0.to_q.weight")
    frequencies = weights.get(f"{_PREFIX}agent_encoder.x_a_emb.freqs.weight")
    if query is None or frequencies is None:
        return False
    layers = {
        name.split(".")[3] for name in weights if name.startswith(f"{_PREFIX}agent_encoder.t_attn")
    }
    return (
        tuple(query.shape) == (config.n_heads * config.head_dim, config.hidden_dim)
        and frequencies.shape[1] == config.n_frequencies
        and len(layers) == config.n_agent_layers
    )


class _Inert:
    """Stands for every class that a checkpoint mentions beside its tensors, and does nothing.

    Lightning's checkpoints hold the configuration of their training as objects of other packages.
    """

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...

    def __setitem__(self, key: object, value: object) -> None: ...

    def append(self, item: object) -> None:
        """Nothing."""

    def extend(self, items: object) -> None:
        """Nothing."""


class _DataUnpickler(pickle.Unpickler):
    """Builds tensors and dicts; a pickle that asks for anything else gets something inert."""

    _ALLOWED: ClassVar = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The function or class that a name stands for."""
        return self._ALLOWED.get((module, name), _Inert)


class _Data:
    """What `torch.load` takes for the module `pickle`."""

    Unpickler = _DataUnpickler


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, by their names."""
    where = str(path)
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        elif not zipfile.is_zipfile(path):
            raise FormatError("neither .safetensors nor an archive of torch.save", where=where)
        else:
            # Not "weights only", which refuses a file for what we do not look at; but with an
            # unpickler that cannot call anything but what builds tensors.
            content = torch.load(path, map_location="cpu", weights_only=False, pickle_module=_Data)
    except FormatError:
        raise
    except Exception as error:  # Whatever a damaged pickle runs into.
        raise FormatError(f"cannot be read: {one_line(error)}", where=where) from None
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if (
        not isinstance(content, dict)
        or not content
        or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
        )
    ):
        raise FormatError("holds no state_dict of tensors", where=where)
    return {name: tensor.detach() for name, tensor in content.items()}


def load_weights(model: SMART, weights: Mapping[str, Tensor], where: str) -> None:
    """Give a model the weights of a CAT-K checkpoint.

    Args:
        model: of the sizes that the checkpoint has.
        weights: its `state_dict`.
        where: the file, for errors.

    Raises:
        FormatError: weights are missing, unknown, of other shapes, or not finite.
    """
    renamed: dict[str, Tensor] = {}
    unknown = []
    for name, ours, tensor in _renamed(weights):
        if ours is None:
            unknown.append(name)
        elif ours not in renamed:
            renamed[ours] = tensor
        elif not torch.equal(renamed[ours], tensor):
            raise FormatError(
                f"{name} differs from the weight it should be the same as", where=where
            )
    expected = dict(model.named_parameters())
    unknown += renamed.keys() - expected.keys()
    if unknown or (missing := expected.keys() - renamed.keys()):
        what = f"unknown weights {some_ids(unknown)}" if unknown else f"no {some_ids(missing)}"
        raise FormatError(
            what, where=where, mend="only checkpoints of CAT-K's SMART can be read, not of SMART"
        )
    for name, parameter in expected.items():
        if parameter.shape != renamed[name].shape:
            raise FormatError(
                f"{name} is {list(renamed[name].shape)}, not {list(parameter.shape)}",
                where=where,
                mend="choose the model's size with --model, or another vocabulary",
            )
        if not renamed[name].isfinite().all():
            raise FormatError(f"{name} has values that are not finite", where=where)
    with torch.no_grad():
        for name, parameter in expected.items():
            parameter.copy_(renamed[name])


def _renamed(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, str | None, Tensor]]:
    """Their name, ours, and the weight.

    Layers between things of one kind have one norm for sources and targets; their checkpoints hold
    it twice.
    """
    for name, tensor in weights.items():
        ours = our_name(name)
        if ours is not None and "map_layers" not in ours:
            ours = ours.replace(".target_norm.", ".source_norm.")
        yield name, ours, tensor
