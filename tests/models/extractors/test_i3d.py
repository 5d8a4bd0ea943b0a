from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch.nn import functional as F

from har_pipeline.core.errors import UsageError, WeightsError
from har_pipeline.core.records import VideoRecord
from har_pipeline.features.extract import extract
from har_pipeline.features.options import ExtractOptions
from har_pipeline.features.store import FeatureStore
from har_pipeline.models.extractors import Extractor, build_extractor
from har_pipeline.models.extractors.build import fold_batch_norms
from har_pipeline.models.extractors.i3d import I3D, NET

# Source: github.com/piergiaj/pytorch-i3d, pytorch_i3d.py, InceptionI3d.__init__ and InceptionModule.__init__: part name,
# input channels, and the six widths of b0, b1a, b1b, b2a, b2b, b3b.
PUBLIC_BLOCKS = (
    ("Mixed_3b", 192, (64, 96, 128, 16, 32, 32)),
    ("Mixed_3c", 256, (128, 128, 192, 32, 96, 64)),
    ("Mixed_4b", 128 + 192 + 96 + 64, (192, 96, 208, 16, 48, 64)),
    ("Mixed_4c", 192 + 208 + 48 + 64, (160, 112, 224, 24, 64, 64)),
    ("Mixed_4d", 160 + 224 + 64 + 64, (128, 128, 256, 24, 64, 64)),
    ("Mixed_4e", 128 + 256 + 64 + 64, (112, 144, 288, 32, 64, 64)),
    ("Mixed_4f", 112 + 288 + 64 + 64, (256, 160, 320, 32, 128, 128)),
    ("Mixed_5b", 256 + 320 + 128 + 128, (256, 160, 320, 32, 128, 128)),
    ("Mixed_5c", 256 + 320 + 128 + 128, (384, 192, 384, 48, 128, 128)),
)


def public_shapes(channels: int = 3, classes: int = 400) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the port's files, without the counters that PyTorch 0.3 did not write yet."""
    units = {
        "Conv3d_1a_7x7": (64, channels, 7),
        "Conv3d_2b_1x1": (64, 64, 1),
        "Conv3d_2c_3x3": (192, 64, 3),
    }
    for name, inputs, (b0, b1a, b1b, b2a, b2b, b3b) in PUBLIC_BLOCKS:
        units |= {f"{name}.b0": (b0, inputs, 1), f"{name}.b1a": (b1a, inputs, 1), f"{name}.b1b": (b1b, b1a, 3)}
        units |= {f"{name}.b2a": (b2a, inputs, 1), f"{name}.b2b": (b2b, b2a, 3), f"{name}.b3b": (b3b, inputs, 1)}
    shapes: dict[str, tuple[int, ...]] = {}
    for name, (outputs, inputs, kernel) in units.items():
        shapes[f"{name}.conv3d.weight"] = (outputs, inputs, kernel, kernel, kernel)
        shapes |= {f"{name}.bn.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")}
    return shapes | {"logits.conv3d.weight": (classes, 1024, 1, 1, 1), "logits.conv3d.bias": (classes,)}


def random_state(channels: int = 3, classes: int = 400, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in public_shapes(channels, classes).items():
        if key.endswith("conv3d.weight"):
            fan_in = int(np.prod(shape[1:]))
            state[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        elif key.endswith(("bn.weight", "running_var")):
            state[key] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[key] = torch.randn(shape, generator=generator) * 0.1
    return state


def second_implementation(x: torch.Tensor, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every layer of I3D, written from the paper's figure 3 with explicit padding and normalisation by hand."""

    def same(x: torch.Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], value: float) -> torch.Tensor:
        sides: list[int] = []
        for axis in (4, 3, 2):
            size, k, s = x.shape[axis], kernel[axis - 2], stride[axis - 2]
            missing = k - s if size % s == 0 else k - size % s
            sides += [max(missing, 0) // 2, max(missing, 0) - max(missing, 0) // 2]
        return F.pad(x, sides, value=value)

    def pool(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
        return F.max_pool3d(same(x, kernel, stride, float("-inf")), kernel, stride)

    def unit(x: torch.Tensor, name: str, stride: int = 1) -> torch.Tensor:
        weight = state[f"{name}.conv3d.weight"]
        y = F.conv3d(same(x, tuple(weight.shape[2:]), (stride,) * 3, 0.0), weight, stride=stride)
        mean, var, gain, bias = (
            state[f"{name}.bn.{part}"].view(1, -1, 1, 1, 1)
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        return ((y - mean) / (var + 1e-3).sqrt() * gain + bias).clamp(min=0)

    def block(x: torch.Tensor, name: str) -> torch.Tensor:
        first = unit(x, f"{name}.b0")
        second = unit(unit(x, f"{name}.b1a"), f"{name}.b1b")
        third = unit(unit(x, f"{name}.b2a"), f"{name}.b2b")
        return torch.cat([first, second, third, unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")], 1)

    x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pool(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    x = pool(block(block(x, "Mixed_3b"), "Mixed_3c"), (3, 3, 3), (2, 2, 2))
    for letter in "bcdef":
        x = block(x, f"Mixed_4{letter}")
    layers = {"Mixed_4f": x.mean((2, 3, 4))}
    x = block(block(pool(x, (2, 2, 2), (2, 2, 2)), "Mixed_5b"), "Mixed_5c")
    steps = x.mean((3, 4))
    pairs = (steps[:, :, 1:] + steps[:, :, :-1]) / 2
    layers["Mixed_5c"] = pairs.mean(2)
    logits = torch.einsum("oi,bit->bot", state["logits.conv3d.weight"].flatten(1), pairs)
    layers["logits"] = logits.mean(2) + state["logits.conv3d.bias"]
    return layers


def clips(count: int, frames: int, seed: int = 0) -> torch.Tensor:
    """(count, frames, 224, 224, 3) uint8: drifting colour waves with some texture."""
    rng = np.random.default_rng(seed)
    t, y, x = np.mgrid[:frames, :224, :224] / 32
    made = []
    for _ in range(count):
        a, b, c, d = rng.uniform(0.2, 2, (4, 3))
        wave = 128 + 90 * np.sin(a * x[..., None] + b * y[..., None] + 8 * c * t[..., None] + d)
        made.append(np.clip(wave + rng.normal(0, 10, wave.shape), 0, 255).astype(np.uint8))
    return torch.from_numpy(np.stack(made))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_keys_shapes_and_parameters_are_the_public_ones() -> None:
    """12.7 M parameters with 400 classes; the paper's table 1 gives 25 M for both streams."""
    for channels, parameters in ((3, 12_697_264), (2, 12_675_312)):
        with torch.device("meta"):
            net = I3D("logits", channels)
        ours = {k: tuple(v.shape) for k, v in net.state_dict().items() if not k.endswith("num_batches_tracked")}
        assert ours == public_shapes(channels)
        assert sum(p.numel() for p in net.parameters()) == parameters


@pytest.mark.parametrize(("channels", "frames"), [(3, 9), (2, 12)])
def test_each_layer_agrees_with_a_second_implementation(channels: int, frames: int) -> None:
    """Odd and even lengths, so that SAME padding falls on both sides and on one."""
    state = random_state(channels)
    x = torch.randn(1, channels, frames, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        wanted = second_implementation(x, state)
        for layer, dim in NET.layers.items():
            net = I3D(layer, channels).eval()
            parts = {name for name, _ in net.named_children()}
            net.load_state_dict({k: v for k, v in state.items() if k.split(".")[0] in parts})
            found = net(x)
            assert found.shape == (1, dim)
            assert relative(found, wanted[layer]) < 1e-5, layer


@pytest.mark.parametrize(("stream", "layer"), [("rgb", "Mixed_5c"), ("flow", "logits")])
def test_the_extractor_scales_its_stream_and_takes_a_batch(stream: str, layer: str, tmp_path: Path) -> None:
    """Two clips give what each gives alone; what reaches the net is RGB in [-1, 1], flow in clipped px over 20."""
    channels = 3 if stream == "rgb" else 2
    state = random_state(channels)
    torch.save(state, tmp_path / "i3d.pt")
    extractor = build_extractor(
        "i3d", layer=layer, stream=stream, weights=str(tmp_path / "i3d.pt"), device="cpu", precision="fp32"
    )
    if stream == "rgb":
        both = clips(2, 9)
        x = both.permute(0, 4, 1, 2, 3).float() / 255 * 2 - 1
    else:
        both = torch.from_numpy(np.random.default_rng(0).uniform(-20, 20, (2, 9, 224, 224, 2)).astype(np.float32))
        x = both.permute(0, 4, 1, 2, 3) / 20
    together = extractor(both)
    assert together.shape == (2, NET.layers[layer])
    assert together.dtype == torch.float32
    with torch.inference_mode():
        assert relative(together[:1], second_implementation(x[:1], state)[layer]) < 1e-4
    assert relative(extractor(both[1:]), together[1:]) < 1e-5


def test_nine_frames_are_the_fewest() -> None:
    assert NET.inputs["rgb"].clip_lens[0] == 9
    net = I3D("Mixed_5c").eval()
    with torch.inference_mode():
        assert net(torch.zeros(1, 3, 9, 224, 224)).shape == (1, 1024)
        with pytest.raises(RuntimeError, match="smaller than kernel"):
            net(torch.zeros(1, 3, 8, 224, 224))


def test_files_of_the_port_load(tmp_path: Path) -> None:
    """`.pt` without batch counters in the old format, `.safetensors` in float16 with them: the same tensors arrive."""
    state = {key: value.half().float() for key, value in random_state().items()}
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    half = {key: value.half() for key, value in state.items()}
    counters = {
        key.replace("running_var", "num_batches_tracked"): torch.tensor(7)
        for key in state
        if key.endswith("running_var")
    }
    save_file(half | counters, tmp_path / "half.safetensors")
    for name in ("old.pt", "half.safetensors"):
        net = I3D("logits")
        NET.load(net, tmp_path / name)
        for key, value in state.items():
            assert torch.equal(net.state_dict()[key], value), key
        assert net.Conv3d_1a_7x7.conv3d.weight.dtype == torch.float32


def test_features_load_from_a_file_of_other_classes(tmp_path: Path) -> None:
    """The Charades files have 157 classes: their features are usable, their logits are refused."""
    torch.save(random_state(classes=157), tmp_path / "charades.pt")
    for layer in ("Mixed_4f", "Mixed_5c"):
        NET.load(I3D(layer), tmp_path / "charades.pt")
    with pytest.raises(WeightsError, match=r"charades\.pt: does not fit the net: .*of another shape.*logits"):
        NET.load(I3D("logits"), tmp_path / "charades.pt")
    with pytest.raises(WeightsError, match="'charades-rgb' end before layer logits"):
        build_extractor("i3d", layer="logits", weights="charades-rgb", device="cpu")


class _Malice:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (eval, ("__import__('os').mkdir('pickle_ran')",))


def test_bad_files_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    state = random_state()
    net = I3D("Mixed_5c")
    missing = {key: value for key, value in state.items() if key != "Mixed_4d.b2b.bn.running_mean"}
    wrong = state | {"Mixed_3b.b0.conv3d.weight": torch.zeros(64, 192, 3, 3, 3)}
    extra = state | {"Mixed_6a.b0.conv3d.weight": torch.zeros(1)}
    for name, changed, message in (
        ("missing.pt", missing, r"missing\.pt: does not fit the net: .*missing.*Mixed_4d\.b2b\.bn\.running_mean"),
        ("wrong.pt", wrong, r"wrong\.pt: does not fit the net: .*of another shape.*Mixed_3b\.b0\.conv3d\.weight"),
        ("extra.pt", extra, r"extra\.pt: does not fit the net: .*unexpected.*Mixed_6a"),
        ("flow.pt", random_state(2), r"flow\.pt: does not fit the net: .*of another shape.*Conv3d_1a_7x7"),
        ("nan.pt", state | {"Mixed_3b.b0.bn.bias": torch.full((64,), torch.nan)}, r"nan\.pt: .*non-finite"),
        ("evil.pt", {"logits.conv3d.bias": _Malice()}, r"evil\.pt: not a readable weights file"),
    ):
        torch.save(changed, name)
        with pytest.raises(WeightsError, match=message):
            NET.load(net, Path(name))
    assert not Path("pickle_ran").exists()
    save_file(state, "whole.safetensors")
    torch.save(state, "whole.pt")
    for name in ("whole.pt", "whole.safetensors"):
        data = Path(name).read_bytes()
        Path(name).write_bytes(data[: len(data) // 2])
        with pytest.raises(WeightsError, match=f"{name}: not a readable"):
            NET.load(net, Path(name))


def test_streams_and_names() -> None:
    with pytest.raises(WeightsError, match="are for flow, not for rgb"):
        build_extractor("i3d", weights="kinetics-flow", device="cpu")
    with pytest.raises(UsageError, match="reads rgb, flow, not depth"):
        build_extractor("i3d", stream="depth", weights="random", device="cpu")


def real_extractor(real_data: Path, layer: str, precision: str = "fp32") -> Extractor:
    path = real_data / "weights" / "i3d_rgb_kinetics400.safetensors"
    return build_extractor("i3d", layer=layer, weights=str(path), device="cpu", precision=precision)


@pytest.mark.needs_real_data
def test_the_key_table_is_that_of_a_real_file(real_data: Path) -> None:
    with safe_open(real_data / "weights" / "i3d_rgb_kinetics400.safetensors", "pt") as file:
        found = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    assert {k: v for k, v in found.items() if not k.endswith("num_batches_tracked")} == public_shapes()


@pytest.mark.needs_real_data
@pytest.mark.parametrize("clip", ["bench_press", "soccer"])
def test_golden_features_and_logits(real_data: Path, clip: str) -> None:
    golden = np.load(real_data / "golden" / f"i3d_rgb_{clip}.npz")
    frames = torch.from_numpy(golden["frames"])[None]
    for layer, name in (("Mixed_5c", "features"), ("logits", "logits")):
        found = real_extractor(real_data, layer)(frames)[0]
        assert relative(found, torch.from_numpy(golden[name])) <= 1e-3


@pytest.mark.needs_real_data
def test_real_clips_get_their_kinetics_labels(real_data: Path, tmp_path: Path) -> None:
    """With a clip of 64 frames in the middle and the net's own resizing, as an independent implementation measured them."""
    wanted = {
        "ucf101/SoccerJuggling/v_SoccerJuggling_g23_c01.avi": ("juggling soccer ball", 1.00),
        "ucf101/BenchPress/v_BenchPress_g01_c01.avi": ("bench pressing", 1.00),
        "ucf101/Diving/v_Diving_g01_c02.avi": ("springboard diving", 0.97),
        "ucf101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c03.avi": ("filling eyebrows", 0.77),
        "hmdb51/cartwheel/cartwheel.avi": ("cartwheeling", 0.59),
    }
    records = [VideoRecord(video_id=Path(path).stem, label="any", path=real_data / "clips" / path) for path in wanted]
    store = FeatureStore(tmp_path / "store.zarr", create=True)
    extractor = real_extractor(real_data, "logits")
    middle = dataclasses.replace(extractor.input.clips, sampling="segments", num_clips=1)
    extract(records, store, extractor, ExtractOptions(clips=middle, dtype="float32"))
    classes = (real_data / "weights" / "kinetics400_classes.txt").read_text().splitlines()
    (features,) = store.feature_sets()
    for record, (label, probability) in zip(records, wanted.values(), strict=True):
        logits = torch.from_numpy(store.read(features, record.video_id).features)
        assert logits.shape == (1, 400)
        found = logits[0].softmax(0)
        assert classes[int(found.argmax())] == label
        assert abs(float(found.max()) - probability) < 0.01


@pytest.mark.needs_real_data
def test_folding_keeps_the_numbers_and_bf16_is_as_close_as_said(real_data: Path) -> None:
    """bf16 is close where cosine is at least 0.9995 and the relative norm of the difference at most 2 %."""
    frames = torch.from_numpy(np.load(real_data / "golden" / "i3d_rgb_soccer.npz")["frames"])[None]
    unfolded = I3D("Mixed_5c").eval()
    NET.load(unfolded, real_data / "weights" / "i3d_rgb_kinetics400.safetensors")
    with torch.inference_mode():
        exact = unfolded(NET.file_preprocess(Path("any"), "rgb")(frames, torch.float32))
    folded = real_extractor(real_data, "Mixed_5c")
    assert not any(isinstance(m, torch.nn.BatchNorm3d) for m in folded.module.modules())
    assert relative(folded(frames), exact) <= 1e-5
    fast = real_extractor(real_data, "Mixed_5c", "bf16")(frames)
    close = bool(F.cosine_similarity(fast, exact) >= 0.9995) and relative(fast, exact) <= 0.02
    assert close == NET.bf16_is_close


def test_folding_twice_changes_nothing() -> None:
    net = I3D("Mixed_4f")
    fold_batch_norms(net)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fold_batch_norms(net)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
