//! The tiles of AMX (Intel, Sapphire Rapids and later): eight registers of 16 rows of 64 bytes, and products of two of them that are added
//! to a third, 16 times as many multiply-adds of bfloat16 as a processor with AVX-512 does in f32.
//!
//! A thread has the state of its tiles saved by the system whenever it is interrupted, so a kernel configures them, multiplies, and gives
//! them back within one block of assembly.
//!
//! Safety: the unsafe operation is a system call without pointers.
#![allow(unsafe_code)]

/// Rows of a tile.
pub const TILE_ROWS: usize = 16;
/// Bytes of a row of a tile.
pub const TILE_ROW_BYTES: usize = 64;

/// The operand of `ldtilecfg` that makes all eight tiles 16 rows of 64 bytes.
#[repr(C, align(64))]
#[derive(Debug)]
pub struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

/// All tiles in full size.
pub static FULL_TILES: TileConfig = TileConfig {
    palette: 1,
    start_row: 0,
    reserved: [0; 14],
    row_bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    rows: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

/// Whether this processor multiplies tiles of bytes and of bfloat16, and the system lets this process use them. They come with AVX-512.
pub fn has_amx() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    {
        static AVAILABLE: std::sync::LazyLock<bool> = std::sync::LazyLock::new(available);
        *AVAILABLE
    }
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// Asks the system for the tiles, for all threads of the process.
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
fn available() -> bool {
    use std::arch::x86_64::__cpuid_count;

    /// AMX-BF16, AMX-TILE and AMX-INT8 in the features of leaf 7 (Intel's manual, volume 2, CPUID).
    const FEATURES: u32 = 1 << 22 | 1 << 24 | 1 << 25;
    /// `ARCH_REQ_XCOMP_PERM` of the kernel's `asm/prctl.h`, and the number of the tiles among the parts of a processor's state.
    const REQUEST_PERMISSION: libc::c_int = 0x1023;
    const TILE_DATA: libc::c_ulong = 18;

    let has_instructions = crate::has_avx512()
        && is_x86_feature_detected!("avx512bf16")
        && __cpuid_count(7, 0).edx & FEATURES == FEATURES;
    // SAFETY: the call reads and writes no memory of the process; kernels that do not know it return an error.
    has_instructions
        && unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) } == 0
}
