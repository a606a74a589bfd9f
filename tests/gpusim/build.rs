//! The cdylib answers to the driver's name: once it is loaded from any path, a later
//! `dlopen("libcuda.so.1")` of the same process finds it.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libcuda.so.1");
}
