//! `deploy/README.md` followed as a new operator would, word for word, with processes for containers:
//! each service of the compose file on an address of this machine of its own, each volume a directory.
//!
//! The commands are the README's and the compose file's; only paths, addresses and the database are
//! exchanged for those of this machine.

use std::{
    fs,
    os::unix::fs::{DirBuilderExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use dormouse_tests::{binaries::binary, guard::Guard, postgres, process::Service as Process, wait};

use super::{
    compose::{Service, services},
    containerfile, folder, read,
};

const PODMAN: &str = include_str!("podman.sh");

/// The machine on which the README is followed.
struct Bench {
    dir: PathBuf,
    services: Vec<Service>,
    /// The first bytes of the services' addresses, of the block 127.0.0.0/8: this run's own.
    network: String,
    /// The programs.
    programs: PathBuf,
}

impl Bench {
    fn new(dir: &Path) -> Self {
        // Not 127.0: other tests and other services are there.
        let network = format!("127.{}.{}", fastrand::u8(64..250), fastrand::u8(1..250));
        let programs = binary("dormouse").parent().expect("in a folder").to_owned();
        let bench = Self { dir: dir.to_owned(), services: services(), network, programs };
        bench.lay_out();
        bench
    }

    /// What the operator finds: this folder, a built workspace above it, and podman.
    fn lay_out(&self) {
        for folder in ["deploy", "target", "bin", "bench/volumes"] {
            fs::create_dir_all(self.dir.join(folder)).expect("own directory");
        }
        symlink(&self.programs, self.dir.join("target/debug")).expect("own directory");
        symlink(folder().join("Containerfile"), self.dir.join("deploy/Containerfile"))
            .expect("own directory");
        let podman = self.dir.join("bin/podman");
        fs::write(&podman, PODMAN).expect("own directory");
        fs::set_permissions(&podman, fs::Permissions::from_mode(0o755)).expect("own file");
        let mut private = fs::DirBuilder::new();
        private.mode(0o700).recursive(true);
        for service in &self.services {
            for (volume, _) in &service.volumes {
                private.create(self.bench().join("volumes").join(volume)).expect("own directory");
            }
            if service.is_ours() {
                self.write_scripts(service);
            }
        }
        let started = self.services.iter().filter(|service| service.profiles.is_empty());
        let names: Vec<&str> = started.map(|service| service.name.as_str()).collect();
        self.write("services", &names.join(" "));
    }

    fn write_scripts(&self, service: &Service) {
        let image = containerfile::last_stage();
        let defaults = image.iter().filter(|(name, _)| name == "ENV").flat_map(|(_, rest)| rest.split(' '));
        let mut environment: Vec<String> =
            defaults.map(|assignment| self.here(service, assignment)).collect();
        for (name, value) in &service.environment {
            environment.push(self.here(service, &format!("{name}={value}")));
        }
        environment.push(format!("PATH={}:/usr/bin:/bin", self.programs.display()));
        let script = |words: &[String]| {
            let all = environment.iter().cloned().chain(words.iter().map(|word| self.here(service, word)));
            let quoted: Vec<String> = all.map(|word| quote(&word)).collect();
            format!("exec env -i {} \"$@\"\n", quoted.join(" "))
        };
        self.write(
            &format!("{}.sh", service.name),
            &script(&[&service.entrypoint[..], &service.command[..]].concat()),
        );
        if let Some(health) = &service.health {
            self.write(&format!("{}.health", service.name), &script(health));
        }
        if service.is_job() {
            self.write(&format!("{}.job", service.name), "");
        }
    }

    /// What stands for something of a container, on this machine.
    fn here(&self, service: &Service, text: &str) -> String {
        let volumes = self.bench().join("volumes");
        let mut text = text.replace("$$", "$");
        for (volume, path) in &service.volumes {
            // Also where a script puts the volume's name together.
            let (from, to) = match path.strip_suffix(volume.as_str()) {
                Some(above) if above != "/" => (above, volumes.join("")),
                _ => (path.as_str(), volumes.join(volume)),
            };
            text = text.replace(from, &to.display().to_string());
        }
        text = text.replace("/run/secrets/", &self.bench().join("secrets/").display().to_string());
        text = text.replace("0.0.0.0:", &format!("{}:", self.address(&service.name)));
        for other in &self.services {
            text = text.replace(&format!("{}:80", other.name), &format!("{}:80", self.address(&other.name)));
        }
        text
    }

    /// What stands for something of the operator's machine.
    fn published(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for service in &self.services {
            for (here, there) in &service.ports {
                let port = there.trim_end_matches("/udp");
                text = text.replace(here, &format!("{}:{port}", self.address(&service.name)));
            }
        }
        text
    }

    fn address(&self, name: &str) -> String {
        let at =
            self.services.iter().position(|service| service.name == name).expect("a service of the file");
        format!("{}.{}", self.network, at + 1)
    }

    fn bench(&self) -> PathBuf {
        self.dir.join("bench")
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.bench().join(name), text).expect("own directory");
    }

    /// The README's steps as one script, which leaves a file behind after each.
    fn script(&self, steps: &[String]) -> String {
        let mut script = format!(
            "cd {}\nexport BENCH={} PATH={}:{}:/usr/bin:/bin\n",
            quote(&self.dir.join("deploy").display().to_string()),
            quote(&self.bench().display().to_string()),
            quote(&self.dir.join("bin").display().to_string()),
            quote(&self.programs.display().to_string()),
        );
        for (number, step) in steps.iter().enumerate() {
            script += &format!("{}\ntouch \"$BENCH/step-{number}\"\n", self.published(step));
        }
        script
    }
}

fn quote(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// The blocks that are marked as commands.
fn steps() -> Vec<String> {
    let text = read("README.md");
    let blocks = text.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().expect("a split has a first part").to_owned()).collect()
}

#[tokio::test]
async fn the_readme_is_followed_as_a_new_operator_would() {
    let server = postgres::Server::start();
    let dir = tempfile::Builder::new().prefix("dormouse.").tempdir().expect("a directory");
    let _guard = Guard::killing_all_of(dir.path());
    let bench = Bench::new(dir.path());
    let steps = steps();
    assert!(steps.len() >= 6, "the README has {} steps", steps.len());
    let script = dir.path().join("operator.sh");
    fs::write(&script, bench.script(&steps)).expect("own directory");

    let arguments = ["-eux".to_owned(), script.display().to_string()];
    let variables = [
        ("BENCH_DATABASE".to_owned(), server.url("postgres")),
        ("HOME".to_owned(), dir.path().join("home").display().to_string()),
    ];
    let log = dir.path().join("operator.log");
    let mut operator = Process::start(Path::new("/bin/sh"), &arguments, &variables, &log);
    for number in 0..steps.len() {
        let done = bench.bench().join(format!("step-{number}"));
        wait::until(&format!("step {} of the README is done", number + 1), async || {
            if done.exists() {
                return Ok(());
            }
            if let Some(status) = operator.exit() {
                // It may have ended right after the step.
                assert!(done.exists(), "step {} failed, {status}\n{}", number + 1, operator.log_tail());
            }
            Err(format!("not yet\n{}", operator.log_tail()))
        })
        .await;
    }
    assert!(operator.until_ended().await.success(), "{}", operator.log_tail());
    let said = fs::read_to_string(&log).expect("own file");
    for node in ["node-1", "node-2"] {
        let pid = bench.bench().join(format!("{node}.pid"));
        assert!(!pid.exists(), "{node} runs on after `down`\n{said}");
    }
}
