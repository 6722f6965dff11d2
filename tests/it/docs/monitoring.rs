//! The alerts and dashboards of the charts name metrics and labels that the program has, and
//! Prometheus reads them. The rules' own tests are in `fixtures/alerts`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use starlift::telemetry::metrics::{Description, TABLE};

use super::sources::top;
use crate::support::place::Place;

const CHARTS: [&str; 2] = ["starlift", "starlift-agent"];
/// Labels that Prometheus adds, and that of a histogram's buckets.
const ADDED: [&str; 3] = ["job", "instance", "le"];

/// A metric in a query, with the labels that its selector names.
#[derive(Debug, PartialEq, Eq)]
struct Selector<'a> {
    name: &'a str,
    labels: Vec<&'a str>,
}

/// A query of a dashboard, and the legend of its series.
struct Query {
    expression: String,
    legend: String,
}

fn file(chart: &str, name: &str) -> PathBuf {
    top()
        .join("deploy/helm")
        .join(chart)
        .join("files")
        .join(name)
}

fn alerts(chart: &str) -> String {
    fs::read_to_string(file(chart, "alerts.yaml")).unwrap()
}

fn dashboard(chart: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(file(chart, "dashboard.json")).unwrap()).unwrap()
}

fn queries(dashboard: &Value) -> Vec<Query> {
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels
        .iter()
        .filter_map(|panel| panel["targets"].as_array());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    targets
        .flatten()
        .map(|target| Query {
            expression: text(&target["expr"]),
            legend: text(&target["legendFormat"]),
        })
        .collect()
}

/// Returns the program's metrics in a text with queries.
fn selectors(text: &str) -> Vec<Selector<'_>> {
    text.match_indices("starlift_")
        .map(|(start, _)| selector(&text[start..]))
        .collect()
}

/// Returns the metric at the beginning of `text`.
fn selector(text: &str) -> Selector<'_> {
    let is_of_name = |letter: char| letter.is_ascii_lowercase() || letter == '_';
    let end = text
        .find(|letter| !is_of_name(letter))
        .unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let inside = rest
        .strip_prefix('{')
        .and_then(|rest| rest.split('}').next());
    let matchers = inside.into_iter().flat_map(|inside| inside.split(", "));
    let labels = matchers.filter_map(|matcher| matcher.split(['=', '!']).next());
    Selector {
        name,
        labels: labels.collect(),
    }
}

/// Returns the labels by which the queries in a text group their results.
fn grouping_labels(text: &str) -> BTreeSet<&str> {
    let lists = [" by (", " on ("].map(|word| text.split(word).skip(1));
    let lists = lists.into_iter().flatten();
    lists
        .filter_map(|rest| rest.split(')').next())
        .flat_map(|list| list.split(", "))
        .collect()
}

/// Returns the names between `{{` and `}}` after `prefix`.
fn placeholders<'a>(text: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    let inside = text
        .split("{{")
        .skip(1)
        .filter_map(|rest| rest.split("}}").next());
    inside
        .filter_map(|name| name.trim().strip_prefix(prefix))
        .collect()
}

/// Returns the metric to which a series belongs: a histogram has three kinds of series.
fn metric(series: &str) -> Option<&'static Description> {
    let of_histogram = ["_bucket", "_count", "_sum"]
        .iter()
        .find_map(|suffix| series.strip_suffix(suffix));
    TABLE
        .iter()
        .find(|metric| match (metric.kind, of_histogram) {
            ("histogram", Some(name)) => metric.name == name,
            (kind, _) => kind != "histogram" && metric.name == series,
        })
}

/// Checks the metrics and the labels of `queries`, and that the labels in `shown` are among them.
fn check(queries: &str, shown: &BTreeSet<&str>) {
    let mut known: BTreeSet<&str> = ADDED.into();
    for selector in selectors(queries) {
        let Some(metric) = metric(selector.name) else {
            panic!("no metric has the series {}\n{queries}", selector.name);
        };
        let own = metric.labels.split(", ");
        let labels: BTreeSet<&str> = own.chain(ADDED).collect();
        for label in &selector.labels {
            assert!(labels.contains(label), "{}: {label}", selector.name);
        }
        known.extend(labels);
    }
    for label in grouping_labels(queries).iter().chain(shown) {
        assert!(known.contains(label), "{label}\n{queries}");
    }
}

#[test]
fn alerts_name_metrics_and_labels_of_the_program() {
    for chart in CHARTS {
        let text = alerts(chart);
        let alerts: Vec<&str> = text.split("- alert: ").skip(1).collect();
        assert!(!alerts.is_empty(), "{chart}");
        for alert in alerts {
            check(alert, &placeholders(alert, "$labels."));
            for key in ["severity: ", "summary: ", "description: "] {
                assert_eq!(alert.matches(key).count(), 1, "{key}\n{alert}");
            }
        }
    }
}

#[test]
fn dashboards_name_metrics_and_labels_of_the_program() {
    for chart in CHARTS {
        let dashboard = dashboard(chart);
        let queries = queries(&dashboard);
        assert!(!queries.is_empty(), "{chart}");
        for query in &queries {
            assert!(
                !selectors(&query.expression).is_empty(),
                "{}",
                query.expression
            );
            check(&query.expression, &placeholders(&query.legend, ""));
        }
        let panels = dashboard["panels"].as_array().unwrap();
        let numbers: BTreeSet<_> = panels.iter().map(|panel| panel["id"].as_u64()).collect();
        assert_eq!(numbers.len(), panels.len(), "{chart}: a number twice");
    }
}

#[test]
fn prometheus_takes_the_alerts_and_each_fires_on_its_fault() {
    let Some(place) = Place::with(&["promtool"]) else {
        return;
    };
    let mut checked = place.command("promtool");
    checked.args(["check", "rules"]);
    checked.args(CHARTS.map(|chart| file(chart, "alerts.yaml")));
    let mut tested = place.command("promtool");
    tested.args(["test", "rules"]);
    let folder = top().join("tests/it/fixtures/alerts");
    for entry in fs::read_dir(&folder).unwrap() {
        tested.arg(entry.unwrap().path());
    }
    for command in [&mut checked, &mut tested] {
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    let tests: String = ["server.yaml", "agent.yaml", "scrub.yaml"]
        .map(|name| fs::read_to_string(folder.join(name)).unwrap())
        .concat();
    for chart in CHARTS {
        let text = alerts(chart);
        let names = text
            .split("- alert: ")
            .skip(1)
            .filter_map(|alert| alert.lines().next());
        for name in names {
            assert!(tests.contains(name), "no test fires {name}");
        }
    }
}

/// As recording rules, whose expressions promtool parses.
#[test]
fn prometheus_takes_the_queries_of_the_dashboards() {
    let Some(place) = Place::with(&["promtool"]) else {
        return;
    };
    for chart in CHARTS {
        let queries = queries(&dashboard(chart));
        let rule = |(number, query): (usize, &Query)| {
            let expression = query.expression.replace("$__rate_interval", "5m");
            json!({"record": format!("query:{number}"), "expr": expression})
        };
        let rules: Vec<Value> = queries.iter().enumerate().map(rule).collect();
        let rules = json!({"groups": [{"name": "dashboard", "rules": rules}]});
        // JSON is YAML.
        let rules = place.write(&format!("{chart}.yaml"), rules.to_string());
        let mut command = place.command("promtool");
        let output = command
            .args(["check", "rules"])
            .arg(rules)
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
    }
}

#[test]
fn selectors_are_read_from_queries() {
    let query =
        "sum by (a, le) (rate(starlift_x_bucket{job=\"j\", b!~\"1|2\"}[5m])) / starlift_y > 0";
    let expected = [
        ("starlift_x_bucket", vec!["job", "b"]),
        ("starlift_y", vec![]),
    ];
    let expected = expected.map(|(name, labels)| Selector { name, labels });
    assert_eq!(selectors(query), expected);
    assert_eq!(grouping_labels(query), BTreeSet::from(["a", "le"]));
    assert_eq!(
        placeholders("{{a}} of {{ $labels.b }}", "$labels."),
        BTreeSet::from(["b"])
    );
}
