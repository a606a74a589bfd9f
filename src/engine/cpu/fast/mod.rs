//! Hand-tuned CPU kernels: pure functions over slices, geometry in, no allocation.
