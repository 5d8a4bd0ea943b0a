"""The experiments of Lakhal 2018 and Orozco 2020 on small real data, with the pipelines' own code. Prints JSON.

    python benchmarks/papers_real.py fc6 DATA --out papers_fc6
    python benchmarks/papers_real.py ut_interaction UT_INTERACTION --weights i3d.safetensors --out papers_ut

fc6: VGG16 fc6 of six frames of seven UCF-101 classes, official split 1 (DATA as in fc6_heads.py): Lakhal's Table 1, Figure 3
and sub-videos, Orozco's sweep over units. ut_interaction: set 1, leave-one-sequence-out, I3D on clips of 16 frames, stride 8:
the same, and Lakhal's Table 2 and single crops (TSN's two streams at 8 places, by EfficientNet-Lite0 of ImageNet, flow: DIS).
Table 2's streams are reduced by a PCA of each fold's training clips to 256 values, the least that the paper reduces to: its
own 1,024 take hours on one core.

Hidden sizes, PCA dimensions and T are smaller than the papers', set by what one shared core can carry. The papers name no
number of epochs that suits such small sets (Lakhal names none), so it is chosen, for each kind of head and set, on training
videos only: three inner folds hold another part of the training groups out; of the numbers in `TRIED` in whose last fifth every
head is right on `LEARNED` of the videos that it trains on, the one with the best held-out accuracy is taken. Plain features,
one seed; the mean over folds, in Table 2 over all tests. --only makes some of the tables. Finished runs and features in OUT are
kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fc6_heads import load_task
from scaling import held_out_groups

from har_pipeline import (
    FeatureStore,
    build_manifest,
    errors_as_lines,
    make_splits,
    manifest_sha256,
    read_history,
    read_manifest,
    read_run,
    write_manifest,
)

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "pipelines"))
import lakhal2018
import orozco2020

Result = dict[str, Any]
# Three updates make an epoch of UT-Interaction, 28 one of fc6.
TRIED = {"fc6": (5, 10, 25), "ut_interaction": (25, 50, 100, 200)}
LEARNED, INNER_FOLDS = 0.95, 3
UNITS = (40, 120, 200, 320)
SIZES: dict[str, tuple[int, ...]] = {"base": (64,), "sizes": (32, 64, 128)}
PLACES, PCA = 8, 256
LSTM, STACKS = ("1", "figure 3a", "section 3.3"), ("figure 3b-c",)
FUSION, CROPS, OROZCO = "2", "section 3.3", "orozco"
PARTS = (*lakhal2018.ABLATIONS, FUSION, OROZCO)
INNER = "inner"


@dataclasses.dataclass(frozen=True)
class Task:
    """A feature set with its folds, the inner folds of the training groups, and what was asked for."""

    data: lakhal2018.Data
    inner: lakhal2018.Data
    features: str
    time_steps: tuple[int, ...]
    tried: tuple[int, ...]
    only: tuple[str, ...]
    device: str

    def enough_epochs(self, kind: str, train: Callable[[lakhal2018.Data, int], object]) -> tuple[int, list[Result]]:
        """Train on the inner folds; return the number of epochs that was chosen, and what each number reached."""
        data = self.inner._replace(out=self.data.out / INNER / kind)
        train(data, self.tried[-1])
        points: dict[Path, list[dict[str, list[Any]]]] = {}
        for path in sorted(data.out.rglob("history.csv")):
            points.setdefault(path.parents[1], []).append(read_history(path.parent))
        rows = []
        for epochs in self.tried:
            last = slice(epochs - math.ceil(epochs / 5), epochs)
            training = [
                statistics.mean(statistics.mean(run["train_accuracy"][last]) for run in runs)
                for runs in points.values()
            ]
            held_out = [statistics.mean(run["val_accuracy"][epochs - 1] for run in runs) for runs in points.values()]
            rows.append({"epochs": epochs, "training, least": min(training), "held out": statistics.mean(held_out)})
        enough = [row for row in rows if row["training, least"] >= LEARNED] or rows[-1:]
        return max(enough, key=lambda row: row["held out"])["epochs"], rows


def learned(folder: Path) -> dict[str, float]:
    """Return the share of its training videos that each point of the tables knows at last, the mean over folds."""
    points: dict[str, list[float]] = {}
    for path in sorted(folder.rglob("run.json")):
        if INNER not in path.relative_to(folder).parts:
            point = path.parents[1].relative_to(folder).as_posix()
            points.setdefault(point, []).append(read_run(path.parent).info["summary"]["train_accuracy"])
    return {point: statistics.mean(shares) for point, shares in points.items()}


def both_papers(task: Task) -> Result:
    """Return Lakhal's ablations and Orozco's sweep on one feature set."""

    def ablations(data: lakhal2018.Data, epochs: int, sizes: tuple[int, ...], tables: tuple[str, ...]) -> list[Result]:
        base = dataclasses.replace(lakhal2018.PLAIN, epochs=epochs, device=task.device)
        own = {**SIZES, "sizes": sizes}
        return lakhal2018.ablations(data, task.features, base, own, 1, task.time_steps, task.time_steps[-1], tables)

    def sweep(data: lakhal2018.Data, epochs: int, units: tuple[int, ...]) -> list[Result]:
        head = dataclasses.replace(orozco2020.HEAD, epochs=epochs, device=task.device)
        rows, failed = orozco2020.sweep(
            data.store, data.records, data.splits, task.features, head, units, data.out / OROZCO, title="units"
        )
        assert not failed, failed
        return rows

    found: Result = {"lakhal": [], "orozco": [], "epochs": {}}
    for kind, tables in (("lstm", LSTM), ("stacks", STACKS)):
        if asked := tuple(table for table in tables if table in task.only):
            # The smallest heads learn last.
            smallest = functools.partial(ablations, sizes=SIZES["sizes"][:1], tables=tables)
            chosen, tried = task.enough_epochs(kind, smallest)
            found["epochs"][kind] = {"chosen": chosen, "tried": tried}
            found["lakhal"] += ablations(task.data, chosen, SIZES["sizes"], asked)
    if OROZCO in task.only:
        chosen, tried = task.enough_epochs(OROZCO, lambda data, n: sweep(data, n, UNITS[:1]))
        found["epochs"][OROZCO] = {"chosen": chosen, "tried": tried}
        found["orozco"] = sweep(task.data, chosen, UNITS)
    return found


def two_streams(task: Task, streams: lakhal2018.Streams) -> Result:
    """Return Lakhal's Table 2, and the mean of ten crops against the centre crop."""
    assert streams.center is not None

    def base(epochs: int) -> Any:
        return dataclasses.replace(lakhal2018.PLAIN, epochs=epochs, num_steps=PLACES, device=task.device)

    def train(data: lakhal2018.Data, epochs: int) -> None:
        for op in ("sum", "product"):
            lakhal2018.train(data, f"mid_{op}", streams.tsn, base(epochs), PCA, mid_fusion="input", fusion_op=op)
        for name, features in zip(("rgb", "flow"), streams.tsn, strict=True):
            lakhal2018.train(data, name, [features], base(epochs), PCA)

    chosen, tried = task.enough_epochs("fusion", train)
    rows = lakhal2018.fusion_strategies(task.data, streams.tsn, base(chosen), PCA) if FUSION in task.only else []
    if CROPS in task.only:
        crops = {"mean of ten crops": (streams.tsn, ""), "centre crop": (streams.center, "center_")}
        rows += lakhal2018.single_crops(task.data, crops, base(chosen), PCA)
    return {"lakhal": rows, "epochs": {"fusion": {"chosen": chosen, "tried": tried}}}


def on_fc6(args: argparse.Namespace) -> Result:
    fc6 = load_task(args.folder, args.out)
    data = lakhal2018.Data(args.out, fc6.store, fc6.records, [fc6.split])
    task = Task(
        data=data,
        inner=data._replace(splits=fc6.parts[:INNER_FOLDS]),
        features=fc6.features,
        time_steps=(2, 4, 6),
        tried=TRIED[args.what],
        only=tuple(args.only),
        device=args.device,
    )
    found = both_papers(task)
    return {"what": args.what, "test videos": len(fc6.split.test), "folds": 1, **found, "learned": learned(args.out)}


def on_ut_interaction(args: argparse.Namespace) -> Result:
    root, out = args.folder, args.out
    manifest = out / "manifest.csv"
    write_manifest(manifest, build_manifest("ut_interaction", root), root=root)
    records, store = read_manifest(manifest), FeatureStore(out / "store.zarr", create=True)
    splits = make_splits(records, "leave_one_group_out", val_fraction=0.0, manifest_sha256=manifest_sha256(manifest))
    data = lakhal2018.Data(out, store, records, splits)
    nets = ["--clip-net", "i3d", "--tsn", "tsn_efficientnet_lite0", "--flow-method", "dis", "--device", args.device]
    nets += ["--weights-clip", args.weights] if args.weights else []
    # The data set named here has lists and is not read.
    options = lakhal2018.parse(["hmdb51", str(root), "--lists", str(root), "--out", str(out), *nets])
    streams = lakhal2018.extract_streams(options, data, PLACES)
    if streams.missing:
        sys.exit(f"without features: {', '.join(streams.missing)}")
    task = Task(
        data=data,
        inner=data._replace(splits=held_out_groups(records, "group")[:INNER_FOLDS]),
        features=streams.clips,
        time_steps=(5, 15, 25),
        tried=TRIED[args.what],
        only=tuple(args.only),
        device=args.device,
    )
    found = both_papers(task)
    if {FUSION, CROPS} & set(args.only):
        fused = two_streams(task, streams)
        found["lakhal"] += fused["lakhal"]
        found["epochs"] |= fused["epochs"]
    sizes = {"test videos": len(records), "folds": len(splits)}
    names = [streams.clips, *streams.tsn, *(streams.center or ())]
    return {"what": args.what, **sizes, "feature sets": names, **found, "learned": learned(out)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=tuple(TRIED))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", help="of I3D on RGB: a name or a file")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="tables of Lakhal 2018, or orozco's sweep"
    )
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    with errors_as_lines():
        result = on_fc6(arguments) if arguments.what == "fc6" else on_ut_interaction(arguments)
    print(json.dumps(result, indent=2))
