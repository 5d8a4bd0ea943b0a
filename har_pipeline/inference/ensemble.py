"""Several runs as one classifier: the folds and repeats of a job, a fusion as `har fuse` wrote it, or runs given together."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.core.files import read_json
from har_pipeline.evaluation.fusion import apply_temperature, product_rule, sum_rule, weighted_rule
from har_pipeline.evaluation.members import FUSION_JSON, MEMBERS, FoldSeed, fold_seed_name, run_folders, scores_hash
from har_pipeline.evaluation.plan import merge_notes, no_run_error, require_one_job, unfinished
from har_pipeline.evaluation.run_folder import RUN_JSON, SCORES, recover_run
from har_pipeline.inference.load import HeadRun, NetworkRun, load_run

# Rules that need nothing but the members' probabilities.
PlainRule = Literal["sum", "product"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ensemble:
    """Classifiers whose class probabilities are combined: runs, or ensembles in their turn.

    Raises: RunError if their classes differ.
    """

    path: Path  # of the folder that holds or describes them; of runs given together, the first one's
    members: tuple[Classifier, ...]
    product: bool = False  # their normalised product; else their mean
    weights: tuple[float, ...] | None = None  # of the mean, one per member; None: all the same
    temperatures: tuple[float, ...] | None = None  # that divide the logarithms of the members' probabilities before
    notes: tuple[str, ...] = ()  # what a reader must know, such as missing folds

    def __post_init__(self) -> None:
        for member in self.members[1:]:
            if differing := sorted(set(member.classes) ^ set(self.classes)):
                raise RunError(
                    f"{member.path} and {self.members[0].path} have different classes (differing: "
                    f"{', '.join(differing[:5])}): only runs of the same classes can be joined"
                )

    @property
    def classes(self) -> tuple[str, ...]:
        """The K classes, in the order of the first member's."""
        return self.members[0].classes

    @property
    def random_weights(self) -> bool:
        """Whether features of some member come from a net with random weights."""
        return any(member.random_weights for member in self.members)

    def combine(self, probabilities: Sequence[np.ndarray]) -> np.ndarray:
        """Return (R, K) probabilities from those (R, K) of each member, which are in the order of its own classes."""
        aligned = [
            own[:, [member.classes.index(label) for label in self.classes]]
            for member, own in zip(self.members, probabilities, strict=True)
        ]
        if self.temperatures is not None:
            pairs = zip(aligned, self.temperatures, strict=True)
            aligned = [apply_temperature(own, temperature) for own, temperature in pairs]
        stacked = np.stack(aligned)
        if self.product:
            return product_rule(stacked)
        return sum_rule(stacked) if self.weights is None else weighted_rule(stacked, self.weights)


Classifier = HeadRun | NetworkRun | Ensemble


def load_classifier(paths: Path | str | Sequence[Path | str], rule: PlainRule = "product") -> Classifier:
    """Return the run, or the runs of a job or a fusion, of one or several folders; several are fused by `rule`.

    A job gives the mean over its folds and repeats. A fusion has the members, rule, weights and temperatures that `har fuse`
    wrote, in each fold and repeat, and gives the mean over these.
    Raises: RunError as `load_run`, or if a folder holds no run, is given twice, or a fusion's runs are gone or have changed.
    """
    folders = [Path(paths)] if isinstance(paths, Path | str) else [Path(path) for path in paths]
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise RunError("the same run is given twice")
    loaded: dict[Path, HeadRun | NetworkRun] = {}
    found = []
    for folder in folders:
        nodes = _of_folds(folder, loaded)
        members, notes = tuple(nodes.values()), tuple(unfinished(folder))
        together = len(members) > 1 or notes
        found.append(Ensemble(path=folder, members=members, notes=notes) if together else members[0])
    if len(found) == 1:
        return found[0]
    return Ensemble(path=folders[0], members=tuple(found), product=rule == "product")


def runs_of(classifier: Classifier) -> list[HeadRun | NetworkRun]:
    """Return the runs of a classifier, each once."""
    return list({run.path: run for run in _runs(classifier)}.values())


def notes_of(classifier: Classifier) -> list[str]:
    """Return what a reader of an ensemble's answers must know, beside the notes of its runs."""
    if not isinstance(classifier, Ensemble):
        return []
    inner = itertools.chain.from_iterable(notes_of(member) for member in classifier.members)
    return [*(f"{classifier.path}: {text}" for text in classifier.notes), *merge_notes({"": list(inner)})]


def class_probabilities_of(classifier: Classifier, of_run: Mapping[Path, np.ndarray]) -> np.ndarray:
    """Return (R, K) probabilities; of_run: the path of each run -> its own (R, K)."""
    if not isinstance(classifier, Ensemble):
        return of_run[classifier.path]
    return classifier.combine([class_probabilities_of(member, of_run) for member in classifier.members])


def _runs(classifier: Classifier) -> Iterator[HeadRun | NetworkRun]:
    if isinstance(classifier, Ensemble):
        for member in classifier.members:
            yield from _runs(member)
    else:
        yield classifier


def _load(folder: Path, loaded: dict[Path, HeadRun | NetworkRun]) -> HeadRun | NetworkRun:
    """Return a run, which is read once however often it is a member."""
    key = folder.resolve()
    if key not in loaded:
        loaded[key] = load_run(folder)
    return loaded[key]


def _of_folds(folder: Path, loaded: dict[Path, HeadRun | NetworkRun]) -> dict[FoldSeed, Classifier]:
    """Return the classifier of each fold and repeat of a run, a job or a fusion."""
    recover_run(folder)
    if not (folder / RUN_JSON).exists() and (folder / FUSION_JSON).exists():
        return _fused(folder, loaded)
    runs = [_load(one, loaded) for one in run_folders(folder)]
    if not runs:
        if (folder / SCORES).is_file():
            raise RunError(f"{folder} holds scores only: to predict, name the folder of the run that made them")
        raise no_run_error(folder)
    require_one_job(runs)
    return {(run.split.index, run.config.seed): run for run in runs}


def _fused(folder: Path, loaded: dict[Path, HeadRun | NetworkRun]) -> dict[FoldSeed, Classifier]:
    """Return what fuses the members of a fusion in each of its folds and repeats."""
    path = folder / FUSION_JSON
    info = read_json(path, RunError, "fuse again with `har fuse`")
    if MEMBERS not in info:
        raise RunError(f"{path} does not name its runs, as an older version wrote it: fuse again with `har fuse`")
    try:
        rule = info["chosen"]
        folds, seeds = list(map(int, info["folds"])), list(map(int, info["seeds"]))
        places = [(_member_folder(folder, member), member["scores_sha256"]) for member in info[MEMBERS]]
        plain = {"sum": False, "product": True, "weighted": False, "learned": False}
        product = plain[rule]
        settings = [
            (fold, seed, _numbers(info, rule, key), _floats(info["temperatures"].get(key)))
            for fold in folds
            for seed in seeds
            for key in [fold_seed_name(fold, seed)]
        ]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RunError(f"{path} is malformed ({error!r}): fuse again with `har fuse`") from error
    members = []
    for place, sha256 in places:
        nodes = _of_folds(place, loaded)
        if scores_hash(place) != sha256:
            raise RunError(f"{place} has changed since {path} was written: fuse again with `har fuse`")
        members.append(nodes)
    found: dict[FoldSeed, Classifier] = {}
    for fold, seed, weights, temperatures in settings:
        chosen = [_node(nodes, fold, seed, place, path) for nodes, (place, _) in zip(members, places, strict=True)]
        found[fold, seed] = Ensemble(
            path=folder, members=tuple(chosen), product=product, weights=weights, temperatures=temperatures
        )
    return found


def _member_folder(folder: Path, member: Mapping[str, Any]) -> Path:
    """Return where a member of a fusion is; its path is relative to the fusion, so that both may be moved together."""
    if member["path"] is None:
        raise RunError(
            f"{folder / FUSION_JSON} does not say where {member['name']} is: fuse run folders to predict with it"
        )
    place = folder.resolve() / member["path"]
    if not place.exists():
        raise RunError(
            f"{folder}: its run {member['name']} is not at {place.resolve()}: move the fusion together with its runs, or "
            "fuse again with `har fuse`"
        )
    return place.resolve()


def _numbers(info: Mapping[str, Any], rule: str, key: str) -> tuple[float, ...] | None:
    if rule not in ("weighted", "learned"):
        return None
    return _floats(info["weights"] if rule == "weighted" else info["learned_weights"][key])


def _floats(values: Sequence[float] | None) -> tuple[float, ...] | None:
    return None if values is None else tuple(map(float, values))


def _node(nodes: Mapping[FoldSeed, Classifier], fold: int, seed: int, place: Path, path: Path) -> Classifier:
    """Return a member's part in a fold and repeat; a member with one repeat stands in all of them."""
    seeds = {own for _, own in nodes}
    found = nodes.get((fold, next(iter(seeds)) if len(seeds) == 1 else seed))
    if found is None:
        raise RunError(f"{place} lacks fold {fold} of seed {seed}, which {path} has: fuse again with `har fuse`")
    return found
