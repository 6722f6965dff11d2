//! The server's liveness, as reported to systemd and to probes.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use crate::support::place::{Place, fetch, free_address};
use crate::support::starlift::Starlift;

#[test]
fn the_server_reports_its_liveness_to_systemd_and_to_probes() {
    let Some(place) = Place::with(&[]) else {
        return;
    };
    let socket = place.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    let liveness = free_address();
    let config = place.write(
        "starlift.toml",
        format!("serve.liveness = \"{liveness}\"\n"),
    );
    let server = Starlift::start_with(&place, &["--config", config.to_str().unwrap()], |command| {
        command
            .env("NOTIFY_SOCKET", &socket)
            .env("WATCHDOG_USEC", "200000");
    });
    let mut heard = [0; 64];
    let length = systemd.recv(&mut heard).unwrap();
    assert_eq!(
        String::from_utf8_lossy(&heard[..length]).trim(),
        "WATCHDOG=1"
    );
    assert_eq!(
        fetch(&format!("http://{liveness}/healthz")).as_deref(),
        Some(&b"ok\n"[..])
    );
    drop(server);
}
