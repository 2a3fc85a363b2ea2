//! The memory of this process.

/// Gives memory that was freed back to the system, as far as whole pages of it lie together.
///
/// A pass over 10,000 leases takes megabytes for a moment; the C library would keep them. Costs a
/// walk over the free blocks, some milliseconds at worst. Elsewhere than with glibc it does nothing.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim(3) takes a number, is thread safe, and touches free blocks only.
    unsafe {
        libc::malloc_trim(0);
    }
}
