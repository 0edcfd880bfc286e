//! Settings that take one of a few named values.

use serde::{Deserialize, Serialize};

/// Declares an enum whose variants are named values, with the meaning of each.
macro_rules! choice {
    (
        $(#[doc = $enum_doc:literal])+
        $Name:ident {
            $( $(#[doc = $doc:literal])+ $Variant:ident = $value:literal, )+
        }
    ) => {
        $(#[doc = $enum_doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        pub enum $Name {
            $( $(#[doc = $doc])+ #[serde(rename = $value)] $Variant, )+
        }

        impl $Name {
            /// The values as text, with their meanings.
            pub const VALUES: &'static [(&'static str, &'static str)] =
                &[$(($value, concat!($($doc),+))),+];
        }
    };
}

choice! {
    /// Where forward passes run.
    Device {
        /// The CPU.
        Cpu = "cpu",
        /// The first NVIDIA GPU.
        Cuda = "cuda",
    }
}

choice! {
    /// How far bits may move between linears.
    AllocationMode {
        /// Every linear has the same bits per weight; there is no sensitivity pass.
        PerTensor = "per-tensor",
        /// Every layer has the same bits per weight, distributed among its linears.
        PerLayer = "per-layer",
        /// The linears of the model share one budget.
        Global = "global",
    }
}

choice! {
    /// How the hidden states of the sensitivity pass are kept on disk.
    SensitivityStates {
        /// In bfloat16, as a model that runs in bfloat16 passes them on, exponents compressed: about 11 bits per value.
        Bfloat16 = "bfloat16",
        /// In 32-bit floats.
        Float32 = "float32",
    }
}

choice! {
    /// What happens to the shards of a model of the Hub.
    SourceRetention {
        /// All are downloaded before the run and stay.
        Keep = "keep",
        /// Each is downloaded when a job needs it, and deleted when there is no room or no further use for it.
        Evict = "evict",
    }
}
