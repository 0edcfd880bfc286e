#![allow(clippy::disallowed_methods)]

use super::*;
use crate::layer_file_name;
use crate::sample::{SamplePack, linear};

fn sample() -> SamplePack {
    let linears = [
        linear("q.weight", [300, 40], 1, 2),
        linear("o.weight", [24, 64], 2, 0),
    ];
    SamplePack::new(&linears, &[], &[])
}

fn verified(pack: &SamplePack, cancelled: Option<&AtomicBool>) -> VerifyReport {
    let request = Request {
        threads: 2,
        cancelled,
        ..Request::default()
    };
    verify(pack.path("."), request, &|_| {})
}

#[test]
fn a_cancelled_verification_checks_nothing_more_and_fails() {
    let pack = sample();
    let report = verified(&pack, Some(&AtomicBool::new(false)));
    assert_eq!(report.verdict, Verdict::Pass, "{:?}", report.findings);
    let report = verified(&pack, Some(&AtomicBool::new(true)));
    assert_eq!(report.verdict, Verdict::Fail);
    assert_eq!(report.tensors_checked, 0);
    let messages: Vec<&str> = report.findings.iter().map(|f| f.message.as_str()).collect();
    assert_eq!(messages, ["the verification was cancelled before its end"]);
}

#[test]
fn a_layer_can_be_opened_without_hashing_the_file_but_not_with_another_header() {
    let pack = sample();
    let path = pack.path(&layer_file_name(0));
    let intact = std::fs::read(&path).expect("layer");
    let mut bytes = intact.clone();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, &bytes).expect("damaged");
    assert!(pack.open().layer(0).is_err());
    let layer = pack.open().layer_unhashed(0).expect("the header is intact");
    assert_eq!(layer.linears().len(), 2);
    assert!(pack.open().layer_unhashed(1).is_err());
    // The index of the layer.
    let mut bytes = intact;
    bytes[10] ^= 1;
    std::fs::write(&path, &bytes).expect("damaged");
    assert!(pack.open().layer_unhashed(0).is_err());
}
