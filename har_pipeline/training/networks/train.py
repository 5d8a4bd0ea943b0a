"""Train a network on stored raw frames, end to end, and leave a run folder."""

from __future__ import annotations

import dataclasses
import functools
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import FeatureSpec
from har_pipeline.evaluation.run_folder import FROM_PYTHON, VIDEO, Origin, RunSummary, lasting_run_folder, split_info
from har_pipeline.features.frames import options_of
from har_pipeline.features.options import RawOptions
from har_pipeline.models.config import Vote
from har_pipeline.models.convlstm.windows import BIN_EDGES
from har_pipeline.training.checkpoint import CHECKPOINT, load_checkpoint
from har_pipeline.training.data import TrainingData, held_out_scores
from har_pipeline.training.history import OnEpoch
from har_pipeline.training.lock import training_lock
from har_pipeline.training.networks.distributed import ALONE, World
from har_pipeline.training.networks.fit import OnBatch, fit_network
from har_pipeline.training.networks.loop import Learner, sampling_of
from har_pipeline.training.options import VideoPrecision, VideoTrainConfig
from har_pipeline.training.run_writer import Trained, write_run
from har_pipeline.training.schedules import CYCLE_EPOCHS, FINE_TUNE_PATIENCE, MOMENTUM_CONVNET3D

NETWORK = "network.safetensors"


def train_network(
    data: TrainingData,
    config: VideoTrainConfig,
    run_dir: Path,
    *,
    overwrite: bool = False,
    job: str = "",
    origin: Origin = FROM_PYTHON,
    locked: bool = False,
    world: World = ALONE,
    on_epoch: OnEpoch = lambda epoch: None,
    on_batch: OnBatch = lambda progress: None,
) -> RunSummary | None:
    """Train a network on a split's training videos, score its validation and test videos, and write the run folder.

    A killed training resumes at the epoch it had reached when the same call is made again. job, origin: of which the run is
    a part, and what it was made by, see `write_run`. locked: as `jobs.run_jobs`. world: the processes that train together;
    all make the same call, the first one writes, and the others return None. On one CPU machine, with one number of threads,
    the same call gives the same weights, bit for bit, interrupted or not; GPUs add in varying order. The summary's
    train_accuracy is that of the best epoch while the weights moved; its seconds include the epochs of earlier, interrupted
    processes.
    Raises: RunError if `run_dir` is taken or of an unfinished run with other options or data, or the loss is not finite;
    FeatureMismatchError if the data are not raw frames.
    """
    start, started = time.perf_counter(), datetime.now(UTC)
    lock = training_lock(run_dir) if world.first and not locked else nullcontext()
    with lock, _run_folder(data, config, run_dir, world, overwrite) as folder:
        checkpoint = folder and folder / CHECKPOINT
        if checkpoint and overwrite:
            _remove_damaged(checkpoint)
        fitted = fit_network(data, config, checkpoint=checkpoint, world=world, on_epoch=on_epoch, on_batch=on_batch)
        score = functools.partial(fitted.learner.probabilities, sampling=sampling_of(config))
        # All processes have a share of the videos to score.
        scores = held_out_scores(data, config.seed, score)
        votes = _votes(data, config, fitted.learner) if config.model == "convnet3d" else {}
        if folder is None:
            return None
        used: VideoPrecision = "bf16" if fitted.learner.precision == "bf16" else "fp32"
        best, network = fitted.history[fitted.best_epoch - 1], fitted.learner.network
        trained = Trained(
            model=network,
            history=fitted.history,
            best_epoch=fitted.best_epoch,
            scores=scores,
            train_accuracy=best.train_accuracy,
            val_accuracy=best.val_accuracy,
            notes=(
                *config_notes(dataclasses.replace(config, precision=used), processes=world.size),
                *frame_notes(data.specs[0]),
                *_data_notes(data, config),
                *data.notes,
            ),
            device=fitted.learner.frames.device,
            started=started,
            seconds=time.perf_counter() - start + fitted.seconds_before,
            details={
                "kind": VIDEO,
                "precision": fitted.learner.precision,
                "parameters": sum(parameter.numel() for parameter in network.parameters()),
                "processes": world.size,
                "files_sha256": data.files_sha256,
                **votes,
            },
        )
        summary = write_run(folder, run_dir, NETWORK, data, config, trained, job, origin)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return summary


def _votes(data: TrainingData, config: VideoTrainConfig, learner: Learner) -> dict[str, Any]:
    """Return the test accuracy of both votes of the clips, of which the run's scores show one."""
    rows, found = data.parts.test, {}
    if not len(rows):
        return {}
    for how in get_args(Vote):
        sampling = dataclasses.replace(sampling_of(config), vote=how)
        best = learner.probabilities(rows, sampling=sampling).argmax(axis=1)
        found[how] = float((best == data.table.labels[rows]).mean())
    return {"test_accuracy_by_vote": found}


def _remove_damaged(checkpoint: Path) -> None:
    try:
        load_checkpoint(checkpoint)
    except RunError:
        checkpoint.unlink()


def _run_folder(
    data: TrainingData, config: VideoTrainConfig, run_dir: Path, world: World, overwrite: bool
) -> AbstractContextManager[Path | None]:
    """Give the first process the folder to write the run into, the others None."""
    if not world.first:
        return nullcontext()
    options, defaults = (
        {option: value for option, value in given.to_dict().items() if option != "device"}
        for given in (config, VideoTrainConfig())
    )
    job = {
        "options": options,
        "features": data.feature_sets[0],
        "split": split_info(data.split),
        "processes": world.size,
        "labels_sha256": data.labels_sha256,
        "features_sha256": data.features_sha256,
        "files_sha256": data.files_sha256,
    }
    return lasting_run_folder(run_dir, job, overwrite=overwrite, defaults=defaults)


def config_notes(config: VideoTrainConfig, *, processes: int = 1) -> list[str]:
    """Return how the options differ from the published network and training, for a reader of the results.

    Every option but the model, the seed and the device has its note. processes: that share each batch's updates.
    """
    if config.model == "convnet3d":
        return [*_convnet3d_notes(config, processes), *_precision_notes(config)]
    notes = []
    if config.width != 1:
        notes.append(
            f"every layer has {config.width:g} times the paper's filters: this is not the published network, but a "
            f"{'narrower' if config.width < 1 else 'wider'} one"
        )
    if config.gates != "sigmoid":
        notes.append(
            "the gates are hard sigmoids, clip(0.2 x + 0.5, 0, 1); the paper does not say which it has, sigmoids are the "
            "default"
        )
    if config.memory_frames is not None:
        notes.append(f"the cells began with a memory of up to {config.memory_frames} frames, which is ours")
    if config.motion:
        notes.append(
            "beside each frame the network saw how much it differs from the one before; the paper's sees frames only"
        )
    return [*notes, *_video_notes(config), *_schedule_notes(config), *_batch_notes(config, processes)]


def _convnet3d_notes(config: VideoTrainConfig, processes: int) -> list[str]:
    """Return the same of the 3D-ConvNet, whose paper names neither a rate, a batch nor a number of epochs."""
    clips, epochs = processes * config.videos_per_batch, f"{config.num_epochs} epochs"
    if config.stops_early:
        epochs = f"at most {epochs}, or until the accuracy on the drawn clips had not risen for {config.stop_after}"
    notes = [
        f"each epoch showed {config.clips_per_video} clips of each training video, drawn at random, {clips} in a batch; the "
        "paper takes all, one by one",
        f"learning rate: {config.schedule}, at most {config.peak_rate:g}, momentum {MOMENTUM_CONVNET3D:g}, for {epochs}; the "
        "paper names no numbers",
        f"clips that start every {config.clip_stride} frames voted, {config.vote}; the paper does not say which clips vote, "
        "its vote is that of the majority",
    ]
    if not config.flips:
        notes.append("no clip was shown upside down or mirrored; the paper's were")
    if config.augment:
        notes.append(f"training clips were moved and scaled by up to {100 * config.augment:g} %; the paper's are not")
    return notes


def _video_notes(config: VideoTrainConfig) -> list[str]:
    notes = []
    if config.long_videos != "cut":
        notes.append(
            f"videos of more than {BIN_EDGES[-1]} frames, which the paper does not have, were seen whole, not to frame "
            f"{BIN_EDGES[-2]}"
        )
    if config.clip == "whole":
        notes.append(
            "a clip's 30 frames were spread over the whole video; the paper's are in a row, or every second one"
        )
    if config.frame_step != 1:
        notes.append(f"windows held one frame in {config.frame_step}; the paper's hold frames in a row")
    if config.state_gradient != "window":
        notes.append(
            "the gradient went through the state of whole videos; as we read the paper, it is cut off at each window"
        )
    if config.norm_over != "window":
        notes.append(
            "batch normalisation took its statistics from all windows of a batch together; the paper's from each"
        )
    if config.window_loss != "equal":
        notes.append("later windows counted more in the loss, as in a video's answer; the paper's count the same")
    if config.augment:
        notes.append(f"training frames were moved and scaled by up to {100 * config.augment:g} %; the paper's are not")
    return notes


def _schedule_notes(config: VideoTrainConfig) -> list[str]:
    notes = []
    if config.schedule != "published" or config.num_epochs != config.published_epochs:
        count = f"{config.num_epochs} epoch{'s' * (config.num_epochs != 1)}"
        own = f"{config.schedule}, at most {config.peak_rate:g}, for"
        how = "the published schedule run through in" if config.schedule == "published" else own
        notes.append(f"learning rate: {how} {count}; the paper's schedule has {config.published_epochs} epochs")
    if config.cycle_epochs != CYCLE_EPOCHS:
        notes.append(
            f"the cyclic learning rate has a period of {config.cycle_epochs:g} epochs; the paper does not say, our guess is "
            f"{CYCLE_EPOCHS:g}"
        )
    if config.patience != FINE_TUNE_PATIENCE:
        notes.append(
            f"the last rate is halved after {config.patience} epochs without better accuracy, the paper's after "
            f"{FINE_TUNE_PATIENCE}"
        )
    return notes


def _batch_notes(config: VideoTrainConfig, processes: int) -> list[str]:
    notes, of = [], f", of {processes} processes" if processes > 1 else ""
    videos, published = processes * config.videos_per_batch, VideoTrainConfig(model=config.model).videos_per_batch
    if videos != published:
        notes.append(f"{videos} videos in a batch{of}; the paper's batches have {published}")
    return [*notes, *_precision_notes(config)]


def _precision_notes(config: VideoTrainConfig) -> list[str]:
    notes = []
    if config.precision != "fp32":
        where = "the network allows it" if config.precision == "bf16" else "the device has it"
        notes.append(f"trained in bf16 where {where}; the paper says nothing of reduced precision")
    return notes


def frame_notes(spec: FeatureSpec) -> list[str]:
    """Return how the frames differ from those of the paper, for a reader of the results.

    Raises: FeatureMismatchError if the feature set is none of raw frames.
    """
    options, published, notes = options_of(spec), RawOptions(), []
    if options.window:
        return []
    if options.size != published.size:
        notes.append(f"frames of {options.size}x{options.size} px; the paper's have {published.size}x{published.size}")
    if options.stream != "depth":
        return [*notes, "RGB frames, as a whole; the paper's are cropped depth"]
    if options.aspect != "stretch":
        notes.append("crops keep their shape; the paper re-scales them to squares, it does not say how")
    if options.causal:
        notes.append("frames are cropped by what came before them only; the paper crops by the whole video")
    return notes


def _data_notes(data: TrainingData, config: VideoTrainConfig) -> list[str]:
    notes, long = [], int((data.table.lengths > BIN_EDGES[-1]).sum())
    if config.stateful and long and config.long_videos == "cut":
        notes.append(
            f"{long} videos of more than {BIN_EDGES[-1]} frames were cut to their first {BIN_EDGES[-2]}, see --long-videos"
        )
    return [*notes, _choice_note(len(data.parts.val), config)]


def _choice_note(val_videos: int, config: VideoTrainConfig) -> str:
    """Return how the epoch was chosen whose network was kept."""
    if val_videos:
        return f"{val_videos} validation videos chose the epoch; the paper trains on all of its training videos"
    if config.model == "convnet3d":
        kept = "epoch with the best training accuracy" if config.stops_early else "last epoch"
        return f"no validation videos, as in the paper: the network of the {kept} was kept"
    later, restart = config.num_epochs - config.main_epochs, ""
    if later:
        restart = (
            f"the last {later} of {config.num_epochs} epochs went on from epoch {config.main_epochs}, their rate was to be "
            "halved where the training accuracy did not rise, and "
        )
    return f"no validation videos: {restart}the network of the last epoch was kept"
