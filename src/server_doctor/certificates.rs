//! The certificate of the server and the authorities of its clients.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};

use crate::doctor::Check;
use crate::serve::{self, CertificateFields, TlsConfig};
use crate::tls_provider;

/// A certificate that ends sooner than this has to be renewed: certificates of ACME authorities are
/// renewed 30 days before their end.
const SOON: Duration = Duration::from_secs(21 * 24 * 60 * 60);

const WHAT: &str = "certificate";
const AUTHORITIES: &str = "authorities of clients";

pub(super) fn check(config: &serve::Config) -> Vec<Check> {
    let Some(tls) = &config.tls else {
        return Vec::new();
    };
    tls_provider::install();
    let mut checks = match certificates(&tls.cert) {
        Ok(chain) => of_server(tls, &chain, &config.hosts),
        Err(told) => vec![Check::bad(
            WHAT,
            told,
            "serve.tls.cert: a chain in PEM, the server's own certificate first",
        )],
    };
    if let Some(file) = &tls.client_ca {
        checks.extend(of_clients(file));
    }
    checks
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let read = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match read {
        Ok(chain) if chain.is_empty() => Err(format!("{}: no certificate", file.display())),
        Ok(chain) => Ok(chain),
        Err(error) => Err(format!("{}: {error}", file.display())),
    }
}

fn of_server(tls: &TlsConfig, chain: &[CertificateDer<'static>], hosts: &[String]) -> Vec<Check> {
    let mut checks = vec![key(tls, chain)];
    let times: Vec<_> = chain
        .iter()
        .enumerate()
        .map(|(at, certificate)| time(WHAT, &place(&tls.cert, at), certificate))
        .collect();
    let are_valid = times
        .iter()
        .all(|check| check.mend.is_none() || is_fair(check));
    checks.extend(times);
    checks.extend(hosts.iter().map(|host| name(&chain[0], host)));
    if are_valid {
        checks.push(links(chain));
    }
    checks
}

fn is_fair(check: &Check) -> bool {
    check.state == crate::doctor::State::Fair
}

fn place(file: &Path, at: usize) -> String {
    format!("{}, number {}", file.display(), at + 1)
}

fn key(tls: &TlsConfig, chain: &[CertificateDer<'static>]) -> Check {
    const WHAT: &str = "key of the certificate";
    let shown = tls.key.display();
    let mend =
        "serve.tls.key: the private key in PEM that belongs to serve.tls.cert; renew both together";
    let key = match PrivateKeyDer::from_pem_file(&tls.key) {
        Ok(key) => key,
        Err(error) => return Check::bad(WHAT, format!("{shown}: {error}"), mend),
    };
    let key = match rustls::crypto::ring::sign::any_supported_type(&key) {
        Ok(key) => key,
        Err(error) => return Check::bad(WHAT, format!("{shown}: {error}"), mend),
    };
    match CertifiedKey::new(chain.to_vec(), key).keys_match() {
        Ok(()) => Check::good(WHAT, format!("{shown} belongs to it")),
        Err(error) => Check::bad(WHAT, format!("{shown}: {error}"), mend),
    }
}

fn time(what: &'static str, place: &str, certificate: &CertificateDer<'_>) -> Check {
    let Some(fields) = CertificateFields::read(certificate) else {
        return Check::bad(what, format!("{place}: not readable"), "replace it");
    };
    let now = SystemTime::now();
    let at = |seconds: u64| UNIX_EPOCH + Duration::from_secs(seconds);
    let (from, until) = (at(fields.from), at(fields.until));
    let day = |time: SystemTime| humantime::format_rfc3339_seconds(time);
    if now < from {
        let mend = "check the clock of this machine, or wait";
        return Check::bad(
            what,
            format!("{place}: valid only from {}", day(from)),
            mend,
        );
    }
    match until.duration_since(now) {
        Err(_past) => Check::bad(
            what,
            format!("{place}: expired {}", day(until)),
            "renew it; the server reads the files again within a minute",
        ),
        Ok(left) if left < SOON => Check::fair(
            what,
            format!("{place}: expires {}", day(until)),
            "renew it; the server reads the files again within a minute",
        ),
        Ok(_) => Check::good(what, format!("{place}: valid until {}", day(until))),
    }
}

fn name(certificate: &CertificateDer<'_>, host: &str) -> Check {
    const WHAT: &str = "name of the certificate";
    let is_for = || {
        let parsed = EndEntityCert::try_from(certificate).ok()?;
        let name = ServerName::try_from(host).ok()?;
        parsed.verify_is_valid_for_subject_name(&name).ok()
    };
    match is_for() {
        Some(()) => Check::good(WHAT, format!("it is for {host}")),
        None => Check::bad(
            WHAT,
            format!("it is not for {host}"),
            "serve.hosts has names that clients use: issue the certificate for all of them (subjectAltName)",
        ),
    }
}

/// Whether each certificate is issued by the next one.
fn links(chain: &[CertificateDer<'static>]) -> Check {
    const WHAT: &str = "chain of the certificate";
    let fields: Vec<_> = chain
        .iter()
        .filter_map(|one| CertificateFields::read(one))
        .collect();
    let is_own = fields.first().is_some_and(|own| own.issuer == own.subject);
    let (Some(last), [_, rest @ ..]) = (chain.last(), chain) else {
        return Check::bad(WHAT, "empty", "serve.tls.cert: a chain in PEM");
    };
    if rest.is_empty() {
        let mend = "clients must trust its issuer itself: append the certificates between it and the authority \
                    that clients trust, if there are any";
        let told = if is_own {
            "one certificate, signed by itself"
        } else {
            "one certificate, without its issuer"
        };
        return Check::fair(WHAT, told, mend);
    }
    let mend = "serve.tls.cert: the server's own certificate, then each issuer in this order, from one authority";
    let is_ordered = fields
        .windows(2)
        .all(|pair| pair[0].issuer == pair[1].subject);
    if fields.len() != chain.len() || !is_ordered {
        return Check::bad(
            WHAT,
            "a certificate is not issued by the one after it",
            mend,
        );
    }
    match verified(&chain[0], &rest[..rest.len() - 1], last) {
        Ok(()) => Check::good(
            WHAT,
            format!("{} certificates, each signed by the next", chain.len()),
        ),
        Err(error) => Check::bad(WHAT, error.to_string(), mend),
    }
}

fn verified(
    own: &CertificateDer<'_>,
    between: &[CertificateDer<'_>],
    last: &CertificateDer<'_>,
) -> Result<(), webpki::Error> {
    let anchor = anchor_from_trusted_cert(last)?;
    let algorithms = rustls::crypto::ring::default_provider()
        .signature_verification_algorithms
        .all;
    let parsed = EndEntityCert::try_from(own)?;
    let usage = KeyUsage::server_auth();
    parsed
        .verify_for_usage(
            algorithms,
            &[anchor],
            between,
            UnixTime::now(),
            usage,
            None,
            None,
        )
        .map(drop)
}

fn of_clients(file: &Path) -> Vec<Check> {
    match certificates(file) {
        Ok(found) => found
            .iter()
            .enumerate()
            .map(|(at, certificate)| time(AUTHORITIES, &place(file, at), certificate))
            .collect(),
        Err(told) => vec![Check::bad(
            AUTHORITIES,
            told,
            "serve.tls.client_ca: certificates in PEM",
        )],
    }
}
