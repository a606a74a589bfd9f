//! Launches of `kernels/elementwise.cu`.

use super::launch::{Lowered, Task, Unsupported};

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    Err(task.unsupported("has no kernel yet"))
}
