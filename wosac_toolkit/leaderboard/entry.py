"""One entry of the leaderboard: a published result, or a run of our own, as a JSON file.

An entry has one method's result under one version of the metric on one split. Its `results` are the
numbers that the board shows; what other sources print for the same result goes to
`other_results`. Numbers are kept as they were printed, mistakes included: where a meta-metric is
not the weighted sum of its own parts, the entry has to say so in a `Conflict`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

from wosac_toolkit.challenge import BUCKET_FIELDS, CHALLENGES, COMPONENTS, get_challenge
from wosac_toolkit.errors import FormatError, WosacError

SCHEMA_VERSION = 1

Tier = Literal["self-reported", "re-scored from rollouts", "official server"]
Split = Literal["test", "validation", "other", "not stated"]

TIERS: tuple[Tier, ...] = get_args(Tier)
SPLITS: tuple[Split, ...] = get_args(Split)

#: The versions of the metric that an entry can be of. `other` are results that call themselves
#: WOSAC but follow none of the official versions; their `conditions` say what they follow.
METRIC_VERSIONS = (*CHALLENGES, "other")

#: How many scenes a whole split of WOMD has. The versions of the dataset differ; the first number
#: is the one that papers state.
SPLIT_SIZES: Mapping[str, tuple[int, ...]] = MappingProxyType(
    {"test": (44_920, 44_926), "validation": (44_097, 44_102)}
)

META_METRIC = "realism_meta_metric"
BUCKETS = ("kinematic_metrics", "interactive_metrics", "map_based_metrics")
RATES = tuple(name for name in BUCKET_FIELDS if name.endswith("_rate"))
DISPLACEMENTS = ("min_ade", "average_displacement_error")
LIKELIHOODS = tuple(f"{name}_likelihood" for name in COMPONENTS)

#: The numbers an entry can have, under their official names, in the order in which they are shown.
VALUE_FIELDS = (META_METRIC, *BUCKETS, *DISPLACEMENTS, *RATES, *LIKELIHOODS)

_ID = re.compile(r"[a-z0-9]+([.-][a-z0-9]+)*")
_DATE = re.compile(r"20\d\d-(0[1-9]|1[0-2])(-(0[1-9]|[12]\d|3[01]))?")
_LONGEST_TEXT = 500


@dataclass(frozen=True, slots=True)
class Link:
    """A reference: words, and where they lead.

    Attributes:
        text: what is shown.
        url: an http or https address; None where there is none.
    """

    text: str
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Conflict:
    """Something about the numbers that does not fit, told to the reader.

    Attributes:
        note: what, in a sentence.
        field: the number that is not what its parts give; None for conflicts of another kind.
        difference: what the parts give less what is printed.
    """

    note: str
    field: str | None = None
    difference: float | None = None


@dataclass(frozen=True, slots=True)
class Results:
    """One set of numbers, from one source.

    Attributes:
        values: field of `VALUE_FIELDS` -> number, `realism_meta_metric` always among them.
        source: where the numbers were read.
        note: for sets beside the shown one: how they come to differ.
        intervals: field -> 95 % confidence interval (low, high) of its mean over the scenes.
        conflicts: what does not fit within this set, or with it.
    """

    values: Mapping[str, float]
    source: Link
    note: str = ""
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    conflicts: tuple[Conflict, ...] = ()


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry.

    Attributes:
        id: the name of its file, without `.json`.
        method: what was scored.
        challenge: version of the metric, one of `METRIC_VERSIONS`.
        split: the scenes: a split of WOMD, `other` ones, or `not stated` by the source.
        n_scenarios: how many; None where the source does not say.
        conditions: how the evaluation departs from the official one, as a noun phrase ("2 % of the
            split"); empty where it does not.
        tier: who vouches for the numbers.
        results: the numbers that are shown.
        other_results: numbers of other sources for the same result, or of earlier submissions.
        date: when they were published, YYYY-MM or YYYY-MM-DD; None where unknown.
        parameters: of the model.
        paper: the report of the method.
        venue: where that was published, or the prize it won.
        code: address of its code.
        notes: anything else, a sentence each.
        reference: a yardstick and no contestant, such as the score of the log itself.
        local: scored by the reader, not published.
        signature: that of `wosac score`, for what this toolkit scored.
    """

    id: str
    method: str
    challenge: str
    split: Split
    n_scenarios: int | None
    conditions: str
    tier: Tier
    results: Results
    other_results: tuple[Results, ...] = ()
    date: str | None = None
    parameters: int | None = None
    paper: Link | None = None
    venue: str = ""
    code: str | None = None
    notes: tuple[str, ...] = ()
    reference: bool = False
    local: bool = False
    signature: str | None = None

    def __getitem__(self, field: str) -> float | None:
        """One of the shown numbers, None where it is not known."""
        return self.results.values.get(field)

    @property
    def score(self) -> float:
        """The meta-metric."""
        return self.results.values[META_METRIC]

    @property
    def conflicts(self) -> tuple[Conflict, ...]:
        """All that does not fit, in the shown numbers and in those beside them."""
        sets = (self.results, *self.other_results)
        return tuple(conflict for results in sets for conflict in results.conflicts)

    @property
    def obstacles(self) -> tuple[str, ...]:
        """Why the entry cannot be compared with those of a whole split; empty where it can."""
        reasons = [self.conditions] if self.conditions else []
        if self.split == "not stated":
            reasons.append("split not stated")
        elif self.split == "other":
            reasons = reasons or ["not a split of WOMD"]
        elif self.n_scenarios is None:
            reasons = reasons or ["number of scenes not stated"]
        elif self.n_scenarios not in SPLIT_SIZES[self.split]:
            reasons.append(f"{self.n_scenarios:,} scenes, not the whole split")
        return tuple(reasons)

    def to_json(self) -> str:
        """The text of the entry's file: keys in a fixed order, without those that say nothing."""
        fields = cast("dict[str, Any]", _pruned(dataclasses.asdict(self)))
        del fields["id"]
        return json.dumps({"schema_version": SCHEMA_VERSION, **fields}, indent=2) + "\n"


def _pruned(value: Any) -> Any:
    """`value` without the fields of objects that are None, False or empty."""
    if isinstance(value, dict):
        kept = {name: _pruned(item) for name, item in value.items()}
        return {n: v for n, v in kept.items() if v not in (None, "", [], {}) and v is not False}
    return [_pruned(item) for item in value] if isinstance(value, (list, tuple)) else value


# --------------------------------------------------------------------------------------------------
# Whether the numbers add up


@dataclass(frozen=True, slots=True)
class Sum:
    """A number of an entry that is the weighted sum of others.

    Attributes:
        field: which.
        parts: the fields it is the sum of.
        printed: what the source prints.
        computed: what the parts give.
        tolerance: how far apart rounding to the printed digits can bring the two.
    """

    field: str
    parts: tuple[str, ...]
    printed: float
    computed: float
    tolerance: float

    @property
    def difference(self) -> float:
        """What the parts give less what is printed."""
        return self.computed - self.printed

    @property
    def agrees(self) -> bool:
        """Whether rounding explains the difference."""
        return abs(self.difference) <= self.tolerance


def sums(results: Results, challenge: str) -> list[Sum]:
    """The meta-metric and the buckets that can be computed from other numbers of the same set.

    The meta-metric is computed from the buckets, and where these are not known from the components;
    a bucket from its components, each with the weights of the version
    (`aggregate_metrics_to_buckets` of the official `metrics.py`).

    Args:
        results: a set of numbers.
        challenge: version of the metric; none of the sums is known for `other`.
    """
    if challenge not in CHALLENGES:
        return []
    members = [
        (f"{component.bucket}_metrics", component.field, component.weight)
        for component in get_challenge(challenge).components
    ]
    weights = {bucket: math.fsum(w for b, _, w in members if b == bucket) for bucket in BUCKETS}
    formulas = [(META_METRIC, weights), (META_METRIC, {field: w for _, field, w in members})]
    formulas += [
        (bucket, {field: w / weights[bucket] for b, field, w in members if b == bucket})
        for bucket in BUCKETS
    ]
    found: dict[str, Sum] = {}
    for field, parts in formulas:
        if field in results.values and all(part in results.values for part in parts):
            found.setdefault(field, _sum(results.values, field, parts))
    return list(found.values())


def _sum(values: Mapping[str, float], field: str, parts: Mapping[str, float]) -> Sum:
    rounding = 0.5 * 10.0 ** -decimals(values, field)
    rounding += math.fsum(
        weight * 0.5 * 10.0 ** -decimals(values, part) for part, weight in parts.items()
    )
    return Sum(
        field=field,
        parts=tuple(parts),
        printed=values[field],
        computed=math.fsum(weight * values[part] for part, weight in parts.items()),
        # The second term is for numbers with all the digits of sums in float32.
        tolerance=rounding + 1e-6,
    )


def decimals(values: Mapping[str, float], field: str) -> int:
    """How many decimals a number of a set was printed with.

    A trailing zero is lost in a JSON number, so it is the most that any number of its kind has: the
    scores and buckets of a set, its displacements, its rates and its components are each printed
    alike.
    """
    kinds = ((META_METRIC, *BUCKETS), DISPLACEMENTS, RATES, LIKELIHOODS)
    kind = next(fields for fields in kinds if field in fields)
    exponents = [Decimal(repr(values[name])).as_tuple().exponent for name in kind if name in values]
    return max(0, *(-cast(int, exponent) for exponent in exponents))


# --------------------------------------------------------------------------------------------------
# Numbers as text


def number_text(results: Results, field: str, most: int = 4) -> str:
    """A number with the decimals its source prints, but at most `most`; empty where unknown."""
    if field not in results.values:
        return ""
    return f"{results.values[field]:.{min(most, decimals(results.values, field))}f}"


_SUFFIXES = {"T": 10**12, "B": 10**9, "M": 10**6, "K": 10**3}


def parameters_text(n: int) -> str:
    """A number of parameters in short: 7M, 65K."""
    suffix, unit = next(((s, u) for s, u in _SUFFIXES.items() if n >= u), ("", 1))
    return f"{n / unit:.3g}{suffix}"


def parse_parameters(text: str) -> int:
    """The reverse: a number, with or without one of the suffixes K, M, B, T.

    Raises:
        WosacError: it is none.
    """
    match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([KMBT]?)", text.strip().upper())
    if match is None:
        raise WosacError(f"{text!r} is no number of parameters", mend="such as 7M, 0.5B or 120000")
    return round(Decimal(match[1]) * _SUFFIXES.get(match[2], 1))


# --------------------------------------------------------------------------------------------------
# Checks


@dataclass(frozen=True, slots=True)
class Remark:
    """What the validator has to say of an entry.

    Attributes:
        level: `error` for what has to be mended, `warning` for a conflict that the entry notes.
        where: the file.
        what: in plain words.
    """

    level: Literal["error", "warning"]
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.level}: {self.where}: {self.what}"


def check_sums(entry: Entry, where: str) -> Iterator[Remark]:
    """Hold the numbers of an entry against each other.

    A number that is not the sum of its parts is a warning where the entry notes the conflict, with
    the difference, and an error where it does not; so is a note of a difference that is not there.
    """
    for results in (entry.results, *entry.other_results):
        shown = results is entry.results
        place = "" if shown else f" in the numbers of {results.source.text!r}"
        noted = {conflict.field: conflict for conflict in results.conflicts if conflict.field}
        for total in sums(results, entry.challenge):
            digits = min(8, decimals(results.values, total.field))
            conflict = noted.pop(total.field, None)
            what = (
                f"{total.field}{place} is printed as {total.printed:.{digits}f}, its parts give "
                f"{total.computed:.{digits + 1}f} (difference {total.difference:+.{digits + 1}f}, "
                f"rounding explains {total.tolerance:.{digits + 1}f})"
            )
            if conflict is None or conflict.difference is None:
                if not total.agrees:
                    yield Remark("error", where, f"{what}; mend it, or note it as a conflict")
            elif total.agrees:
                yield Remark("error", where, f"a conflict is noted, but {what}")
            elif abs(conflict.difference - total.difference) > 10.0**-digits:
                yield Remark(
                    "error", where, f"{what}, but {conflict.difference:+} is noted as a conflict"
                )
            else:
                yield Remark("warning", where, f"{what}, as it notes")
        for field in noted:
            what = f"a conflict of {field}{place} is noted, but its parts are not known"
            yield Remark("error", where, what)


# --------------------------------------------------------------------------------------------------
# From JSON


def parse_entry(text: str, id_: str, where: str = "") -> Entry:
    """Read the text of an entry's file.

    The text may come from anyone: every field is checked for its type and range, unknown fields and
    addresses other than http and https are refused, and texts are one line of printable characters.

    Args:
        text: JSON.
        id_: the name of the file, without `.json`.
        where: what errors call the file; the id by default.

    Raises:
        FormatError: it is no entry; the error names the field.
    """
    where = where or id_
    if not _ID.fullmatch(id_) or len(id_) > 120:
        raise FormatError(
            f"the name {id_!r} is not made of lower-case words and numbers joined by '-' or '.'",
            where=where,
            mend="rename the file",
        )
    try:
        fields = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"not JSON: {error}", where=where) from None
    reader = _Object(fields, where)
    version = reader.take("schema_version", int)
    if version != SCHEMA_VERSION:
        raise FormatError(
            f"schema version {version} is unknown to this toolkit, which knows {SCHEMA_VERSION}",
            where=where,
            mend="upgrade wosac-toolkit",
        )
    entry = Entry(
        id=id_,
        method=reader.text("method"),
        challenge=reader.choice("challenge", METRIC_VERSIONS),
        split=cast(Split, reader.choice("split", SPLITS)),
        n_scenarios=reader.count("n_scenarios"),
        conditions=reader.text("conditions", default=""),
        tier=cast(Tier, reader.choice("tier", TIERS)),
        results=_results(reader.object("results")),
        other_results=tuple(_results(part) for part in reader.objects("other_results")),
        date=reader.matching("date", _DATE, "YYYY-MM or YYYY-MM-DD"),
        parameters=reader.count("parameters"),
        paper=_link(reader.object("paper")) if "paper" in reader else None,
        venue=reader.text("venue", default=""),
        code=reader.url("code"),
        notes=reader.texts("notes"),
        reference=reader.take("reference", bool, default=False),
        local=reader.take("local", bool, default=False),
        signature=reader.text("signature", default="") or None,
    )
    reader.finish()
    if entry.challenge == "other" and not entry.conditions:
        raise FormatError(
            "a metric of another version needs 'conditions' that say which", where=where
        )
    return entry


def _results(reader: _Object) -> Results:
    values_reader = reader.object("values")
    values = {name: values_reader.score(name) for name in VALUE_FIELDS if name in values_reader}
    values_reader.finish()
    if META_METRIC not in values:
        raise FormatError(f"{META_METRIC!r} is missing", where=values_reader.where)
    intervals_reader = reader.object("intervals", optional=True)
    intervals = {n: intervals_reader.interval(n, values) for n in values if n in intervals_reader}
    intervals_reader.finish()
    results = Results(
        values=values,
        source=_link(reader.object("source")),
        note=reader.text("note", default=""),
        intervals=intervals,
        conflicts=tuple(_conflict(part) for part in reader.objects("conflicts")),
    )
    reader.finish()
    return results


def _conflict(reader: _Object) -> Conflict:
    field = reader.choice("field", (META_METRIC, *BUCKETS)) if "field" in reader else None
    difference = reader.number("difference") if field is not None else None
    conflict = Conflict(reader.text("note"), field, difference)
    reader.finish()
    return conflict


def _link(reader: _Object) -> Link:
    link = Link(reader.text("text"), reader.url("url"))
    reader.finish()
    return link


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field is given twice")
    return fields


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


_REQUIRED: Any = object()


class _Object:
    """The fields of a JSON object, taken one by one and checked; `finish` refuses what is left."""

    def __init__(self, fields: Any, where: str) -> None:
        if not isinstance(fields, dict):
            raise FormatError("not a JSON object", where=where)
        self._fields, self.where = dict(fields), where

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def take(self, name: str, kind: type | tuple[type, ...], default: Any = _REQUIRED) -> Any:
        """A field of a type; where it is absent, the default."""
        value = self._fields.pop(name, _REQUIRED)
        if value is _REQUIRED:
            if default is _REQUIRED:
                raise FormatError(f"{name!r} is missing", where=self.where)
            return default
        kinds = kind if isinstance(kind, tuple) else (kind,)
        # A bool is an int to Python, and none to a reader.
        if type(value) not in kinds:
            words = " or ".join(_WORDS[k] for k in kinds)
            shown = json.dumps(value)
            shown = shown if len(shown) <= 60 else shown[:57] + "..."
            raise FormatError(f"{name!r} must be {words}, not {shown}", where=self.where)
        return value

    def text(self, name: str, default: Any = _REQUIRED) -> str:
        return self._one_line(name, self.take(name, str, default), empty=default == "")

    def texts(self, name: str) -> tuple[str, ...]:
        items = self.take(name, list, default=[])
        if not all(isinstance(item, str) for item in items):
            raise FormatError(f"{name!r} must be a list of texts", where=self.where)
        return tuple(self._one_line(name, item) for item in items)

    def _one_line(self, name: str, value: str, empty: bool = False) -> str:
        # Lone surrogates, which no file can hold, and characters that turn the direction of
        # writing are not printable either.
        if value != value.strip() or not value.isprintable():
            raise FormatError(f"{name!r} must be one line of printable text", where=self.where)
        if not (value or empty) or len(value) > _LONGEST_TEXT:
            raise FormatError(
                f"{name!r} must have 1 to {_LONGEST_TEXT} characters", where=self.where
            )
        return value

    def choice(self, name: str, choices: Collection[str]) -> str:
        value: str = self.take(name, str)
        if value not in choices:
            known = ", ".join(map(repr, choices))
            raise FormatError(f"{name!r} is {value[:60]!r}, not one of {known}", where=self.where)
        return value

    def matching(self, name: str, pattern: re.Pattern[str], words: str) -> str | None:
        value: str | None = self.take(name, (str, type(None)), default=None)
        if value is not None and not pattern.fullmatch(value):
            raise FormatError(f"{name!r} is {value[:60]!r}, not {words}", where=self.where)
        return value

    def count(self, name: str) -> int | None:
        value: int | None = self.take(name, (int, type(None)), default=None)
        if value is not None and not 0 < value < 10**15:
            raise FormatError(f"{name!r} must be a positive whole number", where=self.where)
        return value

    def number(self, name: str) -> float:
        value = self.take(name, (int, float))
        # An integer may be too large to be a float at all.
        if not abs(value) < 1e15:
            raise FormatError(f"{name!r} must be a finite number", where=self.where)
        return float(value)

    def score(self, name: str) -> float:
        value = self.number(name)
        if value < 0 or (value > 1 and name not in DISPLACEMENTS):
            span = "0 or more" if name in DISPLACEMENTS else "between 0 and 1"
            raise FormatError(f"{name!r} must be {span}, not {value}", where=self.where)
        return value

    def interval(self, name: str, values: Mapping[str, float]) -> tuple[float, float]:
        ends = self.take(name, list)
        if len(ends) != 2 or not all(type(end) in (int, float) for end in ends):
            raise FormatError(f"{name!r} must be two numbers, low and high", where=self.where)
        low, high = map(float, ends)
        if not low <= values[name] <= high:
            raise FormatError(
                f"the interval {low} to {high} of {name!r} does not hold its value {values[name]}",
                where=self.where,
            )
        return low, high

    def url(self, name: str) -> str | None:
        value = self.text(name, default="")
        if not value:
            return None
        try:
            parts = urlsplit(value)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname or " " in value:
            raise FormatError(f"{name!r} is no http or https address", where=self.where)
        return value

    def object(self, name: str, optional: bool = False) -> _Object:
        fields = self._fields.pop(name, {} if optional else _REQUIRED)
        if fields is _REQUIRED:
            raise FormatError(f"{name!r} is missing", where=self.where)
        return _Object(fields, f"{self.where}: {name}")

    def objects(self, name: str) -> Sequence[_Object]:
        items = self.take(name, list, default=[])
        return [_Object(item, f"{self.where}: {name}[{i}]") for i, item in enumerate(items)]

    def finish(self) -> None:
        if self._fields:
            names = ", ".join(repr(name[:60]) for name in sorted(self._fields))
            raise FormatError(f"unknown field {names}", where=self.where)


_WORDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list: "a list",
    type(None): "null",
}
