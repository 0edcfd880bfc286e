//! The root certificates that the client trusts.

use ureq::tls::{Certificate, PemItem, RootCerts, parse_pem};

use crate::error::HubError;

/// Largest file of certificates that is read, bytes.
const MAX_CERTIFICATES: u64 = 16 << 20;

/// The certificates in the file `SSL_CERT_FILE`, or Mozilla's list if the variable is not set.
///
/// # Errors
/// [`HubError::InvalidName`] if the file cannot be read or contains no certificate.
pub(super) fn root_certs() -> Result<RootCerts, HubError> {
    let Some(path) = std::env::var("SSL_CERT_FILE")
        .ok()
        .filter(|path| !path.is_empty())
    else {
        return Ok(RootCerts::WebPki);
    };
    let invalid = |found: String| HubError::InvalidName {
        what: "SSL_CERT_FILE",
        found,
        expected: "a file of certificates in PEM form",
    };
    let text = uc_input::read(&path, MAX_CERTIFICATES)
        .map_err(|error| invalid(format!("{path}: {error}")))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&text)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(invalid(format!("{path}: no certificate")));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}
