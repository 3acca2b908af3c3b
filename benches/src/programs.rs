//! The programs that a run starts: the services, the workflows, and probes without Dormouse's code.
//!
//! They are built as they are for people who use them: services by the profile `release`, what an instance
//! runs by the profile `workflow`, static. A debug build takes what is built: it is there for the tests.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use crate::{args::Arguments, machine::WORKSPACE};

/// Packages whose programs are run as they are released.
const SERVICES: [&str; 4] = ["dormouse", "dormouse-core", "dormouse-environment", "dormouse-probes"];

/// Package and program of what is launched: once for each instance, or for each probe of a launch.
const LAUNCHED: [(&str, &str); 3] = [
    ("dormouse-probes", "probe-exit"),
    ("dormouse-probes", "probe-quinn"),
    ("dormouse-workload", "dormouse-workload"),
];

/// Where they are.
#[derive(Debug)]
pub(crate) struct Programs {
    /// Of the profile that this program was built with.
    folder: PathBuf,
    /// Services of another build, to be measured instead.
    services: Option<PathBuf>,
    together: bool,
    image: Option<PathBuf>,
    /// Whether cargo has just built them.
    built: bool,
}

impl Programs {
    /// Builds them, unless this is a debug build or they are wanted as they are.
    pub(crate) fn prepare(arguments: &Arguments) -> anyhow::Result<Self> {
        let own = env::current_exe().context("the path of this program")?;
        let folder = own.parent().context("a program is in a folder")?.to_path_buf();
        let mut programs = Self {
            folder,
            built: false,
            services: arguments.bin_dir.clone(),
            together: arguments.together,
            image: arguments.image.clone(),
        };
        if !arguments.no_build && programs.is_release() {
            programs.build()?;
            programs.built = true;
        }
        Ok(programs)
    }

    /// A program of this workspace, such as `dormouse`.
    pub(crate) fn path(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.built(self.folder.join(name))
    }

    /// The same as it is launched: static, and optimised at linking.
    pub(crate) fn launched(&self, name: &str) -> anyhow::Result<PathBuf> {
        self.built(self.launched_folder().join(name))
    }

    /// A program of the services that are measured.
    pub(crate) fn service(&self, name: &str) -> anyhow::Result<PathBuf> {
        let Some(folder) = &self.services else { return self.path(name) };
        let path = folder.join(name);
        if !path.is_file() {
            bail!("--bin-dir {} has no {name}; build it there, or say --together", folder.display());
        }
        Ok(path)
    }

    /// Whether both services are one process on every database.
    pub(crate) fn are_together(&self) -> bool {
        self.together
    }

    /// The image whose workflows are measured.
    pub(crate) fn image(&self) -> anyhow::Result<PathBuf> {
        match &self.image {
            Some(path) => Ok(path.clone()),
            None => self.launched("dormouse-workload"),
        }
    }

    /// Whether they are of the revision that the report names.
    pub(crate) fn origin(&self) -> &'static str {
        match (&self.services, &self.image, self.built) {
            (None, None, true) => "built for this run",
            (None, None, false) => "as they were found, maybe of another revision",
            _ => "of another build (--bin-dir or --image)",
        }
    }

    pub(crate) fn profile(&self) -> &'static str {
        if self.is_release() { "release" } else { "debug" }
    }

    /// Whether cargo has just built them.
    pub(crate) fn are_built(&self) -> bool {
        self.built
    }

    fn is_release(&self) -> bool {
        self.folder.ends_with("release")
    }

    /// The folder of all profiles.
    pub(crate) fn target(&self) -> &Path {
        self.folder.parent().unwrap_or(&self.folder)
    }

    fn launched_folder(&self) -> PathBuf {
        if self.is_release() { self.target().join("workflow") } else { self.folder.clone() }
    }

    fn built(&self, path: PathBuf) -> anyhow::Result<PathBuf> {
        if !path.is_file() {
            let remedy =
                if self.is_release() { "leave --no-build out" } else { "run cargo build --workspace --bins" };
            bail!("{} is not built; {remedy}", path.display());
        }
        Ok(path)
    }

    fn build(&self) -> anyhow::Result<()> {
        let packages = SERVICES.iter().flat_map(|package| ["--package", package]);
        self.cargo(["build", "--release", "--bins"].into_iter().chain(packages))?;
        for (package, program) in LAUNCHED {
            // The flag reaches the program alone: a static procedural macro could not be loaded.
            self.cargo([
                "rustc",
                "--profile=workflow",
                "--no-default-features",
                "--package",
                package,
                "--bin",
                program,
                "--",
                "-Ctarget-feature=+crt-static",
            ])?;
        }
        Ok(())
    }

    fn cargo<'a>(&self, arguments: impl IntoIterator<Item = &'a str>) -> anyhow::Result<()> {
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(&cargo);
        let mut arguments = arguments.into_iter();
        command.args(arguments.next()).args(["--quiet", "--target-dir"]).arg(self.target());
        command.args(arguments).current_dir(WORKSPACE);
        let status = command.status().with_context(|| format!("cargo at {}", cargo.display()))?;
        if !status.success() {
            bail!("{command:?} failed, {status}; mend what it says above");
        }
        Ok(())
    }
}
