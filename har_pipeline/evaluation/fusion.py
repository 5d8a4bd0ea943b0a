"""Late fusion: the class probabilities of several runs joined by video id and combined by a rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax

from har_pipeline.core.errors import RunError
from har_pipeline.core.records import Scores

# Low enough to leave the product of two softmaxes as it is; where every class has been given 0 by some run (votes,
# rounded files), the runs' other probabilities still decide.
FLOOR = 1e-12


LOG_TEMPERATURE = 4.0


PRIOR_DEVIATION = float(np.log(2))


# A temperature or weights fitted on fewer validation videos are said to rest on few.
FEW = 30


EM_STEPS = 500


PARTS = ("val", "test")


Key = tuple[str, int, int, str]


FoldSeed = tuple[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One run that takes part: its name, its scores of all folds and repeats, and what it has learned from.

    learned_from: the training and validation ids of each fold; empty if they are not known, as of a foreign scores
    file. stream: of its features, empty if unknown. notes: what a reader must know of the run.
    """

    name: str
    scores: Scores
    learned_from: Mapping[int, frozenset[str]] = field(default_factory=dict)
    stream: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """The rows that all S members have, sorted by part, fold, repeat and video id.

    probabilities: (S, R, K) float64, columns as in `classes`; labels: (R,) int64 class numbers; keys: (part, fold, seed,
    video id) of each row. missing: for each part and member, the ids that others have and it has not in some repeat: they
    are left out of that fold in every repeat, so that all repeats are of the same videos. notes: repeats that were left
    out, members of one repeat that stand for several, and the members' own.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    keys: tuple[Key, ...]
    labels: np.ndarray
    probabilities: np.ndarray
    missing: Mapping[str, Mapping[str, tuple[str, ...]]]
    notes: tuple[str, ...] = ()

    def rows(self, part: str, fold_seed: FoldSeed | None = None) -> np.ndarray:
        """Return the row numbers of a part, of one fold and repeat where given; (n,) int64."""
        wanted = [
            row
            for row, (own, fold, seed, _) in enumerate(self.keys)
            if own == part and (fold_seed is None or fold_seed == (fold, seed))
        ]
        return np.array(wanted, np.int64)

    def fold_seeds(self, part: str = "test") -> list[FoldSeed]:
        """Return the (fold, seed) pairs that have rows of a part, sorted."""
        return sorted({(fold, seed) for own, fold, seed, _ in self.keys if own == part})

    def scores(self, probabilities: np.ndarray) -> Scores:
        """Return (R, K) fused probabilities as scores."""
        return Scores(
            video_ids=tuple(key[3] for key in self.keys),
            labels=tuple(self.classes[label] for label in self.labels),
            classes=self.classes,
            probabilities=probabilities,
            part=tuple(key[0] for key in self.keys),
            fold=tuple(key[1] for key in self.keys),
            seed=tuple(key[2] for key in self.keys),
        )


def sum_rule(probabilities: np.ndarray) -> np.ndarray:
    """Return the mean over members of (S, R, K) probabilities: (R, K). Source: Lakhal 2018, section 3.2, element-wise sum."""
    return probabilities.mean(axis=0)


def weighted_rule(probabilities: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the weighted mean over members of (S, R, K) probabilities: (R, K).

    Raises: RunError unless there is one finite weight >= 0 per member and one of them is above 0.
    Source: Lakhal 2018, table 2; weights 1.5 for flow and 1 for RGB from TSN (Wang 2016).
    """
    values = np.asarray(weights, np.float64)
    if values.shape != (len(probabilities),):
        raise RunError(f"{values.size} weights for {len(probabilities)} runs: give one per run, in their order")
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        raise RunError(f"weights must be finite, not negative and not all 0, but are {values.tolist()}")
    return np.tensordot(values / values.sum(), probabilities, axes=1)


def product_rule(probabilities: np.ndarray, floor: float = FLOOR) -> np.ndarray:
    """Return the normalised product over members of (S, R, K) probabilities, none below `floor`: (R, K).

    Computed as a sum of logarithms. Source: Lakhal 2018, section 3.2, element-wise product; the floor is ours.
    """
    return softmax(np.log(np.maximum(probabilities, floor)).sum(axis=0), axis=1)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return (R, K) probabilities whose logarithms are divided by `temperature`; above 1 they become less certain."""
    return softmax(np.log(np.maximum(probabilities, FLOOR)) / temperature, axis=1)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of -log p(true class) in nats, each p no less than the floor."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], FLOOR)).mean())


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature in [e^-4, e^4] of the highest posterior for (R, K) rows; 1 if none does better.

    Two imaginary videos, one that is right and one that is the runner-up's, and a normal prior of the logarithm (deviation
    log 2) keep a few rows that are all right from claiming certainty; they weigh 2 videos, whatever R.
    Source: Guo et al. 2017, On calibration of modern neural networks, section 4.2; the imaginary videos follow Platt 1999,
    Probabilistic outputs for support vector machines, section 2.2.
    """
    rivals = probabilities.copy()
    rivals[np.arange(len(labels)), labels] = -1
    runner_up = rivals.argmax(axis=1)

    def loss(log_temperature: float) -> float:
        scaled = apply_temperature(probabilities, float(np.exp(log_temperature)))
        right, wrong = negative_log_likelihood(scaled, labels), negative_log_likelihood(scaled, runner_up)
        return (len(labels) + 1) * right + wrong + (log_temperature / PRIOR_DEVIATION) ** 2 / 2

    found = minimize_scalar(loss, bounds=(-LOG_TEMPERATURE, LOG_TEMPERATURE), method="bounded")
    return float(np.exp(found.x)) if found.fun < loss(0.0) else 1.0


def learn_weights(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return (S,) weights, sum 1, that maximise the likelihood of the true classes under the weighted mean.

    Expectation maximisation of a mixture, from equal weights, with one imaginary video per member, so that few
    validation videos do not silence a member.
    """
    members = len(probabilities)
    true = np.maximum(probabilities[:, np.arange(len(labels)), labels], FLOOR)
    weights = np.full(members, 1 / members)
    for _ in range(EM_STEPS):
        shares = weights[:, None] * true
        updated = (shares / shares.sum(axis=0)).sum(axis=1) + 1
        weights = updated / updated.sum()
    return weights


def join(members: Sequence[Member]) -> Joined:
    """Return the validation and test rows that all members have, matched by part, video id, fold and repeat.

    A member with one repeat pairs with every repeat of the others; where no member has several, seeds need not agree
    and the first member's stands in the result. Repeats that another member with several has not are left out, and videos
    that a member has not in all the others (see `Joined`).
    Raises: RunError if there are fewer than two members or two of one name, class sets or labels differ, a row stands
    twice, probabilities are none, one run learned from another's test videos, or no test row is common to all.
    """
    if len(members) < 2:
        raise RunError("fusion takes two runs or more")
    names = tuple(member.name for member in members)
    if len(set(names)) < len(names):
        raise RunError(f"a run is named twice: {', '.join(names)}")
    classes = members[0].scores.classes
    for member in members:
        _check_member(member, classes, names[0])
    check_leakage(members)
    seeds, left_out = _target_seeds(members)
    tables = [_rows_by_key(member, seeds) for member in members]
    common = _common_keys(tables)
    if not any(key[0] == "test" for key in common):
        raise RunError(f"no test video stands in all runs at the same fold: {'; '.join(map(_extent, members))}")
    labels = _common_labels(members, tables, common)
    aligned = [
        _in_order(member.scores, classes)[[table[key] for key in common]]
        for member, table in zip(members, tables, strict=True)
    ]
    number = {label: k for k, label in enumerate(classes)}
    return Joined(
        names=names,
        classes=classes,
        keys=tuple(common),
        labels=np.array([number[label] for label in labels], np.int64),
        probabilities=np.stack(aligned),
        missing={part: _missing(part, names, tables) for part in PARTS},
        notes=(*left_out, *(f"{member.name}: {text}" for member in members for text in member.notes)),
    )


def check_leakage(members: Sequence[Member]) -> None:
    """Raise RunError if a member learned from (trained or validated on) a video that another tests in the same fold."""
    for learner in members:
        for tester in members:
            tests: dict[int, set[str]] = {}
            for video_id, part, fold in zip(
                tester.scores.video_ids, tester.scores.part, tester.scores.fold, strict=True
            ):
                if part == "test":
                    tests.setdefault(fold, set()).add(video_id)
            for fold, ids in learner.learned_from.items():
                if leaked := sorted(ids & tests.get(fold, set())):
                    raise RunError(
                        f"leakage: {learner.name} learned from {len(leaked)} videos that {tester.name} tests in fold "
                        f"{fold} ({', '.join(leaked[:3])}): train both on the same split (`har train --split-file`)"
                    )


def calibrate(joined: Joined) -> tuple[Joined, dict[FoldSeed, list[float]]]:
    """Return the rows with calibrated probabilities, and the members' temperatures of each fold and repeat.

    Each temperature is fitted on the validation rows of its own fold and repeat. Raises: RunError if there are none.
    """
    probabilities, temperatures = joined.probabilities.copy(), {}
    for fold_seed in joined.fold_seeds():
        val = _validation_rows(joined, fold_seed)
        rows = np.concatenate([val, joined.rows("test", fold_seed)])
        fitted = [fit_temperature(member[val], joined.labels[val]) for member in joined.probabilities]
        for number, temperature in enumerate(fitted):
            probabilities[number, rows] = apply_temperature(joined.probabilities[number, rows], temperature)
        temperatures[fold_seed] = fitted
    return dataclasses.replace(joined, probabilities=probabilities), temperatures


def learned_rule(joined: Joined) -> tuple[np.ndarray, dict[FoldSeed, list[float]]]:
    """Return (R, K) weighted means with learned weights, and the weights of each fold and repeat.

    They are learned from the validation rows of their own fold and repeat only: another fold's validation videos may
    be this one's test videos. Raises: RunError if a fold has none.
    """
    fused, learned = sum_rule(joined.probabilities), {}
    for fold_seed in joined.fold_seeds():
        val = _validation_rows(joined, fold_seed)
        weights = learn_weights(joined.probabilities[:, val], joined.labels[val])
        rows = np.concatenate([val, joined.rows("test", fold_seed)])
        fused[rows] = weighted_rule(joined.probabilities[:, rows], weights)
        learned[fold_seed] = weights.tolist()
    return fused, learned


def fuse(members: Sequence[Member], rule: str = "product", weights: Sequence[float] | None = None) -> Scores:
    """Return the fused scores of the rows that all members have.

    rule: `sum`, `product`, `weighted` (needs weights) or `learned` (weights learned on validation rows).
    Raises: RunError as `join` does, or if the rule and its weights do not fit.
    """
    joined = join(members)
    if rule == "weighted" and weights is None:
        raise RunError("the rule `weighted` needs one weight per run")
    rules: dict[str, Callable[[], np.ndarray]] = {
        "sum": lambda: sum_rule(joined.probabilities),
        "product": lambda: product_rule(joined.probabilities),
        "weighted": lambda: weighted_rule(joined.probabilities, weights or ()),
        "learned": lambda: learned_rule(joined)[0],
    }
    if rule not in rules:
        raise RunError(f"unknown rule {rule!r}; there are: {', '.join(rules)}")
    return joined.scores(rules[rule]())


def _check_member(member: Member, classes: tuple[str, ...], first: str) -> None:
    scores = member.scores
    if differing := sorted(set(scores.classes) ^ set(classes)):
        raise RunError(
            f"{member.name} and {first} know different classes (differing: {', '.join(differing[:5])}): "
            "only runs of the same classes can be put together"
        )
    if unknown := sorted(set(scores.labels) - set(classes)):
        raise RunError(f"{member.name}: labels {unknown[:5]} are not among its classes")
    wrong = (scores.probabilities < 0).any(axis=1) | (np.abs(scores.probabilities.sum(axis=1) - 1) > 1e-3)
    if wrong.any():
        video_id = scores.video_ids[int(wrong.argmax())]
        raise RunError(f"{member.name}: the scores of {video_id} are no probabilities (>= 0, sum 1); apply a softmax")


def _target_seeds(members: Sequence[Member]) -> tuple[tuple[int, ...], list[str]]:
    """Return the repeats of the result, and what has to be said of them."""
    own = {member.name: set(member.scores.seed) for member in members}
    several = {name: seeds for name, seeds in own.items() if len(seeds) > 1}
    if not several:
        return tuple(sorted(own[members[0].name])), []
    shared = set.intersection(*several.values())
    notes = [
        f"{name}: the repeats of the seeds {', '.join(map(str, sorted(seeds - shared)))} are left out, as other runs lack them"
        for name, seeds in several.items()
        if shared and seeds - shared
    ]
    if len(shared) > 1:
        notes += [
            f"{name} has one repeat, which stands for each of the {len(shared)} repeats of the others: it has no deviation"
            for name in own
            if name not in several
        ]
    return tuple(sorted(shared)), notes


def _rows_by_key(member: Member, seeds: Sequence[int]) -> dict[Key, int]:
    """Return the row of each key of a repeat of the result."""
    scores, table = member.scores, {}
    single = len(set(scores.seed)) == 1
    rows = zip(scores.part, scores.fold, scores.seed, scores.video_ids, strict=True)
    for row, (part, fold, own_seed, video_id) in enumerate(rows):
        if part not in PARTS:
            continue
        for seed in seeds if single else [own_seed] if own_seed in seeds else []:
            key = (part, fold, seed, video_id)
            if key in table:
                raise RunError(f"{member.name}: {video_id} stands twice in the {part} scores of fold {fold}")
            table[key] = row
    return table


def _common_keys(tables: Sequence[Mapping[Key, int]]) -> list[Key]:
    """Return the keys that all members have, less those of videos that one lacks in another repeat of the same fold."""
    common = set(tables[0]).intersection(*tables[1:])
    lacking = {(part, fold, video_id) for part, fold, _, video_id in set().union(*tables) - common}
    return sorted(key for key in common if (key[0], key[1], key[3]) not in lacking)


def _common_labels(members: Sequence[Member], tables: Sequence[Mapping[Key, int]], keys: Sequence[Key]) -> list[str]:
    first = [members[0].scores.labels[tables[0][key]] for key in keys]
    for member, table in zip(members[1:], tables[1:], strict=True):
        for key, expected in zip(keys, first, strict=True):
            if (found := member.scores.labels[table[key]]) != expected:
                raise RunError(
                    f"{key[3]} is {expected!r} in {members[0].name} but {found!r} in {member.name}: "
                    "the runs come from different manifests"
                )
    return first


def _in_order(scores: Scores, classes: tuple[str, ...]) -> np.ndarray:
    return scores.probabilities[:, [scores.classes.index(label) for label in classes]]


def _missing(part: str, names: Sequence[str], tables: Sequence[Mapping[Key, int]]) -> dict[str, tuple[str, ...]]:
    every = {key for table in tables for key in table if key[0] == part}
    return {
        name: tuple(sorted({key[3] for key in every - table.keys()})) for name, table in zip(names, tables, strict=True)
    }


def _extent(member: Member) -> str:
    tests = [row for row, part in enumerate(member.scores.part) if part == "test"]
    folds = sorted({member.scores.fold[row] for row in tests})
    seeds = sorted({member.scores.seed[row] for row in tests})
    return f"{member.name} has {len(tests)} test rows of folds {folds[:8]} and seeds {seeds[:8]}"


def _validation_rows(joined: Joined, fold_seed: FoldSeed) -> np.ndarray:
    rows = joined.rows("val", fold_seed)
    if not len(rows):
        raise RunError(
            f"fold {fold_seed[0]}, seed {fold_seed[1]}: no validation video is common to {', '.join(joined.names)}; "
            "weights and temperatures are fitted on those only: train with --val-fraction"
        )
    return rows
