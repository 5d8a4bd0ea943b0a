"""Late fusion: rules that combine the class probabilities of several runs, and the weights and temperatures they use."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from har_pipeline.core.errors import RunError
from har_pipeline.evaluation.members import FoldSeed, Joined

# Low enough to leave the product of two softmaxes as it is; where every class got 0 from some run (votes, rounded files),
# the probabilities of the other runs still decide.
FLOOR = 1e-12
LOG_TEMPERATURE = 4.0
PRIOR_DEVIATION = float(np.log(2))

# Fewer validation videos make a fitted temperature or weights uncertain.
FEW = 30
EM_STEPS = 500


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
    from scipy.special import softmax  # scipy is slow to import

    return softmax(np.log(np.maximum(probabilities, floor)).sum(axis=0), axis=1)


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return (R, K) probabilities whose logarithms are divided by `temperature`; above 1 they become less certain."""
    from scipy.special import softmax

    return softmax(np.log(np.maximum(probabilities, FLOOR)) / temperature, axis=1)


def negative_log_likelihood(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean of -log p(true class) in nats, each p at least the floor."""
    return float(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], FLOOR)).mean())


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature in [e^-4, e^4] of the highest posterior for (R, K) rows; 1 if none does better.

    Two imaginary videos, one predicted right and one whose true class is the runner-up, and a normal prior of the logarithm
    (deviation log 2) keep a few rows that are all right from claiming certainty; they weigh as 2 videos, for any R.
    Source: Guo et al. 2017, On calibration of modern neural networks, section 4.2; the imaginary videos follow Platt 1999,
    Probabilistic outputs for support vector machines, section 2.2.
    """
    from scipy.optimize import minimize_scalar

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

    Expectation maximisation of a mixture, from equal weights, with one imaginary video per member, so that with few
    validation videos no member gets weight 0.
    """
    members = len(probabilities)
    true = np.maximum(probabilities[:, np.arange(len(labels)), labels], FLOOR)
    weights = np.full(members, 1 / members)
    for _ in range(EM_STEPS):
        shares = weights[:, None] * true
        updated = (shares / shares.sum(axis=0)).sum(axis=1) + 1
        weights = updated / updated.sum()
    return weights


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

    Weights are learned from the validation rows of their own fold and repeat only: another fold's validation videos may
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


def _validation_rows(joined: Joined, fold_seed: FoldSeed) -> np.ndarray:
    rows = joined.rows("val", fold_seed)
    if not len(rows):
        raise RunError(
            f"fold {fold_seed[0]}, seed {fold_seed[1]}: no validation video is common to {', '.join(joined.names)}; "
            "weights and temperatures are fitted on those only: train with --val-fraction"
        )
    return rows
