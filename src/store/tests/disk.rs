//! A disk in memory that remembers what was written to it and when it was
//! synced, and that can fail.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use redb::StorageBackend;

/// One thing that was done to a disk.
#[derive(Clone, Debug)]
pub enum Step {
    Write {
        at: usize,
        data: Vec<u8>,
    },
    SetLength(usize),
    Sync,
    /// The test's own: something was answered.
    Mark,
}

/// When operations fail, counted from now on.
#[derive(Clone, Copy, Debug)]
pub struct Failure {
    /// How many succeed before.
    pub after: usize,
    /// Whether all fail from there on, or only one.
    pub persistent: bool,
    /// The system's number of the error.
    pub errno: i32,
}

#[derive(Debug, Default)]
struct State {
    bytes: Vec<u8>,
    steps: Vec<Step>,
    operations: usize,
    failure: Option<Failure>,
    failed: usize,
    is_open: bool,
}

/// Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<State>>);

impl Disk {
    /// A disk with these bytes on it.
    pub fn with(bytes: Vec<u8>) -> Disk {
        Disk(Arc::new(Mutex::new(State { bytes, ..State::default() })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    pub fn steps(&self) -> Vec<Step> {
        self.state().steps.clone()
    }

    pub fn mark(&self) {
        self.state().steps.push(Step::Mark);
    }

    /// From now on.
    pub fn fail(&self, failure: Option<Failure>) {
        let mut state = self.state();
        (state.failure, state.operations, state.failed) = (failure, 0, 0);
    }

    /// How many operations have failed.
    pub fn failed(&self) -> usize {
        self.state().failed
    }

    /// Waits until the database on it is closed.
    pub fn closed(&self) {
        while self.state().is_open {
            smol::block_on(smol::Timer::after(Duration::from_micros(200)));
        }
    }

    /// Counts an operation, and fails it if it is its turn.
    fn operation(&self) -> io::Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.is_open = true;
        let index = state.operations;
        state.operations += 1;
        match state.failure {
            Some(failure) if index == failure.after || (index > failure.after && failure.persistent) => {
                state.failed += 1;
                Err(io::Error::from_raw_os_error(failure.errno))
            }
            _ => Ok(state),
        }
    }
}

/// Writes as a file does: what is beyond the end makes it longer.
pub fn write(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.operation()?.bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.operation()?;
        let at = usize::try_from(offset).unwrap();
        let found = state.bytes.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(found);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.operation()?;
        let length = usize::try_from(len).unwrap();
        state.bytes.resize(length, 0);
        state.steps.push(Step::SetLength(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.operation()?.steps.push(Step::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.operation()?;
        let at = usize::try_from(offset).unwrap();
        write(&mut state.bytes, at, data);
        state.steps.push(Step::Write { at, data: data.to_vec() });
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.state().is_open = false;
        Ok(())
    }
}
