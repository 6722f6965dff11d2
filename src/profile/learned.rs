//! The files that many starts of one workload have in common.
//!
//! The rule, in full:
//! * One opinion is kept for each observer (a node, or a client seen by its ranges), and at most
//!   [`MAX_OBSERVERS`] of them: those heard from last. An observer's first start counts whole. Each
//!   further start counts half, and all before it the other half. So a file that is no longer used
//!   drops out after two starts, and repeating the same observation changes nothing.
//! * An opinion's weight halves with each [`HALF_LIFE`] that it is older than the newest one. An
//!   opinion inferred from ranges weighs a quarter of a node's.
//! * A file is included if at least half of the weight says so. A part of it is included if more
//!   than half of the weight that knows parts says so. One liar among three observers adds nothing
//!   and removes nothing.
//! * The order is that of the weighted mean of the file's place in each opinion.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::document::{ProfiledFile, Source, Sources};
use super::extents::Extents;
use super::file::{FileUse, milliseconds};
use super::observation::Observation;

/// The most observers whose opinion is kept: enough to outvote a few unusual ones.
pub const MAX_OBSERVERS: usize = 16;
/// The age relative to the newest opinion at which an opinion weighs half: a new version of a
/// program is learned within days.
pub const HALF_LIFE: Duration = Duration::from_secs(7 * 24 * 60 * 60);
/// The score of a file in an observer's first start, which is the highest score.
const SURE: u16 = 1000;
/// A file with a lower score is forgotten, which is after four starts without it.
const FORGOTTEN: u16 = 100;
/// Ranges also cover bytes next to the file, so they weigh less.
const WEIGHT_OF_RANGES: f64 = 0.25;

/// The opinions of a workload's observers, the latest at the end.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Learned {
    observers: Vec<Observer>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Observer {
    id: String,
    source: Source,
    /// Seconds since 1970.
    heard: u64,
    /// The number of starts that it reported.
    starts: u32,
    files: Vec<Known>,
}

/// A file in the opinion of one observer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    layer: u32,
    path: String,
    #[serde(default, skip_serializing_if = "Extents::is_empty")]
    extents: Extents,
    #[serde(rename = "after_ms", with = "milliseconds")]
    after: Duration,
    /// Out of [`SURE`].
    score: u16,
}

/// The sum of all opinions about one file.
#[derive(Default)]
struct Opinions<'a> {
    weight: f64,
    places: f64,
    after: f64,
    extents: Vec<(&'a Extents, f64)>,
    sources: Sources,
}

impl Learned {
    /// Merges the observation of the observer `id` at `heard`, in seconds since 1970.
    pub(super) fn observe(
        &mut self,
        id: &str,
        source: Source,
        observation: &Observation,
        heard: u64,
    ) {
        let known = self
            .observers
            .iter()
            .position(|observer| observer.id == id && observer.source == source);
        let before = known.map(|index| self.observers.remove(index));
        let (starts, files) = match before {
            Some(before) => (
                before.starts.saturating_add(1),
                blended(before.files, observation.files()),
            ),
            None => (
                1,
                observation
                    .files()
                    .iter()
                    .map(|file| Known::new(file, SURE))
                    .collect(),
            ),
        };
        self.observers.push(Observer {
            id: id.to_owned(),
            source,
            heard,
            starts,
            files,
        });
        let surplus = self.observers.len().saturating_sub(MAX_OBSERVERS);
        drop(self.observers.drain(..surplus));
    }

    pub(super) fn observers(&self) -> usize {
        self.observers.len()
    }

    /// The number of observers that are clients known by their ranges.
    pub(super) fn clients(&self) -> usize {
        let observers = self.observers.iter();
        observers
            .filter(|observer| observer.source == Source::Ranges)
            .count()
    }

    /// The number of reported starts.
    pub(super) fn starts(&self) -> u32 {
        self.observers
            .iter()
            .fold(0, |sum, observer| sum.saturating_add(observer.starts))
    }

    /// The time of the latest observation, in seconds since 1970.
    pub(super) fn heard(&self) -> u64 {
        self.observers
            .iter()
            .map(|observer| observer.heard)
            .max()
            .unwrap_or_default()
    }

    /// The number of files over all opinions.
    pub(super) fn len(&self) -> usize {
        self.observers
            .iter()
            .map(|observer| observer.files.len())
            .sum()
    }

    /// The bytes that all opinions take.
    pub(super) fn weight(&self) -> usize {
        let known = |known: &Known| size_of::<Known>() + known.path.len() + known.extents.weight();
        self.observers
            .iter()
            .map(|observer| observer.files.iter().map(known).sum::<usize>())
            .sum()
    }

    /// Drops the oldest opinion.
    pub(super) fn forget_first(&mut self) {
        if !self.observers.is_empty() {
            self.observers.remove(0);
        }
    }

    /// The agreed files, in order.
    pub(super) fn agreed(&self) -> Vec<ProfiledFile> {
        let newest = self.heard();
        let mut files: BTreeMap<(u32, &str), Opinions<'_>> = BTreeMap::new();
        let mut total = 0.0;
        for observer in &self.observers {
            let weight = observer.weight(newest);
            total += weight;
            for (place, known) in (0_u32..).zip(&observer.files) {
                files.entry((known.layer, &known.path)).or_default().add(
                    observer.source,
                    known,
                    place,
                    weight,
                );
            }
        }
        let agreed = files
            .into_iter()
            .filter(|(_, opinions)| opinions.weight * 2.0 >= total);
        let mut agreed: Vec<_> = agreed
            .map(|(key, opinions)| opinions.together(key))
            .collect();
        agreed.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        agreed.into_iter().map(|(_, file)| file).collect()
    }
}

impl Observer {
    fn weight(&self, newest: u64) -> f64 {
        let age = Duration::from_secs(newest.saturating_sub(self.heard));
        let of_source = if self.source == Source::Ranges {
            WEIGHT_OF_RANGES
        } else {
            1.0
        };
        of_source * (-age.div_duration_f64(HALF_LIFE)).exp2()
    }
}

impl Known {
    fn new(file: &FileUse, score: u16) -> Self {
        let FileUse {
            layer,
            path,
            extents,
            after,
        } = file.clone();
        Self {
            layer,
            path,
            extents,
            after,
            score,
        }
    }
}

/// An observer's opinion after a further start: the start's files in their order, then the files
/// that were not used this time.
fn blended(before: Vec<Known>, start: &[FileUse]) -> Vec<Known> {
    let mut before_by_key: BTreeMap<(u32, String), Known> = BTreeMap::new();
    let mut order = Vec::new();
    for known in before {
        let key = (known.layer, known.path.clone());
        order.push(key.clone());
        before_by_key.insert(key, known);
    }
    let mut after: Vec<Known> = Vec::with_capacity(start.len());
    for file in start {
        let earlier = before_by_key.remove(&(file.layer, file.path.clone()));
        let mut known = Known::new(file, SURE / 2);
        if let Some(earlier) = earlier {
            known.score += earlier.score / 2;
            // A start with its pages in the page cache still shows which files are opened, but not
            // which parts are read.
            known.extents = known.extents.union(&earlier.extents);
        }
        after.push(known);
    }
    for key in order {
        if let Some(mut known) = before_by_key.remove(&key) {
            known.score /= 2;
            if known.score >= FORGOTTEN {
                after.push(known);
            }
        }
    }
    after
}

impl<'a> Opinions<'a> {
    fn add(&mut self, source: Source, known: &'a Known, place: u32, weight: f64) {
        let weight = weight * f64::from(known.score) / f64::from(SURE);
        self.weight += weight;
        self.places += weight * f64::from(place);
        self.after += weight * known.after.as_secs_f64();
        if !known.extents.is_empty() {
            self.extents.push((&known.extents, weight));
        }
        self.sources.insert(source);
    }

    /// Returns the file's mean place, and the file.
    fn together(self, (layer, path): (u32, &str)) -> (f64, ProfiledFile) {
        let after = Duration::try_from_secs_f64(self.after / self.weight).unwrap_or_default();
        // Whole milliseconds, as in the document.
        let after = Duration::from_millis(u64::try_from(after.as_millis()).unwrap_or(u64::MAX));
        let file = FileUse {
            layer,
            path: path.to_owned(),
            extents: Extents::agreed(self.extents),
            after,
        };
        (
            self.places / self.weight,
            ProfiledFile::new(file, self.sources),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn observation(paths: &[&str]) -> Observation {
        let files = (0..).zip(paths).map(|(at, path)| FileUse {
            layer: 0,
            path: (*path).to_owned(),
            extents: Extents::default(),
            after: Duration::from_millis(at),
        });
        Observation::new(files.collect())
    }

    fn learned(starts: &[(&str, &[&str])]) -> Learned {
        let mut learned = Learned::default();
        for (id, paths) in starts {
            learned.observe(id, Source::Agents, &observation(paths), NOW);
        }
        learned
    }

    fn agreed(learned: &Learned) -> Vec<String> {
        learned.agreed().into_iter().map(|file| file.path).collect()
    }

    #[test]
    fn a_single_start_is_taken_as_it_is() {
        assert_eq!(
            agreed(&learned(&[("one", &["c", "a", "b"])])),
            ["c", "a", "b"]
        );
        assert_eq!(agreed(&Learned::default()), [""; 0]);
    }

    #[test]
    fn a_liar_among_three_adds_and_removes_nothing() {
        let lie: Vec<String> = (0..1000).map(|at| format!("lie{at}")).collect();
        let lie: Vec<&str> = lie.iter().map(String::as_str).collect();
        let mut learned = learned(&[("one", &["a", "b"]), ("two", &["a", "b"])]);
        for _ in 0..50 {
            learned.observe("liar", Source::Agents, &observation(&lie), NOW);
        }
        assert_eq!(agreed(&learned), ["a", "b"]);
        assert_eq!(learned.observers(), 3);
    }

    #[test]
    fn repeating_an_observation_changes_nothing() {
        let once = learned(&[("one", &["a"]), ("two", &["b"])]);
        let again = learned(&[
            ("one", &["a"]),
            ("two", &["b"]),
            ("one", &["a"]),
            ("one", &["a"]),
        ]);
        assert_eq!(agreed(&once), agreed(&again));
    }

    #[test]
    fn unused_files_drop_out_and_new_ones_are_added() {
        let mut starts: Vec<(&str, &[&str])> = vec![("one", &["old", "both"])];
        starts.push(("one", &["both", "new"]));
        assert_eq!(
            agreed(&learned(&starts)),
            ["both", "new", "old"],
            "both have half of the weight"
        );
        starts.push(("one", &["both", "new"]));
        assert_eq!(agreed(&learned(&starts)), ["both", "new"]);
        starts.extend([("one", &["both", "new"] as &[&str]); 3]);
        assert_eq!(learned(&starts).len(), 2, "the unused file is forgotten");
    }

    #[test]
    fn a_new_version_is_learned_within_days_of_many_old_ones() {
        let mut learned = Learned::default();
        for id in ["one", "two", "three", "four"] {
            learned.observe(id, Source::Agents, &observation(&["old"]), NOW);
        }
        let weeks = |count: u64| NOW + count * HALF_LIFE.as_secs();
        learned.observe("five", Source::Agents, &observation(&["new"]), weeks(0));
        assert_eq!(agreed(&learned), ["old"]);
        learned.observe("five", Source::Agents, &observation(&["new"]), weeks(2));
        assert_eq!(
            agreed(&learned),
            ["new", "old"],
            "four opinions of a quarter each balance one"
        );
        learned.observe("five", Source::Agents, &observation(&["new"]), weeks(3));
        assert_eq!(agreed(&learned), ["new"]);
    }

    #[test]
    fn observations_of_nodes_outweigh_those_from_ranges() {
        let mut learned = learned(&[("node", &["exact"])]);
        for id in ["a", "b", "c"] {
            learned.observe(id, Source::Ranges, &observation(&["exact", "beside"]), NOW);
        }
        let files = learned.agreed();
        assert_eq!(agreed(&learned), ["exact"]);
        assert_eq!(
            files[0].sources,
            Sources::from([Source::Agents, Source::Ranges])
        );
    }

    #[test]
    fn files_are_ordered_by_their_mean_place() {
        let starts: [(&str, &[&str]); 3] = [
            ("1", &["a", "b", "c"]),
            ("2", &["a", "c", "b"]),
            ("3", &["c", "a", "b"]),
        ];
        assert_eq!(agreed(&learned(&starts)), ["a", "c", "b"]);
    }

    #[test]
    fn the_oldest_opinions_are_dropped() {
        let ids: Vec<String> = (0..MAX_OBSERVERS + 5).map(|at| at.to_string()).collect();
        let mut learned = Learned::default();
        ids.iter()
            .for_each(|id| learned.observe(id, Source::Agents, &observation(&[id]), NOW));
        assert_eq!(learned.observers(), MAX_OBSERVERS);
        assert_eq!(learned.observers[0].id, "5");
    }

    #[test]
    fn parts_survive_a_start_that_shows_none_and_a_liar_adds_none() {
        let read = |range| {
            let file = FileUse {
                layer: 0,
                path: "a".to_owned(),
                extents: Extents::new(range),
                after: Duration::ZERO,
            };
            Observation::new(vec![file])
        };
        let mut learned = Learned::default();
        learned.observe("one", Source::Agents, &read(Some(0..10)), NOW);
        learned.observe("one", Source::Agents, &read(None), NOW);
        assert_eq!(learned.agreed()[0].extents, Extents::new(Some(0..10)));
        learned.observe("two", Source::Agents, &read(Some(0..10)), NOW);
        learned.observe("liar", Source::Agents, &read(Some(0..1 << 40)), NOW);
        assert_eq!(learned.agreed()[0].extents, Extents::new(Some(0..10)));
    }
}
