"""Which feature set of a store holds the raw frames of a stream."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from feature_sets import split_of
from raw_sets import raw_store

from har_pipeline.core.errors import StoreError
from har_pipeline.features.frames import choose_frames
from har_pipeline.features.options import RawOptions
from har_pipeline.features.reduce import ReduceOptions, reduced_spec


def test_projections_of_frames_are_no_frames(tmp_path: Path) -> None:
    """They once counted as a second set, so that what worked before had become ambiguous."""
    store, name = raw_store(tmp_path / "s.zarr", {})
    projected = store.create_feature_set(
        reduced_spec(store.spec(name), split_of(["a"], ["b"], []), ReduceOptions(dim=4))
    )
    assert choose_frames(store, "depth") == name
    with pytest.raises(StoreError, match="no raw-frame sets of depth start with"):
        choose_frames(store, "depth", projected)


def test_a_choice_says_how_the_sets_were_made(tmp_path: Path) -> None:
    store, name = raw_store(tmp_path / "s.zarr", {})
    causal = store.create_feature_set(dataclasses.replace(RawOptions(size=48), causal=True).spec())
    with pytest.raises(StoreError, match=r"2 raw-frame sets of depth; choose with --features") as caught:
        choose_frames(store, "depth")
    for each in (name, causal):
        assert f"{each} ({store.spec(each).resize})" in str(caught.value)
    assert choose_frames(store, "depth", causal) == causal
    assert choose_frames(store, "rgb") is None
