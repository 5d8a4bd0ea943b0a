"""The 3D-ConvNet of Baccouche 2011: three 3D convolutions, and two layers of neurons, over 9 frames around a person.

The paper gives the size of the maps, the kernels and the number of parameters, 17,169 for KTH's six actions. What follows
from that number, and what it leaves open:

- C1 has 1,722 weights and biases, C3 4,730, N1 with 50 neurons and N2 with one per action 6,356. C2 has 4,235 if its 35 maps
  are connected as in Garcia 2004, whose scheme the paper follows: each of the 7 maps of S1 feeds two maps of C2 that
  see nothing else, and each of the 21 pairs of maps feeds one.
- 126 are left, three for each of the 42 maps of S1 and S2: the gain that Jarrett 2009 puts before the absolute value, and
  the coefficient and bias of a trainable sub-sampling (LeCun 1998).
- "34 x 54" is width x height: people stand. The maps are "28 x 48 x 5" in the same order. In tensors time comes first, then
  height, then width.
- Not said: the units' activation (tanh, as in the papers named) and the initial weights (LeCun's: a normal distribution
  with a deviation of one over the root of the number of inputs).

Clips are normalised before, by `video.contrast.local_contrast`.
"""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import nn

CLIP_LEN = 9
C1_MAPS, C3_MAPS, DESCRIPTOR, NEURONS = 7, 5, 120, 50

# The maps of S1 that each of the 35 maps of C2 sees.
CONNECTIONS: tuple[tuple[int, ...], ...] = (
    *((first,) for first in range(C1_MAPS) for _ in range(2)),
    *combinations(range(C1_MAPS), 2),
)
C2_MAPS = len(CONNECTIONS)


class Convolution(nn.Module):
    """A 3D convolution without padding whose output maps each see some of the input maps only; then tanh.

    connections: of each output map, the numbers of the input maps that it sees. kernel: (time, height, width).
    `weight` has one kernel for each connection, in that order.
    """

    _pairs: torch.Tensor

    def __init__(self, in_maps: int, connections: tuple[tuple[int, ...], ...], kernel: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = (len(connections), in_maps, *kernel)
        pairs = [(map_out, map_in) for map_out, seen in enumerate(connections) for map_in in seen]
        # Not in the weights file: the same for every net.
        self.register_buffer("_pairs", torch.tensor(pairs).T, persistent=False)
        deviation = torch.tensor([1 / math.sqrt(len(connections[o]) * math.prod(kernel)) for o, _ in pairs])
        self.weight = nn.Parameter(torch.randn(len(pairs), *kernel) * deviation[:, None, None, None])
        self.bias = nn.Parameter(torch.zeros(len(connections)))

    def kernels(self) -> torch.Tensor:
        """Return (maps out, maps in, *kernel), 0 where maps are not connected."""
        # One dense convolution takes a sixth of the time of grouped ones on a CPU.
        return self.weight.new_zeros(self.shape).index_put(tuple(self._pairs), self.weight)

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (B, maps out, T', H', W') of (B, maps in, T, H, W)."""
        return torch.tanh(nn.functional.conv3d(maps, self.kernels(), self.bias))


class Rectified(nn.Module):
    """The layers R and S: the absolute value of `gain` times a map, then its means over 2x2 px as tanh(a * mean + b)."""

    def __init__(self, maps: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(maps, 1, 1, 1))
        self.coefficient = nn.Parameter(torch.ones(maps, 1, 1, 1))
        self.bias = nn.Parameter(torch.zeros(maps, 1, 1, 1))

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return (B, M, T, H / 2, W / 2) of (B, M, T, H, W)."""
        means = nn.functional.avg_pool3d((self.gain * maps).abs(), (1, 2, 2))
        return torch.tanh(self.coefficient * means + self.bias)


class ConvNet3D(nn.Module):
    """Normalised clips (B, 1, 9, 54, 34), or lying ones of 34 x 54 px, -> logits (B, K); `descriptors` ends at C3."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        every_s2 = tuple(range(C2_MAPS))
        self.c1 = Convolution(1, ((0,),) * C1_MAPS, (5, 7, 7))
        self.s1 = Rectified(C1_MAPS)
        self.c2 = Convolution(C1_MAPS, CONNECTIONS, (3, 5, 5))
        self.s2 = Rectified(C2_MAPS)
        self.c3 = Convolution(C2_MAPS, (every_s2,) * C3_MAPS, (3, 3, 3))
        self.n1 = nn.Linear(DESCRIPTOR, NEURONS)
        self.n2 = nn.Linear(NEURONS, num_classes)
        for layer in (self.n1, self.n2):
            nn.init.normal_(layer.weight, std=1 / math.sqrt(layer.in_features))
            nn.init.zeros_(layer.bias)

    def descriptors(self, clips: torch.Tensor) -> torch.Tensor:
        """Return (B, 120), the values of C3's maps, map by map, each row by row."""
        return self.c3(self.s2(self.c2(self.s1(self.c1(clips))))).flatten(1)

    def forward(self, clips: torch.Tensor) -> torch.Tensor:
        """Return logits (B, K); the paper's N2 has one neuron for each action."""
        return self.n2(torch.tanh(self.n1(self.descriptors(clips))))
