//! A simulated GPU for tests: a PTX interpreter with checks on every access (`machine`), and the driver
//! API on top of it (`driver`), so that an unmodified CUDA program runs on any machine.

pub mod driver;
pub mod machine;
pub mod ptx;
