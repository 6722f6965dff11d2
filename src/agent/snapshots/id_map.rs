//! The user namespace of a pod, from the labels that containerd sets for a plugin with the
//! capability `remap-ids`.
//!
//! The mount's options return the maps to containerd, which id-maps the lower layers. No file is
//! copied.

use super::directories::Owner;
use super::error::Error;
use super::record::Labels;

const USERS: (&str, &str) = ("containerd.io/snapshot/uidmapping", "uidmap");
const GROUPS: (&str, &str) = ("containerd.io/snapshot/gidmapping", "gidmap");

/// Returns the mount options for these labels.
pub(super) fn options(labels: &Labels) -> Vec<String> {
    let option = |(label, option): (&str, &str)| Some(format!("{option}={}", labels.get(label)?));
    [USERS, GROUPS].into_iter().filter_map(option).collect()
}

/// Returns the owner of a root directory that belongs to the pod's root, or `None` without a map.
pub(super) fn owner(labels: &Labels) -> Result<Option<Owner>, Error> {
    let maps = [USERS, GROUPS].map(|(label, _)| labels.get(label));
    if maps == [None; 2] {
        return Ok(None);
    }
    let [user, group] = maps.map(|map| map.map_or(Ok(0), |map| host_root(map)));
    Ok(Some(Owner::new(user?, group?)))
}

/// Returns the host's ID of the root of a map (`CONTAINER:HOST:LENGTH`, several with commas).
fn host_root(map: &str) -> Result<u32, Error> {
    let malformed = || Error::IdMap(map.chars().take(100).collect());
    let mut root = None;
    for range in map.split(',') {
        let numbers = range
            .split(':')
            .map(str::parse)
            .collect::<Result<Vec<u32>, _>>();
        match numbers.ok().as_deref() {
            Some(&[container, host, length]) if length > 0 => {
                if container == 0 {
                    root = Some(host);
                }
            }
            _ => return Err(malformed()),
        }
    }
    root.ok_or_else(malformed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(users: &str, groups: &str) -> Labels {
        let labels = [(USERS.0, users), (GROUPS.0, groups)]
            .map(|(key, value)| (key.to_owned(), value.to_owned()));
        labels
            .into_iter()
            .filter(|(_, value)| !value.is_empty())
            .collect()
    }

    #[test]
    fn a_pods_root_is_found_in_its_maps() {
        assert_eq!(owner(&Labels::new()).unwrap(), None);
        assert_eq!(
            owner(&labels("0:100000:65536", "0:200000:65536")).unwrap(),
            Some(Owner::new(100_000, 200_000))
        );
        assert_eq!(
            owner(&labels("1:5:1,0:7:1", "")).unwrap(),
            Some(Owner::new(7, 0))
        );
        for bad in [
            "0:100000",
            "0:100000:0",
            "x",
            "1:5:10",
            "0:1:2:3",
            "0:-1:5",
            "0:99999999999:5",
        ] {
            assert!(
                matches!(owner(&labels(bad, "0:1:1")), Err(Error::IdMap(_))),
                "{bad}"
            );
        }
    }

    #[test]
    fn containerd_gets_its_maps_back() {
        assert_eq!(
            options(&labels("0:1:2", "0:3:4")),
            ["uidmap=0:1:2", "gidmap=0:3:4"]
        );
        assert!(options(&Labels::new()).is_empty());
    }
}
