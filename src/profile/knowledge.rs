//! Everything learned about one image. Its size is bounded, so that it fits one document.

use std::collections::{BTreeMap, HashSet};

use serde::{Deserialize, Serialize};

use super::document::{Profile, ProfiledFile, Source, Sources};
use super::file::FileUse;
use super::learned::Learned;
use super::observation::{MAX_FILES, Observation};
use super::summary::{Summary, WorkloadSummary};
use super::workload::Workload;
use crate::oci::Digest;

/// The most workloads of one image. The one observed longest ago is dropped.
pub const MAX_WORKLOADS: usize = 8;
/// The most files over all observers and workloads: some 10 MiB of JSON.
pub const MAX_KNOWN_FILES: usize = 131_072;

/// The number of observed starts before an order of files is built on them. A single start may have
/// been unusual.
const SETTLED_AFTER: u32 = 3;

/// The most attempts to analyse an image. The first may have ended because the server stopped.
const MAX_TRIES: u32 = 2;

/// Attempts to analyse an image that have no result yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Tried {
    /// The version of the analysis. Another version may see more.
    by: String,
    times: u32,
}

/// Everything learned about an image's workloads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Knowledge {
    version: u32,
    /// Digest of the configuration of the source image.
    image: Digest,
    /// The prediction from its configuration and files. It counts until something better is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    suggested: Option<Vec<FileUse>>,
    /// The attempts to analyse the image, as long as there is no prediction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tried: Option<Tried>,
    /// The files recorded by hand. They always count, and come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    recorded: Option<Vec<FileUse>>,
    #[serde(default)]
    workloads: BTreeMap<Workload, Learned>,
}

impl Knowledge {
    /// The knowledge of an image before anything is learned.
    pub fn new(image: Digest) -> Self {
        Self {
            version: Profile::VERSION,
            image,
            suggested: None,
            tried: None,
            recorded: None,
            workloads: BTreeMap::new(),
        }
    }

    /// Whether the image was analysed and has a prediction.
    pub fn has_prediction(&self) -> bool {
        self.suggested.is_some()
    }

    pub fn set_prediction(&mut self, files: Vec<FileUse>) {
        self.suggested = Some(bounded(files));
        self.tried = None;
    }

    /// Whether the analysis `by` may run on the image: it did not fail there, and the server did
    /// not end twice while it ran.
    pub fn may_be_tried(&self, by: &str) -> bool {
        self.tried
            .as_ref()
            .is_none_or(|tried| tried.by != by || tried.times < MAX_TRIES)
    }

    /// Notes that the analysis `by` is about to run.
    pub fn is_tried(&mut self, by: &str) {
        let times = self
            .tried
            .as_ref()
            .filter(|tried| tried.by == by)
            .map_or(0, |tried| tried.times);
        self.tried = Some(Tried {
            by: by.to_owned(),
            times: times.saturating_add(1),
        });
    }

    /// Notes that the analysis `by` failed on the image and will fail again.
    pub fn give_up(&mut self, by: &str) {
        self.tried = Some(Tried {
            by: by.to_owned(),
            times: MAX_TRIES,
        });
    }

    /// Notes that the last attempt does not count.
    pub fn was_not_tried(&mut self) {
        self.tried = None;
    }

    /// Whether a person recorded the workload.
    pub fn has_record(&self) -> bool {
        self.recorded.is_some()
    }

    pub fn record(&mut self, files: Vec<FileUse>) {
        self.recorded = Some(bounded(files));
    }

    /// The number of files over all sources, which determines the memory in use.
    pub fn len(&self) -> usize {
        let named = self.suggested.iter().chain(&self.recorded).map(Vec::len);
        named.chain(self.workloads.values().map(Learned::len)).sum()
    }

    /// The bytes of memory that it takes.
    pub fn weight(&self) -> usize {
        let named = self
            .suggested
            .iter()
            .chain(&self.recorded)
            .flatten()
            .map(FileUse::weight);
        size_of::<Self>()
            + named.sum::<usize>()
            + self.workloads.values().map(Learned::weight).sum::<usize>()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Merges the observation of `observer` at `heard`, in seconds since 1970. See `learned` for
    /// the rule.
    pub fn observe(
        &mut self,
        workload: &Workload,
        observer: &str,
        source: Source,
        seen: &Observation,
        heard: u64,
    ) {
        self.workloads
            .entry(workload.clone())
            .or_default()
            .observe(observer, source, seen, heard);
        while self.workloads.len() > MAX_WORKLOADS
            && let Some(oldest) = self.oldest_but(workload)
        {
            self.workloads.remove(&oldest);
        }
        while self.workloads.values().map(Learned::len).sum::<usize>() > MAX_KNOWN_FILES {
            let place = self
                .oldest_but(workload)
                .unwrap_or_else(|| workload.clone());
            let Some(learned) = self.workloads.get_mut(&place) else {
                return;
            };
            learned.forget_first();
            if learned.observers() == 0 {
                self.workloads.remove(&place);
            }
        }
    }

    fn oldest_but(&self, kept: &Workload) -> Option<Workload> {
        let others = self
            .workloads
            .iter()
            .filter(|(workload, _)| *workload != kept);
        others
            .min_by_key(|(_, learned)| learned.heard())
            .map(|(workload, _)| workload.clone())
    }

    /// Whether enough is known about a workload to build on: it was recorded by hand, or enough
    /// starts were observed.
    pub fn is_settled(&self, workload: &Workload) -> bool {
        let starts = self.workloads.get(workload).map_or(0, Learned::starts);
        self.has_record() || starts >= SETTLED_AFTER
    }

    /// The number of observers of a workload, or of the default one if the workload is unknown.
    pub fn observers(&self, workload: &Workload) -> usize {
        self.learned(workload).map_or(0, Learned::observers)
    }

    fn learned(&self, workload: &Workload) -> Option<&Learned> {
        self.workloads
            .get(workload)
            .or_else(|| self.workloads.get(&Workload::default()))
    }

    /// The time of the last observation of any workload, in seconds since 1970, or 0 if there is
    /// none.
    pub fn heard(&self) -> u64 {
        self.workloads
            .values()
            .map(Learned::heard)
            .max()
            .unwrap_or_default()
    }

    /// The sources of the profile, in numbers.
    pub fn summary(&self) -> Summary {
        let workloads = self.workloads.iter();
        let workloads = workloads.map(|(workload, learned)| WorkloadSummary {
            workload: workload.clone(),
            starts: learned.starts(),
            nodes: learned.observers() - learned.clients(),
            clients: learned.clients(),
            heard: learned.heard(),
        });
        Summary {
            recorded: self.recorded.as_ref().map(Vec::len),
            predicted: self.suggested.as_ref().map(Vec::len),
            workloads: workloads.collect(),
        }
    }

    /// The files to prefetch for a workload: those recorded by hand, then those learned. If there
    /// are none, the predicted ones. An unknown workload is treated as the default one.
    pub fn profile(&self, workload: &Workload) -> Profile {
        let learned = self.learned(workload);
        let agreed = learned.map(Learned::agreed).unwrap_or_default();
        let mut files: Vec<ProfiledFile> = of(self.recorded.as_deref(), Source::ByHand).collect();
        if files.is_empty() {
            files = agreed;
        } else {
            let recorded: HashSet<_> = files
                .iter()
                .map(|file| (file.layer, file.path.clone()))
                .collect();
            files.extend(
                agreed
                    .into_iter()
                    .filter(|file| !recorded.contains(&(file.layer, file.path.clone()))),
            );
        }
        if files.is_empty() {
            files = of(self.suggested.as_deref(), Source::Static).collect();
        }
        files.truncate(MAX_FILES);
        Profile {
            version: Profile::VERSION,
            image: self.image.clone(),
            workload: workload.clone(),
            observers: learned.map_or(0, Learned::observers),
            files,
        }
    }
}

fn of(files: Option<&[FileUse]>, source: Source) -> impl Iterator<Item = ProfiledFile> {
    let files = files.unwrap_or_default().iter().cloned();
    files.map(move |file| ProfiledFile::new(file, Sources::from([source])))
}

/// The well-formed files in the given order, each once, and no more than the limit.
fn bounded(mut files: Vec<FileUse>) -> Vec<FileUse> {
    let mut seen = HashSet::new();
    files.retain(|file| file.is_well_formed() && seen.insert((file.layer, file.path.clone())));
    files.truncate(MAX_FILES);
    files
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::profile::Extents;

    fn file(path: &str) -> FileUse {
        FileUse {
            layer: 0,
            path: path.to_owned(),
            extents: Extents::default(),
            after: Duration::ZERO,
        }
    }

    fn workload(name: &str) -> Workload {
        name.parse().unwrap()
    }

    fn knowledge() -> Knowledge {
        Knowledge::new(Digest::sha256_of(b"config"))
    }

    fn paths(knowledge: &Knowledge, name: &str) -> Vec<String> {
        knowledge
            .profile(&workload(name))
            .files
            .into_iter()
            .map(|file| file.path)
            .collect()
    }

    fn observe(knowledge: &mut Knowledge, name: &str, observer: &str, files: &[&str], heard: u64) {
        let seen = Observation::new(files.iter().map(|path| file(path)).collect());
        knowledge.observe(&workload(name), observer, Source::Agents, &seen, heard);
    }

    #[test]
    fn a_prediction_counts_until_something_is_observed() {
        let mut knowledge = knowledge();
        assert!(!knowledge.has_prediction() && knowledge.profile(&Workload::default()).is_empty());
        knowledge.set_prediction(vec![file("guess"), file("guess"), file("../odd")]);
        assert_eq!(paths(&knowledge, "default"), ["guess"]);
        observe(&mut knowledge, "default", "one", &["seen"], 1);
        assert_eq!(paths(&knowledge, "default"), ["seen"]);
        knowledge.record(vec![file("hand"), file("seen")]);
        assert_eq!(paths(&knowledge, "default"), ["hand", "seen"]);
    }

    #[test]
    fn an_image_is_not_analysed_again_after_a_failure_or_two_stops_of_the_server() {
        let mut failed = knowledge();
        failed.is_tried("p1");
        failed.give_up("p1");
        assert!(!failed.may_be_tried("p1") && failed.may_be_tried("p2"));
        let mut ended = knowledge();
        for time in 0..MAX_TRIES {
            assert!(ended.may_be_tried("p1"), "{time}");
            ended.is_tried("p1");
        }
        let text = serde_json::to_string(&ended).unwrap();
        let mut ended: Knowledge = serde_json::from_str(&text).unwrap();
        assert!(!ended.may_be_tried("p1"));
        ended.is_tried("p2");
        assert!(ended.may_be_tried("p2"));
        ended.was_not_tried();
        assert!(ended.may_be_tried("p1") && ended.may_be_tried("p2"));
    }

    #[test]
    fn an_order_needs_several_starts_or_a_recording() {
        let mut knowledge = knowledge();
        for start in 0..SETTLED_AFTER {
            assert!(!knowledge.is_settled(&Workload::default()), "after {start}");
            observe(
                &mut knowledge,
                "default",
                &format!("{}", start / 2),
                &["a"],
                u64::from(start) + 7,
            );
        }
        assert!(
            knowledge.is_settled(&Workload::default()) && !knowledge.is_settled(&workload("web"))
        );
        assert_eq!(knowledge.heard(), 9);
        let mut recorded = Knowledge::new(Digest::sha256_of(b"config"));
        recorded.record(vec![file("a")]);
        assert!(recorded.is_settled(&Workload::default()));
    }

    #[test]
    fn workloads_are_learned_separately_and_a_new_one_begins_with_the_default() {
        let mut knowledge = knowledge();
        observe(&mut knowledge, "default", "one", &["a"], 1);
        observe(&mut knowledge, "web", "two", &["b"], 1);
        assert_eq!(
            ["default", "web", "batch"].map(|name| paths(&knowledge, name)),
            [["a"], ["b"], ["a"]]
        );
    }

    #[test]
    fn knowledge_stays_small_however_much_is_observed() {
        let names: Vec<String> = (0..MAX_FILES).map(|at| format!("f{at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let mut knowledge = knowledge();
        for heard in 0..20 {
            observe(
                &mut knowledge,
                &format!("w{heard}"),
                &format!("o{heard}"),
                &names,
                heard,
            );
        }
        for heard in 20..40 {
            observe(&mut knowledge, "w19", &format!("o{heard}"), &names, heard);
        }
        assert!(knowledge.workloads.len() <= MAX_WORKLOADS);
        assert!(
            knowledge
                .workloads
                .values()
                .map(Learned::len)
                .sum::<usize>()
                <= MAX_KNOWN_FILES
        );
        assert_eq!(paths(&knowledge, "w19").len(), MAX_FILES);
    }

    #[test]
    fn knowledge_is_read_as_it_was_written() {
        let mut knowledge = knowledge();
        knowledge.set_prediction(vec![file("guess")]);
        observe(&mut knowledge, "default", "one", &["seen", "ü"], 1);
        let json = serde_json::to_vec(&knowledge).unwrap();
        assert_eq!(
            serde_json::from_slice::<Knowledge>(&json).unwrap(),
            knowledge
        );
    }
}
