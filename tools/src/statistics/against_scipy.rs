//! The same fixed numbers through SciPy and through this module.

use std::process::Command;

use serde_json::Value;

use super::distribution::{beta, ln_gamma, student_quantile};
use super::{Proportion, Shift, Splits};
use crate::oracle;

const SCRIPT: &str = "scipy_values.py";

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect()
}

/// Equal to within rounding, and to within `relative` where many digits cancel.
fn close(ours: f64, theirs: f64, relative: f64, what: &str) {
    let error = (ours - theirs).abs() / theirs.abs().max(1e-300);
    assert!(ours == theirs || error <= relative, "{what}: {ours} here, {theirs} there");
}

fn sample(sample: &Value) {
    let (a, b) = (numbers(&sample["a"]), numbers(&sample["b"]));
    let splits = Splits::new(&a, &b, 0).unwrap();
    for side in ["above", "below"] {
        for pair in sample[side].as_array().unwrap() {
            let (shift, p) = (pair[0].as_f64().unwrap(), pair[1].as_f64().unwrap());
            let ours = if side == "above" { splits.p_above(shift) } else { splits.p_below(shift) };
            close(ours, p, 1e-12, &format!("{side} {shift} of {a:?} and {b:?}"));
        }
    }
    close(splits.p_differs(), sample["differs"].as_f64().unwrap(), 1e-12, "two-sided");
    for shift in sample["shifts"].as_array().unwrap() {
        let ours = Shift::new(&a, &b, shift["alpha"].as_f64().unwrap()).unwrap();
        close(ours.estimate, shift["estimate"].as_f64().unwrap(), 1e-12, "Hodges-Lehmann");
        close(ours.low, shift["low"].as_f64().unwrap_or(f64::NEG_INFINITY), 1e-12, "lower end");
        close(ours.high, shift["high"].as_f64().unwrap_or(f64::INFINITY), 1e-12, "upper end");
    }
}

fn compare(values: &Value) {
    let list = |name: &str| values[name].as_array().unwrap().clone();
    assert!(list("samples").len() >= 5 && list("proportions").len() >= 7);
    list("samples").iter().for_each(sample);
    assert!(list("samples").iter().any(|sample| !sample["shifts"].as_array().unwrap().is_empty()));
    for proportion in list("proportions") {
        let count = |name: &str| proportion[name].as_u64().unwrap();
        let ours = Proportion { some: count("some"), all: count("all") };
        let (low, high) = ours.interval(proportion["alpha"].as_f64().unwrap());
        close(low, proportion["low"].as_f64().unwrap(), 1e-6, &format!("{ours:?}"));
        close(high, proportion["high"].as_f64().unwrap(), 1e-6, &format!("{ours:?}"));
    }
    for row in list("beta").iter().map(numbers) {
        close(beta(row[0], row[1], row[2]), row[3], 1e-6, &format!("beta {row:?}"));
    }
    for row in list("ln_gamma").iter().map(numbers) {
        assert!((ln_gamma(row[0]) - row[1]).abs() <= 1e-13 * row[1].abs() + 1e-13, "{row:?}");
    }
    for row in list("student").iter().map(numbers) {
        close(student_quantile(row[0], row[1]), row[2], 1e-8, &format!("Student {row:?}"));
    }
}

#[test]
fn statistics_are_equal_to_what_scipy_printed() {
    compare(&oracle::recorded("scipy_values.json"));
}

#[test]
fn statistics_are_equal_to_what_scipy_prints_here() {
    let Some(python) = oracle::python_with("scipy") else {
        return oracle::left_out("statistics beside SciPy: apt-get install python3-scipy");
    };
    #[expect(clippy::disallowed_methods, reason = "a test starts programs")]
    let output = Command::new(python).arg(oracle::path(SCRIPT)).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    compare(&serde_json::from_slice(&output.stdout).unwrap());
}
