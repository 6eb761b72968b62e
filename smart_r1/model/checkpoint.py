"""Models as files: a folder with the weights and what they are weights of.

    model.safetensors    weights, and the vocabulary as `motion` and `curves`
    model.json           the sizes, the vocabulary's fingerprint, and where the model comes from

Nothing of it is unpickled.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from smart_r1.model.config import ModelConfig
from smart_r1.model.smart import SMART
from smart_r1.tokens.vocabulary import Vocabulary
from wosac_toolkit.errors import FormatError, WosacError
from wosac_toolkit.io.files import atomic_write, one_line

FORMAT = 1


def save_model(folder: Path, model: SMART, origin: Mapping[str, Any] | None = None) -> None:
    """Write a model to a folder.

    Args:
        folder: made if it is not there; a model in it is replaced.
        model: on any device.
        origin: what is kept of how the model came about, as JSON takes it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {
        "format": FORMAT,
        "config": dataclasses.asdict(model.config),
        "vocabulary": model.vocabulary().fingerprint(),
        "origin": dict(origin or {}),
    }
    tensors = {name: tensor.contiguous().cpu() for name, tensor in model.state_dict().items()}
    with atomic_write(folder / "model.safetensors") as stream:
        stream.write(save(tensors))
    with atomic_write(folder / "model.json") as stream:
        stream.write(json.dumps(about, indent=2).encode() + b"\n")


def load_model(folder: Path, device: torch.device | str = "cpu") -> SMART:
    """Read a model, in evaluation mode.

    Args:
        folder: as `save_model` writes it.
        device: where it will be.

    Raises:
        FormatError: damaged files, or files that do not belong together.
        WosacError: there is no model.
    """
    about_file, weights_file = folder / "model.json", folder / "model.safetensors"
    for file in (about_file, weights_file):
        if not file.is_file():
            raise WosacError(
                f"no {file.name}",
                where=str(folder),
                mend="a checkpoint is a folder that smart-r1 pretrain or import has written",
            )
    config, tokens = _read_about(about_file)
    try:
        tensors = load_file(weights_file)
    except (SafetensorError, OSError, ValueError) as error:
        raise FormatError(one_line(error), where=str(weights_file)) from None
    if not {"motion", "curves"} <= tensors.keys():
        raise FormatError("holds no vocabulary", where=str(weights_file))
    try:
        vocabulary = Vocabulary(tensors["motion"].numpy(), tensors["curves"].numpy())
    except FormatError as error:
        raise FormatError(error.what, where=str(weights_file)) from None
    if vocabulary.fingerprint() != tokens:
        raise FormatError(
            f"its vocabulary is {vocabulary.fingerprint()}, but {about_file.name} says {tokens}",
            where=str(weights_file),
        )
    model = SMART(config, vocabulary)
    expected = model.state_dict()
    for name in sorted(expected.keys() | tensors.keys()):
        if name not in tensors or name not in expected:
            raise FormatError(
                f"{'no' if name in expected else 'an unknown'} weight {name}",
                where=str(weights_file),
            )
        if tensors[name].shape != expected[name].shape:
            raise FormatError(
                f"{name} is {list(tensors[name].shape)}, not {list(expected[name].shape)}",
                where=str(weights_file),
            )
        if not tensors[name].isfinite().all():
            raise FormatError(f"{name} has values that are not finite", where=str(weights_file))
    model.load_state_dict(tensors)
    return model.to(device).eval()


def fingerprint(folder: Path) -> str:
    """A short hash of a model's weights, vocabulary and sizes."""
    digest = hashlib.sha256()
    for name in ("model.json", "model.safetensors"):
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()[:12]


def _read_about(path: Path) -> tuple[ModelConfig, str]:
    try:
        about = json.loads(path.read_text("utf-8"))
        if about["format"] != FORMAT:
            raise FormatError(f"format {about['format']} is not known", where=str(path))
        return ModelConfig(**about["config"]), str(about["vocabulary"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(
            f"not the description of a model: {one_line(error)}", where=str(path)
        ) from None
