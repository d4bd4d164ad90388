//! Big objects of a folder, written past the page cache where the file system can.
//!
//! A pack is written once and read again, if ever, by a restore. Through the cache each of its bytes takes fresh memory of the
//! kernel, which is given to nobody else before the data is on disk; on a virtual machine that must get it from its host that was
//! half of what the coordinator's processor did in a first backup. So pieces go through one small buffer straight to the disk, in
//! whole blocks; what is left of a piece waits for the next one, and the end of the object goes through the cache. Where the file
//! system knows no such writes, or refuses one, all do.
//!
//! The object appears under its name when it is whole and on disk, as `object_store` does it: until then it is `name#number`,
//! which collection removes when its writer is dead.

use std::fs::{File, OpenOptions};
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use object_store::{MultipartUpload, PutPayload, PutResult, UploadPart};

/// Memory, offsets and lengths of writes past the cache are multiples of this: the largest block that disks have.
const BLOCK: usize = 4 << 10;
/// Bytes that are written past the cache at once.
const BUFFER: usize = 1 << 20;
/// Longest write through the cache, in bytes: for longer ones the kernel takes long stretches of memory, which on a machine that does
/// not have them at hand took five times as long.
const STRIP: usize = 64 << 10;

type Done<T> = object_store::Result<T>;

fn failed(e: io::Error) -> object_store::Error {
    object_store::Error::Generic { store: "folder", source: Box::new(e) }
}

/// Runs what waits for the disk where it holds up nobody.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> Done<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done.map_err(failed),
        Err(e) => Err(failed(io::Error::other(e))),
    }
}

/// An object of a folder that comes in pieces.
#[derive(Debug)]
pub(super) struct Upload {
    target: Arc<Mutex<Target>>,
    /// What is written, until it gets its name.
    staged: Option<PathBuf>,
    dest: PathBuf,
    /// Where the next piece goes: whole blocks, and behind them what waits for more.
    at: u64,
    rest: Vec<Bytes>,
}

impl Upload {
    /// Begins the object at `dest`; folders above it are made.
    pub(super) fn begin(dest: PathBuf) -> Done<Self> {
        let (plain, staged) = stage(&dest).map_err(failed)?;
        let direct = OpenOptions::new().write(true).custom_flags(OFlag::O_DIRECT.bits()).open(&staged);
        let target = Target { plain, direct: direct.ok(), buffer: Buffer::new() };
        let target = Arc::new(Mutex::new(target));
        Ok(Self { target, staged: Some(staged), dest, at: 0, rest: Vec::new() })
    }

    /// Takes all whole blocks of what waits.
    fn whole_blocks(&mut self) -> Vec<Bytes> {
        let len: usize = self.rest.iter().map(Bytes::len).sum();
        let (mut left, mut whole) = (len / BLOCK * BLOCK, Vec::with_capacity(self.rest.len()));
        let mut rest = Vec::new();
        for mut bytes in self.rest.drain(..) {
            let taken = bytes.split_to(left.min(bytes.len()));
            left -= taken.len();
            whole.extend((!taken.is_empty()).then_some(taken));
            rest.extend((!bytes.is_empty()).then_some(bytes));
        }
        self.rest = rest;
        whole
    }
}

impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.rest.extend(data);
        let (blocks, at, target) = (self.whole_blocks(), self.at, self.target.clone());
        self.at += blocks.iter().map(|b| b.len() as u64).sum::<u64>();
        Box::pin(blocking(move || locked(&target)?.write(&blocks, at)))
    }

    fn complete<'s, 'f>(&'s mut self) -> Pin<Box<dyn Future<Output = Done<PutResult>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            let gone = || failed(io::Error::other("an upload that has ended"));
            let staged = self.staged.clone().ok_or_else(gone)?;
            let (target, dest) = (self.target.clone(), self.dest.clone());
            let (rest, at) = (std::mem::take(&mut self.rest), self.at);
            blocking(move || {
                let target = locked(&target)?;
                let mut at = at;
                for bytes in &rest {
                    target.plain.write_all_at(bytes, at)?;
                    at += bytes.len() as u64;
                }
                target.plain.sync_all()?;
                std::fs::rename(&staged, &dest)?;
                dest.parent().map_or(Ok(()), sync)
            })
            .await?;
            self.staged = None;
            Ok(PutResult { e_tag: None, version: None, extensions: Default::default() })
        })
    }

    fn abort<'s, 'f>(&'s mut self) -> Pin<Box<dyn Future<Output = Done<()>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        Box::pin(async move {
            match self.staged.take() {
                Some(staged) => blocking(move || std::fs::remove_file(staged)).await,
                None => Ok(()),
            }
        })
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if let Some(staged) = self.staged.take() {
            // What cannot be removed is left to collection.
            let _ = std::fs::remove_file(staged);
        }
    }
}

/// Where the bytes go.
#[derive(Debug)]
struct Target {
    plain: File,
    /// The same file past the cache, where that is possible.
    direct: Option<File>,
    buffer: Buffer,
}

fn locked(target: &Mutex<Target>) -> io::Result<std::sync::MutexGuard<'_, Target>> {
    target.lock().map_err(|_| io::Error::other("writing an object panicked"))
}

impl Target {
    /// Writes whole blocks.
    fn write(&mut self, blocks: &[Bytes], mut at: u64) -> io::Result<()> {
        for mut bytes in blocks.iter().map(|b| &b[..]) {
            while !bytes.is_empty() {
                bytes = self.buffer.take(bytes);
                if self.buffer.len == BUFFER {
                    at = self.flush(at)?;
                }
            }
        }
        let _ = self.flush(at)?;
        Ok(())
    }

    /// Writes the buffer at `at`; answers where it ends.
    fn flush(&mut self, at: u64) -> io::Result<u64> {
        let bytes = self.buffer.bytes();
        if let Some(direct) = &self.direct {
            match direct.write_all_at(bytes, at) {
                // Some file systems say so only now.
                Err(e) if e.raw_os_error() == Some(Errno::EINVAL as i32) => self.direct = None,
                done => done?,
            }
        }
        if self.direct.is_none() {
            let mut at = at;
            for strip in bytes.chunks(STRIP) {
                self.plain.write_all_at(strip, at)?;
                at += strip.len() as u64;
            }
        }
        let end = at + bytes.len() as u64;
        self.buffer.len = 0;
        Ok(end)
    }
}

/// Memory that begins at a whole block.
#[derive(Debug)]
struct Buffer {
    memory: Vec<u8>,
    from: usize,
    len: usize,
}

impl Buffer {
    fn new() -> Self {
        // Never grown, so it stays where it is.
        let memory = vec![0; BUFFER + BLOCK];
        let from = memory.as_ptr().align_offset(BLOCK).min(BLOCK);
        Self { memory, from, len: 0 }
    }

    /// Takes as much of `bytes` as there is room for; the rest of them.
    fn take<'b>(&mut self, bytes: &'b [u8]) -> &'b [u8] {
        let (taken, rest) = bytes.split_at(bytes.len().min(BUFFER - self.len));
        let begin = self.from + self.len;
        self.memory[begin..begin + taken.len()].copy_from_slice(taken);
        self.len += taken.len();
        rest
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.from..self.from + self.len]
    }
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Makes the file beside the object that it is to become, and the folders above it.
fn stage(dest: &Path) -> io::Result<(File, PathBuf)> {
    let mut number = 1u64;
    loop {
        let mut staged = dest.as_os_str().to_owned();
        staged.push(format!("#{number}"));
        let staged = PathBuf::from(staged);
        match OpenOptions::new().read(true).write(true).create_new(true).open(&staged) {
            Ok(file) => return Ok((file, staged)),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => number += 1,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let dir = dest.parent().ok_or(e)?;
                let made: Vec<&Path> = dir.ancestors().take_while(|d| !d.is_dir()).collect();
                std::fs::create_dir_all(dir)?;
                made.into_iter().filter_map(Path::parent).try_for_each(sync)?;
            }
            Err(e) => return Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(seed: usize, len: usize) -> Vec<u8> {
        (0..len).map(|i| ((i * 31 + seed * 7) >> 3) as u8).collect()
    }

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect()
    }

    /// Writes pieces of these lengths, each as many slices, and compares the object with them; all writes are begun before any ends.
    async fn comes_back(lens: &[usize], slice: usize, past_the_cache: bool) {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("a/b/object");
        let mut upload = Upload::begin(dest.clone()).unwrap();
        if !past_the_cache {
            upload.target.lock().unwrap().direct = None;
        }
        let (mut expected, mut parts) = (Vec::new(), Vec::new());
        for (seed, len) in lens.iter().enumerate() {
            let bytes = piece(seed, *len);
            expected.extend_from_slice(&bytes);
            parts.push(upload.put_part(bytes.chunks(slice).map(Bytes::copy_from_slice).collect()));
        }
        // The last first: pieces may be written in any order.
        for part in parts.into_iter().rev() {
            part.await.unwrap();
        }
        assert_eq!(names(dest.parent().unwrap()), ["object#1"], "no object before it is whole");
        let _ = upload.complete().await.unwrap();
        assert_eq!(names(dest.parent().unwrap()), ["object"]);
        assert!(std::fs::read(&dest).unwrap() == expected, "{lens:?} in slices of {slice}");
    }

    #[tokio::test]
    async fn pieces_of_all_lengths_come_back() {
        let past = BUFFER + 3 * BLOCK;
        for lens in [&[0][..], &[1], &[BLOCK], &[BLOCK - 1, 1, 5], &[past + 7, past, 1, 2 * BUFFER + 9], &[7; 40]] {
            for slice in [1000, BLOCK, 90_001] {
                for past_the_cache in [true, false] {
                    comes_back(lens, slice, past_the_cache).await;
                }
            }
        }
    }

    #[tokio::test]
    async fn what_is_given_up_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dest = dir.path().join("object");
        let begin = || Upload::begin(dest.clone()).unwrap();
        let (mut first, mut second) = (begin(), begin());
        second.put_part(vec![1; 3 * BLOCK].into()).await.unwrap();
        first.abort().await.unwrap();
        assert!(first.complete().await.is_err(), "an upload that was given up");
        assert_eq!(names(dir.path()), ["object#2"]);
        drop(second);
        assert!(names(dir.path()).is_empty());
    }
}
