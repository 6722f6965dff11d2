//! Certificates made by openssl: authorities, servers on 127.0.0.1, and clients of every kind.

use std::path::PathBuf;
use std::process::Command;

/// The extensions of a certificate for a server at 127.0.0.1.
pub(crate) const SERVER: &str = "basicConstraints = CA:FALSE\nsubjectAltName = IP:127.0.0.1\n\
                                 extendedKeyUsage = serverAuth\n";
/// The extensions of a client's certificate.
pub(crate) const CLIENT: &str = "basicConstraints = CA:FALSE\nextendedKeyUsage = clientAuth\n";

/// An authority in a directory of its own.
#[derive(Debug)]
pub(crate) struct Authority(tempfile::TempDir);

impl Authority {
    pub(crate) fn new() -> Self {
        let authority = Self(tempfile::tempdir().unwrap());
        authority.renew();
        authority
    }

    /// Replaces the authority in the same files by another of the same name.
    pub(crate) fn renew(&self) {
        self.run(&[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            "/CN=authority",
            "-days",
            "2",
            "-keyout",
            "ca.key",
            "-out",
            "ca.crt",
        ]);
    }

    /// The path of `ca.crt`, or of `NAME.cert` or `NAME.key` of a certificate.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Issues `NAME.cert` with `NAME.key`, valid for `days`; -1 is a certificate that has expired.
    pub(crate) fn issue(&self, name: &str, subject: &str, extensions: &str, days: i32) {
        let (key, request, certificate) = (
            format!("{name}.key"),
            format!("{name}.csr"),
            format!("{name}.cert"),
        );
        std::fs::write(self.path("extensions"), extensions).unwrap();
        self.run(&[
            "req",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-subj",
            subject,
            "-keyout",
            &key,
            "-out",
            &request,
        ]);
        self.run(&[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            "ca.crt",
            "-CAkey",
            "ca.key",
            "-days",
            &days.to_string(),
            "-extfile",
            "extensions",
            "-out",
            &certificate,
        ]);
    }

    /// A client's certificate and key in one PEM text.
    pub(crate) fn pem(&self, name: &str) -> Vec<u8> {
        let part = |extension: &str| std::fs::read(self.path(&format!("{name}.{extension}")));
        [part("cert").unwrap(), part("key").unwrap()].concat()
    }

    fn run(&self, arguments: &[&str]) {
        let output = Command::new("openssl")
            .args(arguments)
            .current_dir(&self.0)
            .output();
        let output = output.expect("openssl is installed");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
    }
}
