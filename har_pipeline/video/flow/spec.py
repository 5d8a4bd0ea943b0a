"""How optical flow is computed: a value that is part of the feature spec, free of torch."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from har_pipeline.core.errors import WeightsError
from har_pipeline.core.files import file_sha256

FlowMethod = Literal["tvl1", "tvl1_opencv", "farneback", "dis", "raft_small", "raft_large"]
DisPreset = Literal["ultrafast", "fast", "medium"]

# torchvision's own default weights; the digits before `.pth` begin the file's sha256.
RAFT_URLS = {
    "raft_small": "https://download.pytorch.org/models/raft_small_C_T_V2-01064c6d.pth",
    "raft_large": "https://download.pytorch.org/models/raft_large_C_T_SKHT_V2-ff5fadd5.pth",
}

PUBLISHED_DIGITS = 8

# Least shorter and longer side for the scales of OpenCV's DIS; below these it may crash the process.
DIS_MIN_SIDES_PX = (32, 96)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tvl1Params:
    """Parameters of TV-L1; defaults of OpenCV's `DualTVL1OpticalFlow`, with gamma 0 and flow starting at 0.

    Raises: ValueError if a value is out of range.
    """

    tau: float = 0.25  # time step of the dual variables
    lambda_: float = 0.15  # weight of brightness against smoothness
    theta: float = 0.3  # tightness of the coupling
    num_scales: int = 5
    num_warps: int = 5
    epsilon: float = 0.01  # px; a warp ends when an iteration's root mean square change is below it
    inner_iterations: int = 30  # at most, after each median filter
    outer_iterations: int = 10  # median filters per warp
    scale_step: float = 0.8  # size of a scale over the next finer one
    median_px: int = 5  # or 1 for no filter

    def __post_init__(self) -> None:
        for name in ("tau", "lambda_", "theta", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"TV-L1: {name} must be above 0, not {getattr(self, name)}")
        for name in ("num_scales", "num_warps", "inner_iterations", "outer_iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"TV-L1: {name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.scale_step < 1:
            raise ValueError(f"TV-L1: scale_step must be between 0 and 1, not {self.scale_step}")
        if self.median_px not in (1, 5):
            raise ValueError(f"TV-L1: median_px must be 5, or 1 for no filter, not {self.median_px}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FarnebackParams:
    """Parameters of Farneback's method; defaults of OpenCV's `FarnebackOpticalFlow`.

    Raises: ValueError if a value is out of range.
    """

    num_scales: int = 5
    scale_step: float = 0.5  # size of a scale over the next finer one
    window_px: int = 13  # averaging window
    iterations: int = 10  # per scale
    poly_px: int = 5  # neighbourhood of the polynomials, 5 or 7
    poly_sigma: float = 1.1  # px, of the Gaussian that weights it

    def __post_init__(self) -> None:
        for name in ("num_scales", "window_px", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"Farneback: {name} must be at least 1, not {getattr(self, name)}")
        if not 0 < self.scale_step < 1:
            raise ValueError(f"Farneback: scale_step must be between 0 and 1, not {self.scale_step}")
        if self.poly_px not in (5, 7) or not 0 < self.poly_sigma < math.inf:
            raise ValueError(
                f"Farneback: poly_px must be 5 or 7, poly_sigma above 0, not {self.poly_px}, {self.poly_sigma}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class FlowSpec:
    """All that changes the numbers of a flow field.

    Raises: ValueError if a value is out of range.
    """

    method: FlowMethod = "tvl1"
    bound_px: float = 20.0  # flow is clipped to [-bound_px, bound_px]
    tvl1: Tvl1Params = field(default_factory=Tvl1Params)  # for both TV-L1 methods
    farneback: FarnebackParams = field(default_factory=FarnebackParams)
    dis_preset: DisPreset = "medium"  # OpenCV's
    raft_updates: int = 12  # of the recurrent net
    raft_weights: str | None = None  # a file, `random` (for tests, seed 0), or None for torchvision's

    def __post_init__(self) -> None:
        if self.method not in get_args(FlowMethod):
            raise ValueError(f"no flow method {self.method!r}: choose from {', '.join(get_args(FlowMethod))}")
        if not 0 < self.bound_px <= 1000:
            raise ValueError(f"bound_px must be above 0 and at most 1000, not {self.bound_px}")
        if self.dis_preset not in get_args(DisPreset):
            raise ValueError(f"no DIS preset {self.dis_preset!r}: choose from {', '.join(get_args(DisPreset))}")
        if self.raft_updates < 1:
            raise ValueError(f"raft_updates must be at least 1, not {self.raft_updates}")

    def describe(self) -> str:
        """Return the method, its parameters and the bound as text, equal for equal numbers; part of the feature spec.

        RAFT's weights are named by the first digits of their sha256, so that a copy of the published file is equal to it.
        Raises: WeightsError if `raft_weights` is not a file.
        """
        if self.method in ("tvl1", "tvl1_opencv"):
            values: dict[str, str | float] = dataclasses.asdict(self.tvl1)
        elif self.method == "farneback":
            values = dataclasses.asdict(self.farneback)
        elif self.method == "dis":
            values = {"preset": self.dis_preset}
        else:
            values = {"updates": self.raft_updates, "weights": self._weights_digits()}
        texts = {name: value if isinstance(value, str) else f"{value:.10g}" for name, value in values.items()}
        listed = ",".join(f"{name.rstrip('_')}={text}" for name, text in texts.items())
        return f"{self.method}({listed});bound={self.bound_px:.10g};float16"

    def _weights_digits(self) -> str:
        if self.raft_weights == "random":
            return "random:0"
        if self.raft_weights is None:
            return published_digits(self.method)
        path = Path(self.raft_weights).expanduser()
        try:
            return file_sha256(path)[:PUBLISHED_DIGITS]
        except OSError as error:
            raise WeightsError(
                f"{path}: cannot read RAFT's weights ({error.strerror}); name a file, or omit it for torchvision's"
            ) from error


def parse_flow(text: str) -> FlowSpec:
    """Return the spec from the text of `FlowSpec.describe`.

    Raises: ValueError if it is not such a text; WeightsError if it names RAFT weights from a local file.
    """
    match = re.fullmatch(r"(\w+)\((.*)\);bound=([^;]+);float16", text)
    if not match or match[1] not in get_args(FlowMethod):
        raise ValueError(f"{text!r} does not describe optical flow")
    method: FlowMethod = match[1]  # type: ignore[assignment]
    values = dict(part.split("=", 1) for part in match[2].split(","))
    bound_px = float(match[3])
    if method in ("tvl1", "tvl1_opencv"):
        return FlowSpec(method=method, bound_px=bound_px, tvl1=_from_texts(Tvl1Params(), values))
    if method == "farneback":
        return FlowSpec(method=method, bound_px=bound_px, farneback=_from_texts(FarnebackParams(), values))
    if method == "dis":
        return FlowSpec(method=method, bound_px=bound_px, dis_preset=values["preset"])  # type: ignore[arg-type]
    weights = None if values["weights"] == published_digits(method) else "random"
    if weights == "random" and values["weights"] != "random:0":
        raise WeightsError(
            f"the flow was computed with RAFT weights {values['weights']}... from a local file, which is not known here"
        )
    return FlowSpec(method=method, bound_px=bound_px, raft_updates=int(values["updates"]), raft_weights=weights)


def _from_texts(defaults: Any, texts: dict[str, str]) -> Any:
    """Return the parameters with the values that `describe` printed, each with its default's type."""
    fields = {f.name: type(getattr(defaults, f.name)) for f in dataclasses.fields(defaults)}
    return dataclasses.replace(defaults, **{name: kind(texts[name.rstrip("_")]) for name, kind in fields.items()})


def published_digits(method: str) -> str:
    """Return the first digits of the sha256 of RAFT's published weights, from their file name."""
    return RAFT_URLS[method].removesuffix(".pth").rsplit("-", 1)[1]
