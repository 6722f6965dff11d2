//! Starts to prefetch the layers that are mounted: the profile is requested at once, data once the
//! image's pull is over.

use std::sync::Arc;

use tokio::task::spawn_blocking;

use super::mount::Mount;
use super::readiness::Readiness;
use super::table::Table;
use crate::agent::config::Config;
use crate::agent::layer::opening::remote;
use crate::agent::layer::spec::LayerSpec;
use crate::agent::numbers::LayerNumber;
use crate::agent::prefetch::Prefetch;
use crate::agent::prefetch::profiles::{
    ImageLayers, MountedLayer, PrefetchGate, ProfileSource, Profiles, Trigger,
};
use crate::agent::prefetch::pulls::{Pull, Pulls};
use crate::transport::Upstreams;

/// Fetches ahead for the mounted layers.
#[derive(Debug)]
pub(crate) struct Ahead {
    config: Config,
    upstreams: Upstreams,
    table: Arc<Table>,
    readiness: Arc<Readiness>,
    prefetch: Arc<Prefetch>,
    profiles: Profiles,
    pulls: Pulls,
}

impl Ahead {
    pub(super) fn new(
        config: &Config,
        upstreams: Upstreams,
        table: Arc<Table>,
        readiness: Arc<Readiness>,
    ) -> Self {
        Self {
            config: config.clone(),
            upstreams,
            table,
            readiness,
            prefetch: Arc::new(Prefetch::new(config)),
            profiles: Profiles::new(config),
            pulls: Pulls::default(),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn profiles(&self) -> &Profiles {
        &self.profiles
    }

    /// Returns the pull that a layer is part of.
    pub(super) fn pull(&self, spec: &LayerSpec) -> Pull {
        if spec.layers_above.is_empty() {
            Pull::OVER
        } else {
            self.pulls.join(&spec.reference)
        }
    }

    /// Ends the pull of an image whose last layer is `spec`.
    pub(super) fn prepared(&self, spec: &LayerSpec) {
        if spec.layers_above.is_empty() {
            self.pulls.end(&spec.reference);
        }
    }

    /// Starts to prefetch the layer once its image's `pull` is over. The profile is requested
    /// before.
    pub(super) fn fill(
        self: &Arc<Self>,
        mount: &Arc<Mount>,
        image: Option<ImageLayers>,
        pull: Pull,
    ) {
        let Some(Ok(layer)) = mount.loaded() else {
            return;
        };
        let policy = self.config.policy(&mount.record.reference);
        let (own, layer, gone) = (Arc::clone(self), Arc::clone(layer), mount.gone.clone());
        let number = mount.record.number;
        tokio::spawn(async move {
            if let Some(image) = &image {
                own.request_profile(image).await;
            }
            pull.over().await;
            let gate = match &image {
                Some(image) => own.prefetch_profile(image, Trigger::Mount).await,
                None => None,
            };
            Arc::clone(&own.prefetch)
                .run(layer, policy, gone, gate)
                .await;
            own.readiness.expect_container(vec![number]).await;
        });
    }

    /// Requests the profile of `image`, unless that was done. Prefetches nothing.
    async fn request_profile(&self, image: &ImageLayers) {
        self.announce(image, Trigger::Mount, |_layers| &[]).await;
    }

    /// Prefetches the files that the profile of `image` names, in those of its layers that are
    /// mounted. Does nothing unless the topmost of them comes from a Starlift server or `referrers`
    /// is on.
    pub(crate) async fn prefetch_profile(
        &self,
        image: &ImageLayers,
        trigger: Trigger,
    ) -> Option<PrefetchGate> {
        self.announce(image, trigger, |layers| layers).await
    }

    /// Announces those of the mounted layers of `image` that `choose` returns.
    async fn announce(
        &self,
        image: &ImageLayers,
        trigger: Trigger,
        choose: impl FnOnce(&[MountedLayer]) -> &[MountedLayer],
    ) -> Option<PrefetchGate> {
        if !self.profiles.are_used() {
            return None;
        }
        let (table, mounted) = (Arc::clone(&self.table), Arc::clone(&image.mounted));
        let look = move || mounted_layers(&table, &mounted);
        let (layers, reference) = spawn_blocking(look).await.ok()??;
        let source = match layers.last()?.layer.peer().await {
            Some(peer) => ProfileSource::Server(peer),
            None if self.config.referrers => self.referrers_of(&reference)?,
            None => return None,
        };
        let workload = self.config.policy(&reference).workload;
        let named = (reference.as_str(), workload);
        self.profiles
            .announce(image, named, choose(&layers), source, trigger)
    }

    /// Returns the profile source for an image in a registry that is not a Starlift server: the
    /// documents that refer to it.
    fn referrers_of(&self, reference: &str) -> Option<ProfileSource> {
        let (name, source) = remote::find(&self.upstreams, reference).ok()?;
        let reference = name.reference()?;
        Some(ProfileSource::Referrers {
            source,
            repository: name.repository,
            reference,
        })
    }
}

/// Returns those of the layers that can be read, and the reference of the topmost. `None` if there
/// is none.
fn mounted_layers(
    table: &Table,
    mounted: &[(u32, LayerNumber)],
) -> Option<(Vec<MountedLayer>, String)> {
    let (mut layers, mut reference) = (Vec::new(), None);
    for (place, number) in mounted {
        let Some(mount) = table.by_number(*number) else {
            continue;
        };
        let Ok(layer) = table.layer(&mount) else {
            continue;
        };
        layers.push(MountedLayer {
            place: *place,
            layer: Arc::clone(layer),
            gone: mount.gone.clone(),
        });
        reference = Some(mount.record.reference.clone());
    }
    Some((layers, reference?))
}
