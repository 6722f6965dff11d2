//! A scenario's report: printed as Markdown, or written to a folder together with its plots.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::ensure;

use crate::harness::run;
use crate::plot::Plot;

#[derive(Debug)]
pub(crate) struct Report {
    /// The name of the file.
    name: &'static str,
    title: &'static str,
    notes: Vec<String>,
    /// The violated invariants.
    failures: Vec<String>,
    tables: Vec<Table>,
    plots: Vec<Plot>,
    /// Further files beside the report, by name.
    files: Vec<(&'static str, String)>,
}

#[derive(Debug)]
struct Table {
    caption: String,
    head: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Report {
    /// Begins a report that starts with the date, the machine and its load.
    pub(crate) fn begin(name: &'static str, title: &'static str) -> anyhow::Result<Self> {
        let mut report = Self {
            name,
            title,
            notes: Vec::new(),
            failures: Vec::new(),
            tables: Vec::new(),
            plots: Vec::new(),
            files: Vec::new(),
        };
        report.note(format!("{} on {}", run("date -u +%F")?.trim(), machine()?));
        report.note(format!("load average at the start: {}", load()?));
        Ok(report)
    }

    /// Returns the day and the machine.
    pub(crate) fn first_note(&self) -> &str {
        self.notes.first().map_or("", String::as_str)
    }

    pub(crate) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// Records a violated invariant. The program fails once the report is written.
    pub(crate) fn fail(&mut self, failure: impl Into<String>) {
        self.failures.push(failure.into());
    }

    /// Whether no invariant was violated so far.
    pub(crate) fn is_sound(&self) -> bool {
        self.failures.is_empty()
    }

    pub(crate) fn table(
        &mut self,
        caption: impl Into<String>,
        head: &[&'static str],
        rows: Vec<Vec<String>>,
    ) {
        self.tables.push(Table {
            caption: caption.into(),
            head: head.to_vec(),
            rows,
        });
    }

    pub(crate) fn plot(&mut self, plot: Plot) {
        self.plots.push(plot);
    }

    /// Adds a file that is written beside the report.
    pub(crate) fn file(&mut self, name: &'static str, text: String) {
        self.files.push((name, text));
    }

    /// Prints the report, or writes it into `folder`.
    ///
    /// # Errors
    /// If it cannot be written, or if an invariant was violated.
    #[expect(
        clippy::print_stdout,
        reason = "the report is the output of this program"
    )]
    pub(crate) fn finish(mut self, folder: Option<&Path>) -> anyhow::Result<()> {
        self.note(format!("load average at the end: {}", load()?));
        let mut text = self.markdown()?;
        if let Some(folder) = folder {
            fs::create_dir_all(folder)?;
            for (number, plot) in self.plots.iter().enumerate() {
                let file = format!("{}-{}.svg", self.name, number + 1);
                fs::write(folder.join(&file), plot.svg())?;
                writeln!(text, "\n![{}]({file})", plot.title())?;
            }
            for (name, content) in &self.files {
                fs::write(folder.join(name), content)?;
                writeln!(text, "\n[{name}]({name})")?;
            }
            fs::write(folder.join(format!("{}.md", self.name)), &text)?;
        }
        println!("{text}");
        ensure!(self.failures.is_empty(), "{}", self.failures.join("\n"));
        Ok(())
    }

    fn markdown(&self) -> Result<String, std::fmt::Error> {
        let mut text = format!("# {}\n\n", self.title);
        for note in &self.notes {
            writeln!(text, "* {note}")?;
        }
        for failure in &self.failures {
            writeln!(text, "* **failed**: {failure}")?;
        }
        for Table {
            caption,
            head,
            rows,
        } in &self.tables
        {
            writeln!(
                text,
                "\n{caption}\n\n| {} |\n|{}",
                head.join(" | "),
                "---|".repeat(head.len())
            )?;
            for row in rows {
                writeln!(text, "| {} |", row.join(" | "))?;
            }
        }
        Ok(text)
    }
}

fn machine() -> anyhow::Result<String> {
    let cores = std::thread::available_parallelism()?;
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .unwrap_or_default();
    let kernel = run("uname -r")?;
    Ok(format!(
        "{cores} cores, shared ({}), Linux {}",
        model.trim_start_matches(['\t', ':', ' ']),
        kernel.trim()
    ))
}

fn load() -> anyhow::Result<String> {
    let load = fs::read_to_string("/proc/loadavg")?;
    Ok(load
        .split_whitespace()
        .take(3)
        .collect::<Vec<_>>()
        .join(" "))
}
