use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use starlift::agent::service::server::{self, ServeError};

use super::{Agent, socket_beneath};

#[tokio::test]
async fn only_root_can_use_the_socket() {
    let agent = Agent::start();
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&agent.socket()), 0o600);
    assert_eq!(mode(agent.socket().parent().unwrap()), 0o700);
}

#[tokio::test]
async fn a_socket_that_nobody_listens_on_is_replaced() {
    let root = tempfile::tempdir().unwrap();
    let socket = socket_beneath(root.path());
    fs::create_dir(socket.parent().unwrap()).unwrap();
    drop(UnixListener::bind(&socket).unwrap());
    drop(UnixListener::bind(socket.with_extension("sock.new")).unwrap());
    let agent = Agent::on(root);
    agent.client().await;
    let root = agent.stop().await;
    Agent::on(root).client().await;
}

#[tokio::test]
async fn a_living_agent_and_other_files_are_left_alone() {
    let agent = Agent::start();
    assert!(matches!(
        server::bind(&agent.socket(), None),
        Err(ServeError::InUse(_))
    ));
    agent.client().await;
    let file = agent.root.path().join("file");
    fs::write(&file, "kept").unwrap();
    assert!(matches!(
        server::bind(&file, None),
        Err(ServeError::NoSocket(_))
    ));
    assert_eq!(fs::read(&file).unwrap(), b"kept");
}
