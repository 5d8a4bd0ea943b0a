from __future__ import annotations

import csv
import re
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from har_pipeline.core.errors import ManifestError
from har_pipeline.core.records import Scores
from har_pipeline.evaluation.categories import COMPLEX, Grouping, group_results, read_groups
from har_pipeline.evaluation.metrics import measure_scores, write_measures
from har_pipeline.evaluation.statistics import wilson_interval

SMALL = Grouping(name="small", group_of={"b": "x", "a": "y", "c": "x", "d": "z"}, complex_classes=("c", "a"))


def test_ucf101_has_the_published_group_sizes() -> None:
    grouping = read_groups("ucf101")
    assert Counter(grouping.group_of.values()) == {
        "human-object interaction": 20,
        "body-motion only": 16,
        "human-human interaction": 5,
        "playing musical instruments": 10,
        "sports": 50,
    }
    assert grouping.groups[0] == "human-object interaction"
    assert sorted(grouping.complex_classes) == ["IceDancing", "Mixing", "PizzaTossing", "PlayingDhol", "SalsaSpin"]
    assert all(re.fullmatch(r"([A-Z][a-z]*)+", label) for label in grouping.group_of)
    instruments = {label for label, group in grouping.group_of.items() if group == "playing musical instruments"}
    assert {label for label in instruments if not label.startswith("Playing")} == {"Drumming"}
    assert {label for label in grouping.group_of if label.startswith("Playing")} < instruments


def test_hmdb51_has_the_published_group_sizes() -> None:
    grouping = read_groups("hmdb51")
    assert Counter(grouping.group_of.values()) == {
        "facial actions": 4,
        "facial actions with objects": 3,
        "body movements": 19,
        "body movements with objects": 18,
        "human interactions": 7,
    }
    assert all(re.fullmatch(r"[a-z]+(_[a-z]+)?", label) for label in grouping.group_of)
    assert grouping.complex_classes == ()


@pytest.mark.needs_real_data
def test_group_files_name_the_official_classes(real_data: Path) -> None:
    lines = (real_data / "splits/ucf101/classInd.txt").read_text().split("\n")
    assert set(read_groups("ucf101").group_of) == {line.split()[1] for line in lines if line.strip()}
    files = (real_data / "splits/hmdb51").glob("*_test_split1.txt")
    assert set(read_groups("hmdb51").group_of) == {path.name.removesuffix("_test_split1.txt") for path in files}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_what_spreadsheets_write_is_read(tmp_path: Path, encoding: str, delimiter: str) -> None:
    path = tmp_path / "groups.csv"
    path.write_bytes(f"class{delimiter}group\r\nLäufe{delimiter}Füße\r\n".encode(encoding))
    assert read_groups(path).group_of == {"Läufe": "Füße"}


def test_groups_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "groups.csv"
    path.write_bytes("class,group\r\nLäufe,Füße\r\n".encode("cp1252"))
    for source, message in (
        (path, "line 2 holds bytes of another encoding; save it as UTF-8"),
        (tmp_path, "cannot be read .Is a directory.; give a CSV file"),
        ("hmdb", "no such file; did you mean 'hmdb51'"),
    ):
        with pytest.raises(ManifestError, match=message):
            read_groups(source)


def test_classes_are_ordered_by_group() -> None:
    order = SMALL.order(["a", "b", "c"])
    assert order == [1, 2, 0]
    assert SMALL.spans(["b", "c", "a"]) == [("x", 0, 2), ("y", 2, 3)]
    with pytest.raises(ManifestError, match="no group for the classes e"):
        SMALL.order(["a", "e"])


def test_group_accuracies_by_hand() -> None:
    # rows a, b, c; b and c are of one group.
    confusion = np.array([[3, 1, 0], [0, 2, 2], [1, 0, 5]])
    results = {result.name: result for result in group_results(confusion, ["a", "b", "c"], SMALL)}
    assert list(results) == ["x", "y", "c", "a", COMPLEX]
    assert (results["x"].classes, results["x"].videos, results["x"].correct) == (2, 10, 7)
    assert results["x"].accuracy == wilson_interval(7, 10)
    # Taken for the other class of its group still is the right group.
    assert results["x"].in_group == wilson_interval(9, 10)
    assert (results["y"].videos, results["y"].correct) == (4, 3)
    assert (results[COMPLEX].classes, results[COMPLEX].videos, results[COMPLEX].correct) == (2, 10, 8)
    empty = group_results(np.array([[1, 0], [0, 0]]), ["a", "b"], SMALL)
    assert [(r.name, r.videos, r.accuracy is None) for r in empty] == [
        ("x", 0, True),
        ("y", 1, False),
        ("a", 1, False),
        (COMPLEX, 1, False),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "first line must be"),
        ("label,group\na,x\n", "first line must be"),
        ("class,group\n", "no class"),
        ("class,group\na\n", "line 2: expected a class and its group"),
        ("class,group\na,\n", "line 2"),
        ("class,group\na,x\n\na,y\n", "line 4: duplicate class a"),
        ("class,group,complex\na,x\n", "line 2"),
    ],
)
def test_a_malformed_file_names_its_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "groups.csv").write_text(text)
    with pytest.raises(ManifestError, match=message) as caught:
        read_groups(tmp_path / "groups.csv")
    assert "groups.csv" in str(caught.value)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "groups.csv").write_text("class,group,complex\na,x,\nb,y,yes\n")
    grouping = read_groups(tmp_path / "groups.csv")
    assert dict(grouping.group_of) == {"a": "x", "b": "y"}
    assert grouping.complex_classes == ("b",)
    with pytest.raises(ManifestError, match="one of ucf101, hmdb51"):
        read_groups("ucf11")


@pytest.mark.usefixtures("pictures_drawn")
def test_an_evaluation_writes_its_groups(tmp_path: Path) -> None:
    scores = Scores(
        video_ids=tuple(f"v{i}" for i in range(4)),
        labels=tuple("aabc"),
        classes=("a", "b", "c"),
        probabilities=np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.2, 0.7], [0.1, 0.1, 0.8]]),
        part=("test",) * 4,
        fold=(0,) * 4,
        seed=(0,) * 4,
    )
    plain = measure_scores(scores)
    assert plain.per_group == ()
    write_measures(plain, tmp_path / "plain")
    assert not (tmp_path / "plain/per_group.csv").exists()
    result = measure_scores(scores, grouping=SMALL)
    assert result.to_dict()["grouping"] == "small"
    write_measures(result, tmp_path)
    with open(tmp_path / "confusion_groups.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["b", "c", "a"]
    assert rows[1:] == [["b", "0", "1", "0"], ["c", "0", "1", "0"], ["a", "1", "0", "1"]]
    with open(tmp_path / "per_group.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [(row["group"], row["correct"], row["videos"]) for row in table][:2] == [("x", "1", "2"), ("y", "1", "2")]
    assert table[0]["in_group"] == "1.0"
    assert cv2.imread(str(tmp_path / "confusion_groups.png")).std() > 5
