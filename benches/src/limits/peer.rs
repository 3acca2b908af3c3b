//! A running `probe-server`, and clients of it.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use dormouse_probes::quic;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, PKCS_ED25519};

use crate::{context::Context, figure::Latencies};

/// The server's process, killed at the drop.
#[derive(Debug)]
pub(super) struct Server {
    process: Talking,
    address: String,
    authority: PathBuf,
}

impl Server {
    pub(super) fn start(context: &Context) -> anyhow::Result<Self> {
        let folder = context.folder("probe")?;
        let (authority, certificate, key) = issue(&folder)?;
        let mut command = Command::new(context.programs().path("probe-server")?);
        let mut process = Talking::start(command.arg(certificate).arg(key))?;
        let address = process.line()?;
        Ok(Self { process, address, authority })
    }

    /// A client that is not started yet.
    pub(super) fn client(&self, context: &Context, what: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(context.programs().launched("probe-quinn")?);
        command.arg(what).arg(&self.address).arg(&self.authority);
        Ok(command)
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.child.id()
    }
}

/// An authority and a server's certificate of it, by the algorithm that Dormouse's have.
fn issue(folder: &Path) -> anyhow::Result<(PathBuf, PathBuf, PathBuf)> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let authority = params.self_signed(&key)?;
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let certificate = CertificateParams::new([quic::NAME.to_owned()])?.signed_by(&key, &issuer)?;
    let paths = ["authority.pem", "server.pem", "server.key"].map(|name| folder.join(name));
    let [authority_file, certificate_file, key_file] = &paths;
    fs::write(authority_file, authority.pem())?;
    fs::write(certificate_file, certificate.pem())?;
    fs::write(key_file, key.serialize_pem())?;
    let [authority, certificate, key] = paths;
    Ok((authority, certificate, key))
}

/// A probe that is told and tells by lines; killed at the drop.
#[derive(Debug)]
pub(super) struct Talking {
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Talking {
    pub(super) fn start(command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("{}", command.get_program().display()))?;
        let said = BufReader::new(child.stdout.take().context("its output was asked for")?);
        Ok(Self { child, said })
    }

    /// The next line, without its end.
    pub(super) fn line(&mut self) -> anyhow::Result<String> {
        let mut line = String::new();
        if self.said.read_line(&mut line)? == 0 {
            bail!("a probe ended, {}; what it said stands above", self.child.wait()?);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Waits for this word.
    pub(super) fn expect(&mut self, word: &str) -> anyhow::Result<()> {
        let line = self.line()?;
        if line != word {
            bail!("a probe said {line:?} where {word:?} was expected");
        }
        Ok(())
    }

    pub(super) fn tell(&mut self, line: &str) -> anyhow::Result<()> {
        let pipe = self.child.stdin.as_mut().context("its input was asked for")?;
        Ok(writeln!(pipe, "{line}")?)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Talking {
    fn drop(&mut self) {
        // One that has ended needs no kill.
        drop(self.child.kill());
        if let Err(error) = self.child.wait() {
            eprintln!("a probe was lost: {error}");
        }
    }
}

/// Runs a probe to its end: it prints how long each operation took, in nanoseconds.
pub(super) fn latencies(command: &mut Command) -> anyhow::Result<Latencies> {
    let program = command.get_program().display().to_string();
    let output = command.stderr(Stdio::inherit()).output().with_context(|| program.clone())?;
    if !output.status.success() {
        bail!("{program} failed, {}; what it said stands above", output.status);
    }
    let times =
        std::str::from_utf8(&output.stdout)?.lines().map(|line| Ok(Duration::from_nanos(line.parse()?)));
    times.collect::<anyhow::Result<Latencies>>().with_context(|| program)
}
