//! Compiles `kernels/*.cu` with NVRTC to one cubin per GPU architecture and PTX for newer ones, and
//! embeds them (`src/kernels.rs`).
//!
//! Neither a GPU nor a CUDA toolkit is needed, only libnvrtc (`scripts/setup.sh` fetches it). Without
//! it the build warns and embeds nothing: the binary then runs on the CPU and says why. What a
//! release must not lack is asked for with `REQUIRE_NVRTC=1`.
//!
//! | variable | does |
//! |---|---|
//! | `NVRTC_PATH` | libnvrtc, or the folder it lies in; nowhere else is looked |
//! | `CUDA_INCLUDE` | the folder of `cuda_fp16.h`, where it is not beside libnvrtc |
//! | `KERNEL_ARCHS` | cubins for these only, e.g. `80,90`; empty: PTX alone |
//! | `REQUIRE_NVRTC` | `1`: no libnvrtc is an error |

#[path = "build/kernels.rs"]
mod kernels;
#[path = "build/nvrtc.rs"]
mod nvrtc;

use std::{env, fs, path::PathBuf};

fn main() {
    println!("cargo::rustc-check-cfg=cfg(kernels_embedded)");
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=build");
    println!("cargo::rerun-if-changed=kernels");
    for variable in
        ["NVRTC_PATH", "CUDA_INCLUDE", "CUDA_HOME", "CUDA_PATH", "CUDA_ROOT", "KERNEL_ARCHS", "REQUIRE_NVRTC"]
    {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
    }
}

fn build() -> Result<(), String> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set; run this through cargo")?);
    let root =
        PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("CARGO_MANIFEST_DIR is not set; use cargo")?);
    let required = env::var("REQUIRE_NVRTC").is_ok_and(|v| !v.is_empty() && v != "0");

    // Where setup.sh will put it: a build without NVRTC must notice when it has come.
    println!("cargo::rerun-if-changed={}", root.join("third_party/nvrtc").display());

    let built = match nvrtc::Nvrtc::open(&root) {
        Ok(nvrtc) => {
            println!("cargo::rerun-if-changed={}", nvrtc.path().display());
            println!("cargo::rustc-cfg=kernels_embedded");
            kernels::compile_all(&nvrtc, &root, &out)?
        }
        Err(why) if required => return Err(format!("REQUIRE_NVRTC is set, but {why}")),
        Err(why) => {
            println!("cargo::warning=no GPU kernels embedded: {}", why.replace('\n', " "));
            kernels::Built::default()
        }
    };
    let write = |name: &str, text: String| {
        fs::write(out.join(name), text).map_err(|e| format!("cannot write {}: {e}", out.join(name).display()))
    };
    write("kernels.rs", built.rust_source())?;
    write("kernel-report.txt", built.report())
}
