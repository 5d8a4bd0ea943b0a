"""Which weights file is for which of the streams that runs read."""

from __future__ import annotations

from pathlib import Path

import pytest

from har_pipeline.core.errors import FeatureMismatchError, RunError
from har_pipeline.core.files import file_sha256
from har_pipeline.core.known_files import remember
from har_pipeline.core.records import FeatureSpec, Stream
from har_pipeline.inference.sources import _assigned, _found_weights, _Source


def source(extractor: str, stream: Stream, sha256: str) -> _Source:
    spec = FeatureSpec(extractor=extractor, weights=f"sha256:{sha256}", layer="x", feature_dim=4, stream=stream)
    return _Source(spec, Path("run"), {spec.name})


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "rgb=1.pt", tmp_path / "flow.pt"
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


def test_files_are_told_apart_by_name_or_hash(files: tuple[Path, Path]) -> None:
    rgb, flow = (source("i3d", stream, file_sha256(file)) for stream, file in zip(("rgb", "flow"), files, strict=True))  # type: ignore[arg-type]
    both = {rgb.spec.name: str(files[0]), flow.spec.name: str(files[1])}
    assert _assigned([rgb, flow], [str(files[1]), str(files[0])]) == both
    assert _assigned([rgb, flow], [f"rgb={files[0]}", f"i3d-flow={files[1]}"]) == both
    assert _assigned([rgb, flow], [f"{rgb.spec.name}={files[0]}"]) == {rgb.spec.name: str(files[0])}
    assert _assigned([rgb], ["any.pt"]) == {rgb.spec.name: "any.pt"}
    # Two nets of one stream, as those of folds: the hash decides between them.
    first, second = (source("convnet3d", "rgb", file_sha256(file)) for file in files)
    found = _assigned([first, second], [f"rgb={files[1]}"])
    assert found == {second.spec.name: str(files[1])}
    with pytest.raises(
        RunError, match=r"these are the weights of none of flow .*, rgb .*: write --weights STREAM=FILE"
    ):
        _assigned([rgb, flow], ["other.pt"])
    with pytest.raises(RunError, match=r"there is no stream or feature set 'depth', but flow \(i3d-flow"):
        _assigned([rgb, flow], ["depth=x.pt"])


def test_what_is_nowhere_is_asked_for_by_the_name_of_its_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HAR_CACHE", str(tmp_path))
    rgb, flow = source("i3d", "rgb", "1" * 64), source("i3d", "flow", "2" * 64)
    with pytest.raises(FeatureMismatchError) as told:
        _found_weights(flow, [rgb, flow])
    for part in ("run: the flow features i3d-flow-", "i3d weights sha256:2222", str(tmp_path), "--weights flow=FILE"):
        assert part in str(told.value)
    gone = tmp_path / "gone.pt"
    gone.write_bytes(b"")
    remember(gone, "1" * 64)
    gone.unlink()
    other = source("c3d", "rgb", "3" * 64)
    with pytest.raises(
        FeatureMismatchError, match=rf"nor at {gone}, where they were used last: .*--weights {rgb.spec.name}=FILE"
    ):
        _found_weights(rgb, [rgb, other])
    assert (
        _found_weights(
            _Source(FeatureSpec(extractor="i3d", weights="random:0", layer="x", feature_dim=4), Path("r")), []
        )
        is None
    )
