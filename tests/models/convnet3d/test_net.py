from __future__ import annotations

import itertools

import pytest
import torch
from torch import nn

from har_pipeline.models.convnet3d.net import CONNECTIONS, ConvNet3D, Convolution, Rectified


def parameters_of(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_six_actions_take_the_published_number_of_parameters() -> None:
    net = ConvNet3D(6)
    assert parameters_of(net) == 17_169
    assert [parameters_of(layer) for layer in (net.c1, net.c2, net.c3)] == [1_722, 4_235, 4_730]
    assert parameters_of(net.n1) + parameters_of(net.n2) == 6_356
    assert parameters_of(net.s1) + parameters_of(net.s2) == 126
    assert sum(value.numel() for value in net.state_dict().values()) == 17_169


def test_maps_have_the_published_sizes() -> None:
    net, sizes = ConvNet3D(6), {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda _, __, output, name=name: sizes.update({name: tuple(output.shape[1:])}))
    assert net(torch.randn(2, 1, 9, 54, 34)).shape == (2, 6)
    # The paper writes width x height x frames.
    assert sizes == {
        "c1": (7, 5, 48, 28),
        "s1": (7, 5, 24, 14),
        "c2": (35, 3, 20, 10),
        "s2": (35, 3, 10, 5),
        "c3": (5, 1, 8, 3),
        "n1": (50,),
        "n2": (6,),
    }
    assert net.descriptors(torch.randn(2, 1, 9, 54, 34)).shape == (2, 120)


def test_each_map_of_s1_feeds_two_maps_alone_and_one_with_each_other() -> None:
    assert len(CONNECTIONS) == 35
    alone = [seen for seen in CONNECTIONS if len(seen) == 1]
    assert sorted(alone) == sorted([(number,) for number in range(7)] * 2)
    assert sorted(set(CONNECTIONS) - set(alone)) == sorted(itertools.combinations(range(7), 2))


def test_a_map_of_c2_changes_with_the_maps_that_it_sees_and_no_other() -> None:
    torch.manual_seed(0)
    layer, maps = ConvNet3D(6).c2, torch.randn(1, 7, 5, 24, 14)
    before = layer(maps)
    for number in range(7):
        changed = maps.clone()
        changed[:, number] += 1
        differs = (layer(changed) != before).flatten(2).any(dim=2)[0].tolist()
        assert differs == [number in seen for seen in CONNECTIONS]


def test_a_connected_convolution_is_the_sum_over_its_connections() -> None:
    torch.manual_seed(0)
    connections = ((1,), (0, 2), (0, 1, 2))
    layer, maps = Convolution(3, connections, (2, 3, 3)).double(), torch.randn(2, 3, 4, 6, 5, dtype=torch.float64)
    nn.init.normal_(layer.bias)
    kernels = iter(layer.weight)
    for number, seen in enumerate(connections):
        total = sum(nn.functional.conv3d(maps[:, one : one + 1], next(kernels)[None, None]) for one in seen)
        torch.testing.assert_close(layer(maps)[:, number], torch.tanh(total[:, 0] + layer.bias[number]))


def test_rectified_maps_do_not_depend_on_the_sign_and_are_means_of_four_px() -> None:
    torch.manual_seed(0)
    layer, maps = Rectified(2), torch.randn(1, 2, 3, 4, 6)
    torch.testing.assert_close(layer(maps), layer(-maps))
    with torch.no_grad():
        layer.gain[1], layer.coefficient[1], layer.bias[1] = -2.0, 0.5, 0.25
    expected = torch.tanh(0.5 * 2 * maps[0, 1, 2, 2:4, 4:6].abs().mean() + 0.25)
    torch.testing.assert_close(layer(maps)[0, 1, 2, 1, 2], expected)


@pytest.mark.parametrize("name", ["gain", "coefficient", "bias"])
def test_sub_sampling_is_trained(name: str) -> None:
    torch.manual_seed(0)
    net = ConvNet3D(6)
    net(torch.randn(2, 1, 9, 54, 34)).square().sum().backward()
    for layer in (net.s1, net.s2):
        assert layer.get_parameter(name).grad.abs().gt(0).all()
