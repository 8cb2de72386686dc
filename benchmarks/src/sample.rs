//! Many measurements of one thing.

/// Measurements of one thing, in order of size.
#[derive(Clone, Debug)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// At least one measurement.
    #[must_use]
    pub fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Self(values)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The one in the middle, or the mean of the two.
    #[must_use]
    pub fn median(&self) -> f64 {
        let half = self.0.len() / 2;
        match self.0.len() % 2 {
            1 => self.0[half],
            _ => f64::midpoint(self.0[half - 1], self.0[half]),
        }
    }

    /// Between which two of them the middle half lies.
    #[must_use]
    pub fn middle_half(&self) -> (f64, f64) {
        let quarter = self.0.len() / 4;
        (self.0[quarter], self.0[self.0.len() - 1 - quarter])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_is_found() {
        assert_eq!(Sample::of(vec![3.0, 1.0, 2.0]).median(), 2.0);
        assert_eq!(Sample::of(vec![4.0, 1.0]).median(), 2.5);
        let eight = Sample::of((1..=8).map(f64::from).collect());
        assert_eq!(eight.middle_half(), (3.0, 6.0));
        assert_eq!(Sample::of(vec![7.0]).middle_half(), (7.0, 7.0));
    }
}
