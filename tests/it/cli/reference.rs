//! Completions and manual pages.

use std::fs;

use super::Desk;

#[tokio::test]
async fn each_shell_completes_commands_and_flags() {
    let desk = Desk::new();
    for shell in ["bash", "zsh", "fish"] {
        let ran = desk.run(&["reference", "completions", shell]).await;
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let text = String::from_utf8(ran.stdout).unwrap();
        for word in ["uninstall", "dry-run", "upstream"] {
            assert!(text.contains(word), "{shell}: {word}");
        }
    }
    let ran = desk.run(&["reference", "completions", "ksh"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
}

#[tokio::test]
async fn each_command_has_a_manual_page() {
    let desk = Desk::new();
    fs::create_dir(desk.path("man")).unwrap();
    let ran = desk.run(&["reference", "man", "man"]).await;
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    for (page, word) in [
        ("starlift.1", "convert"),
        ("starlift-serve.1", "upstream"),
        ("starlift-agent-install.1", "containerd"),
    ] {
        let text = fs::read_to_string(desk.path("man").join(page)).unwrap();
        assert!(
            text.starts_with(".ie") && text.contains(".TH"),
            "{page}: {text}"
        );
        assert!(text.contains(word), "{page}");
    }
    assert!(
        !desk.path("man/starlift-predict.1").exists(),
        "a hidden command"
    );
    let ran = desk.run(&["reference", "man", "absent"]).await;
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
}
