"""Learned and handcrafted features side by side on UT-Interaction set 1, leave-one-sequence-out: one table.

ROOT holds the segmented clips as `<number>_<sequence>_<label>.avi`. Rows: the 3D-ConvNet of Baccouche 2011 from scratch, on
windows of the pair, with voting and with its LSTM; Harris-3D interest points with that LSTM, as a bag of words and as Fisher
vectors; improved trajectories as Fisher vectors; I3D (Kinetics-400) with an LSTM; and that one's product with the
trajectories, as in Lakhal 2018, section 4.3. What is fitted (nets, vocabularies, mixtures) is fitted on the training
sequences of each fold. All numbers of epochs and sizes were set before, none by these sequences: those of the LSTM are the
ones of `pipelines/baccouche2011.py`. Prints JSON; what was made is kept in --out, so an interrupted run continues.

python benchmarks/interactions.py ROOT --i3d-weights FILE
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from har_pipeline import (
    ClipSpec,
    EncodeOptions,
    ExtractOptions,
    FeatureStore,
    LocalOptions,
    RawOptions,
    Split,
    TrainConfig,
    build_extractor,
    build_manifest,
    encode_features,
    errors_as_lines,
    evaluate,
    extract,
    extract_local,
    fuse,
    load_member,
    make_splits,
    manifest_sha256,
    plan_jobs,
    read_manifest,
    run_jobs,
    store_raw_frames,
    write_manifest,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
import baccouche2011

# In smaller batches than there: 54 videos would give few updates.
NET = dataclasses.replace(baccouche2011.NET, batch_size=8, device="cpu")
LSTM = dataclasses.replace(baccouche2011.LSTM, device="cpu")
POINTS_LSTM = dataclasses.replace(baccouche2011.POINTS_LSTM, device="cpu")
SVM = TrainConfig(head="svm", logistic_c=100.0, device="cpu")
FISHER = EncodeOptions(encoding="fisher", gaussians=64, sample=100_000)
WORDS = EncodeOptions(encoding="words", words=1000, sample=100_000)
I3D = ExtractOptions(clips=ClipSpec(sampling="uniform", num_clips=5, clip_len=48))


class Table:
    """The rows, each a job of ten folds in a folder of its own."""

    def __init__(self, root: Path, out: Path) -> None:
        self.out, manifest = out, out / "manifest.csv"
        out.mkdir(parents=True, exist_ok=True)
        write_manifest(manifest, build_manifest("ut_interaction", root), root=root)
        self.records = read_manifest(manifest)
        sha256 = manifest_sha256(manifest)
        self.splits = make_splits(self.records, "leave_one_group_out", val_fraction=0.0, manifest_sha256=sha256)
        self.store = FeatureStore(out / "store.zarr", create=True)
        self.rows: dict[str, Any] = {}

    def train(self, name: str, row: str, features: Callable[[Split], str], config: TrainConfig) -> None:
        """Train a head on each fold's features, and add the row of its accuracy."""
        for planned in plan_jobs(self.splits, self.out / name):
            run_jobs(self.store, [features(planned.split)], self.records, [planned], config)
        self.add(row, evaluate(self.out / name).measures)

    def add(self, row: str, measures: Any) -> None:
        """Add a row: the accuracy over all clips and its 95 % interval."""
        assert measures is not None  # each clip is tested once
        top1 = measures.top1
        self.rows[row] = {"value": top1.value, "low": top1.low, "high": top1.high}

    def encoded(self, source: str, how: EncodeOptions) -> Callable[[Split], str]:
        """Return the function that gives the set of a fold."""
        return lambda split: encode_features(self.store, source, split, how).feature_set

    def convnet3d(self) -> None:
        """Add the rows of the net that learns its features, one for each fold."""
        frames = FeatureStore(self.out / "frames.zarr", create=True)
        windows = store_raw_frames(self.records, frames, RawOptions(stream="rgb", window="pair")).feature_set
        outcomes = run_jobs(frames, [windows], self.records, plan_jobs(self.splits, self.out / "convnet3d"), NET)
        self.add("3D-ConvNet, majority vote", evaluate(self.out / "convnet3d").measures)
        made = {
            one.run.split.index: extract(
                self.records,
                self.store,
                build_extractor("convnet3d", weights=str(one.run.folder / "network.safetensors"), device="cpu"),
            ).feature_set
            for one in outcomes
        }
        self.train("convnet3d_lstm", "3D-ConvNet + LSTM", lambda split: made[split.index], LSTM)

    def handcrafted(self) -> None:
        """Add the rows of interest points and trajectories."""
        harris, idt = (
            extract_local(self.records, self.store, LocalOptions(extractor=name)).feature_set
            for name in ("harris3d_hof", "idt")
        )
        self.train("harris_lstm", "Harris-3D, HOF + LSTM", lambda split: harris, POINTS_LSTM)
        self.train("harris_words", "Harris-3D, HOF, bag of words + SVM", self.encoded(harris, WORDS), SVM)
        self.train("harris_fisher", "Harris-3D, HOF, Fisher vector + SVM", self.encoded(harris, FISHER), SVM)
        self.train("idt", "IDT, Fisher vector + SVM", self.encoded(idt, FISHER), SVM)

    def i3d(self, weights: str | None) -> None:
        """Add the rows of I3D, and of its product with the trajectories."""
        features = extract(self.records, self.store, build_extractor("i3d", weights=weights, device="cpu"), I3D)
        self.train("i3d_lstm", "I3D + LSTM", lambda split: features.feature_set, TrainConfig(head="lstm", device="cpu"))
        fused, _ = fuse([load_member(self.out / "i3d_lstm", "i3d"), load_member(self.out / "idt", "idt")])
        self.add("I3D + LSTM, product with IDT", fused.row("product"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("--out", type=Path, default=Path("interactions_out"))
    parser.add_argument("--i3d-weights", help="file; without it the published weights are downloaded")
    options = parser.parse_args()
    with errors_as_lines():
        table = Table(options.root, options.out)
        table.handcrafted()
        table.convnet3d()
        table.i3d(options.i3d_weights)
        print(json.dumps({"videos": len(table.records), "folds": len(table.splits), "accuracy": table.rows}, indent=2))
