"""The commands that made the files of benchmarks/results, as docs/results.md shows them below its tables."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# What a record calls it -> the word for a file or folder of the user's, and what that is.
YOURS = {
    "ut_interaction_set1": ("UT_INTERACTION", "folder of UT-Interaction's segmented set 1: `0_1_4.avi` and 59 more"),
    "utd_mhad": ("UTD_MHAD", "folder of UTD-MHAD's depth files: `a1_s1_t1_depth.mat` and more, of subjects 1 to 4"),
    "real": (
        "DATA",
        "folder with `features/ucf101_vgg16_fc6_7classes.npz` (VGG16 fc6 of seven classes of UCF-101) and the official lists "
        "in `splits/ucf101`",
    ),
    "i3d_rgb_kinetics400.safetensors": (
        "I3D_WEIGHTS",
        "weights of I3D on Kinetics-400; without this option the published file is downloaded",
    ),
    "v_BenchPress_g01_c01.avi": ("VIDEO", "`v_BenchPress_g01_c01.avi` of UCF-101"),
}
WIDTH = 116


@dataclass(frozen=True, eq=False)
class Inputs:
    """What some records read, and the commands that make it; names: what a record calls it -> its name here."""

    records: tuple[str, ...]
    commands: tuple[str, ...]
    names: dict[str, str] = field(default_factory=dict)


EARLY = (
    "decided_early",
    "decided_early_baselines",
    "decided_early_video",
    "decided_early_memory",
    "decided_early_motion",
)
PEOPLE = "--depth --subjects 12 --scenario d1 --scenario d3"
UT_MANIFEST = "har manifest build ut_interaction UT_INTERACTION -o ut.csv"
I3D = "--extractor i3d --weights I3D_WEIGHTS"
INPUTS = (
    Inputs(
        (
            *("utd_mhad", "utd_mhad_narrow", "utd_mhad_loso", "utd_mhad_baselines", "utd_mhad_loso_baselines"),
            "utd_mhad_motion",
        ),
        (
            "har manifest build utd_mhad UTD_MHAD -o utd.csv",
            "har frames utd.csv utd.zarr",
        ),
        {
            "manifest.csv": "utd.csv",
            "utd.csv": "utd.csv",
            "store.zarr": "utd.zarr",
            "fin64.zarr": "utd.zarr",
        },
    ),
    Inputs(
        ("synthetic_depth", "synthetic_depth_baselines"),
        (f"har synth depth {PEOPLE}", "har frames depth/manifest.csv depth.zarr"),
        {"manifest.csv": "depth/manifest.csv", "store.zarr": "depth.zarr", "syn64.zarr": "depth.zarr"},
    ),
    Inputs(
        EARLY,
        (
            f"har synth early {PEOPLE} --decided-early",
            "har frames early/manifest.csv early.zarr",
            "har frames early/manifest.csv early48.zarr --size 48",
        ),
        {
            "manifest.csv": "early/manifest.csv",
            "store.zarr": "early.zarr",
            "early64.zarr": "early.zarr",
            "early48.zarr": "early48.zarr",
        },
    ),
    Inputs(
        ("baccouche2011_embedded",),
        ("har synth people --subjects 10",),
        {"manifest.csv": "people/manifest.csv"},
    ),
    # The run of the stateful network that utd_mhad.json keeps.
    Inputs(("live",), (), {"convlstm-stateful": "out/utd_mhad/convlstm-stateful"}),
    Inputs(
        ("residual_depth",),
        ("python pipelines/synthetic_demo.py --out out/synthetic_demo",),
        {
            "python": "python",
            "manifest.csv": "out/synthetic_demo/data/manifest.csv",
            "store.zarr": "out/synthetic_demo/store.zarr",
        },
    ),
    Inputs(
        ("two_stream_ut_interaction",),
        (
            UT_MANIFEST,
            f"har extract ut.csv ut.zarr {I3D} --sampling uniform --num-clips 5 --clip-len 48",
            "har extract ut.csv ut.zarr --extractor tsn_efficientnet_lite0 --stream flow --num-clips 8",
        ),
        {"manifest.csv": "ut.csv", "store.zarr": "ut.zarr"},
    ),
    Inputs(
        ("scaling_ut_interaction", "scaling_embedded", "scaling_fc6", "scaling_fc6_vote", "scaling_streams"),
        (
            "python pipelines/ut_interaction.py UT_INTERACTION --out ut/efficientnet_lite0",
            f"python pipelines/ut_interaction.py UT_INTERACTION --out ut/i3d {I3D}",
            "har extract ut/i3d/manifest.csv ut/streams.zarr --extractor tsn_efficientnet_lite0 --num-clips 8",
            "har extract ut/i3d/manifest.csv ut/streams.zarr --extractor tsn_efficientnet_lite0 --num-clips 8 "
            "--stream flow --flow-method dis",
            "python pipelines/synthetic_demo.py --out out/synthetic_demo",
        ),
        {"ut": "ut", "synth": "out/synthetic_demo"},
    ),
)


def results(name: str) -> dict[str, Any]:
    """Return the content of a results file."""
    content: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))
    return content


def machines() -> dict[str, str]:
    """Return a letter for each machine that made a results file."""
    names = sorted(path.stem for path in (ROOT / "benchmarks" / "results").glob("*.json"))
    found = dict.fromkeys(results(name)["machine"] for name in names)
    return {machine: chr(ord("A") + number) for number, machine in enumerate(sorted(found))}


def legend() -> str:
    """Return the table of what stands in the commands for files of the user's, and of the machines."""
    rows = [f"| `{shown}` | {what} |" for shown, what in YOURS.values()]
    rows += [f"| machine {letter} | {machine} |" for machine, letter in machines().items()]
    return "\n".join(["| in the commands | what |", "|---|---|", *rows])


def command(name: str) -> str:
    """Return the command that made a results file, with names for what lies elsewhere; what it writes goes to out/NAME.

    Raises: ValueError if nothing is known of a file that it reads.
    """
    names = {word: shown for word, (shown, _) in YOURS.items()} | next(
        (inputs.names for inputs in INPUTS if name in inputs.records), {}
    )
    shown = re.sub(r"(--out|-o) <[^>]+>", rf"\1 out/{name}", results(name)["command"])
    if unknown := set(re.findall(r"<([^>]+)>", shown)) - names.keys():
        raise ValueError(
            f"{name}.json: add to docs/commands.py what {', '.join(sorted(unknown))} is, and how it is made"
        )
    return re.sub(r"<([^>]+)>", lambda found: names[found[1]], shown)


def made_by(*names: str) -> str:
    """Return the block of the commands that made these results files, each group after what makes the files that it reads."""
    prepared = {name: inputs for inputs in INPUTS for name in inputs.records}
    nothing = Inputs((), ())
    groups: dict[Inputs, list[str]] = {}
    for name in names:
        groups.setdefault(prepared.get(name, nothing), []).append(name)
    letters = machines()
    blocks = [
        [line for text in inputs.commands for line in _wrapped(text)]
        + [line for name in own for line in _lines(name, letters)]
        for inputs, own in groups.items()
    ]
    return "\n".join(["```sh", "\n\n".join("\n".join(lines) for lines in blocks), "```"])


def _lines(name: str, letters: dict[str, str]) -> list[str]:
    content = results(name)
    return [
        f"# {name}.json: commit {content['commit']}, machine {letters[content['machine']]}",
        *_wrapped(command(name)),
    ]


def _wrapped(text: str) -> list[str]:
    """Return a command as lines that a shell reads as one; an option stays with its values."""
    parts: list[str] = []
    for word in shlex.split(text):
        if parts and not word.startswith("-"):
            parts[-1] += f" {shlex.quote(word)}"
        else:
            parts.append(word)
    lines = [parts[0]]
    for part in parts[1:]:
        if len(lines[-1]) + len(part) > WIDTH:
            lines.append(f"    {part}")
        else:
            lines[-1] += f" {part}"
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]
