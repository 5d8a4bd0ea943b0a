"""Scores and runs that tests of fusion draw."""

from __future__ import annotations

import numpy as np

from har_pipeline.core.records import Scores
from har_pipeline.evaluation.fusion_table import fuse
from har_pipeline.evaluation.members import Member
from har_pipeline.evaluation.scores import stack_scores

A = np.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3]])
B = np.array([[0.2, 0.7, 0.1], [0.1, 0.1, 0.8]])
BOTH = np.stack([A, B])


def scores_of(
    probabilities: np.ndarray,
    labels: str,
    *,
    classes: str = "abc",
    part: str | list[str] = "test",
    fold: int = 0,
    seed: int = 0,
    first: int = 0,
) -> Scores:
    count = len(labels)
    return Scores(
        video_ids=tuple(f"v{first + i}" for i in range(count)),
        labels=tuple(labels),
        classes=tuple(classes),
        probabilities=np.asarray(probabilities, np.float64),
        part=(part,) * count if isinstance(part, str) else tuple(part),
        fold=(fold,) * count,
        seed=(seed,) * count,
    )


def drawn(rng: np.random.Generator, labels: str, strength: float, classes: str = "abc") -> np.ndarray:
    """Probabilities that lean to the true class with the given strength."""
    logits = rng.standard_normal((len(labels), len(classes)))
    logits[np.arange(len(labels)), [classes.index(label) for label in labels]] += strength
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def repeats(probabilities: list[np.ndarray], labels: str, seeds: list[int]) -> Scores:
    return stack_scores([scores_of(p, labels, seed=seed) for p, seed in zip(probabilities, seeds, strict=True)])


def pair(seed: int, *, strengths: tuple[float, float] = (1.5, 1.5), val: int = 40, test: int = 60) -> list[Member]:
    rng = np.random.default_rng(seed)
    labels = "".join(rng.choice(list("abc"), val + test))
    parts = ["val"] * val + ["test"] * test
    return [
        Member(
            name=name,
            scores=scores_of(drawn(rng, labels, strength), labels, part=parts),
            learned_from={0: frozenset({"t"})},
        )
        for name, strength in zip(("rgb", "flow"), strengths, strict=True)
    ]


def fused(members: list[Member], rule: str = "product", weights: list[float] | None = None) -> Scores:
    """The scores of a rule."""
    return fuse(members, weights=weights, learn=rule == "learned", chosen=rule)[1]
