//! Every link of a document to a file of the repository, or to a heading, leads somewhere.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::sources::{files, top};

#[test]
fn links_of_documents_lead_to_files_and_headings_that_exist() {
    let is_document = |file: &PathBuf| file.extension().is_some_and(|end| end == "md");
    let documents = files(top().to_owned(), &|_| true)
        .into_iter()
        .filter(is_document);
    let (mut seen, mut broken) = (0, Vec::new());
    for document in documents {
        let text = fs::read_to_string(&document).unwrap();
        for link in links(&text).filter(|link| !link.contains("://")) {
            seen += 1;
            if let Err(reason) = follow(&document, link) {
                let document = document.strip_prefix(top()).unwrap().display();
                broken.push(format!("{document}: {link}: {reason}"));
            }
        }
    }
    assert!(seen > 50, "{seen} links");
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
}

/// Returns the targets of `[text](target)` outside of code.
fn links(text: &str) -> impl Iterator<Item = &str> {
    prose(text).flat_map(|line| {
        let outside_of_code = line.split('`').step_by(2);
        let targets = outside_of_code.flat_map(|part| part.split("](").skip(1));
        targets.filter_map(|target| target.split(')').next())
    })
}

/// Returns the lines that are not in a fenced block of code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut in_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    })
}

fn follow(document: &Path, link: &str) -> Result<(), String> {
    let (file, heading) = link.split_once('#').unwrap_or((link, ""));
    let target = if file.is_empty() {
        document.to_owned()
    } else {
        document.parent().unwrap().join(file)
    };
    if !target.exists() {
        return Err("no such file".to_owned());
    }
    if heading.is_empty() {
        return Ok(());
    }
    let text = fs::read_to_string(&target).map_err(|error| error.to_string())?;
    if anchors(&text).contains(&heading.to_owned()) {
        Ok(())
    } else {
        Err("no such heading".to_owned())
    }
}

/// Returns the anchors that a forge makes of the headings: lower case, hyphens for spaces, no
/// punctuation, and a number behind a heading that came before.
fn anchors(text: &str) -> Vec<String> {
    let mut counts = HashMap::new();
    let headings = prose(text).filter_map(|line| {
        line.trim_start_matches('#')
            .strip_prefix(' ')
            .filter(|_| line.starts_with('#'))
    });
    let anchor = |heading: &str| {
        let letters = heading.trim().to_lowercase();
        let letters = letters
            .chars()
            .filter(|letter| letter.is_alphanumeric() || "-_ ".contains(*letter));
        let name: String = letters
            .map(|letter| if letter == ' ' { '-' } else { letter })
            .collect();
        let count = counts.entry(name.clone()).or_insert(0);
        *count += 1;
        match *count {
            1 => name,
            number => format!("{name}-{}", number - 1),
        }
    };
    headings.map(anchor).collect()
}

#[test]
fn anchors_and_links_are_those_of_a_forge() {
    let text = "# `a.b`: One, two\n## Same\n## Same\n```\n# code [x](y)\n```\n[l](a.md#b) `[c](d)` [e](#f)";
    assert_eq!(anchors(text), ["ab-one-two", "same", "same-1"]);
    assert_eq!(links(text).collect::<Vec<_>>(), ["a.md#b", "#f"]);
}
