"""Learning rates over training: the two published schedules, and plain ones for small sets; pure functions.

Positions are epochs done, as a fraction: 0 at the first step of the first epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

STATELESS_EPOCHS, FINE_TUNE_EPOCHS, STATEFUL_EPOCHS = 48, 27, 25
FINE_TUNE_RATE, FINE_TUNE_PATIENCE = 2e-4, 4
CYCLE_EPOCHS = 7.0

# Of stateful training: first epoch (from 1) and rate; then the last rate is halved every few epochs.
STATEFUL_STEPS = ((1, 9e-5), (4, 3e-5), (8, 8e-6), (15, 4e-6))
STATEFUL_HALVING = 4
PEAK_STATELESS, PEAK_STATEFUL = 9.8e-4, 9e-5

# Of the 3D-ConvNet, ours: the paper names neither a rate nor a number of epochs, and no momentum but that there is one.
RATE_CONVNET3D, MOMENTUM_CONVNET3D, CONVNET3D_EPOCHS = 2.5e-3, 0.9, 100

# Of one-cycle: share of the epochs that the rate grows in, and where it starts and ends as shares of the peak.
WARM_UP, START_SHARE, END_SHARE = 0.3, 0.04, 0.01


def triangle(done: float, low: float, high: float, period: float) -> float:
    """Return a rate that moves linearly from `low` up to `high` and back every `period` epochs. Source: Smith 2017."""
    phase = done % period / period
    return low + (high - low) * (1 - abs(2 * phase - 1))


def stateless_rate(done: float, cycle_epochs: float = CYCLE_EPOCHS) -> float:
    """Return the published rate of stateless training in its first 48 epochs.

    Cyclic and linear between 8e-5 and 9.8e-4 for 21 epochs, then between 1e-5 and 1e-4 to epoch 44, then 1e-5. The period
    is not published. With 7 epochs a cycle ends at epoch 21, and half a cycle is 3.5 epochs: Smith recommends 2 to 10.
    Source: Sanchez-Caballero 2020, section 4.1 and figure 6; Smith 2017.
    """
    if done < 21:
        return triangle(done, 8e-5, PEAK_STATELESS, cycle_epochs)
    if done < 44:
        return triangle(done - 21, 1e-5, 1e-4, cycle_epochs)
    return 1e-5


def fine_tune_rate(halvings: int) -> float:
    """Return the rate of the 27 epochs that continue from the best of the 48: 2e-4, halved `halvings` times."""
    return FINE_TUNE_RATE * 0.5**halvings


def halvings(accuracies: Sequence[float], patience: int = FINE_TUNE_PATIENCE) -> int:
    """Return how often `patience` epochs in a row had no accuracy above the best so far.

    accuracies: validation accuracies of the epochs so far. The count restarts each time, as in Keras's ReduceLROnPlateau.
    """
    best, since, count = float("-inf"), 0, 0
    for accuracy in accuracies:
        if accuracy > best:
            best, since = accuracy, 0
            continue
        since += 1
        if since == patience:
            count, since = count + 1, 0
    return count


def no_longer_rises(accuracies: Sequence[float], patience: int) -> bool:
    """Return whether none of the last `patience` accuracies is above the best before them.

    Source: Baccouche 2011, section 4.2: "stopping when performances on training set no longer rise".
    """
    before, last = accuracies[:-patience], accuracies[-patience:]
    return bool(before) and max(last) <= max(before)


def stateful_rate(done: float) -> float:
    """Return the published rate of stateful training: 9e-5, 3e-5 from epoch 4, 8e-6 from 8, 4e-6 from 15, then halved.

    Halved every 4 epochs. Epochs are numbered from 1, as in history.csv; the paper does not say what it numbers from.
    Source: Sanchez-Caballero 2020, section 4.2 and figure 10.
    """
    epoch = int(done + 1e-9) + 1
    first, rate = next((first, rate) for first, rate in reversed(STATEFUL_STEPS) if first <= epoch)
    return rate * 0.5 ** ((epoch - first) // STATEFUL_HALVING) if first == STATEFUL_STEPS[-1][0] else rate


def one_cycle_rate(done: float, epochs: int, peak: float) -> float:
    """Return a rate that grows linearly from 4 % of `peak` over the first 30 % of the epochs and falls to 1 % of it."""
    share = done / epochs
    if share < WARM_UP:
        return peak * (START_SHARE + (1 - START_SHARE) * share / WARM_UP)
    return peak * (1 - (1 - END_SHARE) * (share - WARM_UP) / (1 - WARM_UP))
