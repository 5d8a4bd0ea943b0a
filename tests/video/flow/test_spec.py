"""The words that describe how flow was made, and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from har_pipeline.core.errors import WeightsError
from har_pipeline.video.flow.spec import FarnebackParams, FlowSpec, Tvl1Params, parse_flow

bounds = st.integers(1, 4000).map(lambda quarters: quarters / 4)
counts = st.integers(1, 20)
specs = st.one_of(
    st.builds(
        FlowSpec,
        method=st.sampled_from(["tvl1", "tvl1_opencv"]),
        bound_px=bounds,
        tvl1=st.builds(Tvl1Params, num_scales=counts, num_warps=counts, tau=st.sampled_from([0.125, 0.25])),
    ),
    st.builds(
        FlowSpec,
        method=st.just("farneback"),
        bound_px=bounds,
        farneback=st.builds(FarnebackParams, num_scales=counts, poly_sigma=st.sampled_from([1.1, 1.5])),
    ),
    st.builds(
        FlowSpec, method=st.just("dis"), bound_px=bounds, dis_preset=st.sampled_from(["ultrafast", "fast", "medium"])
    ),
    st.builds(
        FlowSpec,
        method=st.sampled_from(["raft_small", "raft_large"]),
        bound_px=bounds,
        raft_updates=counts,
        raft_weights=st.sampled_from([None, "random"]),
    ),
)


@given(specs)
def test_a_description_gives_the_spec_back(spec: FlowSpec) -> None:
    assert parse_flow(spec.describe()) == spec


@pytest.mark.parametrize("text", ["", "tvl1", "guess(a=1);bound=20;float16", "tvl1(tau=0.25)"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="does not describe optical flow"):
        parse_flow(text)


def test_raft_weights_of_a_file_are_asked_for() -> None:
    text = FlowSpec(method="raft_small", raft_weights="random").describe().replace("random:0", "0123abcd")
    with pytest.raises(WeightsError, match="0123abcd"):
        parse_flow(text)
