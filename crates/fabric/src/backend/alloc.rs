//! `alloc`
