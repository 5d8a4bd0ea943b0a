"""A split as a JSON file: written by `har splits write`, read by `--split-file`."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, fields
from pathlib import Path

from har_pipeline.core.errors import SplitError
from har_pipeline.core.records import Split
from har_pipeline.splits import PARTS


def write_split_file(path: Path, split: Split) -> None:
    """Write a split as JSON, atomically."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    partial.write_text(json.dumps(asdict(split), indent=1) + "\n", encoding="utf-8")
    partial.replace(path)


def read_split_file(path: Path) -> Split:
    """Read what `write_split_file` wrote. Raises: SplitError if the file is missing, malformed or shares ids."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("it holds no JSON object")
        if unknown := values.keys() - {field.name for field in fields(Split)}:
            raise ValueError(f"unknown entry {sorted(unknown)[0]!r}")
        if missing := {"protocol", "train", "test"} - values.keys():
            raise ValueError(f"{', '.join(sorted(missing))} is missing")
        if not all(isinstance(values.get(name, 0), int) for name in ("index", "seed")):
            raise ValueError("index and seed must be whole numbers")
        parts: dict[str, tuple[str, ...]] = {}
        for part in PARTS:
            ids = values.get(part, [])
            if not isinstance(ids, list) or not all(isinstance(video_id, str) for video_id in ids):
                raise ValueError(f"{part} must be a list of video ids")
            parts[part] = tuple(ids)
        return Split(**{"index": 0, **values, **parts})
    except FileNotFoundError as error:
        raise SplitError(f"{path}: no such split file; make one with `har splits write`") from error
    except (OSError, ValueError, TypeError) as error:
        raise SplitError(f"{path}: is not a split file: {error}") from error
