//! What the example programs share: the story grammar of the embedded tiny model.

pub mod stories;
