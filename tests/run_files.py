"""Run folders whose files a test changes: as older versions and strangers write them, without hashes."""

from __future__ import annotations

import json
from pathlib import Path

from har_pipeline.evaluation.run_folder import sealed


def change_info(run_dir: Path, **values: object) -> None:
    """Change entries of run.json, its hashes with them; without a `format` take the hashes away."""
    info = {**json.loads((run_dir / "run.json").read_text()), "format": 1, **values}
    hashes = info.pop("sha256", {})
    (run_dir / "run.json").write_text(json.dumps(info if info["format"] == 1 else sealed({**info, "sha256": hashes})))
