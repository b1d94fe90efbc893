//! Runs arithmetic on bytes as code for wider vectors, where the processor has them.

/// `work` on `bytes`. Where the processor has AVX2 it is compiled for that, if it can be inlined: write it as an
/// `#[inline(always)]` function, on arrays of known length.
pub fn sum(work: impl FnOnce(&[u8]) -> u64, bytes: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all the function asks for; the bytes stay their owner's, and are only read.
        return unsafe { with_avx2(work, bytes) };
    }
    work(bytes)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn with_avx2(work: impl FnOnce(&[u8]) -> u64, bytes: &[u8]) -> u64 {
    work(bytes)
}
