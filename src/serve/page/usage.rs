//! How clients use this server, with the name by which the reader reached it.

use maud::{Markup, html};

use crate::serve::caller::{self, Caller};
use crate::serve::config::Config;

/// The address of images on this server.
pub(super) struct Host {
    /// `registry.example:8080`
    pub(super) name: String,
    pub(super) is_https: bool,
}

impl Host {
    /// The host that images are pulled from: this one, or that of the public listener.
    pub(super) fn of(config: &Config, caller: &Caller) -> Self {
        let here = || caller::named_host(&caller.headers, &caller.uri).map(str::to_owned);
        let elsewhere = || match config.hosts.first() {
            Some(name) => format!("{name}:{}", config.listen.port()),
            None => config.listen.to_string(),
        };
        let name = if config.has_api_listener() {
            elsewhere()
        } else {
            here().unwrap_or_else(elsewhere)
        };
        Self {
            name,
            is_https: config.is_https(),
        }
    }

    fn url(&self) -> String {
        let scheme = if self.is_https { "https" } else { "http" };
        format!("{scheme}://{}", self.name)
    }

    /// Whether Docker trusts the host without TLS: it is on this machine.
    fn is_local(&self) -> bool {
        let name = self
            .name
            .rsplit_once(':')
            .map_or(&*self.name, |(name, _port)| name);
        name == "localhost" || name == "[::1]" || name.starts_with("127.")
    }
}

/// `is_refreshing`: browsers forget the chosen part of a page that loads itself again, so that
/// choosing a client then leads to the page that does not.
pub(super) fn section(config: &Config, host: &Host, is_refreshing: bool) -> Markup {
    let page = if is_refreshing { "/?pause=1" } else { "" };
    let tabs = [
        ("docker", "Docker", docker(host)),
        ("containerd", "containerd", containerd(host)),
        ("kubernetes", "Kubernetes", kubernetes(host)),
        ("podman", "Podman", podman(host)),
    ];
    html! {
        section class="use" aria-labelledby="use" {
            h2 id="use" { "Use this host" }
            p class="soft" {
                "Put the host in front of an image’s name, or make it a mirror, and pull as always. The first pull converts; "
                "a pull never waits longer than " (humantime::format_duration(config.wait)) " for it."
            }
            @if !config.access.rule.is_empty() {
                p class="note" {
                    "Rules say who may pull. Log in first: " code { "docker login " (host.name) }
                    ", or the same command of another client."
                }
            }
            nav class="tabs" aria-label="Clients" {
                @for (id, name, _) in &tabs { a href={ (page) "#" (id) } { (name) } }
            }
            div class="panels" {
                @for (id, name, content) in &tabs {
                    section id=(id) aria-label=(name) { h3 { (name) } (content) }
                }
            }
            h3 { "Before the first pull" }
            (code(&format!("starlift warm --server {} docker.io/library/nginx:1.27", host.url())))
        }
    }
}

fn docker(host: &Host) -> Markup {
    let name = &host.name;
    html! {
        (code(&format!("docker pull {name}/docker.io/library/nginx:1.27\ndocker run --rm {name}/docker.io/library/nginx:1.27")))
        p { "Or as a mirror of Docker Hub, in " code { "/etc/docker/daemon.json" } ":" }
        @if host.is_https || host.is_local() {
            (code(&format!("{{\n  \"registry-mirrors\": [\"{}\"]\n}}", host.url())))
        } @else {
            (code(&format!(
                "{{\n  \"registry-mirrors\": [\"{}\"],\n  \"insecure-registries\": [\"{name}\"]\n}}", host.url()
            )))
            p class="soft" { "Docker pulls without TLS only from hosts that are listed there, with the first command too." }
        }
    }
}

fn containerd(host: &Host) -> Markup {
    html! {
        p { "On a node, the agent starts images lazily. One command sets up containerd, the mirror and the service:" }
        (code(&format!("starlift agent install --server {}\nstarlift agent doctor", host.url())))
        p { "Only the mirror, for pods and nerdctl, in " code { "/etc/containerd/certs.d/docker.io/hosts.toml" } ":" }
        (code(&format!(
            "server = \"https://registry-1.docker.io\"\n\n[host.\"{}\"]\ncapabilities = [\"pull\", \"resolve\"]", host.url()
        )))
        p { "The same file in " code { "certs.d/_default" } " is for every registry. " code { "ctr" } " reads it if told to:" }
        (code("ctr image pull --hosts-dir /etc/containerd/certs.d docker.io/library/nginx:1.27"))
    }
}

fn kubernetes(host: &Host) -> Markup {
    let name = &host.name;
    html! {
        p { "Nodes with the agent, by its chart; pods keep the names of their images:" }
        (code(&format!(
            "helm install starlift-agent deploy/helm/starlift-agent \\\n  --namespace starlift --create-namespace \\\n  --set server={}", host.url()
        )))
        p { "Or one pod, without any change of a node:" }
        (code(&format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: nginx\nspec:\n  containers:\n  - name: nginx\n    image: {name}/docker.io/library/nginx:1.27"
        )))
        @if !host.is_https {
            p class="soft" { "Nodes pull from a host without TLS only if their " code { "hosts.toml" } " says so, which the chart writes." }
        }
    }
}

fn podman(host: &Host) -> Markup {
    let name = &host.name;
    let flag = if host.is_https {
        ""
    } else {
        "--tls-verify=false "
    };
    let insecure = if host.is_https {
        ""
    } else {
        "\ninsecure = true"
    };
    html! {
        (code(&format!("podman pull {flag}{name}/docker.io/library/nginx:1.27")))
        p {
            "Or as a mirror, in " code { "/etc/containers/registries.conf.d/starlift.conf" } ", for Podman, Buildah, skopeo and CRI-O:"
        }
        (code(&format!(
            "[[registry]]\nlocation = \"docker.io\"\n\n[[registry.mirror]]\nlocation = \"{name}/docker.io\"{insecure}"
        )))
        p class="soft" { "They pull converted images like any other, and do not mount them lazily." }
    }
}

/// Lines to copy. They scroll by themselves if they are long, also by keys.
fn code(text: &str) -> Markup {
    html! { pre tabindex="0" { code { (text) } } }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, Uri};

    use super::*;

    #[test]
    fn the_token_endpoint_of_a_proxy_with_tls_makes_the_host_https() {
        let caller = Caller {
            headers: HeaderMap::from_iter([(
                http::header::HOST,
                "images.example".parse().unwrap(),
            )]),
            uri: Uri::from_static("/"),
            certificate: None,
        };
        let mut config = Config::default();
        assert_eq!(Host::of(&config, &caller).url(), "http://images.example");
        config.access.realm = Some("https://images.example/token".to_owned());
        assert_eq!(Host::of(&config, &caller).url(), "https://images.example");
    }

    #[test]
    fn hosts_of_this_machine_are_known() {
        let host = |name: &str| Host {
            name: name.to_owned(),
            is_https: false,
        };
        for name in ["127.0.0.1:8080", "localhost", "localhost:80", "[::1]:8080"] {
            assert!(host(name).is_local(), "{name}");
        }
        for name in ["registry.example:8080", "10.0.0.1", "[2001:db8::1]:80"] {
            assert!(!host(name).is_local(), "{name}");
        }
    }
}
