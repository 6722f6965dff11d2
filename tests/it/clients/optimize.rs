//! `starlift optimize` runs real images in real containers, and places the files that they read
//! first.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::Value;

use crate::support::containerd::{self, Containerd};
use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::eventually::eventually;
use crate::support::fixture::{self, Fixture};
use crate::support::place::{Daemon, Place};

/// Reads a file of the top layer with a program of the lowest layer.
const CAT: &[&str] = &[
    "--entrypoint",
    r#"["/bin/cat"]"#,
    "--args",
    r#"["/var/lib/state/run"]"#,
];

fn place(more: &[&str]) -> Option<Place> {
    Place::with(&[fixture::TOOLS, &["runc"], more].concat())
}

fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_secs()).unwrap() - 1
}

fn starlift(place: &Place, arguments: &[&str]) -> Output {
    place
        .command(env!("CARGO_BIN_EXE_starlift"))
        .args(arguments)
        .output()
        .unwrap()
}

fn optimize(place: &Place, flags: &[&str], source: &str, target: &str) -> Output {
    starlift(place, &[&["optimize"], flags, &[source, target]].concat())
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn json(output: &Output) -> Value {
    assert!(output.status.success(), "{}", said(output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn layout(place: &Place, name: &str) -> String {
    format!("oci:{}:1", place.path().join(name).display())
}

/// Returns the lines of a record: path, manifest, layer.
fn lines(record: &Path) -> Vec<(String, String, u64)> {
    let text = fs::read_to_string(record).unwrap();
    let line = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line.as_object().unwrap().len(), 3, "{line}");
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        (
            text("path"),
            text("manifestDigest"),
            line["layerIndex"].as_u64().unwrap(),
        )
    };
    text.lines().map(line).collect()
}

/// Returns the files before the landmark of a layer, and the landmark.
fn front(place: &Place, layer: u64, image: &str) -> Vec<String> {
    let output = starlift(
        place,
        &["inspect", "--toc", "--layer", &layer.to_string(), image],
    );
    let entries = json(&output)["entries"].as_array().unwrap().clone();
    let is_landmark = |entry: &&Value| {
        entry["name"]
            .as_str()
            .unwrap()
            .ends_with(".prefetch.landmark")
    };
    let landmark = entries.iter().find(is_landmark).unwrap()["name"].clone();
    let before = entries
        .iter()
        .take_while(|entry| entry["name"] != landmark)
        .filter(|entry| entry["type"] == "reg");
    before
        .map(|entry| &entry["name"])
        .chain([&landmark])
        .map(|name| name.as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn the_files_that_a_workload_reads_come_first_in_its_order() {
    let Some(place) = place(&[]) else { return };
    let source = Fixture::get("app");
    let record = place.path().join("record");
    let (by_run, by_record) = (layout(&place, "by-run"), layout(&place, "by-record"));
    let flags = [CAT, &["--json", "--record-out", record.to_str().unwrap()]].concat();
    let output = optimize(&place, &flags, &source.oci(), &by_run);
    let made = json(&output);
    assert_eq!(
        (
            &made["workload"]["exit_code"],
            &made["workload"]["platform"]
        ),
        (&0.into(), &"linux/amd64".into())
    );
    assert!(
        said(&output).contains("run\n"),
        "the container's output: {}",
        said(&output)
    );

    let lines = lines(&record);
    let digest = source.layout().digest("1");
    assert!(
        lines.iter().all(|(_, manifest, _)| *manifest == digest),
        "{lines:?}"
    );
    let files: Vec<(&str, u64)> = lines
        .iter()
        .map(|(path, _, layer)| (path.as_str(), *layer))
        .collect();
    let place_of = |file: (&str, u64)| {
        files
            .iter()
            .position(|other| *other == file)
            .unwrap_or_else(|| panic!("{file:?} in {files:?}"))
    };
    assert!(place_of(("bin/busybox", 0)) < place_of(("var/lib/state/run", 2)));
    assert!(
        !files.iter().any(|(path, _)| path.starts_with("usr/")),
        "files that the workload does not read: {files:?}"
    );
    for layer in 0..3 {
        let mut expected: Vec<&str> = files
            .iter()
            .filter(|file| file.1 == layer)
            .map(|file| file.0)
            .collect();
        expected.push(if expected.is_empty() {
            ".no.prefetch.landmark"
        } else {
            ".prefetch.landmark"
        });
        assert_eq!(front(&place, layer, &by_run), expected, "layer {layer}");
    }

    let again = json(&optimize(
        &place,
        &["--json", "--record-in", record.to_str().unwrap()],
        &source.oci(),
        &by_record,
    ));
    assert_eq!(
        (&again["converted"], &again["workload"]),
        (&made["converted"], &Value::Null),
        "the same record gives the same image"
    );
    let verified = starlift(&place, &["verify", &by_run, "--against", &source.oci()]);
    assert!(
        verified.status.success(),
        "{}{}",
        String::from_utf8_lossy(&verified.stdout),
        said(&verified)
    );
}

#[test]
fn an_optimized_image_of_a_registry_is_the_image_and_runs() {
    let Some(place) = place(&[&["docker-registry"], containerd::TOOLS].concat()) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "image", false);
    let (original, optimized) = (
        format!("{}/image:1", registry.address),
        format!("{}/image:fast", registry.address),
    );
    let output = optimize(&place, CAT, &original, &optimized);
    assert!(output.status.success(), "{}", said(&output));
    let containerd = Containerd::start(&place);
    let start = now();
    containerd.ctr(&format!("images pull --plain-http {original}"));
    containerd.ctr(&format!("images pull --plain-http {optimized}"));
    let tree = |image: &str, name: &str| containerd.tree(image, name, start).rounded_to_seconds();
    let mut converted = tree(&optimized, "converted");
    // Clients that do not mount lazily see the entries that the classic layout adds as files.
    for own in [
        "stargz.index.json",
        ".prefetch.landmark",
        ".no.prefetch.landmark",
    ] {
        converted.0.remove(Path::new(own));
    }
    tree(&original, "original").assert_same(&converted, "optimized");
    let id = place.container_id("optimized");
    assert_eq!(
        containerd.ctr(&format!(
            "run --rm {optimized} {id} /bin/cat /usr/share/old/d"
        )),
        "new\n"
    );
}

/// Returns the entries of an image's profiles as `inspect` shows them: path, layer and source of
/// each file.
#[track_caller]
fn profiled(place: &Place, image: &str) -> Vec<(String, u64, String)> {
    let shown = json(&starlift(
        place,
        &[
            "inspect",
            "--profile",
            "--json",
            "--platform",
            "linux/amd64",
            image,
        ],
    ));
    let [image] = &**shown.as_array().unwrap() else {
        panic!("{shown}")
    };
    let [profile] = &**image["profiles"].as_array().unwrap() else {
        panic!("{shown}")
    };
    assert_eq!(profile["workload"], "default");
    let file = |file: &Value| {
        assert!(
            file["size"].as_u64().is_some(),
            "the image has the file: {file}"
        );
        (
            file["path"].as_str().unwrap().to_owned(),
            file["layer"].as_u64().unwrap(),
            file["sources"][0].to_string(),
        )
    };
    profile["files"]
        .as_array()
        .unwrap()
        .iter()
        .map(file)
        .collect()
}

#[test]
fn a_profile_refers_to_the_image_in_a_layout_and_in_a_registry_without_referrers() {
    let Some(place) = place(&["docker-registry"]) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    let source = Fixture::get("app");
    let record = place.path().join("record");
    let flags = [
        CAT,
        &["--profile", "--record-out", record.to_str().unwrap()],
    ]
    .concat();
    let output = optimize(&place, &flags, &source.oci(), &layout(&place, "fast"));
    assert!(
        output.status.success() && said(&output).contains("1 profiles attached"),
        "{}",
        said(&output)
    );
    let recorded: Vec<_> = lines(&record)
        .into_iter()
        .map(|(path, _, layer)| (path, layer, "\"by-hand\"".to_owned()))
        .collect();
    assert_eq!(profiled(&place, &layout(&place, "fast")), recorded);
    let untagged = format!("oci:{}", place.path().join("fast").display());
    assert_eq!(
        profiled(&place, &untagged),
        recorded,
        "the layout still has one image"
    );

    let pushed = format!("{}/image:fast", registry.address);
    let flags = ["--profile", "--record-in", record.to_str().unwrap()];
    for _ in 0..2 {
        let output = optimize(&place, &flags, &source.oci(), &pushed);
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(profiled(&place, &pushed), recorded, "the newest of the two");
    let table = starlift(&place, &["inspect", "--profile", &pushed]);
    let table = String::from_utf8(table.stdout).unwrap();
    assert!(table.contains("by hand  bin/busybox"), "{table}");
    let none = starlift(&place, &["inspect", "--profile", &source.oci()]);
    assert!(String::from_utf8_lossy(&none.stdout).contains("no profile refers to it"));

    let archive = format!("docker-archive:{}", place.path().join("fast.tar").display());
    let refused = optimize(&place, &flags, &source.oci(), &archive);
    assert!(
        said(&refused).contains("an archive holds only an image"),
        "{}",
        said(&refused)
    );
}

#[test]
fn a_record_contains_the_record_of_the_reference() {
    let Some(place) = place(&[&["docker-registry", "ctr-remote"], containerd::TOOLS].concat())
    else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "image", false);
    let containerd = Containerd::start(&place);
    let original = format!("{}/image:1", registry.address);
    containerd.ctr(&format!("images pull --plain-http {original}"));
    let [theirs, ours] = ["theirs", "ours"].map(|name| place.path().join(name));
    let workload = CAT.join(" ");
    containerd.ctr_remote(&format!(
        "images optimize --oci {workload} --record-out {} {original} converted:1",
        theirs.display()
    ));
    let flags = [CAT, &["--record-out", ours.to_str().unwrap()]].concat();
    let output = optimize(&place, &flags, &original, &layout(&place, "converted"));
    assert!(output.status.success(), "{}", said(&output));
    let files = |record: &Path| lines(record).into_iter().collect::<BTreeSet<_>>();
    let (ours, theirs) = (files(&ours), files(&theirs));
    assert!(ours.is_superset(&theirs), "{ours:?}\n{theirs:?}");
    // The container runtime reads these files before the reference's recording begins.
    let more: Vec<&str> = ours
        .difference(&theirs)
        .map(|(path, _, _)| path.as_str())
        .collect();
    assert_eq!(more, ["etc/group", "etc/passwd"]);
}

#[test]
fn flags_set_the_command_user_directory_and_environment() {
    let Some(place) = place(&[]) else { return };
    let out = place.dir("out");
    fs::set_permissions(&out, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let mount = format!(
        "type=bind,source={},destination=/out,options=rbind:rw",
        out.display()
    );
    let script = "echo $(id -u):$(id -g) $PWD $SET $GIVEN $(cat /etc/hostname) $(ls /sys/class/net) >/out/said; echo x >/new; exit 3";
    let args = serde_json::to_string(&["-c", script]).unwrap();
    let file = place.write("env", "GIVEN=by-file\n\n");
    let flags = [
        ["--entrypoint", r#"["/bin/sh"]"#],
        ["--args", &args],
        ["--user", "7:root"],
        ["--cwd", "/tmp"],
        ["--env", "SET=by-flag"],
        ["--env-file", file.to_str().unwrap()],
        ["--mount", &mount],
    ];
    let output = optimize(
        &place,
        &[&flags.concat()[..], &["--json"]].concat(),
        &Fixture::get("app").oci(),
        &layout(&place, "converted"),
    );
    assert_eq!(
        json(&output)["workload"]["exit_code"],
        3,
        "a failing workload is recorded too"
    );
    assert!(said(&output).contains("exit code 3"), "{}", said(&output));
    let text = fs::read_to_string(out.join("said")).unwrap();
    assert_eq!(
        text,
        "7:0 /tmp by-flag by-file starlift lo\n",
        "{}",
        said(&output)
    );
}

#[test]
fn a_workload_that_cannot_run_makes_no_image() {
    let Some(place) = place(&[]) else { return };
    let source = Fixture::get("app").oci();
    for (flags, reason) in [
        (
            &["--entrypoint", r#"["/no/such/program"]"#][..],
            "/no/such/program",
        ),
        (&["--user", "nobody"], "no user \"nobody\""),
        (&["--platform", "linux/s390x"], "not among the platforms"),
        (&["--external-toc"], "diff-ids"),
        (&["--args", "/bin/cat"], "JSON array"),
        (
            &[
                "--mount",
                "type=bind,source=/no/such/folder,destination=/x,options=rbind",
            ],
            "/no/such/folder",
        ),
    ] {
        let output = optimize(&place, flags, &source, &layout(&place, "converted"));
        assert_eq!(
            output.status.code(),
            Some(2),
            "{flags:?}: {}",
            said(&output)
        );
        assert!(
            said(&output).contains(reason),
            "{flags:?}: {}",
            said(&output)
        );
        assert!(!place.path().join("converted").exists(), "{flags:?}");
        assert_eq!(
            fs::read_dir(place.dir("tmp")).unwrap().count(),
            0,
            "{flags:?} leaves files"
        );
    }
    let mut alone = Command::new(env!("CARGO_BIN_EXE_starlift"));
    alone
        .args(["optimize", &source, &layout(&place, "converted")])
        .env("PATH", place.dir("empty"));
    let output = alone.output().unwrap();
    assert!(
        said(&output).contains("runc, which runs the workload, cannot be run"),
        "{}",
        said(&output)
    );
}

/// Starts `optimize` with a workload that runs until it is stopped, and waits until the workload
/// has begun.
fn endless(place: &Place, flags: &[&str]) -> Daemon {
    let out = place.dir("out");
    let mount = format!(
        "type=bind,source={},destination=/out,options=rbind:rw",
        out.display()
    );
    // The path in the command line lets the workspace find processes that are left running.
    let script = format!(
        "cat /var/lib/state/run >/out/begun; while :; do sleep 1; done # {}",
        place.path().display()
    );
    let args = serde_json::to_string(&["-c", &script]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_starlift"));
    let source = Fixture::get("app").oci();
    let workload = [
        "--entrypoint",
        r#"["/bin/sh"]"#,
        "--args",
        &args,
        "--mount",
        &mount,
    ];
    command.args(
        [
            &["optimize"],
            flags,
            &workload,
            &[source.as_str(), &layout(place, "converted")],
        ]
        .concat(),
    );
    place.dir("tmp");
    place.spawn(
        "optimize",
        command.stdin(Stdio::null()).stdout(Stdio::null()),
        || fs::read(out.join("begun")).is_ok_and(|begun| begun == b"run\n"),
    )
}

#[test]
fn a_workload_is_stopped_after_its_period() {
    let Some(place) = place(&[]) else { return };
    let mut running = endless(&place, &["--period", "1"]);
    assert_eq!(running.wait().code(), Some(0), "{}", running.log());
    assert!(
        running.log().contains("the workload was stopped"),
        "{}",
        running.log()
    );
    assert_eq!(
        front(&place, 2, &layout(&place, "converted")),
        ["var/lib/state/run", ".prefetch.landmark"]
    );
}

#[test]
fn an_interrupt_ends_the_workload_and_with_it_everything_unless_it_is_waited_for() {
    for (flags, code) in [(&["--period", "1000"][..], 2), (&["--wait-on-signal"], 0)] {
        let Some(place) = place(&[]) else { return };
        let mut running = endless(&place, flags);
        running.signal("INT");
        assert_eq!(running.wait().code(), Some(code), "{}", running.log());
        assert_eq!(place.path().join("converted").exists(), code == 0);
        assert_eq!(fs::read_dir(place.dir("tmp")).unwrap().count(), 0);
    }
}

#[test]
fn a_killed_command_leaves_no_container() {
    let Some(place) = place(&[]) else { return };
    let mut running = endless(&place, &["--period", "1000"]);
    assert!(
        place
            .processes()
            .iter()
            .any(|(_, line)| line.contains("while :")),
        "{:?}",
        place.processes()
    );
    running.kill();
    eventually("the processes of the container end", || {
        place.processes().is_empty()
    });
    assert!(!place.path().join("converted").exists());
}
