//! Real clients over a budget: they wait as long as the answer says, and succeed.

use crate::support::docker_registry::{Access, DockerRegistry};
use crate::support::fixture::{self, Fixture};
use crate::support::place::{Place, fetch};
use crate::support::starlift::Starlift;

const TOOLS: &[&str] = &["docker-registry"];

#[test]
fn skopeo_waits_as_long_as_a_budget_says() {
    let Some(place) = Place::with(&[fixture::TOOLS, TOOLS].concat()) else {
        return;
    };
    let registry = DockerRegistry::start(&place, Access::Anyone);
    registry.push(&place, &Fixture::get("app"), "app", false);
    let config = format!(
        "[serve.budgets.address]\nrequests = 1\nburst = 1\n\
         [upstream.local]\nurl = 'http://{}'\n",
        registry.address
    );
    let config = place.write("starlift.toml", config);
    let arguments = ["--wait", "25s", "--config", config.to_str().unwrap()];
    let server = Starlift::start(&place, &arguments);
    let target = place.path().join("copy");
    place.run(&format!(
        "skopeo copy --quiet --src-tls-verify=false docker://{}/local/app:1 oci:{}:1",
        server.address,
        target.display()
    ));
    let metrics = fetch(&server.url("/metrics")).unwrap();
    let metrics = String::from_utf8(metrics).unwrap();
    let refusals = r#"starlift_budget_refusals_total{of="address",budget="requests"}"#;
    assert!(metrics.contains(refusals), "{metrics}");
}
