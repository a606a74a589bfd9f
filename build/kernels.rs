//! From `kernels/*.cu` to the embedded table: which images, compiled in parallel and remembered
//! under a hash of everything that goes into them, and what the assembler said of each kernel.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use sha2::{Digest, Sha256};

use crate::nvrtc::{Kind, Nvrtc, Output, Source};

/// Turing to Blackwell. A cubin also runs on later minors of its major (but not across the line
/// between desktop and Jetson).
const CUBIN_ARCHS: &[u32] = &[75, 80, 86, 89, 90, 100, 120];
/// For what is newer than the list: 75 is the floor, 80 brings `cp.async` and the wider `mma`.
const PTX_ARCHS: &[u32] = &[75, 80];

#[derive(Default)]
pub struct Built {
    /// "12.9"; empty when nothing was compiled.
    nvrtc: String,
    images: Vec<Image>,
}

struct Image {
    module: String,
    arch: u32,
    kind: Kind,
    file: PathBuf,
    bytes: usize,
    kernels: Vec<Usage>,
}

/// What the assembler says of one kernel.
#[derive(Default, Debug)]
struct Usage {
    name: String,
    registers: u32,
    shared: u32,
    stack: u32,
    spill_stores: u32,
    spill_loads: u32,
}

struct Job<'a> {
    module: &'a str,
    name: &'a str,
    text: &'a str,
    arch: u32,
    kind: Kind,
}

pub fn compile_all(nvrtc: &Nvrtc, root: &Path, out: &Path) -> Result<Built, String> {
    let headers = headers(nvrtc, root)?;
    let sources = sources(root)?;
    let archs = cubin_archs(nvrtc)?;
    let mut jobs = Vec::new();
    for (module, name, text) in &sources {
        let cubins = archs.iter().map(|&arch| (arch, Kind::Cubin));
        let ptx = PTX_ARCHS.iter().map(|&arch| (arch, Kind::Ptx));
        jobs.extend(cubins.chain(ptx).map(|(arch, kind)| Job { module, name, text, arch, kind }));
    }
    let cache = cache_dir(out);
    fs::create_dir_all(&cache).map_err(|e| format!("cannot create {}: {e}", cache.display()))?;

    // NVRTC compiles different programs from different threads; each takes 0.1 to 0.5 s.
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::new());
    let workers = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1usize).clamp(1, 16);
    thread::scope(|scope| {
        for _ in 0..workers.min(jobs.len()) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let result = run(nvrtc, job, &headers, &cache, out);
                    done.lock().expect("no thread panics while it holds the lock").push(result);
                }
            });
        }
    });
    let results = done.into_inner().expect("the threads have ended");
    let mut images = Vec::with_capacity(results.len());
    let mut errors = Vec::new();
    for result in results {
        match result {
            Ok(image) => images.push(image),
            Err(e) => errors.push(e),
        }
    }
    // The same mistake shows up once per architecture; each is told once.
    errors.sort();
    errors.dedup();
    if !errors.is_empty() {
        return Err(errors.join("\n"));
    }
    images.sort_by(|a, b| (&a.module, a.kind, a.arch).cmp(&(&b.module, b.kind, b.arch)));
    let (major, minor) = nvrtc.version();
    Ok(Built { nvrtc: format!("{major}.{minor}"), images })
}

fn run(
    nvrtc: &Nvrtc,
    job: &Job,
    headers: &[(String, String)],
    cache: &Path,
    out: &Path,
) -> Result<Image, String> {
    let options = options(job);
    let key = key(nvrtc, job, headers, &options);
    let (image_file, log_file) = (cache.join(format!("{key}.image")), cache.join(format!("{key}.log")));
    let output = match (fs::read(&image_file), fs::read_to_string(&log_file)) {
        (Ok(image), Ok(log)) => Output { image, log },
        _ => {
            let source = Source { name: job.name, text: job.text, headers };
            let output = nvrtc
                .compile(&source, job.kind, &options)
                .map_err(|e| clickable(&format!("{}: {e}", job.name)))?;
            store(&log_file, output.log.as_bytes())?;
            store(&image_file, &output.image)?;
            output
        }
    };
    for line in output.log.lines().filter(|l| l.contains("warning")) {
        println!("cargo::warning={}", clickable(line));
    }
    let file = out.join(match job.kind {
        Kind::Cubin => format!("{}.sm_{}.cubin", job.module, job.arch),
        Kind::Ptx => format!("{}.compute_{}.ptx", job.module, job.arch),
    });
    store(&file, &output.image)?;
    Ok(Image {
        module: job.module.to_owned(),
        arch: job.arch,
        kind: job.kind,
        file,
        bytes: output.image.len(),
        kernels: usages(&output.log),
    })
}

fn options(job: &Job) -> Vec<String> {
    let (prefix, rest): (_, &[&str]) = match job.kind {
        Kind::Cubin => ("sm", &["--ptxas-options=-v", "--ptxas-options=--warn-on-spills"]),
        // Line numbers, so that whatever interprets the PTX can name the source.
        Kind::Ptx => ("compute", &["-lineinfo"]),
    };
    let mut options = vec![
        format!("--gpu-architecture={prefix}_{}", job.arch),
        "--std=c++17".into(),
        "-default-device".into(),
    ];
    options.extend(rest.iter().map(|&o| o.into()));
    options
}

/// Everything that the output depends on. Each part is preceded by its length, so that no two lists
/// of parts run together to the same bytes.
fn key(nvrtc: &Nvrtc, job: &Job, headers: &[(String, String)], options: &[String]) -> String {
    let mut hash = Sha256::new();
    let mut add = |part: &str| {
        hash.update((part.len() as u64).to_le_bytes());
        hash.update(part);
    };
    add(&format!("{:?} {:?}", nvrtc.version(), job.kind));
    add(job.name);
    add(job.text);
    options.iter().for_each(|o| add(o));
    headers.iter().for_each(|(name, text)| {
        add(name);
        add(text);
    });
    hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// `target/kernel-cache`, so that debug and release builds share it; `OUT_DIR` is
/// `target/PROFILE/build/inspectd-HASH/out`.
fn cache_dir(out: &Path) -> PathBuf {
    out.ancestors().nth(4).unwrap_or(out).join("kernel-cache")
}

/// A temporary name of its own, then renamed: two builds at once never see half a file.
fn store(path: &Path, bytes: &[u8]) -> Result<(), String> {
    let tmp = path.with_extension(format!("tmp{}", process::id()));
    fs::write(&tmp, bytes)
        .and_then(|()| fs::rename(&tmp, path))
        .map_err(|e| format!("cannot write {}: {e}", path.display()))
}

fn sources(root: &Path) -> Result<Vec<(String, String, String)>, String> {
    let mut sources = Vec::new();
    for (file, text) in files(&root.join("kernels"), "cu")? {
        sources.push((file.trim_end_matches(".cu").to_owned(), format!("kernels/{file}"), text));
    }
    Ok(sources)
}

/// Our headers and CUDA's fp16 header, which NVRTC wants as a file although it knows its inside.
fn headers(nvrtc: &Nvrtc, root: &Path) -> Result<Vec<(String, String)>, String> {
    let mut headers = files(&root.join("kernels"), "cuh")?;
    for (name, needed) in [("cuda_fp16.h", true), ("cuda_fp16.hpp", false)] {
        match nvrtc.header(name) {
            Some(path) => headers.push((name.to_owned(), read(&path)?)),
            None if needed => {
                return Err(format!(
                    "{name} is not beside {}. Type scripts/setup.sh --only nvrtc, or set CUDA_INCLUDE",
                    nvrtc.path().display()
                ));
            }
            None => {}
        }
    }
    Ok(headers)
}

fn files(dir: &Path, extension: &str) -> Result<Vec<(String, String)>, String> {
    let entries = fs::read_dir(dir).map_err(|e| format!("cannot read {}: {e}", dir.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| format!("cannot read {}: {e}", dir.display()))?.path();
        let Some(name) = path.file_name().and_then(|n| n.to_str()) else { continue };
        if path.extension().is_some_and(|e| e == extension) {
            files.push((name.to_owned(), read(&path)?));
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|e| format!("cannot read {}: {e}", path.display()))
}

fn cubin_archs(nvrtc: &Nvrtc) -> Result<Vec<u32>, String> {
    let wanted = match env::var("KERNEL_ARCHS") {
        Ok(list) => list
            .split(',')
            .map(str::trim)
            .filter(|a| !a.is_empty())
            .map(|a| a.parse().map_err(|_| format!("KERNEL_ARCHS has '{a}'; give numbers, such as 80,90")))
            .collect::<Result<Vec<u32>, _>>()?,
        Err(_) => CUBIN_ARCHS.to_vec(),
    };
    let (known, unknown): (Vec<u32>, Vec<u32>) = wanted.into_iter().partition(|&a| nvrtc.supports(a));
    if !unknown.is_empty() {
        let (major, minor) = nvrtc.version();
        println!("cargo::warning=NVRTC {major}.{minor} does not know sm_{unknown:?}; built without");
    }
    Ok(known)
}

/// `kernels/x.cu(12): error` to `kernels/x.cu:12: error`, which terminals and editors follow.
fn clickable(message: &str) -> String {
    message
        .lines()
        .map(|line| {
            match line.split_once('(').and_then(|(file, rest)| Some((file, rest.split_once("):")?))) {
                Some((file, (number, rest))) if number.bytes().all(|b| b.is_ascii_digit()) => {
                    format!("{file}:{number}:{rest}")
                }
                _ => line.to_owned(),
            }
        })
        .collect::<Vec<_>>()
        .join("\n")
}

/// Reads the assembler's `-v` lines:
/// ```text
/// ptxas info    : Compiling entry function 'softmax' for 'sm_80'
/// ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
/// ptxas info    : Used 15 registers, used 1 barriers, 64 bytes smem, 380 bytes cmem[0]
/// ```
fn usages(log: &str) -> Vec<Usage> {
    let mut kernels: Vec<Usage> = Vec::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let name = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Usage { name, ..Usage::default() });
        }
        let Some(kernel) = kernels.last_mut() else { continue };
        for part in line.split([',', ':']).map(str::trim) {
            let part =
                part.trim_start_matches("ptxas").trim_start_matches(['.', ' ']).trim_start_matches("Used ");
            let Some((number, what)) = part.split_once(' ') else { continue };
            let Ok(number) = number.parse() else { continue };
            match what {
                "registers" => kernel.registers = number,
                "bytes smem" => kernel.shared = number,
                "bytes stack frame" => kernel.stack = number,
                "bytes spill stores" => kernel.spill_stores = number,
                "bytes spill loads" => kernel.spill_loads = number,
                _ => {}
            }
        }
    }
    kernels
}

impl Built {
    /// The tables that `src/kernels.rs` includes.
    pub fn rust_source(&self) -> String {
        let mut text =
            format!("pub const NVRTC: &str = {:?};\n\npub static IMAGES: &[Image] = &[\n", self.nvrtc);
        for image in &self.images {
            let Image { module, arch, kind, file, .. } = image;
            text += &format!(
                "    Image {{ module: {module:?}, arch: {arch}, kind: Kind::{kind:?}, data: include_bytes!({file:?}) }},\n"
            );
        }
        text += "];\n\npub static REPORT: &[Usage] = &[\n";
        for image in &self.images {
            for Usage { name, registers, shared, stack, spill_stores, spill_loads } in &image.kernels {
                text += &format!(
                    "    Usage {{ module: {:?}, kernel: {name:?}, arch: {}, registers: {registers}, shared_bytes: {shared}, \
                     stack_bytes: {stack}, spill_store_bytes: {spill_stores}, spill_load_bytes: {spill_loads} }},\n",
                    image.module, image.arch
                );
            }
        }
        text + "];\n"
    }

    /// For people: `kernel-report.txt` in the build's output folder.
    pub fn report(&self) -> String {
        if self.images.is_empty() {
            return "no GPU kernels embedded\n".to_owned();
        }
        let mut text = format!(
            "NVRTC {}\n{:<12} {:<28} {:>7} {:>9} {:>7} {:>6} {:>12} {:>11}\n",
            self.nvrtc,
            "module",
            "kernel",
            "arch",
            "registers",
            "shared",
            "stack",
            "spill stores",
            "spill loads"
        );
        for image in &self.images {
            for k in &image.kernels {
                text += &format!(
                    "{:<12} {:<28} {:>7} {:>9} {:>7} {:>6} {:>12} {:>11}\n",
                    image.module,
                    k.name,
                    format!("sm_{}", image.arch),
                    k.registers,
                    k.shared,
                    k.stack,
                    k.spill_stores,
                    k.spill_loads
                );
            }
        }
        let total: usize = self.images.iter().map(|i| i.bytes).sum();
        text + &format!("{} images, {total} bytes\n", self.images.len())
    }
}
