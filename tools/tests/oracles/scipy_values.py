"""Prints what SciPy says of fixed samples, as JSON: the values that tools/src/statistics is tested against.

Debian: apt-get install python3-scipy. The output is kept in scipy_values.json beside this file.
"""
import json

import numpy
import scipy
from scipy import special, stats

SAMPLES = [
    ([58.9, 61.2, 57.0, 60.3, 59.5], [61.2, 63.9, 60.1, 66.0, 62.4]),
    ([0.12, 0.15, 0.11, 0.19, 0.14, 0.13], [0.12, 0.1, 0.11, 0.16]),
    ([1.0, 2.0, 2.0, 3.0, 5.0], [2.0, 3.0, 3.0, 4.0, 40.0]),
    ([10.2, 9.8, 11.1, 10.5, 9.9, 10.0, 10.7, 10.3], [10.9, 11.4, 10.6, 12.0, 11.7, 11.0, 10.8, 11.2]),
    ([3.0, 1.0], [4.0, 2.0, 6.0]),
]
# None of them makes two splits equal: which of two equal sums is larger is a matter of rounding.
SHIFTS = [-1.51713, -0.02117, 0.0, 0.01337, 0.70717, 1.97531]
PROPORTIONS = [(0, 10), (0, 60_000_000), (3, 60_000_000), (1, 252), (17, 40), (40, 40), (120, 100_000)]


def mean_difference(x, y, axis):
    return numpy.mean(x, axis=axis) - numpy.mean(y, axis=axis)


def permutation(a, b, alternative):
    test = stats.permutation_test(
        (b, a), mean_difference, permutation_type="independent", vectorized=True,
        n_resamples=numpy.inf, alternative=alternative,
    )
    return float(test.pvalue)


def hodges_lehmann(a, b, alpha):
    """The median difference, and the differences between which the exact rank-sum test does not reject a shift.

    Only for samples without ties: the test's exact distribution knows none. Between two neighbouring differences the
    ranks do not change, so one shift in each gap stands for all of it.
    """
    differences = sorted(y - x for x in a for y in b)
    gaps = [differences[0] - 1.0]
    gaps += [(low + high) / 2.0 for low, high in zip(differences, differences[1:])]
    gaps += [differences[-1] + 1.0]

    def rejects(shift, alternative):
        moved = [y - shift for y in b]
        return stats.mannwhitneyu(moved, a, alternative=alternative, method="exact").pvalue <= alpha

    # Gap i lies below difference i.
    low = sum(rejects(shift, "greater") for shift in gaps)
    high = sum(rejects(shift, "less") for shift in gaps)
    return {
        "alpha": alpha,
        "estimate": float(numpy.median(differences)),
        "low": differences[low - 1] if low else None,
        "high": differences[-high] if high else None,
    }


def sample(a, b):
    distinct = len({y - x for x in a for y in b}) == len(a) * len(b)
    return {
        "a": a,
        "b": b,
        "above": [[shift, permutation(a, [y - shift for y in b], "greater")] for shift in SHIFTS],
        "below": [[shift, permutation(a, [y - shift for y in b], "less")] for shift in SHIFTS],
        "differs": permutation(a, b, "two-sided"),
        "shifts": [hodges_lehmann(a, b, alpha) for alpha in (0.005, 0.025, 0.05)] if distinct else [],
    }


def proportion(some, of):
    """Clopper and Pearson's interval; binomtest() computes the same, to five digits where shares are small."""
    low = float(special.betaincinv(some, of - some + 1, 0.05)) if some else 0.0
    high = float(special.betaincinv(some + 1, of - some, 0.95)) if some < of else 1.0
    rough = stats.binomtest(some, of).proportion_ci(0.9, method="exact")
    assert numpy.allclose([low, high], [rough.low, rough.high], rtol=2e-5, atol=0.0)
    return {"some": some, "all": of, "alpha": 0.05, "low": low, "high": high}


print(json.dumps({
    "scipy": scipy.__version__,
    "samples": [sample(a, b) for a, b in SAMPLES],
    "proportions": [proportion(*numbers) for numbers in PROPORTIONS],
    "beta": [[a, b, x, float(special.betainc(a, b, x))] for a, b, x in
             [(0.5, 0.5, 0.3), (2, 3, 0.5), (40, 1, 0.97), (3, 5e7, 1e-7), (1, 1, 0.25), (150, 90, 0.6)]],
    "ln_gamma": [[x, float(special.gammaln(x))] for x in (0.5, 1, 1.5, 7, 123.4, 6e7)],
    "student": [[degrees, p, float(stats.t.ppf(p, degrees))] for degrees, p in
                [(1, 0.975), (2, 0.8), (8, 0.95), (8, 0.975), (30, 0.999), (1e6, 0.975)]],
}, indent=1))
