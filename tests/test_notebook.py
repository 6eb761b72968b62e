"""The notebook runs as it stands, from its first cell to its last, and is kept without outputs.

Without, since outputs of pictures are megabytes that change with every version of matplotlib, and
since this test makes them anew.
"""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "tour.ipynb"


def test_it_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert len(code) > 5
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """The outputs of each code cell, executed by a kernel in an empty folder."""
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient, of the extra dev")
    nbformat = pytest.importorskip("nbformat", reason="needs nbformat, of the extra dev")
    pytest.importorskip("ipykernel", reason="needs ipykernel, of the extra dev")
    pytest.importorskip("matplotlib", reason="needs the extra report")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    folder = tmp_path_factory.mktemp("notebook")
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [cell["outputs"] for cell in notebook["cells"] if cell["cell_type"] == "code"]


def _text(outputs: list[dict[str, Any]]) -> str:
    return "".join(o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs)


def test_every_cell_says_something(outputs: list[list[dict[str, Any]]]) -> None:
    assert all(outputs)


def test_nothing_warns(outputs: list[list[dict[str, Any]]]) -> None:
    assert [o["text"] for cell in outputs for o in cell if o.get("name") == "stderr"] == []


def test_the_idm_is_shown_to_be_better(outputs: list[list[dict[str, Any]]]) -> None:
    said = next(_text(cell) for cell in outputs if "95 % interval" in _text(cell))
    low, high = (float(word.rstrip(",")) for word in said.split()[4:7:2])
    assert 0 < low < high < 1


def test_the_scene_is_drawn_twice(outputs: list[list[dict[str, Any]]]) -> None:
    pictures = [o["data"]["image/png"] for cell in outputs for o in cell if "data" in o
                and "image/png" in o["data"]]  # fmt: skip
    assert len(pictures) == 2
    for picture in pictures:
        png = base64.b64decode(picture)
        assert struct.unpack(">II", png[16:24]) == (960, 720)
    assert pictures[0] != pictures[1]
