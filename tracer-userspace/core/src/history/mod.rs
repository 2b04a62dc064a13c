//! State and losses that are kept in addition to the open cases.

use std::collections::VecDeque;

pub mod baseline;
pub mod idle_periods;
pub mod ipvs_servers;
pub mod losses;
pub mod memory;

/// Adds an item to a list of at most `most`, which forgets its oldest.
fn push_bounded<T>(list: &mut VecDeque<T>, most: usize, item: T) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(item);
}
