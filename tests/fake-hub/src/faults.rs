//! Which request meets which fault: by a script for one case, by a seed for many.

use std::collections::{HashMap, VecDeque};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Route {
    /// Information about a revision.
    Info,
    /// A page of a listing.
    Tree,
    /// A file, at the Hub.
    Resolve,
    /// A file's bytes, at storage.
    Object,
    /// How files will go.
    Preupload,
    /// Whereto large files go.
    Batch,
    /// A large file, or a part of it.
    Part,
    /// The parts put together.
    Complete,
    /// Whether a large file arrived.
    Verify,
    /// A commit.
    Commit,
    /// A new repository.
    Create,
    /// Anything else.
    Other,
}

/// What goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The connection is reset before the request is read.
    Reset,
    /// The connection is reset in the middle of the request's body.
    ResetInRequest,
    /// The request is carried out, and the connection reset before the answer.
    LostAnswer,
    /// The connection ends in the middle of the answer's body.
    CutBody,
    /// The connection is reset in the middle of the answer's body.
    ResetBody,
    /// Half of the answer's body, then silence; silence alone where there is no body.
    Stall,
    /// The body in small pieces with a pause of so many milliseconds after each.
    Drip(u64),
    /// A status.
    Status(u16),
    /// Status 429 with Retry-After in seconds.
    TooMany(u64),
    /// A byte of the body is wrong.
    WrongByte,
    /// The range asked for is ignored.
    IgnoreRange,
    /// Another range is sent.
    WrongRange,
    /// A part is stored with a wrong byte.
    CorruptPart,
    /// The upload's URL has expired.
    Expired,
    /// Another's commit comes first.
    Conflict,
    /// Status 401 with what the client sent as its credentials in the text.
    EchoToken,
}

/// What goes wrong when.
pub enum Schedule {
    /// Nothing.
    None,
    /// The next requests of each route.
    Script(HashMap<Route, VecDeque<Fault>>),
    /// By chance.
    Random {
        /// The source of chance.
        chance: Box<ChaCha8Rng>,
        /// Of 100 requests so many meet a fault.
        percent: u32,
        /// Faults that are left.
        left: u32,
        /// A burst that goes on: status and requests left.
        burst: (u16, u32),
        /// Whether silence is among them, which a client waits for.
        stalls: bool,
    },
}

impl Schedule {
    /// A script: the next requests of a route meet these faults, one each.
    pub fn script(route: Route, faults: impl IntoIterator<Item = Fault>) -> Self {
        Self::Script(HashMap::from([(route, faults.into_iter().collect())]))
    }

    /// At most `most` faults, each request meeting one with `percent` per cent.
    pub fn random(seed: u64, percent: u32, most: u32) -> Self {
        Self::Random {
            chance: Box::new(ChaCha8Rng::seed_from_u64(seed)),
            percent,
            left: most,
            burst: (500, 0),
            stalls: true,
        }
    }

    /// The same without [`Fault::Stall`], for clients whose patience is that of real life.
    pub fn brisk(seed: u64, percent: u32, most: u32) -> Self {
        let mut schedule = Self::random(seed, percent, most);
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
                chance,
                percent,
                left,
                burst,
                stalls,
            } => {
                if *left == 0 {
                    return None;
                }
                if burst.1 > 0 {
                    burst.1 -= 1;
                    *left -= 1;
                    return Some(Fault::Status(burst.0));
                }
                if chance.next_u32() % 100 >= *percent {
                    return None;
                }
                *left -= 1;
                let mut faults = of(route, chance.next_u32());
                faults.retain(|fault| *stalls || *fault != Fault::Stall);
                let fault = faults[chance.next_u32() as usize % faults.len()].clone();
                if let Fault::Status(status) = fault {
                    *burst = (status, chance.next_u32() % 3);
                }
                Some(fault)
            }
        }
    }
}

/// The faults that a request of a route can meet.
fn of(route: Route, number: u32) -> Vec<Fault> {
    let status = [500, 502, 503, 504, 408][number as usize % 5];
    let mut faults = vec![
        Fault::Reset,
        Fault::LostAnswer,
        Fault::CutBody,
        Fault::ResetBody,
        Fault::Stall,
        Fault::Drip(1),
        Fault::Status(status),
        Fault::TooMany(u64::from(number % 4)),
    ];
    match route {
        Route::Resolve | Route::Object => faults.extend([
            Fault::CutBody,
            Fault::ResetBody,
            Fault::WrongByte,
            Fault::IgnoreRange,
            Fault::WrongRange,
        ]),
        Route::Part => {
            faults.extend([Fault::ResetInRequest, Fault::Expired, Fault::CorruptPart]);
        }
        Route::Complete => faults.push(Fault::Expired),
        Route::Commit => faults.extend([Fault::Conflict, Fault::LostAnswer]),
        _ => {}
    }
    faults
}
