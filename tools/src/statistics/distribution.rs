//! Distributions that the intervals need: beta by its continued fraction, and Student's t from it.

/// Logarithm of the gamma function for positive `x` (Lanczos's series with g = 7 and nine terms).
#[must_use]
pub fn ln_gamma(x: f64) -> f64 {
    #[expect(clippy::excessive_precision, reason = "the published coefficients")]
    const TERMS: [f64; 9] = [
        0.999_999_999_999_809_93,
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_13,
        -176.615_029_162_140_59,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_571_6e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let x = x - 1.0;
    let at = x + 7.5;
    let series = TERMS[0] + (1..9).map(|term| TERMS[term] / (x + term as f64)).sum::<f64>();
    0.5 * std::f64::consts::TAU.ln() + (x + 0.5) * at.ln() - at + series.ln()
}

/// Logarithm of the gamma function of `x + step` less that of `x`. Of large numbers the two are large, and their difference
/// would have few digits left; there it is that of Stirling's series, term by term.
fn ln_gamma_step(x: f64, step: f64) -> f64 {
    if x < 1_000.0 {
        return ln_gamma(x + step) - ln_gamma(x);
    }
    let end = x + step;
    let tail = |x: f64| 1.0 / (12.0 * x) - 1.0 / (360.0 * x.powi(3));
    (x - 0.5) * (step / x).ln_1p() + step * end.ln() - step + tail(end) - tail(x)
}

/// The distribution function of the beta distribution at `x`: the regularised incomplete beta function.
#[must_use]
pub fn beta(a: f64, b: f64, x: f64) -> f64 {
    if x <= 0.0 {
        return 0.0;
    }
    if x >= 1.0 {
        return 1.0;
    }
    let (small, large) = if a < b { (a, b) } else { (b, a) };
    let front = (ln_gamma_step(large, small) - ln_gamma(small) + a * x.ln() + b * (-x).ln_1p()).exp();
    // The fraction converges fast on its own side of the mean.
    if x < (a + 1.0) / (a + b + 2.0) {
        front * fraction(a, b, x) / a
    } else {
        1.0 - front * fraction(b, a, 1.0 - x) / b
    }
}

/// The continued fraction of the incomplete beta function (DLMF 8.17.22), by Lentz's method.
fn fraction(a: f64, b: f64, x: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let apart = |value: f64| if value.abs() < TINY { TINY } else { value };
    let mut c = 1.0;
    let mut d = 1.0 / apart(1.0 - (a + b) * x / (a + 1.0));
    let mut value = d;
    for step in 1..10_000 {
        let m = f64::from(step);
        let even = m * (b - m) * x / ((a + 2.0 * m - 1.0) * (a + 2.0 * m));
        let odd = -(a + m) * (a + b + m) * x / ((a + 2.0 * m) * (a + 2.0 * m + 1.0));
        let mut change = 1.0;
        for term in [even, odd] {
            d = 1.0 / apart(1.0 + term * d);
            c = apart(1.0 + term / c);
            change = c * d;
            value *= change;
        }
        if (change - 1.0).abs() < 1e-15 {
            break;
        }
    }
    value
}

/// The `x` at which the beta distribution reaches `p`, by bisection.
#[must_use]
pub fn beta_quantile(a: f64, b: f64, p: f64) -> f64 {
    bisect(0.0, 1.0, |x| beta(a, b, x) < p)
}

/// The value below which a variable of Student's t distribution falls with probability `p`; between 0.5 and 1.
#[must_use]
pub fn student_quantile(degrees: f64, p: f64) -> f64 {
    let above = |t: f64| 0.5 * beta(degrees / 2.0, 0.5, degrees / (degrees + t * t));
    bisect(0.0, 1e7, |t| above(t) > 1.0 - p)
}

/// Where `below` turns from true to false.
fn bisect(mut low: f64, mut high: f64, below: impl Fn(f64) -> bool) -> f64 {
    // Enough halvings to tell neighbours near zero apart.
    for _ in 0..200 {
        let middle = f64::midpoint(low, high);
        if below(middle) {
            low = middle;
        } else {
            high = middle;
        }
    }
    f64::midpoint(low, high)
}
