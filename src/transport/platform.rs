//! Chooses the child of an index for a platform, as containerd does (`platforms/compare.go`,
//! `Only`).

use std::collections::BTreeSet;

use super::document::parse;
use crate::failure::Failure;
use crate::oci::manifest::{DescriptorPlatform, Index};
use crate::oci::{Descriptor, Manifest, Platform};

/// Returns the image of `index` for a platform.
pub(crate) fn child_of(index: &Manifest, wanted: &Platform) -> Result<Descriptor, Failure> {
    let children = parse::<Index>(index)?.manifests;
    choose(&children, wanted).cloned().ok_or_else(|| {
        let platforms = children.iter().filter_map(|child| child.platform.as_ref());
        let offered: BTreeSet<_> = platforms.map(DescriptorPlatform::to_platform).collect();
        let offered = offered
            .iter()
            .map(Platform::to_string)
            .collect::<Vec<_>>()
            .join(", ");
        Failure::new(format!(
            "image has nothing for {wanted}, only for {offered}"
        ))
    })
}

/// Returns the child that containerd would choose on a machine of this platform: the closest one,
/// else one without a platform.
fn choose<'a>(children: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    let platform = |child: &Descriptor| {
        child
            .platform
            .as_ref()
            .map(|p| normalised(&DescriptorPlatform::to_platform(p)))
    };
    let closest = runnable(wanted).into_iter().find_map(|taken| {
        children
            .iter()
            .find(|child| platform(child).as_ref() == Some(&taken))
    });
    closest.or_else(|| children.iter().find(|child| child.platform.is_none()))
}

/// Returns all platforms whose programs run on this one, the best first.
fn runnable(platform: &Platform) -> Vec<Platform> {
    let first = normalised(platform);
    let like = |architecture: &str, variant: Option<String>| Platform {
        os: first.os.clone(),
        architecture: architecture.to_owned(),
        variant,
    };
    let level = first
        .variant
        .as_deref()
        .and_then(|variant| variant.strip_prefix('v')?.parse::<u8>().ok());
    let below = |level: u8, lowest: u8| (lowest..level).rev().map(|level| format!("v{level}"));
    let mut others = Vec::new();
    match first.architecture.as_str() {
        "amd64" => {
            others.extend(
                below(level.unwrap_or(1), 1)
                    .map(|variant| normalised(&like("amd64", Some(variant)))),
            );
            others.push(like("386", None));
        }
        "arm" => {
            others.extend(below(level.unwrap_or(5), 5).map(|variant| like("arm", Some(variant))))
        }
        "arm64" => others
            .extend(below(level.unwrap_or(8) + 1, 5).map(|variant| like("arm", Some(variant)))),
        _ => {}
    }
    std::iter::once(first).chain(others).collect()
}

/// Returns the canonical spelling of a platform that has several.
fn normalised(platform: &Platform) -> Platform {
    let variant = match (platform.architecture.as_str(), platform.variant.as_deref()) {
        ("amd64", Some("v1")) | ("arm64", Some("v8" | "8")) | (_, Some("")) => None,
        ("arm", None) => Some("v7".to_owned()),
        (_, variant) => variant.map(str::to_owned),
    };
    Platform {
        variant,
        ..platform.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    /// Returns the platform of the chosen child; `-` stands for a child without one.
    fn taken(offered: &[&str], wanted: &str) -> Option<String> {
        let children: Vec<Descriptor> = offered.iter().map(|text| child(text)).collect();
        let child = choose(&children, &wanted.parse().unwrap())?;
        Some(child.platform.as_ref().map_or("-".to_owned(), |platform| {
            platform.to_platform().to_string()
        }))
    }

    fn child(platform: &str) -> Descriptor {
        let mut text = serde_json::json!({"mediaType": "a", "digest": Digest::sha256_of(platform.as_bytes()), "size": 1});
        if let Ok(platform) = platform.parse::<Platform>() {
            text["platform"] =
                serde_json::json!({"os": platform.os, "architecture": platform.architecture});
            if let Some(variant) = platform.variant {
                text["platform"]["variant"] = variant.into();
            }
        }
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn the_closest_platform_is_chosen_in_any_position() {
        for (offered, wanted, expected) in [
            (
                &["linux/arm64", "linux/386", "linux/amd64"][..],
                "linux/amd64",
                "linux/amd64",
            ),
            (
                &["linux/amd64/v3", "linux/amd64/v1"],
                "linux/amd64",
                "linux/amd64/v1",
            ),
            (
                &["linux/amd64", "linux/amd64/v2"],
                "linux/amd64/v3",
                "linux/amd64/v2",
            ),
            (&["linux/386"], "linux/amd64", "linux/386"),
            (
                &["linux/arm/v5", "linux/arm/v6"],
                "linux/arm",
                "linux/arm/v6",
            ),
            (
                &["linux/arm/v7", "linux/arm64/v8"],
                "linux/arm64",
                "linux/arm64/v8",
            ),
            (&["linux/arm/v7"], "linux/arm64", "linux/arm/v7"),
            (&["-", "linux/s390x"], "linux/amd64", "-"),
        ] {
            assert_eq!(
                taken(offered, wanted).as_deref(),
                Some(expected),
                "{wanted} of {offered:?}"
            );
        }
        assert_eq!(
            taken(&["windows/amd64", "linux/amd64/v3"], "linux/amd64"),
            None
        );
    }
}
