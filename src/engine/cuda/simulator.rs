//! Lets a test process find the simulated GPU: the stand-in libcuda.so.1 of `tests/gpusim`, which cargo
//! builds beside the tests. With GPU_TESTS=real in the environment they run on the machine's own driver.

use std::path::PathBuf;
use std::sync::OnceLock;

use super::Gpu;

fn library() -> PathBuf {
    let deps = std::env::current_exe().unwrap();
    deps.parent().unwrap().join("libgpusim.so")
}

/// The first GPU. Panics where there is none: these tests are not skipped.
pub(crate) fn gpu() -> Gpu {
    static LOADED: OnceLock<()> = OnceLock::new();
    LOADED.get_or_init(|| {
        if std::env::var("GPU_TESTS").is_ok_and(|v| v == "real") {
            return;
        }
        use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
        let path = library();
        // SAFETY: our own library, whose constructors do nothing. Its soname is libcuda.so.1, so the
        // driver's bindings, which load that name, get it.
        let loaded = unsafe { Library::open(Some(&path), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(loaded.unwrap_or_else(|e| panic!("{}: {e}", path.display())));
    });
    Gpu::open(0).unwrap_or_else(|e| panic!("{e}"))
}
