from __future__ import annotations

import dataclasses
import pkgutil
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest

from har_pipeline.core.errors import UsageError
from har_pipeline.models.extractors import all_nets, describe_nets, find_net
from har_pipeline.models.net_names import net_modules
from har_pipeline.video.clips import shares_seen


@pytest.fixture
def with_a_new_module(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A module of the package that defines one net, `vgg_new`."""
    module = ModuleType("har_pipeline.models.extractors.vgg_new")
    module.NET = dataclasses.replace(find_net("vgg16"), name="vgg_new")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    found = [*pkgutil.iter_modules([str(path) for path in sys.modules["har_pipeline.models.extractors"].__path__])]
    monkeypatch.setattr(pkgutil, "iter_modules", lambda path: [*found, found[0]._replace(name="vgg_new")])
    # Names are read from files, and this module has none.
    modules = {**net_modules(), "vgg_new": "vgg_new"}
    monkeypatch.setattr("har_pipeline.models.extractors.nets.net_modules", lambda: modules)
    monkeypatch.setattr("har_pipeline.models.extractors.nets.check_net_name", lambda name: None)
    all_nets.cache_clear()
    yield
    all_nets.cache_clear()


@pytest.mark.usefixtures("with_a_new_module")
def test_a_module_that_defines_a_net_is_enough() -> None:
    assert find_net("vgg_new").layers == find_net("vgg16").layers
    assert [row["weights"] for row in describe_nets() if row["net"] == "vgg_new"] == ["imagenet", "oxford", "keras"]


def test_single_nets_come_before_families() -> None:
    names = list(all_nets())
    assert names[:6] == ["c3d", "convnet3d", "efficientnet_lite0", "i3d", "vgg16", "tsn_bninception"]
    assert names[-1] == "mvit_base_16x4"
    assert all(net.name == name for name, net in all_nets().items())


def test_the_default_clips_of_every_net_see_the_whole_video() -> None:
    for net in all_nets().values():
        for read in net.inputs.values():
            for num_frames in (300, 1000, 5000):
                span, _ = shares_seen(num_frames, read.clips, 25.0, None)
                assert span > 0.95, (net.name, num_frames)


def test_an_unknown_net_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match=r"unknown net 'vgg'; did you mean 'vgg16'\? choose from: c3d, .*, x3d_m"):
        find_net("vgg")
