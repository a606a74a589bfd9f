//! Any bytes as a configuration: mistakes with their places, never a panic; what is accepted means the same when
//! it is written down for `inspectd plan` and read again.

#![no_main]

mod file;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = file::file("config", data);
    match inspectd::config::load(&path) {
        Ok(config) => {
            let record = inspectd::config::InForceRecord::new(&path, String::new(), &config, []).expect("a path");
            let again = record.config().unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(again.hash().to_string(), config.hash().to_string());
        }
        Err(error) => drop(error.to_string()),
    }
});
