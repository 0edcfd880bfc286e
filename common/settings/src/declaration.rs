//! The declaration of every setting. Nothing else has to change when a setting is added, except the code that uses it.

use serde::{Deserialize, Serialize};

use crate::choices::{AllocationMode, Device, SensitivityStates, SourceRetention};
use crate::field::{Allowed, Field, Section};
use crate::rank::Rank;
use crate::sections::sections;
use crate::size::Size;

sections! {
    /// The forward passes through the model.
    model: ModelSettings, determines_pack: true {
        /// Where forward passes run.
        device: Device {
            default: Device::Cpu,
            allowed: Allowed::Choice(Device::VALUES),
            example: "cuda",
        }
    }

    /// The text that the teacher sees, and the second moments that are computed from it.
    calibration: CalibrationSettings, determines_pack: true {
        /// Number of calibration windows; 0 takes all that the text has.
        windows: u32 {
            default: 96,
            allowed: Allowed::Range(0.0, 1e6),
            example: "32",
        }
        /// Tokens per window; limited to the model's context.
        length: u32 {
            default: 1024,
            allowed: Allowed::Range(16.0, 1_048_576.0),
            example: "2048",
        }
        /// Seed of the random choice of windows.
        seed: u64 {
            default: 42,
            allowed: Allowed::Any("a whole number"),
            example: "7",
        }
        /// Key of the text in `.jsonl` files, and its column in `.parquet` files.
        field: String {
            default: "text".into(),
            allowed: Allowed::Any("the name of a field that holds a string"),
            example: "content",
        }
        /// Share of the second moments weighted by the Fisher information of each token; counts as 0 without a sensitivity
        /// pass.
        fisher_token_weight: f64 {
            default: 0.2,
            allowed: Allowed::Range(0.0, 1.0),
            example: "0.0",
        }
        /// Inputs wider than this store their second moments in diagonal blocks of this width. A block takes
        /// 4·max_input_block² bytes during the forward pass, and three times as much when it is factored.
        max_input_block: u32 {
            default: 16_384,
            allowed: Allowed::Range(16.0, 262_144.0),
            example: "8192",
        }
        /// Linears with more outputs than this store the second moments of their output gradients in diagonal blocks of
        /// this width: 4·max_output_block bytes per output. Blocks of experts are always 128 wide.
        max_output_block: u32 {
            default: 1024,
            allowed: Allowed::MultipleInRange { of: 256, low: 256.0, high: 262_144.0 },
            example: "512",
        }
    }

    /// How bits are distributed among the linears.
    allocation: AllocationSettings, determines_pack: true {
        /// How far bits may move between linears.
        mode: AllocationMode {
            default: AllocationMode::Global,
            allowed: Allowed::Choice(AllocationMode::VALUES),
            example: "per-tensor",
        }
        /// Number of calibration windows in the sensitivity pass; 0 takes all of them.
        windows: u32 {
            default: 48,
            allowed: Allowed::Range(0.0, 1e6),
            example: "16",
        }
        /// How the hidden states of the sensitivity pass are kept on disk: those before every layer wait there for the
        /// backward sweep.
        states: SensitivityStates {
            default: SensitivityStates::Bfloat16,
            allowed: Allowed::Choice(SensitivityStates::VALUES),
            example: "float32",
        }
        /// Labels of the Fisher information are sampled from the teacher's distribution with this seed.
        seed: u64 {
            default: 42,
            allowed: Allowed::Any("a whole number"),
            example: "7",
        }
    }

    /// Rate and error feedback of the quantizer.
    quantize: QuantizeSettings, determines_pack: true {
        /// Bits per weight of the linears, counting every byte of the layer files.
        bpw: f64 {
            default: 5.0,
            allowed: Allowed::Range(2.0, 8.0),
            example: "4.5",
        }
        /// Damping of the input second moments: added to their diagonal, relative to its mean. Below 5 bits per weight it
        /// grows by a factor of 4 per missing bit.
        damping: f64 {
            default: 0.0001,
            allowed: Allowed::Range(1e-6, 10.0),
            example: "0.001",
        }
        /// Off-diagonal shrinkage factor of the input second moments: entries off the diagonal are multiplied by
        /// 1 − shrinkage.
        shrinkage: f64 {
            default: 0.01,
            allowed: Allowed::Range(0.0, 1.0),
            example: "0.02",
        }
        /// Damping of the second moments of the output gradients, as `damping`.
        output_damping: f64 {
            default: 0.005,
            allowed: Allowed::Range(1e-6, 1e3),
            example: "0.01",
        }
        /// Off-diagonal shrinkage factor of the second moments of the output gradients, as `shrinkage`.
        output_shrinkage: f64 {
            default: 0.1,
            allowed: Allowed::Range(0.0, 1.0),
            example: "0.2",
        }
        /// Rows of a tensor that are quantized to estimate its rate.
        probe_rows: u32 {
            default: 256,
            allowed: Allowed::Range(16.0, 1e6),
            example: "512",
        }
    }

    /// The low-rank correction after quantization.
    overlay: OverlaySettings, determines_pack: true {
        /// Rank of the correction of every linear. `auto` chooses the rank with the smallest error at equal total bits,
        /// which may be 0.
        rank: Rank {
            default: Rank::Auto,
            allowed: Allowed::AutoOrRange(0.0, 1024.0),
            example: "8",
        }
        /// Largest rank that `auto` considers.
        max_rank: u32 {
            default: 64,
            allowed: Allowed::Range(0.0, 1024.0),
            example: "32",
        }
    }

    /// The text on which teacher and pack are compared.
    evaluation: EvaluationSettings, determines_pack: true {
        /// Number of evaluation windows; 0 takes all that the text has.
        windows: u32 {
            default: 40,
            allowed: Allowed::Range(0.0, 1e6),
            example: "0",
        }
        /// Tokens per window; limited to the model's context.
        length: u32 {
            default: 1024,
            allowed: Allowed::Range(16.0, 1_048_576.0),
            example: "2048",
        }
        /// Seed of the random choice of windows.
        seed: u64 {
            default: 42,
            allowed: Allowed::Any("a whole number"),
            example: "7",
        }
        /// Key of the text in `.jsonl` files, and its column in `.parquet` files.
        field: String {
            default: "text".into(),
            allowed: Allowed::Any("the name of a field that holds a string"),
            example: "content",
        }
    }

    /// Where the pack is uploaded. Only the stage that creates the repository lists this section.
    upload: UploadSettings, determines_pack: false {
        /// The repository; empty without an upload. `uc upload` and `uc compress --upload` set it.
        repository: String {
            default: String::new(),
            allowed: Allowed::Repository,
            example: "someone/model-5bpw@main",
        }
        /// Whether a repository that has to be created is private.
        private: bool {
            default: false,
            allowed: Allowed::Any("true or false"),
            example: "true",
        }
        /// Attempts in a row without progress before an upload fails.
        attempts: u32 {
            default: 8,
            allowed: Allowed::Range(1.0, 1000.0),
            example: "20",
        }
        /// Longest wait between two attempts, in seconds; a longer wait that a server asks for is cut to it.
        longest_wait: u32 {
            default: 300,
            allowed: Allowed::Range(0.0, 3600.0),
            example: "60",
        }
    }

    /// How much of a model of the Hub is kept on disk while it is compressed. No stage lists this section: it changes no
    /// output and makes nothing stale. Files of a local model folder are never deleted.
    retention: RetentionSettings, determines_pack: false {
        /// What happens to the shards of a model of the Hub.
        source: SourceRetention {
            default: SourceRetention::Keep,
            allowed: Allowed::Choice(SourceRetention::VALUES),
            example: "evict",
        }
        /// With `evict`: disk space for all shards together, including those that are being downloaded.
        budget: Size {
            default: Size(64 << 30),
            allowed: Allowed::Any("a size such as 64 GiB"),
            example: "200 GiB",
        }
    }
}
