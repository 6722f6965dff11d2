//! The images that are being pulled. Data is fetched ahead for their layers once the last layer is
//! prepared, so that it does not take link and cores from the layers that a client waits for.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

/// Most time that a mounted layer waits for the last layer of its image: several times as long as a
/// pull of lazy layers takes. A pull that unpacks a layer, or ends early, takes longer.
const LONGEST: Duration = Duration::from_secs(5);

/// The pulls, by the reference of their image.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<HashMap<String, watch::Sender<()>>>);

/// A layer's part in a pull.
#[derive(Debug)]
pub(crate) struct Pull(Option<watch::Receiver<()>>);

impl Pulls {
    /// Returns the pull of an image with further layers to come.
    pub(crate) fn join(&self, reference: &str) -> Pull {
        let mut pulls = self.0.lock();
        pulls.retain(|_, pull| !pull.is_closed());
        let pull = pulls
            .entry(reference.to_owned())
            .or_insert_with(|| watch::channel(()).0);
        Pull(Some(pull.subscribe()))
    }

    /// Ends the pull of an image, because its last layer was prepared.
    pub(crate) fn end(&self, reference: &str) {
        self.0.lock().remove(reference);
    }
}

impl Pull {
    /// A pull that is over.
    pub(crate) const OVER: Self = Self(None);

    /// Waits until the last layer is prepared, but not for long.
    pub(crate) async fn over(self) {
        self.over_within(LONGEST).await;
    }

    async fn over_within(self, longest: Duration) {
        if let Some(mut pull) = self.0 {
            // Nothing is ever sent: the sender is dropped.
            let _over = tokio::time::timeout(longest, pull.changed()).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn layers_wait_for_the_last_one_of_their_image() {
        let pulls = Pulls::default();
        let mut layers = ["a", "a"].map(|image| pulls.join(image).over().boxed());
        let mut other = pulls.join("b").over().boxed();
        assert!(
            layers
                .iter_mut()
                .all(|layer| layer.now_or_never().is_none())
        );
        pulls.end("a");
        assert!(
            layers
                .iter_mut()
                .all(|layer| layer.now_or_never().is_some())
        );
        assert!((&mut other).now_or_never().is_none());
        assert!(Pull::OVER.over().now_or_never().is_some());
        // A pull that does not end.
        pulls.join("b").over_within(Duration::from_millis(1)).await;
    }

    #[tokio::test]
    async fn pulls_that_nobody_waits_for_are_forgotten() {
        let pulls = Pulls::default();
        for number in 0..100 {
            drop(pulls.join(&number.to_string()));
        }
        let _last = pulls.join("last");
        assert_eq!(pulls.0.lock().len(), 1);
    }
}
