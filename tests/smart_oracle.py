"""SMART, written down edge by edge as its papers and CAT-K's weights have it, and slow.

Weights go by CAT-K's names. Nothing here is shared with the package.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Edges = dict[int, list[tuple[int, Tensor]]]
"""Target -> (source, embedding of the relative pose)."""


def random_weights(
    dim: int, heads: int, width: int, bands: int, layers: tuple[int, int], n_tokens: int, seed: int
) -> dict[str, Tensor]:
    """Weights of a model, of a size that makes every part matter."""
    rng = np.random.default_rng(seed)
    out: dict[str, Tensor] = {}

    def normal(*shape: int) -> Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    def linear(name: str, n_in: int, n_out: int, bias: bool = True) -> None:
        out[f"{name}.weight"] = normal(n_out, n_in) / math.sqrt(n_in)
        if bias:
            out[f"{name}.bias"] = 0.3 * normal(n_out)

    def norm(name: str, n: int) -> None:
        out[f"{name}.weight"] = 1 + 0.3 * normal(n)
        out[f"{name}.bias"] = 0.3 * normal(n)

    def embedding(name: str, n_in: int) -> None:
        linear(f"{name}.mlp.0", n_in, 128)
        norm(f"{name}.mlp.1", 128)
        linear(f"{name}.mlp.3", 128, dim)
        norm(f"{name}.mlp.4", dim)
        linear(f"{name}.mlp.6", dim, dim)

    def perceptron(name: str, n_in: int, n_out: int) -> None:
        linear(f"{name}.mlp.0", n_in, dim)
        norm(f"{name}.mlp.1", dim)
        linear(f"{name}.mlp.3", dim, n_out)

    def fourier(name: str, n_in: int) -> None:
        out[f"{name}.freqs.weight"] = 0.05 * normal(n_in, bands)
        for i in range(n_in):
            linear(f"{name}.mlps.{i}.0", 2 * bands + 1, dim)
            norm(f"{name}.mlps.{i}.1", dim)
            linear(f"{name}.mlps.{i}.3", dim, dim)
        norm(f"{name}.to_out.0", dim)
        linear(f"{name}.to_out.2", dim, dim)

    def attention(name: str, bipartite: bool) -> None:
        inner = heads * width
        for part in ("to_q", "to_v", "to_v_r", "to_s"):
            linear(f"{name}.{part}", dim, inner)
        for part in ("to_k", "to_k_r"):
            linear(f"{name}.{part}", dim, inner, bias=False)
        linear(f"{name}.to_g", inner + dim, inner)
        linear(f"{name}.to_out", inner, dim)
        linear(f"{name}.ff_mlp.0", dim, 4 * dim)
        linear(f"{name}.ff_mlp.3", 4 * dim, dim)
        for part in ("x_src", "x_dst", "r"):
            norm(f"{name}.attn_prenorm_{part}", dim)
        for part in ("attn_postnorm", "ff_prenorm", "ff_postnorm"):
            norm(f"{name}.{part}", dim)
        if not bipartite:
            for part in ("weight", "bias"):
                shared = out[f"{name}.attn_prenorm_x_src.{part}"]
                out[f"{name}.attn_prenorm_x_dst.{part}"] = shared

    for name, n in (("type_pt_emb", 10), ("polygon_type_emb", 4), ("light_pl_emb", 5)):
        out[f"encoder.map_encoder.{name}.weight"] = normal(n, dim)
    out["encoder.agent_encoder.type_a_emb.weight"] = normal(3, dim)
    fourier("encoder.map_encoder.r_pt2pt_emb", 3)
    embedding("encoder.map_encoder.token_emb", 22)
    for i in range(layers[0]):
        attention(f"encoder.map_encoder.pt2pt_layers.{i}", bipartite=False)
    agent = "encoder.agent_encoder."
    perceptron(f"{agent}shape_emb", 3, dim)
    for name, n in (("x_a_emb", 2), ("r_t_emb", 4), ("r_pt2a_emb", 3), ("r_a2a_emb", 3)):
        fourier(agent + name, n)
    for name in ("veh", "ped", "cyc"):
        embedding(f"{agent}token_emb_{name}", 8)
    embedding(f"{agent}fusion_emb", 2 * dim)
    for i in range(layers[1]):
        attention(f"{agent}t_attn_layers.{i}", bipartite=False)
        attention(f"{agent}pt2a_attn_layers.{i}", bipartite=True)
        attention(f"{agent}a2a_attn_layers.{i}", bipartite=False)
    perceptron(f"{agent}token_predict_head", dim, n_tokens)
    return out


class Oracle:
    """The model of some weights.

    Args:
        weights: by CAT-K's names.
        heads: of attention.
        radii: between map tokens, of map tokens around agents, between agents.
        time_span: tokens.
        map_cap: most neighbours of a map token.
    """

    def __init__(
        self,
        weights: Weights,
        heads: int,
        radii: tuple[float, float, float],
        time_span: int,
        map_cap: int = 100,
    ) -> None:
        self.w, self.heads, self.radii, self.span = weights, heads, radii, time_span
        self.map_cap = map_cap

    def linear(self, name: str, x: Tensor) -> Tensor:
        x = x @ self.w[f"{name}.weight"].T
        bias = self.w.get(f"{name}.bias")
        return x if bias is None else x + bias

    def norm(self, name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return x * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]

    def embedding(self, name: str, x: Tensor) -> Tensor:
        x = self.norm(f"{name}.mlp.1", self.linear(f"{name}.mlp.0", x)).clamp(min=0)
        x = self.norm(f"{name}.mlp.4", self.linear(f"{name}.mlp.3", x)).clamp(min=0)
        return self.linear(f"{name}.mlp.6", x)

    def perceptron(self, name: str, x: Tensor) -> Tensor:
        x = self.norm(f"{name}.mlp.1", self.linear(f"{name}.mlp.0", x)).clamp(min=0)
        return self.linear(f"{name}.mlp.3", x)

    def fourier(self, name: str, scalars: list[float], offset: Tensor | None = None) -> Tensor:
        total = torch.zeros(()) if offset is None else offset
        for i, x in enumerate(scalars):
            phase = 2 * math.pi * x * self.w[f"{name}.freqs.weight"][i]
            f = torch.cat([phase.cos(), phase.sin(), torch.tensor([x], dtype=phase.dtype)])
            f = self.norm(f"{name}.mlps.{i}.1", self.linear(f"{name}.mlps.{i}.0", f)).clamp(min=0)
            total = total + self.linear(f"{name}.mlps.{i}.3", f)
        return self.linear(f"{name}.to_out.2", self.norm(f"{name}.to_out.0", total).clamp(min=0))

    def attention(
        self,
        name: str,
        targets: Tensor,
        sources: Tensor,
        edges: Edges,
    ) -> Tensor:
        """One layer; `edges`: target -> [(source, embedding of the relative pose)]."""
        xs = self.norm(f"{name}.attn_prenorm_x_src", sources)
        xd = self.norm(f"{name}.attn_prenorm_x_dst", targets)
        rows = []
        for i, x in enumerate(targets):
            q = self.linear(f"{name}.to_q", xd[i]).view(self.heads, -1)
            message = torch.zeros_like(q)
            if edges.get(i):
                keys, values = [], []
                for j, r in edges[i]:
                    rr = self.norm(f"{name}.attn_prenorm_r", r)
                    keys.append(
                        self.linear(f"{name}.to_k", xs[j]) + self.linear(f"{name}.to_k_r", rr)
                    )
                    values.append(
                        self.linear(f"{name}.to_v", xs[j]) + self.linear(f"{name}.to_v_r", rr)
                    )
                k = torch.stack(keys).view(len(keys), self.heads, -1)
                v = torch.stack(values).view(len(values), self.heads, -1)
                weight = ((q * k).sum(-1) / math.sqrt(q.shape[-1])).softmax(0)
                message = (weight[..., None] * v).sum(0)
            m = message.flatten()
            g = self.linear(f"{name}.to_g", torch.cat([m, xd[i]])).sigmoid()
            u = m + g * (self.linear(f"{name}.to_s", xd[i]) - m)
            x = x + self.norm(f"{name}.attn_postnorm", self.linear(f"{name}.to_out", u))
            f = self.linear(f"{name}.ff_mlp.0", self.norm(f"{name}.ff_prenorm", x)).clamp(min=0)
            rows.append(x + self.norm(f"{name}.ff_postnorm", self.linear(f"{name}.ff_mlp.3", f)))
        return torch.stack(rows)

    def map_features(
        self, curves: Tensor, index: Tensor, kinds: list[Tensor], position: Tensor, heading: Tensor
    ) -> Tensor:
        """Of one scene."""
        name = "encoder.map_encoder"
        x = self.embedding(f"{name}.token_emb", curves.flatten(1))[index]
        for table, kind in zip(
            ("type_pt_emb", "polygon_type_emb", "light_pl_emb"), kinds, strict=True
        ):
            x = x + self.w[f"{name}.{table}.weight"][kind]
        edges: Edges = {}
        for i in range(len(x)):
            near = [j for j in range(len(x)) if _distance(position[i], position[j]) < self.radii[0]]
            edges[i] = [
                (j, self.fourier(f"{name}.r_pt2pt_emb", _relative(position, heading, i, j)))
                for j in near[: self.map_cap + 1]
                if j != i
            ]
        layers = sum(f"{name}.pt2pt_layers.{i}.to_q.weight" in self.w for i in range(9))
        for layer in range(layers):
            x = self.attention(f"{name}.pt2pt_layers.{layer}", x, x, edges)
        return x

    def logits(
        self,
        tokens: Tensor,
        states: tuple[Tensor, Tensor, Tensor, Tensor],
        classes: Tensor,
        size: Tensor,
        roads: tuple[Tensor, Tensor, Tensor],
        entry: Tensor | None,
    ) -> Tensor:
        """Of one scene, of every state.

        Args:
            tokens: [3, V, 8], last corners.
            states: index, position, heading, valid [A, S].
            classes: [A].
            size: [A, 3].
            roads: features, positions, headings.
            entry: [2], to be added to the position at which an agent enters; None: no motion then.

        Returns:
            [A, S, V].
        """
        name = "encoder.agent_encoder"
        index, position, heading, valid = states
        n, n_steps = valid.shape
        x = torch.zeros(n, n_steps, self.w[f"{name}.type_a_emb.weight"].shape[1], dtype=size.dtype)
        for a in range(n):
            kind = ("veh", "ped", "cyc")[int(classes[a])]
            offset = self.w[f"{name}.type_a_emb.weight"][classes[a]]
            offset = offset + self.perceptron(f"{name}.shape_emb", size[a])
            for k in range(n_steps):
                moved = torch.zeros(2, dtype=size.dtype)
                if k > 0 and valid[a, k - 1]:
                    moved = position[a, k] - position[a, k - 1]
                elif k > 0 and entry is not None:
                    moved = position[a, k] + entry
                scalars = [float(moved.norm()), _angle(float(heading[a, k]), moved)]
                e = self.embedding(f"{name}.token_emb_{kind}", tokens[classes[a], index[a, k]])
                motion = self.fourier(f"{name}.x_a_emb", scalars, offset)
                x[a, k] = self.embedding(f"{name}.fusion_emb", torch.cat([e, motion]))
        features, places, turns = roads
        in_time: Edges = {}
        to_map: Edges = {}
        to_agents: Edges = {}
        flat_p, flat_h = position.flatten(0, 1), heading.flatten()
        for a in range(n):
            for k in range(n_steps):
                if not valid[a, k]:
                    continue
                i = a * n_steps + k
                in_time[i] = [
                    (
                        j := a * n_steps + past,
                        self.fourier(
                            f"{name}.r_t_emb", [*_relative(flat_p, flat_h, i, j), float(past - k)]
                        ),
                    )
                    for past in range(max(0, k - self.span), k)
                    if valid[a, past]
                ]
                both_p = torch.cat([flat_p[i : i + 1], places])
                both_h = torch.cat([flat_h[i : i + 1], turns])
                to_map[i] = [
                    (j, self.fourier(f"{name}.r_pt2a_emb", _relative(both_p, both_h, 0, j + 1)))
                    for j in range(len(places))
                    if _distance(flat_p[i], places[j]) < self.radii[1]
                ]
                to_agents[i] = [
                    (
                        j := b * n_steps + k,
                        self.fourier(f"{name}.r_a2a_emb", _relative(flat_p, flat_h, i, j)),
                    )
                    for b in range(n)
                    if b != a
                    and valid[b, k]
                    and _distance(flat_p[i], flat_p[b * n_steps + k]) < self.radii[2]
                ]
        x = x.flatten(0, 1)
        layers = sum(f"{name}.t_attn_layers.{i}.to_q.weight" in self.w for i in range(9))
        for layer in range(layers):
            x = self.attention(f"{name}.t_attn_layers.{layer}", x, x, in_time)
            x = self.attention(f"{name}.pt2a_attn_layers.{layer}", x, features, to_map)
            x = self.attention(f"{name}.a2a_attn_layers.{layer}", x, x, to_agents)
        return self.perceptron(f"{name}.token_predict_head", x).unflatten(0, (n, n_steps))


def _distance(a: Tensor, b: Tensor) -> float:
    return math.hypot(float(b[0] - a[0]), float(b[1] - a[1]))


def _angle(heading: float, vector: Tensor) -> float:
    x, y = float(vector[0]), float(vector[1])
    if x == 0 and y == 0:
        return 0.0
    c, s = math.cos(heading), math.sin(heading)
    return math.atan2(c * y - s * x, c * x + s * y)


def _relative(position: Tensor, heading: Tensor, i: int, j: int) -> list[float]:
    turn = float(heading[j] - heading[i])
    wrapped = (turn + math.pi) % (2 * math.pi) - math.pi
    away = position[j] - position[i]
    return [_distance(position[i], position[j]), _angle(float(heading[i]), away), wrapped]
