//! The observations of the soak, the invariants, and the report.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::figures::float;
use crate::plot::{Curve, Lines, Plot};
use crate::report::Report;
use crate::soak::clients::Shared;
use crate::soak::containers::{Checked, Container, SharedNode};
use crate::soak::faults::Fault;
use crate::soak::replicas::{Replica, Sample};
use crate::soak::tally::{Outcome, PERIOD};
use crate::soak::{REST_WITHIN, marks, slope};

/// Descriptors that may be open when idle beyond those at the start: kept connections to upstreams
/// and the store.
const KEPT_DESCRIPTORS: f64 = 64.0;
/// The most growth of a process that was never killed, in the second half of a run that is long
/// enough to tell. Caches fill up within the first half.
const MOST_GROWTH_MIB_PER_MINUTE: f64 = 2.0;
const LONG_ENOUGH_SECONDS: f64 = 1200.0;

/// Returns one figure of a sample.
type Figure = fn(&Sample) -> f64;

/// Returns one of the counts.
type CountOf = fn(&Checked) -> u64;

#[derive(Debug, Default)]
pub(super) struct Findings {
    replicas: usize,
    /// Of each replica, then of each agent.
    pub(super) samples: Vec<Vec<Sample>>,
    pub(super) before: Vec<Option<Sample>>,
    pub(super) after: Vec<Option<Sample>>,
    pub(super) gauges_before: BTreeMap<String, f64>,
    pub(super) gauges_after: BTreeMap<String, f64>,
    /// Seconds since the start.
    pub(super) faults: Vec<(f64, Fault)>,
    crashes: BTreeMap<String, f64>,
    /// The files that the lasting containers of both nodes have read by then.
    pub(super) checked: Vec<(f64, Vec<Checked>)>,
    containers: Vec<Vec<String>>,
    wrong_files: Vec<String>,
    stuck: Vec<String>,
    pub(super) panics: usize,
    pub(super) rested: Option<f64>,
    /// What is left of the nodes after their end.
    pub(super) left: Vec<String>,
    /// Leases in the bucket, and uploads that killed replicas have left.
    pub(super) leases: usize,
    pub(super) open_uploads: usize,
}

impl Findings {
    pub(super) fn new(replicas: usize, nodes: usize) -> Self {
        Self {
            replicas,
            samples: vec![Vec::new(); replicas + nodes],
            ..Self::default()
        }
    }

    /// Notes that a process ended by itself.
    pub(super) fn crash(&mut self, name: String, at: f64) {
        self.crashes.entry(name).or_insert(at);
    }

    /// Waits until each container has read a file right, now that no fault is left.
    pub(super) async fn recovered(
        &mut self,
        containers: &mut [(SharedNode, Container)],
        limit: Duration,
    ) {
        let until = Instant::now() + limit;
        for (node, container) in containers {
            let before = container.look().right;
            while container.look().right <= before {
                if Instant::now() > until {
                    self.stuck.push(container.name.clone());
                    break;
                }
                let _next_turn = container.revive(node).await;
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }

    /// Notes the end of a container.
    pub(super) fn container(&mut self, container: &mut Container) {
        let Checked {
            right,
            failed,
            wrong,
        } = container.look();
        if wrong > 0 {
            let names = container.wrong().unwrap_or_default();
            self.wrong_files
                .push(format!("{}: {}", container.name, names.replace('\n', " ")));
        }
        self.containers.push(vec![
            container.name.clone(),
            right.to_string(),
            failed.to_string(),
            wrong.to_string(),
            container.restarts.to_string(),
            format!("{:.0}", container.longest_pause.as_secs_f64()),
        ]);
    }

    fn name(&self, number: usize) -> String {
        if number < self.replicas {
            format!("replica {}", number + 1)
        } else {
            format!("agent {}", number - self.replicas + 1)
        }
    }

    pub(super) fn report(&self, report: &mut Report, shared: &Shared, replicas: &[Replica]) {
        let rest = self.rested.map_or_else(
            || "not idle".to_owned(),
            |seconds| format!("the replicas idle {seconds:.0} s after the load"),
        );
        report.note(format!(
            "{rest}; panics in the logs: {}; in the bucket afterwards: {} held leases, {} uploads that killed replicas have \
             left (a bucket's own rule deletes them)",
            self.panics, self.leases, self.open_uploads
        ));
        let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for (_, fault) in &self.faults {
            *counts.entry((fault.letter(), fault.name())).or_default() += 1;
        }
        let counts = counts.iter().map(|((letter, name), count)| {
            vec![(*letter).to_owned(), (*name).to_owned(), count.to_string()]
        });
        report.table(
            "Faults, with their letters in the plots",
            &["", "fault", "count"],
            counts.collect(),
        );
        report.table(
            "Requests and starts",
            &["client", "outcome", "count", "error of the last"],
            shared.tally.rows(),
        );
        if !self.containers.is_empty() {
            report.table(
                "Containers that lasted: the files that they have read and compared",
                &[
                    "container",
                    "right",
                    "read failed",
                    "wrong",
                    "started again",
                    "longest time without a result, s",
                ],
                self.containers.clone(),
            );
        }
        report.table(
            "Processes",
            &["process", "kills", "", "before", "peak", "at rest"],
            self.process_rows(replicas),
        );
        report.table(
            "Growth in the second half of the load",
            &["process", "MiB/minute"],
            self.growth_rows(),
        );
        report.table(
            "Gauges of replica 1, never killed",
            &["gauge", "before", "at rest"],
            gauge_rows(&self.gauges_before, &self.gauges_after),
        );
        self.plots(report, shared);
        for failure in self.failures(shared) {
            report.fail(failure);
        }
    }

    fn process_rows(&self, replicas: &[Replica]) -> Vec<Vec<String>> {
        let figures: [(&str, Figure); 3] = [
            ("resident memory, MiB", |sample| sample.memory_mib),
            ("descriptors", |sample| sample.descriptors),
            ("threads", |sample| sample.threads),
        ];
        let mut rows = Vec::new();
        for (number, samples) in self.samples.iter().enumerate() {
            for (figure, value) in figures {
                let peak = samples.iter().map(value).fold(0.0, f64::max);
                let show = |samples: &[Option<Sample>]| {
                    let sample = samples.get(number).copied().flatten();
                    sample.map_or_else(|| "–".to_owned(), |sample| format!("{:.0}", value(&sample)))
                };
                let kills = replicas
                    .get(number)
                    .map_or_else(|| "–".to_owned(), |replica| replica.kills.to_string());
                rows.push(vec![
                    self.name(number),
                    kills,
                    figure.to_owned(),
                    show(&self.before),
                    format!("{peak:.0}"),
                    show(&self.after),
                ]);
            }
        }
        rows
    }

    /// The growth of a process in the second half of the load, MiB a minute.
    fn growth(&self, number: usize) -> Option<f64> {
        let end = self.checked.last()?.0;
        let second_half = self.samples[number]
            .iter()
            .filter(|sample| sample.at > end / 2.0 && sample.at <= end)
            .map(|sample| (sample.at / 60.0, sample.memory_mib));
        slope::of(&second_half.collect::<Vec<_>>())
    }

    /// The processes that no fault ends: replica 1 and the agent of node 2.
    fn never_killed(&self) -> Vec<usize> {
        let agent_2 = self.replicas + 1;
        [0, agent_2]
            .into_iter()
            .filter(|number| *number < self.samples.len())
            .collect()
    }

    fn growth_rows(&self) -> Vec<Vec<String>> {
        let row = |number| {
            let growth = self.growth(number);
            let growth = growth.map_or_else(|| "–".to_owned(), |growth| format!("{growth:+.2}"));
            vec![self.name(number), growth]
        };
        self.never_killed().into_iter().map(row).collect()
    }

    fn plots(&self, report: &mut Report, shared: &Shared) {
        let figures: [(&str, &str, Figure); 2] = [
            ("Resident memory", "MiB", |sample| sample.memory_mib),
            ("Open descriptors", "descriptors", |sample| {
                sample.descriptors
            }),
        ];
        let plot = |title: &str, y, curves| {
            Plot::Lines(Lines {
                title: format!("{title} (dashed: a fault begins)"),
                x: "seconds",
                y,
                curves,
                marks: marks(&self.faults),
            })
        };
        for (title, unit, value) in figures {
            let curves = self.samples.iter().enumerate().map(|(number, samples)| {
                let points = samples.iter().map(|sample| (sample.at, value(sample)));
                Curve {
                    label: self.name(number),
                    points: points.collect(),
                }
            });
            report.plot(plot(title, unit, curves.collect()));
        }
        for kind in shared.tally.kinds() {
            let title = format!("Successful: {kind}");
            report.plot(plot(&title, "seconds", shared.tally.latencies(kind)));
        }
        let failures = shared.tally.failures();
        report.plot(plot("Failures", "a second", failures));
        if !self.containers.is_empty() {
            report.plot(plot(
                "Files read by containers that last",
                "a second",
                self.reads(),
            ));
        }
    }

    /// The files that containers read, a second, right and failed.
    fn reads(&self) -> Vec<Curve> {
        let mut curves = Vec::new();
        let figures: [(&str, CountOf); 2] = [
            ("right", |checked| checked.right),
            ("failed", |checked| checked.failed),
        ];
        for node in 0..2 {
            for (name, figure) in figures {
                let mut points = Vec::new();
                let mut last: Option<(f64, u64)> = None;
                for (at, sums) in &self.checked {
                    let Some(count) = sums.get(node).map(figure) else {
                        continue;
                    };
                    let (since, before) = *last.get_or_insert((*at, count));
                    if at - since >= PERIOD {
                        points.push((*at, float(count.saturating_sub(before)) / (at - since)));
                        last = Some((*at, count));
                    }
                }
                curves.push(Curve {
                    label: format!("node {}, {name}", node + 1),
                    points,
                });
            }
        }
        curves
    }

    /// Returns the violated invariants.
    fn failures(&self, shared: &Shared) -> Vec<String> {
        let mut failures: Vec<String> = shared
            .tally
            .wrong()
            .into_iter()
            .map(|wrong| format!("wrong: {wrong}"))
            .collect();
        failures.extend(
            self.wrong_files
                .iter()
                .map(|wrong| format!("wrong: {wrong}")),
        );
        failures.extend(
            self.crashes
                .iter()
                .map(|(name, at)| format!("{name} ended by itself after {at:.0} s")),
        );
        failures.extend(self.stuck.iter().map(|name| format!("stuck: {name}")));
        failures.extend(self.left.iter().map(|what| format!("left over: {what}")));
        if self.panics > 0 {
            failures.push(format!("{} panics in the logs", self.panics));
        }
        if self.leases > 0 {
            failures.push(format!("{} leases are still held", self.leases));
        }
        if shared.tally.total(&Outcome::Converted) == 0 {
            failures.push("no image was converted".to_owned());
        }
        if !self.containers.is_empty() && shared.tally.total(&Outcome::Started) == 0 {
            failures.push("no container was started".to_owned());
        }
        if self.rested.is_none() {
            failures.push(format!(
                "not idle {} s after the load",
                REST_WITHIN.as_secs()
            ));
        }
        for (number, (before, after)) in self.before.iter().zip(&self.after).enumerate() {
            if let (Some(before), Some(after)) = (before, after)
                && after.descriptors > before.descriptors + KEPT_DESCRIPTORS
            {
                failures.push(format!(
                    "{}: {} descriptors when idle, {} before",
                    self.name(number),
                    after.descriptors,
                    before.descriptors
                ));
            }
        }
        let is_long = self
            .checked
            .last()
            .is_some_and(|(at, _)| *at >= LONG_ENOUGH_SECONDS);
        for number in self.never_killed().into_iter().filter(|_| is_long) {
            if let Some(growth) = self.growth(number)
                && growth > MOST_GROWTH_MIB_PER_MINUTE
            {
                failures.push(format!(
                    "{} grows by {growth:.2} MiB a minute",
                    self.name(number)
                ));
            }
        }
        failures
    }
}

fn gauge_rows(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>) -> Vec<Vec<String>> {
    let show = |value: Option<&f64>| value.map_or_else(|| "–".to_owned(), f64::to_string);
    let names = after
        .keys()
        .filter(|name| !name.starts_with("starlift_agent"));
    names
        .map(|name| {
            vec![
                format!("`{name}`"),
                show(before.get(name)),
                show(after.get(name)),
            ]
        })
        .collect()
}
