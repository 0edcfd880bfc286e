//! Code that the example programs share: the story grammar of the tiny models, and the initialization of weights.

pub mod initial;
pub mod stories;

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::stories;

    fn folder() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tiny-stories")
    }

    #[test]
    fn the_committed_texts_are_those_of_their_seeds() {
        let read = |name: &str| std::fs::read_to_string(folder().join(name)).expect(name);
        assert!(read("calibration.txt") == stories::text(2, 200_000));
        assert!(read("evaluation.txt") == stories::text(3, 200_000));
    }

    #[test]
    fn the_committed_tokenizer_round_trips_text_and_the_model_is_small() {
        let tokenizer = uc_model::Tokenizer::load(&folder()).expect("tokenizer");
        let text = stories::text(9, 5_000);
        let ids = tokenizer.encode(&text).expect("ids");
        assert_eq!(tokenizer.decode(&ids).expect("text"), text);
        let size = std::fs::metadata(folder().join("model.safetensors"))
            .expect("weights")
            .len();
        assert!(size < 4 << 20, "{size}");
    }
}
