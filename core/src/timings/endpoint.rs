//! The figures for this machine: a Unix socket in the data directory that answers HTTP, so that `curl --unix-socket`
//! reads it too. Whoever may open the directory may read them. It reads one line of each request and changes nothing.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{Format, render};

/// How core's socket is called in the data directory.
pub const CORE: &str = "core.metrics";

/// What a request's line and headers may have, in bytes.
const REQUEST_BYTES: usize = 4 << 10;
/// What a reader takes of an answer, in bytes: some times the largest.
const ANSWER_BYTES: u64 = 8 << 20;
/// How long one reader may take. They are served one after the other.
const SERVE_WITHIN: Duration = Duration::from_secs(2);

/// A socket that is bound and not yet served.
#[derive(Debug)]
pub struct Endpoint {
    listener: UnixListener,
    directory: OwnedFd,
    path: PathBuf,
}

impl Endpoint {
    /// Binds it, in place of one that a killed service has left. Whoever calls holds the lock of the service on the
    /// directory. Must be called inside a tokio runtime.
    pub fn bind(path: &Path) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (directory, short) = short(path)?;
        let listener = UnixListener::bind(short)?;
        Ok(Self { listener, directory, path: path.to_owned() })
    }

    /// Answers until `shutdown`, then removes the socket.
    pub async fn run(self, shutdown: CancellationToken) {
        let Self { listener, directory, path } = self;
        let serve = async {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => match timeout(SERVE_WITHIN, answer(stream)).await {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => debug!(%error, "a reader of the figures is gone"),
                        Err(_) => debug!("a reader of the figures took too long"),
                    },
                    Err(error) => {
                        debug!(%error, "no reader of the figures can be accepted");
                        tokio::time::sleep(SERVE_WITHIN).await;
                    }
                }
            }
        };
        shutdown.run_until_cancelled(serve).await;
        // An error: somebody has removed it already.
        let _ = std::fs::remove_file(path);
        drop(directory);
    }
}

async fn answer(mut stream: UnixStream) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|bytes| bytes == b"\r\n\r\n") {
        if request.len() >= REQUEST_BYTES || stream.read_buf(&mut request).await? == 0 {
            return Err(io::ErrorKind::InvalidData.into());
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, kind, body) = match line.split(|byte| *byte == b' ').nth(1) {
        Some(b"/metrics") => ("200 OK", "text/plain; version=0.0.4", render(Format::Prometheus)),
        Some(b"/metrics.json") => ("200 OK", "application/json", render(Format::Json)),
        _ => ("404 Not Found", "text/plain", "there are /metrics and /metrics.json\n".to_owned()),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

/// Reads the figures of the service that serves `path`.
pub async fn read(path: &Path, format: Format) -> io::Result<String> {
    let target = match format {
        Format::Prometheus => "/metrics",
        Format::Json => "/metrics.json",
    };
    let (_directory, short) = short(path)?;
    let reading = async {
        let mut stream = UnixStream::connect(short).await?;
        stream.write_all(format!("GET {target} HTTP/1.1\r\nHost: dormouse\r\n\r\n").as_bytes()).await?;
        let mut text = String::new();
        stream.take(ANSWER_BYTES).read_to_string(&mut text).await?;
        match text.split_once("\r\n\r\n") {
            Some((head, body)) if head.starts_with("HTTP/1.1 200 ") => Ok(body.to_owned()),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    };
    timeout(SERVE_WITHIN, reading).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// The socket's path through its directory's descriptor: a socket's path may have 107 bytes only, a data
/// directory's may have more.
fn short(path: &Path) -> io::Result<(OwnedFd, PathBuf)> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let directory = OwnedFd::from(std::fs::File::open(directory)?);
    let short = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
    Ok((directory, short))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_answers_and_is_gone_afterwards() {
        let dir = tempfile::tempdir().expect("a directory");
        // Longer than the path of a socket may be.
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("a directory");
        let path = deep.join(CORE);
        // As a killed service leaves it.
        std::fs::write(&path, "").expect("a file");
        let (endpoint, shutdown) = (Endpoint::bind(&path).expect("bound"), CancellationToken::new());
        let look = async {
            let json = read(&path, Format::Json).await.expect("JSON");
            assert!(json.starts_with("{\"histograms\":["), "{json}");
            let text = read(&path, Format::Prometheus).await.expect("text");
            assert!(text.starts_with("# HELP dormouse_request_seconds "), "{text}");
            let mut silent = UnixStream::connect(short(&path).expect("a path").1).await.expect("connected");
            silent.write_all(b"GET /else HTTP/1.1\r\n\r\n").await.expect("written");
            let mut refused = String::new();
            silent.read_to_string(&mut refused).await.expect("an answer");
            assert!(refused.starts_with("HTTP/1.1 404 "), "{refused}");
            shutdown.cancel();
        };
        tokio::join!(endpoint.run(shutdown.clone()), look);
        assert!(!path.exists(), "the socket stayed");
        let gone = read(&path, Format::Json).await.expect_err("nobody serves it");
        assert_eq!(gone.kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn a_reader_that_says_too_much_is_cut() {
        let (ours, mut theirs) = UnixStream::pair().expect("a pair");
        theirs.write_all(&vec![b'x'; REQUEST_BYTES]).await.expect("written");
        let error = answer(ours).await.expect_err("no request");
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
