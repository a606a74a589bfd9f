//! Modules, functions and kernel launches.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::api_device::{BLOCKS_SM, REGISTERS_SM, SHARED_BLOCK, SHARED_OPT_IN, THREADS_SM};
use super::api_memory::resolve;
use super::context::Function;
use super::inject::Kind;
use super::run::state;
use super::status::*;
use super::work::{Call, Handle, Loaded, Work};
use super::{driver, put, refuse};
use crate::machine::Config;
use crate::ptx::{self, Kernel};

const ELF: &[u8; 4] = b"\x7fELF";

driver! {
    /// There is no machine code here: a cubin is refused, and whoever loads falls back to PTX.
    fn cuModuleLoadData(module: *mut Handle, image: *const c_void) {
        if image.is_null() { return Err(INVALID_VALUE) }
        // SAFETY: a cubin is longer than its magic number; of a text, bytes after its NUL are not read.
        let elf = (0..4).all(|i| unsafe { image.cast::<u8>().add(i).read() } == ELF[i]);
        if elf { return Err(NO_BINARY_FOR_GPU) }
        // SAFETY: what is not a cubin is a C string, by the API's contract.
        let text = unsafe { CStr::from_ptr(image.cast()) }.to_str().map_err(|_| INVALID_PTX)?;
        put(module, load(text)?)
    }
    fn cuModuleLoadDataEx(
        module: *mut Handle, image: *const c_void, _n: c_uint, _options: *mut c_int, _values: *mut *mut c_void,
    ) {
        // SAFETY: as the caller's contract with this function.
        match unsafe { cuModuleLoadData(module, image) } { SUCCESS => Ok(()), status => Err(status) }
    }
    fn cuModuleLoad(module: *mut Handle, path: *const c_char) {
        if path.is_null() { return Err(INVALID_VALUE) }
        // SAFETY: not null, a C string by contract.
        let path = unsafe { CStr::from_ptr(path) }.to_string_lossy().into_owned();
        let bytes = std::fs::read(path).map_err(|_| FILE_NOT_FOUND)?;
        if bytes.starts_with(ELF) { return Err(NO_BINARY_FOR_GPU) }
        let text = String::from_utf8(bytes).map_err(|_| INVALID_PTX)?;
        put(module, load(text.trim_end_matches('\0'))?)
    }
    /// Queued launches and captured graphs keep what they use.
    fn cuModuleUnload(module: Handle) {
        let mut s = state();
        let context = s.live()?;
        context.modules.remove(&module).ok_or(INVALID_HANDLE)?;
        context.functions.retain(|_, f| f.owner != module);
        Ok(())
    }
    fn cuModuleGetFunction(function: *mut Handle, module: Handle, name: *const c_char) {
        if name.is_null() { return Err(INVALID_VALUE) }
        // SAFETY: not null, a C string by contract.
        let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?;
        let mut s = state();
        let fresh = s.handle();
        let context = s.live()?;
        let loaded = context.modules.get(&module).ok_or(INVALID_HANDLE)?.clone();
        let kernel = loaded.module.kernels.iter().position(|k| k.name == name).ok_or(NOT_FOUND)?;
        let known = context.functions.iter().find(|(_, f)| f.owner == module && f.kernel == kernel);
        let handle = match known {
            Some((handle, _)) => *handle,
            None => {
                let new = Function { owner: module, module: loaded, kernel, dynamic_shared: 0 };
                context.functions.insert(fresh, new);
                fresh
            }
        };
        put(function, handle)
    }
    fn cuModuleGetGlobal_v2(_at: *mut u64, _bytes: *mut usize, _module: Handle, _name: *const c_char) {
        refuse(NOT_FOUND, format_args!("variables of modules cannot be reached from the host"))
    }

    fn cuFuncGetAttribute(value: *mut c_int, which: c_int, function: Handle) {
        let function = find(function)?;
        let kernel = kernel(&function);
        put(value, match which {
            0 => max_threads(&function) as c_int,
            1 => kernel.shared_bytes() as c_int,
            3 => 0,
            // Not what an assembler would use: PTX has registers without end.
            4 => 32,
            5 | 6 => 80,
            8 => function.dynamic_shared.max(SHARED_BLOCK.saturating_sub(kernel.shared_bytes())) as c_int,
            2 | 7 | 9..=16 => 0,
            _ => return Err(INVALID_VALUE),
        })
    }
    fn cuFuncSetAttribute(function: Handle, which: c_int, value: c_int) {
        let mut s = state();
        let function = s.live()?.functions.get_mut(&function).ok_or(INVALID_HANDLE)?;
        let fixed = kernel(function).shared_bytes();
        match (which, usize::try_from(value)) {
            (8, Ok(bytes)) if bytes + fixed <= SHARED_OPT_IN => function.dynamic_shared = bytes,
            (8, _) => return Err(INVALID_VALUE),
            (9, _) => {}
            _ => return Err(INVALID_VALUE),
        }
        Ok(())
    }
    fn cuFuncSetCacheConfig(function: Handle, _config: c_uint) { find(function).map(|_| ()) }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks: *mut c_int, function: Handle, threads: c_int, shared: usize) {
        put(blocks, occupancy(function, threads, shared)?)
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int, function: Handle, threads: c_int, shared: usize, _flags: c_uint,
    ) {
        put(blocks, occupancy(function, threads, shared)?)
    }
    fn cuOccupancyAvailableDynamicSMemPerBlock(bytes: *mut usize, function: Handle, blocks: c_int, _threads: c_int) {
        let fixed = kernel(&find(function)?).shared_bytes();
        put(bytes, (SHARED_OPT_IN / blocks.max(1) as usize).saturating_sub(fixed))
    }
    fn cuOccupancyMaxPotentialBlockSize(
        grid: *mut c_int, block: *mut c_int, function: Handle, _shared_of: *mut c_void, _shared: usize, limit: c_int,
    ) {
        potential(grid, block, function, limit)
    }
    fn cuOccupancyMaxPotentialBlockSizeWithFlags(
        grid: *mut c_int, block: *mut c_int, function: Handle, _shared_of: *mut c_void, _shared: usize, limit: c_int,
        _flags: c_uint,
    ) {
        potential(grid, block, function, limit)
    }

    fn cuLaunchKernel(
        function: Handle, gx: c_uint, gy: c_uint, gz: c_uint, bx: c_uint, by: c_uint, bz: c_uint, shared: c_uint,
        stream: Handle, params: *mut *mut c_void, extra: *mut *mut c_void,
    ) {
        if !extra.is_null() { return Err(NOT_SUPPORTED) }
        let mut s = state();
        s.live()?;
        s.settings.fail.count(Kind::Launch)?;
        let (context, stream) = resolve(&mut s, stream)?;
        let function = context.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let config = Config { grid: [gx, gy, gz], block: [bx, by, bz], shared: shared as usize };
        check(function, &config)?;
        let sizes = kernel(function).params.iter().map(|p| p.size);
        let mut values = Vec::new();
        for (i, size) in sizes.enumerate() {
            if params.is_null() { return Err(INVALID_VALUE) }
            // SAFETY: one pointer per parameter of the kernel, each to a value of that parameter's size.
            let at = unsafe { *params.add(i) };
            if at.is_null() { return Err(INVALID_VALUE) }
            // SAFETY: as above.
            values.push(unsafe { std::slice::from_raw_parts(at.cast::<u8>(), size) }.to_vec());
        }
        let call = Call { module: function.module.clone(), kernel: function.kernel, config, params: values };
        context.submit(stream, Work::Kernel(Arc::new(call)))
    }
    fn cuLaunchCooperativeKernel(
        _function: Handle, _gx: c_uint, _gy: c_uint, _gz: c_uint, _bx: c_uint, _by: c_uint, _bz: c_uint,
        _shared: c_uint, _stream: Handle, _params: *mut *mut c_void,
    ) {
        refuse(NOT_SUPPORTED, format_args!("there are no cooperative launches"))
    }
}

fn load(text: &str) -> Answer<Handle> {
    {
        let mut s = state();
        s.live()?;
        s.settings.fail.count(Kind::Module)?;
    }
    let module = match ptx::parse(text) {
        Ok(module) => {
            let max_threads = module.kernels.iter().map(|k| launch_bound(text, &k.name)).collect();
            Arc::new(Loaded { module, max_threads })
        }
        Err(e) => return refuse(INVALID_PTX, format_args!("this PTX is not understood: {e}")),
    };
    let mut s = state();
    let handle = s.handle();
    s.live()?.modules.insert(handle, module);
    Ok(handle)
}

fn kernel(function: &Function) -> &Kernel {
    &function.module.module.kernels[function.kernel]
}

fn find(function: Handle) -> Answer<Function> {
    state().live()?.functions.get(&function).cloned().ok_or(INVALID_HANDLE)
}

fn max_threads(function: &Function) -> usize {
    function.module.max_threads[function.kernel]
}

/// Threads per block that a kernel was compiled for: `.maxntid x, y, z` between its name and its body.
fn launch_bound(ptx: &str, kernel: &str) -> usize {
    let header = |at: usize| {
        let rest = &ptx[at..];
        rest.starts_with('(').then(|| rest.split('{').next().unwrap_or_default())
    };
    let entry = format!(".entry {kernel}");
    let header = ptx.match_indices(&entry).find_map(|(at, _)| header(at + entry.len())).unwrap_or_default();
    let Some((_, bound)) = header.split_once(".maxntid") else { return 1024 };
    let digits = bound.lines().next().unwrap_or_default().split(',').map(str::trim);
    digits.map_while(|d| d.parse::<usize>().ok()).product::<usize>().clamp(1, 1024)
}

/// What a driver refuses at the call.
fn check(function: &Function, config: &Config) -> Answer {
    let kernel = kernel(function);
    let name = &kernel.name;
    let ([gx, gy, gz], [bx, by, bz]) = (config.grid, config.block);
    let threads = bx as u64 * by as u64 * bz as u64;
    let block_fits = threads > 0 && bx <= 1024 && by <= 1024 && bz <= 64 && threads <= 1024;
    if !block_fits {
        return refuse(INVALID_VALUE, format_args!("kernel {name}: a block of {bx}×{by}×{bz} threads"));
    }
    if gx == 0 || gy == 0 || gz == 0 || gx > i32::MAX as u32 || gy > 65_535 || gz > 65_535 {
        return refuse(INVALID_VALUE, format_args!("kernel {name}: a grid of {gx}×{gy}×{gz} blocks"));
    }
    let most = max_threads(function);
    if threads as usize > most {
        let why = format_args!("kernel {name}: {threads} threads in a block, its launch bounds say {most}");
        return refuse(INVALID_VALUE, why);
    }
    let fixed = kernel.shared_bytes();
    let granted = function.dynamic_shared.max(SHARED_BLOCK.saturating_sub(fixed));
    if config.shared > granted {
        let why = format_args!(
            "kernel {name}: {} bytes of dynamic shared memory, {granted} are granted (opt in by cuFuncSetAttribute)",
            config.shared
        );
        return refuse(INVALID_VALUE, why);
    }
    Ok(())
}

/// Without registers, which only an assembler knows.
fn occupancy(function: Handle, threads: c_int, shared: usize) -> Answer<c_int> {
    let function = find(function)?;
    let threads = usize::try_from(threads).ok().filter(|t| (1..=1024).contains(t)).ok_or(INVALID_VALUE)?;
    let shared = shared + kernel(&function).shared_bytes() + 1024;
    let warps = threads.div_ceil(32);
    let by_registers = REGISTERS_SM / (warps * 32 * 32);
    let blocks =
        BLOCKS_SM.min(THREADS_SM / 32 / warps).min(by_registers).min((SHARED_OPT_IN + 1024) / shared);
    Ok(blocks as c_int)
}

fn potential(grid: *mut c_int, block: *mut c_int, function: Handle, limit: c_int) -> Answer {
    let most = max_threads(&find(function)?);
    let threads = if limit > 0 { most.min(limit as usize) } else { most };
    put(block, threads as c_int)?;
    put(grid, occupancy(function, threads as c_int, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn launch_bounds_are_read_from_the_header_of_the_very_kernel() {
        let ptx = ".visible .entry load_two(\n)\n.maxntid 64\n{ }\n.visible .entry load(\n.param .u64 a\n)\n\
                   .maxntid 32, 4, 1\n.minnctapersm 2\n{ }\n.visible .entry free(\n)\n{ .maxntid 7 }\n";
        assert_eq!(launch_bound(ptx, "load"), 128);
        assert_eq!(launch_bound(ptx, "load_two"), 64);
        assert_eq!(launch_bound(ptx, "free"), 1024);
    }
}
