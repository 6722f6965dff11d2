//! The images of `serve.warm`, converted at the start and whenever their tags have moved.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::{MissedTickBehavior, interval};

use crate::convert::Ticket;
use crate::serve::access::{Admission, Reader};
use crate::serve::app::App;
use crate::serve::jobs::Asked;

use super::{Target, run};

/// Images of the list that are resolved and converted at the same time.
const AT_ONCE: usize = 4;
/// The pause before an image is tried again for which there was no room.
const ROOM_AGAIN: Duration = Duration::from_secs(5);

/// Keeps the listed images converted until it is dropped.
pub(in crate::serve) async fn keep_warm(app: Arc<App>) {
    let config = &app.config.warm;
    if config.images.is_empty() {
        return;
    }
    let mut ticks = interval(config.interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let images = futures::stream::iter(config.images.clone());
        let converted = images.map(|image| {
            let app = Arc::clone(&app);
            async move { warm(&app, &image).await }
        });
        converted
            .buffer_unordered(AT_ONCE)
            .collect::<Vec<()>>()
            .await;
        tracing::info!(images = config.images.len(), "images of serve.warm checked");
    }
}

async fn warm(app: &Arc<App>, image: &str) {
    let Some(mut target) = Target::parse(image, |name| app.upstreams.is_configured(name)) else {
        // The configuration was checked at the start.
        return;
    };
    let name = app.upstreams.name_of(&target.location.upstream).to_owned();
    target.location.upstream = name;
    let source = match app.source(&target.location.upstream) {
        Ok(source) => source,
        Err(error) => {
            tracing::warn!(image, %error, "image of serve.warm has no upstream");
            return;
        }
    };
    let admission = Admission {
        reader: Reader::Server,
        source,
    };
    loop {
        match app.jobs.start(image, &target.location, Asked::List) {
            Some((job, true)) => {
                let (app, ticket) = (Arc::clone(app), Ticket::new(()));
                return Box::pin(run(app, job.id, target, admission, ticket)).await;
            }
            Some((_, false)) => return,
            None => tokio::time::sleep(ROOM_AGAIN).await,
        }
    }
}
