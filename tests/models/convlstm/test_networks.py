from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from har_pipeline.models.config import Gates, NetworkName
from har_pipeline.models.convlstm.layer import ConvLSTM
from har_pipeline.models.convlstm.networks import NETWORKS, RawNetwork, Recurrent, build_network, detach_state

SMALL = 0.125
# (kernel, stride, filters, output (T, H, W) or (H, W)), top to bottom, as the tables have them.
TABLE_1_SUPPORT = [(7, 2, 8, (30, 29, 29)), (5, 2, 16, (13, 13)), (1, 1, 128, (13, 13))]
TABLE_1_MAIN = [
    (3, 1, 32, (30, 64, 64)),
    (3, 2, 32, (30, 31, 31)),
    (3, 1, 128, (30, 31, 31)),
    (3, 2, 256, (15, 15)),
    (3, 1, 128, (13, 13)),
]
TABLE_1_DECISION = [(3, 2, 128, (6, 6)), (1, 1, 60, (6, 6))]
TABLE_2 = [
    (3, 1, 32, (8, 64, 64)),
    (3, 2, 64, (8, 31, 31)),
    (3, 1, 128, (8, 31, 31)),
    (3, 2, 256, (15, 15)),
    (3, 2, 128, (7, 7)),
    (3, 2, 128, (3, 3)),
    (1, 1, 60, (3, 3)),
]
Row = tuple[int, int, int, tuple[int, ...]]


def layers_as_run(network: RawNetwork) -> dict[str, Row]:
    """Return name -> (kernel, stride, filters, output size) of every convolution and ConvLSTM, in the order of running."""
    rows: dict[str, Row] = {}

    def note(name: str, module: nn.Module, output: object) -> None:
        frames = output[0] if isinstance(output, tuple) else output
        assert isinstance(frames, torch.Tensor)
        if isinstance(module, ConvLSTM):
            kernel, stride, filters = module.input_kernel.shape[2], module.stride, module.hidden_channels
        else:
            assert isinstance(module, nn.Conv2d)
            kernel, stride, filters = module.kernel_size[0], module.stride[0], module.out_channels
        assert frames.shape[-3] == filters
        size = (*frames.shape[:-4], *frames.shape[-2:]) if frames.ndim == 5 else tuple(frames.shape[-2:])
        rows[name] = (kernel, stride, filters, size)

    for name, module in network.named_modules():
        if isinstance(module, ConvLSTM | nn.Conv2d):
            module.register_forward_hook(lambda module, _, output, name=name: note(name, module, output))
    with torch.no_grad():
        network.eval()(torch.rand(1, network.clip_len, 1, 64, 64))
    return rows


def test_stateless_network_is_table_1() -> None:
    rows = layers_as_run(build_network("convlstm-stateless", 60))
    assert [row for name, row in rows.items() if name.startswith("support")] == TABLE_1_SUPPORT
    assert [row for name, row in rows.items() if name.startswith("main")] == TABLE_1_MAIN
    assert [row for name, row in rows.items() if name.startswith("decision")] == TABLE_1_DECISION
    assert len(rows) == 10


def test_stateful_network_is_table_2() -> None:
    assert list(layers_as_run(build_network("convlstm-stateful", 60)).values()) == TABLE_2


def test_normalisation_activation_and_dropout_stand_where_the_tables_have_them() -> None:
    stateless, stateful = build_network("convlstm-stateless", 60), build_network("convlstm-stateful", 60)

    def kinds(modules: object) -> list[str]:
        assert isinstance(modules, nn.Sequential)
        return [type(module).__name__ for module in modules]

    def leaks(modules: object) -> list[float | None]:
        assert isinstance(modules, nn.ModuleList)
        found: list[float | None] = []
        for module in modules:
            assert isinstance(module, Recurrent)
            assert isinstance(module.norm, nn.BatchNorm2d)
            found.append(module.activation.negative_slope if isinstance(module.activation, nn.LeakyReLU) else None)
        return found

    assert leaks(stateless.main) == [0.3] * 4
    assert leaks(stateless.support) == [None] * 2
    assert leaks(stateful.recurrent) == [None] * 4
    assert kinds(stateless.decision) == ["LeakyReLU", "Conv2d", "BatchNorm2d", "LeakyReLU", "Conv2d"]
    block = ["Conv2d", "BatchNorm2d", "LeakyReLU"]
    assert kinds(stateful.decision) == ["Dropout", *block, *block, "Conv2d"]
    assert [m.p for m in stateful.modules() if isinstance(m, nn.Dropout)] == [0.25]
    assert not [m for m in stateless.modules() if isinstance(m, nn.Dropout)]


@pytest.mark.parametrize(("name", "channels", "classes", "count"), [
    ("convlstm-stateless", 1, 60, 4_896_108),
    ("convlstm-stateful", 1, 60, 5_136_636),
    ("convlstm-stateful", 3, 27, 5_136_636 + 2 * 9 * 128 - 33 * 129),
])  # fmt: skip
def test_parameter_counts(name: NetworkName, channels: int, classes: int, count: int) -> None:
    network = build_network(name, classes, channels=channels)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_learns_and_logits_fit(name: NetworkName) -> None:
    network = build_network(name, 5, channels=3, width=SMALL)
    logits, state = network(torch.rand(2, network.clip_len, 3, 64, 64))
    assert logits.shape == (2, 5)
    assert len(state) == (4 if network.stateful else 0)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    # A bias right before batch normalisation has no gradient but rounding; the ConvLSTMs' biases have gates in between.
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


@pytest.mark.parametrize(("split_at", "motion"), [(8, False), (16, False), (8, True)])
def test_windows_with_carried_state_are_the_whole_video(split_at: int, motion: bool) -> None:
    torch.manual_seed(0)
    network = build_network("convlstm-stateful", 4, width=SMALL, motion=motion).double().eval()
    video = torch.rand(2, 24, 1, 64, 64, dtype=torch.double)
    with torch.no_grad():
        whole, end = network(video)
        state = network.advance(video[:, :split_at])
        last, carried = network(video[:, split_at:], state)
        fresh, _ = network(video[:, split_at:])
    torch.testing.assert_close(last, whole)
    for ours, expected in zip(carried, end, strict=True):
        torch.testing.assert_close(ours, expected)
    assert (fresh - whole).abs().max() > 1e-6


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_motion_by_hand(name: NetworkName, channels: int) -> None:
    """Each channel, then how much it differs from the frame before: over the windows too, 0 in a video's first frame."""
    torch.manual_seed(0)
    network = build_network(name, 4, channels=channels, width=SMALL, motion=True).eval()
    video = torch.randint(0, 256, (2, 2 * network.clip_len, channels, 48, 48)).float() / 255
    expected = np.abs(np.diff(video.numpy(), axis=1, prepend=video[:, :1].numpy()))
    first, second = video.split(network.clip_len, dim=1)
    state = network.advance(first)
    found = torch.cat([network.seen(first), network.seen(second, state or None)]).transpose(0, 1).numpy()
    if not network.stateful:  # whose clips are videos of their own
        expected[:, network.clip_len] = 0
    assert np.array_equal(found[:, :, :channels], video.numpy())
    assert np.array_equal(found[:, :, channels:], expected)
    plain = build_network(name, 4, channels=2 * channels, width=SMALL).eval()
    plain.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(plain(network.seen(first).transpose(0, 1))[0], network(first)[0])
        assert torch.equal(network(first)[0], network(first, network(second)[1])[0]) == (not network.stateful)


@pytest.mark.parametrize("motion", [False, True])
def test_all_windows_at_once_are_the_windows_one_by_one(motion: bool) -> None:
    torch.manual_seed(0)
    network = build_network("convlstm-stateful", 4, width=SMALL, motion=motion).double().eval()
    windows = torch.rand(2, 3, 8, 1, 48, 48, dtype=torch.double)
    with torch.no_grad():
        together, end = network(windows[:, 1:], network.advance(windows[:, 0]))
        state, apart = None, []
        for window in windows.unbind(1):
            logits, state = network(window, state)
            apart.append(logits)
    assert together.shape == (2, 2, 4)
    torch.testing.assert_close(together, torch.stack(apart[1:]))
    assert state is not None
    for ours, expected in zip(end, state, strict=True):
        torch.testing.assert_close(ours, expected)


def test_all_windows_at_once_are_normalised_together() -> None:
    """In training: the first layer's statistics are those of all its frames, so that the running averages are, too."""
    torch.manual_seed(0)
    network = build_network("convlstm-stateful", 4, width=SMALL).train()
    # Each window brighter than the one before.
    windows = torch.rand(2, 3, 8, 1, 48, 48) * torch.tensor([0.1, 0.5, 1.0])[:, None, None, None, None]
    first = next(layer for layer in network.modules() if isinstance(layer, Recurrent))
    hidden, _ = first.convlstm(windows.flatten(1, 2).transpose(0, 1))
    network(windows)
    torch.testing.assert_close(first.norm.running_mean, 0.1 * hidden.mean((0, 1, 3, 4)).detach())


def test_advance_leaves_out_the_decision_block_only() -> None:
    network = build_network("convlstm-stateful", 4, width=SMALL)
    clips = torch.rand(1, 8, 1, 64, 64)
    decision = network.decision
    assert isinstance(decision, nn.Sequential)
    hook = decision.register_forward_hook(lambda *_: pytest.fail("the decision block was run"))
    with torch.no_grad():
        advanced = network.eval().advance(clips)
        hook.remove()
        _, state = network(clips)
    for ours, expected in zip(advanced, state, strict=True):
        assert torch.equal(ours[0], expected[0])
        assert torch.equal(ours[1], expected[1])


@pytest.mark.parametrize("name", NETWORKS)
def test_every_convlstm_has_the_gates_that_were_asked_for(name: NetworkName) -> None:
    for gates in get_args(Gates):
        network = build_network(name, 3, width=SMALL, gates=gates)
        found = [module.convlstm.gates for module in network.modules() if isinstance(module, Recurrent)]
        assert found == [gates] * (6 if name == "convlstm-stateless" else 4)


def test_stateless_network_ignores_a_state() -> None:
    network = build_network("convlstm-stateless", 3, width=SMALL).eval()
    clips = torch.rand(1, 30, 1, 64, 64)
    with torch.no_grad():
        first, state = network(clips)
        again, _ = network(clips, state)
    assert torch.equal(first, again)
    assert network.advance(clips) == ()


def test_a_detached_state_has_no_graph() -> None:
    network = build_network("convlstm-stateful", 3, width=SMALL)
    _, state = network(torch.rand(1, 8, 1, 64, 64))
    moving = build_network("convlstm-stateful", 3, width=SMALL, motion=True)
    assert len(detach_state(moving(torch.rand(1, 8, 1, 64, 64))[1])) == 5
    assert all(part.requires_grad for pair in state for part in pair)
    assert not any(part.requires_grad for pair in detach_state(state) for part in pair)


def test_bad_options() -> None:
    with pytest.raises(ValueError, match="unknown network 'vgg'; choose from: convlstm-stateless, convlstm-stateful"):
        build_network("vgg", 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="need 2 classes"):
        build_network("convlstm-stateful", 1)
