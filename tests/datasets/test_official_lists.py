from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from har_pipeline.core.errors import ManifestError
from har_pipeline.datasets.builders import kth_rule_records
from har_pipeline.datasets.official_lists import read_kth_sequences, read_ucf101_lists


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("person01_boxing_d1 1-95", "line 1 lists no frames"),
        ("\nperson01_boxing_d1 frames none", "line 2 lists no frames"),
        ("person01_boxing_d1 frames 9-5", "line 1 has an empty range"),
        ("person01_boxing_d1 frames 0-5", "begins before 1"),
        ("hello", "names no KTH file"),
    ],
)
def test_kth_sequence_errors(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "list.txt"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_kth_sequences(path)
    with pytest.raises(ManifestError, match="no such list"):
        read_kth_sequences(tmp_path / "none.txt")


@pytest.mark.needs_real_data
def test_real_kth_sequences(real_data: Path) -> None:
    listed = read_kth_sequences(real_data / "splits/kth/00sequences.txt")
    assert listed.keys() == {record.video_id for record in kth_rule_records(Path("/"))}
    assert Counter(map(len, listed.values())) == {4: 594, 3: 5}  # 599 files, 2,391 sequences
    assert "person13_handclapping_d3" not in listed
    assert listed["person01_boxing_d1"] == [(1, 95), (96, 185), (186, 245), (246, 360)]


@pytest.mark.needs_real_data
def test_real_ucf101_lists_follow_the_group_rule(real_data: Path) -> None:
    listed = read_ucf101_lists(real_data / "splits/ucf101")
    assert len(listed) == 13320
    for stem, parts in listed.items():
        group = int(stem.split("_")[-2][1:])
        assert parts == {f"x_split{i}": "test" if 7 * i - 6 <= group <= 7 * i else "train" for i in (1, 2, 3)}
