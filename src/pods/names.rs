//! Names of images in pods. Pure.

use crate::oci::Repository;
use crate::oci::name::{ImageName, split_digest, split_tag};

/// Returns the name by which a server that is reached as one of `hosts` converts the image of a pod:
/// `HOST/docker.io/library/nginx:1` is `docker.io/library/nginx:1`, and so are `nginx:1` and the
/// full name. `None` if the text names no image in a registry.
pub(crate) fn reference(image: &str, hosts: &[String]) -> Option<String> {
    if let Some((host, rest)) = image.split_once('/')
        && hosts.iter().any(|own| is_host(own, host))
    {
        let (name, _) = split_digest(rest);
        let (name, _) = split_tag(name);
        return name.parse::<Repository>().ok().map(|_| rest.to_owned());
    }
    // An image that only the node's runtime knows, by its identifier.
    if image.starts_with("sha256:") {
        return None;
    }
    let image: ImageName = image.parse().ok()?;
    let mut name = format!("{}/{}", image.host, image.repository);
    if let Some(tag) = &image.tag {
        name += &format!(":{tag}");
    }
    if let Some(digest) = &image.digest {
        name += &format!("@{digest}");
    }
    Some(name)
}

/// Whether the host of an image's name is the server's `own` name, which may lack the port.
fn is_host(own: &str, host: &str) -> bool {
    own == host || host.rsplit_once(':').is_some_and(|(name, _)| name == own)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_pods_have_the_names_that_the_server_knows() {
        let hosts = ["starlift.example".to_owned(), "10.0.0.1:8080".to_owned()];
        let digest = format!("sha256:{}", "a".repeat(64));
        let both = format!("ghcr.io/a/b:1@{digest}");
        for (image, expected) in [
            ("nginx", Some("docker.io/library/nginx:latest")),
            ("nginx:1.21", Some("docker.io/library/nginx:1.21")),
            ("docker.io/a/b:1", Some("docker.io/a/b:1")),
            (&both, Some(&*both)),
            (
                "starlift.example/docker.io/library/nginx:1",
                Some("docker.io/library/nginx:1"),
            ),
            ("starlift.example:8443/local/app:1", Some("local/app:1")),
            ("10.0.0.1:8080/ghcr.io/a/b", Some("ghcr.io/a/b")),
            ("10.0.0.1:9090/a/b:1", Some("10.0.0.1:9090/a/b:1")),
            (
                "other.example/docker.io/a:1",
                Some("other.example/docker.io/a:1"),
            ),
            ("starlift.example/", None),
            ("starlift.example/A b", None),
            (&digest, None),
            ("", None),
            ("UPPER", None),
            ("a b", None),
            ("a\n", None),
        ] {
            assert_eq!(reference(image, &hosts).as_deref(), expected, "{image:?}");
        }
    }
}
