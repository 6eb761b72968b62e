"""What a submission says of itself: read from flags and YAML, and held against the rules.

The fields are those of `SimAgentsChallengeSubmission` in
`waymo_open_dataset/protos/sim_agents_submission.proto`, whose comments are the rules. The proto
requires nothing by itself; the evaluation server does.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from wosac_toolkit.errors import FormatError, some_ids
from wosac_toolkit.io.files import one_line
from wosac_toolkit.io.submission import SubmissionMetadata
from wosac_toolkit.validation import Finding

SIM_AGENTS = 1
"""`SubmissionType.SIM_AGENTS_SUBMISSION`. The official enumeration has no other, and the official
tutorial of Scenario Generation writes it as well."""

LONG_NAME = 40
"""Characters of a method's name; the rules only say "short"."""

_MAX_FILE_BYTES = 1 << 20
_ACCOUNT = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_PARAMETERS = re.compile(r"[0-9]+[KMBT]")
_FLAGS = (
    "uses_lidar_data",
    "uses_camera_data",
    "uses_public_model_pretraining",
    "acknowledge_complies_with_closed_loop_requirement",
)
_LISTS = ("authors", "public_model_names")
_KEYS = tuple(field.name for field in dataclasses.fields(SubmissionMetadata))[1:]


def make_metadata(file: Path | None, flags: Mapping[str, object]) -> SubmissionMetadata:
    """The metadata of a YAML file, with what the flags say in its place.

    Args:
        file: a mapping with the fields of `SubmissionMetadata` but the type; None for none.
        flags: fields; None and empty ones are not given.

    Raises:
        FormatError: not a YAML mapping of these fields.
    """
    fields = {} if file is None else read_fields(file)
    fields.update({key: value for key, value in flags.items() if value not in (None, "", ())})
    return SubmissionMetadata(submission_type=SIM_AGENTS, **fields)  # type: ignore[arg-type]


def read_fields(path: Path) -> dict[str, object]:
    """The fields that a YAML file gives.

    Raises:
        FormatError: not a YAML mapping, an unknown field, or a value of another type.
    """
    import yaml

    with open(path, "rb") as stream:
        data = stream.read(_MAX_FILE_BYTES + 1)
    where = str(path)
    if len(data) > _MAX_FILE_BYTES:
        raise FormatError("a file of metadata above 1 MB", where=where)
    try:
        content = yaml.safe_load(data.decode())
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"not YAML: {one_line(error)}", where=where) from None
    if not isinstance(content, dict):
        raise FormatError(
            "not a mapping of fields", where=where, mend="one 'field: value' a line; see the docs"
        )
    return {_key(key, where): _value(key, value, where) for key, value in content.items()}


def _key(key: object, where: str) -> str:
    if key not in _KEYS:
        close = difflib.get_close_matches(str(key)[:80], _KEYS, n=1)
        mend = f"did you mean {close[0]}?" if close else f"the fields are {', '.join(_KEYS)}"
        raise FormatError(f"unknown field {str(key)[:80]!r}", where=where, mend=mend)
    return str(key)


def _value(key: str, value: Any, where: str) -> object:
    if key in _FLAGS:
        if not isinstance(value, bool):
            raise FormatError(f"{key} must be true or false", where=where)
        return value
    if key in _LISTS:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise FormatError(f"{key} must be a list of texts", where=where)
        return tuple(texts)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # `num_model_parameters: 24` is a number to YAML.
    if not isinstance(value, str):
        raise FormatError(f"{key} must be a text", where=where)
    return value.strip()


def check_metadata(metadata: SubmissionMetadata, file: str = "") -> list[Finding]:
    """Everything about the metadata that the rules forbid or advise against.

    Args:
        metadata: as a shard has it, or as it is going to be packed.
        file: where it comes from, for the findings.

    Returns:
        Findings with the codes `metadata_missing` and `metadata_invalid`, which the server is
        expected to refuse, and `metadata_advice`, about the scene "".
    """
    return [
        Finding(code, what, "", file=file)
        for check in (_type, _account, _method, _texts, _data, _parameters, _closed_loop)
        for code, what in check(metadata)
    ]


_Rows = Iterator[tuple[str, str]]


def _type(metadata: SubmissionMetadata) -> _Rows:
    if metadata.submission_type == 0:
        yield "metadata_missing", "submission_type is not set to SIM_AGENTS_SUBMISSION"
    elif metadata.submission_type != SIM_AGENTS:
        yield (
            "metadata_invalid",
            f"submission_type is {metadata.submission_type}, not {SIM_AGENTS}, "
            "SIM_AGENTS_SUBMISSION",
        )


def _account(metadata: SubmissionMetadata) -> _Rows:
    account = metadata.account_name
    if not account:
        yield (
            "metadata_missing",
            "account_name is empty; it is the full e-mail address registered at waymo.com/open",
        )
    elif not _ACCOUNT.fullmatch(account):
        yield (
            "metadata_invalid",
            f"account_name {account[:80]!r} is no e-mail address; "
            "it is the one registered at waymo.com/open",
        )


def _method(metadata: SubmissionMetadata) -> _Rows:
    name = metadata.unique_method_name
    if not name.strip():
        yield "metadata_missing", "unique_method_name is empty"
    elif not name.isprintable() or name != name.strip():
        yield "metadata_invalid", f"unique_method_name is no plain line of text: {name[:80]!r}"
    elif len(name) > LONG_NAME:
        yield (
            "metadata_advice",
            f"unique_method_name has {len(name)} characters; it should be short, "
            "as it is what the leaderboard shows",
        )


def _texts(metadata: SubmissionMetadata) -> _Rows:
    if not any(author.strip() for author in metadata.authors):
        yield "metadata_missing", "authors is empty"
    for name in ("affiliation", "description", "method_link"):
        if not getattr(metadata, name).strip():
            yield "metadata_advice", f"{name} is empty"


def _data(metadata: SubmissionMetadata) -> _Rows:
    for name in _FLAGS[:3]:
        if getattr(metadata, name) is None:
            yield "metadata_missing", f"{name} is not set; the rules require true or false"
    if metadata.uses_public_model_pretraining and not metadata.public_model_names:
        yield (
            "metadata_advice",
            "uses_public_model_pretraining is true, but public_model_names is empty",
        )
    if metadata.public_model_names and not metadata.uses_public_model_pretraining:
        yield (
            "metadata_advice",
            f"public_model_names is given ({some_ids(metadata.public_model_names)[:80]}), "
            "but uses_public_model_pretraining is not true",
        )


def _parameters(metadata: SubmissionMetadata) -> _Rows:
    number = metadata.num_model_parameters
    if not number:
        yield "metadata_missing", 'num_model_parameters is empty; it is a number like "7M"'
    elif number.isascii() and number.isdigit():
        # The official tutorial itself writes '24'.
        yield (
            "metadata_advice",
            f"num_model_parameters {number[:40]!r} has no suffix K, M, B or T, "
            "which the rules ask for",
        )
    elif not _PARAMETERS.fullmatch(number):
        yield (
            "metadata_invalid",
            f"num_model_parameters {number[:40]!r} is no whole number followed by K, M, B or T, "
            'like "7M"',
        )


def _closed_loop(metadata: SubmissionMetadata) -> _Rows:
    if not metadata.acknowledge_complies_with_closed_loop_requirement:
        yield (
            "metadata_missing",
            "acknowledge_complies_with_closed_loop_requirement is not true; "
            "rollouts must be simulated in closed loop",
        )
