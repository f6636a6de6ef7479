//! Medians.

/// The middle value; of an even number of values the lower middle. 0 for none.
#[must_use]
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(0.0)
}

/// The value below which `per_mille` thousandths of the sorted `samples` lie. 0 for none.
#[must_use]
pub fn percentile(samples: &[u32], per_mille: usize) -> u32 {
    let at = (samples.len() * per_mille / 1000).min(samples.len().saturating_sub(1));
    samples.get(at).copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{median, percentile};

    #[test]
    fn middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < f64::EPSILON);
        assert!((median(vec![4.0, 1.0]) - 1.0).abs() < f64::EPSILON);
        assert!(median(vec![]).abs() < f64::EPSILON);
    }

    #[test]
    fn percentiles() {
        let samples: Vec<u32> = (0..1000).collect();
        assert_eq!(percentile(&samples, 500), 500);
        assert_eq!(percentile(&samples, 990), 990);
        assert_eq!(percentile(&samples, 1000), 999);
        assert_eq!(percentile(&[], 500), 0);
    }
}
