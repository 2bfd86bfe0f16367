//! A bounded queue between the threads that log and a thread that writes. A journal, a disk or a pipe that takes no lines
//! holds up that thread alone, and no hook. Lines that do not fit are dropped and counted.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

/// The limit of lines in the queue. A line has at most some 4 KiB, so they take at most 4 MiB; a busy node logs some
/// tens in a second.
pub(super) const MAX_LINES: usize = 1024;

/// The sending side of a queue. When it is dropped, the thread writes what is in the queue, and ends.
#[derive(Debug)]
pub(super) struct Queue<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Notified at each change of the state.
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    lines: VecDeque<T>,
    /// The lines that were dropped and not reported yet.
    lost: u64,
    /// Whether the thread writes a line.
    writes: bool,
    is_closed: bool,
}

impl<T: Send + 'static> Queue<T> {
    /// Starts the thread, which calls `write` for each line.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(super) fn new(write: impl FnMut(T) + Send + 'static) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                lines: VecDeque::new(),
                lost: 0,
                writes: false,
                is_closed: false,
            }),
            changed: Condvar::new(),
        });
        let of_thread = shared.clone();
        // It is not joined: a write may hang for as long as the process runs.
        let started = thread::Builder::new().name("log".to_owned());
        started.spawn(move || of_thread.write_all(write))?;
        Ok(Self(shared))
    }

    /// Adds a line. `false` if the queue is full, and the line is lost.
    pub(super) fn push(&self, line: T) -> bool {
        let mut state = self.0.state.lock();
        if state.lines.len() >= MAX_LINES {
            state.lost += 1;
            return false;
        }
        state.lines.push_back(line);
        self.0.changed.notify_all();
        true
    }

    /// Returns the number of lines that were lost since the last call, once there is room to say so; else 0.
    pub(super) fn take_lost(&self) -> u64 {
        let mut state = self.0.state.lock();
        match state.lines.len() < MAX_LINES / 2 {
            true => std::mem::take(&mut state.lost),
            false => 0,
        }
    }

    /// Waits until all lines are written, at most for `limit`.
    pub(super) fn flush(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.0.state.lock();
        while state.writes || !state.lines.is_empty() {
            if self.0.changed.wait_until(&mut state, deadline).timed_out() {
                return;
            }
        }
    }
}

impl<T> Shared<T> {
    fn write_all(&self, mut write: impl FnMut(T)) {
        while let Some(line) = self.next() {
            write(line);
            self.state.lock().writes = false;
            self.changed.notify_all();
        }
    }

    /// Waits for the next line; `None` when the queue is closed and empty.
    fn next(&self) -> Option<T> {
        let mut state = self.state.lock();
        loop {
            if let Some(line) = state.lines.pop_front() {
                state.writes = true;
                return Some(line);
            }
            if state.is_closed {
                return None;
            }
            self.changed.wait(&mut state);
        }
    }
}

impl<T> Drop for Queue<T> {
    fn drop(&mut self) {
        self.0.state.lock().is_closed = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(30);

    #[test]
    fn lines_are_written_in_order_also_after_the_queue_is_dropped() {
        let (written, lines) = mpsc::channel();
        let queue = Queue::new(move |line: usize| written.send(line).unwrap()).unwrap();
        (0..100).for_each(|line| assert!(queue.push(line)));
        queue.flush(PATIENCE);
        assert_eq!(lines.try_iter().count(), 100);
        (0..100).for_each(|line| assert!(queue.push(line)));
        drop(queue);
        let rest: Vec<_> = lines.iter().collect();
        assert_eq!(rest, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_write_that_hangs_holds_up_nothing_and_lost_lines_are_counted() {
        let (go_on, hangs) = mpsc::channel::<()>();
        let (began, begins) = mpsc::channel();
        let queue = Queue::new(move |_: usize| {
            began.send(()).unwrap();
            // An error is the end of the test.
            let _ = hangs.recv();
        })
        .unwrap();
        assert!(queue.push(0));
        begins.recv().unwrap();
        (0..MAX_LINES).for_each(|line| assert!(queue.push(line)));
        (0..7).for_each(|line| assert!(!queue.push(line)));
        assert_eq!(queue.take_lost(), 0, "there is no room to say so");
        queue.flush(Duration::from_millis(10));
        drop(go_on);
        queue.flush(PATIENCE);
        assert_eq!((queue.take_lost(), queue.take_lost()), (7, 0));
    }
}
