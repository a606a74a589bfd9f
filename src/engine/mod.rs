//! Tensors, the static graph, autodiff, passes, the memory plan, and the executors. Knows nothing of
//! anomaly detection.

pub mod cpu;
