//! Clients that occupy places, streams and connections without using them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use reqwest::Method;
use starlift::telemetry::metrics;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};

use super::Stage;
use crate::support::registry::Gate;

/// More than all buffers between the two ends can hold.
const LARGE: usize = 8 << 20;

/// Connects an HTTP/2 client that accepts `window` bytes of each answer and no more. It answers
/// pings.
async fn http2(server: SocketAddr, window: u32) -> SendRequest<Bytes> {
    let stream = TcpStream::connect(server).await.unwrap();
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(window);
    let (client, connection) = builder.handshake::<_, Bytes>(stream).await.unwrap();
    tokio::spawn(connection);
    client.ready().await.unwrap()
}

fn send(
    client: &mut SendRequest<Bytes>,
    server: SocketAddr,
    method: Method,
    path: &str,
) -> ResponseFuture {
    let request = http::Request::builder()
        .method(method)
        .uri(format!("http://{server}{path}"));
    client
        .send_request(request.body(()).unwrap(), true)
        .unwrap()
        .0
}

/// Returns a client with its own address.
fn client(number: u8) -> reqwest::Client {
    reqwest::Client::builder()
        .local_address(IpAddr::from(Ipv4Addr::new(127, 0, 0, number)))
        .build()
        .unwrap()
}

#[tokio::test]
async fn a_stalled_stream_is_reset_and_frees_its_place() {
    let stage = Stage::with(|config| {
        config.max_requests = 1;
        config.write_timeout = Duration::from_millis(300);
    })
    .await;
    let path = format!(
        "/v2/local/app/blobs/{}",
        stage.registry.put_blob(vec![7; LARGE])
    );
    for window in [0, 1, 100_000] {
        let server = stage.server.address;
        let mut client = http2(server, window).await;
        let mut body = send(&mut client, server, Method::GET, &path)
            .await
            .unwrap()
            .into_body();
        let reset = loop {
            match body.data().await {
                // The data is read but never released, so the window stays closed.
                Some(Ok(_)) => {}
                Some(Err(error)) => break error,
                None => panic!("the whole body was received through a window of {window}"),
            }
        };
        assert!(reset.is_reset(), "{window}: {reset}");
        let head = send(&mut client, server, Method::HEAD, &path)
            .await
            .unwrap();
        assert_eq!(
            head.status(),
            200,
            "the connection still works, and the place is free"
        );
    }
}

#[tokio::test]
async fn a_client_that_goes_on_taking_is_not_reset() {
    let limit = Duration::from_millis(600);
    let stage = Stage::with(|config| config.write_timeout = limit).await;
    let path = format!(
        "/v2/local/app/blobs/{}",
        stage.registry.put_blob(vec![7; 1 << 20])
    );
    let server = stage.server.address;
    let mut client = http2(server, 128 << 10).await;
    let mut body = send(&mut client, server, Method::GET, &path)
        .await
        .unwrap()
        .into_body();
    let (mut taken, mut next_pause) = (0, 0);
    while let Some(data) = body.data().await {
        let length = data.unwrap().len();
        taken += length;
        if taken >= next_pause {
            // Slow on purpose: the eight pauses together are longer than the limit.
            tokio::time::sleep(limit / 6).await;
            next_pause += 128 << 10;
        }
        body.flow_control().release_capacity(length).unwrap();
    }
    assert_eq!(taken, 1 << 20);
}

#[tokio::test]
async fn one_client_has_its_share_of_places_and_others_have_theirs() {
    let stage = Stage::with(|config| {
        config.max_requests = 8;
        config.client_share = 25;
    })
    .await;
    let digest = stage.registry.put_blob(vec![7; 1000]);
    let gate = Gate::new();
    stage.registry.on("/blobs/").method("GET").gate(&gate);
    let url = format!(
        "http://{}/v2/local/app/blobs/{digest}",
        stage.server.address
    );
    let greedy = client(7);
    let running: Vec<_> = (0..2)
        .map(|_| tokio::spawn(greedy.get(&url).send()))
        .collect();
    gate.reached(2).await;
    let third = greedy.get(&url).send().await.unwrap();
    assert_eq!(
        (
            third.status().as_u16(),
            third.headers()["retry-after"].to_str().unwrap()
        ),
        (503, "1")
    );
    let other = tokio::spawn(client(8).get(&url).send());
    gate.reached(3).await;
    gate.open();
    for answer in running.into_iter().chain([other]) {
        assert_eq!(answer.await.unwrap().unwrap().status(), 200);
    }
    assert_eq!(greedy.get(&url).send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn idle_connections_are_closed_for_new_ones() {
    let stage = Stage::with(|config| {
        config.max_connections = 4;
        config.client_share = 100;
        config.header_timeout = Duration::from_secs(3600);
    })
    .await;
    let mut silent = Vec::new();
    for number in 1..=20 {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::from(([127, 0, 0, number], 0)))
            .unwrap();
        silent.push(socket.connect(stage.server.address).await.unwrap());
    }
    assert_eq!(
        stage.get("/healthz").await.status,
        200,
        "a connection with a request is accepted"
    );
    let mut oldest = silent.swap_remove(0);
    let mut end = Vec::new();
    let ended = oldest.read_to_end(&mut end).await;
    assert!(ended.is_err() || end.is_empty());
}

#[tokio::test]
async fn a_body_that_does_not_come_is_not_waited_for() {
    let stage = Stage::with(|config| config.header_timeout = Duration::from_millis(200)).await;
    let mut connection = TcpStream::connect(stage.server.address).await.unwrap();
    let request = "POST /api/v1/conversions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
                   Content-Length: 100\r\n\r\n{";
    connection.write_all(request.as_bytes()).await.unwrap();
    let mut answer = vec![0; 12];
    connection.read_exact(&mut answer).await.unwrap();
    assert_eq!(answer, b"HTTP/1.1 408");
}

#[tokio::test]
async fn refusals_are_counted_by_their_reason() {
    let stage = Stage::new().await;
    let count = |reason| {
        metrics()
            .requests_refused
            .get_or_create(&[("reason", reason)])
            .get()
    };
    let before = (count("host"), count("cross-site"));
    stage
        .ask(Method::GET, "/", &[("host", "evil.example")])
        .await;
    stage
        .ask(Method::GET, "/", &[("origin", "http://evil.example")])
        .await;
    assert!(count("host") > before.0 && count("cross-site") > before.1);
}
