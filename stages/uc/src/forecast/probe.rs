//! How fast a machine is at what the jobs of a run do: the result of `uc plan --measure`.
//!
//! Speeds of all cores together. Nothing here measures; see `verbs/plan/measure`.

use serde::{Deserialize, Serialize};

/// What a job spends its time on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// Floating-point operations of matrix products in f32: attention and overlays.
    Products,
    /// Those of products with weights in bfloat16, and of second moments, whose operands are rounded to it: calibration and sensitivity.
    RoundedProducts,
    /// Those of products of operands in f32 with weights in bfloat16: evaluation.
    WeightProducts,
    /// Operations of factorizations of second moments.
    Factors,
    /// Weights for which the trellis is searched.
    Search,
    /// Operations of error feedback.
    Feedback,
    /// Symbols that are entropy coded.
    Encode,
    /// Symbols that are decoded.
    Decode,
    /// Bytes that elementwise operations read and write in memory.
    Memory,
    /// Bytes read from disk.
    DiskRead,
    /// Bytes written to disk.
    DiskWrite,
}

impl Resource {
    /// All of them.
    pub const ALL: [Resource; 11] = [
        Self::Products,
        Self::RoundedProducts,
        Self::WeightProducts,
        Self::Factors,
        Self::Search,
        Self::Feedback,
        Self::Encode,
        Self::Decode,
        Self::Memory,
        Self::DiskRead,
        Self::DiskWrite,
    ];

    /// What a job is bound by that spends most of its time on it.
    pub fn bound(self) -> &'static str {
        match self {
            Self::Products | Self::RoundedProducts | Self::WeightProducts => "products",
            Self::Factors | Self::Search | Self::Feedback | Self::Encode | Self::Decode => "codec",
            Self::Memory => "memory",
            Self::DiskRead | Self::DiskWrite => "disk",
        }
    }
}

/// Speeds of a machine, per second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// Version of the program that measured.
    pub program: String,
    /// When, by the clock of the machine.
    pub date: String,
    /// The processor.
    pub processor: String,
    /// Cores that were used.
    pub cores: u32,
    /// Operations of matrix products in f32 of [`SIDES`] rows and columns.
    pub products: [f64; 2],
    /// Those of products of large matrices with weights in bfloat16: with operands rounded to it, and with operands in f32.
    pub weight_products: [f64; 2],
    /// Operations of the factorization of second moments.
    pub factors: f64,
    /// Weights for which the trellis is searched.
    pub search: f64,
    /// Operations of error feedback.
    pub feedback: f64,
    /// Symbols that are entropy coded.
    pub encode: f64,
    /// Symbols that are decoded.
    pub decode: f64,
    /// Bytes read from memory.
    pub memory: f64,
    /// Bytes read from the disk of the run directory, bytes written to it.
    pub disk: [f64; 2],
}

/// Sides of the matrices whose products are measured: one that fits into the caches, and a large one.
pub const SIDES: [usize; 2] = [512, 3072];

impl Probe {
    /// The speed of a resource for a model of this width: between the two sizes of products by the logarithm of the width.
    pub fn speed(&self, resource: Resource, width: usize) -> f64 {
        match resource {
            Resource::Products => {
                let [small, large] = SIDES.map(|side| (side as f64).ln());
                let at = (width.max(1) as f64).ln();
                let share = ((at - small) / (large - small)).clamp(0.0, 1.0);
                self.products[0] + share * (self.products[1] - self.products[0])
            }
            // They fall with the size as those in f32 do.
            Resource::RoundedProducts | Resource::WeightProducts => {
                let is_rounded = resource == Resource::RoundedProducts;
                let large = self.weight_products[usize::from(!is_rounded)];
                large * self.speed(Resource::Products, width) / self.products[1]
            }
            Resource::Factors => self.factors,
            Resource::Search => self.search,
            Resource::Feedback => self.feedback,
            Resource::Encode => self.encode,
            Resource::Decode => self.decode,
            Resource::Memory => self.memory,
            Resource::DiskRead => self.disk[0],
            Resource::DiskWrite => self.disk[1],
        }
    }

    /// The same machine with another number of cores, and another speed of large products: `gflops`, 10⁹ operations per second.
    /// The codec is as fast as there are cores, and so are the products unless their speed is given; memory and disk stay.
    pub fn with(&self, cores: Option<u32>, gflops: Option<f64>) -> Self {
        let mut other = self.clone();
        if let Some(cores) = cores {
            let factor = f64::from(cores) / f64::from(self.cores.max(1));
            other.cores = cores;
            let codec = [
                &mut other.factors,
                &mut other.search,
                &mut other.feedback,
                &mut other.encode,
                &mut other.decode,
            ];
            let products = other.products.iter_mut().chain(&mut other.weight_products);
            products.chain(codec).for_each(|speed| *speed *= factor);
        }
        if let Some(gflops) = gflops {
            let factor = 1e9 * gflops / other.products[1];
            let products = other.products.iter_mut().chain(&mut other.weight_products);
            products.for_each(|speed| *speed *= factor);
        }
        other
    }

    /// Whether every speed is a number above 0.
    pub fn is_sound(&self) -> bool {
        let all = Resource::ALL.map(|resource| self.speed(resource, SIDES[1]));
        let all = all
            .iter()
            .chain(&self.products)
            .chain(&self.weight_products);
        self.cores > 0
            && all
                .into_iter()
                .all(|speed| speed.is_finite() && *speed > 0.0)
    }
}

/// What one or more jobs take of each resource.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work([f64; Resource::ALL.len()]);

impl Work {
    /// The same with more of a resource.
    #[must_use]
    pub fn and(mut self, resource: Resource, amount: f64) -> Self {
        self.0[resource as usize] += amount;
        self
    }

    /// The amount of a resource.
    pub fn amount(&self, resource: Resource) -> f64 {
        self.0[resource as usize]
    }

    /// The operations of all products.
    pub fn products(&self) -> f64 {
        let products = [
            Resource::Products,
            Resource::RoundedProducts,
            Resource::WeightProducts,
        ];
        products.map(|resource| self.amount(resource)).iter().sum()
    }

    /// Seconds at the speeds of a machine, if one resource is used after the other and nothing is lost.
    pub fn seconds(&self, probe: &Probe, width: usize) -> f64 {
        let parts =
            Resource::ALL.map(|resource| self.amount(resource) / probe.speed(resource, width));
        parts.iter().sum()
    }

    /// The resource that takes the most of these seconds.
    pub fn bound(&self, probe: &Probe, width: usize) -> Resource {
        let seconds = |resource: &Resource| self.amount(*resource) / probe.speed(*resource, width);
        let longest = Resource::ALL
            .into_iter()
            .max_by(|a, b| seconds(a).total_cmp(&seconds(b)));
        longest.unwrap_or(Resource::Memory)
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Self>>(works: I) -> Self {
        works.fold(Self::default(), |sum, work| {
            Resource::ALL.into_iter().fold(sum, |sum, resource| {
                sum.and(resource, work.amount(resource))
            })
        })
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A machine that does one of everything per second, and products of large matrices twice as fast.
    pub fn unit() -> Probe {
        Probe {
            program: "0".into(),
            date: String::new(),
            processor: "a processor".into(),
            cores: 2,
            products: [1.0, 2.0],
            weight_products: [4.0, 3.0],
            factors: 1.0,
            search: 1.0,
            feedback: 1.0,
            encode: 1.0,
            decode: 1.0,
            memory: 1.0,
            disk: [1.0, 1.0],
        }
    }

    #[test]
    fn work_takes_the_sum_of_its_parts_at_the_speeds_of_the_machine() {
        let probe = unit();
        let work = Work::default()
            .and(Resource::Products, 8.0)
            .and(Resource::DiskRead, 3.0);
        assert_eq!(work.seconds(&probe, 10_000), 7.0);
        assert_eq!(work.seconds(&probe, 100), 11.0);
        assert_eq!(work.bound(&probe, 10_000), Resource::Products);
        let both: Work = [work, work].into_iter().sum();
        assert_eq!(both.amount(Resource::DiskRead), 6.0);
        let middle = (SIDES[0] as f64 * SIDES[1] as f64).sqrt() as usize;
        for (resource, large) in [
            (Resource::Products, 2.0),
            (Resource::RoundedProducts, 4.0),
            (Resource::WeightProducts, 3.0),
        ] {
            assert!((probe.speed(resource, middle) - 0.75 * large).abs() < 1e-3);
        }
    }

    #[test]
    fn another_machine_has_other_cores_and_products() {
        let other = unit().with(Some(8), None);
        assert_eq!(
            (other.products, other.search, other.memory),
            ([4.0, 8.0], 4.0, 1.0)
        );
        let other = unit().with(Some(4), Some(16e-9));
        assert_eq!((other.products, other.encode), ([8.0, 16.0], 2.0));
        assert_eq!(other.weight_products, [32.0, 24.0]);
        assert!(other.is_sound());
        let broken = Probe {
            disk: [0.0, 1.0],
            ..unit()
        };
        assert!(!broken.is_sound());
    }
}
