"""A report as one HTML file: style and pictures are inside, nothing is loaded, nothing runs.

Text comes from folder names, scenario ids and leaderboard entries, and is escaped. The same report
gives the same bytes.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from wosac_toolkit.attributes import SLICINGS
from wosac_toolkit.behaviour import Quantity, Watched
from wosac_toolkit.compare import HEADLINE, Against, Difference, Estimate, p_text
from wosac_toolkit.leaderboard.entry import number_text
from wosac_toolkit.report.figures import (
    LANE_PX,
    LOGGED,
    Axis,
    Chart,
    Mark,
    Row,
    Series,
    Steps,
    Tick,
    axis,
    entry_series,
    model_series,
    steps,
)
from wosac_toolkit.report.model import (
    DISTRIBUTION_BIN,
    QUANTILES,
    Cost,
    ModelReport,
    Report,
)
from wosac_toolkit.report.scenes import EVENT_NAMES, FeatureHistogram, Picture
from wosac_toolkit.resampling import ALPHA
from wosac_toolkit.results import field_tree

if TYPE_CHECKING:
    import jinja2

GENERATOR = '<meta name="generator" content="wosac report">'

_NAMES = {
    HEADLINE: "Realism meta-metric",
    "kinematic_metrics": "Kinematic",
    "interactive_metrics": "Interactive",
    "map_based_metrics": "Map-based",
    "min_ade": "minADE (m)",
    "average_displacement_error": "ADE (m)",
    "simulated_collision_rate": "Collision rate",
    "simulated_offroad_rate": "Off-road rate",
    "simulated_traffic_light_violation_rate": "Red-light violation rate",
}
_UNITS = {
    "linear_speed": "m/s",
    "linear_acceleration": "m/s²",
    "angular_speed": "rad/s",
    "angular_acceleration": "rad/s²",
    "distance_to_nearest_object": "m",
    "time_to_collision": "s",
    "distance_to_road_edge": "m",
}
_HAPPENS = {
    "collision_indication": "Collides",
    "offroad_indication": "Leaves the road",
    "traffic_light_violation": "Runs a red light",
}
_ATTRIBUTES = {
    "agents": "Simulated agents",
    "types": "Evaluated types",
    "lights": "Traffic lights",
    "intersection": "Intersection",
    "speed": "Mean speed of the evaluated agents",
    "manoeuvre": "Manoeuvre of the autonomous vehicle (SDC)",
}
_QUANTITIES = {
    "min_ade": "minADE",
    "wrong_way_rate": "Wrong-way rate",
    "off_road_rate": "Off-road rate",
}
_FEW_SCENES = 30


def render_page(report: Report) -> bytes:
    """The bytes of the HTML file."""
    from markupsafe import Markup

    style = (files(__package__) / "static" / "report.css").read_text("utf-8")
    series = [model_series(k, model.name) for k, model in enumerate(report.models)]
    page = (
        _environment()
        .get_template("report.html")
        .render(
            report=report,
            generator=Markup(GENERATOR),
            style=Markup(style),
            series=series,
            lane=LANE_PX,
            headline=HEADLINE,
            fields=list(_fields(report)),
            verdicts=_verdicts(report),
            components=_components_chart(report, series),
            differences=[_differences_chart(report, other, series) for other in _against(report)],
            p_text=p_text,
            field_names=field_names(report),
            features=_feature_views(report, series),
            rates=_rates_chart(report, series),
            distribution=_distribution(report, series),
            quantiles=QUANTILES,
            bin_width=DISTRIBUTION_BIN,
            slices=_slices_chart(report, series),
            slice_groups=_slice_groups(report),
            attributes=_ATTRIBUTES,
            behaviours=_behaviour_rows(report),
            watched=_watched(report),
            losses=[_losses(report, model) for model in report.models],
            few_scenes=_FEW_SCENES,
            slice_differences=[
                {(part.attribute, part.level): part.difference for part in other.slices}
                for other in _against(report)
            ],
            legend_of_features=[
                LOGGED,
                *[own for own in series if own.name in report.features.models],
            ],
            event_names=EVENT_NAMES,
            pictured=any(
                scene.picture is not None
                for found in report.findings.values()
                for scene in found.scenes.values()
            ),
            seeds=any(len(model.folders) > 1 for model in report.models),
            entry_text=number_text,
        )
    )
    return page.encode()


@cache
def _environment() -> jinja2.Environment:
    """The templates, which take half a second to compile."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.DictLoader(
            {
                path.name: path.read_text("utf-8")
                for path in (files(__package__) / "templates").iterdir()
                if path.name.endswith(".html")
            }
        ),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "minus": _minus,
        "interval": _interval,
        "signed_interval": lambda estimate: _interval(estimate, signed=True),
        "component": component_name,
        "address": _address,
    }
    return environment


# --------------------------------------------------------------------------------------------------
# Words and numbers


def component_name(name: str) -> str:
    """A component in words."""
    return name.removesuffix("_likelihood").replace("_", " ")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def field_names(report: Report) -> dict[str, str]:
    """Field -> what the page calls it."""
    tree = field_tree(report.challenge)
    return {field: _NAMES.get(field) or _sentence(component_name(field)) for _, field in tree}


def _minus(text: str) -> str:
    """The same with a proper minus sign."""
    return text.replace("-", "\N{MINUS SIGN}")


def _interval(estimate: Estimate, signed: bool = False) -> str:
    if estimate.low is None or estimate.high is None:
        return ""
    form = "+.5f" if signed else ".4f"
    # A hyphen between them would read as a minus sign.
    return _minus(f"{estimate.low:{form}} to {estimate.high:{form}}")


@dataclass(frozen=True, slots=True)
class _Verdict:
    outcome: str
    text: str


def _verdicts(report: Report) -> list[_Verdict]:
    if report.comparison is not None:
        return [
            _Verdict(other.verdict.outcome, _verdict_text(other.verdict.text))
            for other in report.comparison.against
        ]
    model = report.models[0]
    if model.headline is None:
        return [_Verdict("undecided", f"No scene of {model.name} has a finite score.")]
    known = _interval(model.headline)
    return [
        _Verdict(
            "equal",
            f"{model.name} has a realism meta-metric of {model.headline.value:.4f}"
            + (f" (95 % interval {known})" if known else "")
            + f" over {model.n_scenes:,} scene{'s' if model.n_scenes != 1 else ''}.",
        )
    ]


@dataclass(frozen=True, slots=True)
class _BehaviourRow:
    """A row of the table of what the metric does not look at.

    Attributes:
        name: on the page, with its unit.
        meaning: in one line.
        logged: mean of the log; None where it makes no sense of a log.
        models: of each model; None where it is not measured.
    """

    name: str
    meaning: str
    logged: Estimate | None
    models: tuple[Watched | None, ...]


def _behaviour_rows(report: Report) -> list[_BehaviourRow]:
    of_model = {
        name: {row.quantity: row for row in behaviour.rows}
        for name, behaviour in report.behaviours.items()
    }
    rows = []
    for quantity in dict.fromkeys(quantity for found in of_model.values() for quantity in found):
        models = tuple(of_model.get(model.name, {}).get(quantity) for model in report.models)
        unit = f" ({quantity.unit.replace('^3', '³')})" if quantity.unit else ""
        rows.append(
            _BehaviourRow(
                name=_quantity_name(quantity) + unit,
                meaning=_sentence(quantity.meaning),
                logged=next((row.logged for row in models if row and row.logged), None),
                models=models,
            )
        )
    return rows


def _quantity_name(quantity: Quantity) -> str:
    return _QUANTITIES.get(quantity.name) or _sentence(quantity.name.replace("_", " "))


def _watched(report: Report) -> dict[str, str]:
    """Name of a model -> in what it is worse than the baseline."""
    watched = {}
    for name, behaviour in report.behaviours.items():
        names = [_quantity_name(row.quantity) for row in behaviour.rows if "reference" in row.watch]
        if names:
            watched[name] = ", ".join(n if n == "minADE" else n.lower() for n in names)
    return watched


def _address(picture: Picture) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(picture.content).decode()


def _losses(report: Report, model: ModelReport) -> list[Cost]:
    """What the components take off the meta-metric of a model, the largest first."""
    costs = [
        Cost(component.name, mean.value, component.weight * (1 - mean.value))
        for component in report.challenge.components
        if (mean := model.means.get(component.field)) is not None
    ]
    return sorted(costs, key=lambda cost: -cost.loss)


def _verdict_text(text: str) -> str:
    """A verdict as a sentence, the names in it as they are."""
    text = text.replace(HEADLINE, "realism meta-metric")
    if text.startswith("no significant"):
        text = _sentence(text)
    return re.sub(r"(?<=[ (])-(?=\d)", "\N{MINUS SIGN}", text) + "."


def _against(report: Report) -> tuple[Against, ...]:
    return () if report.comparison is None else report.comparison.against


def _is_significant(difference: Difference) -> bool:
    """Whether both the adjusted p-value and the interval say that there is a difference."""
    p = difference.p if difference.p_holm is None else difference.p_holm
    low, high = difference.difference.low, difference.difference.high
    return p is not None and low is not None and high is not None and p < ALPHA and low * high > 0


# --------------------------------------------------------------------------------------------------
# Figures


@dataclass(frozen=True, slots=True)
class _Field:
    """A row of the tables of fields.

    Attributes:
        level: 1 for a component of the bucket above it.
        field: its name in the data.
        name: on the page.
        weight: in the meta-metric; None for what is no part of it.
    """

    level: int
    field: str
    name: str
    weight: float | None


def _fields(report: Report) -> Iterator[_Field]:
    """The fields that any model has, in the order of tables."""
    names = field_names(report)
    weights: dict[str, float] = {}
    for component in report.challenge.components:
        weights[component.field] = component.weight
        bucket = f"{component.bucket}_metrics"
        weights[bucket] = weights.get(bucket, 0.0) + component.weight
    for level, field in field_tree(report.challenge):
        if any(field in model.means for model in report.models):
            yield _Field(level, field, names[field], weights.get(field))


def _is_score(field: str) -> bool:
    """Whether more is better, on a scale from 0 to 1."""
    return field == HEADLINE or field.endswith(("_likelihood", "_metrics"))


def _mark(
    scale: Axis, estimate: Estimate, series: Series, kind: Any = "dot", solid: bool = True
) -> Mark:
    low, high = estimate.low, estimate.high
    return Mark(
        series=series,
        at=scale.place(estimate.value),
        low=None if low is None else scale.place(low),
        high=None if high is None else scale.place(high),
        kind=kind,
        solid=solid,
    )


def _components_chart(report: Report, series: Sequence[Series]) -> Chart:
    scale = axis(0.0, 1.0)
    entries = [entry_series(k, each.entry.method) for k, each in enumerate(report.beside)]
    rows = []
    for field in _fields(report):
        if not _is_score(field.field):
            continue
        lanes = [
            (_mark(scale, model.means[field.field], own, "bar"),)
            for model, own in zip(report.models, series, strict=True)
            if field.field in model.means
        ]
        marks = tuple(
            Mark(own, scale.place(value), solid=False)
            for each, own in zip(report.beside, entries, strict=True)
            if (value := each.entry[field.field]) is not None
        )
        note = "" if field.weight is None else f"weight {field.weight:g}"
        rows.append(Row(field.name, note, field.level, (*lanes, *([marks] if marks else []))))
    names = ", ".join(model.name for model in report.models)
    beside = ", ".join(each.entry.method for each in report.beside)
    return Chart(
        alternative=f"Bars from 0 to 1: the meta-metric, its buckets and its components, of {names}"
        + (f"; below them markers of {beside}" if beside else "")
        + ". The numbers are in the table below.",
        axis=scale,
        line=None,
        rows=tuple(rows),
        legend=(*series, *entries),
    )


def _differences_chart(report: Report, other: Against, series: Sequence[Series]) -> Chart:
    shown = {f: d for f, d in other.differences.items() if _is_score(f)}
    ends = [
        end
        for d in shown.values()
        for end in (d.difference.low, d.difference.value, d.difference.high)
        if end is not None
    ]
    scale = axis(min(0.0, *ends), max(0.0, *ends), signed=True)
    own = next(s for s in series if s.name == other.name)
    rows = tuple(
        Row(
            field.name,
            "",
            field.level,
            ((_mark(scale, d.difference, own, solid=_is_significant(d)),),),
        )
        for field in _fields(report)
        if (d := shown.get(field.field)) is not None
    )
    better = [field_names(report)[f] for f, d in shown.items() if _gains(d, 1)]
    worse = [field_names(report)[f] for f, d in shown.items() if _gains(d, -1)]
    told = [f"{w}: {', '.join(n)}" for w, n in (("better", better), ("worse", worse)) if n]
    return Chart(
        alternative=f"Differences of {other.name} from the baseline with 95 % intervals. "
        + ("Significantly " + "; ".join(told) if told else "None is significant")
        + ".",
        axis=scale,
        line=scale.place(0.0),
        rows=rows,
        legend=(),
    )


def _gains(difference: Difference, sign: int) -> bool:
    return _is_significant(difference) and difference.difference.value * sign > 0


def _slices_chart(report: Report, series: Sequence[Series]) -> Chart | None:
    ends = [
        end
        for model in report.models
        for part in model.slices
        for end in (part.mean.low, part.mean.value, part.mean.high)
        if end is not None
    ]
    if not ends:
        return None
    scale = axis(min(ends), max(ends))
    rows: list[Row] = []
    for attribute, levels in _slice_groups(report).items():
        rows.append(Row(_ATTRIBUTES[attribute], "", 0, ()))
        for level in levels:
            parts = [
                (part, own)
                for model, own in zip(report.models, series, strict=True)
                for part in model.slices
                if (part.attribute, part.level) == (attribute, level)
            ]
            n = max(part.n_scenes for part, _ in parts)
            lanes = tuple((_mark(scale, part.mean, own),) for part, own in parts)
            rows.append(Row(_sentence(level), f"{n:,} scene{'s' if n != 1 else ''}", 1, lanes))
    first = report.models[0].headline
    return Chart(
        alternative="The meta-metric over scenes of each kind, with 95 % intervals. "
        "The numbers are in the table below.",
        axis=scale,
        line=scale.place(first.value) if first is not None and len(report.models) == 1 else None,
        rows=tuple(rows),
        legend=tuple(series) if len(series) > 1 else (),
    )


def _slice_groups(report: Report) -> dict[str, dict[str, list[Any]]]:
    """Attribute -> level -> the slice of each model, None where it has none."""
    found = [{(p.attribute, p.level): p for p in model.slices} for model in report.models]
    groups: dict[str, dict[str, list[Any]]] = {}
    for attribute, slicing in SLICINGS.items():
        for level in slicing.levels:
            parts = [slices.get((attribute, level)) for slices in found]
            if any(part is not None for part in parts):
                groups.setdefault(attribute, {})[level] = parts
    return groups


@dataclass(frozen=True, slots=True)
class _FeatureView:
    """A feature's figure and the numbers behind it.

    Attributes:
        figure: its histograms.
        unit: of its values.
        bins: (what the bin holds, share of the log, share of each model).
        distances: share of steps that each model has in other bins than the log.
    """

    figure: Steps
    unit: str
    bins: tuple[tuple[str, float, tuple[float, ...]], ...]
    distances: tuple[tuple[Series, float], ...]


def _feature_views(report: Report, series: Sequence[Series]) -> list[_FeatureView]:
    own = [s for s in series if s.name in report.features.models]
    return [_feature_view(histogram, own) for histogram in report.features.histograms]


def _feature_view(histogram: FeatureHistogram, series: Sequence[Series]) -> _FeatureView:
    name, unit = component_name(histogram.component), _UNITS.get(histogram.component, "")
    series = [s for s in series if s.name in histogram.simulated]
    distances = tuple((s, histogram.distance(s.name)) for s in series)
    edges = histogram.edges
    ticks = tuple(
        Tick(at, _minus(f"{edges[0] + (edges[-1] - edges[0]) * at / 100:.3g}"))
        for at in (0.0, 50.0, 100.0)
    )
    title = f"{_sentence(name)} ({unit})" if unit else _sentence(name)
    far = ", ".join(f"{100 * d:.1f} % for {s.name}" for s, d in distances)
    bins = tuple(
        (
            _bin_name(edges, k),
            histogram.logged[k],
            tuple(histogram.simulated[s.name][k] for s in series),
        )
        for k in range(len(edges) - 1)
    )
    return _FeatureView(
        figure=steps(
            title,
            f"Histogram of {name}, logged and simulated. In other bins than the log's are {far}.",
            edges,
            [
                (LOGGED, histogram.logged, True),
                *((s, histogram.simulated[s.name], False) for s in series),
            ],
            Axis(edges[0], edges[-1], ticks),
        ),
        unit=unit,
        bins=bins,
        distances=distances,
    )


def _bin_name(edges: Sequence[float], k: int) -> str:
    if k == 0:
        return _minus(f"below {edges[1]:.3g}")
    if k == len(edges) - 2:
        return _minus(f"{edges[k]:.3g} and more")
    return _minus(f"{edges[k]:.3g} to {edges[k + 1]:.3g}")


def _rates_chart(report: Report, series: Sequence[Series]) -> Chart | None:
    rates = report.features.rates
    if not rates:
        return None
    own = [s for s in series if s.name in report.features.models]
    highest = max(max(rate.logged, *rate.simulated.values()) for rate in rates)
    scale = axis(0.0, highest or 0.01, percent=True)
    rows = tuple(
        Row(
            _HAPPENS.get(rate.component, component_name(rate.component)),
            "",
            0,
            (
                (Mark(LOGGED, scale.place(rate.logged), kind="bar"),),
                *((Mark(s, scale.place(rate.simulated[s.name]), kind="bar"),) for s in own),
            ),
        )
        for rate in rates
    )
    return Chart(
        alternative="Share of the evaluated agents to which it happens, in the log and simulated. "
        "The numbers are in the table below.",
        axis=scale,
        line=None,
        rows=rows,
        legend=(LOGGED, *own),
    )


@dataclass(frozen=True, slots=True)
class _DistributionView:
    """The figure of the scores over scenes and the numbers behind it.

    Attributes:
        figure: the histograms.
        bins: (what the bin holds, scenes of each model).
        models: with their series, those that have scores.
    """

    figure: Steps
    bins: tuple[tuple[str, tuple[int, ...]], ...]
    models: tuple[tuple[ModelReport, Series], ...]


def _distribution(report: Report, series: Sequence[Series]) -> _DistributionView | None:
    shown = [
        (model, own, model.distribution)
        for model, own in zip(report.models, series, strict=True)
        if model.distribution is not None
    ]
    if not shown:
        return None
    used = [k for _, _, d in shown for k, count in enumerate(d.counts) if count]
    first, last = min(used), max(used) + 1
    edges = [k * DISTRIBUTION_BIN for k in range(first, last + 1)]
    scale = axis(edges[0], edges[-1])
    middles = ", ".join(f"{d.quantiles[3]:.4f} for {model.name}" for model, _, d in shown)
    return _DistributionView(
        figure=steps(
            "Scenes by their meta-metric",
            f"Histogram of the meta-metric of single scenes; the median is {middles}.",
            edges,
            [(own, d.shares[first:last], len(shown) == 1) for _, own, d in shown],
            scale,
        ),
        bins=tuple(
            (
                f"{k * DISTRIBUTION_BIN:.2f} to {(k + 1) * DISTRIBUTION_BIN:.2f}",
                tuple(d.counts[k] for _, _, d in shown),
            )
            for k in range(first, last)
        ),
        models=tuple((model, own) for model, own, _ in shown),
    )
