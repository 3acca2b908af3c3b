//! The compose file: read as its programs do, and what it says is possible.

use std::collections::{BTreeMap, BTreeSet};

use yaml_rust2::{Yaml, YamlLoader, yaml::Hash};

use super::{check_command, check_variable, read};

/// What each store has open at most, as `docs/operations.md` says.
const CONNECTIONS_OF_A_SERVICE: u64 = 12;

/// One service of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) image: String,
    pub(crate) entrypoint: Vec<String>,
    pub(crate) command: Vec<String>,
    pub(crate) environment: BTreeMap<String, String>,
    /// Volume and where it is mounted.
    pub(crate) volumes: Vec<(String, String)>,
    /// As published: address and port here, port there.
    pub(crate) ports: Vec<(String, String)>,
    pub(crate) health: Option<Vec<String>>,
    /// Other services and the condition.
    pub(crate) depends_on: Vec<(String, String)>,
    pub(crate) secrets: Vec<String>,
    pub(crate) restart: String,
    pub(crate) profiles: Vec<String>,
}

impl Service {
    /// Runs once and ends.
    pub(crate) fn is_job(&self) -> bool {
        self.restart == "no" && self.profiles.is_empty()
    }

    /// A program of ours.
    pub(crate) fn is_ours(&self) -> bool {
        self.image.contains("dormouse")
    }
}

fn document() -> Yaml {
    let mut documents = YamlLoader::load_from_str(&read("compose.yaml")).expect("it is YAML");
    assert_eq!(documents.len(), 1, "one document");
    documents.remove(0)
}

/// A mapping with what its `<<` brings.
fn merged(yaml: &Yaml) -> Hash {
    let own = yaml.as_hash().unwrap_or_else(|| panic!("{yaml:?} is no mapping"));
    let merge = Yaml::String("<<".to_owned());
    let mut all = own.get(&merge).map(merged).unwrap_or_default();
    for (key, value) in own.iter().filter(|(key, _)| **key != merge) {
        all.insert(key.clone(), value.clone());
    }
    all
}

fn text(yaml: &Yaml) -> String {
    match yaml {
        Yaml::String(text) | Yaml::Real(text) => text.clone(),
        Yaml::Integer(number) => number.to_string(),
        other => panic!("{other:?} is no text"),
    }
}

fn list(yaml: &Yaml) -> Vec<String> {
    yaml.as_vec().unwrap_or_else(|| panic!("{yaml:?} is no list")).iter().map(text).collect()
}

fn service(name: &str, yaml: &Yaml) -> Service {
    let mut service = Service { name: name.to_owned(), ..Service::default() };
    for (key, value) in merged(yaml) {
        match text(&key).as_str() {
            "image" => service.image = text(&value),
            "entrypoint" => service.entrypoint = list(&value),
            "command" => service.command = list(&value),
            "restart" => service.restart = text(&value),
            "profiles" => service.profiles = list(&value),
            "secrets" => service.secrets = list(&value),
            "environment" => {
                service.environment = merged(&value).iter().map(|(k, v)| (text(k), text(v))).collect();
            }
            "volumes" => {
                let split = |mount: String| {
                    let (volume, path) = mount.split_once(':').expect("VOLUME:PATH");
                    (volume.to_owned(), path.to_owned())
                };
                service.volumes = list(&value).into_iter().map(split).collect();
            }
            "ports" => {
                let split = |port: String| {
                    let (here, there) = port.rsplit_once(':').expect("ADDRESS:PORT:PORT/udp");
                    (here.to_owned(), there.to_owned())
                };
                service.ports = list(&value).into_iter().map(split).collect();
            }
            "healthcheck" => {
                let mut test = list(&value["test"]);
                assert_eq!(test.remove(0), "CMD", "{name}: the exec form");
                service.health = Some(test);
            }
            "depends_on" => {
                let condition = |v: &Yaml| text(&v["condition"]);
                service.depends_on = merged(&value).iter().map(|(k, v)| (text(k), condition(v))).collect();
            }
            "init" => assert_eq!(value, Yaml::Boolean(true)),
            "cap_drop" => assert_eq!(list(&value), ["ALL"]),
            "security_opt" => assert_eq!(list(&value), ["no-new-privileges:true"]),
            other => panic!("{name}: {other} is not known here; add what it must be"),
        }
    }
    service
}

/// Every service, each after those that it waits for.
pub(crate) fn services() -> Vec<Service> {
    let document = document();
    let mut waiting: Vec<Service> =
        merged(&document["services"]).iter().map(|(name, yaml)| service(&text(name), yaml)).collect();
    let mut ordered: Vec<Service> = Vec::new();
    while !waiting.is_empty() {
        let known: BTreeSet<String> = ordered.iter().map(|service| service.name.clone()).collect();
        let (ready, rest): (Vec<_>, Vec<_>) =
            waiting.into_iter().partition(|s| s.depends_on.iter().all(|(on, _)| known.contains(on)));
        assert!(!ready.is_empty(), "these wait for each other, or for none of the file: {rest:#?}");
        ordered.extend(ready);
        waiting = rest;
    }
    ordered
}

/// The lines of a job's script, without what belongs to the shell alone.
fn commands_in(script: &str) -> Vec<Vec<String>> {
    let ours = script.lines().map(str::trim).filter(|line| line.starts_with("dormouse"));
    ours.map(|line| line.split_whitespace().map(str::to_owned).collect()).collect()
}

#[test]
fn each_command_flag_and_variable_is_one_of_ours() {
    let mut checked = 0;
    for service in services().iter().filter(|service| service.is_ours()) {
        service.environment.keys().for_each(|name| check_variable(name));
        let mut commands: Vec<Vec<String>> = service.health.clone().into_iter().collect();
        match service.command.first().map(String::as_str) {
            Some("sh") => commands.extend(commands_in(service.command.last().expect("a script"))),
            _ => commands.push([&service.entrypoint[..], &service.command[..]].concat()),
        }
        for command in commands {
            check_command(&command.iter().map(String::as_str).collect::<Vec<_>>());
            checked += 1;
        }
    }
    assert!(checked >= 10, "{checked} commands were found");
}

#[test]
fn it_is_the_cluster_that_it_promises() {
    let services = services();
    for (program, count) in [("dormouse-core", 2), ("dormouse-environment", 2)] {
        let of: Vec<&Service> =
            services.iter().filter(|s| s.command.first().is_some_and(|c| c == program)).collect();
        assert_eq!(of.len(), count, "{program}");
        let homes: BTreeSet<&str> = of.iter().map(|s| s.volumes[0].0.as_str()).collect();
        assert_eq!(homes.len(), count, "each has a data directory of its own");
        for service in of {
            assert_eq!(service.volumes, [(service.name.clone(), "/var/lib/dormouse".to_owned())]);
            assert!(service.health.is_some(), "{} has no health check", service.name);
            let advertised = service.environment.iter().find(|(name, _)| name.contains("ADVERTISE"));
            let (_, address) = advertised.unwrap_or_else(|| panic!("{} says no address", service.name));
            assert_eq!(address.split(':').next(), Some(service.name.as_str()), "others reach it by its name");
            for (job, condition) in [
                ("postgres", "service_healthy"),
                ("certificates", "service_completed_successfully"),
                ("migration", "service_completed_successfully"),
            ] {
                assert!(
                    service.depends_on.contains(&(job.to_owned(), condition.to_owned())),
                    "{} does not wait for {job}",
                    service.name
                );
            }
        }
    }
    let jobs: Vec<&str> = services.iter().filter(|s| s.is_job()).map(|s| s.name.as_str()).collect();
    assert_eq!(jobs.len(), 2, "{jobs:?} run once");
}

#[test]
fn what_is_named_is_declared_and_the_other_way_round() {
    let document = document();
    let declared = |what: &str| -> BTreeSet<String> { merged(&document[what]).keys().map(text).collect() };
    let services = services();
    let volumes: BTreeSet<String> =
        services.iter().flat_map(|s| s.volumes.iter().map(|(volume, _)| volume.clone())).collect();
    assert_eq!(volumes, declared("volumes"));
    let secrets: BTreeSet<String> = services.iter().flat_map(|s| s.secrets.clone()).collect();
    assert_eq!(secrets, declared("secrets"));
    for service in &services {
        for value in service.environment.values().filter_map(|value| value.strip_prefix("/run/secrets/")) {
            assert!(service.secrets.iter().any(|s| s == value), "{} is not given {value}", service.name);
        }
    }
}

#[test]
fn no_secret_stands_in_it_and_nothing_is_open_to_the_world() {
    assert!(!read("compose.yaml").contains("://"), "an address with a password belongs into secrets/");
    for service in services() {
        for (name, value) in &service.environment {
            let secret = ["PASSWORD", "TOKEN", "SECRET", "KEY"].iter().any(|word| name.contains(word));
            assert!(!secret || name.ends_with("_FILE"), "{}: {name}={value}", service.name);
        }
        for (here, _) in &service.ports {
            assert!(here.starts_with("127.0.0.1:"), "{} is published at {here}", service.name);
        }
        let sees_authority = service.volumes.iter().any(|(volume, _)| volume == "authority");
        assert!(
            !sees_authority || service.name == "certificates",
            "{} has the authority's key",
            service.name
        );
    }
}

#[test]
fn postgresql_has_connections_enough() {
    let services = services();
    let postgres = services.iter().find(|service| service.name == "postgres").expect("it is there");
    let setting = postgres.command.iter().find_map(|word| word.strip_prefix("max_connections="));
    let most: u64 = setting.and_then(|number| number.parse().ok()).expect("a number");
    let users = services.iter().filter(|s| s.is_ours() && s.secrets.iter().any(|s| s == "database-url"));
    let needed = users.count() as u64 * CONNECTIONS_OF_A_SERVICE;
    // Half of it again for a rolling upgrade, and some for people.
    assert!(most >= needed * 3 / 2, "{needed} are needed at most, {most} are allowed");
}
