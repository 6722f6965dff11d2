//! A second Starlift server for the cost of its checks: the same layer, with access rules, budgets
//! and an audit log.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::harness::{Daemon, run};
use crate::server::{self, Server};

const USER: &str = "team";
const PASSWORD: &str = "password-of-the-team";
/// `PASSWORD` as `htpasswd -nbB -C 4` writes it.
const HASH: &str = "$2y$04$//Tik2Xsn3YGM5eKNXzSV.p0avFEV./WNHDDTGPnrhLnXbOvMU09W";
/// The user and the password in the form of HTTP Basic.
const BASIC: &str = "Basic dGVhbTpwYXNzd29yZC1vZi10aGUtdGVhbQ==";

/// The server, and two ways to be known to it.
#[derive(Debug)]
pub(crate) struct Guarded {
    pub(crate) daemon: Daemon,
    pub(crate) blob: String,
    /// The password in each request, as agents and some clients send it.
    pub(crate) by_password: String,
    /// A token of the token endpoint, as containerd and Docker send it.
    pub(crate) by_token: String,
}

impl Guarded {
    /// Serves the layer `digest` of `local/NAME:1`. The budgets are set and never used up.
    pub(crate) fn start(
        starlift: &Path,
        place: &Path,
        upstream: String,
        name: &str,
        digest: &str,
    ) -> anyhow::Result<Self> {
        fs::create_dir_all(place)?;
        let (file, users) = (place.join("starlift.toml"), place.join("htpasswd"));
        fs::write(&users, format!("{USER}:{HASH}\n"))?;
        let limits = "requests = 1000000\nstreams = 10000\nconversions = 100\n\
                      bytes_under_way = '100GiB'\nstored = '100GiB'\n";
        let budgets = ["identity", "address", "upstream"]
            .map(|of| format!("[serve.budgets.{of}]\n{limits}"))
            .concat();
        fs::write(
            &file,
            format!(
                "[serve]\nclient_share = 100\naudit = '{}'\n\
                 [serve.access]\nhtpasswd = '{}'\nlogin_lifetime = '10h'\n\
                 [[serve.access.rule]]\nwho = ['anyone']\nmay = ['pull']\nimages = ['local/public/**']\n\
                 [[serve.access.rule]]\nwho = ['user:{USER}']\nmay = ['pull', 'warm']\nimages = ['local/**']\n\
                 {budgets}",
                place.join("audit.jsonl").display(),
                users.display(),
            ),
        )?;
        let server = Server::start_configured(starlift, place, &[upstream], &file)?;
        let address = server.address;
        let by_password = BASIC.to_owned();
        let tag = format!("http://{address}/v2/local/{name}/manifests/1");
        let (_, manifest) = server::converted_as(&tag, &by_password)?;
        ensure!(manifest["layers"][0]["digest"] == digest, "another layer");
        let login =
            format!("curl -sf -u {USER}:{PASSWORD} http://{address}/token?service=starlift");
        let answer: Value = serde_json::from_str(&run(&login)?)?;
        let token = answer["token"].as_str().context("no token")?;
        Ok(Self {
            daemon: server.daemon,
            blob: format!("http://{address}/v2/local/{name}/blobs/{digest}"),
            by_password,
            by_token: format!("Bearer {token}"),
        })
    }
}
