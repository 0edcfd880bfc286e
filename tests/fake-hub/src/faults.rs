//! Fault injection: which request meets which fault, by script for a single case or at random from a seed.

use std::collections::{HashMap, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The purpose of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// Information about a revision.
    Info,
    /// A page of a listing.
    Tree,
    /// A file's URL at the Hub, which returns the content or redirects to storage.
    Resolve,
    /// An object's content, at storage.
    Object,
    /// The upload mode of files.
    Preupload,
    /// An LFS batch: upload URLs for large files.
    Batch,
    /// Upload of a large file or of a part of it.
    Part,
    /// Completion of a multipart upload.
    Complete,
    /// Verification of an uploaded large file.
    Verify,
    /// A commit.
    Commit,
    /// Creation of a repository.
    Create,
    /// Anything else.
    Other,
}

/// A fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset before the request is read.
    Reset,
    /// The connection is reset in the middle of the request's body.
    ResetInRequest,
    /// The request is carried out, but the connection is reset before the response.
    LostResponse,
    /// The connection is closed in the middle of the response body.
    TruncateBody,
    /// The connection is reset in the middle of the response body.
    ResetBody,
    /// Half of the response body is sent, then nothing. Nothing at all is sent if there is no body.
    Stall,
    /// The body is sent in small pieces, with a pause of this many milliseconds before each.
    SlowBody(u64),
    /// An error response with this status.
    Status(u16),
    /// Status 429 with Retry-After, in seconds.
    TooManyRequests(u64),
    /// One byte of the response body is wrong.
    CorruptByte,
    /// The requested range is ignored.
    IgnoreRange,
    /// A range other than the requested one is sent.
    WrongRange,
    /// A part is stored with a wrong byte.
    CorruptPart,
    /// The signed URL has expired.
    ExpiredUrl,
    /// Another client commits first.
    ConcurrentCommit,
    /// Status 401 with the client's Authorization header in the message.
    EchoToken,
}

/// Which requests meet which faults.
pub enum Schedule {
    /// No faults.
    None,
    /// The faults of the next requests of each route, one each.
    Script(HashMap<Route, VecDeque<Fault>>),
    /// At random.
    Random {
        /// The random number generator.
        rng: Box<ChaCha8Rng>,
        /// The percentage of requests that meet a fault.
        percent: u32,
        /// Number of faults left to inject.
        remaining: u32,
        /// A burst of equal statuses: the status, and the number of requests that still meet it.
        burst: (u16, u32),
        /// Whether [`Fault::Stall`] is among them. A client meets it only after its stall timeout.
        stalls: bool,
    },
}

impl Schedule {
    /// The next requests of a route meet these faults, one each.
    pub fn script(route: Route, faults: impl IntoIterator<Item = Fault>) -> Self {
        Self::Script(HashMap::from([(route, faults.into_iter().collect())]))
    }

    /// Each request meets a fault with a probability of `percent` percent, up to `max_faults` faults in total.
    pub fn random(seed: u64, percent: u32, max_faults: u32) -> Self {
        Self::Random {
            rng: Box::new(ChaCha8Rng::seed_from_u64(seed)),
            percent,
            remaining: max_faults,
            burst: (500, 0),
            stalls: true,
        }
    }

    /// Like [`Schedule::random`], without [`Fault::Stall`]. For clients with stall timeouts as long as in production.
    pub fn random_without_stalls(seed: u64, percent: u32, max_faults: u32) -> Self {
        let mut schedule = Self::random(seed, percent, max_faults);
        if let Self::Random { stalls, .. } = &mut schedule {
            *stalls = false;
        }
        schedule
    }

    /// The fault of the next request.
    pub fn next(&mut self, route: Route) -> Option<Fault> {
        match self {
            Self::None => None,
            Self::Script(script) => script.get_mut(&route)?.pop_front(),
            Self::Random {
                rng,
                percent,
                remaining,
                burst,
                stalls,
            } => {
                if *remaining == 0 {
                    return None;
                }
                if burst.1 > 0 {
                    burst.1 -= 1;
                    *remaining -= 1;
                    return Some(Fault::Status(burst.0));
                }
                if rng.next_u32() % 100 >= *percent {
                    return None;
                }
                *remaining -= 1;
                let mut faults = possible_faults(route, rng.next_u32());
                faults.retain(|fault| *stalls || *fault != Fault::Stall);
                let fault = faults[rng.next_u32() as usize % faults.len()].clone();
                if let Fault::Status(status) = fault {
                    *burst = (status, rng.next_u32() % 3);
                }
                Some(fault)
            }
        }
    }
}

/// The faults that a request of a route can meet, repeated for a higher probability. `number` selects the statuses.
fn possible_faults(route: Route, number: u32) -> Vec<Fault> {
    let status = [500, 502, 503, 504, 408][number as usize % 5];
    let mut faults = vec![
        Fault::Reset,
        Fault::LostResponse,
        Fault::TruncateBody,
        Fault::ResetBody,
        Fault::Stall,
        Fault::SlowBody(1),
        Fault::Status(status),
        Fault::TooManyRequests(u64::from(number % 4)),
    ];
    match route {
        Route::Resolve | Route::Object => faults.extend([
            Fault::TruncateBody,
            Fault::ResetBody,
            Fault::CorruptByte,
            Fault::IgnoreRange,
            Fault::WrongRange,
        ]),
        Route::Part => {
            faults.extend([Fault::ResetInRequest, Fault::ExpiredUrl, Fault::CorruptPart]);
        }
        Route::Complete => faults.push(Fault::ExpiredUrl),
        Route::Commit => faults.extend([Fault::ConcurrentCommit, Fault::LostResponse]),
        _ => {}
    }
    faults
}
