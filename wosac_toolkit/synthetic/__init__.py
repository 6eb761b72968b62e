"""Synthetic scenes in WOMD's form: roads, lights, and traffic that mostly obeys them.

`scene` is the whole; `layouts` draws a place, `road_network` builds its lanes and edges,
`signals` its lights, `traffic` its road users, `right_of_way` and `drivers` move them, and
`road_map` writes the map in WOMD's terms.
"""

from __future__ import annotations

from wosac_toolkit.synthetic.scene import generate_scenario, generate_scenarios

__all__ = ["generate_scenario", "generate_scenarios"]
