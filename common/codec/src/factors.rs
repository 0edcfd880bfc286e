//! The factors of a layer's inputs and outputs, made when they are asked for.
//!
//! A layer with a hundred experts has hundreds of inputs, whose factors would not fit together; a dense layer has four,
//! which every pass of the rate control wants again. So the factors used last are kept up to a number of bytes, and
//! always the last one.

use std::cell::RefCell;
use std::rc::Rc;

use crate::factor::Factor;

/// Makes the factor of an input or of a linear's outputs, by name.
type Make<'a, T, E> = Box<dyn Fn(&str) -> Result<T, E> + 'a>;

/// What is known of a layer's inputs and outputs.
pub struct Factors<'a, E> {
    inputs: Make<'a, Factor, E>,
    outputs: Make<'a, Option<Factor>, E>,
    kept: usize,
    /// By input, the one used last at the end.
    recent: RefCell<Vec<(String, Rc<Factor>)>>,
}

impl<'a, E> Factors<'a, E> {
    /// Factors that `inputs` makes by the name of an input, and `outputs` by the name of a linear, of the gradients at its
    /// outputs: without one, its outputs count the same and by themselves.
    /// About `kept` bytes of input factors are kept.
    pub fn new(
        inputs: impl Fn(&str) -> Result<Factor, E> + 'a,
        outputs: impl Fn(&str) -> Result<Option<Factor>, E> + 'a,
        kept: usize,
    ) -> Self {
        Self {
            inputs: Box::new(inputs),
            outputs: Box::new(outputs),
            kept,
            recent: RefCell::default(),
        }
    }

    /// The factor of an input.
    ///
    /// # Errors
    /// What its maker returns.
    pub fn input(&self, name: &str) -> Result<Rc<Factor>, E> {
        let mut recent = self.recent.borrow_mut();
        let known = recent.iter().position(|(known, _)| known == name);
        let entry = match known {
            Some(place) => recent.remove(place),
            None => {
                let size = |(_, factor): &(String, Rc<Factor>)| size_of_val(factor.a.as_slice());
                while !recent.is_empty() && recent.iter().map(size).sum::<usize>() >= self.kept {
                    recent.remove(0);
                }
                (name.to_owned(), Rc::new((self.inputs)(name)?))
            }
        };
        recent.push(entry.clone());
        Ok(entry.1)
    }

    /// The factor of a linear's outputs.
    ///
    /// # Errors
    /// What its maker returns.
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
    fn the_factors_used_last_are_kept_up_to_a_number_of_bytes() {
        let made = Cell::new(0);
        let make = |_: &str| {
            made.set(made.get() + 1);
            factorize(&[2.0, 0.0, 0.0, 2.0], 2, 0.01)
        };
        let none = |_: &str| Ok(None);
        let names = |factors: &Factors<'_, CodecError>, names: &str| {
            made.set(0);
            for name in names.chars() {
                factors.input(&name.to_string()).expect("made");
            }
            made.get()
        };
        // A factor takes 16 bytes.
        assert_eq!(names(&Factors::new(make, none, 1000), "abcabcc"), 3);
        assert_eq!(names(&Factors::new(make, none, 0), "aabba"), 3);
        assert_eq!(names(&Factors::new(make, none, 32), "abab"), 2);
        assert_eq!(names(&Factors::new(make, none, 32), "abacab"), 4);
    }
}
