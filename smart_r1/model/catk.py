"""Checkpoints of CAT-K: the names of its weights, and ours for them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from smart_r1.model.smart import SMART
from wosac_toolkit.errors import FormatError, some_ids

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
