//! Abusive clients, limited in number and duration. Other clients must not notice them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use crate::soak::clients::Shared;
use crate::soak::upstream::REPOSITORY;
use crate::support::image::Random;

/// The longest time for which an abusive connection stays open.
const HELD_FOR: Duration = Duration::from_secs(40);
/// A body size that exceeds every limit.
const LARGE_BODY: usize = 4 << 20;

/// The kinds of abuse.
#[derive(Debug, Clone, Copy)]
enum Abuse {
    /// Requests a blob and does not read the answer.
    ReadsNothing,
    /// Sends request headers a byte at a time.
    SendsSlowly,
    /// Requests an image and leaves at once.
    Leaves,
    /// Requests a thousand single bytes of a blob that the store does not hold.
    ManyRanges,
    /// Sends headers larger than any client's.
    LargeHeaders,
    /// Sends a body of megabytes to the endpoint for observations.
    LargeBody,
    /// Sends invalid names, digests and paths.
    Nonsense,
}

const ALL: [Abuse; 7] = [
    Abuse::ReadsNothing,
    Abuse::SendsSlowly,
    Abuse::Leaves,
    Abuse::ManyRanges,
    Abuse::LargeHeaders,
    Abuse::LargeBody,
    Abuse::Nonsense,
];

const NONSENSE: [&str; 8] = [
    "/v2/../../etc/passwd",
    "/v2/honest/app/manifests/%00",
    "/v2/honest/app/blobs/sha256:zz",
    "/v2/honest/app/manifests/sha256:0000000000000000000000000000000000000000000000000000000000000000",
    "/v2/nobody.invalid/app/manifests/v1",
    "/v2/honest/app/tags/list?n=-1&last=%ff",
    "/v2/honest/app/referrers/x",
    "/api/v1/conversions/../..",
];

/// Runs one kind of abuse against a random replica.
pub(crate) async fn once(shared: &Shared, number: u8, random: &mut Random) {
    let replica = shared.replicas[random.index(shared.replicas.len())];
    let abuse = ALL[random.index(ALL.len())];
    let upstream = &shared.upstreams[random.index(shared.upstreams.len())];
    let image = &upstream.images[random.index(upstream.images.len())];
    let base = format!("/v2/{}/{REPOSITORY}", upstream.behaviour.name());
    let blob = format!("{base}/blobs/{}", image.layers[0]);
    let body = "x".repeat(LARGE_BODY);
    let (request, patience) = match abuse {
        Abuse::ReadsNothing => (get(&blob, ""), HELD_FOR),
        Abuse::SendsSlowly => return send_slowly(replica, number).await,
        Abuse::Leaves => (
            get(&format!("{base}/manifests/{}", image.tag), ""),
            Duration::from_millis(20),
        ),
        Abuse::ManyRanges => (get(&blob, &many_ranges(random)), Duration::from_secs(10)),
        Abuse::LargeHeaders => (
            get("/v2/", &format!("X-Large: {}\r\n", &body[..200_000])),
            Duration::from_secs(5),
        ),
        Abuse::LargeBody => (
            format!(
                "POST /api/v1/profiles/{} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                 Content-Length: {LARGE_BODY}\r\n\r\n{body}",
                image.layers[0]
            ),
            Duration::from_secs(5),
        ),
        Abuse::Nonsense => (
            get(NONSENSE[random.index(NONSENSE.len())], ""),
            Duration::from_secs(5),
        ),
    };
    // Any fate of such a connection is right if other clients do not notice it.
    let _ended = tokio::time::timeout(patience, async {
        let mut stream = connect(replica, number).await?;
        stream.write_all(request.as_bytes()).await?;
        if matches!(abuse, Abuse::ReadsNothing) {
            // The first byte shows that the answer has begun; the client reads no more.
            stream.read_u8().await?;
            std::future::pending::<()>().await;
        }
        stream.read_to_end(&mut Vec::new()).await
    })
    .await;
}

fn get(path: &str, headers: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nConnection: close\r\n{headers}\r\n"
    )
}

fn many_ranges(random: &mut Random) -> String {
    let spans: Vec<String> = (0..1000)
        .map(|_| random.index(1 << 20))
        .map(|at| format!("{at}-{at}"))
        .collect();
    format!("Range: bytes={}\r\n", spans.join(","))
}

async fn send_slowly(replica: SocketAddr, number: u8) {
    let _ended = tokio::time::timeout(HELD_FOR, async {
        let mut stream = connect(replica, number).await?;
        for byte in get("/v2/", "").bytes() {
            stream.write_all(&[byte]).await?;
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        std::io::Result::Ok(())
    })
    .await;
}

/// Opens a connection from an address that only abusers use.
async fn connect(replica: SocketAddr, number: u8) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(
        IpAddr::V4(Ipv4Addr::new(127, 0, 2, number)),
        0,
    ))?;
    socket.connect(replica).await
}
