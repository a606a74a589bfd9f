//! Any bytes as a model file: an error, or a model whose hash was right.

#![no_main]

mod file;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = file::file("model", data);
    match inspectd::model::Model::load(&path) {
        Ok(model) => drop(model.hash()),
        Err(error) => drop(error.to_string()),
    }
});
