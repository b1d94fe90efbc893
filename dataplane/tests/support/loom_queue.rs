//! `ArrayQueue` as the hand-over uses it, visible to loom.

use std::collections::VecDeque;

use loom::sync::Mutex;

/// A bounded queue between two threads.
pub struct Queue<T> {
    places: usize,
    values: Mutex<VecDeque<T>>,
}

impl<T> Queue<T> {
    pub fn new(places: usize) -> Self {
        Self { places, values: Mutex::new(VecDeque::new()) }
    }

    pub fn push(&self, value: T) -> Result<(), T> {
        let mut values = self.values.lock().expect("loom");
        if values.len() == self.places {
            return Err(value);
        }
        values.push_back(value);
        Ok(())
    }

    pub fn pop(&self) -> Option<T> {
        self.values.lock().expect("loom").pop_front()
    }
}
