"""Compiles planted.cu to planted.ptx again, by the NVRTC that scripts/setup.sh fetches: python3 make.py"""

import ctypes
import pathlib

here = pathlib.Path(__file__).resolve().parent
root = here.parents[3]
rtc = ctypes.CDLL(str(root / "third_party/nvrtc/nvidia/cuda_nvrtc/lib/libnvrtc.so.12"))
program, size = ctypes.c_void_p(), ctypes.c_size_t()
source = (here / "planted.cu").read_bytes()
assert rtc.nvrtcCreateProgram(ctypes.byref(program), source, b"planted.cu", 0, None, None) == 0
options = [b"--gpu-architecture=compute_80", b"--std=c++17", b"-default-device", b"-lineinfo"]
failed = rtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
rtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
log = ctypes.create_string_buffer(size.value)
rtc.nvrtcGetProgramLog(program, log)
print(log.value.decode())
assert not failed
rtc.nvrtcGetPTXSize(program, ctypes.byref(size))
ptx = ctypes.create_string_buffer(size.value)
rtc.nvrtcGetPTX(program, ptx)
(here / "planted.ptx").write_bytes(ptx.value)
