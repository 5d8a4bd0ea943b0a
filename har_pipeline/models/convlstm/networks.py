"""The two networks of Sanchez-Caballero 2020: stateless over 30 frames, stateful over windows of 8.

Where the paper contradicts itself, the output sizes of its tables 1 and 2 decide:
- Table 1 gives the support branch's Conv2D stride 2, but 13x13 stays 13x13: stride 1; and a 1x1 kernel, where the text
  says 3x3: only 1x1 keeps the size without padding.
- Table 1 puts 64x64 behind ConvLSTM 3, whose input is 31x31 at stride 1: 31x31, as table 2 has it.
- The text has two convolutions of 128 filters after the addition, the table one of 128 and one of 60 (1x1).
- The text has a Conv2D after ConvLSTM 3 of the stateful network; table 2 has none.
- By the tables the stateful ConvLSTMs have batch normalisation and no LeakyReLU, the support branch no activation, and
  the 13x13 convolution of the main branch neither before the addition.
Layers that keep their size (64x64, 31x31 at stride 1) are padded, all others are not: only then do the sizes agree.

Where it is silent: gates are sigmoids by default, h and c start at zero, the forget gate's bias at 1. The paper names no
library. Its words (ConvLSTM, stateful, LeakyReLU with 0.3, Global Average Pooling 2D) and its sizes, channels last, are those
of Keras, so Keras's defaults are a guess with some ground; nothing shows which version, and so which gates (`ConvLSTM`). Batch
normalisation has Keras's epsilon 1e-3 but torch's momentum of 0.1, not Keras's 0.99 (0.01 in torch's terms): with that,
running averages are still half their initial values after 70 updates, which take several epochs of a small data set, and
validation would mean nothing until then.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import get_args

import torch
from torch import nn

from har_pipeline.models.config import Gates, NetworkName
from har_pipeline.models.convlstm.layer import ConvLSTM, State
from har_pipeline.models.convnet3d.net import CLIP_LEN, ConvNet3D
from har_pipeline.video.contrast import local_contrast

# The two of the paper; there is one of another paper beside them, see `ClipVoter`.
NETWORKS: tuple[NetworkName, ...] = ("convlstm-stateless", "convlstm-stateful")
STATELESS_CLIP_LEN, STATEFUL_CLIP_LEN = 30, 8
LEAK, DROPOUT, BN_EPSILON, BN_MOMENTUM = 0.3, 0.25, 1e-3, 0.1


class Recurrent(nn.Module):
    """A ConvLSTM, batch normalisation over its frames and, with `leak`, a LeakyReLU; time first, as in the layer."""

    def __init__(self, layer: ConvLSTM, *, leak: float | None) -> None:
        super().__init__()
        self.convlstm = layer
        self.norm = _norm(layer.hidden_channels)
        self.activation = nn.LeakyReLU(leak) if leak is not None else nn.Identity()

    def forward(self, frames: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """Return (T, B, C, H', W'), or (B, C, H', W') if the layer returns only its last step, and the last state."""
        hidden, state = self.convlstm(frames, state)
        if hidden.ndim == 5:
            normed = self.activation(self.norm(hidden.flatten(0, 1)))
            return normed.unflatten(0, hidden.shape[:2]), state
        return self.activation(self.norm(hidden)), state


# What a network passes on from clip to clip: (h, c) of each ConvLSTM, and with `motion` (the last frame,).
NetworkState = tuple[tuple[torch.Tensor, ...], ...]


class RawNetwork(nn.Module, ABC):
    """A network on raw frames (B, T, C, H, W) in [0, 1]; `clip_len` is T, `stateful` whether clips pass on a state.

    A network that `votes` classifies all clips of a video by themselves; one that does not sees one clip of it, or a state
    joins its clips.

    With `motion`, ours, the layers see 2 C channels: a frame and how much each px differs from the frame before, |x_t -
    x_(t-1)|, 0 in a video's first frame. The network computes it and keeps the last frame in its state, so that whoever
    feeds it frames, in training, tests or live, gives it the same.
    """

    clip_len: int
    stateful: bool
    votes: bool = False
    motion: bool

    @abstractmethod
    def forward(self, clips: torch.Tensor, state: NetworkState | None = None) -> tuple[torch.Tensor, NetworkState]:
        """Return logits (B, K) and the state after the clip; () of a stateless network.

        state: as returned for the clip before, None = the start of a video.
        """

    @abstractmethod
    def advance(self, clips: torch.Tensor, state: NetworkState | None = None) -> NetworkState:
        """Return the state after a clip without computing logits."""

    def seen(self, clips: torch.Tensor, state: NetworkState | None = None) -> torch.Tensor:
        """Return what the first layers see of a clip, time first: (T, B, C, H, W), or 2 C channels with `motion`."""
        frames = clips.transpose(0, 1)
        if not self.motion:
            return frames
        first = frames[:1] if state is None else state[-1][0][None]
        return torch.cat([frames, (frames - torch.cat([first, frames[:-1]])).abs()], dim=2)


class StatelessNetwork(RawNetwork):
    """Two branches of ConvLSTMs over 30 frames, added; then convolutions and the mean over places.

    width: factor on the filters of every layer, 1 = the paper's. Source: table 1, figure 2, section 3.1.
    """

    clip_len, stateful = STATELESS_CLIP_LEN, False

    def __init__(
        self, num_classes: int, *, channels: int = 1, width: float = 1.0, gates: Gates = "sigmoid", motion: bool = False
    ) -> None:
        super().__init__()
        self.motion = motion
        channels *= 1 + motion
        c8, c16, c32, c128, c256 = (_filters(n, width) for n in (8, 16, 32, 128, 256))
        self.support = nn.ModuleList(
            [
                Recurrent(ConvLSTM(channels, c8, 7, stride=2, gates=gates), leak=None),
                Recurrent(ConvLSTM(c8, c16, 5, stride=2, return_sequences=False, gates=gates), leak=None),
            ]
        )
        self.support_conv = nn.Conv2d(c16, c128, 1)
        self.main = nn.ModuleList(
            [
                Recurrent(ConvLSTM(channels, c32, 3, padding="same", gates=gates), leak=LEAK),
                Recurrent(ConvLSTM(c32, c32, 3, stride=2, gates=gates), leak=LEAK),
                Recurrent(ConvLSTM(c32, c128, 3, padding="same", gates=gates), leak=LEAK),
                Recurrent(ConvLSTM(c128, c256, 3, stride=2, return_sequences=False, gates=gates), leak=LEAK),
            ]
        )
        self.main_conv = nn.Conv2d(c256, c128, 3)
        self.decision = nn.Sequential(
            nn.LeakyReLU(LEAK),
            nn.Conv2d(c128, c128, 3, stride=2),
            _norm(c128),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(c128, num_classes, 1),
        )
        _initialise(self)

    def forward(self, clips: torch.Tensor, state: NetworkState | None = None) -> tuple[torch.Tensor, NetworkState]:
        """Return logits (B, K) and (); `state` is ignored."""
        frames = self.seen(clips)
        main, _ = _run(self.main, frames, None)
        support, _ = _run(self.support, frames, None)
        return self.decision(self.main_conv(main) + self.support_conv(support)).mean((2, 3)), ()

    def advance(self, clips: torch.Tensor, state: NetworkState | None = None) -> NetworkState:
        """Return (), as there is no state."""
        return ()


class StatefulNetwork(RawNetwork):
    """Four ConvLSTMs over windows of 8 frames, whose state continues in the video's next window; then convolutions.

    Dropout of 25 % before the decision block. width: as in the stateless network. Source: table 2, section 3.2.
    """

    clip_len, stateful = STATEFUL_CLIP_LEN, True

    def __init__(
        self, num_classes: int, *, channels: int = 1, width: float = 1.0, gates: Gates = "sigmoid", motion: bool = False
    ) -> None:
        super().__init__()
        self.motion = motion
        channels *= 1 + motion
        c32, c64, c128, c256 = (_filters(n, width) for n in (32, 64, 128, 256))
        self.recurrent = nn.ModuleList(
            [
                Recurrent(ConvLSTM(channels, c32, 3, padding="same", gates=gates), leak=None),
                Recurrent(ConvLSTM(c32, c64, 3, stride=2, gates=gates), leak=None),
                Recurrent(ConvLSTM(c64, c128, 3, padding="same", gates=gates), leak=None),
                Recurrent(ConvLSTM(c128, c256, 3, stride=2, return_sequences=False, gates=gates), leak=None),
            ]
        )
        self.decision = nn.Sequential(
            nn.Dropout(DROPOUT),
            nn.Conv2d(c256, c128, 3, stride=2),
            _norm(c128),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(c128, c128, 3, stride=2),
            _norm(c128),
            nn.LeakyReLU(LEAK),
            nn.Conv2d(c128, num_classes, 1),
        )
        _initialise(self)

    def forward(self, clips: torch.Tensor, state: NetworkState | None = None) -> tuple[torch.Tensor, NetworkState]:
        """Return logits (B, K) of this window and the state for the next.

        clips (B, n, T, C, H, W), n windows of each video in order: logits (n, B, K), as window by window, except that in
        training batch normalisation takes its statistics from all windows together. Its running averages, with which
        tests normalise every window, are then of the same kind; statistics of each window alone are not, since the state
        grows from window to window.
        """
        if clips.ndim == 6:
            return self._all_windows(clips, state)
        last, after = self._recur(clips, state)
        return self.decision(last).mean((2, 3)), after

    def _all_windows(self, clips: torch.Tensor, state: NetworkState | None) -> tuple[torch.Tensor, NetworkState]:
        windows, after = clips.shape[1], []
        video = clips.flatten(1, 2)
        frames = self.seen(video, state)
        *layers, top = [layer for layer in self.recurrent if isinstance(layer, Recurrent)]
        for number, layer in enumerate(layers):
            frames, last = layer(frames, state[number] if state else None)
            after.append(last)
        # The last layer gives the last hidden state of what it is shown: it sees window by window.
        last = state[len(layers)] if state else None
        ends = []
        for window in frames.unflatten(0, (windows, -1)):
            end, last = top.convlstm(window, last)
            ends.append(end)
        after.append(last)
        logits = self.decision(top.activation(top.norm(torch.cat(ends)))).mean((2, 3)).unflatten(0, (windows, -1))
        return logits, (*after, (video[:, -1],)) if self.motion else tuple(after)

    def advance(self, clips: torch.Tensor, state: NetworkState | None = None) -> NetworkState:
        """Return the state after a window without computing logits."""
        return self._recur(clips, state)[1]

    def _recur(self, clips: torch.Tensor, state: NetworkState | None) -> tuple[torch.Tensor, NetworkState]:
        last, after = _run(self.recurrent, self.seen(clips, state), state)
        return last, (*after, (clips[:, -1],)) if self.motion else after


class ClipVoter(RawNetwork):
    """The 3D-ConvNet of Baccouche 2011 on grey windows (B, 9, 1, 54, 34) or (B, 9, 1, 34, 54), whose contrast it normalises."""

    clip_len, stateful, votes, motion = CLIP_LEN, False, True, False

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        # Extractors read these names without their beginning, see `extractors.weights.PREFIXES`.
        self.net = ConvNet3D(num_classes)

    def forward(self, clips: torch.Tensor, state: NetworkState | None = None) -> tuple[torch.Tensor, NetworkState]:
        """Return logits (B, K) and (); `state` is ignored."""
        return self.net(local_contrast(clips.transpose(1, 2))), ()

    def advance(self, clips: torch.Tensor, state: NetworkState | None = None) -> NetworkState:
        """Return (), as there is no state."""
        return ()


def build_network(
    name: NetworkName,
    num_classes: int,
    *,
    channels: int = 1,
    width: float = 1.0,
    gates: Gates = "sigmoid",
    motion: bool = False,
) -> RawNetwork:
    """Return a newly initialised network for frames of 64x64 px, 1 channel (depth) or 3; convnet3d: of 34x54 px, 1 channel.

    gates: see `ConvLSTM`. convnet3d has one size only.

    Raises: ValueError if the name is unknown or a number too small.
    """
    if num_classes < 2 or channels < 1 or width <= 0:
        raise ValueError(f"need 2 classes, 1 channel and a width above 0, not {num_classes}, {channels}, {width}")
    if name == "convlstm-stateless":
        return StatelessNetwork(num_classes, channels=channels, width=width, gates=gates, motion=motion)
    if name == "convlstm-stateful":
        return StatefulNetwork(num_classes, channels=channels, width=width, gates=gates, motion=motion)
    if name == "convnet3d":
        if (channels, width, gates, motion) != (1, 1.0, "sigmoid", False):
            raise ValueError("convnet3d reads grey windows, and has one width, no gates and no motion channel")
        return ClipVoter(num_classes)
    raise ValueError(f"unknown network {name!r}; choose from: {', '.join(get_args(NetworkName))}")


def set_memory(network: nn.Module, frames: int) -> None:
    """Start every ConvLSTM with a memory of up to `frames` frames, see `ConvLSTM.remember`. Ours, not the paper's."""
    for module in network.modules():
        if isinstance(module, ConvLSTM):
            module.remember(frames)


def detach_state(state: NetworkState) -> NetworkState:
    """Return the state detached from its graph: gradients stop there."""
    return tuple(tuple(value.detach() for value in part) for part in state)


def _filters(number: int, width: float) -> int:
    return max(1, round(number * width))


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=BN_EPSILON, momentum=BN_MOMENTUM)


def _run(layers: nn.ModuleList, frames: torch.Tensor, state: NetworkState | None) -> tuple[torch.Tensor, NetworkState]:
    after = []
    for number, layer in enumerate(layers):
        frames, last = layer(frames, state[number] if state else None)
        after.append(last)
    return frames, tuple(after)


def _initialise(network: nn.Module) -> None:
    """Give the plain convolutions Keras's initial values: Glorot-uniform kernels, biases 0."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.xavier_uniform_(module.weight)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
