//! The GPU kernels that the build embedded, and which of their images suits which GPU.
//!
//! Pure data and pure functions: no CUDA call is made here. Without libnvrtc at build time the tables
//! are empty ([`embedded`] is false) and inspectd runs on the CPU.

include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// What an image holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Text that the driver compiles for its GPU at load time; portable to every newer one.
    Ptx,
    /// Machine code of one architecture.
    Cubin,
}

/// One compiled `kernels/*.cu`.
#[derive(Clone, Copy)]
pub struct Image {
    /// The file's stem.
    pub module: &'static str,
    /// Compute capability times ten, `80` for 8.0.
    pub arch: u32,
    pub kind: Kind,
    pub data: &'static [u8],
}

impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {:?} {} ({} bytes)", self.module, self.kind, self.arch, self.data.len())
    }
}

/// What the assembler says of one kernel on one architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    pub module: &'static str,
    pub kernel: &'static str,
    pub arch: u32,
    /// Per thread.
    pub registers: u32,
    /// Static shared memory per block.
    pub shared_bytes: u32,
    /// Local memory per thread, spills included.
    pub stack_bytes: u32,
    pub spill_store_bytes: u32,
    pub spill_load_bytes: u32,
}

/// Whether the build found a compiler for the kernels.
pub fn embedded() -> bool {
    cfg!(kernels_embedded)
}

/// Architectures that have machine code, ascending.
pub fn cubin_archs(images: &[Image]) -> Vec<u32> {
    let mut archs: Vec<u32> = images.iter().filter(|i| i.kind == Kind::Cubin).map(|i| i.arch).collect();
    archs.sort_unstable();
    archs.dedup();
    archs
}

/// The header and the body of a kernel in its module's PTX.
fn entry<'a>(images: &'a [Image], module: &str, kernel: &str) -> Option<(&'a str, &'a str)> {
    let ptx = images.iter().find(|i| i.module == module && i.kind == Kind::Ptx)?;
    let text = std::str::from_utf8(ptx.data).ok()?;
    let name = format!(".entry {kernel}(");
    let start = &text[text.find(&name)?..];
    let (header, rest) = start.split_once('{')?;
    Some((header, rest.split(".entry ").next().unwrap_or(rest)))
}

/// Bytes of each parameter of a kernel; `None` where there is no such kernel.
pub fn parameters(images: &[Image], module: &str, kernel: &str) -> Option<Vec<usize>> {
    let (header, _) = entry(images, module, kernel)?;
    // `.param .u64 name` or `.param .align 8 .b8 name[1000]`
    let size = |line: &str| {
        let (kind, name) = line.trim().trim_end_matches(',').rsplit_once(' ')?;
        let bits: usize = kind.rsplit('.').next()?.get(1..)?.parse().ok()?;
        let many = name.split_once('[').map_or(Some(1), |(_, n)| n.trim_end_matches(']').parse().ok())?;
        Some(bits / 8 * many)
    };
    header.lines().filter(|line| line.trim().starts_with(".param ")).map(size).collect()
}

/// Threads of a block by the kernel's launch bounds; `None` where it has none.
pub fn launch_bound(images: &[Image], module: &str, kernel: &str) -> Option<u32> {
    let (header, _) = entry(images, module, kernel)?;
    let bound = header.split_once(".maxntid")?.1.lines().next()?;
    bound.split(',').map(|n| n.trim().parse::<u32>().ok()).product()
}

/// Whether the kernel multiplies matrices on tensor cores.
pub fn uses_tensor_cores(images: &[Image], module: &str, kernel: &str) -> bool {
    entry(images, module, kernel).is_some_and(|(_, body)| body.contains("mma.sync"))
}

/// Jetson chips. NVIDIA promises cubins across the minors of one major, but not between these and
/// the desktop and server chips.
const JETSON: &[u32] = &[87, 101];

/// The images of `module` that a GPU of `capability` (major, minor) may run, in the order to try:
/// machine code of the nearest architecture first, then PTX, the newest first. A driver that refuses
/// one gets the next.
pub fn choose<'a>(images: &'a [Image], module: &str, capability: (u32, u32)) -> Vec<&'a Image> {
    let own = capability.0 * 10 + capability.1;
    let runs = |image: &Image| match image.kind {
        Kind::Ptx => image.arch <= own,
        Kind::Cubin if image.arch == own => true,
        Kind::Cubin => {
            let jetson = JETSON.contains(&own) || JETSON.contains(&image.arch);
            !jetson && image.arch < own && image.arch / 10 == capability.0
        }
    };
    let mut fitting: Vec<&Image> = images.iter().filter(|i| i.module == module && runs(i)).collect();
    fitting.sort_by_key(|i| std::cmp::Reverse((i.kind, i.arch)));
    fitting
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images() -> Vec<Image> {
        let image = |module, arch, kind| Image { module, arch, kind, data: b"" };
        let mut all = Vec::new();
        for module in ["preprocess", "heatmap"] {
            all.extend([75, 80, 86, 89, 90, 100, 120].map(|arch| image(module, arch, Kind::Cubin)));
            all.extend([75, 80].map(|arch| image(module, arch, Kind::Ptx)));
        }
        all
    }

    /// `sm_80` or `compute_80`, best first.
    fn names(capability: (u32, u32)) -> Vec<String> {
        choose(&images(), "preprocess", capability)
            .iter()
            .map(|i| match i.kind {
                Kind::Cubin => format!("sm_{}", i.arch),
                Kind::Ptx => format!("compute_{}", i.arch),
            })
            .collect()
    }

    #[test]
    fn a_gpu_gets_its_own_machine_code_first_and_ptx_last() {
        assert_eq!(names((8, 0)), ["sm_80", "compute_80", "compute_75"]);
        assert_eq!(names((8, 9)), ["sm_89", "sm_86", "sm_80", "compute_80", "compute_75"]);
        assert_eq!(names((7, 5)), ["sm_75", "compute_75"]);
    }

    #[test]
    fn a_later_minor_runs_the_machine_code_of_an_earlier_one() {
        assert_eq!(names((12, 1)), ["sm_120", "compute_80", "compute_75"]);
        assert_eq!(names((10, 3)), ["sm_100", "compute_80", "compute_75"]);
    }

    #[test]
    fn a_major_newer_than_the_list_gets_ptx_alone() {
        assert_eq!(names((13, 0)), ["compute_80", "compute_75"]);
        assert_eq!(names((11, 0)), ["compute_80", "compute_75"]);
    }

    #[test]
    fn a_jetson_gets_no_desktop_machine_code() {
        assert_eq!(names((8, 7)), ["compute_80", "compute_75"]);
        assert_eq!(names((10, 1)), ["compute_80", "compute_75"]);
    }

    #[test]
    fn a_gpu_older_than_the_floor_gets_nothing() {
        assert_eq!(names((7, 0)), [""; 0]);
        assert_eq!(names((6, 1)), [""; 0]);
    }

    #[test]
    fn another_modules_images_are_never_chosen() {
        assert!(choose(&images(), "conv", (8, 0)).is_empty());
        assert!(choose(&images(), "heatmap", (8, 0)).iter().all(|i| i.module == "heatmap"));
    }

    #[test]
    fn no_kernel_spills_or_uses_local_memory() {
        for usage in REPORT {
            let local = usage.stack_bytes + usage.spill_store_bytes + usage.spill_load_bytes;
            assert_eq!(local, 0, "{usage:?}");
            assert!(usage.registers > 0, "the assembler's report was not understood: {usage:?}");
        }
    }

    #[test]
    fn launch_bounds_and_tensor_cores_are_read_from_the_very_kernel() {
        const PTX: &[u8] =
            b".entry one(\n)\n.maxntid 32, 4, 1\n{\nmma.sync.x\n}\n.entry one_more(\n)\n{\nret\n}";
        let images = [Image { module: "m", arch: 80, kind: Kind::Ptx, data: PTX }];
        assert_eq!(launch_bound(&images, "m", "one"), Some(128));
        assert_eq!(launch_bound(&images, "m", "one_more"), None);
        assert_eq!(launch_bound(&images, "m", "none"), None);
        assert!(uses_tensor_cores(&images, "m", "one"));
        assert!(!uses_tensor_cores(&images, "m", "one_more"));
    }

    #[test]
    fn every_cubin_is_an_elf_file_and_every_kernel_in_it_was_reported() {
        assert_eq!(embedded(), !IMAGES.is_empty());
        assert_eq!(embedded(), !NVRTC.is_empty());
        for image in IMAGES {
            match image.kind {
                Kind::Cubin => {
                    assert!(image.data.starts_with(b"\x7fELF"), "{image:?}");
                    let reported = REPORT.iter().any(|u| u.module == image.module && u.arch == image.arch);
                    assert!(reported, "{image:?}");
                }
                Kind::Ptx => {
                    let text = std::str::from_utf8(image.data).expect("PTX is text");
                    assert!(text.contains(&format!(".target sm_{}", image.arch)), "{image:?}");
                    assert!(!text.contains('\0'), "{image:?}");
                }
            }
        }
    }
}
