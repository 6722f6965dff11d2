//! The faults, one after the other, each with a time and a pause after it. Each is undone before the
//! next one begins.

use std::time::{Duration, Instant};

use crate::soak::clients::Shared;
use crate::soak::containers::SharedNode;
use crate::soak::replicas::Replica;
use crate::soak::upstream::Trouble;
use crate::support::image::Random;
use crate::support::s3::{Fault as BucketFault, S3};

/// The pause between two faults.
const PAUSE: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A replica is killed with SIGKILL, but never the first, whose memory would show a leak.
    ReplicaKilled,
    /// Every third request to the bucket fails in one of four ways.
    BucketFails,
    /// The bucket answers nothing.
    BucketAway,
    RegistryAway,
    RegistrySlow,
    /// The agent of node 1 is killed with SIGKILL, never that of node 2.
    AgentKilled,
    AgentUpgraded,
    /// The file system under the agent of node 2 is full.
    DiskFull,
    /// The link of node 2 is down.
    NetworkCut,
}

/// The faults of the servers, and of the nodes.
const SERVERS: [Fault; 5] = [
    Fault::ReplicaKilled,
    Fault::BucketFails,
    Fault::BucketAway,
    Fault::RegistryAway,
    Fault::RegistrySlow,
];
const NODES: [Fault; 4] = [
    Fault::AgentKilled,
    Fault::NetworkCut,
    Fault::AgentUpgraded,
    Fault::DiskFull,
];

impl Fault {
    /// The letter that marks the fault in a plot.
    pub(crate) fn letter(self) -> &'static str {
        match self {
            Self::ReplicaKilled => "k",
            Self::BucketFails => "f",
            Self::BucketAway => "b",
            Self::RegistryAway => "r",
            Self::RegistrySlow => "s",
            Self::AgentKilled => "a",
            Self::AgentUpgraded => "u",
            Self::DiskFull => "d",
            Self::NetworkCut => "n",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReplicaKilled => "replica killed, restarted after 2 s",
            Self::BucketFails => "every third request to the bucket fails, 4 s",
            Self::BucketAway => "bucket silent, 20 s",
            Self::RegistryAway => "registry answers 503, 15 s",
            Self::RegistrySlow => "registry slow by 2 s, 15 s",
            Self::AgentKilled => "agent of node 1 killed, restarted after 2 s",
            Self::AgentUpgraded => "agent of node 1 stopped, another executable started",
            Self::DiskFull => "disk of node 2 full, 20 s",
            Self::NetworkCut => "network of node 2 cut, 15 s",
        }
    }

    fn length(self) -> Duration {
        Duration::from_secs(match self {
            Self::ReplicaKilled | Self::AgentKilled => 2,
            Self::BucketFails => 4,
            Self::BucketAway | Self::DiskFull => 20,
            Self::RegistryAway | Self::RegistrySlow | Self::NetworkCut => 15,
            Self::AgentUpgraded => 0,
        })
    }

    /// All faults in their order: servers and nodes in turn.
    pub(crate) fn all(with_nodes: bool) -> Vec<Self> {
        let mut all = Vec::new();
        for (number, fault) in SERVERS.into_iter().enumerate() {
            all.push(fault);
            all.extend(NODES.get(number).filter(|_| with_nodes));
        }
        all
    }
}

/// The parts of the test that faults act on.
pub(crate) struct World<'w> {
    pub(crate) replicas: &'w mut [Replica],
    pub(crate) s3: &'w S3,
    pub(crate) shared: &'w Shared,
    pub(crate) nodes: &'w [SharedNode],
}

/// A fault that has begun.
#[derive(Debug, Clone, Copy)]
struct Running {
    fault: Fault,
    victim: usize,
    until: Instant,
}

/// Decides when a fault begins and ends.
#[derive(Debug)]
pub(crate) struct Schedule {
    faults: Vec<Fault>,
    next: usize,
    begins: Instant,
    running: Option<Running>,
    random: Random,
}

impl Schedule {
    pub(crate) fn new(with_nodes: bool) -> Self {
        Self {
            faults: Fault::all(with_nodes),
            next: 0,
            begins: Instant::now() + PAUSE,
            running: None,
            random: Random::new(7),
        }
    }

    /// Begins or ends a fault if it is time. Returns the fault that has begun.
    pub(crate) async fn step(&mut self, world: &mut World<'_>) -> anyhow::Result<Option<Fault>> {
        let now = Instant::now();
        match self.running {
            Some(running) if now >= running.until => {
                self.end(world).await?;
                Ok(None)
            }
            None if now >= self.begins => {
                let fault = self.faults[self.next % self.faults.len()];
                self.next += 1;
                let victim = 1 + self.random.index(world.replicas.len() - 1);
                self.running = Some(Running {
                    fault,
                    victim,
                    until: now + fault.length(),
                });
                begin(fault, victim, world).await?;
                Ok(Some(fault))
            }
            _ => Ok(None),
        }
    }

    /// Ends the running fault, if there is one.
    pub(crate) async fn end(&mut self, world: &mut World<'_>) -> anyhow::Result<()> {
        let Some(Running { fault, victim, .. }) = self.running.take() else {
            return Ok(());
        };
        match fault {
            Fault::ReplicaKilled => world.replicas[victim].restart().await?,
            Fault::BucketFails | Fault::BucketAway => world.s3.fail(|_| BucketFault::None),
            Fault::RegistryAway | Fault::RegistrySlow => trouble(world, Trouble::None),
            Fault::AgentKilled => world.nodes[0].start_agent().await?,
            Fault::AgentUpgraded => {}
            Fault::DiskFull => fill(world, false)?,
            Fault::NetworkCut => cut(world, false)?,
        }
        self.begins = Instant::now() + PAUSE;
        Ok(())
    }
}

async fn begin(fault: Fault, victim: usize, world: &mut World<'_>) -> anyhow::Result<()> {
    match fault {
        Fault::ReplicaKilled => world.replicas[victim].kill().await?,
        Fault::BucketFails => world.s3.fail(|asked| some_fail(asked.number)),
        Fault::BucketAway => world.s3.fail(|_| BucketFault::Silence),
        Fault::RegistryAway => trouble(world, Trouble::Away),
        Fault::RegistrySlow => trouble(world, Trouble::Slow),
        Fault::AgentKilled => world.nodes[0].kill_agent().await?,
        Fault::AgentUpgraded => world.nodes[0].upgrade_agent().await?,
        Fault::DiskFull => fill(world, true)?,
        Fault::NetworkCut => cut(world, true)?,
    }
    Ok(())
}

fn trouble(world: &World<'_>, trouble: Trouble) {
    if let Some(honest) = world.shared.upstreams.first() {
        honest.trouble(trouble);
    }
}

fn fill(world: &World<'_>, is_full: bool) -> anyhow::Result<()> {
    let mut disks = world.nodes.iter().filter_map(|node| node.disk.as_ref());
    disks.try_for_each(|disk| disk.fill(is_full))
}

fn cut(world: &World<'_>, is_cut: bool) -> anyhow::Result<()> {
    let mut networks = world.nodes.iter().filter_map(|node| node.network.as_ref());
    networks.try_for_each(|network| network.set(!is_cut))
}

/// Makes every third request to the store fail, each time in another way.
fn some_fail(number: usize) -> BucketFault {
    match number % 12 {
        0 => BucketFault::SlowDown,
        3 => BucketFault::LoseAnswer,
        6 => BucketFault::CutBody(100),
        9 => BucketFault::Silence,
        _ => BucketFault::None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_has_its_turn_and_its_letter() {
        let all = Fault::all(true);
        assert_eq!(all.len(), SERVERS.len() + NODES.len());
        let letters: std::collections::BTreeSet<_> =
            all.iter().map(|fault| fault.letter()).collect();
        assert_eq!(letters.len(), all.len());
        assert_eq!(Fault::all(false), SERVERS);
    }
}
