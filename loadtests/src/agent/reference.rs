//! Pulls an image from a server on this machine, runs a program in it and reads all its files, beside
//! the reference snapshotter.

use std::time::Instant;

use anyhow::ensure;

use super::{Arguments, EROFS, LAZY, REFERENCE};
use crate::figures::Spread;
use crate::images::Image;
use crate::node::{Node, Snapshotter};
use crate::report::Report;
use crate::server::{self, Server};

const CONTESTANTS: [&str; 3] = [REFERENCE, LAZY, EROFS];
/// The expected output of each program.
const OUTPUT: &str = "x\n";
const PROGRAM: &str = "python3 -c 'import flask, sqlalchemy; print(flask.Flask(\"x\").name)'\n";
const READ_ALL: &str = "find / -xdev -type f -exec cat {} + > /dev/null\necho x\n";
const STEPS: [&str; 4] = ["pull", "run to output", "all files, first", "again"];

/// The seconds of each step.
type Run = [f64; 4];

pub(super) fn measure(arguments: &Arguments, report: &mut Report) -> anyhow::Result<()> {
    let (image, place) = (Image::get("python")?, tempfile::tempdir()?);
    let upstream = format!("python=oci:{}", image.dir.display());
    let server = Server::start(&arguments.starlift, place.path(), &[upstream])?;
    let name = format!("{}/python/image:1", server.address);
    server::converted(&format!(
        "http://{}/v2/python/image/manifests/1",
        server.address
    ))?;
    report.note(
        "reference: `python` from a server on this machine; containerd and snapshotter new for each; from the start of \
         the pull to its end, and to the output of Python with flask and sqlalchemy; then two more containers that read \
         every file; the agent as it comes, the reference without prefetch and background fetch; × is against the \
         reference",
    );
    let mut runs: [Vec<Run>; 3] = Default::default();
    for _ in 0..arguments.rounds {
        for (contestant, runs) in CONTESTANTS.into_iter().zip(&mut runs) {
            runs.push(once(arguments, &name, contestant)?);
        }
    }
    let spreads = runs
        .each_ref()
        .map(|runs| [0, 1, 2, 3].map(|step| Spread::of(runs.iter().map(|run| run[step]))));
    let rows = CONTESTANTS.iter().zip(&spreads).map(|(contestant, own)| {
        let figures = own.iter().zip(&spreads[0]).map(|(own, reference)| {
            format!("{} × {:.2}", own.show(2), own.median / reference.median)
        });
        [(*contestant).to_owned()]
            .into_iter()
            .chain(figures)
            .collect()
    });
    let head: Vec<&str> = [""].into_iter().chain(STEPS).collect();
    report.table("Beside the reference, in seconds", &head, rows.collect());
    Ok(())
}

fn once(arguments: &Arguments, image: &str, contestant: &'static str) -> anyhow::Result<Run> {
    let place = tempfile::tempdir()?;
    let place = place.path();
    let agent = |driver| {
        let settings = [("DRIVER", driver)];
        Snapshotter::starlift(contestant, &arguments.starlift, place, &settings)
    };
    let snapshotter = match contestant {
        LAZY => agent("fuse")?,
        EROFS => agent("erofs")?,
        _ => Snapshotter::reference(contestant, place)?,
    };
    let node = Node::start(place, vec![snapshotter])?;
    let begun = Instant::now();
    node.pull(image, contestant)?;
    let pull = begun.elapsed();
    let run = |script| {
        let output = node.run(image, contestant, script)?;
        ensure!(output.text == OUTPUT, "{contestant} said {:?}", output.text);
        Ok(output.first)
    };
    let output = run(PROGRAM)? - begun;
    let read_all = || {
        let begun = Instant::now();
        Ok::<_, anyhow::Error>(run(READ_ALL)? - begun)
    };
    let (first, again) = (read_all()?, read_all()?);
    Ok([pull, output, first, again].map(|time| time.as_secs_f64()))
}
