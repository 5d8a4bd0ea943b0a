"""Training on raw video into a run folder: what is kept, what a kill leaves, what other commands read."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import math
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from feature_sets import blobs, feature_store, manifest, split_of
from paths import python_path
from raw_sets import SIZE, drawn_videos, raw_store
from train_split import train_split

from har_pipeline.core.errors import FeatureMismatchError, RunError
from har_pipeline.core.options import options_of, value_type
from har_pipeline.core.records import Split, VideoRecord
from har_pipeline.evaluation.compare import compare_members
from har_pipeline.evaluation.evaluate import evaluate
from har_pipeline.evaluation.members import load_members
from har_pipeline.evaluation.run_folder import Origin, RunSummary, read_history, read_run
from har_pipeline.features.store import FeatureStore
from har_pipeline.inference.load import load_network, load_run
from har_pipeline.inference.predict import predict_scores
from har_pipeline.models.convlstm import networks
from har_pipeline.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from har_pipeline.training.history import Epoch
from har_pipeline.training.jobs import plan_jobs, run_jobs
from har_pipeline.training.networks import fit as video_fit
from har_pipeline.training.networks.fit import BatchProgress, best_epoch
from har_pipeline.training.networks.loop import Learner
from har_pipeline.training.networks.train import config_notes, frame_notes
from har_pipeline.training.options import TrainConfig, VideoTrainConfig

LENGTHS = {f"{k}-{i}": 10 + 7 * ((i + 3 * k) % 5) for k in range(2) for i in range(8)}
FAST = VideoTrainConfig(
    width=0.05, batch_size=4, schedule="constant", learning_rate=2e-3, epochs=3, device="cpu", precision="fp32"
)
HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Task:
    store: FeatureStore
    name: str
    records: list[VideoRecord]
    split: Split

    def train(self, config: VideoTrainConfig, path: Path, **options: Any) -> RunSummary:
        summary = train_split(self.store, self.name, self.records, self.split, config, path, **options)
        assert summary is not None
        return summary


def make_task(folder: Path) -> Task:
    videos, labels = drawn_videos(LENGTHS)
    path = folder / "store.zarr"
    if path.exists():
        store = FeatureStore(path)
        name = store.feature_sets()[0]
    else:
        store, name = raw_store(path, videos)
    ids = list(labels)
    parts = ([v for v in ids if int(v[2]) in numbers] for numbers in (range(4), range(4, 6), range(6, 8)))
    train, val, test = parts
    return Task(store, name, manifest(labels), split_of(train, test, val))


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Task:
    return make_task(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def run(task: Task, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run"
    task.train(FAST, path)
    return path


def history_of(path: Path) -> dict[str, list[float | None]]:
    history = read_history(path)
    del history["seconds"]
    return history


def test_both_networks_learn(task: Task, tmp_path: Path) -> None:
    for model in ("convlstm-stateful", "convlstm-stateless"):
        config = dataclasses.replace(FAST, model=model, width=0.1, epochs=8, learning_rate=5e-3)
        epochs: list[Epoch] = []
        summary = task.train(config, tmp_path / model, on_epoch=epochs.append)
        assert epochs[-1].train_loss < 0.6 * epochs[0].train_loss
        assert epochs[-1].train_loss < 0.4
        assert (summary.num_train, summary.num_val, summary.num_test) == (8, 4, 4)
        assert summary.best_epoch == best_epoch(epochs)


def test_a_run_folder_of_raw_video(task: Task, run: Path) -> None:
    names = {"run.json", "split.json", "network.safetensors", "history.csv", "scores.csv"}
    assert {file.name for file in run.iterdir()} == names
    assert len({file.stat().st_mode for file in run.iterdir()}) == 1
    assert [file.name for file in run.parent.iterdir()] == ["run"]
    info = json.loads((run / "run.json").read_text())
    assert info["kind"] == "video"
    assert info["precision"] == "fp32"
    assert "0.05 times the paper's filters" in info["summary"]["notes"][0]
    loaded = load_run(run)
    assert loaded.config == FAST
    assert loaded.frame_shape == (1, SIZE, SIZE)
    assert loaded.classes == ("side", "up")
    assert not loaded.network.training
    assert info["parameters"] == sum(parameter.numel() for parameter in loaded.network.parameters())
    assert read_run(run).feature_set == task.name


def test_scores_are_those_of_the_stored_weights(task: Task, run: Path) -> None:
    loaded = load_run(run)
    scores = loaded.scores()
    assert scores.part == ("val",) * 4 + ("test",) * 4
    video_id = scores.video_ids[5]
    length = LENGTHS[video_id] // 8 * 8
    frames = task.store.read(task.name, video_id).features[:length].reshape(1, length, 1, SIZE, SIZE)
    state, votes, total = None, torch.zeros(1, 2), 0.0
    with torch.inference_mode():
        for number in range(length // 8):
            clip = torch.from_numpy(frames[:, 8 * number : 8 * number + 8]).float() / 255
            logits, state = loaded.network(clip, state)
            votes = votes + (number + 1) ** 3 * logits.double().softmax(1)
            total += (number + 1) ** 3
    assert np.allclose(scores.probabilities[5], (votes / total)[0].numpy(), rtol=0, atol=1e-6)


def test_other_commands_read_the_run(task: Task, run: Path, tmp_path: Path) -> None:
    assert evaluate(run).measures.num_videos == 4
    assert (run / "training.png").is_file()
    features, labels = blobs(("side", "up"), 8)
    ids = {f"{v.split('-')[0]}-{v.split('-')[1]}": v for v in labels}
    renamed = {f"{int(v.startswith('up'))}-{v.split('-')[1]}": features[old] for v, old in ids.items()}
    wanted = {record.video_id: record.label for record in task.records}
    swapped = {v: renamed[v] for v in wanted}
    store, name = feature_store(tmp_path / "store.zarr", swapped)
    train_split(store, name, task.records, task.split, TrainConfig(epochs=2, units=4, device="cpu"), tmp_path / "head")
    with pytest.raises(RunError, match="a run of `har train`"):
        load_network(tmp_path / "head")
    members = load_members([run, tmp_path / "head"])
    assert [member.stream for member in members] == ["depth", "rgb"]
    assert compare_members(*members).num_videos == 4


def test_the_same_call_gives_the_same_run(task: Task, run: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    task.train(FAST, tmp_path / "again")
    assert torch.equal(before, torch.random.get_rng_state())
    assert history_of(tmp_path / "again") == history_of(run)
    assert (tmp_path / "again/scores.csv").read_bytes() == (run / "scores.csv").read_bytes()
    task.train(dataclasses.replace(FAST, seed=1), tmp_path / "other")
    assert history_of(tmp_path / "other") != history_of(run)


KILLED = """
import os, signal, sys
from pathlib import Path
from test_train import FAST, make_task
import dataclasses
task = make_task(Path(sys.argv[1]))
def kill(progress):
    if progress.epoch == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
task.train(dataclasses.replace(FAST, **eval(sys.argv[4])), Path(sys.argv[2]), on_batch=kill)
"""


@pytest.mark.parametrize(
    ("changes", "epoch"),
    [
        # The last one changes more of what goes on; other tests stop these options in this process.
        pytest.param({}, 2, marks=pytest.mark.exhaustive),
        pytest.param(
            {"model": "convlstm-stateless", "schedule": "published", "learning_rate": None, "epochs": 4},
            4,
            marks=pytest.mark.exhaustive,
        ),
        (
            {
                **{"motion": True, "frame_step": 2, "augment": 0.1, "epochs": 2},
                **{"state_gradient": "video", "norm_over": "video", "window_loss": "vote"},
            },
            2,
        ),
    ],
)
def test_a_kill_in_mid_epoch_and_the_same_call_give_the_same_history(
    task: Task, tmp_path: Path, changes: dict[str, Any], epoch: int
) -> None:
    config = dataclasses.replace(FAST, **changes)
    task.train(config, tmp_path / "whole")
    path = tmp_path / "killed"
    arguments = [str(task.store.path.parent), str(path), str(epoch), repr(changes)]
    done = subprocess.run([sys.executable, "-c", KILLED, *arguments], env=python_path(HERE), check=False)
    assert done.returncode == -signal.SIGKILL
    assert not path.exists()
    assert (tmp_path / ".killed.partial" / CHECKPOINT).is_file()
    # Another training does not go on where this one was, nor take its place unasked.
    with pytest.raises(RunError, match=r"unfinished run that differs in .*seed \(\d, not 7\).*--overwrite"):
        task.train(dataclasses.replace(config, seed=7), path)
    epochs: list[Epoch] = []
    summary = task.train(config, path, on_epoch=epochs.append)
    assert [e.epoch for e in epochs] == list(range(epoch, config.num_epochs + 1))
    assert summary.epochs == config.num_epochs
    assert history_of(path) == history_of(tmp_path / "whole")
    for name in ("scores.csv", "network.safetensors"):
        assert (path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"whole", "killed"}


class Stop(Exception):
    pass


def stop(progress: BatchProgress) -> None:
    if progress.epoch == 2:
        raise Stop


def test_an_unfinished_run_is_begun_anew_with_overwrite(task: Task, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        task.train(FAST, tmp_path / "run", on_batch=stop)
    other = dataclasses.replace(FAST, seed=1)
    task.train(other, tmp_path / "run", overwrite=True)
    task.train(other, tmp_path / "fresh")
    assert history_of(tmp_path / "run") == history_of(tmp_path / "fresh")
    with pytest.raises(RunError, match="holds a run already"):
        task.train(other, tmp_path / "run")


def test_seconds_count_the_epochs_of_all_processes(task: Task, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        task.train(FAST, tmp_path / "run", on_batch=stop)
    checkpoint = tmp_path / ".run.partial" / CHECKPOINT
    state = load_checkpoint(checkpoint)
    assert state is not None
    state["history"][0]["seconds"] = 1000.0
    save_checkpoint(checkpoint, state)
    summary = task.train(FAST, tmp_path / "run")
    seconds = [value or 0.0 for value in read_history(tmp_path / "run")["seconds"]]
    assert seconds[0] == 1000
    assert sum(seconds) <= summary.seconds < 1000 + 100
    assert json.loads((tmp_path / "run/run.json").read_text())["summary"]["seconds"] == summary.seconds


def test_an_unfinished_run_goes_on_with_another_command_line(task: Task, tmp_path: Path) -> None:
    typed = Origin(command="har train-video m.csv -o run", manifest=tmp_path / "m.csv")
    with pytest.raises(Stop):
        task.train(FAST, tmp_path / "run", on_batch=stop, origin=typed)
    epochs: list[Epoch] = []
    task.train(FAST, tmp_path / "run", on_epoch=epochs.append, origin=Origin(command="har train-video n.csv"))
    assert [e.epoch for e in epochs] == list(range(2, FAST.num_epochs + 1))
    info = json.loads((tmp_path / "run/run.json").read_text())
    assert info["command"] == "har train-video n.csv"
    assert info["manifest"] is info["root"] is info["store"] is None
    read_run(tmp_path / "run")


def test_a_run_with_hard_gates_is_read_with_them(task: Task, tmp_path: Path) -> None:
    hard = dataclasses.replace(FAST, gates="hard-sigmoid", epochs=1)
    task.train(hard, tmp_path / "run")
    loaded, scores = load_network(tmp_path / "run"), read_run(tmp_path / "run").scores()
    frames = task.store.read(task.name, scores.video_ids[0]).features
    np.testing.assert_allclose(predict_scores(loaded, frames), scores.probabilities[0], atol=1e-5)


def test_another_schedule_is_noted() -> None:
    own = VideoTrainConfig(model="convlstm-stateless", schedule="one-cycle", epochs=30, precision="fp32")
    short = "learning rate: the published schedule run through in 1 epoch; the paper's schedule has 25 epochs"
    assert config_notes(VideoTrainConfig(epochs=1, precision="fp32")) == [short]
    assert config_notes(own) == [
        "learning rate: one-cycle, at most 0.00098, for 30 epochs; the paper's schedule has 75 epochs"
    ]


# Trainings that each option is changed in by itself; the first two are the published ones.
BASES = [
    VideoTrainConfig(model="convlstm-stateless", precision="fp32"),
    VideoTrainConfig(model="convlstm-stateful", precision="fp32"),
    VideoTrainConfig(model="convlstm-stateless", precision="fp32", schedule="one-cycle"),
    VideoTrainConfig(model="convlstm-stateful", precision="fp32", schedule="constant"),
    VideoTrainConfig(model="convlstm-stateful", precision="fp32", state_gradient="video"),
    VideoTrainConfig(model="convnet3d", precision="fp32"),
]
# Which of the two networks, on what machine, and which of its draws: nothing that the paper fixes.
NO_DEPARTURE = {"model", "seed", "device"}


def other_values(name: str, value: Any) -> list[Any]:
    """Return values of an option, valid or not, that all differ from `value`."""
    made, hint = options_of(VideoTrainConfig)[name]
    kind, optional = value_type(hint)
    if choices := get_args(kind):
        found = list(choices)
    elif kind is bool:
        found = [False, True]
    else:
        bounds = [bound for bound in (made.min, made.max, made.above, made.below) if bound is not None]
        found = [kind(number) for number in (0, 0.25, 0.5, 1, 3, 30, 208, *bounds) if number != math.inf]
    return [other for other in dict.fromkeys([*found, *[None] * optional]) if other != value]


@pytest.mark.parametrize("name", sorted(field.name for field in dataclasses.fields(VideoTrainConfig)))
def test_every_option_that_differs_from_the_paper_is_noted(name: str) -> None:
    changed = []
    for base in BASES[:2] if name in NO_DEPARTURE else BASES:
        for value in other_values(name, getattr(base, name)):
            if value == "convnet3d":
                continue  # its paper leaves so much open that it always has notes
            with contextlib.suppress(ValueError):
                changed.append((base, dataclasses.replace(base, **{name: value})))
    assert changed
    for base, other in changed:
        assert (config_notes(other) == config_notes(base)) == (name in NO_DEPARTURE), other


@pytest.mark.parametrize("base", BASES[:2], ids=lambda base: base.model)
def test_the_published_training_has_no_note(base: VideoTrainConfig) -> None:
    assert config_notes(base) == []
    spelled_out = dataclasses.replace(base, batch_size=base.videos_per_batch, epochs=base.num_epochs)
    assert config_notes(spelled_out) == []
    assert config_notes(base, processes=4) == [
        f"{4 * base.videos_per_batch} videos in a batch, of 4 processes; the paper's batches have {base.videos_per_batch}"
    ]


def test_the_precision_that_was_used_is_noted(task: Task, tmp_path: Path) -> None:
    note = "trained in bf16 where the network allows it; the paper says nothing of reduced precision"
    exact = task.train(dataclasses.replace(FAST, epochs=1), tmp_path / "fp32")
    rounded = task.train(dataclasses.replace(FAST, epochs=1, precision="bf16"), tmp_path / "bf16")
    assert (note in exact.notes, note in rounded.notes) == (False, True)
    assert config_notes(dataclasses.replace(BASES[0], precision="auto")) == [
        "trained in bf16 where the device has it; the paper says nothing of reduced precision"
    ]


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("convlstm-stateful", "no validation videos: the network of the last epoch was kept"),
        (
            "convlstm-stateless",
            "no validation videos: the last 1 of 3 epochs went on from epoch 2, their rate was to be halved where the training "
            "accuracy did not rise, and the network of the last epoch was kept",
        ),
    ],
)
def test_a_run_says_how_its_epoch_was_chosen(task: Task, tmp_path: Path, model: Any, told: str) -> None:
    plain = dataclasses.replace(FAST, model=model, schedule="published", learning_rate=None)
    summary = task.train(plain, tmp_path / "with")
    assert "4 validation videos chose the epoch; the paper trains on all of its training videos" in summary.notes
    without = dataclasses.replace(task, split=dataclasses.replace(task.split, val=()))
    summary = without.train(plain, tmp_path / "without")
    assert told in summary.notes
    assert (summary.best_epoch, summary.num_val) == (3, 0)


def test_other_frames_than_the_papers_are_noted(task: Task, run: Path) -> None:
    told = f"frames of {SIZE}x{SIZE} px; the paper's have 64x64"
    assert told in json.loads((run / "run.json").read_text())["summary"]["notes"]
    (spec,) = (task.store.spec(name) for name in [task.name])
    published = dataclasses.replace(spec, resize="box-stretch-64")
    assert frame_notes(published) == []
    for resize, note in (
        ("box-keep-64", "crops keep their shape; the paper re-scales them to squares, it does not say how"),
        (
            "causal-box-stretch-64",
            "frames are cropped by what came before them only; the paper crops by the whole video",
        ),
    ):
        assert frame_notes(dataclasses.replace(spec, resize=resize)) == [note]
    rgb = dataclasses.replace(spec, stream="rgb", resize="stretch-64")
    assert frame_notes(rgb) == ["RGB frames, as a whole; the paper's are cropped depth"]


def test_options_of_ours_are_noted() -> None:
    ours = VideoTrainConfig(model="convlstm-stateless", motion=True, clip="whole")
    told = [
        "beside each frame the network saw how much it differs",
        "spread over the whole video",
    ]
    assert [any(text in note for note in config_notes(ours)) for text in told] == [True] * 2
    assert "one frame in 3" in config_notes(VideoTrainConfig(frame_step=3))[0]


def relabelled(records: list[VideoRecord], video_id: str) -> list[VideoRecord]:
    other = next(record.label for record in records if record.label != label_of(records, video_id))
    return [dataclasses.replace(one, label=other) if one.video_id == video_id else one for one in records]


def label_of(records: list[VideoRecord], video_id: str) -> str:
    return next(record.label for record in records if record.video_id == video_id)


def test_an_unfinished_run_does_not_go_on_with_other_labels(task: Task, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        task.train(FAST, tmp_path / "run", on_batch=stop)
    other = dataclasses.replace(task, records=relabelled(task.records, task.split.train[0]))
    with pytest.raises(RunError, match=r"unfinished run that differs in labels_sha256.*--overwrite"):
        other.train(FAST, tmp_path / "run")
    # An older version did not write them down: its runs go on.
    job = tmp_path / ".run.partial/job.json"
    values = json.loads(job.read_text())
    del values["labels_sha256"]
    job.write_text(json.dumps(values))
    other.train(FAST, tmp_path / "run")
    assert (tmp_path / "run/run.json").is_file()


def test_two_processes_do_not_train_one_run(task: Task, tmp_path: Path) -> None:
    def again(progress: BatchProgress) -> None:
        with pytest.raises(RunError, match=r"another process is training there \(process"):
            task.train(FAST, tmp_path / "run")
        raise Stop

    with pytest.raises(Stop):
        task.train(FAST, tmp_path / "run", on_batch=again)
    assert not list(tmp_path.iterdir()), "nothing is kept before the first epoch"


def epoch_of(number: int, accuracy: float | None, loss: float | None) -> Epoch:
    return Epoch(number, 1e-3, 1.0, 0.5, loss, accuracy, 0.1)


def test_the_best_epoch() -> None:
    epochs = [
        epoch_of(1, 0.5, 1.0),
        epoch_of(2, 0.7, 1.2),
        epoch_of(3, 0.7, 1.1),
        epoch_of(4, 0.7, 1.1),
        epoch_of(5, 0.6, 0.9),
    ]
    assert [best_epoch(epochs[:n]) for n in range(1, 6)] == [1, 2, 3, 3, 3]
    assert best_epoch([epoch_of(1, None, None), epoch_of(2, None, None)]) == 2


def test_without_validation_videos_the_last_epoch_is_kept(task: Task, tmp_path: Path) -> None:
    split = dataclasses.replace(task.split, val=())
    summary = train_split(task.store, task.name, task.records, split, FAST, tmp_path / "run")
    assert summary is not None
    assert (summary.best_epoch, summary.val_accuracy) == (3, None)
    assert history_of(tmp_path / "run")["val_accuracy"] == [None] * 3


def test_the_published_stateless_schedule_goes_on_from_the_best(
    task: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states: list[dict[str, Any]] = []
    restarts: list[dict[str, torch.Tensor]] = []
    restart = Learner.restart

    def watched(learner: Learner) -> None:
        restart(learner)
        restarts.append({name: value.clone() for name, value in learner.network.state_dict().items()})

    monkeypatch.setattr(Learner, "restart", watched)
    monkeypatch.setattr(video_fit, "save_checkpoint", lambda path, state: states.append(copy.deepcopy(state)))
    config = dataclasses.replace(
        FAST, model="convlstm-stateless", schedule="published", learning_rate=None, epochs=6, patience=1, seed=2
    )
    assert config.main_epochs == 4
    summary = task.train(config, tmp_path / "run")
    history = read_history(tmp_path / "run")
    assert history["learning_rate"][:5] == [8e-5, *(config.rate(done) for done in (1.0, 2.0, 3.0)), 2e-4]
    assert len(restarts) == 2, "one optimiser at the start, one for the last part"
    best = states[3]["best_weights"]
    assert all(torch.equal(restarts[1][name], best[name]) for name in best)
    stored = load_run(tmp_path / "run").network.state_dict()
    assert all(torch.equal(stored[name], states[-1]["best_weights"][name]) for name in stored)
    assert best_epoch([Epoch(**row) for row in states[-1]["history"]]) == summary.best_epoch


def test_features_of_a_net_are_no_frames(tmp_path: Path) -> None:
    features, labels = blobs(("a", "b"), 3)
    store, name = feature_store(tmp_path / "store.zarr", features)
    ids = list(labels)
    split = split_of([v for v in ids if v[-1] != "2"], [v for v in ids if v[-1] == "2"])
    with pytest.raises(FeatureMismatchError, match="not raw frames"):
        train_split(store, name, manifest(labels), split, FAST, tmp_path / "run")


def test_missing_videos_and_a_loss_that_is_none(task: Task, tmp_path: Path) -> None:
    records = [*task.records, *manifest({"1-9": "up"})]
    split = dataclasses.replace(task.split, train=(*task.split.train, "1-9"))
    with pytest.raises(RunError, match="no features of 1 video"):
        train_split(task.store, task.name, records, split, FAST, tmp_path / "run")
    summary = train_split(task.store, task.name, records, split, FAST, tmp_path / "run", allow_missing=True)
    assert summary is not None
    assert summary.missing == ("1-9",)
    wild = dataclasses.replace(FAST, learning_rate=1e30)
    with pytest.raises(RunError, match="the loss became nan"):
        task.train(wild, tmp_path / "wild")


def test_folds_and_repeats_go_on(task: Task, tmp_path: Path) -> None:
    second = dataclasses.replace(task.split, index=1, train=task.split.train[2:], val=())
    jobs = plan_jobs([task.split, second], tmp_path / "job", seed=3, repeats=2)
    config = dataclasses.replace(FAST, epochs=1, seed=3)
    outcomes = run_jobs(task.store, [task.name], task.records, jobs[:3], config)
    assert [outcome.kept for outcome in outcomes] == [False] * 3
    outcomes = run_jobs(task.store, [task.name], task.records, jobs, config)
    assert [outcome.kept for outcome in outcomes] == [True, True, True, False]
    assert [load_run(job.folder).config.seed for job in jobs] == [3, 3, 4, 4]
    with pytest.raises(RunError, match=r"trained differently \(width: 0\.05 != 0\.1"):
        run_jobs(task.store, [task.name], task.records, jobs, dataclasses.replace(config, width=0.1))
    records = relabelled(task.records, second.test[0])
    with pytest.raises(RunError, match=r"trained differently \(the labels of the videos\)"):
        run_jobs(task.store, [task.name], records, jobs, config)
    # A fold alone gives what it gives in a job, whose frames are read once for all.
    alone = train_split(
        task.store, task.name, task.records, second, dataclasses.replace(config, seed=4), tmp_path / "alone"
    )
    assert alone is not None
    assert history_of(tmp_path / "alone") == history_of(jobs[3].folder)


@pytest.mark.needs_cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("model", ["convlstm-stateful", "convlstm-stateless"])
def test_a_gpu_trains_as_the_cpu_and_goes_on_after_a_stop(
    task: Task, tmp_path: Path, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The CPU's convolutions multiply in full float32; a GPU's do so only without TF32. The two draw other dropout masks.
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(networks, "DROPOUT", 0.0)
    config = dataclasses.replace(FAST, model=model, device="cuda")
    with pytest.raises(Stop):
        task.train(config, tmp_path / "run", on_batch=stop)
    task.train(config, tmp_path / "run")
    task.train(dataclasses.replace(config, device="cpu"), tmp_path / "cpu")
    losses = [history_of(tmp_path / name)["train_loss"] for name in ("run", "cpu")]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    task.train(dataclasses.replace(config, precision="auto"), tmp_path / "bf16")
    assert json.loads((tmp_path / "bf16/run.json").read_text())["precision"] in ("bf16", "fp32")


def test_a_damaged_checkpoint_is_an_error_and_overwrite_starts_again(task: Task, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        task.train(FAST, tmp_path / "run", on_batch=stop)
    checkpoint = tmp_path / ".run.partial" / CHECKPOINT
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(RunError, match=r"checkpoint\.pt: damaged .*--overwrite"):
        task.train(FAST, tmp_path / "run")
    epochs: list[Epoch] = []
    task.train(FAST, tmp_path / "run", overwrite=True, on_epoch=epochs.append)
    assert epochs[0].epoch == 1


@pytest.mark.parametrize("change", ["history", "weights", "optimizer", "best_weights"])
def test_a_checkpoint_of_something_else_is_an_error(task: Task, tmp_path: Path, change: str) -> None:
    with pytest.raises(Stop):
        task.train(FAST, tmp_path / "run", on_batch=stop)
    checkpoint = tmp_path / ".run.partial" / CHECKPOINT
    state = load_checkpoint(checkpoint)
    assert state is not None
    for wrong in ({}, {"nonsense": [1]}, 7, None):
        save_checkpoint(checkpoint, {**state, change: wrong})
        with pytest.raises(RunError, match=r"checkpoint\.pt: damaged"):
            task.train(FAST, tmp_path / "run")
