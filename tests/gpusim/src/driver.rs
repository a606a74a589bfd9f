
//! A libcuda.so for tests: the driver API subset cudarc uses, executed synchronously by the PTX interpreter.
use crate::spike::{parse, Gpu, Kernel};
use std::{
    ffi::{c_char, c_int, c_uint, c_void, CStr},
    sync::{Mutex, OnceLock},
    time::Instant,
};
type R = c_uint;
const OK: R = 0;
const INVALID: R = 1;
const NO_BINARY: R = 209;
const INVALID_PTX: R = 218;
const NOT_FOUND: R = 500;
const NOT_CAPTURING: R = 901;
const ILLEGAL: R = 700;
struct G(Gpu);
unsafe impl Send for G {}
fn gpu() -> std::sync::MutexGuard<'static, G> {
    static M: OnceLock<Mutex<G>> = OnceLock::new();
    M.get_or_init(|| Mutex::new(G(Gpu::default())))
        .lock()
        .unwrap_or_else(|e| e.into_inner())
}
#[derive(Clone)]
enum Node {
    Set(u64, u8, usize),
    H2D(u64, usize, usize),
    D2H(usize, u64, usize),
    D2D(u64, u64, usize),
    Launch(usize, [u32; 3], [u32; 3], usize, Vec<Vec<u8>>),
}
struct Stream {
    cap: Option<Vec<Node>>,
}
struct Event {
    t: Option<Instant>,
}
static mut NULL_STREAM: Stream = Stream { cap: None };
unsafe fn st(s: *mut Stream) -> &'static mut Stream {
    if (s as usize) < 3 {
        &mut *std::ptr::addr_of_mut!(NULL_STREAM)
    } else {
        &mut *s
    }
}
unsafe fn run(n: &Node) -> R {
    let mut g = gpu();
    let g = &mut g.0;
    match n {
        Node::Set(p, v, n) => {
            if *n > 0 {
                if !g.in_bounds(*p, *n) {
                    return bad("memset", *p, *n);
                }
                g.write(*p, &vec![*v; *n])
            }
        }
        Node::H2D(d, s, n) => {
            if *n > 0 {
                if !g.in_bounds(*d, *n) {
                    return bad("memcpy HtoD", *d, *n);
                }
                g.write(*d, std::slice::from_raw_parts(*s as *const u8, *n))
            }
        }
        Node::D2H(d, s, n) => {
            if *n > 0 {
                if !g.in_bounds(*s, *n) {
                    return bad("memcpy DtoH", *s, *n);
                }
                std::ptr::copy_nonoverlapping(g.read(*s, *n).as_ptr(), *d as *mut u8, *n)
            }
        }
        Node::D2D(d, s, n) => {
            if !g.in_bounds(*s, *n) || !g.in_bounds(*d, *n) {
                return bad("memcpy DtoD", *s, *n);
            }
            let v = g.read(*s, *n).to_vec();
            g.write(*d, &v)
        }
        Node::Launch(k, gr, bl, sm, args) => {
            let k = &*(*k as *const Kernel);
            let e0 = g.nerr;
            g.errors.clear();
            let r = g.launch(k, *gr, *bl, *sm, args, false);
            if let Err(e) = &r {
                eprintln!("mock libcuda: {}: {e}", k.name);
                return ILLEGAL;
            }
            if g.nerr != e0 {
                eprintln!("mock libcuda: {}: {} errors", k.name, g.nerr - e0);
                for e in &g.errors {
                    eprintln!("  {e}")
                }
                return ILLEGAL;
            }
        }
    }
    OK
}
fn bad(w: &str, p: u64, n: usize) -> R {
    eprintln!("mock libcuda: {w} out of bounds: {p:#x} + {n}");
    INVALID
}
unsafe fn sub(s: *mut Stream, n: Node) -> R {
    match &mut st(s).cap {
        Some(c) => {
            c.push(n);
            OK
        }
        None => run(&n),
    }
}
macro_rules! api { ($($n:ident($($a:ident: $t:ty),*) $b:block)*) => { $(#[unsafe(no_mangle)] pub unsafe extern "C" fn $n($($a: $t),*) -> R $b)* } }
macro_rules! put {
    ($p:expr, $v:expr) => {{
        *$p = $v;
        OK
    }};
}
api! {
    cuInit(_f: c_uint) { OK }
    cuDriverGetVersion(v: *mut c_int) { put!(v, 12080) }
    cuDeviceGetCount(n: *mut c_int) { put!(n, 1) }
    cuDeviceGet(d: *mut c_int, i: c_int) { if i != 0 { return 101 } put!(d, 0) }
    cuDeviceGetName(s: *mut c_char, n: c_int, _d: c_int) { let m = b"simulated GPU (interpreter)\0"; std::ptr::copy_nonoverlapping(m.as_ptr() as *const c_char, s, m.len().min(n as usize)); OK }
    cuDeviceTotalMem_v2(b: *mut usize, _d: c_int) { put!(b, 1 << 30) }
    cuDeviceGetAttribute(v: *mut c_int, a: c_int, _d: c_int) { put!(v, match a { 75 => 8, 76 => 0, 16 => 2, 97 => 101376, 10 => 32, 1 | 2 | 3 => 1024, 8 => 49152, _ => 1 }) }
    cuDeviceGetDefaultMemPool(p: *mut usize, _d: c_int) { put!(p, 1) }
    cuMemPoolSetAttribute(_p: usize, _a: c_int, _v: *mut c_void) { OK }
    cuDevicePrimaryCtxRetain(c: *mut usize, _d: c_int) { put!(c, 1) }
    cuDevicePrimaryCtxRelease_v2(_d: c_int) { OK }
    cuCtxSetCurrent(_c: usize) { OK }
    cuCtxGetCurrent(c: *mut usize) { put!(c, 1) }
    cuCtxSetFlags(_f: c_uint) { OK }
    cuCtxSynchronize() { OK }
    cuCtxGetStreamPriorityRange(a: *mut c_int, b: *mut c_int) { *a = 0; put!(b, -5) }
    cuMemGetInfo_v2(f: *mut usize, t: *mut usize) { *f = 1 << 30; put!(t, 1 << 30) }
    cuStreamCreate(s: *mut *mut Stream, _f: c_uint) { put!(s, Box::into_raw(Box::new(Stream { cap: None }))) }
    cuStreamCreateWithPriority(s: *mut *mut Stream, _f: c_uint, _p: c_int) { put!(s, Box::into_raw(Box::new(Stream { cap: None }))) }
    cuStreamDestroy_v2(s: *mut Stream) { drop(Box::from_raw(s)); OK }
    cuStreamSynchronize(s: *mut Stream) { if st(s).cap.is_some() { return 900 } OK }
    cuStreamWaitEvent(_s: *mut Stream, _e: *mut Event, _f: c_uint) { OK }
    cuStreamBeginCapture_v2(s: *mut Stream, _m: c_uint) { if (s as usize) < 3 { return 900 } st(s).cap = Some(vec![]); OK }
    cuStreamEndCapture(s: *mut Stream, g: *mut *mut Vec<Node>) { match st(s).cap.take() { Some(c) => put!(g, Box::into_raw(Box::new(c))), None => NOT_CAPTURING } }
    cuGraphInstantiateWithFlags(e: *mut *mut Vec<Node>, g: *mut Vec<Node>, _f: u64) { put!(e, Box::into_raw(Box::new((*g).clone()))) }
    cuGraphUpload(_e: *mut Vec<Node>, _s: *mut Stream) { OK }
    cuGraphLaunch(e: *mut Vec<Node>, _s: *mut Stream) { for n in &*e { let r = run(n); if r != OK { return r } } OK }
    cuGraphExecDestroy(e: *mut Vec<Node>) { drop(Box::from_raw(e)); OK }
    cuGraphDestroy(e: *mut Vec<Node>) { drop(Box::from_raw(e)); OK }
    cuEventCreate(e: *mut *mut Event, _f: c_uint) { put!(e, Box::into_raw(Box::new(Event { t: None }))) }
    cuEventDestroy_v2(e: *mut Event) { drop(Box::from_raw(e)); OK }
    cuEventRecord(e: *mut Event, _s: *mut Stream) { (*e).t = Some(Instant::now()); OK }
    cuEventSynchronize(_e: *mut Event) { OK }
    cuEventQuery(_e: *mut Event) { OK }
    cuEventElapsedTime(ms: *mut f32, a: *mut Event, b: *mut Event) { match ((*a).t, (*b).t) { (Some(x), Some(y)) => put!(ms, y.duration_since(x).as_secs_f32() * 1e3), _ => 400 } }
    cuMemAlloc_v2(p: *mut u64, n: usize) { if n == 0 { return INVALID } put!(p, gpu().0.alloc(n)) }
    cuMemAllocAsync(p: *mut u64, n: usize, _s: *mut Stream) { put!(p, gpu().0.alloc(n)) }
    cuMemFree_v2(p: u64) { if gpu().0.free(p) { OK } else { INVALID } }
    cuMemFreeAsync(p: u64, _s: *mut Stream) { if gpu().0.free(p) { OK } else { INVALID } }
    cuMemHostAlloc(p: *mut *mut c_void, n: usize, _f: c_uint) { let l = std::alloc::Layout::from_size_align(n + 4096, 4096).unwrap(); let q = std::alloc::alloc_zeroed(l); (q as *mut usize).write(n); put!(p, q.add(4096) as *mut c_void) }
    cuMemFreeHost(p: *mut c_void) { let q = (p as *mut u8).sub(4096); let n = (q as *mut usize).read(); std::alloc::dealloc(q, std::alloc::Layout::from_size_align(n + 4096, 4096).unwrap()); OK }
    cuMemsetD8Async(p: u64, v: u8, n: usize, s: *mut Stream) { sub(s, Node::Set(p, v, n)) }
    cuMemcpyHtoDAsync_v2(d: u64, h: *const c_void, n: usize, s: *mut Stream) { sub(s, Node::H2D(d, h as usize, n)) }
    cuMemcpyDtoHAsync_v2(h: *mut c_void, d: u64, n: usize, s: *mut Stream) { sub(s, Node::D2H(h as usize, d, n)) }
    cuMemHostRegister_v2(_p: *mut c_void, _n: usize, _f: c_uint) { OK }
    cuMemHostUnregister(_p: *mut c_void) { OK }
    cuMemsetD8_v2(p: u64, v: u8, n: usize) { run(&Node::Set(p, v, n)) }
    cuMemcpyDtoDAsync_v2(d: u64, q: u64, n: usize, s: *mut Stream) { sub(s, Node::D2D(d, q, n)) }
    cuModuleLoadData(m: *mut *mut Vec<Kernel>, img: *const c_void) {
        if std::slice::from_raw_parts(img as *const u8, 4) == b"\x7fELF" { return NO_BINARY } // no SASS here: the loader falls back to PTX
        match CStr::from_ptr(img as *const c_char).to_str().map_err(|e| e.to_string()).and_then(parse) { Ok(k) => put!(m, Box::into_raw(Box::new(k))), Err(e) => { eprintln!("mock libcuda: {e}"); INVALID_PTX } }
    }
    cuModuleUnload(_m: *mut Vec<Kernel>) { OK } // kernels may still be referenced by graphs: leak
    cuModuleGetFunction(f: *mut *const Kernel, m: *mut Vec<Kernel>, n: *const c_char) { let n = CStr::from_ptr(n).to_str().unwrap(); match (*m).iter().find(|k| k.name == n) { Some(k) => put!(f, k), None => NOT_FOUND } }
    cuFuncGetAttribute(v: *mut c_int, a: c_int, f: *const Kernel) { put!(v, match a { 0 => 1024, 1 => (*f).smem() as c_int, 4 => (*f).nregs().min(255) as c_int, _ => 0 }) }
    cuFuncSetAttribute(_f: *const Kernel, _a: c_int, _v: c_int) { OK }
    cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(n: *mut c_int, _f: *const Kernel, _b: c_int, _s: usize, _fl: c_uint) { put!(n, 2) }
    cuLaunchKernel(f: *const Kernel, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, sm: c_uint, s: *mut Stream, p: *mut *mut c_void, _e: *mut *mut c_void) {
        if bx * by * bz > 1024 || gx == 0 || gy == 0 || gz == 0 { return INVALID }
        let args = (*f).params().iter().enumerate().map(|(i, (_, n))| std::slice::from_raw_parts(*p.add(i) as *const u8, *n).to_vec()).collect();
        sub(s, Node::Launch(f as usize, [gx, gy, gz], [bx, by, bz], sm as usize, args))
    }
    cuGetErrorName(e: R, s: *mut *const c_char) { *s = name(e).as_ptr(); OK }
    cuGetErrorString(e: R, s: *mut *const c_char) { *s = name(e).as_ptr(); OK }
}
fn name(e: R) -> &'static CStr {
    match e {
        209 => c"NO_BINARY_FOR_GPU",
        218 => c"INVALID_PTX",
        500 => c"NOT_FOUND",
        700 => c"ILLEGAL_ADDRESS",
        900 => c"STREAM_CAPTURE_UNSUPPORTED",
        _ => c"error",
    }
}
