"""Every option of a training run, with its default; imports no torch, so that the CLI can read the defaults."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from har_pipeline.core.errors import RunError
from har_pipeline.core.options import check_options, device_option, option, seed_option
from har_pipeline.core.records import FeatureSpec
from har_pipeline.models.config import (
    LAYERED_HEADS,
    RECURRENT_HEADS,
    RESIDUAL_HEADS,
    SCALED_HEADS,
    SCIKIT_HEADS,
    STEP_HEADS,
    UNITS_HEADS,
    Fusion,
    FusionOp,
    Gates,
    HeadConfig,
    HeadName,
    NetworkName,
    Output,
    Readout,
    Vote,
)
from har_pipeline.training import schedules

Optimizer = Literal["rmsprop", "adam", "adamw", "sgd"]
Schedule = Literal["constant", "cosine", "step", "plateau"]
ClassWeights = Literal["none", "balanced"]
HeadPrecision = Literal["fp32", "bf16"]

# What a head fitted by scikit-learn reads beside its own name.
SCIKIT_OPTIONS = (
    *("logistic_c", "class_weights", "standardise", "max_iterations", "num_steps"),
    *("seed", "device", "mid_fusion", "fusion_op"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Options of training a head; the defaults are those of Orozco 2020, algorithm 2 and section 3, but for the output.

    Raises: ValueError if a value is out of range, or does not go with another one.
    """

    head: HeadName = option(
        "lstm",
        "lstm, gru, bilstm; attention: weighted mean of an LSTM's states; res_lstm: residual stack as wide as its input "
        "(Lakhal 2018), stacked_lstm: the same without skips; attentive: a learned query that reads all clips or tokens by "
        "cross-attention, in no order (V-JEPA's attentive probe); mean_pool (= linear): mean over time + logistic regression; "
        "svm: mean over time + linear SVM, probabilities calibrated on held-out training videos; ridge: mean over time + least "
        "squares, probabilities a softmax of the decision values, not calibrated; vote: a dense layer on each clip.",
        panel="Head",
    )
    # Orozco's n_u, best at 360 (KTH), 320 (UCF-11), 400 (HMDB-51).
    units: int = option(
        320, "Units of each recurrent layer; res_lstm and stacked_lstm take their input's size.", min=1, panel="Head"
    )
    num_layers: int | None = option(
        None,
        "Recurrent layers; attentive: blocks of attention, all but the last among the features (V-JEPA 2: 4). Default: 2 for "
        "res_lstm and stacked_lstm, otherwise 1.",
        min=1,
        panel="Head",
    )
    input_projection: int | None = option(
        None,
        "Size of a dense layer before the first recurrent layer or attention. Default: no such layer.",
        min=1,
        panel="Head",
    )
    mid_fusion: Fusion | None = option(
        None,
        "Join several feature sets in the head. input: their features, clip by clip, before one encoder (Lakhal 2018); "
        "hidden: the states of one encoder each.",
        panel="Head",
    )
    fusion_op: FusionOp = option("sum", "How --mid-fusion combines the feature sets.", panel="Head")
    # Baccouche 2011: the output layer is connected to the LSTM at each time step.
    readout: Readout = option(
        "last",
        "lstm, gru, bilstm: classify the state after the last clip, or those of all steps, which --vote combines.",
        panel="Head",
    )
    # Baccouche 2011, see `models.heads.recurrent.LSTMWithoutForgetGate`.
    forget_gate: bool = option(True, "lstm of one layer: with or without forget gates.", panel="Head")
    # Sigmoids are divided by their sum before the cross-entropy, as Keras does: both outputs give probabilities.
    output: Output = option(
        "softmax", "Output activation; sigmoid as printed in Orozco 2020, scaled to sum to 1.", panel="Head"
    )
    vote: Vote = option(
        "soft",
        "How the vote head, or --readout steps, combines clips: soft = mean probability, majority = most votes.",
        panel="Head",
    )
    # Ours: the papers feed plain features. Which heads do better with scaling was measured by benchmarks/scaling.py.
    standardise: bool | None = option(
        None,
        "Shift and scale each feature by its mean and deviation over the training clips; of streams joined by --mid-fusion "
        f"input, their sum or product. Default: scaled for {', '.join(SCALED_HEADS)} only, and no encoded features, whose "
        "length is 1.",
        panel="Head",
    )
    epochs: int = option(50, "Training epochs.", min=1, panel="Training")
    batch_size: int = option(25, "Videos per batch.", min=1, panel="Training")
    optimizer: Optimizer = option("rmsprop", "Optimizer; sgd has a momentum of 0.9.", panel="Training")
    # Orozco names none: Keras's default, which is also Lakhal's (2018, section 4).
    learning_rate: float = option(1e-3, "Learning rate.", above=0, panel="Training")
    schedule: Schedule = option(
        "constant",
        "Learning-rate schedule. cosine: falls to 0 step by step; step: times --schedule-factor every --schedule-epochs; "
        "plateau: times --schedule-factor after --schedule-epochs without a lower validation loss.",
        panel="Training",
    )
    schedule_epochs: int = option(20, "Epochs between learning-rate drops (step, plateau).", min=1, panel="Training")
    schedule_factor: float = option(
        0.1, "Factor of each learning-rate drop (step, plateau).", above=0, below=1, panel="Training"
    )
    # On three held-out parts of the training groups of real VGG16 fc6 features dropout changed the LSTM's accuracy by
    # 0.2 points: no dropout by default.
    dropout: float = option(0.0, "Dropout on the output of each recurrent layer.", min=0, below=1, panel="Training")
    input_dropout: float = option(0.0, "Dropout on the features, one mask per video.", min=0, below=1, panel="Training")
    # Each step shrinks all weights but biases by learning_rate * weight_decay, so adam is adamw.
    weight_decay: float = option(0.0, "Weight decay, decoupled from the gradient.", min=0, panel="Training")
    label_smoothing: float = option(
        0.0, "Share of the target spread over all classes.", min=0, below=1, panel="Training"
    )
    clip_norm: float | None = option(None, "Maximum gradient norm. Default: no clipping.", above=0, panel="Training")
    # V / (K * videos of the class), for V videos of K classes.
    class_weights: ClassWeights = option(
        "none", "balanced: weight each class by the inverse of its frequency.", panel="Training"
    )
    temporal_jitter: float = option(
        0.0, "Share of each training video's clips left out at random in every epoch.", min=0, below=1, panel="Training"
    )
    # Lakhal's first strategy (2018, section 3.3), whose sub-videos begin with each clip; tests and predictions see all.
    temporal_crop: float = option(
        0.0,
        "Share of each training video cut off its ends: a sub-video from a random place in every epoch, before --num-steps.",
        min=0,
        below=1,
        panel="Training",
    )
    # Lakhal's sigma(t), see `clips.sparse_clip_indices`; in training, tests and predictions.
    num_steps: int | None = option(
        None,
        "Clips to use of each video, evenly spaced (T in Lakhal 2018); 1: the middle one. Default: all.",
        min=1,
        panel="Training",
    )
    patience: int | None = option(
        None,
        "Stop after this many epochs without a lower validation loss and keep the best epoch. Default: train all epochs "
        "and keep the last.",
        min=1,
        panel="Training",
    )
    # Izmailov 2018, without its cyclic learning rate.
    average_last: float = option(
        0.0,
        "Average the weights over this last share of the epochs, such as 0.5; 0: take the last epoch.",
        min=0,
        max=1,
        panel="Training",
    )
    logistic_c: float = option(
        1.0,
        "Inverse strength C of the L2 penalty of mean_pool, linear, svm and ridge (whose lambda is 1 / 2C).",
        above=0,
        panel="Training",
    )
    max_iterations: int = option(1000, "Solver iterations of mean_pool, linear and svm.", min=1, panel="Training")
    precision: HeadPrecision = option(
        "fp32", "bf16: train in mixed precision; scores are computed in fp32.", panel="Training"
    )
    seed: int = seed_option()
    device: str = device_option()

    def __post_init__(self) -> None:
        check_options(self)
        if self.average_last and self.patience is not None:
            raise ValueError(
                "average_last takes the mean over the last epochs, patience keeps the best one: choose one"
            )
        if self.temporal_jitter and self.temporal_crop:
            raise ValueError("temporal_jitter and temporal_crop both leave clips of training videos out: choose one")
        layered = self.head in LAYERED_HEADS
        if self.head in SCIKIT_HEADS and self.output != "softmax":
            raise ValueError(f"{self.head} is fitted by scikit-learn as a softmax: its output must be softmax")
        if self.num_layers is not None and not layered:
            raise ValueError(f"num_layers belongs to {', '.join(LAYERED_HEADS)}, not to {self.head}")
        if self.input_projection is not None and not layered:
            raise ValueError(f"input_projection belongs to {', '.join(LAYERED_HEADS)}, not to {self.head}")
        if self.readout == "steps" and self.head not in STEP_HEADS:
            raise ValueError(f"readout=steps belongs to {STEP_HEADS}, not to {self.head}")
        if self.readout == "steps" and self.mid_fusion == "hidden":
            raise ValueError("mid_fusion=hidden joins the last states of its encoders: readout must be last")
        if not self.forget_gate and (self.head != "lstm" or (self.num_layers or 1) > 1):
            raise ValueError("forget_gate belongs to lstm of one layer: the other heads keep theirs")
        if self.mid_fusion == "hidden" and not layered:
            raise ValueError(f"mid_fusion=hidden joins the states of layers; {self.head} has none: use input")
        if self.mid_fusion == "hidden" and self.fusion_op == "product" and self.standardise:
            raise ValueError(
                "standardise would scale each stream before the product of their states: mid_fusion=hidden with "
                "fusion_op=product takes features as they are"
            )

    def for_features(self, specs: Sequence[FeatureSpec]) -> TrainConfig:
        """Return the options with what their defaults are for features of these specs: encoded ones are not scaled.

        Raises: RunError if the head reads the rows of a video as steps in time, which tokens are not.
        """
        tokens = next((spec for spec in specs if spec.rows_per_clip > 1), None)
        if tokens is not None and self.head in RECURRENT_HEADS:
            raise RunError(
                f"{tokens.name} has {tokens.tokens} tokens a clip, which are no steps in time as {self.head} reads them: use "
                "--head attentive, mean_pool, svm, ridge or vote, or extract without --tokens"
            )
        if self.standardise is None and any(spec.encoding is not None for spec in specs):
            return dataclasses.replace(self, standardise=False)
        return self

    @property
    def scales_features(self) -> bool:
        """Whether features are scaled: as `standardise` says, by default as the head does best."""
        if self.standardise is not None:
            return self.standardise
        return self.head in SCALED_HEADS and not (self.mid_fusion == "hidden" and self.fusion_op == "product")

    @property
    def needs_validation(self) -> bool:
        """Whether training reads the validation loss."""
        return self.head not in SCIKIT_HEADS and (self.patience is not None or self.schedule == "plateau")

    def reads(self, option: str) -> bool:
        """Return whether an option of one stream's run changes anything beside these other options."""
        if self.head in SCIKIT_HEADS:
            # The ridge classifier is solved in closed form.
            return option == "head" or (option in SCIKIT_OPTIONS and (self.head, option) != ("ridge", "max_iterations"))
        drops = self.schedule in ("step", "plateau")
        conditions = {
            "units": self.head in UNITS_HEADS,
            "num_layers": self.head in LAYERED_HEADS,
            "input_projection": self.head in LAYERED_HEADS,
            "vote": self.head == "vote" or self.readout == "steps",
            "readout": self.head in STEP_HEADS,
            "forget_gate": self.head == "lstm",
            "schedule_epochs": drops,
            "schedule_factor": drops,
            "logistic_c": False,
            "max_iterations": False,
        }
        return conditions.get(option, True)

    @property
    def head_config(self) -> HeadConfig:
        """The part that shapes the head."""
        same = {name: getattr(self, name) for name in HeadConfig.__slots__ if name not in ("name", "num_layers")}
        num_layers = self.num_layers or (2 if self.head in RESIDUAL_HEADS else 1)
        return HeadConfig(name=self.head, num_layers=num_layers, **same)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a plain dict, ready for JSON; `standardise` as it applies, whatever the defaults become."""
        return {**dataclasses.asdict(self), "standardise": self.scales_features}


# Options of `VideoTrainConfig` that the other networks do not read.
CONVNET3D_OPTIONS = ("clips_per_video", "clip_stride", "vote", "flips", "stop_after")
CONVLSTM_OPTIONS = (
    *("width", "gates", "memory_frames", "motion", "clip", "frame_step", "long_videos", "state_gradient", "norm_over"),
    *("window_loss", "cycle_epochs", "patience"),
)

VideoSchedule = Literal["published", "one-cycle", "constant"]
LongVideos = Literal["cut", "whole"]
VideoClip = Literal["published", "whole"]
VideoPrecision = Literal["auto", "fp32", "bf16"]
StateGradient = Literal["window", "video"]
NormOver = Literal["window", "video"]
WindowLoss = Literal["equal", "vote"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VideoTrainConfig:
    """Options of training a network on raw video; None = as published for the model.

    Raises: ValueError if a value is out of range, or does not go with another one.
    Source: Sanchez-Caballero 2020, sections 4.1 and 4.2.
    """

    # See `models.convlstm.networks`.
    model: NetworkName = option(
        "convlstm-stateful",
        "convlstm-stateless: one clip of 30 frames per video; convlstm-stateful: windows of 8, the state carried over; "
        "convnet3d: all clips of 9 frames vote (Baccouche 2011, RGB).",
        panel="Network",
    )
    # Any width but 1 is another network, and every report says so.
    width: float = option(1.0, "Channel multiplier; 1.0 = as published.", above=0, max=8, panel="Network")
    # The paper does not say; Keras 3 and PyTorch users have sigmoids, Keras 2, of the paper's time, the other.
    gates: Gates = option(
        "sigmoid", "Gates of the ConvLSTMs: sigmoid, or hard-sigmoid = clip(0.2 x + 0.5, 0, 1).", panel="Network"
    )
    # Ours, see `models.convlstm.layer.ConvLSTM.remember`.
    memory_frames: int | None = option(
        None,
        "Initialise the cells to remember up to this many frames, such as 208. Default: a few, as in Keras.",
        min=2,
        panel="Network",
    )
    # Ours, see `models.convlstm.networks.RawNetwork`.
    motion: bool = option(
        False,
        "Beside each frame, show the network how much each pixel differs from the frame before; not in the paper.",
        panel="Network",
    )
    # Ours, see `models.convlstm.windows.stateless_indices`.
    clip: VideoClip = option(
        "published",
        "Stateless: published: 30 frames in a row, or every second one; whole: 30 frames evenly over the whole video.",
        panel="Videos",
    )
    # Ours: the paper's windows hold 8 frames in a row.
    frame_step: int = option(
        1,
        "Stateful: see every n-th frame only, so that a window of 8 frames takes n times as long.",
        min=1,
        max=100,
        panel="Videos",
    )
    # 208: NTU RGB+D's longest group of lengths, see `models.convlstm.windows`.
    long_videos: LongVideos = option(
        "cut",
        "What the stateful network sees of videos above 300 frames: their first 208 frames (cut), or all.",
        panel="Videos",
    )
    # The paper trains on all clips of 9 frames, which share 8 with their neighbours. These many differ more for the same time.
    clips_per_video: int = option(
        4, "convnet3d: clips drawn at random from each training video in every epoch.", min=1, panel="Videos"
    )
    # Not said in the paper; also the stride of the features, see `extractors.convnet3d`.
    clip_stride: int = option(
        4, "convnet3d: frames from the start of one voting clip to the next.", min=1, panel="Videos"
    )
    vote: Vote = option(
        "majority",
        "convnet3d: how clips combine: majority = most votes (published), soft = mean probability.",
        panel="Videos",
    )
    # window: the first half of a video's windows moves no weights, each later one does. video, ours: one update by the
    # mean loss of all windows of the batch; it keeps the activations of whole videos in memory.
    state_gradient: StateGradient = option(
        "window",
        "Stateful: window: no gradient passes from window to window (our reading of the paper); video: it goes back to the "
        "video's start, one update per batch.",
        panel="Training",
    )
    # Ours, see `models.convlstm.networks.StatefulNetwork.forward`.
    norm_over: NormOver = option(
        "window",
        "Stateful with --state-gradient video: where batch normalisation takes its statistics from in training: each window, "
        "or all windows of a video together, as tests do.",
        panel="Training",
    )
    # Ours: what a video's first windows show is often not its action yet.
    window_loss: WindowLoss = option(
        "equal",
        "Stateful with --state-gradient video: how much each window counts in the loss: all the same, or as much as its "
        "answer counts in the video's, (t / T)^3.",
        panel="Training",
    )
    # Ours; all frames of a video are moved and scaled alike, by up to 1 + augment, each time it is seen.
    augment: float = option(
        0.0,
        "Shift and scale training videos at random by up to this share, such as 0.15; 0: as published.",
        min=0,
        below=1,
        panel="Training",
    )
    # The paper's copies of each training sample; each time a clip is drawn it is one of the four.
    flips: bool = option(
        True,
        "convnet3d: show half of the training clips upside down and half mirrored, as published.",
        panel="Training",
    )
    # one-cycle (up, then down to 1 % of the peak) and constant are ours, for sets that the published rates are too small
    # for: 25 epochs of 400 videos are a hundredth of the updates of 25 epochs of NTU RGB+D.
    schedule: VideoSchedule = option(
        "published",
        "Learning-rate schedule. one-cycle: linearly up for 30 % of the epochs, then down.",
        panel="Training",
    )
    # 27 of the 75 continue from the best of the first 48. Every boundary moves in proportion and is rounded to whole epochs;
    # patience stays what it is.
    epochs: int | None = option(
        None,
        "Training epochs; the schedule is stretched to fit. Default: 75 stateless, 25 stateful; convnet3d: at most 100.",
        min=1,
        panel="Training",
    )
    batch_size: int | None = option(
        None,
        "Videos per batch, of each process; convnet3d: clips. Default: 12 stateless, 6 stateful, 16 convnet3d.",
        min=1,
        panel="Training",
    )
    learning_rate: float | None = option(
        None,
        "Rate of constant, peak of one-cycle. Default: the highest published rate, 9.8e-4 stateless, 9e-5 stateful; "
        "convnet3d, which has no published one: 0.0025, with a momentum of 0.9.",
        above=0,
        below=math.inf,
        panel="Training",
    )
    # In epochs of the unshortened schedule, see `schedules.stateless_rate`.
    cycle_epochs: float = option(
        schedules.CYCLE_EPOCHS,
        "Period of the published stateless schedule, in epochs.",
        above=0,
        below=math.inf,
        panel="Training",
    )
    patience: int = option(
        schedules.FINE_TUNE_PATIENCE,
        "Epochs without better accuracy before the published stateless schedule halves its last rate.",
        min=1,
        panel="Training",
    )
    # "Stopping when performances on training set no longer rise".
    stop_after: int = option(
        10,
        "convnet3d: stop after this many epochs without a higher training accuracy (of the drawn clips), and keep the best; "
        "not with one-cycle.",
        min=1,
        panel="Training",
    )
    # Autocast; weights and optimiser stay fp32.
    precision: VideoPrecision = option(
        "auto", "auto: bf16 if the device has it, otherwise fp32; convnet3d: fp32.", panel="Training"
    )
    seed: int = seed_option()
    device: str = device_option()

    def __post_init__(self) -> None:
        check_options(self)
        foreign: tuple[str, ...] = CONVNET3D_OPTIONS
        owner = "convnet3d"
        if self.model == "convnet3d":
            foreign, owner = CONVLSTM_OPTIONS, "the ConvLSTMs"
        default = {field.name: field.default for field in dataclasses.fields(self)}
        if given := [name for name in foreign if getattr(self, name) != default[name]]:
            raise ValueError(f"{given[0]} belongs to {owner}, not to {self.model}")
        if self.long_videos == "whole" and not self.stateful:
            raise ValueError("long_videos belongs to convlstm-stateful: the other network sees one clip of a video")
        later = (self.cycle_epochs, self.patience) != (schedules.CYCLE_EPOCHS, schedules.FINE_TUNE_PATIENCE)
        if later and (self.stateful or self.schedule != "published"):
            raise ValueError("cycle_epochs and patience belong to the published schedule of convlstm-stateless")
        if self.frame_step != 1 and not self.stateful:
            raise ValueError("frame_step belongs to convlstm-stateful: the other network sees one clip of a video")
        if self.clip != "published" and self.stateful:
            raise ValueError("clip belongs to convlstm-stateless: the other network sees a video's windows one by one")
        if self.state_gradient == "video" and not self.stateful:
            raise ValueError(
                "state_gradient belongs to convlstm-stateful: the other network has no state to go back through"
            )
        if self.norm_over == "video" and self.state_gradient != "video":
            raise ValueError(
                "norm_over=video needs state_gradient=video: otherwise each window is an update of its own"
            )
        if self.window_loss == "vote" and self.state_gradient != "video":
            raise ValueError(
                "window_loss=vote needs state_gradient=video: otherwise each window is an update of its own"
            )
        if self.schedule == "published" and self.learning_rate is not None and self.model != "convnet3d":
            raise ValueError(
                "learning_rate belongs to the schedules one-cycle and constant; the published one has its own"
            )

    @property
    def stateful(self) -> bool:
        """Whether the model passes a state on from window to window."""
        return self.model == "convlstm-stateful"

    @property
    def stops_early(self) -> bool:
        """Whether training stops when it no longer learns: convnet3d's, unless its rate is still to fall."""
        return self.model == "convnet3d" and self.schedule != "one-cycle"

    @property
    def arithmetic(self) -> VideoPrecision:
        """The precision; the 3D-ConvNet is so small that `auto` is fp32."""
        return "fp32" if self.model == "convnet3d" and self.precision == "auto" else self.precision

    @property
    def videos_per_batch(self) -> int:
        """The batch size, or the published one."""
        return self.batch_size or {"convlstm-stateful": 6, "convlstm-stateless": 12, "convnet3d": 16}[self.model]

    @property
    def published_epochs(self) -> int:
        """Epochs of the published schedule; of convnet3d, which stops by itself, the most there may be."""
        if self.model == "convnet3d":
            return schedules.CONVNET3D_EPOCHS
        if self.stateful:
            return schedules.STATEFUL_EPOCHS
        return schedules.STATELESS_EPOCHS + schedules.FINE_TUNE_EPOCHS

    @property
    def num_epochs(self) -> int:
        """The epochs, or the published number."""
        return self.epochs or self.published_epochs

    @property
    def main_epochs(self) -> int:
        """Epochs before training continues from the best one; all, where the schedule has no such restart."""
        if self.model != "convlstm-stateless" or self.schedule != "published":
            return self.num_epochs
        return max(1, round(self.num_epochs * schedules.STATELESS_EPOCHS / self.published_epochs))

    @property
    def peak_rate(self) -> float:
        """The highest learning rate of one-cycle, and the only one of constant."""
        peaks = {"convlstm-stateful": schedules.PEAK_STATEFUL, "convlstm-stateless": schedules.PEAK_STATELESS}
        return self.learning_rate or peaks.get(self.model, schedules.RATE_CONVNET3D)

    def rate(self, done: float, halvings: int = 0) -> float:
        """Return the learning rate after `done` epochs (a fraction counts).

        halvings: how often the last part of the published stateless schedule has met no gain, see `schedules.halvings`.
        """
        if self.schedule == "constant" or (self.schedule == "published" and self.model == "convnet3d"):
            return self.peak_rate
        if self.schedule == "one-cycle":
            return schedules.one_cycle_rate(done, self.num_epochs, self.peak_rate)
        if self.stateful:
            return schedules.stateful_rate(done * schedules.STATEFUL_EPOCHS / self.num_epochs)
        if done >= self.main_epochs:
            return schedules.fine_tune_rate(halvings)
        return schedules.stateless_rate(done * schedules.STATELESS_EPOCHS / self.main_epochs, self.cycle_epochs)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as a plain dict, ready for JSON."""
        return dataclasses.asdict(self)
