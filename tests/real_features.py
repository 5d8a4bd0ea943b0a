"""The real VGG16 fc6 features of seven UCF-101 classes as a feature store, with their groups and official split 1."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from feature_sets import feature_store

from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.features.store import FeatureStore

FILE = "features/ucf101_vgg16_fc6_7classes.npz"


def ucf101_fc6(
    real_data: Path, store_path: Path, *, val_groups: tuple[int, ...] = ()
) -> tuple[FeatureStore, str, list[VideoRecord], Split]:
    """Return a store, its feature set, the manifest, and split 1 with `val_groups` of its training groups (8 to 25).

    The file calls a video `v_000146`: the 146th of the official lists, sorted without regard to case (the class and
    the side of split 1 then agree for all 938). The lists' own name holds the group.
    """
    data = np.load(real_data / FILE)
    lists = {side: (real_data / f"splits/ucf101/{side}list01.txt").read_text() for side in ("train", "test")}
    names = {side: [Path(line.split()[0]).stem for line in text.splitlines() if line] for side, text in lists.items()}
    ordered = sorted(names["train"] + names["test"], key=str.lower)
    ids = [ordered[int(name.removeprefix("v_")) - 1] for name in data["video"]]
    labels = [str(data["class_names"][number]) for number in data["label"]]
    official = set(names["test"])
    assert [video_id.split("_")[1] for video_id in ids] == labels
    assert [video_id in official for video_id in ids] == data["is_test"].tolist()
    groups = {video_id: video_id.split("_")[2] for video_id in ids}
    records = [
        VideoRecord(video_id=v, label=label, path=Path("/nowhere") / v, group=groups[v])
        for v, label in zip(ids, labels, strict=True)
    ]
    held_out = {f"g{number:02d}" for number in val_groups}
    train = [v for v in ids if v not in official]
    split = Split(
        protocol="ucf101",
        index=0,
        train=tuple(v for v in train if groups[v] not in held_out),
        val=tuple(v for v in train if groups[v] in held_out),
        test=tuple(v for v in ids if v in official),
    )
    store, name = feature_store(store_path, dict(zip(ids, data["features"], strict=True)))
    return store, name, records, split
