"""Prints the bounds that PyPI's MLRsearch finds on simulated devices, as JSON: what tools/src/search is tested against.

pip install MLRsearch==1.2.1. The output is kept in mlrsearch_bounds.json beside this file. The device is the one of
tools/src/search/simulated.rs: what a trial loses depends on the seed, on the load, and on how often that load was tried.
"""
import json

import MLRsearch as mlr

MIN, MAX, WIDTH = 10_000.0, 1_000_000.0, 0.005
GOALS = [
    ("ndr", mlr.SearchGoal(loss_ratio=0.0, exceed_ratio=0.5, relative_width=WIDTH, initial_trial_duration=1.0,
                           final_trial_duration=1.0, duration_sum=21.0)),
    ("pdr", mlr.SearchGoal(loss_ratio=0.005, exceed_ratio=0.5, relative_width=WIDTH, initial_trial_duration=1.0,
                           final_trial_duration=1.0, duration_sum=21.0)),
]
MASK = (1 << 64) - 1


def mixed(number):
    """One step of splitmix64."""
    number = (number + 0x9E3779B97F4A7C15) & MASK
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & MASK
    return number ^ (number >> 31)


def uniform(*parts):
    number = 0
    for part in parts:
        number = mixed(number ^ part)
    return (number >> 11) / (1 << 53)


class Device(mlr.AbstractMeasurer):
    """Forwards up to a capacity that varies by 1 %; one trial second in twenty loses some datagrams for no reason."""

    def __init__(self, seed):
        self.seed, self.tried, self.trials = seed, {}, 0
        self.capacity = 50_000.0 * (1.0 + 5.0 * uniform(seed, 0, 0, 0))

    def measure(self, intended_duration, intended_load):
        key = int(intended_load + 0.5)
        index = self.tried.get(key, 0)
        self.tried[key], self.trials = index + 1, self.trials + 1
        jitter = 0.01 * (2.0 * uniform(self.seed, key, index, 1) - 1.0)
        sent = int(intended_load * intended_duration)
        lost = max(0, sent - int(self.capacity * (1.0 + jitter) * intended_duration))
        if uniform(self.seed, key, index, 2) < 0.05 * intended_duration:
            lost += 1 + int(20.0 * uniform(self.seed, key, index, 3))
        return mlr.MeasurementResult(intended_duration=intended_duration, intended_load=intended_load,
                                     offered_count=sent, loss_count=min(lost, sent))


def search(seed):
    device = Device(seed)
    config = mlr.Config()
    config.goals = [goal for _, goal in GOALS]
    config.min_load, config.max_load = MIN, MAX
    config.warmup_duration = 0.0
    found = mlr.MultipleLossRatioSearch(config=config).search(device, debug=lambda _: None)
    bounds = {"seed": seed, "capacity": device.capacity, "trials": device.trials}
    for name, goal in GOALS:
        result = found[goal]
        bounds[name] = {
            "lower": float(result.relevant_lower_bound),
            "upper": float(result.relevant_upper_bound),
            "throughput": float(result.conditional_throughput),
        }
    return bounds


print(json.dumps({"min": MIN, "max": MAX, "width": WIDTH, "devices": [search(seed) for seed in range(1, 21)]}, indent=1))
