//! The memory of this process.

/// Has all threads share one pool of memory, where the C library would give each one of its own: the
/// threads of a daemon live briefly, and what they free should be there for the next one. To be called
/// before there is a second thread. Elsewhere than with glibc it does nothing.
pub fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt(3) takes two numbers and sets a limit.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

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
