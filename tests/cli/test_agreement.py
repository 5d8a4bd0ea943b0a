"""Options of one name have one default and one help text in all commands, but for those listed here with the reason."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from har_pipeline.cli import app_of

# Option -> why it is not the same everywhere.
EXCEPTIONS = {
    "--batch-size": "clips of a net, videos of a head, videos of a network: each has a size of its own, the papers'",
    "--clip-stride": "of the clips of a net, whose default is the net's, and of those that vote in convnet3d",
    "--epochs": "of a head (Orozco 2020) and of a network (its own paper's); a sweep takes several",
    "--extractor": "har points draws one of the two handcrafted extractors",
    "--features": "one set or several; those of raw frames are found by their stream",
    "--fps": "har extract resamples videos; har frames says when depth frames were taken, whose files do not",
    "--groups": "har evaluate reports on coarse categories, har compare sorts by them",
    "--head": "har sweep takes several",
    "--learning-rate": "each kind of training has its own",
    "--live": "a switch of har evaluate, a source of har predict",
    "--manifest": "of the fits it is needed; of har evaluate for two of its measurements",
    "--mean-cube": "har predict asks for the one that a run was trained with",
    "--num-layers": "har sweep takes several",
    "--num-steps": "har sweep takes several",
    "--out": "what is written is another thing each time",
    "--patience": "of the validation loss of a head, or of the published schedule of a ConvLSTM",
    "--resize-method": "har extract takes what its net was trained with",
    "--rule": "har predict fuses without a table to choose from, so only by rules that need none",
    "--precision": "of a net in use; of heads, too small to gain by bf16; of networks",
    "--schedule": "heads and networks have different ones",
    "--short-side": "har flow keeps the size, what finds points takes 240 px",
    "--size": "of frames and of motion maps",
    "--split": "har lr-range takes one split",
    "--stream": "what nets see, which files frames come from, what a network reads",
    "--units": "har sweep takes several",
    "--vote": "majority is published for convnet3d; for heads soft is the better one",
    "--weights": "of a net, of the nets of a run, of a rule of fusion",
    "--overwrite": "of runs, of a manifest, of split files",
    "--store": "of raw frames that a network reads, of the features behind a report",
    "--window": "people in the frames of har frames, seconds of har predict",
    "--workers": "of har sweep they train",
}


def commands(command: Any, name: str = "har") -> Iterator[tuple[str, Any]]:
    """Yield the words of every command with the command."""
    for word, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, f"{name} {word}")
    if not hasattr(command, "commands"):
        yield name, command


@pytest.fixture(scope="module")
def variants() -> dict[str, dict[tuple[str, str], list[str]]]:
    """Option -> (default, help text) -> the commands that have it so."""
    found: dict[str, dict[tuple[str, str], list[str]]] = defaultdict(lambda: defaultdict(list))
    for words, command in commands(typer.main.get_command(app_of())):
        for parameter in command.params:
            if parameter.param_type_name == "option":
                name = next(text for text in parameter.opts if text.startswith("--"))
                found[name][repr(parameter.default), parameter.help].append(words)
    return found


def test_options_agree(variants: dict[str, dict[tuple[str, str], list[str]]]) -> None:
    differing = {name: dict(found) for name, found in variants.items() if len(found) > 1 and name not in EXCEPTIONS}
    assert not differing


def test_exceptions_are_needed(variants: dict[str, dict[tuple[str, str], list[str]]]) -> None:
    assert not [name for name in EXCEPTIONS if len(variants[name]) < 2]


@pytest.mark.parametrize(
    ("option", "number"), [("--val-fraction", 8), ("--protocol", 8), ("--seed", 9), ("--device", 8), ("--json", 20)]
)
def test_what_is_compared_is_there(
    option: str, number: int, variants: dict[str, dict[tuple[str, str], list[str]]]
) -> None:
    (words,) = variants[option].values()
    assert len(words) >= number
