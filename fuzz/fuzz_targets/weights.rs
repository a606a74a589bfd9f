//! Any bytes as weights: safetensors, and both formats of PyTorch. An error or tensors that are whole.

#![no_main]

mod file;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = file::file("weights", data);
    match inspectd::weights::read_tensors(&path) {
        Ok(tensors) => drop(tensors.values().map(|tensor| tensor.len()).sum::<usize>()),
        Err(error) => drop(error.to_string()),
    }
});
