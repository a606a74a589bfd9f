//! The few NVRTC calls that the build makes, loaded from the library's path at run time.
//!
//! By path, not by linking: the machine that builds need not have a CUDA toolkit, and libnvrtc finds
//! its builtins library through its own folder.

use std::{
    env,
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::{Path, PathBuf},
    process::Command,
    ptr,
};

type Program = *mut c_void;
type Strings = *const *const c_char;

/// NVRTC's entry points, and where they came from. The library stays loaded until the process ends.
pub struct Nvrtc {
    path: PathBuf,
    version: (u32, u32),
    archs: Vec<u32>,
    create:
        unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, Strings, Strings) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, Strings) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    log: Blob,
    ptx: Blob,
    cubin: Blob,
    error_string: unsafe extern "C" fn(c_int) -> *const c_char,
}

/// A pair of NVRTC calls: one tells a size, one fills that many bytes.
#[derive(Clone, Copy)]
struct Blob {
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    read: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Machine code for one architecture.
    Cubin,
    /// Portable assembly, compiled by a driver for what is newer.
    Ptx,
}

/// One translation unit: names and texts, nothing is read from disk while compiling.
pub struct Source<'a> {
    /// As it appears in messages.
    pub name: &'a str,
    pub text: &'a str,
    /// What `#include` finds: name and text.
    pub headers: &'a [(String, String)],
}

pub struct Output {
    pub image: Vec<u8>,
    /// Warnings, and the assembler's account of registers and spills.
    pub log: String,
}

impl Nvrtc {
    pub fn open(root: &Path) -> Result<Self, String> {
        let mut tried = String::new();
        for path in candidates(root) {
            match Self::load(&path) {
                Ok(nvrtc) => return Ok(nvrtc),
                Err(e) => tried += &format!("\n  {}: {e}", path.display()),
            }
        }
        Err(format!("libnvrtc was not found. Type scripts/setup.sh --only nvrtc, or set NVRTC_PATH{tried}"))
    }

    fn load(path: &Path) -> Result<Self, String> {
        // SAFETY: loading runs the library's constructors. The path is one that the person who builds
        // named or that the toolkit's layout gives; whoever can replace that file can replace cargo.
        let library = unsafe { libloading::Library::new(path) }.map_err(|e| e.to_string())?;
        // Never unloaded, so the plain function pointers below stay valid.
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is NVRTC's documented signature of this symbol, unchanged
                // from 9.0 to 13; a missing symbol is an error here, not a bad pointer.
                *unsafe { library.get($name) }.map_err(|e| e.to_string())?
            };
        }
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = symbol!(b"nvrtcVersion\0");
        let arch_count: unsafe extern "C" fn(*mut c_int) -> c_int = symbol!(b"nvrtcGetNumSupportedArchs\0");
        let arch_list: unsafe extern "C" fn(*mut c_int) -> c_int = symbol!(b"nvrtcGetSupportedArchs\0");
        let mut nvrtc = Nvrtc {
            path: path.to_owned(),
            version: (0, 0),
            archs: Vec::new(),
            create: symbol!(b"nvrtcCreateProgram\0"),
            compile: symbol!(b"nvrtcCompileProgram\0"),
            destroy: symbol!(b"nvrtcDestroyProgram\0"),
            log: Blob { size: symbol!(b"nvrtcGetProgramLogSize\0"), read: symbol!(b"nvrtcGetProgramLog\0") },
            ptx: Blob { size: symbol!(b"nvrtcGetPTXSize\0"), read: symbol!(b"nvrtcGetPTX\0") },
            cubin: Blob { size: symbol!(b"nvrtcGetCUBINSize\0"), read: symbol!(b"nvrtcGetCUBIN\0") },
            error_string: symbol!(b"nvrtcGetErrorString\0"),
        };
        let (mut major, mut minor, mut count) = (0, 0, 0);
        // SAFETY: both calls write one int through each pointer, which are live locals.
        nvrtc.check(unsafe { version(&mut major, &mut minor) })?;
        // SAFETY: as above.
        nvrtc.check(unsafe { arch_count(&mut count) })?;
        let mut archs: Vec<c_int> = vec![0; usize::try_from(count).unwrap_or(0)];
        // SAFETY: the call writes `count` ints, and `archs` has that many.
        nvrtc.check(unsafe { arch_list(archs.as_mut_ptr()) })?;
        nvrtc.version = (major.unsigned_abs(), minor.unsigned_abs());
        nvrtc.archs = archs.into_iter().map(c_int::unsigned_abs).collect();
        Ok(nvrtc)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Major and minor. Patch releases do not tell themselves apart here.
    pub fn version(&self) -> (u32, u32) {
        self.version
    }

    pub fn supports(&self, arch: u32) -> bool {
        self.archs.contains(&arch)
    }

    /// The header files that kernels include from CUDA, beside the library or in `CUDA_INCLUDE`.
    pub fn header(&self, name: &str) -> Option<PathBuf> {
        let lib = self.path.parent()?;
        env::var_os("CUDA_INCLUDE")
            .map(PathBuf::from)
            .into_iter()
            .chain([
                lib.join("../../cuda_runtime/include"),
                lib.join("../include"),
                lib.join("../../include"),
            ])
            .map(|dir| dir.join(name))
            .find(|path| path.is_file())
    }

    pub fn compile(&self, source: &Source, kind: Kind, options: &[String]) -> Result<Output, String> {
        let c =
            |text: &str| CString::new(text).map_err(|_| format!("{}: a NUL byte in the text", source.name));
        let (text, name) = (c(source.text)?, c(source.name)?);
        let header_names = source.headers.iter().map(|(n, _)| c(n)).collect::<Result<Vec<_>, _>>()?;
        let header_texts = source.headers.iter().map(|(_, t)| c(t)).collect::<Result<Vec<_>, _>>()?;
        let options = options.iter().map(|o| c(o)).collect::<Result<Vec<_>, _>>()?;
        let pointers = |v: &[CString]| v.iter().map(|s| s.as_ptr()).collect::<Vec<_>>();
        let (names, texts, options) =
            (pointers(&header_names), pointers(&header_texts), (pointers(&options), options));

        let mut program: Program = ptr::null_mut();
        // SAFETY: every pointer is a NUL-terminated string owned by a local that lives to the end of
        // this function, and the two header arrays hold the count that is passed.
        self.check(unsafe {
            (self.create)(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        })?;
        // SAFETY: `program` was created above and is destroyed only below.
        let status = unsafe { (self.compile)(program, options.0.len() as c_int, options.0.as_ptr()) };
        let log = self
            .blob(self.log, program)
            .map(|b| String::from_utf8_lossy(&b).trim_end_matches('\0').trim().to_owned());
        let result = match (self.check(status), log) {
            (Ok(()), Ok(log)) => {
                let blob = if kind == Kind::Cubin { self.cubin } else { self.ptx };
                self.blob(blob, program).map(|mut image| {
                    if kind == Kind::Ptx {
                        image.truncate(image.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1));
                    }
                    Output { image, log }
                })
            }
            (Err(e), log) => Err(format!("{e}\n{}", log.unwrap_or_default())),
            (_, Err(e)) => Err(e),
        };
        // SAFETY: created above, not used after this.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    fn blob(&self, blob: Blob, program: Program) -> Result<Vec<u8>, String> {
        let mut size = 0usize;
        // SAFETY: `program` is live (callers), `size` a live local.
        self.check(unsafe { (blob.size)(program, &mut size) })?;
        let mut bytes = vec![0u8; size];
        // SAFETY: the call fills exactly the size that it told, which `bytes` has.
        self.check(unsafe { (blob.read)(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }

    fn check(&self, status: c_int) -> Result<(), String> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: returns a static NUL-terminated string for any value.
        let text = unsafe { CStr::from_ptr((self.error_string)(status)) };
        Err(format!("NVRTC says {}", text.to_string_lossy()))
    }
}

/// Where libnvrtc may lie, best first.
fn candidates(root: &Path) -> Vec<PathBuf> {
    if let Some(given) = env::var_os("NVRTC_PATH").map(PathBuf::from) {
        if given.is_file() {
            return vec![given];
        }
        let below = ["", "lib", "lib64", "nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"];
        return libraries(below.iter().map(|b| given.join(b)));
    }
    let wheels = ["nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"];
    let mut dirs: Vec<PathBuf> = wheels.iter().map(|w| root.join("third_party/nvrtc").join(w)).collect();
    for variable in ["CUDA_HOME", "CUDA_PATH", "CUDA_ROOT"] {
        dirs.extend(env::var_os(variable).map(|v| PathBuf::from(v).join("lib64")));
    }
    dirs.extend(
        ["/usr/local/cuda/lib64", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"]
            .map(PathBuf::from),
    );
    let found = libraries(dirs.into_iter());
    if !found.is_empty() {
        return found;
    }
    // Last, because it starts a process: what some Python package brought.
    let script = "import site; print('\\n'.join(site.getsitepackages() + [site.getusersitepackages()]))";
    let Ok(output) = Command::new("python3").args(["-c", script]).output() else { return found };
    let sites = String::from_utf8_lossy(&output.stdout).into_owned();
    libraries(sites.lines().flat_map(|site| wheels.map(|w| Path::new(site).join(w))))
}

fn libraries(dirs: impl Iterator<Item = PathBuf>) -> Vec<PathBuf> {
    let names = ["libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"];
    dirs.flat_map(|dir| names.map(|name| dir.join(name))).filter(|path| path.is_file()).collect()
}
