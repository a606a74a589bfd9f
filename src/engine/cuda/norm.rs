//! Launches of `kernels/norm.cu`.

use super::launch::{Lowered, Task, Unsupported};

pub fn lower_fused(_moments: &Task, _normalize: &Task) -> Option<Lowered> {
    None
}

pub fn lower(task: &Task) -> Result<Lowered, Unsupported> {
    Err(task.unsupported("has no kernel yet"))
}
