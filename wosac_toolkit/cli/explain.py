"""`wosac explain`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from wosac_toolkit.challenge import CHALLENGES, Bernoulli
from wosac_toolkit.cli.help import Command
from wosac_toolkit.cli.tables import Cell, Table, counted, render

if TYPE_CHECKING:
    from wosac_toolkit.explain import ComponentLoss, Event, Explanation, Span
    from wosac_toolkit.results import Run


@click.command(
    "explain",
    cls=Command,
    examples=(
        "wosac explain runs/smart 637f20cafde22ff8",
        "wosac explain runs/smart 637f20cafde22ff8 --agent 2406 --format markdown",
        "wosac explain runs/smart 637f20cafde22ff8 --render scene.gif --rollout 7",
        "wosac explain runs/smart 637f20cafde22ff8 --render scene.png --at 2 --at 4 --at 8",
    ),
)
@click.argument("run")
@click.argument("scenario_id")
@click.option(
    "--rollouts",
    metavar="PATH",
    help="The rollouts that were scored.  [default: where they were then]",
)
@click.option(
    "--scenarios",
    metavar="PATH",
    help="The scenes (WOMD TFRecords).  [default: where they were then]",
)
@click.option(
    "--challenge",
    type=click.Choice(list(CHALLENGES)),
    help="Version of the metric.  [default: the run's]",
)
@click.option(
    "--agent",
    "agents",
    type=int,
    multiple=True,
    metavar="ID",
    help="Only tell of this evaluated agent, in tables. Can be repeated.",
)
@click.option(
    "--top",
    type=click.IntRange(min=0),
    metavar="N",
    default=10,
    show_default=True,
    help="List the N stretches of steps with the lowest log-likelihood.",
)
@click.option(
    "--bins",
    type=click.IntRange(min=0),
    metavar="N",
    default=3,
    show_default=True,
    help="Show the bins of the N costliest components of agents.",
)
@click.option(
    "--render",
    "picture",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also draw the scene from above: a .png, or a .gif or .mp4 over time.",
)
@click.option(
    "--rollout",
    metavar="N|all",
    default="all",
    show_default=True,
    help="The rollout to draw, counted from 0.",
)
@click.option(
    "--at",
    type=float,
    multiple=True,
    metavar="SECONDS",
    help="Of a .png: draw this moment, in seconds after the current step. Repeated, a panel "
    "each.  [default: the end]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json", "markdown"]),
    default="table",
    show_default=True,
    help="What is printed; json has all agents, steps, bins and events.",
)
def command(
    run: str,
    scenario_id: str,
    rollouts: str | None,
    scenarios: str | None,
    challenge: str | None,
    agents: tuple[int, ...],
    top: int,
    bins: int,
    picture: Path | None,
    rollout: str,
    at: tuple[float, ...],
    format_: str,
) -> None:
    """Explain the score of a scene: which agents, components and steps cost it.

    RUN is a folder that `wosac score --out` wrote, SCENARIO_ID one of its scenes. Prints each
    component's loss and how much of it no simulator could avoid, the agents that cause it, the
    least likely logged steps, the costliest histograms, and collisions, off-road driving and red
    lights run.
    """
    from wosac_toolkit.errors import WosacError, some_ids
    from wosac_toolkit.explain import explain_scenario, load_scenes
    from wosac_toolkit.results import read_run

    number = None if rollout == "all" else _rollout_number(rollout)
    finished = read_run(run)
    challenge = challenge or finished.summary.challenge
    [(scenario, simulated)] = load_scenes(
        finished,
        [scenario_id],
        rollouts=rollouts,
        scenarios=scenarios,
        progress=sys.stderr.isatty(),
    )
    explanation = explain_scenario(scenario, simulated, challenge)
    if unknown := set(agents) - set(explanation.object_ids.tolist()):
        raise WosacError(
            f"object {some_ids(unknown)} is not an evaluated agent",
            where=f"scenario {scenario_id}",
            mend=f"the evaluated agents are {some_ids(explanation.object_ids.tolist(), 20)}",
        )
    if challenge == finished.summary.challenge:
        _warn_of_changes(finished, explanation)
    if picture is not None:
        from wosac_toolkit.render import render_scene

        drawn = f"all {simulated.n_rollouts} rollouts" if number is None else f"rollout {number}"
        render_scene(
            picture,
            scenario,
            simulated,
            events=explanation.events + explanation.log_events,
            rollout=number,
            at=at,
            title=f"scenario {scenario_id}, {drawn}: meta-metric "
            f"{explanation.score.metametric:.4f} (WOSAC {challenge}; log replay "
            f"{explanation.replay.metametric:.4f})",
        )
        click.echo(f"drawn: {picture}", err=True)
    click.echo(explanation_text(explanation, format_, agents=agents, top=top, bins=bins))


def _rollout_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is neither a number nor 'all'") from None


def _warn_of_changes(run: Run, explanation: Explanation) -> None:
    """Say so where the files no longer give the score that the run has."""
    import numpy as np

    score = explanation.score
    scores = run.scores.set_index("scenario_id")["metametric"]
    before = float(scores[score.scenario_id])
    if not np.isclose(before, score.metametric, rtol=0, atol=1e-6, equal_nan=True):
        engine = run.summary.request.engine
        cause = f"it was scored by {engine}" if engine else "files or toolkit have changed since"
        click.echo(
            f"wosac: the run has {before:.6f} for this scene, these files give "
            f"{score.metametric:.6f}: {cause}",
            err=True,
        )


def explanation_text(
    explanation: Explanation,
    format_: str,
    *,
    agents: Sequence[int] = (),
    top: int = 10,
    bins: int = 3,
) -> str:
    """An explanation as `table`, `markdown` or `json`.

    Args:
        explanation: of a scene's score.
        format_: one of the three; json has all agents, steps and bins.
        agents: the evaluated agents to tell of; all where empty.
        top: how many stretches of steps to list.
        bins: of how many components of agents to show the bins.
    """
    if format_ == "json":
        return explanation.to_json().rstrip("\n")
    chosen = set(agents or explanation.object_ids.tolist())
    tables = [
        _components_table(explanation),
        _agents_table(explanation, chosen),
        _log_likelihoods_table(explanation, chosen),
        *_spans_table(explanation, chosen, top),
        *_bins_tables(explanation, chosen, bins),
        *_events_table(explanation, chosen),
    ]
    tables[-1] = replace(tables[-1], notes=[*tables[-1].notes, *_notes(explanation)])
    return "\n\n".join(render(table, format_) for table in tables)


Rows = list[tuple[int, tuple[Cell, ...]]]


def _components_table(explanation: Explanation) -> Table:
    rows: Rows = [(0, _losses("realism_meta_metric", explanation, explanation.components))]
    for bucket in ("kinematic", "interactive", "map_based"):
        members = [part for part in explanation.components if part.component.bucket == bucket]
        rows.append((0, _losses(f"{bucket}_metrics", explanation, members)))
        rows += [(1, _losses(part.component.field, explanation, [part])) for part in members]
    header = ("component", "weight", "score", "log replay", "ceiling", "loss", "avoidable")
    title = f"scenario {explanation.score.scenario_id}: what costs the score"
    return Table(header, rows, title=title)


def _losses(
    field: str, explanation: Explanation, parts: Sequence[ComponentLoss]
) -> tuple[Cell, ...]:
    """The row of a field of the score, a mean of components."""
    weight = sum(part.component.weight for part in parts)
    ceiling = sum(part.component.weight * part.ceiling for part in parts)
    values = (
        weight,
        getattr(explanation.score, field),
        getattr(explanation.replay, field),
        # The meta-metric is a sum: in 2023 the weights are 0.99 together.
        ceiling if field == "realism_meta_metric" else ceiling / weight,
        sum(part.loss for part in parts),
        sum(part.avoidable for part in parts),
    )
    return field, *map(_number, values)


def _agents_table(explanation: Explanation, chosen: set[int]) -> Table:
    agents, n_rollouts = explanation.score.agents, explanation.score.n_rollouts

    def of_rollouts(rate: float) -> str:
        return f"{round(rate * n_rollouts)}/{n_rollouts}"

    rows: Rows = []
    for agent in explanation.agent_avoidable.argsort(kind="stable")[::-1].tolist():
        if int(agents.object_ids[agent]) not in chosen:
            continue
        parts = [part for part in explanation.components if part.agent_avoidable[agent] > 0]
        costly = sorted(parts, key=lambda part: -part.agent_avoidable[agent])[:2]
        violation = agents.traffic_light_violation_rate
        cells: list[Cell] = [
            _agent_name(explanation, agent),
            float(explanation.agent_loss[agent]),
            float(explanation.agent_avoidable[agent]),
            float(agents.average_displacement_error[agent]),
            of_rollouts(agents.collision_rate[agent]),
            of_rollouts(agents.offroad_rate[agent]),
        ]
        if violation is not None:
            cells.append(of_rollouts(violation[agent]))
        cells.append(
            ", ".join(f"{p.component.name} {p.agent_avoidable[agent]:.4f}" for p in costly)
        )
        rows.append((0, tuple(cells)))
    header = ["agent", "loss", "avoidable", "ADE [m]", "collision", "off road"]
    if explanation.score.agents.traffic_light_violation_rate is not None:
        header.append("red light")
    header.append("most avoidable")
    return Table(tuple(header), rows, title="agents, the costliest first; events in rollouts")


def _agent_name(explanation: Explanation, agent: int) -> str:
    from wosac_toolkit.explain import type_name

    agents = explanation.score.agents
    object_id = int(agents.object_ids[agent])
    kind = type_name(int(agents.object_types[agent]))
    return f"{object_id} {kind}" + (" (SDC)" if object_id == explanation.sdc_id else "")


def _log_likelihoods_table(explanation: Explanation, chosen: set[int]) -> Table:
    columns = [i for i, name in enumerate(explanation.object_ids.tolist()) if name in chosen]
    rows: Rows = [
        (0, (part.component.name, *(_number(part.log_likelihood[i]) for i in columns)))
        for part in explanation.components
    ]
    header = ("component", *(str(explanation.object_ids[i]) for i in columns))
    return Table(header, rows, title="mean log-likelihood of agents")


def _number(value: float) -> float | None:
    """None in place of NaN."""
    return None if math.isnan(value) else float(value)


_UNITS = {
    "linear_speed": "m/s",
    "linear_acceleration": "m/s^2",
    "angular_speed": "rad/s",
    "angular_acceleration": "rad/s^2",
    "distance_to_nearest_object": "m",
    "time_to_collision": "s",
    "distance_to_road_edge": "m",
}


def _spans_table(explanation: Explanation, chosen: set[int], top: int) -> Iterator[Table]:
    spans = [span for span in explanation.spans() if span.object_id in chosen][:top]
    if not spans:
        return
    rows: Rows = [
        (
            0,
            (
                str(span.object_id),
                span.component,
                _time(span),
                _bin_name(explanation, span),
                None if span.simulated is None else _percent(span.simulated),
                span.log_likelihood,
                span.loss,
            ),
        )
        for span in spans
    ]
    header = ("agent", "component", "seconds", "logged", "simulated", "log-likelihood", "loss")
    yield Table(header, rows, title="the least likely logged steps")


def _time(item: Span | Event) -> str:
    from wosac_toolkit.explain import seconds

    first, last = seconds(item.first), seconds(item.last)
    return f"{first:.1f}" if first == last else f"{first:.1f} to {last:.1f}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _bin_name(explanation: Explanation, span: Span) -> str:
    part = next(p for p in explanation.components if p.component.name == span.component)
    unit = _UNITS.get(span.component, "")
    if part.edges is None:
        return f"step {span.first} {unit}"
    number = int(abs(part.edges[:-1] - span.low).argmin())
    return f"{_edges(part, number)} {unit}"


def _edges(part: ComponentLoss, number: int) -> str:
    """A bin in words; the outermost ones have no outer edge."""
    if part.edges is None:
        return ("no", "yes")[number] if len(part.logged[0]) == 2 else str(number)
    low, high = (f"{edge:.4g}" for edge in part.edges[number : number + 2])
    if number == 0:
        return f"below {high}"
    return f"{low} and above" if number == len(part.edges) - 2 else f"{low} to {high}"


def _bins_tables(explanation: Explanation, chosen: set[int], n: int) -> Iterator[Table]:
    pairs = [
        (float(part.agent_avoidable[agent]), part, agent)
        for part in explanation.components
        for agent, object_id in enumerate(explanation.object_ids.tolist())
        if object_id in chosen and part.simulated is not None and part.agent_avoidable[agent] > 0
    ]
    for loss, part, agent in sorted(pairs, key=lambda pair: -pair[0])[:n]:
        yield _bins_table(explanation, part, agent, loss)


def _bins_table(explanation: Explanation, part: ComponentLoss, agent: int, loss: float) -> Table:
    assert part.simulated is not None
    name, unit = part.component.name, _UNITS.get(part.component.name)
    simulated, logged = part.simulated[agent], part.logged[agent]
    rows: Rows = [
        (
            0,
            (
                _edges(part, number),
                int(logged[number]),
                int(simulated[number]),
                _percent(simulated[number] / simulated.sum()),
                float(part.log_probabilities[agent, number]),
            ),
        )
        for number in range(len(logged))
    ]
    whole = isinstance(part.component.estimator, Bernoulli)
    header = (
        "at any step" if whole else f"bin [{unit}]" if unit else "bin",
        "logged" if whole else "logged steps",
        "simulated rollouts" if whole else "simulated steps",
        "share",
        "log-probability",
    )
    title = f"{name} of {_agent_name(explanation, agent)}: {loss:.4f} avoidable"
    return Table(header, rows, title=title)


_KINDS = {"collision": "collision", "offroad": "off road", "red_light": "red light"}


def _events_table(explanation: Explanation, chosen: set[int]) -> Iterator[Table]:
    """Events, those of one agent with one partner or one feature of the map together."""
    from wosac_toolkit.errors import some_ids

    groups: dict[tuple[str, int, int | None, int | None], list[Event]] = {}
    for event in (*explanation.events, *explanation.log_events):
        if event.object_id in chosen:
            key = (event.kind, event.object_id, event.partner_id, event.feature_id)
            groups.setdefault(key, []).append(event)
    order = list(_KINDS)
    rows: Rows = []
    for (kind, object_id, partner, feature), events in sorted(
        groups.items(), key=lambda group: (order.index(group[0][0]), -_n_rollouts(group[1]))
    ):
        simulated = [event for event in events if event.rollout is not None]
        logged = [event for event in events if event.rollout is None]
        worst = max((abs(e.distance) for e in events if e.distance is not None), default=None)
        with_ = f"object {partner}" if partner is not None else _feature_name(kind, feature)
        rows.append(
            (
                0,
                (
                    _KINDS[kind],
                    str(object_id),
                    with_,
                    f"{_n_rollouts(events)}/{explanation.score.n_rollouts}",
                    some_ids({e.rollout for e in simulated}, 4) if simulated else "",
                    _time(min(simulated, key=lambda e: e.first)) if simulated else "",
                    ", ".join(map(_time, logged[:2])) + (", ..." if len(logged) > 2 else ""),
                    None if worst is None else f"{worst:.2f}",
                ),
            )
        )
    header = ("event", "agent", "with", "rollouts", "which", "earliest [s]", "log [s]", "worst [m]")
    if rows:
        yield Table(header, rows, title="events of evaluated agents")


def _n_rollouts(events: Iterable[Event]) -> int:
    return len({event.rollout for event in events} - {None})


def _feature_name(kind: str, feature: int | None) -> str:
    if feature is None:
        return ""
    return f"{'lane' if kind == 'red_light' else 'road edge'} {feature}"


def _notes(explanation: Explanation) -> list[str]:
    score, replay = explanation.score, explanation.replay
    value = "n/a" if math.isnan(replay.metametric) else f"{replay.metametric:.4f}"
    notes = [
        f"WOSAC {score.challenge} metric, "
        f"{counted(score.n_rollouts, 'rollout')}, {counted(score.n_sim_agents, 'simulated agent')}"
        f" of which {score.n_evaluated_agents} evaluated; times are seconds after the current step",
        "loss: weight x (1 - score), divided among agents and steps in proportion to their "
        "log-likelihoods; avoidable: as much of it as lies below the ceiling",
        "ceiling: what no simulation can pass. It is below 1 where an agent's logged steps fall "
        "into several bins, since a step's likelihood is the share of its bin",
        f"log replay: the log itself in all rollouts, {value}. It is below the "
        "ceiling since bins are smoothed, and a simulation counts the steps that the log lacks "
        "and the last steps, which have no speed" + _ghosts(explanation),
    ]
    reasons = score.non_finite()
    notes += [
        f"not a number, and left out of the losses of agents: {part.component.field}, as "
        f"{reasons[part.component.field]}"
        for part in explanation.components
        if part.component.field in reasons
    ]
    return notes


def _ghosts(explanation: Explanation) -> str:
    """What the replay of the log runs into that the log does not."""
    before = {(event.kind, event.object_id) for event in explanation.log_events}
    new = [e for e in explanation.replay_events if (e.kind, e.object_id) not in before]
    if not new:
        return ""
    told = "; ".join(
        f"{_KINDS[event.kind]} of {event.object_id}"
        + (f" with {event.partner_id}" if event.partner_id is not None else "")
        + f" at {_time(event)} s"
        for event in sorted(new, key=lambda event: event.first)[:3]
    )
    return (
        f". It has {counted(len(new), 'event')} that the log has not ({told}), "
        "as objects that the log loses are held where it saw them last"
    )
