//! A cache of the factors of a layer's inputs and outputs, which are made on demand.
//!
//! A layer with a hundred experts has hundreds of inputs, whose factors do not all fit into memory. A dense layer has
//! four, which every pass of the rate control reuses. The cache therefore keeps the most recently used input factors up
//! to a given number of bytes, and always the last one used. Factors of outputs are used once per pass and are not
//! kept.

use std::cell::RefCell;
use std::rc::Rc;

use crate::factor::Factor;

/// Makes the factor of an input or of a linear's outputs, by name.
type Make<'a, T, E> = Box<dyn Fn(&str) -> Result<T, E> + 'a>;

/// The factors of a layer, by name.
pub struct FactorCache<'a, E> {
    inputs: Make<'a, Factor, E>,
    outputs: Make<'a, Option<Factor>, E>,
    capacity_bytes: usize,
    /// Input factors by name, the most recently used one last.
    recent: RefCell<Vec<(String, Rc<Factor>)>>,
}

impl<'a, E> FactorCache<'a, E> {
    /// `inputs` makes the factor of an input by its name. `outputs` makes the factor of the output gradients of a linear by its
    /// name; None means that its outputs have equal weight and are not coupled. The cache keeps about `capacity_bytes` bytes
    /// of input factors.
    pub fn new(
        inputs: impl Fn(&str) -> Result<Factor, E> + 'a,
        outputs: impl Fn(&str) -> Result<Option<Factor>, E> + 'a,
        capacity_bytes: usize,
    ) -> Self {
        Self {
            inputs: Box::new(inputs),
            outputs: Box::new(outputs),
            capacity_bytes,
            recent: RefCell::default(),
        }
    }

    /// The factor of an input.
    ///
    /// # Errors
    /// Those of the function that makes it.
    pub fn input(&self, name: &str) -> Result<Rc<Factor>, E> {
        let mut recent = self.recent.borrow_mut();
        let position = recent.iter().position(|(known, _)| known == name);
        let entry = match position {
            Some(position) => recent.remove(position),
            None => {
                let size = |(_, factor): &(String, Rc<Factor>)| size_of_val(factor.a.as_slice());
                while !recent.is_empty()
                    && recent.iter().map(size).sum::<usize>() >= self.capacity_bytes
                {
                    recent.remove(0);
                }
                (name.to_owned(), Rc::new((self.inputs)(name)?))
            }
        };
        recent.push(entry.clone());
        Ok(entry.1)
    }

    /// The factor of a linear's output gradients.
    ///
    /// # Errors
    /// Those of the function that makes it.
    pub fn outputs(&self, linear: &str) -> Result<Option<Factor>, E> {
        (self.outputs)(linear)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;
    use crate::error::CodecError;
    use crate::factor::factorize;

    #[test]
    fn the_most_recently_used_factors_are_kept_up_to_a_number_of_bytes() {
        let made = Cell::new(0);
        let make = |_: &str| {
            made.set(made.get() + 1);
            factorize(&[2.0, 0.0, 0.0, 2.0], 2, 0.01)
        };
        let none = |_: &str| Ok(None);
        let count_made = |factors: &FactorCache<'_, CodecError>, names: &str| {
            made.set(0);
            for name in names.chars() {
                factors.input(&name.to_string()).expect("made");
            }
            made.get()
        };
        // A factor takes 16 bytes.
        assert_eq!(
            count_made(&FactorCache::new(make, none, 1000), "abcabcc"),
            3
        );
        assert_eq!(count_made(&FactorCache::new(make, none, 0), "aabba"), 3);
        assert_eq!(count_made(&FactorCache::new(make, none, 32), "abab"), 2);
        assert_eq!(count_made(&FactorCache::new(make, none, 32), "abacab"), 4);
    }
}
