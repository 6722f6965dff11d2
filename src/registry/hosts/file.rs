//! `hosts.toml`, as containerd reads it (containerd, docs/hosts.md).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use reqwest::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;
use url::Url;

use super::{Host, Hosts, Problem};
use crate::registry::endpoint::{API_ROOT, Capabilities};
use crate::registry::tls::{KeyPair, Tls};

#[derive(Deserialize)]
struct File {
    server: Option<String>,
    /// Asked in the order of the file.
    #[serde(default)]
    host: BTreeMap<Spanned<String>, Settings>,
}

/// The settings of `server` at the top of the file, and of one host in `[host."URL"]`. Keys that
/// are not used here are ignored, as containerd ignores keys that it does not know.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Settings {
    capabilities: Vec<String>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: bool,
    header: BTreeMap<String, OneOrMany>,
    override_path: bool,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a text or a list of texts")]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "a file, a list of files, or a list of pairs of files"
)]
enum Client {
    One(String),
    Many(Vec<ClientFile>),
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a file or a pair of files")]
enum ClientFile {
    Both(String),
    Pair([String; 2]),
}

/// Parses the text of a `hosts.toml`; paths in it are relative to `directory`.
pub(in crate::registry) fn parse(text: &str, directory: &Path) -> Result<Hosts, Problem> {
    let file: File = toml::from_str(text).map_err(Problem::toml)?;
    let of_server: Settings = toml::from_str(text).map_err(Problem::toml)?;
    let mut hosts: Vec<_> = file.host.into_iter().collect();
    hosts.sort_by_key(|(url, _)| url.span().start);
    let mirrors = hosts
        .iter()
        .map(|(url, settings)| host(Some(url.get_ref()), settings, directory));
    Ok(Hosts {
        mirrors: mirrors.collect::<Result<_, _>>()?,
        server: host(
            file.server.as_deref().filter(|server| !server.is_empty()),
            &of_server,
            directory,
        )?,
    })
}

fn host(server: Option<&str>, settings: &Settings, directory: &Path) -> Result<Host, Problem> {
    let url = server.map(url).transpose()?;
    let root = url.as_ref().map_or_else(
        || API_ROOT.to_owned(),
        |url| root(url, settings.override_path),
    );
    // Without a `server`, the file does not limit the requests to the registry itself.
    let capabilities = if url.is_some() {
        capabilities(&settings.capabilities)?
    } else {
        Capabilities::ALL
    };
    let headers = settings
        .header
        .iter()
        .flat_map(|(name, values)| values.iter().map(move |value| header(name, value)));
    let tls = Tls {
        authorities: settings
            .ca
            .iter()
            .flat_map(OneOrMany::iter)
            .map(|file| directory.join(file))
            .collect(),
        identities: settings
            .client
            .as_ref()
            .map_or_else(Vec::new, |client| identities(client, directory)),
        skip_verify: settings.skip_verify,
    };
    Ok(Host {
        url,
        root,
        capabilities,
        headers: headers.collect::<Result<_, _>>()?,
        tls,
    })
}

fn url(server: &str) -> Result<Url, Problem> {
    let text = if server.contains("://") {
        server.to_owned()
    } else {
        format!("https://{server}")
    };
    crate::registry::urls::registry_url(&text).map_err(|error| Problem::Value(error.to_string()))
}

/// Returns the root of the API: the path of `url` with `/v2` appended, unless `override_path` is
/// set or it ends with `/v2` already.
fn root(url: &Url, is_overridden: bool) -> String {
    let path = url.path().trim_end_matches('/');
    if is_overridden || path.ends_with(API_ROOT) {
        path.to_owned()
    } else {
        format!("{path}{API_ROOT}")
    }
}

fn capabilities(names: &[String]) -> Result<Capabilities, Problem> {
    if names.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut capabilities = Capabilities {
        pull: false,
        resolve: false,
    };
    for name in names {
        match name.to_ascii_lowercase().as_str() {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            // Pushes go to an explicit destination, and referrers are covered by `pull`.
            "push" | "referrers" => {}
            _ => {
                return Err(Problem::Value(format!("unknown capability {name:?}")));
            }
        }
    }
    Ok(capabilities)
}

fn header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), Problem> {
    // The value is not repeated, because it may be secret.
    let unfit = || Problem::Value(format!("invalid header {name:?}"));
    let mut value = HeaderValue::from_str(value).map_err(|_error| unfit())?;
    value.set_sensitive(true);
    Ok((name.parse().map_err(|_error| unfit())?, value))
}

fn identities(client: &Client, directory: &Path) -> Vec<KeyPair> {
    let both = |file: &String| KeyPair {
        certificate: directory.join(file),
        key: None,
    };
    let pair = |file: &ClientFile| match file {
        ClientFile::Both(file) => both(file),
        ClientFile::Pair([certificate, key]) => KeyPair {
            certificate: directory.join(certificate),
            key: (!key.is_empty()).then(|| directory.join(key) as PathBuf),
        },
    };
    match client {
        Client::One(file) => vec![both(file)],
        Client::Many(files) => files.iter().map(pair).collect(),
    }
}

impl OneOrMany {
    fn iter(&self) -> impl Iterator<Item = &String> {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
        .iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Hosts, Problem> {
        parse(text, Path::new("/certs.d/a.example"))
    }

    fn roots(text: &str) -> Vec<(String, String)> {
        let hosts = parsed(text).unwrap();
        let place = |host: &Host| {
            (
                host.url.as_ref().map_or_else(String::new, Url::to_string),
                host.root.clone(),
            )
        };
        hosts
            .mirrors
            .iter()
            .chain([&hosts.server])
            .map(place)
            .collect()
    }

    #[test]
    fn hosts_are_asked_in_the_order_of_the_file() {
        let text = r#"
            server = "a.example"
            [host."https://z.example"]
            [host."https://b.example/team/"]
            capabilities = ["pull", "Push"]
            [host."http://c.example/v2/proxy"]
            override_path = true
            [host."https://a.example/v2"]
            [host."https://b.example/team/".header]
            x-one = "1"
            x-two = ["2", "3"]
        "#;
        let expected = [
            ("https://z.example/", "/v2"),
            ("https://b.example/team/", "/team/v2"),
            ("http://c.example/v2/proxy", "/v2/proxy"),
            ("https://a.example/v2", "/v2"),
            ("https://a.example/", "/v2"),
        ];
        assert_eq!(
            roots(text),
            expected.map(|(url, root)| (url.to_owned(), root.to_owned()))
        );
        let hosts = parsed(text).unwrap();
        assert_eq!(hosts.mirrors[0].capabilities, Capabilities::ALL);
        assert_eq!(
            hosts.mirrors[1].capabilities,
            Capabilities {
                pull: true,
                resolve: false
            }
        );
        assert_eq!(hosts.mirrors[1].headers.get_all("x-two").iter().count(), 2);
        assert_eq!(roots(""), [(String::new(), "/v2".to_owned())]);
    }

    #[test]
    fn every_form_of_certificates_is_read() {
        let tls = |text: &str| parsed(text).unwrap().server.tls;
        let at = |name: &str| PathBuf::from("/certs.d/a.example").join(name);
        assert_eq!(tls("ca = 'a.pem'").authorities, [at("a.pem")]);
        assert_eq!(
            tls("ca = ['a.pem', '/etc/b.pem']").authorities,
            [at("a.pem"), "/etc/b.pem".into()]
        );
        let pair = |certificate: &str, key: Option<&str>| KeyPair {
            certificate: at(certificate),
            key: key.map(at),
        };
        assert_eq!(tls("client = 'c.pem'").identities, [pair("c.pem", None)]);
        assert_eq!(
            tls("client = ['c.pem', 'd.pem']").identities,
            [pair("c.pem", None), pair("d.pem", None)]
        );
        let pairs = "client = [['c.crt', 'c.key'], ['d.pem', '']]";
        assert_eq!(
            tls(pairs).identities,
            [pair("c.crt", Some("c.key")), pair("d.pem", None)]
        );
        assert!(tls("skip_verify = true").skip_verify);
    }

    #[test]
    fn an_invalid_file_is_an_error_that_names_the_fault() {
        for (text, fault) in [
            ("server = 7", "server"),
            ("ca = 7", "a text or a list of texts"),
            ("client = [['only-one']]", "a file, a list of files"),
            ("server = 'a.example'\ncapabilities = ['fly']", "\"fly\""),
            ("[host.'ftp://x']", "ftp://x"),
            ("[header]\n'a b' = 'x'", "\"a b\""),
            ("[host", "line 1"),
        ] {
            let problem = parsed(text)
                .err()
                .map(|problem| problem.to_string())
                .unwrap_or_default();
            assert!(problem.contains(fault), "{text}: {problem}");
        }
    }
}
