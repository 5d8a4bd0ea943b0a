"""What deciding while a video is under way costs: a run's decisions live against its own, on the same videos."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import VideoRecord
from har_pipeline.evaluation.compare import Comparison, compare_members
from har_pipeline.evaluation.fusion import Member
from har_pipeline.evaluation.run_folder import files_sha256, read_run, write_json
from har_pipeline.evaluation.scores import select_part
from har_pipeline.recognise import live_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveCost:
    """The run's own decisions (first) and the live ones (second); failed: video_id -> why it could not be read again."""

    comparison: Comparison
    failed: Mapping[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return both as a plain nested dict, ready for JSON."""
        return {**self.comparison.to_dict(), "failed": dict(self.failed)}


def measure_live_cost(
    run_dir: Path | str,
    records: Sequence[VideoRecord],
    *,
    part: str = "test",
    device: str = "auto",
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> LiveCost:
    """Return what the crop of a live camera, which knows the past only, costs a stateful run; see `live_scores`.

    Frames, windows and weights are those behind the run's own scores, so on the device and at the precision of the training
    nothing but the crop differs. Videos that cannot be read are on neither side. on_video: called with videos done and in
    all. Raises: RunError as `live_scores`, if the run has no scores of that part, or if it was trained with other files.
    """
    run = read_run(run_dir)
    own = select_part(run.scores(), part)
    files = files_sha256(records, run.split, run.spec.stream)
    if run.info.get("files_sha256", files) != files:
        raise RunError(
            f"{run.path} was trained with other files than the manifest names, or other parts of them: the answers cannot be "
            "compared"
        )
    live, failed = live_scores(run_dir, records, part=part, device=device, on_video=on_video)
    members = Member(name="whole video", scores=own), Member(name="live", scores=live)
    return LiveCost(comparison=compare_members(*members, part=part), failed=failed)


def write_live_cost(cost: LiveCost, folder: Path) -> Path:
    """Write live.json into `folder`, made where missing, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "live.json", cost.to_dict())
    return folder / "live.json"
