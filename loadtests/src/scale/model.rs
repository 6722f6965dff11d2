//! A small model: what each kind of work costs, as fitted to two of the runs, and what follows for
//! other numbers of replicas and clients.
//!
//! ```text
//! once for each layer      its conversion, by whichever replica has the lease
//! each further replica     a look at each layer: records, waiting, the check of what is served in ranges
//! each pull                tag, manifest, configuration
//! each range               a part for the request, and a part for its bytes
//! ```

use serde::Serialize;

use crate::figures::float;
use crate::scale::measured::{Done, Measured, Phase, Ranges, Run, Used};

/// The fitted costs. Processor time is in seconds.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub(super) struct Costs {
    /// For each byte of a source layer.
    pub(super) convert_cpu: f64,
    /// Requests to the bucket for each layer.
    pub(super) convert_reads: f64,
    pub(super) convert_writes: f64,
    /// The same of each further replica.
    pub(super) replica_cpu: f64,
    pub(super) replica_reads: f64,
    pub(super) replica_writes: f64,
    /// For each pull, without its ranges.
    pub(super) pull_cpu: f64,
    pub(super) pull_reads: f64,
    pub(super) pull_writes: f64,
    /// For each range.
    pub(super) range_cpu: f64,
    pub(super) range_reads: f64,
    /// For each byte of a range.
    pub(super) byte_cpu: f64,
    /// For each byte of a whole layer, which is hashed on the way.
    pub(super) whole_byte_cpu: f64,
    /// For each whole layer; the request itself costs what a range's does.
    pub(super) whole_reads: f64,
}

/// One figure of a run, as predicted and as measured.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Checked {
    pub(super) replicas: usize,
    pub(super) clients: usize,
    pub(super) phase: &'static str,
    pub(super) figure: &'static str,
    pub(super) predicted: f64,
    pub(super) measured: f64,
    /// Whether the costs were fitted to this run.
    pub(super) is_fitted: bool,
}

impl Checked {
    /// Returns the error as a share of the measured figure.
    pub(super) fn error(&self) -> f64 {
        (self.predicted - self.measured) / self.measured
    }
}

impl Costs {
    /// Fits the costs to the first run, which must be of one replica, and to the first run with
    /// more.
    pub(super) fn fitted(measured: &Measured) -> Option<Self> {
        let one = measured.runs.iter().find(|run| run.replicas == 1)?;
        let mut costs = Self::default();
        costs.fit_ranges(&one.small, &one.large);
        costs.fit_wholes(&one.whole);
        costs.fit_pulls(&one.warm);
        let conversion = costs.without_pulls(&one.cold);
        costs.convert_cpu = conversion.cpu / measured.source_bytes;
        costs.convert_reads = conversion.reads / measured.layers;
        costs.convert_writes = conversion.writes / measured.layers;
        let several = measured.runs.iter().find(|run| run.replicas > 1);
        if let Some(several) = several {
            let rest = costs.without_pulls(&several.cold);
            let others = float(several.replicas as u64 - 1);
            let more = |all: f64, once: f64| (all - once).max(0.0) / others;
            costs.replica_cpu = more(rest.cpu, conversion.cpu) / measured.source_bytes;
            costs.replica_reads = more(rest.reads, conversion.reads) / measured.layers;
            costs.replica_writes = more(rest.writes, conversion.writes) / measured.layers;
        }
        Some(costs)
    }

    fn fit_ranges(&mut self, small: &Phase, large: &Phase) {
        let each = |phase: &Phase| phase.used.cpu / phase.done.ranges;
        let (short, long) = (float(Ranges::SMALL as u64), float(Ranges::LARGE as u64));
        self.byte_cpu = ((each(large) - each(small)) / (long - short)).max(0.0);
        self.range_cpu = (each(small) - self.byte_cpu * short).max(0.0);
        let ranges = small.done.ranges + large.done.ranges;
        self.range_reads = (small.used.reads + large.used.reads) / ranges;
    }

    fn fit_wholes(&mut self, Phase { done, used }: &Phase) {
        let rest = used.cpu - done.wholes * self.range_cpu;
        self.whole_byte_cpu = (rest / done.whole_bytes).max(0.0);
        self.whole_reads = used.reads / done.wholes;
    }

    fn fit_pulls(&mut self, warm: &Phase) {
        let Phase { done, used } = warm;
        let rest = |all: f64, ranges: f64| (all - ranges).max(0.0) / done.pulls;
        let ranges = self.of_ranges(done);
        self.pull_cpu = rest(used.cpu, ranges.cpu);
        self.pull_reads = rest(used.reads, ranges.reads);
        self.pull_writes = rest(used.writes, 0.0);
    }

    fn of_ranges(&self, done: &Done) -> Used {
        Used {
            cpu: (done.ranges + done.wholes) * self.range_cpu
                + done.bytes * self.byte_cpu
                + done.whole_bytes * self.whole_byte_cpu,
            reads: done.ranges * self.range_reads + done.wholes * self.whole_reads,
            ..Used::default()
        }
    }

    /// Predicts the cost of pulls of converted images.
    pub(super) fn of_pulls(&self, done: &Done) -> Used {
        let ranges = self.of_ranges(done);
        Used {
            cpu: ranges.cpu + done.pulls * self.pull_cpu,
            reads: ranges.reads + done.pulls * self.pull_reads,
            writes: done.pulls * self.pull_writes,
            ..Used::default()
        }
    }

    fn without_pulls(&self, phase: &Phase) -> Used {
        let pulls = self.of_pulls(&phase.done);
        Used {
            cpu: (phase.used.cpu - pulls.cpu).max(0.0),
            reads: (phase.used.reads - pulls.reads).max(0.0),
            writes: (phase.used.writes - pulls.writes).max(0.0),
            ..Used::default()
        }
    }

    /// Predicts the cost of the conversion of these layers by `replicas` that are all asked for
    /// them.
    pub(super) fn of_conversions(&self, replicas: f64, layers: f64, source_bytes: f64) -> Used {
        let others = (replicas - 1.0).max(0.0);
        Used {
            cpu: source_bytes * (self.convert_cpu + others * self.replica_cpu),
            reads: layers * (self.convert_reads + others * self.replica_reads),
            writes: layers * (self.convert_writes + others * self.replica_writes),
            ..Used::default()
        }
    }

    /// Compares the prediction with each run.
    pub(super) fn check(&self, measured: &Measured) -> Vec<Checked> {
        let fitted_one = measured.runs.iter().position(|run| run.replicas == 1);
        let fitted_more = measured.runs.iter().position(|run| run.replicas > 1);
        let runs = measured.runs.iter().enumerate();
        runs.flat_map(|(place, run)| {
            let replicas = float(run.replicas as u64);
            let made = self.of_conversions(replicas, measured.layers, measured.source_bytes);
            let is_first = fitted_one == Some(place);
            let is_fitted = is_first || fitted_more == Some(place);
            let mut rows = rows(run, ("cold", &run.cold), is_fitted, |done| {
                let pulls = self.of_pulls(done);
                Used {
                    cpu: made.cpu + pulls.cpu,
                    reads: made.reads + pulls.reads,
                    writes: made.writes + pulls.writes,
                    ..Used::default()
                }
            });
            for phase in [
                ("warm", &run.warm),
                ("small ranges", &run.small),
                ("large ranges", &run.large),
                ("whole layers", &run.whole),
            ] {
                let ours = self::rows(run, phase, is_first, |done| self.of_pulls(done));
                // The warm phases hardly write.
                rows.extend(ours.into_iter().filter(|row| row.figure != "bucket writes"));
            }
            rows
        })
        .collect()
    }
}

fn rows(
    run: &Run,
    (phase, Phase { done, used }): (&'static str, &Phase),
    is_fitted: bool,
    predict: impl Fn(&Done) -> Used,
) -> Vec<Checked> {
    let predicted = predict(done);
    let figures = [
        ("CPU s", predicted.cpu, used.cpu),
        ("bucket reads", predicted.reads, used.reads),
        ("bucket writes", predicted.writes, used.writes),
    ];
    let row = |(figure, predicted, measured)| Checked {
        replicas: run.replicas,
        clients: run.clients,
        phase,
        figure,
        predicted,
        measured,
        is_fitted,
    };
    figures.map(row).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the measurements of a world that the model describes exactly.
    fn exact(costs: &Costs) -> Measured {
        let (images, layers, source_bytes) = (4.0, 8.0, 80e6);
        let phase = |done: Done, more: Used| {
            let pulls = costs.of_pulls(&done);
            let used = Used {
                wall: 1.0,
                cpu: pulls.cpu + more.cpu,
                reads: pulls.reads + more.reads,
                writes: pulls.writes + more.writes,
            };
            Phase { done, used }
        };
        let run = |replicas: usize, clients: usize| {
            let pulls = images * float(clients as u64);
            let pulled = Done {
                pulls,
                ranges: pulls * 5.0,
                bytes: pulls * 600e3,
                ..Done::default()
            };
            let ranges = |length: usize| Done {
                ranges: 1000.0,
                bytes: 1000.0 * float(length as u64),
                ..Done::default()
            };
            let wholes = Done {
                wholes: 100.0,
                whole_bytes: 100.0 * 5e6,
                ..Done::default()
            };
            let made = costs.of_conversions(float(replicas as u64), layers, source_bytes);
            Run {
                replicas,
                clients,
                cold: phase(pulled, made),
                warm: phase(pulled, Used::default()),
                small: phase(ranges(Ranges::SMALL), Used::default()),
                large: phase(ranges(Ranges::LARGE), Used::default()),
                whole: phase(wholes, Used::default()),
                conversions: layers,
            }
        };
        Measured {
            of: String::new(),
            images,
            layers,
            source_bytes,
            share: 0.1,
            runs: vec![run(1, 8), run(2, 8), run(4, 32)],
            noticed: Vec::new(),
        }
    }

    #[test]
    fn a_world_without_noise_is_predicted_exactly() {
        let costs = Costs {
            convert_cpu: 2e-8,
            convert_reads: 9.0,
            convert_writes: 12.0,
            replica_cpu: 1e-9,
            replica_reads: 14.0,
            replica_writes: 2.0,
            pull_cpu: 0.002,
            pull_reads: 1.5,
            pull_writes: 0.1,
            range_cpu: 2e-4,
            range_reads: 1.0,
            byte_cpu: 4e-10,
            whole_byte_cpu: 1e-9,
            whole_reads: 1.0,
        };
        let measured = exact(&costs);
        let checked = Costs::fitted(&measured).unwrap().check(&measured);
        assert!(
            checked
                .iter()
                .any(|row| !row.is_fitted && row.replicas == 4)
        );
        for row in checked {
            assert!(row.error().abs() < 1e-6, "{row:?}");
        }
    }
}
