//! Groups the range requests of each client and image into sessions, within bounded memory.
//!
//! A session begins when a client fetches an image's manifest, or opens a layer of an image that is
//! known here. It holds the first run of requests, up to a silence. Later requests do not belong to
//! the start: a client that completes an image in the background does so after a silence
//! (stargz-snapshotter, `task.go`: five seconds).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::trace::RangeRequest;
use crate::oci::Digest;

/// The longest silence within a start: shorter than the five seconds after which stargz-snapshotter
/// fetches the rest.
const SILENCE: Duration = Duration::from_secs(4);
/// The longest session. Later reads do not belong to the start.
const LONGEST: Duration = Duration::from_secs(120);
/// How long after the manifest was fetched, or a layer opened, the first file may be read.
const PATIENCE: Duration = Duration::from_secs(300);
/// The most sessions at once, sessions of one client, and ranges of all sessions: some 10 MiB.
const MAX_SESSIONS: usize = 1024;
const MAX_SESSIONS_OF_CLIENT: usize = 16;
const MAX_PARTS: usize = 131_072;
/// The most ranges of one session.
const MAX_PARTS_OF_SESSION: usize = 16_384;
/// The number of images that are remembered with their layers.
const MAX_IMAGES: usize = 512;

/// An image as clients see it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Image {
    /// The layers from the bottom to the top.
    pub(super) layers: Vec<Digest>,
}

/// Ranges of a layer that a client requested.
#[derive(Debug)]
pub(super) struct Read {
    pub(super) client: IpAddr,
    pub(super) layer: Digest,
    pub(super) size: u64,
    pub(super) parts: Vec<std::ops::Range<u64>>,
    pub(super) at: Instant,
}

/// The requests of a client for an image, from the first one to a silence.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: IpAddr,
    pub(super) image: Arc<Image>,
    /// When the client last prepared a start: fetched the manifest or read a TOC.
    prepared: Instant,
    /// The times of the first and the last request for content.
    run: Option<(Instant, Instant)>,
    pub(super) layers: HashMap<Digest, Layer>,
    parts: usize,
}

/// The requests for a layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) size: u64,
    pub(super) asked: Vec<RangeRequest>,
    /// The begin of the ranges that were read together with the end of the blob.
    tail: u64,
}

/// Sessions by client, the newest at the end, and the images for which a session may begin without
/// a manifest request.
#[derive(Debug, Default)]
pub(super) struct Sessions {
    open: HashMap<IpAddr, Vec<Session>>,
    sessions: usize,
    parts: usize,
    images: VecDeque<Arc<Image>>,
}

impl Sessions {
    /// Begins a session when a client fetches the manifest of an image, which it may start now.
    /// With too many sessions none begins.
    pub(super) fn begin(&mut self, client: IpAddr, image: &Arc<Image>, at: Instant) {
        self.remember(image);
        let of_client = self.open.get(&client).map_or(&[][..], Vec::as_slice);
        // Clients request a manifest by tag, again by digest, and again while the container runs.
        let is_open = of_client.iter().any(|open| open.image == *image);
        if is_open || of_client.len() >= MAX_SESSIONS_OF_CLIENT || self.sessions >= MAX_SESSIONS {
            return;
        }
        let (image, layers) = (Arc::clone(image), HashMap::new());
        let session = Session {
            client,
            image,
            prepared: at,
            run: None,
            layers,
            parts: 0,
        };
        self.open.entry(client).or_default().push(session);
        self.sessions += 1;
    }

    /// Adds a request to its session. Returns whether there is one.
    pub(super) fn read(&mut self, read: Read) -> bool {
        if self.session(&read).is_none() {
            // Another replica may have served the manifest. Then reading a TOC begins the session.
            let is_end = read.parts.last().is_some_and(|part| part.end == read.size);
            let Some(image) = is_end.then(|| self.only_image_with(&read.layer)).flatten() else {
                return false;
            };
            self.begin(read.client, &image, read.at);
        }
        let room = MAX_PARTS.saturating_sub(self.parts);
        let Some(session) = self.session(&read) else {
            return false;
        };
        let before = session.parts;
        if read.parts.len() <= room.min(MAX_PARTS_OF_SESSION.saturating_sub(before))
            && !session.is_over(read.at)
        {
            session.read(read);
            let more = session.parts - before;
            self.parts += more;
        }
        true
    }

    /// Returns the client's session for the layer; of several images with that layer, the one that
    /// was fetched last.
    fn session(&mut self, read: &Read) -> Option<&mut Session> {
        let of_client = self.open.get_mut(&read.client)?;
        of_client
            .iter_mut()
            .rev()
            .find(|open| open.image.layers.contains(&read.layer))
    }

    /// Removes the sessions that are over at `now`, and returns those in which content was read.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<Session> {
        let over = self
            .open
            .values_mut()
            .flat_map(|of_client| of_client.extract_if(.., |open| open.is_over(now)));
        let over: Vec<_> = over.collect();
        self.open.retain(|_, of_client| !of_client.is_empty());
        self.sessions -= over.len();
        self.parts -= over.iter().map(|session| session.parts).sum::<usize>();
        over.into_iter()
            .filter(|session| session.run.is_some())
            .collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.sessions == 0
    }

    fn remember(&mut self, image: &Arc<Image>) {
        if self.images.contains(image) {
            return;
        }
        if self.images.len() >= MAX_IMAGES {
            self.images.pop_front();
        }
        self.images.push_back(Arc::clone(image));
    }

    fn only_image_with(&self, layer: &Digest) -> Option<Arc<Image>> {
        let mut with = self
            .images
            .iter()
            .filter(|image| image.layers.contains(layer));
        with.next()
            .filter(|_| with.next().is_none())
            .map(Arc::clone)
    }
}

impl Session {
    fn read(&mut self, read: Read) {
        self.parts += read.parts.len();
        let Read {
            layer,
            size,
            parts,
            at,
            ..
        } = read;
        let layer = self.layers.entry(layer).or_insert_with(|| Layer {
            size,
            asked: Vec::new(),
            tail: size,
        });
        // The footer is read first, then the TOC in front of it.
        let is_tail = parts.last().is_some_and(|part| part.end >= layer.tail);
        if is_tail && self.run.is_none() {
            layer.tail = parts.first().map_or(size, |part| part.start);
            self.prepared = at;
        } else {
            self.run = Some((self.run.map_or(at, |(first, _)| first), at));
        }
        let since = self.run.map_or(at, |(first, _)| first);
        layer.asked.push(RangeRequest {
            after: at.saturating_duration_since(since),
            parts,
        });
    }

    fn is_over(&self, now: Instant) -> bool {
        match self.run {
            Some((first, last)) => {
                now.saturating_duration_since(last) >= SILENCE
                    || now.saturating_duration_since(first) >= LONGEST
            }
            None => now.saturating_duration_since(self.prepared) >= PATIENCE,
        }
    }

    /// Whether the client may be one that fetches the rest in the background before anything was
    /// started.
    pub(super) fn began_after_a_silence(&self) -> bool {
        self.run
            .is_some_and(|(first, _)| first.saturating_duration_since(self.prepared) >= SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(name: &str) -> Digest {
        Digest::sha256_of(name.as_bytes())
    }

    fn image(layers: &[&str]) -> Arc<Image> {
        Arc::new(Image {
            layers: layers.iter().map(|name| digest(name)).collect(),
        })
    }

    fn client(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    /// The times of a test, in seconds from its beginning.
    struct Clock(Instant);

    impl Clock {
        fn at(&self, seconds: f64) -> Instant {
            self.0 + Duration::from_secs_f64(seconds)
        }

        fn read(
            &self,
            number: u32,
            layer: &str,
            range: std::ops::Range<u64>,
            seconds: f64,
        ) -> Read {
            Read {
                client: client(number),
                layer: digest(layer),
                size: 1000,
                parts: vec![range],
                at: self.at(seconds),
            }
        }
    }

    #[test]
    fn a_session_lasts_from_the_toc_to_a_silence() {
        let clock = Clock(Instant::now());
        let mut sessions = Sessions::default();
        assert!(
            !sessions.read(clock.read(1, "a", 0..10, 0.0)),
            "no image with this layer was pulled"
        );
        sessions.begin(client(1), &image(&["a", "b"]), clock.at(0.0));
        assert!(
            sessions.read(clock.read(1, "a", 950..1000, 0.1))
                && sessions.read(clock.read(1, "a", 900..950, 0.2))
        );
        assert!(
            !sessions.read(clock.read(2, "a", 0..10, 0.2)),
            "the session belongs to another client"
        );
        assert!(
            sessions.ended(clock.at(60.0)).is_empty(),
            "the first read may come late"
        );
        for second in [60.0, 61.0, 64.0] {
            assert!(sessions.read(clock.read(1, "b", 0..10, second)));
        }
        assert!(sessions.ended(clock.at(67.0)).is_empty());
        assert!(
            sessions.read(clock.read(1, "b", 500..600, 69.0)),
            "the session is over, though it was not collected yet"
        );
        let [session] = &sessions.ended(clock.at(70.0))[..] else {
            panic!("one")
        };
        assert!(session.began_after_a_silence());
        assert_eq!(
            (
                session.layers[&digest("a")].asked.len(),
                session.layers[&digest("b")].asked.len()
            ),
            (2, 3)
        );
        assert_eq!(
            session.layers[&digest("b")].asked[2].after,
            Duration::from_secs(4)
        );
        assert!(
            !sessions.read(clock.read(1, "b", 0..10, 71.0)),
            "later reads do not belong to the start"
        );
        assert!(sessions.is_empty() && sessions.parts == 0);
    }

    #[test]
    fn reading_a_toc_begins_a_session_if_the_image_is_certain() {
        let clock = Clock(Instant::now());
        let mut sessions = Sessions::default();
        sessions.begin(client(9), &image(&["base", "one"]), clock.at(0.0));
        sessions.begin(client(9), &image(&["base", "two"]), clock.at(0.0));
        assert!(
            !sessions.read(clock.read(1, "base", 900..1000, 1.0)),
            "two images have the layer"
        );
        assert!(sessions.read(clock.read(1, "two", 900..1000, 1.0)));
        assert!(sessions.read(clock.read(1, "base", 0..10, 1.0)));
        let ended = sessions.ended(clock.at(10.0));
        assert_eq!(
            ended
                .iter()
                .map(|session| session.client)
                .collect::<Vec<_>>(),
            [client(1)]
        );
        assert!(!ended[0].began_after_a_silence());
    }

    #[test]
    fn memory_is_bounded_whatever_clients_send() {
        let clock = Clock(Instant::now());
        let mut sessions = Sessions::default();
        for number in 0..5000 {
            sessions.begin(
                client(number % 3000),
                &image(&["a", &number.to_string()]),
                clock.at(0.0),
            );
        }
        assert_eq!(
            (sessions.sessions, sessions.images.len()),
            (MAX_SESSIONS, MAX_IMAGES)
        );
        for at in 0..400_000u64 {
            let number = u32::try_from(at % 64).unwrap();
            sessions.read(clock.read(number, "a", at..at + 1, 1.0));
        }
        assert!(sessions.parts <= MAX_PARTS);
        let ended = sessions.ended(clock.at(1000.0));
        assert!(
            ended
                .iter()
                .all(|session| session.parts <= MAX_PARTS_OF_SESSION)
        );
        assert!(sessions.is_empty() && sessions.open.is_empty() && sessions.parts == 0);
        for number in 0..100 {
            sessions.begin(client(7), &image(&[&number.to_string()]), clock.at(0.0));
        }
        assert_eq!(sessions.sessions, MAX_SESSIONS_OF_CLIENT);
    }
}
