//! The Kubernetes manifests: every field is one that Kubernetes has, and they agree with each other and with the relay.

#![allow(clippy::unwrap_used, reason = "a test panics when it cannot go on and says where")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::harness::http::get;
use crate::harness::{Client, PASSWORD, REALM, RelayProcess, USER, program};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, Secret, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

fn text(name: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes").join(name)).unwrap()
}

/// Reads a manifest by the types of the Kubernetes API; what these do not know is an error, as with `kubectl --validate=strict`.
fn parse<T: DeserializeOwned + Serialize>(text: &str) -> Result<T, String> {
    let given: Value = serde_norway::from_str(text).map_err(|error| error.to_string())?;
    let typed: T = serde_json::from_value(given.clone()).map_err(|error| error.to_string())?;
    let understood = serde_json::to_value(&typed).unwrap();
    // The types pass over fields that they do not have: these are missing when it is written again.
    let lost = difference("", &given, &understood);
    if lost.is_empty() { Ok(typed) } else { Err(lost.join("\n")) }
}

/// Where two values differ.
fn difference(place: &str, given: &Value, understood: &Value) -> Vec<String> {
    match (given, understood) {
        (Value::Object(given), Value::Object(understood)) => given
            .iter()
            .flat_map(|(name, value)| {
                difference(&format!("{place}.{name}"), value, understood.get(name).unwrap_or(&Value::Null))
            })
            .collect(),
        (Value::Array(given), Value::Array(understood)) if given.len() == understood.len() => (0..given
            .len())
            .flat_map(|at| difference(&format!("{place}[{at}]"), &given[at], &understood[at]))
            .collect(),
        (given, understood) if given == understood => Vec::new(),
        (given, understood) => vec![format!("{place}: {given} is understood as {understood}")],
    }
}

fn read<T: DeserializeOwned + Serialize>(name: &str) -> T {
    parse(&text(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn pod() -> PodSpec {
    read::<Deployment>("deployment.yaml").spec.unwrap().template.spec.unwrap()
}

fn container() -> Container {
    let [container] = <[Container; 1]>::try_from(pod().containers).unwrap();
    container
}

/// The relay's configuration and its effective form, as `--check-config` prints it where the pod has its files.
fn configuration() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let data = read::<ConfigMap>("configmap.yaml").data.unwrap();
    assert_eq!(data.len(), 1);
    fs::write(folder.path().join("towpath-relay.toml"), &data["towpath-relay.toml"]).unwrap();
    let credentials = folder.path().join("credentials");
    fs::create_dir(&credentials).unwrap();
    for (name, value) in read::<Secret>("secret.yaml").string_data.unwrap() {
        let path = credentials.join(name);
        fs::write(&path, value).unwrap();
        // 0400 and what fsGroup adds to it.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o440)).unwrap();
    }
    let output = command(folder.path()).arg("--check-config").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    (folder, String::from_utf8(output.stdout).unwrap())
}

/// The container's program with its arguments and environment, for files in this folder.
fn command(folder: &Path) -> std::process::Command {
    let container = container();
    let mut command = program(env!("CARGO_BIN_EXE_towpath-relay"));
    let config =
        container.volume_mounts.as_ref().unwrap().iter().find(|mount| mount.name == "config").unwrap();
    for argument in container.args.unwrap() {
        command.arg(argument.replace(&config.mount_path, folder.to_str().unwrap()));
    }
    for variable in container.env.unwrap() {
        assert_eq!(variable.name, "CREDENTIALS_DIRECTORY");
        command.env(variable.name, folder.join("credentials"));
    }
    command
}

/// A setting of the effective configuration.
fn setting(effective: &str, name: &str) -> toml::Value {
    effective.parse::<toml::Table>().unwrap()[name].clone()
}

fn port_of(address: &toml::Value) -> i32 {
    address.as_str().unwrap().parse::<std::net::SocketAddr>().unwrap().port().into()
}

#[test]
fn every_manifest_is_what_kubernetes_understands() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes");
    let mut seen = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let text = text(&name);
        let kind = text.lines().find_map(|line| line.strip_prefix("kind: ")).unwrap();
        assert_eq!(name, format!("{}.yaml", kind.to_lowercase()));
        let result = match kind {
            "ConfigMap" => parse::<ConfigMap>(&text).map(drop),
            "Secret" => parse::<Secret>(&text).map(drop),
            "Deployment" => parse::<Deployment>(&text).map(drop),
            "Service" => parse::<Service>(&text).map(drop),
            "PodDisruptionBudget" => parse::<PodDisruptionBudget>(&text).map(drop),
            "HorizontalPodAutoscaler" => parse::<HorizontalPodAutoscaler>(&text).map(drop),
            other => panic!("{name} has a {other}, which this test does not know"),
        };
        result.unwrap_or_else(|error| panic!("{name}: {error}"));
        seen += 1;
    }
    assert_eq!(seen, 6);
}

#[test]
fn what_kubernetes_does_not_understand_is_found() {
    let good = text("deployment.yaml");
    for (wrong, right, place) in [
        ("hostNetworks: true", "hostNetwork: true", ".spec.template.spec.hostNetworks"),
        ("paths: /readyz", "path: /readyz", ".spec.template.spec.containers[0].readinessProbe.httpGet.paths"),
        ("maxSurge: [0]", "maxSurge: 0", ""),
        ("kind: Deployments", "kind: Deployment", ""),
    ] {
        let error = parse::<Deployment>(&good.replacen(right, wrong, 1)).unwrap_err();
        assert!(error.contains(place), "{wrong}: {error}");
    }
}

#[test]
fn ports_probes_and_times_agree_with_the_configuration() {
    let (_folder, effective) = configuration();
    let container = container();
    let ports: Vec<_> = container.ports.unwrap();
    let port = |name: &str, protocol: &str| {
        let port = ports.iter().find(|port| port.name.as_deref() == Some(name)).unwrap();
        assert_eq!(port.protocol.as_deref(), Some(protocol), "{name}");
        port.container_port
    };
    assert_eq!(port("turn-udp", "UDP"), port_of(&setting(&effective, "listen")[0]));
    assert_eq!(port("turn-tcp", "TCP"), port_of(&setting(&effective, "listen-tcp")[0]));
    assert_eq!(port("admin", "TCP"), port_of(&setting(&effective, "admin")));
    let listeners = ["listen", "listen-tcp", "listen-tls"];
    let listeners = listeners.map(|name| setting(&effective, name).as_array().unwrap().len());
    assert_eq!(listeners.iter().sum::<usize>() + 1, ports.len(), "each listener has a port");

    let service = read::<Service>("service.yaml").spec.unwrap();
    for given in service.ports.unwrap() {
        let Some(IntOrString::String(target)) = given.target_port else { panic!("{:?}", given.target_port) };
        assert_eq!(given.port, port(&target, &given.protocol.unwrap()));
    }

    let probe = |probe: Option<k8s_openapi::api::core::v1::Probe>| {
        let get = probe.unwrap().http_get.unwrap();
        assert_eq!(get.port, IntOrString::String("admin".to_owned()));
        get.path.unwrap()
    };
    let (ready, alive) = (probe(container.readiness_probe), probe(container.liveness_probe));
    assert_eq!((ready.as_str(), alive.as_str()), ("/readyz", "/healthz"));

    let admin = setting(&effective, "admin");
    let annotations =
        read::<Deployment>("deployment.yaml").spec.unwrap().template.metadata.unwrap().annotations;
    let annotations = annotations.unwrap();
    assert_eq!(annotations["prometheus.io/scrape"], "true");
    assert_eq!(annotations["prometheus.io/port"], port_of(&admin).to_string());
    assert_eq!(annotations["prometheus.io/path"], "/metrics");
    assert_eq!(
        setting(&effective, "admin-users").as_str(),
        Some("off"),
        "it is reached from outside of the node"
    );

    let drain = setting(&effective, "drain-timeout").as_integer().unwrap();
    let grace = pod().termination_grace_period_seconds.unwrap();
    assert!((drain + 10..=drain + 60).contains(&grace), "{drain} s to drain, {grace} s to end");
}

#[test]
fn labels_names_and_versions_agree() {
    let deployment = read::<Deployment>("deployment.yaml");
    let spec = deployment.spec.unwrap();
    let labels = spec.template.metadata.unwrap().labels.unwrap();
    let budget = read::<PodDisruptionBudget>("poddisruptionbudget.yaml").spec.unwrap();
    let service = read::<Service>("service.yaml").spec.unwrap();
    for selector in [
        spec.selector.match_labels.unwrap(),
        budget.selector.unwrap().match_labels.unwrap(),
        service.selector.unwrap(),
    ] {
        assert_eq!(selector, labels);
    }
    let scaler = read::<HorizontalPodAutoscaler>("horizontalpodautoscaler.yaml").spec.unwrap();
    assert_eq!(Some(scaler.scale_target_ref.name), deployment.metadata.name);
    assert_eq!(spec.replicas, None, "the number of pods is the scaler's");
    let image = container().image.unwrap();
    assert!(image.ends_with(concat!(":", env!("CARGO_PKG_VERSION"))), "{image}");
    // What is mounted is there, and where the configuration and the environment look for it.
    let container = container();
    for mount in container.volume_mounts.unwrap() {
        let volume = pod().volumes.unwrap().into_iter().find(|volume| volume.name == mount.name).unwrap();
        match (volume.config_map, volume.secret) {
            (Some(map), None) => {
                assert_eq!(map.name, read::<ConfigMap>("configmap.yaml").metadata.name.unwrap());
                assert!(
                    container
                        .args
                        .as_ref()
                        .unwrap()
                        .contains(&format!("{}/towpath-relay.toml", mount.mount_path))
                );
            }
            (None, Some(secret)) => {
                assert_eq!(secret.secret_name, read::<Secret>("secret.yaml").metadata.name);
                assert_eq!(secret.default_mode, Some(0o400));
                assert_eq!(container.env.as_ref().unwrap()[0].value, Some(mount.mount_path));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn the_pod_runs_here_and_its_probes_and_the_metric_of_the_scaler_are_there() {
    let (folder, _) = configuration();
    let users = folder.path().join("credentials/users");
    // Its own mode keeps everyone but root from writing into it.
    fs::remove_file(&users).unwrap();
    fs::write(&users, format!("{USER}:{PASSWORD}\n")).unwrap();
    fs::set_permissions(&users, fs::Permissions::from_mode(0o440)).unwrap();
    let mut command = command(folder.path());
    // Everything but where it listens, and the realm of the test's client.
    let config = folder.path().join("towpath-relay.toml");
    let text = fs::read_to_string(&config).unwrap().replace("0.0.0.0:3478", "127.0.0.1:0");
    fs::write(&config, text.replace("0.0.0.0:9641", "127.0.0.1:0").replace("relay.example", REALM)).unwrap();
    // The harness reads the log of people.
    command.args(["--allow-peer", "127.0.0.0/8"]);
    let arguments: Vec<_> = command.get_args().map(ToOwned::to_owned).collect();
    let mut readable = program(env!("CARGO_BIN_EXE_towpath-relay"));
    readable.args(
        arguments
            .iter()
            .map(|argument| if argument == "json" { "text".as_ref() } else { argument.as_os_str() }),
    );
    readable.env("CREDENTIALS_DIRECTORY", folder.path().join("credentials"));
    let relay = RelayProcess::spawn(readable);
    Client::new(relay.listen[0]).allocate();
    let container = container();
    for probe in [container.readiness_probe, container.liveness_probe] {
        let path = probe.unwrap().http_get.unwrap().path.unwrap();
        assert_eq!(get(relay.admin(), &path).status, 200, "{path}");
    }
    assert!(get(relay.admin(), "/status.json").body.contains("\"users_in_all\":1,\"users\":[]"));
    let scaler = text_of_scaler_metric();
    let metrics = get(relay.admin(), "/metrics").body;
    for resource in ["/", "/metrics", "/status.json"] {
        assert!(!get(relay.admin(), resource).body.contains(USER), "{resource} shows a user name");
    }
    assert!(metrics.contains(&format!("# TYPE {} counter\n", scaler.series)), "{}: {metrics}", scaler.series);
    let spec = read::<HorizontalPodAutoscaler>("horizontalpodautoscaler.yaml").spec.unwrap();
    let asked = spec.metrics.unwrap().remove(0).pods.unwrap().metric.name;
    assert_eq!(asked, scaler.name, "the adapter gives it the name that the scaler asks for");
}

/// The rule for the adapter in the comment of the scaler.
struct Rule {
    series: String,
    name: String,
}

fn text_of_scaler_metric() -> Rule {
    let text = text("horizontalpodautoscaler.yaml");
    let rule: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("#   ")).collect();
    let rules: Value = serde_norway::from_str(&rule.join("\n")).unwrap();
    let rule = &rules[0];
    let (series, labels) = rule["seriesQuery"].as_str().unwrap().split_once('{').unwrap();
    for label in ["namespace", "pod"] {
        assert!(labels.contains(&format!("{label}!=\"\"")), "{labels}");
        assert_eq!(rule["resources"]["overrides"][label]["resource"], label);
    }
    let series = series.to_owned();
    Rule { series, name: rule["name"]["as"].as_str().unwrap().to_owned() }
}
