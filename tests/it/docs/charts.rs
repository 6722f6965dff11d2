//! The charts, rendered by Helm and decoded strictly into the types of Kubernetes' API.

use std::io::Write as _;
use std::process::{Output, Stdio};

use serde_json::Value;
use starlift::config::Config;
use starlift::telemetry::metrics::TABLE;

use super::sources::top;
use crate::support::place::Place;

const CLIENTS: &[&str] = &["helm", "kube-objects"];

/// Settings with which every object of the chart exists: a bucket.
const SERVER: &str = "hosts={starlift.example},store.location=s3://images/store,store.region=eu-central-1,\
    store.endpoint=https://s3.example,store.existingSecret=bucket,store.maxSize=1TiB,secretFiles={hub,internal},\
    dockerConfigSecret=hub,tls.existingSecret=tls,tls.clientCaSecret=clients,\
    serviceAccountTokens.audience=starlift,autoscaling.enabled=true,autoscaling.conversions=4,\
    service.type=LoadBalancer,monitoring.serviceMonitor=true,monitoring.prometheusRule=true,monitoring.dashboard=true,\
    networkPolicy.from[0].ipBlock.cidr=10.0.0.0/8,networkPolicy.apiFrom[0].namespaceSelector.matchLabels.a=b,\
    imagePullSecrets[0].name=hub,nodeSelector.a=b,podLabels.a=b,podAnnotations.a=b,serviceAccount.annotations.a=b";
/// Settings with which every object of the chart exists: a volume.
const SERVER_ON_A_VOLUME: &str = "hosts={starlift.example},store.persistence.storageClass=fast";
const AGENT: &str = "server=https://starlift.example,registries={docker.io,ghcr.io},monitoring.podMonitor=true,\
    monitoring.prometheusRule=true,monitoring.dashboard=true,imagePullSecrets[0].name=hub,\
    extraArgs={--containerd-config,/etc/other/config.toml}";

fn helm(place: &Place, chart: &str, settings: &str) -> Output {
    let mut helm = place.command("helm");
    helm.args(["template", "release", "--namespace", "images"]);
    helm.arg(top().join("deploy/helm").join(chart));
    helm.args(["--set", settings]).output().unwrap()
}

/// Renders a chart, and returns its objects.
fn objects(place: &Place, chart: &str, settings: &str) -> Vec<Value> {
    let rendered = helm(place, chart, settings);
    assert!(rendered.status.success(), "{rendered:?}");
    decoded(place, &rendered.stdout)
}

fn decoded(place: &Place, yaml: &[u8]) -> Vec<Value> {
    let output = decode(place, yaml);
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Decodes objects strictly into the types of Kubernetes.
fn decode(place: &Place, yaml: &[u8]) -> Output {
    let mut decoder = place.command("kube-objects");
    decoder
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut decoder = decoder.spawn().unwrap();
    decoder.stdin.take().unwrap().write_all(yaml).unwrap();
    decoder.wait_with_output().unwrap()
}

/// Returns the only object of a kind.
fn only<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    let mut found = objects.iter().filter(|object| object["kind"] == kind);
    let first = found.next().unwrap_or_else(|| panic!("no {kind}"));
    assert!(found.next().is_none(), "several {kind}");
    first
}

fn kinds(objects: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<_> = objects
        .iter()
        .filter_map(|object| object["kind"].as_str())
        .collect();
    kinds.sort_unstable();
    kinds
}

/// Whether each label of a selector is one of the object's.
fn is_selected(selector: &Value, labels: &Value) -> bool {
    let selector = selector.as_object().unwrap();
    !selector.is_empty() && selector.iter().all(|(name, value)| labels[name] == *value)
}

/// The configuration of an object, with the variables of a container over it.
fn configuration(place: &Place, objects: &[Value], file: &str, container: &Value) -> Config {
    let text = objects
        .iter()
        .find_map(|object| object["data"][file].as_str());
    let file = place.write(file, text.unwrap());
    let variables = container["env"].as_array().into_iter().flatten();
    let variables = variables.map(|variable| {
        let text = |key: &str| variable[key].as_str().unwrap().to_owned();
        (text("name"), text("value"))
    });
    Config::load(Some(&file), variables, Vec::new())
        .unwrap()
        .config
}

#[test]
fn the_chart_of_the_server_renders_objects_of_kubernetes() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    let objects = objects(&place, "starlift", SERVER);
    assert_eq!(
        kinds(&objects),
        [
            "ConfigMap",
            "ConfigMap",
            "Deployment",
            "HorizontalPodAutoscaler",
            "NetworkPolicy",
            "PodDisruptionBudget",
            "PrometheusRule",
            "Service",
            "Service",
            "ServiceAccount",
            "ServiceMonitor"
        ]
    );
    let scaled = only(&objects, "HorizontalPodAutoscaler");
    let metrics = scaled["spec"]["metrics"].as_array().unwrap().iter();
    let named = metrics.filter_map(|metric| metric["pods"]["metric"]["name"].as_str());
    let named: Vec<_> = named.collect();
    assert_eq!(named, ["starlift_conversions_running"]);
    let gauge = TABLE.iter().find(|metric| metric.name == named[0]);
    assert_eq!(gauge.unwrap().kind, "gauge");
    let deployment = only(&objects, "Deployment");
    let pod = &deployment["spec"]["template"];
    let labels = &pod["metadata"]["labels"];
    for object in &objects {
        let selector = match object["kind"].as_str().unwrap() {
            "Service" => &object["spec"]["selector"],
            "NetworkPolicy" => &object["spec"]["podSelector"]["matchLabels"],
            "Deployment" | "PodDisruptionBudget" => &object["spec"]["selector"]["matchLabels"],
            _ => continue,
        };
        assert!(is_selected(selector, labels), "{object}");
    }
    let monitor = &only(&objects, "ServiceMonitor")["spec"]["selector"]["matchLabels"];
    let services = objects.iter().filter(|object| object["kind"] == "Service");
    let monitored = services.filter(|service| is_selected(monitor, &service["metadata"]["labels"]));
    let monitored: Vec<_> = monitored.collect();
    assert_eq!(monitored.len(), 1, "the service of operators only");
    assert_eq!(monitored[0]["spec"]["ports"][0]["name"], "api");

    let container = &pod["spec"]["containers"][0];
    let config = configuration(&place, &objects, "starlift.toml", container);
    config.serve.check().unwrap();
    assert_eq!(config.serve.hosts, ["starlift.example"]);
    assert_eq!(config.store.location.to_string(), "s3://images/store");
    let tls = config.serve.tls.as_ref().unwrap();
    assert_eq!(
        tls.client_ca.as_ref().unwrap().to_str(),
        Some("/etc/starlift/client-ca/ca.crt")
    );
    let issuer = &config.serve.access.issuer[0];
    assert_eq!(
        (issuer.audience[0].as_str(), issuer.prefix.as_str()),
        ("starlift", "")
    );
    let volumes = pod["spec"]["volumes"].as_array().unwrap();
    for mount in container["volumeMounts"].as_array().unwrap() {
        assert!(
            volumes.iter().any(|volume| volume["name"] == mount["name"]),
            "{mount}"
        );
    }
    // A rolling update ends no response early.
    let grace = pod["spec"]["terminationGracePeriodSeconds"]
        .as_u64()
        .unwrap();
    assert!(grace > config.serve.shutdown_grace.as_secs());
}

#[test]
fn the_alerts_and_dashboards_are_in_the_charts() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    for (chart, settings) in [("starlift", SERVER), ("starlift-agent", AGENT)] {
        let objects = objects(&place, chart, settings);
        let rules = &only(&objects, "PrometheusRule")["spec"]["groups"][0]["rules"];
        let file = top().join("deploy/helm").join(chart).join("files");
        let alerts = std::fs::read_to_string(file.join("alerts.yaml")).unwrap();
        let count = rules.as_array().unwrap().len();
        assert_eq!(count, alerts.matches("- alert: ").count(), "{chart}");
        let name = format!("{chart}.json");
        let dashboard = objects
            .iter()
            .find_map(|object| object["data"][&name].as_str());
        let dashboard: Value = serde_json::from_str(dashboard.unwrap()).unwrap();
        let file = std::fs::read(file.join("dashboard.json")).unwrap();
        assert_eq!(
            dashboard,
            serde_json::from_slice::<Value>(&file).unwrap(),
            "{chart}"
        );
    }
}

#[test]
fn a_server_on_a_volume_has_one_replica() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    let objects = objects(&place, "starlift", SERVER_ON_A_VOLUME);
    let claim = only(&objects, "PersistentVolumeClaim");
    assert_eq!(claim["spec"]["storageClassName"], "fast");
    let deployment = only(&objects, "Deployment");
    assert_eq!(deployment["spec"]["replicas"], 1);
    assert_eq!(deployment["spec"]["strategy"]["type"], "Recreate");
    for (settings, reason) in [
        ("hosts={a},replicas=2", "several replicas need a bucket"),
        (
            "hosts={a},autoscaling.enabled=true",
            "several replicas need a bucket",
        ),
        ("replicas=1", "hosts is empty"),
        (
            "hosts={a},tls.clientCaSecret=a",
            "client certificates need TLS",
        ),
    ] {
        let refused = helm(&place, "starlift", settings);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(reason), "{said}");
    }
}

#[test]
fn the_chart_of_the_agent_installs_on_the_host() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    let objects = objects(&place, "starlift-agent", AGENT);
    assert_eq!(
        kinds(&objects),
        [
            "ConfigMap",
            "ConfigMap",
            "DaemonSet",
            "PodMonitor",
            "PrometheusRule"
        ]
    );
    let pod = &only(&objects, "DaemonSet")["spec"]["template"];
    let monitor = &only(&objects, "PodMonitor")["spec"]["selector"]["matchLabels"];
    assert!(is_selected(monitor, &pod["metadata"]["labels"]));
    let config = configuration(
        &place,
        &objects,
        "agent.toml",
        &pod["spec"]["containers"][0],
    );
    let port = pod["spec"]["containers"][0]["ports"][0]["containerPort"]
        .as_u64()
        .unwrap();
    assert_eq!(u64::from(config.agent.listen.unwrap().port()), port);
    // Upgrading the pod must not touch a mount: only the step before it may change the host.
    let containers = pod["spec"]["containers"].as_array().unwrap();
    let is_privileged = |container: &Value| container["securityContext"]["privileged"] == true;
    assert!(!containers.iter().any(is_privileged));
    assert!(is_privileged(&pod["spec"]["initContainers"][0]));

    let script = objects
        .iter()
        .find_map(|object| object["data"]["install.sh"].as_str());
    let script = script.unwrap();
    let checked = place.write("install.sh", script);
    place.run(&format!("sh -n {}", checked.display()));
    // The program knows the command: it fails later, at the folder of a containerd that is not there.
    let command = script
        .lines()
        .last()
        .unwrap()
        .split_once("/starlift ")
        .unwrap()
        .1;
    let mut shell = place.command("sh");
    let line = format!("{} {command} --dry-run", env!("CARGO_BIN_EXE_starlift"));
    let known = line.replace("--config /etc/starlift/agent.toml", "");
    let output = shell.args(["-c", &known]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains("Usage"), "{said}");
}

#[test]
fn the_agents_of_the_chart_show_themselves_to_the_server_by_a_token_that_the_kubelet_renews() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    let settings = format!("{AGENT},identity.audience=starlift");
    let objects = objects(&place, "starlift-agent", &settings);
    let pod = &only(&objects, "DaemonSet")["spec"]["template"]["spec"];
    let account = &only(&objects, "ServiceAccount")["metadata"]["name"];
    assert_eq!(&pod["serviceAccountName"], account);
    let config = configuration(&place, &objects, "agent.toml", &pod["containers"][0]);
    let identity = &config.upstreams.identity;
    let file = identity.token_file.as_ref().unwrap();
    let volumes = pod["volumes"].as_array().unwrap();
    let volume = |name: &str| {
        volumes
            .iter()
            .find(|volume| volume["name"] == name)
            .unwrap()
    };
    let folder = volume("identity")["hostPath"]["path"].as_str().unwrap();
    assert_eq!(file.to_str().unwrap(), format!("{folder}/token"));
    let token = &volume("token")["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "starlift");
    let containers = pod["containers"].as_array().unwrap();
    let copier = containers
        .iter()
        .find(|container| container["name"] == "identity");
    let mounts = copier.unwrap()["volumeMounts"].as_array().unwrap();
    for mount in mounts {
        assert!(
            volumes.iter().any(|volume| volume["name"] == mount["name"]),
            "{mount}"
        );
    }
    let script = objects
        .iter()
        .find_map(|object| object["data"]["identity.sh"].as_str());
    let checked = place.write("identity.sh", script.unwrap());
    place.run(&format!("sh -n {}", checked.display()));
    let refused = helm(
        &place,
        "starlift-agent",
        "server=http://a,identity.audience=a",
    );
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("https://"),
        "{said}"
    );
}

#[test]
fn the_pods_of_the_quick_start_are_pods() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    let yaml = std::fs::read_to_string(top().join("deploy/pods.yaml")).unwrap();
    assert_eq!(kinds(&decoded(&place, yaml.as_bytes())), ["Pod", "Pod"]);
    let wrong = yaml.replace("periodSeconds", "period");
    let refused = decode(&place, wrong.as_bytes());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("unknown field"), "{said}");
}

#[test]
fn the_agent_is_uninstalled_by_the_chart_too() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    let objects = objects(
        &place,
        "starlift-agent",
        "mode=uninstall,server=https://starlift.example",
    );
    let script = objects
        .iter()
        .find_map(|object| object["data"]["install.sh"].as_str());
    let last = script.unwrap().lines().last().unwrap();
    assert!(
        last.ends_with("/opt/starlift/bin/starlift agent uninstall"),
        "{last}"
    );
    let refused = helm(&place, "starlift-agent", "mode=remove");
    assert!(!refused.status.success());
    let refused = helm(&place, "starlift-agent", "server=https://a'; reboot");
    assert!(!refused.status.success());
}

/// Settings with which images are converted ahead.
const WARM: &str = "hosts={starlift.example,starlift.internal},store.location=s3://images/store,\
    warm.images={docker.io/library/nginx:1.21.1,ghcr.io/a/b@sha256:1},warm.interval=30m,warm.fromKubernetes.enabled=true";

#[test]
fn the_chart_warms_listed_images_and_those_of_the_clusters_pods() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    let objects = objects(&place, "starlift", WARM);
    let pod = &only(&objects, "Deployment")["spec"]["template"];
    let config = configuration(
        &place,
        &objects,
        "starlift.toml",
        &pod["spec"]["containers"][0],
    );
    let images = ["docker.io/library/nginx:1.21.1", "ghcr.io/a/b@sha256:1"];
    assert_eq!(config.serve.warm.images, images);
    assert_eq!(config.serve.warm.interval.as_secs(), 30 * 60);

    let job = only(&objects, "CronJob");
    let template = &job["spec"]["jobTemplate"]["spec"]["template"];
    let account = template["spec"]["serviceAccountName"].as_str().unwrap();
    let binding = only(&objects, "ClusterRoleBinding");
    assert_eq!(binding["subjects"][0]["name"], account);
    assert_eq!(binding["subjects"][0]["namespace"], "images");
    let role = only(&objects, "ClusterRole");
    assert_eq!(binding["roleRef"]["name"], role["metadata"]["name"]);
    let rules = serde_json::json!([{"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]}]);
    assert_eq!(role["rules"], rules);
    // No service sends pulls to the job, and the policy lets it reach the API.
    let labels = &template["metadata"]["labels"];
    for object in objects.iter().filter(|object| object["kind"] == "Service") {
        assert!(
            !is_selected(&object["spec"]["selector"], labels),
            "{object}"
        );
    }
    let policy = only(&objects, "NetworkPolicy");
    let from = policy["spec"]["ingress"][1]["from"].as_array().unwrap();
    assert!(
        from.iter()
            .any(|from| is_selected(&from["podSelector"]["matchLabels"], labels)),
        "{policy}"
    );
    // The program takes the arguments: it fails later, because there is no cluster.
    let arguments = template["spec"]["containers"][0]["args"]
        .as_array()
        .unwrap();
    let arguments: Vec<_> = arguments.iter().map(|one| one.as_str().unwrap()).collect();
    assert!(
        arguments.contains(&"http://release-starlift-api.images.svc:8081"),
        "{arguments:?}"
    );
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_starlift"));
    let program = program.args(&arguments).current_dir(place.path());
    let output = program.env("PATH", place.path()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("kubectl cannot be run"), "{said}");
}

#[test]
fn the_job_may_be_limited_to_namespaces_and_shows_its_own_identity() {
    let Some(place) = Place::with_clients(CLIENTS, &[]) else {
        return;
    };
    let settings = format!(
        "{WARM},warm.fromKubernetes.namespaces={{web,batch}},serviceAccountTokens.audience=starlift"
    );
    let objects = objects(&place, "starlift", &settings);
    let namespaces = |kind: &str| {
        let found = objects.iter().filter(|object| object["kind"] == kind);
        let found = found.map(|object| object["metadata"]["namespace"].as_str().unwrap());
        found.collect::<Vec<_>>()
    };
    assert_eq!(namespaces("Role"), ["web", "batch"]);
    assert_eq!(namespaces("RoleBinding"), ["web", "batch"]);
    assert!(!kinds(&objects).contains(&"ClusterRole"));
    let pod = &only(&objects, "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"];
    let arguments = pod["containers"][0]["args"].to_string();
    assert!(
        arguments.contains("\"--namespace\",\"web\",\"--namespace\",\"batch\""),
        "{arguments}"
    );
    let token = &pod["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"];
    assert_eq!(token["audience"], "starlift");
    let mount = pod["containers"][0]["volumeMounts"][0]["mountPath"]
        .as_str()
        .unwrap();
    assert!(
        arguments.contains(&format!("\"--token-file\",\"{mount}/token\"")),
        "{arguments}"
    );
    let refused = helm(
        &place,
        "starlift",
        &format!("{WARM},tls.existingSecret=tls"),
    );
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && said.contains("set warm.server"),
        "{said}"
    );
}
