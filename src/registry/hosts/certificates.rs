//! Certificates in a host's directory, as Docker lays them out: `*.crt` are authorities, `*.cert`
//! client certificates, with their keys in `*.key` of the same name or in the same file.

use std::path::{Path, PathBuf};

use super::{Consulted, Host, Hosts, Problem};
use crate::registry::endpoint::API_ROOT;
use crate::registry::tls::{KeyPair, Tls};

/// Returns a registry with the certificates of `directory` and no mirrors. Blocking.
pub(super) fn read(directory: &Path, consulted: &mut Consulted) -> Result<Hosts, Problem> {
    let files = files(directory).map_err(|error| Problem::Unreadable {
        path: directory.to_owned(),
        error,
    })?;
    let with = |extension: &'static str| {
        files
            .iter()
            .filter(move |file| file.extension().is_some_and(|found| found == extension))
    };
    let pair = |certificate: &PathBuf| {
        let key = certificate.with_extension("key");
        KeyPair {
            certificate: certificate.clone(),
            key: files.contains(&key).then_some(key),
        }
    };
    let tls = Tls {
        authorities: with("crt").cloned().collect(),
        identities: with("cert").map(pair).collect(),
        skip_verify: false,
    };
    consulted.watch(tls.files());
    Ok(Hosts {
        mirrors: Vec::new(),
        server: Host {
            root: API_ROOT.to_owned(),
            tls,
            ..Host::default()
        },
    })
}

fn files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if !path.is_dir() {
            files.push(path);
        }
    }
    // Directory order is arbitrary.
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_paired_with_their_keys() {
        let directory = tempfile::tempdir().unwrap();
        for name in [
            "a.crt", "b.crt", "c.cert", "c.key", "d.cert", "e.key", "f.pem",
        ] {
            std::fs::write(directory.path().join(name), name).unwrap();
        }
        let at = |name: &str| directory.path().join(name);
        let hosts = read(directory.path(), &mut Consulted::default()).unwrap();
        assert_eq!(hosts.server.tls.authorities, [at("a.crt"), at("b.crt")]);
        let expected = [
            KeyPair {
                certificate: at("c.cert"),
                key: Some(at("c.key")),
            },
            KeyPair {
                certificate: at("d.cert"),
                key: None,
            },
        ];
        assert_eq!(hosts.server.tls.identities, expected);
    }
}
