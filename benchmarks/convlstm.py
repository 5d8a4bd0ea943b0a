"""Seconds per clip of the two ConvLSTM networks at the paper's sizes: ours, Keras 3 on torch, and step by step. Prints JSON.

One training step (Adam, cross entropy) and inference of each, in turn, `--rounds` times after one warm-up round; medians.

- `ours`: `har_pipeline.models.convlstm`, in fp32 and bf16 (autocast);
- `keras`: the same network of Keras 3's layers, channels last, `train_on_batch` and `predict_on_batch`, in fp32 and with
  the policy mixed_bfloat16; left out where Keras is not installed;
- `steps`: the module that PyTorch users write: at each time step one convolution over input and hidden state side by side
  (two where the input's has a stride), four gates, autograd; in channels-last memory; in fp32 and bf16 (autocast).

All have the same weights; `difference` is the largest difference of the logits from ours in fp32, as a share of our largest
logit. A rival's best time counts.

With --limits (on a CPU) also how far inference is from the arithmetic: billions of operations per CPU second of

- `product`: the fastest of a few square matrix products;
- `convolutions`: the network's convolutions alone, with their true shapes, as often as they are called;
- `ours`: inference, of which only the operations of its convolutions count.

    python benchmarks/convlstm.py --rounds 5
    OMP_NUM_THREADS=1 python benchmarks/convlstm.py --rounds 9 --limits
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from har_pipeline import NETWORKS, ConvLSTM, NetworkName, RawNetwork, build_network, keep_freed_memory

CLASSES = 60
BATCH = {"convlstm-stateless": 12, "convlstm-stateful": 6}
PRECISIONS = ("fp32", "bf16")
State = tuple[torch.Tensor, torch.Tensor]


class StepByStep(nn.Module):
    """A ConvLSTM as a loop over time, from the weights of ours."""

    def __init__(self, layer: ConvLSTM) -> None:
        super().__init__()
        self.layer = layer
        self.joined = layer.stride == 1
        self.kernel = nn.Parameter(torch.cat([layer.input_kernel, layer.recurrent_kernel], 1).detach())
        self.recurrent_kernel = nn.Parameter(layer.recurrent_kernel.detach().clone())
        self.input_kernel = nn.Parameter(layer.input_kernel.detach().clone())
        self.bias = nn.Parameter(layer.bias.detach().clone())

    def forward(self, frames: torch.Tensor, state: State | None) -> tuple[torch.Tensor, State]:
        """Return as the layer does."""
        size = self.layer.output_size(*frames.shape[-2:])
        hidden = cell = frames.new_zeros((frames.shape[1], self.layer.hidden_channels, *size))
        if state is not None:
            hidden, cell = state
        margin = self.recurrent_kernel.shape[2] // 2
        outputs = []
        for frame in frames:
            if self.joined:
                both = torch.cat([frame, hidden.to(frame.dtype)], 1).contiguous(memory_format=torch.channels_last)
                gates = F.conv2d(both, self.kernel, self.bias, padding=margin)
            else:
                frame = frame.contiguous(memory_format=torch.channels_last)
                gates = F.conv2d(frame, self.input_kernel, self.bias, self.layer.stride)
                gates = gates + F.conv2d(hidden, self.recurrent_kernel, padding=margin)
            i, f, g, o = gates.chunk(4, 1)
            cell = torch.sigmoid(f) * cell + torch.sigmoid(i) * torch.tanh(g)
            hidden = torch.sigmoid(o) * torch.tanh(cell)
            outputs.append(hidden)
        return (torch.stack(outputs) if self.layer.return_sequences else hidden), (hidden, cell)


def steps_network(network: RawNetwork, name: NetworkName) -> RawNetwork:
    """Return a copy of `network` with each ConvLSTM run step by step."""
    copy = build_network(name, CLASSES)
    copy.load_state_dict(network.state_dict())
    for module in copy.modules():
        layer = getattr(module, "convlstm", None)
        if isinstance(layer, ConvLSTM):
            module.add_module("convlstm", StepByStep(layer))
    return copy.to(memory_format=torch.channels_last)


def keras_network(network: RawNetwork, name: NetworkName) -> Any:
    """Return the Keras model of table 1 or 2 with the weights of `network`."""
    import keras

    def recurrent(frames: Any, part: Any) -> Any:
        ours = part.convlstm
        layer = keras.layers.ConvLSTM2D(
            ours.hidden_channels,
            ours.input_kernel.shape[2],
            strides=ours.stride,
            padding=ours.padding,
            return_sequences=ours.return_sequences,
            data_format="channels_last",
        )
        frames = norm(layer(frames), part.norm)
        kernels = (ours.input_kernel, ours.recurrent_kernel)
        layer.set_weights([*(k.detach().permute(2, 3, 1, 0).numpy() for k in kernels), ours.bias.detach().numpy()])
        return frames if isinstance(part.activation, nn.Identity) else leaky(frames, part.activation)

    def norm(frames: Any, ours: nn.BatchNorm2d) -> Any:
        assert ours.momentum is not None
        return keras.layers.BatchNormalization(epsilon=ours.eps, momentum=1 - ours.momentum)(frames)

    def leaky(frames: Any, ours: nn.LeakyReLU) -> Any:
        return keras.layers.LeakyReLU(negative_slope=ours.negative_slope)(frames)

    def convolve(frames: Any, ours: nn.Module) -> Any:
        assert isinstance(ours, nn.Conv2d)
        assert ours.bias is not None
        layer = keras.layers.Conv2D(ours.out_channels, ours.kernel_size, strides=ours.stride)
        frames = layer(frames)
        layer.set_weights([ours.weight.detach().permute(2, 3, 1, 0).numpy(), ours.bias.detach().numpy()])
        return frames

    frames = keras.Input((network.clip_len, 64, 64, 1))
    parts: Any = network
    branches = {"main": frames, "support": frames} if name == "convlstm-stateless" else {"recurrent": frames}
    for branch in branches:
        for part in getattr(parts, branch):
            branches[branch] = recurrent(branches[branch], part)
    if name == "convlstm-stateless":
        added = [convolve(branches[branch], getattr(parts, f"{branch}_conv")) for branch in ("main", "support")]
        output = keras.layers.Add()(added)
    else:
        output = branches["recurrent"]
    for module in parts.decision:
        if isinstance(module, nn.Conv2d):
            output = convolve(output, module)
        elif isinstance(module, nn.BatchNorm2d):
            output = norm(output, module)
        elif isinstance(module, nn.LeakyReLU):
            output = leaky(output, module)
        else:
            output = keras.layers.Dropout(module.p)(output)
    output = keras.layers.GlobalAveragePooling2D(dtype="float32")(output)
    model = keras.Model(frames, output)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=keras.optimizers.Adam(1e-4), loss=loss)
    return model


def torch_runs(network: RawNetwork, clips: torch.Tensor, labels: torch.Tensor, precision: str) -> dict[str, Any]:
    """Return the functions train and infer, each one call on the batch."""
    optimizer = torch.optim.Adam(network.parameters(), 1e-4)
    bf16, device = precision == "bf16", clips.device.type

    def train() -> None:
        network.train()
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=bf16):
            logits, _ = network(clips)
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    def infer() -> torch.Tensor:
        network.eval()
        with torch.no_grad(), torch.autocast(device, torch.bfloat16, enabled=bf16):
            return network(clips)[0].float()

    return {"train": train, "infer": infer}


def keras_runs(model: Any, clips: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:
    given = clips.permute(0, 1, 3, 4, 2).contiguous()

    def infer() -> torch.Tensor:
        return torch.as_tensor(model.predict_on_batch(given))

    return {"train": lambda: model.train_on_batch(given, labels), "infer": infer}


def build_runs(name: NetworkName, batch: int, device: str) -> dict[tuple[str, str], dict[str, Callable[[], Any]]]:
    """Return (implementation, precision) -> the functions to time."""
    torch.manual_seed(0)
    network = build_network(name, CLASSES)
    clips = torch.rand(batch, network.clip_len, 1, 64, 64, device=device)
    labels = torch.arange(batch, device=device) % CLASSES
    runs = {}
    for precision in PRECISIONS:
        ours = build_network(name, CLASSES)
        ours.load_state_dict(network.state_dict())
        runs["ours", precision] = torch_runs(ours.to(device), clips, labels, precision)
        runs["steps", precision] = torch_runs(steps_network(network, name).to(device), clips, labels, precision)
        if find_spec("keras") is not None:
            import keras

            keras.mixed_precision.set_dtype_policy("mixed_bfloat16" if precision == "bf16" else "float32")
            runs["keras", precision] = keras_runs(keras_network(network, name), clips, labels)
    return runs


def convolutions_of(
    network: RawNetwork, clips: torch.Tensor, dtype: torch.dtype
) -> list[tuple[Callable[[], Any], int, int]]:
    """Return each convolution of inference on random numbers: the call, its operations, and how often it is called."""
    found: list[tuple[Callable[[], Any], int, int]] = []

    def add(shape: tuple[int, ...], kernel: torch.Tensor, stride: int, margin: int, calls: int) -> None:
        # Made in channels-last memory: the strides of a single channel say so only if they are set.
        count, channels, *size = shape
        images = torch.rand(count, *size, channels).to(dtype).movedim(-1, 1)
        outputs, inputs, *size = kernel.shape
        weights = torch.rand(outputs, *size, inputs).to(dtype).movedim(-1, 1)

        def run() -> torch.Tensor:
            return F.conv2d(images, weights, stride=stride, padding=margin)

        found.append((run, 2 * run().numel() * weights[0].numel(), calls))

    def recurrent(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, ConvLSTM)
        steps, batch, channels, height, width = given[0].shape
        size = layer.output_size(height, width)
        kernel = layer.input_kernel
        padded = [(n - 1) * layer.stride + kernel.shape[2] for n in size]
        for count in {len(part) for part in torch.arange(steps).split(ConvLSTM.steps_at_once)}:
            calls = sum(len(part) == count for part in torch.arange(steps).split(ConvLSTM.steps_at_once))
            add((count * batch, channels, *padded), kernel, layer.stride, 0, calls)
        kernel = layer.recurrent_kernel
        add((batch, layer.hidden_channels, *size), kernel, 1, kernel.shape[2] // 2, steps - 1)

    def plain(layer: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
        assert isinstance(layer, nn.Conv2d)
        add(tuple(given[0].shape), layer.weight, layer.stride[0], 0, 1)

    hooks = [
        module.register_forward_pre_hook(recurrent if isinstance(module, ConvLSTM) else plain)
        for module in network.modules()
        if isinstance(module, (ConvLSTM, nn.Conv2d))
    ]
    with torch.no_grad():
        network.eval()(clips)
    for hook in hooks:
        hook.remove()
    return found


def _call_all(convolutions: list[tuple[Callable[[], Any], int, int]]) -> None:
    for run, _, calls in convolutions:
        for _ in range(calls):
            run()


def limits(name: NetworkName, rounds: int, batch: int) -> dict[str, Any]:
    """Return, per precision, 1e9 operations per CPU second of products, convolutions and inference, and their ratios."""
    network = build_network(name, CLASSES)
    clips, labels = torch.rand(batch, network.clip_len, 1, 64, 64), torch.zeros(batch, dtype=torch.long)
    result: dict[str, Any] = {}
    for precision in PRECISIONS:
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        matrices = [torch.rand(side, side).to(dtype) for side in (512, 1024, 2048)]
        convolutions = convolutions_of(network, clips, dtype)
        infer = torch_runs(network, clips, labels, precision)["infer"]
        operations = sum(count * calls for _, count, calls in convolutions)
        runs: dict[str, tuple[Callable[[], Any], int]] = {
            f"product {len(matrix)}": (partial(torch.mm, matrix, matrix), 2 * len(matrix) ** 3) for matrix in matrices
        }
        runs |= {"convolutions": (partial(_call_all, convolutions), operations), "ours": (infer, operations)}
        seconds: dict[str, list[float]] = {key: [] for key in runs}
        with torch.no_grad():
            for _ in range(rounds + 1):
                for key, (run, _) in runs.items():
                    started = time.process_time()
                    run()
                    seconds[key].append(time.process_time() - started)
        speed = {key: runs[key][1] / statistics.median(values[1:]) / 1e9 for key, values in seconds.items()}
        product = max(value for key, value in speed.items() if key.startswith("product"))
        result[precision] = {
            "gflop_per_clip": round(operations / batch / 1e9, 2),
            "gflop_per_cpu_s": {
                "product": round(product, 1),
                "convolutions": round(speed["convolutions"], 1),
                "ours": round(speed["ours"], 1),
            },
            "ours_to_product": round(speed["ours"] / product, 3),
            "ours_to_convolutions": round(speed["ours"] / speed["convolutions"], 3),
        }
    return result


def measure(name: NetworkName, rounds: int, batch: int, device: str) -> dict[str, Any]:
    """Return seconds per clip of all, differences of the logits, and ratios of the rivals' times to ours."""
    runs = build_runs(name, batch, device)
    exact = runs["ours", "fp32"]["infer"]()
    difference = {
        f"{who} {precision}": round(float((run["infer"]().to(exact.device) - exact).abs().max() / exact.abs().max()), 6)
        for (who, precision), run in runs.items()
    }
    result: dict[str, Any] = {"network": name, "batch": batch, "difference": difference}
    for what in ("infer", "train"):
        seconds: dict[tuple[str, str], list[float]] = {key: [] for key in runs}
        for _ in range(rounds + 1):
            for key, run in runs.items():
                started = time.perf_counter()
                run[what]()
                if device == "cuda":
                    torch.cuda.synchronize()
                seconds[key].append((time.perf_counter() - started) / batch)
        median = {key: statistics.median(values[1:]) for key, values in seconds.items()}
        rival = {
            precision: min(value for (who, own), value in median.items() if own == precision and who != "ours")
            for precision in PRECISIONS
        }
        result[what] = {
            "s_per_clip": {f"{who} {precision}": round(value, 5) for (who, precision), value in median.items()},
            "rivals_to_ours_fp32": round(rival["fp32"] / median["ours", "fp32"], 3),
            "rivals_to_ours_bf16": round(rival["bf16"] / median["ours", "bf16"], 3),
            "rivals_fp32_to_ours_bf16": round(rival["fp32"] / median["ours", "bf16"], 3),
            "best_rival_to_ours_bf16": round(min(rival.values()) / median["ours", "bf16"], 3),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, help="12 and 6 by default, the paper's")
    parser.add_argument("--network", choices=NETWORKS, help="both by default")
    parser.add_argument("--limits", action="store_true", help="also the limits of the arithmetic, on a CPU")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.limits and args.device != "cpu":
        parser.error("--limits counts CPU seconds: give --device cpu")
    os.environ["KERAS_BACKEND"] = "torch"
    keep_freed_memory()
    names = [args.network] if args.network else NETWORKS
    rows = [measure(name, args.rounds, args.batch or BATCH[name], args.device) for name in names]
    if args.limits:
        for name, row in zip(names, rows, strict=True):
            row["limits"] = limits(name, args.rounds, args.batch or BATCH[name])
    shown = torch.cuda.get_device_name() if args.device == "cuda" else "cpu"
    found = {"benchmark": "convlstm", "threads": torch.get_num_threads(), "device": shown, "networks": rows}
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
