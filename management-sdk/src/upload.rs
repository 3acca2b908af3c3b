//! Pushing an image: hashed while it is read, not sent if its bytes are there already, and
//! sent in chunks of which several are in flight. A lost connection begins the upload anew.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use dormouse_proto::management::{self as wire, client_frame::Operation, server_frame::Outcome};
use sha2::{Digest, Sha256};
use tokio::{sync::mpsc, task::JoinSet};

use crate::{
    Client, Code, Error, Image, ImageRef,
    client::{Link, Patience, unexpected},
};

/// Bytes of one chunk: it travels on a stream of its own.
const CHUNK: usize = 1024 * 1024;
/// Chunks in flight: enough to fill a long pipe, below what the services take at once.
const IN_FLIGHT: usize = 4;

/// How far an upload is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UploadProgress {
    /// Reading the file to know its digest.
    Hashing {
        /// Bytes read.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
    /// Sending what the services do not have.
    Sending {
        /// Bytes that were acknowledged.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

/// The answer to an upload.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// The image.
    pub image: Image,
    /// The bytes were there already; only the name is new, or nothing.
    pub existed: bool,
}

impl Client {
    /// Pushes the binary at `path` under a name and version.
    ///
    /// An empty version is chosen by the services. `progress` is called on the task of the
    /// caller, about once per MiB. Dropping the future abandons the upload without effect.
    pub async fn upload_image(
        &self,
        path: &Path,
        image: &ImageRef,
        mut progress: impl FnMut(UploadProgress) + Send,
    ) -> Result<Uploaded, Error> {
        let unreadable = |source| Error::File { path: path.to_owned(), source };
        let (digest, size) = hash(path.to_owned(), &mut progress).await.map_err(unreadable)?;
        let begin = wire::BeginUpload {
            name: image.name.clone(),
            version: image.version.clone(),
            size,
            digest: digest.to_vec(),
        };
        let mut patience = Patience::new(self.patience());
        loop {
            let failed = match self.link().await {
                Ok(link) => match send(&link, path, &begin, &mut progress).await {
                    Err(error) if worth_another(&error) => {
                        self.forget(&link).await;
                        error
                    }
                    answer => return answer,
                },
                // The services may be on their way back.
                Err(error) if error.retryable() => error,
                Err(error) => return Err(error),
            };
            if !patience.pause().await {
                return Err(failed);
            }
        }
    }
}

/// Lost, or `UNAVAILABLE` for now. An upload that the services no longer know (they were
/// restarted in between) is answered with NOT_FOUND.
fn worth_another(error: &Error) -> bool {
    match error {
        Error::Lost { .. } => true,
        Error::Refused { code, retryable, .. } => {
            *code == Code::NotFound || (*code == Code::Unavailable && *retryable)
        }
        _ => false,
    }
}

/// The whole upload on one connection.
async fn send(
    link: &Link,
    path: &Path,
    begin: &wire::BeginUpload,
    progress: &mut (impl FnMut(UploadProgress) + Send),
) -> Result<Uploaded, Error> {
    let begun = link
        .ask(Operation::BeginUpload(begin.clone()), &|outcome| match outcome {
            Outcome::UploadBegun(begun) => Ok(begun),
            other => Err(unexpected(&other)),
        })
        .await?;
    if let Some(image) = begun.image.filter(|_| begun.upload == 0) {
        return Ok(Uploaded { image: Image::from_wire(image), existed: true });
    }
    send_chunks(link, path, begun.upload, begin.size, progress).await?;
    let image = link
        .ask(Operation::FinishUpload(wire::FinishUpload { upload: begun.upload }), &|outcome| match outcome {
            Outcome::Image(image) => Ok(Image::from_wire(image)),
            other => Err(unexpected(&other)),
        })
        .await?;
    Ok(Uploaded { image, existed: false })
}

async fn send_chunks(
    link: &Link,
    path: &Path,
    upload: u64,
    total: u64,
    progress: &mut (impl FnMut(UploadProgress) + Send),
) -> Result<(), Error> {
    let unreadable = |source| Error::File { path: path.to_owned(), source };
    let mut chunks = read_chunks(path.to_owned());
    let mut in_flight = JoinSet::new();
    let (mut offset, mut done) = (0_u64, 0_u64);
    progress(UploadProgress::Sending { done, total });
    loop {
        let more = tokio::select! {
            biased;
            Some(answer) = in_flight.join_next() => {
                // A task of ours ends only by its own return, or by a panic that is our bug.
                done += answer.expect("a chunk's task does not panic")?;
                progress(UploadProgress::Sending { done, total });
                continue;
            }
            chunk = chunks.recv(), if in_flight.len() < IN_FLIGHT => chunk,
        };
        let Some(data) = more else { break };
        let data = data.map_err(unreadable)?;
        let len = data.len() as u64;
        let request = Operation::UploadChunk(wire::UploadChunk { upload, offset, data });
        offset += len;
        let link = link.clone();
        in_flight.spawn(async move {
            link.ask(request, &|outcome| match outcome {
                Outcome::ChunkStored(_) => Ok(len),
                other => Err(unexpected(&other)),
            })
            .await
        });
    }
    while let Some(answer) = in_flight.join_next().await {
        done += answer.expect("a chunk's task does not panic")?;
        progress(UploadProgress::Sending { done, total });
    }
    Ok(())
}

/// Digest and size of a file, read on a thread of its own.
async fn hash(
    path: PathBuf,
    progress: &mut (impl FnMut(UploadProgress) + Send),
) -> io::Result<([u8; 32], u64)> {
    let metadata = std::fs::metadata(&path)?;
    if !metadata.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    let total = metadata.len();
    let mut chunks = read_chunks(path);
    let mut digest = Sha256::new();
    let mut done = 0;
    while let Some(chunk) = chunks.recv().await {
        let chunk = chunk?;
        done += chunk.len() as u64;
        // 1 MiB takes about a millisecond.
        digest.update(&chunk);
        progress(UploadProgress::Hashing { done, total });
    }
    Ok((digest.finalize().into(), done))
}

/// The file in pieces of at most [`CHUNK`] bytes, read ahead by a few on a thread of its own.
/// The thread ends when the receiver is dropped.
fn read_chunks(path: PathBuf) -> mpsc::Receiver<io::Result<Vec<u8>>> {
    let (sender, receiver) = mpsc::channel(IN_FLIGHT);
    tokio::task::spawn_blocking(move || {
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) => return drop(sender.blocking_send(Err(error))),
        };
        loop {
            let mut chunk = Vec::with_capacity(CHUNK);
            match file.by_ref().take(CHUNK as u64).read_to_end(&mut chunk) {
                Ok(0) => return,
                Ok(_) => {
                    if sender.blocking_send(Ok(chunk)).is_err() {
                        return;
                    }
                }
                Err(error) => return drop(sender.blocking_send(Err(error))),
            }
        }
    });
    receiver
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_is_hashed_as_a_whole() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("image");
        let bytes = vec![7_u8; CHUNK * 2 + 3];
        std::fs::write(&path, &bytes).expect("written");
        let mut last = None;
        let (digest, size) = hash(path, &mut |progress| last = Some(progress)).await.expect("hashed");
        assert_eq!(digest.as_slice(), <[u8; 32]>::from(Sha256::digest(&bytes)).as_slice());
        assert_eq!(size, bytes.len() as u64);
        assert_eq!(last, Some(UploadProgress::Hashing { done: size, total: size }));
    }

    #[tokio::test]
    async fn a_folder_is_no_image() {
        let dir = tempfile::tempdir().expect("a folder");
        let error = hash(dir.path().to_owned(), &mut |_| ()).await.expect_err("a folder");
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
