//! Output files: held to a limit while they grow, read by offset.
//!
//! A process writes straight into its files, so output never blocks it and outlives this
//! service. [`trim`] punches a hole below the newest bytes of the limit: the file keeps its
//! length, so offsets stay true, and its disk space is given back. What lies in the hole is
//! counted as dropped. Memory is bounded whatever a workflow writes: reading takes a range,
//! looking for lines takes a block at a time.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt, MetadataExt as _},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek};
use tokio::time::{Instant, sleep, timeout_at};

use crate::attempts::{AttemptDirectory, AttemptId, Attempts, Stream};

/// Bytes kept of one stream of one attempt.
pub const DEFAULT_STREAM_BYTES: u64 = 10 << 20;

/// Bytes of one answer.
pub const CHUNK_MAX: usize = 128 << 10;

/// Holes are made in whole blocks of the file system.
const BLOCK: u64 = 4096;

/// Looking for lines goes backwards in steps of so many bytes.
const STEP: u64 = 64 << 10;

/// A short poll instead of inotify: its instances are limited to 128 per user on many systems,
/// and a look costs microseconds. People do not notice it.
const FOLLOW_POLL: Duration = Duration::from_millis(100);

/// A piece of an output file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// The bytes.
    pub data: Vec<u8>,
    /// Where they begin: later than asked for if bytes were dropped.
    pub offset: u64,
    /// Where the next piece begins.
    pub next_offset: u64,
    /// Bytes below `offset` that the limit dropped.
    pub dropped: u64,
    /// Nothing will be added: the attempt has ended.
    pub ended: bool,
}

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// At this byte.
    Offset(u64),
    /// At the last so many lines.
    LastLines(u32),
}

/// Reads a piece of at most `max` bytes. Blocking.
pub fn read(
    attempts: &Attempts,
    id: &AttemptId,
    stream: Stream,
    from: From,
    max: usize,
) -> io::Result<Chunk> {
    loop {
        // Asked before the file is read: if it had ended then, what is read is all there is.
        let ended = !attempts.directory(id).path.exists();
        let Some((path, file)) = open(attempts, id, stream)? else {
            return Ok(Chunk { ended, ..Chunk::default() });
        };
        let chunk = read_open(&file, ended, from, max)?;
        // An attempt that wrote nothing leaves its files to the next one of the same process. Still in its place, it
        // was this attempt's while it was read.
        if is_still(&path, &file)? {
            return Ok(chunk);
        }
    }
}

/// Whether the file is what the path names.
fn is_still(path: &Path, file: &File) -> io::Result<bool> {
    let named = match std::fs::metadata(path) {
        Ok(named) => named,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e),
    };
    let open = file.metadata()?;
    Ok((named.dev(), named.ino()) == (open.dev(), open.ino()))
}

fn read_open(file: &File, ended: bool, from: From, max: usize) -> io::Result<Chunk> {
    let size = file.metadata()?.len();
    let dropped = dropped(file, size)?;
    let start = match from {
        From::Offset(offset) => offset,
        From::LastLines(lines) => last_lines(file, dropped, size, lines)?,
    };
    let offset = start.max(dropped).min(size.max(start));
    let wanted = size.saturating_sub(offset).min(u64::try_from(max.min(CHUNK_MAX)).unwrap_or(u64::MAX));
    let mut data = vec![0; usize::try_from(wanted).unwrap_or(CHUNK_MAX)];
    let read = read_full(file, &mut data, offset)?;
    data.truncate(read);
    let next_offset = offset + u64::try_from(read).unwrap_or(0);
    Ok(Chunk { data, offset, next_offset, dropped, ended: ended && next_offset >= size })
}

/// As [`read`], but waits up to `patience` for something to come if there is nothing yet.
pub async fn follow(
    attempts: &Attempts,
    id: &AttemptId,
    stream: Stream,
    from: From,
    max: usize,
    patience: Duration,
) -> io::Result<Chunk> {
    let deadline = Instant::now() + patience;
    loop {
        let (attempts, id) = (attempts.clone(), id.clone());
        let look = tokio::task::spawn_blocking(move || read(&attempts, &id, stream, from, max));
        let chunk = look.await.map_err(io::Error::other)??;
        let nothing = chunk.data.is_empty() && !chunk.ended;
        if !nothing || timeout_at(deadline, sleep(FOLLOW_POLL)).await.is_err() {
            return Ok(chunk);
        }
    }
}

/// The file may move to its place among the ended while we look: then it is looked for again.
fn open(attempts: &Attempts, id: &AttemptId, stream: Stream) -> io::Result<Option<(PathBuf, File)>> {
    for _ in 0..3 {
        let Some(path) = attempts.find(id, stream) else { return Ok(None) };
        match File::open(&path) {
            Ok(file) => return Ok(Some((path, file))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + u64::try_from(done).unwrap_or(0)) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// The end of the hole at the file's beginning: known from the file itself, so that it needs no
/// record that a crash could falsify.
fn dropped(file: &File, size: u64) -> io::Result<u64> {
    if size == 0 {
        return Ok(0);
    }
    match seek(file, SeekFrom::Data(0)) {
        Ok(first) => Ok(first),
        // All of it is a hole.
        Err(rustix::io::Errno::NXIO) => Ok(size),
        // A file system without holes: nothing was dropped.
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => Ok(0),
        Err(e) => Err(e.into()),
    }
}

/// The offset of the last `lines` lines; a last line without its end counts as one.
fn last_lines(file: &File, first: u64, size: u64, lines: u32) -> io::Result<u64> {
    let mut wanted = u64::from(lines);
    if wanted == 0 {
        return Ok(size);
    }
    let mut block = vec![0; usize::try_from(STEP).unwrap_or(65536)];
    let mut end = size;
    while end > first {
        let start = end.saturating_sub(STEP).max(first);
        let length = usize::try_from(end - start).unwrap_or(block.len()).min(block.len());
        let read = read_full(file, &mut block[..length], start)?;
        for (at, byte) in block[..read].iter().enumerate().rev() {
            let after = start + u64::try_from(at).unwrap_or(0) + 1;
            // The end of the last line is no line's beginning.
            if *byte == b'\n' && after != size {
                wanted -= 1;
                if wanted == 0 {
                    return Ok(after);
                }
            }
        }
        end = start;
    }
    Ok(first)
}

/// Holds an attempt's files to their limit while they grow. Looking at their length costs next to
/// nothing; only a file that is well above its limit costs more.
#[derive(Debug)]
pub(super) struct Keeper {
    files: Vec<Kept>,
    limit: u64,
}

#[derive(Debug)]
struct Kept {
    path: PathBuf,
    file: File,
    /// Up to where it was trimmed.
    trimmed: u64,
}

impl Keeper {
    pub(super) fn new(directory: &AttemptDirectory, limit: u64) -> Self {
        let files = Stream::ALL.into_iter().filter_map(|stream| {
            let path = directory.stream(stream);
            match File::open(&path) {
                Ok(file) => Some(Kept { path, file, trimmed: 0 }),
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "an output file cannot be held to its limit");
                    None
                }
            }
        });
        Self { files: files.collect(), limit }
    }

    /// One look. A file may exceed its limit by an eighth and by what is written between two
    /// looks, so that holes are made rarely and large.
    pub(super) async fn hold(&mut self) {
        let limit = self.limit;
        for kept in &mut self.files {
            let size = kept.file.metadata().map_or(0, |file| file.len());
            if size.saturating_sub(kept.trimmed) <= limit + limit / 8 {
                continue;
            }
            let path = kept.path.clone();
            let trimmed = tokio::task::spawn_blocking(move || trim(&path, limit)).await;
            // Also after a failure: the next try comes when as much again was written.
            kept.trimmed = size.saturating_sub(limit);
            if let Err(error) = trimmed.map_err(io::Error::other).flatten() {
                tracing::warn!(%error, path = %kept.path.display(), "an output file cannot be held to its limit");
            }
        }
    }
}

/// Holds an ended attempt's files to their limit, before they are put away. Blocking.
pub(super) fn trim_all(directory: &AttemptDirectory, limit: u64) {
    for stream in Stream::ALL {
        if let Err(error) = trim(&directory.stream(stream), limit) {
            tracing::warn!(%error, "an output file cannot be held to its limit");
        }
    }
}

/// Holds a growing file to its limit; answers how many bytes were dropped now. Blocking.
pub fn trim(path: &Path, limit: u64) -> io::Result<u64> {
    // Most write little or nothing, and are not opened.
    match std::fs::metadata(path) {
        Ok(file) if file.len() < limit.saturating_add(BLOCK) => return Ok(0),
        Ok(_) | Err(_) => {}
    }
    let file = match OpenOptions::new().write(true).read(true).open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(0),
        Err(e) => return Err(e),
    };
    let size = file.metadata()?.len();
    let end = size.saturating_sub(limit) / BLOCK * BLOCK;
    if end == 0 {
        return Ok(0);
    }
    let before = dropped(&file, size)?;
    if end <= before {
        return Ok(0);
    }
    fallocate(&file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, before, end - before)?;
    Ok(end - before)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use dormouse_core::domain::id::{Attempt, InstanceId, Tenant};

    use super::*;
    use crate::attempts::Retention;

    struct Bench {
        _folder: tempfile::TempDir,
        attempts: Attempts,
        id: AttemptId,
    }

    impl Bench {
        fn new(text: &[u8]) -> Self {
            let folder = tempfile::tempdir().expect("a folder");
            let attempts = Attempts::open(folder.path(), Retention::default()).expect("made");
            let instance = InstanceId::parse("i").expect("an id");
            let id = AttemptId { tenant: Tenant::default_tenant(), instance, attempt: Attempt(1) };
            attempts.create(&id).expect("made");
            fs::write(attempts.directory(&id).stream(Stream::Stdout), text).expect("written");
            Self { _folder: folder, attempts, id }
        }

        fn read(&self, from: From) -> Chunk {
            read(&self.attempts, &self.id, Stream::Stdout, from, CHUNK_MAX).expect("readable")
        }
    }

    #[test]
    fn the_last_lines_are_found_with_and_without_an_end() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc", 9, "a\nb\nc"),
            ("\n\n\n", 1, "\n"),
            ("", 3, ""),
            ("abc", 0, ""),
        ] {
            let chunk = Bench::new(text.as_bytes()).read(From::LastLines(lines));
            assert_eq!(String::from_utf8_lossy(&chunk.data), expected, "{lines} of {text:?}");
        }
    }

    #[test]
    fn a_line_longer_than_a_block_is_one_line() {
        let mut text = b"first\n".to_vec();
        text.extend(vec![b'x'; 200_000]);
        text.extend(b"\nlast\n");
        let bench = Bench::new(&text);
        assert_eq!(bench.read(From::LastLines(1)).data, b"last\n");
        let two = bench.read(From::LastLines(2));
        assert_eq!((two.offset, two.data.len()), (6, CHUNK_MAX), "a piece of it, and no more memory");
    }

    #[test]
    fn offsets_stay_true_when_the_oldest_bytes_are_dropped() {
        let text: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let bench = Bench::new(&text);
        let path = bench.attempts.directory(&bench.id).stream(Stream::Stdout);
        let before = fs::metadata(&path).expect("there").blocks();

        let dropped = trim(&path, 100_000).expect("holes");

        assert_eq!(dropped, (800_000 - 100_000) / BLOCK * BLOCK);
        assert_eq!(trim(&path, 100_000).expect("holes"), 0, "nothing more to drop");
        assert!(fs::metadata(&path).expect("there").blocks() < before / 4, "the disk got its space back");
        let chunk = bench.read(From::Offset(10));
        assert_eq!((chunk.offset, chunk.dropped), (dropped, dropped));
        let start = usize::try_from(dropped).expect("small");
        assert_eq!(chunk.data, text[start..start + chunk.data.len()]);
        assert_eq!(chunk.next_offset, 800_000);
    }

    #[test]
    fn reading_past_the_end_gives_nothing_and_moves_nowhere() {
        let bench = Bench::new(b"abc");
        let chunk = bench.read(From::Offset(50));
        assert_eq!((chunk.data.len(), chunk.offset, chunk.next_offset), (0, 50, 50));
        let end = bench.read(From::Offset(3));
        assert_eq!((end.data.len(), end.next_offset, end.ended), (0, 3, false));
    }

    #[tokio::test]
    async fn following_ends_with_the_attempt_and_finds_its_output_where_it_went() {
        let bench = Bench::new(b"abc");
        let following = follow(
            &bench.attempts,
            &bench.id,
            Stream::Stdout,
            From::Offset(3),
            CHUNK_MAX,
            Duration::from_mins(1),
        );
        let archived = async { bench.attempts.archive(&bench.id).expect("archived") };
        let (chunk, ()) = tokio::join!(following, archived);
        assert!(chunk.expect("readable").ended);
        let all = bench.read(From::Offset(0));
        assert_eq!((all.data.as_slice(), all.ended), (b"abc".as_slice(), true));
    }
}
