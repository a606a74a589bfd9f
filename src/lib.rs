//! `inspectd` learns from pictures of good parts what good looks like, watches cameras, and says of
//! every part, in time: good, unsure, or bad, with a heatmap that shows where.
//!
//! The rooms, in the order a frame walks through them, and who may know whom: see `ARCHITECTURE.md`.

pub mod archive;
pub mod capture;
pub mod commands;
pub mod config;
pub mod engine;
pub mod eval;
pub mod imaging;
pub mod kernels;
pub mod line;
pub mod model;
pub mod nets;
pub mod occupancy;
pub mod outputs;
pub mod page;
pub mod pages;
pub mod realnet;
pub mod telemetry;
pub mod weights;
