"""Pack the recorded scenes as submissions, for `check_pack.py` to show to the official package.

    PYTHONPATH=tests python tests/official/make_packs.py FOLDER

writes `FOLDER/sim_agents.tar.gz` and `FOLDER/scenario_gen.tar.gz`: what `tests/test_pack.py` packs.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from submission_examples import METADATA, RECORDED, write_recorded

from wosac_toolkit.submission.pack import pack_submission


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (challenge, source) in RECORDED.items():
        with tempfile.TemporaryDirectory() as temporary:
            rollouts = write_recorded(source, Path(temporary) / "rollouts")
            out = folder / f"{name}.tar.gz"
            pack_submission(rollouts, out, METADATA, challenge=challenge, overwrite=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
