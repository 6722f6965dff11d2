//! The files that a C library reads for a program: locales, users, time zone, certificates.
//!
//! Each is named only if the executable calls a function that reads it, or has a library that does.

use super::launch::{Process, Program};
use super::view::join;
use super::walk::Walk;

/// Paths of the configuration of OpenSSL in distributions. The first that exists is read.
const OPENSSL_CONFIGURATIONS: &[&str] = &[
    "/usr/lib/ssl/openssl.cnf",
    "/usr/local/ssl/openssl.cnf",
    "/etc/pki/tls/openssl.cnf",
    "/etc/ssl/openssl.cnf",
];
/// Paths of the file with all certificates (from the list in Go's `crypto/x509/root_linux.go`).
const CERTIFICATES: &[&str] = &[
    "/usr/lib/ssl/cert.pem",
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];
/// The functions that look up users and groups.
const USERS: &[&str] = &[
    "getpwnam",
    "getpwuid",
    "getpwuid_r",
    "getgrnam",
    "initgroups",
];
/// The longest name of a locale (Linux, `NAME_MAX`).
const MAX_LOCALE: usize = 255;
const LOCALES: &str = "/usr/lib/locale";
/// The files of a locale, in the order in which `setlocale(LC_ALL, "")` opens them (glibc,
/// `locale/findlocale.c`).
const CATEGORIES: &[&str] = &[
    "LC_IDENTIFICATION",
    "LC_MEASUREMENT",
    "LC_TELEPHONE",
    "LC_ADDRESS",
    "LC_NAME",
    "LC_PAPER",
    "LC_MESSAGES/SYS_LC_MESSAGES",
    "LC_MONETARY",
    "LC_COLLATE",
    "LC_TIME",
    "LC_NUMERIC",
    "LC_CTYPE",
];

/// Names the files that a program's libraries read before its own code runs.
pub(super) fn started(walk: &mut Walk<'_>, process: &Process, program: &Program) {
    let loader = &program.loader;
    if loader.has("libcrypto.so") {
        name_openssl(walk, process);
    }
    if loader.calls("setlocale") {
        name_locale(walk, process);
    }
    if ["localtime", "localtime_r", "tzset"]
        .iter()
        .any(|function| loader.calls(function))
    {
        name_time_zone(walk, process);
    }
    if USERS.iter().any(|function| loader.calls(function)) {
        name_users(walk);
    }
    if loader.calls("getaddrinfo") {
        walk.name_path("/etc/nsswitch.conf");
    }
    if loader.has("libssl.so") {
        name_certificates(walk, process);
    }
}

/// Names the configuration of OpenSSL.
pub(super) fn name_openssl(walk: &mut Walk<'_>, process: &Process) {
    let variable = process.variable("OPENSSL_CONF");
    let _ = variable
        .into_iter()
        .chain(OPENSSL_CONFIGURATIONS.iter().copied())
        .find_map(|path| walk.name_path(path));
}

/// Names the trusted certificates.
pub(super) fn name_certificates(walk: &mut Walk<'_>, process: &Process) {
    let variable = process.variable("SSL_CERT_FILE");
    let _ = variable
        .into_iter()
        .chain(CERTIFICATES.iter().copied())
        .find_map(|path| walk.name_path(path));
}

/// Names the tables of users and groups.
pub(super) fn name_users(walk: &mut Walk<'_>) {
    for path in ["/etc/nsswitch.conf", "/etc/passwd", "/etc/group"] {
        walk.name_path(path);
    }
}

/// Names the local time zone.
pub(super) fn name_time_zone(walk: &mut Walk<'_>, process: &Process) {
    match process.variable("TZ") {
        Some(zone) => walk.name_path(&join("/usr/share/zoneinfo", zone.trim_start_matches(':'))),
        None => walk.name_path("/etc/localtime"),
    };
}

/// Returns the locale of the environment, unless it needs no files.
pub(super) fn locale(process: &Process) -> Option<&str> {
    let value = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .find_map(|name| process.variable(name));
    let is_name = |name: &&str| name.len() <= MAX_LOCALE && !name.contains('/');
    value
        .filter(is_name)
        .filter(|name| !matches!(*name, "C" | "POSIX"))
}

/// Names the files of the environment's locale.
pub(super) fn name_locale(walk: &mut Walk<'_>, process: &Process) {
    if let Some(locale) = locale(process) {
        name_categories(walk, locale, CATEGORIES);
    }
}

/// Names these categories of a locale.
pub(super) fn name_categories(walk: &mut Walk<'_>, locale: &str, categories: &[&str]) {
    walk.name_path(&join(LOCALES, "locale-archive"));
    let Some(directory) = spellings(locale)
        .into_iter()
        .find(|name| walk.view.is_directory(&join(LOCALES, name)))
    else {
        return;
    };
    for category in categories {
        walk.name_path(&format!("{LOCALES}/{directory}/{category}"));
    }
    // The converters of the locale's character set.
    let fuel = walk.fuel.clone();
    for name in fuel.each(walk.view.names("/usr/lib")) {
        walk.name_path(&format!("/usr/lib/{name}/gconv/gconv-modules.cache"));
    }
}

/// Returns the possible directories of a locale: its own name, and the one with the character set
/// in the short form (`C.utf8`).
fn spellings(locale: &str) -> Vec<String> {
    let short = |codeset: &str| {
        codeset
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .collect::<String>()
            .to_lowercase()
    };
    let mut all = vec![locale.to_owned()];
    if let Some((language, codeset)) = locale.split_once('.') {
        all.push(format!("{language}.{}", short(codeset)));
        all.push(language.to_owned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_locale_has_a_long_and_a_short_name() {
        assert_eq!(spellings("C.UTF-8"), ["C.UTF-8", "C.utf8", "C"]);
        assert_eq!(spellings("de_DE"), ["de_DE"]);
    }
}
